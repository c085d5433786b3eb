"""The plugin host: finds plugins by their entry points, and opens what an address denotes.

It must know neither the log nor the protocol, nor any plugin by name. Nothing is looked for before the first
address is opened, and then once; a driver is imported when its scheme is first used.

    storage = open_storage("redis://localhost:6379/0", prefix="logs")
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from hypercore.errors import (
    HypercoreError,
    MissingDriverError,
    OptionError,
    PluginError,
    SchemeConflictError,
    UnknownSchemeError,
)
from hypercore.storage import Storage
from hypercore.transport import Transport
from hypercore.urls import HIDDEN, Address, parse_address

if TYPE_CHECKING:  # these cost 50 ms, which only those who open an address pay
    from importlib.metadata import EntryPoint

    from hypercore.hookspecs import Provider, StorageProvider, TransportProvider

    _Offers = Mapping[str, Sequence[tuple["PluginInfo", Provider]]]

#: Names of entry points, separated by commas, that are not even imported.
DISABLE_VARIABLE = "HYPERCORE_DISABLE_PLUGINS"

_Kind = TypeVar("_Kind", bound="Provider")
_logger = logging.getLogger("hypercore.plugins")


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginInfo:
    """One plugin as it was found: what it offers, or why it offers nothing."""

    name: str
    #: The distribution it came with, and its version.
    distribution: str = ""
    version: str = ""
    disabled: bool = False
    #: What is wrong with it; a conflict leaves its other schemes usable.
    error: str | None = None
    storages: tuple[StorageProvider, ...] = field(default=())
    transports: tuple[TransportProvider, ...] = field(default=())

    def __str__(self) -> str:
        return f"{self.name!r} ({self.distribution} {self.version})" if self.distribution else repr(self.name)


class PluginHost:
    """The plugins of some entry points, less those that are `disabled` by name."""

    def __init__(self, entry_points: Iterable[EntryPoint], *, disabled: Iterable[str] = ()) -> None:
        off = frozenset(disabled)
        plugins = [_load(entry, disabled=entry.name in off) for entry in _distinct(entry_points)]
        self._storages = _by_scheme((plugin, plugin.storages) for plugin in plugins)
        self._transports = _by_scheme((plugin, plugin.transports) for plugin in plugins)
        self._plugins = tuple(self._with_conflicts(plugin) for plugin in plugins)
        for plugin in self._plugins:
            if plugin.error is not None:
                _logger.warning("plugin %s: %s", plugin, plugin.error)

    def plugins(self) -> Sequence[PluginInfo]:
        """All that were found, also those that are broken or switched off."""
        return self._plugins

    def open_storage(self, address: str | os.PathLike[str] | Address | Storage, **options: object) -> Storage:
        """See `hypercore.plugins.open_storage`."""
        if isinstance(address, Storage):
            _refuse_options(options)
            return address
        opened, opener = self._open(parse_address(address), options, self._storages, "storage")
        if not isinstance(opened, Storage):
            raise PluginError(f"{opener} gave a {type(opened).__name__}, not a Storage")
        return opened

    def open_transport(self, address: str | Address | Transport, **options: object) -> Transport:
        """See `hypercore.plugins.open_transport`."""
        if isinstance(address, Transport):
            _refuse_options(options)
            return address
        opened, opener = self._open(parse_address(address), options, self._transports, "transport")
        if not isinstance(opened, Transport):
            raise PluginError(f"{opener} gave a {type(opened).__name__}, not a Transport")
        return opened

    def is_storage(self, address: str | os.PathLike[str] | Address) -> bool:
        """See `hypercore.plugins.is_storage`."""
        scheme = parse_address(address).scheme
        if scheme in self._transports:
            return False
        if scheme in self._storages:
            return True
        raise UnknownSchemeError(
            f"no plugin offers the scheme {scheme!r}, neither a peer's ({', '.join(sorted(self._transports))}) nor a "
            f"storage's ({', '.join(sorted(self._storages))}){self._absent()}. A peer over TCP is written "
            "'tcp://host:port'"
        )

    def finds_peers(self, address: str | os.PathLike[str] | Address) -> bool:
        """See `hypercore.plugins.finds_peers`."""
        offers = self._transports.get(parse_address(address).scheme, [])
        return any(getattr(provider, "finds_peers", False) for _, provider in offers)

    def _open(self, address: Address, options: Mapping[str, object], offers: _Offers, what: str) -> tuple[object, str]:
        """What the opener gave, and who it is, for a complaint."""
        found = offers.get(address.scheme, [])
        if not found:
            raise UnknownSchemeError(self._unknown(address, offers, what))
        if len(found) > 1:
            raise SchemeConflictError(_conflict(address.scheme, found))
        plugin, provider = found[0]
        return _call(plugin, provider, address, options), f"plugin {plugin}: {provider.opener}"

    def _unknown(self, address: Address, offers: Iterable[str], what: str) -> str:
        text = f"no plugin offers the {what} scheme {address.scheme!r}; known are {', '.join(sorted(offers)) or 'none'}"
        text += self._absent()
        if what == "storage" and address.host is None:
            text += f". A folder of that name is written './{address}'"
        if what == "transport" and address.host is None:
            text += ". A peer over TCP is written 'tcp://host:port'"
        return text

    def _absent(self) -> str:
        """The plugins that offer nothing, since theirs may be the scheme that was meant."""
        text = ""
        if off := [plugin.name for plugin in self._plugins if plugin.disabled]:
            text += f"; switched off by {DISABLE_VARIABLE}: {', '.join(off)}"
        if broken := [plugin.name for plugin in self._plugins if plugin.error is not None]:
            text += f"; broken: {', '.join(broken)} (see `hypercore plugins`)"
        return text

    def _with_conflicts(self, plugin: PluginInfo) -> PluginInfo:
        conflicts = [
            _conflict(scheme, found)
            for offers in (self._storages, self._transports)
            for scheme, found in offers.items()
            if len(found) > 1 and any(owner is plugin for owner, _ in found)
        ]
        return replace(plugin, error="; ".join(conflicts)) if conflicts else plugin


def open_storage(address: str | os.PathLike[str] | Address | Storage, **options: object) -> Storage:
    """The storage that an address denotes; a storage passes through. Nothing is read, made or connected yet.

    Raises `AddressError`, `OptionError`, `UnknownSchemeError`, `SchemeConflictError`, `MissingDriverError`,
    `PluginError`.
    """
    if isinstance(address, Storage) and not options:
        return address  # nobody who brings an object should pay for the search
    return installed().open_storage(address, **options)


def open_transport(address: str | Address | Transport, **options: object) -> Transport:
    """The transport that an address denotes; a transport passes through. Raises as `open_storage` does."""
    if isinstance(address, Transport) and not options:
        return address
    return installed().open_transport(address, **options)


def is_storage(address: str | os.PathLike[str] | Address) -> bool:
    """Whether a peer's address is a storage's and not a transport's.

    Raises `AddressError`, and `UnknownSchemeError` for a scheme that is neither's.
    """
    return installed().is_storage(address)


def finds_peers(address: str | os.PathLike[str] | Address) -> bool:
    """Whether an address is that of a discovery, as `lan:` is. Raises `AddressError`."""
    return installed().finds_peers(address)


def list_plugins() -> Sequence[PluginInfo]:
    """All plugins that are installed, also those that are broken or switched off."""
    return installed().plugins()


@functools.cache
def installed() -> PluginHost:
    """The host of this process: all plugins that are installed, less those that the environment switches off."""
    from importlib.metadata import entry_points

    from hypercore.hookspecs import GROUP

    disabled = (name.strip() for name in os.environ.get(DISABLE_VARIABLE, "").split(","))
    return PluginHost(entry_points(group=GROUP), disabled=disabled)


# ---- loading --------------------------------------------------------------------------------------


def _distinct(entry_points: Iterable[EntryPoint]) -> list[EntryPoint]:
    """Each once, by name: one distribution may be on the path twice, installed and as a source tree."""
    seen = {(entry.name, entry.value, entry.dist.name if entry.dist else ""): entry for entry in entry_points}
    return sorted(seen.values(), key=lambda entry: entry.name)


def _load(entry: EntryPoint, *, disabled: bool) -> PluginInfo:
    distribution = (entry.dist.name, entry.dist.version) if entry.dist else ("", "")
    plugin = PluginInfo(name=entry.name, distribution=distribution[0], version=distribution[1], disabled=disabled)
    if disabled:
        return plugin
    try:
        loaded = entry.load()
    except Exception as error:
        return replace(plugin, error=f"cannot be imported: {_said(error)}")
    return _ask(plugin, loaded)


def _ask(plugin: PluginInfo, loaded: object) -> PluginInfo:
    """What the plugin offers, by a manager of its own, so that what it does wrong stays with it."""
    import pluggy

    from hypercore import hookspecs

    try:
        manager = pluggy.PluginManager(hookspecs.GROUP)
        manager.add_hookspecs(hookspecs)
        manager.register(loaded, plugin.name)
        manager.check_pending()
        storages = _checked(manager.hook.hypercore_storage_providers(), hookspecs.StorageProvider)
        transports = _checked(manager.hook.hypercore_transport_providers(), hookspecs.TransportProvider)
    except Exception as error:
        return replace(plugin, error=_said(error))
    if not storages and not transports:
        return replace(plugin, error="it offers nothing; are its hooks named as in hypercore.hookspecs, and marked?")
    return replace(plugin, storages=storages, transports=transports)


def _checked(answers: Sequence[object], kind: type[_Kind]) -> tuple[_Kind, ...]:
    providers: list[_Kind] = []
    for answer in answers:
        if not isinstance(answer, Iterable):
            raise PluginError(f"a hook gave a {type(answer).__name__}, not a list of {kind.__name__}")
        for provider in answer:
            if not isinstance(provider, kind):
                raise PluginError(f"a hook gave a {type(provider).__name__} in its list, not a {kind.__name__}")
            if parse_address(f"{provider.scheme}:") != Address(scheme=provider.scheme):
                raise PluginError(f"{provider.scheme!r} is no scheme: it has at least two letters, in lower case")
            if not all(provider.opener.partition(":")):
                raise PluginError(f"{provider.opener!r} is no opener: it is written 'module:function'")
            providers.append(provider)
    return tuple(providers)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _by_scheme(offers: Iterable[tuple[PluginInfo, Sequence[Provider]]]) -> _Offers:
    found: dict[str, list[tuple[PluginInfo, Provider]]] = {}
    for plugin, providers in offers:
        for provider in providers:
            found.setdefault(provider.scheme, []).append((plugin, provider))
    return found


def _conflict(scheme: str, found: Sequence[tuple[PluginInfo, Provider]]) -> str:
    owners = " and ".join(str(plugin) for plugin, _ in found)
    return f"the scheme {scheme!r} is claimed by {owners}; uninstall one, or name it in {DISABLE_VARIABLE}"


# ---- opening --------------------------------------------------------------------------------------


def _refuse_options(options: Mapping[str, object]) -> None:
    if options:
        raise OptionError(f"the options {', '.join(options)} belong to an address, but this is an open object")


def _call(plugin: PluginInfo, provider: Provider, address: Address, options: Mapping[str, object]) -> object:
    module_name, _, function_name = provider.opener.partition(":")
    try:
        opener = getattr(importlib.import_module(module_name), function_name)
        return opener(address, **options)
    except HypercoreError:
        raise
    except Exception as error:
        said = _said(error)
        if address.password:
            said = said.replace(address.password, HIDDEN)
        if isinstance(error, ImportError) and provider.extra is not None and not _is_own(error, module_name):
            raise MissingDriverError(
                f"the scheme {provider.scheme!r} needs a library that is not installed ({error.name or said}): "
                f"pip install '{plugin.distribution or plugin.name}[{provider.extra}]'"
            ) from error
        raise PluginError(f"plugin {plugin}: {provider.opener} failed: {said}") from error


def _is_own(error: ImportError, module_name: str) -> bool:
    """Whether it is the plugin's own module that is missing, and not its driver."""
    return (error.name or "").partition(".")[0] == module_name.partition(".")[0]

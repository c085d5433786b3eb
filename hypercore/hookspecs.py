"""The hooks that a plugin implements, which are all that it must know of the host.

A distribution offers a plugin by an entry point in the group `hypercore`: any name, and a module (or object) with
one or both hooks. The module is imported when plugins are first needed, so it must not import its driver: that
belongs behind the opener, which is imported at first use.

    from hypercore.hookspecs import StorageProvider, hookimpl

    @hookimpl
    def hypercore_storage_providers() -> list[StorageProvider]:
        return [StorageProvider(scheme="toy", opener="hypercore_toy.storage:open_storage", summary="a toy")]
"""

from __future__ import annotations

from dataclasses import dataclass

import pluggy

#: The entry-point group, and the name under which the hooks are marked.
GROUP = "hypercore"

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """What a plugin offers under one scheme.

    `opener` is `"module:function"`, imported at first use: `(address: Address, **options: object)` to a `Storage` or
    `Transport`. It must not wait for anything: what it opens connects in its first call. `extra` is the extra of the
    plugin's distribution that installs the driver, for the message when the driver is missing.
    """

    scheme: str
    opener: str
    summary: str
    extra: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageProvider(Provider):
    """A storage backend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportProvider(Provider):
    """A transport; `finds_peers` when it has a discovery, and so nobody in particular to dial."""

    finds_peers: bool = False


@hookspec
def hypercore_storage_providers() -> list[StorageProvider]:  # type: ignore[empty-body]
    """The storage backends that this plugin offers."""


@hookspec
def hypercore_transport_providers() -> list[TransportProvider]:  # type: ignore[empty-body]
    """The transports that this plugin offers."""

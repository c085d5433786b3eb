"""The LAN transport: `lan:` finds the peers of one's topics on the local network, by multicast DNS (`docs/lan.md`)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from hypercore.hookspecs import TransportProvider, hookimpl

if TYPE_CHECKING:
    from hypercore_lan.transport import LanOptions, LanTransport, open_transport

__all__ = ["LanOptions", "LanTransport", "open_transport"]


def __getattr__(name: str) -> object:
    # Being found must cost next to nothing; what is behind the scheme is imported when it is first used.
    if name in __all__:
        return getattr(import_module("hypercore_lan.transport"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@hookimpl
def hypercore_transport_providers() -> list[TransportProvider]:
    """The scheme `lan`."""
    return [
        TransportProvider(
            scheme="lan",
            opener="hypercore_lan.transport:open_transport",
            summary="peers on the local network, found by multicast DNS and dialled over TCP",
            extra="lan",
            finds_peers=True,
        )
    ]

"""The TCP transport: `tcp://host:port`, over IPv4 and IPv6, on asyncio's own loop and on uvloop."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from hypercore.hookspecs import TransportProvider, hookimpl

if TYPE_CHECKING:
    from hypercore_tcp.stream import TcpStream
    from hypercore_tcp.transport import TcpListener, TcpOptions, TcpTransport, open_transport

__all__ = ["TcpListener", "TcpOptions", "TcpStream", "TcpTransport", "open_transport"]


def __getattr__(name: str) -> object:
    # Being found must cost next to nothing; what is behind the scheme is imported when it is first used.
    if name in __all__:
        return getattr(import_module("hypercore_tcp.transport"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@hookimpl
def hypercore_transport_providers() -> list[TransportProvider]:
    """The scheme `tcp`."""
    return [
        TransportProvider(
            scheme="tcp",
            opener="hypercore_tcp.transport:open_transport",
            summary="TCP, dialled and listened on at tcp://host:port",
        )
    ]

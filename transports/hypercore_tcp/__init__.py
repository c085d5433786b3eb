"""The TCP transport: `tcp://host:port`, over IPv4 and IPv6, on asyncio's own loop and on uvloop."""

from __future__ import annotations

from hypercore.hookspecs import TransportProvider, hookimpl
from hypercore_tcp.stream import TcpStream
from hypercore_tcp.transport import TcpListener, TcpOptions, TcpTransport, open_transport

__all__ = ["TcpListener", "TcpOptions", "TcpStream", "TcpTransport", "open_transport"]


@hookimpl
def hypercore_transport_providers() -> list[TransportProvider]:
    """The scheme `tcp`."""
    return [
        TransportProvider(
            scheme="tcp",
            opener="hypercore_tcp:open_transport",
            summary="TCP, dialled and listened on at tcp://host:port",
        )
    ]

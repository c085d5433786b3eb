"""The TCP transport: `tcp://host:port`, over IPv4 and IPv6, on asyncio's own loop and on uvloop."""

from __future__ import annotations

from hypercore_tcp.stream import TcpStream
from hypercore_tcp.transport import TcpListener, TcpTransport, open_transport

__all__ = ["TcpListener", "TcpStream", "TcpTransport", "open_transport"]

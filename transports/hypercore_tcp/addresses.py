"""Where TCP peers are: addresses taken apart, names resolved, sockets' own names written as addresses.

It knows nothing of streams and listeners.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque

from hypercore.errors import AddressError, ConnectError
from hypercore.urls import Address

#: What a socket is bound or connected to: a family, and the address in that family's own form.
Endpoint = tuple[socket.AddressFamily, tuple[object, ...]]

#: Addresses of documentation (RFC 5737, RFC 3849), which stand for any other machine.
_ELSEWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
_LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


def host_and_port(address: Address) -> tuple[str, int]:
    """Raises `AddressError` when there is more or less than a host and a port."""
    superfluous = address.path or address.username is not None or address.password is not None
    if address.scheme != "tcp" or address.host is None or address.port is None or superfluous:
        raise AddressError(f"{str(address)!r} is not a TCP address: write tcp://host:port, IPv6 as tcp://[::1]:port")
    # In a URL the zone of a link-local address is written behind an escaped percent sign (RFC 6874).
    return address.host.replace("%25", "%"), address.port


def format_address(name: tuple[object, ...]) -> str:
    """A socket's name as an address."""
    host, port = str(name[0]), name[1]
    if ":" not in host:
        return f"tcp://{host}:{port}"
    zone = name[3] if len(name) > 3 else 0
    if isinstance(zone, int) and zone and "%" not in host:
        host = f"{host}%{socket.if_indextoname(zone)}"
    return f"tcp://[{host}]:{port}"


def dialable_addresses(sock: socket.socket) -> list[str]:
    """The addresses by which a peer reaches a listening socket; the one for other machines comes first."""
    name = sock.getsockname()
    if name[0] not in ("0.0.0.0", "::"):
        return [format_address(name)]
    hosts = []
    with contextlib.suppress(OSError), socket.socket(sock.family, socket.SOCK_DGRAM) as probe:
        # Connecting a datagram socket sends nothing; it only finds which address of ours faces the network.
        probe.connect((_ELSEWHERE[sock.family], 9))
        hosts.append(probe.getsockname()[0])
    hosts.append(_LOOPBACK[sock.family])
    return [format_address((host, name[1])) for host in dict.fromkeys(hosts)]


async def resolve(address: str, host: str, port: int) -> list[Endpoint]:
    """What a host stands for, the families taking turns, each once. Raises `ConnectError`."""
    try:
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        except socket.gaierror:
            # Not a number, so the name service has to be asked, which may take long: in a thread.
            infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise ConnectError(f"the host of {address} cannot be found: {reason(error)}") from error
    queues: dict[socket.AddressFamily, deque[Endpoint]] = {}
    for family, _type, _protocol, _name, where in dict.fromkeys(infos):
        queues.setdefault(family, deque()).append((family, where))
    turns: list[Endpoint] = []
    while any(queues.values()):
        turns += [queue.popleft() for queue in queues.values() if queue]
    return turns


def reason(error: BaseException) -> str:
    """Why an operation failed, in few words."""
    if isinstance(error, ConnectionRefusedError):
        return "it refused, so nothing listens there"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__

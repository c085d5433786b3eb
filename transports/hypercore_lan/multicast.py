"""Whether multicast DNS works here: asks a question that nobody knows, and listens whether it comes back.

It knows neither peers nor topics, and uses sockets of its own, so that what it sees is the network and not zeroconf.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import secrets
import socket
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from hypercore_lan.links import Link

PORT: Final = 5353
_GROUPS: Final = {socket.AF_INET: "224.0.0.251", socket.AF_INET6: "ff02::fb"}
#: A packet may be lost, also on its way back to ourselves.
TRIES: Final = 3
#: Everybody who speaks multicast DNS answers this one, printers and telephones too (RFC 6763, section 9).
_EVERYBODY: Final = ("_services", "_dns-sd", "_udp", "local")
_PTR, _IN = 12, 1
#: Of Linux; Python has no name for it.
_IP_MULTICAST_ALL: Final = 49
#: Other speakers that are kept in mind.
SPEAKER_COUNT_MAX: Final = 1024


@dataclass(slots=True)
class Echo:
    """What became of a question on one link, in one address family."""

    link: Link
    family: socket.AddressFamily
    #: Our own question came back to us.
    is_heard: bool = False
    #: Why it could not even be sent.
    error: OSError | None = None
    #: Hosts other than this one that said anything.
    speakers: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        """`eth0 (IPv4)`."""
        return f"{self.link.name} (IPv{4 if self.family == socket.AF_INET else 6})"


async def listen(links: Sequence[Link], *, seconds: float) -> list[Echo]:
    """Ask on every link, and listen for so long.

    Raises `OSError` when port 5353 is not to be had.
    """
    loop = asyncio.get_running_loop()
    own_hosts = {host for link in links for host in link.hosts}
    async with contextlib.AsyncExitStack() as stack:
        ears = []
        for link in links:
            for family, hosts in ((socket.AF_INET, link.ipv4), (socket.AF_INET6, link.ipv6)):
                if hosts:
                    echo = Echo(link, family)
                    ear = _Ear(echo, own_hosts, _open(echo))
                    transport, _ = await loop.create_datagram_endpoint(functools.partial(_itself, ear), sock=ear.socket)
                    stack.callback(transport.close)
                    ears.append(ear)
        for _ in range(TRIES):
            for ear in ears:
                ear.ask()
            await asyncio.sleep(seconds / TRIES)
    return [ear.echo for ear in ears]


class _Ear(asyncio.DatagramProtocol):
    def __init__(self, echo: Echo, own_hosts: set[str], sock: socket.socket) -> None:
        self.echo = echo
        self.socket = sock
        self._own_hosts = own_hosts
        self._mark = secrets.token_hex(8)
        self._question = _encode(_EVERYBODY, (self._mark, "local"))

    def ask(self) -> None:
        echo = self.echo
        if echo.is_heard:
            return
        group: Any = (_GROUPS[echo.family], PORT)
        if echo.family == socket.AF_INET6:
            group = (*group, 0, echo.link.index)
        try:
            # Not by way of the loop's transport, which keeps to itself that a firewall forbids it.
            self.socket.sendto(self._question, group)
            echo.error = None
        except OSError as error:
            echo.error = error

    def datagram_received(self, data: bytes, address: Any) -> None:
        host = str(address[0]).partition("%")[0]
        if self._mark.encode() in data:
            self.echo.is_heard = True
        elif host not in self._own_hosts and len(self.echo.speakers) < SPEAKER_COUNT_MAX:
            self.echo.speakers.add(host)

    def error_received(self, error: Exception) -> None:
        """What the kernel says of a packet that we sent is no news of the network."""


def _itself(ear: _Ear) -> _Ear:
    return ear


def _open(echo: Echo) -> socket.socket:
    """A socket that hears the group on one link only; the port is shared with whoever shares it."""
    sock = socket.socket(echo.family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "SO_REUSEPORT"):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        group = socket.inet_pton(echo.family, _GROUPS[echo.family])
        # Bound to the group, not to every address: answers that are meant for one program are not taken from it.
        if echo.family == socket.AF_INET:
            sock.bind((_GROUPS[echo.family], PORT))
            own = echo.link.ipv4[0].ip.packed
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, own)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group + own)
            if sys.platform == "linux":  # Else it hears what any other socket has joined, on any link.
                sock.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 0)
        else:
            index = echo.link.index
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((_GROUPS[echo.family], PORT, 0, index))
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group + struct.pack("@I", index))
    except BaseException:
        sock.close()
        raise
    return sock


def _encode(*names: Sequence[str]) -> bytes:
    """A query for pointers of these names (RFC 1035, section 4.1)."""
    query = struct.pack("!6H", 0, 0, len(names), 0, 0, 0)
    for name in names:
        for label in name:
            query += bytes((len(label),)) + label.encode()
        query += b"\0" + struct.pack("!2H", _PTR, _IN)
    return query

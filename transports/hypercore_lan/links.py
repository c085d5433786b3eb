"""Which networks this machine is on: the links that discovery works over, and which addresses lie on them.

It knows nothing of multicast DNS. `read_links` is called every few seconds, so it asks the kernel and nobody else.
"""

from __future__ import annotations

import fnmatch
import socket
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address
from pathlib import Path
from typing import Final

import ifaddr

#: Where Linux tells of its network devices.
SYSTEM_PATH: Final = Path("/sys/class/net")
_ADDRESSES_PATH: Final = Path("/proc/net/if_inet6")

_IFF_LOOPBACK: Final = 0x8
_IFF_POINT_TO_POINT: Final = 0x10
_TENTATIVE: Final = 0x40
#: What container engines and virtual machines call their ends of things, where the system tells us nothing better.
_VIRTUAL_NAMES: Final = ("docker*", "br-*", "veth*", "virbr*", "vnet*", "cni*", "flannel*", "cali*", "lxcbr*", "lxdbr*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A network interface that discovery works over, with its addresses there."""

    name: str
    index: int
    ipv4: tuple[IPv4Interface, ...]
    #: Link-local only: they do not change when a provider or a privacy timer says so.
    ipv6: tuple[IPv6Address, ...]
    is_loopback: bool = False
    #: A cable is in, as far as the system can tell.
    is_connected: bool = True

    def has(self, address: IPv4Address) -> bool:
        """Whether the address is reached over this link without a router."""
        return any(address in each.network for each in self.ipv4)

    @property
    def hosts(self) -> tuple[str, ...]:
        """Its addresses as numbers."""
        return tuple(str(each.ip) for each in self.ipv4) + tuple(str(each) for each in self.ipv6)


def read_links(wanted: Collection[str] = ()) -> tuple[Link, ...]:
    """The links that are fit for discovery now, or those `wanted`: names (`eth*` too) or addresses of interfaces.

    Without `wanted` these are all but loopback, tunnels, and what containers and virtual machines are wired with.
    """
    tentative = _tentative_addresses()
    links = []
    for adapter in ifaddr.get_adapters():
        if not adapter.index:
            continue
        flags = _flags(adapter.name)
        ipv4, ipv6 = [], []
        for each in adapter.ips:
            if isinstance(each.ip, str):
                ipv4.append(IPv4Interface(f"{each.ip}/{each.network_prefix}"))
            elif (address := IPv6Address(each.ip[0])).is_link_local and (address, adapter.index) not in tentative:
                ipv6.append(address)
        if not ipv4 and not ipv6:
            continue
        link = Link(
            name=adapter.name,
            index=adapter.index,
            ipv4=tuple(sorted(ipv4)),
            ipv6=tuple(sorted(ipv6)),
            is_loopback=bool(flags & _IFF_LOOPBACK) or any(each.is_loopback for each in ipv4),
            is_connected=_is_connected(adapter.name),
        )
        if _is_wanted(link, wanted) if wanted else _is_fit(link, flags):
            links.append(link)
    return tuple(sorted(links, key=lambda link: link.index))


def _is_wanted(link: Link, wanted: Collection[str]) -> bool:
    names = (link.name, *link.hosts)
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted for name in names)


def _is_fit(link: Link, flags: int) -> bool:
    return not (link.is_loopback or flags & _IFF_POINT_TO_POINT or is_virtual(link.name))


def is_virtual(name: str, system: Path = SYSTEM_PATH) -> bool:
    """Whether an interface only wires containers or virtual machines to this one.

    A bridge with a network card in it is a real network, whatever its name.
    """
    ports = system / name / "brif"
    if ports.is_dir():
        return not any((system / port.name / "device").exists() for port in ports.iterdir())
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _VIRTUAL_NAMES)


def _flags(name: str) -> int:
    with suppress(OSError, ValueError):
        return int((SYSTEM_PATH / name / "flags").read_text(), 16)
    return 0


def _is_connected(name: str) -> bool:
    with suppress(OSError):
        return (SYSTEM_PATH / name / "operstate").read_text().strip() not in ("down", "lowerlayerdown")
    return True


def _tentative_addresses() -> set[tuple[IPv6Address, int]]:
    """Addresses of which the kernel does not know yet whether they are taken; nothing can be bound to them."""
    found = set()
    with suppress(OSError, ValueError):
        for line in _ADDRESSES_PATH.read_text().splitlines():
            digits, index, _prefix, _scope, flags, *_ = line.split()
            if int(flags, 16) & _TENTATIVE:
                found.add((IPv6Address(bytes.fromhex(digits)), int(index, 16)))
    return found


def dialable_addresses(hosts: Iterable[str], port: int, links: Collection[Link], *, limit: int) -> tuple[str, ...]:
    """The addresses that a peer gave, as far as they lie on a link of ours: nobody is sent off the network by an
    announcement. IPv4 comes first; a link-local address gets the link on which the peer's others are.

    A host that was heard of over IPv6 carries its scope, `fe80::1%3`.
    """
    ipv4: list[str] = []
    ipv6: list[str] = []
    unscoped: list[str] = []
    home = next(iter(links)) if len(links) == 1 else None
    for host in hosts:
        number, _, scope = host.partition("%")
        if ":" not in number:
            with suppress(ValueError):
                address = IPv4Address(number)
                link = next((each for each in links if each.has(address)), None)
                if link is not None and (link.is_loopback or not address.is_multicast):
                    ipv4.append(f"tcp://{number}:{port}")
                    home = home or link
        elif IPv6Address(number).is_link_local:
            if any(scope in (str(each.index), each.name) for each in links):
                ipv6.append(_scoped(number, scope, port))
            elif not scope:
                unscoped.append(number)
    if home is not None:
        ipv6 += [_scoped(number, home.name, port) for number in unscoped]
    return tuple(dict.fromkeys(ipv4 + ipv6))[:limit]


def _scoped(number: str, scope: str, port: int) -> str:
    with suppress(OSError):
        if scope.isdigit():
            scope = socket.if_indextoname(int(scope))
    return f"tcp://[{number}%{scope}]:{port}"

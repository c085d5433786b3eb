"""Which networks are worked over, and which announced addresses are worth a dial."""

from __future__ import annotations

import socket
from ipaddress import IPv4Interface, IPv6Address
from pathlib import Path

import pytest

from hypercore.urls import parse_address
from hypercore_lan.links import Link, dialable_addresses, is_virtual, read_links

LOOPBACK_NAME = "lo"


def link(name: str, ipv4: str = "", ipv6: str = "", *, index: int = 7, is_loopback: bool = False) -> Link:
    return Link(
        name=name,
        index=index,
        ipv4=(IPv4Interface(ipv4),) if ipv4 else (),
        ipv6=(IPv6Address(ipv6),) if ipv6 else (),
        is_loopback=is_loopback,
    )


HOME = link("eth0", "192.168.1.5/24", "fe80::5", index=2)
OTHER = link("wlan0", "10.0.0.5/8", "fe80::6", index=3)


def dialable(*hosts: str, links: tuple[Link, ...] = (HOME, OTHER), limit: int = 4) -> tuple[str, ...]:
    return dialable_addresses(hosts, 4977, links, limit=limit)


def test_an_address_on_a_link_is_dialled_and_one_beyond_it_is_not() -> None:
    assert dialable("192.168.1.9", "10.9.9.9") == ("tcp://192.168.1.9:4977", "tcp://10.9.9.9:4977")
    assert dialable("8.8.8.8", "192.168.2.9", "127.0.0.1", "0.0.0.0", "224.0.0.251", "2001:db8::1", "::1") == ()


def test_a_link_local_address_is_dialled_over_the_link_where_it_was_heard() -> None:
    name = socket.if_indextoname(1)
    loopback = link(name, "127.0.0.1/8", "fe80::1", index=1)
    assert dialable("fe80::9%1", links=(HOME, loopback)) == (f"tcp://[fe80::9%{name}]:4977",)
    assert dialable("fe80::9%9", links=(HOME, loopback)) == ()


def test_a_link_local_address_without_its_link_gets_that_of_the_peers_others() -> None:
    assert dialable("10.9.9.9", "fe80::9") == ("tcp://10.9.9.9:4977", "tcp://[fe80::9%wlan0]:4977")
    assert dialable("fe80::9", links=(HOME,)) == ("tcp://[fe80::9%eth0]:4977",)
    assert dialable("fe80::9") == ()


def test_a_scoped_address_is_an_address_that_tcp_takes() -> None:
    (text,) = dialable("fe80::9", links=(HOME,))
    assert (parse_address(text).host, parse_address(text).port) == ("fe80::9%eth0", 4977)
    assert str(parse_address(text)) == text


def test_however_many_addresses_are_announced_few_are_dialled() -> None:
    hosts = [f"192.168.1.{number}" for number in range(1, 250)] * 2
    assert len(dialable(*hosts)) == 4


@pytest.mark.parametrize("name", ["docker0", "br-1a2b3c", "veth12ab", "virbr0", "cni0", "flannel.1", "vnet3", "cali12"])
def test_what_wires_containers_is_left_alone(name: str, tmp_path: Path) -> None:
    assert is_virtual(name, tmp_path)


@pytest.mark.parametrize("name", ["eth0", "enp3s0", "wlan0", "wlp2s0", "usb0", "bond0", "br0"])
def test_a_real_network_is_worked_over(name: str, tmp_path: Path) -> None:
    assert not is_virtual(name, tmp_path)


@pytest.mark.parametrize("name", ["br0", "docker0"])
def test_a_bridge_is_real_when_a_network_card_is_in_it(name: str, tmp_path: Path) -> None:
    for port in ("veth1", "enp3s0"):
        (tmp_path / name / "brif" / port).mkdir(parents=True)
        (tmp_path / port).mkdir()
    assert is_virtual(name, tmp_path)
    (tmp_path / "enp3s0" / "device").mkdir()
    assert not is_virtual(name, tmp_path)


def test_loopback_is_used_only_when_it_is_asked_for() -> None:
    assert not any(each.is_loopback for each in read_links())
    for wanted in (LOOPBACK_NAME, "127.0.0.1", "127.*"):
        assert [each.name for each in read_links([wanted])] == [LOOPBACK_NAME]
    assert read_links(["nothing-of-that-name"]) == ()

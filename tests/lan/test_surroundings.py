"""What the machine tells of itself: containers, cables that are no cables, and who holds a port."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from hypercore_lan import surroundings
from tests.processes import running
from tests.running import run


def interface(system: Path, name: str, *, index: int, other_end: int, uevent: str = "", card: bool = False) -> None:
    place = system / name
    place.mkdir()
    (place / "ifindex").write_text(f"{index}\n")
    (place / "iflink").write_text(f"{other_end}\n")
    (place / "uevent").write_text(uevent + f"INTERFACE={name}\nIFINDEX={index}\n")
    if card:
        (place / "device").mkdir()


def test_the_end_of_a_veth_pair_is_told_from_all_that_stands_on_a_network_card(tmp_path: Path) -> None:
    interface(tmp_path, "eth0", index=2, other_end=7)
    interface(tmp_path, "enp3s0", index=3, other_end=3, card=True)
    interface(tmp_path, "vlan5", index=4, other_end=3, uevent="DEVTYPE=vlan\n")
    interface(tmp_path, "macvlan0", index=5, other_end=3, uevent="DEVTYPE=macvlan\n")
    interface(tmp_path, "tap0", index=6, other_end=6)
    names = ("eth0", "enp3s0", "vlan5", "macvlan0", "tap0", "nothing")
    assert [name for name in names if surroundings.is_half_of_pair(name, tmp_path)] == ["eth0"]
    assert [name for name in names if surroundings.is_made_up(name, tmp_path)] == ["eth0", "tap0"]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (".dockerenv", ""),
        ("run/.containerenv", ""),
        ("proc/1/cgroup", "12:cpu:/kubepods/burstable/pod1\n"),
        ("proc/1/cgroup", "0::/system.slice/docker-0123.scope\n"),
    ],
)
def test_a_container_is_known_by_what_its_engine_leaves(path: str, text: str, tmp_path: Path) -> None:
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(text)
    assert surroundings.container(tmp_path, {}) is not None


def test_a_machine_is_no_container_and_a_variable_says_that_it_is(tmp_path: Path) -> None:
    (tmp_path / "proc/1").mkdir(parents=True)
    (tmp_path / "proc/1/cgroup").write_text("0::/init.scope\n")
    assert surroundings.container(tmp_path, {}) is None
    assert surroundings.container(tmp_path, {"container": "lxc"}) == "the environment says container=lxc"


@pytest.mark.parametrize(("kind", "protocol"), [("SOCK_DGRAM", "udp"), ("SOCK_STREAM", "tcp")])
@pytest.mark.parametrize(("family", "host"), [("AF_INET", "127.0.0.1"), ("AF_INET6", "::1")])
def test_the_process_that_holds_a_port_is_named(kind: str, protocol: str, family: str, host: str) -> None:
    hold = (
        f"import socket; s = socket.socket(socket.{family}, socket.{kind}); s.bind(({host!r}, 0))\n"
        f"if s.type == socket.SOCK_STREAM: s.listen()\nprint(s.getsockname()[1], flush=True); input()"
    )

    async def scene() -> None:
        async with running(sys.executable, "-c", hold) as holder:
            (named,) = surroundings.holders(protocol, int(await holder.line()))
            assert named.endswith(f"(process {holder.process.pid})")

    run(scene())


def test_this_process_is_nobody_else() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert surroundings.holders("tcp", server.getsockname()[1]) == []
        assert surroundings.port_error("127.0.0.1", server.getsockname()[1]) is not None


def test_where_the_system_tells_nothing_nothing_is_known(tmp_path: Path) -> None:
    assert surroundings.holders("udp", 5353, tmp_path) == []
    assert surroundings.container(tmp_path, {}) is None
    assert surroundings.useless_interfaces(tmp_path / "nothing") == []

"""`hypercore lan doctor`: each cause is made on hosts of their own, and called by its name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.lan.hosts import Host, needs_hosts, network
from tests.processes import HYPERCORE, Program, new_log, running
from tests.running import run

STRANGER = Path(__file__).parent / "stranger.py"
FORGED_KEY = "77" * 32
#: A server with an option that the command line has not got.
SERVER = """
import asyncio, sys
from hypercore import Hypercore, Swarm

async def main(storage, *allowed):
    async with Hypercore(storage) as core, Swarm("lan:?port=4977", allow=allowed or None) as swarm:
        swarm.join(core)
        print("serving", flush=True)
        await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


def firewall(host: Host, *rules: str, hook: str = "input") -> None:
    """Packets that the host gets, or with `hook="output"` sends, go by these rules."""
    lines = [f"add chain inet wall {hook} {{ type filter hook {hook} priority 0; }}"]
    lines += [f"add rule inet wall {hook} {rule}" for rule in rules]
    ruleset = "\n".join(["add table inet wall", *lines])
    done = subprocess.run(host.command("nft", "-f", "-"), input=ruleset, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr


async def diagnosis(host: Host, *arguments: str, prefix: tuple[str, ...] = ()) -> dict[str, Any]:
    """What the doctor says there; with the exit code that goes with it."""
    async with running(*host.command(*prefix, *HYPERCORE, "lan", "doctor", *arguments, "--json")) as doctor:
        done = await doctor.done()
    (said,) = done.json()
    assert done.code == (0 if said["healthy"] else 1), done.errors
    assert bool(done.errors) == (not said["healthy"])
    assert all(cause["text"] and cause["advice"] for cause in said["causes"])
    assert isinstance(said, dict)
    return said | {"causes": [cause["cause"] for cause in said["causes"]], "said": done.output.decode()}


@asynccontextmanager
async def serving(host: Host, storage: Path, *allowed: str) -> AsyncIterator[Program]:
    async with running(*host.command(sys.executable, "-c", SERVER, storage, *allowed)) as server:
        assert await server.line() == "serving"
        yield server


@needs_hosts
def test_when_all_is_well_it_says_with_whom(tmp_path: Path) -> None:
    key = new_log(tmp_path / "log", ["hello"])

    async def scene() -> None:
        with network(2) as (one, other):
            async with serving(one, tmp_path / "log"):
                said = await diagnosis(other, key)
                assert said["causes"] == []
                assert (said["peers"], said["sharing"], said["connected"]) == (1, 1, ["tcp://10.77.0.1:4977"])
                assert [each.partition(",")[0] for each in said["interfaces"]] == ["eth0 10.77.0.2"]
                # Without a key it sees that somebody is there and can be reached.
                assert (await diagnosis(other))["causes"] == []
                async with running(*other.command(*HYPERCORE, "lan", "doctor", key)) as doctor:
                    done = await doctor.done()
                    assert (done.code, done.errors) == (0, "")
                    last = done.output.decode().splitlines()[-1]
                    assert last.endswith("1 peer seen, 1 shares this log, connected to tcp://10.77.0.1:4977")
                async with running(*other.command(*HYPERCORE, "lan", "peers")) as peers:
                    assert (await peers.done()).output.decode() == "tcp://10.77.0.1:4977  1 log\n"

    run(scene())


@needs_hosts
def test_no_interface_up() -> None:
    async def scene() -> None:
        with network(1) as (host,):
            host.ip("link", "set", "eth0", "down")
            assert (await diagnosis(host))["causes"] == ["no-interface"]
            host.ip("address", "flush", "dev", "eth0")
            said = await diagnosis(host)
            assert said["causes"] == ["no-interface"]
            assert "eth0 is down" in said["said"]

    run(scene())


@needs_hosts
def test_no_interface_of_the_name_that_is_asked_for() -> None:
    async def scene() -> None:
        with network(1) as (host,):
            said = await diagnosis(host, "--address", "lan:?interfaces=wlan*")
            assert said["causes"] == ["no-interface"]
            assert "wlan*" in said["said"]
            assert "eth0" in said["said"]

    run(scene())


@needs_hosts
def test_only_the_networks_of_its_own_containers() -> None:
    async def scene() -> None:
        with network(1) as (host,):
            host.ip("link", "set", "eth0", "down")
            host.ip("address", "flush", "dev", "eth0")
            host.ip("link", "add", "docker0", "type", "bridge")
            host.ip("address", "add", "172.17.0.1/16", "dev", "docker0")
            host.ip("link", "set", "docker0", "up")
            said = await diagnosis(host)
            assert said["causes"] == ["container-network"]
            assert "lan:?interfaces=docker0" in said["said"]

    run(scene())


@needs_hosts
def test_inside_of_a_container_whose_network_is_its_own() -> None:
    async def scene() -> None:
        with network(1) as (host,):
            # A host of ours has what a container has: one end of a veth pair.
            said = await diagnosis(host, prefix=("env", "container=podman"))
            assert said["causes"] == ["container-network"]
            assert "this is a container" in said["said"]
            assert "--network host" in said["said"]

    run(scene())


@needs_hosts
@pytest.mark.parametrize("hook", ["input", "output"])
def test_a_firewall_of_this_machine_that_blocks_multicast(hook: str, tmp_path: Path) -> None:
    key = new_log(tmp_path / "log", ["hello"])

    async def scene() -> None:
        with network(2) as (one, other):
            firewall(other, "udp dport 5353 drop", hook=hook)
            async with serving(one, tmp_path / "log"):
                said = await diagnosis(other, key)
                assert said["causes"] == ["multicast-blocked"]
                assert "5353" in said["said"]

    run(scene())


@needs_hosts
def test_multicast_that_is_blocked_in_one_address_family_is_no_more_than_a_note(tmp_path: Path) -> None:
    key = new_log(tmp_path / "log", ["hello"])

    async def scene() -> None:
        with network(2) as (one, other):
            firewall(other, "meta nfproto ipv6 udp dport 5353 drop")
            async with serving(one, tmp_path / "log"):
                said = await diagnosis(other, key)
                assert (said["healthy"], said["causes"]) == (True, ["multicast-blocked"])
                assert "eth0 (IPv6)" in said["said"]
                assert "eth0 (IPv4)" not in said["said"]

    run(scene())


@needs_hosts
@pytest.mark.parametrize("verdict", ["drop", "reject", "reject with tcp reset"])
def test_a_firewall_of_the_peer_that_blocks_its_port(verdict: str, tmp_path: Path) -> None:
    key = new_log(tmp_path / "log", ["hello"])

    async def scene() -> None:
        with network(2) as (one, other):
            firewall(one, f"tcp dport 4977 {verdict}")
            firewall(other, "tcp flags syn drop")  # So that the peer, who hears of us, does not dial us instead.
            async with serving(one, tmp_path / "log"):
                for arguments in ([key], []):
                    said = await diagnosis(other, *arguments)
                    assert said["causes"] == ["port-blocked"]
                    assert "tcp://10.77.0.1:4977" in said["said"]
                    assert "ufw allow 4977/tcp" in said["said"]

    run(scene())


@needs_hosts
def test_one_side_that_can_be_dialled_is_enough(tmp_path: Path) -> None:
    key = new_log(tmp_path / "log", ["hello"])

    async def scene() -> None:
        with network(2) as (one, other):
            firewall(one, "tcp dport 4977 drop")
            async with serving(one, tmp_path / "log"):
                said = await diagnosis(other, key)
                assert (said["healthy"], said["connected"]) == (True, ["tcp://10.77.0.1:4977"])

    run(scene())


@needs_hosts
def test_peers_that_have_other_logs(tmp_path: Path) -> None:
    new_log(tmp_path / "log", ["hello"])

    async def scene() -> None:
        with network(2) as (one, other):
            async with serving(one, tmp_path / "log"):
                said = await diagnosis(other, FORGED_KEY)
                assert (said["peers"], said["sharing"], said["causes"]) == (1, 0, ["no-shared-core"])

    run(scene())


@needs_hosts
def test_a_peer_whose_allow_list_does_not_have_us(tmp_path: Path) -> None:
    key = new_log(tmp_path / "log", ["hello"])

    async def scene() -> None:
        with network(2) as (one, other):
            async with serving(one, tmp_path / "log", "11" * 32):
                said = await diagnosis(other, key)
                assert said["causes"] == ["peer-refused"]
                assert "allow-list" in said["said"]

    run(scene())


@needs_hosts
@pytest.mark.parametrize(("manner", "words"), [("silent", "never says a word"), ("talking", "in the handshake")])
def test_a_peer_that_does_not_get_through_the_handshake(manner: str, words: str) -> None:
    async def scene() -> None:
        with network(2) as (one, other):
            async with running(*one.command(sys.executable, STRANGER, FORGED_KEY, "10.77.0.1", manner)) as stranger:
                assert await stranger.line() == "announced"
                said = await diagnosis(other, FORGED_KEY)
                assert said["causes"] == ["peer-refused"]
                assert words in said["said"]

    run(scene())


@needs_hosts
@pytest.mark.parametrize(
    ("address", "manner", "cause"), [("10.99.0.1", "silent", "other-network"), ("10.77.0.1", "newer", "other-version")]
)
def test_a_peer_that_is_seen_and_not_for_us(address: str, manner: str, cause: str) -> None:
    async def scene() -> None:
        with network(2) as (one, other):
            async with running(*one.command(sys.executable, STRANGER, FORGED_KEY, address, manner)) as stranger:
                assert await stranger.line() == "announced"
                assert (await diagnosis(other, FORGED_KEY))["causes"] == [cause]

    run(scene())


@needs_hosts
@pytest.mark.parametrize(
    ("socket", "arguments", "port"),
    [("socket.SOCK_DGRAM", [], 5353), ("socket.SOCK_STREAM", ["--address", "lan:?port=4977"], 4977)],
)
def test_another_process_that_holds_the_port(socket: str, arguments: list[str], port: int) -> None:
    hold = (
        f"import socket; s = socket.socket(socket.AF_INET, {socket}); s.bind(('', {port}))\n"
        f"if s.type == socket.SOCK_STREAM: s.listen()\nprint('held', flush=True); input()"
    )

    async def scene() -> None:
        with network(1) as (host,):
            async with running(*host.command(sys.executable, "-c", hold)) as holder:
                assert await holder.line() == "held"
                said = await diagnosis(host, *arguments)
                assert said["causes"] == ["port-held"]
                assert f"process {holder.process.pid})" in said["said"]

    run(scene())

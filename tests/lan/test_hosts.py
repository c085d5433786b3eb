"""Two and more hosts with nothing but a cable between them and no route to anywhere else find each other and sync."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.lan.hosts import Host, needs_hosts, network
from tests.processes import EXAMPLES, Program, running
from tests.running import run

#: A peer that can be asked what it sees, one question a line.
PEER = Path(__file__).parent / "peer.py"


@asynccontextmanager
async def writer(host: Host, folder: Path) -> AsyncIterator[tuple[Program, str]]:
    async with running(*host.command(sys.executable, EXAMPLES / "lan_writer.py", folder)) as program:
        yield program, await program.line()


def reader(host: Host, key: str, folder: Path) -> Any:
    return running(*host.command(sys.executable, EXAMPLES / "lan_reader.py", key, folder))


class Peer:
    """`peer.py` on a host."""

    def __init__(self, program: Program) -> None:
        self.program = program

    async def ask(self, *question: str) -> Any:
        await self.program.type(" ".join(question) + "\n")
        line = await self.program.line()
        if not line:
            done = await self.program.done()
            raise AssertionError(f"the peer ended: {done.errors}")
        return json.loads(line)

    async def until(self, answer: Any, *question: str) -> None:
        """Ask until the answer is this; the test's own time limit ends it otherwise."""
        while await self.ask(*question) != answer:  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(0.05)

    async def reach(self, least: int, *question: str) -> None:
        """Ask until the answer is so much."""
        while await self.ask(*question) < least:  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(0.02)


@asynccontextmanager
async def peer(host: Host, folder: Path, key: str = "") -> AsyncIterator[tuple[Peer, str]]:
    """With a core of its own, or a copy of another one; and the key."""
    async with running(*host.command(sys.executable, "-W", "ignore", PEER, folder, *([key] if key else []))) as program:
        yield Peer(program), await program.line()


@needs_hosts
def test_the_key_is_all_that_two_hosts_need(tmp_path: Path) -> None:
    async def scene() -> None:
        with network(2) as (one, other):
            async with writer(one, tmp_path / "w") as (program, key), reader(other, key, tmp_path / "r") as following:
                await program.type("first\nsecond\n")
                assert [await following.line() for _ in range(2)] == ["first", "second"]
                await program.type("live\n")
                assert await following.line() == "live"
                for each in (following, program):
                    done = await each.done(signal.SIGTERM)
                    assert (done.code, done.errors) == (0, "")

    run(scene())


@needs_hosts
@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_one_address_family_is_enough(family: str, tmp_path: Path) -> None:
    async def scene() -> None:
        with network(2, ipv4=family == "ipv4", ipv6=family == "ipv6") as (one, other):
            async with peer(one, tmp_path / "w") as (server, key), peer(other, tmp_path / "r", key) as (clone, _):
                await server.ask("append", "hello")
                await clone.until("hello", "get", "0")
                addresses = await clone.ask("remotes")
                assert all(("[fe80::" in each) == (family == "ipv6") for each in addresses), addresses

    run(scene())


@needs_hosts
def test_a_host_that_starts_before_there_is_a_network_finds_its_peers_when_there_is_one(tmp_path: Path) -> None:
    async def scene() -> None:
        with network(2) as (one, other):
            other.ip("link", "set", "eth0", "down")
            other.ip("address", "flush", "dev", "eth0")
            async with peer(one, tmp_path / "w") as (server, key), peer(other, tmp_path / "r", key) as (clone, _):
                await server.ask("append", "hello")
                assert await clone.ask("update") == 0
                other.ip("address", "add", "10.77.0.2/24", "dev", "eth0")
                other.ip("link", "set", "eth0", "up")
                await clone.until("hello", "get", "0")

    run(scene())


@needs_hosts
def test_who_says_goodbye_is_lost_at_once_and_found_when_he_is_back(tmp_path: Path) -> None:
    async def scene() -> None:
        with network(2) as (one, other):
            async with peer(one, tmp_path / "w") as (server, key):
                async with peer(other, tmp_path / "r", key) as (clone, _):
                    await server.until(1, "found")
                    done = await clone.program.done(signal.SIGTERM)
                    assert (done.code, done.errors) == (0, "")
                    await server.until(0, "found")
                async with peer(other, tmp_path / "r", key) as (clone, _):
                    await server.ask("append", "again")
                    await clone.until("again", "get", "0")

    run(scene())


@needs_hosts
def test_who_is_killed_is_forgotten_and_found_when_he_is_back(tmp_path: Path) -> None:
    async def scene() -> None:
        with network(2) as (one, other):
            async with peer(one, tmp_path / "w") as (server, key):
                async with peer(other, tmp_path / "r", key) as (clone, _):
                    await server.until(1, "found")
                    await clone.program.done(signal.SIGKILL)
                await server.until(0, "found")
                assert await server.ask("errors") == []
                async with peer(other, tmp_path / "r", key) as (clone, _):
                    await server.ask("append", "again")
                    await clone.until("again", "get", "0")

    run(scene())


@needs_hosts
@pytest.mark.parametrize("mover", ["writer", "reader"])
def test_a_host_that_changes_its_address_is_connected_again(mover: str, tmp_path: Path) -> None:
    async def scene() -> None:
        with network(2, ipv6=False) as (one, other):
            async with peer(one, tmp_path / "w") as (server, key), peer(other, tmp_path / "r", key) as (clone, _):
                await server.ask("append", "before")
                await clone.until("before", "get", "0")
                (one if mover == "writer" else other).move("10.77.0.99")
                await server.ask("append", "after")
                await clone.until("after", "get", "1")
                seen = await (clone if mover == "writer" else server).ask("remotes")
                assert [each.rpartition(":")[0] for each in seen] == ["tcp://10.77.0.99"]
                await server.until(1, "connections")
                await clone.until(1, "connections")

    run(scene())


@needs_hosts
def test_hosts_that_were_started_apart_meet_when_the_cable_is_in(tmp_path: Path) -> None:
    async def scene() -> None:
        with network(2) as (one, other):
            one.pull_cable()
            async with peer(one, tmp_path / "w") as (server, key), peer(other, tmp_path / "r", key) as (clone, _):
                await server.ask("append", "hello")
                assert await clone.ask("update") == 0
                one.plug_cable()
                await clone.until("hello", "get", "0")

    run(scene())


@needs_hosts
def test_five_hosts_have_one_connection_a_pair(tmp_path: Path) -> None:
    async def scene() -> None:
        with network(5) as hosts:
            async with peer(hosts[0], tmp_path / "0") as (server, key):
                await server.ask("append", "hello")
                async with (
                    peer(hosts[1], tmp_path / "1", key) as (one, _),
                    peer(hosts[2], tmp_path / "2", key) as (two, _),
                    peer(hosts[3], tmp_path / "3", key) as (three, _),
                    peer(hosts[4], tmp_path / "4", key) as (four, _),
                ):
                    for each in (one, two, three, four):
                        await each.until("hello", "get", "0")
                    for each in (server, one, two, three, four):
                        await each.until(4, "connections")

    run(scene())


@needs_hosts
def test_several_programs_on_one_host_are_found_from_another_one(tmp_path: Path) -> None:
    async def scene() -> None:
        with network(2) as (one, other):
            async with peer(one, tmp_path / "w") as (server, key), peer(one, tmp_path / "x", key) as (same, _):
                async with (
                    peer(other, tmp_path / "y", key) as (far, _),
                    peer(other, tmp_path / "z", key) as (near, _),
                ):
                    await server.ask("append", "hello")
                    for each in (same, far, near):
                        await each.until("hello", "get", "0")
                    for each in (server, same, far, near):
                        await each.until(3, "connections")

    run(scene())


@needs_hosts
def test_the_bridge_of_a_container_engine_is_left_alone(tmp_path: Path) -> None:
    async def scene() -> None:
        with network(2) as (one, other):
            one.ip("link", "add", "docker0", "type", "bridge")
            one.ip("address", "add", "172.17.0.1/16", "dev", "docker0")
            one.ip("link", "set", "docker0", "up")
            async with peer(one, tmp_path / "w") as (server, key), peer(other, tmp_path / "r", key) as (clone, _):
                await server.ask("append", "hello")
                await clone.until("hello", "get", "0")
                assert await server.ask("links") == ["eth0"]
                assert [each for each in await clone.ask("heard") if "172.17" in each] == []

    run(scene())


@needs_hosts
def test_another_program_that_holds_the_port_is_named_as_the_reason(tmp_path: Path) -> None:
    hold = "import socket; s = socket.socket(2, 2); s.bind(('', 5353)); print('held', flush=True); input()"

    async def scene() -> None:
        with network(1) as (host,):
            async with running(*host.command(sys.executable, "-c", hold)) as holder:
                assert await holder.line() == "held"
                async with running(
                    *host.command(sys.executable, EXAMPLES / "lan_writer.py", tmp_path / "w")
                ) as program:
                    done = await program.done()
                    assert done.code != 0
                    assert "another program holds UDP port 5353" in done.errors

    run(scene())

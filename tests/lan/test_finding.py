"""A swarm and its discovery: who is found is connected once, what is said is not believed, and waiting ends."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter

import pytest

from hypercore import Hypercore, Swarm
from hypercore import finding as finding_module
from hypercore import swarm as swarm_module
from hypercore.dialling import MOST_DIALS
from hypercore.errors import ConnectError
from hypercore.plugins import open_transport
from hypercore.transport import ByteStream, Listener, PeerFound, PeerLost, Transport
from tests.lan.town import Town, TownDiscovery
from tests.replication.links import eventually
from tests.running import run

_names = (f"town-{number}" for number in itertools.count())


class Pipes(Transport):
    """Pipes that count who is dialled; some addresses lead nowhere, or to somebody who never answers."""

    def __init__(self) -> None:
        self.dials: Counter[str] = Counter()
        self.dialling = self.dialling_max = 0
        self.answer = asyncio.Event()

    async def connect(self, address: str, *, timeout_seconds: float = 10.0) -> ByteStream:
        self.dials[address] += 1
        self.dialling += 1
        self.dialling_max = max(self.dialling, self.dialling_max)
        try:
            if "silent" in address:
                await self.answer.wait()
            if "nobody" in address or "silent" in address:
                raise ConnectError(f"nobody is at {address}")
            return await open_transport(address).connect(address, timeout_seconds=timeout_seconds)
        finally:
            self.dialling -= 1

    async def listen(self, address: str) -> Listener:
        return await open_transport(address).listen(address)


@pytest.fixture
def town(monkeypatch: pytest.MonkeyPatch) -> Town:
    """What `town:` denotes in this test. Retries come at once: what is tested is that they do, not when."""
    town = Town(next(_names))
    monkeypatch.setattr(finding_module, "FIRST_RETRY_SECONDS", 0.001)
    monkeypatch.setattr(finding_module, "LAST_RETRY_SECONDS", 0.01)
    return town


@pytest.fixture(autouse=True)
def pipes(town: Town, monkeypatch: pytest.MonkeyPatch) -> Pipes:
    pipes = Pipes()
    monkeypatch.setattr(swarm_module, "open_transport", lambda address: town if address == "town:" else pipes)
    return pipes


async def writer_of(count: int) -> Hypercore:
    core = Hypercore("memory:")
    await core.ready()
    await core.append([b"block %d" % index for index in range(count)])
    return core


def found(name: str, topic: bytes, *addresses: str) -> PeerFound:
    return PeerFound(peer_id=name, addresses=addresses, topics=frozenset([topic]), is_peer=lambda key: False)


def test_a_core_and_a_swarm_are_all_that_two_programs_need(town: Town) -> None:
    async def scene() -> None:
        async with await writer_of(3) as core, Swarm("town:") as server, Swarm("town:") as swarm:
            server.join(core)
            async with Hypercore("memory:", core.key) as clone:
                swarm.join(clone)
                assert await clone.get(2) == b"block 2"
                await eventually(lambda: len(server.connections()) == len(swarm.connections()) == 1)

    run(scene())


def test_peers_with_nothing_in_common_do_not_meet(town: Town, pipes: Pipes) -> None:
    async def scene() -> None:
        async with await writer_of(1) as one, await writer_of(1) as other:
            async with Swarm("town:") as left, Swarm("town:") as right:
                left.join(one)
                right.join(other)
                for person in town.people:
                    person.round_over.set()
                await left.flush()
                await right.flush()
                assert not pipes.dials
                assert left.connections() == right.connections() == []

    run(scene())


def test_only_what_is_served_is_announced_and_only_what_is_sought_is_looked_up(town: Town) -> None:
    async def scene() -> None:
        async with await writer_of(1) as served, await writer_of(1) as sought, Swarm("town:") as swarm:
            swarm.join(served, client=False)
            swarm.join(sought, server=False)
            (person,) = town.people
            assert person.announced == {served.discovery_key}
            assert person.sought == {sought.discovery_key}
            swarm.leave(served)
            await sought.close()
            assert person.announced == person.sought == frozenset()

    run(scene())


def test_update_waits_for_the_first_round_and_no_longer(town: Town) -> None:
    async def scene() -> None:
        async with Hypercore("memory:", bytes(32)) as clone, Swarm("town:") as swarm:
            swarm.join(clone)
            updating = asyncio.create_task(clone.update())
            flushing = asyncio.create_task(swarm.flush())
            await asyncio.sleep(0)
            await asyncio.wait([updating], timeout=0.05)
            assert not updating.done()
            assert not flushing.done()
            town.people[0].round_over.set()
            await updating
            await flushing

    run(scene())


def test_update_waits_until_those_found_in_the_first_round_were_dialled(town: Town, pipes: Pipes) -> None:
    async def scene() -> None:
        async with Hypercore("memory:", bytes(32)) as clone, Swarm("town:") as swarm:
            swarm.join(clone)
            (person,) = town.people
            person.say(found("slow", clone.discovery_key, "pipe:silent"))
            await eventually(lambda: pipes.dialling == 1)
            person.round_over.set()
            updating = asyncio.create_task(clone.update())
            await asyncio.wait([updating], timeout=0.05)
            assert not updating.done()
            pipes.answer.set()
            await updating

    run(scene())


@pytest.mark.parametrize("end", ["leave", "close", "destroy"])
def test_nobody_waits_for_a_round_that_was_given_up(end: str, town: Town) -> None:
    async def scene() -> None:
        swarm = Swarm("town:")
        await swarm.start()
        async with Hypercore("memory:", bytes(32)) as clone:
            swarm.join(clone)
            assert clone.hub.finding == 1
            match end:
                case "leave":
                    swarm.leave(clone)
                case "close":
                    await clone.close()
                case "destroy":
                    await swarm.destroy()
            await eventually(lambda: clone.hub.finding == 0)
        await swarm.destroy()

    run(scene())


def test_a_core_that_was_joined_before_the_swarm_began_is_found(town: Town) -> None:
    async def scene() -> None:
        async with await writer_of(1) as core, Hypercore("memory:", core.key) as clone:
            server, swarm = Swarm("town:"), Swarm("town:")
            server.join(core)
            swarm.join(clone)
            async with server, swarm:
                assert await clone.get(0) == b"block 0"

    run(scene())


def test_a_peer_is_dialled_again_when_the_connection_is_lost(town: Town) -> None:
    async def scene() -> None:
        async with await writer_of(1) as core, Swarm("town:") as server, Swarm("town:") as swarm:
            server.join(core)
            async with Hypercore("memory:", core.key) as clone:
                swarm.join(clone)
                assert await clone.get(0) == b"block 0"
                for _ in range(3):
                    for replication in server.connections():
                        await replication.aclose()
                    await core.append("more")
                    assert await clone.get(core.length - 1) == b"more"

    run(scene())


def test_of_a_peer_that_cannot_be_reached_discovery_is_asked_again_and_a_lost_one_is_left_alone(
    town: Town, pipes: Pipes
) -> None:
    async def scene() -> None:
        async with Hypercore("memory:", bytes(32)) as clone, Swarm("town:") as swarm:
            swarm.join(clone)
            (person,) = town.people
            person.say(found("dead", clone.discovery_key, "pipe:nobody"))
            await eventually(lambda: "dead" in person.reconfirmed)
            assert pipes.dials["pipe:nobody"] >= finding_module.FAILURES_TO_RECONFIRM
            assert isinstance(swarm.dial_errors["pipe:nobody"], ConnectError)
            person.say(PeerLost(peer_id="dead"))
            await eventually(lambda: not swarm.dial_errors)
            dials = pipes.dials["pipe:nobody"]
            await asyncio.wait([asyncio.create_task(asyncio.sleep(0.05))])
            assert pipes.dials["pipe:nobody"] == dials

    run(scene())


def test_the_addresses_of_a_peer_are_tried_in_turn(town: Town, pipes: Pipes) -> None:
    async def scene() -> None:
        async with await writer_of(1) as core, Swarm("pipe:here-and-there") as server, Swarm("town:") as swarm:
            server.join(core)
            async with Hypercore("memory:", core.key) as clone:
                swarm.join(clone)
                town.people[0].say(found("far", core.discovery_key, "pipe:nobody", "pipe:here-and-there"))
                assert await clone.get(0) == b"block 0"
                assert list(pipes.dials) == ["pipe:nobody", "pipe:here-and-there"]

    run(scene())


def test_who_is_told_where_he_is_himself_does_not_go_on_dialling(town: Town, pipes: Pipes) -> None:
    async def scene() -> None:
        async with Hypercore("memory:", bytes(32)) as clone, Swarm("town:") as swarm:
            swarm.join(clone)
            (person,) = town.people
            (address,) = person.addresses
            person.say(found("mirror", clone.discovery_key, address))
            person.round_over.set()
            await swarm.flush()
            await eventually(lambda: not swarm.connections())
            await asyncio.wait([asyncio.create_task(asyncio.sleep(0.05))])
            assert pipes.dials[address] == 1

    run(scene())


def test_a_flood_of_peers_is_dialled_a_few_at_a_time_and_not_all(town: Town, pipes: Pipes) -> None:
    async def scene() -> None:
        async with Hypercore("memory:", bytes(32)) as clone, Swarm("town:") as swarm:
            swarm.join(clone)
            (person,) = town.people
            for number in range(2000):
                person.say(found(f"fake-{number}", clone.discovery_key, f"pipe:silent-{number}"))
            await eventually(lambda: pipes.dialling == MOST_DIALS)
            pipes.answer.set()
            await eventually(lambda: len(pipes.dials) == finding_module.FOUND_COUNT_MAX)
            assert pipes.dialling_max == MOST_DIALS

    run(scene())


def test_what_does_not_speak_our_language_is_left_in_peace(town: Town, pipes: Pipes) -> None:
    async def print_everything(listener: Listener) -> None:
        async for stream in listener:
            await stream.send(b"%!PS-Adobe-3.0\n" * 100)

    async def scene() -> None:
        async with Hypercore("memory:", bytes(32)) as clone, Swarm("town:") as swarm:
            async with await pipes.listen("pipe:printer") as printer:
                printing = asyncio.create_task(print_everything(printer))
                swarm.join(clone)
                town.people[0].say(found("printer", clone.discovery_key, "pipe:printer"))
                await eventually(lambda: pipes.dials["pipe:printer"] == finding_module.STRANGE_ANSWERS_MAX)
                await asyncio.wait([printing], timeout=0.1)
                assert pipes.dials["pipe:printer"] == finding_module.STRANGE_ANSWERS_MAX
                printing.cancel()

    run(scene())


def test_many_peers_that_all_dial_each_other_end_with_one_connection_a_pair(town: Town) -> None:
    async def scene() -> None:
        core = await writer_of(5)
        swarms = [Swarm("town:") for _ in range(6)]
        clones = [Hypercore("memory:", core.key) for _ in swarms[1:]]
        for swarm in swarms:
            await swarm.start()
        swarms[0].join(core)
        for swarm, clone in zip(swarms[1:], clones, strict=True):
            await clone.ready()
            swarm.join(clone)
        for clone in clones:
            assert await clone.get(4) == b"block 4"

        def is_settled() -> bool:
            peers = [Counter(each.remote_public_key for each in swarm.connections()) for swarm in swarms]
            return all(len(each) == 5 and set(each.values()) == {1} for each in peers)

        await eventually(is_settled)
        for swarm in swarms:
            await swarm.destroy()
        for one in (core, *clones):
            await one.close()

    run(scene())


def test_a_swarm_that_is_destroyed_has_withdrawn(town: Town) -> None:
    async def scene() -> TownDiscovery:
        async with await writer_of(1) as core, Swarm("town:") as swarm:
            swarm.join(core)
        return town.people[0]

    person = run(scene())
    assert person.closed
    assert not person.announced

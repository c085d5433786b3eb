"""A swarm rests and goes on, says who it knows and why not, meets by topic, and ends although its peers hang."""

from __future__ import annotations

import asyncio
import logging

import pytest

from hypercore import dialling as dialling_module
from hypercore import swarm as swarm_module
from hypercore.core import Hypercore
from hypercore.errors import BlockNotAvailableError, ClosedError, ConnectError, OptionError, TransportError
from hypercore.plugins import open_transport
from hypercore.session import Replication
from hypercore.swarm import Swarm
from hypercore.transport import ByteStream
from tests.lan.town import Town
from tests.replication.links import eventually
from tests.replication.swarms import LARGE, SMALL, GatedTransport, install, names, retry_at_once, writer_of
from tests.running import run


@pytest.fixture
def address() -> str:
    return next(names)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    retry_at_once(monkeypatch)


@pytest.fixture
def gated(monkeypatch: pytest.MonkeyPatch) -> GatedTransport:
    gated = GatedTransport("pipe:")
    install(gated, monkeypatch)
    return gated


@pytest.fixture
def town(address: str, monkeypatch: pytest.MonkeyPatch) -> Town:
    town, open_other = Town(address.partition(":")[2]), open_transport
    monkeypatch.setattr(swarm_module, "open_transport", lambda each: town if each == "town:" else open_other(each))
    return town


# ---- suspend and resume --------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["the one who dials", "the one who listens"])
def test_a_suspended_swarm_has_no_connections_and_a_resumed_one_goes_on(who: str, address: str) -> None:
    async def main() -> None:
        async with await writer_of(3) as writer, Hypercore("memory:", writer.key) as reader:
            async with Swarm(address) as server, Swarm(peers=[address]) as swarm:
                resting = swarm if who == "the one who dials" else server
                server.join(writer)
                swarm.join(reader)
                assert await reader.get(0) == b"block 0"
                stream = reader.create_read_stream(start=3, live=True)
                following = asyncio.ensure_future(anext(stream))
                for turn in range(3):
                    await resting.suspend()
                    await resting.suspend()
                    assert resting.is_suspended
                    assert not resting.connections()
                    assert not resting.addresses
                    await eventually(lambda: not swarm.connections() and not server.connections())
                    with pytest.raises(BlockNotAvailableError):
                        await reader.get(77)
                    assert [peer.state for peer in resting.peers] == ["waiting"] * len(resting.peers)
                    assert not following.done()
                    await resting.resume()
                    await resting.resume()
                    assert not resting.is_suspended
                    await eventually(lambda: bool(reader.peers))
                    assert await reader.get(turn % 3) == b"block %d" % (turn % 3)
                await writer.append("news")
                assert await following == b"news"
                await stream.aclose()  # type: ignore[attr-defined]

    run(main())


def test_a_suspended_swarm_dials_nobody_and_a_resumed_one_at_once(
    address: str, gated: GatedTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialling_module, "FIRST_RETRY_SECONDS", 1000.0)
    monkeypatch.setattr(dialling_module, "LAST_RETRY_SECONDS", 1000.0)

    async def main() -> None:
        gated.let(address)
        async with await writer_of(3) as writer, Hypercore("memory:", writer.key) as reader:
            async with Swarm(peers=[address]) as swarm:
                swarm.join(reader)
                await swarm.flush()
                assert gated.dialling == [address]
                await swarm.suspend()
                async with Swarm(address) as server:
                    server.join(writer)
                    await swarm.resume()
                    assert await reader.update()
                    assert reader.length == 3
                    assert gated.dialling == [address, address]

    run(main())


def test_cores_that_are_joined_while_it_is_suspended_are_kept_for_later(address: str) -> None:
    async def main() -> None:
        async with await writer_of(3) as one, await writer_of(5) as other, Swarm(address) as server:
            server.join(one)
            server.join(other)
            async with Hypercore("memory:", one.key) as clone, Hypercore("memory:", other.key) as second:
                async with Swarm(peers=[address]) as swarm:
                    await swarm.suspend()
                    swarm.join(clone)
                    swarm.join(second)
                    swarm.leave(second)
                    assert not await clone.update()
                    await swarm.resume()
                    assert await clone.update()
                    assert await clone.get(2) == b"block 2"
                    assert not second.peers

    run(main())


def test_a_swarm_that_is_suspended_before_it_starts_starts_when_it_is_resumed(address: str) -> None:
    async def main() -> None:
        async with await writer_of(3) as writer, Hypercore("memory:", writer.key) as reader:
            server = Swarm(address)
            await server.suspend()
            async with server, Swarm(peers=[address]) as swarm:
                server.join(writer)
                swarm.join(reader)
                await swarm.flush()
                await server.flush()
                assert not server.addresses
                await server.resume()
                await eventually(lambda: bool(reader.peers))
                assert await reader.get(2) == b"block 2"

    run(main())


def test_a_swarm_whose_address_was_taken_meanwhile_stays_suspended(address: str) -> None:
    async def main() -> None:
        other = next(names)
        async with Swarm(other, address) as swarm:
            await swarm.suspend()
            async with Swarm(address):
                with pytest.raises(TransportError):
                    await swarm.resume()
                assert swarm.is_suspended
                async with Swarm(other):
                    pass
            await swarm.resume()
            assert swarm.addresses == [other, address]

    run(main())


def test_discovery_and_storages_rest_as_well(town: Town) -> None:
    async def main() -> None:
        async with await writer_of(3) as writer:
            storage = Hypercore("memory:resting", writer.key)
            async with storage, Swarm("town:") as server:
                server.join(writer)
                async with Swarm("town:") as filling:
                    filling.join(storage)
                    assert await storage.get(2) == b"block 2"
            async with Hypercore("memory:", writer.key) as reader:
                async with Swarm("town:", peers=["memory:resting"]) as swarm:
                    swarm.join(reader)
                    assert await reader.get(2) == b"block 2"
                    await swarm.suspend()
                    assert not swarm.connections()
                    assert town.people[-1].closed
                    assert not town.people[-1].announced
                    people = len(town.people)
                    await swarm.resume()
                    await eventually(lambda: bool(swarm.connections()))
                    assert len(town.people) == people + 1
                    assert town.people[-1].announced == {writer.discovery_key}

    run(main())


@pytest.mark.parametrize("when", ["running", "suspended", "never started"])
def test_a_destroyed_swarm_stays_destroyed(when: str, address: str) -> None:
    async def main() -> None:
        swarm = Swarm(address, peers=[next(names)])
        if when != "never started":
            await swarm.start()
        if when == "suspended":
            await swarm.suspend()
        await asyncio.gather(swarm.destroy(), swarm.destroy())
        for call in (swarm.suspend, swarm.resume, swarm.start):
            with pytest.raises(ClosedError):
                await call()
        await swarm.flush()

    run(main())


# ---- the end -------------------------------------------------------------------------------------------


class Deaf(ByteStream):
    """A stream whose program stops reading when it has what it wanted."""

    def __init__(self, inner: ByteStream) -> None:
        self.inner = inner
        self.hears = asyncio.Event()
        self.hears.set()

    async def receive(self) -> bytes:
        await self.hears.wait()
        return await self.inner.receive()

    async def send(self, data: bytes) -> None:
        await self.inner.send(data)

    async def aclose(self) -> None:
        self.hears.set()
        await self.inner.aclose()

    def abort(self) -> None:
        self.hears.set()
        self.inner.abort()

    @property
    def remote_address(self) -> str:
        return self.inner.remote_address


def test_a_swarm_ends_although_its_peers_read_nothing_and_never_close() -> None:
    """A close would wait an hour here for the peer to take the rest."""

    async def main() -> None:
        async with Hypercore("memory:") as writer:
            await writer.append([bytes(1_000_000) for _ in range(30)])
            server = Swarm("tcp://127.0.0.1:0?close_timeout_seconds=3600")
            await server.start()
            server.join(writer)
            async with Hypercore("memory:", writer.key) as reader:
                stream = Deaf(await open_transport("tcp:").connect(server.addresses[0]))
                connection = reader.replicate(stream, initiator=True)
                await connection.opened()
                await reader.update()
                stream.hears.clear()
                download = reader.download(0, 30)
                await eventually(lambda: server.connections()[0].stats().blocks_out > 3)
                silent = await open_transport("tcp:").connect(server.addresses[0])
                await server.destroy()
                assert not server.connections()
                connection.abort()
                await silent.aclose()
                download.destroy()

    run(main(), timeout_seconds=25)  # After 30 seconds of silence they would be cut off anyway.


# ---- the first round -----------------------------------------------------------------------------------


@pytest.mark.parametrize("joins", ["before the start", "after the start"])
def test_a_dial_that_hangs_holds_update_for_a_moment_only_when_another_peer_has_answered(
    joins: str, address: str, gated: GatedTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialling_module, "SETTLING_SECONDS", 0.01)

    async def main() -> None:
        gated.let(address)
        async with await writer_of(5) as writer, Swarm(address) as server, Hypercore("memory:", writer.key) as reader:
            server.join(writer)
            swarm = Swarm(peers=[next(names), address])
            if joins == "before the start":
                swarm.join(reader)
            async with swarm:
                swarm.join(reader)
                flushing = asyncio.create_task(swarm.flush())
                assert await reader.update()
                assert reader.length == 5
                assert not reader.hub.finding
                assert not flushing.done()
            await flushing

    run(main())


def test_a_peer_without_the_core_is_no_reason_not_to_wait_for_the_others(
    address: str, gated: GatedTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialling_module, "SETTLING_SECONDS", 0.0)

    async def main() -> None:
        stranger = next(names)
        gated.let(stranger)
        async with await writer_of(5) as writer, Swarm(address) as server, Hypercore("memory:", writer.key) as reader:
            server.join(writer)
            async with Swarm(stranger), Swarm(peers=[stranger, address]) as swarm:
                swarm.join(reader)
                updating = asyncio.create_task(reader.update())
                await eventually(lambda: bool(swarm.connections()) and not reader.hub.opening)
                for _ in range(50):
                    await asyncio.sleep(0)
                assert not updating.done()
                gated.let(address)
                assert await updating
                assert reader.length == 5

    run(main())


# ---- topics --------------------------------------------------------------------------------------------


def test_programs_meet_at_a_topic_and_share_the_cores_that_both_joined(town: Town) -> None:
    async def main() -> None:
        topic = bytes(range(32))
        async with await writer_of(3) as writer, Hypercore("memory:", writer.key) as reader:
            async with Swarm("town:") as here, Swarm("town:") as there:
                here.join(topic, client=False)
                there.join(topic.hex(), server=False)
                assert town.people[0].announced == {topic}
                assert town.people[1].sought == {topic}
                await eventually(lambda: len(here.connections()) == len(there.connections()) == 1)
                here.join(writer, client=False)
                there.join(reader, server=False)
                assert await reader.get(2) == b"block 2"
                assert len(there.connections()) == 1
                here.leave(topic)
                there.leave(topic)
                assert town.people[0].announced == {writer.discovery_key}
                assert town.people[1].sought == {writer.discovery_key}
                assert here.connections(), "who is connected stays so"
                there.leave(bytes(32))

    run(main())


def test_a_core_and_its_own_topic_are_joined_and_left_one_by_one(town: Town) -> None:
    async def main() -> None:
        async with await writer_of(3) as core, Swarm("town:") as swarm:
            (person,) = town.people
            key, nothing = core.discovery_key, frozenset[bytes]()
            only = frozenset([key])
            swarm.join(key, server=False)
            assert (person.announced, person.sought) == (nothing, only)
            swarm.join(core, client=False)
            assert (person.announced, person.sought) == (only, only)
            swarm.leave(key)
            assert (person.announced, person.sought) == (only, nothing)
            swarm.join(key)
            swarm.leave(core)
            assert (person.announced, person.sought) == (only, only)
            swarm.leave(key)
            assert (person.announced, person.sought) == (nothing, nothing)

    run(main())


def test_a_core_waits_for_the_first_round_although_its_topic_was_joined_before(town: Town) -> None:
    async def main() -> None:
        async with await writer_of(3) as core, Swarm("town:") as swarm:
            (person,) = town.people
            swarm.join(core.discovery_key)
            flushing = asyncio.create_task(swarm.flush())
            swarm.join(core)
            assert core.hub.finding == 1
            person.round_over.set()
            await flushing
            await eventually(lambda: not core.hub.finding)

    run(main())


def test_join_says_anew_whether_a_core_is_served_and_sought(town: Town, address: str) -> None:
    async def main() -> None:
        async with await writer_of(3) as writer, Hypercore("memory:", writer.key) as reader:
            async with Swarm(address, "town:") as server, Swarm(peers=[address]) as swarm:
                server.join(writer, server=False)
                assert not town.people[0].announced
                server.join(writer, client=False)
                assert town.people[0].announced == {writer.discovery_key}
                assert not town.people[0].sought
                swarm.join(reader)
                assert await reader.get(2) == b"block 2"
                assert writer.hub.sources == 1

    run(main())


def test_a_peer_that_asked_for_a_core_before_it_was_served_gets_it_later(address: str) -> None:
    async def main() -> None:
        async with await writer_of(3) as writer, Hypercore("memory:", writer.key) as reader:
            async with Swarm(address) as server, Swarm(peers=[address]) as swarm:
                swarm.join(reader)
                assert not await reader.update()
                server.join(writer, client=False)
                await eventually(lambda: bool(reader.peers))
                assert await reader.get(2) == b"block 2"

    run(main())


# ---- what it says --------------------------------------------------------------------------------------


def test_peers_says_of_everybody_how_it_stands(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialling_module, "FIRST_RETRY_SECONDS", 20.0)
    monkeypatch.setattr(dialling_module, "LAST_RETRY_SECONDS", 30.0)

    async def main() -> None:
        nowhere = next(names)
        async with await writer_of(1) as core, Hypercore("memory:known", core.key), Swarm(address) as server:
            async with Hypercore("memory:", core.key) as reader:
                async with Swarm(peers=[address, nowhere, "memory:known"], key_pair=SMALL) as swarm:
                    swarm.join(reader)
                    await swarm.flush()
                    by_address = {peer.addresses: peer for peer in swarm.peers}
                    there = by_address[address,]
                    assert there.state == "connected"
                    assert there.public_key == server.public_key
                    assert there.error is None
                    assert there.retry_seconds is None
                    missing = by_address[nowhere,]
                    assert missing.state == "waiting"
                    assert isinstance(missing.error, ConnectError)
                    assert 0 < (missing.retry_seconds or 0) <= 30
                    assert not missing.public_key
                    assert by_address["memory:known",].state == "connected"
                    assert len(by_address) == 3
                    (inbound,) = server.peers
                    assert inbound.state == "connected"
                    assert inbound.public_key == SMALL.public_key
                    assert inbound.addresses == (server.connections()[0].remote_address,)
                await eventually(lambda: not server.peers)

    run(main())


def test_a_peer_with_several_addresses_is_one_peer(address: str) -> None:
    async def main() -> None:
        other = next(names)
        async with Swarm(address, other), Swarm(peers=[address, other]) as swarm:
            await swarm.flush()
            await eventually(lambda: len(swarm.connections()) == 1)
            (peer,) = swarm.peers
            assert peer.state == "connected"
            assert set(peer.addresses) == {address, other}

    run(main())


def test_stats_say_what_a_connection_has_carried(address: str) -> None:
    async def main() -> None:
        async with await writer_of(50) as writer, Hypercore("memory:", writer.key) as reader:
            async with Swarm(address) as server, Swarm(peers=[address]) as swarm:
                server.join(writer)
                swarm.join(reader)
                await reader.download(0, 50).done()
                (ours,), (theirs,) = swarm.connections(), server.connections()
                assert ours.stats().blocks_in == theirs.stats().blocks_out == 50
                assert ours.stats().blocks_out == theirs.stats().blocks_in == 0
                assert ours.stats().bytes_in > 50 * 7
                assert ours.stats().bytes_out > 0
                assert ours.stats().cores == theirs.stats().cores == (writer.discovery_key,)
                assert (ours.stats().round_trip_seconds or -1) >= 0
                assert (theirs.stats().round_trip_seconds or -1) >= 0
                await eventually(lambda: ours.stats().bytes_in == theirs.stats().bytes_out)
                await eventually(lambda: theirs.stats().bytes_in == ours.stats().bytes_out)
                swarm.leave(reader)
                assert ours.stats().cores == ()
                assert ours.stats().blocks_in == 50
            last = ours.stats()
            assert last.blocks_in == 50
            assert last.connected_seconds > 0
            assert ours.stats() == last

    run(main())


def test_a_connection_that_never_shook_hands_has_carried_nothing() -> None:
    async def main() -> None:
        async with Swarm("pipe:") as server:
            stream = await open_transport("pipe:").connect(server.addresses[0])
            connection = Replication(stream, initiator=True)
            stats = connection.stats()
            assert (stats.bytes_in, stats.connected_seconds, stats.round_trip_seconds) == (0, 0.0, None)
            connection.abort()
            with pytest.raises(TransportError):
                await connection.opened()

    run(main())


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "hypercore.swarm"]


def test_the_log_says_why_nobody_is_there_once_for_each_change(
    address: str, caplog: pytest.LogCaptureFixture, gated: GatedTransport
) -> None:
    caplog.set_level(logging.INFO, logger="hypercore.swarm")

    async def main() -> None:
        gated.let(address)
        async with await writer_of(1) as writer, Hypercore("memory:", writer.key) as reader:
            async with Swarm(peers=[address], key_pair=SMALL) as swarm:
                swarm.join(reader)
                await eventually(lambda: len(gated.dialling) > 3)
                assert len(lines(caplog)) == 1
                assert f"no connection to {address}: nothing in this process listens" in lines(caplog)[0]
                caplog.clear()
                async with Swarm(address, key_pair=LARGE) as server:
                    server.join(writer)
                    await eventually(lambda: bool(server.connections()))
                    assert await reader.get(0) == b"block 0"
                    assert lines(caplog)[0] == f"listening at {address}"
                    assert any("connected with" in line and "which we dialled" in line for line in lines(caplog))
                    assert any("connected with" in line and "which dialled us" in line for line in lines(caplog))
                    assert len(lines(caplog)) == 3
                    caplog.clear()
                    await swarm.suspend()
                    await eventually(lambda: not server.connections())
                    assert sorted(line.split(" ")[0] for line in lines(caplog)) == [
                        "disconnected",
                        "disconnected",
                        "suspended",
                    ]
        said = "\n".join(lines(caplog))
        for key in (writer.key, writer.discovery_key, SMALL.public_key, LARGE.public_key):
            assert key.hex() not in said

    run(main())


def test_the_log_at_debug_names_each_dial_and_no_secret(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG, logger="hypercore.swarm")
    gated = GatedTransport("pipe:")
    install(gated, monkeypatch)
    secret = "tcp://user:hunter2@127.0.0.1:1"
    gated.let(secret)

    async def main() -> None:
        async with Swarm(peers=[secret]) as swarm:
            await swarm.flush()
            assert "hunter2" not in str(swarm.peers[0].addresses)

    run(main())
    assert any(line.startswith("dialling tcp://***@") for line in lines(caplog))
    assert "hunter2" not in "\n".join(lines(caplog))


def test_what_finds_peers_is_not_taken_for_a_peer() -> None:
    async def main() -> None:
        with pytest.raises(OptionError, match=r"Swarm\('lan:'\)"):
            await Swarm(peers=["lan:"]).start()

    run(main())

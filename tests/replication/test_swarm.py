"""A swarm listens, dials, tries again, and keeps one connection a peer, over pipes and TCP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from hypercore.core import Hypercore
from hypercore.errors import (
    AddressError,
    BlockNotAvailableError,
    ClosedError,
    ConnectError,
    OptionError,
    TransportError,
    WaitTimeoutError,
)
from hypercore.swarm import Swarm
from tests.replication.links import eventually
from tests.replication.swarms import LARGE, SMALL, GatedTransport, install, names, retry_at_once, writer_of
from tests.running import run


@pytest.fixture
def address() -> str:
    return next(names)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries again at once: what is tested is that it does, not when."""
    retry_at_once(monkeypatch)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Callable[[], GatedTransport]:
    """Gives the transport that the swarms dial with from then on."""

    def install_gated() -> GatedTransport:
        gated = GatedTransport("pipe:")
        install(gated, monkeypatch)
        return gated

    return install_gated


# ---- listening and dialling ----------------------------------------------------------------------------


@pytest.mark.parametrize("listen", ["pipe", "tcp://127.0.0.1:0", "tcp://[::1]:0"])
def test_a_reader_finds_a_writer_at_its_address(listen: str, address: str) -> None:
    async def main() -> None:
        async with await writer_of(100) as writer, Swarm(address if listen == "pipe" else listen) as server:
            server.join(writer)
            assert len(server.addresses) == 1
            assert not server.addresses[0].endswith(":0")
            async with Hypercore("memory:", writer.key) as reader, Swarm(peers=server.addresses) as swarm:
                swarm.join(reader)
                assert await reader.update()
                assert reader.length == 100
                assert await reader.get(99) == b"block 99"
                await swarm.flush()
                (connection,) = swarm.connections()
                assert connection.remote_public_key == server.public_key
                assert [each.remote_public_key for each in server.connections()] == [swarm.public_key]
                assert not swarm.dial_errors

    run(main())


def test_a_swarm_listens_at_several_addresses(address: str) -> None:
    async def main() -> None:
        async with await writer_of(3) as writer, Swarm("tcp://127.0.0.1:0", "tcp://[::1]:0", address) as server:
            server.join(writer)
            assert len(server.addresses) == 3
            for each in server.addresses:
                async with Hypercore("memory:", writer.key) as reader, Swarm(peers=[each]) as swarm:
                    swarm.join(reader)
                    assert await reader.get(2) == b"block 2"

    run(main())


def test_an_address_that_is_taken_is_told_and_leaves_nothing_behind(address: str) -> None:
    async def main() -> None:
        async with Swarm(address):
            other = next(names)
            with pytest.raises(TransportError):
                await Swarm(other, address).start()
            async with Swarm(other):
                pass

    run(main())


@pytest.mark.parametrize("wrong", ["nothing://here", "no address"])
def test_an_address_that_nobody_understands_is_told_at_the_start(wrong: str) -> None:
    async def main() -> None:
        with pytest.raises(OptionError):
            await Swarm(peers=[wrong]).start()
        with pytest.raises(OptionError):
            await Swarm(wrong).start()

    run(main())


def test_one_address_where_a_list_of_peers_belongs_is_told_at_once() -> None:
    with pytest.raises(OptionError, match=r"peers=\['tcp://127.0.0.1:4977'\]"):
        Swarm(peers="tcp://127.0.0.1:4977")


def test_an_address_that_the_transport_refuses_holds_nobody_back() -> None:
    async def main() -> None:
        async with await writer_of(3) as core, Hypercore("memory:", core.key) as reader:
            async with Swarm(peers=["tcp://127.0.0.1"]) as swarm:
                swarm.join(reader)
                await swarm.flush()
                assert isinstance(swarm.dial_errors["tcp://127.0.0.1"], AddressError)
                with pytest.raises(BlockNotAvailableError):
                    await reader.get(0)

    run(main())


# ---- the first round -----------------------------------------------------------------------------------


@pytest.mark.parametrize("joins", ["before the start", "after the start"])
def test_update_waits_for_the_first_round_and_no_longer(
    joins: str, address: str, gate: Callable[[], GatedTransport]
) -> None:
    async def main() -> None:
        async with await writer_of(5) as writer, Swarm(address) as server, Hypercore("memory:", writer.key) as reader:
            server.join(writer)
            gated = gate()
            nowhere = next(names)
            swarm = Swarm(peers=[address, nowhere])
            if joins == "before the start":
                swarm.join(reader)
            await swarm.start()
            if joins == "after the start":
                swarm.join(reader)
            updating, flushing = asyncio.create_task(reader.update()), asyncio.create_task(swarm.flush())
            gated.let(nowhere)
            await eventually(lambda: nowhere in swarm.dial_errors)
            for _ in range(50):
                await asyncio.sleep(0)
            assert not updating.done()
            assert not flushing.done()
            gated.let(address)
            assert await updating
            await flushing
            assert reader.length == 5
            assert not reader.hub.finding
            await swarm.destroy()

    run(main())


def test_a_get_is_told_at_once_when_the_first_round_found_nobody(
    address: str, gate: Callable[[], GatedTransport]
) -> None:
    async def main() -> None:
        async with await writer_of(5) as writer, Hypercore("memory:", writer.key) as reader:
            gated = gate()
            async with Swarm(peers=[address]) as swarm:
                swarm.join(reader)
                getting = asyncio.create_task(reader.get(0))
                for _ in range(50):
                    await asyncio.sleep(0)
                assert not getting.done()
                gated.let(address)
                with pytest.raises(BlockNotAvailableError):
                    await getting
                assert isinstance(swarm.dial_errors[address], ConnectError)
                assert await reader.update() is False

    run(main())


def test_a_swarm_that_is_destroyed_while_it_dials_lets_everybody_go(
    address: str, gate: Callable[[], GatedTransport]
) -> None:
    async def main() -> None:
        async with await writer_of(5) as writer, Hypercore("memory:", writer.key) as reader:
            gated = gate()
            swarm = Swarm(peers=[address])
            await swarm.start()
            swarm.join(reader)
            updating, flushing = asyncio.create_task(reader.update()), asyncio.create_task(swarm.flush())
            await eventually(lambda: bool(gated.dialling))
            await swarm.destroy()
            await flushing
            assert await updating is False
            assert not reader.hub.finding
            assert not reader.hub.sources
            await swarm.destroy()
            with pytest.raises(ClosedError):
                swarm.join(reader)
            with pytest.raises(ClosedError):
                await swarm.start()

    run(main())


# ---- connections come and go ---------------------------------------------------------------------------


def test_destroying_a_swarm_ends_its_connections_on_both_sides(address: str) -> None:
    async def main() -> None:
        async with await writer_of(5) as writer, Swarm(address) as server, Hypercore("memory:", writer.key) as reader:
            server.join(writer)
            swarm = Swarm(peers=[address])
            await swarm.start()
            swarm.join(reader)
            await reader.update()
            (connection,) = swarm.connections()
            await swarm.destroy()
            assert connection.is_closed
            assert not reader.peers
            await eventually(lambda: not server.connections())
            assert not writer.peers
            with pytest.raises(BlockNotAvailableError):
                await reader.get(0)

    run(main())


def test_a_live_stream_goes_on_when_the_writer_was_away(address: str) -> None:
    async def main() -> None:
        async with await writer_of(2) as writer, Hypercore("memory:", writer.key) as reader:
            async with Swarm(peers=[address]) as swarm:
                swarm.join(reader)
                stream = reader.create_read_stream(live=True)
                for turn in range(3):
                    await eventually(lambda: address in swarm.dial_errors)
                    async with Swarm(address) as server:
                        server.join(writer)
                        for _ in range(2):
                            index = 2 * turn + _
                            assert await anext(stream) == b"block %d" % index
                        await writer.append([b"block %d" % index for index in range(2 * turn + 2, 2 * turn + 4)])
                    await eventually(lambda: not swarm.connections())
                await stream.aclose()  # type: ignore[attr-defined]

    run(main())


def test_a_get_with_a_time_limit_ends_while_the_swarm_goes_on_dialling(address: str) -> None:
    async def main() -> None:
        async with await writer_of(2) as writer, Hypercore("memory:", writer.key) as reader:
            async with Swarm(peers=[address]) as swarm, Swarm(address) as server:
                swarm.join(reader)
                server.join(writer)
                await reader.update()
                with pytest.raises(WaitTimeoutError):
                    await reader.get(77, timeout=0.01)

    run(main())


def test_cores_share_the_one_connection_between_two_programs(address: str) -> None:
    async def main() -> None:
        async with await writer_of(3) as one, await writer_of(7) as two:
            async with Hypercore("memory:", one.key) as clone_one, Hypercore("memory:", two.key) as clone_two:
                async with Swarm(address) as server, Swarm(peers=[address]) as swarm:
                    for core in (one, two):
                        server.join(core)
                    swarm.join(clone_one)
                    assert await clone_one.get(2) == b"block 2"
                    swarm.join(clone_two)
                    assert await clone_two.get(6) == b"block 6"
                    assert clone_one.peers[0].session is clone_two.peers[0].session
                    assert len(server.connections()) == len(swarm.connections()) == 1
                    swarm.leave(clone_one)
                    await eventually(lambda: not one.peers)
                    assert len(two.peers) == 1
                    swarm.join(clone_one)
                    await one.append("more")
                    await eventually(lambda: clone_one.length == 4)

    run(main())


def test_a_core_that_closes_leaves_its_swarm_and_may_come_back(address: str) -> None:
    async def main() -> None:
        async with await writer_of(3) as one, Hypercore("memory:", one.key) as other, await writer_of(2) as two:
            clone = Hypercore("memory:coming-back", two.key)
            await clone.ready()
            async with Swarm(address) as server, Swarm(peers=[address]) as swarm:
                server.join(one)
                server.join(two)
                swarm.join(other)
                swarm.join(clone)
                assert await clone.get(1) == b"block 1"
                await clone.close()
                await eventually(lambda: not two.peers)
                with pytest.raises(ClosedError):
                    swarm.join(clone)
                assert await other.get(2) == b"block 2"
                async with Hypercore("memory:coming-back", two.key) as again:
                    swarm.join(again)
                    await two.append("more")
                    assert await again.get(2) == b"more"

    run(main())


# ---- one connection a peer -----------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["small", "large", "both"])
def test_two_programs_that_dial_each_other_end_with_one_connection(
    first: str, gate: Callable[[], GatedTransport]
) -> None:
    async def main() -> None:
        async with await writer_of(50) as writer, Hypercore("memory:", writer.key) as reader:
            gated = gate()
            at_small, at_large = next(names), next(names)
            small = Swarm(at_small, peers=[at_large], key_pair=SMALL)
            large = Swarm(at_large, peers=[at_small], key_pair=LARGE)
            small.join(writer)
            large.join(reader)
            await small.start()
            await large.start()
            if first != "both":
                gated.let(at_large if first == "small" else at_small)
                await eventually(lambda: bool(small.connections() and large.connections()))
            gated.let(at_small)
            gated.let(at_large)
            await small.flush()
            await large.flush()
            await eventually(lambda: len(small.connections()) == len(large.connections()) == 1)
            await reader.update()
            assert await reader.get(49) == b"block 49"
            (kept,) = small.connections()
            (same,) = large.connections()
            assert same.handshake_hash == kept.handshake_hash
            dials = len(gated.dialling)
            for _ in range(200):
                await asyncio.sleep(0)
            assert len(gated.dialling) <= dials, "a peer that is connected already is not dialled again and again"
            assert len(reader.peers) == 1
            await small.destroy()
            await large.destroy()

    run(main())


def test_a_peer_that_is_dialled_by_two_addresses_is_connected_once(gate: Callable[[], GatedTransport]) -> None:
    async def main() -> None:
        async with await writer_of(5) as writer, Hypercore("memory:", writer.key) as reader:
            addresses = [next(names), next(names), next(names)]
            async with Swarm(*addresses) as server, Swarm(peers=addresses) as swarm:
                server.join(writer)
                swarm.join(reader)
                await swarm.flush()
                await eventually(lambda: len(swarm.connections()) == len(server.connections()) == 1)
                assert await reader.get(4) == b"block 4"
                assert swarm.connections()[0].handshake_hash == server.connections()[0].handshake_hash

    run(main())


def test_a_program_that_dials_itself_gives_it_up(address: str) -> None:
    async def main() -> None:
        async with Swarm(address, peers=[address]) as swarm:
            await eventually(lambda: address in swarm.dial_errors)
            await eventually(lambda: not swarm.connections())
            assert "itself" in str(swarm.dial_errors[address]) or "this very" in str(swarm.dial_errors[address])

    run(main())


def test_connections_beyond_the_bound_are_closed_as_they_come(address: str) -> None:
    async def main() -> None:
        async with await writer_of(5) as writer, Swarm(address, most_connections=2) as server:
            server.join(writer)
            swarms = [Swarm(peers=[address]) for _ in range(4)]
            for swarm in swarms:
                await swarm.start()
                await swarm.flush()
            await eventually(lambda: len(server.connections()) == 2)
            assert sum(bool(swarm.dial_errors) for swarm in swarms) == 2
            for swarm in swarms:
                await swarm.destroy()

    run(main())


# ---- who serves and who asks ---------------------------------------------------------------------------


def test_a_core_that_is_not_served_is_not_given_to_who_asks(address: str) -> None:
    async def main() -> None:
        async with await writer_of(5) as writer, Hypercore("memory:", writer.key) as reader:
            async with Swarm(address) as server, Swarm(peers=[address]) as swarm:
                server.join(writer, server=False, client=False)
                swarm.join(reader)
                with pytest.raises(BlockNotAvailableError):
                    await reader.get(0)

    run(main())


def test_a_core_that_only_serves_waits_to_be_asked(address: str) -> None:
    async def main() -> None:
        async with await writer_of(5) as writer, await writer_of(3) as other, Hypercore("memory:", other.key) as clone:
            async with Swarm(address) as server, Swarm(peers=[address]) as swarm:
                server.join(writer, client=False)
                server.join(other, client=False)
                swarm.join(clone)
                assert await clone.get(2) == b"block 2"
                assert not writer.hub.opening
                assert not writer.hub.sessions

    run(main())

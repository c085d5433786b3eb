"""Cores, channels and connections end at different times: nobody else notices, and nobody waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from hypercore import peer as peer_module
from hypercore.core import Hypercore
from hypercore.duplex import stream_pair
from hypercore.errors import (
    BlockNotAvailableError,
    ClosedError,
    OptionError,
    ProtocolError,
    StorageError,
    StreamClosedError,
)
from hypercore.plugins import open_storage
from hypercore.proofs import BlockRequest, ProofRequest, UpgradeRequest
from hypercore.protocol.messages import Data, Range, Request
from hypercore.protocol.replicator import ANSWER_TIMEOUT_SECONDS
from hypercore.session import MOST_REOPENS, Replication
from hypercore.testing.wrappers import LatencyStorage
from tests.replication.hostile import Stranger
from tests.replication.links import Link, eventually, link
from tests.running import run


async def writer_of(count: int) -> Hypercore:
    core = Hypercore("memory:")
    await core.ready()
    await core.append([b"block %d" % index for index in range(count)])
    return core


async def two_cores_on_one_connection(
    one: Hypercore, clone_one: Hypercore, two: Hypercore, clone_two: Hypercore
) -> Link:
    wire = await link(one, clone_one)
    two.replicate(wire.left)
    clone_two.replicate(wire.right)
    await eventually(lambda: bool(two.peers and clone_two.peers))
    return wire


def test_a_core_that_closes_leaves_the_other_cores_of_the_connection_alone() -> None:
    async def main() -> None:
        async with await writer_of(500) as one, await writer_of(9) as two:
            async with Hypercore("memory:", one.key) as clone_one, Hypercore("memory:", two.key) as clone_two:
                wire = await two_cores_on_one_connection(one, clone_one, two, clone_two)
                await clone_two.update()
                # It closes in the middle of receiving, and its writer wants to have it opened again.
                download = two.download(0, 100)
                await clone_two.close()
                await eventually(lambda: not two.peers)
                await clone_one.download(0, 500).done()
                assert not wire.left.is_closed
                assert not wire.right.is_closed
                assert not clone_two.hub.peers
                download.destroy()

    run(main())


def test_a_closed_core_is_not_opened_again_by_a_peer() -> None:
    async def main() -> None:
        async with await writer_of(5) as one, await writer_of(9) as two:
            async with Hypercore("memory:", one.key) as clone_one, Hypercore("memory:", two.key) as clone_two:
                wire = await two_cores_on_one_connection(one, clone_one, two, clone_two)
                waiting = asyncio.create_task(clone_two.update())
                await waiting
                await two.close()
                with pytest.raises(BlockNotAvailableError):
                    await clone_two.get(8)
                clone_two.hub.replicator.want_block(8)
                wire.right.remove(clone_two.hub)
                wire.right.add(clone_two.hub)
                await eventually(lambda: not clone_two.hub.opening)
                assert not clone_two.peers
                assert await clone_one.get(4) == b"block 4"
                assert wire.left.error is wire.right.error is None

    run(main())


@pytest.mark.parametrize("closes", ["reader", "writer"])
def test_closing_while_blocks_arrive_is_quiet_on_both_sides(closes: str) -> None:
    async def main() -> None:
        async with await writer_of(3000) as one, await writer_of(3) as two:
            async with Hypercore("memory:", one.key) as clone_one, Hypercore("memory:", two.key) as clone_two:
                wire = await two_cores_on_one_connection(one, clone_one, two, clone_two)
                await clone_one.update()
                download = clone_one.download(0, 3000)
                await eventually(lambda: download.progress.have > 50)
                await (clone_one if closes == "reader" else one).close()
                assert await clone_two.get(2) == b"block 2"
                assert wire.left.error is wire.right.error is None
                assert not wire.left.is_closed

    run(main())


class Failing:
    """Stands for a log's method that fails from now on."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.calls = 0

    async def __call__(self, *_: object) -> Any:
        self.calls += 1
        raise self.error


@pytest.mark.parametrize("method", ["apply", "prove"])
def test_a_storage_that_fails_costs_its_core_the_channel_and_nobody_the_connection(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with await writer_of(500) as one, await writer_of(9) as two:
            async with Hypercore("memory:", one.key) as clone_one, Hypercore("memory:", two.key) as clone_two:
                wire = await two_cores_on_one_connection(one, clone_one, two, clone_two)
                await clone_two.update()
                broken = clone_two if method == "apply" else two
                failing = Failing(StorageError("the disk is full"))
                monkeypatch.setattr(broken.hub.log, method, failing)
                with pytest.raises(BlockNotAvailableError):
                    await clone_two.get(3)
                assert any("the disk is full" in warning for warning in (await broken.info()).warnings)
                assert await clone_one.get(4) == b"block 4"
                assert wire.left.error is wire.right.error is None
                assert failing.calls == 1

    run(main())


def test_an_exception_of_an_extension_is_told_and_harms_nobody() -> None:
    async def main() -> None:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context))
        async with await writer_of(3) as writer, Hypercore("memory:", writer.key) as reader:
            fault = RuntimeError("a fault of the program")
            got: list[bytes] = []

            def listen(payload: bytes, _peer: object) -> None:
                got.append(payload)
                if payload == b"first":
                    raise fault

            ours = writer.register_extension("chat")
            reader.register_extension("chat", listen)
            await link(writer, reader)
            await eventually(lambda: bool(writer.peers and reader.peers))
            ours.broadcast(b"first")
            ours.broadcast(b"second")
            await eventually(lambda: len(got) == 2)
            assert await reader.get(2) == b"block 2"
            assert [context["exception"] for context in told] == [fault]

    run(main())


def test_an_extension_message_that_fits_into_no_frame_is_refused_at_once() -> None:
    async def main() -> None:
        async with await writer_of(3) as writer, Hypercore("memory:", writer.key) as reader:
            chat = writer.register_extension("chat")
            await link(writer, reader)
            await eventually(lambda: bool(writer.peers and reader.peers))
            with pytest.raises(OptionError):
                chat.broadcast(bytes(2**24))
            assert await reader.get(2) == b"block 2"

    run(main())


def test_a_peer_that_does_not_read_a_program_s_messages_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(peer_module, "MOST_WAITING_BYTES", 1_000_000)
        async with await writer_of(3) as writer:
            chat = writer.register_extension("chat")
            stranger = await Stranger(writer, buffer_is_read=False).opened()
            for _ in range(100):
                chat.broadcast(bytes(100_000))
                await asyncio.sleep(0)
            await stranger.replication.wait_closed()
            assert isinstance(stranger.replication.error, ProtocolError)
            chat.broadcast(b"nobody hears")
            await stranger.close()

    run(main())


def test_everybody_who_closes_a_core_returns_when_it_is_closed() -> None:
    async def main() -> None:
        storage = LatencyStorage(open_storage("memory:closing"), seconds=0)
        core = Hypercore(storage)
        await core.ready()
        await core.append("x")
        impatient = asyncio.create_task(core.close())
        await asyncio.sleep(0)
        impatient.cancel()
        await asyncio.gather(core.close(), core.close())
        assert core.hub.log.closed
        async with Hypercore("memory:closing") as again:
            assert await again.get(0) == b"x"

    run(main())


def test_a_replication_that_never_ran_says_so_to_who_waits_for_it() -> None:
    async def main() -> None:
        replication = Replication(stream_pair()[0], initiator=True)
        opening = asyncio.create_task(replication.opened())
        await asyncio.sleep(0)
        await replication.aclose()
        with pytest.raises(StreamClosedError):
            await opening

    run(main())


def test_a_fault_in_what_is_to_be_said_ends_the_connection_instead_of_silencing_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context))
        async with await writer_of(3) as writer, Hypercore("memory:", writer.key) as reader:
            wire = await link(writer, reader)
            await eventually(lambda: bool(writer.peers and reader.peers))
            fault = KeyError("a fault of ours")
            monkeypatch.setattr(writer.hub.log, "prove", Failing(fault))
            with pytest.raises(BlockNotAvailableError):
                await reader.get(2)
            await wire.left.wait_closed()
            assert wire.left.error is not None
            assert told

    run(main())


def test_a_busy_core_does_not_starve_the_others_of_a_connection() -> None:
    """The first core's peer asks without end; the second core's answers still come."""

    async def main() -> None:
        big = Hypercore("memory:")
        await big.ready()
        await big.append([bytes(100_000)] * 20)
        async with big, await writer_of(5) as small:
            stranger = await Stranger(big).opened()
            small.replicate(stranger.replication)
            other = stranger.connection.open_channel(small.key)
            await eventually(lambda: bool(small.peers))
            busy = 0

            def more(_: object) -> None:
                nonlocal busy
                busy += 1
                stranger.channel.send(Request(1000 + busy, 0, ProofRequest(0, BlockRequest(busy % 20, 0))))

            stranger.on_message = lambda message: more(message) if isinstance(message, Data) else None
            await stranger.send(*[Request(n, 0, ProofRequest(0, BlockRequest(n % 20, 0))) for n in range(1, 200)])
            await eventually(lambda: busy > 20)
            other.send(Request(1, 0, ProofRequest(0, BlockRequest(4, 0))))
            await eventually(
                lambda: any(
                    isinstance(each, Data) and each.proof.block is not None and each.proof.block.value == b"block 4"
                    for each in stranger.inbox
                )
            )
            await stranger.close()

    run(main())


def test_a_channel_that_the_peer_closed_is_opened_again_while_blocks_are_wanted() -> None:
    async def main() -> None:
        async with await writer_of(9) as writer, Hypercore("memory:", writer.key) as reader:
            wire = await link(writer, reader)
            await reader.update()
            await eventually(lambda: bool(writer.peers))
            waiting = [asyncio.create_task(reader.get(index)) for index in range(9)]
            await asyncio.sleep(0)
            peer = writer.peers[0]
            wire.left.close_channel(peer.channel)
            writer.hub.detach(peer)
            assert await asyncio.gather(*waiting) == [b"block %d" % index for index in range(9)]

    run(main())


def test_a_peer_that_closes_without_end_is_not_opened_without_end() -> None:
    async def main() -> None:
        async with await writer_of(9) as writer, Hypercore("memory:", writer.key) as reader:
            honest = await link(writer, reader)
            await reader.update()
            await honest.cut()
            stranger = await Stranger(reader).opened()
            waiting = asyncio.create_task(reader.get(3))
            closed = 0
            while closed < MOST_REOPENS + 1:
                await eventually(lambda: stranger.channel.state.value == "open")
                stranger.channel.close()
                stranger._channel = None
                closed += 1
                await stranger._flush()
                if closed <= MOST_REOPENS:
                    stranger._channel = stranger.connection.open_channel(reader.key)
                    await stranger._flush()
            with pytest.raises(BlockNotAvailableError):
                await waiting
            await stranger.close()

    run(main())


def test_an_answer_that_takes_long_to_arrive_is_waited_for_as_long_as_it_goes_on() -> None:
    async def main() -> None:
        async with Hypercore("memory:") as writer:
            await writer.append([b"small", bytes(8_000_000)])
            async with Hypercore("memory:", writer.key) as reader:
                first = await link(writer, reader)
                await reader.update()
                await first.cut()
                stranger = await Stranger(reader).opened()
                await stranger.claim(2, acked=2)
                await stranger.send(Range(False, 0, 2))
                waiting = asyncio.create_task(reader.get(1))
                await eventually(lambda: bool(stranger.received(Request)))
                (request,) = stranger.received(Request)
                assert isinstance(request, Request)
                stranger.channel.send(Data(request.id, await writer.hub.log.prove(request.proof)))
                answer = stranger.connection.data_to_send()
                session = stranger.replication
                for start in range(0, len(answer), 800_000):
                    await stranger.stream.send(answer[start : start + 800_000])
                    later = session.now() + 0.9 * ANSWER_TIMEOUT_SECONDS
                    session.now = lambda later=later: later  # type: ignore[misc]
                    session._ticker.cancel()
                    session._tick()
                assert await waiting == bytes(8_000_000)
                assert len(stranger.received(Request)) == 1
                await stranger.close()

    run(main())


@pytest.mark.parametrize("chosen", [False, True])
def test_a_download_fetches_again_what_was_cleared_before_it_was_done(chosen: bool) -> None:
    async def main() -> None:
        async with await writer_of(11) as writer, Hypercore("memory:", writer.key) as reader:
            first = await link(writer, reader)
            await reader.update()
            await first.cut()
            stranger = await Stranger(reader).opened()
            await stranger.claim(11, acked=11)
            await stranger.send(Range(False, 0, 11))
            download = reader.download(blocks=range(11)) if chosen else reader.download(0, 11)
            await eventually(lambda: len(stranger.received(Request)) == 11)
            *early, last = stranger.received(Request)
            for request in early:
                assert isinstance(request, Request)
                await stranger.send(Data(request.id, await writer.hub.log.prove(request.proof)))
            await eventually(lambda: download.progress.have == 10)
            await reader.clear(0, 5)
            await eventually(lambda: len(stranger.received(Request)) == 16)
            for request in (*stranger.received(Request)[11:], last):
                assert isinstance(request, Request)
                await stranger.send(Data(request.id, await writer.hub.log.prove(request.proof)))
            await asyncio.wait_for(download.done(), 5.0)
            assert await reader.has(0, 11)
            await stranger.close()

    run(main())


@pytest.mark.parametrize("what", ["get", "download", "update", "seek", "stream", "live stream", "length"])
def test_closing_a_core_ends_every_wait(what: str) -> None:
    async def main() -> None:
        async with await writer_of(9) as writer, Hypercore("memory:", writer.key) as reader:
            await link(writer, reader)
            await reader.update()
            reader.finding_peers()
            await eventually(lambda: bool(writer.peers))

            async def drain(live: bool) -> None:
                async for _ in reader.create_read_stream(start=20, end=None if live else 30, live=live):
                    pass

            waits: dict[str, Coroutine[Any, Any, Any]] = {
                "get": reader.get(50),
                "download": reader.download(0, 50).done(),
                "update": reader.update(),
                "seek": reader.seek(10_000),
                "stream": drain(live=False),
                "live stream": drain(live=True),
                "length": reader.wait_for_length(100),
            }
            task = asyncio.create_task(waits.pop(what))
            for other in waits.values():
                other.close()
            for _ in range(20):
                await asyncio.sleep(0)
            assert not task.done()
            await reader.close()
            done, _ = await asyncio.wait([task], timeout=5.0)
            assert done, f"{what} went on after the core was closed"
            if what in ("get", "download", "update", "seek", "stream"):
                assert isinstance(task.exception(), ClosedError)
            else:
                assert task.exception() is None or isinstance(task.exception(), ClosedError)

    run(main())


def test_a_core_that_freezes_leaves_the_other_cores_of_the_connection_alone() -> None:
    async def main() -> None:
        async with await writer_of(5) as one, await writer_of(9) as two:
            async with Hypercore("memory:", one.key) as clone_one, Hypercore("memory:", two.key) as clone_two:
                wire = await two_cores_on_one_connection(one, clone_one, two, clone_two)
                await clone_one.update()
                async with Hypercore("memory:", key_pair=one.key_pair) as forger:
                    await forger.append([b"another %d" % index for index in range(5)])
                    stranger = await Stranger(clone_one).opened()
                    await stranger.send(Data(0, await forger.proof(upgrade=UpgradeRequest(0, 5))))
                    await eventually(lambda: clone_one.hub.frozen)
                    await stranger.close()
                with pytest.raises(BlockNotAvailableError):
                    await clone_one.get(3)
                assert await clone_one.update() is False
                clone_one.replicate(wire.right)
                assert await clone_two.get(8) == b"block 8"
                assert not clone_one.peers
                assert wire.left.error is wire.right.error is None

    run(main())

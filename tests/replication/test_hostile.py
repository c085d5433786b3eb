"""Peers that lie, flood, stall and break the protocol: they lose their connection or are passed over, and nobody else
notices; nothing false is stored, and what one peer costs stays bounded."""

from __future__ import annotations

import asyncio
import random
import tracemalloc
from collections.abc import Awaitable, Callable
from functools import partial

import pytest

from hypercore.core import Hypercore
from hypercore.errors import BlockNotAvailableError, ProtocolError
from hypercore.peer import MOST_WIDE_CHANGES, PEER_MEMORY_BYTES, SEND_AHEAD_BYTES
from hypercore.proofs import BlockRequest, HashRequest, Node, Proof, ProofRequest, SeekRequest, UpgradeRequest
from hypercore.protocol import messages
from hypercore.protocol.messages import Bitfield, Cancel, Data, Extension, NoData, Range, Request, Sync, Unwant, Want
from hypercore.protocol.remote import AskKind
from hypercore.protocol.replicator import ANSWER_TIMEOUT_SECONDS, MOST_TIMEOUTS
from hypercore.serving import MOST_INVALID_REQUESTS, MOST_WAITING_REQUESTS
from tests.replication.hostile import Stranger
from tests.replication.links import eventually, link
from tests.running import run


async def writer_of(count: int, size: int = 20) -> Hypercore:
    core = Hypercore("memory:")
    await core.ready()
    await core.append([bytes([index % 256]) * size for index in range(count)])
    return core


Lie = Callable[[Proof], Proof]


def _flip(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


def _other_value(proof: Proof) -> Proof:
    assert proof.block is not None
    return proof._replace(block=proof.block._replace(value=_flip(proof.block.value)))


def _longer_value(proof: Proof) -> Proof:
    assert proof.block is not None
    return proof._replace(block=proof.block._replace(value=proof.block.value + b"x"))


def _flipped_node(proof: Proof) -> Proof:
    assert proof.block is not None
    first, *rest = proof.block.nodes
    return proof._replace(block=proof.block._replace(nodes=(first._replace(hash=_flip(first.hash)), *rest)))


def _forged_size(proof: Proof) -> Proof:
    assert proof.block is not None
    first, *rest = proof.block.nodes
    return proof._replace(block=proof.block._replace(nodes=(first._replace(size=first.size + 5), *rest)))


def _swapped_nodes(proof: Proof) -> Proof:
    assert proof.block is not None
    return proof._replace(block=proof.block._replace(nodes=proof.block.nodes[::-1]))


def _missing_node(proof: Proof) -> Proof:
    assert proof.block is not None
    return proof._replace(block=proof.block._replace(nodes=proof.block.nodes[1:]))


def _extra_node(proof: Proof) -> Proof:
    assert proof.block is not None
    extra = Node(2 * 64, 5, bytes(32))
    return proof._replace(block=proof.block._replace(nodes=(*proof.block.nodes, extra)))


def _other_block(proof: Proof) -> Proof:
    assert proof.block is not None
    return proof._replace(block=proof.block._replace(index=proof.block.index + 1))


@pytest.mark.parametrize(
    "lie",
    [
        _other_value,
        _longer_value,
        _flipped_node,
        _forged_size,
        _swapped_nodes,
        _missing_node,
        _extra_node,
        _other_block,
    ],
)
def test_a_false_answer_is_never_stored_and_the_block_comes_from_somebody_else(lie: Lie) -> None:
    async def main() -> None:
        async with await writer_of(64) as writer, Hypercore("memory:", writer.key) as reader:
            honest = await link(writer, reader)
            await reader.update()
            await honest.cut()
            liar = await Stranger(reader).opened()
            asked: list[Request] = []
            liar.answer_with(lambda request: asked.append(request))
            await liar.claim(64, acked=64)
            await liar.send(Range(False, 0, 64))
            wanted = asyncio.create_task(reader.get(9))
            await eventually(lambda: bool(asked))
            proof = await writer.hub.log.prove(asked[0].proof)
            await liar.send(Data(asked[0].id, lie(proof)))
            await eventually(lambda: reader.peers[0].remote.paused)
            assert not await reader.has(9)
            assert not wanted.done()
            await link(writer, reader)
            assert await wanted == b"\x09" * 20
            assert await reader.tree_hash() == await writer.tree_hash()
            assert [await reader.get(index) for index in range(64)] == [await writer.get(index) for index in range(64)]
            await liar.close()

    run(main())


def test_a_false_upgrade_moves_nothing() -> None:
    async def main() -> None:
        async with (
            await writer_of(10) as writer,
            await writer_of(10) as other,
            Hypercore("memory:", writer.key) as reader,
        ):
            liar = await Stranger(reader).opened()
            asked: list[Request] = []
            liar.answer_with(lambda request: asked.append(request))
            await liar.claim(10)
            await eventually(lambda: bool(asked))
            forged = await other.hub.log.prove(asked[0].proof)
            await liar.send(Data(asked[0].id, forged))
            await eventually(lambda: reader.peers[0].remote.paused)
            assert (reader.length, reader.manifest) == (0, None)
            await link(writer, reader)
            assert await reader.update()
            assert reader.length == 10
            await liar.close()

    run(main())


def test_unasked_answers_are_dropped() -> None:
    async def main() -> None:
        async with await writer_of(10) as writer, Hypercore("memory:", writer.key) as reader:
            stranger = await Stranger(reader).opened()
            upgrade = await writer.proof(upgrade=UpgradeRequest(0, 10))
            block = await writer.proof(block=BlockRequest(1, 3))
            for request_id in (0, 1, 2, 77):
                await stranger.send(Data(request_id, upgrade), Data(request_id, block), NoData(request_id, 1))
            await stranger.send(Cancel(5), Unwant(0, 10), Extension("unknown", b"x" * 1000))
            await link(writer, reader)
            assert await reader.get(3) == b"\x03" * 20
            assert len(reader.peers) == 2, "a peer that says too much is not worth ending a connection"
            await stranger.close()

    run(main())


def test_a_peer_that_claims_everything_and_has_nothing_is_passed_over() -> None:
    async def main() -> None:
        async with await writer_of(300) as writer, Hypercore("memory:", writer.key) as reader:
            honest = await link(writer, reader)
            await reader.update()
            await honest.cut()
            liar = await Stranger(reader).opened()
            liar.answer_with(lambda request: NoData(request.id, 1))
            await liar.claim(300, acked=300)
            await liar.send(Range(False, 0, 300), Bitfield(0, b"\xff" * 40))
            download = reader.download(0, 300)
            await eventually(lambda: len(liar.received(Request)) >= 300)
            await link(writer, reader)
            await download.done()
            assert len(liar.received(Request)) <= 400, "a block that was refused is not asked for again and again"
            await liar.close()

    run(main())


def test_a_peer_that_never_answers_is_given_up_and_the_waiter_told() -> None:
    async def main() -> None:
        async with await writer_of(10) as writer, Hypercore("memory:", writer.key) as reader:
            honest = await link(writer, reader)
            await reader.update()
            await honest.cut()
            silent = await Stranger(reader).opened()
            await silent.claim(10, acked=10)
            await silent.send(Range(False, 0, 10))
            waiting = asyncio.create_task(reader.get(5))
            for number in range(MOST_TIMEOUTS):

                def asked_again(number: int = number) -> bool:
                    return len(silent.received(Request)) > number

                await eventually(asked_again)
                # The clock is moved by hand: no test waits for a time-out.
                later = silent.replication.now() + ANSWER_TIMEOUT_SECONDS
                silent.replication.now = partial(float, later)
                reader.peers[0].expire(later)
                silent.replication.wake()
            with pytest.raises(BlockNotAvailableError):
                await waiting
            await silent.replication.wait_closed()
            assert isinstance(silent.replication.error, ProtocolError)
            await silent.close()

    run(main())


def test_requests_that_nobody_can_answer_end_the_connection_in_the_end() -> None:
    async def main() -> None:
        async with await writer_of(10) as writer:
            impossible = [
                ProofRequest(0, upgrade=UpgradeRequest(0, 11)),
                ProofRequest(0, upgrade=UpgradeRequest(5, 2**52)),
                ProofRequest(0, block=BlockRequest(3, 60)),
                ProofRequest(0, hash=HashRequest(2**52, 3)),
                ProofRequest(0, hash=HashRequest(4, 2**53 - 1)),
                ProofRequest(0, hash=HashRequest(0, 2), seek=SeekRequest(2**52, 0)),
                ProofRequest(0, upgrade=UpgradeRequest(3, 0)),
            ]
            stranger = await Stranger(writer).opened()
            for number, asked in enumerate(impossible, 1):
                await stranger.send(Request(number, 0, asked))
            await eventually(lambda: len(stranger.received(NoData)) == len(impossible))
            for number in range(len(impossible), MOST_INVALID_REQUESTS + 1):
                await stranger.send(Request(number + 1, 0, impossible[0]))
            await stranger.replication.wait_closed()
            assert isinstance(stranger.replication.error, ProtocolError)
            async with Hypercore("memory:", writer.key) as reader:
                await link(writer, reader)
                assert await reader.get(3) == b"\x03" * 20
            await stranger.close()

    run(main())


def test_garbage_ends_one_connection_and_no_other() -> None:
    async def main() -> None:
        chance = random.Random(5)
        async with await writer_of(10) as writer, Hypercore("memory:", writer.key) as reader:
            await link(writer, reader)
            for size in (1, 3, 35, 1000, 100_000):
                stranger = await Stranger(writer).opened()
                await stranger.stream.send(b"\x64\x00\x00" + chance.randbytes(size + 100))
                await stranger.replication.wait_closed()
                assert isinstance(stranger.replication.error, ProtocolError)
                await stranger.close()
            assert await reader.get(3) == b"\x03" * 20
            assert len(writer.peers) == 1

    run(main())


def test_announcements_that_cost_more_to_hear_than_to_say_end_one_connection() -> None:
    async def main() -> None:
        async with await writer_of(10) as writer:
            stranger = await Stranger(writer).opened()
            flip_flop = [Range(False, 0, 2**53 - 1), Range(True, 0, 1)]
            await stranger.send(*flip_flop * MOST_WIDE_CHANGES)
            await eventually(lambda: writer.peers[0].remote.wide_changes == MOST_WIDE_CHANGES)
            assert len(writer.peers) == 1
            await stranger.send(*flip_flop)
            await stranger.replication.wait_closed()
            assert isinstance(stranger.replication.error, ProtocolError)
            await stranger.close()

    run(main())


def test_cancelled_requests_are_not_answered_and_a_flood_is_bounded() -> None:
    async def main() -> None:
        async with await writer_of(10) as writer:
            stranger = await Stranger(writer).opened()
            count = 5 * MOST_WAITING_REQUESTS
            for first in range(1, count, 500):
                requests = [Request(n, n % 3, ProofRequest(0, BlockRequest(1, 0))) for n in range(first, first + 500)]
                await stranger.send(*requests)
                await stranger.send(*[Cancel(request.id) for request in requests[::2]])
            await eventually(lambda: len(stranger.received(Data)) + len(stranger.received(NoData)) >= count // 2)
            await stranger.close()

    run(main())


def measure_peak(action: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[int]]:
    async def measured() -> int:
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            await action()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        return peak - before

    return measured


def test_a_peer_that_asks_and_never_reads_costs_no_more_than_is_sent_ahead() -> None:
    async def main() -> None:
        block_size = 100_000
        async with await writer_of(50, block_size) as writer:
            stranger = await Stranger(writer, buffer_is_read=False).opened()

            async def flood() -> None:
                for number in range(1, 2000):
                    await stranger.send(Request(number, 0, ProofRequest(0, BlockRequest(number % 50, 0))))
                await asyncio.sleep(0.05)

            peak = await measure_peak(flood)()
            peer = writer.peers[0]
            assert peer.bytes_sent < SEND_AHEAD_BYTES + 4 * block_size + 2 * 256 * 1024
            assert peak < PEER_MEMORY_BYTES
            await stranger.close()

    run(main())


@pytest.mark.parametrize("seed", range(5))
def test_what_one_peer_costs_stays_under_the_named_bound(seed: int) -> None:
    """Ranges, bitfields, wants, syncs, requests and extensions without end, with numbers up to 2^53 - 1."""

    async def main() -> None:
        chance = random.Random(seed)

        def number() -> int:
            return chance.choice([0, 1, 31, 32, 2**21, 2**32, 2**52, 2**53 - 1, chance.randrange(2**53)])

        def message() -> messages.Message:
            match chance.randrange(7):
                case 0:
                    return Range(chance.random() < 0.3, number(), number())
                case 1:
                    return Bitfield(number() // 32 * 32, chance.randbytes(4 * chance.randrange(1, 2000)))
                case 2:
                    return Want(number(), number(), chance.random() < 0.5)
                case 3:
                    return Sync(chance.randrange(3), number(), number(), True, True, True, True, True)
                case 4:
                    return Request(number(), number() % 3, ProofRequest(0, BlockRequest(number(), number())))
                case 5:
                    return NoData(number(), 2)
                case _:
                    return Extension("x" * chance.randrange(1, 200), b"y" * chance.randrange(10_000))

        async with await writer_of(100) as writer:
            stranger = await Stranger(writer).opened()
            await writer.truncate(50)

            async def rant() -> None:
                for _ in range(1500):
                    try:
                        await stranger.send(message())
                    except Exception:
                        break  # The connection may have been ended for it.
                    await asyncio.sleep(0)

            peak = await measure_peak(rant)()
            assert peak < PEER_MEMORY_BYTES, f"seed {seed}: {peak} bytes"
            async with Hypercore("memory:", writer.key) as reader:
                await link(writer, reader)
                assert await reader.get(3) == b"\x03" * 20
            await stranger.close()

    run(main())


def test_a_higher_fork_that_cannot_be_proved_is_not_followed() -> None:
    async def main() -> None:
        async with await writer_of(10) as writer, await writer_of(12) as other:
            async with Hypercore("memory:", writer.key) as reader:
                await link(writer, reader)
                await reader.update()
                liar = await Stranger(reader).opened()
                forks: list[Request] = []

                def lie(request: Request) -> Data | None:
                    forks.append(request)
                    return None

                liar.answer_with(lie)
                await liar.claim(12, fork=7)
                await eventually(lambda: bool(forks))
                proof = await other.proof(upgrade=UpgradeRequest(0, 12))
                await liar.send(Data(forks[0].id, proof._replace(fork=7)))
                liar_peer = next(peer for peer in reader.peers if peer.session is liar.replication)
                await eventually(lambda: liar_peer.remote.paused)
                assert (reader.fork, reader.length) == (0, 10)
                assert not any(ask.kind is AskKind.FORK for ask in liar_peer.remote.asks.values())
                await writer.append("more")
                assert await reader.get(10) == b"more"
                await liar.close()

    run(main())

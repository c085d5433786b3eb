"""What becomes of requests and answers when peers are slow, leave half-way, refuse, or answer in any order."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator

import pytest

from hypercore import peer as peer_module
from hypercore import waiting
from hypercore.core import Hypercore
from hypercore.errors import BlockIndexError, BlockNotAvailableError, PeerClosedError, ProofNotHeldError, ProtocolError
from hypercore.peer import MOST_WAITING_RANGES
from hypercore.proofs import BlockRequest, Proof, ProofRequest, UpgradeRequest
from hypercore.protocol.messages import Bitfield, Cancel, Data, NoData, Range, Request, Sync
from hypercore.protocol.remote import RemotePeer
from hypercore.protocol.replicator import HOT_SWAP_SECONDS, MOST_CONFLICT_CHECKS
from tests.replication.hostile import Stranger
from tests.replication.links import eventually, link
from tests.running import run


async def writer_of(count: int) -> Hypercore:
    core = Hypercore("memory:")
    await core.ready()
    await core.append([b"block %d" % index for index in range(count)])
    return core


@contextlib.asynccontextmanager
async def reader_at_length(count: int) -> AsyncIterator[tuple[Hypercore, Hypercore]]:
    """A writer, and a reader that knows its length and none of its blocks, not connected."""
    async with await writer_of(count) as writer, Hypercore("memory:", writer.key) as reader:
        first = await link(writer, reader)
        await reader.update()
        await first.cut()
        yield writer, reader


async def holder_of_everything(reader: Hypercore, *, fork: int = 0) -> Stranger:
    """A peer that claims all blocks and answers nothing by itself."""
    stranger = await Stranger(reader).opened()
    await stranger.claim(reader.length, fork=fork, acked=reader.length)
    await stranger.send(Range(False, 0, reader.length))
    return stranger


def requests_of(stranger: Stranger) -> list[Request]:
    return [message for message in stranger.inbox if isinstance(message, Request)]


async def held_back(writer: Hypercore, reader: Hypercore, stranger: Stranger) -> list[asyncio.Task[bytes]]:
    """Blocks 8 and 9 are asked of the stranger, who answers the second first: it builds on hashes of the first."""
    waiting = [asyncio.create_task(reader.get(index)) for index in (8, 9)]
    await eventually(lambda: len(requests_of(stranger)) == 2)
    first, second = requests_of(stranger)
    assert first.proof.block is not None
    assert second.proof.block == BlockRequest(9, 0)
    await stranger.send(Data(second.id, await writer.hub.log.prove(second.proof)))
    await eventually(lambda: second.id not in reader.peers[0].remote.asks)
    assert not await reader.has(9)
    return waiting


def test_an_answer_that_overtakes_another_is_stored_when_that_has_come() -> None:
    async def main() -> None:
        async with reader_at_length(64) as (writer, reader):
            stranger = await holder_of_everything(reader)
            waiting = await held_back(writer, reader, stranger)
            first = requests_of(stranger)[0]
            await stranger.send(Data(first.id, await writer.hub.log.prove(first.proof)))
            assert await asyncio.gather(*waiting) == [b"block 8", b"block 9"]
            assert len(requests_of(stranger)) == 2
            await stranger.close()

    run(main())


@pytest.mark.parametrize("end", ["leaves", "refuses", "answers something else"])
def test_what_was_held_back_comes_from_somebody_else_when_its_base_never_comes(end: str) -> None:
    async def main() -> None:
        async with reader_at_length(64) as (writer, reader):
            stranger = await holder_of_everything(reader)
            waiting = await held_back(writer, reader, stranger)
            await link(writer, reader)
            first = requests_of(stranger)[0]
            if end == "leaves":
                await stranger.close()
            elif end == "refuses":
                await stranger.send(NoData(first.id, 1))
            else:
                await stranger.send(Data(first.id, await writer.proof(block=BlockRequest(3, 0))))
            done, _ = await asyncio.wait(waiting, timeout=5.0)
            assert [task.result() for task in waiting if task in done] == [b"block 8", b"block 9"]
            if end != "leaves":
                await stranger.close()

    run(main())


def test_what_was_held_back_is_asked_again_when_another_peer_was_faster_with_its_base() -> None:
    async def main() -> None:
        async with reader_at_length(64) as (writer, reader):
            stranger = await holder_of_everything(reader)
            waiting = await held_back(writer, reader, stranger)
            fast = await link(writer, reader)
            await eventually(lambda: len(reader.peers) == 2 and reader.peers[1].remote.synced)
            started = fast.right.now()
            fast.right.now = lambda: started + HOT_SWAP_SECONDS + 0.1
            fast.right.wake()
            done, _ = await asyncio.wait(waiting, timeout=5.0)
            assert [task.result() for task in waiting if task in done] == [b"block 8", b"block 9"]
            assert Cancel(requests_of(stranger)[0].id) in stranger.received(Cancel)
            await stranger.close()

    run(main())


def test_a_block_that_did_not_come_with_its_upgrade_is_asked_for_alone() -> None:
    async def main() -> None:
        async with await writer_of(5) as writer, Hypercore("memory:", writer.key) as reader:
            stranger = await Stranger(reader).opened()
            waiting = asyncio.create_task(reader.get(0))
            await stranger.send(Range(False, 0, 5))
            await stranger.claim(5)
            await eventually(lambda: len(requests_of(stranger)) == 1)
            (both,) = requests_of(stranger)
            assert both.proof.block == BlockRequest(0, 0)
            await stranger.send(Data(both.id, await writer.hub.log.prove(both.proof._replace(block=None))))
            await eventually(lambda: len(requests_of(stranger)) == 2)
            alone = requests_of(stranger)[1]
            await stranger.send(Data(alone.id, await writer.hub.log.prove(alone.proof)))
            assert await waiting == b"block 0"
            await stranger.close()

    run(main())


def test_an_upgrade_that_was_refused_together_with_a_block_is_asked_for_alone() -> None:
    async def main() -> None:
        async with await writer_of(5) as writer, Hypercore("memory:", writer.key) as reader:
            stranger = await Stranger(reader).opened()
            waiting = asyncio.create_task(reader.get(0))
            await stranger.send(Range(False, 0, 5))
            await stranger.claim(5)
            await eventually(lambda: len(requests_of(stranger)) == 1)
            await stranger.send(NoData(requests_of(stranger)[0].id, 1))
            await eventually(lambda: len(requests_of(stranger)) == 2)
            alone = requests_of(stranger)[1]
            assert alone.proof.upgrade == UpgradeRequest(0, 5)
            assert alone.proof.block is None
            await stranger.send(Data(alone.id, await writer.hub.log.prove(alone.proof)))
            await eventually(lambda: reader.length == 5)
            waiting.cancel()
            await stranger.close()

    run(main())


def test_a_manifest_of_another_fork_is_no_offence() -> None:
    """A writer that truncated meanwhile answers a request for the fork that it left with its manifest alone."""

    async def main() -> None:
        async with await writer_of(5) as writer, Hypercore("memory:", writer.key) as reader:
            await writer.truncate(4)
            stranger = await Stranger(reader).opened()
            await stranger.claim(5, fork=1)
            await eventually(lambda: len(requests_of(stranger)) == 1)
            (request,) = requests_of(stranger)
            assert request.proof.manifest
            full = await writer.hub.log.prove(request.proof._replace(upgrade=UpgradeRequest(0, 4)))
            await stranger.send(Data(request.id, Proof(2, manifest=full.manifest)))
            await stranger.claim(4, fork=2)
            await eventually(lambda: len(requests_of(stranger)) == 2)
            assert not reader.peers[0].remote.paused
            assert not reader.peers[0].remote.strikes
            await stranger.close()

    run(main())


def test_a_proof_of_a_fork_that_was_left_is_no_conflict() -> None:
    async def main() -> None:
        async with await writer_of(5) as writer, Hypercore("memory:", writer.key) as reader:
            before = await writer.proof(upgrade=UpgradeRequest(0, 5))
            await writer.truncate(2)
            await writer.append(["x", "y", "z"])
            await link(writer, reader)
            await reader.update()
            assert (reader.fork, reader.length) == (1, 5)
            stranger = await Stranger(reader).opened()
            await stranger.send(Data(0, before), Request(1, 0, ProofRequest(1)))
            await eventually(lambda: bool(stranger.received(Data)))
            assert not reader.hub.frozen
            assert await reader.get(4) == b"z"
            await stranger.close()

    run(main())


def test_a_conflict_is_shown_to_every_peer_before_its_channel_closes() -> None:
    async def main() -> None:
        async with await writer_of(5) as writer:
            async with Hypercore("memory:", key_pair=writer.key_pair) as other:
                await other.append(["one", "two"])
                witness = await Stranger(writer).opened()
                accuser = await Stranger(writer).opened()
                await accuser.send(Data(0, await other.proof(upgrade=UpgradeRequest(0, 2))))
                await eventually(lambda: not writer.peers)
                for stranger in (witness, accuser):
                    await eventually(lambda stranger=stranger: bool(stranger.received(Data)))  # type: ignore[misc]
                    (shown,) = stranger.received(Data)
                    assert isinstance(shown, Data)
                    assert shown.request_id == 0
                    assert await other.hub.log.conflicts(shown.proof)
                    await stranger.close()

    run(main())


def test_a_copy_that_cannot_show_its_own_history_stops_all_the_same() -> None:
    async def main() -> None:
        async with await writer_of(7) as writer, Hypercore("memory:", key_pair=writer.key_pair) as other:
            await other.append([b"other %d" % index for index in range(12)])
            async with Hypercore("memory:", writer.key) as sparse:
                await writer.append("eighth")
                await link(writer, sparse)
                await sparse.update()
                stranger = await Stranger(sparse).opened()
                with pytest.raises(ProofNotHeldError):
                    await sparse.proof(upgrade=UpgradeRequest(0, 6))
                await stranger.send(Data(0, await other.proof(upgrade=UpgradeRequest(0, 6))))
                await eventually(lambda: sparse.hub.frozen)
                assert not sparse.peers
                await stranger.close()

    run(main())


def test_a_fork_whose_witness_left_half_way_costs_no_block_that_is_shared() -> None:
    async def main() -> None:
        async with await writer_of(100) as writer, Hypercore("memory:", writer.key) as reader:
            first = await link(writer, reader)
            await reader.update()
            await reader.download(0, 100).done()
            await first.cut()
            await writer.truncate(77)
            await writer.append([b"other %d" % index for index in range(77, 120)])
            stranger = await Stranger(reader).opened()
            await stranger.claim(120, fork=1)
            await eventually(lambda: len(requests_of(stranger)) == 1)
            (forking,) = requests_of(stranger)
            await stranger.send(Data(forking.id, await writer.hub.log.prove(forking.proof)))
            await eventually(lambda: len(requests_of(stranger)) == 2)
            assert requests_of(stranger)[1].proof.hash is not None
            await stranger.close()
            await eventually(lambda: not reader.peers)
            await link(writer, reader)
            await eventually(lambda: reader.length == 120)
            assert await reader.has(0, 77)

    run(main())


def test_a_sparse_copy_says_so_when_it_can_bring_a_shorter_peer_further() -> None:
    async def main() -> None:
        async with await writer_of(33) as writer, Hypercore("memory:", writer.key) as behind:
            wire = await link(writer, behind)
            await behind.update()
            await wire.cut()
            await writer.append([b"block %d" % index for index in range(33, 40)])
            async with Hypercore("memory:", writer.key) as sparse:
                await link(writer, sparse)
                await sparse.update()
                await link(sparse, behind)
                await behind.update()
                assert behind.length == 33, "a root of 33 blocks is not known to the copy of 40"
                assert await sparse.get(32) == b"block 32"
                await eventually(lambda: behind.length == 40)

    run(main())


def test_a_seek_that_no_peer_can_help_with_ends() -> None:
    async def main() -> None:
        async with reader_at_length(64) as (_, reader):
            stranger = await Stranger(reader).opened()
            await stranger.claim(3, acked=64)
            await eventually(lambda: reader.peers[0].remote.synced)
            with pytest.raises(BlockNotAvailableError):
                await asyncio.wait_for(reader.seek(100), 5.0)
            await stranger.close()

    run(main())


def test_a_seek_that_is_answered_with_nothing_ends() -> None:
    async def main() -> None:
        async with reader_at_length(64) as (_, reader):
            stranger = await Stranger(reader).opened()
            stranger.answer_with(lambda request: Data(request.id, Proof(0)))
            await stranger.claim(64, acked=64)
            await eventually(lambda: reader.peers[0].remote.synced)
            with pytest.raises(BlockNotAvailableError):
                await asyncio.wait_for(reader.seek(100), 5.0)
            assert len(requests_of(stranger)) == 1
            await stranger.close()

    run(main())


def test_a_get_does_not_wait_for_a_peer_that_lied_and_cannot_clear_itself() -> None:
    async def main() -> None:
        async with reader_at_length(64) as (writer, reader):
            stranger = await holder_of_everything(reader)
            waiting = asyncio.create_task(reader.get(9))
            await eventually(lambda: len(requests_of(stranger)) == 1)
            (request,) = requests_of(stranger)
            proof = await writer.hub.log.prove(request.proof)
            assert proof.block is not None
            await stranger.send(Data(request.id, proof._replace(block=proof.block._replace(value=b"a lie"))))
            for count in range(MOST_CONFLICT_CHECKS):
                await eventually(lambda count=count: len(requests_of(stranger)) == 2 + count)  # type: ignore[misc]
                assert requests_of(stranger)[-1].id == 0
                assert not waiting.done()
                await stranger.send(NoData(0, 1))
            with pytest.raises(BlockNotAvailableError):
                await asyncio.wait_for(waiting, 5.0)
            await stranger.close()

    run(main())


def test_a_peer_that_floods_requests_and_reads_no_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(peer_module, "SEND_AHEAD_BYTES", 64 * 1024)
        async with await writer_of(5) as writer:
            stranger = await Stranger(writer, buffer_is_read=False).opened()
            number = 0
            while not stranger.replication.is_closed:
                number += 1
                for _ in range(1000):
                    stranger.channel.send(Request(number, 0, ProofRequest(0, BlockRequest(1, 0))))
                    number += 1
                with contextlib.suppress(PeerClosedError):
                    await stranger.send()
            await stranger.replication.wait_closed()
            assert isinstance(stranger.replication.error, ProtocolError)
            await stranger.close()

    run(main())


def test_a_request_that_was_replaced_while_it_was_proved_is_not_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with await writer_of(5) as writer:
            stranger = await Stranger(writer).opened()
            proving, go_on = asyncio.Event(), asyncio.Event()
            prove = writer.hub.log.prove

            async def slowly(request: ProofRequest) -> Proof:
                proving.set()
                await go_on.wait()
                return await prove(request)

            monkeypatch.setattr(writer.hub.log, "prove", slowly)
            await stranger.send(Request(1, 0, ProofRequest(0, BlockRequest(0, 0))))
            await proving.wait()
            await stranger.send(
                Request(1, 0, ProofRequest(0, BlockRequest(4, 0))), Sync(0, 1, 0, True, True, True, True, False)
            )
            await eventually(lambda: writer.peers[0].remote.length == 1)
            go_on.set()
            await stranger.send(Request(2, 0, ProofRequest(0, BlockRequest(3, 0))))
            await eventually(lambda: len(stranger.received(Data)) >= 2)
            answers = [
                (data.request_id, data.proof.block.index)
                for data in stranger.inbox
                if isinstance(data, Data) and data.proof.block
            ]
            assert answers == [(1, 4), (2, 3)]
            await stranger.close()

    run(main())


def test_many_changes_at_once_are_told_truly_and_shortly() -> None:
    async def main() -> None:
        count = 6 * MOST_WAITING_RANGES
        async with await writer_of(count) as writer:
            stranger = await Stranger(writer).opened()
            await eventually(lambda: bool(stranger.received(Range)))
            for index in range(0, count, 3):
                await writer.clear(index)
            await writer.append("the last")

            def view() -> list[int]:
                known = RemotePeer()
                for message in stranger.inbox:
                    if isinstance(message, Range):
                        known.take_range(message.start, message.length, drop=message.drop)
                    elif isinstance(message, Bitfield):
                        known.take_bitfield(message.start, message.words)
                return [index for index in range(count + 1) if known.has(index)]

            await eventually(lambda: view() == [index for index in range(count + 1) if index % 3 or index == count])
            await stranger.close()

    run(main())


def test_update_ends_while_a_writer_goes_on_appending() -> None:
    async def main() -> None:
        async with await writer_of(5) as writer, Hypercore("memory:", writer.key) as reader:
            stranger = await Stranger(reader).opened()
            serving = asyncio.create_task(append_and_answer(stranger, writer))
            await stranger.claim(5)
            assert await asyncio.wait_for(reader.update(), 5.0)
            assert 5 <= reader.length < writer.length
            serving.cancel()
            await asyncio.wait([serving])
            await stranger.close()

    run(main())


async def append_and_answer(stranger: Stranger, writer: Hypercore) -> None:
    """A writer that is always one block longer than what it has just proved."""
    for number in itertools.count():
        await eventually(lambda number=number: len(requests_of(stranger)) > number)  # type: ignore[misc]
        request = requests_of(stranger)[number]
        proof = await writer.hub.log.prove(request.proof)
        known = writer.length
        await writer.append("more")
        await stranger.send(Sync(0, writer.length, known, True, True, True, True, False), Data(request.id, proof))


def test_update_ends_when_a_peer_claims_more_and_more_and_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(waiting, "SETTLING_SECONDS", 0.05)
        async with await writer_of(5) as writer, Hypercore("memory:", writer.key) as reader:
            stranger = await Stranger(reader).opened()
            await stranger.claim(5)
            updating = asyncio.create_task(reader.update())
            length = 5
            while not updating.done():
                length += 1
                await stranger.claim(length)
                await asyncio.sleep(0)
            assert await updating is False
            await stranger.close()

    run(main())


def test_a_seek_past_the_end_asks_whether_there_is_more_and_then_says_so() -> None:
    async def main() -> None:
        async with await writer_of(5) as writer, Hypercore("memory:", writer.key) as reader:
            await link(writer, reader)
            assert await reader.seek(20) == (2, 6)
            with pytest.raises(BlockIndexError):
                await asyncio.wait_for(reader.seek(1000), 5.0)

    run(main())


def test_what_was_held_back_does_not_wait_for_requests_that_it_does_not_need() -> None:
    async def main() -> None:
        async with reader_at_length(64) as (writer, reader):
            stranger = await holder_of_everything(reader)
            unrelated = asyncio.create_task(reader.get(50))
            await eventually(lambda: len(requests_of(stranger)) == 1)
            waiting = [asyncio.create_task(reader.get(index)) for index in (8, 9)]
            await eventually(lambda: len(requests_of(stranger)) == 3)
            _, base, above = requests_of(stranger)
            await stranger.send(Data(above.id, await writer.hub.log.prove(above.proof)), NoData(base.id, 1))
            await eventually(lambda: len(requests_of(stranger)) == 4)
            again = requests_of(stranger)[3]
            assert again.proof.block is not None
            assert again.proof.block.index == 9
            assert again.proof.block.nodes > 0
            for task in (unrelated, *waiting):
                task.cancel()
            await stranger.close()

    run(main())

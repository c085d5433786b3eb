"""Two or more cores of one process replicate: what a reader gets, and what it costs."""

from __future__ import annotations

import asyncio
import random
from typing import Literal

import pytest

from hypercore.core import Hypercore
from hypercore.crypto import KeyPair
from hypercore.errors import BlockIndexError, BlockNotAvailableError, ClosedError, ProofNotHeldError, WaitTimeoutError
from hypercore.events import Appended, Downloaded, PeerAdded, PeerRemoved, Truncated
from hypercore.peer import Peer
from hypercore.proofs import Proof, ProofRequest
from hypercore.protocol.messages import Range
from tests.replication.hostile import Stranger
from tests.replication.links import Link, eventually, link
from tests.running import run


async def writer_of(count: int, *, compat: bool = False, hash: Literal["blake2b", "blake3"] = "blake2b") -> Hypercore:  # noqa: A002
    core = Hypercore("memory:", compat=compat, hash=hash)
    await core.ready()
    await core.append([b"block %d" % index for index in range(count)])
    return core


@pytest.mark.parametrize("left_is_initiator", [True, False])
@pytest.mark.parametrize(("compat", "hash_name"), [(False, "blake2b"), (True, "blake2b"), (False, "blake3")])
def test_a_reader_clones_the_whole_log(
    left_is_initiator: bool, compat: bool, hash_name: Literal["blake2b", "blake3"]
) -> None:
    async def main() -> None:
        async with await writer_of(1000, compat=compat, hash=hash_name) as writer:
            async with Hypercore("memory:", writer.key) as reader:
                await link(writer, reader, left_is_initiator=left_is_initiator)
                assert await reader.update()
                assert reader.length == 1000
                await reader.download(0, 1000).done()
                assert [block async for block in reader.create_read_stream()] == [b"block %d" % i for i in range(1000)]
                assert await reader.tree_hash() == await writer.tree_hash()
                assert reader.contiguous_length == 1000
                if not compat:
                    assert reader.manifest == writer.manifest

    run(main())


def test_a_sparse_read_downloads_just_what_it_needs() -> None:
    async def main() -> None:
        async with await writer_of(1000) as writer, Hypercore("memory:", writer.key) as reader:
            await link(writer, reader)
            for index in (999, 3, 500, 501):
                assert await reader.get(index) == b"block %d" % index
            assert (await reader.info()).stored_blocks == 4
            assert reader.peers[0].blocks_received == 4

    run(main())


def test_blocks_arrive_live_with_their_length() -> None:
    async def main() -> None:
        async with await writer_of(3) as writer, Hypercore("memory:", writer.key) as reader:
            await link(writer, reader)
            stream = reader.create_read_stream(live=True)
            for index in range(3):
                assert await anext(stream) == b"block %d" % index
            for index in range(50):
                await writer.append(f"live {index}")
                assert await anext(stream) == b"live %d" % index
            await stream.aclose()  # type: ignore[attr-defined]

    run(main())


def test_random_order_with_many_in_flight_gives_every_block() -> None:
    async def main() -> None:
        async with await writer_of(600) as writer, Hypercore("memory:", writer.key) as reader:
            await link(writer, reader)
            order = list(range(600))
            random.Random(7).shuffle(order)
            blocks = await asyncio.gather(*(reader.get(index) for index in order))
            assert blocks == [b"block %d" % index for index in order]

    run(main())


@pytest.mark.parametrize("is_proven", [True, False])
@pytest.mark.parametrize("count", [0, 3])
def test_an_update_ends_when_the_peer_has_answered_whatever_that_was(
    count: int, is_proven: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with await writer_of(count) as writer, Hypercore("memory:", writer.key) as reader:
            asked, may_answer = asyncio.Event(), asyncio.Event()
            prove = writer.hub.log.prove

            async def prove_later(request: ProofRequest) -> Proof:
                asked.set()
                await may_answer.wait()
                if not is_proven:
                    raise ProofNotHeldError("nodes are missing")
                return await prove(request)

            monkeypatch.setattr(writer.hub.log, "prove", prove_later)
            await link(writer, reader)
            await asked.wait()
            update = asyncio.create_task(reader.update(timeout=5))
            await asyncio.sleep(0)
            may_answer.set()
            assert await update == (is_proven and count > 0)
            assert reader.manifest == (writer.manifest if is_proven else None)

    run(main())


def test_a_truncation_while_connected_is_followed() -> None:
    async def main() -> None:
        async with await writer_of(7) as writer, Hypercore("memory:", writer.key) as reader:
            await link(writer, reader)
            await reader.update()
            await reader.download(0, 7).done()
            await writer.truncate(5)
            await writer.append(["new 5", "new 6", "new 7"])
            await eventually(lambda: reader.fork == 1 and reader.length == 8)
            assert await reader.has(0, 5), "blocks that both forks share are kept"
            assert [await reader.get(index) for index in range(4, 8)] == [b"block 4", b"new 5", b"new 6", b"new 7"]

    run(main())


def test_a_fork_that_happened_offline_keeps_the_shared_blocks() -> None:
    async def main() -> None:
        async with await writer_of(100) as writer, Hypercore("memory:", writer.key) as reader:
            first = await link(writer, reader)
            await reader.update()
            await reader.download(0, 100).done()
            await first.cut()
            await writer.truncate(77)
            await writer.append([b"other %d" % index for index in range(77, 120)])
            await link(writer, reader)
            await eventually(lambda: reader.length == 120)
            assert await reader.has(0, 77)
            assert not await reader.has(77)
            await reader.download(0, 120).done()
            assert [block async for block in reader.create_read_stream()] == [
                block async for block in writer.create_read_stream()
            ]

    run(main())


@pytest.mark.parametrize("seed", range(40))
def test_a_mirror_follows_any_history_of_appends_and_truncations(seed: int) -> None:
    async def main() -> None:
        chance = random.Random(seed)
        async with await writer_of(5) as writer, Hypercore("memory:", writer.key) as reader:
            written = [b"block %d" % index for index in range(5)]
            await link(writer, reader)
            mirror = reader.download()
            for step in range(25):
                if written and step < 24 and chance.random() < 0.4:
                    del written[chance.randrange(len(written)) :]
                    await writer.truncate(len(written))
                else:
                    batch = [b"%d of step %d" % (number, step) for number in range(chance.randint(1, 9))]
                    written += batch
                    await writer.append(batch)
                for _ in range(chance.randrange(12)):
                    await asyncio.sleep(0)
            await eventually(lambda: (reader.fork, reader.length) == (writer.fork, writer.length))
            await eventually(lambda: reader.contiguous_length == writer.length)
            assert [block async for block in reader.create_read_stream()] == written
            assert await reader.tree_hash() == await writer.tree_hash()
            mirror.destroy()

    run(main())


def test_a_cut_connection_resumes_without_downloading_again() -> None:
    async def main() -> None:
        async with await writer_of(2000) as writer, Hypercore("memory:", writer.key) as reader:
            first = await link(writer, reader)
            await reader.update()
            download = reader.download(0, 2000)
            await eventually(lambda: download.progress.have > 100)
            await first.cut()
            with pytest.raises(BlockNotAvailableError):
                await download.done()
            have = (await reader.info()).stored_blocks
            assert have >= 100
            await link(writer, reader)
            await download.done()
            assert reader.peers[0].blocks_received == 2000 - have

    run(main())


def test_several_peers_share_the_work_and_a_reader_serves_readers() -> None:
    async def main() -> None:
        async with await writer_of(3000) as writer:
            async with (
                Hypercore("memory:", writer.key) as first,
                Hypercore("memory:", writer.key) as second,
                Hypercore("memory:", writer.key) as third,
            ):
                for reader in (first, second):
                    await link(writer, reader)
                    await reader.update()
                    await reader.download(0, 3000).done()
                await link(first, third)
                await link(second, third)
                await third.update()
                await third.download(0, 3000).done()
                received = [peer.blocks_received for peer in third.peers]
                assert sum(received) == 3000
                assert min(received) > 0
                assert await third.tree_hash() == await writer.tree_hash()

    run(main())


def test_cores_share_one_connection() -> None:
    async def main() -> None:
        async with await writer_of(5) as one, await writer_of(9) as two:
            async with Hypercore("memory:", one.key) as clone_one, Hypercore("memory:", two.key) as clone_two:
                wire = await link(one, clone_one)
                two.replicate(wire.left)
                clone_two.replicate(wire.right)
                assert await clone_two.get(8) == b"block 8"
                assert await clone_one.get(4) == b"block 4"
                assert clone_one.peers[0].session is clone_two.peers[0].session

    run(main())


def test_bytes_may_be_carried_by_hand() -> None:
    async def main() -> None:
        async with await writer_of(5) as writer, Hypercore("memory:", writer.key) as reader:
            left, right = writer.replicate(True), reader.replicate(initiator=False)

            async def carry(source: object, target: object) -> None:
                while data := await source.receive():  # type: ignore[attr-defined]
                    await target.send(data)  # type: ignore[attr-defined]

            carriers = [asyncio.create_task(carry(left, right)), asyncio.create_task(carry(right, left))]
            assert await reader.get(4) == b"block 4"
            for carrier in carriers:
                carrier.cancel()
            await asyncio.wait(carriers)

    run(main())


def test_extension_messages_reach_the_peer_that_knows_the_name() -> None:
    async def main() -> None:
        async with await writer_of(1) as writer, Hypercore("memory:", writer.key) as reader:
            got: list[tuple[bytes, Peer]] = []
            ours = writer.register_extension("chat")
            writer.register_extension("unknown-there").broadcast(b"nobody hears")
            reader.register_extension("chat", lambda payload, peer: got.append((payload, peer)))
            await link(writer, reader)
            await eventually(lambda: bool(writer.peers and reader.peers))
            for number in range(3):
                ours.broadcast(b"hello %d" % number)
            await eventually(lambda: len(got) == 3)
            assert [payload for payload, _ in got] == [b"hello 0", b"hello 1", b"hello 2"]
            assert got[0][1] is reader.peers[0]

    run(main())


def test_a_seek_asks_for_the_sizes_it_lacks() -> None:
    async def main() -> None:
        async with Hypercore("memory:") as writer:
            blocks = [bytes([index % 251]) * (index * 7 % 40) for index in range(300)]
            await writer.append(blocks)
            offsets = [sum(map(len, blocks[:index])) for index in range(301)]
            async with Hypercore("memory:", writer.key) as reader:
                await link(writer, reader)
                await reader.update()
                chance = random.Random(3)
                for _ in range(60):
                    at = chance.randrange(writer.byte_length)
                    index, inside = await reader.seek(at)
                    assert offsets[index] + inside == at
                    assert inside < len(blocks[index])
                assert await reader.seek(writer.byte_length) == (300, 0)
                assert (await reader.info()).stored_blocks == 0, "a seek downloads no blocks"
                piece = b"".join([part async for part in reader.create_byte_stream(byte_offset=1000, byte_length=777)])
                assert piece == b"".join(blocks)[1000:1777]

    run(main())


def test_the_largest_block_travels() -> None:
    async def main() -> None:
        block = random.Random(1).randbytes(15 * 1024 * 1024)
        async with Hypercore("memory:") as writer, Hypercore("memory:", writer.key) as reader:
            await writer.append([b"small", block])
            await link(writer, reader)
            assert await reader.get(1) == block

    run(main())


def test_cleared_blocks_are_announced_and_asked_of_others() -> None:
    async def main() -> None:
        async with await writer_of(50) as writer:
            async with Hypercore("memory:", writer.key) as full, Hypercore("memory:", writer.key) as reader:
                await link(writer, full)
                await full.update()
                await full.download(0, 50).done()
                await link(writer, reader)
                await writer.clear(10, 20)
                with pytest.raises(WaitTimeoutError):
                    await reader.get(15, timeout=0.05)
                await link(full, reader)
                assert await reader.get(15) == b"block 15"

    run(main())


def test_waiting_for_a_block_that_nobody_can_bring_ends_at_once() -> None:
    async def main() -> None:
        async with await writer_of(5) as writer, Hypercore("memory:", writer.key) as reader:
            with pytest.raises(BlockNotAvailableError, match="no peer is connected"):
                await reader.get(0)
            with pytest.raises(BlockIndexError):
                await writer.get(5)
            assert not await reader.update()
            wire = await link(writer, reader)
            await reader.update()
            await writer.clear(2)
            waiting = asyncio.create_task(reader.get(2))
            await eventually(lambda: bool(reader.peers and not reader.peers[0].remote.has(2)))
            await wire.cut()
            with pytest.raises(BlockNotAvailableError):
                await waiting
            with pytest.raises(BlockNotAvailableError):
                await reader.get(2, wait=False)

    run(main())


def test_a_search_under_way_holds_waiters_until_it_is_done() -> None:
    async def main() -> None:
        async with await writer_of(5) as writer, Hypercore("memory:", writer.key) as reader:
            done = reader.finding_peers()
            update = asyncio.create_task(reader.update())
            waiting = asyncio.create_task(reader.get(3))
            await asyncio.sleep(0)
            assert not update.done()
            Link(writer, reader)
            done()
            assert await update
            assert await waiting == b"block 3"
            other = reader.finding_peers()
            other()
            other()
            assert reader.hub.finding == 0

    run(main())


def test_a_timeout_is_a_timeout_error_and_says_what_was_waited_for() -> None:
    async def main() -> None:
        async with await writer_of(5) as writer, Hypercore("memory:", writer.key) as reader:
            await writer.clear(2)
            await link(writer, reader)
            with pytest.raises(TimeoutError, match="block 2 did not come"):
                await reader.get(2, timeout=0.01)
            assert not reader.hub.replicator.is_wanting

    run(main())


def test_closing_wakes_everybody_who_waits() -> None:
    async def main() -> None:
        async with await writer_of(5) as writer:
            reader = Hypercore("memory:", writer.key)
            await reader.ready()
            await link(writer, reader)
            waiting = [asyncio.create_task(reader.get(100 + index)) for index in range(3)]
            live = asyncio.ensure_future(anext(reader.create_read_stream(start=5, live=True)))
            await eventually(lambda: bool(reader.peers))
            await asyncio.sleep(0.01)
            await reader.close()
            for task in waiting:
                with pytest.raises(ClosedError):
                    await task
            with pytest.raises((StopAsyncIteration, ClosedError)):
                await live

    run(main())


def test_events_tell_what_happened() -> None:
    async def main() -> None:
        async with await writer_of(2) as writer, Hypercore("memory:", writer.key) as reader:
            events: list[object] = []

            async def listen() -> None:
                async for event in reader.events():
                    events.append(event)  # noqa: PERF401 - looked at while it grows

            listening = asyncio.create_task(listen())
            await asyncio.sleep(0)
            wire = await link(writer, reader)
            await reader.get(1)
            await writer.truncate(1)
            await eventually(lambda: reader.fork == 1)
            await wire.cut()
            await reader.close()
            await listening
            kinds = [type(event) for event in events]
            assert kinds[0] is PeerAdded
            assert kinds[-1] is PeerRemoved
            assert Appended(2, 14) in events
            assert Downloaded(1, 2) in events
            assert any(isinstance(event, Truncated) and event.fork == 1 for event in events)

    run(main())


def test_two_histories_under_one_key_stop_replication() -> None:
    async def main() -> None:
        pair = KeyPair.generate()
        async with Hypercore("memory:", key_pair=pair) as one, Hypercore("memory:", key_pair=pair) as two:
            assert one.key == two.key
            await one.append(["a", "b", "c"])
            await two.append(["a", "x", "c", "d"])
            async with Hypercore("memory:", one.key) as reader:
                await link(one, reader)
                await reader.update()
                assert await reader.get(1) == b"b"
                await link(two, reader)
                await eventually(lambda: reader.hub.frozen)
                assert not reader.peers
                assert reader.length == 3
                assert await reader.get(1) == b"b"
                assert any("two different histories" in warning for warning in (await reader.info()).warnings)

    run(main())


def test_a_log_without_gaps_is_announced_from_block_0_on_and_one_with_gaps_by_what_came() -> None:
    async def main() -> None:
        async with await writer_of(3) as writer:
            reader = await Stranger(writer).opened()
            await eventually(lambda: Range(False, 0, 3) in reader.inbox)
            reader.inbox.clear()
            for index in range(3, 6):
                await writer.append(f"block {index}")
            await eventually(lambda: Range(False, 0, 6) in reader.inbox)
            assert all(each.start == 0 for each in reader.inbox if isinstance(each, Range))
            await writer.clear(4)
            await writer.append(["block 6", "block 7"])
            await eventually(lambda: Range(False, 6, 2) in reader.inbox)
            await reader.close()

    run(main())

"""What the writer does while, and before, the reader is connected: it appends, truncates and clears, on either side."""

from __future__ import annotations

import asyncio
from functools import partial
from random import Random

import pytest

from hypercore.core import Hypercore
from hypercore.errors import WaitTimeoutError
from tests.interop.node_peer import NodePeerError
from tests.interop.stage import (
    FEW_SETTINGS,
    Stage,
    all_settings,
    blocks,
    clone_whole,
    contents,
    digest,
    few_settings,
    node_clones_whole,
)
from tests.replication.links import eventually, link

pytestmark = pytest.mark.interop

#: How long a block is waited for that must not come. Enough for an answer on loopback to have come.
HOPELESS_SECONDS = 0.15


@all_settings
def test_we_follow_node_live(stage: Stage) -> None:
    async def main() -> None:
        writer = await stage.node_writer(3)
        async with stage.core(writer.key) as reader:
            await stage.connect(reader)
            stream = reader.create_read_stream(live=True)
            assert [await anext(stream) for _ in range(3)] == blocks(0, 3, 20)
            for number in range(20):
                await writer.command("append", text=f"live {number}")
                assert await anext(stream) == b"live %d" % number
            await writer.command("append", count=200, size=20)
            assert [await anext(stream) for _ in range(200)] == blocks(23, 223, 20)
            await stream.aclose()  # type: ignore[attr-defined]

    stage.run(main())


@all_settings
def test_node_follows_us_live(stage: Stage) -> None:
    async def main() -> None:
        async with stage.core() as writer:
            await writer.append(blocks(0, 3, 20))
            reader = await stage.node_clone(writer.key)
            await stage.connect(writer)
            await reader.command("tail", start=0, count=223)

            async def next_block() -> bytes:
                return bytes.fromhex((await reader.event("block"))["hex"])

            assert [await next_block() for _ in range(3)] == blocks(0, 3, 20)
            for number in range(20):
                await writer.append(f"live {number}")
                assert await next_block() == b"live %d" % number
            await writer.append(blocks(23, 223, 20))
            assert [await next_block() for _ in range(200)] == blocks(23, 223, 20)

    stage.run(main())


@pytest.mark.parametrize("is_whole", [True, False], ids=["whole", "sparse"])
@all_settings
def test_we_follow_a_truncation_by_node(stage: Stage, is_whole: bool) -> None:
    async def main() -> None:
        writer = await stage.node_writer(20)
        async with stage.core(writer.key) as reader:
            await stage.connect(reader)
            if is_whole:
                await clone_whole(reader)
            else:
                assert await reader.get(17) == blocks(17, 18, 20)[0]
            await writer.command("truncate", length=13)
            await eventually(lambda: (reader.fork, reader.length) == (1, 13))
            await writer.command("append", blocks=[b"new 13".hex(), b"new 14".hex()])
            assert [await reader.get(index) for index in (14, 13)] == [b"new 14", b"new 13"]
            if is_whole:
                assert reader.contiguous_length == 15, "the blocks that both forks share are kept"
                assert reader.peers[0].blocks_received == 22
            await clone_whole(reader)
            assert await contents(reader) == [*blocks(0, 13, 20), b"new 13", b"new 14"]
            assert (await reader.tree_hash()).hex() == (await writer.command("info"))["treeHash"]

    stage.run(main())


@pytest.mark.parametrize("is_whole", [True, False], ids=["whole", "sparse"])
@all_settings
def test_node_follows_a_truncation_by_us(stage: Stage, is_whole: bool) -> None:
    async def main() -> None:
        async with stage.core() as writer:
            await writer.append(blocks(0, 20, 20))
            reader = await stage.node_clone(writer.key)
            await stage.connect(writer)
            await reader.command("wait", length=20)
            if is_whole:
                await reader.command("download")
            else:
                assert await reader.get(17) == blocks(17, 18, 20)[0]
            await writer.truncate(13)
            assert (await reader.command("wait", fork=1))["length"] == 13
            await writer.append([b"new 13", b"new 14"])
            assert [await reader.get(index) for index in (14, 13)] == [b"new 14", b"new 13"]
            if is_whole:
                assert await reader.stored() == 15, "the blocks that both forks share are kept"
                assert writer.peers[0].blocks_sent == 22
            expected = [*blocks(0, 13, 20), b"new 13", b"new 14"]
            assert await node_clones_whole(reader, 15) == digest(expected)
            assert (await reader.command("info"))["treeHash"] == (await writer.tree_hash()).hex()

    stage.run(main())


def is_whole_and_idle(reader: Hypercore, length: int) -> bool:
    return reader.contiguous_length == length and not any(peer.remote.asks for peer in reader.peers)


@few_settings
def test_we_follow_a_history_of_appends_and_truncations_of_nodes(stage: Stage) -> None:
    async def main() -> None:
        seed = f"theirs {stage.setting}"
        chance = Random(seed)
        writer = await stage.node_writer(5)
        async with stage.core(writer.key) as reader:
            await stage.connect(reader)
            download = reader.download()
            written = blocks(0, 5, 20)
            for step in range(25):
                if written and step < 24 and chance.random() < 0.4:
                    # Whoever asks Node while it truncates may get an answer out of both trees: hypercore 10 keeps
                    # serving tree nodes of the old fork, 11 breaks the connection off.
                    await eventually(partial(is_whole_and_idle, reader, len(written)))
                    del written[chance.randrange(len(written)) :]
                    await writer.command("truncate", length=len(written))
                else:
                    batch = [b"%d of step %d" % (number, step) for number in range(chance.randint(1, 9))]
                    written += batch
                    await writer.command("append", blocks=[block.hex() for block in batch])
            info = await writer.command("info")
            await eventually(lambda: (reader.fork, reader.length) == (info["fork"], info["length"]))
            await eventually(lambda: reader.contiguous_length == len(written))
            assert await contents(reader) == written, seed
            assert (await reader.tree_hash()).hex() == info["treeHash"], seed
            download.destroy()

    stage.run(main())


@pytest.mark.parametrize("setting", [setting for setting in FEW_SETTINGS if setting.major == 11], ids=str)
def test_a_mirror_that_node_11_cuts_off_for_asking_during_a_truncation_gets_there_by_coming_back(stage: Stage) -> None:
    async def main() -> None:
        stage.complaints_expected = True
        seed = f"unpaced {stage.setting}"
        chance = Random(seed)
        writer = await stage.node_writer(5)
        async with stage.core(writer.key) as reader:

            async def stay_connected() -> None:
                while True:
                    await (await stage.connect(reader)).wait_closed()

            connecting = asyncio.create_task(stay_connected())
            mirror = reader.download()
            written = blocks(0, 5, 20)
            for step in range(25):
                if written and step < 24 and chance.random() < 0.4:
                    del written[chance.randrange(len(written)) :]
                    await writer.command("truncate", length=len(written))
                else:
                    batch = [b"%d of step %d" % (number, step) for number in range(chance.randint(1, 9))]
                    written += batch
                    await writer.command("append", blocks=[block.hex() for block in batch])
            info = await writer.command("info")
            await eventually(lambda: (reader.fork, reader.contiguous_length) == (info["fork"], info["length"]))
            assert await contents(reader) == written, seed
            connecting.cancel()
            await asyncio.wait([connecting])
            mirror.destroy()

    stage.run(main())


@few_settings
def test_node_follows_a_history_of_appends_and_truncations_of_ours(stage: Stage) -> None:
    async def main() -> None:
        seed = f"ours {stage.setting}"
        chance = Random(seed)
        async with stage.core() as writer:
            written = blocks(0, 5, 20)
            await writer.append(written)
            reader = await stage.node_clone(writer.key)
            await stage.connect(writer)
            for step in range(25):
                if written and step < 24 and chance.random() < 0.4:
                    del written[chance.randrange(len(written)) :]
                    await writer.truncate(len(written))
                else:
                    batch = [b"%d of step %d" % (number, step) for number in range(chance.randint(1, 9))]
                    written += batch
                    await writer.append(batch)
                if written and chance.random() < 0.3:  # Nothing proves a log of no blocks, so it is not followed.
                    await reader.command("wait", fork=writer.fork, length=writer.length)
                    await reader.get(chance.randrange(len(written)))
            await reader.command("wait", fork=writer.fork, length=len(written))
            assert await node_clones_whole(reader, len(written)) == digest(written), seed
            assert (await reader.command("info"))["treeHash"] == (await writer.tree_hash()).hex(), seed

    stage.run(main())


@few_settings
def test_we_keep_what_a_fork_of_nodes_that_happened_offline_left_alone(stage: Stage) -> None:
    async def main() -> None:
        writer = await stage.node_writer(100)
        async with stage.core(writer.key) as reader:
            first = await stage.connect(reader)
            await clone_whole(reader)
            await first.aclose()
            await writer.command("truncate", length=77)
            other = [b"other %d" % index for index in range(77, 120)]
            await writer.command("append", blocks=[block.hex() for block in other])
            await stage.connect(reader)
            assert await reader.update()
            assert (reader.fork, reader.length) == (1, 120)
            assert await reader.has(0, 77)
            assert not await reader.has(77)
            await clone_whole(reader)
            assert reader.peers[0].blocks_received == 43
            assert await contents(reader) == blocks(0, 77, 20) + other
            assert (await reader.tree_hash()).hex() == (await writer.command("info"))["treeHash"]

    stage.run(main())


@few_settings
def test_node_keeps_what_a_fork_of_ours_that_happened_offline_left_alone(stage: Stage) -> None:
    async def main() -> None:
        async with stage.core() as writer:
            await writer.append(blocks(0, 100, 20))
            reader = await stage.node_clone(writer.key)
            first = await stage.connect(writer)
            await node_clones_whole(reader, 100)
            await first.aclose()
            await writer.truncate(77)
            other = [b"other %d" % index for index in range(77, 120)]
            await writer.append(other)
            await stage.connect(writer)
            await reader.command("wait", fork=1, length=120)
            assert (await reader.command("held", end=100))["count"] == 77
            assert await node_clones_whole(reader, 120) == digest(blocks(0, 77, 20) + other)
            assert writer.peers[0].blocks_sent == 43
            assert (await reader.command("info"))["treeHash"] == (await writer.tree_hash()).hex()

    stage.run(main())


@few_settings
def test_we_learn_that_node_cleared_blocks_and_may_clear_and_fetch_our_own(stage: Stage) -> None:
    async def main() -> None:
        writer = await stage.node_writer(50)
        async with stage.core(writer.key) as reader:
            await stage.connect(reader)
            assert await reader.get(0) == blocks(0, 1, 20)[0]
            await writer.command("clear", start=10, end=20)
            await eventually(lambda: not reader.peers[0].remote.has(15))
            with pytest.raises(WaitTimeoutError):
                await reader.get(15, timeout=HOPELESS_SECONDS)
            rest = [*range(10), *range(20, 50)]
            await reader.download(blocks=rest).done()
            assert [await reader.get(index) for index in rest] == blocks(0, 10, 20) + blocks(20, 50, 20)
            await reader.clear(30, 40)
            assert not await reader.has(35)
            assert [await reader.get(index) for index in range(30, 40)] == blocks(30, 40, 20)
            await writer.command("append", text="after the gap")
            assert await reader.get(50) == b"after the gap"

    stage.run(main())


@few_settings
def test_node_learns_that_we_cleared_blocks_and_may_clear_and_fetch_its_own(stage: Stage) -> None:
    async def main() -> None:
        async with stage.core() as writer:
            await writer.append(blocks(0, 50, 20))
            reader = await stage.node_clone(writer.key)
            await stage.connect(writer)
            await reader.command("wait", length=50)
            assert await reader.get(0) == blocks(0, 1, 20)[0]
            await writer.clear(10, 20)
            with pytest.raises(NodePeerError, match="get"):
                await reader.command("get", index=15, timeout=1000 * HOPELESS_SECONDS)
            rest = [*range(10), *range(20, 50)]
            got = await asyncio.gather(*(reader.get(index) for index in rest))
            assert got == blocks(0, 10, 20) + blocks(20, 50, 20)
            await reader.command("clear", start=30, end=40)
            assert not (await reader.command("has", start=35))["has"]
            got = await asyncio.gather(*(reader.get(index) for index in range(30, 40)))
            assert got == blocks(30, 40, 20)
            await writer.append("after the gap")
            await reader.command("wait", length=51)
            assert await reader.get(50) == b"after the gap"

    stage.run(main())


@few_settings
def test_a_sparse_copy_of_nodes_serves_us_what_it_has_and_later_what_it_gets(stage: Stage) -> None:
    async def main() -> None:
        chance = Random(str(stage.setting))
        async with stage.core() as writer:
            await writer.append(blocks(0, 3000, 20))
            middle = await stage.node_clone(writer.key)
            source = await stage.connect(writer)
            await middle.command("wait", length=3000)
            held = sorted(chance.sample(range(3000), 30))
            await asyncio.gather(*(middle.get(index) for index in held))
            await source.aclose()
            async with stage.core(writer.key) as reader:
                await stage.connect(reader)
                got = await asyncio.gather(*(reader.get(index) for index in held))
                assert got == [blocks(index, index + 1, 20)[0] for index in held]
                missing = next(index for index in range(3000) if index not in held)
                with pytest.raises(WaitTimeoutError):
                    await reader.get(missing, timeout=HOPELESS_SECONDS)
                waiting = asyncio.create_task(reader.get(missing))
                await stage.connect(writer)
                assert await middle.get(missing) == blocks(missing, missing + 1, 20)[0]
                assert await waiting == blocks(missing, missing + 1, 20)[0]
                assert (await reader.info()).stored_blocks == 31

    stage.run(main())


@few_settings
def test_a_sparse_copy_of_ours_serves_node_what_it_has_and_later_what_it_gets(stage: Stage) -> None:
    async def main() -> None:
        chance = Random(str(stage.setting))
        async with stage.core() as writer, Hypercore("memory:", writer.key) as middle:
            await writer.append(blocks(0, 3000, 20))
            source = await link(writer, middle)
            held = sorted(chance.sample(range(3000), 30))
            await asyncio.gather(*(middle.get(index) for index in held))
            await source.cut()
            reader = await stage.node_clone(writer.key)
            await stage.connect(middle)
            await reader.command("wait", length=3000)
            got = await asyncio.gather(*(reader.get(index) for index in held))
            assert got == [blocks(index, index + 1, 20)[0] for index in held]
            missing = next(index for index in range(3000) if index not in held)
            with pytest.raises(NodePeerError, match="get"):
                await reader.command("get", index=missing, timeout=1000 * HOPELESS_SECONDS)
            waiting = asyncio.create_task(reader.get(missing))
            await link(writer, middle)
            assert await middle.get(missing) == blocks(missing, missing + 1, 20)[0]
            assert await waiting == blocks(missing, missing + 1, 20)[0]
            assert await reader.stored() == 31

    stage.run(main())

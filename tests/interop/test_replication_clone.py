"""A core is cloned, whole or in parts, by us from Node's hypercore and by Node from us."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from hypercore.testing import FlakyStream
from tests.interop.stage import (
    Stage,
    all_settings,
    blocks,
    clone_whole,
    contents,
    digest,
    few_settings,
    node_clones_whole,
)

pytestmark = pytest.mark.interop

LARGEST_BLOCK_SIZE = 15 * 1024 * 1024


@all_settings
def test_we_clone_what_node_wrote(stage: Stage) -> None:
    async def main() -> None:
        writer = await stage.node_writer(300, 100)
        async with stage.core(writer.key) as reader:
            await stage.connect(reader)
            await clone_whole(reader)
            assert await contents(reader) == blocks(0, 300, 100)
            written = await writer.command("info")
            assert (await reader.tree_hash()).hex() == written["treeHash"]
            assert (reader.byte_length, reader.contiguous_length, reader.fork) == (30000, 300, 0)
            assert reader.peers[0].blocks_received == 300
            assert not reader.writable

    stage.run(main())


@all_settings
def test_node_clones_what_we_wrote(stage: Stage) -> None:
    async def main() -> None:
        async with stage.core() as writer:
            await writer.append(blocks(0, 300, 100))
            reader = await stage.node_clone(writer.key)
            await stage.connect(writer)
            assert await node_clones_whole(reader, 300) == digest(blocks(0, 300, 100))
            read = await reader.command("info")
            assert read["treeHash"] == (await writer.tree_hash()).hex()
            assert (read["byteLength"], read["contiguousLength"], read["fork"]) == (30000, 300, 0)
            assert writer.peers[0].blocks_sent == 300
            assert not read["writable"]

    stage.run(main())


@few_settings
def test_we_read_here_and_there_and_download_just_that(stage: Stage) -> None:
    async def main() -> None:
        writer = await stage.node_writer(1000, 30)
        chance = Random(str(stage.setting))
        async with stage.core(writer.key) as reader:
            await stage.connect(reader)
            chosen = chance.sample(range(1000), 40)
            for index in chosen[:20]:
                assert await reader.get(index) == blocks(index, index + 1, 30)[0], f"block {index}"
            together = await asyncio.gather(*(reader.get(index) for index in chosen[20:]))
            assert together == [blocks(index, index + 1, 30)[0] for index in chosen[20:]], chosen
            assert (await reader.info()).stored_blocks == 40
            assert reader.peers[0].blocks_received == 40

    stage.run(main())


@few_settings
def test_node_reads_here_and_there_and_downloads_just_that(stage: Stage) -> None:
    async def main() -> None:
        chance = Random(str(stage.setting))
        async with stage.core() as writer:
            await writer.append(blocks(0, 1000, 30))
            reader = await stage.node_clone(writer.key)
            await stage.connect(writer)
            chosen = chance.sample(range(1000), 40)
            await reader.command("wait", length=1000)
            for index in chosen[:20]:
                assert await reader.get(index) == blocks(index, index + 1, 30)[0], f"block {index}"
            together = await asyncio.gather(*(reader.get(index) for index in chosen[20:]))
            assert together == [blocks(index, index + 1, 30)[0] for index in chosen[20:]], chosen
            assert await reader.stored() == 40
            assert writer.peers[0].blocks_sent == 40

    stage.run(main())


@few_settings
def test_we_read_all_in_random_order_with_all_in_flight(stage: Stage) -> None:
    async def main() -> None:
        writer = await stage.node_writer(1500, 30)
        order = list(range(1500))
        Random(5).shuffle(order)
        async with stage.core(writer.key) as reader:
            await stage.connect(reader)
            got = await asyncio.gather(*(reader.get(index) for index in order))
            assert got == [blocks(index, index + 1, 30)[0] for index in order]
            assert reader.peers[0].blocks_received == 1500

    stage.run(main())


@few_settings
def test_node_reads_all_in_random_order_with_all_in_flight(stage: Stage) -> None:
    async def main() -> None:
        order = list(range(600))
        Random(6).shuffle(order)
        async with stage.core() as writer:
            await writer.append(blocks(0, 600, 30))
            reader = await stage.node_clone(writer.key)
            await stage.connect(writer)
            await reader.command("wait", length=600)
            got = await asyncio.gather(*(reader.get(index) for index in order))
            assert got == [blocks(index, index + 1, 30)[0] for index in order]

    stage.run(main())


@few_settings
def test_we_read_blocks_of_15_mib(stage: Stage) -> None:
    async def main() -> None:
        writer = await stage.node_writer(2, LARGEST_BLOCK_SIZE)
        async with stage.core(writer.key) as reader:
            await stage.connect(reader)
            for index in (1, 0):
                assert await reader.get(index) == blocks(index, index + 1, LARGEST_BLOCK_SIZE)[0]

    stage.run(main())


@few_settings
def test_node_reads_blocks_of_15_mib(stage: Stage) -> None:
    async def main() -> None:
        large = blocks(0, 2, LARGEST_BLOCK_SIZE)
        async with stage.core() as writer:
            await writer.append(large)
            reader = await stage.node_clone(writer.key)
            await stage.connect(writer)
            assert await node_clones_whole(reader, 2) == digest(large)

    stage.run(main())


#: Where empty blocks might vanish: first, last, in a row, alone in a batch.
WITH_EMPTY_BLOCKS = [b"", b"a", b"", b"", b"", b"bc", b"", b"d", b""]


@few_settings
def test_we_read_empty_blocks_of_node(stage: Stage) -> None:
    async def main() -> None:
        writer = await stage.node_writer()
        await writer.command("append", blocks=[block.hex() for block in WITH_EMPTY_BLOCKS])
        async with stage.core(writer.key) as reader:
            await stage.connect(reader)
            assert await reader.get(8) == b""
            await clone_whole(reader)
            assert await contents(reader) == WITH_EMPTY_BLOCKS
            await writer.command("append", hex="")
            assert await reader.get(9) == b""
            assert (reader.byte_length, reader.contiguous_length) == (4, 10)

    stage.run(main())


@few_settings
def test_node_reads_empty_blocks_of_ours(stage: Stage) -> None:
    async def main() -> None:
        async with stage.core() as writer:
            await writer.append(WITH_EMPTY_BLOCKS)
            reader = await stage.node_clone(writer.key)
            await stage.connect(writer)
            await reader.command("wait", length=9)
            assert [await reader.get(index) for index in (8, *range(8))] == [b"", *WITH_EMPTY_BLOCKS[:8]]
            await writer.append(b"")
            await reader.command("wait", length=10)
            assert await reader.get(9) == b""
            read = await reader.command("info")
            assert (read["byteLength"], read["contiguousLength"]) == (4, 10)

    stage.run(main())


def uneven_blocks(chance: Random) -> list[bytes]:
    """Also empty ones."""
    return [chance.randbytes(chance.choice((0, 1, 7, 30, 300))) for _ in range(200)]


@few_settings
def test_we_seek_in_a_core_of_nodes_of_which_we_have_no_block(stage: Stage) -> None:
    async def main() -> None:
        chance = Random(str(stage.setting))
        written = uneven_blocks(chance)
        starts = [sum(map(len, written[:index])) for index in range(201)]
        writer = await stage.node_writer()
        await writer.command("append", blocks=[block.hex() for block in written])
        async with stage.core(writer.key) as reader:
            await stage.connect(reader)
            await reader.update()
            for at in [0, starts[-1] - 1, *(chance.randrange(starts[-1]) for _ in range(25))]:
                index, offset = await reader.seek(at)
                asked = await writer.command("seek", offset=at)
                assert (index, offset) == (asked["index"], asked["offset"]), f"byte offset {at}"
                assert starts[index] + offset == at
            assert (await reader.info()).stored_blocks == 0

    stage.run(main())


@few_settings
def test_node_seeks_in_a_core_of_ours_of_which_it_has_no_block(stage: Stage) -> None:
    async def main() -> None:
        chance = Random(str(stage.setting))
        written = uneven_blocks(chance)
        size = sum(map(len, written))
        async with stage.core() as writer:
            await writer.append(written)
            reader = await stage.node_clone(writer.key)
            await stage.connect(writer)
            await reader.command("wait", length=200)
            for at in [0, size - 1, *(chance.randrange(size) for _ in range(25))]:
                asked = await reader.command("seek", offset=at)
                assert (asked["index"], asked["offset"]) == await writer.seek(at), f"byte offset {at}"
            assert await reader.stored() == 0

    stage.run(main())


@few_settings
def test_we_clone_over_a_connection_that_gives_a_few_bytes_at_a_time(stage: Stage) -> None:
    async def main() -> None:
        writer = await stage.node_writer(40, 60)
        async with stage.core(writer.key) as reader:
            await stage.connect(reader, wrap=lambda stream: FlakyStream(stream, seed=stage.major, chop_size=3))
            await clone_whole(reader)
            assert await contents(reader) == blocks(0, 40, 60)

    stage.run(main())


@few_settings
def test_node_clones_over_a_connection_that_gives_a_few_bytes_at_a_time(stage: Stage) -> None:
    async def main() -> None:
        async with stage.core() as writer:
            await writer.append(blocks(0, 40, 60))
            reader = await stage.node_clone(writer.key)
            await stage.connect(writer, wrap=lambda stream: FlakyStream(stream, seed=stage.major, chop_size=3))
            assert await node_clones_whole(reader, 40) == digest(blocks(0, 40, 60))

    stage.run(main())


@few_settings
def test_a_core_that_is_still_empty_is_cloned_and_then_grows(stage: Stage) -> None:
    async def main() -> None:
        writer = await stage.node_writer()
        async with stage.core() as ours, stage.core(writer.key) as reader:
            node_reader = await stage.node_clone(ours.key)
            await stage.connect(ours, reader)
            assert not await reader.update()
            await node_reader.command("wait", peers=1)
            await writer.command("append", text="theirs")
            await ours.append("ours")
            assert await reader.get(0) == b"theirs"
            await node_reader.command("wait", length=1)
            assert await node_reader.get(0) == b"ours"

    stage.run(main())

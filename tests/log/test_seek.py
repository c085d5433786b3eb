"""Seeking a byte offset, in a tree that is whole and in one that is not."""

from __future__ import annotations

import random

import pytest

from hypercore.errors import ProofNotHeldError
from hypercore.log import flat_tree
from hypercore.log.seek import Found, InDoubt, byte_offset, seek
from hypercore.proofs import HashRequest, Node, ProofRequest, SeekRequest, UpgradeRequest
from tests.log.trees import Nodes, Reader, Writer, reader_of
from tests.running import run


def random_writer(rng: random.Random, *, padding: int) -> Writer:
    sizes = [rng.choice((0, 1, rng.randrange(30))) + padding for _ in range(rng.randrange(1, 60))]
    return Writer([rng.randbytes(size) for size in sizes])


@pytest.mark.parametrize("padding", [0, 8])
def test_every_byte_of_a_whole_tree_is_found(padding: int) -> None:
    async def search() -> None:
        seed = 11
        rng = random.Random(seed)
        for _ in range(20):
            writer = random_writer(rng, padding=padding)
            length = len(writer.blocks)
            starts = [sum(len(block) - padding for block in writer.blocks[:index]) for index in range(length + 1)]
            for offset in range(starts[-1] + 1):
                found = await seek(writer.tree, writer.roots(length), length, offset, padding)
                assert isinstance(found, Found), seed
                assert starts[found.index] + found.offset == offset, seed
                if found.index < length and found.offset:
                    assert offset < starts[found.index + 1], seed

    run(search())


def test_past_the_known_bytes_only_an_upgrade_can_tell() -> None:
    writer = Writer([b"abc", b"de"])
    assert run(seek(writer.tree, writer.roots(2), 2, 5)) == Found(2, 0)
    assert run(seek(writer.tree, writer.roots(2), 2, 6)) == InDoubt(SeekRequest(6), None)
    assert run(seek(Nodes(), [], 0, 3, 8)) == InDoubt(SeekRequest(3, 8), None)
    assert run(seek(Nodes(), [], 0, 0)) == Found(0, 0)


def test_where_the_tree_is_not_known_the_subtree_in_doubt_is_named() -> None:
    writer = Writer([bytes(size) for size in (8, 9, 10, 11, 12, 13, 14)])
    reader = run(reader_of(writer, 7))
    assert run(seek(reader.tree, reader.roots, 7, 30)) == InDoubt(SeekRequest(30), HashRequest(0, 2))
    assert run(seek(reader.tree, reader.roots, 7, 38)) == Found(4, 0)


async def seek_through(reader: Reader, writer: Writer, offset: int, padding: int) -> tuple[Found, int]:
    """Ask the writer until the offset is found, as a reader does; with the count of requests that it took."""
    for requests in range(3):
        found = await seek(reader.tree, reader.roots, reader.length, offset, padding)
        if isinstance(found, Found):
            return found, requests
        if found.hash is None:
            upgrade = UpgradeRequest(reader.length, len(writer.blocks) - reader.length)
            request = ProofRequest(0, seek=found.seek, upgrade=upgrade, manifest=True)
        else:
            request = ProofRequest(0, hash=found.hash, seek=found.seek)
        await reader.apply(await writer.answer(request))
    raise AssertionError("three requests did not find the offset")


@pytest.mark.parametrize("padding", [0, 8])
def test_a_sparse_reader_finds_any_byte_with_two_requests_at_most(padding: int) -> None:
    async def search() -> None:
        seed = 12
        rng = random.Random(seed)
        for _ in range(60):
            writer = random_writer(rng, padding=padding)
            length = len(writer.blocks)
            starts = [sum(len(block) - padding for block in writer.blocks[:index]) for index in range(length + 1)]
            reader = await reader_of(writer, rng.randrange(length))
            for _ in range(5):
                offset = rng.randrange(starts[-1] + 1)
                found, _ = await seek_through(reader, writer, offset, padding)
                assert starts[found.index] + found.offset == offset, seed

    run(search())


def test_the_byte_offset_of_every_node_takes_one_look_up_at_most() -> None:
    async def measure() -> None:
        writer = random_writer(random.Random(13), padding=0)
        length = len(writer.blocks)
        for index in range(2 * length):
            writer.tree.lookups = 0
            before = sum(map(len, writer.blocks[: flat_tree.left_span(index) // 2]))
            if index in writer.tree or index == 2 * length:
                assert await byte_offset(writer.tree, writer.roots(length), index) == before
                assert writer.tree.lookups <= 1
        assert await byte_offset(writer.tree, writer.roots(length), 2 * length) == sum(map(len, writer.blocks))

    run(measure())


def test_a_byte_offset_that_is_not_known_is_an_error_not_a_guess() -> None:
    reader = run(reader_of(Writer([b"a"] * 8), 8))
    with pytest.raises(ProofNotHeldError):
        run(byte_offset(reader.tree, reader.roots, 6))


def test_forged_sizes_cannot_make_a_seek_endless() -> None:
    async def search() -> None:
        seed = 14
        rng = random.Random(seed)
        for _ in range(200):
            depth = rng.randrange(1, 12)
            root = flat_tree.node_index(depth, 0)
            tree = Nodes((i, Node(i, rng.randrange(50), bytes(32))) for i in range(2 ** (depth + 1) - 1))
            await seek(tree, [tree[root]], 2**depth, rng.randrange(60), rng.choice((0, 8)))
            assert tree.lookups <= depth, seed

    run(search())

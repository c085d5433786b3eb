"""Hashes of nodes and trees, and how trees grow."""

from __future__ import annotations

import random

import pytest

from hypercore.crypto import BLAKE2B, BLAKE3, TreeHash
from hypercore.log import flat_tree
from hypercore.log.merkle import append_blocks, byte_length, grow
from hypercore.proofs import Node
from tests.log.trees import node_of, vectors

MERKLE = vectors("merkle")
BLOCKS = [bytes.fromhex(block) for block in MERKLE["blocks"]]


def test_every_node_is_hashed_as_node_does() -> None:
    _, created = append_blocks([], 0, BLOCKS, BLAKE2B)
    assert sorted(created) == [node_of(node) for node in MERKLE["nodes"]]


def test_every_tree_has_the_recorded_roots_and_hash() -> None:
    for tree in MERKLE["trees"]:
        roots, _ = append_blocks([], 0, BLOCKS[: tree["length"]], BLAKE2B)
        assert roots == [node_of(root) for root in tree["roots"]]
        assert byte_length(roots) == tree["byteLength"]
        assert BLAKE2B.tree(roots).hex() == tree["treeHash"]


@pytest.mark.parametrize("tree_hash", [BLAKE2B, BLAKE3], ids=["blake2b", "blake3"])
def test_a_tree_does_not_depend_on_the_batches_that_it_was_appended_in(tree_hash: TreeHash) -> None:
    seed = 7
    rng = random.Random(seed)
    blocks = [rng.randbytes(rng.randrange(20)) for _ in range(100)]
    whole, all_nodes = append_blocks([], 0, blocks, tree_hash)
    roots: list[Node] = []
    nodes: list[Node] = []
    length = 0
    while length < len(blocks):
        batch = blocks[length : length + rng.randrange(1, 9)]
        roots, created = append_blocks(roots, length, batch, tree_hash)
        nodes += created
        length += len(batch)
        assert [root.index for root in roots] == flat_tree.full_roots(length), seed
    assert roots == whole, seed
    assert nodes == all_nodes, seed


def test_a_tree_grows_by_nodes_to_the_same_roots_as_by_blocks() -> None:
    _, created = append_blocks([], 0, [b"%d" % number for number in range(40)], BLAKE2B)
    nodes = {node.index: node for node in created}
    for start in range(40):
        for end in range(start, 41):
            before = [nodes[index] for index in flat_tree.full_roots(start)]
            needed = {index: nodes[index] for index in flat_tree.growth(start, end)}
            assert grow(before, start, end, needed, BLAKE2B) == [nodes[index] for index in flat_tree.full_roots(end)]


def test_a_tree_does_not_grow_when_a_node_lacks() -> None:
    _, created = append_blocks([], 0, BLOCKS[:7], BLAKE2B)
    nodes = {node.index: node for node in created}
    assert grow([nodes[3]], 4, 7, {9: nodes[9]}, BLAKE2B) is None

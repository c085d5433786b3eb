"""Growing a Merkle tree: from roots and new blocks or nodes to new roots (disk spec, section 6.4).

Pure. Knows nodes and hashes, not where they are stored or who signs them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from hypercore.crypto import TreeHash
from hypercore.log import flat_tree
from hypercore.proofs import Node


class NodeSource(Protocol):
    """Where the nodes of one tree are looked up, many at once so that a far storage can pipeline."""

    async def nodes(self, indexes: Sequence[int]) -> Sequence[Node | None]:
        """The node of each index, in the same order; None where it is not stored."""


def parent_node(left: Node, right: Node, tree_hash: TreeHash) -> Node:
    """The parent of two siblings, `left` being the one with the smaller index."""
    size = left.size + right.size
    return Node((left.index + right.index) >> 1, size, tree_hash.parent(size, left.hash, right.hash))


def append_blocks(
    roots: Sequence[Node], length: int, blocks: Iterable[bytes], tree_hash: TreeHash
) -> tuple[list[Node], list[Node]]:
    """The roots after appending `blocks` to a tree of `length` blocks, and the nodes made, in creation order."""
    hash_leaf, hash_parent = tree_hash.leaf, tree_hash.parent
    new_roots = list(roots)
    created: list[Node] = []
    for block in blocks:
        node = Node(2 * length, len(block), hash_leaf(block))
        created.append(node)
        length += 1
        # As many roots merge as the new length has trailing zero bits.
        count = length
        while not count & 1:
            left = new_roots.pop()
            size = left.size + node.size
            node = Node((left.index + node.index) >> 1, size, hash_parent(size, left.hash, node.hash))
            created.append(node)
            count >>= 1
        new_roots.append(node)
    return new_roots, created


def byte_length(roots: Iterable[Node]) -> int:
    """Bytes of all blocks below the roots."""
    return sum(root.size for root in roots)


def push_root(roots: list[Node], node: Node, tree_hash: TreeHash) -> list[Node]:
    """Put `node` behind the last root, and merge siblings until none are left. Gives the parents made, lowest first."""
    made = []
    while roots and flat_tree.sibling(node.index) == roots[-1].index:
        node = parent_node(roots.pop(), node, tree_hash)
        made.append(node)
    roots.append(node)
    return made


def grow(
    roots: Sequence[Node], length: int, new_length: int, nodes: Mapping[int, Node], tree_hash: TreeHash
) -> list[Node] | None:
    """The roots of a tree of `length` blocks grown to `new_length` with nodes given by index; None if one lacks."""
    grown = list(roots)
    for index in flat_tree.growth(length, new_length):
        node = nodes.get(index)
        if node is None:
            return None
        push_root(grown, node, tree_hash)
    return grown

"""Growing a Merkle tree: from roots and new blocks to new roots and new nodes (disk spec, section 6.4).

Pure. Knows nodes and hashes, not where they are stored or who signs them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hypercore.crypto import TreeHash
from hypercore.proofs import Node


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

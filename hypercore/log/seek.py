"""Finding byte offsets in a tree, and the byte offset of a node (wire spec, 5.6; disk spec, 6.3).

Pure. Sizes of nodes whose blocks were never seen may be forged by a peer (wire spec, 6.9). They can lead a seek to a
wrong block, never to an endless one; whoever gets the block and finds it shorter than the offset seeks again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hypercore.errors import ProofNotHeldError
from hypercore.log import flat_tree
from hypercore.log.merkle import NodeSource
from hypercore.proofs import HashRequest, Node, SeekRequest


class Found(NamedTuple):
    """The byte is `offset` bytes into block `index` (its padding not counted)."""

    index: int  # type: ignore[assignment]
    offset: int


class InDoubt(NamedTuple):
    """The tree that is known does not tell: ask a peer for `seek` together with `hash`.

    Without `hash` the known bytes do not reach that far: ask together with an upgrade, or not at all.
    """

    seek: SeekRequest
    hash: HashRequest | None


async def seek(
    source: NodeSource, roots: Sequence[Node], length: int, byte_offset: int, padding: int = 0
) -> Found | InDoubt:
    """The block that holds `byte_offset` in a tree of `length` blocks, each beginning with `padding` bytes.

    At the very end it is block `length`, offset 0. Among empty blocks it is one that starts there, not always the
    first.
    """
    if byte_offset == 0:
        return Found(0, 0)
    left = byte_offset
    for root in roots:
        size = unpadded_size(root, padding)
        if left == size:
            return Found((flat_tree.right_span(root.index) >> 1) + 1, 0)
        if left < size:
            return await _seek_below(source, root.index, byte_offset, left, padding)
        left -= size
    return InDoubt(SeekRequest(byte_offset, padding), None)


async def _seek_below(source: NodeSource, index: int, byte_offset: int, left: int, padding: int) -> Found | InDoubt:
    while (children := flat_tree.children(index)) is not None:
        (left_child,) = await source.nodes((children[0],))
        if left_child is None:
            below = HashRequest(flat_tree.left_span(index), flat_tree.depth(index))
            return InDoubt(SeekRequest(byte_offset, padding), below)
        size = unpadded_size(left_child, padding)
        if left == size:
            return Found((flat_tree.right_span(children[0]) >> 1) + 1, 0)
        if left < size:
            index = children[0]
        else:
            left -= size
            index = children[1]
    return Found(index >> 1, left)


async def seek_target(source: NodeSource, index: int, left: int, padding: int) -> int:
    """The node below `index` at whose start, or failing that in whose leaf, byte `left` of the subtree lies.

    A server shows this node to a reader that seeks (wire spec, 6.6 B). Where children are not stored it stops.
    """
    while left and (children := flat_tree.children(index)) is not None:
        (left_child,) = await source.nodes((children[0],))
        if left_child is None:
            break
        size = unpadded_size(left_child, padding)
        if left == size:
            return children[0]
        if left < size:
            index = children[0]
        else:
            left -= size
            index = children[1]
    return index


def unpadded_size(node: Node, padding: int) -> int:
    """The node's bytes without the padding at the head of each of its blocks."""
    return node.size - padding * flat_tree.leaf_count(node.index) if padding else node.size


async def byte_offset(source: NodeSource, roots: Sequence[Node], tree_index: int) -> int:
    """Bytes of all blocks left of node `tree_index`; at most one look-up.

    Of a block that is stored, all nodes that this needs are stored too. Raises `ProofNotHeldError` when one is not.
    """
    offset = 0
    for root in roots:
        if flat_tree.contains(root.index, tree_index):
            before = [index for index in flat_tree.path(tree_index, root.index) if index < tree_index]
            return offset + sum(node.size for node in await held_nodes(source, before))
        if root.index > tree_index:
            break
        offset += root.size
    return offset


async def held_nodes(source: NodeSource, indexes: Sequence[int]) -> tuple[Node, ...]:
    """The nodes, every one of them; raises `ProofNotHeldError` when one is not stored here."""
    if not indexes:
        return ()
    found = await source.nodes(indexes)
    if None in found:
        raise ProofNotHeldError(f"tree node {indexes[found.index(None)]} is not stored here")
    return tuple(found)  # type: ignore[arg-type]

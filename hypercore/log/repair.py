"""Making lost tree nodes again from what is below them.

Nothing is taken on trust: a node made here counts only when it fits what is above it. It must not know why a node
was lost.
"""

from __future__ import annotations

from hypercore.crypto import TreeHash
from hypercore.encoding import MAX_SAFE_INTEGER
from hypercore.errors import OutOfBoundsError, StorageMissingError
from hypercore.log import flat_tree
from hypercore.log.merkle import parent_node
from hypercore.log.state import LogState
from hypercore.log.tree_file import TreeFile
from hypercore.proofs import Node


async def remake_node(file: TreeFile, index: int, tree_hash: TreeHash) -> Node | None:
    """The node as its stored children make it, or None."""
    below = flat_tree.children(index)
    if below is None:
        return None
    left, right = await file.stored(below)
    if left is None or right is None or left.size + right.size > MAX_SAFE_INTEGER:
        return None
    return parent_node(left, right, tree_hash)


async def restore_leaf(state: LogState, index: int) -> bool:
    """Put back the lost leaf of block `index` or of its neighbour, if the bytes of that block give it.

    Without it neither of the two can be verified. The size of the lost one is what the other leaves of their parent.
    """
    placed = await state.tree.locate(flat_tree.parent(2 * index))
    if placed is None:
        return False
    start, parent = placed
    left, right = await state.tree.file.stored((4 * (index >> 1), 4 * (index >> 1) + 2))
    choices: list[tuple[int, int, Node | None]] = [(start, parent.index - 1, right)]
    if left is not None:
        choices.append((start + left.size, parent.index + 1, left))
    for offset, lost, other in choices:
        if other is None or other.size > parent.size:
            continue
        try:
            block = await state.blocks.read(offset, parent.size - other.size)
        except (OutOfBoundsError, StorageMissingError):
            continue
        leaf = Node(lost, len(block), state.authority.tree_hash.leaf(block))
        pair = (leaf, other) if lost < other.index else (other, leaf)
        if parent_node(*pair, state.authority.tree_hash) == parent:
            state.tree.add([leaf])
            return True
    return False

"""Making lost tree nodes again from what is below them.

Nothing is taken on trust: a node made here counts only when it fits what is above it. It must not know why a node
was lost.
"""

from __future__ import annotations

from hypercore.crypto import TreeHash
from hypercore.encoding import MAX_SAFE_INTEGER
from hypercore.errors import CorruptError, OutOfBoundsError, StorageError, StorageMissingError
from hypercore.log import flat_tree
from hypercore.log.merkle import parent_node
from hypercore.log.state import DATA, TREE, LogState
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


async def read_again(state: LogState, index: int) -> bytes | CorruptError:
    """The bytes of block `index`, or the error, not raised, that says what is wrong with them."""
    file = TREE
    cause: CorruptError | None = None
    try:
        placed = await state.tree.locate(2 * index)
        if placed is None and await restore_leaf(state, index):
            placed = await state.tree.locate(2 * index)
        if placed is None:
            problem = f"the tree nodes of block {index} are damaged or missing"
        else:
            offset, leaf = placed
            file = DATA
            try:
                block = await state.blocks.read(offset, leaf.size) if leaf.size else b""
                if state.authority.tree_hash.leaf(block) == leaf.hash:
                    return block
                problem = f"the bytes of block {index} do not match their hash"
            except (OutOfBoundsError, StorageMissingError):
                problem = f"the bytes of block {index} are missing"
    except CorruptError as error:
        if isinstance(error, StorageError):
            raise  # More is wrong than these bytes.
        # The storage has checksums of its own.
        cause = error
        problem = f"{'the tree nodes' if file == TREE else 'the bytes'} of block {index} cannot be read ({error})"
    damage = CorruptError(f"{problem} in file {file}; fetch the block again from a peer", file=file, index=index)
    damage.__cause__ = cause
    return damage


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

"""Looking at all of a log: the signature, every tree node, every block that should be here.

Reads only, and says what is wrong instead of stopping at it. Knows how blocks hang under nodes and nodes under the
signed roots; it must not know how to repair anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final

from hypercore.errors import CorruptError, OutOfBoundsError, StorageError, StorageMissingError
from hypercore.log import flat_tree
from hypercore.log.commits import Commits
from hypercore.log.merkle import parent_node
from hypercore.log.node_layout import NODE_SIZE
from hypercore.log.state import DATA, OPLOG, TREE, LogState
from hypercore.proofs import Node

#: Blocks between two breaths that others may take. As many as lie below one page of the tree.
_STRIDE_BLOCKS: Final = 256


async def audit(commits: Commits, progress: Callable[[int], None] | None) -> AsyncIterator[CorruptError]:
    """Everything that is wrong. See `Log.audit`."""
    state = commits.state
    length = state.length
    problem = _unsigned(state)
    if problem is not None:
        yield problem
    checked_count = 0
    for start in range(0, length, _STRIDE_BLOCKS):
        end = min(start + _STRIDE_BLOCKS, length)
        # A page of the tree begins with its first leaf, and its last node is one from higher up.
        try:
            wrong_nodes = await _wrong_nodes(state, range(2 * start, 2 * end))
        except CorruptError as error:
            if isinstance(error, StorageError):
                raise  # More is wrong than these nodes.
            # The storage has checksums of its own.
            wrong_nodes = [CorruptError(f"tree nodes in file {TREE} cannot be read: {error}", file=TREE)]
        for wrong in wrong_nodes:
            yield wrong
        for index in range(start, end):
            if state.bitfield.get(index):
                problem = await _wrong_block(state, index)
                checked_count += 1
                if problem is not None:
                    yield problem
        if progress is not None:
            progress(checked_count)
        await asyncio.sleep(0)
        if commits.state is not state or state.length < length:
            raise CorruptError("the log was cut while it was looked at; look again")


def _unsigned(state: LogState) -> CorruptError | None:
    authority = state.authority
    if state.length == 0 or authority.verify(state.roots, state.length, state.fork, state.signature):
        return None
    if authority.manifest is None:
        message = "the manifest is not here yet, so the signature cannot be checked"
    else:
        message = f"the signature of length {state.length}, fork {state.fork}, does not hold"
    return CorruptError(f"{message} (file {OPLOG})", file=OPLOG)


async def _wrong_nodes(state: LogState, indexes: range) -> list[CorruptError]:
    """The stored nodes among `indexes` that are not what their children make them, or that lack a child."""
    wanted = [index for index in indexes if index & 1 and flat_tree.right_span(index) < 2 * state.length]
    children = [child for index in wanted for child in flat_tree.children(index) or ()]
    stored = iter(await state.tree.file.stored([*wanted, *children]))
    parents = [next(stored) for _ in wanted]
    wrong = []
    for index, parent in zip(wanted, parents, strict=True):
        left, right = next(stored), next(stored)
        message = _wrong_parent(state, parent, left, right)
        if message is not None:
            wrong.append(
                CorruptError(f"tree node {index} in file {TREE} {message}", file=TREE, offset=index * NODE_SIZE)
            )
    return wrong


def _wrong_parent(state: LogState, parent: Node | None, left: Node | None, right: Node | None) -> str | None:
    if left is None and right is None:
        # A reader knows some nodes without what is below them.
        return None
    if left is None or right is None:
        return "has one child only"
    if parent is None:
        return "is missing above its children"
    if left.size + right.size != parent.size or parent_node(left, right, state.authority.tree_hash) != parent:
        return "does not match its children"
    return None


async def _wrong_block(state: LogState, index: int) -> CorruptError | None:
    try:
        placed = await state.tree.locate(2 * index)
        if placed is None:
            return CorruptError(
                f"block {index} has no hash that leads to a root in file {TREE}", file=TREE, index=index
            )
        offset, leaf = placed
        block = await _read_block(state, offset, leaf.size)
    except (OutOfBoundsError, StorageMissingError):
        return CorruptError(f"the bytes of block {index} are missing in file {DATA}", file=DATA, index=index)
    except CorruptError as error:
        if isinstance(error, StorageError):
            raise
        return CorruptError(f"block {index} cannot be read: {error}", file=error.file, index=index)
    if state.authority.tree_hash.leaf(block) != leaf.hash:
        return CorruptError(
            f"the bytes of block {index} in file {DATA} do not match their hash", file=DATA, offset=offset, index=index
        )
    return None


async def _read_block(state: LogState, offset: int, size: int) -> bytes:
    try:
        return await state.blocks.read_sequence(offset, size)
    except CorruptError:
        # The damage may be in what was read ahead.
        return await state.blocks.read(offset, size)

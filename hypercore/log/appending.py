"""Appending: appends that are in flight together become one commit with one signature.

Knows who is appending and when company is worth waiting for. It must not know what is in the blocks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from hypercore.crypto import TreeHash
from hypercore.errors import OptionError
from hypercore.log.commits import Commits
from hypercore.log.entry import MAX_NODE_COUNT
from hypercore.log.merkle import append_blocks
from hypercore.log.oplog import BitRange, Entry, TreeUpgrade
from hypercore.proofs import Node

#: Other implementations refuse a larger block, because a message that carries one must fit into a frame.
MAX_BLOCK_SIZE: Final = 15 * 1024 * 1024
#: Half of what other implementations can read in one entry, which has two nodes a block.
MAX_ENTRY_BLOCKS: Final = MAX_NODE_COUNT // 4
#: A commit of appends in flight takes no more blocks or bytes than this (one caller's own batch may be larger).
MAX_GROUP_BLOCKS: Final = 16384
MAX_GROUP_BYTES: Final = 16 * 1024 * 1024
#: The loop has its turn when so much was hashed, which takes 10 ms either way.
_TURN_BLOCKS: Final = 3072
_TURN_BYTES: Final = 8 * 1024 * 1024
#: Above this many bytes a block, copying the blocks of a batch together costs more than handing them on one by one.
_COPIED_BLOCK_SIZE: Final = 16 * 1024

#: Length in blocks and in bytes after an append.
Lengths = tuple[int, int]


class _Group:
    """Appends that wait for the same commit."""

    __slots__ = ("block_count", "byte_count", "callers")

    def __init__(self) -> None:
        self.callers: list[tuple[Sequence[bytes], asyncio.Future[Lengths]]] = []
        self.block_count = 0
        self.byte_count = 0

    def is_full(self, block_count: int, byte_count: int) -> bool:
        return self.block_count + block_count > MAX_GROUP_BLOCKS or self.byte_count + byte_count > MAX_GROUP_BYTES


class Appender:
    """Appends to one log."""

    def __init__(self, commits: Commits) -> None:
        self._commits = commits
        self._group: _Group | None = None
        self._last_task: asyncio.Task[Any] | None = None

    async def append(self, blocks: Sequence[bytes]) -> Lengths:
        """All blocks or none. See `Log.append`."""
        commits = self._commits
        commits.check_writable()
        byte_count = 0
        for block in blocks:
            if not isinstance(block, bytes):
                raise OptionError(f"a block is bytes, not {type(block).__name__}")
            byte_count += len(block)
        if byte_count > MAX_BLOCK_SIZE and any(len(block) > MAX_BLOCK_SIZE for block in blocks):
            raise OptionError(f"a block has at most {MAX_BLOCK_SIZE} bytes")
        if self._group is None and not commits.lock.locked():
            # Nobody else is appending, or it was this very task, which waited for each of its appends: no reason
            # to wait for company. Another task in the same turn of the loop means that there is company.
            task, last = asyncio.current_task(), self._last_task
            if last is None or last is task:
                if last is None:
                    self._last_task = task
                    asyncio.get_running_loop().call_soon(self._forget_task)
                await commits.lock.acquire()
                return await commits.shielded(commits.releasing(self._append(blocks)))
        return await self._join(blocks, byte_count)

    def _forget_task(self) -> None:
        self._last_task = None

    async def _join(self, blocks: Sequence[bytes], byte_count: int) -> Lengths:
        group = self._group
        if group is None or group.is_full(len(blocks), byte_count):
            group = self._group = _Group()
            self._commits.spawn(self._append_group(group))
        group.block_count += len(blocks)
        group.byte_count += byte_count
        future: asyncio.Future[Lengths] = asyncio.get_running_loop().create_future()
        group.callers.append((blocks, future))
        return await future

    async def _append_group(self, group: _Group) -> None:
        callers: list[tuple[Sequence[bytes], asyncio.Future[Lengths]]] = []
        try:
            async with self._commits.lock:
                if self._group is group:
                    self._group = None
                # A caller that gave up in time has not appended.
                callers = [caller for caller in group.callers if not caller[1].done()]
                length, byte_length = await self._append([block for blocks, _ in callers for block in blocks])
        except BaseException as error:
            for _, future in callers or group.callers:
                if not future.done():
                    future.set_exception(error)
            if not isinstance(error, Exception):
                raise
            return
        for blocks, future in reversed(callers):
            if not future.done():
                future.set_result((length, byte_length))
            length -= len(blocks)
            byte_length -= sum(map(len, blocks))

    async def _append(self, blocks: Sequence[bytes]) -> Lengths:
        commits = self._commits
        if commits.uncertain:
            await commits.certain()
        commits.check_writable()
        state = commits.state
        count = len(blocks)
        if not count:
            return state.length, state.byte_length
        start, end = state.length, state.length + count
        tree_hash, key_pair = state.authority.tree_hash, state.key_pair
        assert key_pair is not None
        roots: Sequence[Node] = state.roots
        nodes: list[Node] = []
        frames: list[bytes] = []
        signature = b""
        for first in range(start, end, MAX_ENTRY_BLOCKS):
            last = min(first + MAX_ENTRY_BLOCKS, end)
            part = blocks if last - first == count else blocks[first - start : last - start]
            if count == 1:
                roots, created = append_blocks(roots, first, part, tree_hash)
            else:
                roots, created = await _hashed(roots, first, part, tree_hash)
            signature = state.authority.sign(tree_hash.tree(roots), last, state.fork, key_pair)
            upgrade = TreeUpgrade(state.fork, first, last, signature)
            entry = Entry(None, created, upgrade, BitRange(False, first, last - first))
            frames.append(state.framed(entry, partial=last < end))
            nodes = nodes + created if nodes else created
        byte_length = sum([root[1] for root in roots])
        await commits.commit_entries(frames, _laid_out(blocks, state.byte_length, byte_length))
        state.tree.add(nodes)
        state.tree.set_roots(roots, end)
        state.roots, state.length, state.byte_length, state.signature = tuple(roots), end, byte_length, signature
        state.note_set(start, end)
        commits.notify("append", start, end)
        await commits.checkpoint_if_due()
        return end, byte_length


async def _hashed(
    roots: Sequence[Node], length: int, blocks: Sequence[bytes], tree_hash: TreeHash
) -> tuple[list[Node], list[Node]]:
    """`append_blocks`, of many or large ones in several turns of the loop."""
    step = max(1, min(_TURN_BLOCKS, _TURN_BYTES * len(blocks) // (1 + sum(map(len, blocks)))))
    grown, created = append_blocks(roots, length, blocks[:step], tree_hash)
    for first in range(step, len(blocks), step):
        await asyncio.sleep(0)
        grown, made = append_blocks(grown, length + first, blocks[first : first + step], tree_hash)
        created += made
    return grown, created


def _laid_out(blocks: Sequence[bytes], start: int, end: int) -> list[tuple[int, bytes]]:
    """The blocks and their byte offsets, small ones copied together."""
    if len(blocks) == 1:
        return [(start, blocks[0])]
    if end - start <= len(blocks) * _COPIED_BLOCK_SIZE:
        return [(start, b"".join(blocks))]
    pieces = []
    for block in blocks:
        pieces.append((start, block))
        start += len(block)
    return pieces

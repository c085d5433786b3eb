"""Reading and writing a log as a stream: async iterators over its blocks or bytes, and a writer.

Shell floor, on top of `Hypercore`'s own methods only.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

from hypercore.errors import BlockIndexError, BlockNotAvailableError, ClosedError

if TYPE_CHECKING:
    from types import TracebackType

    from hypercore.core import Hypercore

#: A write stream appends once so many blocks are collected, or when it is flushed or closed.
WRITE_BATCH_BLOCKS: Final = 256
#: ... or so many bytes of them, so that large blocks do not pile up.
WRITE_BATCH_BYTES: Final = 4 * 1024 * 1024


async def read_blocks(
    core: Hypercore, *, start: int, end: int | None, live: bool, reverse: bool, snapshot: bool
) -> AsyncIterator[Any]:
    """The blocks of [start, end); see `Hypercore.create_read_stream`."""
    await core.ready()
    stop = end if end is not None else (None if live or not snapshot else core.length)
    if reverse:
        first = (stop if stop is not None else core.length) - 1
        for index in range(first, start - 1, -1):
            yield await core.get(index)
        return
    prefetch = None if core.writable else core.download(start, stop)
    try:
        index = start
        while stop is None or index < stop:
            if index >= core.length:
                if not live and stop is None:
                    return
                if not await core.wait_for_length(index + 1, live=live):
                    if live:
                        return
                    raise ClosedError(f"the core was closed before block {index} was read")
            try:
                yield await core.get(index, wait=True if live else None)
            except BlockNotAvailableError:
                # The peer left before the block came; following live, the next one may have it.
                if not live or not await core.wait_for_peers():
                    raise
                continue
            index += 1
    finally:
        if prefetch is not None:
            prefetch.destroy()


async def read_bytes(core: Hypercore, *, byte_offset: int, byte_length: int | None) -> AsyncIterator[bytes]:
    """The bytes of [byte_offset, byte_offset + byte_length), a piece a block; see `Hypercore.create_byte_stream`."""
    await core.ready()
    if byte_offset < 0 or (byte_length is not None and byte_length < 0):
        raise BlockIndexError(f"byte offset {byte_offset} and length {byte_length} must not be negative")
    total = core.byte_length - byte_offset if byte_length is None else byte_length
    if total <= 0:
        return
    index, skip = await core.seek(byte_offset)
    if index == core.length:
        return
    prefetch = None
    if not core.writable:
        last = byte_offset + total
        end = core.length if last >= core.byte_length else (await core.seek(last)).index + 1
        prefetch = core.download(index, end)
    try:
        while skip > len(block := await core.get_raw(index)):
            # A peer had given a false size for this block; with its bytes here the truth is known.
            index, skip = await core.seek(byte_offset)
        while total > 0 and index < core.length:
            block = await core.get_raw(index)
            piece = block[skip : skip + total]
            total -= len(piece)
            skip = 0
            index += 1
            if piece:
                yield piece
    finally:
        if prefetch is not None:
            prefetch.destroy()


class WriteStream:
    """Appends what it is given, in batches: one signature and one commit for each. Use with `async with`.

    What was not flushed when the `async with` block fails is dropped, as it was never acknowledged.
    """

    def __init__(self, core: Hypercore, *, batch_blocks: int = WRITE_BATCH_BLOCKS) -> None:
        self._core = core
        self._batch_blocks = batch_blocks
        self._blocks: list[Any] = []
        self._byte_count = 0

    async def write(self, block: Any) -> None:
        """Add one block; it is appended with its batch."""
        self._blocks.append(block)
        if isinstance(block, (bytes, bytearray, str)):
            self._byte_count += len(block)
        if len(self._blocks) >= self._batch_blocks or self._byte_count >= WRITE_BATCH_BYTES:
            await self.flush()

    async def flush(self) -> None:
        """Append what was collected."""
        if self._blocks:
            blocks, self._blocks, self._byte_count = self._blocks, [], 0
            await self._core.append(blocks)

    async def __aenter__(self) -> WriteStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await self.flush()

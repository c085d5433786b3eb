"""The bytes of blocks in the file `data` (disk spec, section 5.3).

Knows byte ranges and reads ahead of whoever reads in sequence. It must not know what a block's bytes should be:
whoever asks verifies what comes back.
"""

from __future__ import annotations

from typing import Final

from hypercore.storage import RandomAccess, Storage

FILE: Final = "data"

#: Reading ahead begins with this many bytes and doubles while it pays.
FIRST_WINDOW_SIZE: Final = 16 * 1024
#: Above this a longer read costs as much a byte as a short one, and only memory is lost.
MAX_WINDOW_SIZE: Final = 256 * 1024


class BlockFile:
    """Reads of one log's block bytes, with one window of bytes read ahead."""

    def __init__(self, storage: Storage, file_size: int | None) -> None:
        """`file_size` is None as long as there is no file."""
        self._storage = storage
        self._file: RandomAccess | None = None
        self.exists = file_size is not None
        #: Bytes known to be in the file; nothing is read ahead behind them.
        self._file_size = file_size or 0
        self._window = b""
        self._window_start = 0
        self._window_end = 0
        self._next_window_size = FIRST_WINDOW_SIZE

    async def read(self, offset: int, size: int) -> bytes:
        """The bytes as they are in the file now. Raises `OutOfBoundsError`, `StorageMissingError`."""
        file = self._file or await self._handle()
        return await file.read(offset, size)

    async def read_sequence(self, offset: int, size: int) -> bytes:
        """Like `read`, for a caller that will go on behind these bytes; they may be as old as the last `wrote`."""
        start = offset - self._window_start
        if start >= 0 and offset + size <= self._window_end:
            return self._window[start : start + size]
        if not size:
            return b""
        ahead = min(self._next_window_size, self._file_size - offset)
        if ahead <= size:
            return await self.read(offset, size)
        window = await self.read(offset, ahead)
        self._window, self._window_start, self._window_end = window, offset, offset + ahead
        self._next_window_size = min(2 * self._next_window_size, MAX_WINDOW_SIZE)
        return window[:size]

    def wrote(self, offset: int, size: int) -> None:
        """The range has changed in the file."""
        self.exists = True
        end = offset + size
        if end > self._file_size:
            self._file_size = end
        if offset < self._window_end and end > self._window_start:
            self.forget()

    def deleted(self, offset: int, size: int) -> None:
        """The range has become worthless, and the file may have become shorter if it was the end."""
        if offset + size >= self._file_size:
            self._file_size = min(offset, self._file_size)
        self.forget()

    def forget(self) -> None:
        """Drop what was read ahead."""
        self._window = b""
        self._window_start = self._window_end = 0
        self._next_window_size = FIRST_WINDOW_SIZE

    async def sync(self) -> None:
        """What was written is safe from a crash of the machine."""
        await (await self._handle()).sync()

    async def _handle(self) -> RandomAccess:
        if self._file is None:
            self._file = await self._storage.open(FILE)
        return self._file

    async def aclose(self) -> None:
        """Let go of the file."""
        self.forget()
        if self._file is not None:
            await self._file.aclose()
            self._file = None

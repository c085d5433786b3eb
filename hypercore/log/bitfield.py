"""Which blocks are here: one bit a block, in sparse pages (disk spec, section 5.2).

Pure: pages come in and go out as bytes. Used for the own log and for what a remote says it has, so no range that a
stranger names makes it work or allocate above `limit_blocks`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

PAGE_SIZE: Final = 4096
PAGE_BLOCKS: Final = 8 * PAGE_SIZE


class Bitfield:
    """A sparse array of bits. Block indexes at or above `limit_blocks` are never set; ranges are clamped to it."""

    __slots__ = ("_dirty", "_pages", "limit_blocks")

    def __init__(self, *, limit_blocks: int | None = None) -> None:
        self.limit_blocks = limit_blocks
        self._pages: dict[int, bytes | bytearray] = {}
        self._dirty: set[int] = set()

    def get(self, index: int) -> bool:
        raise NotImplementedError

    def set(self, index: int, value: bool = True) -> None:
        raise NotImplementedError

    def set_range(self, start: int, length: int, value: bool = True) -> None:
        raise NotImplementedError

    def first_set(self, start: int = 0, end: int | None = None) -> int | None:
        raise NotImplementedError

    def first_unset(self, start: int = 0, end: int | None = None) -> int | None:
        raise NotImplementedError

    def last_set_before(self, end: int) -> int | None:
        raise NotImplementedError

    def count(self, start: int, end: int) -> int:
        raise NotImplementedError

    def is_full(self, start: int, end: int) -> bool:
        raise NotImplementedError

    def runs(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
        raise NotImplementedError

    def load_page(self, number: int, data: bytes) -> None:
        raise NotImplementedError

    def dirty_pages(self) -> list[tuple[int, bytes]]:
        raise NotImplementedError

    def clear_dirty(self) -> None:
        raise NotImplementedError

    def mark_dirty(self, number: int) -> None:
        raise NotImplementedError

    def words(self, start_block: int, block_count: int) -> bytes:
        raise NotImplementedError

    def set_from_words(self, start_block: int, words: bytes) -> None:
        raise NotImplementedError

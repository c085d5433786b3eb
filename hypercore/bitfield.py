"""Which blocks are here: one bit a block, in sparse pages (disk spec, section 5.2).

Pure: pages come in and go out as bytes. Serves the own log and what a remote says it has: no range that a stranger
names costs more than `limit_blocks` allows, which is an eighth of it in bytes at worst.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from hypercore.encoding import MAX_SAFE_INTEGER

PAGE_SIZE: Final = 4096
PAGE_BLOCKS: Final = 8 * PAGE_SIZE

_PAGE_SHIFT: Final = 15
_IN_PAGE: Final = PAGE_BLOCKS - 1
#: Bits travel between peers in words of this many.
_WORD_BLOCKS: Final = 32
#: Stands for every page whose bits are all set, so that a complete log of any length costs little.
_FULL: Final = b"\xff" * PAGE_SIZE
_EMPTY: Final = bytes(PAGE_SIZE)


class Bitfield:
    """A sparse array of bits. Blocks at or above `limit_blocks` are never set: ranges are clamped to it.

    Without a limit the caller vouches for the ranges that it sets; dropping and asking is bounded by what is here.
    """

    __slots__ = ("_dirty", "_pages", "limit_blocks")

    def __init__(self, *, limit_blocks: int = MAX_SAFE_INTEGER) -> None:
        self.limit_blocks = limit_blocks
        # A page is absent (no bit set), the constant _FULL, or a bytearray of its own.
        self._pages: dict[int, bytes | bytearray] = {}
        self._dirty: set[int] = set()

    # ---- one block and ranges ---------------------------------------------------------------------

    def get(self, index: int) -> bool:
        """Whether block `index` is here."""
        page = self._pages.get(index >> 15)
        return page is not None and page[(index >> 3) & 4095] >> (index & 7) & 1 == 1

    def set(self, index: int, value: bool = True) -> None:
        """Note that block `index` is here, or with `value` false that it is not."""
        if not 0 <= index < self.limit_blocks:
            return
        number = index >> 15
        page = self._pages.get(number)
        position, mask = (index >> 3) & 4095, 1 << (index & 7)
        if page is None:
            if not value:
                return
            page = self._pages[number] = bytearray(PAGE_SIZE)
        elif (page[position] & mask != 0) == value:
            return
        if page is _FULL:
            page = self._pages[number] = bytearray(_FULL)
        page[position] ^= mask  # type: ignore[index]  # the one immutable page was replaced above
        self._dirty.add(number)

    def set_range(self, start: int, length: int, value: bool = True) -> None:
        """Set or drop the `length` blocks from `start` on, as far as they lie below the limit."""
        if length == 1:
            self.set(start, value)
            return
        start, end = max(start, 0), min(start + length, self.limit_blocks)
        if start >= end:
            return
        first, last = start >> _PAGE_SHIFT, (end - 1) >> _PAGE_SHIFT
        if last - first > 1:
            self._fill_pages(first + 1, last, value)
        for number in {first, last}:
            base = number << _PAGE_SHIFT
            self._fill(number, max(start - base, 0), min(end - base, PAGE_BLOCKS), value)

    def _fill_pages(self, first: int, end: int, value: bool) -> None:
        """Give all bits of the pages from `first` to `end` the same value; there may be thousands."""
        pages = self._pages
        if value:
            numbers = [number for number in range(first, end) if pages.get(number) is not _FULL]
            pages.update(dict.fromkeys(numbers, _FULL))
        else:
            numbers = list(self._existing(first, end - 1))
            for number in numbers:
                del pages[number]
        self._dirty.update(numbers)

    def _fill(self, number: int, low: int, high: int, value: bool) -> None:
        """Give the bits `low` to `high` of one page the same value."""
        old = self._pages.get(number, _EMPTY)
        if high - low == PAGE_BLOCKS:
            new = _FULL if value else _EMPTY
            if old is new or old == new:
                return
            self._store(number, new)
        else:
            first, last = low >> 3, (high - 1) >> 3
            count = 8 * (last + 1 - first)
            mask = ((1 << (high - low)) - 1) << (low & 7)
            bits = int.from_bytes(old[first : last + 1], "little")
            changed = bits | mask if value else bits & ~mask
            if changed == bits:
                return
            self._own(number)[first : last + 1] = changed.to_bytes(count >> 3, "little")
        self._dirty.add(number)

    def _own(self, number: int) -> bytearray:
        """The page, as one that can be changed."""
        page = self._pages.get(number, _EMPTY)
        if not isinstance(page, bytearray):
            page = self._pages[number] = bytearray(page)
        return page

    def _store(self, number: int, page: bytes) -> None:
        """Take over a whole page, in its cheapest form."""
        if page == _EMPTY:
            self._pages.pop(number, None)
        elif page == _FULL:
            self._pages[number] = _FULL
        else:
            self._pages[number] = bytearray(page)

    # ---- looking for blocks -----------------------------------------------------------------------

    def first_set(self, start: int = 0, end: int | None = None) -> int | None:
        """The first block in `[start, end)` that is here."""
        end = self._clamp(end)
        for number, low, bits in self._parts(start, end):
            if bits:
                return (number << _PAGE_SHIFT) + low + (bits & -bits).bit_length() - 1
        return None

    def first_unset(self, start: int = 0, end: int | None = None) -> int | None:
        """The first block in `[start, end)` that is not here; the contiguous length is the first of all."""
        end = self._clamp(end)
        start = max(start, 0)
        pages = self._pages
        while start < end:
            page = pages.get(start >> _PAGE_SHIFT)
            if page is None:
                return start
            page_end = (start | _IN_PAGE) + 1
            if page is not _FULL:
                position = start & _IN_PAGE
                bits = int.from_bytes(page[position >> 3 :], "little") >> (position & 7)
                start += (bits ^ (bits + 1)).bit_length() - 1  # as many as there are ones at the low end
                if start < page_end:
                    break
            start = page_end
        return start if start < end else None

    def last_set_before(self, end: int) -> int | None:
        """The last block below `end` that is here."""
        end = self._clamp(end)
        if end <= 0:
            return None
        for number in self._existing(0, (end - 1) >> _PAGE_SHIFT, backwards=True):
            base = number << _PAGE_SHIFT
            bits = _bits(self._pages[number], 0, min(end - base, PAGE_BLOCKS))
            if bits:
                return base + bits.bit_length() - 1
        return None

    def count(self, start: int = 0, end: int | None = None) -> int:
        """How many blocks in `[start, end)` are here."""
        return sum(bits.bit_count() for _number, _low, bits in self._parts(start, self._clamp(end)))

    def is_full(self, start: int, end: int) -> bool:
        """Whether every block in `[start, end)` is here."""
        return end <= start or (end <= self.limit_blocks and self.first_unset(start, end) is None)

    def runs(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
        """The blocks in `[start, end)` that are here, as `(start, count)` of each unbroken run, from the left."""
        begin = stop = 0  # the run in the making; none while they are equal
        for number, low, bits in self._parts(start, self._clamp(end)):
            base = (number << _PAGE_SHIFT) + low
            # Text is searched faster than the bits of a long number are.
            text = bin(bits)[:1:-1]
            one = text.find("1")
            while one >= 0:
                zero = text.find("0", one)
                if zero < 0:
                    zero = len(text)
                if base + one != stop or begin == stop:
                    if begin != stop:
                        yield begin, stop - begin
                    begin = base + one
                stop = base + zero
                one = text.find("1", zero)
        if begin != stop:
            yield begin, stop - begin

    def _clamp(self, end: int | None) -> int:
        return self.limit_blocks if end is None else min(end, self.limit_blocks)

    def _existing(self, first: int, last: int, *, backwards: bool = False) -> Iterator[int]:
        """The numbers of the pages from `first` to `last` that are not absent, in order.

        Costs no more than there are pages, whatever the range.
        """
        if last - first < len(self._pages):
            numbers = range(last, first - 1, -1) if backwards else range(first, last + 1)
            return (number for number in numbers if number in self._pages)
        return iter(sorted((number for number in self._pages if first <= number <= last), reverse=backwards))

    def _parts(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """What `[start, end)` covers of each page that is not absent: its number, the first bit, the bits."""
        start = max(start, 0)
        if start >= end:
            return
        for number in self._existing(start >> _PAGE_SHIFT, (end - 1) >> _PAGE_SHIFT):
            base = number << _PAGE_SHIFT
            low = max(start - base, 0)
            yield number, low, _bits(self._pages[number], low, min(end - base, PAGE_BLOCKS))

    # ---- pages, for the file ----------------------------------------------------------------------

    def page(self, number: int) -> bytes:
        """The 4096 bytes of page `number`."""
        return bytes(self._pages.get(number, _EMPTY))

    def load_page(self, number: int, data: bytes) -> None:
        """Take page `number` from the file; a short one ends in zeros. The page is not dirty afterwards."""
        page = data[:PAGE_SIZE].ljust(PAGE_SIZE, b"\x00")
        room = self.limit_blocks - (number << _PAGE_SHIFT)
        if room < PAGE_BLOCKS:
            page = _bits(page, 0, max(room, 0)).to_bytes(PAGE_SIZE, "little")
        self._store(number, page)
        self._dirty.discard(number)

    def dirty_pages(self) -> list[tuple[int, bytes]]:
        """Number and bytes of every page that changed since `clear_dirty`, in order."""
        return [(number, self.page(number)) for number in sorted(self._dirty)]

    def clear_dirty(self) -> None:
        """The dirty pages are on their way to the file."""
        self._dirty.clear()

    def mark_dirty(self, number: int) -> None:
        """Page `number` did not reach the file after all."""
        self._dirty.add(number)

    # ---- words, for the wire ----------------------------------------------------------------------

    def words(self, start_block: int, block_count: int) -> bytes:
        """The bits of `[start_block, start_block + block_count)` as 32-bit little-endian words.

        The last word is filled up with zeros. Raises `ValueError` when `start_block` is not a multiple of 32.
        """
        if start_block % _WORD_BLOCKS:
            raise ValueError(f"block {start_block} is not the first of a word")
        words = bytearray((block_count + _WORD_BLOCKS - 1) // _WORD_BLOCKS * 4)
        for number, low, bits in self._parts(start_block, start_block + block_count):
            offset = ((number << _PAGE_SHIFT) + low - start_block) >> 3
            part = bits.to_bytes((bits.bit_length() + 7) >> 3, "little")
            words[offset : offset + len(part)] = part
        return bytes(words)

    def set_from_words(self, start_block: int, words: bytes) -> None:
        """Take the bits from `start_block` on from 32-bit little-endian words, set and unset ones alike.

        Raises `ValueError` when `start_block` is not a multiple of 32.
        """
        if start_block < 0 or start_block % _WORD_BLOCKS:
            raise ValueError(f"block {start_block} is not the first of a word")
        end = min(start_block + 8 * len(words), self.limit_blocks)
        block = start_block
        while block < end:
            number, low = block >> _PAGE_SHIFT, block & _IN_PAGE
            high = min(low + end - block, PAGE_BLOCKS)
            offset = (block - start_block) >> 3
            bits = _bits(words[offset : offset + ((high - low + 7) >> 3)], 0, high - low)
            self._replace(number, low, high, bits)
            block += high - low

    def _replace(self, number: int, low: int, high: int, bits: int) -> None:
        """Give the bits `low` to `high` of one page new values; `low` is the first bit of a byte."""
        old = self._pages.get(number, _EMPTY)
        if _bits(old, low, high) == bits:
            return
        if high - low == PAGE_BLOCKS:
            self._store(number, bits.to_bytes(PAGE_SIZE, "little"))
        else:
            first, last = low >> 3, (high + 7) >> 3
            keep = int.from_bytes(old[first:last], "little") >> (high - low) << (high - low)
            self._own(number)[first:last] = (keep | bits).to_bytes(last - first, "little")
        self._dirty.add(number)


def _bits(page: bytes | bytearray, low: int, high: int) -> int:
    """The bits `low` to `high` of a page, as one number."""
    bits = int.from_bytes(page[low >> 3 : (high + 7) >> 3], "little") >> (low & 7)
    return bits & ((1 << (high - low)) - 1) if high & 7 else bits

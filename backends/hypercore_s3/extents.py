"""Where the bytes of one file lie: an interval map from the file's offsets to bytes of objects or of memory.

Pure. It must not know who reads or writes. What no extent covers is a hole, and reads as zeros.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from hypercore_s3.frames import Body

#: Bytes that lie in an object, or that only this process and a commit's front have.
Source = Body | bytes


class Extent(NamedTuple):
    """The file's bytes from `start` to `end` lie in `source`, from its byte `offset` on."""

    start: int
    end: int
    source: Source
    offset: int


class Extents:
    """The extents of one file, in order, none of them overlapping another."""

    __slots__ = ("_extents", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._extents: list[Extent] = []

    def __iter__(self) -> Iterator[Extent]:
        return iter(self._extents)

    def __len__(self) -> int:
        return len(self._extents)

    def copy(self) -> Extents:
        """Another map of the same content."""
        other = Extents()
        other._starts, other._extents = self._starts.copy(), self._extents.copy()
        return other

    def append(self, start: int, end: int, source: Source, offset: int) -> None:
        """`put` behind all others."""
        self._starts.append(start)
        self._extents.append(Extent(start, end, source, offset))

    def put(self, start: int, end: int, source: Source | None, offset: int = 0) -> None:
        """The bytes from `start` to `end` lie there from now on; without a source they are a hole."""
        if start >= end:
            return
        extents = self._extents
        first = self._reaching(start)
        last = bisect_left(self._starts, end, first)
        new: list[Extent] = []
        if first < last and extents[first].start < start:
            new.append(extents[first]._replace(end=start))
        if source is not None:
            new.append(Extent(start, end, source, offset))
        if first < last and extents[last - 1].end > end:
            new.append(_from(extents[last - 1], end))
        if source is not None:
            # Pages that were written one after the other are one extent.
            if first and _follow(extents[first - 1], new[0]):
                first -= 1
                new[0] = new[0]._replace(start=extents[first].start, offset=extents[first].offset)
            if last < len(extents) and _follow(new[-1], extents[last]):
                new[-1] = new[-1]._replace(end=extents[last].end)
                last += 1
        extents[first:last] = new
        self._starts[first:last] = [extent.start for extent in new]

    def _reaching(self, start: int) -> int:
        """The index of the first extent that ends behind `start`."""
        index = bisect_right(self._starts, start)
        return index - 1 if index and self._extents[index - 1].end > start else index

    def before(self, end: int) -> Extent | None:
        """The extent that ends there."""
        index = bisect_left(self._starts, end) - 1
        return self._extents[index] if index >= 0 and self._extents[index].end == end else None

    def within(self, start: int, end: int) -> list[Extent]:
        """What lies between `start` and `end`, cut to fit."""
        first = self._reaching(start)
        found = self._extents[first : bisect_left(self._starts, end, first)]
        if found and found[0].start < start:
            found[0] = _from(found[0], start)
        if found and found[-1].end > end:
            found[-1] = found[-1]._replace(end=end)
        return found


def _from(extent: Extent, start: int) -> Extent:
    return Extent(start, extent.end, extent.source, extent.offset + start - extent.start)


def _follow(before: Extent, after: Extent) -> bool:
    """Whether two extents are one."""
    return (
        before.end == after.start
        and before.source is after.source
        and before.offset + before.end - before.start == after.offset
    )

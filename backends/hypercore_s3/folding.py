"""A fold: many small commits become one checkpoint, with an index of all files at its end.

Pure: it says what the checkpoint's bytes are and where the files' bytes lie afterwards. It must not know how
anything is stored, and asks for no byte that is not at hand.

What is in memory goes into the checkpoint: of most files in whole pages, of streamed ones in the pieces in which it
was written. What is needed to open the place again lies at the end, next to the index, so that one GET brings both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from hypercore_s3.contents import LARGE_SIZE, PAGE_SIZE, Contents, File
from hypercore_s3.extents import Extent, Source
from hypercore_s3.frames import Body, body_of, cut
from hypercore_s3.index import CHECKPOINT_MAGIC, FOOTER_SIZE, FileIndex, Index, encode_footer, encode_index
from hypercore_s3.layout import Pointer, checkpoint_name

#: A change of a page that is smaller stays in the index until more comes together.
INLINE_PAGE_SIZE: Final = 1024
#: All that stays in the index so. It is part of every opening.
INLINE_SIZE_MAX: Final = 128 * 1024
#: Of a file up to this size all pages go into every checkpoint, if they are at hand: it is read whole at opening.
SMALL_FILE_SIZE: Final = 512 * 1024
#: Pages that are written again only for being next to the index.
CARRIED_SIZE_MAX: Final = 512 * 1024
#: What opening reads before the index.
HOT_SIZE_MAX: Final = 1 << 20

#: The bytes of a file between two offsets, of which these are the extents, if they are at hand.
Known = Callable[[Sequence[Extent], int, int], bytes | None]


class Moved(NamedTuple):
    """The file's bytes from `start` to `end` lie in `source` now."""

    file: File
    start: int
    end: int
    source: Source
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """A checkpoint to be, and what holds once the head points to it."""

    pieces: list[bytes]
    pointer: Pointer
    body: Body
    frames: list[bytes]
    moved: list[Moved]
    #: The objects that are needed then, and those that are not.
    objects: set[str]
    doomed: set[str]


class _Piece(NamedTuple):
    file: File
    start: int
    data: bytes


class _Sorter:
    """What goes where."""

    def __init__(self, known: Known) -> None:
        self._known = known
        #: Pieces of any size, which nobody needs at opening.
        self.loose: list[_Piece] = []
        self.full_pages: list[_Piece] = []
        #: Ends of files.
        self.tails: list[_Piece] = []
        self.inline: list[Moved] = []
        self._inline_left = INLINE_SIZE_MAX
        self._carried_left = CARRIED_SIZE_MAX

    def add(self, file: File) -> None:
        if file.streamed:
            self._add_runs(file)
        else:
            self._add_pages(file)

    def _add_runs(self, file: File) -> None:
        for run in _runs(extent for extent in file.extents if type(extent.source) is bytes):
            start, end = run[0].start, run[-1].end
            if end == file.size:
                start, run = self._with_tail(file, start, run)
            data = self._known(run, start, end)
            assert data is not None, "memory is at hand"
            (self.tails if end == file.size and len(data) < LARGE_SIZE else self.loose).append(
                _Piece(file, start, data)
            )

    def _with_tail(self, file: File, start: int, run: list[Extent]) -> tuple[int, list[Extent]]:
        """The last run, and what an earlier fold wrote just before it as long as both together are small: else
        every fold of a slow writer would leave an object behind for a few bytes."""
        while start and run[-1].end - start < LARGE_SIZE:
            before = file.extents.before(start)
            if before is None or run[-1].end - before.start > LARGE_SIZE:
                break
            if self._known([before], before.start, before.end) is None:
                break
            start, run = before.start, [before, *run]
        return start, run

    def _add_pages(self, file: File) -> None:
        last = (file.size - 1) // PAGE_SIZE
        changed = _pages(extent for extent in file.extents if type(extent.source) is bytes)
        for number, extents in changed.items():
            size = sum(end - start for start, end, _, _ in extents)
            whole = number == last or file.size <= SMALL_FILE_SIZE or size > INLINE_PAGE_SIZE
            if whole and self._add_page(file, number):
                continue
            if size <= min(INLINE_PAGE_SIZE, self._inline_left):
                self._inline_left -= size
                self.inline += _copied(file, extents)
                continue
            for run in _runs(extents):
                data = self._known(run, run[0].start, run[-1].end)
                assert data is not None, "memory is at hand"
                self.loose.append(_Piece(file, run[0].start, data))
        for number in range(last + 1) if file.size <= SMALL_FILE_SIZE else (last,):
            start, end = number * PAGE_SIZE, min((number + 1) * PAGE_SIZE, file.size)
            if number not in changed and end - start <= self._carried_left and file.extents.within(start, end):
                self._carried_left -= (end - start) if self._add_page(file, number) else 0

    def _add_page(self, file: File, number: int) -> bool:
        """The whole page, if all of it is at hand."""
        start, end = number * PAGE_SIZE, min((number + 1) * PAGE_SIZE, file.size)
        data = self._known(file.extents.within(start, end), start, end)
        if data is None:
            return False
        (self.full_pages if len(data) == PAGE_SIZE else self.tails).append(_Piece(file, start, data))
        return True


def fold(contents: Contents, known: Known, unique: bytes) -> Fold:
    """The checkpoint of `contents` as they are now. Nothing is changed."""
    sorter = _Sorter(known)
    for file in sorted(contents.files.values(), key=lambda file: file.size):
        sorter.add(file)
    # The pages of small files are those that opening reads.
    sorter.full_pages.sort(key=lambda piece: -piece.file.size)
    ordered = sorter.loose + sorter.full_pages + sorter.tails
    size = sum(len(piece.data) for piece in ordered)
    aligned = sum(len(piece.data) for piece in sorter.loose)
    name = checkpoint_name(contents.sequence, unique)
    body = body_of(name, base=len(CHECKPOINT_MAGIC), size=size, aligned=aligned)
    moved = sorter.inline
    position = 0
    for file, start, data in ordered:
        moved.append(Moved(file, start, start + len(data), body, position))
        position += len(data)
    frames = cut(body, [piece.data for piece in ordered])
    return _finish(contents, body, frames, moved, hot=body.number(max(aligned, size - HOT_SIZE_MAX)))


def _finish(contents: Contents, body: Body, frames: list[bytes], moved: list[Moved], *, hot: int) -> Fold:
    """Put the index behind the frames. `hot` is the first frame that is read with it."""
    extents = {file: file.extents.copy() for file in contents.files.values()}
    for file, start, end, source, offset in moved:
        extents[file].put(start, end, source, offset)
    bodies = {extent.source for held in extents.values() for extent in held if isinstance(extent.source, Body)}
    objects = {body.name, *(one.name for one in bodies)}
    doomed = (contents.objects | contents.doomed) - objects
    index = encode_index(
        Index(
            sequence=contents.sequence,
            epoch=contents.epoch,
            files=[FileIndex(file.name, file.identity, file.size, extents[file]) for file in extents],
            bodies=sorted(bodies, key=lambda one: one.name),
            doomed=sorted(doomed),
        )
    )
    index_offset = body.base + body.framed_size
    hot_offset = body.position(hot) if hot < body.count else index_offset
    footer = encode_footer(index_offset=index_offset, index_size=len(index), hot=hot_offset)
    pointer = Pointer(
        name=body.name,
        sequence=contents.sequence,
        size=index_offset + len(index) + FOOTER_SIZE,
        hot=hot_offset,
        index_offset=index_offset,
        index_size=len(index),
    )
    pieces = [CHECKPOINT_MAGIC, *body.framed(frames), index, footer]
    return Fold(pieces=pieces, pointer=pointer, body=body, frames=frames, moved=moved, objects=objects, doomed=doomed)


def switch(fold: Fold) -> None:
    """The head points to the checkpoint: the files' bytes lie there now, but for those changed since."""
    for file, start, end, source, offset in fold.moved:
        reached = start
        for first, last in _joined(file.touched or [], start, end):
            file.extents.put(reached, first, source, offset + reached - start)
            reached = last
        file.extents.put(reached, end, source, offset + reached - start)


def _joined(ranges: Sequence[tuple[int, int]], start: int, end: int) -> Iterator[tuple[int, int]]:
    """The ranges between `start` and `end`, in order, cut to fit; they may touch."""
    reached = start
    for first, last in sorted(ranges):
        first, last = max(first, reached), min(last, end)
        if first < last:
            yield first, last
            reached = last


def _copied(file: File, extents: Sequence[Extent]) -> Iterator[Moved]:
    """Small parts of memory, without what they are parts of."""
    for start, end, source, offset in extents:
        if isinstance(source, bytes):
            yield Moved(file, start, end, source[offset : offset + end - start], 0)


def _runs(extents: Iterator[Extent] | Sequence[Extent]) -> list[list[Extent]]:
    """The extents, those that are neighbours together."""
    runs: list[list[Extent]] = []
    for extent in extents:
        if runs and runs[-1][-1].end == extent.start:
            runs[-1].append(extent)
        else:
            runs.append([extent])
    return runs


def _pages(extents: Iterator[Extent]) -> dict[int, list[Extent]]:
    """The extents cut at the ends of pages, by page number."""
    pages: dict[int, list[Extent]] = {}
    for start, end, source, offset in extents:
        for number in range(start // PAGE_SIZE, (end - 1) // PAGE_SIZE + 1):
            first, last = max(start, number * PAGE_SIZE), min(end, (number + 1) * PAGE_SIZE)
            pages.setdefault(number, []).append(Extent(first, last, source, offset + first - start))
    return pages

"""Reading a place: its head, the newest checkpoint, and the commits behind it.

Reads only. It must not know who writes. A writer at work may move things between two requests; whoever reads
begins again then, and never shows less than was there when it began. Nothing is shown of what was read before it is
certain: under a number whose commit was folded away a writer that came too late may have left its fence.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from hypercore.errors import CorruptError, StorageError
from hypercore_s3.commits import FRONT_GUESS, FRONT_SIZE_MAX, Commit, decode_commit, needed_front
from hypercore_s3.contents import Contents
from hypercore_s3.frames import CHECK_SIZE, FRAME_SIZE, Body
from hypercore_s3.index import FOOTER_SIZE, decode_footer, decode_index
from hypercore_s3.layout import Pointer, belongs, checkpoint_sequence, commit_name, commit_sequence
from hypercore_s3.lease import FoundHead, read_head
from hypercore_s3.objects import AccessDeniedError, ObjectMissingError
from hypercore_s3.pages import Pages
from hypercore_s3.place import LIST_KEYS_MAX, Place

#: A writer folds at most every few seconds; who is overtaken so often in a row reads too slowly for this writer.
TRIES_MAX: Final = 10
#: Commits that are asked for side by side when there are many.
COMMITS_AT_ONCE_MAX: Final = 32
#: Commits behind a checkpoint, and their bytes in memory. A writer folds long before; more can only be meant to fill
#: the memory of whoever reads.
COMMITS_MAX: Final = 1 << 16
COMMITS_BYTES_MAX: Final = 8 * FRONT_SIZE_MAX
#: Sees each commit that is about to be taken in, and may raise.
Check = Callable[[Commit], None]

#: Names that are shown of what does not belong here.
FOREIGN_SHOWN: Final = 100


def _checkpoint(found: FoundHead | None) -> Pointer | None:
    return None if found is None else found.head.checkpoint


class _OvertakenError(Exception):
    """Somebody changed the place meanwhile; never leaves this module."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What was read of a place: other contents, or without them those that are known; and the commits behind."""

    pointer: Pointer | None
    contents: Contents | None
    commits: Sequence[Commit] = ()
    #: The last commit.
    sequence: int
    #: The number of one that is missing before others.
    gap: int | None = None


class Journal:
    """What is known of a place."""

    def __init__(self, place: Place, pages: Pages, *, title: str, most_connections: int) -> None:
        self._place = place
        self._pages = pages
        self._title = title
        self._at_once = min(most_connections, COMMITS_AT_ONCE_MAX)
        self._pointer: Pointer | None = None
        self._loaded: Contents | None = None
        #: Raised when other contents take the place of those that were loaded.
        self.generation = 0
        self.found: FoundHead | None = None
        #: What lies in the place although it holds no storage.
        self.foreign: frozenset[str] = frozenset()
        self.warnings: list[str] = []

    @property
    def loaded(self) -> bool:
        return self._loaded is not None

    @property
    def contents(self) -> Contents:
        assert self._loaded is not None
        return self._loaded

    @property
    def lost(self) -> tuple[Pointer | None, int]:
        """What a missing head must have said at least, if there was none in the last refresh."""
        return self._pointer, 0 if self._loaded is None else self._loaded.epoch

    # ---- a reader ------------------------------------------------------------------------------------

    async def refresh(self, found: FoundHead | None = None) -> None:
        """As far as the writer had come when this was called, or further. `found` is the head if it was looked at
        just now."""
        stale = not self.loaded
        if stale and found is None:
            found = await read_head(self._place)
        gap = None
        for _ in range(TRIES_MAX):
            reading = None
            with contextlib.suppress(_OvertakenError):
                reading = await (self._read(found) if stale else self._read_on(self.known()))
            # What was missing may have been folded away meanwhile: only a head that has not moved says that it
            # never was there.
            again = await read_head(self._place)
            if reading is None and (again is None) == (found is None) and _checkpoint(again) == _checkpoint(found):
                raise CorruptError(
                    f"{self._title}: the checkpoint that the head points to is missing, or commits behind it"
                )
            gap = None if reading is None else reading.gap
            if reading is not None and self._still_holds(reading, found, again):
                if gap is None:
                    self.take_in(reading)
                    self._found(again)
                    return
            else:
                stale = True
            found = again
        if gap is not None:
            raise self._gap(gap)
        raise StorageError(f"{self._title}: the writer moves faster than this reader can follow")

    def _still_holds(self, reading: Reading, found: FoundHead | None, again: FoundHead | None) -> bool:
        """Whether nothing can have been folded away before it was read. `found` is the head that it began with, `again`
        the one there is now."""
        if again is not None:
            return _checkpoint(again) == reading.pointer
        # Of a head that was lost meanwhile nobody knows whether it had moved before; the objects say it.
        return found is None and (reading.contents is not None or not reading.sequence)

    async def look(self) -> FoundHead | None:
        """The head as it is now; nothing is changed by it."""
        return await read_head(self._place)

    def folded(self, pointer: Pointer) -> None:
        """The contents are what this checkpoint and the commits behind it say."""
        self._pointer = pointer

    def known(self) -> Reading:
        """Nothing was read but what is known."""
        return Reading(pointer=self._pointer, contents=None, sequence=self.contents.sequence)

    async def catch_up(self, found: FoundHead, check: Check, since: Reading | None = None) -> Reading:
        """To the end of the commits, for whoever has put that head: as long as nobody moves it, what is missing was
        never there. `check` sees each commit and may raise."""
        try:
            reading = await (self._read(found, check) if since is None else self._read_on(since, check))
        except _OvertakenError as error:
            raise CorruptError(f"{self._title}: commits are missing that had been there") from error
        while reading.gap is not None:
            # The writer before is still at work, and was quicker than our requests; unless it is missing again.
            gap, reading = reading.gap, await self._read_on(reading, check)
            if gap == reading.gap:
                raise self._gap(gap)
        return reading

    def stands_at(self, found: FoundHead) -> bool:
        """Whether what is known begins with the head's checkpoint, so that only commits can be missing."""
        return self.loaded and _checkpoint(found) == self._pointer

    def take_in(self, reading: Reading) -> None:
        """What was read is true. Raises `CorruptError` when the commits do not follow each other."""
        contents = self.contents if reading.contents is None else reading.contents
        for commit in reading.commits:
            contents.apply(commit)
        if contents is not self._loaded:
            self._pointer, self._loaded = reading.pointer, contents
            self.generation += 1

    def _found(self, found: FoundHead | None) -> None:
        self.found = found
        if found is not None:
            self.foreign = frozenset()

    def _gap(self, number: int) -> CorruptError:
        return CorruptError(f"{self._title}: object {commit_name(number)} is missing, and later ones are there")

    async def _read(self, found: FoundHead | None, check: Check | None = None) -> Reading:
        """What the head and the commits behind it say, which may not be less than what is known."""
        pointer = _checkpoint(found)
        if found is None:
            try:
                pointer, contents = await self._recover()
            except CorruptError as error:
                if await read_head(self._place) is None:
                    raise
                # Its writer has put it back meanwhile, and went on.
                raise _OvertakenError from error
        else:
            try:
                contents = await self._read_checkpoint(pointer)
            except (ObjectMissingError, AccessDeniedError) as error:
                raise _OvertakenError from error
        begun = Reading(pointer=pointer, contents=contents, sequence=contents.sequence)
        reading = await self._read_on(begun, check)
        if self._loaded is not None and reading.sequence < self._loaded.sequence:
            raise _OvertakenError
        return reading

    # ---- objects -------------------------------------------------------------------------------------

    async def _read_checkpoint(self, pointer: Pointer | None) -> Contents:
        """The index, and the pages beside it, which are kept."""
        if pointer is None:
            return Contents()
        found = await self._place.get(pointer.name, offset=pointer.hot, size=pointer.size - pointer.hot)
        if found.size != pointer.size:
            raise CorruptError(
                f"object {pointer.name} has {found.size} bytes; it had {pointer.size} when it was put",
                file=pointer.name,
            )
        start = pointer.index_offset - pointer.hot
        try:
            index = decode_index(found.data[start : start + pointer.index_size], pointer.name)
        except CorruptError:
            # What was damaged on its way is whole the second time.
            again = await self._place.get(pointer.name, offset=pointer.index_offset, size=pointer.index_size)
            index = decode_index(again.data, pointer.name)
        if index.sequence != pointer.sequence:
            raise CorruptError(f"object {pointer.name} covers another commit than the head says", file=pointer.name)
        for body in index.bodies:
            if body.name == pointer.name:
                if body.base + body.framed_size != pointer.index_offset:
                    raise CorruptError(
                        f"object {pointer.name} is damaged: its pages do not end where its index begins",
                        file=pointer.name,
                    )
                self._keep_hot(body, found.data, pointer)
        return Contents.of(index, pointer.name)

    def _keep_hot(self, body: Body, data: bytes, pointer: Pointer) -> None:
        first = body.count
        while first and body.position(first - 1) >= pointer.hot:
            first -= 1
        for number in range(first, body.count):
            start = body.position(number) - pointer.hot
            try:
                (frame,) = body.checked(number, number + 1, data[start : start + FRAME_SIZE + CHECK_SIZE])
            except CorruptError:
                # Whoever reads it will ask for it once more, and say so.
                continue
            self._pages.keep(body, number, frame)

    async def read_commit(self, sequence: int) -> Commit:
        """Raises `ObjectMissingError` and `CorruptError`."""
        name = commit_name(sequence)
        try:
            return await self._read_commit(name)
        except CorruptError:
            # What was damaged on its way is whole the second time.
            return await self._read_commit(name)

    async def _read_commit(self, name: str) -> Commit:
        found = await self._place.get(name, size=FRONT_GUESS)
        data, needed = found.data, needed_front(found.data, name)
        if needed > found.size:
            raise CorruptError(f"object {name} is cut short: it has {found.size} bytes", file=name)
        if needed > len(data):
            data += (await self._place.get(name, offset=len(data), size=needed - len(data))).data
        return decode_commit(data, name, found.size)

    async def _read_on(self, reading: Reading, check: Check | None = None) -> Reading:
        """What follows, until there is no more or one is missing before others."""
        at_once = 1
        commits, gap = [*reading.commits], None
        size = sum(commit.small_size for commit in commits)
        number = reading.sequence
        while True:
            first = number + 1
            found = await asyncio.gather(
                *(self._probe(following) for following in range(first, first + at_once)), return_exceptions=True
            )
            for index, commit in enumerate(found):
                if isinstance(commit, BaseException):
                    raise commit
                if commit is None:
                    if any(isinstance(later, Commit) for later in found[index:]):
                        gap = first + index
                    return replace(reading, commits=commits, sequence=number, gap=gap)
                if check is not None:
                    check(commit)
                commits.append(commit)
                number += 1
                size += commit.small_size
                if len(commits) > COMMITS_MAX or size > COMMITS_BYTES_MAX:
                    raise CorruptError(
                        f"{self._title}: {len(commits)} commits with {size} bytes follow each other without a "
                        "checkpoint, more than any writer leaves behind"
                    )
            at_once = min(2 * at_once, self._at_once)

    async def _probe(self, sequence: int) -> Commit | None:
        try:
            return await self.read_commit(sequence)
        except (ObjectMissingError, AccessDeniedError):
            # Where keys may not be listed, a store says of a missing one that it is not allowed. If this one is
            # there nevertheless, the next PUT under its name will find out.
            return None

    # ---- without a head -------------------------------------------------------------------------------

    async def _recover(self) -> tuple[Pointer | None, Contents]:
        """There is no head: nothing was ever here, or it was lost and the newest checkpoint stands in for it."""
        names = await self._place.names(limit=LIST_KEYS_MAX)
        foreign = sorted({name.partition("/")[0] for name in names if not belongs(name)})
        checkpoints, commits = [], []
        if names:
            checkpoints = await self._place.names("checkpoints/")
            commits = await self._place.names("commits/")
            if await read_head(self._place) is not None:
                raise _OvertakenError
        there = {*checkpoints, *commits}
        sequences = [number for name in commits if (number := commit_sequence(name)) is not None]
        covered = [number for name in checkpoints if (number := checkpoint_sequence(name)) is not None]
        for name in reversed([name for name in checkpoints if checkpoint_sequence(name) is not None]):
            try:
                pointer = await self._read_footer(name)
                contents = await self._read_checkpoint(pointer)
            except (CorruptError, ObjectMissingError):
                continue
            if not contents.objects <= there:
                # It was put, and the head never pointed to it.
                continue
            self._check_recovered(pointer, contents, sequences, covered)
            return pointer, contents
        if any(checkpoint_sequence(name) is not None for name in checkpoints):
            raise CorruptError(f"{self._title}: the head is lost, and none of the checkpoints can stand in for it")
        if sequences:
            self._check_recovered(None, Contents(), sequences, ())
            return None, Contents()
        self.foreign = frozenset(foreign[:FOREIGN_SHOWN])
        return None, Contents()

    def _check_recovered(
        self, pointer: Pointer | None, contents: Contents, sequences: Sequence[int], covered: Sequence[int]
    ) -> None:
        """All commits behind `contents` are there: up to the last one, and to those that any checkpoint covers, be it
        damaged. Raises `CorruptError`."""
        there = set(sequences)
        following = contents.sequence + 1
        while following in there:
            following += 1
        if following <= max((*sequences, *covered), default=0):
            raise CorruptError(
                f"{self._title}: the head is lost, and so is object {commit_name(following)} or a checkpoint behind it"
            )
        source = "its first commit" if pointer is None else f"checkpoint {pointer.name}"
        warning = f"{self._title}: object head was lost; what it said was found again from {source} on"
        if warning not in self.warnings:
            self.warnings.append(warning)

    async def _read_footer(self, name: str) -> Pointer:
        size = (await self._place.get(name, size=1)).size
        found = await self._place.get(name, offset=max(0, size - FOOTER_SIZE), size=FOOTER_SIZE)
        return decode_footer(found.data, name, size)

"""Reading a place: its head, the newest checkpoint, and the commits behind it.

Reads only. It must not know who writes. A writer at work may move things between two requests; whoever reads
begins again then, and never shows less than was there when it began.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from hypercore.errors import CorruptError, StorageError
from hypercore_s3.commits import FRONT_GUESS, Commit, decode_commit, needed_front
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
#: Sees each commit that is about to be taken in, and may raise.
Check = Callable[[Commit], None]

#: Names that are shown of what does not belong here.
FOREIGN_SHOWN: Final = 100


def _checkpoint(found: FoundHead | None) -> Pointer | None:
    return None if found is None else found.head.checkpoint


class _OvertakenError(Exception):
    """Somebody changed the place meanwhile; never leaves this module."""


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
        """What a missing head must have said at least."""
        return self._pointer, 0 if self._loaded is None else self._loaded.epoch

    # ---- a reader ------------------------------------------------------------------------------------

    async def refresh(self) -> None:
        """As far as the writer had come when this was called, or further."""
        stale = not self.loaded
        found = await read_head(self._place) if stale else None
        gap = None
        for _ in range(TRIES_MAX):
            try:
                gap = await (self._load(found) if stale else self._read_commits(self.contents))
            except _OvertakenError:
                overtaken = True
            else:
                overtaken = False
            # What was missing may have been folded away meanwhile: only a head that has not moved says that it
            # never was there.
            again = await read_head(self._place)
            if overtaken and (again is None) == (found is None) and _checkpoint(again) == _checkpoint(found):
                raise CorruptError(
                    f"{self._title}: the checkpoint that the head points to is missing, or commits behind it"
                )
            stale = overtaken or (again is not None and _checkpoint(again) != self._pointer)
            if not stale and gap is None:
                self._found(again)
                return
            found = again
        if gap is not None:
            raise self._gap(gap)
        raise StorageError(f"{self._title}: the writer moves faster than this reader can follow")

    async def look(self) -> FoundHead | None:
        """The head as it is now; nothing is changed by it."""
        return await read_head(self._place)

    def folded(self, pointer: Pointer) -> None:
        """The contents are what this checkpoint and the commits behind it say."""
        self._pointer = pointer

    def stands_at(self, found: FoundHead) -> bool:
        """Whether what is known begins with the head's checkpoint, so that only commits can be missing."""
        return self.loaded and _checkpoint(found) == self._pointer

    async def catch_up(self, found: FoundHead, check: Check) -> None:
        """To the end of the commits, for whoever has put that head: as long as nobody moves it, what is missing was
        never there. `check` sees each commit and may raise."""
        try:
            if self.stands_at(found):
                gap = await self._read_commits(self.contents, check)
            else:
                gap = await self._load(found, check)
        except _OvertakenError as error:
            raise CorruptError(f"{self._title}: commits are missing that had been there") from error
        while gap is not None:
            # The writer before is still at work, and was quicker than our requests; unless it is missing again.
            before, gap = gap, await self._read_commits(self.contents, check)
            if gap == before:
                raise self._gap(gap)
        self._found(found)

    def _found(self, found: FoundHead | None) -> None:
        self.found = found
        if found is not None:
            self.foreign = frozenset()

    def _gap(self, number: int) -> CorruptError:
        return CorruptError(f"{self._title}: object {commit_name(number)} is missing, and later ones are there")

    async def _load(self, found: FoundHead | None, check: Check | None = None) -> int | None:
        """What the head and the commits behind it say takes the place of what is known, which may not be more."""
        pointer = _checkpoint(found)
        if found is None:
            pointer, contents = await self._recover()
        else:
            try:
                contents = await self._read_checkpoint(pointer)
            except (ObjectMissingError, AccessDeniedError) as error:
                raise _OvertakenError from error
        gap = await self._read_commits(contents, check)
        if self._loaded is not None and contents.sequence < self._loaded.sequence:
            raise _OvertakenError
        self._pointer, self._loaded = pointer, contents
        self.generation += 1
        return gap

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
                self._keep_hot(body, found.data, pointer)
        return Contents.of(index, pointer.name)

    def _keep_hot(self, body: Body, data: bytes, pointer: Pointer) -> None:
        for number in range(body.count):
            start = body.position(number) - pointer.hot
            if start < 0:
                continue
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

    async def _read_commits(self, contents: Contents, check: Check | None = None) -> int | None:
        """Apply what follows until there is no more; the number of one that is missing before others, if there is
        such a gap."""
        at_once = 1
        while True:
            first = contents.sequence + 1
            found = await asyncio.gather(
                *(self._probe(number) for number in range(first, first + at_once)), return_exceptions=True
            )
            for number, commit in enumerate(found):
                if isinstance(commit, BaseException):
                    raise commit
                if commit is None:
                    return first + number if any(isinstance(later, Commit) for later in found[number:]) else None
                if check is not None:
                    check(commit)
                contents.apply(commit)
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
        for name in reversed([name for name in checkpoints if checkpoint_sequence(name) is not None]):
            try:
                pointer = await self._read_footer(name)
                contents = await self._read_checkpoint(pointer)
            except (CorruptError, ObjectMissingError):
                continue
            if not contents.objects <= there:
                # It was put, and the head never pointed to it.
                continue
            self._check_recovered(pointer, contents, sequences)
            return pointer, contents
        if any(checkpoint_sequence(name) is not None for name in checkpoints):
            raise CorruptError(f"{self._title}: the head is lost, and none of the checkpoints can stand in for it")
        if sequences:
            self._check_recovered(None, Contents(), sequences)
            return None, Contents()
        self.foreign = frozenset(foreign[:FOREIGN_SHOWN])
        return None, Contents()

    def _check_recovered(self, pointer: Pointer | None, contents: Contents, sequences: list[int]) -> None:
        first = contents.sequence + 1
        following = sorted(number for number in sequences if number >= first)
        if following != list(range(first, first + len(following))):
            lost = next(number for number in range(first, following[-1]) if number not in following)
            raise CorruptError(
                f"{self._title}: the head is lost, and so is object {commit_name(lost)} or a checkpoint behind it"
            )
        source = "its first commit" if pointer is None else f"checkpoint {pointer.name}"
        self.warnings.append(f"{self._title}: object head was lost; what it said was found again from {source} on")

    async def _read_footer(self, name: str) -> Pointer:
        size = (await self._place.get(name, size=1)).size
        found = await self._place.get(name, offset=max(0, size - FOOTER_SIZE), size=FOOTER_SIZE)
        return decode_footer(found.data, name, size)

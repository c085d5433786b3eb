"""Frames of immutable objects: fetched once, checked, kept while there is room.

It must not know files. A frame never changes, so one that is here never grows old. Callers who want the same frame
share one GET, and neighbouring frames of an object are one GET.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final

from hypercore.errors import ClosedError, CorruptError
from hypercore_s3.extents import Extent
from hypercore_s3.frames import FRAME_SIZE, Body
from hypercore_s3.place import Place

#: One GET of a larger read; several of them run side by side.
GET_FRAMES_MAX: Final = (4 << 20) // FRAME_SIZE
#: Reading ahead asks for less at once, so that the reader gets the first part early: a little over 1 MiB.
AHEAD_FRAMES: Final = 1 + (1 << 20) // FRAME_SIZE

#: A frame: its object's name and its number.
Key = tuple[str, int]


class Fetch:
    """One GET under way: for which frames, and how many callers wait for it."""

    __slots__ = ("body", "run", "task", "waiters")

    def __init__(self, body: Body, run: list[int], task: asyncio.Task[list[bytes]]) -> None:
        self.body = body
        self.run = run
        self.task = task
        self.waiters = 0


class Pages:
    """The frames of one place's objects."""

    def __init__(self, place: Place, *, cache_bytes: int) -> None:
        self._place = place
        self._cache_bytes = cache_bytes
        self._held: OrderedDict[Key, bytes] = OrderedDict()
        self._held_bytes = 0
        self._fetches: dict[Key, Fetch] = {}

    # ---- what is here -------------------------------------------------------------------------------

    def peek(self, body: Body, number: int) -> bytes | None:
        """The frame if it is here."""
        key = body.name, number
        data = self._held.get(key)
        if data is not None:
            self._held.move_to_end(key)
        return data

    def keep(self, body: Body, number: int, data: bytes) -> None:
        """The frame may be asked for; those that were not for the longest time make room."""
        key = body.name, number
        if len(data) > self._cache_bytes or key in self._held:
            return
        self._held[key] = data
        self._held_bytes += len(data)
        while self._held_bytes > self._cache_bytes:
            _, dropped = self._held.popitem(last=False)
            self._held_bytes -= len(dropped)

    def forget(self, names: Iterable[str]) -> None:
        """The objects are gone."""
        gone = set(names)
        for key in [key for key in self._held if key[0] in gone]:
            self._held_bytes -= len(self._held.pop(key))

    def known(self, extents: Sequence[Extent], start: int, end: int) -> bytes | None:
        """The file's bytes from `start` to `end`, of which these are the extents, if all of them are here."""
        found: dict[Key, bytes] = {}
        for body, number in wanted(extents):
            data = self.peek(body, number)
            if data is None:
                return None
            found[body.name, number] = data
        return assembled(extents, start, end, found)

    # ---- fetching -----------------------------------------------------------------------------------

    def begin(self, frames: Iterable[tuple[Body, int]]) -> None:
        """Begin to fetch what is not here; who begins so goes on with `load` without waiting for anything else."""
        missing = {(body.name, number): body for body, number in frames if (body.name, number) not in self._held}
        self._begin(missing, GET_FRAMES_MAX)

    async def load(self, frames: Iterable[tuple[Body, int]]) -> dict[Key, bytes]:
        """The frames, from here or from the store. Raises what `ObjectClient.get` does, and `CorruptError`."""
        found: dict[Key, bytes] = {}
        missing: dict[Key, Body] = {}
        for body, number in frames:
            data = self.peek(body, number)
            if data is None:
                missing[body.name, number] = body
            else:
                found[body.name, number] = data
        if not missing:
            return found
        self._begin(missing, GET_FRAMES_MAX)
        waited = {key: self._fetches[key] for key in missing}
        fetches = set(waited.values())
        for fetch in fetches:
            fetch.waiters += 1
        try:
            await asyncio.wait([fetch.task for fetch in fetches])
        finally:
            for fetch in fetches:
                fetch.waiters -= 1
            # A caller who was cancelled takes them from nobody else.
            self.give_up(fetches)
        for key, fetch in waited.items():
            if fetch.task.cancelled():
                raise ClosedError("the storage was closed during the read")
            if len(fetch.run) > 1 and isinstance(fetch.task.exception(), CorruptError):
                # The damage may lie in a frame that somebody else wanted.
                (found[key],) = await self._get(missing[key], key[1], key[1] + 1)
                self.keep(missing[key], key[1], found[key])
            else:
                found[key] = fetch.task.result()[key[1] - fetch.run[0]]
        return found

    def ahead(self, frames: Iterable[tuple[Body, int]]) -> list[Fetch]:
        """Begin to fetch what is not here, for a caller who will want it soon."""
        return self._begin(
            {(body.name, number): body for body, number in frames if (body.name, number) not in self._held},
            AHEAD_FRAMES,
        )

    def give_up(self, fetches: Iterable[Fetch]) -> None:
        """Stop those that nobody waits for."""
        for fetch in fetches:
            if not fetch.waiters and not fetch.task.done():
                self._forget_fetch(fetch)
                fetch.task.cancel()

    def _begin(self, missing: dict[Key, Body], most: int) -> list[Fetch]:
        """A fetch for each run of frames that no fetch is under way for."""
        begun = []
        run: list[int] = []
        name = ""
        for key in sorted(key for key in missing if key not in self._fetches):
            if run and (key[0] != name or key[1] != run[-1] + 1 or len(run) == most):
                begun.append(self._fetch(missing[name, run[0]], run))
                run = []
            name = key[0]
            run.append(key[1])
        if run:
            begun.append(self._fetch(missing[name, run[0]], run))
        return begun

    def _fetch(self, body: Body, run: list[int]) -> Fetch:
        task = asyncio.get_running_loop().create_task(self._get(body, run[0], run[-1] + 1))
        fetch = Fetch(body, run, task)
        for number in run:
            self._fetches[body.name, number] = fetch
        task.add_done_callback(lambda _: self._ended(fetch))
        return fetch

    def _ended(self, fetch: Fetch) -> None:
        self._forget_fetch(fetch)
        if not fetch.task.cancelled() and fetch.task.exception() is None:
            for number, data in zip(fetch.run, fetch.task.result(), strict=True):
                self.keep(fetch.body, number, data)

    def _forget_fetch(self, fetch: Fetch) -> None:
        for number in fetch.run:
            if self._fetches.get((fetch.body.name, number)) is fetch:
                del self._fetches[fetch.body.name, number]

    async def _get(self, body: Body, first: int, end: int) -> list[bytes]:
        offset = body.position(first)
        size = body.position(end) - offset if end < body.count else body.base + body.framed_size - offset
        try:
            return body.checked(first, end, (await self._place.get(body.name, offset=offset, size=size)).data)
        except CorruptError:
            # What was damaged on its way is whole the second time.
            return body.checked(first, end, (await self._place.get(body.name, offset=offset, size=size)).data)

    async def aclose(self) -> None:
        """Give up what is under way."""
        tasks = {fetch.task for fetch in self._fetches.values()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._held.clear()
        self._held_bytes = 0


def wanted(extents: Iterable[Extent]) -> list[tuple[Body, int]]:
    """The frames in which these extents lie."""
    frames = []
    for start, end, source, offset in extents:
        if isinstance(source, Body):
            first, last = source.number(offset), source.number(offset + end - start - 1)
            frames += [(source, number) for number in range(first, last + 1)]
    return frames


def assembled(extents: Sequence[Extent], start: int, end: int, frames: dict[Key, bytes]) -> bytes:
    """The file's bytes from `start` to `end`; what no extent covers is zeros."""
    parts: list[bytes | memoryview] = []
    reached = start
    for first, last, source, offset in extents:
        if first > reached:
            parts.append(bytes(first - reached))
        reached = last
        if not isinstance(source, Body):
            parts.append(memoryview(source)[offset : offset + last - first])
            continue
        number = source.number(offset)
        offset -= source.start(number)
        while first < last:
            part = memoryview(frames[source.name, number])[offset : offset + last - first]
            parts.append(part)
            first += len(part)
            number, offset = number + 1, 0
    if reached < end:
        parts.append(bytes(end - reached))
    return b"".join(parts)

"""Storages around a storage: one that fails, one that loses power, one that is far away.

Aside of the floors: it imports the promises only. Each wrapper keeps all of them as long as it is not told to
break one, so what works on it works on the storage inside.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from hypercore.errors import StorageError, StorageMissingError
from hypercore.storage import Operation, RandomAccess, Storage

Verb = Literal["create", "read", "write", "delete", "truncate", "sync", "unlink"]

#: What changes a storage or promises that it has changed.
CHANGES: frozenset[Verb] = frozenset({"create", "write", "delete", "truncate", "sync", "unlink"})
#: A disk loses or keeps what was written in pieces of this size, in any order.
SECTOR_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One operation as a wrapper saw it. A size that is given is that of a delete or truncate."""

    verb: Verb
    name: str
    offset: int = 0
    size: int = 0
    data: bytes = b""


class WrappedStorage(Storage):
    """Hands everything on. A commit is taken apart, so that a wrapper sees each of its operations."""

    def __init__(self, inner: Storage) -> None:
        self.inner = inner
        self.persistent = inner.persistent
        self.writable = inner.writable
        self.distant = inner.distant

    @property
    def warnings(self) -> Sequence[str]:
        return self.inner.warnings

    async def require_durable(self) -> None:
        await self.inner.require_durable()

    async def refresh(self) -> None:
        await self.inner.refresh()

    def __str__(self) -> str:
        return f"{type(self).__name__}({self.inner})"

    async def perform(self, step: Step, file: RandomAccess | None) -> bytes:
        """Carry out one operation on the open file (None for `create` and `unlink`); the bytes that were read."""
        match step.verb:
            case "create":
                await (await self.inner.open(step.name, create=True)).aclose()
            case "unlink":
                await self.inner.unlink(step.name)
            case _ if file is None:
                raise AssertionError(f"{step} has no file")
            case "read":
                return await file.read(step.offset, step.size)
            case "write":
                await file.write(step.offset, step.data)
            case "delete":
                await file.delete(step.offset, step.size)
            case "truncate":
                await file.truncate(step.size)
            case "sync":
                await file.sync()
        return b""

    async def open(self, name: str, *, create: bool = False) -> WrappedFile:
        try:
            file = await self.inner.open(name)
        except StorageMissingError:
            if not create:
                raise
            await self.perform(Step(verb="create", name=name), None)
            file = await self.inner.open(name)
        return WrappedFile(self, name, file)

    async def names(self) -> frozenset[str]:
        return await self.inner.names()

    async def unlink(self, name: str) -> None:
        await self.perform(Step(verb="unlink", name=name), None)

    async def acquire(self) -> None:
        await self.inner.acquire()

    async def aclose(self) -> None:
        await self.inner.aclose()


class WrappedFile(RandomAccess):
    """A file of a `WrappedStorage`."""

    def __init__(self, storage: WrappedStorage, name: str, inner: RandomAccess) -> None:
        self._storage = storage
        self._name = name
        self.inner = inner

    async def read(self, offset: int, size: int) -> bytes:
        return await self._storage.perform(Step(verb="read", name=self._name, offset=offset, size=size), self.inner)

    async def write(self, offset: int, data: bytes) -> None:
        await self._storage.perform(Step(verb="write", name=self._name, offset=offset, data=bytes(data)), self.inner)

    async def delete(self, offset: int, size: int) -> None:
        await self._storage.perform(Step(verb="delete", name=self._name, offset=offset, size=size), self.inner)

    async def truncate(self, size: int) -> None:
        await self._storage.perform(Step(verb="truncate", name=self._name, size=size), self.inner)

    async def size(self) -> int:
        return await self.inner.size()

    async def sync(self) -> None:
        await self._storage.perform(Step(verb="sync", name=self._name), self.inner)

    async def aclose(self) -> None:
        await self.inner.aclose()


class FaultyStorage(WrappedStorage):
    """Raises an error at the `fail_at`-th operation, counted from 1; None only counts.

    `verbs` are the operations that count, `error` makes the error from what would have been done. With `partial` a
    failing write writes the first half of its data before it fails. With `lasting` every operation after the
    failing one fails too, as on a disk that is full.
    """

    def __init__(
        self,
        inner: Storage,
        *,
        fail_at: int | None = None,
        error: Callable[[Step], BaseException] | None = None,
        partial: bool = False,
        lasting: bool = False,
        verbs: Collection[Verb] = CHANGES,
    ) -> None:
        super().__init__(inner)
        self.fail_at = fail_at
        #: How many operations there have been, the failing ones too.
        self.count = 0
        self._error = error or _injected
        self._partial = partial
        self._lasting = lasting
        self._verbs = frozenset(verbs)

    async def perform(self, step: Step, file: RandomAccess | None) -> bytes:
        if step.verb in self._verbs:
            self.count += 1
            if self.fail_at is not None and (
                self.count == self.fail_at or (self._lasting and self.count > self.fail_at)
            ):
                if self._partial and step.verb == "write" and file is not None:
                    await file.write(step.offset, step.data[: len(step.data) // 2])
                raise self._error(step)
        return await super().perform(step, file)


def _injected(step: Step) -> BaseException:
    return StorageError(f"injected: {step.verb} of {step.name!r} failed")


class LatencyStorage(WrappedStorage):
    """Waits before each call, as a storage behind a network does. A commit or a `read_many` is one call."""

    def __init__(self, inner: Storage, *, seconds: float) -> None:
        super().__init__(inner)
        self.seconds = seconds
        self.distant = True
        #: How often it has waited.
        self.round_trips = 0

    async def wait(self) -> None:
        """One round trip."""
        self.round_trips += 1
        await asyncio.sleep(self.seconds)

    async def perform(self, step: Step, file: RandomAccess | None) -> bytes:
        await self.wait()
        return await super().perform(step, file)

    async def open(self, name: str, *, create: bool = False) -> WrappedFile:
        await self.wait()
        return _FarFile(self, name, await self.inner.open(name, create=create))

    async def names(self) -> frozenset[str]:
        await self.wait()
        return await super().names()

    async def acquire(self) -> None:
        await self.wait()
        await super().acquire()

    async def commit(self, operations: Sequence[Operation]) -> None:
        await self.wait()
        await self.inner.commit(operations)


class _FarFile(WrappedFile):
    """A file of a `LatencyStorage`."""

    _storage: LatencyStorage

    async def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        await self._storage.wait()
        return await self.inner.read_many(ranges)

    async def size(self) -> int:
        await self._storage.wait()
        return await super().size()


class CrashStorage(WrappedStorage):
    """Remembers every change, and makes the storages that a crash after any of them may leave behind.

    `kill` is the end of the process: the changes up to one of them, which may be torn. `crash` is the end of the
    machine: of each file, what came before its last finished sync is there, and of the rest any part.
    """

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        #: Every change that was made, in order.
        self.steps: list[Step] = []
        self._before: dict[str, bytes | None] = {}

    async def perform(self, step: Step, file: RandomAccess | None) -> bytes:
        if step.verb not in CHANGES:
            return await super().perform(step, file)
        if step.name not in self._before:
            self._before[step.name] = await _content(self.inner, step.name)
        # A sync promises what had finished when it began, so that is its place in the order.
        position = len(self.steps)
        result = await super().perform(step, file)
        self.steps.insert(position if step.verb == "sync" else len(self.steps), step)
        return result

    async def kill(self, into: Storage, *, after: int, torn_bytes: int | None = None) -> Storage:
        """Fill the empty storage `into` with what the first `after` steps leave.

        With `torn_bytes` that much of the next step is there too, if it is a write.
        """
        files = await self._start()
        for step in self.steps[:after]:
            _apply(files, step)
        if torn_bytes is not None and after < len(self.steps) and self.steps[after].verb == "write":
            step = self.steps[after]
            _write(files, step.name, step.offset, step.data[:torn_bytes])
        return await _fill(into, files)

    async def crash(self, into: Storage, *, seed: int, after: int | None = None) -> Storage:
        """Fill the empty storage `into` with what a loss of power after the first `after` steps may leave.

        The same seed gives the same loss. A sync also keeps that its file exists.
        """
        random = Random(seed)
        steps = self.steps[:after]
        synced = {step.name: position for position, step in enumerate(steps) if step.verb == "sync"}
        # Some losses are of everything, some of nothing; most are of a part.
        kept_share = random.choice([0.0, 0.2, 0.5, 0.8, 1.0])
        files = await self._start()
        for position, step in enumerate(steps):
            if position <= synced.get(step.name, -1):
                _apply(files, step)
            elif step.verb == "write":
                _write_some(files, step, random, kept_share)
            elif random.random() < kept_share:
                _apply(files, step)
        return await _fill(into, files)

    async def _start(self) -> dict[str, bytearray | None]:
        """The files as they were before the first change to each."""
        files: dict[str, bytearray | None] = {}
        for name in await self.inner.names() | self._before.keys():
            content = self._before[name] if name in self._before else await _content(self.inner, name)
            files[name] = None if content is None else bytearray(content)
        return files


async def _content(storage: Storage, name: str) -> bytes | None:
    try:
        file = await storage.open(name)
    except StorageMissingError:
        return None
    try:
        return await file.read(0, await file.size())
    finally:
        await file.aclose()


def _apply(files: dict[str, bytearray | None], step: Step) -> None:
    match step.verb:
        case "create":
            if files.get(step.name) is None:
                files[step.name] = bytearray()
        case "unlink":
            files[step.name] = None
        case "write":
            _write(files, step.name, step.offset, step.data)
        case "truncate":
            held = _made(files, step.name)
            if step.size < len(held):
                del held[step.size :]
            else:
                held.extend(bytes(step.size - len(held)))
        case "delete":
            held = _made(files, step.name)
            end = min(step.offset + step.size, len(held))
            if step.offset < end:
                held[step.offset : end] = bytes(end - step.offset)


def _made(files: dict[str, bytearray | None], name: str) -> bytearray:
    held = files.get(name)
    if held is None:
        held = files[name] = bytearray()
    return held


def _write(files: dict[str, bytearray | None], name: str, offset: int, data: bytes) -> None:
    if not data:
        return
    held = _made(files, name)
    if len(held) < offset:
        held.extend(bytes(offset - len(held)))
    held[offset : offset + len(data)] = data


def _write_some(files: dict[str, bytearray | None], step: Step, random: Random, kept_share: float) -> None:
    """Any part of a write: each sector of it is there, or not, or torn."""
    position = 0
    while position < len(step.data):
        start = step.offset + position
        piece = step.data[position : position + SECTOR_BYTES - start % SECTOR_BYTES]
        position += len(piece)
        if random.random() < kept_share:
            torn = random.randrange(len(piece) + 1) if random.random() < 0.1 else len(piece)
            _write(files, step.name, start, piece[:torn])


async def _fill(storage: Storage, files: dict[str, bytearray | None]) -> Storage:
    if await storage.names():
        raise AssertionError(f"{storage} is not empty; what a crash leaves needs a place of its own")
    for name, held in files.items():
        if held is not None:
            file = await storage.open(name, create=True)
            await file.write(0, bytes(held))
            await file.aclose()
    return storage

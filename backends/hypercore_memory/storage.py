"""Files in memory, as sparse pages, so that a clone which holds one block at offset 10 GB costs one page.

This module must not know what the files mean, nor do anything that blocks or waits.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

from hypercore.errors import AddressError, ClosedError, LockedError, OutOfBoundsError, StorageMissingError
from hypercore.options import build_options
from hypercore.storage import (
    Delete,
    Operation,
    RandomAccess,
    Storage,
    Sync,
    Truncate,
    Write,
    check_name,
    check_range,
)
from hypercore.urls import Address

#: Small enough that a hole of one large block frees memory, large enough that a block rarely spans two pages.
PAGE_BYTES = 65536

_shared: dict[str, _Place] = {}
_shared_lock = threading.Lock()


class _Bytes:
    """One file. A page that is missing, or the missing tail of one, reads as zeros."""

    __slots__ = ("pages", "size", "unlinked")

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}
        self.size = 0
        self.unlinked = False

    def read(self, offset: int, size: int) -> bytes:
        start = offset % PAGE_BYTES
        if start + size > PAGE_BYTES:
            return self._read_across(offset, size)
        page = self.pages.get(offset // PAGE_BYTES)
        if page is None:
            return bytes(size)
        found = bytes(page[start : start + size])
        return found if len(found) == size else found.ljust(size, b"\0")

    def _read_across(self, offset: int, size: int) -> bytes:
        result = bytearray(size)
        for number, start, end, position in _pieces(offset, size):
            page = self.pages.get(number)
            if page is not None:
                found = page[start:end]
                result[position : position + len(found)] = found
        return bytes(result)

    def write(self, offset: int, data: bytes) -> None:
        check_range(offset)
        if not data:
            return
        view = memoryview(data)
        for number, start, end, position in _pieces(offset, len(view)):
            page = self.pages.get(number)
            if page is None:
                page = self.pages[number] = bytearray()
            if len(page) < start:
                page.extend(bytes(start - len(page)))
            page[start:end] = view[position : position + end - start]
        self.size = max(self.size, offset + len(view))

    def delete(self, offset: int, size: int) -> None:
        check_range(offset, size)
        end = min(offset + size, self.size)
        if offset >= end:
            return
        first, last = offset // PAGE_BYTES, (end - 1) // PAGE_BYTES
        for number in self._held(first, last):
            page = self.pages[number]
            page_start = number * PAGE_BYTES
            start, stop = max(offset - page_start, 0), min(end - page_start, len(page))
            if start == 0 and stop == len(page):
                del self.pages[number]
            elif start < stop:
                page[start:stop] = bytes(stop - start)

    def truncate(self, size: int) -> None:
        check_range(0, size)
        if size < self.size:
            number, start = divmod(size, PAGE_BYTES)
            for later in self._held(number + (1 if start else 0), (self.size - 1) // PAGE_BYTES):
                del self.pages[later]
            if start and number in self.pages:
                del self.pages[number][start:]
        self.size = size

    def _held(self, first: int, last: int) -> list[int]:
        """The numbers of the pages in memory between two: never a walk over the holes of a sparse file."""
        if last - first < len(self.pages):
            return [number for number in range(first, last + 1) if number in self.pages]
        return [number for number in self.pages if first <= number <= last]


def _pieces(offset: int, size: int) -> list[tuple[int, int, int, int]]:
    """A range as (page number, start and end in the page, position in the range)."""
    pieces = []
    position = 0
    while position < size:
        number, start = divmod(offset + position, PAGE_BYTES)
        end = min(start + size - position, PAGE_BYTES)
        pieces.append((number, start, end, position))
        position += end - start
    return pieces


class _Place:
    """What one address denotes: the files, and the writer who has the lease."""

    def __init__(self, name: str | None) -> None:
        self.name = name
        self.files: dict[str, _Bytes] = {}
        self.visitors: weakref.WeakSet[MemoryStorage] = weakref.WeakSet()
        self.writer: weakref.ref[MemoryStorage] | None = None

    @classmethod
    def enter(cls, name: str | None, visitor: MemoryStorage) -> _Place:
        with _shared_lock:
            place = cls(name) if name is None else _shared.setdefault(name, cls(name))
            place.visitors.add(visitor)
            return place

    def leave(self, visitor: MemoryStorage) -> None:
        with _shared_lock:
            self.visitors.discard(visitor)
            if self.writer is not None and self.writer() is visitor:
                self.writer = None
            if self.name is not None and not self.files and not self.visitors:
                _shared.pop(self.name, None)

    def lease(self, visitor: MemoryStorage) -> None:
        with _shared_lock:
            holder = None if self.writer is None else self.writer()
            if holder is not None and holder is not visitor:
                raise LockedError(f"{visitor} is held by another writer of this process; close that one first")
            self.writer = weakref.ref(visitor)


class MemoryFile(RandomAccess):
    """A handle to one file of a `MemoryStorage`."""

    def __init__(self, storage: MemoryStorage, name: str, held: _Bytes) -> None:
        self._storage = storage
        self._name = name
        self._bytes = held
        self._closed = False

    def _live(self) -> _Bytes:
        if self._closed or self._storage.closed or self._bytes.unlinked:
            raise ClosedError(f"{self._storage}: file {self._name!r} is closed")
        return self._bytes

    async def read(self, offset: int, size: int) -> bytes:
        held = self._live()
        check_range(offset, size)
        if size == 0:
            return b""
        if offset + size > held.size:
            raise OutOfBoundsError(
                f"{self._storage}: file {self._name!r} has {held.size} bytes, but {size} at offset {offset} were asked"
            )
        return held.read(offset, size)

    async def write(self, offset: int, data: bytes) -> None:
        self._live().write(offset, data)

    async def delete(self, offset: int, size: int) -> None:
        self._live().delete(offset, size)

    async def truncate(self, size: int) -> None:
        self._live().truncate(size)

    async def size(self) -> int:
        return self._live().size

    async def sync(self) -> None:
        self._live()

    async def aclose(self) -> None:
        self._closed = True


class MemoryStorage(Storage):
    """Files in the memory of this process: private, or shared by everybody who says the same `name`."""

    persistent = False
    prompt = True

    def __init__(self, name: str | None = None) -> None:
        self.closed = False
        self._name = name
        self._place = _Place.enter(name, self)

    def __str__(self) -> str:
        return f"memory:{self._name or ''}"

    def __repr__(self) -> str:
        return f"MemoryStorage({self._name!r})" if self._name else "MemoryStorage()"

    def _live(self) -> _Place:
        if self.closed:
            raise ClosedError(f"{self} is closed")
        return self._place

    def _held(self, name: str, *, create: bool) -> _Bytes | None:
        files = self._live().files
        held = files.get(name)
        if held is None:
            check_name(name)
            if create:
                held = files.setdefault(name, _Bytes())
        return held

    async def open(self, name: str, *, create: bool = False) -> MemoryFile:
        held = self._held(name, create=create)
        if held is None:
            raise StorageMissingError(f"{self} has no file {name!r}")
        return MemoryFile(self, name, held)

    async def names(self) -> frozenset[str]:
        return frozenset(self._live().files)

    async def unlink(self, name: str) -> None:
        check_name(name)
        held = self._live().files.pop(name, None)
        if held is not None:
            held.unlinked = True

    async def acquire(self) -> None:
        self._live().lease(self)

    async def commit(self, operations: Sequence[Operation]) -> None:
        for operation in operations:
            if isinstance(operation, Sync):
                self._live()
                continue
            held = self._held(operation.name, create=not isinstance(operation, Delete))
            if held is None:
                continue
            if isinstance(operation, Write):
                held.write(operation.offset, operation.data)
            elif isinstance(operation, Truncate):
                held.truncate(operation.size)
            else:
                held.delete(operation.offset, operation.size)

    async def aclose(self) -> None:
        if not self.closed:
            self.closed = True
            self._place.leave(self)


@dataclass(frozen=True, kw_only=True)
class MemoryOptions:
    """The memory backend has no options; this is what says so."""


def open_storage(address: Address, **options: object) -> MemoryStorage:
    """The storage of a `memory:` address. Raises `AddressError`, `OptionError`."""
    if address.host is not None:
        raise AddressError(f"{str(address)!r}: a place in memory is written 'memory:name'")
    build_options(MemoryOptions, query=address.query, keywords=options, of="a storage in memory")
    return MemoryStorage(address.path or None)

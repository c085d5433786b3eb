"""The backend: the small methods, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypercore.errors import ClosedError, LockedError, OptionError, OutOfBoundsError, StorageMissingError
from hypercore.options import build_options
from hypercore.storage import RandomAccess, Storage, check_name, check_range
from hypercore.urls import Address


@dataclass
class Place:
    """What one address denotes, for the life of the process."""

    files: dict[str, bytearray] = field(default_factory=dict)
    writer: ToyStorage | None = None


places: dict[str, Place] = {}


@dataclass(frozen=True, kw_only=True)
class ToyOptions:
    """What can be said after the question mark."""

    quota_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        if self.quota_bytes < 0:
            raise OptionError(f"quota_bytes must not be negative, and is {self.quota_bytes}")


def open_storage(address: Address, **options: object) -> ToyStorage:
    """The storage of `toy:name`."""
    chosen = build_options(ToyOptions, query=address.query, keywords=options, of="a toy storage")
    return ToyStorage(address.path, chosen)


class ToyStorage(Storage):
    """Files in a dictionary."""

    persistent = False

    def __init__(self, name: str, options: ToyOptions) -> None:
        self.name = name
        self.options = options
        self.closed = False

    def __str__(self) -> str:
        return f"toy:{self.name}"

    def place(self) -> Place:
        if self.closed:
            raise ClosedError(f"{self} is closed")
        return places.setdefault(self.name, Place())

    async def open(self, name: str, *, create: bool = False) -> ToyFile:
        check_name(name)
        files = self.place().files
        if name not in files:
            if not create:
                raise StorageMissingError(f"{self} has no file {name!r}")
            files[name] = bytearray()
        return ToyFile(self, name, files[name])

    async def names(self) -> frozenset[str]:
        return frozenset(self.place().files)

    async def unlink(self, name: str) -> None:
        check_name(name)
        self.place().files.pop(name, None)

    async def acquire(self) -> None:
        place = self.place()
        if place.writer not in (None, self):
            raise LockedError(f"{self} has a writer")
        place.writer = self

    async def aclose(self) -> None:
        if not self.closed:
            place = self.place()
            if place.writer is self:
                place.writer = None
            self.closed = True


class ToyFile(RandomAccess):
    """One value of the dictionary."""

    def __init__(self, storage: ToyStorage, name: str, held: bytearray) -> None:
        self.storage = storage
        self.name = name
        self.held = held
        self.closed = False

    def live(self, offset: int = 0, size: int = 0) -> bytearray:
        check_range(offset, size)
        if self.closed or self.storage.place().files.get(self.name) is not self.held:
            raise ClosedError(f"file {self.name!r} of {self.storage} is closed")
        return self.held

    async def read(self, offset: int, size: int) -> bytes:
        held = self.live(offset, size)
        if size and offset + size > len(held):
            raise OutOfBoundsError(f"file {self.name!r} has {len(held)} bytes")
        return bytes(held[offset : offset + size])

    async def write(self, offset: int, data: bytes) -> None:
        held = self.live(offset)
        if data:
            held.extend(bytes(max(0, offset - len(held))))
            held[offset : offset + len(data)] = data

    async def delete(self, offset: int, size: int) -> None:
        self.live(offset, size)

    async def truncate(self, size: int) -> None:
        held = self.live(0, size)
        held.extend(bytes(max(0, size - len(held))))
        del held[size:]

    async def size(self) -> int:
        return len(self.live())

    async def sync(self) -> None:
        self.live()

    async def aclose(self) -> None:
        self.closed = True

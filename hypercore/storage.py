"""What a storage backend promises: files of bytes, one writer, and one ordered commit.

Promise floor: the interface that plugins implement and the engine leans on. It knows nothing of logs or trees.
`hypercore.testing.StorageContract` proves every sentence here for a backend.

Two levels, because a core needs several files. A `Storage` is what an address denotes; a `RandomAccess` is one
file in it. A plugin author writes the small abstract methods and gets a correct core; overriding `commit` and
`read_many` gives speed later.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from hypercore.errors import OptionError, StorageMissingError

#: What every file system, key and object name can hold.
NAME_BYTES_MAX = 255


def check_name(name: str) -> None:
    """Refuse a name that no backend file can have: empty, a path, or too long. Raises `OptionError`."""
    if not name or name in (".", "..") or "/" in name or "\0" in name or len(name.encode()) > NAME_BYTES_MAX:
        raise OptionError(f"{name!r} is no file name: it must be 1 to {NAME_BYTES_MAX} bytes, without '/', '.' or '..'")


def check_range(offset: int, size: int = 0) -> None:
    """Refuse a negative offset or size. Raises `OptionError`."""
    if offset < 0 or size < 0:
        raise OptionError(f"offset {offset} and size {size} must not be negative")


@dataclass(frozen=True, slots=True)
class Write:
    """Put `data` at `offset` of file `name`, creating the file if need be; a gap before it reads as zeros."""

    name: str
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Delete:
    """Make `size` bytes at `offset` of file `name` worthless; a missing file is fine."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Truncate:
    """Make file `name` exactly `size` bytes long, growing with zeros, creating it if need be."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Sync:
    """Everything before this point must survive a crash of the machine before anything after it is done.

    `names` are the files concerned. A backend whose commit is atomic may ignore all but the last.
    """

    names: tuple[str, ...]


Operation = Write | Delete | Truncate | Sync


class RandomAccess(ABC):
    """One growable array of bytes. Offsets and sizes are bytes.

    Calls on one file may be in flight together; a call sees the effect of every call that had finished before.
    """

    @abstractmethod
    async def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes. Raises `OutOfBoundsError` when they reach past the end; size 0 never does."""

    async def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Several `(offset, size)` reads; a backend behind a network does them in one round trip."""
        return [await self.read(offset, size) for offset, size in ranges]

    @abstractmethod
    async def write(self, offset: int, data: bytes) -> None:
        """Write past the end extends; a gap reads as zeros. Empty data changes nothing."""

    @abstractmethod
    async def delete(self, offset: int, size: int) -> None:
        """The range becomes worthless: it may read as zeros, as before, or be past the end if it was the end."""

    @abstractmethod
    async def truncate(self, size: int) -> None:
        """The size becomes exactly `size`; growing fills with zeros."""

    @abstractmethod
    async def size(self) -> int:
        """Bytes in the file."""

    @abstractmethod
    async def sync(self) -> None:
        """When this returns, every write that had finished before it survives a crash of the machine."""

    @abstractmethod
    async def aclose(self) -> None:
        """Let go of the file. Twice is fine; afterwards every other call raises `ClosedError`."""


class Storage(ABC):
    """What an address denotes: named files, one writer at a time."""

    #: Whether the bytes outlive this process.
    persistent: bool = True
    #: False when this place can only be read.
    writable: bool = True
    #: True when a commit seldom waits, and nothing in it asks which task it runs in (as timeouts do). The engine
    #: then begins it in the caller's task; a commit that may not be torn by a cancelled caller needs one of its own.
    prompt: bool = False
    #: True when every read is a round trip that costs time or money. The engine then keeps what it would otherwise
    #: have to look for in many places close together.
    distant: bool = False

    @property
    def warnings(self) -> Sequence[str]:
        """What is wrong with this place and could be lived with so far, such as a server that may drop keys."""
        return ()

    async def require_durable(self) -> None:  # noqa: B027 - most have nothing to check
        """Called once before the first change when a finished `Sync` has to survive a crash of the machine.

        Raises `NotDurableError`, which says what the place does keep, when it cannot promise that or cannot tell.
        """

    async def refresh(self) -> None:  # noqa: B027 - most have nothing to do
        """For a reader without the lease: see what the writer has written since. A backend that looks at the place
        in every call has nothing to do."""

    @abstractmethod
    async def open(self, name: str, *, create: bool = False) -> RandomAccess:
        """The file `name`. Raises `StorageMissingError` when it does not exist, unless `create` makes it.

        The same name may be opened several times; all handles see one file.
        """

    @abstractmethod
    async def names(self) -> frozenset[str]:
        """All that exists here, whoever made it: a place that does not exist yet is empty.

        Names that no backend file can have (a folder inside a folder) are reported too, so that the engine can
        tell a foreign place from an empty one.
        """

    @abstractmethod
    async def unlink(self, name: str) -> None:
        """Remove the file; a missing one is fine. Open handles to it become closed."""

    @abstractmethod
    async def acquire(self) -> None:
        """Take the exclusive writer lease, until `aclose`. Twice by one object is fine.

        Raises `LockedError` when another writer has it. Backends that can lose a lease raise `FencedError` from
        every later change instead of letting two writers in. Reading never needs it. Creates at most what the
        lease itself needs, and never changes a file that exists.
        """

    async def commit(self, operations: Sequence[Operation]) -> None:
        """Carry out the operations in order, as one mutation of the engine.

        After a crash any prefix may have happened (an atomic backend: all or nothing), and what came before a
        finished `Sync` certainly did. After an error the caller must assume any prefix, too.
        """
        opened: dict[str, RandomAccess] = {}
        try:
            for operation in operations:
                await self._perform(operation, opened)
        finally:
            for file in opened.values():
                await file.aclose()

    async def _perform(self, operation: Operation, opened: dict[str, RandomAccess]) -> None:
        async def handle(name: str, *, create: bool) -> RandomAccess:
            if name not in opened:
                opened[name] = await self.open(name, create=create)
            return opened[name]

        match operation:
            case Write(name, offset, data):
                await (await handle(name, create=True)).write(offset, data)
            case Truncate(name, size):
                await (await handle(name, create=True)).truncate(size)
            case Delete(name, offset, size):
                try:
                    file = await handle(name, create=False)
                except StorageMissingError:
                    return
                await file.delete(offset, size)
            case Sync(names):
                for name in names:
                    try:
                        file = await handle(name, create=False)
                    except StorageMissingError:
                        continue
                    await file.sync()

    @abstractmethod
    async def aclose(self) -> None:
        """Close every file and give the lease back. Twice is fine; afterwards every other call raises `ClosedError`."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

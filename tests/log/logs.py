"""Building blocks for the tests of the engine: disks that survive their storage, readers, and what a log shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hypercore.crypto import KeyPair
from hypercore.errors import (
    ClosedError,
    CorruptError,
    LockedError,
    OutOfBoundsError,
    StorageFullError,
    StorageMissingError,
)
from hypercore.log.engine import Log
from hypercore.proofs import BlockRequest, Proof, ProofRequest, UpgradeRequest
from hypercore.storage import Operation, RandomAccess, Storage
from tests.disk_vectors import Files

KEY_PAIR = KeyPair.from_seed(b"\x01" * 32)


class Disk:
    """Files that stay when the storage is closed, and every commit that was made on them."""

    def __init__(self, files: Mapping[str, bytes] = {}) -> None:
        self.contents: dict[str, bytearray] = {name: bytearray(data) for name, data in files.items()}
        self.commits: list[tuple[Operation, ...]] = []
        self.reads: list[tuple[str, int, int]] = []
        self.holder: object = None

    def files(self) -> Files:
        return {name: bytes(data) for name, data in self.contents.items()}

    def storage(self) -> DiskStorage:
        """A new storage on this disk; it takes no lease from a storage that was dropped without closing."""
        self.holder = None
        return DiskStorage(self)


class DiskStorage(Storage):
    """A storage that commits without waiting, as the file backend mostly does."""

    prompt = True

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.closed = False

    def check(self) -> dict[str, bytearray]:
        if self.closed:
            raise ClosedError("the storage is closed")
        return self.disk.contents

    async def open(self, name: str, *, create: bool = False) -> DiskFile:
        if name not in self.check():
            if not create:
                raise StorageMissingError(f"no file {name}")
            self.disk.contents[name] = bytearray()
        return DiskFile(self, name)

    async def names(self) -> frozenset[str]:
        return frozenset(self.check())

    async def unlink(self, name: str) -> None:
        self.check().pop(name, None)

    async def acquire(self) -> None:
        self.check()
        if self.disk.holder not in (None, self):
            raise LockedError("somebody else has the lease")
        self.disk.holder = self

    async def commit(self, operations: Sequence[Operation]) -> None:
        assert self.disk.holder is self, "a commit without the lease"
        self.disk.commits.append(tuple(operations))
        await super().commit(operations)

    async def aclose(self) -> None:
        self.closed = True
        if self.disk.holder is self:
            self.disk.holder = None


class FailingStorage(DiskStorage):
    """Raises before or within the commit that is counted down to: after so many operations of it."""

    def __init__(self, disk: Disk) -> None:
        super().__init__(disk)
        self.commits_left: int | None = None
        self.operations_done = 0
        self.error: Exception = StorageFullError("no space left")

    async def commit(self, operations: Sequence[Operation]) -> None:
        if self.commits_left == 0:
            self.commits_left = None
            await super().commit(operations[: self.operations_done])
            raise self.error
        if self.commits_left:
            self.commits_left -= 1
        await super().commit(operations)


class ChecksummedStorage(DiskStorage):
    """Refuses to read `bad` bytes of a file, as a storage does that has checksums of its own, and knows no blocks."""

    def __init__(self, disk: Disk, bad: Mapping[str, range]) -> None:
        super().__init__(disk)
        self.bad = bad

    async def open(self, name: str, *, create: bool = False) -> DiskFile:
        await super().open(name, create=create)
        return ChecksummedFile(self, name, self.bad.get(name, range(0)))


class DiskFile(RandomAccess):
    def __init__(self, storage: DiskStorage, name: str) -> None:
        self.storage = storage
        self.name = name

    @property
    def data(self) -> bytearray:
        return self.storage.check()[self.name]

    async def read(self, offset: int, size: int) -> bytes:
        self.storage.disk.reads.append((self.name, offset, size))
        if size and offset + size > len(self.data):
            raise OutOfBoundsError(f"{self.name} has {len(self.data)} bytes")
        return bytes(self.data[offset : offset + size])

    async def write(self, offset: int, data: bytes) -> None:
        if data:
            held = self.data
            held.extend(bytes(max(0, offset - len(held))))
            held[offset : offset + len(data)] = data

    async def delete(self, offset: int, size: int) -> None:
        assert size > 0, "an empty delete is an error on Linux"
        held = self.data
        end = min(offset + size, len(held))
        held[offset:end] = bytes(max(0, end - offset))

    async def truncate(self, size: int) -> None:
        held = self.data
        held.extend(bytes(max(0, size - len(held))))
        del held[size:]

    async def size(self) -> int:
        return len(self.data)

    async def sync(self) -> None:
        self.storage.check()

    async def aclose(self) -> None:
        pass


class ChecksummedFile(DiskFile):
    def __init__(self, storage: DiskStorage, name: str, bad: range) -> None:
        super().__init__(storage, name)
        self.bad = bad

    async def read(self, offset: int, size: int) -> bytes:
        if max(offset, self.bad.start) < min(offset + size, self.bad.stop):
            raise CorruptError("object 7 does not fit its checksum", file="object 7")
        return await super().read(offset, size)


async def new_log(disk: Disk | None = None, **options: Any) -> Log:
    """A writable log with the usual key pair."""
    options.setdefault("key_pair", KEY_PAIR)
    return await Log.open((disk or Disk()).storage(), **options)


async def reader_of(writer: Log, disk: Disk | None = None, *, upgraded: bool = True) -> Log:
    """An empty reader of the writer's log, which knows the manifest and the length."""
    reader = await Log.open((disk or Disk()).storage(), key=writer.key)
    if upgraded and writer.length:
        assert await reader.apply([await upgrade_proof(writer, reader)]) == [None]
    return reader


async def upgrade_proof(writer: Log, reader: Log) -> Proof:
    request = UpgradeRequest(reader.length, writer.length - reader.length)
    return await writer.prove(ProofRequest(reader.fork, upgrade=request, manifest=reader.manifest is None))


async def block_proof(writer: Log, reader: Log, index: int) -> Proof:
    nodes = await reader.missing_nodes(2 * index)
    return await writer.prove(ProofRequest(reader.fork, block=BlockRequest(index, nodes)))


async def fetch(writer: Log, reader: Log, indexes: Iterable[int]) -> None:
    """Bring the blocks over in one commit."""
    proofs = [await block_proof(writer, reader, index) for index in indexes]
    assert await reader.apply(proofs) == [None] * len(proofs)


async def follow(writer: Log, reader: Log) -> None:
    """Take the reader to the writer's fork."""
    request = ProofRequest(writer.fork, upgrade=UpgradeRequest(0, writer.length), manifest=reader.manifest is None)
    reorg = await reader.begin_reorg(await writer.prove(request))
    while (wanted := reorg.next_request()) is not None:
        await reorg.receive(reader, await writer.prove(wanted))
    await reader.commit_reorg(reorg)


def have(log: Log) -> list[int]:
    """The blocks that are stored."""
    return [index for index in range(log.length) if log.has(index)]


async def contents(log: Log) -> list[bytes | None]:
    """Every block, None where it is not stored."""
    return [await log.get(index) for index in range(log.length)]


async def shown(log: Log) -> dict[str, Any]:
    """What a log says of itself, in the words of the vectors."""
    return {
        "fork": log.fork,
        "length": log.length,
        "byteLength": log.byte_length,
        "treeHash": (await log.tree_hash()).hex(),
        "signature": log.signature.hex() or None,
        "have": [list(run) for run in log.bitfield.runs(0, log.length)],
        "userData": {key: value.hex() for key, value in log.user_data.items()},
    }

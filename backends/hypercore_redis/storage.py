"""A place in a Redis server as a storage: its files, and reads of them.

Knows who may read what at which cost; it must not know what the files mean. The layout is in
docs/decisions/redis-layout.md, changes are in `lease`.

Whoever has the lease is the only one to change anything, so it knows every size without asking, and a read is one
GETRANGE. Everybody else asks the head in the same round trip.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from redis.asyncio import Redis, RedisCluster

from hypercore.errors import (
    ClosedError,
    NotWritableError,
    OptionError,
    OutOfBoundsError,
    StorageError,
    StorageMissingError,
)
from hypercore.storage import Delete, Operation, RandomAccess, Storage, Truncate, Write, check_name, check_range
from hypercore.urls import Address
from hypercore_redis.channel import Reply
from hypercore_redis.lease import Lease, check_format
from hypercore_redis.options import PlaceOptions, RedisOptions, read_address
from hypercore_redis.pages import Contents, Draft, Layout, Range, inside, parse_number, parse_ranges, pieces
from hypercore_redis.scripts import PAGE_BYTES, Command
from hypercore_redis.servers import Server, server_at, server_of
from hypercore_redis.session import LostCommitsError as LostCommitsError
from hypercore_redis.session import Session, pairs

__all__ = ["LostCommitsError", "RedisFile", "RedisOptions", "RedisStorage", "open_storage"]

#: A reader asks again when a writer was at work between the size and the bytes; it hardly ever is.
READ_ATTEMPTS: Final = 20
#: So much is asked for together: the server keeps a whole answer in memory.
READ_BYTES_MAX: Final = 8 * 1024 * 1024

_Ranges = Sequence[tuple[int, int]]


class _Shared:
    """What all handles of one file share."""

    __slots__ = ("gone",)

    def __init__(self) -> None:
        self.gone = False


class RedisFile(RandomAccess):
    """A handle to one file of a `RedisStorage`."""

    def __init__(self, storage: RedisStorage, name: str, shared: _Shared) -> None:
        self._storage = storage
        self._session = storage.session
        self._lease = storage.lease
        self._name = name
        self._shared = shared
        self._closed = False
        self._pages = storage.layout.page(name, 0)[:-1]

    def __repr__(self) -> str:
        return f"RedisFile({self._name!r} of {self._storage})"

    async def read(self, offset: int, size: int) -> bytes:
        contents = self._lease.contents
        number, start = divmod(offset, PAGE_BYTES)
        end = start + size
        if (
            contents is not None
            and size > 0
            and end <= PAGE_BYTES
            and 0 <= offset <= contents.sizes.get(self._name, 0) - size
            and not contents.debris
            and self._session.alive
            and not (self._closed or self._shared.gone or self._storage.closed)
        ):
            data: bytes = await self._session.ask(("GETRANGE", f"{self._pages}{number}", start, end - 1))
            if self._lease.contents is not None:
                return data if len(data) == size else data.ljust(size, b"\0")
        return (await self.read_many([(offset, size)]))[0]

    async def read_many(self, ranges: _Ranges) -> list[bytes]:
        self._check_live()
        found: list[bytes] = []
        batch: list[tuple[int, int]] = []
        batch_bytes = 0
        for offset, size in ranges:
            check_range(offset, size)
            part = offset
            while part == offset or part < offset + size:
                if batch_bytes >= READ_BYTES_MAX:
                    found += await self._read(batch)
                    batch, batch_bytes = [], 0
                end = min(offset + size, part + READ_BYTES_MAX - batch_bytes)
                batch.append((part, end - part))
                batch_bytes += end - part
                if end == part:
                    break
                part = end
        found += await self._read(batch)
        return _regroup(found, [size for _, size in ranges])

    async def _read(self, ranges: _Ranges) -> list[bytes]:
        if not any(size for _, size in ranges):
            return [b""] * len(ranges)
        contents = await self._lease.known()
        if contents is not None:
            self._check_bounds(ranges, contents.sizes.get(self._name))
            replies = await self._session.ask_many(self._commands(ranges))
            if self._lease.contents is not None:
                return _assemble(ranges, replies, contents.debris.get(self._name, ()))
        return await self._read_without_lease(ranges)

    async def _read_without_lease(self, ranges: _Ranges) -> list[bytes]:
        head, name = self._storage.layout.head, self._name
        commands: list[Command] = [
            ("HMGET", head, "sequence", f"/{name}", f"-{name}"),
            *self._commands(ranges),
            ("HGET", head, "sequence"),
        ]
        for _ in range(READ_ATTEMPTS):
            (sequence, size, debris), *replies, after = await self._session.ask_many(commands)
            self._lease.saw(sequence)
            if sequence == after:
                self._check_bounds(ranges, None if size is None else parse_number(size))
                return _assemble(ranges, replies, parse_ranges(debris))
        raise StorageError(f"{self._storage}: file {name!r} changed during each of {READ_ATTEMPTS} reads")

    def _commands(self, ranges: _Ranges) -> list[Command]:
        return [
            ("GETRANGE", f"{self._pages}{number}", start, end - 1)
            for offset, size in ranges
            for number, start, end in pieces(offset, size)
        ]

    def _check_bounds(self, ranges: _Ranges, file_size: int | None) -> None:
        if file_size is None:
            raise StorageMissingError(f"{self._storage} has no file {self._name!r} any more")
        for offset, size in ranges:
            if size and offset + size > file_size:
                raise OutOfBoundsError(
                    f"{self._storage}: file {self._name!r} has {file_size} bytes, but {size} at {offset} were asked for"
                )

    async def write(self, offset: int, data: bytes) -> None:
        self._check_live()
        check_range(offset)
        if data:
            await self._storage.commit([Write(self._name, offset, data)])

    async def delete(self, offset: int, size: int) -> None:
        self._check_live()
        check_range(offset, size)
        await self._storage.commit([Delete(self._name, offset, size)])

    async def truncate(self, size: int) -> None:
        self._check_live()
        check_range(0, size)
        await self._storage.commit([Truncate(self._name, size)])

    async def size(self) -> int:
        self._check_live()
        size = await self._storage.look_for(self._name)
        if size is None:
            raise StorageMissingError(f"{self._storage} has no file {self._name!r} any more")
        return size

    async def sync(self) -> None:
        """A finished write is as durable as the server makes it: see `require_durable`."""
        self._check_live()

    async def aclose(self) -> None:
        self._closed = True

    def _check_live(self) -> None:
        if self._closed or self._shared.gone or self._storage.closed:
            raise ClosedError(f"{self._storage}: file {self._name!r} is closed")


class RedisStorage(Storage):
    """The files under one prefix, in the server of a redis-py asyncio client (or at an address: `open_storage`).

    The client is asked where its server is and how to log in; the connection is the storage's own, and the client
    stays the caller's. The options are those of `PlaceOptions`.
    """

    distant = True

    def __init__(
        self,
        client: Redis | RedisCluster | None = None,
        *,
        server: Server | None = None,
        prefix: str = PlaceOptions.prefix,
        lease_seconds: float = PlaceOptions.lease_seconds,
        take_over: bool = PlaceOptions.take_over,
        timeout_seconds: float = PlaceOptions.timeout_seconds,
        read_only: bool = PlaceOptions.read_only,
    ) -> None:
        if (client is None) == (server is None):
            raise OptionError("a storage in Redis needs a client of redis-py; or open it by its address")
        self.options = PlaceOptions(
            prefix=prefix,
            lease_seconds=lease_seconds,
            take_over=take_over,
            timeout_seconds=timeout_seconds,
            read_only=read_only,
        )
        self.writable = not read_only
        self.closed = False
        self.layout = Layout(prefix)
        self.session = Session(
            server if server is not None else server_of(client), self.layout.head, timeout_seconds=timeout_seconds
        )
        self.lease = Lease(self.session, self.layout, self.options)
        self._files: dict[str, _Shared] = {}

    def __str__(self) -> str:
        mark = "&" if "?" in str(self.session) else "?"
        return f"{self.session}{mark}prefix={self.options.prefix}"

    def __repr__(self) -> str:
        return f"RedisStorage({str(self)!r})"

    @property
    def warnings(self) -> Sequence[str]:
        return self.session.warnings

    async def require_durable(self) -> None:
        self._check_open()
        await self.session.require_durable()

    # ---- files ---------------------------------------------------------------------------------------

    async def open(self, name: str, *, create: bool = False) -> RedisFile:
        self._check_open()
        check_name(name)
        if await self.look_for(name) is None:
            if not create:
                raise StorageMissingError(f"{self} has no file {name!r}")
            await self.commit([Write(name, 0, b"")])
        return RedisFile(self, name, self._files.setdefault(name, _Shared()))

    async def names(self) -> frozenset[str]:
        self._check_open()
        contents = await self.lease.known()
        if contents is not None:
            return frozenset(contents.sizes)
        reply, guarded = await self.session.ask_many([("HGETALL", self.layout.head), ("EXISTS", self.layout.guard)])
        head = pairs(reply)
        if head:
            check_format(head.get(b"format"), self.session)
        elif guarded:
            raise LostCommitsError(
                f"{self}: the key {self.layout.head!r} is gone and others of this place are not: the server dropped "
                "it, or somebody removed it. Nothing was changed"
            )
        self.lease.saw(head.get(b"sequence"))
        return frozenset(Contents.parse(head).sizes)

    async def look_for(self, name: str) -> int | None:
        """Bytes in the file; None when there is none."""
        contents = await self.lease.known()
        if contents is not None:
            return contents.sizes.get(name)
        found, sequence, size = await self.session.ask(("HMGET", self.layout.head, "format", "sequence", f"/{name}"))
        if sequence is not None or size is not None:
            check_format(found, self.session)
        self.lease.saw(sequence)
        return None if size is None else parse_number(size)

    async def unlink(self, name: str) -> None:
        self._check_changeable()
        check_name(name)
        await self.lease.commit(lambda draft: draft.unlink(name))
        shared = self._files.pop(name, None)
        if shared is not None:
            shared.gone = True

    # ---- changing ------------------------------------------------------------------------------------

    async def acquire(self) -> None:
        self._check_changeable()
        await self.lease.acquire()

    async def commit(self, operations: Sequence[Operation]) -> None:
        self._check_changeable()

        def build(draft: Draft) -> None:
            for operation in operations:
                draft.add(operation)

        await self.lease.commit(build, sum([len(one.data) for one in operations if type(one) is Write]))

    async def aclose(self) -> None:
        if not self.closed:
            self.closed = True
            try:
                await self.lease.aclose()
            finally:
                await self.session.aclose()

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedError(f"{self} is closed")

    def _check_changeable(self) -> None:
        self._check_open()
        self.lease.check_process()
        if not self.writable:
            raise NotWritableError(f"{self} was opened read-only")


def open_storage(address: Address, **options: object) -> RedisStorage:
    """The storage of a `redis:` or `rediss:` address. Raises `AddressError`, `OptionError`."""
    target = read_address(address, options)
    chosen = target.options
    return RedisStorage(
        server=server_at(target),
        prefix=chosen.prefix,
        lease_seconds=chosen.lease_seconds,
        take_over=chosen.take_over,
        timeout_seconds=chosen.timeout_seconds,
        read_only=chosen.read_only,
    )


def _assemble(ranges: _Ranges, replies: Sequence[Reply], debris: Sequence[Range]) -> list[bytes]:
    """The bytes of the ranges from those of the pages; what a page lacks is zeros."""
    found = []
    position = 0
    for offset, size in ranges:
        parts = []
        for number, start, end in pieces(offset, size):
            data = b"" if debris and inside(debris, number) else replies[position]
            position += 1
            parts.append(data if len(data) == end - start else data.ljust(end - start, b"\0"))
        found.append(parts[0] if len(parts) == 1 else b"".join(parts))
    return found


def _regroup(parts: Sequence[bytes], sizes: Sequence[int]) -> list[bytes]:
    """The parts of ranges that were read in several batches, joined to ranges again."""
    if len(parts) == len(sizes):
        return list(parts)
    found = []
    position = 0
    for size in sizes:
        joined = [parts[position]]
        position += 1
        while sum(map(len, joined)) < size:
            joined.append(parts[position])
            position += 1
        found.append(b"".join(joined))
    return found

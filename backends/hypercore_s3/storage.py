"""A prefix of a bucket as a storage: its files, their handles, and who does what in which order.

It must not know what the files mean, nor how objects are laid out: `journal` reads them, `writer` makes them. See
docs/decisions/s3-layout.md.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import Any, Final

from hypercore.errors import (
    AddressError,
    ClosedError,
    CorruptError,
    NotWritableError,
    OptionError,
    OutOfBoundsError,
    StorageMissingError,
)
from hypercore.options import build_options
from hypercore.storage import Delete, Operation, RandomAccess, Storage, Truncate, Write, check_name, check_range
from hypercore.urls import Address
from hypercore_s3.ahead import ReadAhead
from hypercore_s3.contents import File, Plan
from hypercore_s3.journal import Journal
from hypercore_s3.lease import Lease
from hypercore_s3.objects import AccessDeniedError, ObjectClient, ObjectMissingError
from hypercore_s3.options import S3Options
from hypercore_s3.pages import Pages, assembled, wanted
from hypercore_s3.place import Place
from hypercore_s3.writer import Writer

#: S3 takes keys of 1024 bytes; ours add less than a hundred to the prefix.
PREFIX_BYTES_MAX: Final = 900
#: A fold may remove what a read is about to fetch, hardly ever so many times in a row.
READ_TRIES_MAX: Final = 5
#: Files whose readers are watched for sequences.
WATCHED_FILES_MAX: Final = 64

_OF: Final = "an S3 storage"


class S3File(RandomAccess):
    """A handle to one file of an `S3Storage`."""

    def __init__(self, storage: S3Storage, file: File) -> None:
        self._storage = storage
        self._file = file
        self._closed = False

    async def read(self, offset: int, size: int) -> bytes:
        return (await self._read([(offset, size)], in_sequence=True))[0]

    async def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        return await self._read(ranges, in_sequence=False)

    async def _read(self, ranges: Sequence[tuple[int, int]], *, in_sequence: bool) -> list[bytes]:
        tries = 0
        while True:
            file = self._live()
            for offset, size in ranges:
                check_range(offset, size)
                if size and offset + size > file.size:
                    raise OutOfBoundsError(
                        f"{self._storage}: file {file.name!r} has {file.size} bytes, but {size} at offset {offset} "
                        "were asked for"
                    )
            version = self._storage.version
            try:
                return await self._storage.fetch(file, ranges, in_sequence=in_sequence)
            except (ObjectMissingError, AccessDeniedError) as error:
                tries += 1
                if tries == READ_TRIES_MAX or not await self._storage.is_newer(version):
                    raise CorruptError(
                        f"{self._storage}: an object is gone that bytes of file {file.name!r} lie in: {error}",
                        file=file.name,
                    ) from error

    async def write(self, offset: int, data: bytes) -> None:
        check_range(offset)
        if data:
            await self._change(lambda file: Write(file.name, offset, bytes(data)))
        self._live()

    async def delete(self, offset: int, size: int) -> None:
        check_range(offset, size)
        await self._change(lambda file: Delete(file.name, offset, size))

    async def truncate(self, size: int) -> None:
        check_range(0, size)
        await self._change(lambda file: Truncate(file.name, size))

    async def _change(self, make: Callable[[File], Operation]) -> None:
        """A commit of one operation, unless the file went while it waited its turn."""
        operation = make(self._live())
        await self._storage.change(lambda: Plan.of([operation], self._storage.files), before=self._live)

    async def size(self) -> int:
        return self._live().size

    async def sync(self) -> None:
        # What was acknowledged lies in the store.
        self._live()

    async def aclose(self) -> None:
        self._closed = True

    def _live(self) -> File:
        name, files = self._file.name, self._storage.files
        file = files.get(name)
        if self._closed or self._storage.closed or file is None or file.identity != self._file.identity:
            raise ClosedError(f"{self._storage}: file {name!r} is closed")
        self._file = file
        return file


class S3Storage(Storage):
    """Files in a bucket, below a prefix. The options are those of `S3Options`.

    `client` may be an `ObjectClient`, or a client of boto3, which then carries all requests; it is not closed with the
    storage. Else it is the name of one, as in the options, from which it is made.
    """

    distant = True

    def __init__(
        self, bucket: str, prefix: str = "", *, client: ObjectClient | str | Any | None = None, **options: object
    ) -> None:
        if not bucket:
            raise OptionError(f"{_OF} needs a bucket")
        if isinstance(client, str):
            options["client"], client = client, None
        self.options = build_options(S3Options, keywords=options, of=_OF)
        prefix = prefix.strip("/")
        if len(prefix.encode()) > PREFIX_BYTES_MAX:
            raise OptionError(f"{_OF}: a prefix has at most {PREFIX_BYTES_MAX} bytes")
        self._title = self.title(bucket, prefix)
        self._client_is_ours = not isinstance(client, ObjectClient)
        self._client = client if isinstance(client, ObjectClient) else _make_client(bucket, client, self.options)
        self.writable = self._client.writable
        self.closed = False
        place = Place(self._client, prefix)
        self._pages = Pages(place, cache_bytes=self.options.cache_bytes)
        self._journal = Journal(place, self._pages, title=self._title, most_connections=self.options.most_connections)
        lease = Lease(
            place,
            title=self._title,
            owner=os.urandom(16),
            lease_seconds=self.options.lease_seconds,
            take_over=self.options.take_over,
        )
        self._writer = Writer(place, self._pages, self._journal, lease, title=self._title)
        #: Held by whoever loads, refreshes or changes.
        self._turn = asyncio.Lock()
        self._changes: set[asyncio.Task[None]] = set()
        #: By the files' identities.
        self._readers: dict[int, ReadAhead] = {}

    @staticmethod
    def title(bucket: str, prefix: str) -> str:
        """What the place is called in messages."""
        return f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}"

    def __str__(self) -> str:
        return self._title

    def __repr__(self) -> str:
        return f"S3Storage({self._title!r})"

    @property
    def client(self) -> ObjectClient:
        """Who carries the requests, and counts them."""
        return self._client

    @property
    def warnings(self) -> Sequence[str]:
        return [*self._journal.warnings, *self._writer.warnings]

    async def open(self, name: str, *, create: bool = False) -> S3File:
        self._check_open()
        check_name(name)
        await self._ready()
        if create and name not in self.files:
            await self.change(lambda: Plan.of([Write(name, 0, b"")], self.files))
        file = self.files.get(name)
        if file is None:
            raise StorageMissingError(f"{self} has no file {name!r}")
        return S3File(self, file)

    async def names(self) -> frozenset[str]:
        self._check_open()
        await self._ready()
        return frozenset(self.files) | self._journal.foreign

    async def unlink(self, name: str) -> None:
        self._check_open()
        check_name(name)

        def plan() -> Plan:
            made = Plan.of([], self.files)
            made.unlink(name)
            return made

        await self.change(plan)

    async def acquire(self) -> None:
        self._check_open()
        # It reads the place itself, when the head says that there is a reason to.
        await self._to_its_end(self._acquire, loading=False)

    async def _acquire(self) -> None:
        self._writer.check()
        if not self.writable:
            raise NotWritableError(f"{self} can only be read")
        await self._writer.acquire()

    async def refresh(self) -> None:
        self._check_open()
        async with self._turn:
            if not self._writer.leased:
                await self._journal.refresh()

    async def commit(self, operations: Sequence[Operation]) -> None:
        self._check_open()
        Plan.of(operations, {})
        await self.change(lambda: Plan.of(operations, self.files))

    async def aclose(self) -> None:
        self.closed = True
        while self._changes:
            await asyncio.wait(self._changes)
        async with self._turn:
            try:
                await self._writer.aclose()
            finally:
                await self._pages.aclose()
                if self._client_is_ours:
                    await self._client.aclose()

    # ---- for the handles --------------------------------------------------------------------------

    @property
    def files(self) -> dict[str, File]:
        """The files as they are now."""
        return self._journal.contents.files

    @property
    def version(self) -> tuple[int, int]:
        """Another one whenever the files' bytes may lie elsewhere."""
        return self._journal.generation, self._journal.contents.version

    async def is_newer(self, version: tuple[int, int]) -> bool:
        """Whether there is something newer than what was read under that version."""
        if self.version == version:
            await self.refresh()
        return self.version != version

    async def fetch(self, file: File, ranges: Sequence[tuple[int, int]], *, in_sequence: bool) -> list[bytes]:
        """The bytes of the ranges, which lie in the file."""
        parts = [(file.extents.within(offset, offset + size), offset, offset + size) for offset, size in ranges]
        frames = [frame for extents, _, _ in parts for frame in wanted(extents)]
        if frames:
            self._pages.begin(frames)
            if in_sequence:
                # After the GET of what is wanted now.
                self._readers_of(file).read(*ranges[0], file.size)
            found = await self._pages.load(frames)
        else:
            found = {}
        return [assembled(extents, start, end, found) for extents, start, end in parts]

    async def change(self, make: Callable[[], Plan], *, before: Callable[[], object] | None = None) -> None:
        """Commit what `make` plans, in its turn. `before` may still refuse then."""

        async def work() -> None:
            if before is not None:
                before()
            if not self._writer.leased:
                if not make().steps:
                    return
                await self._acquire()
            await self._writer.commit(make)

        await self._to_its_end(work)

    # ---- inside -----------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedError(f"{self} is closed")

    async def _ready(self) -> None:
        """Something is known of the place, and of every commit whether it happened."""
        if not self._journal.loaded or self._writer.uncertain:
            await self._to_its_end(_nothing)

    async def _to_its_end(self, work: Callable[[], Awaitable[None]], *, loading: bool = True) -> None:
        """Do this in its turn, to its end even if the caller is cancelled: a change must not be torn."""
        task = asyncio.get_running_loop().create_task(self._in_turn(work, loading=loading))
        self._changes.add(task)
        task.add_done_callback(self._ended)
        await asyncio.shield(task)

    async def _in_turn(self, work: Callable[[], Awaitable[None]], *, loading: bool) -> None:
        async with self._turn:
            self._check_open()
            if loading and not self._journal.loaded:
                await self._journal.refresh()
            if work is _nothing and self._writer.uncertain:
                await self._writer.settle()
            await work()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._changes.discard(task)
        if not task.cancelled():
            # Of a caller who was cancelled nobody hears it.
            task.exception()

    def _readers_of(self, file: File) -> ReadAhead:
        readers = self._readers.get(file.identity)
        if readers is None:
            if len(self._readers) >= WATCHED_FILES_MAX:
                self._readers.pop(next(iter(self._readers))).forget()
            name = file.name

            def begin(start: int, end: int) -> Any:
                held = self.files.get(name)
                return self._pages.ahead(wanted(held.extents.within(start, end))) if held is not None else ()

            readers = self._readers[file.identity] = ReadAhead(begin, self._pages.give_up)
        return readers


async def _nothing() -> None:
    """To load and to settle is all."""


def _make_client(bucket: str, given: Any, options: S3Options) -> ObjectClient:
    if given is None:
        from hypercore_s3.clients import make_client

        return make_client(bucket, options)
    from hypercore_s3.boto_client import BotoClient

    return BotoClient(
        bucket,
        client=given,
        timeout_seconds=options.timeout_seconds,
        deadline_seconds=options.deadline_seconds,
        most_connections=options.most_connections,
    )


def open_storage(address: Address, **options: object) -> S3Storage:
    """The storage of an `s3://bucket/prefix` address. Raises `AddressError`, `OptionError`, `MissingDriverError`."""
    if not address.host or address.port is not None:
        raise AddressError(
            f"{str(address)!r}: a place in S3 is written 's3://bucket/prefix'; a server other than AWS is given by "
            "the option endpoint_url"
        )
    if address.username is not None or address.password is not None:
        raise AddressError(f"{str(address)!r}: keys are given by the options access_key and secret_key")
    chosen = build_options(S3Options, query=address.query, keywords=options, of=_OF)
    return S3Storage(address.host, address.path, **asdict(chosen))

"""A folder as a storage: which system calls run on the event loop and which in a thread.

This module must not know what the files mean. A call that the page cache can answer costs a microsecond and a hop
to a thread a hundred, so small transfers are made directly; on Linux a read is answered from the page cache or
not at all (`RWF_NOWAIT`). What may wait for the disk goes to a thread. See docs/decisions/file-backend.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import ParamSpec, TypeVar

import aiofiles.os

from hypercore.errors import (
    AddressError,
    ClosedError,
    FencedError,
    LockedError,
    NotWritableError,
    OptionError,
    OutOfBoundsError,
    StorageMissingError,
)
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
from hypercore_file.descriptor import BUFFERS_MAX, Descriptor, Folder, typed

P = ParamSpec("P")
T = TypeVar("T")

#: A copy of this size holds the loop up for about as long as the hop to a thread that it saves (measured: 0.1 ms).
DIRECT_BYTES_MAX = 1 << 20
#: Somebody who removes the lock file again and again between our open and our lock is not worth waiting for.
LOCK_TRIES_MAX = 10

_NOWAIT: int = getattr(os, "RWF_NOWAIT", 0)


class _Scratch(threading.local):
    """Where a direct read lands before it becomes `bytes`: one a thread, never used across an await."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(DIRECT_BYTES_MAX))


_scratch = _Scratch()


class FileHandle(RandomAccess):
    """A handle to one file of a `FileStorage`."""

    def __init__(self, storage: FileStorage, descriptor: Descriptor) -> None:
        self._storage = storage
        self._descriptor = descriptor
        self._closed = False

    async def read(self, offset: int, size: int) -> bytes:
        descriptor = self._descriptor
        if 0 < size <= DIRECT_BYTES_MAX and offset >= 0 and descriptor.nowait and not self._closed:
            view = _scratch.view[:size]
            try:
                if os.preadv(descriptor.fd, (view,), offset, _NOWAIT) == size:
                    return bytes(view)
            except OSError as error:
                if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS):
                    descriptor.nowait = False
        return await self._read_slowly(offset, size)

    async def _read_slowly(self, offset: int, size: int) -> bytes:
        descriptor = self._live()
        check_range(offset, size)
        if size == 0:
            return b""
        end = descriptor.size()
        if offset + size > end:
            raise OutOfBoundsError(f"{descriptor.path} has {end} bytes, but {size} at offset {offset} were asked for")
        # Where the system cannot tell whether it would wait, a small read is most likely in memory.
        if size <= DIRECT_BYTES_MAX and not descriptor.nowait:
            return descriptor.read(offset, size)
        return await self._storage.in_thread((descriptor,), descriptor.read, offset, size)

    async def write(self, offset: int, data: bytes) -> None:
        descriptor = self._live()
        if len(data) <= DIRECT_BYTES_MAX:
            descriptor.write(offset, data)
        else:
            await self._storage.in_thread((descriptor,), descriptor.write, offset, data)

    async def delete(self, offset: int, size: int) -> None:
        # Before it punches a hole the file system writes out what is dirty there.
        descriptor = self._live()
        await self._storage.in_thread((descriptor,), descriptor.delete, offset, size)

    async def truncate(self, size: int) -> None:
        descriptor = self._live()
        # To free many blocks takes the file system a while.
        if descriptor.size() - size <= DIRECT_BYTES_MAX:
            descriptor.truncate(size)
        else:
            await self._storage.in_thread((descriptor,), descriptor.truncate, size)

    async def size(self) -> int:
        return self._live().size()

    async def sync(self) -> None:
        descriptor = self._live()
        await self._storage.in_thread((descriptor,), self._storage.folder.sync, descriptor)

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._storage.release(self._descriptor)

    def _live(self) -> Descriptor:
        if self._closed or self._descriptor.fd < 0:
            raise ClosedError(f"{self._descriptor.path} is closed")
        return self._descriptor


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """How a folder is used. The modes are for what is made here; what exists keeps its own."""

    #: The file whose lock is the writer's lease: Node locks `oplog` in a core, `primary-key` in a corestore.
    lock_name: str = "oplog"
    #: A core keeps its secret key in clear, so nobody else reads it.
    file_mode: int = 0o600
    folder_mode: int = 0o700
    #: Nothing is ever made, changed or locked.
    read_only: bool = False

    def __post_init__(self) -> None:
        check_name(self.lock_name)
        for name in ("file_mode", "folder_mode"):
            mode = getattr(self, name)
            if not 0 <= mode <= 0o777:
                raise OptionError(f"{name} must be a mode from 0 to 0o777, not {mode:#o}")


class FileStorage(Storage):
    """The files of one folder, which is made with the first of them. The options are those of `FileOptions`."""

    prompt = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        lock_name: str = FileOptions.lock_name,
        file_mode: int = FileOptions.file_mode,
        folder_mode: int = FileOptions.folder_mode,
        read_only: bool = FileOptions.read_only,
    ) -> None:
        self.options = FileOptions(
            lock_name=lock_name, file_mode=file_mode, folder_mode=folder_mode, read_only=read_only
        )
        self.writable = not read_only
        self.folder = Folder(os.path.abspath(path), mode=folder_mode)
        self._files: dict[str, Descriptor] = {}
        self._transfers: set[asyncio.Task[object]] = set()
        self._leased = False
        self._closed = False

    def __str__(self) -> str:
        return self.folder.path

    def __repr__(self) -> str:
        return f"FileStorage({self.folder.path!r})"

    async def open(self, name: str, *, create: bool = False) -> FileHandle:
        descriptor = self._descriptor(name, create=create)
        descriptor.handles += 1
        return FileHandle(self, descriptor)

    async def names(self) -> frozenset[str]:
        self._check_open()
        try:
            return frozenset(await aiofiles.os.listdir(self.folder.path))
        except FileNotFoundError:
            return frozenset()
        except OSError as error:
            raise typed(error, self.folder.path) from error

    async def unlink(self, name: str) -> None:
        self._check_changeable()
        check_name(name)
        path = os.path.join(self.folder.path, name)
        try:
            await self.in_thread((), os.unlink, path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise typed(error, path) from error
        finally:
            # Also when the caller was cancelled: the thread has done its work all the same.
            descriptor = self._files.get(name)
            if descriptor is not None and not descriptor.is_at_its_path():
                del self._files[name]
                descriptor.close()
        self.folder.changed()

    async def acquire(self) -> None:
        self._check_changeable()
        if self._leased:
            return
        for _ in range(LOCK_TRIES_MAX):
            descriptor = self._descriptor(self.options.lock_name, create=True)
            try:
                descriptor.lock()
            except BaseException:
                descriptor.handles += 1
                self.release(descriptor)
                raise
            if descriptor.is_at_its_path():
                descriptor.pinned = self._leased = True
                return
            # Somebody removed the file between our open and our lock: it is the lock of a file that is no more.
            del self._files[self.options.lock_name]
            descriptor.close()
        raise LockedError(f"{descriptor.path} is removed again and again by another program")

    async def commit(self, operations: Sequence[Operation]) -> None:
        self._check_changeable()
        steps: list[tuple[Descriptor, Operation]] = []
        files = self._files
        for operation in operations:
            for name in operation.names if isinstance(operation, Sync) else (operation.name,):
                descriptor = files.get(name)
                if descriptor is None or not descriptor.pinned:
                    descriptor = await self._pin(name, operation, steps)
                    if descriptor is None:
                        continue
                steps.append((descriptor, operation))
        await self._carry_out(steps)

    async def aclose(self) -> None:
        self._closed = True
        descriptors = list(self._files.values())
        self._files.clear()
        for descriptor in descriptors:
            descriptor.close()
        # A thread that is still at it keeps its descriptor, and with it the lease, until it is done.
        while self._transfers:
            await asyncio.wait(self._transfers)

    # ---- for the handles --------------------------------------------------------------------------

    def release(self, descriptor: Descriptor) -> None:
        """One handle less."""
        descriptor.handles -= 1
        if not descriptor.handles and not descriptor.pinned:
            name = os.path.basename(descriptor.path)
            if self._files.get(name) is descriptor:  # and not a new file of that name
                del self._files[name]
            descriptor.close()

    async def in_thread(
        self, descriptors: Sequence[Descriptor], work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """`work(*args)` in a thread, with the descriptors kept open for it.

        A thread cannot be stopped, so a cancelled caller waits for it: what it writes must not land after what is
        written next.
        """
        task = asyncio.ensure_future(aiofiles.os.wrap(_lend)(descriptors, work, *args, **kwargs))
        self._transfers.add(task)
        task.add_done_callback(self._transfers.discard)
        try:
            result: T = await asyncio.shield(task)
        except asyncio.CancelledError:
            while not task.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([task])
            raise
        return result

    # ---- inside -----------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"{self} is closed")

    def _check_changeable(self) -> None:
        self._check_open()
        if not self.writable:
            raise NotWritableError(f"{self} was opened read-only")

    def _descriptor(self, name: str, *, create: bool) -> Descriptor:
        """The open file `name`: one descriptor for all handles."""
        self._check_open()
        descriptor = self._files.get(name)
        if descriptor is None:
            check_name(name)
            descriptor = Descriptor.open(
                os.path.join(self.folder.path, name),
                self.folder,
                create=create,
                read_only=not self.writable,
                mode=self.options.file_mode,
            )
            if self._leased and name == self.options.lock_name:
                self._lock_again(descriptor)
            self._files[name] = descriptor
        return descriptor

    def _lock_again(self, descriptor: Descriptor) -> None:
        """The lock file was removed while we held it, and the lease with it, unless nobody was quicker."""
        try:
            descriptor.lock()
        except BaseException as error:
            descriptor.close()
            if isinstance(error, LockedError):
                raise FencedError(
                    f"{self}: another writer took over after {self.options.lock_name!r} was removed"
                ) from error
            raise
        descriptor.pinned = True

    async def _pin(
        self, name: str, operation: Operation, steps: list[tuple[Descriptor, Operation]]
    ) -> Descriptor | None:
        """The file, which stays open until the storage closes; None when there is nothing to delete from or sync."""
        creates = isinstance(operation, Write | Truncate)
        if creates and steps:
            # Nothing of this operation, not even an empty file, may be there before those ahead of it.
            await self._carry_out(steps)
            steps.clear()
        try:
            descriptor = self._descriptor(name, create=creates)
        except StorageMissingError:
            if creates:
                raise
            return None
        descriptor.pinned = True
        return descriptor

    async def _carry_out(self, steps: Sequence[tuple[Descriptor, Operation]]) -> None:
        """All steps on the loop, or all in one thread when one of them may wait for the disk."""
        size = 0
        waits = False
        for descriptor, operation in steps:
            if isinstance(operation, Write):
                size += len(operation.data)
            elif isinstance(operation, Truncate):
                size += max(0, descriptor.size() - operation.size)
            else:
                waits = True
        if size <= DIRECT_BYTES_MAX and not waits:
            self._carry_out_now(steps)
        else:
            await self.in_thread(list({descriptor for descriptor, _ in steps}), self._carry_out_now, steps)

    def _carry_out_now(self, steps: Sequence[tuple[Descriptor, Operation]]) -> None:
        """The steps in order; neighbouring writes to one file are one system call."""
        position = 0
        while position < len(steps):
            descriptor, operation = steps[position]
            position += 1
            if isinstance(operation, Write):
                buffers = [operation.data]
                end = operation.offset + len(operation.data)
                while position < len(steps) and len(buffers) < BUFFERS_MAX:
                    other, following = steps[position]
                    if other is not descriptor or not isinstance(following, Write) or following.offset != end:
                        break
                    buffers.append(following.data)
                    end += len(following.data)
                    position += 1
                if len(buffers) == 1:
                    descriptor.write(operation.offset, operation.data)
                else:
                    descriptor.write_many(operation.offset, buffers)
            elif isinstance(operation, Delete):
                descriptor.delete(operation.offset, operation.size)
            elif isinstance(operation, Truncate):
                descriptor.truncate(operation.size)
            else:
                self.folder.sync(descriptor)


def open_storage(address: Address, **options: object) -> FileStorage:
    """The storage of a path or a `file:` address. Raises `AddressError`, `OptionError`."""
    path = address.path
    if address.host is not None:
        if address.host not in ("", "localhost") or address.username is not None or address.port is not None:
            raise AddressError(f"{str(address)!r}: a folder is written 'file:folder' or 'file:///folder'")
        path = "/" + path
    if not path:
        raise AddressError(f"{str(address)!r} names no folder")
    chosen = build_options(FileOptions, query=address.query, keywords=options, of="a storage of files")
    return FileStorage(path, **asdict(chosen))


def _lend(descriptors: Sequence[Descriptor], work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Runs in a thread: the descriptors stay open until the work is done, whatever happens to the storage."""
    with contextlib.ExitStack() as stack:
        for descriptor in descriptors:
            stack.enter_context(descriptor)
        return work(*args, **kwargs)

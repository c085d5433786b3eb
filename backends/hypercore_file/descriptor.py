"""One open regular file, its lock, and the folder around it: blocking system calls with typed errors.

This module must not know of event loops: `hypercore_file.storage` decides which call may run on the loop and which
needs a thread.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import stat
import struct
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from hypercore.errors import (
    ClosedError,
    HypercoreError,
    LockedError,
    NotWritableError,
    OutOfBoundsError,
    StorageError,
    StorageFullError,
    StorageMissingError,
)
from hypercore.storage import check_range

#: `FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE` of Linux: free the blocks, keep the size.
_PUNCH_HOLE = 0x02 | 0x01
#: Zeros are written in pieces, so that clearing a large range on a file system without holes needs no large buffer.
_ZEROS = bytes(1 << 16)
#: The kernel takes at most this many buffers in one call (`IOV_MAX`).
BUFFERS_MAX = 1024

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_HOLES = (errno.EOPNOTSUPP, errno.ENOSYS)


def typed(error: OSError, path: str) -> HypercoreError:
    """The error of this library that says what the system call said."""
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        return StorageFullError(f"{path}: {reason}")
    if error.errno == errno.ENOENT:
        return StorageMissingError(f"{path} does not exist")
    if error.errno == errno.ELOOP:
        return StorageError(f"{path} is a symbolic link where a regular file is needed; it was not followed")
    if error.errno == errno.EROFS:
        return NotWritableError(f"{path}: {reason}")
    return StorageError(f"{path}: {reason}")


class Folder:
    """The folder: made when its first file is, and synced when what was made in it must survive."""

    def __init__(self, path: str, *, mode: int) -> None:
        self.path = path
        self._mode = mode
        self._to_sync = [path]
        self._changes = 0
        self._synced = 0
        self._lost: OSError | None = None

    def make(self) -> None:
        missing = []
        path = self.path
        while not os.path.isdir(path):
            missing.append(path)
            parent = os.path.dirname(path)
            if parent == path:
                break
            path = parent
        for path in reversed(missing):
            try:
                os.mkdir(path, self._mode)
            except FileExistsError:
                continue
            except OSError as error:
                raise typed(error, path) from error
            self._to_sync.append(os.path.dirname(path))

    def changed(self) -> None:
        """A file was made or removed."""
        self._changes += 1

    def sync(self, descriptor: Descriptor) -> None:
        """Make what was written to the file, and its name, survive a crash of the machine.

        After a failed sync the kernel forgets which pages it could not write, and the next sync would lie; so the
        first failure stays.
        """
        if self._lost is not None:
            raise StorageError(
                f"{self.path}: an earlier sync failed ({self._lost.strerror}), what was written before it may be lost; "
                "close the storage and open it again"
            ) from self._lost
        try:
            _sync(descriptor.live())
            if self._synced != self._changes:
                changes = self._changes
                for path in self._to_sync:
                    _sync_folder(path)
                self._synced = changes
        except OSError as error:
            self._lost = error
            raise descriptor.failed(error) from error


class Descriptor:
    """A file descriptor that threads may be using: it is closed when it is told to and the last of them is done."""

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path
        #: How many handles stand for it, and whether the storage itself keeps it open.
        self.handles = 0
        self.pinned = False
        #: False once the file system said that it cannot answer from the page cache alone.
        self.nowait = hasattr(os, "RWF_NOWAIT")
        self._doomed = -1
        self._users = 0
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: str, folder: Folder, *, create: bool, read_only: bool, mode: int) -> Descriptor:
        """Open a regular file, and nothing else: no link is followed, no FIFO waited for.

        Raises `StorageMissingError`, `NotWritableError` when it would have to be made but must not, `StorageError`.
        """
        try:
            return cls(_open_regular(path, read_only=read_only), path)
        except FileNotFoundError as error:
            if not create:
                raise typed(error, path) from error
        except OSError as error:
            raise typed(error, path) from error
        if read_only:
            raise NotWritableError(f"{path} does not exist and the storage was opened read-only")
        folder.make()
        try:
            fd = os.open(path, _FLAGS | os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        except FileExistsError:
            return cls.open(path, folder, create=False, read_only=read_only, mode=mode)
        except OSError as error:
            raise typed(error, path) from error
        folder.changed()
        return cls(fd, path)

    def live(self) -> int:
        if self.fd < 0:
            raise ClosedError(f"{self.path} is closed")
        return self.fd

    def failed(self, error: OSError) -> HypercoreError:
        """What a failed system call on this file means."""
        if self.fd < 0:
            return ClosedError(f"{self.path} is closed")
        # The kernel says EBADF to a write and EINVAL to a truncate.
        if error.errno in (errno.EBADF, errno.EINVAL):
            access = fcntl.fcntl(self.fd, fcntl.F_GETFL) & os.O_ACCMODE
            if access == os.O_RDONLY:
                return NotWritableError(f"{self.path} is open for reading only")
        return typed(error, self.path)

    # ---- lifetime ---------------------------------------------------------------------------------

    def __enter__(self) -> Descriptor:
        """A thread begins to use it."""
        with self._lock:
            self.live()
            self._users += 1
        return self

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users and self._doomed >= 0:
                os.close(self._doomed)
                self._doomed = -1

    def close(self) -> None:
        with self._lock:
            if self.fd < 0:
                return
            if self._users:
                self._doomed = self.fd
            else:
                os.close(self.fd)
            self.fd = -1

    def __del__(self) -> None:
        if self.fd >= 0:
            warnings.warn(f"{self.path} was never closed", ResourceWarning, source=self, stacklevel=1)
            self.close()

    # ---- system calls -----------------------------------------------------------------------------

    def size(self) -> int:
        try:
            return os.fstat(self.fd).st_size
        except OSError as error:
            raise self.failed(error) from error

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes, however long the disk takes."""
        pieces = []
        try:
            while size:
                piece = os.pread(self.fd, size, offset)
                if not piece:
                    raise OutOfBoundsError(f"{self.path} ends at {offset}, {size} more bytes were asked for")
                pieces.append(piece)
                offset += len(piece)
                size -= len(piece)
        except OSError as error:
            raise self.failed(error) from error
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """All of `data`, in as many calls as the kernel wants."""
        try:
            count = os.pwrite(self.fd, data, offset)
            while count < len(data):
                offset += count
                data = memoryview(data)[count:]
                count = os.pwrite(self.fd, data, offset)
                if count == 0:
                    raise StorageFullError(f"{self.path} takes no more bytes at offset {offset}")
        except OSError as error:
            check_range(offset)
            raise self.failed(error) from error

    def write_many(self, offset: int, buffers: Sequence[bytes]) -> None:
        """Neighbouring writes in one call."""
        total = sum(map(len, buffers))
        try:
            count = os.pwritev(self.fd, buffers, offset) if len(buffers) <= BUFFERS_MAX else 0
        except OSError as error:
            check_range(offset)
            raise self.failed(error) from error
        if count < total:
            self.write(offset + count, memoryview(b"".join(buffers))[count:])

    def truncate(self, size: int) -> None:
        try:
            os.ftruncate(self.fd, size)
        except OSError as error:
            check_range(0, size)
            raise self.failed(error) from error

    def delete(self, offset: int, size: int) -> None:
        """Punch a hole; where there are none, write zeros. Never past the end, and never for no bytes at all."""
        check_range(offset, size)
        size = min(size, self.size() - offset)
        if size <= 0:
            return
        try:
            if not _punch(self.fd, offset, size):
                for start in range(0, size, len(_ZEROS)):
                    self.write(offset + start, _ZEROS[: size - start])
        except OSError as error:
            raise self.failed(error) from error

    def lock(self) -> None:
        """Take the lock that Node takes: an exclusive one, of the open file description, on the whole file.

        Raises `LockedError`. It is given back when the descriptor is closed, also by the kernel.
        """
        try:
            if hasattr(fcntl, "F_OFD_SETLK"):
                whole = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
                fcntl.fcntl(self.live(), fcntl.F_OFD_SETLK, whole)
            else:
                fcntl.flock(self.live(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise LockedError(
                    f"{self.path} is locked by another writer, in this program or another one; close that one first"
                ) from error
            raise self.failed(error) from error

    def is_at_its_path(self) -> bool:
        """Whether the path still leads to this very file."""
        try:
            found, own = os.stat(self.path, follow_symlinks=False), os.fstat(self.live())
        except FileNotFoundError:
            return False
        return (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino)


#: A link is not followed and a FIFO not waited for: neither is ever one of our files.
_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def _open_regular(path: str, *, read_only: bool) -> int:
    # Asked before it is opened, because opening a device can do things, and again after, because it may be swapped.
    _check_regular(os.stat(path, follow_symlinks=False), path)
    try:
        fd = os.open(path, _FLAGS | (os.O_RDONLY if read_only else os.O_RDWR))
    except OSError as error:
        if read_only or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        fd = os.open(path, _FLAGS | os.O_RDONLY)
    try:
        _check_regular(os.fstat(fd), path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_regular(status: os.stat_result, path: str) -> None:
    if stat.S_ISREG(status.st_mode):
        return
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
    }
    kind = kinds.get(stat.S_IFMT(status.st_mode), "a device")
    raise StorageError(f"{path} is {kind} where a regular file is needed; it was left alone")


def _sync(fd: int) -> None:
    if hasattr(fcntl, "F_FULLFSYNC"):  # macOS: fsync stops at the drive's cache
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    elif hasattr(os, "fdatasync"):
        os.fdatasync(fd)
    else:
        os.fsync(fd)


def _sync_folder(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@functools.cache
def _fallocate() -> Callable[[int, int, int, int], int] | None:
    """The C function, which Python does not offer (`posix_fallocate` cannot punch)."""
    import ctypes

    with contextlib.suppress(AttributeError, OSError):
        library = ctypes.CDLL(None, use_errno=True)
        function: Any = getattr(library, "fallocate64", None) or library.fallocate
        function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
        function.restype = ctypes.c_int

        def fallocate(fd: int, mode: int, offset: int, size: int) -> int:
            return 0 if function(fd, mode, offset, size) == 0 else ctypes.get_errno()

        return fallocate
    return None


def _punch(fd: int, offset: int, size: int) -> bool:
    """Whether a hole was made; False where the system or the file system knows none."""
    fallocate = _fallocate()
    if fallocate is None:
        return False
    while (code := fallocate(fd, _PUNCH_HOLE, offset, size)) == errno.EINTR:
        pass
    if code in _NO_HOLES:
        return False
    if code:
        raise OSError(code, os.strerror(code))
    return True

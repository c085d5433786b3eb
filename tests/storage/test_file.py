"""What the file backend promises beside the contract: modes, Node's lock, no surprises in the folder, no waiting."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiofiles.os
import pytest

from hypercore.errors import (
    FencedError,
    LockedError,
    NotWritableError,
    OptionError,
    StorageError,
    StorageFullError,
    StorageMissingError,
)
from hypercore.storage import Delete, Sync, Truncate, Write
from hypercore_file import FileStorage, descriptor
from tests.running import run

LARGE = 3 << 20

#: Another program that takes the lock as Node does, by the plain system call, and says how that went.
LOCKER = """
import fcntl, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDWR)
try:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
except BlockingIOError:
    print("refused", flush=True)
else:
    print("locked", flush=True)
    sys.stdin.read()
"""


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def descriptors() -> set[str]:
    return {
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
    }


@pytest.fixture
def locker() -> Iterator[Callable[[Path], str]]:
    started = []

    def start(path: Path) -> str:
        process = subprocess.Popen(
            [sys.executable, "-c", LOCKER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        return process.stdout.readline().strip()

    yield start
    for process in started:
        process.communicate()


# ---- the folder -----------------------------------------------------------------------------------


def test_the_folder_is_made_with_the_first_file_and_not_by_looking(tmp_path: Path) -> None:
    async def body() -> None:
        place = tmp_path / "a" / "b"
        async with FileStorage(place) as storage:
            assert await storage.names() == frozenset()
            with pytest.raises(StorageMissingError):
                await storage.open("oplog")
            await storage.unlink("oplog")
            assert not (tmp_path / "a").exists()
            await storage.commit([Write("data", 0, b"x")])
            assert mode_of(tmp_path / "a") == mode_of(place) == 0o700
            assert mode_of(place / "data") == 0o600

    run(body())


def test_what_exists_keeps_its_modes_and_what_is_new_takes_the_given_ones(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    (tmp_path / "oplog").write_bytes(b"")
    (tmp_path / "oplog").chmod(0o644)

    async def body() -> None:
        async with FileStorage(tmp_path, file_mode=0o640) as storage:
            await storage.acquire()
            await storage.commit([Write("data", 0, b"x")])
        assert mode_of(tmp_path) == 0o750
        assert mode_of(tmp_path / "oplog") == 0o644
        assert mode_of(tmp_path / "data") == 0o640

    run(body())


def test_names_tells_everything_that_lies_in_the_folder(tmp_path: Path) -> None:
    async def body() -> None:
        (tmp_path / "db").mkdir()
        (tmp_path / "CORESTORE").write_bytes(b"x")
        (tmp_path / "link").symlink_to("nowhere")
        async with FileStorage(tmp_path) as storage:
            assert await storage.names() == {"db", "CORESTORE", "link"}

    run(body())


def test_a_relative_path_stays_where_it_was_when_the_program_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        monkeypatch.chdir(tmp_path)
        async with FileStorage("here") as storage:
            monkeypatch.chdir("/")
            await storage.commit([Write("data", 0, b"x")])
            assert (tmp_path / "here" / "data").read_bytes() == b"x"

    run(body())


@pytest.mark.parametrize("kind", ["symbolic link", "FIFO", "folder", "socket"])
def test_what_is_no_regular_file_is_refused_by_name_and_left_alone(tmp_path: Path, kind: str) -> None:
    async def body() -> None:
        target = tmp_path / "elsewhere"
        target.write_bytes(b"untouched")
        place = tmp_path / "core"
        place.mkdir()
        path = place / "oplog"
        if kind == "symbolic link":
            path.symlink_to(target)
        elif kind == "FIFO":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        else:
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(path))
        before = path.lstat()
        async with FileStorage(place) as storage:
            for attempt in (
                lambda: storage.open("oplog"),
                lambda: storage.open("oplog", create=True),
                lambda: storage.acquire(),
                lambda: storage.commit([Write("oplog", 0, b"x")]),
                lambda: storage.commit([Truncate("oplog", 0)]),
            ):
                with pytest.raises(StorageError, match=f"oplog is a {kind} where a regular file is needed"):
                    await attempt()
        assert path.lstat() == before
        assert target.read_bytes() == b"untouched"

    run(body())


def test_a_link_that_leads_nowhere_is_not_followed_to_make_its_target(tmp_path: Path) -> None:
    async def body() -> None:
        (tmp_path / "oplog").symlink_to(tmp_path / "target")
        async with FileStorage(tmp_path) as storage:
            with pytest.raises(StorageError, match="symbolic link"):
                await storage.acquire()
        assert not (tmp_path / "target").exists()

    run(body())


def test_a_file_where_the_folder_should_be_is_an_error_that_names_it(tmp_path: Path) -> None:
    async def body() -> None:
        path = tmp_path / "file"
        path.write_bytes(b"x")
        for place in (path, path / "below"):
            async with FileStorage(place) as storage:
                with pytest.raises(StorageError, match=str(path)):
                    await storage.names()
                with pytest.raises(StorageError, match=str(path)):
                    await storage.acquire()
        assert path.read_bytes() == b"x"

    run(body())


# ---- the lock -------------------------------------------------------------------------------------


def test_our_lock_keeps_out_a_program_that_locks_as_node_does(tmp_path: Path, locker: Callable[[Path], str]) -> None:
    async def body() -> None:
        async with FileStorage(tmp_path) as storage:
            await storage.acquire()
            assert locker(tmp_path / "oplog") == "refused"
        assert locker(tmp_path / "oplog") == "locked"

    run(body())


def test_the_lock_of_another_program_keeps_us_out_and_lets_us_read(
    tmp_path: Path, locker: Callable[[Path], str]
) -> None:
    async def body() -> None:
        (tmp_path / "oplog").write_bytes(b"entry")
        assert locker(tmp_path / "oplog") == "locked"
        async with FileStorage(tmp_path) as storage:
            with pytest.raises(LockedError, match="oplog is locked by another writer"):
                await storage.acquire()
            assert await (await storage.open("oplog")).read(0, 5) == b"entry"

    run(body())


def test_the_lock_outlives_handles_that_are_opened_and_closed(tmp_path: Path, locker: Callable[[Path], str]) -> None:
    async def body() -> None:
        async with FileStorage(tmp_path) as storage:
            await storage.acquire()
            await (await storage.open("oplog")).aclose()
            (tmp_path / "oplog").read_bytes()
            assert locker(tmp_path / "oplog") == "refused"

    run(body())


def test_the_name_of_the_lock_file_can_be_chosen(tmp_path: Path, locker: Callable[[Path], str]) -> None:
    async def body() -> None:
        async with FileStorage(tmp_path, lock_name="primary-key") as storage:
            await storage.acquire()
            assert await storage.names() == {"primary-key"}
            assert locker(tmp_path / "primary-key") == "refused"

    run(body())


def test_a_writer_that_removes_its_lock_file_gets_the_lease_back_if_nobody_was_quicker(tmp_path: Path) -> None:
    async def body() -> None:
        async with FileStorage(tmp_path) as storage, FileStorage(tmp_path) as other:
            await storage.acquire()
            await storage.unlink("oplog")
            await storage.commit([Write("oplog", 0, b"x")])
            with pytest.raises(LockedError):
                await other.acquire()

    run(body())


def test_a_writer_whose_removed_lock_file_was_taken_by_another_one_is_fenced(tmp_path: Path) -> None:
    async def body() -> None:
        async with FileStorage(tmp_path) as storage, FileStorage(tmp_path) as other:
            await storage.acquire()
            await storage.unlink("oplog")
            await other.acquire()
            for _ in range(2):
                with pytest.raises(FencedError, match="another writer"):
                    await storage.commit([Write("oplog", 0, b"x")])
            assert (tmp_path / "oplog").read_bytes() == b""

    run(body())


def test_a_lock_file_that_is_replaced_while_we_lock_it_is_locked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locker: Callable[[Path], str]
) -> None:
    async def body() -> None:
        path = tmp_path / "oplog"
        path.write_bytes(b"old")
        lock = descriptor.Descriptor.lock
        replaced: list[Path] = []

        def replace_first(self: descriptor.Descriptor) -> None:
            if not replaced:
                replaced.append(path.rename(tmp_path / "old"))
                path.write_bytes(b"new")
            lock(self)

        monkeypatch.setattr(descriptor.Descriptor, "lock", replace_first)
        async with FileStorage(tmp_path) as storage:
            await storage.acquire()
            assert await (await storage.open("oplog")).read(0, 3) == b"new"
            assert locker(path) == "refused"

    run(body())


def test_a_storage_that_is_forgotten_says_so_and_gives_the_lock_back(tmp_path: Path) -> None:
    async def body() -> None:
        storage = FileStorage(tmp_path)
        await storage.acquire()
        forgotten = [storage]
        del storage
        with pytest.warns(ResourceWarning, match="oplog was never closed"):
            forgotten.clear()
        async with FileStorage(tmp_path) as other:
            await other.acquire()

    run(body())


# ---- reading only ---------------------------------------------------------------------------------


def test_a_read_only_storage_makes_changes_and_locks_nothing(tmp_path: Path, locker: Callable[[Path], str]) -> None:
    async def body() -> None:
        (tmp_path / "oplog").write_bytes(b"entry")
        async with FileStorage(tmp_path, read_only=True) as storage:
            assert not storage.writable
            file = await storage.open("oplog", create=True)
            assert await file.read(0, 5) == b"entry"
            for attempt in (
                lambda: storage.acquire(),
                lambda: storage.unlink("oplog"),
                lambda: storage.commit([Write("oplog", 0, b"x")]),
                lambda: storage.open("new", create=True),
                lambda: file.write(0, b"x"),
                lambda: file.truncate(9),
                lambda: file.truncate(2),
                lambda: file.delete(0, 2),
            ):
                with pytest.raises(NotWritableError):
                    await attempt()
            assert locker(tmp_path / "oplog") == "locked"
        async with FileStorage(tmp_path / "missing", read_only=True) as storage:
            with pytest.raises(NotWritableError):
                await storage.open("oplog", create=True)
        assert os.listdir(tmp_path) == ["oplog"]
        assert (tmp_path / "oplog").read_bytes() == b"entry"

    run(body())


def test_files_that_we_may_only_read_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        (tmp_path / "oplog").write_bytes(b"entry")
        real = os.open

        def refuse_to_write(path: str, flags: int, *rest: int) -> int:
            if flags & os.O_RDWR:
                raise PermissionError(errno.EACCES, "Permission denied", path)
            return real(path, flags, *rest)

        monkeypatch.setattr(os, "open", refuse_to_write)
        async with FileStorage(tmp_path) as storage:
            file = await storage.open("oplog")
            assert await file.read(0, 5) == b"entry"
            with pytest.raises(NotWritableError, match="oplog is open for reading only"):
                await file.write(0, b"x")
            with pytest.raises(NotWritableError):
                await storage.acquire()
        monkeypatch.undo()

    run(body())


@pytest.mark.parametrize(
    "options", [{"lock_name": "a/b"}, {"lock_name": ""}, {"file_mode": -1}, {"folder_mode": 0o1777}]
)
def test_a_bad_option_is_refused(tmp_path: Path, options: dict[str, str | int]) -> None:
    with pytest.raises(OptionError):
        FileStorage(tmp_path, **options)  # type: ignore[arg-type]


# ---- the page cache, threads and the disk ---------------------------------------------------------


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(work: Callable[..., object]) -> Callable[..., object]:
        raise AssertionError(f"{work} would go to a thread")

    monkeypatch.setattr(aiofiles.os, "wrap", refuse)


@pytest.mark.usefixtures("no_threads")
def test_small_calls_and_commits_without_syncs_never_hop_to_a_thread(tmp_path: Path) -> None:
    async def body() -> None:
        async with FileStorage(tmp_path) as storage:
            await storage.acquire()
            await storage.commit([Write("data", 0, bytes(1 << 20)), Truncate("oplog", 8192)])
            file = await storage.open("data")
            await file.write(5, b"x")
            await file.truncate(1 << 20)
            assert await file.size() == 1 << 20
            if hasattr(os, "RWF_NOWAIT"):
                assert await file.read(0, 6) == bytes(5) + b"x"

    run(body())


def test_a_commit_of_two_small_writes_is_two_system_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        async with FileStorage(tmp_path) as storage:
            await storage.acquire()
            await storage.commit([Write("data", 0, b"block"), Write("oplog", 0, b"entry")])
            calls: list[str] = []

            def count(name: str) -> None:
                real = getattr(os, name)

                def counted(*args: Any, **kwargs: Any) -> Any:
                    calls.append(name)
                    return real(*args, **kwargs)

                patched.setattr(os, name, counted)

            with monkeypatch.context() as patched:
                for name in ("pwrite", "pwritev", "open", "close", "fstat", "stat"):
                    count(name)
                await storage.commit([Write("data", 5, b"block"), Write("oplog", 5, b"entry")])
                two = list(calls)
                calls.clear()
                await storage.commit([Write("tree", 40 * number, bytes(40)) for number in range(1000)])
                many = calls.count("pwrite") + calls.count("pwritev")
            assert two == ["pwrite", "pwrite"]
            assert many == 1

    run(body())


def test_a_page_that_is_not_in_memory_is_read_in_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        async with FileStorage(tmp_path) as storage:
            file = await storage.open("data", create=True)
            await file.write(0, b"0123456789")

            def miss(*args: object) -> int:
                raise BlockingIOError(errno.EAGAIN, "would wait")

            def half(fd: int, views: list[memoryview], offset: int, flags: int) -> int:
                views[0][:3] = b"???"
                return 3

            for answer in (miss, half):
                monkeypatch.setattr(os, "preadv", answer)
                assert await file.read(2, 5) == b"23456"
            monkeypatch.undo()

    run(body())


@pytest.mark.usefixtures("no_threads")
def test_where_the_file_system_knows_no_such_read_a_small_one_is_made_directly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        calls = []

        def unknown(*args: object) -> int:
            calls.append(args)
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")

        monkeypatch.setattr(os, "preadv", unknown)
        async with FileStorage(tmp_path) as storage:
            file = await storage.open("data", create=True)
            await file.write(0, b"0123456789")
            for _ in range(3):
                assert await file.read(2, 5) == b"23456"
        assert len(calls) == 1, "it asked again although it had been told"

    run(body())


def test_short_writes_and_reads_are_carried_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        pwrite, pread = os.pwrite, os.pread
        monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, bytes(data[:1000]), offset))
        monkeypatch.setattr(os, "pwritev", lambda fd, buffers, offset: pwrite(fd, buffers[0][:7], offset))
        monkeypatch.setattr(os, "pread", lambda fd, size, offset: pread(fd, min(size, 70_000), offset))
        content = bytes(range(256)) * (LARGE // 256)
        async with FileStorage(tmp_path) as storage:
            file = await storage.open("data", create=True)
            await file.write(0, content)
            assert await file.read(0, LARGE) == content
            await storage.commit([Write("tree", 0, b"a" * 40), Write("tree", 40, b"b" * 40), Write("tree", 80, b"c")])
            assert await (await storage.open("tree")).read(0, 81) == b"a" * 40 + b"b" * 40 + b"c"

    run(body())


def test_a_file_that_may_not_grow_is_a_full_storage(tmp_path: Path) -> None:
    async def body() -> None:
        async with FileStorage(tmp_path) as storage:
            file = await storage.open("data", create=True)
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
            try:
                with pytest.raises(StorageFullError, match="data"):
                    await file.write(0, bytes(1 << 17))
                with pytest.raises(StorageFullError, match="data"):
                    await storage.commit([Write("data", 1 << 16, b"x")])
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    run(body())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_an_error_of_the_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    async def body() -> None:
        async with FileStorage(tmp_path) as storage:
            file = await storage.open("data", create=True)
            await file.write(0, b"x" * 10)

            def fail(*args: object) -> int:
                raise OSError(code, os.strerror(code))

            for name in ("pwrite", "preadv", "pread", "ftruncate"):
                monkeypatch.setattr(os, name, fail)
            expected = StorageError if code == errno.EIO else StorageFullError
            for attempt in (
                lambda: file.write(0, b"y"),
                lambda: file.read(0, 5),
                lambda: file.truncate(2),
                lambda: storage.commit([Write("data", 0, b"y")]),
            ):
                with pytest.raises(expected, match=f"{tmp_path}/data: {os.strerror(code)}"):
                    await attempt()
            monkeypatch.undo()

    run(body())


def test_a_sync_covers_the_file_and_then_the_folders_that_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        synced: list[str] = []
        for name in ("fdatasync", "fsync"):
            monkeypatch.setattr(os, name, lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
        place = tmp_path / "new" / "core"
        async with FileStorage(place) as storage:
            await storage.commit([Write("data", 0, b"x"), Sync(("data",)), Write("oplog", 0, b"y"), Sync(("oplog",))])
            folders = [str(place), str(tmp_path), str(tmp_path / "new")]
            assert synced[0] == str(place / "data")
            assert synced[1:4] == folders
            assert synced[4:] == [str(place / "oplog"), *folders]
            synced.clear()
            await (await storage.open("data")).sync()
            assert synced == [str(place / "data")], "nothing was made since, so no folder needs it"
        monkeypatch.undo()

    run(body())


def test_after_a_failed_sync_no_later_one_claims_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        async with FileStorage(tmp_path) as storage:
            file = await storage.open("data", create=True)
            await file.write(0, b"x")

            def fail(fd: int) -> None:
                raise OSError(errno.EIO, "Input/output error")

            with monkeypatch.context() as patched:
                patched.setattr(os, "fdatasync", fail)
                with pytest.raises(StorageError, match="data: Input/output error"):
                    await file.sync()
            with pytest.raises(StorageError, match="an earlier sync failed"):
                await file.sync()
            with pytest.raises(StorageError, match="an earlier sync failed"):
                await storage.commit([Write("oplog", 0, b"x"), Sync(("oplog",))])
        async with FileStorage(tmp_path) as again:
            await (await again.open("data")).sync()

    run(body())


def test_a_delete_gives_the_space_back_and_keeps_the_size(tmp_path: Path) -> None:
    async def body() -> None:
        async with FileStorage(tmp_path) as storage:
            await storage.commit([Write("data", 0, b"x" * LARGE), Sync(("data",))])
            before = (tmp_path / "data").stat().st_blocks
            await storage.commit([Delete("data", 0, LARGE // 2)])
            assert (tmp_path / "data").stat().st_blocks < before
            assert (tmp_path / "data").read_bytes() == bytes(LARGE // 2) + b"x" * (LARGE // 2)

    run(body())


def test_where_there_are_no_holes_a_delete_writes_zeros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        asked: list[tuple[int, int]] = []

        def no_holes(fd: int, mode: int, offset: int, size: int) -> int:
            asked.append((offset, size))
            return errno.EOPNOTSUPP

        monkeypatch.setattr(descriptor, "_fallocate", lambda: no_holes)
        async with FileStorage(tmp_path) as storage:
            file = await storage.open("data", create=True)
            await file.write(0, b"x" * 200_000)
            await file.delete(10, 0)
            await file.delete(200_000, 10)
            await file.delete(100, 150_000)
            await file.delete(199_990, 1000)
            assert (tmp_path / "data").read_bytes() == (
                b"x" * 100 + bytes(150_000) + b"x" * (200_000 - 150_110) + bytes(10)
            )
        assert asked == [(100, 150_000), (199_990, 10)]

    run(body())


# ---- letting go -----------------------------------------------------------------------------------


def test_nothing_stays_open(tmp_path: Path) -> None:
    async def body() -> None:
        async with FileStorage(tmp_path / "core") as storage:
            await storage.acquire()
            await storage.commit([Write("data", 0, b"x"), Sync(("data",))])
            for _ in range(3):
                await (await storage.open("tree", create=True)).aclose()
            assert str(tmp_path / "core" / "tree") not in descriptors(), "a file without handles is still open"
            handles = [await storage.open(name, create=True) for name in ("tree", "tree", "bitfield")]
            await storage.unlink("bitfield")
            await handles[0].write(0, b"x")
        assert not [path for path in descriptors() if str(tmp_path) in path]

    run(body())


def test_closing_waits_for_what_a_thread_still_writes_and_only_then_gives_the_lock_back(tmp_path: Path) -> None:
    async def body() -> None:
        storage = FileStorage(tmp_path)
        await storage.acquire()
        file = await storage.open("data", create=True)
        writes = [asyncio.ensure_future(file.write(LARGE * number, b"x" * LARGE)) for number in range(4)]
        await asyncio.sleep(0)
        await storage.aclose()
        size = (tmp_path / "data").stat().st_size
        assert not [path for path in descriptors() if str(tmp_path) in path]
        async with FileStorage(tmp_path) as other:
            await other.acquire()
        await asyncio.gather(*writes, return_exceptions=True)
        assert (tmp_path / "data").stat().st_size == size

    run(body())


def test_a_cancelled_call_waits_for_its_thread(tmp_path: Path) -> None:
    async def body() -> None:
        async with FileStorage(tmp_path) as storage:
            file = await storage.open("data", create=True)
            write = asyncio.ensure_future(file.write(0, b"x" * LARGE))
            await asyncio.sleep(0)
            for _ in range(3):
                write.cancel()
                await asyncio.sleep(0)
            with pytest.raises(asyncio.CancelledError):
                await write
            size = await file.size()
            assert size in (0, LARGE), f"the write is still going on: {size}"

    run(body())

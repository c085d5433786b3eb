"""Opening never destroys: what is damaged, foreign or newer is named and left as it is (disk spec, section 9)."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable
from typing import Any
from zlib import crc32

import pytest

from hypercore.crypto import KeyPair
from hypercore.errors import (
    CorruptError,
    ForeignStorageError,
    FormatError,
    LockedError,
    NewerFormatError,
    StorageConflictError,
)
from hypercore.log.engine import Log
from hypercore.log.manifest import default_manifest, manifest_key
from hypercore.log.oplog import MAX_OPLOG_SIZE, Entry, StoredKeyPair, encode_entry, encode_header, frame, parse_oplog
from hypercore.storage import RandomAccess
from tests import disk_vectors
from tests.disk_vectors import Files
from tests.log.logs import KEY_PAIR, Disk, DiskFile, DiskStorage, contents, have, new_log
from tests.log.oplogs import full_header
from tests.running import run


def flushed(count: int = 8, **options: Any) -> Files:
    """The files of a log of so many blocks."""

    async def make() -> Files:
        disk = Disk()
        log = await new_log(disk, **options)
        await log.append([b"block-%d" % index for index in range(count)])
        await log.flush()
        await log.aclose()
        return disk.files()

    return run(make())


FLUSHED = flushed()


def with_header(files: Files, **changes: Any) -> Files:
    """The files with another header, in the slot that counts."""
    image = parse_oplog(files["oplog"])
    header = dataclasses.replace(full_header(image, files), **changes)
    slot, bit = image.slots.active * 4096, (image.slots.bit0, image.slots.bit1)[image.slots.active]
    return files | {"oplog": overlaid(files["oplog"], slot, frame(encode_header(header), bit=bit))}


def overlaid(data: bytes, offset: int, piece: bytes) -> bytes:
    data = data.ljust(offset, b"\0")
    return data[:offset] + piece + data[offset + len(piece) :]


def newer_header() -> bytes:
    body = b"\x02" + bytes(100)
    word = struct.pack("<I", len(body) << 2)
    return (struct.pack("<I", crc32(word + body)) + word + body).ljust(8192, b"\0")


def pointing_header() -> Files:
    return disk_vectors.files("big-header")


def without(files: Files, *names: str) -> Files:
    return {name: data for name, data in files.items() if name not in names}


REFUSED: dict[str, tuple[Callable[[], Files], type[FormatError], str]] = {
    "a folder of hypercore 11": (lambda: {"CORESTORE": b"", "db": b""}, ForeignStorageError, "hypercore 11"),
    "hypercore 11 beside a log": (lambda: FLUSHED | {"db": b""}, ForeignStorageError, "hypercore 11"),
    "a whole corestore": (lambda: {"primary-key": bytes(32), "cores": b""}, ForeignStorageError, "corestore"),
    "somebody's notes": (lambda: {"notes.txt": b"mine"}, ForeignStorageError, "notes.txt"),
    "an empty log file beside notes": (lambda: {"oplog": b"", "notes.txt": b"mine"}, ForeignStorageError, "notes.txt"),
    "a lost log file": (lambda: without(FLUSHED, "oplog"), CorruptError, "tree"),
    "an emptied log file": (lambda: FLUSHED | {"oplog": b""}, CorruptError, "bitfield"),
    "a log file that was cut short": (lambda: FLUSHED | {"oplog": FLUSHED["oplog"][:100]}, CorruptError, "data"),
    "a zeroed log file": (lambda: FLUSHED | {"oplog": bytes(8192)}, CorruptError, "oplog"),
    "a newer header": (lambda: {"oplog": newer_header()}, NewerFormatError, "version 2"),
    "a lost tree": (lambda: without(FLUSHED, "tree"), CorruptError, "tree"),
    "an emptied tree": (lambda: FLUSHED | {"tree": b""}, CorruptError, "root 7"),
    "a zeroed tree": (lambda: FLUSHED | {"tree": bytes(len(FLUSHED["tree"]))}, CorruptError, "root 7"),
    "a tree of hypercore 9": (
        lambda: FLUSHED | {"tree": bytes.fromhex("0502570200002807424c414b45326200") + bytes(600)},
        ForeignStorageError,
        "hypercore 9",
    ),
    "a tree that is noise": (lambda: FLUSHED | {"tree": bytes(600 * [0x5A])}, CorruptError, "tree"),
    "a lost external header": (lambda: without(pointing_header(), "header"), CorruptError, "header"),
    "an external header cut short": (
        lambda: pointing_header() | {"header": pointing_header()["header"][:-1]},
        CorruptError,
        "header",
    ),
    "a zeroed external header": (
        lambda: pointing_header() | {"header": bytes(len(pointing_header()["header"]))},
        FormatError,
        "header",
    ),
    "a key that its manifest does not have": (
        lambda: with_header(FLUSHED, manifest=default_manifest(bytes(32))),
        CorruptError,
        "contradicts itself",
    ),
    "a signature of something else": (
        lambda: with_header(FLUSHED, signature=bytes(64)),
        CorruptError,
        "signature",
    ),
    "a header of another tree": (lambda: with_header(FLUSHED, root_hash=bytes(32)), CorruptError, "tree"),
    "a length that the tree does not have": (lambda: with_header(FLUSHED, length=2**40), CorruptError, "root"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("options", [{}, {"key_pair": KEY_PAIR}, {"read_only": True}], ids=["plain", "pair", "read"])
def test_what_cannot_be_opened_is_named_and_not_touched(name: str, options: dict[str, Any]) -> None:
    async def scenario() -> None:
        files, error, said = REFUSED[name]
        disk = Disk(files())
        with pytest.raises(error, match=said):
            await Log.open(disk.storage(), **options)
        assert disk.files() == files()
        assert disk.commits == []

    run(scenario())


@pytest.mark.parametrize("name", [name for name in REFUSED if name != "a tree of hypercore 9"])
def test_overwriting_takes_a_broken_log_and_never_what_is_not_ours(name: str) -> None:
    async def scenario() -> None:
        files, error, _ = REFUSED[name]
        disk = Disk(files())
        if error is ForeignStorageError:
            with pytest.raises(ForeignStorageError):
                await Log.open(disk.storage(), overwrite=True)
            assert disk.files() == files()
            return
        log = await Log.open(disk.storage(), overwrite=True, key_pair=KEY_PAIR)
        assert log.length == 0
        assert not any(log.bitfield.get(index) for index in range(20))
        await log.append([b"new"])
        again = await Log.open(disk.storage())
        assert await contents(again) == [b"new"]

    run(scenario())


def test_overwriting_leaves_no_secret_key_behind() -> None:
    async def scenario() -> None:
        files = disk_vectors.files("big-header")
        disk = Disk(files)
        old = await Log.open(Disk(files).storage())
        assert old.key_pair is not None
        await Log.open(disk.storage(), overwrite=True)
        assert not any(old.key_pair.secret_key in data for data in disk.files().values())

    run(scenario())


@pytest.mark.parametrize("files", [{}, {"oplog": b""}, {"oplog": b"", "tree": b"", "bitfield": b"", "data": b""}])
def test_an_empty_place_becomes_a_log(files: Files) -> None:
    async def scenario() -> None:
        log = await new_log(Disk(files))
        assert (await log.append([b"x"]))[0] == 1

    run(scenario())


def test_what_else_lies_beside_a_log_is_nobodys_business() -> None:
    async def scenario() -> None:
        disk = Disk(FLUSHED | {"notes.txt": b"mine"})
        log = await Log.open(disk.storage())
        await log.append([b"x"])
        assert disk.files()["notes.txt"] == b"mine"

    run(scenario())


def test_a_log_of_another_key_is_a_conflict() -> None:
    async def scenario() -> None:
        other = KeyPair.from_seed(b"\x09" * 32)
        for options in (
            {"key": bytes(32)},
            {"key_pair": other},
            {"manifest": default_manifest(other.public_key)},
            {"key": manifest_key(default_manifest(other.public_key)), "key_pair": other},
        ):
            disk = Disk(FLUSHED)
            with pytest.raises(StorageConflictError):
                await Log.open(disk.storage(), **options)
            assert disk.files() == FLUSHED
        log = await Log.open(Disk(FLUSHED).storage(), key=manifest_key(default_manifest(KEY_PAIR.public_key)))
        assert log.writable

    run(scenario())


def test_a_key_pair_that_is_not_stored_can_be_brought_along() -> None:
    async def scenario() -> None:
        disk = Disk(with_header(FLUSHED, key_pair=None))
        log = await Log.open(disk.storage())
        assert not log.writable
        log = await Log.open(disk.storage(), key_pair=KEY_PAIR)
        assert log.writable
        await log.append([b"x"])
        await log.flush()
        await log.aclose()
        assert not any(KEY_PAIR.secret_key in data for data in disk.files().values())

    run(scenario())


@pytest.mark.parametrize(
    ("public_key", "secret_key"),
    [
        (KEY_PAIR.public_key, KeyPair.from_seed(b"\x02" * 32).secret_key),
        (KEY_PAIR.public_key, KEY_PAIR.secret_key[:63]),
        (b"short", KEY_PAIR.secret_key),
        (KeyPair.from_seed(b"\x02" * 32).public_key, KeyPair.from_seed(b"\x02" * 32).secret_key),
    ],
)
def test_a_stored_key_pair_that_is_wrong_signs_nothing(public_key: bytes, secret_key: bytes) -> None:
    async def scenario() -> None:
        disk = Disk(with_header(FLUSHED, key_pair=StoredKeyPair(public_key, secret_key)))
        log = await Log.open(disk.storage())
        assert not log.writable
        assert any("key pair" in warning for warning in log.warnings)
        assert await log.get(3) == b"block-3"

    run(scenario())


def test_a_leased_storage_is_refused_and_not_touched() -> None:
    async def scenario() -> None:
        disk = Disk()
        log = await new_log(disk)
        await log.append([b"x"])
        before = disk.files()
        with pytest.raises(LockedError):
            await Log.open(DiskStorage(disk))
        assert disk.files() == before
        await log.append([b"y"])

    run(scenario())


def test_a_writer_that_was_here_between_the_look_and_the_lease_is_seen() -> None:
    class LateStorage(DiskStorage):
        async def acquire(self) -> None:
            other = await Log.open(self.disk.storage())
            await other.append([b"between"])
            await other.aclose()
            await super().acquire()

    async def scenario() -> None:
        disk = Disk(FLUSHED)
        log = await Log.open(LateStorage(disk))
        assert log.length == 9
        await log.append([b"x"])
        again = await Log.open(disk.storage())
        assert (await contents(again))[8:] == [b"between", b"x"]

    run(scenario())


def test_two_that_create_at_once_do_not_both_succeed() -> None:
    class LateStorage(DiskStorage):
        async def acquire(self) -> None:
            if self.disk.contents == {}:
                other = await Log.open(self.disk.storage(), key_pair=KEY_PAIR)
                await other.aclose()
            await super().acquire()

    async def scenario() -> None:
        disk = Disk()
        log = await Log.open(LateStorage(disk), key_pair=KEY_PAIR)
        assert log.key == manifest_key(default_manifest(KEY_PAIR.public_key))
        assert sum(operation.__class__.__name__ == "Write" for commit in disk.commits for operation in commit) == 1
        other_disk = Disk()
        with pytest.raises(StorageConflictError):
            await Log.open(LateStorage(other_disk), key=bytes(32))

    run(scenario())


# ---- what can be lived with -----------------------------------------------------------------------


def test_a_log_file_that_ends_within_the_first_slot_opens() -> None:
    files = flushed(0)

    async def scenario() -> None:
        end = len(files["oplog"].rstrip(b"\0"))
        for size in (end, 4096, 5000, 8191):
            log = await Log.open(Disk({"oplog": files["oplog"][:size]}).storage())
            assert await log.append([b"x"]) == (1, 1)

    run(scenario())


@pytest.mark.parametrize("tail", [b"\x01", bytes(39), b"\xff" * 33])
def test_half_a_node_at_the_end_of_the_tree_is_ignored(tail: bytes) -> None:
    async def scenario() -> None:
        log = await Log.open(Disk(FLUSHED | {"tree": FLUSHED["tree"] + tail}).storage())
        assert await contents(log) == [b"block-%d" % index for index in range(8)]
        await log.append([b"x"])
        await log.flush()
        assert await contents(log) == [*[b"block-%d" % index for index in range(8)], b"x"]

    run(scenario())


def test_without_a_bitfield_nothing_is_here() -> None:
    async def scenario() -> None:
        for files in (
            without(FLUSHED, "bitfield"),
            FLUSHED | {"bitfield": b""},
            FLUSHED | {"bitfield": b"\xff\xff\xff"},
        ):
            log = await Log.open(Disk(files).storage())
            assert (log.length, have(log), log.contiguous_length) == (8, [], 0)
            assert await log.get(0) is None
            await log.append([b"x"])
            assert have(log) == [8]

    run(scenario())


def test_a_lost_bitfield_is_told_and_one_that_never_was_is_not() -> None:
    never_was = flushed(0)

    async def scenario() -> None:
        for files, is_lost in ((without(FLUSHED, "bitfield"), True), (FLUSHED, False), (never_was, False)):
            log = await Log.open(Disk(files).storage(), read_only=True)
            assert [("bitfield is lost" in warning) for warning in log.warnings] == [True] * is_lost

    run(scenario())


def test_bits_above_the_length_are_no_blocks_and_never_become_any() -> None:
    async def scenario() -> None:
        files = FLUSHED | {"bitfield": b"\xff" * 8192}
        disk = Disk(files)
        log = await Log.open(disk.storage())
        assert have(log) == list(range(8))
        assert not any(log.bitfield.get(index) for index in range(8, 40000))
        await log.append([b"x"])
        await log.flush()
        again = await Log.open(disk.storage())
        assert have(again) == list(range(9))
        assert not again.bitfield.get(9)

    run(scenario())


def test_a_giant_bitfield_is_not_read() -> None:
    class Giant(DiskFile):
        async def size(self) -> int:
            return 2**40

        async def read(self, offset: int, size: int) -> bytes:
            assert offset + size <= 3 * 4096, "more pages than the length needs, and one"
            return b"\xff" * size

    class GiantStorage(DiskStorage):
        async def open(self, name: str, *, create: bool = False) -> DiskFile:
            return Giant(self, name) if name == "bitfield" else await super().open(name, create=create)

    async def scenario() -> None:
        log = await Log.open(GiantStorage(Disk(FLUSHED)), read_only=True)
        assert have(log) == list(range(8))

    run(scenario())


def test_a_giant_log_file_is_refused_without_reading_it() -> None:
    class Giant(DiskFile):
        async def size(self) -> int:
            return MAX_OPLOG_SIZE + 1

        async def read(self, offset: int, size: int) -> bytes:
            raise AssertionError("it was read")

    class GiantStorage(DiskStorage):
        async def open(self, name: str, *, create: bool = False) -> RandomAccess:  # type: ignore[override]
            return Giant(self, name) if name == "oplog" else await super().open(name, create=create)

    async def scenario() -> None:
        with pytest.raises(CorruptError, match="oplog"):
            await Log.open(GiantStorage(Disk(FLUSHED)))

    run(scenario())


def test_data_behind_the_last_block_is_ignored_and_data_that_is_missing_is_missing() -> None:
    async def scenario() -> None:
        disk = Disk(FLUSHED | {"data": FLUSHED["data"] + b"rubbish"})
        log = await Log.open(disk.storage())
        await log.append([b"x"])
        assert await log.get(8) == b"x"
        short = await Log.open(Disk(FLUSHED | {"data": FLUSHED["data"][:-1]}).storage())
        assert await short.get(6) == b"block-6"
        with pytest.raises(CorruptError) as caught:
            await short.get(7)
        assert (caught.value.file, caught.value.index) == ("data", 7)
        none = await Log.open(Disk(without(FLUSHED, "data")).storage())
        with pytest.raises(CorruptError):
            await none.get(0)

    run(scenario())


@pytest.mark.parametrize("length", [1, 2, 3, 6, 8, 13, 16, 40])
def test_a_lost_root_comes_back_from_its_children(length: int) -> None:
    files = flushed(length)

    async def scenario() -> None:
        for root in (await Log.open(Disk(files).storage())).roots:
            tree = overlaid(files["tree"], 40 * root.index, bytes(40))
            disk = Disk(files | {"tree": tree})
            if not root.index & 1:
                # A block's own hash has no children.
                with pytest.raises(CorruptError, match=f"root {root.index}"):
                    await Log.open(disk.storage())
                continue
            log = await Log.open(disk.storage())
            assert await contents(log) == [b"block-%d" % index for index in range(length)]
            assert any(f"root {root.index}" in warning for warning in log.warnings)

    run(scenario())


def test_an_entry_that_says_nothing_changes_nothing() -> None:
    async def scenario() -> None:
        bit = parse_oplog(FLUSHED["oplog"]).slots.active
        entry = frame(encode_entry(Entry(empty_nodes=True)), bit=bit)
        log = await Log.open(Disk(FLUSHED | {"oplog": FLUSHED["oplog"] + entry}).storage())
        assert await contents(log) == [b"block-%d" % index for index in range(8)]

    run(scenario())


# ---- byte for byte --------------------------------------------------------------------------------


def test_the_history_of_a_folder_of_hypercore_10_gives_the_same_bytes() -> None:
    async def scenario() -> None:
        disk = Disk()
        log = await new_log(disk, compat=True)
        await log.append([b"block-0"])
        # Node moves the entries on after the first mutation of a session.
        await log.flush()
        for index in (1, 2, 3):
            await log.append([b"block-%d" % index])
        await log.aclose()
        assert disk.files() == disk_vectors.files("unflushed-oplog")

    run(scenario())


@pytest.mark.parametrize(("name", "length"), [("empty", 0), ("one-block", 1), ("seven-blocks", 7)])
def test_small_folders_are_the_same_bytes(name: str, length: int) -> None:
    async def scenario() -> None:
        disk = Disk()
        log = await new_log(disk, compat=True)
        wanted = disk_vectors.files(name)
        if length:
            await log.append([b"block-%d" % index for index in range(length)])
            await log.flush()
        await log.aclose()
        assert disk.files() == wanted

    run(scenario())


# ---- what it costs --------------------------------------------------------------------------------


def test_opening_a_long_log_reads_little() -> None:
    async def scenario() -> None:
        disk = Disk()
        log = await new_log(disk, durability="none")
        for _ in range(4):
            await log.append([b"x"] * 50_000)
        await log.flush()
        await log.aclose()
        disk.reads.clear()
        again = await Log.open(disk.storage())
        assert again.contiguous_length == 200_000
        sizes: dict[str, int] = {}
        for name, _, size in disk.reads:
            sizes[name] = sizes.get(name, 0) + size
        assert sizes["tree"] < 1000
        assert sizes["bitfield"] <= 8 * 4096
        assert sizes["oplog"] <= 2 * 8192
        assert "data" not in sizes
        disk.reads.clear()
        assert await again.get(123_456) == b"x"
        assert sum(size for _, _, size in disk.reads) < 400_000

    run(scenario())

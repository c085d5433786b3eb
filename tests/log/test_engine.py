"""What a log promises to whoever appends to it, reads it, cuts it and closes it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import pytest

from hypercore.crypto import DEFAULT_NAMESPACE, KeyPair, discovery_key
from hypercore.errors import (
    BlockIndexError,
    BlockNotAvailableError,
    ClosedError,
    CorruptError,
    FencedError,
    NotWritableError,
    OptionError,
    StorageError,
    StorageFullError,
    StorageMissingError,
)
from hypercore.log import appending
from hypercore.log.engine import MAX_BLOCK_SIZE, Log, LogChange
from hypercore.log.manifest import Manifest, Prologue, Signer, default_manifest, manifest_key
from hypercore.storage import Delete, Operation, Sync, Write
from tests import disk_vectors
from tests.log.logs import (
    KEY_PAIR,
    ChecksummedStorage,
    Disk,
    DiskFile,
    DiskStorage,
    FailingStorage,
    contents,
    fetch,
    have,
    new_log,
    reader_of,
)
from tests.running import run


def blocks(count: int, *, start: int = 0) -> list[bytes]:
    return [b"block-%d" % index for index in range(start, start + count)]


# ---- whose it is ----------------------------------------------------------------------------------


def test_a_new_log_is_a_manifest_core_of_version_1_with_a_fresh_key_pair() -> None:
    async def scenario() -> None:
        log = await Log.open(Disk().storage())
        other = await Log.open(Disk().storage())
        assert log.key_pair is not None
        assert log.manifest == Manifest(signers=(Signer(log.key_pair.public_key, DEFAULT_NAMESPACE),))
        assert log.key == manifest_key(log.manifest) != other.key
        assert log.discovery_key == discovery_key(log.key)
        assert (log.length, log.byte_length, log.fork, log.contiguous_length) == (0, 0, 0, 0)
        assert log.writable
        assert not log.is_compat
        assert log.warnings == []

    run(scenario())


def test_a_compat_log_has_the_public_key_for_its_key() -> None:
    async def scenario() -> None:
        log = await new_log(compat=True)
        assert log.key == KEY_PAIR.public_key
        assert log.is_compat
        await log.append(blocks(3))
        assert len(log.signature) == 64

    run(scenario())


def test_a_log_hashed_with_blake3_is_another_core_and_works_the_same() -> None:
    async def scenario() -> None:
        disk = Disk()
        log = await new_log(disk, hash="blake3")
        assert log.key == manifest_key(default_manifest(KEY_PAIR.public_key, hash="blake3"))
        assert log.tree_hash_function.name == "blake3"
        await log.append(blocks(20))
        await log.aclose()
        again = await Log.open(disk.storage())
        assert await contents(again) == blocks(20)
        await again.truncate(7)
        await again.append([b"x"])
        assert await contents(again) == [*blocks(7), b"x"]

    run(scenario())


def test_a_log_made_by_key_alone_is_a_reader() -> None:
    async def scenario() -> None:
        log = await Log.open(Disk().storage(), key=bytes(range(32)))
        assert log.key == bytes(range(32))
        assert (log.manifest, log.key_pair, log.writable) == (None, None, False)
        with pytest.raises(NotWritableError):
            await log.append([b"x"])
        with pytest.raises(NotWritableError):
            await log.truncate(0)

    run(scenario())


@pytest.mark.parametrize(
    "options",
    [
        {"compat": True, "hash": "blake3"},
        {"hash": "md5"},
        {"key": b"short"},
        {"durability": "sometimes"},
        {"read_only": True, "overwrite": True},
        {"key_pair": KeyPair(KEY_PAIR.public_key, KeyPair.from_seed(b"\x02" * 32).secret_key)},
        {"key_pair": KEY_PAIR, "key": bytes(32)},
        {"key": bytes(32), "manifest": default_manifest(KEY_PAIR.public_key)},
        {"key_pair": KeyPair.from_seed(b"\x02" * 32), "manifest": default_manifest(KEY_PAIR.public_key)},
    ],
)
def test_options_that_contradict_each_other_are_refused_and_leave_nothing(options: dict[str, Any]) -> None:
    async def scenario() -> None:
        disk = Disk()
        with pytest.raises(OptionError):
            await Log.open(disk.storage(), **options)
        assert disk.files() == {}

    run(scenario())


def test_a_core_of_two_signers_needs_more_than_one_key_pair() -> None:
    async def scenario() -> None:
        other = KeyPair.from_seed(b"\x02" * 32)
        manifest = Manifest(quorum=2, signers=(Signer(KEY_PAIR.public_key), Signer(other.public_key)))
        log = await new_log(manifest=manifest)
        assert not log.writable
        with pytest.raises(NotWritableError, match="2 signatures"):
            await log.append([b"x"])
        assert log.length == 0
        await log.set_user_data("still", b"works")

    run(scenario())


def test_the_prologue_is_filled_as_it_says_or_not_at_all() -> None:
    async def scenario() -> None:
        template = await new_log()
        await template.append(blocks(4))
        prologue = Prologue(await template.tree_hash(), 4)
        manifest = Manifest(prologue=prologue, signers=(Signer(KEY_PAIR.public_key),))
        log = await new_log(manifest=manifest)
        with pytest.raises(NotWritableError):
            await log.append([b"something else"] * 4)
        await log.append(blocks(4))
        assert log.signature == b""
        await log.append([b"signed"])
        assert log.signature != b""
        with pytest.raises(NotWritableError):
            await log.truncate(2)

    run(scenario())


# ---- appending and reading ------------------------------------------------------------------------


def test_an_append_gives_the_length_in_blocks_and_bytes() -> None:
    async def scenario() -> None:
        log = await new_log()
        assert await log.append([b"one"]) == (1, 3)
        assert await log.append([b"", b"four"]) == (3, 7)
        assert await log.append([]) == (3, 7)
        assert await contents(log) == [b"one", b"", b"four"]
        assert [await log.byte_offset(index) for index in range(4)] == [0, 3, 3, 7]

    run(scenario())


def test_a_log_of_empty_blocks_has_an_empty_file_for_them_because_node_reads_them_from_it() -> None:
    async def scenario() -> None:
        disk = Disk()
        log = await new_log(disk)
        assert "data" not in disk.files()
        await log.append([b"", b""])
        assert disk.files()["data"] == b""
        await log.append([b"block"])
        await log.aclose()
        log = await Log.open(disk.storage())
        await log.append([b""])
        assert disk.files()["data"] == b"block"
        reader_disk = Disk()
        reader = await reader_of(log, reader_disk)
        assert "data" not in reader_disk.files()
        await fetch(log, reader, [3])
        assert reader_disk.files()["data"] == b""

    run(scenario())


def test_what_was_appended_is_there_after_closing_and_after_dropping() -> None:
    async def scenario() -> None:
        disk = Disk()
        log = await new_log(disk)
        for index in range(50):
            await log.append(blocks(3, start=3 * index))
        dropped = await Log.open(disk.storage())
        assert await contents(dropped) == blocks(150)
        assert await dropped.tree_hash() == await log.tree_hash()

    run(scenario())


def test_a_block_outside_of_the_log_is_an_index_error() -> None:
    async def scenario() -> None:
        log = await new_log()
        await log.append(blocks(2))
        for index in (-1, 2, 2**60):
            with pytest.raises(BlockIndexError):
                await log.get(index)
            assert not log.has(index)
        for length in (-1, 3):
            with pytest.raises(BlockIndexError):
                await log.tree_hash(length)
            assert not await log.can_upgrade_from(length)
        with pytest.raises(BlockIndexError):
            await log.byte_offset(3)

    run(scenario())


def test_the_tree_hash_of_every_earlier_length_is_what_it_was_then() -> None:
    async def scenario() -> None:
        log = await new_log()
        hashes = [await log.tree_hash()]
        for block in blocks(40):
            await log.append([block])
            hashes.append(await log.tree_hash())
        assert [await log.tree_hash(length) for length in range(41)] == hashes
        assert all([await log.can_upgrade_from(length) for length in range(41)])

    run(scenario())


@pytest.mark.parametrize("bad", ["text", bytearray(b"x"), None, 3, [b"nested"]])
def test_only_bytes_are_blocks(bad: Any) -> None:
    async def scenario() -> None:
        log = await new_log()
        with pytest.raises(OptionError):
            await log.append([b"fine", bad])
        assert log.length == 0

    run(scenario())


def test_a_block_of_15_mib_is_stored_and_a_larger_one_refused() -> None:
    async def scenario() -> None:
        log = await new_log()
        with pytest.raises(OptionError):
            await log.append([b"x", bytes(MAX_BLOCK_SIZE + 1)])
        await log.append([bytes(MAX_BLOCK_SIZE), b"x"])
        assert await log.get(0) == bytes(MAX_BLOCK_SIZE)
        assert await log.get(1) == b"x"

    run(scenario())


def test_damaged_bytes_are_never_given_out_wherever_they_are() -> None:
    async def scenario() -> None:
        log_disk = Disk()
        log = await new_log(log_disk)
        await log.append(blocks(300))
        await log.flush()
        await log.aclose()
        good = log_disk.files()
        for offset in range(0, len(good["data"]), 97):
            disk = Disk(good)
            disk.contents["data"][offset] ^= 1
            log = await Log.open(disk.storage())
            wrong = [index for index, block in enumerate(await _careful(log)) if block is None]
            assert len(wrong) == 1, offset
            assert not log.has(wrong[0])
            assert log.contiguous_length == wrong[0]

    run(scenario())


@pytest.mark.parametrize("in_order", [True, False])
def test_a_block_that_the_storage_itself_calls_damaged_is_named_and_may_be_fetched_again(in_order: bool) -> None:
    async def scenario() -> None:
        disk = Disk()
        log = await new_log(disk)
        await log.append(blocks(300))
        await log.flush()
        await log.aclose()
        start = sum(map(len, blocks(100)))
        log = await Log.open(ChecksummedStorage(disk, {"data": range(start + 3, start + 4)}))
        for index in range(300) if in_order else reversed(range(300)):
            if index != 100:
                assert await log.get(index) == blocks(300)[index]
                continue
            with pytest.raises(CorruptError, match="block 100 cannot be read") as caught:
                await log.get(index)
            assert caught.value.index == 100
            assert not log.has(100)

    run(scenario())


def test_an_audit_goes_on_behind_what_the_storage_itself_calls_damaged() -> None:
    async def scenario() -> None:
        disk = Disk()
        log = await new_log(disk)
        await log.append(blocks(300))
        await log.flush()
        await log.aclose()
        start = sum(map(len, blocks(100)))
        size = len(disk.contents["tree"])
        for bad in (
            {"data": range(start, start + 1)},
            {"data": range(start, start + 1), "tree": range(size - 1, size)},
        ):
            log = await Log.open(ChecksummedStorage(disk, bad))
            found = [error async for error in log.audit()]
            assert 100 in {error.index for error in found}
            assert len([error for error in found if error.index is not None and error.index < 256]) == 1
            assert any("tree nodes" in str(error) for error in found) == ("tree" in bad)
            await log.aclose()

    run(scenario())


async def _careful(log: Log) -> list[bytes | None]:
    """Every block, None where reading says that it is damaged; wrong bytes fail."""
    found: list[bytes | None] = []
    for index in range(log.length):
        try:
            block = await log.get(index)
        except CorruptError as error:
            assert error.index == index  # noqa: PT017
            assert await log.get(index) is None
            block = None
        assert block in (None, b"block-%d" % index)
        found.append(block)
    return found


def test_a_damaged_tree_gives_right_blocks_or_errors() -> None:
    async def scenario() -> None:
        log_disk = Disk()
        log = await new_log(log_disk)
        await log.append(blocks(300))
        await log.flush()
        await log.aclose()
        good = log_disk.files()
        for offset in range(0, len(good["tree"]), 211):
            disk = Disk(good)
            disk.contents["tree"][offset] ^= 0x80
            try:
                log = await Log.open(disk.storage())
            except CorruptError as error:
                assert error.file == "tree"  # noqa: PT017
                continue
            await _careful(log)

    run(scenario())


def test_damage_seen_today_is_not_written_down() -> None:
    async def scenario() -> None:
        disk = Disk()
        log = await new_log(disk)
        await log.append(blocks(4))
        await log.flush()
        data = bytes(disk.contents["data"])
        disk.contents["data"][0] ^= 1
        with pytest.raises(CorruptError):
            await log.get(0)
        await log.append([b"more"])
        await log.flush()
        await log.aclose()
        # The cable was bad, not the disk.
        disk.contents["data"][: len(data)] = data
        again = await Log.open(disk.storage())
        assert await again.get(0) == b"block-0"
        assert again.contiguous_length == 5

    run(scenario())


# ---- in flight together ---------------------------------------------------------------------------


def test_appends_in_flight_together_are_one_commit_and_one_signature() -> None:
    async def scenario() -> None:
        disk = Disk()
        log = await new_log(disk)
        before = len(disk.commits)
        results = await asyncio.gather(*(log.append([b"%d" % number, b"!"]) for number in range(64)))
        # The first one had no reason to wait for company.
        assert len(disk.commits) - before == 2
        assert sorted(results) == results
        assert results[-1] == (128, log.byte_length)
        for number, (length, byte_length) in enumerate(results):
            assert await log.get(length - 2) == b"%d" % number
            assert await log.byte_offset(length) == byte_length

    run(scenario())


def test_an_append_after_an_append_makes_no_task() -> None:
    async def scenario() -> None:
        made: list[Coroutine[Any, Any, Any]] = []

        def factory(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
            made.append(work)
            return asyncio.Task(work, loop=loop, **options)

        log = await new_log()
        asyncio.get_running_loop().set_task_factory(factory)
        for index in range(20):
            assert await log.append([b"x"]) == (index + 1, index + 1)
        assert made == []

    run(scenario())


class SlowStorage(DiskStorage):
    """Every commit waits until it is let go."""

    prompt = False

    def __init__(self, disk: Disk) -> None:
        super().__init__(disk)
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = 0

    async def commit(self, operations: Sequence[Operation]) -> None:
        self.waiting += 1
        await self.gate.wait()
        self.waiting -= 1
        await super().commit(operations)


class SlowPromptStorage(SlowStorage):
    prompt = True


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("kind", [SlowStorage, SlowPromptStorage])
def test_appends_during_a_commit_share_the_next_one(kind: type[SlowStorage]) -> None:
    async def scenario() -> None:
        disk = Disk()
        storage = kind(disk)
        log = await Log.open(storage, key_pair=KEY_PAIR)
        storage.gate.clear()
        before = len(disk.commits)
        tasks = [asyncio.create_task(log.append([b"%d" % number])) for number in range(10)]
        await turns()
        assert storage.waiting == 1
        storage.gate.set()
        assert [length for length, _ in await asyncio.gather(*tasks)] == list(range(1, 11))
        assert len(disk.commits) - before == 2

    run(scenario())


@pytest.mark.parametrize("kind", [SlowStorage, SlowPromptStorage])
@pytest.mark.parametrize("action", ["append", "truncate", "clear", "set_user_data", "flush"])
def test_a_cancelled_caller_does_not_tear_a_mutation(kind: type[SlowStorage], action: str) -> None:
    calls: dict[str, Callable[[Log], Awaitable[Any]]] = {
        "append": lambda log: log.append([b"late"]),
        "truncate": lambda log: log.truncate(2),
        "clear": lambda log: log.clear(1),
        "set_user_data": lambda log: log.set_user_data("key", b"value"),
        "flush": lambda log: log.flush(),
    }

    async def scenario() -> None:
        disk = Disk()
        storage = kind(disk)
        log = await Log.open(storage, key_pair=KEY_PAIR)
        await log.append(blocks(4))
        storage.gate.clear()
        task = asyncio.ensure_future(calls[action](log))
        await turns()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        following = asyncio.create_task(log.append([b"after"]))
        await turns()
        assert storage.waiting == 1
        storage.gate.set()
        await following
        said = (log.length, log.fork, have(log), dict(log.user_data), await log.tree_hash())
        await log.aclose()
        again = await Log.open(disk.storage())
        assert (again.length, again.fork, have(again), dict(again.user_data), await again.tree_hash()) == said
        assert again.length == {"append": 6, "truncate": 3}.get(action, 5)

    run(scenario())


def test_an_append_cancelled_before_its_turn_appends_nothing() -> None:
    async def scenario() -> None:
        storage = SlowStorage(Disk())
        log = await Log.open(storage, key_pair=KEY_PAIR)
        storage.gate.clear()
        tasks = [asyncio.create_task(log.append([b"%d" % number])) for number in range(4)]
        await turns()
        tasks[2].cancel()
        await turns()
        storage.gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [result for result in results if not isinstance(result, BaseException)] == [(1, 1), (2, 2), (3, 3)]
        assert await contents(log) == [b"0", b"1", b"3"]

    run(scenario())


def test_closing_waits_for_what_is_under_way() -> None:
    async def scenario() -> None:
        disk = Disk()
        storage = SlowStorage(disk)
        log = await Log.open(storage, key_pair=KEY_PAIR)
        storage.gate.clear()
        tasks = [asyncio.create_task(log.append([b"%d" % number])) for number in range(3)]
        await turns()
        closing = asyncio.create_task(log.aclose())
        await turns()
        assert not closing.done()
        storage.gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await closing
        again = await Log.open(disk.storage())
        assert again.length == sum(not isinstance(result, BaseException) for result in results)
        assert all(isinstance(result, tuple | ClosedError) for result in results)

    run(scenario())


def test_a_batch_larger_than_an_entry_is_still_all_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appending, "MAX_ENTRY_BLOCKS", 4)

    async def scenario() -> None:
        disk = Disk()
        log = await new_log(disk)
        await log.append(blocks(3))
        start = len(disk.contents["oplog"])
        await log.append(blocks(10, start=3))
        size = len(disk.contents["oplog"])
        whole = await Log.open(Disk(disk.files()).storage())
        assert await contents(whole) == blocks(13)
        for torn in range(start, size):
            files = disk.files()
            files["oplog"] = files["oplog"][:torn]
            log = await Log.open(Disk(files).storage())
            assert log.length == 3, torn

    run(scenario())


# ---- taking away ----------------------------------------------------------------------------------


def test_a_truncation_raises_the_fork_and_what_follows_is_another_history() -> None:
    async def scenario() -> None:
        disk = Disk()
        log = await new_log(disk)
        await log.append(blocks(20))
        await log.truncate(11)
        assert (log.length, log.fork) == (11, 1)
        await log.append([b"other"])
        await log.truncate(11, fork=7)
        assert (log.length, log.fork) == (11, 7)
        await log.append([b"third"])
        with pytest.raises(OptionError):
            await log.truncate(3, fork=7)
        with pytest.raises(BlockIndexError):
            await log.truncate(13)
        again = await Log.open(disk.storage())
        assert await contents(again) == [*blocks(11), b"third"]
        await again.truncate(0)
        assert (again.length, again.byte_length, again.signature) == (0, 0, b"")
        await again.append(blocks(2))
        assert await contents(again) == blocks(2)

    run(scenario())


def test_a_cleared_block_is_not_here_and_its_neighbours_are() -> None:
    async def scenario() -> None:
        disk = Disk()
        log = await new_log(disk)
        await log.append(blocks(10))
        await log.clear(2, 4)
        await log.clear(7)
        assert have(log) == [0, 1, 4, 5, 6, 8, 9]
        assert log.contiguous_length == 2
        assert await log.get(3) is None
        assert [await log.get(index) for index in have(log)] == [b"block-%d" % index for index in have(log)]
        assert bytes(disk.contents["data"]).count(0) == 3 * len(b"block-0")
        again = await Log.open(disk.storage())
        assert have(again) == [0, 1, 4, 5, 6, 8, 9]
        assert again.contiguous_length == 2

    run(scenario())


def test_clearing_what_is_not_here_is_nothing() -> None:
    async def scenario() -> None:
        disk = Disk()
        log = await new_log(disk)
        await log.append([b"", b"", b"x"])
        await log.clear(0, 2)
        done = len(disk.commits)
        await log.clear(0, 2)
        await log.clear(5, 9)
        await log.clear(2, 2)
        assert len(disk.commits) == done
        assert not any(isinstance(operation, Delete) for commit in disk.commits for operation in commit)
        with pytest.raises(BlockIndexError):
            await log.clear(-1, 2)

    run(scenario())


def test_clearing_next_to_a_hole_gives_the_whole_hole_back() -> None:
    async def scenario() -> None:
        disk = Disk()
        log = await new_log(disk)
        await log.append(blocks(10))
        await log.clear(3)
        await log.clear(5)
        await log.clear(4)
        (delete,) = [operation for operation in disk.commits[-1] if isinstance(operation, Delete)]
        assert delete == Delete("data", 3 * 7, 3 * 7)

    run(scenario())


# ---- user data ------------------------------------------------------------------------------------


def test_user_data_is_kept_in_order_until_it_is_removed() -> None:
    async def scenario() -> None:
        disk = Disk()
        log = await new_log(disk, user_data={"made": b"with it"})
        await log.set_user_data("a", b"1")
        await log.set_user_data("b", b"2")
        await log.set_user_data("a", b"3")
        await log.set_user_data("made", None)
        commits = len(disk.commits)
        await log.set_user_data("a", b"3")
        await log.set_user_data("never", None)
        assert len(disk.commits) == commits
        for again in (log, await Log.open(disk.storage())):
            assert list(again.user_data.items()) == [("a", b"3"), ("b", b"2")]
            assert again.get_user_data("b") == b"2"
            assert again.get_user_data("made") is None

    run(scenario())


def test_an_empty_value_of_user_data_is_refused_because_it_would_not_come_back() -> None:
    async def scenario() -> None:
        log = await new_log()
        with pytest.raises(OptionError):
            await log.set_user_data("key", b"")
        with pytest.raises(OptionError):
            await log.set_user_data("key", bytes(2 * 1024 * 1024))
        assert dict(log.user_data) == {}

    run(scenario())


def test_user_data_too_large_for_a_slot_moves_to_a_file_of_its_own() -> None:
    async def scenario() -> None:
        disk = Disk()
        log = await new_log(disk)
        for number in range(6):
            await log.set_user_data("big", bytes([number + 1]) * (5000 + number))
            await log.append([b"x"])
            await log.flush()
            again = await Log.open(Disk(disk.files()).storage())
            assert again.user_data["big"] == bytes([number + 1]) * (5000 + number)
            assert again.length == number + 1
        await log.set_user_data("big", None)
        await log.flush()
        again = await Log.open(disk.storage())
        assert dict(again.user_data) == {}
        assert await contents(again) == [b"x"] * 6

    run(scenario())


# ---- what is promised when it is acknowledged -----------------------------------------------------


def _syncs(disk: Disk, since: int) -> int:
    return sum(isinstance(operation, Sync) for commit in disk.commits[since:] for operation in commit)


def test_durability_always_syncs_the_block_before_the_entry_and_the_entry_before_the_answer() -> None:
    async def scenario() -> None:
        disk = Disk()
        log = await new_log(disk, durability="always")
        await log.append([b"x"])
        data, sync_data, entry, sync_entry = disk.commits[-1]
        assert isinstance(data, Write)
        assert isinstance(entry, Write)
        assert (data.name, entry.name) == ("data", "oplog")
        assert (sync_data, sync_entry) == (Sync(("data",)), Sync(("oplog",)))

    run(scenario())


def test_durability_flush_syncs_at_checkpoints_and_at_the_end_only() -> None:
    async def scenario() -> None:
        disk = Disk()
        log = await new_log(disk)
        since = len(disk.commits)
        for _ in range(20):
            await log.append([b"x"])
        assert _syncs(disk, since) == 0
        await log.flush()
        checkpoint = disk.commits[-1]
        names = [operation.names for operation in checkpoint if isinstance(operation, Sync)]
        assert names == [("data", "bitfield", "tree"), ("oplog",)]
        await log.append([b"x"])
        await log.aclose()
        assert disk.commits[-1] == (Sync(("data", "oplog")),)

    run(scenario())


def test_durability_none_never_syncs() -> None:
    async def scenario() -> None:
        disk = Disk()
        log = await new_log(disk, durability="none")
        await log.append(blocks(3))
        await log.truncate(1)
        await log.flush()
        await log.append([b"x"])
        await log.aclose()
        assert _syncs(disk, 0) == 0

    run(scenario())


def test_entries_do_not_grow_without_bound() -> None:
    async def scenario() -> None:
        disk = Disk()
        log = await new_log(disk)
        sizes = []
        for _ in range(20):
            await log.append([b"x"] * 500)
            sizes.append(len(disk.contents["oplog"]))
        assert 500_000 < max(sizes) < 600_000
        assert min(sizes[1:]) < 100_000
        assert len(disk.contents["tree"]) > 200_000
        await log.aclose()
        # What is left behind is quick to read at the next open.
        assert len(disk.contents["oplog"]) < 8192 + 64 * 1024

    run(scenario())


def test_a_sync_of_many_bytes_runs_beside_the_appends() -> None:
    class SlowToSync(DiskFile):
        async def sync(self) -> None:
            begun.append(self.name)
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    class SlowToSyncStorage(DiskStorage):
        async def open(self, name: str, *, create: bool = False) -> DiskFile:
            await super().open(name, create=create)
            return SlowToSync(self, name)

    begun: list[str] = []

    async def scenario() -> None:
        disk = Disk()
        log = await Log.open(SlowToSyncStorage(disk), key_pair=KEY_PAIR)
        begun.clear()
        for _ in range(5):
            await log.append([bytes(1024 * 1024)] * 3)
            await asyncio.sleep(0)
        assert begun == ["data"]
        await log.aclose()
        again = await Log.open(disk.storage())
        assert again.length == 15

    run(scenario())


# ---- when the storage fails -----------------------------------------------------------------------


@pytest.mark.parametrize("done", range(10))
@pytest.mark.parametrize("action", ["append", "truncate", "clear", "set_user_data", "flush"])
def test_a_failed_commit_loses_nothing_that_was_acknowledged(action: str, done: int) -> None:
    calls: dict[str, Callable[[Log], Awaitable[Any]]] = {
        "append": lambda log: log.append([b"perhaps"]),
        "truncate": lambda log: log.truncate(2),
        "clear": lambda log: log.clear(1),
        "set_user_data": lambda log: log.set_user_data("key", b"value"),
        "flush": lambda log: log.flush(),
    }

    async def scenario() -> None:
        disk = Disk()
        storage = FailingStorage(disk)
        log = await Log.open(storage, key_pair=KEY_PAIR)
        await log.append(blocks(5))
        storage.commits_left, storage.operations_done = 0, done
        with contextlib.suppress(StorageFullError):
            await calls[action](log)
        # Whatever happened to it, the log goes on from what is true.
        await log.append([b"certainly"])
        said = (log.fork, await contents(log), dict(log.user_data), await log.tree_hash())
        assert said[1][:2] in ([b"block-0", b"block-1"], [b"block-0", None])
        assert said[1][-1] == b"certainly"
        dropped = await Log.open(Disk(disk.files()).storage())
        assert (dropped.fork, await contents(dropped), dict(dropped.user_data), await dropped.tree_hash()) == said
        await log.flush()
        flushed = await Log.open(Disk(disk.files()).storage())
        assert (flushed.fork, await contents(flushed), dict(flushed.user_data), await flushed.tree_hash()) == said

    run(scenario())


def test_a_failed_checkpoint_is_not_the_failure_of_the_append_that_met_it() -> None:
    async def scenario() -> None:
        disk = Disk()
        storage = FailingStorage(disk)
        log = await Log.open(storage, key_pair=KEY_PAIR)
        large = [b"x"] * 5000
        storage.commits_left, storage.operations_done = 2, 3
        for number in range(1, 6):
            assert (await log.append(large))[0] == number * 5000
        assert any("no space left" in warning for warning in log.warnings)
        again = await Log.open(disk.storage())
        assert again.length == 25000
        assert len(again.warnings) == 0

    run(scenario())


def test_a_writer_that_was_replaced_never_writes_again() -> None:
    async def scenario() -> None:
        storage = FailingStorage(Disk())
        log = await Log.open(storage, key_pair=KEY_PAIR)
        await log.append([b"x"])
        storage.commits_left, storage.error = 0, FencedError("somebody else writes here now")
        for _ in range(3):
            with pytest.raises(FencedError):
                await log.append([b"y"])
        assert await log.get(0) == b"x"

    run(scenario())


def test_a_log_whose_acknowledged_blocks_went_away_signs_nothing_more() -> None:
    async def scenario() -> None:
        disk = Disk()
        storage = FailingStorage(disk)
        log = await Log.open(storage, key_pair=KEY_PAIR)
        await log.append(blocks(2))
        old = disk.files()
        await log.append(blocks(2))
        storage.commits_left = 0
        with pytest.raises(StorageFullError):
            await log.append([b"x"])
        for name, data in old.items():
            disk.contents[name][:] = data
        for _ in range(2):
            with pytest.raises(CorruptError, match="second history"):
                await log.append([b"x"])

    run(scenario())


def test_a_group_that_fails_fails_every_caller() -> None:
    async def scenario() -> None:
        storage = FailingStorage(Disk())
        log = await Log.open(storage, key_pair=KEY_PAIR)
        storage.commits_left = 1
        results = await asyncio.gather(*(log.append([b"x"]) for _ in range(5)), return_exceptions=True)
        assert results[0] == (1, 1)
        assert all(isinstance(result, StorageError) for result in results[1:])
        assert await log.append([b"y"]) == (2, 2)

    run(scenario())


# ---- who hears of it ------------------------------------------------------------------------------


def test_listeners_hear_of_each_commit_once_in_order() -> None:
    async def scenario() -> None:
        log = await new_log()
        heard: list[LogChange] = []
        log.listeners.append(heard.append)
        await log.append(blocks(3))
        await log.clear(1)
        await log.truncate(2)
        await log.set_user_data("not", b"heard of")
        assert heard == [
            LogChange("append", 0, 3, 0, 3),
            LogChange("clear", 1, 2, 0, 3),
            LogChange("truncate", 2, 3, 1, 2),
        ]
        log.listeners.clear()
        await log.append([b"x"])
        assert len(heard) == 3

    run(scenario())


def test_a_listener_that_fails_does_not_fail_the_commit() -> None:
    async def scenario() -> None:
        log = await new_log()
        reported: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))

        def broken(change: LogChange) -> None:
            raise RuntimeError("broken")

        heard: list[LogChange] = []
        log.listeners.extend((broken, heard.append))
        assert await log.append([b"x"]) == (1, 1)
        assert len(heard) == 1
        assert isinstance(reported[0]["exception"], RuntimeError)

    run(scenario())


# ---- the end --------------------------------------------------------------------------------------


def test_a_closed_log_says_so() -> None:
    async def scenario() -> None:
        disk = Disk()
        log = await new_log(disk)
        await log.append([b"x"])
        await log.aclose()
        await log.aclose()
        assert disk.holder is None
        actions: list[Awaitable[Any]] = [
            log.append([b"y"]),
            log.get(0),
            log.clear(0),
            log.truncate(0),
            log.flush(),
            log.set_user_data("a", b"b"),
            log.apply([]),
            log.purge(),
        ]
        for action in actions:
            with pytest.raises(ClosedError):
                await action

    run(scenario())


def test_a_read_only_log_takes_no_lease_and_changes_nothing() -> None:
    async def scenario() -> None:
        disk = Disk()
        writer = await new_log(disk)
        await writer.append(blocks(5))
        before = disk.files()
        log = await Log.open(DiskStorage(disk), read_only=True)
        assert await contents(log) == blocks(5)
        assert not log.writable
        for action in (log.append([b"y"]), log.clear(0), log.truncate(0), log.flush(), log.set_user_data("a", b"b")):
            with pytest.raises(NotWritableError):
                await action
        await log.aclose()
        assert disk.files() == before
        await writer.append([b"still the writer"])

    run(scenario())


def test_purging_leaves_nothing_of_the_log_and_all_of_the_rest() -> None:
    async def scenario() -> None:
        disk = Disk()
        log = await new_log(disk)
        await log.append(blocks(5))
        await log.set_user_data("big", bytes(range(1, 256)) * 20)
        await log.flush()
        disk.contents["notes"] = bytearray(b"mine")
        await log.purge()
        assert disk.files() == {"notes": b"mine"}
        with pytest.raises(ClosedError):
            await log.append([b"x"])

    run(scenario())


def test_a_reorg_or_truncation_reaches_the_disk_as_node_leaves_it() -> None:
    async def scenario() -> None:
        disk = Disk()
        log = await new_log(disk, compat=True)
        await log.append(blocks(8))
        await log.truncate(5)
        _agree(disk, "truncated")
        await log.append([b"block-105", b"block-106"])
        await log.append([b"block-107"])
        await log.append([b"block-108"])
        # Node moved only the first of these on.
        await log.truncate(0)
        _agree(disk, "truncated-to-zero")

    run(scenario())


def _agree(disk: Disk, name: str) -> None:
    wanted, found = disk_vectors.files(name), disk.files()
    assert found["tree"] == wanted["tree"]
    assert found["bitfield"] == wanted["bitfield"]
    assert len(found["oplog"]) == len(wanted["oplog"])


def test_a_log_that_is_dropped_leaves_no_noise() -> None:
    async def scenario() -> None:
        log = await new_log()
        await asyncio.gather(*(log.append([b"x"]) for _ in range(5)))
        del log
        gc.collect()

    run(scenario())


def test_offsets_that_the_tree_does_not_tell_are_said_to_be_unknown() -> None:
    async def scenario() -> None:
        writer = await new_log()
        await writer.append(blocks(16))
        reader = await reader_of(writer)
        await fetch(writer, reader, [5])
        assert await reader.byte_offset(5) == 35
        assert await reader.byte_offset(4) == 28
        assert await reader.byte_offset(6) == 42
        with pytest.raises(BlockNotAvailableError):
            await reader.byte_offset(3)

    run(scenario())


def test_nothing_is_made_where_nothing_may_be_made() -> None:
    async def scenario() -> None:
        disk = Disk()
        with pytest.raises(StorageMissingError):
            await Log.open(disk.storage(), create_if_missing=False)
        with pytest.raises(StorageMissingError):
            await Log.open(disk.storage(), read_only=True)
        assert disk.files() == {}

    run(scenario())

"""A copy from any storage to any other: verified, gone on with after any end, refused where it would do harm."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from hypercore import copying
from hypercore.copying import GROUP_BYTES, MOST_READS_AT_ONCE, Copied, copy
from hypercore.core import Hypercore
from hypercore.crypto import KeyPair
from hypercore.errors import (
    CorruptError,
    FormatError,
    HypercoreError,
    LockedError,
    NotWritableError,
    OptionError,
    StorageConflictError,
    StorageError,
    StorageMissingError,
)
from hypercore.plugins import open_storage
from hypercore.storage import Operation, Storage
from hypercore.testing import CrashStorage, FaultyStorage
from hypercore_memory import MemoryStorage
from tests.replication.links import link
from tests.replication.test_storage_peers import FarStorage, blocks_of, damages, files_of, fill, sound
from tests.running import run

_names = (f"memory:copy-{number}" for number in itertools.count())


class Places:
    """Storages by name that stay as long as the test."""

    def __init__(self) -> None:
        self._kept: list[Storage] = []

    async def new(self) -> str:
        place = next(_names)
        storage = open_storage(place)
        await storage.names()
        self._kept.append(storage)
        return place


async def log_at(place: str | Path, blocks: Sequence[bytes]) -> bytes:
    """A log in a storage; its key."""
    async with Hypercore(str(place)) as core:
        if blocks:
            await core.append(list(blocks))
        return core.key


async def holds(place: str | Path | Storage, blocks: list[bytes]) -> bool:
    """Whether a storage holds exactly these blocks, verified."""
    async with Hypercore(place, create_if_missing=False, read_only=True) as core:
        return core.length == core.contiguous_length == len(blocks) and await sound(core, blocks)


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many commits for little data."""
    monkeypatch.setattr(copying, "GROUP_BYTES", 4096)


# ---- what is copied ----------------------------------------------------------------------------------


def test_everything_arrives_in_any_storage(tmp_path: Path) -> None:
    async def main() -> None:
        places, blocks = Places(), blocks_of(3000)
        key = await log_at(tmp_path / "log", blocks)
        chain: list[str | Path] = [tmp_path / "log", await places.new(), await places.new(), tmp_path / "back"]
        for source, destination in itertools.pairwise(chain):
            copied = await copy(source, destination)
            assert copied == Copied(
                key=key,
                length=3000,
                byte_length=sum(map(len, blocks)),
                fork=0,
                stored_blocks=3000,
                copied_blocks=3000,
            )
            assert await holds(destination, blocks)
        async with Hypercore(tmp_path / "back") as core:
            assert not core.writable

    run(main())


@pytest.mark.parametrize("kind", ["manifest", "compat", "blake3", "empty", "empty compat"])
def test_every_kind_of_log_is_copied_whole(kind: str, tmp_path: Path) -> None:
    async def main() -> None:
        pair = KeyPair.from_seed(bytes(32))
        blocks = [] if "empty" in kind else blocks_of(100)
        compat = "compat" in kind
        async with Hypercore(
            tmp_path / "log", key_pair=pair, compat=compat, hash="blake3" if kind == "blake3" else "blake2b"
        ) as core:
            if blocks:
                await core.append(blocks)
            manifest = core.manifest
        copied = await copy(tmp_path / "log", tmp_path / "copy")
        assert copied.length == len(blocks)
        async with Hypercore(tmp_path / "copy", read_only=True) as core:
            assert compat or core.manifest == manifest
        assert await holds(tmp_path / "copy", blocks)
        assert (await copy(tmp_path / "log", tmp_path / "copy")).copied_blocks == 0

    run(main())


def test_user_data_is_copied_and_brought_up_to_date(tmp_path: Path) -> None:
    async def main() -> None:
        async with Hypercore(tmp_path / "log", user_data={"app": b"one"}) as core:
            await core.append(b"block")
            await copy(tmp_path / "log", tmp_path / "copy")
            await core.set_user_data("app", b"two")
            await core.set_user_data("more", bytes(1000))
        await copy(tmp_path / "log", tmp_path / "copy")
        async with Hypercore(tmp_path / "copy", read_only=True) as core:
            assert [await core.get_user_data(name) for name in ("app", "more")] == [b"two", bytes(1000)]

    run(main())


def test_a_copy_takes_only_what_is_new(tmp_path: Path) -> None:
    async def main() -> None:
        blocks = blocks_of(1000)
        await log_at(tmp_path / "log", blocks[:600])
        assert (await copy(tmp_path / "log", tmp_path / "copy")).copied_blocks == 600
        await log_at(tmp_path / "log", blocks[600:])
        assert (await copy(tmp_path / "log", tmp_path / "copy")).copied_blocks == 400
        assert await holds(tmp_path / "copy", blocks)

    run(main())


def test_the_holes_of_a_source_stay_holes_and_others_fill_them(tmp_path: Path) -> None:
    async def main() -> None:
        blocks = blocks_of(300)
        choose = random.Random(5)
        some = sorted(choose.sample(range(300), 120))
        key = await log_at(tmp_path / "log", blocks)
        async with Hypercore(tmp_path / "log", read_only=True) as origin, Hypercore(tmp_path / "part", key) as part:
            await link(origin, part)
            await part.update()
            await part.download(blocks=some).done()
        copied = await copy(tmp_path / "part", tmp_path / "copy")
        assert (copied.length, copied.stored_blocks, copied.copied_blocks) == (300, 120, 120)
        async with Hypercore(tmp_path / "copy", read_only=True) as core:
            assert [index for index in range(300) if await core.has(index)] == some
            assert await sound(core, blocks)
        assert (await copy(tmp_path / "log", tmp_path / "copy")).copied_blocks == 180
        assert await holds(tmp_path / "copy", blocks)

    run(main())


def test_a_source_that_went_to_another_fork_is_followed(tmp_path: Path) -> None:
    async def main() -> None:
        blocks = blocks_of(500)
        await log_at(tmp_path / "log", blocks)
        await copy(tmp_path / "log", tmp_path / "copy")
        async with Hypercore(tmp_path / "log") as core:
            await core.truncate(300)
            await core.append([b"another", b"history"])
        copied = await copy(tmp_path / "log", tmp_path / "copy")
        # What the two have in common was kept.
        assert (copied.fork, copied.length, copied.copied_blocks) == (1, 302, 2)
        assert await holds(tmp_path / "copy", [*blocks[:300], b"another", b"history"])
        async with Hypercore(tmp_path / "log") as core:
            await core.truncate(0)
        with pytest.raises(StorageConflictError, match="empty on fork 2"):
            await copy(tmp_path / "log", tmp_path / "copy")
        assert (await copy(tmp_path / "log", tmp_path / "fresh")).length == 0

    run(main())


def test_a_source_that_is_cut_in_the_midst_is_copied_as_it_is_then() -> None:
    class Cutting(FarStorage):
        """Cuts the log when so much of it was read."""

        async def wait(self) -> None:
            await super().wait()
            if self.round_trips > 60 and not writer.fork:
                await writer.truncate(10)
                await writer.append([b"another history"] * 5)
                await writer.hub.log.flush()

    writer: Hypercore

    async def main() -> None:
        nonlocal writer
        places = Places()
        place = await places.new()
        async with Hypercore(place) as writer:
            await writer.append([bytes([index]) * 100_000 for index in range(200)])
            destination = await places.new()
            copied = await copy(Cutting(MemoryStorage(place.partition(":")[2]), seconds=0), destination)
            assert (copied.fork, copied.length) == (1, 15)
            expected = [*(bytes([index]) * 100_000 for index in range(10)), *[b"another history"] * 5]
            async with Hypercore(destination, read_only=True) as core:
                assert await sound(core, expected)

    run(main())


# ---- what is refused ---------------------------------------------------------------------------------


def test_one_place_by_two_names_is_no_copy(tmp_path: Path) -> None:
    async def main() -> None:
        await log_at(tmp_path / "log", [b"one"])
        (tmp_path / "alias").symlink_to(tmp_path / "log")
        storage = open_storage(tmp_path / "log")
        for source, destination in (
            (tmp_path / "log", f"{tmp_path}/./log/"),
            (tmp_path / "log", f"file:{tmp_path / 'alias'}"),
            ("memory:same", "memory:same"),
            (storage, storage),
        ):
            with pytest.raises(OptionError, match="both the source and the destination"):
                await copy(source, destination)

    run(main())


def test_nothing_foreign_is_copied_from_or_written_over(tmp_path: Path) -> None:
    async def main() -> None:
        await log_at(tmp_path / "log", blocks_of(3))
        await log_at(tmp_path / "other", blocks_of(3))
        await copy(tmp_path / "log", tmp_path / "ahead", with_secret_key=True)
        await log_at(tmp_path / "ahead", [b"ahead"])
        (tmp_path / "foreign").mkdir()
        (tmp_path / "foreign" / "letter").write_text("dear")
        for source, destination, error, said in (
            ("none", "copy", StorageMissingError, "none: there is no core"),
            ("foreign", "copy", FormatError, "foreign: this storage"),
            ("log", "other", StorageConflictError, "other: this storage holds core"),
            ("log", "foreign", FormatError, "foreign: this storage"),
            ("log", "ahead", StorageConflictError, "ahead is ahead: 4 blocks"),
        ):
            with pytest.raises(error, match=said):
                await copy(tmp_path / source, tmp_path / destination)
        assert not (tmp_path / "copy").exists()
        assert await holds(tmp_path / "ahead", [*blocks_of(3), b"ahead"])

    run(main())


def test_a_destination_that_somebody_writes_is_locked_and_a_source_may_be_in_use(tmp_path: Path) -> None:
    async def main() -> None:
        await log_at(tmp_path / "log", blocks_of(3))
        await copy(tmp_path / "log", tmp_path / "copy")
        async with Hypercore(tmp_path / "copy"), Hypercore(tmp_path / "log"):
            with pytest.raises(LockedError, match="copy"):
                await copy(tmp_path / "log", tmp_path / "copy")
            assert (await copy(tmp_path / "log", tmp_path / "second")).length == 3

    run(main())


def test_a_writer_is_copied_only_on_purpose_and_only_whole(tmp_path: Path) -> None:
    async def main() -> None:
        await log_at(tmp_path / "log", blocks_of(3))
        await copy(tmp_path / "log", tmp_path / "reader")
        with pytest.raises(NotWritableError, match="reader has no secret key"):
            await copy(tmp_path / "reader", tmp_path / "copy", with_secret_key=True)
        with pytest.raises(StorageConflictError, match="reader already holds a reader's copy"):
            await copy(tmp_path / "log", tmp_path / "reader", with_secret_key=True)
        await copy(tmp_path / "log", tmp_path / "writer", with_secret_key=True)
        assert (await copy(tmp_path / "log", tmp_path / "writer", with_secret_key=True)).copied_blocks == 0
        async with Hypercore(tmp_path / "writer") as core:
            assert core.writable
            await core.append(b"more")
        assert await holds(tmp_path / "writer", [*blocks_of(3), b"more"])

    run(main())


# ---- what is damaged ---------------------------------------------------------------------------------


def test_a_damaged_block_is_named_and_everything_else_is_copied(tmp_path: Path) -> None:
    async def main() -> None:
        blocks = blocks_of(600)
        await log_at(tmp_path / "log", blocks)
        whole = (tmp_path / "log" / "data").read_bytes()
        damaged = bytearray(whole)
        offsets = [sum(map(len, blocks[:index])) for index in (0, 1, 255, 599)]
        for offset in offsets:
            damaged[offset] ^= 4
        (tmp_path / "log" / "data").write_bytes(damaged)
        with pytest.raises(CorruptError, match=r"block 0 .* and 3 others") as raised:
            await copy(tmp_path / "log", tmp_path / "copy")
        assert raised.value.index == 0
        assert str(tmp_path / "log") in str(raised.value)
        async with Hypercore(tmp_path / "copy", read_only=True) as core:
            assert [index for index in range(600) if not await core.has(index)] == [0, 1, 255, 599]
            assert await sound(core, blocks)
        (tmp_path / "log" / "data").write_bytes(whole)
        assert (await copy(tmp_path / "log", tmp_path / "copy")).copied_blocks == 4

    run(main())


@pytest.mark.parametrize("seed", [3, 4])
def test_no_damage_of_a_source_is_ever_copied(seed: int) -> None:
    async def main() -> None:
        places, blocks = Places(), blocks_of(94)
        origin = await places.new()
        async with Hypercore(origin) as core:
            await core.append(blocks[:90])
            await core.hub.log.flush()
            await core.append(blocks[90:])
        files = await files_of(origin)
        failed = 0
        for what, damaged in damages(files, seed):
            source, destination = await places.new(), await places.new()
            async with await fill(source, damaged):
                try:
                    await copy(source, destination)
                except HypercoreError:
                    failed += 1
                if await files_of(destination):
                    async with Hypercore(destination, read_only=True) as core:
                        assert core.length <= 94, what
                        assert await sound(core, blocks), what
                assert (await copy(origin, destination)).stored_blocks == 94, what
                assert await holds(destination, blocks), what
        assert failed, f"seed {seed}"

    run(main())


# ---- what is interrupted -----------------------------------------------------------------------------


class Recorder(CrashStorage):
    """Can still be asked when it was closed."""

    async def aclose(self) -> None:
        pass


@pytest.mark.parametrize("secret", [False, True], ids=["reader", "writer"])
def test_after_a_kill_at_any_moment_the_copy_goes_on(secret: bool, small_groups: None) -> None:
    async def main() -> None:
        places, blocks = Places(), [random.Random(index).randbytes(1000) for index in range(30)]
        source = await places.new()
        async with Hypercore(source, user_data={"app": b"data"}) as core:
            await core.append(blocks)
        recorder = Recorder(open_storage("memory:"))
        await copy(source, recorder, with_secret_key=secret)
        assert len(recorder.steps) > 20
        copied_again = set()
        for step in range(len(recorder.steps) + 1):
            for torn in (None, 100):
                place = await places.new()
                storage = open_storage(place)
                await recorder.kill(storage, after=step, torn_bytes=torn)
                await storage.aclose()
                before = 0
                if "oplog" in await files_of(place):
                    try:
                        async with Hypercore(place, create_if_missing=False, read_only=True) as core:
                            held = [index for index in range(core.length) if await core.has(index)]
                            assert [await core.get(index) for index in held] == [blocks[index] for index in held]
                            before = len(held)
                    except StorageMissingError:
                        pass  # The header was not there yet.
                copied = await copy(source, place, with_secret_key=secret)
                assert copied.copied_blocks == 30 - before, f"step {step}"
                copied_again.add(copied.copied_blocks)
                assert await holds(place, blocks), f"step {step}"
                async with Hypercore(place) as core:
                    assert core.writable == secret
                    assert await core.get_user_data("app") == b"data"
        assert {0, 30} < copied_again  # It was felt in the middle, too.

    run(main())


def test_a_failure_of_either_storage_is_told_and_the_copy_goes_on() -> None:
    async def main() -> None:
        places, blocks = Places(), [random.Random(index).randbytes(200_000) for index in range(100)]
        source = await places.new()
        await log_at(source, blocks)
        destination = await places.new()
        told: list[str] = []
        for fail_at in itertools.count(1):
            target = FaultyStorage(open_storage(destination), fail_at=3 * fail_at, partial=True)
            origin = FaultyStorage(open_storage(source), fail_at=30 * fail_at, verbs={"read"}, lasting=True)
            try:
                copied = await copy(origin, target)
            except StorageError as error:
                told.append(str(error))
            else:
                assert copied.stored_blocks == 100
                break
        assert fail_at > 2
        assert all("injected" in message for message in told)
        assert await holds(destination, blocks)

    run(main())


def test_a_copy_that_is_cancelled_goes_on(small_groups: None) -> None:
    async def main() -> None:
        places, blocks = Places(), [bytes([index % 256]) * 5000 for index in range(8)]
        source, destination = await places.new(), await places.new()
        await log_at(source, blocks)
        task: asyncio.Task[Copied]

        def cancel(have: int, want: int) -> None:
            assert want == 8
            if have == 3:
                task.cancel()

        task = asyncio.create_task(copy(source, destination, on_progress=cancel))
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await copy(source, destination)).copied_blocks == 5
        assert await holds(destination, blocks)

    run(main())


# ---- what is far away --------------------------------------------------------------------------------


class Counting(FarStorage):
    """Remembers the size of each commit."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner, seconds=0)
        self.commits: list[int] = []

    async def commit(self, operations: Sequence[Operation]) -> None:
        self.commits.append(sum(len(getattr(operation, "data", b"")) for operation in operations))
        await super().commit(operations)


def test_many_blocks_are_on_their_way_at_once_and_few_commits_store_them() -> None:
    async def main() -> None:
        places, blocks = Places(), [b"%d" % index * 2000 for index in range(1000)]
        source = await places.new()
        await log_at(source, blocks)
        origin, target = FarStorage(open_storage(source), seconds=0.0005), Counting(open_storage("memory:"))
        await copy(origin, target)
        assert origin.most_under_way == MOST_READS_AT_ONCE
        assert len(target.commits) < 6

    run(main())


def test_no_more_is_held_in_memory_than_a_group() -> None:
    async def main() -> None:
        places = Places()
        # Thousands of small blocks say that a block is small, and then come large ones.
        blocks = [b"x"] * 3000 + [bytes([index]) * 3_000_000 for index in range(30)]
        source = await places.new()
        await log_at(source, blocks)
        origin, target = FarStorage(open_storage(source), seconds=0.0002), Counting(open_storage("memory:"))
        await copy(origin, target)
        assert max(target.commits) < 2 * GROUP_BYTES + 1_000_000

    run(main())

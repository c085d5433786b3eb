"""The storages that fail on purpose fail where they are told to, and nowhere else."""

from __future__ import annotations

import asyncio

import pytest

from hypercore.errors import StorageError, StorageFullError, StorageMissingError
from hypercore.storage import Delete, Operation, Storage, Sync, Truncate, Write
from hypercore.testing import CrashStorage, FaultyStorage, LatencyStorage
from hypercore_memory import MemoryStorage
from tests.running import run


async def contents(storage: Storage) -> dict[str, bytes]:
    found = {}
    for name in await storage.names():
        file = await storage.open(name)
        found[name] = await file.read(0, await file.size())
    return found


# ---- faults ---------------------------------------------------------------------------------------

COMMIT: list[Operation] = [
    Write("data", 0, b"block"),
    Sync(("data",)),
    Write("oplog", 0, b"entry"),
    Sync(("oplog",)),
    Delete("data", 0, 2),
]


def test_each_operation_of_a_commit_can_be_the_one_that_fails() -> None:
    async def body() -> None:
        counter = FaultyStorage(MemoryStorage())
        await counter.commit(COMMIT)
        assert counter.count == 7, "two creates, two writes, two syncs and a delete"
        before = []
        for fail_at in range(1, counter.count + 1):
            storage = FaultyStorage(MemoryStorage(), fail_at=fail_at)
            with pytest.raises(StorageError, match="injected"):
                await storage.commit(COMMIT)
            assert storage.count == fail_at
            before.append(await contents(storage))
            await storage.commit(COMMIT)
        assert before == [
            {},
            {"data": b""},
            {"data": b"block"},
            {"data": b"block"},
            {"data": b"block", "oplog": b""},
            {"data": b"block", "oplog": b"entry"},
            {"data": b"block", "oplog": b"entry"},
        ]

    run(body())


def test_a_fault_is_of_the_kind_that_was_asked_for_and_can_last() -> None:
    async def body() -> None:
        storage = FaultyStorage(
            MemoryStorage(), fail_at=2, error=lambda step: StorageFullError(step.name), lasting=True, verbs={"write"}
        )
        file = await storage.open("data", create=True)
        await file.write(0, b"first")
        await file.sync()
        for _ in range(2):
            with pytest.raises(StorageFullError, match="data"):
                await file.write(0, b"later")
        await file.truncate(3)
        assert await contents(storage) == {"data": b"fir"}

    run(body())


def test_a_partial_fault_tears_the_write() -> None:
    async def body() -> None:
        storage = FaultyStorage(MemoryStorage(), fail_at=1, partial=True, verbs={"write"})
        with pytest.raises(StorageError):
            await storage.commit([Write("data", 2, b"12345678")])
        assert await contents(storage) == {"data": b"\0\x001234"}

    run(body())


def test_reads_can_fail_too() -> None:
    async def body() -> None:
        inner = MemoryStorage()
        await inner.commit([Write("data", 0, b"abc")])
        file = await FaultyStorage(inner, fail_at=2, verbs={"read"}).open("data")
        assert await file.read(0, 1) == b"a"
        with pytest.raises(StorageError, match="read of 'data'"):
            await file.read(0, 1)

    run(body())


# ---- latency --------------------------------------------------------------------------------------


def test_a_commit_and_several_reads_at_once_wait_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        waits: list[float] = []
        sleep = asyncio.sleep

        async def recorded(seconds: float) -> None:
            waits.append(seconds)
            await sleep(0)

        monkeypatch.setattr(asyncio, "sleep", recorded)
        storage = LatencyStorage(MemoryStorage(), seconds=0.02)
        await storage.commit([Write("data", 0, b"abc"), Write("oplog", 0, b"entry"), Sync(("data", "oplog"))])
        assert waits == [0.02]
        file = await storage.open("data")
        assert await file.read_many([(0, 1), (1, 1), (2, 1)]) == [b"a", b"b", b"c"]
        assert await file.read(0, 3) == b"abc"
        assert waits == [0.02] * 4
        assert storage.round_trips == 4

    run(body())


# ---- crashes --------------------------------------------------------------------------------------


def test_a_kill_leaves_the_steps_before_it_and_perhaps_a_torn_one() -> None:
    async def body() -> None:
        inner = MemoryStorage()
        await inner.commit([Write("old", 0, b"before"), Write("data", 0, b"0000")])
        storage = CrashStorage(inner)
        await storage.commit(
            [Write("data", 2, b"11"), Truncate("oplog", 3), Write("oplog", 1, b"22"), Sync(("oplog",))]
        )
        await storage.unlink("data")
        assert [step.verb for step in storage.steps] == ["write", "create", "truncate", "write", "sync", "unlink"]
        left = [await contents(await storage.kill(MemoryStorage(), after=after)) for after in range(7)]
        old = {"old": b"before"}
        assert left == [
            {**old, "data": b"0000"},
            {**old, "data": b"0011"},
            {**old, "data": b"0011", "oplog": b""},
            {**old, "data": b"0011", "oplog": b"\0\0\0"},
            {**old, "data": b"0011", "oplog": b"\x0022"},
            {**old, "data": b"0011", "oplog": b"\x0022"},
            {**old, "oplog": b"\x0022"},
        ]
        torn = await contents(await storage.kill(MemoryStorage(), after=3, torn_bytes=1))
        assert torn == {**old, "data": b"0011", "oplog": b"\x002\0"}

    run(body())


def test_a_crash_keeps_what_was_synced_and_any_part_of_the_rest() -> None:
    async def body() -> None:
        storage = CrashStorage(MemoryStorage())
        await storage.commit([Write("data", 0, b"a" * 10_000), Sync(("data",)), Write("oplog", 0, b"never synced")])
        await storage.commit([Write("data", 0, b"b" * 20_000)])
        seen = set()
        for seed in range(60):
            left = await contents(await storage.crash(MemoryStorage(), seed=seed))
            data = left["data"]
            assert len(data) >= 10_000, f"seed {seed} lost a synced size"
            assert set(data[:10_000]) <= set(b"ab"), f"seed {seed} lost synced bytes"
            assert set(data[10_000:]) <= set(b"b\0"), f"seed {seed} made bytes up"
            seen.add((data, left.get("oplog")))
            assert left == await contents(await storage.crash(MemoryStorage(), seed=seed)), "a seed is no seed"
        assert any(oplog is None for _, oplog in seen), "an unsynced file never vanished"
        assert any(oplog == b"never synced" for _, oplog in seen), "an unsynced write never survived"
        assert (b"a" * 10_000, None) in seen, "a crash never lost all"
        assert any(data == b"b" * 20_000 for data, _ in seen), "a crash never kept all"
        assert any(0 < data.count(b"a") < 10_000 for data, _ in seen), "a write was never torn"

    run(body())


def test_a_crash_in_the_past_knows_nothing_of_later_syncs() -> None:
    async def body() -> None:
        storage = CrashStorage(MemoryStorage())
        await storage.commit([Write("data", 0, b"abc"), Sync(("data",))])
        after_write = [step.verb for step in storage.steps].index("sync")
        lost = [
            await contents(await storage.crash(MemoryStorage(), seed=seed, after=after_write)) for seed in range(20)
        ]
        assert {} in lost, "an unsynced file survived every crash"
        kept = [await contents(await storage.crash(MemoryStorage(), seed=seed)) for seed in range(20)]
        assert all(left == {"data": b"abc"} for left in kept)

    run(body())


def test_a_sync_promises_only_what_had_finished_when_it_began() -> None:
    async def body() -> None:
        storage = CrashStorage(LatencyStorage(MemoryStorage(), seconds=0))
        file = await storage.open("data", create=True)
        await file.write(0, b"a")
        await asyncio.gather(file.sync(), file.write(0, b"b"))
        assert [step.verb for step in storage.steps] == ["create", "write", "sync", "write"]
        assert storage.steps[-1].data == b"b"

    run(body())


def test_a_crash_does_not_record_what_was_refused() -> None:
    async def body() -> None:
        storage = CrashStorage(FaultyStorage(MemoryStorage(), fail_at=1, verbs={"write"}))
        file = await storage.open("data", create=True)
        with pytest.raises(StorageError):
            await file.write(0, b"x")
        assert [step.verb for step in storage.steps] == ["create"]

    run(body())


def test_what_a_crash_leaves_needs_an_empty_place() -> None:
    async def body() -> None:
        storage = CrashStorage(MemoryStorage())
        await storage.commit([Write("data", 0, b"x")])
        with pytest.raises(AssertionError, match="not empty"):
            await storage.crash(storage, seed=1)
        with pytest.raises(StorageMissingError):
            await storage.open("oplog")

    run(body())

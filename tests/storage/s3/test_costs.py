"""What things cost in requests, counted where they leave for the bucket."""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random

import pytest

from hypercore.log.engine import Log
from hypercore.storage import Write
from hypercore_s3.layout import commit_sequence
from hypercore_s3.storage import S3Storage
from tests.running import run
from tests.storage.s3.fake_client import Bucket, FakeClient

MIB = 1 << 20


def storage(bucket: Bucket, **options: object) -> tuple[S3Storage, FakeClient]:
    client = FakeClient(bucket)
    return S3Storage("bucket", "p", client=client, **options), client


def kinds(client: FakeClient) -> Counter[str]:
    """Verbs and what they were about."""
    return Counter(f"{one.verb} {one.key.split('/')[1]}" for one in client.requests)


async def settled() -> None:
    """What runs beside the appends has come to its end; nothing here waits for anything but its turn."""
    for _ in range(200):
        await asyncio.sleep(0)


def test_appending_blocks_in_bulk_is_at_most_one_put_for_8_mib_and_nothing_is_read_or_listed() -> None:
    async def scenario() -> None:
        held, client = storage(Bucket())
        log = await Log.open(held)
        client.requests.clear()
        block = Random(1).randbytes(65536)
        for _ in range(6):
            await log.append([block] * 256)
        for _ in range(2):
            await asyncio.gather(*(log.append([block]) for _ in range(256)))
        await settled()
        asked = kinds(client)
        assert set(asked) == {"put commits"}
        assert asked["put commits"] <= 128 // 8
        # The bytes go over the wire once.
        assert sum(one.size for one in client.requests) < 128 * MIB * 1.01
        await log.aclose()
        assert {one.verb for one in client.requests} <= {"put", "delete"}

    run(scenario())


def test_a_steady_single_append_is_one_put_and_folds_are_hardly_more() -> None:
    async def scenario() -> None:
        held, client = storage(Bucket())
        log = await Log.open(held)
        client.requests.clear()
        for number in range(2000):
            before = kinds(client)["put commits"]
            await log.append([b"%0200d" % number])
            assert kinds(client)["put commits"] - before <= 2
        await settled()
        asked = kinds(client)
        assert set(asked) == {"put commits", "put checkpoints", "put head", "delete commits", "delete checkpoints"}
        assert 2000 <= asked["put commits"] <= 2004
        # Deletes are free at every store that has a price list.
        assert sum(count for kind, count in asked.items() if kind.startswith("put")) <= 2000 * 1.01
        assert held.client.counts.bytes_put < 2000 * 2500
        await log.aclose()

    run(scenario())


@pytest.mark.parametrize("block_size", [200, 3000, 65536])
def test_a_random_block_costs_two_gets_cold_and_none_warm(block_size: int) -> None:
    async def scenario() -> None:
        bucket = Bucket()
        held, _ = storage(bucket)
        log = await Log.open(held)
        count = 30_000 if block_size == 200 else 60 * MIB // block_size
        for start in range(0, count, 500):
            await log.append([b"%09d" % index + bytes(block_size) for index in range(start, min(start + 500, count))])
        await log.aclose()
        random = Random(block_size)
        for _ in range(30):
            held, client = storage(bucket)
            log = await Log.open(held, read_only=True)
            client.requests.clear()
            index = random.randrange(count)
            block = await log.get(index)
            assert block is not None
            assert block[:9] == b"%09d" % index
            assert len(client.requests) <= 2, client.requests
            cold = len(client.requests)
            await log.get(index)
            assert len(client.requests) == cold
            await log.aclose()

    run(scenario())


@pytest.mark.parametrize("batch", [100, 1000])
def test_opening_a_long_log_to_write_is_at_most_ten_requests(batch: int) -> None:
    async def scenario() -> None:
        bucket = Bucket()
        held, _ = storage(bucket)
        log = await Log.open(held)
        random = Random(batch)
        for _ in range(200):
            await log.append([random.randbytes(random.choice([64, 200])) for _ in range(batch)])
        await log.aclose()
        held, client = storage(bucket)
        log = await Log.open(held)
        assert log.length == 200 * batch
        assert len(client.requests) <= 10, client.requests
        assert "list" not in {one.verb for one in client.requests}
        await log.aclose()
        held, client = storage(bucket)
        log = await Log.open(held, read_only=True)
        assert len(client.requests) <= 6, client.requests
        await log.aclose()

    run(scenario(), timeout_seconds=120)


def test_objects_that_nothing_points_into_are_removed_and_fences_never() -> None:
    async def scenario() -> None:
        bucket = Bucket()
        for session in range(6):
            held, _ = storage(bucket)
            log = await Log.open(held)
            for number in range(300):
                await log.append([b"%d" % number])
            await log.aclose()
            names = [key[2:] for key in bucket.objects]
            commits = [name for name in names if commit_sequence(name) is not None]
            assert len(commits) == session + 1, commits
            # What a session leaves is taken up by the next one.
            assert len(names) - len(commits) <= 3, names
        log_bytes = 6 * 300 * (3 + 80)
        assert sum(map(len, bucket.objects.values())) < 2 * log_bytes

    run(scenario())


def test_nothing_that_was_written_is_read_back_by_a_writer() -> None:
    async def scenario() -> None:
        held, client = storage(Bucket(), cache_bytes=1 << 20)
        await held.acquire()
        client.requests.clear()
        random = Random(1)
        for _ in range(1500):
            name = random.choice(["data", "tree", "oplog"])
            offset = random.randrange(3 * MIB)
            await held.commit([Write(name, offset, random.randbytes(random.choice([40, 4096, 50_000, 300_000])))])
        await settled()
        await held.aclose()
        assert kinds(client)["put checkpoints"] > 3
        assert client.counts.gets == 5, "those of opening"

    run(scenario())


def test_a_sequential_reader_is_read_ahead_for_in_few_large_gets() -> None:
    async def scenario() -> None:
        bucket = Bucket()
        held, _ = storage(bucket)
        content = Random(1).randbytes(32 * MIB)
        await held.commit([Write("data", 0, content)])
        await held.aclose()
        held, client = storage(bucket, cache_bytes=16 * MIB)
        file = await held.open("data")
        client.requests.clear()
        for offset in range(0, len(content), 64 * 1024):
            assert await file.read(offset, 64 * 1024) == content[offset : offset + 64 * 1024]
        assert len(client.requests) < 48
        assert sum(one.size for one in client.requests) < len(content) * 1.01
        # A reader that jumps is not read ahead for.
        client.requests.clear()
        random = Random(2)
        for _ in range(10):
            await file.read(random.randrange(8 * MIB), 1000)
        assert len(client.requests) <= 10
        assert sum(one.size for one in client.requests) < 20 * 100_000
        await held.aclose()

    run(scenario())

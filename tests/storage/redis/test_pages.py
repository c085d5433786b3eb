"""How files lie in keys: pages, holes, debris, and commits of any size, all or nothing."""

from __future__ import annotations

import asyncio
import time
from random import Random

import pytest

from hypercore.errors import StorageError, StorageFullError
from hypercore.storage import Delete, Operation, Truncate, Write
from hypercore_redis import RedisStorage
from hypercore_redis.pages import COMMIT_BYTES_MAX, DROPPED_PAGES_MAX, Contents, Draft, Layout, pieces
from hypercore_redis.scripts import PAGE_BYTES
from tests.running import run
from tests.servers.redis import KINDS, Kind, RedisServer, shared_server
from tests.servers.tcp_proxy import TcpProxy
from tests.storage.redis.places import content, eventually, keys, new_prefix, storage_at

both = pytest.mark.parametrize("kind", KINDS)
MiB = 1 << 20


@pytest.fixture
def redis() -> RedisServer:
    """A server that others use too."""
    return shared_server("redis")


def test_every_key_of_a_place_has_one_hash_tag_and_names_cannot_meet() -> None:
    layout = Layout("logs/a:b")
    names = ["data", "0", "data:1", "{x}", "}", " "]
    found = [layout.head, layout.guard, *(layout.page(name, number) for name in names for number in (0, 1, 10))]
    found += [layout.staged(number) for number in (0, 1, 10)]
    assert len(set(found)) == len(found)
    assert all(key.startswith("{logs/a:b}") for key in found)


def test_the_layout_is_what_the_decision_says(redis: RedisServer) -> None:
    async def scenario() -> None:
        storage = storage_at(redis, "layout")
        await storage.commit([Write("data", PAGE_BYTES - 2, b"abcd"), Truncate("tree", 7)])
        with redis.client() as client:
            head = {field.decode(): value.decode() for field, value in client.hgetall("{layout}").items()}
            assert head.pop("writer") == f"1:{storage.lease._who}"
            assert int(head.pop("until")) > time.time() * 1000
            assert '"pid"' in head.pop("holder")
            assert head == {"format": "1", "epoch": "1", "sequence": "1", "/data": str(PAGE_BYTES + 2), "/tree": "7"}
            assert client.get("{layout}/") == b"1"
            assert client.get("{layout}/data/0") == bytes(PAGE_BYTES - 2) + b"ab"
            assert client.get("{layout}/data/1") == b"cd".ljust(PAGE_BYTES, b"\0")
            assert keys(redis, "layout") == ["{layout}", "{layout}/", "{layout}/data/0", "{layout}/data/1"]
            assert all(client.ttl(key) == -1 for key in keys(redis, "layout")), "no key of ours ever expires"
        await storage.aclose()

    run(scenario())


@both
def test_pages_that_fill_up_by_small_appends_take_the_memory_of_their_bytes(kind: Kind) -> None:
    async def scenario(server: RedisServer) -> None:
        storage = storage_at(server)
        await storage.acquire()
        before = server.client().info("memory")["used_memory"]
        size = 0
        while size < 8 * MiB:
            await storage.commit([Write("data", size, bytes([size % 251]) * 9000)])
            size += 9000
        used = server.client().info("memory")["used_memory"] - before
        assert used < 1.06 * size, f"{used} bytes for {size}"
        await storage.aclose()

    with RedisServer(kind) as server:
        run(scenario(server))


@both
def test_a_commit_of_a_hundred_thousand_small_operations(kind: Kind) -> None:
    server = shared_server(kind)

    async def scenario() -> None:
        random = Random(2)
        model = bytearray(3 * MiB)
        operations: list[Operation] = [Truncate("data", len(model))]
        for _ in range(100_000):
            offset, data = random.randrange(len(model) - 40), random.randbytes(random.randrange(1, 40))
            operations.append(Write("data", offset, data))
            model[offset : offset + len(data)] = data
        storage = storage_at(server, timeout_seconds=60)
        await storage.commit(operations)
        assert await content(storage) == model
        assert storage.lease.sequence == 1
        await storage.unlink("data")
        await storage.aclose()

    run(scenario())


@both
@pytest.mark.parametrize("size", [COMMIT_BYTES_MAX, 3 * COMMIT_BYTES_MAX + 12345])
def test_a_large_commit_is_one_commit(kind: Kind, size: int) -> None:
    server = shared_server(kind)

    async def scenario() -> None:
        large = Random(size).randbytes(size)
        storage = storage_at(server, timeout_seconds=60)
        prefix = storage.options.prefix
        await storage.commit([Write("data", 0, b"old"), Write("other", 0, b"kept")])
        await storage.commit([Write("data", 3, large), Write("oplog", 10, b"entry"), Truncate("other", 2)])
        assert storage.lease.sequence == 2
        assert await content(storage) == b"old" + large
        assert await content(storage, "oplog") == bytes(10) + b"entry"
        assert await content(storage, "other") == b"ke"
        assert not [key for key in keys(server, prefix) if key.startswith(f"{{{prefix}}}//")]
        for name in await storage.names():
            await storage.unlink(name)
        await storage.aclose()
        assert keys(server, prefix) == []

    run(scenario())


@both
def test_a_large_commit_that_does_not_fit_leaves_nothing_behind(kind: Kind) -> None:
    async def scenario(server: RedisServer) -> None:
        storage = storage_at(server)
        await storage.commit([Write("data", 0, b"old")])
        before = keys(server, storage.options.prefix)
        used = int(server.client().info("memory")["used_memory"])
        server.ask("CONFIG", "SET", "maxmemory", str(used + COMMIT_BYTES_MAX))
        with pytest.raises(StorageFullError):
            await storage.commit([Write("data", 0, bytes(2 * COMMIT_BYTES_MAX)), Write("oplog", 0, b"x")])
        assert await storage.names() == {"data"}
        assert await content(storage) == b"old"
        await eventually(lambda: keys(server, storage.options.prefix) == before)
        server.ask("CONFIG", "SET", "maxmemory", "0")
        await storage.commit([Write("data", 0, bytes(2 * COMMIT_BYTES_MAX)), Write("oplog", 0, b"x")])
        assert await content(storage, "oplog") == b"x"
        await storage.aclose()

    with RedisServer(kind) as server:
        run(scenario(server))


@pytest.mark.parametrize("answered", [False, True])
def test_a_large_commit_whose_connection_breaks_anywhere_is_done_once(answered: bool) -> None:
    server = shared_server("redis")

    async def history(cut_at: int | None) -> int:
        async with TcpProxy(server.port) as proxy:
            storage = storage_at(proxy, timeout_seconds=30)
            await storage.commit([Write("data", 0, b"old")])
            first = proxy.requests
            if cut_at is not None:
                proxy.cut(at=cut_at, answered=answered)
            await storage.commit([Write("data", 1, large), Write("oplog", 0, b"x")])
            assert storage.lease.sequence == 2
            assert await content(storage, "oplog") == b"x"
            assert await content(storage) == b"o" + large, f"cut at {cut_at}"
            count = proxy.requests - first
            # The same bytes may be fewer pieces another time; a lease that is on its way back is not asked for twice.
            proxy.mend()
            for name in await storage.names():
                await storage.unlink(name)
            prefix = storage.options.prefix
            await storage.aclose()
            assert keys(server, prefix) == [], f"cut at {cut_at}"
            return count

    large = Random(3).randbytes(COMMIT_BYTES_MAX + 5000)

    async def scenario() -> None:
        count = await history(None)
        # Requests are pieces of what the client sends.
        for cut_at in range(1, count + 1, max(1, count // 15)):
            await history(cut_at)

    run(scenario(), timeout_seconds=120)


def test_what_a_dead_writer_put_aside_is_swept_away_by_the_next_one(redis: RedisServer) -> None:
    async def scenario() -> None:
        prefix = new_prefix()
        async with TcpProxy(redis.port) as proxy:
            dying = storage_at(proxy, prefix, timeout_seconds=0.2)
            await dying.commit([Write("data", 0, b"old")])
            proxy.cut(at=60, answered=False, lasting=True)
            with pytest.raises(StorageError):
                await dying.commit([Write("data", 0, bytes(2 * COMMIT_BYTES_MAX))])
            assert [key for key in keys(redis, prefix) if key.startswith(f"{{{prefix}}}//")]
            dying.session.drop("a test")
            await dying.aclose()
        storage = storage_at(redis, prefix, take_over=True)
        await storage.acquire()
        assert await content(storage) == b"old"
        await eventually(lambda: keys(redis, prefix) == [f"{{{prefix}}}", f"{{{prefix}}}/", f"{{{prefix}}}/data/0"])
        await storage.aclose()

    run(scenario())


@both
def test_a_large_file_is_removed_in_parts_and_is_gone_at_once(kind: Kind) -> None:
    server = shared_server(kind)
    pages = 2 * DROPPED_PAGES_MAX + 500

    async def scenario(how: str) -> None:
        storage = storage_at(server, timeout_seconds=60)
        prefix = storage.options.prefix
        # A byte in each page is enough.
        await storage.commit([Write("data", number * PAGE_BYTES, b"x") for number in range(pages)])
        size = (pages - 1) * PAGE_BYTES + 1
        reader = storage_at(server, prefix)
        sizes = {"unlink": None, "truncate": 5, "delete": size, "truncate and write": size}
        match how:
            case "unlink":
                await storage.unlink("data")
            case "truncate":
                await storage.commit([Truncate("data", 5)])
            case "delete":
                await storage.commit([Delete("data", 5, size - 6)])
            case "truncate and write":
                await storage.commit([Truncate("data", 5), Write("data", size - 1, b"x"), Write("other", 0, b"y")])
        # At once, for everybody, and whatever is still to be swept away.
        for who in (storage, reader):
            if sizes[how] is None:
                assert await who.names() == frozenset()
                continue
            file = await who.open("data")
            assert await file.size() == sizes[how]
            assert await file.read(0, 5) == b"x\0\0\0\0"
            if how != "truncate":
                assert await file.read(size - 1, 1) == b"x"
                middle = await file.read_many([(number * PAGE_BYTES, 1) for number in range(1, pages - 1)])
                assert set(middle) == {b"\0"}, how
        # What is written over debris stays.
        await storage.commit([Write("data", 100 * PAGE_BYTES + 3, b"new")])
        file = await storage.open("data")
        assert await file.read(100 * PAGE_BYTES, 6) == b"\0\0\0new"
        await eventually(lambda: len(keys(server, prefix)) < 8)
        assert await file.read(100 * PAGE_BYTES, 6) == b"\0\0\0new"
        assert storage.lease.contents is not None
        assert storage.lease.contents.debris == {}
        await reader.aclose()
        for name in await storage.names():
            await storage.unlink(name)
        await storage.aclose()
        assert keys(server, prefix) == []

    for how in ("unlink", "truncate", "delete", "truncate and write"):
        run(scenario(how))


def test_a_sparse_file_of_a_terabyte_costs_its_pages(redis: RedisServer) -> None:
    async def scenario() -> None:
        storage = storage_at(redis)
        far = 1 << 40
        await storage.commit([Write("data", far, b"end")])
        file = await storage.open("data")
        assert await file.size() == far + 3
        assert await file.read(far - 5, 8) == bytes(5) + b"end"
        assert await file.read(12345, 3) == bytes(3)
        assert len(keys(redis, storage.options.prefix)) <= 4
        await storage.aclose()

    run(scenario())


@pytest.mark.parametrize("seed", range(30))
def test_random_commits_agree_with_a_model_also_where_debris_lies(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits so low that large files, large commits and debris are met all the time."""
    from hypercore_redis import lease
    from hypercore_redis import pages as module

    monkeypatch.setattr(module, "DROPPED_PAGES_MAX", 2)
    monkeypatch.setattr(lease, "DROPPED_PAGES_MAX", 2)
    monkeypatch.setattr(module, "COMMIT_BYTES_MAX", 100_000)
    server = shared_server(KINDS[seed % 2])

    async def scenario() -> None:
        random = Random(seed)
        storage = storage_at(server)
        prefix = storage.options.prefix
        model: dict[str, bytearray] = {}
        for number in range(40):
            operations: list[Operation] = []
            for _ in range(random.randrange(1, 6)):
                name = random.choice(["data", "tree"])
                held = model.get(name, bytearray())
                size = len(held)
                match random.randrange(5):
                    case 0:
                        wanted = random.randrange(size + 2 * PAGE_BYTES)
                        operations.append(Truncate(name, wanted))
                        held = held[:wanted].ljust(wanted, b"\0")
                        model[name] = bytearray(held)
                    case 1 if size:
                        offset = random.randrange(size)
                        # Of whole files only, so that it can be foretold: everything from there on goes.
                        operations += [Delete(name, offset, size), Truncate(name, offset), Truncate(name, size)]
                        model[name] = bytearray(held[:offset].ljust(size, b"\0"))
                    case _:
                        offset = random.randrange(size + PAGE_BYTES)
                        data = random.randbytes(random.choice([1, 5000, PAGE_BYTES, 3 * PAGE_BYTES]))
                        operations.append(Write(name, offset, data))
                        held = held.ljust(offset, b"\0")
                        held[offset : offset + len(data)] = data
                        model[name] = bytearray(held)
            await storage.commit(operations)
            if random.random() < 0.1 and model:
                name = random.choice(sorted(model))
                await storage.unlink(name)
                del model[name]
            if random.random() < 0.1:
                storage.session.drop("a test")
            who: RedisStorage = storage
            if random.random() < 0.3:
                who = storage_at(server, prefix)
            assert {name: await content(who, name) for name in await who.names()} == model, f"seed {seed}, {number}"
            if who is not storage:
                await who.aclose()
        await storage.aclose()

    run(scenario())


# ---- round trips ----------------------------------------------------------------------------------


def test_an_append_is_one_round_trip_and_so_is_a_read(redis: RedisServer) -> None:
    async def scenario() -> None:
        async with TcpProxy(redis.port) as proxy:
            storage = storage_at(proxy)
            await storage.commit([Write("data", 0, bytes(3 * PAGE_BYTES))])
            file = await storage.open("data")
            before = proxy.requests
            for number in range(10):
                await storage.commit([Write("data", number, b"x"), Write("oplog", number, b"y")])
            assert proxy.requests - before == 10
            for _ in range(10):
                await file.read(5, 100)
                await file.read(PAGE_BYTES - 5, 100)
                await file.read_many([(0, 10), (PAGE_BYTES, 10), (2 * PAGE_BYTES - 1, 10)])
            assert proxy.requests - before == 40
            await file.size()
            await storage.names()
            await (await storage.open("oplog")).aclose()
            assert proxy.requests - before == 40, "who has the lease knows these"
            reader = storage_at(proxy, storage.options.prefix)
            other = await reader.open("data")
            before = proxy.requests
            for _ in range(10):
                await other.read(5, 100)
                await other.read_many([(0, 10), (PAGE_BYTES, 10), (2 * PAGE_BYTES - 1, 10)])
            assert proxy.requests - before == 20, "who has not is told in the same round trip"
            await reader.aclose()
            await storage.aclose()

    run(scenario())


def test_calls_of_one_turn_of_the_loop_travel_together(redis: RedisServer) -> None:
    async def scenario() -> None:
        async with TcpProxy(redis.port) as proxy:
            storage = storage_at(proxy)
            await storage.commit([Write("data", 0, bytes(100_000))])
            file = await storage.open("data")
            before = proxy.requests
            await asyncio.gather(*(file.read(number * 10, 10) for number in range(100)))
            assert proxy.requests - before <= 2
            await storage.aclose()

    run(scenario())


# ---- the pure part --------------------------------------------------------------------------------


def test_pieces_cover_a_range_page_by_page() -> None:
    for offset, size in ((0, 0), (0, 1), (PAGE_BYTES - 1, 2), (5, 3 * PAGE_BYTES), (PAGE_BYTES, PAGE_BYTES)):
        found = pieces(offset, size)
        assert sum(end - start for _, start, end in found) == size
        position = offset
        for number, start, end in found:
            assert number * PAGE_BYTES + start == position
            assert 0 <= start < end <= PAGE_BYTES
            position += end - start


def test_neighbouring_writes_to_one_page_become_one_step() -> None:
    draft = Draft(Layout("x"), Contents({}, {}))
    for number in range(1000):
        draft.add(Write("data", number * 10, b"0123456789"))
    arguments = draft.arguments()
    assert arguments[-4:] == ["write", 2, 0, b"0123456789" * 1000]
    assert draft.keys == ["{x}", "{x}/data/0"]


def test_what_changes_nothing_is_not_sent() -> None:
    for operations in (
        [],
        [Delete("gone", 0, 10)],
        [Write("data", 5, b"")],
        [Truncate("data", 7)],
        [Delete("data", 7, 10), Delete("data", 0, 0)],
    ):
        draft = Draft(Layout("x"), Contents({"data": 7}, {}))
        for operation in operations:
            draft.add(operation)
        assert draft.is_empty, operations

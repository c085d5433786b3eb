"""Servers and connections in trouble: nothing acknowledged is lost, nothing is half done, and everybody is told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from random import Random

import pytest

from hypercore import Hypercore
from hypercore.errors import (
    ClosedError,
    CorruptError,
    FencedError,
    ForeignStorageError,
    LockedError,
    NewerFormatError,
    NotDurableError,
    NotWritableError,
    StorageError,
    StorageFullError,
)
from hypercore.storage import Delete, Operation, Sync, Truncate, Write
from hypercore_redis import LostCommitsError, RedisStorage
from hypercore_redis.scripts import PAGE_BYTES
from tests.processes import hypercore
from tests.running import run
from tests.servers.redis import (
    ALWAYS,
    EVERY_SECOND,
    KINDS,
    NOTHING,
    Kind,
    RedisServer,
    caught_up,
    replica_of,
    shared_server,
    until,
)
from tests.servers.tcp_proxy import TcpProxy
from tests.storage.redis.places import content, keys, new_prefix, storage_at

both = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def redis() -> RedisServer:
    """A server that others use too."""
    return shared_server("redis")


# ---- the server dies ------------------------------------------------------------------------------


@both
def test_a_server_that_is_killed_in_the_middle_of_commits_has_every_acknowledged_one_when_it_is_back(
    kind: Kind,
) -> None:
    async def scenario(server: RedisServer) -> None:
        storage = storage_at(server, timeout_seconds=30)
        await storage.require_durable()
        random = Random(1)
        held = b""

        async def kill_in(seconds: float) -> None:
            await asyncio.sleep(seconds)
            server.kill()

        for round_ in range(4):
            dying = asyncio.ensure_future(kill_in(random.uniform(0.01, 0.05)))
            while True:
                data = random.randbytes(random.choice((10, 3000, PAGE_BYTES)))
                writing = asyncio.ensure_future(
                    storage.commit(
                        [Write("data", len(held), data), Write("count", 0, b"%08d" % (len(held) + len(data)))]
                    )
                )
                await asyncio.wait([writing, dying], return_when=asyncio.FIRST_COMPLETED)
                dead = server.process is None
                if dead:
                    server.start()
                await writing  # done once: before the end, or again after the restart
                held += data
                if dead:
                    break
            await dying
            assert await content(storage) == held, f"round {round_}"
            assert await content(storage, "count") == b"%08d" % len(held), f"round {round_}"
        await storage.aclose()
        again = storage_at(server, storage.options.prefix)
        assert await content(again) == held
        await again.aclose()

    with RedisServer(kind, ALWAYS) as server:
        run(scenario(server))


@both
def test_a_server_that_comes_back_with_nothing_is_an_error_and_never_an_empty_place(kind: Kind) -> None:
    async def scenario(server: RedisServer) -> None:
        prefix = new_prefix()
        writer = storage_at(server, prefix)
        await writer.acquire()
        await writer.commit([Write("data", 0, b"acknowledged")])
        reader = storage_at(server, prefix)
        assert await content(reader) == b"acknowledged"
        file = await reader.open("data")
        server.kill()
        server.start()
        calls: list[Callable[[RedisStorage], Awaitable[object]]] = [
            lambda storage: storage.commit([Write("data", 0, b"x")]),
            RedisStorage.names,
            lambda storage: storage.open("data"),
            lambda storage: storage.open("data", create=True),
            RedisStorage.acquire,
        ]
        for storage in (writer, reader):
            for call in calls:
                with pytest.raises(LostCommitsError, match="gone"):
                    await call(storage)
        with pytest.raises(CorruptError):
            await file.read(0, 3)
        assert keys(server, prefix) == [], "something was written into the emptied server"
        await writer.aclose()
        await reader.aclose()

    with RedisServer(kind, NOTHING) as server:
        run(scenario(server))


@both
def test_a_log_whose_server_lost_everything_says_so_and_stays_as_it_was_in_memory(kind: Kind) -> None:
    async def scenario(server: RedisServer) -> None:
        core = Hypercore(server.address(prefix="log", timeout_seconds=20))
        await core.append([b"one", b"two"])
        server.kill()
        server.start()
        for _ in range(2):
            with pytest.raises(StorageError, match="gone"):
                await core.append(b"three")
        assert core.length == 2
        await core.close()
        assert keys(server, "log") == []

    with RedisServer(kind, NOTHING) as server:
        run(scenario(server))


def test_whoever_creates_a_log_is_warned_of_a_server_without_persistence(redis: RedisServer) -> None:
    done = hypercore("create", redis.address(prefix=new_prefix()))
    assert done.code == 0
    assert done.errors.startswith("hypercore: warning: ")
    assert "keeps nothing when it is restarted" in done.errors


def test_append_that_is_to_last_is_refused_where_it_would_not(redis: RedisServer) -> None:
    address = redis.address(prefix=new_prefix())
    assert hypercore("create", address).code == 0
    assert hypercore("append", address, given=b"one").code == 0
    done = hypercore("append", address, "--durability", "always", given=b"two")
    assert done.code == 1
    assert "needs appendonly yes" in done.errors
    assert hypercore("cat", address).output == b"one"


def test_a_server_without_persistence_is_warned_of(redis: RedisServer) -> None:
    async def scenario() -> None:
        core = Hypercore(redis.address(prefix=new_prefix()))
        await core.ready()
        warnings = (await core.info()).warnings
        assert any("keeps nothing when it is restarted" in warning for warning in warnings), warnings
        await core.close()

    run(scenario())


@both
def test_an_eviction_policy_that_may_drop_keys_is_warned_of(kind: Kind) -> None:
    async def warnings(server: RedisServer) -> list[str]:
        storage = storage_at(server)
        await storage.names()
        found = list(storage.warnings)
        await storage.aclose()
        return found

    with RedisServer(kind, EVERY_SECOND) as server:
        for policy in ("noeviction", "volatile-lru", "volatile-ttl"):
            server.ask("CONFIG", "SET", "maxmemory-policy", policy)
            assert run(warnings(server)) == []
        for policy in ("allkeys-lru", "allkeys-random"):
            server.ask("CONFIG", "SET", "maxmemory-policy", policy)
            assert policy in str(run(warnings(server)))


def test_a_head_that_was_dropped_is_told_from_a_new_place(redis: RedisServer) -> None:
    async def scenario() -> None:
        prefix = new_prefix()
        storage = storage_at(redis, prefix)
        await storage.commit([Write("data", 0, b"kept")])
        await storage.aclose()
        redis.ask("DEL", f"{{{prefix}}}")
        before = keys(redis, prefix)
        for call in (RedisStorage.names, RedisStorage.acquire):
            again = storage_at(redis, prefix)
            with pytest.raises(LostCommitsError):
                await call(again)
            await again.aclose()
        with pytest.raises(CorruptError):
            await Hypercore(redis.address(prefix=prefix)).ready()
        assert keys(redis, prefix) == before

    run(scenario())


# ---- the connection dies --------------------------------------------------------------------------


@pytest.mark.parametrize("answered", [False, True])
def test_a_connection_that_is_lost_at_any_request_never_does_a_commit_twice_or_by_half(
    redis: RedisServer, answered: bool
) -> None:
    async def history(cut_at: int | None) -> int:
        """A short history with a cut at one of its requests; how many requests there were."""
        async with TcpProxy(redis.port) as proxy:
            storage = storage_at(proxy, take_over=True)
            if cut_at is not None:
                proxy.cut(at=cut_at, answered=answered)
            model = bytearray()
            try:
                await storage.acquire()
            except StorageError:
                assert cut_at is not None
                assert cut_at < 10, "only the first connection is not worth patience"
                await storage.acquire()
            for number in range(6):
                data = bytes([number]) * (PAGE_BYTES // 2)
                # Not idempotent: done twice, it would show.
                await storage.commit([Write("data", len(model), data), Truncate("count", number + 1)])
                model += data
                assert await content(storage) == model, f"cut at {cut_at}, commit {number}"
            assert storage.lease.sequence == 6
            await storage.aclose()
            return proxy.requests

    async def scenario() -> None:
        count = await history(None)
        assert count >= 15
        for cut_at in range(1, count + 1):
            await history(cut_at)

    run(scenario())


def test_an_outcome_that_cannot_be_found_out_in_time_is_an_error_and_is_found_out_later(redis: RedisServer) -> None:
    async def scenario(applied: bool) -> None:
        async with TcpProxy(redis.port) as proxy:
            storage = storage_at(proxy, timeout_seconds=0.2)
            await storage.commit([Write("data", 0, b"old")])
            proxy.cut(at=1, answered=applied)
            proxy.refuse()
            with pytest.raises(StorageError, match="whether the last change was made is not known"):
                await storage.commit([Write("data", 0, b"new")])
            with pytest.raises(StorageError, match=r"cannot be reached|connection was lost"):
                await (await storage.open("data")).read(0, 3)
            proxy.refuse(False)
            assert await content(storage) == (b"new" if applied else b"old")
            await storage.commit([Write("data", 3, b"!")])
            assert await content(storage) == (b"new!" if applied else b"old!")
            await storage.aclose()

    run(scenario(True))
    run(scenario(False))


def test_a_change_after_an_unknown_outcome_comes_on_top_of_it(redis: RedisServer) -> None:
    async def scenario(applied: bool) -> None:
        async with TcpProxy(redis.port) as proxy:
            storage = storage_at(proxy, timeout_seconds=0.2)
            await storage.commit([Write("data", 0, b"old")])
            proxy.cut(at=1, answered=applied, lasting=True)
            with pytest.raises(StorageError, match="not known"):
                await storage.commit([Write("data", 3, b" unknown")])
            proxy.mend()
            # Nobody has looked what is true, and the next one is done nevertheless, once.
            await storage.commit([Write("new", 0, b"next")])
            assert await content(storage, "new") == b"next"
            assert await content(storage) == (b"old unknown" if applied else b"old")
            assert storage.lease.sequence == (3 if applied else 2)
            await storage.aclose()

    run(scenario(True))
    run(scenario(False))


@pytest.mark.parametrize("answered", [False, True])
def test_a_connection_that_breaks_under_many_callers_does_each_commit_once(redis: RedisServer, answered: bool) -> None:
    async def scenario() -> None:
        async with TcpProxy(redis.port) as proxy:
            storage = storage_at(proxy)
            await storage.commit([Write("data", 0, bytes(100))])
            file = await storage.open("data")
            for number in range(1, 30):
                proxy.cut(at=1 + number % 3, answered=answered)
                await asyncio.gather(
                    file.read(0, 5),
                    storage.commit([Write("data", number, bytes([number]))]),
                    file.read(5, 5),
                    storage.commit([Write("count", 0, bytes([number]))]),
                    file.size(),
                )
                assert storage.lease.sequence == 1 + 2 * number
                assert (await content(storage))[: number + 1] == bytes(range(number + 1))
            await storage.aclose()

    run(scenario())


def test_a_request_that_arrives_after_its_connection_was_given_up_changes_nothing(redis: RedisServer) -> None:
    async def scenario() -> None:
        async with TcpProxy(redis.port) as slow:
            prefix = new_prefix()
            storage = storage_at(slow, prefix)
            await storage.commit([Write("data", 0, b"old")])
            slow.hold()
            late = asyncio.ensure_future(storage.commit([Write("data", 0, b"late")]))
            await slow.arrived()
            # The held bytes stay on their way, while the storage begins anew on another connection.
            held, slow._held = slow._held, None
            slow.drop()
            await late
            await storage.commit([Write("data", 0, b"newer")])
            assert held is not None
            held.set()
            # What was held reaches the server before this.
            redis.ask("PING")
            assert await content(storage) == b"newer"
            await storage.commit([Write("data", 5, b"!")])
            assert await content(storage) == b"newer!"
            await storage.aclose()

    run(scenario())


def test_callers_who_give_up_leave_the_connection_in_step(redis: RedisServer) -> None:
    async def scenario() -> None:
        random = Random(3)
        storage = storage_at(redis)
        blocks = [random.randbytes(500) for _ in range(100)]
        await storage.commit([Write("data", 500 * index, block) for index, block in enumerate(blocks)])
        file = await storage.open("data")

        async def read(index: int) -> None:
            assert await file.read(500 * index, 500) == blocks[index], "a caller got the reply of another one"

        for _ in range(30):
            tasks = [asyncio.ensure_future(read(random.randrange(100))) for _ in range(40)]
            for _ in range(random.randrange(4)):
                await asyncio.sleep(0)
            for task in random.sample(tasks, 20):
                task.cancel()
            for task in tasks:
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        assert storage.session._channel is not None
        await storage.aclose()

    run(scenario())


def test_a_caller_who_gives_up_a_commit_waits_for_its_end(redis: RedisServer) -> None:
    async def scenario() -> None:
        storage = storage_at(redis)
        await storage.acquire()
        for number in range(50):
            task = asyncio.ensure_future(storage.commit([Write("data", 0, b"%03d" % number)]))
            for _ in range(number % 6):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await storage.commit([Write("data", 3, b"+")])
            found = await content(storage)
            assert found[3:] == b"+"
            assert storage.lease.contents is not None
            assert storage.lease.contents.sizes["data"] == 4
        await storage.aclose()

    run(scenario())


def test_closing_ends_the_calls_that_wait_for_a_server(redis: RedisServer) -> None:
    async def scenario() -> None:
        async with TcpProxy(redis.port) as proxy:
            storage = storage_at(proxy, timeout_seconds=30)
            await storage.commit([Write("data", 0, b"abc")])
            file = await storage.open("data")
            proxy.refuse()
            proxy.drop()
            reading = asyncio.ensure_future(file.read(0, 3))
            await proxy.connected(3)
            await storage.aclose()
            with pytest.raises(ClosedError):
                await reading

    run(scenario())


def test_a_server_that_stands_still_is_an_error_in_time(redis: RedisServer) -> None:
    async def scenario(server: RedisServer) -> None:
        storage = storage_at(server, timeout_seconds=0.3)
        await storage.commit([Write("data", 0, b"abc")])
        file = await storage.open("data")
        server.pause()
        try:
            with pytest.raises(StorageError, match="did not answer"):
                await file.read(0, 3)
            with pytest.raises(StorageError, match="did not answer"):
                await file.size()
        finally:
            server.go_on()
        assert await content(storage) == b"abc"
        await storage.aclose()

    with RedisServer("redis") as server:
        run(scenario(server))


@both
def test_a_server_that_does_not_know_the_script_is_given_it(kind: Kind) -> None:
    async def scenario(server: RedisServer) -> None:
        storage = storage_at(server)
        for number in range(3):
            server.ask("SCRIPT", "FLUSH")
            await storage.commit([Write("data", number, b"x")])
        assert await content(storage) == b"xxx"
        await storage.aclose()

    with RedisServer(kind) as server:
        run(scenario(server))


@both
def test_a_server_that_is_busy_is_waited_for(kind: Kind) -> None:
    async def scenario(server: RedisServer) -> None:
        server.ask("CONFIG", "SET", "lua-time-limit", "1")
        storage = storage_at(server, timeout_seconds=30)
        await storage.commit([Write("data", 0, b"old")])
        with server.client() as client:
            connection = client.connection_pool.get_connection()
            # A script that does not end, until it is told to.
            connection.send_command("EVAL", "while true do end", 0)
            until(lambda: _is_busy(server))
            writing = asyncio.ensure_future(storage.commit([Write("data", 0, b"new")]))
            for _ in range(20):
                await asyncio.sleep(0.001)
            assert not writing.done()
            server.ask("SCRIPT", "KILL")
            await writing
            connection.disconnect()
        assert await content(storage) == b"new"
        await storage.aclose()

    with RedisServer(kind) as server:
        run(scenario(server))


def _is_busy(server: RedisServer) -> bool:
    import redis as driver

    try:
        server.ask("PING")
    except driver.ResponseError as error:
        return "BUSY" in str(error)
    return False


def test_a_server_that_is_still_loading_is_waited_for() -> None:
    async def scenario(server: RedisServer) -> None:
        storage = storage_at(server, timeout_seconds=60)
        await storage.commit([Write("data", 0, bytes(3_000_000))])
        server.kill()
        # Each key takes it a while.
        server.settings |= {"key-load-delay": "20000", "loading-process-events-interval-bytes": "1024"}
        server.start(wait=False)
        await storage.commit([Write("data", 0, b"new")])
        assert (await content(storage))[:4] == b"new\0"
        await storage.aclose()

    with RedisServer("redis", {**ALWAYS, "aof-use-rdb-preamble": "no"}) as server:
        run(scenario(server))


# ---- the server refuses ---------------------------------------------------------------------------


@both
def test_a_full_server_takes_all_of_a_commit_or_nothing(kind: Kind) -> None:
    async def scenario(server: RedisServer) -> None:
        random = Random(5)
        storage = storage_at(server)
        await storage.commit([Write("data", 0, b"first")])
        used = int(server.client().info("memory")["used_memory"])
        server.ask("CONFIG", "SET", "maxmemory", str(used + 4_000_000))
        model: dict[str, bytearray] = {"data": bytearray(b"first")}
        refused = 0
        for number in range(400):
            operations: list[Operation] = []
            after = {name: bytearray(held) for name, held in model.items()}
            for name in random.sample(["data", "tree", "oplog", f"new-{number}"], 3):
                held = after.setdefault(name, bytearray())
                data = random.randbytes(random.choice((10, 5000, 200_000)))
                offset = random.randrange(len(held) + 1)
                operations.append(Write(name, offset, data))
                held[offset : offset + len(data)] = data
            try:
                await storage.commit(operations)
                model = after
            except StorageFullError:
                refused += 1
                if refused % 10 == 1:
                    assert await storage.names() == model.keys()
                    for name, held in model.items():
                        assert await content(storage, name) == held, f"commit {number}"
            if refused > 30:
                break
        assert refused > 30
        # Somebody without the lease sees the same.
        reader = storage_at(server, storage.options.prefix)
        assert {name: await content(reader, name) for name in await reader.names()} == model
        # Making room needs no room.
        await storage.unlink("data")
        server.ask("CONFIG", "SET", "maxmemory", "0")
        await storage.commit([Write("data", 0, b"again")])
        assert await content(storage) == b"again"
        await reader.aclose()
        await storage.aclose()

    with RedisServer(kind) as server:
        run(scenario(server))


@both
def test_a_log_in_a_full_server_keeps_what_it_acknowledged_and_goes_on_when_there_is_room(kind: Kind) -> None:
    async def scenario(server: RedisServer) -> None:
        core = Hypercore(server.address(prefix="log"))
        await core.append(b"first")
        used = int(server.client().info("memory")["used_memory"])
        server.ask("CONFIG", "SET", "maxmemory", str(used + 2_000_000))
        blocks = [b"first"]

        async def append_until_full() -> None:
            for number in range(200):
                block = bytes([number]) * 50_000
                await core.append(block)
                blocks.append(block)

        with pytest.raises(StorageFullError, match="nothing was changed"):
            await append_until_full()
        assert [await core.get(index) for index in range(core.length)] == blocks
        server.ask("CONFIG", "SET", "maxmemory", "0")
        await core.append(b"last")
        await core.close()
        core = Hypercore(server.address(prefix="log"))
        await core.ready()
        assert [await core.get(index) for index in range(core.length)] == [*blocks, b"last"]
        await core.close()

    with RedisServer(kind) as server:
        run(scenario(server))


@both
def test_a_replica_is_read_and_refuses_a_writer_saying_why(kind: Kind) -> None:
    async def scenario(primary: RedisServer) -> None:
        writer = storage_at(primary, "log")
        await writer.commit([Write("data", 0, b"abc")])
        with replica_of(primary) as replica:
            storage = storage_at(replica, "log", take_over=True)
            assert await content(storage) == b"abc"
            with pytest.raises(NotWritableError, match="replica"):
                await storage.acquire()
            await storage.aclose()
        await writer.aclose()

    with RedisServer(kind) as primary:
        run(scenario(primary))


@both
def test_a_writer_whose_server_becomes_a_replica_is_told_and_goes_on_when_it_is_the_primary_again(kind: Kind) -> None:
    async def scenario(primary: RedisServer) -> None:
        with replica_of(primary) as other:
            storage = storage_at(primary, timeout_seconds=0.2)
            await storage.commit([Write("data", 0, b"abc")])
            caught_up(primary, other)
            other.ask("REPLICAOF", "NO", "ONE")
            primary.ask("REPLICAOF", "127.0.0.1", other.port)
            with pytest.raises(StorageError, match="become a replica"):
                await storage.commit([Write("data", 0, b"new")])
            until(lambda: primary.client().info("replication")["master_link_status"] == "up")
            primary.ask("REPLICAOF", "NO", "ONE")
            await storage.commit([Write("data", 3, b"def")])
            assert await content(storage) == b"abcdef"
            await storage.aclose()

    with RedisServer(kind) as primary:
        run(scenario(primary))


@both
def test_a_failover_to_a_replica_that_lacks_commits_is_detected_and_refused(kind: Kind) -> None:
    async def scenario(primary: RedisServer) -> None:
        with replica_of(primary) as replica:
            async with TcpProxy(primary.port) as name:  # the name of the service, so to say
                storage = storage_at(name, "log")
                await storage.commit([Write("data", 0, b"both have it")])
                caught_up(primary, replica)
                reader = storage_at(name, "log")
                # The replica stays where it is, and the primary goes on for a second.
                replica.ask("REPLICAOF", "NO", "ONE")
                await storage.commit([Write("data", 0, b"lost")])
                assert await content(reader) == b"lost have it"
                primary.kill()
                name.upstream_port = replica.port
                with pytest.raises(LostCommitsError, match=r"commit 2 .* commit 1 is the last"):
                    await storage.commit([Write("data", 4, b"on")])
                with pytest.raises(LostCommitsError):
                    await content(storage)
                with pytest.raises(LostCommitsError, match=r"commit 2 .* commit 1 is the last"):
                    await content(reader)
                await reader.aclose()
                await storage.aclose()
                fresh = storage_at(replica, "log", take_over=True)
                assert await content(fresh) == b"both have it"
                await fresh.aclose()

    with RedisServer(kind) as primary:
        run(scenario(primary))


@both
def test_a_writer_and_its_successor_on_a_stale_replica_never_mix(kind: Kind) -> None:
    """Both have the same epoch, because the replica had not heard of the first one."""

    async def scenario(primary: RedisServer) -> None:
        with replica_of(primary) as replica:
            async with TcpProxy(primary.port) as name:
                seed = storage_at(primary, "log")
                await seed.commit([Write("data", 0, b"start")])
                await seed.aclose()
                caught_up(primary, replica)
                replica.ask("REPLICAOF", "NO", "ONE")
                old = storage_at(name, "log")
                await old.acquire()
                primary.kill()
                new = storage_at(replica, "log")
                await new.acquire()
                assert old.lease._writer.partition(b":")[0] == new.lease._writer.partition(b":")[0]
                name.upstream_port = replica.port
                with pytest.raises((FencedError, LostCommitsError)):
                    await old.commit([Write("data", 0, b"wrong")])
                await new.commit([Write("data", 0, b"right")])
                assert await content(new) == b"right"
                await old.aclose()
                await new.aclose()

    with RedisServer(kind) as primary:
        run(scenario(primary))


def test_keys_of_other_programs_are_left_alone(redis: RedisServer) -> None:
    async def scenario() -> None:
        for command in (("SET", "text"), ("HSET", "field", "value"), ("RPUSH", "item")):
            prefix = new_prefix()
            head = f"{{{prefix}}}"
            redis.ask(command[0], head, *command[1:])
            before = redis.ask("DUMP", head)
            storage = storage_at(redis, prefix)
            for call in (storage.names, storage.acquire, lambda s=storage: s.commit([Write("data", 0, b"x")])):
                with pytest.raises(ForeignStorageError):
                    await call()
            await storage.aclose()
            assert redis.ask("DUMP", head) == before
            assert keys(redis, prefix) == [head]

    run(scenario())


def test_a_page_that_is_another_programs_key_stops_a_commit_before_anything_of_it(redis: RedisServer) -> None:
    async def scenario() -> None:
        prefix = new_prefix()
        redis.ask("RPUSH", f"{{{prefix}}}/tree/0", "item")
        storage = storage_at(redis, prefix)
        await storage.commit([Write("data", 0, b"old")])
        attempts: list[list[Operation]] = [
            [Write("data", 0, b"new"), Write("oplog", 0, b"new"), Write("tree", 5, b"new")],
            [Write("data", 0, b"new"), Write("tree", 0, bytes(PAGE_BYTES))],
            [Truncate("data", 0), Write("tree", 5, b"new")],
        ]
        for operations in attempts:
            with pytest.raises(StorageError, match="another program"):
                await storage.commit(operations)
            assert await storage.names() == {"data"}
            assert await content(storage) == b"old"
        await storage.commit([Write("data", 0, b"new"), Sync(("data",)), Delete("tree", 0, 100)])
        assert await content(storage) == b"new"
        await storage.aclose()

    run(scenario())


def test_a_place_of_a_newer_version_is_left_alone(redis: RedisServer) -> None:
    async def scenario() -> None:
        prefix = new_prefix()
        redis.ask("HSET", f"{{{prefix}}}", "format", "2", "sequence", "7", "/data", "3")
        storage = storage_at(redis, prefix)
        for call in (storage.names, storage.acquire, lambda: storage.open("data")):
            with pytest.raises(NewerFormatError, match="layout 2"):
                await call()
        await storage.aclose()

    run(scenario())


# ---- durability -----------------------------------------------------------------------------------


@both
def test_durability_always_is_refused_where_the_server_does_not_sync_each_write(kind: Kind) -> None:
    async def attempt(server: RedisServer) -> None:
        core = Hypercore(server.address(prefix=new_prefix()), durability="always")
        try:
            await core.ready()
        finally:
            await core.close()

    with RedisServer(kind, ALWAYS) as server:
        run(attempt(server))
        for name, value in (("appendfsync", "everysec"), ("appendfsync", "no"), ("no-appendfsync-on-rewrite", "yes")):
            server.ask("CONFIG", "SET", name, value)
            with pytest.raises(NotDurableError, match=f"{name} {value}"):
                run(attempt(server))
            server.ask("CONFIG", "SET", "appendfsync", "always")
            server.ask("CONFIG", "SET", "no-appendfsync-on-rewrite", "no")
        run(attempt(server))
        server.ask("CONFIG", "SET", "appendonly", "no")
        with pytest.raises(NotDurableError, match="appendonly no"):
            run(attempt(server))
    with RedisServer(kind, ALWAYS) as server:
        server.ask("ACL", "SETUSER", "default", "-config")
        with pytest.raises(NotDurableError, match="does not say"):
            run(attempt(server))


def test_a_server_that_takes_its_place_must_be_as_durable(redis: RedisServer) -> None:
    async def scenario(primary: RedisServer) -> None:
        with replica_of(primary) as replica:
            async with TcpProxy(primary.port) as name:
                storage = storage_at(name, "log")
                await storage.require_durable()
                await storage.commit([Write("data", 0, b"abc")])
                caught_up(primary, replica)
                primary.kill()
                replica.ask("REPLICAOF", "NO", "ONE")
                name.upstream_port = replica.port
                with pytest.raises(NotDurableError, match="appendonly no"):
                    await storage.commit([Write("data", 0, b"new")])
                await storage.aclose()

    with RedisServer("redis", ALWAYS) as primary:
        run(scenario(primary))


# ---- logging in -----------------------------------------------------------------------------------


def test_a_wrong_password_is_said_at_once_and_shown_nowhere() -> None:
    async def scenario(server: RedisServer) -> None:
        from hypercore.plugins import open_storage

        good = open_storage(server.address(prefix="log"))
        await good.acquire()
        assert "s3cret" not in str(good) + repr(good)
        locked = open_storage(server.address(prefix="log"))
        with pytest.raises(LockedError) as refused:
            await locked.acquire()
        assert "s3cret" not in str(refused.value)
        await locked.aclose()
        await good.aclose()
        for login in ("", ":wr0ng@", "nobody:wr0ng@"):
            storage = open_storage(f"redis://{login}127.0.0.1:{server.port}/0")
            with pytest.raises(StorageError) as error:
                await storage.names()
            assert "wr0ng" not in str(error.value) + str(storage) + repr(storage)
            await storage.aclose()

    with RedisServer("redis", password="s3cret") as server:
        run(scenario(server))


def test_an_address_where_nobody_listens_is_said_at_once() -> None:
    async def scenario() -> None:
        from hypercore.plugins import open_storage
        from tests.servers.redis import free_port

        storage = open_storage(f"redis://127.0.0.1:{free_port()}/0?timeout_seconds=600")
        with pytest.raises(StorageError, match="cannot be reached"):
            await storage.names()
        await storage.aclose()

    run(scenario())

"""One writer: leases, who is refused, who is fenced out, and how a lease ends."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

from hypercore.errors import FencedError, LockedError, NotWritableError, OptionError, StorageError
from hypercore.plugins import open_storage
from hypercore.storage import Truncate, Write
from hypercore_redis import RedisStorage
from tests.running import run
from tests.servers.redis import KINDS, Kind, RedisServer, shared_server
from tests.servers.tcp_proxy import TcpProxy
from tests.storage.redis.places import content, eventually, keys, let_the_lease_end, new_prefix, storage_at

both = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def redis() -> RedisServer:
    """A server that others use too."""
    return shared_server("redis")


def head_of(server: RedisServer, storage: RedisStorage) -> dict[str, str]:
    with server.client(decode_responses=True) as client:
        found: dict[str, str] = client.hgetall(storage.layout.head)
        return found


def test_who_is_refused_hears_who_is_in_the_way_and_what_to_do(redis: RedisServer) -> None:
    async def scenario() -> None:
        prefix = new_prefix()
        first, second = storage_at(redis, prefix), storage_at(redis, prefix)
        await first.acquire()
        with pytest.raises(LockedError) as refused:
            await second.acquire()
        said = str(refused.value)
        for part in (prefix, f"process {os.getpid()}", socket.gethostname(), "since 2", "30 s", "take_over=true"):
            assert part in said, said
        await second.aclose()
        await first.aclose()

    run(scenario())


def test_a_lease_that_ended_is_taken_by_the_next_one_who_asks_and_the_old_writer_never_writes_again(
    redis: RedisServer,
) -> None:
    async def scenario() -> None:
        prefix = new_prefix()
        old, new = storage_at(redis, prefix), storage_at(redis, prefix)
        await old.commit([Write("data", 0, b"old")])
        with pytest.raises(LockedError):
            await new.acquire()
        let_the_lease_end(redis, old)
        await new.acquire()
        for _ in range(2):
            with pytest.raises(FencedError, match="can never write again"):
                await old.commit([Write("data", 0, b"bad")])
            with pytest.raises(FencedError):
                await old.acquire()
        await new.commit([Write("data", 3, b" and new")])
        assert await content(old) == b"old and new", "who may not write may still read"
        await old.aclose()
        await new.commit([Write("data", 0, b"OLD")])
        await new.aclose()

    run(scenario())


def test_a_lease_that_ended_and_that_nobody_took_is_still_that_of_its_writer(redis: RedisServer) -> None:
    async def scenario() -> None:
        storage = storage_at(redis)
        await storage.acquire()
        let_the_lease_end(redis, storage)
        await storage.commit([Write("data", 0, b"still")])
        other = storage_at(redis, storage.options.prefix)
        with pytest.raises(LockedError):
            await other.acquire()
        await other.aclose()
        await storage.aclose()

    run(scenario())


@both
def test_a_writer_that_writes_nothing_keeps_its_lease(kind: Kind) -> None:
    server = shared_server(kind)

    async def scenario() -> None:
        storage = storage_at(server, lease_seconds=1)
        await storage.acquire()
        first = head_of(server, storage)["until"]

        await eventually(lambda: head_of(server, storage)["until"] != first)
        other = storage_at(server, storage.options.prefix)
        with pytest.raises(LockedError):
            await other.acquire()
        await other.aclose()
        await storage.aclose()

    run(scenario())


@both
def test_a_full_server_keeps_the_lease_of_its_writer_and_takes_it_back(kind: Kind) -> None:
    async def scenario(server: RedisServer) -> None:
        storage = storage_at(server, lease_seconds=1)
        await storage.commit([Write("data", 0, bytes(100_000))])
        server.ask("CONFIG", "SET", "maxmemory", "1")
        first = head_of(server, storage)["until"]
        await eventually(lambda: head_of(server, storage)["until"] != first)
        storage.session.drop("a test")
        assert await content(storage) == bytes(100_000), "a new connection needs no room"
        await storage.aclose()
        assert head_of(server, storage)["writer"] == ""

    with RedisServer(kind) as server:
        run(scenario(server))


def test_closing_gives_the_lease_back_at_once_and_leaves_nothing_where_nothing_was_written(redis: RedisServer) -> None:
    async def scenario() -> None:
        prefix = new_prefix()
        for _ in range(3):
            storage = storage_at(redis, prefix)
            await storage.acquire()
            await storage.aclose()
            assert keys(redis, prefix) == []
        storage = storage_at(redis, prefix)
        await storage.commit([Write("data", 0, b"something"), Truncate("empty", 0)])
        await storage.aclose()
        assert keys(redis, prefix) == [f"{{{prefix}}}", f"{{{prefix}}}/", f"{{{prefix}}}/data/0"]
        storage = storage_at(redis, prefix)
        for name in await storage.names():
            await storage.unlink(name)
        await storage.aclose()
        assert keys(redis, prefix) == []

    run(scenario())


def test_places_of_other_prefixes_are_other_places(redis: RedisServer) -> None:
    async def scenario() -> None:
        prefix = new_prefix()
        storages = [storage_at(redis, name) for name in (prefix, f"{prefix}/data", f"{prefix}/data/0", f"{prefix} ✓")]
        for number, storage in enumerate(storages):
            await storage.acquire()
            await storage.commit([Write("data", 0, b"%d" % number), Write("0", 0, b"%d" % number)])
        for number, storage in enumerate(storages):
            assert await content(storage) == b"%d" % number
        await storages[0].unlink("data")
        await storages[0].aclose()
        for number, storage in enumerate(storages[1:], 1):
            assert await content(storage, "0") == await content(storage) == b"%d" % number
            await storage.aclose()

    run(scenario())


def test_a_read_only_storage_changes_nothing_and_takes_no_lease(redis: RedisServer) -> None:
    async def scenario() -> None:
        writer = storage_at(redis)
        await writer.commit([Write("data", 0, b"abc")])
        reader = storage_at(redis, writer.options.prefix, read_only=True)
        assert reader.writable is False
        file = await reader.open("data")
        for call in (
            reader.acquire,
            lambda: reader.commit([Write("data", 0, b"x")]),
            lambda: reader.unlink("data"),
            lambda: reader.open("new", create=True),
            lambda: file.write(0, b"x"),
            lambda: file.truncate(0),
        ):
            with pytest.raises(NotWritableError):
                await call()
        assert await file.read(0, 3) == b"abc"
        await reader.aclose()
        await writer.aclose()

    run(scenario())


@pytest.mark.parametrize(
    "options",
    [
        {"prefix": ""},
        {"prefix": "a{b"},
        {"prefix": "a}b"},
        {"lease_seconds": 0.5},
        {"lease_seconds": 1e9},
        {"timeout_seconds": 0},
    ],
)
def test_options_out_of_range_are_refused(redis: RedisServer, options: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        open_storage(redis.address(), **{"prefix": "fine", **options})


def test_a_connection_that_breaks_gives_no_epoch_away_and_loses_no_lease(redis: RedisServer) -> None:
    async def scenario() -> None:
        storage = storage_at(redis)
        await storage.commit([Write("data", 0, b"0")])
        epochs = []
        for number in range(1, 6):
            epochs.append(int(head_of(redis, storage)["epoch"]))
            storage.session.drop("a test")
            await storage.commit([Write("data", number, b"%d" % number)])
        assert epochs == sorted(set(epochs)), "each connection has an epoch of its own"
        assert await content(storage) == b"012345"
        await storage.aclose()

    run(scenario())


def test_two_writers_at_once_through_a_network_that_delivers_late_are_never_both_right(redis: RedisServer) -> None:
    """The old writer's commit is on its way when the new one takes over; it arrives afterwards."""

    async def scenario() -> None:
        async with TcpProxy(redis.port) as slow:
            prefix = new_prefix()
            old, new = storage_at(slow, prefix), storage_at(redis, prefix, take_over=True)
            await old.commit([Write("data", 0, b"old")])
            slow.hold()
            late = asyncio.ensure_future(old.commit([Write("data", 0, b"bad")]))
            await slow.arrived()
            await new.acquire()
            await new.commit([Write("data", 0, b"new")])
            slow.release()
            with pytest.raises(FencedError):
                await late
            assert await content(new) == b"new"
            await old.aclose()
            await new.aclose()

    run(scenario())


def test_the_lease_of_a_process_that_is_gone_ends_by_the_servers_clock() -> None:
    async def scenario(server: RedisServer) -> None:
        storage = storage_at(server, lease_seconds=1)
        await storage.commit([Write("data", 0, b"abc")])
        # It is gone without a word.
        assert storage.lease._keeper is not None
        storage.lease._keeper.cancel()
        storage.session.drop("a test")
        other = storage_at(server, storage.options.prefix)
        refused = 0
        while True:
            try:
                await other.acquire()
                break
            except LockedError:
                refused += 1
                await asyncio.sleep(0.02)
        assert refused
        await other.commit([Write("data", 3, b"def")])
        await other.aclose()
        await storage.aclose()

    with RedisServer("redis") as server:
        run(scenario(server))


def test_a_storage_that_fork_copied_before_it_wrote_is_another_writer(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        held = storage_at(redis)
        copied = storage_at(redis, held.options.prefix)
        copied.lease._who = held.lease._who
        await held.commit([Write("data", 0, b"a")])
        monkeypatch.setattr(os, "getpid", lambda: 0)
        with pytest.raises(LockedError):
            await copied.acquire()
        monkeypatch.undo()
        await held.commit([Write("data", 1, b"b")])
        assert await content(held) == b"ab"
        await held.aclose()
        await copied.aclose()

    run(scenario())


def test_a_storage_that_fork_copied_while_it_wrote_neither_writes_nor_gives_the_lease_back(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        held = storage_at(redis)
        await held.commit([Write("data", 0, b"a")])
        monkeypatch.setattr(os, "getpid", lambda: 0)
        for work in (held.acquire, lambda: held.commit([Write("data", 1, b"b")]), lambda: held.unlink("data")):
            with pytest.raises(StorageError, match="Open the storage anew"):
                await work()
        await held.lease.aclose()
        monkeypatch.undo()
        other = storage_at(redis, held.options.prefix)
        with pytest.raises(LockedError):
            await other.acquire()
        assert await content(held) == b"a"
        await held.aclose()
        await other.aclose()

    run(scenario())


def test_closing_gives_the_lease_back_in_time_whatever_there_is_to_sweep_away(redis: RedisServer) -> None:
    async def scenario() -> None:
        held = storage_at(redis)
        # A million pages for every 64 GB.
        await held.commit([Write("data", 1 << 50, b"x"), Write("kept", 0, b"k")])
        await held.commit([Truncate("data", 0)])
        await held.aclose()
        other = storage_at(redis, held.options.prefix)
        await other.acquire()
        assert await content(other) == b""
        assert other.lease.contents is not None
        assert other.lease.contents.debris, "there is a lot"
        await other.aclose()

    run(scenario())

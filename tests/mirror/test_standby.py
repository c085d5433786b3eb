"""Several mirrors of one storage: the one that holds the lease writes, the others serve what it writes, and one of them
takes over when the lease ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from hypercore import FencedError, Hypercore, LockedError, Mirror, Storage, Swarm
from hypercore.plugins import open_storage
from hypercore.storage import Operation
from hypercore.testing.wrappers import WrappedStorage
from tests.mirror.scenes import Source, block, new_name, read_from, soon, source_of, until
from tests.replication.links import eventually
from tests.running import run


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    soon(monkeypatch)


def mirror_at(place: str, source: Source) -> Mirror:
    return Mirror(place, [source.core.key], sources=[source.address], listen=[f"pipe:{new_name()}"])


def test_the_second_mirror_of_a_storage_serves_what_the_first_one_writes() -> None:
    async def scene() -> None:
        place = f"memory:{new_name()}"
        async with source_of(50) as source, mirror_at(place, source) as first:
            await first.synced()
            async with mirror_at(place, source) as second:
                await second.synced()
                (core,) = second.status().cores
                assert (core.role, core.have, core.want, core.stored_bytes) == ("standby", 50, 50, 500)
                assert core.error is None
                blocks = await read_from(second.addresses[0], source.core.key, 0, 50)
                assert blocks == [block(index) for index in range(50)]
                assert first.status().cores[0].role == "writer"
                assert source.blocks_sent == 50

    run(scene())


def test_readers_of_a_standby_hear_what_is_new() -> None:
    async def scene() -> None:
        place = f"memory:{new_name()}"
        async with source_of(5) as source, mirror_at(place, source) as first, mirror_at(place, source) as second:
            await first.synced()
            await until(second, lambda core: core.have == 5)
            async with Hypercore("memory:", source.core.key) as reader, Swarm(peers=second.addresses) as swarm:
                swarm.join(reader)
                await reader.wait_for_length(5)
                await source.core.append([block(5), block(6)])
                await reader.wait_for_length(7)
                assert await reader.get(6) == block(6)
                await source.core.truncate(2)
                await source.core.append(b"other")
                await eventually(lambda: (reader.fork, reader.length) == (1, 3))
                assert await reader.get(2) == b"other"
            assert second.status().cores[0].role == "standby"

    run(scene())


def test_a_standby_asks_a_peer_that_is_ahead_for_nothing() -> None:
    async def scene() -> None:
        place = f"memory:{new_name()}"
        async with source_of(5) as source, mirror_at(place, source) as first:
            await first.synced()
            async with mirror_at(place, source) as second:
                await second.synced()
                await first.aclose()
                lock = open_storage(place)
                while second.status().cores[0].role == "standby":
                    # Whoever is quicker: the standby, or a third that writes nothing.
                    with contextlib.suppress(LockedError):
                        await lock.acquire()
                        break
                    await asyncio.sleep(0)
                async with Hypercore("memory:", source.core.key) as reader:
                    both = Swarm(peers=[source.address, *second.addresses])
                    async with both as swarm:
                        swarm.join(reader)
                        await reader.wait_for_length(5)
                        await source.core.append([block(index) for index in range(5, 9)])
                        await reader.wait_for_length(9)
                        assert [await reader.get(index) for index in range(9)] == [block(i) for i in range(9)]
                        assert len(reader.peers) == 2
                await lock.aclose()

    run(scene())


def test_a_standby_takes_over_when_the_lease_ends_and_keeps_its_readers() -> None:
    async def scene() -> None:
        place = f"memory:{new_name()}"
        async with source_of(20) as source:
            first = mirror_at(place, source)
            await first.start()
            await first.synced()
            async with mirror_at(place, source) as second:
                await until(second, lambda core: core.have == 20)
                async with Hypercore("memory:", source.core.key) as reader, Swarm(peers=second.addresses) as swarm:
                    swarm.join(reader)
                    await reader.wait_for_length(20)
                    (connection,) = swarm.connections()
                    await first.aclose()
                    await until(second, lambda core: core.role == "writer")
                    await source.core.append([block(index) for index in range(20, 25)])
                    await reader.wait_for_length(25)
                    assert await reader.get(24) == block(24)
                    assert swarm.connections() == [connection]
                await second.synced()
                assert second.status().have == 25
            # What the first had was not fetched a second time.
            assert source.blocks_sent == 25

    run(scene())


def test_a_standby_waits_for_a_storage_where_nobody_has_written_yet() -> None:
    async def scene() -> None:
        place = f"memory:{new_name()}"
        async with source_of(5) as source:
            lock = open_storage(place)
            await lock.acquire()
            async with mirror_at(place, source) as mirror:
                core = await until(mirror, lambda core: core.role == "standby")
                assert (core.error, core.length) == (None, 0)
                assert mirror.status().problems == ()
                async with Hypercore(lock, source.core.key) as copy, Swarm(peers=[source.address]) as swarm:
                    swarm.join(copy)
                    await copy.update()
                    await copy.download(0, 5).done()
                    await until(mirror, lambda core: (core.role, core.have) == ("standby", 5))
                await until(mirror, lambda core: core.role == "writer")
                assert source.blocks_sent == 5

    run(scene())


def test_a_standby_of_a_damaged_storage_says_so_and_recovers_when_that_is_mended(tmp_path: Path) -> None:
    async def scene() -> None:
        async with source_of(5) as source, mirror_at(str(tmp_path), source) as first:
            await first.synced()
            whole = (tmp_path / "oplog").read_bytes()
            (tmp_path / "oplog").write_bytes(b"damaged" * 2000)
            async with mirror_at(str(tmp_path), source) as second:
                core = await until(second, lambda core: core.error is not None)
                assert core.error is not None
                assert str(tmp_path) in core.error
                (tmp_path / "oplog").write_bytes(whole)
                core = await until(second, lambda core: core.have == 5)
                await until(second, lambda core: core.error is None)

    run(scene())


# ---- a writer that was away too long --------------------------------------------------------------


class Lease:
    """Who may write, and what a paused writer does not know."""

    def __init__(self) -> None:
        self.holder: Storage | None = None


class FencedStorage(WrappedStorage):
    """A storage whose lease is taken away by whoever is given it, as when a server expires it."""

    def __init__(self, inner: Storage, lease: Lease) -> None:
        super().__init__(inner)
        self._lease = lease

    async def acquire(self) -> None:
        if self._lease.holder not in (None, self):
            raise LockedError("another writer holds the lease")
        self._lease.holder = self

    async def commit(self, operations: Sequence[Operation]) -> None:
        if self._lease.holder is not self:
            raise FencedError("another writer took the lease over")
        await self.inner.commit(operations)

    async def aclose(self) -> None:
        if self._lease.holder is self:
            self._lease.holder = None
        await self.inner.aclose()


def test_a_writer_that_was_replaced_while_it_was_away_becomes_the_standby_and_returns_later() -> None:
    async def scene() -> None:
        place, lease = f"memory:{new_name()}", Lease()

        def storage(_key: bytes) -> Storage:
            return FencedStorage(open_storage(place), lease)

        async with source_of(10) as source:
            mirror = Mirror(storage, [source.core.key], sources=[source.address], listen=[f"pipe:{new_name()}"])
            async with mirror:
                await mirror.synced()
                async with Hypercore("memory:", source.core.key) as reader, Swarm(peers=mirror.addresses) as swarm:
                    swarm.join(reader)
                    await reader.wait_for_length(10)
                    (connection,) = swarm.connections()
                    # The lease is given to another writer, who is told by nobody that the mirror still runs.
                    other = FencedStorage(open_storage(place), lease)
                    lease.holder = other
                    async with Hypercore(other, source.core.key) as copy, Swarm(peers=[source.address]) as peers:
                        peers.join(copy)
                        live = copy.download()
                        await source.core.append(block(10))
                        core = await until(mirror, lambda core: (core.role, core.have) == ("standby", 11))
                        assert core.error is None
                        await reader.wait_for_length(11)
                        assert await reader.get(10) == block(10)
                        live.destroy()
                    # The other one is done.
                    await until(mirror, lambda core: core.role == "writer")
                    await source.core.append(block(11))
                    await until(mirror, lambda core: core.have == 12)
                    await reader.wait_for_length(12)
                    assert swarm.connections() == [connection]
        async with Hypercore(place, read_only=True) as copy:
            assert [await copy.get(index) for index in range(12)] == [block(index) for index in range(12)]

    run(scene())


def test_a_lease_is_waited_for_and_never_taken() -> None:
    async def scene() -> None:
        place, lease = f"memory:{new_name()}", Lease()
        lease.holder = holder = open_storage("memory:")
        tries: list[None] = []

        class Counted(FencedStorage):
            async def acquire(self) -> None:
                tries.append(None)
                await super().acquire()

        async with source_of(3) as source:
            keys, sources = [source.core.key], [source.address]
            async with Mirror(lambda _key: Counted(open_storage(place), lease), keys, sources=sources) as mirror:
                await eventually(lambda: len(tries) >= 5)
                assert mirror.status().cores[0].role == "standby"
                assert lease.holder is holder
                lease.holder = None
                await mirror.synced()
                assert mirror.status().have == 3
        await holder.aclose()

    run(scene())

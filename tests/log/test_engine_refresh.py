"""A reader without the lease sees, when it asks, what the writer has written since."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hypercore.crypto import KeyPair
from hypercore.errors import CorruptError, NotDurableError
from hypercore.log.engine import Log, LogChange
from hypercore.plugins import open_storage
from hypercore.storage import Storage, Truncate, Write
from tests.running import run


@pytest.fixture(params=["file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Storage]:
    address = str(tmp_path) if request.param == "file" else f"memory:{tmp_path}"
    return lambda: open_storage(address)


async def blocks_of(log: Log) -> list[bytes | None]:
    return [await log.get(index) for index in range(log.length)]


def test_a_reader_sees_what_was_appended_cut_and_cleared(place: Callable[[], Storage]) -> None:
    async def promise() -> None:
        writer = await Log.open(place())
        await writer.append([b"one"])
        reader = await Log.open(place(), read_only=True)
        heard: list[LogChange] = []
        reader.listeners.append(heard.append)
        assert not await reader.refresh()
        await writer.append([b"two", b"three"])
        assert await reader.refresh()
        assert await blocks_of(reader) == [b"one", b"two", b"three"]
        assert heard == [LogChange("upgrade", 1, 3, 0, 3), LogChange("blocks", 1, 3, 0, 3)]
        await writer.flush()
        await writer.append([b"four"])
        await writer.clear(0, 1)
        await writer.truncate(2)
        await writer.append([b"other"])
        assert await reader.refresh()
        assert await blocks_of(reader) == [None, b"two", b"other"]
        assert reader.fork == 1
        assert not await reader.refresh()
        await reader.aclose()
        await writer.aclose()

    run(promise())


def test_a_reader_keeps_up_with_a_long_history(place: Callable[[], Storage]) -> None:
    async def promise() -> None:
        writer = await Log.open(place(), durability="none")
        reader = await Log.open(place(), read_only=True)
        for turn in range(60):
            await writer.append([b"%d" % turn] * 40)
            if turn % 7 == 0:
                await writer.flush()
            assert await reader.refresh()
            assert reader.length == writer.length
            assert await reader.get(reader.length - 1) == b"%d" % turn
        await reader.aclose()
        await writer.aclose()

    run(promise())


def test_a_place_that_lost_its_log_is_never_a_shorter_one(place: Callable[[], Storage]) -> None:
    async def promise() -> None:
        writer = await Log.open(place())
        await writer.append([b"one"])
        reader = await Log.open(place(), read_only=True)
        await writer.storage.commit([Truncate("oplog", 0)])
        with pytest.raises(CorruptError, match="gone"):
            await reader.refresh()
        assert await blocks_of(reader) == [b"one"]
        await reader.aclose()
        await writer.aclose()

    run(promise())


def test_a_writer_has_nothing_to_refresh(place: Callable[[], Storage]) -> None:
    async def promise() -> None:
        writer = await Log.open(place())
        assert not await writer.refresh()
        await writer.aclose()

    run(promise())


def test_durability_always_asks_the_storage_first(place: Callable[[], Storage]) -> None:
    async def promise() -> None:
        storage = place()

        async def refuse() -> None:
            raise NotDurableError("this place forgets")

        storage.require_durable = refuse  # type: ignore[method-assign]
        with pytest.raises(NotDurableError):
            await Log.open(storage, durability="always")
        assert await storage.names() == frozenset()
        log = await Log.open(storage)
        await log.aclose()

    run(promise())


@pytest.mark.parametrize("more", [0, 1, 5])
def test_a_second_history_of_the_same_writer_is_never_taken_for_news(
    place: Callable[[], Storage], tmp_path: Path, more: int
) -> None:
    """As after a failover to a server that lacked the last commit, whose writer was told that it had failed."""

    async def promise() -> None:
        pair = KeyPair.from_seed(bytes(32))
        writer = await Log.open(place(), key_pair=pair)
        await writer.append([b"one", b"two", b"three"])
        await writer.flush()
        reader = await Log.open(place(), read_only=True)
        await writer.aclose()
        other = open_storage(f"memory:{tmp_path}-other")
        second = await Log.open(other, key_pair=pair)
        await second.append([b"one", b"two", b"not three", *[b"more"] * more])
        await second.flush()
        target = place()
        for name in await other.names():
            file = await other.open(name)
            content = await file.read(0, await file.size())
            await target.commit([Truncate(name, 0), Write(name, 0, content)])
        await second.aclose()
        with pytest.raises(CorruptError, match="a second history"):
            await reader.refresh()
        assert reader.length == 3
        await reader.aclose()
        await target.aclose()

    run(promise())

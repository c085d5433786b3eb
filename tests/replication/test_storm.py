"""A writer, readers that read from it and from each other, and everything that can happen to them, at random.

Whatever happened, in the end every reader has what the writer has, and nobody was blamed for anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

import pytest

from hypercore.core import Hypercore
from hypercore.errors import BlockIndexError, BlockNotAvailableError, ClosedError, WaitTimeoutError
from hypercore.plugins import open_storage
from hypercore.storage import Storage
from hypercore.testing.flaky import FlakyStream
from hypercore.testing.wrappers import LatencyStorage
from tests.replication.links import Link, eventually
from tests.running import run

READERS = 3
STEPS = 60
EVENTS = (
    *("append", "append", "append", "append", "truncate", "clear", "get", "get", "get", "download", "update", "seek"),
    *("connect", "connect", "connect", "cut", "restart"),
)


class Storm:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.chance = random.Random(seed)
        self.writer: Hypercore
        self.readers: list[Hypercore] = []
        self.links: dict[tuple[int, int], Link] = {}
        self.tasks: set[asyncio.Task[Any]] = set()
        self.faults: list[object] = []

    def storage(self, name: str) -> Storage | str:
        """Half of the storages answer later, so that everything has its awaits in other places."""
        address = f"memory:storm-{self.seed}-{name}"
        return LatencyStorage(open_storage(address), seconds=0) if self.chance.random() < 0.5 else address

    async def begin(self) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self.faults.append(context))
        self.writer = Hypercore(self.storage("writer"), overwrite=True, compat=self.chance.random() < 0.3)
        await self.writer.ready()
        for number in range(READERS):
            reader = Hypercore(self.storage(f"reader-{number}"), self.writer.key, overwrite=True)
            await reader.ready()
            self.readers.append(reader)

    async def restart(self, number: int) -> None:
        """A reader ends in the midst of everything, and comes back with what it had stored."""
        for pair, link in list(self.links.items()):
            if number + 1 in pair:
                self.check(link)
                del self.links[pair]
        await self.readers[number].close()
        reader = Hypercore(self.storage(f"reader-{number}"), self.writer.key, create_if_missing=False)
        await reader.ready()
        self.readers[number] = reader

    @property
    def cores(self) -> list[Hypercore]:
        return [self.writer, *self.readers]

    def connect(self, left: int, right: int) -> None:
        if (left, right) not in self.links:
            ends = (self.cores[left], self.cores[right])
            chance = self.chance
            chop = chance.choice([None, 50, 5000])
            seed = chance.randrange(2**32)
            self.links[left, right] = Link(
                *ends,
                left_is_initiator=chance.random() < 0.5,
                wrap=lambda stream: FlakyStream(stream, seed=seed, chop_size=chop) if chop else stream,
            )

    async def cut(self, pair: tuple[int, int]) -> None:
        link = self.links.pop(pair)
        self.check(link)
        await link.cut()

    def check(self, link: Link) -> None:
        assert link.left.error is None, f"seed {self.seed}: {link.left.error}"
        assert link.right.error is None, f"seed {self.seed}: {link.right.error}"

    def spawn(self, work: Any) -> None:
        async def quietly() -> None:
            with contextlib.suppress(BlockNotAvailableError, BlockIndexError, WaitTimeoutError, ClosedError):
                await work

        task = asyncio.get_running_loop().create_task(quietly())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def step(self) -> None:
        chance, writer = self.chance, self.writer
        reader = chance.choice(self.readers)
        match chance.choice(
            ["append"] * 4
            + ["truncate"]
            + ["clear"]
            + ["get"] * 3
            + ["download", "update"]
            + ["connect"] * 3
            + ["cut"]
            + ["seek"]
        ):
            case "append":
                count = chance.choice([1, 1, 3, 40])
                await writer.append([chance.randbytes(chance.choice([0, 5, 300])) for _ in range(count)])
            case "truncate" if writer.length:
                await writer.truncate(chance.randrange(writer.length))
            case "clear" if reader.length:
                start = chance.randrange(reader.length)
                await reader.clear(start, start + chance.randrange(1, 20))
            case "get":
                self.spawn(reader.get(chance.randrange(writer.length + 1), timeout=0.2))
            case "download":
                start = chance.randrange(writer.length + 1)
                download = reader.download(start, start + chance.randrange(50))
                self.spawn(download.done(timeout=0.2))
            case "update":
                self.spawn(reader.update(timeout=0.2))
            case "seek" if reader.byte_length:
                self.spawn(reader.seek(chance.randrange(reader.byte_length), timeout=0.2))
            case "connect":
                left, right = sorted(chance.sample(range(READERS + 1), 2))
                self.connect(left, right)
            case "restart":
                await self.restart(chance.randrange(READERS))
            case "cut" if self.links:
                await self.cut(chance.choice(list(self.links)))
        for _ in range(chance.choice([0, 1, 5, 50])):
            await asyncio.sleep(0)

    async def end(self) -> None:
        for index in range(READERS):
            self.connect(0, index + 1)
        writer = self.writer
        await writer.append("the end")
        for reader in self.readers:
            reader.download(0, None)
        for number, reader in enumerate(self.readers):
            try:
                async with asyncio.timeout(20.0):
                    await eventually(
                        lambda reader=reader: (  # type: ignore[misc]
                            (reader.fork, reader.length, reader.contiguous_length)
                            == (writer.fork, writer.length, writer.length)
                        )
                    )
            except TimeoutError:
                raise AssertionError(f"seed {self.seed}: reader {number} is stuck: {describe(reader)}") from None
            assert await reader.tree_hash() == await writer.tree_hash()
            assert [await reader.get(i) for i in range(reader.length)] == [
                await writer.get(i) for i in range(writer.length)
            ]
        if self.tasks:
            await asyncio.wait(self.tasks)
        for link in self.links.values():
            self.check(link)
        for core in self.cores:
            for peer in core.peers:
                assert not peer.remote.strikes, f"seed {self.seed}: an honest peer was blamed"
            assert not core.hub.warnings, f"seed {self.seed}: {core.hub.warnings}"
        for core in self.cores:
            await core.close()
        assert not self.faults, f"seed {self.seed}: {self.faults}"


def describe(core: Hypercore) -> str:
    lines = [f"fork {core.fork} length {core.length} contiguous {core.contiguous_length}"]
    for peer in core.peers:
        remote = peer.remote
        lines.append(
            f"peer fork {remote.fork} length {remote.length} acked {remote.acked_length} prefix {remote.prefix}"
            f" can_upgrade {remote.can_upgrade} paused {remote.paused} strikes {remote.strikes}"
            f" asks {list(remote.asks.values())} refused {remote.refused_forks} wanted {remote.wanted}"
        )
    replicator = core.hub.replicator
    lines.append(f"upgrading {replicator._upgrading} forking {replicator._forking} wanted {vars(replicator._wanted)}")
    return "\n".join(lines)


async def storm(seed: int) -> None:
    weather = Storm(seed)
    await weather.begin()
    for _ in range(STEPS):
        await weather.step()
    await weather.end()


@pytest.mark.parametrize("seed", range(8))
def test_after_a_storm_everybody_has_everything(seed: int) -> None:
    run(storm(seed))

"""Thousands of schedules of two writers who both believe that they are the one: never are both right."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Sequence
from random import Random

import pytest

from hypercore.errors import StorageError
from hypercore.storage import Truncate, Write
from hypercore_redis import RedisStorage
from tests.running import run
from tests.servers.redis import KINDS, Kind, shared_server
from tests.soak import SOAK
from tests.storage.redis.places import content, let_the_lease_end, new_prefix, storage_at

#: For each of two servers.
SCHEDULES = 400 * SOAK
#: In parts, so that they can be shared out.
PARTS = 4 * SOAK


class _Rival:
    """A writer that commits under the next number whenever it can, and writes down what was acknowledged."""

    def __init__(self, name: str, storage: RedisStorage, acknowledged: dict[int, str]) -> None:
        self.name = name
        self.storage = storage
        self.acknowledged = acknowledged
        self.count = 0

    async def step(self, action: str) -> None:
        storage = self.storage
        with contextlib.suppress(StorageError):  # of which LockedError and FencedError are
            match action:
                case "acquire":
                    await storage.acquire()
                case "break":
                    storage.session.drop("a test")
                case "commit":
                    self.count += 1
                    said = f"{self.name}{self.count}"
                    await storage.commit([Write("data", 0, said.ljust(12).encode()), Truncate("n", self.count)])
                    number = storage.lease.sequence
                    other = self.acknowledged.setdefault(number, said)
                    assert other == said, f"commit {number} was acknowledged as {other} and as {said}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", range(PARTS))
def test_of_two_writers_never_are_two_commits_acknowledged_under_one_number(kind: Kind, part: int) -> None:
    server = shared_server(kind)

    async def schedule(seed: int) -> tuple[int, int]:
        random = Random(seed)
        prefix = new_prefix()
        acknowledged: dict[int, str] = {}
        storages: list[RedisStorage] = []
        names = itertools.count()

        def rival() -> _Rival:
            storages.append(storage_at(server, prefix, take_over=random.random() < 0.8))
            return _Rival(f"w{next(names)}-", storages[-1], acknowledged)

        rivals = [rival(), rival()]
        for _ in range(random.randrange(3, 9)):
            actions: Sequence[tuple[_Rival, str]] = [
                (random.choice(rivals), random.choice(["commit", "commit", "commit", "acquire", "break"]))
                for _ in range(random.choice([1, 2, 2, 3]))
            ]
            if random.random() < 0.15:
                let_the_lease_end(server, storages[0])
            await asyncio.gather(*(who.step(action) for who, action in actions))
            if random.random() < 0.1:
                rivals[random.randrange(2)] = rival()
        writers = {said.partition("-")[0] for said in acknowledged.values()}
        if acknowledged:
            reader = storages[-1]
            reader.session.drop("a test")
            assert set(acknowledged) <= set(range(1, max(acknowledged) + 1)), f"schedule {seed}"
            last = (await content(reader)).rstrip().decode()
            if reader.lease.sequence == max(acknowledged):
                assert last == acknowledged[max(acknowledged)], f"schedule {seed}: {last}, not {acknowledged}"
            else:
                # Done, and its writer could not be told, because another one came first.
                assert reader.lease.sequence > max(acknowledged), f"schedule {seed}"
                assert last not in acknowledged.values(), f"schedule {seed}"
        for storage in storages:
            await storage.aclose()
        return len(acknowledged), len(writers)

    async def scenario() -> None:
        commits = shared = 0
        for seed in range(part, SCHEDULES, PARTS):
            count, who = await schedule(seed)
            commits += count
            shared += who > 1
        assert commits > SCHEDULES // PARTS, "hardly a commit was acknowledged"
        assert shared > SCHEDULES // PARTS // 10, "the writers hardly ever met"

    run(scenario())

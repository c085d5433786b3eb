"""Reads that were under way while the log changed."""

from __future__ import annotations

import asyncio
import contextlib
from random import Random

import pytest

from hypercore.errors import BlockIndexError, BlockNotAvailableError, ProofRequestError
from hypercore.log import commits, tree
from hypercore.log.engine import Log
from hypercore.log.proof import verify_proof
from hypercore.proofs import BlockRequest, ProofRequest, UpgradeRequest
from hypercore.storage import RandomAccess, Storage
from hypercore.testing.wrappers import Step, WrappedStorage
from hypercore_memory import MemoryStorage
from tests.histories import (
    Action,
    Append,
    Clear,
    Flush,
    Model,
    SetUserData,
    Truncate,
    difference,
    perform,
    random_engine_action,
    view_of,
)
from tests.log.logs import KEY_PAIR, Disk
from tests.running import run

FIRST = Append(tuple(b"block %d" % index for index in range(10)))
SECOND = Append(tuple(b"another %d" % index for index in range(600)))
CHANGES: dict[str, list[Action]] = {
    "appended": [SECOND],
    "appended and flushed": [SECOND, Flush()],
    "truncated": [Truncate(5)],
    "truncated and appended": [Truncate(5), SECOND],
    "truncated, appended and flushed": [Truncate(5), SECOND, Flush()],
    "cleared, appended and flushed": [Clear(0, 6), SECOND, Flush()],
    "flushed": [SetUserData("one", b"1"), Flush()],
}


class HeldUpStorage(WrappedStorage):
    """The next read of `held_up` gives what is in the file now, but much later."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.held_up = ""
        self.arrived = asyncio.Event()
        self.go_on = asyncio.Event()

    async def perform(self, step: Step, file: RandomAccess | None) -> bytes:
        result = await super().perform(step, file)
        if step.verb == "read" and step.name == self.held_up:
            self.held_up = ""
            self.arrived.set()
            await self.go_on.wait()
        return result


@pytest.mark.parametrize("file", ["tree", "data"])
@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_a_read_that_was_overtaken_gives_what_was_there_or_is_and_spoils_nothing(
    file: str, changes: list[Action]
) -> None:
    async def scenario() -> None:
        disk = Disk()
        log = await Log.open(disk.storage(), key_pair=KEY_PAIR)
        await perform(log, FIRST)
        await log.flush()
        await log.aclose()
        storage = HeldUpStorage(disk.storage())
        log = await Log.open(storage)
        storage.held_up = file
        reading = asyncio.create_task(log.get(3))
        await storage.arrived.wait()
        model = Model().after(FIRST)
        for change in changes:
            await perform(log, change)
            model = model.after(change)
        storage.go_on.set()
        assert await reading in (FIRST.blocks[3], model.view.blocks[3])
        assert not difference(await view_of(log), model)
        assert log.contiguous_length == model.contiguous_length

    run(scenario())


class WanderingStorage(WrappedStorage):
    """Every operation takes some turns of the loop, a few of them many, before it happens and after."""

    def __init__(self, inner: Storage, random: Random) -> None:
        super().__init__(inner)
        self._random = random

    async def perform(self, step: Step, file: RandomAccess | None) -> bytes:
        await self._wander()
        result = await super().perform(step, file)
        await self._wander()
        return result

    async def _wander(self) -> None:
        for _ in range(self._random.choice([0, 0, 1, 2, 30])):
            await asyncio.sleep(0)


@pytest.mark.parametrize("seed", range(10))
def test_readers_never_see_damage_while_the_log_changes(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "CHECKPOINT_ENTRY_BYTES", 2000)
    monkeypatch.setattr(tree, "MAX_PAGES", 1)

    async def scenario() -> None:
        random = Random(seed)
        log = await Log.open(WanderingStorage(MemoryStorage(), random), key_pair=KEY_PAIR)
        # Several pages of nodes, of which one stays in memory.
        model = Model(tuple(b"%d" % index for index in range(520)))
        await log.append(model.blocks)
        await log.flush()
        ever: dict[int, set[bytes | None]] = {index: {block, None} for index, block in enumerate(model.blocks)}
        changing = True

        async def read() -> None:
            while changing:
                await asyncio.sleep(0)
                index = random.randrange(log.length + 1)
                with contextlib.suppress(BlockIndexError):
                    assert await log.get(index) in ever[index], f"seed {seed}, block {index}"

        async def prove() -> None:
            while changing:
                await asyncio.sleep(0)
                index, fork = random.randrange(log.length + 1), log.fork
                request = ProofRequest(fork, block=BlockRequest(index, 0), upgrade=UpgradeRequest(0, log.length))
                with contextlib.suppress(BlockNotAvailableError, ProofRequestError):
                    proof = await log.prove(request)
                    verify_proof(proof, length=0, fork=fork, roots=(), authority=log.authority)

        readers = [asyncio.create_task(work()) for work in (read, read, prove)]
        for number in range(40):
            action = random_engine_action(random, model)
            if isinstance(action, Truncate):
                action = Truncate(model.length - min(20, model.length))
            after = model.after(action)
            for index, block in enumerate(after.blocks):
                ever.setdefault(index, {None}).add(block)
            await perform(log, action)
            model = after
            assert not difference(await view_of(log), model), f"seed {seed}, action {number}, {action}"
        changing = False
        await asyncio.gather(*readers)
        await log.aclose()

    run(scenario())

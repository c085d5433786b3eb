"""Reads that were under way while the log changed."""

from __future__ import annotations

import asyncio

import pytest

from hypercore.log.engine import Log
from hypercore.storage import RandomAccess, Storage
from hypercore.testing.wrappers import Step, WrappedStorage
from tests.histories import Action, Append, Clear, Flush, Model, SetUserData, Truncate, difference, perform, view_of
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

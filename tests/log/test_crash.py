"""Long random histories over storages that lose power again and again, or fail at every operation in turn."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final, NamedTuple

import pytest

from hypercore.errors import StorageError
from hypercore.log import commits
from hypercore.log.engine import Durability, Log
from hypercore.storage import RandomAccess, Storage
from hypercore.testing import CrashStorage, FaultyStorage
from hypercore.testing.wrappers import CHANGES, Step, Verb, WrappedStorage
from hypercore_memory import MemoryStorage
from tests.histories import Action, Append, Model, View, difference, perform, random_engine_action, view_of
from tests.log.logs import KEY_PAIR
from tests.running import run

#: Crashes of one machine, one after the other.
CRASHES = 3


@pytest.fixture(autouse=True)
def _frequent_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short history should meet some that nobody asked for."""
    monkeypatch.setattr(commits, "CHECKPOINT_ENTRY_BYTES", 2000)


class Acknowledged(NamedTuple):
    """After so many steps of the storage the log was `model`; a crash in what came next leaves one of `within`."""

    steps: int
    model: Model
    within: list[Model]


async def live(log: Log, storage: CrashStorage, random: Random, model: Model, *, actions: int) -> list[Acknowledged]:
    """Some random actions."""
    life = []
    for _ in range(actions):
        action = random_engine_action(random, model)
        life.append(Acknowledged(len(storage.steps), model, model.within(action)))
        await perform(log, action)
        model = model.after(action)
    life.append(Acknowledged(len(storage.steps), model, [model]))
    return life


def found(view: View, allowed: list[Model], said: str) -> Model:
    """The one of the models that the log is."""
    for model in reversed(allowed):
        if view == model.view:
            return model
    differences = " or: ".join(difference(view, model) for model in allowed)
    raise AssertionError(f"{said}: {differences}")


def at(life: list[Acknowledged], after: int) -> list[Model]:
    """What may be there after so many steps: all that was acknowledged by then."""
    return next(moment.within for moment in reversed(life) if moment.steps <= after)


@pytest.mark.parametrize("seed", range(40))
def test_power_that_fails_again_and_again_takes_nothing_that_was_acknowledged(seed: int) -> None:
    async def scenario() -> None:
        random = Random(seed)
        first = CrashStorage(MemoryStorage())
        log = await Log.open(first, key_pair=KEY_PAIR, durability="always", compat=seed % 2 == 0)
        key = log.key
        first_life = await live(log, first, random, Model(), actions=15)
        for number in range(4):
            storage, life, start = first, first_life, first_life[0].steps
            for crash in range(CRASHES):
                after = random.randint(start, len(storage.steps))
                said = f"seed {seed}, variant {number}, crash {crash} after {after} of {len(storage.steps)} steps"
                left = await storage.crash(MemoryStorage(), seed=random.randrange(1 << 30), after=after)
                storage, start = CrashStorage(left), 0
                log = await Log.open(storage, create_if_missing=False, durability="always")
                assert log.key == key, said
                model = found(await view_of(log), at(life, after), said)
                assert await log.tree_hash() == model.tree_hash, said
                assert log.contiguous_length == model.contiguous_length, said
                life = await live(log, storage, random, model, actions=6)
                # Opening makes steps too (it finishes what was interrupted), and says nothing new.
                life.insert(0, Acknowledged(0, model, [model]))
            assert not difference(await view_of(log), life[-1].model), f"seed {seed}, variant {number}"

    run(scenario())


class LostAnswerStorage(FaultyStorage):
    """Carries out the operation, and fails nevertheless, as a storage does whose connection breaks."""

    async def perform(self, step: Step, file: RandomAccess | None) -> bytes:
        result = await WrappedStorage.perform(self, step, file)
        if step.verb in CHANGES:
            self.count += 1
            if self.count == self.fail_at:
                raise StorageError(f"injected: {step.verb} of {step.name!r} is not known to have been done")
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """How the storage fails: at which kind of operations, once or until it is mended, with half a write or none."""

    verbs: Collection[Verb] = CHANGES
    partial: bool = False
    lasting: bool = False
    after_the_deed: bool = False

    def storage(self, inner: Storage, fail_at: int | None) -> FaultyStorage:
        if self.after_the_deed:
            return LostAnswerStorage(inner, fail_at=fail_at)
        return FaultyStorage(inner, fail_at=fail_at, partial=self.partial, lasting=self.lasting, verbs=self.verbs)


READS: Final[Collection[Verb]] = frozenset[Verb]({"read"})
FAULTS = {
    "once": Fault(),
    "within a write": Fault(partial=True),
    "until mended": Fault(partial=True, lasting=True),
    "after the deed": Fault(after_the_deed=True),
    "reading": Fault(verbs=READS),
    "reading until mended": Fault(verbs=READS, lasting=True),
}


@pytest.mark.parametrize("durability", ["none", "flush", "always"])
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_failure_at_any_operation_loses_nothing_that_was_acknowledged(fault: Fault, durability: Durability) -> None:
    async def scenario() -> None:
        for seed in range(2):
            count = await survive(seed, fault, None, durability)
            assert count >= 20, "a history that hardly touches the storage shows nothing"
            # Every second operation, the other ones in the next history.
            for fail_at in range(1 + seed, count + 1, 2):
                await survive(seed, fault, fail_at, durability)

    run(scenario())


async def survive(seed: int, fault: Fault, fail_at: int | None, durability: Durability) -> int:
    """A history during which the storage fails: the log is always something that was asked for, and goes on once the
    storage does. Gives how many operations there were that could have failed."""
    said = f"seed {seed}, {fault}, {durability}, failing at operation {fail_at}"
    random = Random(seed)
    disk = MemoryStorage()
    clean = await Log.open(disk, key_pair=KEY_PAIR, durability=durability)
    await clean.append([b"before", b"all"])
    model = Model((b"before", b"all"))
    disk = await copied(disk)
    storage = fault.storage(disk, fail_at)
    try:
        log = await Log.open(storage, create_if_missing=False, durability=durability)
    except StorageError:
        # Nothing has changed, so that it can be tried again.
        storage.fail_at = None
        log = await Log.open(storage, create_if_missing=False, durability=durability)
    for _ in range(16):
        action = random_engine_action(random, model)
        if isinstance(action, Append) and action.together:
            model = await append_together(log, storage, model, action.blocks, said)
            continue
        possible = [model]
        while not await performed(log, action):
            # What failed may be there nevertheless.
            possible.append(possible[-1].after(action))
            # Some read is the first to find out, so that a first look may be half of either.
            await viewed(log, storage)
            found(await viewed(log, storage), possible, f"{said}, after a failed {action}")
            if len(possible) == 4:
                storage.fail_at = None
        possible = [model.after(action) for model in possible]
        model = found(await viewed(log, storage), possible, f"{said}, {action}")
        if len(possible) > 1:
            # What is on the disk at this moment is what a crash would leave.
            after_crash = await Log.open(await copied(disk), create_if_missing=False)
            assert not difference(await view_of(after_crash), model), f"{said}, a crash after {action}"
    count = storage.count
    storage.fail_at = None
    await log.append([b"at last"])
    model = model.after(Append((b"at last",)))
    await log.flush()
    assert not difference(await view_of(log), model), said
    assert await log.tree_hash() == model.tree_hash, said
    again = await Log.open(await copied(disk), create_if_missing=False)
    assert not difference(await view_of(again), model), said
    await log.aclose()
    return count


async def viewed(log: Log, storage: FaultyStorage) -> View:
    """What the log shows, at the second try if need be."""
    try:
        return await view_of(log)
    except StorageError:
        fail_at, storage.fail_at = storage.fail_at, None
        view = await view_of(log)
        storage.fail_at = fail_at
        return view


async def performed(log: Log, action: Action) -> bool:
    """Whether it did not fail."""
    try:
        await perform(log, action)
    except StorageError:
        return False
    return True


async def append_together(log: Log, storage: FaultyStorage, model: Model, blocks: Sequence[bytes], said: str) -> Model:
    """Appends in flight together, each of which may fail by itself."""
    calls = [log.append([block]) for block in blocks]
    results = await asyncio.gather(*calls, return_exceptions=True)
    if any(isinstance(result, BaseException) for result in results):
        storage.fail_at = None
        await log.flush()
    view = await viewed(log, storage)
    assert view.fork == model.fork, said
    assert view.blocks[: model.length] == model.view.blocks, said
    new = [block for block in view.blocks[model.length :] if block is not None]
    rest = iter(blocks)
    assert all(block in rest for block in new), f"{said}: something else was appended"
    for block, result in zip(blocks, results, strict=True):
        if isinstance(result, BaseException):
            assert isinstance(result, StorageError), said
        else:
            assert view.blocks[result[0] - 1] == block, f"{said}: an acknowledged block is not where it was said to be"
    return model.after(Append(tuple(new)))


async def copied(storage: MemoryStorage) -> MemoryStorage:
    """The files as they are now, in a place of their own."""
    copy = MemoryStorage()
    await CrashStorage(storage).kill(copy, after=0)
    return copy

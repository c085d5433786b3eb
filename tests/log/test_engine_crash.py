"""Crashes: of the process after any operation and within any write, and of the machine with any loss."""

from __future__ import annotations

import random

import pytest

from hypercore.errors import CorruptError, HypercoreError
from hypercore.log.engine import Durability, Log
from hypercore.testing import CrashStorage
from hypercore_memory import MemoryStorage
from tests.log.logs import KEY_PAIR, contents, fetch, follow, new_log, upgrade_proof
from tests.running import run

#: What can be seen of a log: fork, blocks, user data.
View = tuple[int, tuple[bytes | None, ...], tuple[tuple[str, bytes], ...]]


async def view_of(log: Log) -> View:
    return log.fork, tuple(await contents(log)), tuple(log.user_data.items())


async def random_history(log: Log, storage: CrashStorage, generator: random.Random) -> list[tuple[int, View]]:
    """Some mutations; after each one how many steps the storage had seen and what was acknowledged then."""
    acknowledged = [(len(storage.steps), await view_of(log))]
    for number in range(14):
        match generator.randrange(8):
            case 0 | 1 | 2:
                await log.append([b"%d" % number])
            case 3:
                await log.append([b"%d.%d" % (number, item) for item in range(generator.randrange(1, 9))])
            case 4 if log.length:
                await log.clear(generator.randrange(log.length), log.length)
            case 5 if log.length:
                await log.truncate(generator.randrange(log.length + 1))
            case 6:
                await log.set_user_data(generator.choice("ab"), generator.choice([b"%d" % number, b"z" * 5000]))
            case 7:
                await log.flush()
        acknowledged.append((len(storage.steps), await view_of(log)))
    return acknowledged


@pytest.mark.parametrize("seed", range(8))
def test_a_killed_process_loses_nothing_that_was_acknowledged(seed: int) -> None:
    async def scenario() -> None:
        generator = random.Random(seed)
        storage = CrashStorage(MemoryStorage())
        log = await Log.open(storage, key_pair=KEY_PAIR, durability="none")
        acknowledged = await random_history(log, storage, generator)
        start = acknowledged[0][0]
        for after in range(start, len(storage.steps) + 1):
            # The last acknowledged state, or the one under way.
            before = max(position for position, (steps, _) in enumerate(acknowledged) if steps <= after)
            allowed = [view for _, view in acknowledged[before : before + 2]]
            torn: list[int | None] = [None]
            if after < len(storage.steps) and storage.steps[after].verb == "write":
                size = len(storage.steps[after].data)
                torn += sorted({generator.randrange(size) for _ in range(3)})
            for torn_bytes in torn:
                said = f"seed {seed}, {after} steps, {torn_bytes} bytes of the next"
                left = MemoryStorage()
                await storage.kill(left, after=after, torn_bytes=torn_bytes)
                await _recovers(left, allowed, said)

    run(scenario(), timeout_seconds=120)


async def _recovers(left: MemoryStorage, allowed: list[View], said: str) -> None:
    """The log opens, shows one of the views without any damage, and can be appended to and opened again."""
    crashed = CrashStorage(left)
    try:
        log = await Log.open(crashed, create_if_missing=False)
    except HypercoreError as error:
        raise AssertionError(f"{said}: {error}") from error
    view = await view_of(log)
    # A clear that was interrupted has taken some of the blocks away.
    assert view in allowed, f"{said}: {view}, not one of {allowed}"
    await log.append([b"after"])
    assert await contents(log) == [*view[1], b"after"], said
    copy = MemoryStorage()
    await crashed.kill(copy, after=len(crashed.steps))
    again = await Log.open(copy)
    assert await contents(again) == [*view[1], b"after"], said


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("durability", ["flush", "always"])
def test_a_loss_of_power_never_gives_wrong_bytes_and_with_always_loses_nothing(
    seed: int, durability: Durability
) -> None:
    async def scenario() -> None:
        generator = random.Random(seed)
        storage = CrashStorage(MemoryStorage())
        log = await Log.open(storage, key_pair=KEY_PAIR, durability=durability)
        acknowledged = await random_history(log, storage, generator)
        after = generator.randrange(acknowledged[0][0], len(storage.steps) + 1)
        left = MemoryStorage()
        await storage.crash(left, seed=seed, after=after)
        before = max(position for position, (steps, _) in enumerate(acknowledged) if steps <= after)
        allowed = [view for _, view in acknowledged[before : before + 2]]
        said = f"seed {seed}, {durability}, {after} steps"
        if durability == "always":
            await _recovers(left, allowed, said)
            return
        try:
            log = await Log.open(left, create_if_missing=False)
        except CorruptError:
            return
        ever = {view[1][index] for _, view in acknowledged for index in range(len(view[1]))}
        for index in range(log.length):
            try:
                assert await log.get(index) in ever | {None}, said
            except CorruptError as error:
                assert error.index == index, said  # noqa: PT017

    run(scenario())


@pytest.mark.parametrize("seed", range(6))
def test_a_killed_reader_keeps_what_it_received_and_what_it_followed(seed: int) -> None:
    async def scenario() -> None:
        generator = random.Random(seed)
        writer = await new_log()
        await writer.append([b"block %d" % index for index in range(23)])
        storage = CrashStorage(MemoryStorage())
        reader = await Log.open(storage, key=writer.key, durability="none")
        acknowledged: list[tuple[int, View]] = [(len(storage.steps), await view_of(reader))]

        async def note() -> None:
            acknowledged.append((len(storage.steps), await view_of(reader)))

        await reader.apply([await upgrade_proof(writer, reader)])
        await note()
        for _ in range(3):
            wanted = generator.sample(range(writer.length), 3)
            await fetch(writer, reader, wanted)
            await note()
        await writer.truncate(generator.randrange(3, 20))
        await writer.append([b"other %d" % index for index in range(9)])
        await follow(writer, reader)
        await note()
        await fetch(writer, reader, [index for index in range(writer.length) if not reader.has(index)][:4])
        await note()
        for after in range(acknowledged[0][0], len(storage.steps) + 1):
            before = max(position for position, (steps, _) in enumerate(acknowledged) if steps <= after)
            allowed = [view for _, view in acknowledged[before : before + 2]]
            left = MemoryStorage()
            await storage.kill(left, after=after)
            again = await Log.open(left, create_if_missing=False)
            assert await view_of(again) in allowed, f"seed {seed}, {after} steps"

    run(scenario())


def test_a_death_while_creating_leaves_something_that_can_be_created_again() -> None:
    async def scenario() -> None:
        storage = CrashStorage(MemoryStorage())
        await Log.open(storage, key_pair=KEY_PAIR, durability="none")
        for after in range(len(storage.steps) + 1):
            sizes: list[int | None] = [None]
            if after < len(storage.steps):
                sizes += range(0, len(storage.steps[after].data), 7)
            for torn_bytes in sizes:
                left = MemoryStorage()
                await storage.kill(left, after=after, torn_bytes=torn_bytes)
                log = await Log.open(left, key_pair=KEY_PAIR)
                assert (await log.append([b"x"]))[0] == 1

    run(scenario())

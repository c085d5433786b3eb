"""A writer in a process of its own, killed at a random moment again and again; and the check of what it left.

A place to crash in is any address; it is given as a `Place`, so that a backend with a server can kill that too. Every
block says which one it is, so that whatever is there can be judged without knowing what was written.

`make soak` does 200 kills of each kind.
"""

from __future__ import annotations

import asyncio
import hashlib
import multiprocessing
import signal
import time
from abc import ABC, abstractmethod
from multiprocessing.connection import Connection
from random import Random

from hypercore import Hypercore
from hypercore.log.engine import Durability
from tests.running import run
from tests.soak import SOAK

#: How many kills of each kind one test does. Few by default, because each takes a while.
KILLS = 10 * SOAK
#: A writer that was not killed by then is stuck.
LIFE_SECONDS_MAX = 60.0
#: The longest time that a writer lives after it has opened the core.
LIFE_SECONDS = 0.25
#: Checking all of a long core after each kill would be most of the work.
BLOCKS_CHECKED = 300

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload([__name__, "hypercore_redis.storage"])


class Place(ABC):
    """Where the core lies."""

    durability: Durability = "flush"

    @abstractmethod
    def address(self) -> str:
        """For a writer who knows that the previous one is dead."""

    def crash(self) -> None:  # noqa: B027 - most have nothing else that dies
        """Kill what else there is to kill; called while the writer is writing or dead."""

    def recover(self) -> None:  # noqa: B027
        """Start again what was killed."""


def block_of(index: int, seed: int) -> bytes:
    """What the block at this index is: which one it is, and from 0 to 100,000 bytes that follow from that."""
    random = Random(seed * 1_000_003 + index)
    size = random.choice([0, 10, 1000, 1000, 5000, 100_000])
    return hashlib.blake2b(b"%d.%d" % (seed, index)).digest() + random.randbytes(size)


def survive_kills(place: Place, *, seed: int, kills: int = KILLS) -> int:
    """Kill the writer, and every second time the place, again and again; how many blocks there are in the end."""
    random = Random(seed)
    acknowledged = 0
    for number in range(kills):
        said = f"seed {seed}, kill {number + 1}"
        acknowledged = _one_life(place, random, seed, acknowledged, said)
        place.recover()
        acknowledged = run(_check(place.address(), acknowledged, seed, random, said))
    run(_check(place.address(), acknowledged, seed, None, f"seed {seed}, in the end"), timeout_seconds=300)
    return acknowledged


def _one_life(place: Place, random: Random, seed: int, length: int, said: str) -> int:
    """The length that was acknowledged last when the writer was killed."""
    ours, its = _processes.Pipe(duplex=False)
    process = _processes.Process(target=_write, args=(its, place.address(), place.durability, seed, random.random()))
    process.start()
    its.close()
    try:
        # It has opened the core when it says something first.
        assert ours.poll(LIFE_SECONDS_MAX), f"{said}: the writer does not start"
        assert ours.recv() >= length, f"{said}: the writer found less than was acknowledged"
        life = random.uniform(0, LIFE_SECONDS)
        order = random.choice(["writer", "writer", "place first", "place"])
        length, ended = _listen(ours, length, life)
        assert not ended, f"{said}: the writer ended by itself"
        if order != "writer":
            place.crash()
        if order == "place":
            # It goes on trying, and may succeed when the place is back.
            place.recover()
            length, ended = _listen(ours, length, life)
        process.kill()
        length, ended = _listen(ours, length, LIFE_SECONDS_MAX)
        assert ended, f"{said}: the writer lives on"
    finally:
        process.kill()
        process.join()
        ours.close()
    assert process.exitcode == -signal.SIGKILL, f"{said}: the writer ended with {process.exitcode}"
    process.close()
    return length


def _listen(acknowledged: Connection, length: int, seconds: float) -> tuple[int, bool]:
    """The last length that was heard within that time, and whether the writer is gone."""
    deadline = time.monotonic() + seconds
    try:
        while acknowledged.poll(max(0.0, deadline - time.monotonic())):
            length = max(length, acknowledged.recv())
            if time.monotonic() > deadline:
                break
    except EOFError:
        return length, True
    return length, False


def _write(acknowledge: Connection, address: str, durability: Durability, seed: int, luck: float) -> None:
    """Append until the end."""

    async def main() -> None:
        random = Random(luck)
        core = Hypercore(address, durability=durability)
        await core.ready()
        acknowledge.send(core.length)
        while True:
            start = core.length
            match random.randrange(4):
                case 0:
                    # Many callers at once share a commit.
                    count = random.randrange(2, 20)
                    calls = [core.append(block_of(start + number, seed)) for number in range(count)]
                    await asyncio.gather(*calls)
                case 1:
                    count = random.randrange(1, 100)
                    await core.append([block_of(start + number, seed) for number in range(count)])
                case _:
                    await core.append(block_of(start, seed))
            acknowledge.send(core.length)

    asyncio.run(main())


async def _check(address: str, acknowledged: int, seed: int, random: Random | None, said: str) -> int:
    """Everything that was acknowledged is there and right; some of it is read, all without `random`."""
    core = Hypercore(address)
    try:
        await core.ready()
        assert core.length >= acknowledged, f"{said}: {acknowledged} blocks were acknowledged, {core.length} are there"
        indexes = list(range(core.length))
        if random is not None and core.length > BLOCKS_CHECKED:
            # The newest are those in danger.
            indexes = indexes[-BLOCKS_CHECKED // 2 :] + random.sample(indexes, BLOCKS_CHECKED // 2)
        for index in indexes:
            assert await core.get(index) == block_of(index, seed), f"{said}: block {index} of {core.length} is wrong"
        assert core.contiguous_length == core.length, said
        return core.length
    finally:
        await core.close()

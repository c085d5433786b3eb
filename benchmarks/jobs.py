"""Our side of the benchmarks: carries out one job in a fresh process, through the public API.

`python -m benchmarks.jobs [--uvloop] [--profile] JOB`, where JOB is one JSON object; each answer is one JSON object a
line on stdout. The jobs and their fields are those of `node/bench.js`: both sides make the same blocks, do the same
work between the two clock readings, and report the same figures.
"""

from __future__ import annotations

import asyncio
import cProfile
import json
import os
import pstats
import re
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hypercore import Hypercore, Swarm

PATTERN = bytes((j * 7 + (j >> 8)) & 255 for j in range(65536))
RANDOM_SEED = 20240229
FILL_BATCH_COUNT = 1000

Answer = dict[str, Any]
Durability = Literal["none", "flush", "always"]


def say(answer: Answer) -> None:
    print(json.dumps(answer), flush=True)


def block(index: int, size: int) -> bytes:
    return index.to_bytes(4, "little") + PATTERN[4:size]


def blocks(start: int, count: int, size: int) -> list[bytes]:
    return [block(start + i, size) for i in range(count)]


def random_indexes(count: int, length: int) -> list[int]:
    """The order of the random reads: Park and Miller's generator, so that both sides read the same blocks."""
    state = RANDOM_SEED
    indexes = []
    for _ in range(count):
        state = state * 48271 % 2147483647
        indexes.append(state % length)
    return indexes


def peak_memory_bytes() -> int:
    """The peak of this program's own life; rusage's would include the size of the parent that it was forked from."""
    found = re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found is not None
    return int(found[1]) * 1024


@dataclass(frozen=True, slots=True)
class Stopwatch:
    """Starts when it is made."""

    began: float = field(default_factory=time.perf_counter)
    cpu_before: float = field(default_factory=time.process_time)

    def figures(self) -> Answer:
        return {
            "seconds": time.perf_counter() - self.began,
            "cpu_seconds": time.process_time() - self.cpu_before,
            "peak_memory_bytes": peak_memory_bytes(),
        }


async def in_flight(width: int, items: Sequence[Any], one: Callable[[Any], Coroutine[Any, Any, Any]]) -> None:
    """Start `width` calls at once, await them all, start the next ones; one by one when `width` is 1."""
    if width == 1:
        for item in items:
            await one(item)
    else:
        for start in range(0, len(items), width):
            await asyncio.gather(*(one(item) for item in items[start : start + width]))


def expect(found: object, wanted: object, what: str) -> None:
    if found != wanted:
        raise AssertionError(f"{what} is wrong: {found!r}, not {wanted!r}")


# ---- one process ----


async def fill(folder: str, count: int, size: int) -> None:
    async with Hypercore(folder, durability="none") as core:
        for start in range(0, count, FILL_BATCH_COUNT):
            await core.append(blocks(start, min(FILL_BATCH_COUNT, count - start), size))
        expect(core.length, count, "length")
    say({})


async def append(folder: str, count: int, size: int, in_flight_count: int, durability: Durability) -> None:
    async with Hypercore(folder, durability=durability) as core:
        made = blocks(0, count, size)
        watch = Stopwatch()
        await in_flight(in_flight_count, made, core.append)
        result = watch.figures()
        expect(core.length, count, "length")
    say(result)


async def append_batches(folder: str, batches: int, count: int, size: int, durability: Durability) -> None:
    async with Hypercore(folder, durability=durability) as core:
        batch = blocks(0, count, size)
        watch = Stopwatch()
        for _ in range(batches):
            await core.append(batch)
        result = watch.figures()
        expect(core.length, batches * count, "length")
    say(result)


async def get(folder: str, count: int, size: int, in_flight_count: int, random: bool) -> None:
    async with Hypercore(folder, durability="none") as core:
        indexes = random_indexes(count, core.length) if random else list(range(count))
        watch = Stopwatch()
        await in_flight(in_flight_count, indexes, core.get)
        result = watch.figures()
        expect(await core.get(indexes[0]), block(indexes[0], size), "block")
    say(result)


async def reopen(folder: str, count: int, size: int) -> None:
    async def once() -> Answer:
        watch = Stopwatch()
        async with Hypercore(folder, durability="none") as core:
            found = await core.get(count >> 1)
            result = watch.figures()
            expect(core.length, count, "length")
            expect(found, block(count >> 1, size), "block")
        return result

    # Each side loads its parts at another moment, so the first opening is timed from the start of the process.
    await once()
    from_start = time.time() - float(os.environ["BENCH_STARTED_AT"])
    again = await once()
    say({**again, "from_start_seconds": from_start})


# ---- two processes ----


async def stdin_lines() -> AsyncIterator[str]:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async for line in reader:
        yield line.decode().strip()


async def serve(folder: str, count: int, size: int, interval_seconds: float) -> None:
    async with Hypercore(folder, durability="none") as core, Swarm("tcp://127.0.0.1:0") as swarm:
        watch = Stopwatch()
        swarm.join(core)
        say({"key": core.key.hex(), "port": int(swarm.addresses[0].rpartition(":")[2])})
        async for line in stdin_lines():
            if line == "stop":
                break
            for index in range(count):
                await asyncio.sleep(interval_seconds)
                made = block(index, size)
                await core.append(made[:8] + time.monotonic_ns().to_bytes(8, "little") + made[16:])
        say(watch.figures())


@asynccontextmanager
async def dialled(folder: str, key: str, port: int) -> AsyncIterator[tuple[Hypercore, Stopwatch]]:
    async with Hypercore(folder, key, durability="none") as core:
        watch = Stopwatch()
        async with Swarm(peers=[f"tcp://127.0.0.1:{port}"]) as swarm:
            swarm.join(core)
            await core.update()
            yield core, watch


async def clone(folder: str, key: str, port: int, count: int, size: int) -> None:
    async with dialled(folder, key, port) as (core, watch):
        await core.download(0, count).done()
        result = watch.figures()
        expect(core.contiguous_length, count, "contiguous length")
        for index in (0, count >> 1, count - 1):
            expect(await core.get(index), block(index, size), "block")
    say(result)


async def follow(folder: str, key: str, port: int, count: int) -> None:
    async with dialled(folder, key, port) as (core, _):
        say({"ready": True})
        latencies = []
        for index in range(count):
            found = await core.get(index)
            latencies.append((time.monotonic_ns() - int.from_bytes(found[8:16], "little")) / 1e9)
    say({"latencies": latencies})


JOBS: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {
    job.__name__: job for job in (fill, append, append_batches, get, reopen, serve, clone, follow)
}


def run(job: Coroutine[Any, Any, None], options: Sequence[str]) -> None:
    if "--uvloop" in options:
        import uvloop

        uvloop.run(job)
    else:
        asyncio.run(job)


def main() -> None:
    *options, text = sys.argv[1:]
    fields = json.loads(text)
    job = JOBS[fields.pop("job")](**fields)
    if "--profile" in options:
        profile = cProfile.Profile()
        profile.runcall(run, job, options)
        print(f"\n{text}", file=sys.stderr)
        pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(10)
    else:
        run(job, options)


if __name__ == "__main__":
    main()

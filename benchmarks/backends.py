"""`python -m benchmarks.backends`: the same log on every backend, each on a real server, and what its requests cost.

Speed, requests and list price, one line a backend. Servers are started for the run; those that are remote in real
life are a local process here, so that the speeds say what our side costs and not how far away a bucket is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hypercore import Hypercore
from hypercore.plugins import open_storage
from hypercore.storage import Storage

KIB: Final = 1024
MIB: Final = 1024 * 1024
GIB: Final = 1024 * MIB

#: List prices of S3 Standard in us-east-1, in dollars; DELETE is free, and so is traffic within the region.
PUT_DOLLARS: Final = 0.005 / 1000
GET_DOLLARS: Final = 0.0004 / 1000
STORED_GIB_MONTH_DOLLARS: Final = 0.023


@dataclass(frozen=True, slots=True)
class Requests:
    """What left this machine for an object store; nothing is known of other backends."""

    puts: int = 0
    gets: int = 0

    @classmethod
    def so_far(cls, storage: Storage) -> Requests:
        counts = getattr(getattr(storage, "client", None), "counts", None)
        return cls() if counts is None else cls(counts.puts + counts.lists, counts.gets)

    def since(self, before: Requests) -> Requests:
        return Requests(self.puts - before.puts, self.gets - before.gets)

    @property
    def dollars(self) -> float:
        return self.puts * PUT_DOLLARS + self.gets * GET_DOLLARS


@dataclass(slots=True)
class Figure:
    """One job on one backend: how much a second, and the requests that one piece or one GiB took."""

    per_second: float
    requests: Requests | None = None
    #: What the requests are divided by, and what that is called.
    per: float = 1
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much work each job does."""

    single_count: int
    in_flight_count: int
    batch_count: int
    read_count: int
    seconds: float


FULL: Final = Scale(single_count=3000, in_flight_count=12_800, batch_count=12, read_count=2000, seconds=4.0)
QUICK: Final = Scale(single_count=200, in_flight_count=1280, batch_count=2, read_count=200, seconds=1.0)

#: 256 blocks of 64 KiB are what the engine puts into one commit.
BATCH_BLOCKS: Final = 256
BLOCK_SIZE: Final = 64 * KIB
IN_FLIGHT: Final = 64


@dataclass(slots=True)
class Place:
    """A backend, and an address for each log in it."""

    name: str
    address: Callable[[str], str]
    figures: dict[str, Figure] = field(default_factory=dict)

    @asynccontextmanager
    async def core(self, log: str, **options: Any) -> AsyncIterator[tuple[Hypercore, Storage]]:
        storage = open_storage(self.address(log))
        async with Hypercore(storage, durability="none", **options) as core:
            yield core, storage


async def timed(storage: Storage, work: Awaitable[int]) -> tuple[int, float, Requests]:
    """Pieces done, seconds, requests."""
    before, began = Requests.so_far(storage), time.perf_counter()
    done = await work
    return done, time.perf_counter() - began, Requests.so_far(storage).since(before)


async def append_one_by_one(core: Hypercore, scale: Scale) -> int:
    end = time.perf_counter() + scale.seconds
    for done in range(scale.single_count):
        if time.perf_counter() > end:
            return done
        await core.append(bytes(KIB))
    return scale.single_count


async def append_in_flight(core: Hypercore, scale: Scale) -> int:
    end = time.perf_counter() + scale.seconds
    done = 0

    async def appender() -> None:
        nonlocal done
        while done < scale.in_flight_count and time.perf_counter() < end:
            done += 1
            await core.append(bytes(KIB))

    await asyncio.gather(*(appender() for _ in range(IN_FLIGHT)))
    return done


async def append_batches(core: Hypercore, scale: Scale) -> int:
    for number in range(scale.batch_count):
        await core.append([random.Random(number).randbytes(BLOCK_SIZE)] * BATCH_BLOCKS)
    return scale.batch_count * BATCH_BLOCKS


async def get_at_random(core: Hypercore, scale: Scale) -> int:
    chance = random.Random(1)
    end = time.perf_counter() + scale.seconds
    for done in range(scale.read_count):
        if time.perf_counter() > end:
            return done
        await core.get(chance.randrange(core.length))
    return scale.read_count


async def read_in_order(core: Hypercore) -> int:
    async for _ in core.create_read_stream():
        pass
    return core.length


async def measure(place: Place, scale: Scale, say: Callable[[str], None]) -> None:
    figures = place.figures
    say("append")
    async with place.core("small") as (core, storage):
        done, seconds, requests = await timed(storage, append_one_by_one(core, scale))
        figures["append 1 KiB, /s"] = Figure(done / seconds, requests, done, "append")
        say("append, 64 in flight")
        done, seconds, requests = await timed(storage, append_in_flight(core, scale))
        figures["64 in flight, /s"] = Figure(done / seconds, requests, done, "append")
    say("append 64 KiB")
    async with place.core("large") as (core, storage):
        done, seconds, requests = await timed(storage, append_batches(core, scale))
        figures["append 64 KiB, MB/s"] = Figure(
            done * BLOCK_SIZE / 1e6 / seconds, requests, done * BLOCK_SIZE / GIB, "GiB"
        )
    say("open")
    storage = open_storage(place.address("large"))
    core = Hypercore(storage, durability="none")
    _, seconds, requests = await timed(storage, opened(core))
    figures["open, ms"] = Figure(seconds * 1000, requests, 1, "open")
    say("get at random")
    done, seconds, requests = await timed(storage, get_at_random(core, scale))
    figures["get 64 KiB at random, /s"] = Figure(done / seconds, requests, done, "get")
    await core.close()
    say("read in order")
    async with place.core("large") as (core, storage):
        done, seconds, requests = await timed(storage, read_in_order(core))
        figures["read in order, MB/s"] = Figure(
            done * BLOCK_SIZE / 1e6 / seconds, requests, done * BLOCK_SIZE / GIB, "GiB"
        )


async def opened(core: Hypercore) -> int:
    await core.ready()
    return 1


def places(stack: ExitStack, folder: Path, only: list[str] | None) -> list[Place]:
    """Every backend, with a server of its own where it needs one."""
    from tests.servers import redis, s3

    def server(kind: redis.Kind) -> redis.RedisServer:
        settings = {"appendonly": "yes", "appendfsync": "everysec"}
        return stack.enter_context(redis.RedisServer(kind, settings))

    def bucket(start: Callable[[], s3.S3Server], client: str) -> Callable[[str], str]:
        prefix = s3.new_prefix()
        found = start()
        return lambda log: found.url(f"{prefix}/{log}", client=client)

    makers: dict[str, Callable[[], Callable[[str], str]]] = {
        "file": lambda: lambda log: str(folder / "file" / log),
        "memory": lambda: lambda log: f"memory:bench-{folder.name}-{log}",
        "Redis 8": lambda: (lambda running: lambda log: running.address(prefix=log))(server("redis")),
        "Valkey 9": lambda: (lambda running: lambda log: running.address(prefix=log))(server("valkey")),
        "SeaweedFS": lambda: bucket(s3.seaweedfs, "boto3"),
        "SeaweedFS, obstore": lambda: bucket(s3.seaweedfs, "obstore"),
        "moto": lambda: bucket(s3.moto, "boto3"),
    }
    return [Place(name, make()) for name, make in makers.items() if not only or name in only]


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(measured: list[Place]) -> list[list[str]]:
    rows = list(measured[0].figures)
    lines = [["", *(place.name for place in measured)]]
    for row in rows:
        lines.append([row, *(number(place.figures[row].per_second) for place in measured)])
        if any(place.figures[row].requests != Requests() for place in measured):
            figure = measured[0].figures[row]
            lines.append([f"  PUT / GET per {figure.unit}", *(asked(place.figures[row]) for place in measured)])
            if figure.unit == "GiB":
                lines.append(["  cost per GiB, $", *(cost(place.figures[row]) for place in measured)])
    return lines


def asked(figure: Figure) -> str:
    requests = figure.requests
    if requests is None or requests == Requests():
        return ""
    return f"{number(requests.puts / figure.per)} / {number(requests.gets / figure.per)}"


def cost(figure: Figure) -> str:
    requests = figure.requests
    return "" if requests is None or requests == Requests() else f"{requests.dollars / figure.per:.5f}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.backends", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a fraction of the work, once: a look, no claim")
    parser.add_argument("--rounds", type=int, help="trials of each job; the median is shown (3, with --quick 1)")
    parser.add_argument("--only", action="append", metavar="NAME", help="only this backend (file, Redis 8, ...)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    arguments = parser.parse_args()
    scale = QUICK if arguments.quick else FULL
    rounds = arguments.rounds or (1 if arguments.quick else 3)
    trials: list[list[Place]] = []
    for turn in range(rounds):
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hypercore-bench-")))
            found = places(stack, folder, arguments.only)
            for place in found:

                def say(job: str, place: Place = place, turn: int = turn) -> None:
                    if sys.stderr.isatty():
                        text = f"round {turn + 1}/{rounds}  {place.name}  {job}"
                        print(text, end="\x1b[K\r", file=sys.stderr, flush=True)

                asyncio.run(measure(place, scale, say))
            trials.append(found)
    measured = trials[0]
    for index, place in enumerate(measured):
        for row, figure in place.figures.items():
            figure.per_second = statistics.median(trial[index].figures[row].per_second for trial in trials)
    lines = table(measured)
    if arguments.json:
        for line in lines[1:]:
            print(json.dumps(dict(zip(["row", *(place.name for place in measured)], line, strict=True))))
        return
    widths = [max(len(cells[column]) for cells in lines) for column in range(len(lines[0]))]
    for cells in lines:
        print("  ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]).rstrip())
    print(
        f"\nMedians of {rounds}, durability none, Python {platform.python_version()}, {os.cpu_count()} cores, servers "
        f"on this machine. List prices: ${PUT_DOLLARS * 1000} for 1000 PUTs, ${GET_DOLLARS * 1000} for 1000 GETs; "
        f"a GiB stored is ${STORED_GIB_MONTH_DOLLARS} a month."
    )


if __name__ == "__main__":
    main()

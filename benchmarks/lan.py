"""`python -m benchmarks.lan`: from cold start to first block, on hosts with nothing but a cable between them.

Network namespaces on this machine, so that only our side of the network is measured; it needs root. With --loss and
--delay the hosts are on a switch that loses frames and delays them.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Final

from hypercore import Hypercore
from tests.lan.hosts import Host, network, rough_network, why_not
from tests.processes import running

#: A peer: says when it has joined, and when it has the first block; monotonic clocks agree among namespaces.
PEER: Final = """
import asyncio, contextlib, sys, time
from hypercore import Hypercore, Swarm

async def main(storage, key=None):
    async with Hypercore(storage, key) as core, Swarm("lan:") as swarm:
        swarm.join(core)
        print(time.monotonic(), flush=True)
        if key is not None:
            await core.get(0)
            print(time.monotonic(), flush=True)
        await asyncio.Event().wait()

with contextlib.suppress(KeyboardInterrupt):
    asyncio.run(main(*sys.argv[1:]))
"""


async def _filled(folder: Path) -> str:
    async with Hypercore(str(folder)) as core:
        await core.append("the first block")
        return core.key.hex()


async def cold_start(hosts: Sequence[Host], folder: Path, *, writer_first: bool) -> tuple[float, float]:
    """Seconds until the last reader has the first block: since its process was started, and since it joined."""
    key = await _filled(folder / "writer")
    async with AsyncExitStack() as stack:
        serve = running(*hosts[0].command(sys.executable, "-c", PEER, folder / "writer"))
        if writer_first:
            await (await stack.enter_async_context(serve)).line()
            await asyncio.sleep(1.5)  # Its announcements are over: the reader has to ask.
        began = time.monotonic()
        if not writer_first:
            await stack.enter_async_context(serve)
        readers = [
            await stack.enter_async_context(
                running(*host.command(sys.executable, "-c", PEER, folder / f"reader{number}", key))
            )
            for number, host in enumerate(hosts[1:])
        ]
        joined = [float(await reader.line()) for reader in readers]
        got = [float(await reader.line()) for reader in readers]
        last = got.index(max(got))
        return got[last] - began, got[last] - joined[last]


@contextmanager
def _hosts(count: int, options: argparse.Namespace, seed: int) -> Iterator[Sequence[Host]]:
    if options.loss or options.delay:
        with rough_network(count, seed=seed, loss=options.loss, delay_seconds=options.delay / 1000) as (hosts, _):
            yield hosts
    else:
        with network(count) as hosts:
            yield hosts


def _percentile(seconds: Sequence[float], percentile: int) -> float:
    return statistics.quantiles(seconds, n=100, method="inclusive")[percentile - 1]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lan", description=__doc__.partition(":")[2])
    parser.add_argument("--runs", type=int, default=20, help="of each row (20)")
    parser.add_argument("--loss", type=float, default=0.0, help="part of all frames that is lost (0)")
    parser.add_argument("--delay", type=float, default=0.0, help="milliseconds that every frame takes (0)")
    options = parser.parse_args()
    if (reason := why_not()) is not None:
        sys.exit(f"this machine forbids network namespaces: {reason}")
    if options.runs < 2:
        sys.exit("--runs is 2 or more")
    print(f"Python {platform.python_version()}, {os.cpu_count()} CPUs, {options.runs} runs; seconds, p50 and p99\n")
    print(f"{'cold start to first block':<44}{'from start of process':>24}{'from join':>20}")
    rows = (
        ("2 hosts, the writer has been there", 2, True),
        ("2 hosts, both start at once", 2, False),
        ("5 hosts start at once, the last of 4 readers", 5, False),
    )
    for title, count, writer_first in rows:
        figures = []
        for number in range(options.runs):
            with tempfile.TemporaryDirectory() as folder, _hosts(count, options, number) as hosts:
                figures.append(asyncio.run(cold_start(hosts, Path(folder), writer_first=writer_first)))
        whole, joined = zip(*figures, strict=True)
        columns = [f"{_percentile(each, 50):.2f} {_percentile(each, 99):.2f}" for each in (whole, joined)]
        print(f"{title:<44}{columns[0]:>24}{columns[1]:>20}", flush=True)


if __name__ == "__main__":
    main()

"""A reader on the local network: finds whoever has the log and prints every block, the new ones as they are written.

    python examples/lan_reader.py KEY [STORAGE]

KEY is what the writer printed; no address is needed. Ctrl-C or SIGTERM stops it.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys

from hypercore import Hypercore, HypercoreError, Swarm


async def main(key: str, storage: str = "./lan-reader-storage") -> None:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    loop.add_signal_handler(signal.SIGTERM, task.cancel if task else sys.exit)
    async with Hypercore(storage, key) as core, Swarm("lan:") as swarm:
        swarm.join(core)
        async for block in core.create_read_stream(live=True):
            print(block.decode(errors="replace"), flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python examples/lan_reader.py KEY [STORAGE]")
    try:
        with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
            asyncio.run(main(*sys.argv[1:]))
    except HypercoreError as error:
        sys.exit(f"{type(error).__name__}: {error}")

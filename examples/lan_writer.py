"""A writer on the local network: each line of standard input becomes a block.

    python examples/lan_writer.py [STORAGE]

Prints the key, which is all that a reader on the same network needs. Ctrl-C or SIGTERM stops it.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys

from hypercore import Hypercore, HypercoreError, Swarm


async def main(storage: str = "./lan-writer-storage") -> None:
    loop, task, lines = asyncio.get_running_loop(), asyncio.current_task(), asyncio.StreamReader()
    loop.add_signal_handler(signal.SIGTERM, task.cancel if task else sys.exit)
    async with Hypercore(storage) as core, Swarm("lan:") as swarm:
        swarm.join(core)
        print(core.key.hex(), flush=True)
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        async for line in lines:
            await core.append(line.rstrip(b"\n"))
        await asyncio.Event().wait()


if __name__ == "__main__":
    try:
        with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
            asyncio.run(main(*sys.argv[1:]))
    except HypercoreError as error:
        sys.exit(f"{type(error).__name__}: {error}")

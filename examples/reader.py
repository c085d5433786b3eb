"""A reader: follows somebody's log and prints every new block.

    python examples/reader.py KEY [ADDRESS] [STORAGE]

KEY is what the writer printed. Every block is verified against it, and kept in STORAGE. When the writer goes away the
reader waits for it to come back; Ctrl-C or SIGTERM stops it.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys

from hypercore import Hypercore, HypercoreError, Swarm


async def main(key: str, address: str = "tcp://127.0.0.1:4977", storage: str = "./reader-storage") -> None:
    stop_on_sigterm()
    async with Hypercore(storage, key) as core, Swarm(peers=[address]) as swarm:
        swarm.join(core)
        await core.update()
        for error in swarm.dial_errors.values():
            print(f"{error}; dialling again and again", file=sys.stderr)
        print(f"Skipping {core.length} earlier blocks...", flush=True)
        async for block in core.create_read_stream(start=core.length, live=True):
            print(block.decode(errors="replace"), flush=True)


def stop_on_sigterm() -> None:
    """SIGTERM ends the program as Ctrl-C does: everything is closed in good order."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python examples/reader.py KEY [ADDRESS] [STORAGE]")
    try:
        with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
            asyncio.run(main(*sys.argv[1:]))
    except HypercoreError as error:
        sys.exit(f"{type(error).__name__}: {error}")

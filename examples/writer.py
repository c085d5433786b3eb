"""A writer: each line of standard input becomes a block, and peers may fetch them over TCP.

    python examples/writer.py [STORAGE] [ADDRESS]

Prints the key that readers need. When the input ends it goes on serving; Ctrl-C or SIGTERM stops it.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import threading
from collections.abc import AsyncIterator

from hypercore import Hypercore, HypercoreError, Swarm


async def main(storage: str = "./writer-storage", address: str = "tcp://127.0.0.1:4977") -> None:
    stop_on_sigterm()
    async with Hypercore(storage) as core, Swarm(address) as swarm:
        swarm.join(core)
        print(core.key.hex(), *swarm.addresses, sep="\n", flush=True)
        async for line in stdin_lines():
            await core.append(line)
        await asyncio.Event().wait()


async def stdin_lines() -> AsyncIterator[bytes]:
    """Lines without their newlines, as they are typed.

    A thread reads them, and a daemon, because nothing can wake one that waits for a terminal. It waits until its line
    was taken before it reads on, so a long file does not pile up here.
    """
    loop, lines = asyncio.get_running_loop(), asyncio.Queue[bytes | None](maxsize=1)

    def read() -> None:
        with open(0, "rb", closefd=False) as stdin:
            for line in stdin:
                asyncio.run_coroutine_threadsafe(lines.put(line.rstrip(b"\n")), loop).result()
        asyncio.run_coroutine_threadsafe(lines.put(None), loop).result()

    threading.Thread(target=read, daemon=True).start()
    while (line := await lines.get()) is not None:
        yield line


def stop_on_sigterm() -> None:
    """SIGTERM ends the program as Ctrl-C does: everything is closed in good order."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


if __name__ == "__main__":
    try:
        with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
            asyncio.run(main(*sys.argv[1:]))
    except HypercoreError as error:
        sys.exit(f"{type(error).__name__}: {error}")

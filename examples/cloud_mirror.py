"""A mirror in the cloud: keeps somebody's log in a bucket, and serves readers from there.

    python examples/writer.py                            # on a laptop; prints KEY
    python examples/cloud_mirror.py KEY 's3://bucket/{key}' [SOURCE] [LISTEN]
    node examples/node_reader.js KEY 4978                # anybody, also when the laptop is off

SOURCE is the writer's address (tcp://127.0.0.1:4977), LISTEN the mirror's own (tcp://127.0.0.1:4978). Every block is
verified before it goes to the bucket. Kill the mirror at any moment: started again, it goes on where it was. Ctrl-C
or SIGTERM stops it. `hypercore mirror --help` is the same with more options.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys

from hypercore import HypercoreError, Mirror


async def main(
    key: str, storage: str, source: str = "tcp://127.0.0.1:4977", listen: str = "tcp://127.0.0.1:4978"
) -> None:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    loop.add_signal_handler(signal.SIGTERM, task.cancel if task else sys.exit)
    async with Mirror(storage, [key], sources=[source], listen=[listen]) as mirror:
        print("readers dial", *mirror.addresses, flush=True)
        told: list[object] = []
        while True:
            status = mirror.status()
            trouble = [*filter(None, [*(core.error for core in status.cores), *status.sources.values()])]
            if told != [status.have, status.want, *trouble]:
                told = [status.have, status.want, *trouble]
                print(f"{status.have} of {status.want} blocks, {status.stored_bytes} bytes", *trouble, flush=True)
            await asyncio.sleep(0.5)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: python examples/cloud_mirror.py KEY STORAGE [SOURCE] [LISTEN]")
    try:
        with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
            asyncio.run(main(*sys.argv[1:]))
    except HypercoreError as error:
        sys.exit(f"{type(error).__name__}: {error}")

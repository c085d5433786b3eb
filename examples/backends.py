"""One program, any backend: the address alone says where a log lies.

    python examples/backends.py [ADDRESS]...

for instance ./log memory: 'redis://127.0.0.1:6379/0?prefix=log' 's3://bucket/log?endpoint_url=http://127.0.0.1:9000'.
Without any it uses a folder and memory. Each run appends three blocks to the log at each ADDRESS.
"""

from __future__ import annotations

import asyncio
import sys

from hypercore import Hypercore, HypercoreError


async def main(*addresses: str) -> None:
    for address in addresses:
        async with Hypercore(address) as core:
            await core.append([b"one", b"two", b"three"])
            print(f"{core.length} blocks, the last is {await core.get(core.length - 1)!r}: {core}")


if __name__ == "__main__":
    try:
        asyncio.run(main(*(sys.argv[1:] or ["./backends-storage", "memory:"])))
    except HypercoreError as error:
        sys.exit(f"{type(error).__name__}: {error}")

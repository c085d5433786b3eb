"""Step 1: a log of your own.

    python examples/step_1.py [STORAGE]

Run it again: the log is still there, and grows.
"""

from __future__ import annotations

import asyncio
import sys

from hypercore import Hypercore, HypercoreError


async def main(storage: str = "./first-log") -> None:
    # An empty storage becomes a new log; its secret key stays in there.
    async with Hypercore(storage) as core:
        print(f"key     {core.key.hex()}")
        print(f"length  {core.length}")

        # One block, and then two more that are signed and stored together or not at all.
        await core.append(b"hello")
        await core.append([b"and", b"goodbye"])

        # Reading checks the block against the Merkle tree that was signed.
        for index in range(core.length - 3, core.length):
            print(f"block {index} is {await core.get(index)!r}")
        print(f"length  {core.length} blocks, {core.byte_length} bytes")


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:2]))
    except HypercoreError as error:
        sys.exit(f"{type(error).__name__}: {error}")

"""Step 2: somebody else's copy, of which only what is read is fetched.

    python examples/step_2.py

Both sides live in this program and are connected by a pipe; over TCP or between machines nothing else changes.
"""

from __future__ import annotations

import asyncio

from hypercore import Hypercore, NotWritableError, Swarm


async def main() -> None:
    async with Hypercore("memory:") as origin, Swarm("pipe:step-2") as server:
        await origin.append([f"block number {index}" for index in range(1000)])
        server.join(origin)

        # The key is all that a reader needs: it says whom to believe, not whom to ask.
        async with Hypercore("memory:", origin.key) as clone, Swarm(peers=["pipe:step-2"]) as swarm:
            swarm.join(clone)
            await clone.update()
            info = await clone.info()
            print(f"the clone knows of {info.length} blocks and holds {info.stored_blocks}")

            for index in (7, 500, 999):
                print(f"block {index} is {await clone.get(index)!r}")
            info = await clone.info()
            print(f"the clone knows of {info.length} blocks and holds {info.stored_blocks}")

            try:
                await clone.append(b"not mine to say")
            except NotWritableError as error:
                print(f"the clone cannot be appended to: {error}")


if __name__ == "__main__":
    asyncio.run(main())

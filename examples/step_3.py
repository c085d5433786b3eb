"""Step 3: live updates.

    python examples/step_3.py

A reader that follows a log gets each block as soon as it was appended.
"""

from __future__ import annotations

import asyncio

from hypercore import Appended, Hypercore, Swarm


async def main() -> None:
    async with Hypercore("memory:") as origin, Swarm("pipe:step-3") as server:
        await origin.append("from before")
        server.join(origin)

        async with Hypercore("memory:", origin.key) as clone, Swarm(peers=["pipe:step-3"]) as swarm:
            swarm.join(clone)
            await clone.update()
            print(f"Skipping {clone.length} earlier blocks...")
            watching = asyncio.create_task(watch(clone))

            # A live stream has no end: it waits for the next block.
            blocks = clone.create_read_stream(start=clone.length, live=True)
            for word in ("one", "two", "three"):
                await origin.append(word)
                block = await anext(blocks)
                print(f"read live: {block.decode()}")
            watching.cancel()


async def watch(core: Hypercore) -> None:
    """What happens to the log can be followed too, without reading a block."""
    async for event in core.events():
        if isinstance(event, Appended):
            print(f"the log has {event.length} blocks now")


if __name__ == "__main__":
    asyncio.run(main())

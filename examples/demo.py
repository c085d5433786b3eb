"""The main job, end to end: one process writes a log, another one clones it over TCP and follows it live.

    python examples/demo.py

The writer appends the lines of a real text, the project's licence, in a temporary folder and serves them. The reader
is given the key and the address and nothing else, verifies every block, and shows three more that arrive live.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
import time
from pathlib import Path

from hypercore import Hypercore, Swarm

TEXT = Path(__file__).parent.parent / "LICENSE"
LIVE_LINES = ("This line was typed a moment ago.", "So was this one.", "Every block is checked before it is shown.")
BAR_WIDTH = 40
REDRAW_SECONDS = 0.05


async def write(folder: str) -> None:
    """The writer's process: says its key and address, then makes a block of each line that it is told."""
    async with Hypercore(folder) as core, Swarm("tcp://127.0.0.1:0") as swarm:
        swarm.join(core)
        async with core.create_write_stream() as stream:
            for line in TEXT.read_bytes().splitlines():
                await stream.write(line)
        print(core.key.hex(), swarm.addresses[0], flush=True)
        while line := await asyncio.to_thread(sys.stdin.buffer.readline):
            await core.append(line.rstrip(b"\n"))


async def demo(folder: str) -> None:
    """The reader's process, which starts the writer's."""
    command = (sys.executable, __file__, "write", f"{folder}/writer")
    pipe = asyncio.subprocess.PIPE
    writer = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    assert writer.stdin is not None
    assert writer.stdout is not None
    try:
        key, address = (await writer.stdout.readline()).decode().split()
        print(f"writer   process {writer.pid} appended {TEXT.name} line by line, and serves it at {address}")
        print(f"key      {key}")
        await read(f"{folder}/reader", key, address, writer.stdin)
    finally:
        writer.stdin.close()  # At the end of its input the writer is done.
        await writer.wait()


async def read(folder: str, key: str, address: str, typewriter: asyncio.StreamWriter) -> None:
    began = time.monotonic()
    async with Hypercore(folder, key) as core, Swarm(peers=[address]) as swarm:
        swarm.join(core)
        await core.update()
        await clone(core)
        for index in range(1, 6):
            print(f"  {index}  {(await core.get(index)).decode()}")
        print("  ...")

        blocks = core.create_read_stream(start=core.length, live=True)
        for line in LIVE_LINES:
            sent = time.monotonic()
            typewriter.write(f"{line}\n".encode())
            block = await anext(blocks)
            print(f"  {core.length - 1}  {block.decode()}  (live, after {1000 * (time.monotonic() - sent):.1f} ms)")

        stored = [await core.get(index, wait=False) for index in range(core.length)]
        assert stored == TEXT.read_bytes().splitlines() + [line.encode() for line in LIVE_LINES]
        seconds = time.monotonic() - began
        print(f"{core.length} blocks, {core.byte_length:,} bytes, all of them verified, in {seconds:.2f} seconds")


async def clone(core: Hypercore) -> None:
    """Fetch everything that is there, behind a bar."""
    download, is_terminal = core.download(0, core.length), sys.stdout.isatty()
    while True:
        have, want = download.progress.have, download.progress.want
        bar = "#" * (BAR_WIDTH * have // max(want, 1))
        line = f"reader   [{bar:-<{BAR_WIDTH}}] {have} of {want} blocks"
        if download.is_done:
            print(f"\r{line}" if is_terminal else line)
            return
        if is_terminal:
            print(f"\r{line}", end="", flush=True)
        with contextlib.suppress(TimeoutError):
            await download.done(timeout=REDRAW_SECONDS)


async def main() -> None:
    if sys.argv[1:2] == ["write"]:
        await write(sys.argv[2])
        return
    with tempfile.TemporaryDirectory(prefix="hypercore-demo-") as folder:
        await demo(folder)


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        sys.exit(1)

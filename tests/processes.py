"""Runs programs as a user does: in processes of their own, killed at the end of the test whatever happens."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hypercore import Hypercore
from tests.running import run

HYPERCORE = (sys.executable, "-m", "hypercore")
#: The command as it runs where uvloop is not installed.
HYPERCORE_WITHOUT_UVLOOP = (
    sys.executable,
    "-c",
    "import sys; sys.modules['uvloop'] = None; from hypercore.cli import main; sys.exit(main())",
)
EXAMPLES = Path(__file__).parent.parent / "examples"
#: Generous for a slow shared machine; a program that needs it all is stuck.
TIMEOUT_SECONDS = 60.0


class Done(NamedTuple):
    """What a program left behind."""

    code: int
    output: bytes
    errors: str

    def json(self) -> list[Any]:
        """The objects that it printed, one a line."""
        return [json.loads(line) for line in self.output.splitlines()]


def hypercore(*arguments: str | Path, given: bytes = b"", env: dict[str, str] | None = None) -> Done:
    """Run the command to its end; `given` is its standard input."""
    return program(*HYPERCORE, *arguments, given=given, env=env)


def program(*command: str | Path, given: bytes = b"", env: dict[str, str] | None = None) -> Done:
    """Run any program to its end."""
    done = subprocess.run(
        [str(part) for part in command], input=given, env=env, capture_output=True, timeout=TIMEOUT_SECONDS
    )
    return Done(done.returncode, done.stdout, done.stderr.decode())


class Program:
    """A program that goes on while the test looks at it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def line(self) -> str:
        """Its next line of output; empty at the end."""
        assert self.process.stdout is not None
        return (await self.process.stdout.readline()).decode().removesuffix("\n")

    async def json(self) -> Any:
        """Its next line of output, decoded."""
        return json.loads(await self.line())

    async def type(self, text: str) -> None:
        """Give it some input."""
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())
        await self.process.stdin.drain()

    async def done(self, number: signal.Signals | None = None) -> Done:
        """Send it a signal if one is given, and wait until it has ended."""
        if number is not None:
            self.process.send_signal(number)
        output, errors = await self.process.communicate()
        assert self.process.returncode is not None
        return Done(self.process.returncode, output, errors.decode())


@asynccontextmanager
async def running(*command: str | Path) -> AsyncIterator[Program]:
    """A program in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # A job in the background has it so, and programs inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*map(str, command), stdin=pipe, stdout=pipe, stderr=pipe)
    try:
        yield Program(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def new_log(folder: Path, blocks: Sequence[str] = ()) -> str:
    """A log with some blocks; its key."""

    async def make() -> str:
        async with Hypercore(str(folder)) as core:
            if blocks:
                await core.append(list(blocks))
            return core.key.hex()

    return run(make())

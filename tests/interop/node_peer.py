"""Drives Node's hypercore in a process of its own: the counterpart of `node/peer.js`.

    async with await NodePeer.start(10, "serve", storage=folder, count=100, size=1024) as peer:
        await peer.command("append", text="hello")

Its commands and their parameters are listed in `peer.js`.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any, Self

NODE_FOLDER = Path(__file__).parent / "node"
#: A line holds a block of 15 MiB as hex, and more.
LINE_SIZE_MAX = 64 * 1024 * 1024
COMMAND_TIMEOUT_SECONDS = 30.0

_RAMP = bytes(index & 255 for index in range(512))


class NodeMissingError(Exception):
    """Node or its packages are not here."""


class NodePeerError(Exception):
    """A command failed in Node; `code` is the error's code there, such as `SESSION_NOT_WRITABLE`."""

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(f"{message} ({code})" if code else message)
        self.code = code


def filled_block(index: int, size: int) -> bytes:
    """The block that `append` with `count` and `size` makes: a ramp from `index` on, and the index before it."""
    start = index & 255
    block = (_RAMP[start : start + 256] * (size // 256 + 1))[:size]
    return block if size < 4 else index.to_bytes(4, "little") + block[4:]


class NodePeer:
    """One Node process. Made by `start`; leaving its context stops it."""

    def __init__(self, process: asyncio.subprocess.Process, name: str) -> None:
        self._process = process
        self._name = name
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._events: deque[dict[str, Any]] = deque()
        self._news = asyncio.Condition()
        self._ended = False
        self._last_id = 0
        self._reader = asyncio.ensure_future(self._read())
        #: What it said when it was ready: the key, the port and so on.
        self.ready: dict[str, Any] = {}

    @classmethod
    async def start(
        cls,
        major: int,
        mode: str,
        *,
        storage: str | Path | None = None,
        timeout_seconds: float = COMMAND_TIMEOUT_SECONDS,
        **options: object,
    ) -> Self:
        """Run hypercore 10 or 11 as `serve`, `fetch` or `folder`, until it says that it is ready."""
        arguments = [mode, "--major", str(major)]
        for name, value in {"storage": storage, **options}.items():
            if value is not None:
                arguments += [f"--{name}", json.dumps(value) if isinstance(value, bool | dict) else str(value)]
        process = await asyncio.create_subprocess_exec(
            _node(major),
            str(NODE_FOLDER / "peer.js"),
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=LINE_SIZE_MAX,
        )
        peer = cls(process, f"Node's hypercore {major} ({mode})")
        try:
            peer.ready = await peer.event("ready", timeout_seconds=timeout_seconds)
        except BaseException:
            await peer.stop()
            raise
        return peer

    @property
    def port(self) -> int:
        """Where it listens, as `serve` does from the start."""
        return int(self.ready["port"])

    @property
    def key(self) -> bytes:
        """The key of the core that it opened at the start."""
        return bytes.fromhex(self.ready["key"])

    async def command(
        self, command: str, *, timeout_seconds: float = COMMAND_TIMEOUT_SECONDS, **parameters: Any
    ) -> dict[str, Any]:
        """The answer. Raises `NodePeerError` when Node says it failed, or is no more, or does not answer in time."""
        if self._ended:
            raise NodePeerError(f"{self._name} has ended")
        self._last_id += 1
        number = self._last_id
        answered: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[number] = answered
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"id": number, "command": command, **parameters}).encode() + b"\n")
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._process.stdin.drain()
                answer = await answered
        except TimeoutError as error:
            message = f"{self._name} did not answer {command} {parameters} within {timeout_seconds:g} s"
            raise NodePeerError(message) from error
        finally:
            del self._answers[number]
        if "error" in answer:
            raise NodePeerError(f"{command}: {answer['error']}", answer.get("code"))
        return answer

    async def event(
        self, kind: str, *, timeout_seconds: float = COMMAND_TIMEOUT_SECONDS, **members: Any
    ) -> dict[str, Any]:
        """The next event of this kind (and with these members) that was not given yet; waits for it."""

        def wanted() -> dict[str, Any] | None:
            for event in self._events:
                if event["event"] == kind and members.items() <= event.items():
                    return event
            return None

        try:
            async with asyncio.timeout(timeout_seconds), self._news:
                await self._news.wait_for(lambda: self._ended or wanted() is not None)
        except TimeoutError as error:
            raise NodePeerError(f"{self._name}: no event {kind} {members} within {timeout_seconds:g} s") from error
        found = wanted()
        if found is None:
            raise NodePeerError(f"{self._name} ended before an event {kind} {members}; it said {list(self._events)}")
        self._events.remove(found)
        return found

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The events of this kind that came so far and were not given yet; they stay."""
        return [event for event in self._events if event["event"] == kind]

    def forget_events(self) -> None:
        """Drop what was not given yet, before the process is used for something else."""
        self._events.clear()

    async def stop(self) -> None:
        """End it in order: its cores are closed. Twice is fine."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_SECONDS):
                await self._reader
                await self._process.wait()
        except TimeoutError:
            await self.kill()

    async def kill(self) -> None:
        """End it as a power failure does to a process: nothing is closed."""
        if self._process.returncode is None:
            self._process.kill()
        await self._reader
        await self._process.wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            try:
                message = json.loads(line)
            except ValueError:
                message = {"event": "output", "line": line.decode(errors="replace").rstrip()}
            if "event" in message:
                async with self._news:
                    self._events.append(message)
                    self._news.notify_all()
                continue
            answered = self._answers.get(message.pop("id"))
            if answered is not None and not answered.done():
                answered.set_result(message)
        self._ended = True
        for answered in self._answers.values():
            if not answered.done():
                said = [event for event in self._events if event["event"] in ("crash", "output")]
                answered.set_result({"error": f"{self._name} ended; it said {said}"})
        async with self._news:
            self._news.notify_all()


def _node(major: int) -> str:
    node = shutil.which("node")
    if node is None:
        raise NodeMissingError("node is not installed; `make interop` needs it (on Debian: apt-get install nodejs npm)")
    if not (NODE_FOLDER / f"hypercore{major}" / "node_modules" / "hypercore").is_dir():
        raise NodeMissingError(f"Node's hypercore {major} is not installed; `make interop` installs it")
    return node

"""An HTTP proxy that fails on purpose, in front of any server: what a network and a store in trouble do.

    async with Proxy(server.endpoint_url) as proxy:
        proxy.script(Answer(503, "SlowDown"), times=2)                    # the next two requests
        proxy.script(LoseAnswer(), when=lambda seen: seen.method == "PUT")  # then the first PUT
        client = BotoClient(bucket, endpoint_url=proxy.url)
        ...
        assert [seen.status for seen in proxy.seen] == [503, 503, None, 412]

It counts what really crossed the wire. The Host header is forwarded as it is, because signatures cover it. Without a
server behind it (`Proxy()`), whatever no script answers is answered 502.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

HEAD_BYTES_MAX = 1 << 20


@dataclass(slots=True)
class Seen:
    """One request that arrived, and what became of it."""

    number: int
    method: str
    #: What was asked for, as it was written.
    target: str
    #: After the bucket, percent-decoded.
    key: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes = field(repr=False)
    #: Which connection it came on.
    connection: int = 0
    #: Whether the server behind got it and answered.
    forwarded: bool = False
    #: What the client was told; None: nothing, or not all of it.
    status: int | None = None
    answer_bytes: int = 0

    @property
    def conditions(self) -> dict[str, str]:
        """Its conditional headers."""
        return {name: value for name, value in self.headers.items() if name.startswith("if-")}


@dataclass(slots=True)
class Reply:
    """An answer on its way back."""

    status: int
    head: bytes
    body: bytes


class DropConnectionError(Exception):
    """The client hears nothing more."""


class Fault:
    """Something that goes wrong with one request."""

    async def before(self, seen: Seen) -> Reply | None:
        """Before the server behind gets it; a reply keeps it from getting there."""
        return None

    async def after(self, seen: Seen, reply: Reply) -> Reply:
        """When the server behind has answered."""
        return reply


@dataclass(slots=True)
class Answer(Fault):
    """An error of the store, before it did anything."""

    status: int
    code: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None

    async def before(self, seen: Seen) -> Reply | None:
        body = self.body
        if body is None:
            body = f"<?xml version='1.0'?><Error><Code>{self.code}</Code><Message>scripted</Message></Error>".encode()
        headers = {"Content-Length": str(len(body)), "Content-Type": "application/xml"} | self.headers
        lines = [f"HTTP/1.1 {self.status} Scripted", *(f"{name}: {value}" for name, value in headers.items())]
        return Reply(self.status, "\r\n".join([*lines, "", ""]).encode(), b"" if seen.method == "HEAD" else body)


class Reset(Fault):
    """The connection breaks before the store hears of it."""

    async def before(self, seen: Seen) -> Reply | None:
        raise DropConnectionError


class LoseAnswer(Fault):
    """The store does it, and the answer never arrives."""

    async def after(self, seen: Seen, reply: Reply) -> Reply:
        raise DropConnectionError


class Hold(Fault):
    """It waits until the test lets it go: before the store hears of it, or (`answered`) when it has answered."""

    def __init__(self, *, answered: bool = False) -> None:
        self._answered = answered
        self._go = asyncio.Event()
        self._arrived = asyncio.Semaphore(0)

    async def arrived(self, count: int = 1) -> None:
        """Wait until so many more requests are held."""
        for _ in range(count):
            await self._arrived.acquire()

    def release(self) -> None:
        """Let all go on, and whoever comes later."""
        self._go.set()

    async def before(self, seen: Seen) -> Reply | None:
        if not self._answered:
            self._arrived.release()
            await self._go.wait()
        return None

    async def after(self, seen: Seen, reply: Reply) -> Reply:
        if self._answered:
            self._arrived.release()
            await self._go.wait()
        return reply


@dataclass(slots=True)
class Truncate(Fault):
    """The connection ends after so many bytes of the body."""

    size: int

    async def after(self, seen: Seen, reply: Reply) -> Reply:
        return Reply(reply.status, reply.head, reply.body[: self.size])


@dataclass(slots=True)
class FlipBit(Fault):
    """One bit of the body is another one."""

    offset: int = 0

    async def after(self, seen: Seen, reply: Reply) -> Reply:
        body = bytearray(reply.body)
        body[self.offset] ^= 1
        return Reply(reply.status, reply.head, bytes(body))


class StripConditions(Fault):
    """The store never hears of conditions, as one that ignores them. It must not check signatures."""

    async def before(self, seen: Seen) -> Reply | None:
        for name in seen.conditions:
            del seen.headers[name]
        return None


@dataclass(slots=True)
class _Script:
    fault: Fault
    when: Callable[[Seen], bool]
    times: int | None


class Proxy:
    """See the module."""

    def __init__(self, upstream_url: str | None = None) -> None:
        self._upstream = urlsplit(upstream_url) if upstream_url is not None else None
        self._scripts: list[_Script] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections = 0
        self._at_once = 0
        self._answered = asyncio.Condition()
        self.url = ""
        self.seen: list[Seen] = []
        #: How many requests were under way together, at most.
        self.most_at_once = 0

    def script(self, fault: Fault, *, when: Callable[[Seen], bool] = lambda seen: True, times: int | None = 1) -> None:
        """The next `times` requests (all, if None) of which `when` is true have this fault; the first script counts."""
        self._scripts.append(_Script(fault, when, times))

    def clear(self) -> None:
        """Nothing goes wrong any more."""
        self._scripts.clear()

    async def answered(self, count: int = 1) -> None:
        """Wait until so many requests have been answered."""
        async with self._answered:
            await self._answered.wait_for(lambda: sum(seen.status is not None for seen in self.seen) >= count)

    def of(self, method: str) -> list[Seen]:
        """The requests of this method."""
        return [seen for seen in self.seen if seen.method == method]

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=HEAD_BYTES_MAX)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._connections += 1
        connection = self._connections
        try:
            while (seen := await self._receive(reader, connection)) is not None:
                self._at_once += 1
                self.most_at_once = max(self.most_at_once, self._at_once)
                try:
                    reply = await self._reply(seen)
                finally:
                    self._at_once -= 1
                writer.write(reply.head + reply.body)
                await writer.drain()
                seen.answer_bytes = len(reply.body)
                if seen.method != "HEAD" and _body_size(_headers(reply.head)) not in (None, len(reply.body)):
                    break
                seen.status = reply.status
                async with self._answered:
                    self._answered.notify_all()
        except (DropConnectionError, ConnectionError, asyncio.IncompleteReadError):
            writer.transport.abort()
        except asyncio.CancelledError:
            writer.transport.abort()  # The test is over.
        finally:
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _receive(self, reader: asyncio.StreamReader, connection: int) -> Seen | None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return None
        method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
        headers = _headers(head)
        body = await reader.readexactly(_body_size(headers) or 0)
        parts = urlsplit(target)
        key = unquote(parts.path.removeprefix("/").partition("/")[2])
        seen = Seen(len(self.seen), method, target, key, parse_qs(parts.query), headers, body, connection)
        self.seen.append(seen)
        return seen

    async def _reply(self, seen: Seen) -> Reply:
        fault = self._fault(seen)
        reply = await fault.before(seen)
        if reply is not None:
            return reply
        reply = await self._forward(seen)
        seen.forwarded = True
        return await fault.after(seen, reply)

    def _fault(self, seen: Seen) -> Fault:
        for script in self._scripts:
            if script.times != 0 and script.when(seen):
                if script.times is not None:
                    script.times -= 1
                return script.fault
        return Fault()

    async def _forward(self, seen: Seen) -> Reply:
        if self._upstream is None:
            reply = await Answer(502).before(seen)
            assert reply is not None
            return reply
        reader, writer = await asyncio.open_connection(
            self._upstream.hostname, self._upstream.port, limit=HEAD_BYTES_MAX
        )
        try:
            lines = [f"{seen.method} {seen.target} HTTP/1.1", "connection: close"]
            lines += [f"{name}: {value}" for name, value in seen.headers.items() if name != "connection"]
            writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + seen.body)
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            status = int(head.split(b" ", 2)[1])
            headers = _headers(head)
            body = b""
            if seen.method != "HEAD" and status not in (204, 304):
                if headers.get("transfer-encoding") == "chunked":
                    body = await _chunks(reader)
                else:
                    size = _body_size(headers)
                    body = await (reader.read() if size is None else reader.readexactly(size))
            return Reply(status, _kept_alive(head, len(body), seen.method), body)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


def _headers(head: bytes) -> dict[str, str]:
    """The headers of a head; names in small letters."""
    pairs = (line.partition(":") for line in head.decode("latin-1").split("\r\n")[1:] if line)
    return {name.lower(): value.strip() for name, _, value in pairs}


def _body_size(headers: dict[str, str]) -> int | None:
    return int(headers["content-length"]) if "content-length" in headers else None


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    parts = []
    while size := int((await reader.readline()).partition(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        await reader.readline()
    return b"".join(parts)


def _kept_alive(head: bytes, size: int, method: str) -> bytes:
    """The head of the server's answer as that of one whose length is known and whose connection stays."""
    dropped = ["connection", "transfer-encoding"] + (["content-length"] if method != "HEAD" else [])
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    kept = [line for line in lines if line.partition(":")[0].lower() not in dropped]
    if method != "HEAD":
        kept.append(f"Content-Length: {size}")
    return "\r\n".join(["HTTP/1.1 " + first.partition(" ")[2], *kept, "", ""]).encode("latin-1")

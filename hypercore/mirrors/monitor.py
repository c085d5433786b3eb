"""Metrics and health over HTTP: the smallest server that a scraper and a load balancer need, over any transport.

It answers `GET` of two paths and closes the connection. What it is sent is bounded in bytes and in time, so that nobody
who finds the port can hold the mirror up. It must not know how a mirror works, only what it says of itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

from hypercore.errors import OptionError, TransportError
from hypercore.mirrors.status import MirrorStatus
from hypercore.plugins import open_transport
from hypercore.transport import ByteStream, Listener, Transport

#: A request is at most this many bytes; a scraper's has some hundreds.
REQUEST_SIZE: Final = 8192
#: From the connection to the last byte of the answer.
REQUEST_SECONDS: Final = 5.0
#: Requests at once; further connections are closed as they come.
MOST_REQUESTS: Final = 16

_HOST_AND_PORT: Final = re.compile(r"(?:http|tcp)://(?P<url>[^/?#]+)/?|(?P<plain>\[[^]]*\]:\d+|[^:/]*:\d+)")
_REQUEST: Final = re.compile(rb"([A-Z]+) (/[^ \r\n]*) HTTP/1\.[01]\r\n")

#: Status, content type, body.
Answer = tuple[int, str, bytes]
_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


class Monitor:
    """Serves `/metrics` at one address and `/health` at another, or both at one."""

    def __init__(
        self, status: Callable[[], MirrorStatus], *, metrics: str | None = None, health: str | None = None
    ) -> None:
        self._status = status
        self._metrics, self._health = metrics, health
        self._listeners: list[Listener] = []
        self._transports: list[Transport] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = 0

    async def start(self) -> None:
        """Listen. Raises `TransportError`, and `MissingDriverError` for metrics without prometheus-client."""
        routes: dict[str, dict[str, Callable[[], Answer]]] = {}
        if self._metrics is not None:
            from hypercore.mirrors.metrics import exposition  # Only whoever wants metrics needs the library.

            routes.setdefault(_transport_address(self._metrics), {})["/metrics"] = exposition(self._status)
        if self._health is not None:
            routes.setdefault(_transport_address(self._health), {})["/health"] = self._answer_health
        try:
            for address, paths in routes.items():
                transport = open_transport(address)
                self._transports.append(transport)
                listener = await transport.listen(address)
                self._listeners.append(listener)
                self._spawn(self._accept(listener, paths))
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Close. Twice is fine."""
        for listener in self._listeners:
            await listener.aclose()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for transport in self._transports:
            await transport.aclose()

    @property
    def addresses(self) -> list[str]:
        return [address for listener in self._listeners for address in listener.addresses]

    def _answer_health(self) -> Answer:
        status = self._status()
        body = {
            "status": "failing" if status.problems else "ok",
            "problems": status.problems,
            "cores": len(status.cores),
            "have": status.have,
            "want": status.want,
            "full": status.is_full,
        }
        return 503 if status.problems else 200, "application/json", json.dumps(body).encode() + b"\n"

    # ---- HTTP ----

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: Listener, paths: Mapping[str, Callable[[], Answer]]) -> None:
        async for stream in listener:
            if self._open >= MOST_REQUESTS:
                await stream.aclose()
            else:
                self._open += 1
                self._spawn(self._serve(stream, paths))

    async def _serve(self, stream: ByteStream, paths: Mapping[str, Callable[[], Answer]]) -> None:
        try:
            with contextlib.suppress(TransportError, TimeoutError):
                async with asyncio.timeout(REQUEST_SECONDS):
                    head = await _read_head(stream)
                    if head:
                        await stream.send(_encode(*_answer(head, paths)))
        finally:
            self._open -= 1
            await stream.aclose()


async def _read_head(stream: ByteStream) -> bytes:
    """A request up to its empty line; what is longer than it may be comes without that."""
    head = b""
    while b"\r\n\r\n" not in head and len(head) <= REQUEST_SIZE:
        data = await stream.receive()
        if not data:
            return b""
        head += data
    return head


def _answer(head: bytes, paths: Mapping[str, Callable[[], Answer]]) -> tuple[Answer, bool]:
    """What is answered, and whether its body is sent."""
    if head.find(b"\r\n\r\n", 0, REQUEST_SIZE) < 0:
        return _plain(431), True
    request = _REQUEST.match(head)
    if request is None:
        return _plain(400), True
    method, target = request[1].decode(), request[2].decode(errors="replace")
    answer = paths.get(target.partition("?")[0])
    if answer is None:
        return _plain(404, f"there is {' and '.join(paths)}"), True
    if method not in ("GET", "HEAD"):
        return _plain(405), True
    try:
        return answer(), method == "GET"
    except Exception as error:
        asyncio.get_running_loop().call_exception_handler({"message": f"{target} failed", "exception": error})
        return _plain(500), True


def _plain(code: int, text: str = "") -> Answer:
    return code, "text/plain; charset=utf-8", (text or _REASONS[code]).encode() + b"\n"


def _encode(answer: Answer, with_body: bool) -> bytes:
    code, kind, body = answer
    head = (
        f"HTTP/1.1 {code} {_REASONS[code]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (body if with_body else b"")


def _transport_address(address: str) -> str:
    """`host:port` and `http://host:port` are over TCP; anything else is a transport's own address."""
    found = _HOST_AND_PORT.fullmatch(address)
    if not found and ":" not in address:
        raise OptionError(f"{address!r} is no place to listen at: it is written HOST:PORT, 127.0.0.1:9100 for one")
    return f"tcp://{found['url'] or found['plain']}" if found else address

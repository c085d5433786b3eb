"""A proxy for any TCP server that cuts the connection on purpose, or lets bytes arrive late.

    async with TcpProxy(server.port) as proxy:
        storage = open_storage(f"redis://127.0.0.1:{proxy.port}/0")
        proxy.cut(at=3, answered=True)   # the third request from now on is answered, and the answer lost

What a client sends in one piece is one request here.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from types import TracebackType
from typing import Self

_PIECE_BYTES = 1 << 20


class TcpProxy:
    """See the module. It runs in the loop of the test, and speaks TLS on its side if `tls` is given."""

    def __init__(self, upstream_port: int, *, tls: ssl.SSLContext | None = None) -> None:
        self.upstream_port = upstream_port
        self._tls = tls
        self.port = 0
        #: Requests so far, over all connections.
        self.requests = 0
        self.connections = 0
        self._cut_at: int | None = None
        self._answered = self._lasting = False
        self._held: asyncio.Event | None = None
        self._arrived = asyncio.Event()
        self._connection = asyncio.Event()
        self._refusing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    def cut(self, *, at: int, answered: bool, lasting: bool = False) -> None:
        """Cut the connection at the `at`-th request from now, counted from 1: before the server hears of it, or after
        it has answered. Once, or with `lasting` nobody gets through any more until `mend`."""
        self._cut_at = self.requests + at
        self._answered = answered
        self._lasting = lasting

    @property
    def broken(self) -> bool:
        """A lasting cut has begun."""
        return self._refusing

    def mend(self) -> None:
        """Let everybody through again; a cut that was still to come does not."""
        self._refusing = False
        self._cut_at = None

    def hold(self) -> None:
        """From now on requests wait, also when their client has gone."""
        self._held = asyncio.Event()
        self._arrived = asyncio.Event()

    async def arrived(self) -> None:
        """Until a request is held."""
        await self._arrived.wait()

    async def connected(self, count: int) -> None:
        """Until there have been so many connections."""
        while self.connections < count:
            await self._connection.wait()

    def release(self) -> None:
        """Let the requests that were held go on to the server, in spite of everything."""
        if self._held is not None:
            self._held.set()
            self._held = None

    def refuse(self, refusing: bool = True) -> None:
        """Whether new connections end at once."""
        self._refusing = refusing

    def drop(self) -> None:
        """Cut every connection, of clients only: what was sent is on its way."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self._connection.set()
        self._connection = asyncio.Event()
        self._writers.add(writer)
        upstream: asyncio.StreamWriter | None = None
        back: asyncio.Task[None] | None = None
        try:
            if self._refusing:
                return
            answers, upstream = await asyncio.open_connection("127.0.0.1", self.upstream_port)
            lost = asyncio.Event()
            back = asyncio.ensure_future(self._answer(answers, writer, lost))
            while data := await reader.read(_PIECE_BYTES):
                self.requests += 1
                if self.requests == self._cut_at:
                    self._refusing = self._refusing or self._lasting
                    if not self._answered:
                        return
                    lost.set()
                if self._held is not None:
                    self._arrived.set()
                    await self._held.wait()
                upstream.write(data)
                await upstream.drain()
        except (ConnectionError, asyncio.CancelledError):
            pass  # A side went away, or the test is over.
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            if back is not None:
                back.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([back])
            for end in filter(None, (writer, upstream)):
                end.transport.abort() if end is writer else end.close()
                with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                    await end.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, lost: asyncio.Event) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(_PIECE_BYTES):
                if lost.is_set():
                    break
                if not writer.is_closing():
                    writer.write(data)
                    await writer.drain()
            writer.transport.abort()

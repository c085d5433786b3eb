"""One connection of redis-py, on which many callers' commands travel together.

Knows how to keep commands and replies in step, whoever gives up waiting; it must not know what they mean.

redis-py's own calls cost about 130 µs of Python each, and a caller that is cancelled in one leaves its reply to
the next caller, or tears the connection down for everybody. Here a command is packed and sent by its caller, further
ones of the same turn of the loop follow in one piece, and a single task reads all the replies.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from hiredis import pack_command
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError, ResponseError

from hypercore_redis.scripts import Command

# hiredis declares a tuple of one item.
_pack: Final[Callable[[Command], bytes]] = pack_command  # type: ignore[assignment]

#: Reply of one command; an error among several replies is in its place.
Reply = Any
#: How often within the time limit it is checked.
_CHECKS: Final = 4


class LostConnectionError(Exception):
    """The connection ended; whether commands without a reply were carried out is not known."""


class _Call:
    __slots__ = ("future", "replies", "sent_at", "wanted")

    def __init__(self, future: asyncio.Future[Any], wanted: int, sent_at: float) -> None:
        self.future = future
        #: Replies that are still to come; 0 for a single one.
        self.wanted = wanted
        self.replies: list[Reply] = []
        self.sent_at = sent_at


class Channel:
    """Takes over a connected `connection`, and closes it."""

    def __init__(self, connection: AbstractConnection, *, timeout_seconds: float) -> None:
        writer: asyncio.StreamWriter | None = connection._writer
        assert writer is not None
        self._connection = connection
        # redis-py's way to send waits in the caller's task, and tears the connection when that is cancelled.
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self._calls: deque[_Call] = deque()
        self._outbox: list[bytes] = []
        self._turn = False
        self._failure: BaseException | None = None
        self._timeout_seconds = timeout_seconds
        self._heard_at = self._loop.time()
        self._unsent_bytes = 0
        self._reader = self._loop.create_task(self._read())
        self._watch = self._loop.call_later(timeout_seconds / _CHECKS, self._check)

    @property
    def alive(self) -> bool:
        return self._failure is None

    def send(self, command: Command) -> asyncio.Future[Reply]:
        """The future reply, in the order of sending. An error reply is raised as redis-py's `ResponseError`.

        Raises `LostConnectionError`, now or later. The future may be cancelled, which changes nothing.
        """
        return self._send(_pack(command), 0)

    def send_many(self, commands: Sequence[Command]) -> asyncio.Future[list[Reply]]:
        """Several commands together; error replies are among the replies."""
        return self._send(b"".join([_pack(command) for command in commands]), len(commands))

    def _send(self, packed: bytes, wanted: int) -> asyncio.Future[Any]:
        if self._failure is not None:
            raise LostConnectionError(str(self._failure)) from self._failure
        future: asyncio.Future[Any] = self._loop.create_future()
        self._calls.append(_Call(future, wanted, self._loop.time()))
        if self._turn:
            self._outbox.append(packed)
        else:
            self._turn = True
            self._loop.call_soon(self._end_turn)
            self._writer.write(packed)
        return future

    def _end_turn(self) -> None:
        self._turn = False
        if self._outbox:
            packed, self._outbox = b"".join(self._outbox), []
            if self._failure is None:
                self._writer.write(packed)

    # ---- replies -------------------------------------------------------------------------------------

    async def _read(self) -> None:
        read, calls = self._connection.read_response, self._calls
        try:
            while True:
                try:
                    reply = await read(disable_decoding=True, timeout=math.inf, disconnect_on_error=False)
                except ResponseError as error:
                    reply = error
                self._heard_at = self._loop.time()
                call = calls[0]
                if call.wanted > 1:
                    call.wanted -= 1
                    call.replies.append(reply)
                    continue
                calls.popleft()
                if call.future.done():
                    continue
                if call.wanted:
                    call.replies.append(reply)
                    call.future.set_result(call.replies)
                elif isinstance(reply, ResponseError):
                    call.future.set_exception(reply)
                else:
                    call.future.set_result(reply)
        except asyncio.CancelledError:
            self._fail(ConnectionError("it was closed"))
            raise
        except Exception as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if self._failure is not None:
            return
        self._failure = error
        self._watch.cancel()
        self._writer.transport.abort()
        while self._calls:
            future = self._calls.popleft().future
            if not future.done():
                lost = LostConnectionError(str(error))
                lost.__cause__ = error
                future.set_exception(lost)

    def _check(self) -> None:
        """Nothing heard for too long although something was asked, and nothing sent meanwhile either."""
        unsent_bytes = self._writer.transport.get_write_buffer_size()
        now = self._loop.time()
        if unsent_bytes < self._unsent_bytes:
            self._heard_at = now
        self._unsent_bytes = unsent_bytes
        if self._calls and now - max(self._heard_at, self._calls[0].sent_at) > self._timeout_seconds:
            self._reader.cancel()
            self._fail(TimeoutError(f"the server did not answer for {self._timeout_seconds:g} s"))
            return
        self._watch = self._loop.call_later(self._timeout_seconds / _CHECKS, self._check)

    def drop(self, reason: str) -> None:
        """Close at once; what has no reply yet fails."""
        self._reader.cancel()
        self._fail(ConnectionError(reason))

    async def aclose(self) -> None:
        """Close, and wait until it is closed. Twice is fine."""
        self.drop("it was closed")
        await asyncio.wait([self._reader])
        with contextlib.suppress(RedisError, OSError):
            await self._connection.disconnect()

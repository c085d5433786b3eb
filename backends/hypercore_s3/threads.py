"""Threads of its own for a driver that blocks, and none more than may be in flight.

It must not know what the threads do. Unlike those of an executor they never hold up the end of the program, and
nobody waits long for one that hangs in a socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Final, TypeVar

from hypercore.errors import ClosedError

T = TypeVar("T")

#: A thread that has not ended by then hangs in a socket; it ends with the socket's timeout, and nobody waits for it.
CLOSE_SECONDS: Final = 2.0

#: What a job is given: whether anybody still wants its result.
Wanted = Callable[[], bool]


class _Job:
    __slots__ = ("future", "loop", "work")

    def __init__(self, work: Callable[[Wanted], Any], loop: asyncio.AbstractEventLoop) -> None:
        self.work = work
        self.loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()

    def wanted(self) -> bool:
        return not self.future.cancelled()


class Threads:
    """At most `most` threads, started when they are needed, that carry out jobs in the order they came."""

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._running = 0
        self._pending = 0
        self._closed = False
        self._ended = asyncio.Event()

    async def run(self, work: Callable[[Wanted], T]) -> T:
        """What `work` returns or raises. A caller who is cancelled does not stop it: its result is dropped, and it
        may ask whether it is still wanted. A job nobody wants any more by its turn is never begun."""
        if self._closed:
            raise ClosedError(f"{self._name} is closed")
        job = _Job(work, asyncio.get_running_loop())
        self._pending += 1
        self._jobs.put(job)
        if self._pending > self._running < self._most:
            self._running += 1
            threading.Thread(target=self._work, args=(job.loop,), name=self._name, daemon=True).start()
        result: T = await job.future
        return result

    async def aclose(self) -> None:
        """End the threads that are idle, and wait a little for those that are not. Twice is fine."""
        if not self._closed:
            self._closed = True
            for _ in range(self._running):
                self._jobs.put(None)
        if self._running:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await self._ended.wait()

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        while (job := self._jobs.get()) is not None:
            result: Any = None
            error: BaseException | None = None
            if job.wanted():
                try:
                    result = job.work(job.wanted)
                except BaseException as raised:
                    error = raised
            _tell(job.loop, self._finish, job.future, result, error)
            del job, result, error  # or the last answer stays in memory until the next one
        _tell(loop, self._end)

    def _finish(self, future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        self._pending -= 1
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    def _end(self) -> None:
        self._running -= 1
        if not self._running:
            self._ended.set()


def _tell(loop: asyncio.AbstractEventLoop, callback: Callable[..., None], *arguments: Any) -> None:
    # A loop that was closed meanwhile has nobody who could be told.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(callback, *arguments)

"""What all clients do alike: take turns in threads, try again, give up in time, close.

It must not know what a request is. Every call ends: one try is given `timeout_seconds` and the time that
its bytes take on a slow line, and nothing is tried again once `deadline_seconds` are over.
"""

from __future__ import annotations

import asyncio
import random
import threading
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

from hypercore.errors import ClosedError, StorageError
from hypercore_s3.answers import Asked, TryAgainError
from hypercore_s3.objects import ObjectClient
from hypercore_s3.threads import Threads, Wanted

T = TypeVar("T")

#: A line slower than this (2 Mbit/s) cannot carry a log; what is slower counts as stuck.
SLOWEST_BYTES_PER_SECOND: Final = 256 << 10
#: The pause before the n-th new try is random, up to FIRST x 2^n but not more than LONGEST ("full jitter"): a crowd
#: of clients that were told to slow down must not come back together.
FIRST_PAUSE_SECONDS: Final = 0.1
LONGEST_PAUSE_SECONDS: Final = 10.0
#: A place where nothing has ever answered is a spelling mistake sooner than a failure that passes.
FIRST_ANSWER_SECONDS: Final = 10.0
#: Loading a driver and asking for credentials may take so long, whatever the deadline of a request is.
CONNECT_SECONDS: Final = 30.0


_COUNTED: Final = {"get": "gets", "put": "puts", "list": "lists", "delete": "deletes"}


class RetryingClient(ObjectClient):
    """The part of a client that decides when and how often; what a request is, its subclass says."""

    def __init__(self, place: str, *, timeout_seconds: float, deadline_seconds: float, most_connections: int) -> None:
        super().__init__()
        self.place = place
        self._timeout_seconds = timeout_seconds
        self._deadline_seconds = deadline_seconds
        self._most_connections = most_connections
        self._threads = Threads(most_connections, f"s3 {place}")
        self._turns = asyncio.Semaphore(most_connections)
        self._closing = asyncio.Event()
        self._scopes: set[asyncio.Timeout] = set()
        self._loading = threading.Lock()
        self._loaded = False
        #: Something there has answered once.
        self._answered = False

    @abstractmethod
    def _load(self) -> None:
        """Import the driver and find out who we are: once, in a thread, before the first request."""

    @abstractmethod
    def _unload(self) -> None:
        """Let go of the driver's connections, if it was loaded."""

    @abstractmethod
    def _meaning(self, error: Exception, asked: Asked) -> Exception:
        """`TryAgainError`, or the error for the caller, that one of the driver's stands for."""

    async def _ask(self, asked: Asked, size: int, request: Callable[[Wanted], T]) -> T:
        """Carry out `request` in a thread, in its turn, until it does not fail with what `TryAgainError` stands for.

        `size` is how many bytes of a body move at most. Raises `StorageError` from the last try's cause.
        """

        def in_thread(work: Callable[[Wanted], Any], wanted: Wanted) -> Any:
            try:
                return work(wanted)
            except Exception as error:
                ours = self._meaning(error, asked)
                if ours is error:
                    raise
                raise ours from error

        loop = asyncio.get_running_loop()
        transfer_seconds = size / SLOWEST_BYTES_PER_SECOND
        began: float | None = None
        tries = 0
        while True:
            cause: BaseException | None = None
            try:
                self._check_open()
                async with asyncio.timeout(None) as scope:
                    self._scopes.add(scope)
                    try:
                        async with self._turns:
                            began = began or loop.time()
                            if not self._loaded:
                                scope.reschedule(began + max(self._deadline_seconds, CONNECT_SECONDS))
                                await self._threads.run(partial(in_thread, self._load_once))
                                began = loop.time()
                            tries += 1
                            end = min(loop.time() + self._timeout_seconds, began + self._deadline_seconds)
                            scope.reschedule(end + transfer_seconds)
                            self._count(asked, size)
                            result: T = await self._threads.run(partial(in_thread, request))
                            self._answered = True
                            return result
                    finally:
                        self._scopes.discard(scope)
            except TryAgainError as error:
                reason, cause = str(error), error.__cause__
                self._answered |= error.answered
            except StorageError:
                self._answered = True
                raise
            except TimeoutError as error:
                reason, cause = "no answer in time", error
            self._check_open()
            pause = random.uniform(0, min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(tries, 16)))
            passed = loop.time() - (began or loop.time())
            most_seconds = (
                self._deadline_seconds if self._answered else min(self._deadline_seconds, FIRST_ANSWER_SECONDS)
            )
            if passed + pause >= most_seconds:
                never = "" if self._answered else "; nothing has ever answered there: is the address right?"
                raise StorageError(
                    f"{self.place}: {asked} failed, after {tries} tries in {passed:.1f} s: {reason}{never}"
                ) from cause
            await self._pause(pause)

    def _load_once(self, wanted: Wanted) -> None:
        with self._loading:
            if not self._loaded:
                self._load()
                self._loaded = True

    def _count(self, asked: Asked, size: int) -> None:
        counted = _COUNTED[asked.verb]
        setattr(self.counts, counted, getattr(self.counts, counted) + 1)
        if asked.verb == "put":
            self.counts.bytes_put += size

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        except TimeoutError:
            return

    def _check_open(self) -> None:
        if self._closing.is_set():
            raise ClosedError(f"the client of {self.place} is closed")

    async def aclose(self) -> None:
        if not self._closing.is_set():
            self._closing.set()
            now = asyncio.get_running_loop().time()
            for scope in self._scopes:
                if not scope.expired():
                    scope.reschedule(now)
        await self._threads.aclose()
        if self._loaded:
            self._unload()

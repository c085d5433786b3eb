"""What all clients do alike: take turns, try again, give up in time, close.

It must not know how a request is carried out. Every call ends: one try is given `timeout_seconds` and the time that
its bytes take on a slow line, and nothing is tried again once `deadline_seconds` are over.
"""

from __future__ import annotations

import asyncio
import random
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from hypercore.errors import ClosedError, StorageError
from hypercore_s3.answers import Asked, TryAgainError
from hypercore_s3.objects import ObjectClient

T = TypeVar("T")

#: A line slower than this (2 Mbit/s) cannot carry a log; what is slower counts as stuck.
SLOWEST_BYTES_PER_SECOND: Final = 256 << 10
#: The pause before the n-th new try is random, up to FIRST x 2^n but not more than LONGEST ("full jitter"): a crowd
#: of clients that were told to slow down must not come back together.
FIRST_PAUSE_SECONDS: Final = 0.1
LONGEST_PAUSE_SECONDS: Final = 10.0
#: Loading a driver and asking for credentials may take so long, whatever the deadline of a request is.
CONNECT_SECONDS: Final = 30.0


class RetryingClient(ObjectClient):
    """The part of a client that decides when and how often; what a try is, its subclass says."""

    def __init__(self, place: str, *, timeout_seconds: float, deadline_seconds: float, most_connections: int) -> None:
        super().__init__()
        self.place = place
        self._timeout_seconds = timeout_seconds
        self._deadline_seconds = deadline_seconds
        self._turns = asyncio.Semaphore(most_connections)
        self._closing = asyncio.Event()
        self._scopes: set[asyncio.Timeout] = set()
        self._connected = False

    async def _attempt(self, asked: Asked, size: int, attempt: Callable[[], Awaitable[T]]) -> T:
        """Carry out `attempt` until it does not raise `TryAgainError`, each time in its turn.

        `size` is how many bytes of a body move at most. Raises `StorageError` from the last try's cause.
        """
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
                            if not self._connected:
                                scope.reschedule(began + max(self._deadline_seconds, CONNECT_SECONDS))
                                await self._connect(asked)
                                self._connected = True
                                began = loop.time()
                            tries += 1
                            end = min(loop.time() + self._timeout_seconds, began + self._deadline_seconds)
                            scope.reschedule(end + transfer_seconds)
                            return await attempt()
                    finally:
                        self._scopes.discard(scope)
            except TryAgainError as error:
                reason, cause = str(error), error.__cause__
            except TimeoutError as error:
                reason, cause = "no answer in time", error
            self._check_open()
            pause = random.uniform(0, min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(tries, 16)))
            passed = loop.time() - (began or loop.time())
            if passed + pause >= self._deadline_seconds:
                raise StorageError(
                    f"{self.place}: {asked} failed, after {tries} tries in {passed:.1f} s: {reason}"
                ) from cause
            await self._pause(pause)

    @abstractmethod
    async def _connect(self, asked: Asked) -> None:
        """Load the driver and find out who we are, before the first try; by several callers at once. Raises as a try
        does."""

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
        await self._release()

    @abstractmethod
    async def _release(self) -> None:
        """Let go of connections and threads, within a bounded time; called by everyone who closes."""

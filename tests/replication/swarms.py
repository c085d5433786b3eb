"""What the tests of swarms share: names for pipes, keys in their order, and dials that wait to be let through."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import pytest

from hypercore import dialling as dialling_module
from hypercore import swarm as swarm_module
from hypercore.connections import Connections
from hypercore.core import Hypercore
from hypercore.crypto import KeyPair
from hypercore.plugins import open_transport
from hypercore.replication import Hub
from hypercore.transport import ByteStream, Listener, Transport

names = (f"pipe:swarm-{number}" for number in itertools.count())
SMALL, LARGE = sorted((KeyPair.from_seed(bytes([n]) * 32) for n in (1, 2)), key=lambda pair: pair.public_key)


async def writer_of(count: int) -> Hypercore:
    core = Hypercore("memory:")
    await core.ready()
    await core.append([b"block %d" % index for index in range(count)])
    return core


def retry_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested is that it is tried again, not when."""
    monkeypatch.setattr(dialling_module, "FIRST_RETRY_SECONDS", 0.001)
    monkeypatch.setattr(dialling_module, "LAST_RETRY_SECONDS", 0.01)


class GatedTransport(Transport):
    """Dials what another transport dials, each address once it was let through."""

    def __init__(self, address: str) -> None:
        self._inner = open_transport(address)
        self.gates: dict[str, asyncio.Event] = {}
        self.dialling: list[str] = []
        self.under_way = self.most_under_way = 0

    async def connect(self, address: str, *, timeout_seconds: float = 10.0) -> ByteStream:
        self.dialling.append(address)
        self.under_way += 1
        self.most_under_way = max(self.under_way, self.most_under_way)
        try:
            await self.gates.setdefault(address, asyncio.Event()).wait()
            return await self._inner.connect(address, timeout_seconds=timeout_seconds)
        finally:
            self.under_way -= 1

    async def listen(self, address: str) -> Listener:
        return await self._inner.listen(address)

    def let(self, address: str) -> None:
        self.gates.setdefault(address, asyncio.Event()).set()


def install(transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    """The swarms of this test go over this transport, whatever their addresses say."""
    monkeypatch.setattr(swarm_module, "open_transport", lambda _: transport)


class Crossroads(Transport):
    """Dials that meet: one waits until there is another, and then both go, each with a random head start."""

    def __init__(self, inner: Transport, seed: int) -> None:
        self._inner = inner
        self._random = Random(seed)
        self._waiting: asyncio.Event | None = None
        self.meetings = self.dials = 0

    async def connect(self, address: str, *, timeout_seconds: float = 10.0) -> ByteStream:
        await self.meet()
        stream = await self._inner.connect(address, timeout_seconds=timeout_seconds)
        self.dials += 1
        return stream

    async def meet(self) -> None:
        """Wait for another one, and for as long as the head start of that takes."""
        if self._waiting is None:
            self._waiting = asyncio.Event()
            await self._waiting.wait()
        else:
            self.meetings += 1
            self._waiting.set()
            self._waiting = None
        for _ in range(self._random.randrange(12)):
            await asyncio.sleep(0)

    async def listen(self, address: str) -> Listener:
        return await self._inner.listen(address)


@asynccontextmanager
async def connections(key_pair: KeyPair) -> AsyncIterator[Connections]:
    """The connections of a swarm without cores, closed at the end."""

    async def nobody(discovery_key: bytes) -> Hub | None:
        return None

    made = Connections(key_pair, most=8, most_a_host=4, is_banned=lambda key: False, on_offer=nobody)
    try:
        yield made
    finally:
        await made.aclose()

"""A writer with its swarm, a reader, and conditions that are waited for."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Callable

import pytest

from hypercore import CoreStatus, Hypercore, Mirror, Swarm
from hypercore.mirrors import keeper, mirror
from tests.replication.links import eventually

_numbers = itertools.count()


def new_name() -> str:
    """A name that no other test uses."""
    return f"mirror-{next(_numbers)}"


def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks and tries again at once: what is tested is that it does, not when."""
    monkeypatch.setattr("hypercore.dialling.FIRST_RETRY_SECONDS", 0.001)
    monkeypatch.setattr("hypercore.dialling.LAST_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(keeper, "REFRESH_SECONDS", 0.005)
    monkeypatch.setattr(keeper, "TAKE_OVER_SECONDS", 0.01)
    monkeypatch.setattr(keeper, "FIRST_RETRY_SECONDS", 0.001)
    monkeypatch.setattr(keeper, "LAST_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(mirror, "LOOK_SECONDS", 0.005)


class Source:
    """A core that is written here, and the swarm that serves it at `address`."""

    def __init__(self, core: Hypercore, swarm: Swarm, address: str) -> None:
        self.core = core
        self.swarm = swarm
        self.address = address
        #: Blocks that peers which are gone were sent.
        self._gone_blocks = 0
        core.hub.on_peer.append(self._take_peer)

    def _take_peer(self, peer: object, is_here: bool) -> None:
        if not is_here:
            self._gone_blocks += peer.blocks_sent  # type: ignore[attr-defined]

    @property
    def blocks_sent(self) -> int:
        """To all peers that ever were."""
        return self._gone_blocks + sum(peer.blocks_sent for peer in self.core.peers)


@contextlib.asynccontextmanager
async def source_of(count: int, *, address: str | None = None, size: int = 10) -> AsyncIterator[Source]:
    """A new core with so many blocks, each of `size` bytes, served over a pipe."""
    address = address or f"pipe:{new_name()}"
    async with Hypercore("memory:") as core, Swarm(address) as swarm:
        if count:
            await core.append([block(index, size) for index in range(count)])
        swarm.join(core)
        yield Source(core, swarm, address)


def block(index: int, size: int = 10) -> bytes:
    return b"%d." % index + bytes(size - len(str(index)) - 1)


async def read_from(address: str, key: bytes, start: int, end: int) -> list[bytes]:
    """The blocks as a new reader gets them who knows nobody but `address`."""
    async with Hypercore("memory:", key) as core, Swarm(peers=[address]) as swarm:
        swarm.join(core)
        return [await core.get(index) for index in range(start, end)]


async def until(mirror: Mirror, is_true: Callable[[CoreStatus], bool], *, at: int = 0) -> CoreStatus:
    """The status of one of the cores, as soon as something holds of it."""
    await eventually(lambda: is_true(mirror.status().cores[at]))
    return mirror.status().cores[at]

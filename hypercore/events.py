"""What happens to a core, as values that `Hypercore.events()` yields."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from hypercore.log.engine import LogChange
from hypercore.peer import Peer
from hypercore.replication import Hub

#: Events that a slow reader may fall behind; beyond that the oldest go, since it wants the present.
MOST_WAITING_EVENTS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Appended:
    """The log grew, here or by an upgrade from a peer, to `length` blocks."""

    length: int
    byte_length: int


@dataclass(frozen=True, slots=True)
class Truncated:
    """The log was cut to `length` blocks and is now on `fork`. A reader may have got what came after in one piece."""

    length: int
    fork: int


@dataclass(frozen=True, slots=True)
class Downloaded:
    """Blocks [start, end) arrived, verified, and are stored."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class PeerAdded:
    """A peer opened this core."""

    peer: Peer


@dataclass(frozen=True, slots=True)
class PeerRemoved:
    """A peer closed this core or its connection ended."""

    peer: Peer


CoreEvent = Appended | Truncated | Downloaded | PeerAdded | PeerRemoved


class EventFeed:
    """Tells every reader what happens to one core."""

    def __init__(self) -> None:
        self._readers: list[_Reader] = []
        self._is_closed = False

    def bind(self, hub: Hub) -> None:
        """Listen to a core that was opened."""
        hub.on_peer.append(self._peer_changed)
        hub.on_change.append(lambda change: self._log_changed(hub, change))

    def read(self) -> AsyncIterator[CoreEvent]:
        """Events from this call on, until the core is closed."""
        reader = _Reader()
        if not self._is_closed:
            self._readers.append(reader)
        return self._events_of(reader)

    def close(self) -> None:
        """End every reader, after the events that it has not seen yet."""
        self._is_closed = True
        for reader in self._readers:
            reader.wake()

    async def _events_of(self, reader: _Reader) -> AsyncIterator[CoreEvent]:
        try:
            while True:
                while reader.events:
                    yield reader.events.popleft()
                if self._is_closed:
                    return
                await reader.wait()
        finally:
            if reader in self._readers:
                self._readers.remove(reader)

    def _emit(self, event: CoreEvent) -> None:
        for reader in self._readers:
            reader.events.append(event)
            reader.wake()

    def _log_changed(self, hub: Hub, change: LogChange | None) -> None:
        if change is None or not self._readers:
            return
        log = hub.log
        match change.kind:
            case "append" | "upgrade":
                self._emit(Appended(log.length, log.byte_length))
            case "truncate":
                self._emit(Truncated(change.start, change.fork))
            case "blocks":
                self._emit(Downloaded(change.start, change.end))

    def _peer_changed(self, peer: Peer, is_added: bool) -> None:
        self._emit(PeerAdded(peer) if is_added else PeerRemoved(peer))


class _Reader:
    """Events that one reader has not taken yet."""

    def __init__(self) -> None:
        self.events: deque[CoreEvent] = deque(maxlen=MOST_WAITING_EVENTS)
        self._waiter: asyncio.Future[None] | None = None

    async def wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

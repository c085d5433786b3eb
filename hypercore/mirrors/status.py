"""What a mirror says of itself, as values. Nothing here knows how a mirror works.

Blocks are counts, bytes are bytes, rates are per second and smoothed over some seconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

#: "opening": not looked at yet. "writer": keeps the copy. "standby": another process keeps it, and this one serves
#: from it. "failed": it cannot be opened; `error` says why, and it is tried again.
Role = Literal["opening", "writer", "standby", "failed"]

#: A rate forgets what was this long ago, mostly.
RATE_SECONDS: Final = 5.0
#: Looks that are closer together than this count as one: a rate over a moment says nothing.
LOOK_SECONDS: Final = 0.2


class Rate:
    """How fast a count grows: an exponentially weighted mean, computed when it is looked at."""

    __slots__ = ("_at", "_count", "_per_second", "_weight")

    def __init__(self) -> None:
        self._count = 0
        self._at: float | None = None
        self._per_second = 0.0
        #: How much of the mean is known: the first looks count in full.
        self._weight = 0.0

    def look(self, count: int, now: float) -> float:
        """Growth per second; `count` is the count by now, `now` the seconds of any clock that never goes back."""
        if self._at is None:
            self._count, self._at = count, now
        elif (seconds := now - self._at) >= LOOK_SECONDS:
            kept = math.exp(-seconds / RATE_SECONDS)
            grown = max(0, count - self._count) / seconds
            self._per_second = kept * self._per_second + (1 - kept) * grown
            self._weight = kept * self._weight + (1 - kept)
            self._count, self._at = count, now
        return self._per_second / self._weight if self._weight else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStatus:
    """One peer of one core."""

    address: str
    #: What the peer says it has.
    length: int
    blocks_received: int
    bytes_received: int
    blocks_sent: int
    bytes_sent: int
    blocks_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreStatus:
    """One core of a mirror: `have` of the `want` blocks of its range are here."""

    key: bytes
    role: Role
    have: int
    want: int
    length: int
    fork: int
    #: Bytes of the blocks that are stored.
    stored_bytes: int
    blocks_per_second: float
    bytes_per_second: float
    #: Since the mirror began, also to and from peers that have left.
    blocks_received: int
    bytes_received: int
    blocks_sent: int
    bytes_sent: int
    peers: tuple[PeerStatus, ...]
    #: What went wrong last, until it is over.
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorStatus:
    """A mirror: its cores, and what they come to together."""

    cores: tuple[CoreStatus, ...]
    #: What readers may dial.
    addresses: tuple[str, ...]
    #: Each source, and why it cannot be reached; None while nothing is known against it.
    sources: Mapping[str, str | None]
    #: For how long no source at all could be reached; None while one can be, or none is known not to be.
    sources_gone_seconds: float | None
    connections: int
    most_bytes: int | None
    #: The byte cap is reached: nothing is downloaded, all that is here is served.
    is_full: bool
    #: Why the mirror is not in good health; empty when it is.
    problems: tuple[str, ...]

    @property
    def have(self) -> int:
        return sum(core.have for core in self.cores)

    @property
    def want(self) -> int:
        return sum(core.want for core in self.cores)

    @property
    def stored_bytes(self) -> int:
        return sum(core.stored_bytes for core in self.cores)

    @property
    def blocks_per_second(self) -> float:
        return sum(core.blocks_per_second for core in self.cores)

    @property
    def bytes_per_second(self) -> float:
        return sum(core.bytes_per_second for core in self.cores)

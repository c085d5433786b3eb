"""What happens to a core, as values that `Hypercore.events()` yields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hypercore.replication import Peer


@dataclass(frozen=True, slots=True)
class Appended:
    """The log grew, here or by an upgrade from a peer, to `length` blocks."""

    length: int
    byte_length: int


@dataclass(frozen=True, slots=True)
class Truncated:
    """The log was cut to `length` blocks and is now on `fork`."""

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

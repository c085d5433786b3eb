"""What is known about one peer of one core: its tree, its blocks, and what was asked of it.

Pure state with the rules that keep it bounded, whatever the peer says (wire spec, sections 5.1 to 5.3). It does not
decide anything; `replicator` does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from hypercore.bitfield import Bitfield
from hypercore.proofs import Proof, ProofRequest
from hypercore.protocol import messages

#: Blocks of a peer that are remembered beyond its contiguous prefix: 2^26 bits are 8 MiB. A peer that holds
#: scattered blocks further up is asked with `want` when one of them is needed.
REMEMBERED_BLOCKS: Final = 2**26
#: One `want` covers this many blocks (wire spec, section 5.3).
WANT_REGION_BLOCKS: Final = 2**21
#: Regions a peer may be asked about; a later one replaces the first.
WANT_REGIONS: Final = 4096


class AskKind(Enum):
    """Why something was asked."""

    BLOCK = auto()
    UPGRADE = auto()
    MANIFEST = auto()
    FORK = auto()
    DEMAND = auto()
    CONFLICT = auto()


@dataclass(slots=True, eq=False)
class Demand:
    """A proof that somebody above waits for: a step of a seek or of a reorg.

    `done` is called once, with the peer and the proof, or with None when no peer could give it. A demand with `peer`
    is asked of that peer only.
    """

    request: ProofRequest
    done: Callable[[RemotePeer | None, Proof | None], None]
    peer: RemotePeer | None = None
    tried: set[RemotePeer] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class Ask:
    """A request in flight. `index` is the block's, -1 when no block is asked for; times are seconds of any clock."""

    id: int
    kind: AskKind
    request: ProofRequest
    index: int = -1
    priority: int = 0
    asked_at: float = 0.0
    demand: Demand | None = None
    #: The id of an earlier request that will bring hashes which this one does not ask for; 0 when it needs none.
    counts_on: int = 0
    #: When the answer came, if it is held back until that earlier request was answered.
    held_at: float = 0.0


class RemotePeer:
    """One peer of one core."""

    __slots__ = (
        "acked_length",
        "allow_push",
        "answered_at",
        "asks",
        "blocks_received",
        "bytes_received",
        "can_upgrade",
        "conflict_checks",
        "cursors",
        "downloading",
        "fork",
        "has_manifest",
        "held",
        "length",
        "next_id",
        "paused",
        "prefix",
        "provable",
        "refused_forks",
        "seeks",
        "strikes",
        "synced",
        "timeouts",
        "uploading",
        "wanted",
        "wants_to_send",
        "wide_changes",
    )

    def __init__(self) -> None:
        self.fork = 0
        self.length = 0
        #: What the peer says it last heard of our length, on our fork.
        self.acked_length = 0
        self.can_upgrade = False
        self.uploading = False
        self.downloading = False
        self.has_manifest = False
        self.allow_push = False
        self.synced = False
        #: The peer answers seeks (a flag of the channel's handshake).
        self.seeks = True
        #: Whether we hold all roots of the peer's length: only then may a shorter peer be asked for blocks.
        self.provable = True
        #: Blocks 0 to prefix - 1 are held by the peer, and those set in `held`.
        self.prefix = 0
        self.held = Bitfield(limit_blocks=REMEMBERED_BLOCKS)
        #: Announcements that changed a whole region and more at once: cheap to say, and a tenth of a millisecond each.
        self.wide_changes = 0
        self.asks: dict[int, Ask] = {}
        self.next_id = 1
        self.paused = False
        self.strikes = 0
        self.conflict_checks = 0
        self.refused_forks: set[int] = set()
        self.timeouts = 0
        self.answered_at = 0.0
        self.blocks_received = 0
        self.bytes_received = 0
        #: Where to go on choosing, by what is chosen from.
        self.cursors: dict[object, int] = {}
        self.wanted: dict[int, None] = {}
        self.wants_to_send: list[int] = []

    # ---- its tree ----

    def take_sync(self, sync: messages.Sync, *, local_fork: int) -> bool:
        """Remember what the peer says of its tree; whether its tree changed."""
        changed = not self.synced or sync.fork != self.fork or sync.length != self.length
        if sync.fork != self.fork:
            self.forget_wants()
            self.refused_forks.clear()
        if changed:
            # A wrong answer may have been made in the midst of a change; one that goes on is given up all the same.
            self.paused = False
        self.fork = sync.fork
        self.length = sync.length
        self.acked_length = sync.remote_length if sync.fork == local_fork else 0
        self.can_upgrade = sync.can_upgrade
        self.uploading = sync.uploading
        self.downloading = sync.downloading
        self.has_manifest = sync.has_manifest
        self.allow_push = sync.allow_push
        self.synced = True
        return changed

    # ---- its blocks ----

    def has(self, index: int) -> bool:
        """Whether the peer announced block `index`."""
        return index < self.prefix or self.held.get(index)

    def first_held(self, start: int, end: int) -> int | None:
        """The first announced block in [start, end)."""
        if start >= end:
            return None
        if start < self.prefix:
            return start
        return self.held.first_set(start, end)

    def take_range(self, start: int, length: int, *, drop: bool) -> None:
        """The peer gained blocks, or lost them."""
        end = start + length
        if drop:
            self._cut_prefix(start, end)
            self._remember(start, end, False)
            return
        if start <= self.prefix:
            self.prefix = max(self.prefix, end)
            self._absorb()
        else:
            self._remember(start, end, True)
        self.rewind(start)

    def _remember(self, start: int, end: int, value: bool) -> None:
        self.wide_changes += end - start > WANT_REGION_BLOCKS
        self.held.set_range(start, end - start, value)

    def take_bitfield(self, start: int, words: bytes) -> None:
        """The truth for every block the words cover; a start that is no multiple of 32 says nothing."""
        if start % 32 or not words:
            return
        self._cut_prefix(start, start + 8 * len(words))
        self.held.set_from_words(start, words)
        self._absorb()
        self.rewind(start)

    def local_truncated(self, start: int, fork: int) -> None:
        """The own log lost its blocks from `start` on and is at `fork` now."""
        if self.fork < fork and self.synced:
            # What the peer announced from there on are other blocks.
            self.prefix = min(self.prefix, start)
            self.held.set_range(start, REMEMBERED_BLOCKS - start, False)
        # Until it hears of this it believes that we hold them, and announces none of those that took their place.
        self.forget_wants()

    def lost(self, index: int) -> None:
        """The peer has not got block `index`, whatever it had announced."""
        self._cut_prefix(index, index + 1)
        self.held.set_range(index, 1, False)

    def _cut_prefix(self, start: int, end: int) -> None:
        # What lies behind the gap in the prefix stays known, as far as we remember scattered blocks.
        if start < self.prefix:
            if end < self.prefix:
                self._remember(end, self.prefix, True)
            self.prefix = start

    def _absorb(self) -> None:
        if self.held.get(self.prefix):
            gap = self.held.first_unset(self.prefix, REMEMBERED_BLOCKS)
            self.prefix = REMEMBERED_BLOCKS if gap is None else gap

    def rewind(self, index: int) -> None:
        """Block `index` and those behind it may have to be chosen once more."""
        for each, cursor in self.cursors.items():
            if cursor > index:
                self.cursors[each] = index

    # ---- wants ----

    def want(self, index: int) -> None:
        """Ask once what the peer holds around block `index`."""
        region = index // WANT_REGION_BLOCKS
        if region in self.wanted:
            return
        if len(self.wanted) >= WANT_REGIONS:
            del self.wanted[next(iter(self.wanted))]
        self.wanted[region] = None
        self.wants_to_send.append(region)

    def forget_wants(self) -> None:
        """Ask again: what was said before may be stale (wire spec, pitfall 1)."""
        self.wanted.clear()
        self.wants_to_send.clear()
        # The cursors passed over the blocks that these wants were about.
        self.rewind(0)

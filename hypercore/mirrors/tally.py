"""What a mirror has of one core, and what has come and gone.

Counts are taken from the log and its peers when they are asked for; a block that arrives is not counted here.
"""

from __future__ import annotations

import contextlib

from hypercore.core import Hypercore
from hypercore.errors import HypercoreError
from hypercore.log.engine import Log
from hypercore.mirrors.budget import Budget
from hypercore.mirrors.status import CoreStatus, PeerStatus, Rate, Role
from hypercore.peer import Peer


class Tally:
    """Counts for blocks `start` to `end` of the core that is attached, and for those that were before it."""

    def __init__(self, start: int, end: int | None, budget: Budget) -> None:
        self._start = start
        self._end = end
        self._budget = budget
        self._core: Hypercore | None = None
        #: Stored bytes when they were counted, and what the log had written by then.
        self._counted_bytes = self._counted_written = 0
        #: The fork whose bytes were counted.
        self.counted_fork = -1
        #: What the core takes of the budget.
        self._used_bytes = 0
        self._block_rate, self._byte_rate = Rate(), Rate()
        self._peer_rates: dict[Peer, Rate] = {}
        #: Blocks and bytes, received from and sent to peers that are gone.
        self._gone = [0, 0, 0, 0]

    def attach(self, core: Hypercore) -> None:
        """Count what is in `core` from now on."""
        self.detach()
        self._core = core
        # What is here already did not come just now.
        self._block_rate, self._byte_rate = Rate(), Rate()
        core.hub.on_peer.append(self._take_peer)

    def detach(self) -> None:
        """The core closes, and takes nothing of the budget any more."""
        core, self._core = self._core, None
        if core is not None:
            for peer in core.peers:
                self._take_peer(peer, False)
            core.hub.on_peer.remove(self._take_peer)
        self._counted_bytes = self._counted_written = 0
        self.counted_fork = -1
        self._use(0)

    # ---- blocks ----

    @property
    def want(self) -> int:
        """Blocks of the range; of one without an end, as far as the log's length is known."""
        return self.existing if self._end is None else max(0, self._end - self._start)

    @property
    def existing(self) -> int:
        """Blocks of the range that the log has, as far as its length is known."""
        length = self._core.length if self._core is not None else 0
        return max(0, (length if self._end is None else min(self._end, length)) - self._start)

    @property
    def have(self) -> int:
        """Blocks of the range that are stored."""
        if self._core is None:
            return 0
        log = self._core.hub.log
        end = log.length if self._end is None else min(self._end, log.length)
        if log.contiguous_length >= end:
            return max(0, end - self._start)
        return log.bitfield.count(self._start, end)

    # ---- bytes ----

    @property
    def stored_bytes(self) -> int:
        """Bytes of all blocks that are stored, as of the last `count` and what was written since."""
        if self._core is None:
            return 0
        return self._counted_bytes + self._core.hub.log.written_bytes - self._counted_written

    async def count(self) -> None:
        """Count the stored bytes anew; from then on they follow from what is written."""
        core = self._core
        if core is None:
            return
        log = core.hub.log
        fork, written = log.fork, log.written_bytes
        counted = await count_stored_bytes(log)
        if core is self._core:
            if self.counted_fork == -1:
                self._byte_rate = Rate()
            self._counted_bytes, self._counted_written, self.counted_fork = counted, written, fork
            self.account()

    def account(self) -> None:
        """Say what the core takes of the budget; one that only reads takes nothing."""
        if self._core is not None and not self._core.hub.log.read_only:
            self._use(self.stored_bytes)

    def _use(self, size: int) -> None:
        grown, self._used_bytes = size - self._used_bytes, size
        self._budget.use(grown)

    # ---- all of it ----

    def _take_peer(self, peer: Peer, is_here: bool) -> None:
        if not is_here:
            self._peer_rates.pop(peer, None)
            counts = (peer.blocks_received, peer.bytes_received, peer.blocks_sent, peer.bytes_sent)
            self._gone = [before + now for before, now in zip(self._gone, counts, strict=True)]

    def status(self, key: bytes, role: Role, error: str | None, now: float) -> CoreStatus:
        core, gone = self._core, self._gone
        have, stored_bytes = self.have, self.stored_bytes
        peers = tuple(self._peer_status(peer, now) for peer in core.peers) if core is not None else ()
        if error is None and core is not None and core.hub.frozen:
            error = core.hub.warnings[-1]
        return CoreStatus(
            key=key,
            role=role,
            have=have,
            want=self.want,
            length=core.length if core is not None else 0,
            fork=core.fork if core is not None else 0,
            stored_bytes=stored_bytes,
            blocks_per_second=self._block_rate.look(have, now),
            bytes_per_second=self._byte_rate.look(stored_bytes, now),
            blocks_received=gone[0] + sum(peer.blocks_received for peer in peers),
            bytes_received=gone[1] + sum(peer.bytes_received for peer in peers),
            blocks_sent=gone[2] + sum(peer.blocks_sent for peer in peers),
            bytes_sent=gone[3] + sum(peer.bytes_sent for peer in peers),
            peers=peers,
            error=error,
        )

    def _peer_status(self, peer: Peer, now: float) -> PeerStatus:
        rate = self._peer_rates.setdefault(peer, Rate())
        return PeerStatus(
            address=peer.remote_address,
            length=peer.remote_length,
            blocks_received=peer.blocks_received,
            bytes_received=peer.bytes_received,
            blocks_sent=peer.blocks_sent,
            bytes_sent=peer.bytes_sent,
            blocks_per_second=rate.look(peer.blocks_received, now),
        )


async def count_stored_bytes(log: Log) -> int:
    """Bytes of the blocks that are stored. Reads two tree nodes for each unbroken run of them."""
    if log.contiguous_length == log.length:
        return log.byte_length
    total = 0
    for start, count in list(log.bitfield.runs(0, log.length)):
        with contextlib.suppress(HypercoreError):  # Whatever is wrong there shows when the block is read.
            last = start + count - 1
            (leaf,) = await log.nodes([2 * last])
            if leaf is not None:
                total += await log.byte_offset(last) + leaf.size - await log.byte_offset(start)
    return total

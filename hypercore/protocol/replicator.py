"""What to ask of whom: one replicator for each core, over all its peers.

Pure: it is told what peers say, what the local tree is and what time it is, and answers with what to ask next.
It never reads storage, verifies nothing and sends nothing; the session above does. Rules: wire spec, sections
5.2 to 5.12.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from hypercore.proofs import BlockRequest, Proof, ProofRequest, UpgradeRequest
from hypercore.protocol import messages
from hypercore.protocol.remote import Ask, AskKind, Demand, RemotePeer
from hypercore.protocol.wanted import Download, LocalTree, WantedBlocks

#: Requests in flight at one peer. The lower bound keeps the pipe full when blocks are large, the upper one is what
#: other implementations hold over their fastest transport.
FEWEST_ASKS: Final = 16
MOST_ASKS: Final = 512
#: Bytes of answers that may be on their way from one peer, by the average size of a block so far.
ASKED_BYTES: Final = 8 * 1024 * 1024
#: A download asks for more once a quarter of its window is free.
REFILL_SHARE: Final = 4
#: Peers of which it is looked whether they have a block, too, before it is asked of one that has more.
MOST_SPARING: Final = 8
#: A peer that answered nothing for this long is asked no more for now, and others are asked instead.
ANSWER_TIMEOUT_SECONDS: Final = 10.0
#: After so many silent timeouts in a row the peer is given up.
MOST_TIMEOUTS: Final = 3
#: A block asked of one peer for this long may be asked of a second, idle one (hot swap).
HOT_SWAP_SECONDS: Final = 0.5
#: Wrong answers before the connection is ended.
MOST_STRIKES: Final = 3
#: Times a peer may clear itself of a wrong answer with a good proof of its whole tree.
MOST_CONFLICT_CHECKS: Final = 2


class Replicator:
    """Decides what is asked of which peer."""

    def __init__(self, local: LocalTree, *, scatter: float = 0.0) -> None:
        """With several peers a download begins at `scatter`, 0 up to 1, of what it wants. Readers who differ in that
        fetch different blocks from the writer, and the rest from each other.
        """
        self._local = local
        self.scatter = scatter
        self.peers: list[RemotePeer] = []
        self._wanted = WantedBlocks(local)
        self._demands: list[Demand] = []
        #: Who was asked for an upgrade, or is being followed to a fork, and since when. One does, unless it is slow.
        self._upgrading: dict[RemotePeer, float] = {}
        self._forking: dict[RemotePeer, float] = {}
        #: Answers to such requests that are on their way into the storage, which may be far away.
        self.storing_upgrades = 0
        #: Something became free to be asked of any peer; whoever wakes the peers takes this back.
        self.is_stirred = False
        #: Called when a peer is given up, with the reason.
        self.on_give_up: Callable[[RemotePeer, str], None] | None = None

    # ---- what is wanted ----

    def want_block(self, index: int) -> None:
        """Somebody waits for block `index`; counted, see `unwant_block`."""
        self._wanted.add(index)

    def unwant_block(self, index: int) -> None:
        self._wanted.remove(index)

    def add_download(self, download: Download) -> None:
        self._wanted.add_download(download)

    def look_again(self, download: Download, index: int) -> None:
        """Blocks of a download from `index` on are missing again."""
        for peer in self.peers:
            peer.rewind(index)
        self.is_stirred = True

    def remove_download(self, download: Download) -> None:
        self._wanted.remove_download(download, self.peers)

    def add_demand(self, demand: Demand) -> None:
        """Ask for a proof. When the peers are known to be of no help `demand.done` is called before this returns."""
        if demand.peer is not None or self.peers:
            self._offer(demand)
        else:
            self._demands.append(demand)

    def _offer(self, demand: Demand) -> None:
        if any(self._may_answer(peer, demand) for peer in self.peers):
            self._demands.insert(0, demand)
            self.is_stirred = True
        else:
            demand.done(demand.peer, None)

    def _may_answer(self, peer: RemotePeer, demand: Demand) -> bool:
        """Whether the peer can be asked for this now or, since it has not said a word yet, perhaps soon."""
        request = demand.request
        if peer.paused or peer in demand.tried or (demand.peer is not None and demand.peer is not peer):
            return False
        if demand.peer is not None or not peer.synced:
            return True
        upgrade = request.upgrade
        end = self._local.length if upgrade is None else upgrade.start + upgrade.length
        return peer.fork == request.fork and peer.length >= end and (request.seek is None or peer.seeks)

    def remove_demand(self, demand: Demand) -> None:
        if demand in self._demands:
            self._demands.remove(demand)

    # ---- peers ----

    def add_peer(self, peer: RemotePeer) -> None:
        self.peers.append(peer)

    def remove_peer(self, peer: RemotePeer) -> None:
        """The peer is gone; what it was asked is asked of others."""
        if peer not in self.peers:
            return
        self.peers.remove(peer)
        for ask in list(peer.asks.values()):
            self._release(peer, ask)
            self._requeue(ask)
            if ask.demand is not None:
                self.refused(peer, ask)
        self._forking.pop(peer, None)
        self._end_demands(peer)
        self.is_stirred = True

    def _end_demands(self, peer: RemotePeer) -> None:
        """Nothing that only this peer could show will come."""
        for demand in [each for each in self._demands if each.peer is peer]:
            self._demands.remove(demand)
            demand.done(None, None)

    def may_deliver(self, peer: RemotePeer) -> bool:
        """Whether anything can still come from this peer: it is trusted, or has a chance to clear itself."""
        return not peer.paused or bool(peer.asks) or self._may_clear_itself(peer)

    def settled(self, peer: RemotePeer) -> bool:
        """Whether nothing more can be learned of the log's length from this peer right now."""
        if peer.paused or (peer.synced and not peer.uploading):
            return True
        if not peer.synced or peer in self._forking:
            return False
        if peer.fork > self._local.fork:
            return peer.fork in peer.refused_forks or peer.length == 0
        if peer.fork < self._local.fork or peer.length <= self._local.length:
            return not (self._local.needs_manifest and peer.has_manifest and peer.length == 0 and peer.asks)
        return not peer.can_upgrade and peer.acked_length == self._local.length

    # ---- what peers say ----

    def answered(self, peer: RemotePeer, data: messages.Data, now: float) -> Ask | None:
        """The ask that `data` answers, now closed; None when nobody asked (drop it).

        Raises `UnaskedPartError` when it answers something else than was asked.
        """
        ask = peer.asks.get(data.request_id)
        if ask is None:
            return None
        peer.answered_at = now
        peer.timeouts = 0
        self._release(peer, ask)
        proof, request = data.proof, ask.request
        if not _fits(proof, request):
            self.wrong(peer, ask)
            raise UnaskedPartError("the answer is not what was asked for")
        return ask

    def no_data(self, peer: RemotePeer, request_id: int, now: float) -> None:
        """The peer cannot answer; ask elsewhere."""
        ask = peer.asks.get(request_id)
        if ask is None:
            return
        peer.answered_at = now
        peer.timeouts = 0
        self._release(peer, ask)
        self.refused(peer, ask)

    def refused(self, peer: RemotePeer, ask: Ask) -> None:
        """An ask came to nothing: it was answered with noData, or with an answer that lacks the part asked for."""
        self._requeue(ask)
        has_gone_on = ask.request.fork != peer.fork
        if ask.index >= 0 and not has_gone_on:
            peer.lost(ask.index)
        elif ask.kind is AskKind.UPGRADE and not has_gone_on:
            # Until the peer says something new it cannot prove the way.
            peer.can_upgrade = False
        if ask.kind is AskKind.MANIFEST:
            peer.has_manifest = False
        if ask.kind is AskKind.FORK:
            peer.refused_forks.add(ask.request.fork)
            self._forking.pop(peer, None)
        if ask.demand is not None:
            ask.demand.tried.add(peer)
            self._offer(ask.demand)

    def duplicates(self, ask: Ask, peer: RemotePeer) -> Iterator[tuple[RemotePeer, Ask]]:
        """The asks of other peers that an answer to `ask` made pointless; they are closed."""
        if ask.index < 0:
            return
        for other in self._wanted.asked(ask.index):
            if other is peer:
                continue
            for theirs in list(other.asks.values()):
                if theirs.index == ask.index and theirs.kind is AskKind.BLOCK:
                    self._release(other, theirs)
                    yield other, theirs

    def distrust(self, peer: RemotePeer, reason: str) -> None:
        """The peer gave a wrong answer: ask it nothing more, except for a proof that clears it."""
        peer.strikes += 1
        peer.paused = True
        for ask in list(peer.asks.values()):
            self._release(peer, ask)
            self.wrong(peer, ask)
        self._end_demands(peer)
        if peer.strikes >= MOST_STRIKES and self.on_give_up is not None:
            self.on_give_up(peer, reason)

    def wrong(self, peer: RemotePeer, ask: Ask) -> None:
        """What `ask` asked for is still wanted, from somebody else."""
        self._requeue(ask)
        if ask.demand is not None or ask.kind is AskKind.FORK:
            self.refused(peer, ask)

    def cleared(self, peer: RemotePeer) -> None:
        """The peer proved that its tree is ours."""
        peer.paused = False

    def forked(self, peer: RemotePeer, fork: int, *, followed: bool) -> None:
        """The reorg to `fork` begun with this peer has ended."""
        self._forking.pop(peer, None)
        self.is_stirred = True
        if followed:
            # The writer's signature shows that the log was truncated; wrong answers until then are explained by that.
            peer.strikes = peer.conflict_checks = 0
            peer.paused = False
        else:
            peer.refused_forks.add(fork)

    # ---- what to ask ----

    def expire(self, now: float) -> list[tuple[RemotePeer, Ask]]:
        """Asks that a silent peer did not answer in time; they are closed and may be asked elsewhere."""
        expired: list[tuple[RemotePeer, Ask]] = []
        for peer in list(self.peers):
            if not peer.asks:
                continue
            first = min(ask.asked_at for ask in peer.asks.values())
            if now - max(first, peer.answered_at) < ANSWER_TIMEOUT_SECONDS:
                continue
            peer.timeouts += 1
            peer.answered_at = now
            for ask in list(peer.asks.values()):
                self._release(peer, ask)
                self.wrong(peer, ask)
                expired.append((peer, ask))
            if peer.timeouts >= MOST_TIMEOUTS and self.on_give_up is not None:
                self.on_give_up(peer, f"{peer.timeouts} requests in a row were never answered")
        return expired

    @property
    def has_asks(self) -> bool:
        """Whether anything is in flight, so that `expire` must be called from time to time."""
        return any(peer.asks for peer in self.peers)

    @property
    def is_wanting(self) -> bool:
        """Whether anything is wanted that is not here."""
        return bool(self._wanted or self._demands)

    def next_asks(self, peer: RemotePeer, now: float) -> list[Ask]:
        """What to ask of `peer` now; the asks are in flight from here on."""
        asks: list[Ask] = []
        if not peer.synced:
            return asks
        if peer.paused:
            self._ask_for_conflict(peer, now, asks)
            return asks
        if not peer.uploading:
            return asks
        local = self._local
        if peer.fork > local.fork:
            self._ask_for_fork(peer, now, asks)
            return asks
        if peer.fork < local.fork:
            return asks
        self._ask_for_upgrade(peer, now, asks)
        self._ask_for_demands(peer, now, asks)
        room = self._window(peer) - len(peer.asks)
        if room > 0 and (peer.length >= local.length or peer.provable):
            asks.extend(self._ask_block(peer, index, now) for index in self._blocks_for(peer, room, now))
        return asks

    def _window(self, peer: RemotePeer) -> int:
        if peer.timeouts:
            return 1  # It has to show that it answers before it is trusted with more.
        length = self._local.length
        average = self._local.byte_length // length if length else 0
        if average == 0:
            return MOST_ASKS
        # Several that deliver share it: what waits long in a queue would be asked for twice.
        busy = sum(1 for other in self.peers if other.asks and other is not peer)
        return max(FEWEST_ASKS, min(MOST_ASKS, ASKED_BYTES // average // (busy + 1)))

    def _blocks_for(self, peer: RemotePeer, room: int, now: float) -> list[int]:
        # A few answers make room for a few requests, but each sending costs both sides a system call and a wake-up.
        may_download = room * REFILL_SHARE >= self._window(peer) or not peer.asks
        if may_download and len(self.peers) > 1:
            others = self._with_less(peer, now)
            chosen = self._wanted.choose(peer, room, scatter=self.scatter, others=others)
        else:
            chosen = self._wanted.choose(peer, room, downloads=may_download)
        if not chosen and not peer.asks:
            return self._hot_swaps(peer, room, now)
        return chosen

    def _with_less(self, peer: RemotePeer, now: float) -> list[RemotePeer]:
        """Peers that have less than this one and deliver swiftly: it is spared what they have, for who has all is asked
        by all.
        """
        return [
            other
            for other in self.peers
            if other.asks
            and other.prefix < peer.prefix
            and not other.timeouts
            and now - next(iter(other.asks.values())).asked_at < HOT_SWAP_SECONDS
        ][:MOST_SPARING]

    def _hot_swaps(self, peer: RemotePeer, room: int, now: float) -> list[int]:
        # This peer is idle; the blocks that others are slow with are asked of it too, and whoever is slower is told.
        asked_at: dict[int, float] = {}
        for other in self.peers:
            for ask in other.asks.values():
                if ask.index >= 0:
                    asked_at[ask.index] = max(ask.asked_at, asked_at.get(ask.index, 0.0))
        limit = min(self._local.length, peer.length)
        slow = [
            index
            for index, latest in asked_at.items()
            if now - latest >= HOT_SWAP_SECONDS and index < limit and peer.has(index)
        ]
        # Those that somebody waits for, then the last in a queue: the first ones may be on their way by now.
        slow.sort(key=self._wanted.is_urgent)
        slow.reverse()
        return slow[: max(FEWEST_ASKS, room // REFILL_SHARE)]

    def _ask_block(self, peer: RemotePeer, index: int, now: float) -> Ask:
        request = ProofRequest(self._local.fork, BlockRequest(index, 0))
        ask = Ask(peer.next_id, AskKind.BLOCK, request, index, int(self._wanted.is_urgent(index)), now)
        peer.next_id += 1
        peer.asks[ask.id] = ask
        self._wanted.begin(index, peer)
        return ask

    def _ask(
        self, peer: RemotePeer, kind: AskKind, request: ProofRequest, now: float, demand: Demand | None = None
    ) -> Ask:
        ask = Ask(peer.next_id, kind, request, asked_at=now, demand=demand)
        peer.next_id += 1
        peer.asks[ask.id] = ask
        return ask

    def _ask_for_upgrade(self, peer: RemotePeer, now: float, asks: list[Ask]) -> None:
        local = self._local
        wants_manifest = local.needs_manifest and peer.has_manifest
        if peer.length <= local.length:
            # A log that is complete may lack it, too: a crash came between its first upgrade and its header.
            if wants_manifest and not peer.asks:
                asks.append(self._ask(peer, AskKind.MANIFEST, ProofRequest(local.fork, manifest=True), now))
            return
        if self.storing_upgrades or not peer.can_upgrade or peer.acked_length != local.length:
            return
        if not _may_begin(peer, self._upgrading, now):
            return
        upgrade = UpgradeRequest(local.length, peer.length - local.length)
        block = None
        if self._wanted.is_open(local.length) and peer.has(local.length):
            block = BlockRequest(local.length, 0)
        request = ProofRequest(local.fork, block=block, upgrade=upgrade, manifest=wants_manifest)
        ask = self._ask(peer, AskKind.UPGRADE, request, now)
        if block is not None:
            # The first new block travels with the proof that makes it readable: one round trip less.
            ask.index = local.length
            self._wanted.begin(ask.index, peer)
        self._upgrading[peer] = now
        asks.append(ask)

    def _ask_for_fork(self, peer: RemotePeer, now: float, asks: list[Ask]) -> None:
        self._ask_for_demands(peer, now, asks)
        if peer.length == 0 or peer.fork in peer.refused_forks or not _may_begin(peer, self._forking, now):
            return
        local = self._local
        request = ProofRequest(
            peer.fork,
            upgrade=UpgradeRequest(0, peer.length),
            manifest=local.needs_manifest and peer.has_manifest,
        )
        self._forking[peer] = now
        asks.append(self._ask(peer, AskKind.FORK, request, now))

    def _ask_for_demands(self, peer: RemotePeer, now: float, asks: list[Ask]) -> None:
        for demand in list(self._demands):
            if self._may_answer(peer, demand):
                self._demands.remove(demand)
                asks.append(self._ask(peer, AskKind.DEMAND, demand.request, now, demand))

    def _ask_for_conflict(self, peer: RemotePeer, now: float, asks: list[Ask]) -> None:
        if 0 in peer.asks or not self._may_clear_itself(peer):
            return
        peer.conflict_checks += 1
        request = ProofRequest(peer.fork, upgrade=UpgradeRequest(0, min(peer.length, self._local.length)))
        ask = Ask(0, AskKind.CONFLICT, request, asked_at=now)
        peer.asks[0] = ask
        asks.append(ask)

    def _may_clear_itself(self, peer: RemotePeer) -> bool:
        local = self._local
        has_checks_left = peer.conflict_checks < MOST_CONFLICT_CHECKS
        return has_checks_left and peer.fork == local.fork and peer.length > 0 and local.length > 0

    def _release(self, peer: RemotePeer, ask: Ask) -> None:
        peer.asks.pop(ask.id, None)
        if ask.index >= 0:
            self._wanted.end(ask.index, peer)
        if ask.kind is AskKind.UPGRADE:
            self._upgrading.pop(peer, None)
            self.is_stirred = True
        if not peer.asks and len(self.peers) > 1:
            self.is_stirred = True  # Others were spared what it has, and it may have no more of that.

    def _requeue(self, ask: Ask) -> None:
        if ask.index >= 0:
            self._wanted.again(ask.index, self.peers)
            self.is_stirred = True


class UnaskedPartError(Exception):
    """An answer holds something that was not asked for."""


def _may_begin(peer: RemotePeer, begun: dict[RemotePeer, float], now: float) -> bool:
    """Whether another peer may be asked for what one is asked for: when all who were asked are slow."""
    return peer not in begun and all(now - since >= HOT_SWAP_SECONDS for since in begun.values())


def _fits(proof: Proof, request: ProofRequest) -> bool:
    """Whether every part of the answer was asked for; a part that is missing is tolerated."""
    block, hash_, seek, upgrade = proof.block, proof.hash, proof.seek, proof.upgrade
    if proof.fork != request.fork:
        # Nothing but a manifest is sent to whom asks for another fork.
        return proof == Proof(proof.fork, manifest=proof.manifest) and request.manifest
    if block is not None and (request.block is None or block.index != request.block.index):
        return False
    if hash_ is not None and (request.hash is None or hash_.index != request.hash.index):
        return False
    if seek is not None and (request.seek is None or seek.byte_offset != request.seek.byte_offset):
        return False
    if upgrade is not None:
        asked = request.upgrade
        if asked is None or upgrade.start != asked.start or upgrade.length != asked.length:
            return False
    return proof.manifest is None or request.manifest

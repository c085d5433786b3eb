"""Fetching from one peer of one core: requests go out, answers are verified and stored.

Shell floor: turns the replicator's asks into messages and the peer's answers into engine calls.

A request says how many steps above its block the reader knows nothing, so that the answer brings the hashes that are
missing. Asking for many blocks at once, each as if it were the first, would bring the same upper hashes again and
again. So a request counts on what earlier requests to the same peer will bring (its *promises*), and carries one hash
a block instead of ten. Answers may overtake each other; one that builds on hashes which are still under way is held
back until they are here.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from hypercore.errors import (
    ClosedError,
    DecodeError,
    HypercoreError,
    StaleProofError,
    StorageError,
    UnanchoredProofError,
    VerificationError,
)
from hypercore.log import flat_tree
from hypercore.proofs import BlockRequest, Proof, ProofRequest
from hypercore.protocol import messages
from hypercore.protocol.remote import Ask, AskKind, Demand, RemotePeer
from hypercore.protocol.replicator import UnaskedPartError

if TYPE_CHECKING:
    from hypercore.peer import Peer
    from hypercore.replication import Hub

#: Unasked proofs of a conflict that are looked at, one signature check each; later ones are dropped.
MOST_CONFLICT_PROOFS: Final = 8
#: Answers held back until the hashes they build on are here; beyond this they are asked for again.
HELD_BACK_BYTES: Final = 8 * 1024 * 1024


class Fetcher:
    """What one peer is asked, and what becomes of its answers."""

    def __init__(self, hub: Hub, peer: Peer) -> None:
        self._hub = hub
        self._log = hub.log
        self._peer = peer
        self._remote: RemotePeer = peer.remote
        #: The request that will bring a tree node, and the nodes of each request.
        self._promised: dict[int, int] = {}
        self._promises: dict[int, list[int]] = {}
        self._held_back: list[tuple[Ask, Proof]] = []
        self._conflict_proofs = 0

    # ---- asking ----

    async def ask(self, send: Callable[[messages.Message], None], now: float) -> None:
        """Send what is to be asked now."""
        log, promised = self._log, self._promised
        asks = self._hub.replicator.next_asks(self._remote, now)
        if not asks:
            return
        self._forget_promises()
        for ask in asks:
            if ask.kind is AskKind.BLOCK:
                steps = self._steps_to_promise(ask)
                if steps is None:
                    steps = await log.missing_nodes(2 * ask.index)
                if steps:
                    ask.request = ProofRequest(ask.request.fork, BlockRequest(ask.index, steps))
                    leaf = 2 * ask.index
                    nodes = flat_tree.path_with_siblings(leaf, flat_tree.ancestor(leaf, steps))
                    self._promises[ask.id] = nodes
                    for node in nodes:
                        promised[node] = ask.id
            send(messages.Request(ask.id, ask.priority, ask.request))

    def _steps_to_promise(self, ask: Ask) -> int | None:
        """Steps from the leaf of the block up to a node that an earlier request will bring, if there is one."""
        promised = self._promised
        if not promised:
            return None
        node, end, steps = 2 * ask.index, 2 * self._log.length, 0
        # Above a node that is stored all are stored, so that none of them is promised: the climb ends at the root.
        while (earlier := promised.get(node)) is None:
            if flat_tree.right_span(node) >= end:
                return None
            node = flat_tree.parent(node)
            steps += 1
        ask.counts_on = earlier
        return steps

    def _forget_promises(self) -> None:
        kept = self._remote.asks.keys() | {ask.id for ask, _ in self._held_back}
        for ask_id in [each for each in self._promises if each not in kept]:
            for node in self._promises.pop(ask_id):
                if self._promised.get(node) == ask_id:
                    del self._promised[node]

    # ---- answers ----

    async def take(self, batch: list[messages.Data], now: float) -> None:
        """Verify and store answers; those that follow each other become one commit."""
        replicator, remote = self._hub.replicator, self._remote
        taken: list[tuple[Ask, Proof]] = []
        for data in batch:
            try:
                ask = replicator.answered(remote, data, now)
            except UnaskedPartError as error:
                self.distrust(str(error))
                continue
            if ask is None:
                if data.request_id == 0:
                    await self._take_conflict(data.proof, asked=False)
                continue
            if data.proof.fork != ask.request.fork:
                replicator.refused(remote, ask)
                continue
            match ask.kind:
                case AskKind.CONFLICT:
                    await self._take_conflict(data.proof, asked=True)
                case AskKind.FORK:
                    self._begin_reorg(ask, data.proof)
                case AskKind.DEMAND if ask.demand is not None and ask.demand.peer is not None:
                    ask.demand.done(remote, data.proof)
                case _:
                    taken.append((ask, data.proof))
                    if ask.index >= 0:
                        self._cancel_duplicates(ask)
        if taken:
            await self._store(taken, now)
        else:
            self.release_hopeless()

    def _cancel_duplicates(self, ask: Ask) -> None:
        for other, theirs in self._hub.replicator.duplicates(ask, self._remote):
            if (slower := self._hub.find_peer(other)) is not None:
                slower.cancel(theirs)
                slower.release_hopeless()

    async def _store(self, taken: list[tuple[Ask, Proof]], now: float) -> None:
        for ask, _ in taken:
            ask.held_at = now
        waiting = taken + self._held_back
        self._held_back = []
        replicator = self._hub.replicator
        upgrades = sum(ask.kind is AskKind.UPGRADE for ask, _ in taken)
        replicator.storing_upgrades += upgrades
        try:
            while waiting:
                count = len(waiting)
                waiting = await self._store_once(waiting)
                if len(waiting) == count:
                    break
        finally:
            if upgrades:
                replicator.storing_upgrades -= upgrades
                replicator.is_stirred = True
            # When our storage failed too: what is not stored is asked for again.
            self._held_back = waiting
            self.release_hopeless()

    async def _store_once(self, taken: list[tuple[Ask, Proof]]) -> list[tuple[Ask, Proof]]:
        """Store what holds; what builds on hashes that are not here yet is given back."""
        replicator, remote = self._hub.replicator, self._remote
        waiting: list[tuple[Ask, Proof]] = []
        wrong: VerificationError | None = None
        errors = await self._log.apply([proof for _, proof in taken])
        for (ask, proof), error in zip(taken, errors, strict=True):
            if error is None:
                self._stored(ask, proof)
            elif ask.counts_on and isinstance(error, UnanchoredProofError):
                waiting.append((ask, proof))
            else:
                replicator.wrong(remote, ask)
                # A peer that has gone on to another fork made this answer in the midst of that.
                if not isinstance(error, StaleProofError) and ask.request.fork == remote.fork:
                    wrong = error
        if wrong is not None:
            self.distrust(str(wrong))  # Once: what it sent before it could hear of this is no further offence.
        return waiting

    def _stored(self, ask: Ask, proof: Proof) -> None:
        replicator, remote, block = self._hub.replicator, self._remote, proof.block
        if block is not None:
            remote.blocks_received += 1
            remote.bytes_received += len(block.value)
        elif ask.kind is AskKind.BLOCK:
            replicator.refused(remote, ask)
        elif ask.index >= 0:
            replicator.wrong(remote, ask)  # The upgrade came without the block that was to travel with it.
        if ask.kind is AskKind.UPGRADE and proof.upgrade is None:
            replicator.refused(remote, ask)
            self._hub.changed()
        if ask.kind is AskKind.MANIFEST:
            if proof.manifest is None:
                replicator.refused(remote, ask)
            self._hub.changed()  # Whoever waits for the length to settle waited for this answer, too.
        if ask.demand is not None:
            if proof.hash is None:
                replicator.refused(remote, ask)  # It has answered, and shown nothing.
            else:
                ask.demand.done(remote, proof)

    def release_hopeless(self) -> None:
        """Ask again for what was held back and can no longer come true, because the request it counted on is over."""
        if not self._held_back:
            return
        alive = set(self._remote.asks)
        size = 0
        kept: list[tuple[Ask, Proof]] = []
        for ask, proof in sorted(self._held_back, key=lambda held: held[0].id):
            size += len(proof.block.value) if proof.block is not None else 0
            if ask.counts_on and ask.counts_on in alive and size <= HELD_BACK_BYTES:
                alive.add(ask.id)
                kept.append((ask, proof))
            else:
                self._hub.replicator.wrong(self._remote, ask)
        self._held_back = kept

    def give_back(self, *, held_before: float = math.inf) -> None:
        """What was held back since before a time has to come from another peer."""
        late = [ask for ask, _ in self._held_back if ask.held_at < held_before]
        self._held_back = [held for held in self._held_back if held[0].held_at >= held_before]
        for ask in late:
            self._hub.replicator.wrong(self._remote, ask)

    def distrust(self, reason: str) -> None:
        """The peer gave a wrong answer."""
        self._hub.replicator.distrust(self._remote, reason)
        self._hub.changed()

    async def _take_conflict(self, proof: Proof, *, asked: bool) -> None:
        if proof.upgrade is None or proof.upgrade.start != 0:
            return
        if not asked:
            self._conflict_proofs += 1
            if self._conflict_proofs > MOST_CONFLICT_PROOFS:
                return
        try:
            conflict = await self._log.conflicts(proof)
        except HypercoreError:
            return
        if conflict:
            await self._hub.freeze(self._peer, proof.upgrade.length)
        elif asked:
            self._hub.replicator.cleared(self._remote)

    # ---- reorgs ----

    def _begin_reorg(self, ask: Ask, proof: Proof) -> None:
        if proof.upgrade is None:
            self._hub.replicator.refused(self._remote, ask)
        else:
            self._peer.session.start(self._reorg(proof))

    async def _reorg(self, proof: Proof) -> None:
        hub, remote, followed = self._hub, self._remote, False
        try:
            reorg = await self._log.begin_reorg(proof)
            while (request := reorg.next_request()) is not None:
                answer = await self._demand(request)
                if answer is None:
                    if remote.fork != proof.fork or self._peer not in hub.peers:
                        return  # It cannot say more of this fork, and another peer, or its next fork, saves more.
                    break  # What is known to be shared by now is kept.
                await reorg.receive(self._log, answer)
            await self._log.commit_reorg(reorg)
            followed = True
        except StaleProofError:
            pass  # The log went on to a fork as new meanwhile.
        except (VerificationError, DecodeError) as error:
            if remote.fork == proof.fork:
                self.distrust(str(error))
        except (StorageError, ClosedError) as error:
            self._peer.session.drop(hub, error)
        finally:
            hub.replicator.forked(remote, proof.fork, followed=followed)
            hub.changed()  # Whoever waits for the length to settle was told of it while this was still going on.
            hub.pump()

    async def _demand(self, request: ProofRequest) -> Proof | None:
        """Ask this very peer, and nobody else."""
        waiter: asyncio.Future[Proof | None] = asyncio.get_running_loop().create_future()

        def done(_peer: RemotePeer | None, answer: Proof | None) -> None:
            if not waiter.done():
                waiter.set_result(answer)

        self._hub.replicator.add_demand(Demand(request, done, self._remote))
        self._peer.session.wake()
        return await waiter

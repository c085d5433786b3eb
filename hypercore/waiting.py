"""Waiting that says why and ends: for a block, a length, a peer, or the answer to a question.

Shell floor, above the hub: knows who waits for what, and wakes them when the log or its peers change. Every wait looks
again after a change whether it can still come true, and raises when it cannot.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from dataclasses import dataclass
from typing import Final

from hypercore.errors import BlockIndexError, BlockNotAvailableError, ClosedError, CorruptError
from hypercore.log.engine import Log, LogChange
from hypercore.log.seek import Found
from hypercore.peer import GROWING, STORING, Peer
from hypercore.proofs import Proof, ProofRequest
from hypercore.protocol.remote import Demand, RemotePeer
from hypercore.replication import Hub

#: A peer that claims to be longer but shows nothing for this long is not waited for.
SETTLING_SECONDS: Final = 10.0

_Waiter = asyncio.Future[None]


@dataclass(slots=True)
class _Goal:
    """What one peer is waited for: until then, or until the log has come as far as its tree was."""

    until: float
    tree: tuple[int, int] | None = None


class Waiting:
    """Those who wait for one core."""

    def __init__(self, log: Log, hub: Hub) -> None:
        self._log = log
        self._hub = hub
        self._for_block: dict[int, list[_Waiter]] = {}
        self._for_news: list[_Waiter] = []
        self._is_closed = False
        hub.on_change.append(self._changed)

    def close(self) -> None:
        """Wake everybody; blocks that are waited for raise `ClosedError`."""
        self._is_closed = True
        self._wake_all()

    # ---- what may be waited for ----

    async def block(self, index: int) -> bytes:
        """Block `index`, from a peer. Raises `BlockNotAvailableError` when nobody is left who could bring it."""
        log, hub = self._log, self._hub
        hub.replicator.want_block(index)
        hub.pump_for(index)
        try:
            while True:
                if self._is_closed:
                    raise ClosedError(f"the core was closed while block {index} was waited for")
                if log.has(index):
                    try:
                        block = await log.get(index)
                    except CorruptError:
                        if not hub.may_have_peers:
                            raise
                        block = None  # It counts as missing from here on, and a peer is asked for it.
                    if block is not None:
                        return block
                if not hub.may_have_peers:
                    raise BlockNotAvailableError(
                        f"block {index} is not stored here, no peer is connected and none is being looked for"
                    )
                await self._block_change(index)
        finally:
            hub.replicator.unwant_block(index)

    async def place(self, byte_offset: int, padding: int) -> Found:
        """Where a byte offset lies, asking peers for the sizes that are not known here.

        Raises `BlockIndexError` when it lies beyond the log's end, and `BlockNotAvailableError` when nobody can say.
        """
        log, hub, was_settled = self._log, self._hub, False
        while True:
            result = await log.seek(byte_offset, padding)
            if isinstance(result, Found):
                return result
            if self._is_closed:
                raise ClosedError(f"the core was closed while byte offset {byte_offset} was looked for")
            if not hub.may_have_peers:
                raise BlockNotAvailableError(
                    f"byte offset {byte_offset} cannot be placed with what is stored here, and there is no peer"
                )
            if result.hash is None:
                if was_settled:
                    raise BlockIndexError(
                        f"byte offset {byte_offset} is outside of the {log.byte_length} bytes of the log"
                    )
                was_settled = True
                await self.settled()  # It lies beyond the length that is known.
                continue
            if log.read_only or not await self._answer(ProofRequest(log.fork, hash=result.hash, seek=result.seek)):
                raise BlockNotAvailableError(f"no peer could say where byte offset {byte_offset} lies")

    async def settled(self) -> None:
        """Return when every search, connection and peer has had its say about the log's length.

        A peer that goes on growing is waited for until the length is reached that it had first.
        """
        await self._hub.look()
        goals: dict[Peer, _Goal] = {}
        while not self._is_closed and (until := self._unsettled_until(goals)) is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await self.news()

    def _unsettled_until(self, goals: dict[Peer, _Goal]) -> float | None:
        """When to look again at the latest who has not had his say yet; None when everybody has."""
        hub, log, now = self._hub, self._log, asyncio.get_running_loop().time()
        if hub.is_stopped or log.read_only:
            return None
        until = math.inf if hub.opening or hub.finding else 0.0
        for peer in hub.peers:
            remote = peer.remote
            if hub.replicator.settled(remote):
                continue
            goal = goals.setdefault(peer, _Goal(now + SETTLING_SECONDS))
            if goal.tree is None and remote.synced:
                goal.tree = remote.fork, remote.length
            # A peer without blocks still has its manifest to show.
            if goal.tree is None or not remote.length or (log.fork, log.length) < goal.tree:
                until = max(until, goal.until)
        return until if until > now else None

    async def length(self, length: int, *, live: bool) -> bool:
        """Wait until the log has `length` blocks; False when the core was closed first.

        With `live` a swarm that looks for peers is reason enough to wait. Raises `BlockNotAvailableError` when the log
        cannot grow.
        """
        log, hub = self._log, self._hub
        hub.growth_waiters += 1
        try:
            while log.length < length:
                if self._is_closed:
                    return False
                if not (log.writable or hub.may_have_peers or (live and hub.sources)):
                    raise BlockNotAvailableError(
                        f"the log has {log.length} blocks, no peer is connected and none is being looked for"
                    )
                await self.news()
        finally:
            hub.growth_waiters -= 1
        return True

    async def peers(self) -> bool:
        """Wait until somebody may deliver; False when nobody is being looked for."""
        hub = self._hub
        while not hub.may_have_peers:
            if self._is_closed or not hub.sources:
                return False
            await self.news()
        return True

    async def news(self) -> None:
        """Wait for the next change of the signed tree or of the peers."""
        if self._is_closed:
            return
        waiter: _Waiter = asyncio.get_running_loop().create_future()
        self._for_news.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._for_news:
                self._for_news.remove(waiter)

    # ---- how ----

    async def _block_change(self, index: int) -> None:
        waiter: _Waiter = asyncio.get_running_loop().create_future()
        waiters = self._for_block.setdefault(index, [])
        waiters.append(waiter)
        try:
            await waiter
        finally:
            if waiter in waiters:
                waiters.remove(waiter)
                if not waiters and self._for_block.get(index) is waiters:
                    del self._for_block[index]

    async def _answer(self, request: ProofRequest) -> bool:
        """Ask any peer that can answer; whether one did, or things changed so that it is worth another look."""
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def done(_peer: RemotePeer | None, proof: Proof | None) -> None:
            if not waiter.done():
                waiter.set_result(proof is not None)

        replicator, demand = self._hub.replicator, Demand(request, done)
        replicator.add_demand(demand)
        self._hub.pump()
        news: asyncio.Future[None] = asyncio.ensure_future(self.news())
        try:
            # The last peer that could answer may leave.
            await asyncio.wait((waiter, news), return_when=asyncio.FIRST_COMPLETED)
            return waiter.result() if waiter.done() else True
        finally:
            news.cancel()
            replicator.remove_demand(demand)

    def _changed(self, change: LogChange | None) -> None:
        if change is None:
            if self._hub.may_have_peers:
                self._wake_for_news()
            else:
                self._wake_all()
            return
        if self._for_block and change.kind in STORING:
            self._wake_for_blocks(change.start, change.end)
        if change.kind in GROWING:
            self._wake_for_news()

    def _wake_for_blocks(self, start: int, end: int) -> None:
        waiting = self._for_block
        if end - start < len(waiting):
            indexes = [index for index in range(start, end) if index in waiting]
        else:
            indexes = [index for index in waiting if start <= index < end]
        for index in indexes:
            _wake(waiting.pop(index))

    def _wake_for_news(self) -> None:
        waiters, self._for_news = self._for_news, []
        _wake(waiters)

    def _wake_all(self) -> None:
        self._wake_for_news()
        waiting, self._for_block = self._for_block, {}
        for waiters in waiting.values():
            _wake(waiters)


def _wake(waiters: list[_Waiter]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)

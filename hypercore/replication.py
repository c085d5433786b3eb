"""One log and its peers over all connections: who is there, who may still deliver, and who has to be told.

Shell floor. What one peer says and is told is `peer`'s; what to ask of whom is the replicator's.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from hypercore.bitfield import Bitfield
from hypercore.errors import HypercoreError, ProtocolError
from hypercore.log.engine import Log, LogChange
from hypercore.peer import Peer
from hypercore.proofs import Proof, ProofRequest, UpgradeRequest
from hypercore.protocol import messages
from hypercore.protocol.connection import Channel
from hypercore.protocol.remote import RemotePeer
from hypercore.protocol.replicator import FEWEST_ASKS, Replicator

if TYPE_CHECKING:
    from hypercore.session import Replication


class LocalTree:
    """The log, as the replicator looks at it."""

    __slots__ = ("_log",)

    def __init__(self, log: Log) -> None:
        self._log = log

    @property
    def fork(self) -> int:
        return self._log.fork

    @property
    def length(self) -> int:
        return self._log.length

    @property
    def byte_length(self) -> int:
        return self._log.byte_length

    @property
    def bitfield(self) -> Bitfield:
        return self._log.bitfield

    @property
    def has_manifest(self) -> bool:
        """Whether there is a manifest that readers need; a compat core's follows from its key."""
        return self._log.manifest is not None and not self._log.is_compat

    @property
    def needs_manifest(self) -> bool:
        return self._log.manifest is None


class Hub:
    """One log, its replicator, and the peers of all connections."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.local = LocalTree(log)
        self.replicator = Replicator(self.local, scatter=random.random())
        self.replicator.on_give_up = self._give_up
        self.peers: list[Peer] = []
        self._by_remote: dict[RemotePeer, Peer] = {}
        #: Connections on which the peer has not yet said whether it has this core, and when to stop waiting for it.
        self.opening: dict[Replication, float] = {}
        #: Swarms that look for peers of this core: while there is one, following live may wait without peers.
        self.sources = 0
        #: How many discoveries are still in their first round: while any is, nobody is told that there are no peers.
        self.finding = 0
        #: Two histories were signed under the key; nothing is replicated any more.
        self.frozen = False
        #: The log is closed, or about to be.
        self.closed = False
        #: The connections that replicate this core, opened or not.
        self.sessions: set[Replication] = set()
        self.warnings: deque[str] = deque(maxlen=100)
        #: Called after anything changed that a waiter may care for.
        self.on_change: list[Callable[[LogChange | None], None]] = []
        self.on_peer: list[Callable[[Peer, bool], None]] = []
        self.on_close: list[Callable[[Hub], None]] = []
        #: Called when replication over a connection stopped because our own side failed, as a full storage does.
        self.on_failure: list[Callable[[HypercoreError], None]] = []
        self.on_extension: Callable[[Peer, str, bytes], None] | None = None
        #: Sources that have to be looked at before they say what they have; each returns when it is known here.
        self.on_look: list[Callable[[], Awaitable[None]]] = []
        self.on_warning: Callable[[str], None] | None = None
        #: How many wait for the log to grow, beside those who want blocks.
        self.growth_waiters = 0
        log.listeners.append(self._log_changed)

    def close(self) -> None:
        """Stop replicating, for good; whoever waits is told."""
        self.closed = True
        for tell in list(self.on_close):
            tell(self)
        if self._log_changed in self.log.listeners:
            self.log.listeners.remove(self._log_changed)
        self._leave_sessions()

    @property
    def is_stopped(self) -> bool:
        return self.frozen or self.closed

    def _leave_sessions(self) -> None:
        for session in list(self.sessions):
            session.remove(self)
        self.changed()

    # ---- peers ----

    def attach(self, session: Replication, channel: Channel) -> Peer:
        """A channel for this core is open on both sides."""
        peer = Peer(self, session, channel)
        self.peers.append(peer)
        self._by_remote[peer.remote] = peer
        self.replicator.add_peer(peer.remote)
        self.opening.pop(session, None)
        for tell in self.on_peer:
            tell(peer, True)
        self.changed()
        session.wake()
        return peer

    def detach(self, peer: Peer) -> None:
        """The channel is closed."""
        if peer not in self.peers:
            return
        self.peers.remove(peer)
        self.replicator.remove_peer(peer.remote)
        peer.give_back()
        del self._by_remote[peer.remote]
        for tell in self.on_peer:
            tell(peer, False)
        self.changed()
        self.pump()

    def find_peer(self, remote: RemotePeer) -> Peer | None:
        return self._by_remote.get(remote)

    def opening_ended(self, session: Replication) -> None:
        """The peer of this connection does not have the core, or the connection is over."""
        if self.opening.pop(session, None) is not None:
            self.changed()

    @property
    def may_have_peers(self) -> bool:
        """Whether somebody may still deliver: a peer, a connection being opened, a discovery under way."""
        if self.is_stopped or self.log.read_only:
            return False
        return bool(self.opening or self.finding) or any(
            self.replicator.may_deliver(each.remote) for each in self.peers
        )

    async def freeze(self, peer: Peer, length: int) -> None:
        """The writer signed two histories: nothing may be replicated any more.

        Every peer is shown our history of `length` blocks before its channel closes, so that it can find out as well.
        """
        if self.is_stopped:
            return
        log = self.log
        request = ProofRequest(log.fork, upgrade=UpgradeRequest(0, min(length, log.length)), manifest=True)
        ours: Proof | None = None
        with contextlib.suppress(HypercoreError):  # A sparse copy may not hold all that shows it.
            ours = await log.prove(request)
        if self.is_stopped:
            return
        self.frozen = True
        if ours is not None:
            for each in self.peers:
                each.channel.send(messages.Data(0, ours))
        self.warn(f"{peer} proved that two different histories were signed; replication has stopped")
        self._leave_sessions()

    def _give_up(self, remote: RemotePeer, reason: str) -> None:
        peer = self._by_remote.get(remote)
        if peer is not None:
            self.warn(f"{peer} was given up: {reason}")
            peer.session.fail(ProtocolError(reason))

    # ---- news ----

    def pump_for(self, index: int) -> None:
        """Let somebody ask for block `index` who says that he has it; everybody when nobody is known to."""
        for peer in self.peers:
            remote = peer.remote
            if remote.has(index) and remote.length > index and not remote.paused and len(remote.asks) < FEWEST_ASKS:
                peer.session.wake()
                return
        self.pump()

    def pump(self) -> None:
        """Let every connection look for something to ask or say."""
        self.replicator.is_stirred = False
        for peer in self.peers:
            peer.session.wake()

    def changed(self, change: LogChange | None = None) -> None:
        for tell in list(self.on_change):
            tell(change)

    def warn(self, message: str) -> None:
        self.warnings.append(message)
        if self.on_warning is not None:
            self.on_warning(message)

    async def look(self) -> None:
        """Let the sources that do not speak by themselves say what they have now."""
        if self.on_look:
            await asyncio.gather(*(look() for look in self.on_look))

    @property
    def is_followed(self) -> bool:
        """Whether anybody waits for what is not here yet, a block or a greater length."""
        return self.growth_waiters > 0 or self.replicator.is_wanting

    def failed(self, where: str, error: HypercoreError) -> None:
        """Our side failed, and nothing is replicated any more with the peer at `where`."""
        if self.is_stopped:
            return
        self.warn(f"replication with {where} has stopped: {error}")
        for tell in list(self.on_failure):
            tell(error)

    def take_extension(self, peer: Peer, name: str, payload: bytes) -> None:
        if self.on_extension is None:
            return
        try:
            self.on_extension(peer, name, payload)
        except Exception as error:
            # The program's own affair; the peer and the connection are not to suffer for it.
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"the extension {name!r} of a program failed", "exception": error}
            )

    def _log_changed(self, change: LogChange) -> None:
        for peer in self.peers:
            peer.take_change(change)
        self.changed(change)

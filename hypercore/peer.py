"""One peer of one core: what it says becomes calls of the log, and what the log did becomes messages to it.

Shell floor, between the pure protocol and the log engine. It announces and compares trees itself; requests that go out
are `fetching`'s, those that come in are `serving`'s, bytes and sockets are the session's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from hypercore.errors import ProtocolError
from hypercore.fetching import Fetcher
from hypercore.log.engine import LogChange
from hypercore.protocol import messages
from hypercore.protocol.connection import Channel
from hypercore.protocol.remote import WANT_REGION_BLOCKS, Ask, RemotePeer
from hypercore.protocol.replicator import HOT_SWAP_SECONDS
from hypercore.serving import Server

if TYPE_CHECKING:
    from hypercore.replication import Hub
    from hypercore.session import Replication

#: What a change of the log means to others: blocks came, blocks went, the signed tree is another one.
STORING: Final = ("append", "blocks")
DROPPING: Final = ("clear", "truncate")
GROWING: Final = ("append", "upgrade", "truncate")

#: Answers are made until so many bytes wait to be sent, so that a slow reader costs no more memory than this and
#: one block.
SEND_AHEAD_BYTES: Final = 1024 * 1024
#: What one peer can make this process hold, all bounds added up: a frame as it comes in (16 MiB), its plain text, the
#: messages in it (up to five times as much when they are nothing but tree nodes), its scattered blocks (8 MiB), and
#: what is sent ahead. An honest peer costs a few hundred KiB.
PEER_MEMORY_BYTES: Final = 128 * 1024 * 1024
#: Announcements that wait to be sent before they are replaced by what covers them all.
MOST_WAITING_RANGES: Final = 256
#: Wide announcements of one peer from one tick to the next, a few tens of milliseconds' worth.
MOST_WIDE_CHANGES: Final = 256
#: A program's messages may wait to be sent up to this many bytes; a peer that is further behind does not read.
MOST_WAITING_BYTES: Final = 32 * 1024 * 1024


class Peer:
    """One peer of one core, as a program sees it in `core.peers`."""

    def __init__(self, hub: Hub, session: Replication, channel: Channel) -> None:
        self.hub = hub
        self._log = hub.log
        self.session = session
        self.channel = channel
        self.remote = RemotePeer()
        self.remote.seeks = channel.remote_seeks
        self._fetcher = Fetcher(hub, self)
        self._server = Server(hub.log, channel.send, hub.warn)
        self._ranges: list[messages.Range] = []
        self._outbox: list[messages.Message] = []
        self._outbox_bytes = 0
        #: One of the two trees has changed since it was looked at how they relate.
        self._trees_changed = True
        self._sync_due = True
        self._last_sync: messages.Sync | None = None
        contiguous = hub.log.contiguous_length
        if contiguous:
            self._ranges.append(messages.Range(False, 0, contiguous))

    # ---- what a program may ask ----

    @property
    def remote_public_key(self) -> bytes:
        """The key that the peer proved in the handshake; it names the connection, not the core."""
        return self.session.remote_public_key

    @property
    def remote_address(self) -> str:
        return self.session.remote_address

    @property
    def remote_length(self) -> int:
        """The length that the peer says it has; proven only once it was taken over."""
        return self.remote.length

    @property
    def remote_fork(self) -> int:
        return self.remote.fork

    @property
    def blocks_received(self) -> int:
        return self.remote.blocks_received

    @property
    def bytes_received(self) -> int:
        return self.remote.bytes_received

    @property
    def blocks_sent(self) -> int:
        return self._server.blocks_sent

    @property
    def bytes_sent(self) -> int:
        return self._server.bytes_sent

    def __repr__(self) -> str:
        return f"<Peer {self.remote_public_key.hex()[:8]} {self.remote_address} length={self.remote.length}>"

    # ---- incoming ----

    async def receive(self, batch: Sequence[messages.Message]) -> None:
        """Take messages in order. Data messages that follow each other become one commit."""
        data: list[messages.Data] = []
        for message in batch:
            if type(message) is messages.Data:
                data.append(message)
                continue
            if data:
                await self._fetcher.take(data, self.session.now())
                data = []
            await self._take(message)
        if data:
            await self._fetcher.take(data, self.session.now())
        if self.hub.replicator.is_stirred:
            self.hub.pump()

    async def _take(self, message: messages.Message) -> None:
        remote, server = self.remote, self._server
        match message:
            case messages.Request():
                if not server.take_request(message) and self.session.waiting_bytes > SEND_AHEAD_BYTES:
                    raise ProtocolError("the peer floods requests and does not read the answers")
            case messages.Sync():
                await self._take_sync(message)
            case messages.Range(drop, start, length):
                remote.take_range(start, length, drop=drop)
                self._check_announcements()
            case messages.Bitfield(start, words):
                remote.take_bitfield(start, words)
                self._check_announcements()
            case messages.NoData(request_id, _reason):
                self.hub.replicator.no_data(remote, request_id, self.session.now())
                self._fetcher.release_hopeless()
                self.hub.changed()  # It may have been the last that this peer could say of the log's length.
            case messages.Cancel(request_id):
                server.cancel(request_id)
            case messages.Want():
                server.take_want(message)
            case messages.Extension(name, payload):
                self.hub.take_extension(self, name, payload)
            case _:
                pass  # unwant: everything is announced anyway

    async def _take_sync(self, sync: messages.Sync) -> None:
        log, remote = self._log, self.remote
        changed = remote.take_sync(sync, local_fork=log.fork)
        self._trees_changed = True
        if sync.fork == log.fork and sync.length < log.length:
            self._sync_due = True
        if changed:
            self.hub.changed()

    def _check_announcements(self) -> None:
        if self.remote.wide_changes > MOST_WIDE_CHANGES:
            raise ProtocolError("the peer gains and loses millions of blocks without end")

    # ---- outgoing ----

    def cancel(self, ask: Ask) -> None:
        """Tell the peer that an answer is not needed any more."""
        self._outbox.append(messages.Cancel(ask.id))
        self.session.wake()

    def expire(self, now: float) -> None:
        """Time has passed: take back what this core's peers left unanswered."""
        self.remote.wide_changes = 0
        if self.hub.replicator.has_asks:
            expired = self.hub.replicator.expire(now)
            for remote, ask in expired:
                peer = self.hub.find_peer(remote)
                if peer is not None:
                    peer.cancel(ask)
                    peer.release_hopeless()
            if expired:
                self.hub.changed()
                self.hub.pump()
        if len(self.hub.peers) > 1:
            # The answer that these build on is slow, and somebody else may be quicker.
            self._fetcher.give_back(held_before=now - HOT_SWAP_SECONDS)

    def release_hopeless(self) -> None:
        """Requests of this peer are over without an answer."""
        self._fetcher.release_hopeless()

    def give_back(self) -> None:
        """The peer is gone."""
        self._fetcher.give_back()

    def send(self, message: messages.Extension) -> None:
        """Queue a program's message for the peer, which loses its connection when it does not read."""
        self._outbox.append(message)
        self._outbox_bytes += len(message.payload)
        if self._outbox_bytes + self.session.waiting_bytes > MOST_WAITING_BYTES:
            self.session.fail(ProtocolError("the peer does not read what it is sent"))
        self.session.wake()

    def take_change(self, change: LogChange) -> None:
        """Announce what the log did."""
        remote = self.remote
        kind, start, end = change.kind, change.start, change.end
        if kind in STORING:
            # What the peer has itself, above all what it just sent us, is no news to it. What it announced on another
            # fork does not count, and of what is appended here it can have nothing.
            missing = max(start, remote.prefix)
            is_known = missing >= end or (end - missing == 1 and remote.has(missing))
            if kind == "append" or not is_known or remote.fork != change.fork:
                self._tell_of(start, end)
        elif kind in DROPPING:
            if start < end:
                self._ranges.append(messages.Range(True, start, end - start))
            if kind == "truncate":
                remote.local_truncated(start, change.fork)
        if len(self._ranges) > MOST_WAITING_RANGES:
            self._shorten_ranges()
        if kind in GROWING:
            self._sync_due = self._trees_changed = True
        elif kind == "blocks" and self._is_behind and change.fork == remote.fork:
            self._sync_due = True  # The blocks may have brought what the peer lacks to follow.
        if self._ranges or self._sync_due:
            self.session.wake()

    def _tell_of(self, start: int, end: int) -> None:
        ranges, contiguous = self._ranges, self._log.contiguous_length
        if contiguous >= end:
            # All of it at once, and once for many blocks. And a reader on hypercore 11 that drops blocks to follow a
            # fork forgets that we hold those which took their place, unless it is told again from block 0 on.
            start, end = 0, contiguous
            if ranges and not ranges[-1].drop and ranges[-1].start == 0:
                ranges.pop()
        ranges.append(messages.Range(False, start, end - start))

    @property
    def _is_behind(self) -> bool:
        """Whether the peer is shorter, and was told that we cannot show it the way."""
        last = self._last_sync
        return last is not None and not last.can_upgrade and self.remote.length < last.length

    def _shorten_ranges(self) -> None:
        """Tell of the regions that changed what is held in them now, as if the peer had asked."""
        log, ranges = self._log, self._ranges
        top = max(each.start + each.length for each in ranges)
        self._ranges = [messages.Range(True, log.length, top - log.length)] if top > log.length else []
        for each in ranges:
            self._server.tell(each.start, min(each.start + each.length, log.length))

    async def produce(self) -> bool:
        """Queue what is due on the channel, up to the send-ahead bound; whether more is waiting."""
        send, session = self.channel.send, self.session
        if self._ranges or self._sync_due:
            await self._announce()
        for message in self._outbox:
            send(message)
        self._outbox.clear()
        self._outbox_bytes = 0
        for region in self.remote.wants_to_send:
            send(messages.Want(region * WANT_REGION_BLOCKS, WANT_REGION_BLOCKS))
        self.remote.wants_to_send.clear()
        if self._trees_changed:
            await self._compare_trees()
        if not self._log.read_only:  # What a peer could show, another program writes.
            await self._fetcher.ask(send, session.now())
        server = self._server
        while server.has_work and session.waiting_bytes < SEND_AHEAD_BYTES:
            await server.answer_some()
        return server.has_work

    async def _announce(self) -> None:
        send = self.channel.send
        first = self._last_sync is None
        ranges, self._ranges = self._ranges, []
        due, self._sync_due = self._sync_due, False
        if not first:
            for message in ranges:
                send(message)
        if due:
            sync = await self._compose_sync()
            if sync != self._last_sync:
                self._last_sync = sync
                send(sync)
        if first:
            for message in ranges:
                send(message)

    async def _compare_trees(self) -> None:
        self._trees_changed = False
        log, remote = self._log, self.remote
        remote.provable = remote.length >= log.length or await log.can_upgrade_from(remote.length)

    async def _compose_sync(self) -> messages.Sync:
        log, remote = self._log, self.remote
        fork, length = log.fork, log.length
        if not remote.synced:
            can_upgrade, known = fork == 0, 0
        elif remote.fork != fork:
            can_upgrade, known = False, 0
        else:
            known = remote.length
            can_upgrade = known == 0 or (known < length and await log.can_upgrade_from(known))
        return messages.Sync(
            fork=fork,
            length=length,
            remote_length=known,
            can_upgrade=can_upgrade,
            uploading=True,
            downloading=True,
            has_manifest=self.hub.local.has_manifest,
            allow_push=False,
        )

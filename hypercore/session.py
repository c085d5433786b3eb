"""One running connection: a byte stream, the pure protocol, and the cores that share them.

Shell floor: asyncio glue. Two tasks a connection, because one task that both reads and writes deadlocks when both
buffers are full: the reader turns bytes into events and hands them to the cores' peers, the writer lets the peers
produce and sends. What to ask, and what to store, is decided elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Final, Self

from hypercore.crypto import SECRET_STREAM_HEADER_SIZE, KeyPair, random_bytes
from hypercore.errors import (
    HypercoreError,
    OptionError,
    PeerClosedError,
    ProtocolError,
    StreamClosedError,
    TransportError,
)
from hypercore.peer import Peer
from hypercore.protocol.connection import Channel, Connection
from hypercore.protocol.events import (
    ChannelClosed,
    ChannelOffered,
    ChannelOpened,
    ChannelRejected,
    Event,
    HandshakeDone,
    MessageReceived,
    PeerFinished,
)
from hypercore.protocol.limits import DEFAULT_LIMITS
from hypercore.protocol.messages import Message
from hypercore.replication import Hub
from hypercore.stats import ConnectionStats
from hypercore.transport import ByteStream

#: How often time-outs are looked at; they are all of several seconds.
TICK_SECONDS: Final = 0.5
#: A peer that neither opens nor rejects a core for this long is not waited for any more.
OPENING_SECONDS: Final = 10.0
#: Times that we open a channel again which the peer closed while we still want blocks.
MOST_REOPENS: Final = 8
#: A peer that sent so much since the last look is at work on a long answer; keepalives are far less.
PROGRESS_BYTES: Final = 1024
#: Cores that the peer asked for in vain and that are remembered, should they be served later; as many as it may have
#: channels.
MOST_DECLINED: Final = DEFAULT_LIMITS.channels

#: Looks up a core that a peer asks for by its discovery key.
OnOffer = Callable[[bytes], Awaitable[Hub | None]]


class Replication:
    """A connection that replicates one or several cores over `stream`.

    `initiator` is the side that speaks first; over TCP by custom the one that dialled. `key_pair` names this end of
    the connection (a fresh one otherwise); it has nothing to do with the cores' keys. `on_offer` looks up cores that
    the peer asks for and that were not added. `outside` is the other end of `stream` when its bytes are carried by
    hand, with `receive` and `send`. `ends_with_cores`: the cores opened it, and whichever closes last closes it.
    """

    def __init__(
        self,
        stream: ByteStream,
        *,
        initiator: bool,
        key_pair: KeyPair | None = None,
        on_offer: OnOffer | None = None,
        outside: ByteStream | None = None,
        ends_with_cores: bool = False,
    ) -> None:
        self._stream = stream
        self.ends_with_cores = ends_with_cores
        self._outside = outside
        self.is_initiator = initiator
        self._connection = Connection(
            "initiator" if initiator else "responder",
            key_pair or KeyPair.generate(),
            ephemeral=KeyPair.generate(),
            header=random_bytes(SECRET_STREAM_HEADER_SIZE),
        )
        self._on_offer = on_offer
        self._hubs: dict[bytes, Hub] = {}
        self._peers: dict[Channel, Peer] = {}
        self._reopens: dict[bytes, int] = {}
        #: Cores that failed here; a peer that wants to have them opened again is declined.
        self._failed: set[bytes] = set()
        #: Cores that the peer asked for and that were not here.
        self._declined: set[bytes] = set()
        #: Called when the peer has proved its key, before any core is named to it; what it raises ends the connection.
        self.on_handshake: Callable[[Replication], None] | None = None
        #: Called when the peer is known to have finished the handshake as well.
        self.on_confirmed: Callable[[Replication], None] | None = None
        #: The peer has finished the handshake, as far as we know.
        self.is_confirmed = False
        #: The peer has said something about a core.
        self.has_spoken = False
        #: The peer has ended the connection.
        self.has_peer_ended = False
        self._turn = 0
        #: Bytes since the last tick, and all those before it and all that were sent.
        self._received_bytes = 0
        self._received_before = 0
        self._sent_bytes = 0
        #: Blocks that came and went over channels which are closed by now.
        self._blocks_in = self._blocks_out = 0
        self._asked_at = self._connected_at = self._ended_at = 0.0
        self._round_trip_seconds: float | None = None
        #: The reader waits for the peer, and not for our storage.
        self._is_reading = True
        self._is_open = False
        self._is_awake = True
        self._sleeper: asyncio.Future[None] | None = None
        self._background: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None
        self._ticker: asyncio.TimerHandle
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time
        self._opened: asyncio.Future[None] = self._loop.create_future()
        #: When the peer was heard last, give or take a tick.
        self.heard_at = self.now()
        #: Why the connection ended; None while it lives and after a clean end.
        self.error: HypercoreError | None = None
        self.is_closed = False

    # ---- for programs ----

    @property
    def remote_public_key(self) -> bytes:
        """The key that the peer proved, 32 bytes; empty before the handshake is done."""
        return self._connection.remote_public_key or b""

    @property
    def handshake_hash(self) -> bytes:
        """64 bytes that both ends of this connection know and no other connection has; empty before the handshake."""
        return self._connection.handshake_hash or b""

    @property
    def remote_address(self) -> str:
        return self._stream.remote_address

    @property
    def local_address(self) -> str:
        return self._stream.local_address

    def add(self, hub: Hub) -> None:
        """Replicate one more core over this connection."""
        discovery_key = hub.log.discovery_key
        if discovery_key in self._hubs or self.is_closed or hub.is_stopped:
            return
        self._failed.discard(discovery_key)
        self._hubs[discovery_key] = hub
        hub.sessions.add(self)
        hub.opening[self] = self.now() + OPENING_SECONDS
        if self._is_open:
            try:
                self._connection.open_channel(hub.log.key)
            except ProtocolError as error:
                self.fail(error)  # The peer had offered this core without knowing its key.
            self.wake()

    def remove(self, hub: Hub) -> None:
        """Stop replicating a core over this connection."""
        discovery_key = hub.log.discovery_key
        self._hubs.pop(discovery_key, None)
        hub.sessions.discard(self)
        for channel, peer in list(self._peers.items()):
            if channel.discovery_key == discovery_key:
                self.close_channel(channel)
                hub.detach(peer)
        hub.opening_ended(self)

    def was_asked_for(self, discovery_key: bytes) -> bool:
        """Whether the peer asked for a core that was not here by then."""
        return discovery_key in self._declined

    def stats(self) -> ConnectionStats:
        """What this connection has carried so far."""
        peers = list(self._peers.values())
        return ConnectionStats(
            bytes_in=self._received_before + self._received_bytes,
            bytes_out=self._sent_bytes,
            blocks_in=self._blocks_in + sum(peer.blocks_received for peer in peers),
            blocks_out=self._blocks_out + sum(peer.blocks_sent for peer in peers),
            connected_seconds=(self._ended_at or self.now()) - self._connected_at if self._connected_at else 0.0,
            round_trip_seconds=self._round_trip_seconds,
            cores=tuple(channel.discovery_key for channel in self._peers),
        )

    @property
    def has_cores(self) -> bool:
        """Whether any core is replicated over this connection."""
        return bool(self._hubs)

    def drop(self, hub: Hub, error: HypercoreError) -> None:
        """A core failed on our side; its peer and the other cores of the connection cannot help it."""
        if self._hubs.get(hub.log.discovery_key) is hub:
            self._failed.add(hub.log.discovery_key)
            self.remove(hub)
            hub.failed(self.remote_address, error)

    async def opened(self) -> None:
        """Return when the handshake is done; raise what ended the connection if it never was."""
        await asyncio.shield(self._opened)

    async def receive(self) -> bytes:
        """Bytes for the peer, to be carried over anything; `b""` at the end. For a replication without a stream."""
        return await self._outer.receive()

    async def send(self, data: bytes) -> None:
        """Bytes from the peer. For a replication without a stream."""
        await self._outer.send(data)

    @property
    def _outer(self) -> ByteStream:
        if self._outside is None:
            raise OptionError("this replication runs over a byte stream of its own and carries no bytes by hand")
        return self._outside

    async def wait_closed(self) -> None:
        """Return when the connection has ended; `error` says why."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def aclose(self) -> None:
        """Send what is queued and close. Twice is fine."""
        if not self.is_closed and self._connection.error is None:
            self.is_closed = True
            data = self._connection.data_to_send()
            if data:
                try:
                    async with asyncio.timeout(1.0):
                        await self._stream.send(data)
                except (TransportError, TimeoutError):
                    pass  # The peer is gone or stuck; closing is all that is left.
        self.is_closed = True
        await self._stream.aclose()
        await self.wait_closed()
        self._end_opening()  # Nobody else does when it never ran.

    def abort(self, error: HypercoreError | None = None) -> None:
        """End the connection now, without waiting for the peer, because of `error` if there is one."""
        if not self.is_closed:
            self.error = self.error or error
            self.is_closed = True
        self._stream.abort()
        if self._task is None:
            self._end_opening()

    def start_running(self) -> asyncio.Task[None]:
        """Run in a task of its own, which ends when the connection does and never raises."""
        if self._task is None:
            self._task = self._loop.create_task(self._run_quietly())
        return self._task

    async def __aenter__(self) -> Self:
        self.start_running()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    # ---- for the peers of this connection ----

    @property
    def waiting_bytes(self) -> int:
        """Bytes that are queued and not handed to the stream yet."""
        return self._connection.buffered_bytes

    def wake(self) -> None:
        """There may be something to send."""
        self._is_awake = True
        if self._sleeper is not None and not self._sleeper.done():
            self._sleeper.set_result(None)

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something beside the reader; it is cancelled with the connection."""
        task = self._loop.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background_done)

    def _background_done(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled():
            error = task.exception()
            if isinstance(error, HypercoreError):
                self.fail(error)
            elif error is not None:
                self._fault(error)

    def close_channel(self, channel: Channel) -> None:
        """Close one core's channel."""
        self._let_go(channel)
        channel.close()
        self.wake()

    def _let_go(self, channel: Channel) -> Peer | None:
        peer = self._peers.pop(channel, None)
        if peer is not None:
            self._blocks_in += peer.blocks_received
            self._blocks_out += peer.blocks_sent
        return peer

    def fail(self, error: HypercoreError) -> None:
        """End the connection because of `error`."""
        if self.error is None:
            self.error = error
        if not self.is_closed:
            self.is_closed = True
            self.start(self._stream.aclose())

    def _fault(self, error: BaseException) -> None:
        """A fault of ours: this connection ends, the process and the other peers go on, and it is not hidden."""
        self._loop.call_exception_handler({"message": "a replication failed", "exception": error})
        self.fail(ProtocolError(f"an internal error: {error!r}"))

    # ---- the two tasks ----

    async def _run_quietly(self) -> None:
        try:
            await self._run()
        except HypercoreError as error:
            if self.error is None and not (self.is_closed and isinstance(error, StreamClosedError)):
                self.error = error
        except Exception as error:
            self._fault(error)
        finally:
            self.is_closed = True
            self._ended_at = self.now()
            await self._clean_up()

    async def _run(self) -> None:
        writer = self._loop.create_task(self._write())
        self._ticker = self._loop.call_later(0, self._tick)
        try:
            await self._read()
        finally:
            self._ticker.cancel()
            writer.cancel()
            await asyncio.wait([writer])

    async def _clean_up(self) -> None:
        for channel, peer in list(self._peers.items()):
            self._let_go(channel)
            peer.hub.detach(peer)
        for hub in self._hubs.values():
            hub.sessions.discard(self)
            hub.opening_ended(self)
        await self._stream.aclose()
        for task in list(self._background):
            task.cancel()
        if self._background:
            await asyncio.wait(self._background)
        self._end_opening()

    def _end_opening(self) -> None:
        if not self._opened.done():
            self._opened.set_exception(self.error or StreamClosedError("the connection ended before the handshake"))
            self._opened.exception()  # Nobody need be waiting for it.

    def _tick(self) -> None:
        self._ticker = self._loop.call_later(TICK_SECONDS, self._tick)
        now = self.now()
        try:
            self._connection.handle_timeout(now, is_reading=self._is_reading)
        except ProtocolError as error:
            self.fail(error)
            return
        # A long answer may be on its way, or wait until we have stored the one before it.
        is_answering = self._received_bytes >= PROGRESS_BYTES or not self._is_reading
        if self._received_bytes or not self._is_reading:
            self.heard_at = now
        self._received_before += self._received_bytes
        self._received_bytes = 0
        for peer in list(self._peers.values()):
            if is_answering:
                peer.remote.answered_at = now
            peer.expire(now)
        for hub in self._hubs.values():
            if hub.opening.get(self, now) < now:
                hub.opening_ended(self)
        self.wake()

    async def _read(self) -> None:
        connection, receive = self._connection, self._stream.receive
        self._asked_at = self.now() if self.is_initiator else 0.0
        while True:
            self._is_reading = True
            data = await receive()
            self._is_reading = False
            self._received_bytes += len(data)
            if not data:
                self.has_peer_ended = True
            elif not self._asked_at:
                self._asked_at = self.now()  # The answer is about to leave, and has one of its own.
            try:
                if data:
                    connection.receive_data(data)
                else:
                    connection.receive_eof()
            finally:
                # What came before an error still counts, and accepting an offer makes events of its own.
                finished = False
                while events := connection.events():
                    finished |= await self._take_events(events)
            self.wake()
            if not self.is_confirmed and connection.is_established:
                self.is_confirmed = True
                if self.on_confirmed is not None:
                    self.on_confirmed(self)
            if finished or not data:
                await self._flush()
                return

    async def _take_events(self, events: list[Event]) -> bool:
        finished = False
        channel: Channel | None = None
        batch: list[Message] = []
        for event in events:
            if type(event) is MessageReceived:
                if event.channel is not channel:
                    await self._hand_over(channel, batch)
                    channel, batch = event.channel, []
                batch.append(event.message)
                continue
            await self._hand_over(channel, batch)
            channel, batch = None, []
            finished |= await self._take_event(event)
        await self._hand_over(channel, batch)
        return finished

    async def _hand_over(self, channel: Channel | None, batch: list[Message]) -> None:
        if channel is None or not batch or (peer := self._peers.get(channel)) is None:
            return
        try:
            await peer.receive(batch)
        except ProtocolError:
            raise
        except HypercoreError as error:
            self.drop(peer.hub, error)

    async def _take_event(self, event: Event) -> bool:
        match event:
            case HandshakeDone():
                self._connected_at = self.now()
                self._round_trip_seconds = self._connected_at - self._asked_at
                if self.on_handshake is not None:
                    self.on_handshake(self)
                self._is_open = True
                for known in self._hubs.values():
                    self._connection.open_channel(known.log.key)
                if not self._opened.done():
                    self._opened.set_result(None)
            case ChannelOffered(discovery_key):
                await self._channel_offered(discovery_key)
            case ChannelOpened(channel):
                self._channel_opened(channel)
            case ChannelClosed(channel):
                self._channel_closed(channel)
            case ChannelRejected(channel):
                self.has_spoken = True
                if (hub := self._hubs.get(channel.discovery_key)) is not None:
                    hub.opening_ended(self)
            case PeerFinished():
                return True
            case MessageReceived():
                pass  # Handed over in batches.
        return False

    async def _channel_offered(self, discovery_key: bytes) -> None:
        self.has_spoken = True
        hub = self._hubs.get(discovery_key)
        if hub is None and self._on_offer is not None and discovery_key not in self._failed:
            hub = await self._on_offer(discovery_key)
        if hub is None or hub.is_stopped:
            if len(self._declined) < MOST_DECLINED:
                self._declined.add(discovery_key)
            self._connection.reject(discovery_key)
        else:
            self._declined.discard(discovery_key)
            self._hubs[discovery_key] = hub
            hub.sessions.add(self)
            self._connection.open_channel(hub.log.key)

    def _channel_opened(self, channel: Channel) -> None:
        self.has_spoken = True
        hub = self._hubs.get(channel.discovery_key)
        if hub is None or hub.is_stopped:
            channel.close()
        else:
            self._peers[channel] = hub.attach(self, channel)

    def _channel_closed(self, channel: Channel) -> None:
        peer = self._let_go(channel)
        hub = self._hubs.get(channel.discovery_key)
        if peer is None or hub is None:
            return
        hub.detach(peer)
        reopens = self._reopens.get(channel.discovery_key, 0)
        if hub.replicator.is_wanting and not hub.is_stopped and reopens < MOST_REOPENS:
            self._reopens[channel.discovery_key] = reopens + 1
            hub.opening[self] = self.now() + OPENING_SECONDS
            self._connection.open_channel(hub.log.key)

    async def _write(self) -> None:
        connection, send = self._connection, self._stream.send
        try:
            while True:
                if not self._is_awake:
                    self._sleeper = self._loop.create_future()
                    await self._sleeper
                self._is_awake = False
                if await self._produce():
                    self._is_awake = True
                data = connection.data_to_send()
                if data:
                    self._sent_bytes += len(data)
                    await send(data)
        except PeerClosedError:
            pass  # The reader takes what the peer had sent before, and then meets the end.
        except HypercoreError as error:
            # The reader waits on the stream and would not notice.
            self.fail(error)
        except Exception as error:
            self._fault(error)

    async def _produce(self) -> bool:
        """Let the cores queue what they have to say; whether any of them has more."""
        peers = list(self._peers.values())
        if len(peers) > 1:
            # Whoever comes first may fill all that is sent ahead, so they take turns.
            self._turn = (self._turn + 1) % len(peers)
            peers = peers[self._turn :] + peers[: self._turn]
        more = False
        for peer in peers:
            try:
                more |= await peer.produce()
            except ProtocolError:
                raise
            except HypercoreError as error:
                self.drop(peer.hub, error)
        return more

    async def _flush(self) -> None:
        data = self._connection.data_to_send()
        if data and not self.is_closed:
            # The peer may have left without waiting for our last words.
            with contextlib.suppress(TransportError):
                await self._stream.send(data)

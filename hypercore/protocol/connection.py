"""One connection to one peer, without I/O: bytes in, events out; messages in, bytes out.

Engine floor: joins the secret stream, the mux and the channels, and makes the capabilities. It knows no socket, no
clock (times are passed in), no randomness (keys and header are passed in), and nothing about what to ask of whom.
"""

from __future__ import annotations

from typing import Final, Literal, NoReturn

from hypercore.crypto import (
    KEY_SIZE,
    REPLICATE_INITIATOR,
    REPLICATE_RESPONDER,
    KeyPair,
    blake2b,
    discovery_key,
)
from hypercore.errors import HandshakeError, HypercoreError, PeerTimeoutError, ProtocolError
from hypercore.protocol.channel import ALIASES, PROTOCOL, Channel
from hypercore.protocol.events import ChannelOffered, Event, HandshakeDone, PeerFinished
from hypercore.protocol.limits import DEFAULT_LIMITS, Limits
from hypercore.protocol.mux import ChannelState, Mux, Offer
from hypercore.protocol.secret_stream import SecretStream

__all__ = ["Channel", "ChannelState", "Connection", "Limits", "Role"]

Role = Literal["initiator", "responder"]

#: Silence is counted in ticks of this many seconds, so that nobody reads a clock for each message.
TICK_SECONDS: Final = 1.0


class Connection:
    """The state of one connection.

    `ephemeral` is a key pair and `header` are 24 bytes, both random and used for this connection only.

    The application feeds `receive_data`, handles `events()`, writes `data_to_send()`, and calls `handle_timeout` once
    at the start and then whenever `next_timeout()` has come. `ProtocolError` out of any method means that the peer
    broke the protocol: the connection is dead, `error` says why, and its byte stream is to be destroyed.
    """

    def __init__(
        self,
        role: Role,
        key_pair: KeyPair,
        *,
        ephemeral: KeyPair,
        header: bytes,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self.role = role
        self.limits = limits
        #: What ended the connection; None while it lives.
        self.error: ProtocolError | None = None
        self._stream = SecretStream(
            role == "initiator", key_pair, ephemeral=ephemeral, header=header, frame_size=limits.frame_size
        )
        self._events: list[Event] = []
        self._mux = _HypercoreMux(self._events, limits)
        self._greeted = self._peer_finished = False
        self._started_at: float | None = None
        self._now = self._received_at = self._sent_at = 0.0
        self._received = self._sent = False

    # ---- bytes and events ----

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes from the peer, however cut. Raises `ProtocolError` (`HandshakeError` until both headers came)."""
        self._check()
        self._received = True
        try:
            messages = self._stream.receive_data(data)
            if not self._greeted:
                self._greet()
            for message in messages:
                self._mux.receive(message)
        except HypercoreError as error:
            self._fail(error)

    def receive_eof(self) -> None:
        """The peer finished. Raises `ProtocolError` when that was inside a frame or before the handshake was done."""
        self._check()
        try:
            self._stream.receive_eof()
        except HypercoreError as error:
            self._fail(error)
        self._peer_finished = True
        self._events.append(PeerFinished())

    def events(self) -> list[Event]:
        """What happened since the last call. What was understood before an error is still handed out."""
        events = self._events[:]
        self._events.clear()
        return events

    def data_to_send(self) -> bytes:
        """Everything that is queued, sealed; `b""` when there is nothing or the connection is dead.

        Messages that were queued since the last call leave as batches, so that a burst costs one frame.
        """
        if self.error is not None:
            return b""
        stream = self._stream
        if stream.can_send:
            for frame in self._mux.take_frames():
                stream.send(frame)
        data = stream.data_to_send()
        if data:
            self._sent = True
        return data

    @property
    def buffered_bytes(self) -> int:
        """Bytes that `data_to_send` would hand out now, to within a few bytes a message."""
        return self._stream.pending_size + self._mux.queued_size

    @property
    def is_paused(self) -> bool:
        """Back-pressure: do not read from the peer until the channels it offered are decided (opened or rejected)."""
        return self._mux.undecided_size > self.limits.undecided_size

    @property
    def remote_public_key(self) -> bytes | None:
        """The peer's 32-byte static key; None before `HandshakeDone`."""
        return self._stream.remote_public_key

    @property
    def handshake_hash(self) -> bytes | None:
        """64 bytes that only the two ends of this connection know; None before `HandshakeDone`."""
        return self._stream.handshake_hash

    @property
    def is_established(self) -> bool:
        """Whether the peer has finished the handshake as well: messages flow both ways."""
        return self._stream.established

    # ---- channels ----

    @property
    def channels(self) -> list[Channel]:
        """Channels that we opened and that are not closed."""
        return [channel for channel in self._mux.channels if isinstance(channel, Channel)]

    def open_channel(self, key: bytes) -> Channel:
        """Open the channel of a core (32-byte key), or accept the peer's offer of it.

        For a channel that is open or opening it gives that channel. Needs the handshake to be done. Raises
        `ProtocolError` when the peer offered the core without knowing its key, or sent nonsense ahead.
        """
        self._check()
        if len(key) != KEY_SIZE:
            raise ValueError(f"a key of {len(key)} bytes; cores have keys of {KEY_SIZE}")
        if self._stream.handshake_hash is None:
            raise ValueError("no channel can be opened before the handshake is done")
        name = discovery_key(key)
        known = self._mux.channel(PROTOCOL, name)
        if isinstance(known, Channel):
            self._mux.keep(known)
            return known
        ours, theirs = (
            capability(key, self._stream.handshake_hash, initiator=initiator)
            for initiator in (self._stream.initiator, not self._stream.initiator)
        )
        channel = Channel(self._mux, key, name, capability=ours, remote_capability=theirs, events=self._events)
        try:
            self._mux.open(channel)
        except HypercoreError as error:
            self._fail(error)
        return channel

    def reject(self, discovery_key: bytes) -> None:
        """Tell the peer that the core it offered is not wanted; nothing happens when there is no such offer."""
        self._check()
        offer = self._mux.offer(PROTOCOL, discovery_key)
        if offer is not None:
            try:
                self._mux.reject(offer)
            except HypercoreError as error:
                self._fail(error)

    # ---- time ----

    def next_timeout(self) -> float | None:
        """When to call `handle_timeout` next, on the clock of its last call: 0.0 before the first, None when dead."""
        if self.error is not None:
            return None
        return 0.0 if self._started_at is None else self._now + TICK_SECONDS

    def handle_timeout(self, now: float, *, is_reading: bool = True) -> None:
        """Let time pass. `now` are seconds on any clock that never goes back; the first call starts the clock.

        `is_reading` is false while the application has no time to receive: then the peer's silence is ours.
        Silence is measured to within a tick (a second). May queue a keepalive: look at `data_to_send` afterwards.
        Raises `ProtocolError` when the handshake takes too long or the peer was silent for too long.
        """
        self._check()
        if self._started_at is None:
            self._started_at = self._received_at = self._sent_at = now
        self._now = now
        if self._received or self._peer_finished or self.is_paused or not is_reading:
            self._received, self._received_at = False, now
        if self._sent:
            self._sent, self._sent_at = False, now
        limits = self.limits
        if not self._stream.established:
            if now - self._started_at >= limits.handshake_seconds:
                self._fail(HandshakeError(f"the handshake was not done after {limits.handshake_seconds:g} seconds"))
        elif now - self._received_at >= limits.receive_seconds:
            self._fail(PeerTimeoutError(f"the peer sent nothing for {limits.receive_seconds:g} seconds"))
        elif now - self._sent_at >= limits.keepalive_seconds and not self.buffered_bytes:
            self._stream.send(b"")

    # ---- within ----

    def _greet(self) -> None:
        stream = self._stream
        if stream.handshake_hash is not None and stream.remote_public_key is not None:
            self._greeted = True
            self._events.append(HandshakeDone(stream.remote_public_key, stream.handshake_hash))

    def _check(self) -> None:
        if self.error is not None:
            raise self.error

    def _fail(self, error: HypercoreError) -> NoReturn:
        """The connection dies of `error`; decoders' errors become the peer's."""
        self.error = error if isinstance(error, ProtocolError) else ProtocolError(f"the peer sent nonsense: {error}")
        self._mux.destroy()
        if self.error is error:
            raise error
        raise self.error from error


def capability(key: bytes, handshake_hash: bytes, *, initiator: bool) -> bytes:
    """The 32 bytes by which a side of this stream proves that it knows the core's key (wire spec, section 4.1)."""
    return blake2b(REPLICATE_INITIATOR if initiator else REPLICATE_RESPONDER, key, key=handshake_hash)


class _HypercoreMux(Mux):
    """Offers cores to the application and declines everything else."""

    def __init__(self, events: list[Event], limits: Limits) -> None:
        super().__init__(aliases=ALIASES, limits=limits)
        self._events = events

    def on_offer(self, offer: Offer) -> None:
        if offer.protocol == PROTOCOL and len(offer.id) == KEY_SIZE:
            self._events.append(ChannelOffered(offer.id))
        else:
            self.reject(offer)

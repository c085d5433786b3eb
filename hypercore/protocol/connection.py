"""One connection to one peer, without I/O: bytes in, events out; messages in, bytes out.

Engine floor: joins the secret stream, the mux and the message codecs, and checks capabilities. It knows no socket, no
clock (times are passed in), no randomness (keys and header are passed in), and nothing about what to ask of whom.
"""

from __future__ import annotations

from typing import Literal

from hypercore.crypto import KeyPair
from hypercore.errors import ProtocolError
from hypercore.protocol.channel import Channel
from hypercore.protocol.events import Event
from hypercore.protocol.limits import DEFAULT_LIMITS, Limits

__all__ = ["Channel", "Connection", "Limits", "Role"]

Role = Literal["initiator", "responder"]


class Connection:
    """The state of one connection.

    `ephemeral` is a key pair and `header` are 24 bytes, both random and used for this connection only.

    The application feeds `receive_data`, handles `events()`, writes `data_to_send()`, and calls `handle_timeout` once
    at the start and then whenever `next_timeout()` has come. `ProtocolError` out of any method means that the peer
    broke the protocol: the connection is dead (`error` is set), its byte stream is to be destroyed.
    """

    def __init__(
        self,
        role: Role,
        key_pair: KeyPair,
        *,
        ephemeral: KeyPair,
        header: bytes,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None: ...

    #: What ended the connection; None while it lives.
    error: ProtocolError | None

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes from the peer, however cut. Raises `ProtocolError` (`HandshakeError` early on)."""

    def receive_eof(self) -> None:
        """The peer finished. Raises `ProtocolError` when that was inside a frame or before the handshake was done."""

    def events(self) -> list[Event]:
        """What happened since the last call. What came before an error is still handed out."""
        raise NotImplementedError

    def data_to_send(self) -> bytes:
        """Everything that is queued, sealed; `b""` when there is nothing or the connection is dead.

        Messages that were queued since the last call leave as batches, so that a burst costs one frame.
        """
        raise NotImplementedError

    @property
    def buffered_bytes(self) -> int:
        """Bytes that `data_to_send` would hand out now, to within a few bytes a frame."""
        raise NotImplementedError

    @property
    def is_paused(self) -> bool:
        """Back-pressure: do not read from the peer until the channels it offered are decided (opened or rejected)."""
        raise NotImplementedError

    @property
    def remote_public_key(self) -> bytes | None:
        """The peer's 32-byte static key; None before `HandshakeDone`."""
        raise NotImplementedError

    @property
    def channels(self) -> list[Channel]:
        """Channels that we opened and that are not closed."""
        raise NotImplementedError

    def next_timeout(self) -> float | None:
        """When to call `handle_timeout` next, on the clock of its last call; None when the connection is dead.

        0.0 before the first call.
        """
        raise NotImplementedError

    def handle_timeout(self, now: float) -> None:
        """Let time pass. `now` are seconds on any clock that never goes back; the first call starts the clock.

        May queue a keepalive (look at `data_to_send` afterwards). Raises `ProtocolError` when the handshake takes
        too long or the peer was silent for too long.
        """

    def open_channel(self, key: bytes) -> Channel:
        """Open the channel of a core (32-byte key), or accept the peer's offer of it.

        For a channel that is open already it gives that channel. Needs the handshake to be done. Raises
        `ProtocolError` when the peer offered the core without knowing its key, or sent nonsense ahead.
        """
        raise NotImplementedError

    def reject(self, discovery_key: bytes) -> None:
        """Tell the peer that the core it offered is not wanted; nothing happens when there is no such offer."""

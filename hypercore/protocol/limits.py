"""What one connection may cost, whatever its peer sends: every bound of the protocol, with its reason.

Parts floor: pure numbers.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds of one connection. Sizes are bytes, times seconds."""

    frame_size: int = 2**24 - 1
    """The longest frame body that is accepted; the length field holds no more. A partial frame is buffered up to it."""

    batch_size: int = 256 * 1024
    """A batch frame is closed once it holds this much: small enough to stay in the processor's cache and to reach
    the peer early, large enough that the price of sealing a frame vanishes. A larger single message goes alone."""

    batch_items: int = 64 * 1024
    """The most items, and changes of channel, that a received batch may have. Three bytes of a frame can become an
    event of 400, so a frame full of them would cost a gigabyte; an honest batch holds what its sender queued in one
    turn, some hundreds."""

    channels: int = 4096
    """Channels that are open, opening or offered at once; the peer's further opens are rejected. A store of that many
    loaded cores is larger than any that is known."""

    undecided_size: int = 32 * 1024
    """Above this many bytes held for offered channels `Connection.is_paused` asks to stop reading until the
    application has decided. The other implementation pauses at the same size."""

    undecided_size_max: int = 1024 * 1024
    """Above this the connection ends: what was already under way when reading paused is far below it."""

    unsent_rejects: int = 16 * 1024
    """Rejects that wait to be sent; a peer that opens channels and never reads the answers ends here."""

    handshake_seconds: float = 10.0
    """From the start to both headers received; the other implementation would wait for ever."""

    keepalive_seconds: float = 5.0
    """After this long without writing an empty message is sent, as the other implementation does."""

    receive_seconds: float = 30.0
    """A peer that sends nothing for this long is gone: six keepalives were missed."""


DEFAULT_LIMITS = Limits()

"""What a connection tells its application, as values, in the order in which it happened.

Parts floor. Wire spec, sections 2 to 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from hypercore.protocol.messages import Message

if TYPE_CHECKING:
    from hypercore.protocol.channel import Channel


class HandshakeDone(NamedTuple):
    """Both sides have the keys; channels may be opened from now on.

    `remote_public_key` (32 bytes) is proved to be the peer's, and any key is welcome. `handshake_hash` (64 bytes) is
    the same on both sides and on no other connection.
    """

    remote_public_key: bytes
    handshake_hash: bytes


class ChannelOffered(NamedTuple):
    """The peer wants to replicate the core of this 32-byte discovery key.

    Answer with `Connection.open_channel(key)` or `Connection.reject(discovery_key)`.
    """

    discovery_key: bytes


class ChannelOpened(NamedTuple):
    """Both sides have opened the channel, and the peer has proved that it knows the core's key."""

    channel: Channel


class ChannelRejected(NamedTuple):
    """The peer does not want the channel that we opened; it is closed."""

    channel: Channel


class ChannelClosed(NamedTuple):
    """The peer closed the channel; it may be opened again. Not told for a channel that we closed."""

    channel: Channel


class MessageReceived(NamedTuple):
    """One message on an open channel."""

    channel: Channel
    message: Message


class PeerFinished(NamedTuple):
    """The peer sends nothing more. Answer by sending what is left and closing our side."""


Event = (
    HandshakeDone | ChannelOffered | ChannelOpened | ChannelRejected | ChannelClosed | MessageReceived | PeerFinished
)

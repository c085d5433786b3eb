"""One core's channel on a connection, as its application holds it (wire spec, section 4).

Parts floor: messages in, mux items out; mux items in, events out. It knows the capability that the peer must show,
not how it is made.
"""

from __future__ import annotations

from typing import Final

from hypercore.errors import ProtocolError
from hypercore.protocol import messages
from hypercore.protocol.events import ChannelClosed, ChannelOpened, ChannelRejected, Event, MessageReceived
from hypercore.protocol.messages import ChannelHandshake, Extension, Message
from hypercore.protocol.mux import ChannelState, Mux, MuxChannel

__all__ = ["Channel", "ChannelState"]

#: What opens are named; peers of either version answer to it.
PROTOCOL: Final = b"hypercore/alpha"
#: Other names that mean the same.
ALIASES: Final = {b"hypercore": PROTOCOL}


class Channel(MuxChannel):
    """The channel of one core. Made by `Connection.open_channel`.

    `key` and `discovery_key` are 32 bytes each. `remote_seeks` says whether the peer answers seeks (false until the
    channel is open). `state` is `OPENING` until the peer has answered, `OPEN`, then `CLOSED` for good.
    """

    __slots__ = ("_events", "_last_extension", "_mux", "_remote_capability", "discovery_key", "key", "remote_seeks")

    def __init__(
        self,
        mux: Mux,
        key: bytes,
        discovery_key: bytes,
        *,
        capability: bytes,
        remote_capability: bytes,
        events: list[Event],
    ) -> None:
        handshake = messages.encode_channel_handshake(ChannelHandshake(True, capability))
        super().__init__(PROTOCOL, discovery_key, handshake)
        self.key = key
        self.discovery_key = discovery_key
        self.remote_seeks = False
        self._mux = mux
        self._remote_capability = remote_capability
        self._events = events
        self._last_extension = ""

    def send(self, message: Message) -> None:
        """Queue a message; `Connection.data_to_send` hands it out.

        Allowed as soon as the channel was opened on our side. On a closed channel it goes nowhere, as it would have
        if the peer's close had crossed it on the way. Raises `ValueError` when it does not fit into a frame.
        """
        parts: list[bytes] = []
        size = messages.encode(message, parts)
        self._mux.send(self, parts, size)

    def close(self) -> None:
        """Close the channel for both sides; twice is fine. An opening channel closes once the peer has answered."""
        self._mux.close(self)

    def on_open(self, handshake: bytes) -> None:
        theirs = messages.decode_channel_handshake(handshake)
        if theirs.capability != self._remote_capability:
            raise ProtocolError("the peer opened a core whose key it does not know")
        self.remote_seeks = theirs.seeks
        self._events.append(ChannelOpened(self))

    def on_reject(self) -> None:
        self._events.append(ChannelRejected(self))

    def on_close(self) -> None:
        self._events.append(ChannelClosed(self))

    def on_item(self, data: bytes, offset: int, end: int) -> None:
        message = messages.decode(data, offset, end)
        if message is None:
            return
        if type(message) is Extension:
            if not message.name:
                message = Extension(self._last_extension, message.payload)
            self._last_extension = message.name
        self._events.append(MessageReceived(self, message))

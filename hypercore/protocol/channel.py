"""One core's channel on a connection, as its application holds it.

Parts floor: messages in, mux items out.
"""

from __future__ import annotations

from hypercore.protocol import messages
from hypercore.protocol.messages import Message
from hypercore.protocol.mux import ChannelState, Mux, MuxChannel

__all__ = ["Channel", "ChannelState"]


class Channel:
    """The channel of one core. Made by `Connection.open_channel`.

    `key` and `discovery_key` are 32 bytes each. `remote_seeks` says whether the peer answers seeks (false until the
    channel is open). Wire spec, section 4.
    """

    __slots__ = ("_inner", "_last_extension", "_mux", "discovery_key", "key", "remote_seeks")

    def __init__(self, mux: Mux, inner: MuxChannel, key: bytes, discovery_key: bytes) -> None:
        self._mux = mux
        self._inner = inner
        self._last_extension = ""
        self.key = key
        self.discovery_key = discovery_key
        self.remote_seeks = False

    @property
    def state(self) -> ChannelState:
        """`OPENING` until the peer has answered, `OPEN`, then `CLOSED`."""
        return self._inner.state

    def send(self, message: Message) -> None:
        """Queue a message; `Connection.data_to_send` hands it out.

        Allowed as soon as the channel was opened on our side. On a closed channel it goes nowhere, as it would have
        if the peer's close had crossed it on the way.
        """

    def close(self) -> None:
        """Close the channel for both sides; twice is fine. An opening channel closes once the peer has answered."""

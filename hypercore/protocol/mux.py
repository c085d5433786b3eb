"""Channels over one stream of messages (wire spec, section 3).

Parts floor: knows ids, opens and batches. An item is a message type and its payload; what it says is its channel's.

Each side numbers its channels for itself, so one channel has two ids. Messages carry the sender's id, a close the
sender's, a reject the receiver's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Final

from hypercore.encoding import Reader, decode_uint, encode_buffer, encode_uint
from hypercore.errors import ProtocolError
from hypercore.protocol.limits import DEFAULT_LIMITS, Limits
from hypercore.protocol.secret_stream import MAX_MESSAGE_SIZE

#: Bounds of a name and an id in an open; 15 and 32 bytes are what is used.
MAX_NAME_SIZE: Final = 256

#: What an item costs beyond its own bytes: its size, and a switch of channel before it.
_ITEM_OVERHEAD: Final = 9 + 1 + 9
#: The longest item: it must fit into one frame behind its channel's id.
MAX_ITEM_SIZE: Final = MAX_MESSAGE_SIZE - 9
#: What holding one item costs beyond its bytes, counted as the other implementation counts it.
_HELD_OVERHEAD: Final = 512

_BATCH, _OPEN, _REJECT, _CLOSE = range(4)


class ChannelState(Enum):
    """The life of a channel: `OPENING` until the peer opens it too or rejects it, `OPEN`, `CLOSED`.

    `CLOSING` is an opening channel that is to be closed as soon as the peer has answered; closing it before would
    leave the peer with a channel that it takes for open.
    """

    OPENING = "opening"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


#: A message may follow our own open at once: the peer holds it until it has decided.
_SENDABLE: Final = (ChannelState.OPEN, ChannelState.OPENING)


class MuxChannel:
    """One channel. Subclasses say what its events mean.

    `handshake` are the bytes that our open carries. `protocol` and `id` together name the channel on both sides.
    """

    __slots__ = ("handshake", "id", "local_id", "protocol", "remote_id", "state")

    def __init__(self, protocol: bytes, id: bytes, handshake: bytes = b"") -> None:  # noqa: A002 - the field's word
        self.protocol = protocol
        self.id = id
        self.handshake = handshake
        self.local_id = 0
        self.remote_id = 0
        self.state = ChannelState.CLOSED

    def on_open(self, handshake: bytes) -> None:
        """Both sides have opened; `handshake` is the peer's. May raise `ProtocolError`."""

    def on_reject(self) -> None:
        """The peer does not want the channel."""

    def on_close(self) -> None:
        """The peer closed the channel."""

    def on_item(self, data: bytes, offset: int, end: int) -> None:
        """One message: type and payload are `data[offset:end]`, at least one byte. May raise `ProtocolError`."""


class Offer:
    """A channel that the peer opened and nobody here has decided on; it holds what followed."""

    __slots__ = ("_mux", "handshake", "held", "id", "protocol", "remote_id", "size")

    def __init__(self, mux: Mux, protocol: bytes, id: bytes, remote_id: int, handshake: bytes) -> None:  # noqa: A002
        self._mux = mux
        self.protocol = protocol
        self.id = id
        self.remote_id = remote_id
        self.handshake = handshake
        self.held: list[bytes] = []
        self.size = 0
        self._grow(len(handshake))

    def on_item(self, data: bytes, offset: int, end: int) -> None:
        self._grow(end - offset + _HELD_OVERHEAD)
        self.held.append(data[offset:end])

    def _grow(self, size: int) -> None:
        self.size += size
        self._mux.add_undecided(size)


class Mux:
    """All channels of one connection. Subclasses override `on_offer`.

    `aliases` maps other names of a protocol to the one that our opens carry; both pair. `receive` takes frames,
    `take_frames` gives those to send: what was queued in between leaves as few batches.
    """

    def __init__(self, *, aliases: Mapping[bytes, bytes] | None = None, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._batch_size = min(limits.batch_size, MAX_ITEM_SIZE)
        self._aliases = dict(aliases or {})
        self._channels: dict[tuple[bytes, bytes], MuxChannel] = {}
        self._offers: dict[tuple[bytes, bytes], Offer] = {}
        self._local: dict[int, MuxChannel] = {}
        self._remote: dict[int, MuxChannel | Offer] = {}
        self._free_local_ids: list[int] = []
        self._highest_remote_id = 0
        #: Bytes held for channels that are offered.
        self.undecided_size = 0
        self._frames: list[bytes] = []
        self._frames_size = 0
        self._unsent_rejects = 0
        self._parts: list[bytes] = []
        self._count = 0
        self._size = 0
        self._first_id = self._last_id = 0

    # ---- what the application does ----

    def on_offer(self, offer: Offer) -> None:
        """The peer opened a channel that we have not; answer, now or later, with `open` or `reject`."""

    @property
    def channels(self) -> list[MuxChannel]:
        """Channels that we opened and that are not closed."""
        return list(self._channels.values())

    def channel(self, protocol: bytes, id: bytes) -> MuxChannel | None:  # noqa: A002
        """Our channel of that name, unless it is closed."""
        return self._channels.get((protocol, id))

    def offer(self, protocol: bytes, id: bytes) -> Offer | None:  # noqa: A002
        """The peer's open that waits for our decision, if there is one."""
        return self._offers.get((protocol, id))

    def open(self, channel: MuxChannel) -> None:
        """Open a channel, or accept the peer's offer of it.

        Raises `ValueError` when its pair of protocol and id is open, and what `on_open` and `on_item` raise.
        """
        pair = channel.protocol, channel.id
        if pair in self._channels:
            raise ValueError("the channel is open already")
        offer = self._offers.pop(pair, None)
        if offer is not None:
            self.undecided_size -= offer.size
            channel.on_open(offer.handshake)  # refuses a peer that may not open it before it learns that we may
        self._channels[pair] = channel
        channel.local_id = self._free_local_ids.pop() if self._free_local_ids else len(self._local) + 1
        self._local[channel.local_id] = channel
        channel.state = ChannelState.OPENING
        self._queue_control(
            _OPEN,
            encode_uint(channel.local_id) + encode_buffer(channel.protocol) + encode_buffer(channel.id),
            channel.handshake,
        )
        if offer is not None:
            channel.state = ChannelState.OPEN
            channel.remote_id = offer.remote_id
            self._remote[offer.remote_id] = channel
            for item in offer.held:
                channel.on_item(item, 0, len(item))

    def reject(self, offer: Offer) -> None:
        """Decline the peer's open; what followed it is forgotten."""
        if self._offers.pop((offer.protocol, offer.id), None) is not None:
            self.undecided_size -= offer.size
            del self._remote[offer.remote_id]
            self._queue_reject(offer.remote_id)

    def close(self, channel: MuxChannel) -> None:
        """Close for both sides. An opening channel closes once the peer has answered. Twice is fine."""
        if channel.state is ChannelState.OPENING:
            channel.state = ChannelState.CLOSING
        elif channel.state is ChannelState.OPEN:
            self._queue_control(_CLOSE, encode_uint(channel.local_id))
            self._forget(channel)

    def keep(self, channel: MuxChannel) -> None:
        """Take back the closing of a channel that the peer has not answered yet."""
        if channel.state is ChannelState.CLOSING:
            channel.state = ChannelState.OPENING

    def send(self, channel: MuxChannel, parts: Sequence[bytes], size: int) -> None:
        """Queue one item, `size` bytes in `parts`. On a closed or closing channel it goes nowhere.

        Raises `ValueError` when it does not fit into a frame.
        """
        if size > MAX_ITEM_SIZE:
            raise ValueError(f"a message of {size} bytes does not fit into a frame, at most {MAX_ITEM_SIZE} do")
        if channel.state in _SENDABLE:
            self._queue(channel.local_id, parts, size)

    def destroy(self) -> None:
        """Forget everything: the stream has ended."""
        for channel in self._channels.values():
            channel.state = ChannelState.CLOSED
        for table in (self._channels, self._offers, self._local, self._remote):
            table.clear()
        self._frames.clear()
        self._parts.clear()
        self._frames_size = self._size = self._count = self.undecided_size = 0

    # ---- sending ----

    @property
    def queued_size(self) -> int:
        """Bytes that `take_frames` would give, or a few more."""
        return self._frames_size + self._size

    def take_frames(self) -> list[bytes]:
        """The frames to send, in order, each at most `MAX_MESSAGE_SIZE` bytes."""
        self._finish_frame()
        frames, self._frames = self._frames, []
        self._frames_size = 0
        self._unsent_rejects = 0
        return frames

    def _queue(self, channel_id: int, parts: Sequence[bytes], size: int) -> None:
        if self._count and self._size + size > self._batch_size:
            self._finish_frame()
        queued = self._parts
        if not self._count:
            self._first_id = channel_id
            queued.append(b"")  # the head of the frame, known when its items are
        elif channel_id != self._last_id:
            queued.append(b"\x00" + encode_uint(channel_id))
        self._last_id = channel_id
        queued.append(encode_uint(size))
        queued += parts
        self._count += 1
        self._size += size + _ITEM_OVERHEAD

    def _finish_frame(self) -> None:
        """Join the queued items into one frame: a batch, or for one item a plain message."""
        parts = self._parts
        if not parts:
            return
        if self._count == 1:
            parts[:2] = (encode_uint(self._first_id),)
        else:
            parts[0] = b"\x00\x00" + encode_uint(self._first_id)
        frame = b"".join(parts)
        self._frames.append(frame)
        self._frames_size += len(frame)
        parts.clear()
        self._count = self._size = 0

    def _queue_control(self, kind: int, *parts: bytes) -> None:
        self._queue(0, (encode_uint(kind), *parts), 1 + sum(map(len, parts)))

    def _queue_reject(self, remote_id: int) -> None:
        self._unsent_rejects += 1
        if self._unsent_rejects > self._limits.unsent_rejects:
            raise ProtocolError("the peer opens channels and does not read the answers")
        self._queue_control(_REJECT, encode_uint(remote_id))

    # ---- receiving ----

    def receive(self, data: bytes) -> None:
        """Take one frame. Raises `ProtocolError`, `DecodeError`, and what the channels raise."""
        end = len(data)
        if not end:
            return
        channel_id, offset = decode_uint(data, 0, end)
        if channel_id:
            self._receive_item(channel_id, data, offset, end)
            return
        kind, payload = decode_uint(data, offset, end)
        if kind == _BATCH:
            self._receive_batch(data, payload, end)
        else:
            self._receive_control(data, offset, end)

    def _receive_item(self, channel_id: int, data: bytes, offset: int, end: int) -> None:
        if offset == end:
            raise ProtocolError(f"a message without type on channel {channel_id}")
        channel = self._remote.get(channel_id)
        if channel is not None:
            channel.on_item(data, offset, end)

    def _receive_batch(self, data: bytes, offset: int, end: int) -> None:
        channel_id, offset = decode_uint(data, offset, end)
        channel = self._remote.get(channel_id)
        room = self._limits.batch_items
        while offset < end:
            room -= 1
            if room < 0:
                raise ProtocolError(f"a batch of more than {self._limits.batch_items} items")
            size = data[offset]
            if 0 < size <= 0xFC:
                offset += 1
            else:
                size, offset = decode_uint(data, offset, end)
                if not size:
                    channel_id, offset = decode_uint(data, offset, end)
                    channel = self._remote.get(channel_id)
                    continue
            stop = offset + size
            if stop > end:
                raise ProtocolError(f"an item of {size} bytes in a batch that has {end - offset} left")
            if channel is not None:
                channel.on_item(data, offset, stop)
            elif not channel_id:
                self._receive_control(data, offset, stop)
            offset = stop

    def _receive_control(self, data: bytes, offset: int, end: int) -> None:
        reader = Reader(data, offset, end)
        kind = reader.uint()
        if kind == _BATCH:
            raise ProtocolError("a batch inside a batch")
        if kind == _OPEN:
            self._receive_open(reader)
        elif kind == _REJECT:
            channel = self._local.get(reader.uint())
            # A reject of a channel that is open, or never was, says nothing that could be acted on.
            if channel is not None and channel.state is not ChannelState.OPEN:
                told = channel.state is ChannelState.OPENING
                self._forget(channel)
                if told:
                    channel.on_reject()
        elif kind == _CLOSE:
            self._receive_close(reader.uint())

    def _receive_open(self, reader: Reader) -> None:
        remote_id = reader.uint()
        protocol = reader.buffer(limit=MAX_NAME_SIZE)
        id_ = reader.buffer(limit=MAX_NAME_SIZE)
        handshake = reader.rest()
        if remote_id in self._remote or not 0 < remote_id <= self._highest_remote_id + 1:
            raise ProtocolError(f"the peer opened a channel as {remote_id}, which is in use or out of order")
        self._highest_remote_id = max(self._highest_remote_id, remote_id)
        pair = self._aliases.get(protocol, protocol), id_
        channel = self._channels.get(pair)
        if channel is not None and channel.state is not ChannelState.OPEN:
            self._meet(channel, remote_id, handshake)
            return
        full = len(self._channels) + len(self._offers) >= self._limits.channels
        if channel is not None or pair in self._offers or full:
            self._queue_reject(remote_id)
            return
        offer = Offer(self, *pair, remote_id, handshake)
        self._offers[pair] = self._remote[remote_id] = offer
        self.on_offer(offer)

    def _meet(self, channel: MuxChannel, remote_id: int, handshake: bytes) -> None:
        """Their open met ours: the channel is open, unless it was to be closed at this moment."""
        closing = channel.state is ChannelState.CLOSING
        channel.state = ChannelState.OPEN
        channel.remote_id = remote_id
        self._remote[remote_id] = channel
        if closing:
            self.close(channel)
        else:
            channel.on_open(handshake)

    def _receive_close(self, remote_id: int) -> None:
        channel = self._remote.get(remote_id)
        if isinstance(channel, Offer):
            # The peer took its offer back. If we open the channel later we begin anew.
            self.undecided_size -= channel.size
            del self._remote[remote_id], self._offers[channel.protocol, channel.id]
        elif channel is not None:
            self._forget(channel)
            channel.on_close()

    def _forget(self, channel: MuxChannel) -> None:
        """Close on our side: both ids are free."""
        channel.state = ChannelState.CLOSED
        del self._local[channel.local_id], self._channels[channel.protocol, channel.id]
        self._free_local_ids.append(channel.local_id)
        self._remote.pop(channel.remote_id, None)
        channel.local_id = channel.remote_id = 0

    def add_undecided(self, size: int) -> None:
        self.undecided_size += size
        if self.undecided_size > self._limits.undecided_size_max:
            raise ProtocolError(f"the peer sent {self.undecided_size} bytes on channels that nobody has accepted")

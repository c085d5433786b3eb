"""A pair of byte streams inside one process, with the manners of TCP.

It knows nothing of names or listeners. Both ends must live in one event loop. Like TCP it keeps no message
boundaries: what one `send` gave may arrive in pieces, and what several gave may arrive in one.
"""

from __future__ import annotations

import asyncio
from collections import deque

from hypercore.errors import PeerClosedError, StreamClosedError, TransportError
from hypercore.transport import ByteStream

#: Bytes that may wait unread before `send` waits; what the TCP transport and the kernel keep for a slow reader.
BUFFER_SIZE = 256 * 1024
#: The most that one `receive` gives, so that a reader meets divided messages here as it does on a network.
RECEIVE_SIZE = 64 * 1024


class _Flow:
    """One direction: bytes that were sent and not yet received, and who waits for a change of it."""

    __slots__ = ("chunks", "finished", "receiver", "refused", "senders", "size", "taken")

    def __init__(self) -> None:
        self.chunks: deque[bytes] = deque()
        #: Bytes of the first chunk that were received already.
        self.taken = 0
        self.size = 0
        #: The sending end closed: after the last byte comes the end.
        self.finished = False
        #: The receiving end closed: nobody will ever take another byte.
        self.refused = False
        self.receiver: asyncio.Future[None] | None = None
        self.senders: deque[asyncio.Future[None]] = deque()

    def put(self, data: bytes) -> None:
        self.chunks.append(data)
        self.size += len(data)
        self.wake_receiver()

    def take(self) -> bytes:
        """What waits, up to `RECEIVE_SIZE` bytes; the common single chunk is handed over without a copy."""
        parts: list[bytes] = []
        room = RECEIVE_SIZE
        while self.chunks and room:
            part = self.chunks[0]
            if self.taken or len(part) > room:
                part = part[self.taken : self.taken + room]
            self.taken += len(part)
            if self.taken == len(self.chunks[0]):
                self.chunks.popleft()
                self.taken = 0
            parts.append(part)
            room -= len(part)
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        self.size -= len(data)
        if self.size <= BUFFER_SIZE:
            self.wake_senders()
        return data

    def clear(self) -> None:
        self.chunks.clear()
        self.taken = self.size = 0

    def wake_receiver(self) -> None:
        if self.receiver is not None and not self.receiver.done():
            self.receiver.set_result(None)

    def wake_senders(self) -> None:
        for sender in self.senders:
            if not sender.done():
                sender.set_result(None)


class DuplexStream(ByteStream):
    """One end of a pipe. Made in pairs, by `stream_pair`."""

    def __init__(self, incoming: _Flow, outgoing: _Flow, remote_address: str) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._address = remote_address
        self._closed = False

    async def receive(self) -> bytes:
        flow = self._incoming
        if flow.receiver is not None:
            raise TransportError(f"another task is already receiving from {self._address}; let one task receive")
        while True:
            if self._closed:
                raise StreamClosedError(f"this program closed its stream to {self._address}")
            if flow.chunks:
                return flow.take()
            if flow.finished:
                return b""
            flow.receiver = asyncio.get_running_loop().create_future()
            try:
                await flow.receiver
            finally:
                flow.receiver = None

    async def send(self, data: bytes) -> None:
        """All of `data` is on its way before this waits, so a send that is cancelled still leaves whole messages."""
        flow = self._outgoing
        self._check_sendable()
        if data:
            flow.put(bytes(data))
        while flow.size > BUFFER_SIZE:
            turn = asyncio.get_running_loop().create_future()
            flow.senders.append(turn)
            try:
                await turn
            finally:
                flow.senders.remove(turn)
            self._check_sendable()

    def _check_sendable(self) -> None:
        if self._closed:
            raise StreamClosedError(f"this program closed its stream to {self._address}")
        if self._outgoing.refused:
            raise PeerClosedError(f"{self._address} closed the stream and takes no more bytes")

    async def aclose(self) -> None:
        """The peer still receives everything that was sent before."""
        self.abort()

    def abort(self) -> None:
        """The same: there is nothing here to wait for."""
        if self._closed:
            return
        self._closed = True
        for flow in (self._incoming, self._outgoing):
            flow.wake_receiver()
            flow.wake_senders()
        self._outgoing.finished = True
        self._incoming.refused = True
        # Nobody can receive these any more, so they must not hold memory as long as the peer holds its end.
        self._incoming.clear()

    @property
    def remote_address(self) -> str:
        return self._address


def stream_pair(left: str = "pipe:left", right: str = "pipe:right") -> tuple[DuplexStream, DuplexStream]:
    """Two connected streams. `left` and `right` are the addresses by which each end is known to the other one."""
    rightward, leftward = _Flow(), _Flow()
    return DuplexStream(leftward, rightward, right), DuplexStream(rightward, leftward, left)

"""A peer whose every frame is written by hand, and who understands what ours says."""

from __future__ import annotations

import asyncio
from typing import Any

from hypercore.crypto import KeyPair
from hypercore.duplex import DuplexStream
from hypercore.encoding import decode_uint
from hypercore.errors import TransportError
from hypercore.protocol.messages import Message, decode
from hypercore.protocol.secret_stream import SecretStream
from tests.protocol.support import encoded


class RawPeer:
    """The far end of a stream, in frames. `on_message` may be overridden; channel 1 is the one that is spoken on."""

    def __init__(self, wire: DuplexStream, *, initiator: bool, key_pair: KeyPair, ephemeral: KeyPair) -> None:
        self._wire = wire
        self._stream = SecretStream(initiator, key_pair, ephemeral=ephemeral, header=b"header of the raw peer..")
        #: Messages on channels, in order, and controls as (kind, body).
        self.inbox: list[Message] = []
        self.controls: list[tuple[int, bytes]] = []
        self._ready = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        await self._flush()
        while True:
            try:
                data = await self._wire.receive()
            except TransportError:
                return
            if not data:
                return
            for frame in self._stream.receive_data(data):
                for channel, body in messages_of(frame):
                    if channel:
                        message = decode(body, 0, len(body))
                        assert message is not None
                        self.inbox.append(message)
                        await self.on_message(message)
                    else:
                        self.controls.append((body[0], body[1:]))
            await self._flush()
            if self._stream.can_send:
                self._ready.set()

    async def on_message(self, message: Message) -> None:
        """One message has come."""

    async def _flush(self) -> None:
        if data := self._stream.data_to_send():
            await self._wire.send(data)

    async def handshake_hash(self) -> bytes:
        """Wait until frames may be sent."""
        await self._ready.wait()
        assert self._stream.handshake_hash is not None
        return self._stream.handshake_hash

    async def send_frame(self, frame: bytes) -> None:
        self._stream.send(frame)
        await self._flush()

    async def send(self, message: Message) -> None:
        await self.send_frame(b"\x01" + encoded(message))

    @property
    def opens(self) -> int:
        """How often ours opened a channel."""
        return sum(kind == 1 for kind, _ in self.controls)

    def received(self, kind: type[Message]) -> list[Any]:
        return [message for message in self.inbox if isinstance(message, kind)]

    async def hang_up(self) -> None:
        await self._wire.aclose()
        await self._task


def messages_of(frame: bytes) -> list[tuple[int, bytes]]:
    """Channel and body of each message in one plaintext frame."""
    end = len(frame)
    channel, offset = decode_uint(frame, 0, end)
    if channel or frame[offset]:
        return [(channel, frame[offset:])]
    channel, offset = decode_uint(frame, offset + 1, end)
    found = []
    while offset < end:
        size, offset = decode_uint(frame, offset, end)
        if size:
            found.append((channel, frame[offset : offset + size]))
            offset += size
        else:
            channel, offset = decode_uint(frame, offset, end)
    return found

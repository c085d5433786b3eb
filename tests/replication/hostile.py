"""A peer that speaks the protocol and says whatever a test wants."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from hypercore.core import Hypercore
from hypercore.crypto import KeyPair, random_bytes
from hypercore.duplex import stream_pair
from hypercore.errors import TransportError
from hypercore.protocol.connection import Channel, Connection
from hypercore.protocol.events import ChannelOpened, HandshakeDone, MessageReceived
from hypercore.protocol.messages import Data, Message, Request, Sync
from hypercore.session import Replication


class Stranger:
    """The other end of a connection to `core`, with its channel open."""

    def __init__(self, core: Hypercore, *, buffer_is_read: bool = True) -> None:
        ours, theirs = stream_pair()
        self.core = core
        self.stream = ours
        self.replication: Replication = core.replicate(theirs, initiator=False)
        self.connection = Connection(
            "initiator", KeyPair.generate(), ephemeral=KeyPair.generate(), header=random_bytes(24)
        )
        self.inbox: list[Message] = []
        self._channel: Channel | None = None
        self._ready = asyncio.Event()
        self._reads = buffer_is_read
        self.on_message: Callable[[Message], None] | None = None
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        await self._flush()
        while data := await self._receive():
            self.connection.receive_data(data)
            for event in self.connection.events():
                if isinstance(event, HandshakeDone):
                    self._channel = self.connection.open_channel(self.core.key)
                elif isinstance(event, ChannelOpened):
                    self._ready.set()
                elif isinstance(event, MessageReceived):
                    self.inbox.append(event.message)
                    if self.on_message is not None:
                        self.on_message(event.message)
            await self._flush()
            if self._ready.is_set() and not self._reads:
                return

    async def _receive(self) -> bytes:
        try:
            return await self.stream.receive()
        except TransportError:
            return b""

    async def _flush(self) -> None:
        if data := self.connection.data_to_send():
            await self.stream.send(data)

    @property
    def channel(self) -> Channel:
        assert self._channel is not None
        return self._channel

    async def opened(self) -> Stranger:
        await self._ready.wait()
        return self

    async def send(self, *messages: Message) -> None:
        for message in messages:
            self.channel.send(message)
        await self._flush()

    async def claim(self, length: int, *, fork: int = 0, acked: int = 0, has_manifest: bool = True) -> None:
        """Say that we have a log of this length."""
        await self.send(Sync(fork, length, acked, True, True, True, has_manifest, False))

    def answer_with(self, answer: Callable[[Request], Message | None]) -> None:
        """Answer each request, from now on."""

        def on_message(message: Message) -> None:
            if isinstance(message, Request) and (reply := answer(message)) is not None:
                self.channel.send(reply)

        self.on_message = on_message

    def received(self, kind: type[Message]) -> list[Message]:
        return [message for message in self.inbox if isinstance(message, kind)]

    async def close(self) -> None:
        await self.stream.aclose()
        self._task.cancel()
        await asyncio.wait([self._task])
        await self.replication.wait_closed()


async def answer_honestly(stranger: Stranger, source: Hypercore) -> None:
    """Serve `source`'s proofs through the stranger's mouth: a base for lies that change just one thing."""
    pending: asyncio.Queue[Request] = asyncio.Queue()

    def on_message(message: Message) -> None:
        if isinstance(message, Request):
            pending.put_nowait(message)

    stranger.on_message = on_message
    while True:
        request = await pending.get()
        asked = request.proof
        proof = await source.hub.log.prove(asked)
        await stranger.send(Data(request.id, proof))

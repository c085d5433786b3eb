"""A byte stream that fails as networks do, at the same place every time.

Aside of the floors: it wraps any `ByteStream` and knows nothing of what flows.
"""

from __future__ import annotations

import asyncio
from random import Random

from hypercore.errors import StreamBrokenError, StreamClosedError
from hypercore.transport import ByteStream


class FlakyStream(ByteStream):
    """`inner` with faults; wrap the other end, too, for faults in both directions.

    `chop_size`: nothing arrives or leaves in more than this many bytes at once, at random sizes from 1 on.
    `delay_seconds`: each receive and send first waits a random time up to this.
    `corrupt_at`: one bit of the received byte with this number, counted from 0, is flipped.
    `cut_after`: after this many received bytes the peer seems to have finished.
    `reset_after`: after this many bytes, both directions together, the connection breaks (`StreamBrokenError`);
    the peer sees an end.

    `seed` decides everything random, so that one seed and one sequence of calls give one behaviour.
    """

    def __init__(
        self,
        inner: ByteStream,
        *,
        seed: int = 0,
        chop_size: int | None = None,
        delay_seconds: float = 0.0,
        corrupt_at: int | None = None,
        cut_after: int | None = None,
        reset_after: int | None = None,
    ) -> None:
        self._inner = inner
        self._random = Random(seed)
        self._chop_size = chop_size
        self._delay_seconds = delay_seconds
        self._corrupt_at = corrupt_at
        self._cut_after = cut_after
        self._reset_after = reset_after
        #: Bytes that the inner stream gave and we have not given on.
        self._held = b""
        self._received_size = 0
        self._sent_size = 0
        self._closed = False
        self._broken = False

    async def receive(self) -> bytes:
        await self._delay()
        self._check()
        if self._cut_after is not None and self._received_size >= self._cut_after:
            return b""
        if not self._held:
            try:
                self._held = await self._inner.receive()
            except StreamClosedError:
                self._check()
                raise
        # From here to the return nothing waits, so a cancelled receive keeps its bytes.
        size = self._piece_size(len(self._held))
        if self._cut_after is not None:
            size = min(size, self._cut_after - self._received_size)
        if self._reset_after is not None and size:
            size = min(size, self._reset_after - self._received_size - self._sent_size)
            if size <= 0:
                await self._break()
        piece, self._held = self._held[:size], self._held[size:]
        piece = self._corrupted(piece)
        self._received_size += len(piece)
        return piece

    async def send(self, data: bytes) -> None:
        await self._delay()
        self._check()
        position = 0
        while position < len(data):
            size = self._piece_size(len(data) - position)
            if self._reset_after is not None:
                size = min(size, self._reset_after - self._received_size - self._sent_size)
                if size <= 0:
                    await self._break()
            try:
                await self._inner.send(data[position : position + size])
            except StreamClosedError:
                self._check()
                raise
            self._sent_size += size
            position += size

    async def aclose(self) -> None:
        self._closed = True
        await self._inner.aclose()

    def abort(self) -> None:
        self._closed = True
        self._inner.abort()

    @property
    def remote_address(self) -> str:
        return self._inner.remote_address

    def _piece_size(self, size: int) -> int:
        if self._chop_size is None or size <= 1:
            return size
        return min(size, self._random.randint(1, self._chop_size))

    def _corrupted(self, piece: bytes) -> bytes:
        if self._corrupt_at is None:
            return piece
        index = self._corrupt_at - self._received_size
        if not 0 <= index < len(piece):
            return piece
        flipped = piece[index] ^ (1 << self._random.randrange(8))
        return piece[:index] + bytes((flipped,)) + piece[index + 1 :]

    async def _delay(self) -> None:
        if self._delay_seconds:
            await asyncio.sleep(self._random.uniform(0, self._delay_seconds))

    def _check(self) -> None:
        if self._broken:
            raise StreamBrokenError(f"the connection to {self.remote_address} broke: a fault that the test asked for")
        if self._closed:
            raise StreamClosedError(f"this program closed its stream to {self.remote_address}")

    async def _break(self) -> None:
        self._broken = True
        await self._inner.aclose()
        self._check()

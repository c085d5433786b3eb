"""One TCP connection as a byte stream, on `asyncio.BufferedProtocol`.

The loop receives straight into a buffer of ours and `receive` copies it out once; neither direction costs a task
or a timer. It knows nothing of addresses and how a connection came to be.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import struct
import sys
import termios
from typing import cast

from hypercore.errors import PeerClosedError, StreamBrokenError, StreamClosedError, TransportError
from hypercore.transport import ByteStream

#: The receive buffer starts small, because most connections of a well-connected peer idle, and doubles each time
#: it was full, up to the size beyond which a larger one was not measurably faster.
FIRST_BUFFER_SIZE = 16 * 1024
BUFFER_SIZE = 256 * 1024
#: Bytes that may wait for the kernel before `send` waits: a few of the usual 64 KiB blocks keep the socket busy.
SEND_BUFFER_SIZE = 256 * 1024
#: How often `aclose` asks the kernel whether the peer has it all, in the rare case that it has not at once.
_CLOSE_POLL_SECONDS = 0.01
#: The most that is read from the kernel after a connection broke: what Linux keeps for a socket by default.
_RESCUE_SIZE = 6 * 1024 * 1024
#: A close with this SO_LINGER (on, for zero seconds) is a reset.
_RESET = struct.pack("ii", 1, 0)


class TcpStream(asyncio.BufferedProtocol, ByteStream):
    """A connected socket. Made by `TcpTransport.connect` and `TcpListener.accept`."""

    def __init__(
        self, sock: socket.socket, remote_address: str, local_address: str, *, close_timeout_seconds: float
    ) -> None:
        self._sock = sock
        self._address = remote_address
        self._local_address = local_address
        self._close_timeout_seconds = close_timeout_seconds
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._buffer = memoryview(bytearray(FIRST_BUFFER_SIZE))
        #: Bytes of the buffer that wait to be received.
        self._filled = 0
        self._reading = True
        self._writable = True
        #: We closed it.
        self._closed = False
        #: The peer has finished.
        self._ended = False
        #: The connection is no more: what broke it, if anything did.
        self._gone: asyncio.Future[Exception | None] = self._loop.create_future()
        #: Who waits in `receive`: for bytes, or for none, which says that the state has changed.
        self._receiver: asyncio.Future[bytes] | None = None
        #: Bytes that were given to a `receive` which was cancelled at that moment.
        self._unclaimed = b""
        self._senders: list[asyncio.Future[None]] = []

    # ---- what the promise asks for ----

    async def receive(self) -> bytes:
        if self._receiver is not None:
            raise TransportError(f"another task is already receiving from {self._address}; let one task receive")
        while True:
            if self._closed:
                raise StreamClosedError(f"this program closed its stream to {self._address}")
            if self._unclaimed:
                data, self._unclaimed = self._unclaimed, b""
                return data
            if self._filled:
                data = self._take()
                if not self._reading:
                    self._resume_reading()
                return data
            if self._ended:
                return b""
            if self._gone.done():
                raise self._broken() from self._gone.result()
            data = await self._arrival()
            if data:
                return data

    async def send(self, data: bytes) -> None:
        """All of `data` is on its way before this waits, so a send that is cancelled still leaves whole messages."""
        self._check_sendable()
        self._transport.write(data)
        if not self._writable:
            await self._sent()
            self._check_sendable()
        elif self._transport.is_closing():
            # The write found the connection broken; let the loop tell us why.
            await asyncio.wait((self._gone,))
            self._check_sendable()

    async def aclose(self) -> None:
        """The peer receives everything that was sent before, if it takes it within the close timeout."""
        if not self._closed:
            self._closed = True
            self._filled = 0
            self._wake()
            try:
                await self._finish()
            finally:
                self._cut()
        # Shielded, so that a cancelled close does not cancel what others wait for.
        await asyncio.shield(self._gone)

    def abort(self) -> None:
        self._closed = True
        self._filled = 0
        self._wake()
        self._cut()

    @property
    def remote_address(self) -> str:
        return self._address

    @property
    def local_address(self) -> str:
        return self._local_address

    # ---- what the loop calls ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=SEND_BUFFER_SIZE)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer[self._filled :] if self._filled else self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._closed:
            return
        self._filled += nbytes
        receiver = self._receiver
        if receiver is not None and not receiver.done():
            receiver.set_result(self._take())
        elif self._filled == len(self._buffer):
            self._reading = False
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        self._ended = True
        self._wake()
        # The peer has finished; we may still send.
        return True

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None and not self._closed and not self._ended:
            # A pipe breaks where the peer had finished before; otherwise the kernel's end of file means nothing.
            self._ended = self._rescue() and isinstance(exc, BrokenPipeError)
        self._gone.set_result(exc)
        self._wake()

    # ---- how ----

    async def _arrival(self) -> bytes:
        """The next bytes, given here by the loop without a stop in the buffer; none when only the state changed."""
        receiver: asyncio.Future[bytes] = self._loop.create_future()
        self._receiver = receiver
        try:
            return await receiver
        except asyncio.CancelledError:
            if receiver.done() and not receiver.cancelled():
                self._unclaimed = receiver.result()
            raise
        finally:
            self._receiver = None

    def _take(self) -> bytes:
        data = bytes(self._buffer[: self._filled])
        full = self._filled == len(self._buffer)
        self._filled = 0
        if full and len(data) < BUFFER_SIZE:
            self._buffer = memoryview(bytearray(2 * len(data)))
        return data

    def _resume_reading(self) -> None:
        self._reading = True
        if not self._ended and not self._transport.is_closing():
            self._transport.resume_reading()

    async def _sent(self) -> None:
        """Until the kernel took enough of what was sent, or somebody closed the connection."""
        closed = self._closed
        while not self._writable and not self._gone.done() and self._closed == closed:
            turn = self._loop.create_future()
            self._senders.append(turn)
            try:
                await turn
            finally:
                self._senders.remove(turn)

    def _wake(self) -> None:
        if self._receiver is not None and not self._receiver.done():
            self._receiver.set_result(b"")
        for sender in self._senders:
            if not sender.done():
                sender.set_result(None)

    def _check_sendable(self) -> None:
        if self._closed:
            raise StreamClosedError(f"this program closed its stream to {self._address}")
        if self._gone.done():
            if self._ended:
                message = f"{self._address} closed the stream and takes no more bytes"
                raise PeerClosedError(message) from self._gone.result()
            raise self._broken() from self._gone.result()

    def _broken(self) -> StreamBrokenError:
        reason = self._gone.result()
        return StreamBrokenError(f"the connection to {self._address} broke: {reason or 'it was cut'}")

    def _rescue(self) -> bool:
        """Take what had arrived before the connection broke; whether it ends there.

        A peer that sends its last bytes and closes makes our next write fail, and the loop then drops the
        connection together with those bytes, which the kernel holds for us.
        """
        rescued = bytearray(self._buffer[: self._filled])
        data = b"nothing yet"
        with contextlib.suppress(OSError):
            while data and len(rescued) < _RESCUE_SIZE:
                data = self._sock.recv(BUFFER_SIZE)
                rescued += data
        if len(rescued) > self._filled:
            self._buffer = memoryview(rescued)
            self._filled = len(rescued)
        return not data

    async def _finish(self) -> None:
        """Bring everything that was sent to the peer's kernel, and then our end of the stream.

        Closing a socket while bytes of the peer lie in it unread, or come later, makes the kernel drop what we sent
        and reset the connection. So we go on taking them, say our end, and close when all is acknowledged.
        """
        if self._gone.done():
            return
        if not self._reading:
            self._resume_reading()
        with contextlib.suppress(OSError):  # TimeoutError among them
            async with asyncio.timeout(self._close_timeout_seconds):
                self._transport.set_write_buffer_limits(high=0)
                await self._sent()
                if self._gone.done():
                    return
                self._sock.shutdown(socket.SHUT_WR)
                while not self._gone.done() and _unacknowledged_size(self._sock):
                    await asyncio.wait((self._gone,), timeout=_CLOSE_POLL_SECONDS)

    def _cut(self) -> None:
        if not self._gone.done() and self._transport.get_write_buffer_size():
            # Bytes are lost here, so the peer must see a reset and not an end that looks like ours.
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()


def _unacknowledged_size(sock: socket.socket) -> int:
    """Bytes that we sent and the peer's kernel has not confirmed."""
    answer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
    return int.from_bytes(answer, sys.byteorder)

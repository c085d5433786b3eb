"""TCP: dial and listen on `tcp://host:port`, over IPv4 and IPv6, by number or by name.

It knows nothing of what flows. Works alike on asyncio's own loop and on uvloop, so it does by itself what only one
of them offers: racing the addresses of a name, and taking connections from the kernel one by one.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from hypercore.errors import (
    AddressError,
    ConnectError,
    ConnectTimeoutError,
    OptionError,
    StreamClosedError,
    TransportError,
)
from hypercore.options import build_options
from hypercore.transport import ByteStream, Listener, Transport
from hypercore.urls import Address, parse_address
from hypercore_tcp.addresses import Endpoint, dialable_addresses, format_address, host_and_port, reason, resolve
from hypercore_tcp.stream import TcpStream

#: Connections that the kernel keeps for us to accept; further peers wait until there is room.
ACCEPT_QUEUE_COUNT = 128
#: Head start of each address of a name over the next one (RFC 8305, section 5).
HAPPY_EYEBALLS_DELAY_SECONDS = 0.25
#: Pause after the system refused an accept for want of descriptors or memory; others may give some back.
ACCEPT_RETRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpOptions:
    """Options of the TCP transport."""

    #: How long a close waits for the peer to take what was sent before it; then the connection is cut.
    close_timeout_seconds: float = 5.0

    def __post_init__(self) -> None:
        if not 0 <= self.close_timeout_seconds <= 3600:
            raise OptionError(f"close_timeout_seconds is 0 to 3600, not {self.close_timeout_seconds:g}")


class TcpListener(Listener):
    """Listening sockets. The kernel's backlog is the queue: a connection that nobody accepts costs this process
    nothing but its descriptor there.
    """

    def __init__(self, sockets: Sequence[socket.socket], options: TcpOptions) -> None:
        self._options = options
        self._sockets = tuple(sockets)
        self._addresses = tuple(address for sock in sockets for address in dialable_addresses(sock))
        self._loop = asyncio.get_running_loop()
        self._turn = asyncio.Lock()
        self._waiter: asyncio.Future[None] | None = None
        #: Connections whose `accept` was cancelled after the kernel gave them.
        self._ready: deque[TcpStream] = deque()
        self._closed = False

    @property
    def addresses(self) -> Sequence[str]:
        return self._addresses

    async def accept(self) -> ByteStream:
        async with self._turn:
            while True:
                if self._closed:
                    raise StreamClosedError(f"this program closed its listener on {self._addresses[0]}")
                if self._ready:
                    return self._ready.popleft()
                sock = await self._take()
                if sock is not None:
                    with contextlib.suppress(OSError):  # the peer left while it waited
                        return await self._open(sock)

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._wake()
        for sock in self._sockets:
            self._loop.remove_reader(sock)
            sock.close()
        while self._ready:
            await self._ready.popleft().aclose()

    async def _take(self) -> socket.socket | None:
        """A connection from the kernel, or None after waiting for the listeners to change."""
        pause_seconds = None
        for sock in self._sockets:
            try:
                return sock.accept()[0]
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                continue
            except OSError as error:
                if error.errno not in _SHORTAGES:
                    raise TransportError(f"cannot accept on {self._addresses[0]}: {error.strerror}") from error
                pause_seconds = ACCEPT_RETRY_SECONDS
        self._waiter = self._loop.create_future()
        timer = None
        try:
            if pause_seconds is None:
                for sock in self._sockets:
                    self._loop.add_reader(sock, self._wake)
            else:
                timer = self._loop.call_later(pause_seconds, self._wake)
            await self._waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()
            if not self._closed:
                for sock in self._sockets:
                    self._loop.remove_reader(sock)
        return None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _open(self, sock: socket.socket) -> TcpStream:
        opening = self._loop.create_task(_open(sock, self._options, accepted=True))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(self._keep)
            raise

    def _keep(self, opening: asyncio.Task[TcpStream]) -> None:
        if opening.cancelled() or opening.exception() is not None:
            return
        self._ready.append(opening.result())


class TcpTransport(Transport):
    """Dials and listens; holds nothing itself."""

    def __init__(self, options: TcpOptions | None = None) -> None:
        self._options = options or TcpOptions()

    async def connect(self, address: str, *, timeout_seconds: float = 10.0) -> ByteStream:
        host, port = self._place(address)
        if not host or not port:
            raise AddressError(f"{address}: to dial, write tcp://host:port with a port above 0")
        try:
            async with asyncio.timeout(timeout_seconds):
                sock = await _dial(address, await resolve(address, host, port))
                return await _open(sock, self._options)
        except ConnectError:
            raise
        except TimeoutError as error:
            message = f"{address} did not answer within {timeout_seconds:g} seconds; is it on, and no firewall between?"
            raise ConnectTimeoutError(message) from error
        except OSError as error:
            raise ConnectError(f"cannot connect to {address}: {reason(error)}") from error

    async def listen(self, address: str) -> Listener:
        host, port = self._place(address)
        sockets: list[socket.socket] = []
        failure: OSError | None = None
        for family, where in await resolve(address, host or "0.0.0.0", port):
            try:
                sockets.append(_listening(family, where))
            except OSError as error:
                # A name may stand for an address family that this machine does not have.
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    _close_all(sockets)
                    raise _listen_error(address, error) from error
                failure = error
        if not sockets:
            assert failure is not None
            raise _listen_error(address, failure) from failure
        return TcpListener(sockets, self._options)

    def _place(self, text: str) -> tuple[str, int]:
        address = parse_address(text)
        # The options were taken when the transport was opened; here they are only checked.
        build_options(TcpOptions, query=address.query, of="tcp")
        return host_and_port(address)


def open_transport(address: str | Address, **options: object) -> TcpTransport:
    """The transport behind `tcp://host:port`. Options: the fields of `TcpOptions`."""
    query = parse_address(address).query
    return TcpTransport(build_options(TcpOptions, query=query, keywords=options, of="tcp"))


# ---- sockets ----

_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


async def _open(sock: socket.socket, options: TcpOptions, *, accepted: bool = False) -> TcpStream:
    """A stream on a connected socket, which is closed when that fails."""
    loop = asyncio.get_running_loop()
    try:
        sock.setblocking(False)
        # Messages are complete when they are sent; waiting for more to go with them only adds latency.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream = TcpStream(
            sock,
            format_address(sock.getpeername()),
            format_address(sock.getsockname()),
            close_timeout_seconds=options.close_timeout_seconds,
        )
        if accepted:
            await loop.connect_accepted_socket(lambda: stream, sock)
        else:
            await loop.create_connection(lambda: stream, sock=sock)
    except BaseException:
        sock.close()
        raise
    return stream


async def _dial(address: str, infos: Sequence[Endpoint]) -> socket.socket:
    """A socket connected to whichever of the addresses answers first, each given a head start over the next."""
    if len(infos) == 1:
        return await _connect(*infos[0])
    waiting = deque(infos)
    attempts: set[asyncio.Task[socket.socket]] = set()
    failures: list[str] = []
    try:
        while waiting or attempts:
            if waiting:
                attempts.add(asyncio.ensure_future(_connect(*waiting.popleft())))
            delay = HAPPY_EYEBALLS_DELAY_SECONDS if waiting else None
            done, _ = await asyncio.wait(attempts, timeout=delay, return_when=asyncio.FIRST_COMPLETED)
            for attempt in done:
                attempts.remove(attempt)
                error = attempt.exception()
                if error is None:
                    return attempt.result()
                failures.append(reason(error))
    finally:
        for attempt in attempts:
            attempt.cancel()
        for attempt in attempts:
            attempt.add_done_callback(_close_late)
    raise ConnectError(f"cannot connect to {address}: {'; '.join(failures)}")


def _close_late(attempt: asyncio.Task[socket.socket]) -> None:
    """A second address that answered at the same time as the first is let go."""
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()


async def _connect(family: socket.AddressFamily, where: tuple[object, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if family == socket.AF_INET6 and where[3]:
            # uvloop forgets the zone of a link-local address, unless it is a part of the host.
            where = (f"{str(where[0]).partition('%')[0]}%{where[3]}", where[1])
        await asyncio.get_running_loop().sock_connect(sock, where)
        if sock.getsockname() == sock.getpeername():
            # TCP lets a port of this machine that nobody listens on connect to itself, now and then.
            raise ConnectionRefusedError(errno.ECONNREFUSED, "nothing listens there")
    except BaseException:
        sock.close()
        raise
    return sock


def _listening(family: socket.AddressFamily, where: tuple[object, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        # A listener may come back at once, although connections of its predecessor still linger in the kernel.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(where)
        sock.listen(ACCEPT_QUEUE_COUNT)
    except BaseException:
        sock.close()
        raise
    return sock


def _close_all(sockets: Sequence[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


def _listen_error(address: str, error: OSError) -> TransportError:
    advice = {
        errno.EADDRINUSE: "it is in use; choose another port, or port 0 for a free one",
        errno.EADDRNOTAVAIL: "it is not an address of this machine; listen on 127.0.0.1, or on 0.0.0.0 for all",
        errno.EAFNOSUPPORT: "this machine has no such addresses; listen on 0.0.0.0",
        errno.EACCES: "this port needs privileges; choose one above 1023",
    }.get(error.errno or 0, reason(error))
    return TransportError(f"cannot listen on {address}: {advice}")

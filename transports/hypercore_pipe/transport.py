"""Listeners with a name inside one process: `pipe:name`, and `pipe:` for a free name, as port 0 is for TCP.

For tests and for programs that join two cores without a network. It knows nothing of what flows.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Sequence

from hypercore.duplex import DuplexStream, stream_pair
from hypercore.errors import (
    AddressError,
    ConnectError,
    ConnectTimeoutError,
    OptionError,
    StreamClosedError,
    TransportError,
)
from hypercore.transport import ByteStream, Listener, Transport
from hypercore.urls import Address, parse_address

#: Streams that may wait to be accepted; a further `connect` waits, as one does for a full TCP backlog.
ACCEPT_QUEUE_COUNT = 128

_listeners: dict[str, PipeListener] = {}
_numbers = itertools.count(1)


class PipeListener(Listener):
    """Accepts the streams of `connect` calls to one name, in their order."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._queue: deque[DuplexStream] = deque()
        self._acceptors: deque[asyncio.Future[None]] = deque()
        self._dialers: deque[asyncio.Future[None]] = deque()
        self._closed = False

    @property
    def addresses(self) -> Sequence[str]:
        return (f"pipe:{self._name}",)

    @property
    def abandoned(self) -> bool:
        """Whether nobody can ever accept again: it was closed, or its event loop has ended."""
        return self._closed or self._loop.is_closed()

    async def accept(self) -> ByteStream:
        while not self._queue:
            if self._closed:
                raise StreamClosedError(f"this program closed its listener on pipe:{self._name}")
            await _turn(self._acceptors)
        stream = self._queue.popleft()
        _wake_one(self._dialers)
        return stream

    async def dial(self) -> DuplexStream:
        """The other end of a stream that `accept` will give. Raises `ConnectError` when the listener closes."""
        while len(self._queue) >= ACCEPT_QUEUE_COUNT and not self._closed:
            await _turn(self._dialers)
        if self._closed:
            raise ConnectError(f"the listener on pipe:{self._name} closed before it accepted")
        ours, theirs = stream_pair(f"pipe:{self._name}#{next(_numbers)}", f"pipe:{self._name}")
        self._queue.append(theirs)
        _wake_one(self._acceptors)
        return ours

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        if _listeners.get(self._name) is self:
            del _listeners[self._name]
        while self._queue:
            await self._queue.popleft().aclose()
        for waiter in (*self._acceptors, *self._dialers):
            if not waiter.done():
                waiter.set_result(None)


class PipeTransport(Transport):
    """Dials and listens by name within this process."""

    async def connect(self, address: str, *, timeout_seconds: float = 10.0) -> ByteStream:
        name = _name_of(address)
        if not name:
            raise AddressError("pipe: has no name to dial; write pipe:name, as the listener's addresses say")
        listener = _listeners.get(name)
        if listener is None or listener.abandoned:
            raise ConnectError(f"nothing in this process listens on pipe:{name}; start the listener first")
        try:
            async with asyncio.timeout(timeout_seconds):
                return await listener.dial()
        except TimeoutError as error:
            message = f"pipe:{name} did not accept within {timeout_seconds:g} seconds"
            raise ConnectTimeoutError(message) from error

    async def listen(self, address: str) -> Listener:
        name = _name_of(address) or _free_name()
        known = _listeners.get(name)
        if known is not None and not known.abandoned:
            raise TransportError(f"pipe:{name} is in use in this process; choose another name, or pipe: for a free one")
        listener = PipeListener(name)
        _listeners[name] = listener
        return listener


def open_transport(address: str | Address, **options: object) -> PipeTransport:
    """The transport behind `pipe:` addresses; it has no options."""
    if given := sorted({name for name, _ in parse_address(address).query} | options.keys()):
        raise OptionError(f"pipe has no option {given[0]!r}; it has none")
    return PipeTransport()


def _name_of(text: str) -> str:
    address = parse_address(text)
    if address.scheme != "pipe" or address.host is not None or address.query:
        raise AddressError(f"{str(address)!r} is not a pipe address; write pipe:name")
    return address.path


def _free_name() -> str:
    return next(name for number in _numbers if (name := f"free-{number}") not in _listeners)


async def _turn(queue: deque[asyncio.Future[None]]) -> None:
    """Wait in the queue. A turn that came together with a cancellation goes to the next one in it."""
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    queue.append(waiter)
    try:
        await waiter
    except asyncio.CancelledError:
        queue.remove(waiter)
        if waiter.done() and not waiter.cancelled():
            _wake_one(queue)
        raise
    queue.remove(waiter)


def _wake_one(queue: deque[asyncio.Future[None]]) -> None:
    for waiter in queue:
        if not waiter.done():
            waiter.set_result(None)
            return

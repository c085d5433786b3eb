"""What a transport promises: streams of bytes between two programs, listeners, and discovery.

Promise floor: the interface that plugins implement and the session and swarm lean on. It knows nothing of logs or
of the protocol that runs over the bytes. `hypercore.testing.TransportContract` proves it for a transport.

Three causes of an end, three errors: we closed it (`StreamClosedError`), the peer closed it (`receive` gives
`b""`, `send` raises `PeerClosedError`), the world broke it (`StreamBrokenError`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Self

from hypercore.errors import StreamClosedError


class ByteStream(ABC):
    """A duplex stream of bytes. One task may receive while another one sends."""

    @abstractmethod
    async def receive(self) -> bytes:
        """At least one byte, as they came; `b""` when the peer has finished, and every time after that."""

    @abstractmethod
    async def send(self, data: bytes) -> None:
        """Hand over all of `data`; waits while the peer does not take it (back-pressure)."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close both directions, now. Twice is fine. A waiting `receive` or `send` raises `StreamClosedError`."""

    @property
    @abstractmethod
    def remote_address(self) -> str:
        """Where the peer is, as an address of this transport, for messages and logs."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class Listener(ABC):
    """Accepts streams: an async iterator that ends when the listener is closed."""

    @property
    @abstractmethod
    def addresses(self) -> Sequence[str]:
        """What a peer may dial, with real port numbers."""

    @abstractmethod
    async def accept(self) -> ByteStream:
        """The next stream. Raises `StreamClosedError` once the listener is closed."""

    @abstractmethod
    async def aclose(self) -> None:
        """Stop accepting; streams that were accepted live on. Twice is fine."""

    def __aiter__(self) -> AsyncIterator[ByteStream]:
        return self._streams()

    async def _streams(self) -> AsyncIterator[ByteStream]:
        while True:
            try:
                stream = await self.accept()
            except StreamClosedError:
                return
            yield stream

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class Discovery(ABC):
    """Finds peers by topic (a discovery key, 32 bytes); the core's key itself is never given to it."""

    @abstractmethod
    async def announce(self, topic: bytes, addresses: Sequence[str]) -> None:
        """Say that this process serves `topic` at the addresses, until `withdraw`."""

    @abstractmethod
    def lookup(self, topic: bytes) -> AsyncIterator[str]:
        """Addresses of peers that serve `topic`, as they are found, until the iterator is closed."""

    @abstractmethod
    async def first_round(self, topic: bytes) -> None:
        """Return when everybody who was there when `topic` was looked up has had time to answer."""

    @abstractmethod
    async def withdraw(self, topic: bytes) -> None:
        """Stop announcing and looking for `topic`."""

    @abstractmethod
    async def aclose(self) -> None:
        """Withdraw everything. Twice is fine."""


class Transport(ABC):
    """What a transport address denotes: something to dial, to listen on, or both."""

    @abstractmethod
    async def connect(self, address: str, *, timeout_seconds: float = 10.0) -> ByteStream:
        """Dial. Raises `ConnectError`, `ConnectTimeoutError` or `AddressError`."""

    @abstractmethod
    async def listen(self, address: str) -> Listener:
        """Listen. Raises `TransportError` (address in use, not ours) or `AddressError`."""

    def discovery(self) -> Discovery | None:
        """How this transport finds peers by itself; None when it only dials given addresses."""
        return None

    async def aclose(self) -> None:  # noqa: B027 - most transports hold nothing
        """Let go of what the transport holds besides its streams and listeners."""

"""What a transport promises: streams of bytes between two programs, listeners, and discovery.

Promise floor: the interface that plugins implement and the session and swarm lean on. It knows nothing of logs or
of the protocol that runs over the bytes. `hypercore.testing.TransportContract` proves it for a transport.

Three causes of an end, three errors: we closed it (`StreamClosedError`), the peer closed it (`receive` gives
`b""`, `send` raises `PeerClosedError`), the world broke it (`StreamBrokenError`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
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

    @abstractmethod
    def abort(self) -> None:
        """Cut both directions without waiting for the peer, who may lose what was sent and sees an end or a break.

        Whoever waits in `receive`, `send` or `aclose` is let go as after a close; an `aclose` afterwards waits for
        nobody. Twice is fine.
        """

    @property
    @abstractmethod
    def remote_address(self) -> str:
        """Where the peer is, as an address of this transport, for messages and logs."""

    @property
    def local_address(self) -> str:
        """This end of the stream, as an address of this transport; empty where there is no such thing."""
        return ""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerFound:
    """A peer serves something that is looked for; again, whenever what is known of it changes."""

    #: Names what the peer says of itself until `PeerLost`; nothing else is promised of it.
    peer_id: str
    #: Where it may be dialled, the best first, as addresses of any transport. Nothing proves them but a handshake.
    addresses: tuple[str, ...]
    #: Those topics, of the ones looked for, that it serves or may serve.
    topics: frozenset[bytes]
    #: Whether this is the peer of that public key (32 bytes), as far as it says so; spares a second connection.
    is_peer: Callable[[bytes], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerLost:
    """A peer has left, or serves nothing more that is looked for. Its connections are none of discovery's business."""

    peer_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HostsLost:
    """These hosts (numbers, without ports) are no longer addresses of this machine: connections from them are dead."""

    hosts: frozenset[str]


DiscoveryEvent = PeerFound | PeerLost | HostsLost


class Discovery(ABC):
    """Finds peers by topic (a discovery key, 32 bytes); the core's key itself is never given to it."""

    @abstractmethod
    async def start(self, *, public_key: bytes, listen: Callable[[str], Awaitable[Listener]]) -> None:
        """Begin. `public_key` is what this program proves to its peers; `listen` opens what peers are to dial, at an
        address of any transport. Raises `TransportError`.
        """

    @abstractmethod
    def announce(self, topics: frozenset[bytes]) -> None:
        """Say from now on that this program serves exactly these; none at all ends it. Returns at once."""

    @abstractmethod
    def look_up(self, topics: frozenset[bytes]) -> None:
        """Look from now on for peers that serve any of exactly these. Returns at once."""

    @abstractmethod
    def events(self) -> AsyncIterator[DiscoveryEvent]:
        """What is found and lost, until `aclose`. One iterator at a time."""

    @abstractmethod
    async def first_round(self, topic: bytes) -> None:
        """Return when those who serve `topic` had their fair chance to answer since it is looked for; `events` has
        given them by then.
        """

    async def reconfirm(self, peer_id: str) -> None:  # noqa: B027 - optional
        """Dials to this peer fail: find out whether it is there, and report it lost if not."""

    @abstractmethod
    async def aclose(self) -> None:
        """Withdraw everything. Twice is fine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Symptom:
    """Something that keeps peers from being found, or may."""

    #: A word for programs that does not change: `multicast-blocked`.
    cause: str
    #: What was seen, and what to do about it: one sentence each.
    text: str
    advice: str
    #: As long as this is so nobody is found at all.
    is_fatal: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """Somebody who announces something."""

    #: Where it may be dialled.
    addresses: tuple[str, ...]
    #: Those topics, of the ones asked about, that it serves or may serve.
    topics: frozenset[bytes]
    #: How many topics it announces; None when it does not say.
    topic_count: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What a look at the network has shown. Without a symptom, whoever announces something was heard."""

    #: Where peers are looked for, in words for people.
    places: tuple[str, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    symptoms: tuple[Symptom, ...] = ()


class Transport(ABC):
    """What a transport address denotes: something to dial, to listen on, or both."""

    @abstractmethod
    async def connect(self, address: str, *, timeout_seconds: float = 10.0) -> ByteStream:
        """Dial. Raises `ConnectError`, `ConnectTimeoutError` or `AddressError`."""

    @abstractmethod
    async def listen(self, address: str) -> Listener:
        """Listen. Raises `TransportError` (address in use, not ours) or `AddressError`."""

    def discovery(self) -> Discovery | None:
        """What finds peers by itself, a new one each time; None when this transport only dials and listens."""
        return None

    async def diagnose(self, topics: frozenset[bytes]) -> Diagnosis | None:
        """Look for some seconds at who is there, of whom who serves `topics`, and at what keeps peers apart.

        None when this transport finds nobody by itself. Raises nothing of what a symptom can say.
        """
        return None

    async def aclose(self) -> None:  # noqa: B027 - most transports hold nothing
        """Let go of what the transport holds besides its streams and listeners."""

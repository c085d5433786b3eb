"""Discovery on the local network: keeps one announcement true, knows who is there, follows the links.

It dials nobody and opens no stream: it says what to listen on, and where those who have something in common are.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

from hypercore.errors import OptionError, TransportError
from hypercore.transport import Discovery, DiscoveryEvent, HostsLost, Listener, PeerFound, PeerLost
from hypercore.urls import parse_address
from hypercore_lan.announcement import Announcement, decode, encode, new_salt
from hypercore_lan.links import Link, dialable_addresses, read_links
from hypercore_lan.responder import Responder, Sight

#: How long nobody's answer means that nobody is there: ten times what an answer takes.
ROUND_SECONDS: Final = 1.0
#: After the first answer, time for the others: answers are spread over 120 ms (RFC 6762, section 6).
SETTLING_SECONDS: Final = 0.15
#: Between two announcements of changed topics. The first goes out at once.
ANNOUNCE_GAP_SECONDS: Final = 1.0
#: How often the links are looked at; a look takes 0.3 ms.
LINKS_SECONDS: Final = 2.0
#: Questions are repeated for those that were out of reach before, with more patience the more are known, because each
#: of them asks too and lists all the others.
LOOK_SECONDS: Final = 15.0
LOOK_SECONDS_PER_PEER: Final = 0.5
#: Peers that are kept in mind, with what they serve: about 2 MB.
PEER_COUNT_MAX: Final = 1024
#: Programs on one machine; more than that is one who fills our memory and has us dial somebody else.
PEER_COUNT_MAX_PER_HOST: Final = 64
ADDRESS_COUNT_MAX: Final = 4
#: A clock that stood still for so long was a machine asleep, perhaps carried elsewhere.
SLEEP_SECONDS: Final = 5.0

_logger = logging.getLogger("hypercore.lan")


@dataclass(frozen=True, slots=True, kw_only=True)
class LanOptions:
    """Options of discovery on the local network."""

    #: Names or addresses of interfaces, separated by commas (`eth0,wlan*`, `127.0.0.1`); empty for all real networks.
    interfaces: str = ""
    #: The TCP port that peers dial, for firewalls that need a fixed one; 0 for any free one.
    port: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise OptionError(f"port is 0 to 65535, not {self.port}")

    @property
    def wanted(self) -> tuple[str, ...]:
        """The interfaces by themselves."""
        return tuple(part.strip() for part in self.interfaces.split(",") if part.strip())


@dataclass(slots=True)
class _Peer:
    """Somebody on the network who speaks our language."""

    announcement: Announcement
    addresses: tuple[str, ...]
    topics: frozenset[bytes]

    @property
    def host(self) -> str:
        """Its first address without the port."""
        return self.addresses[0].rpartition(":")[0]


class LanDiscovery(Discovery):
    """See `docs/lan.md` for what it says on the network."""

    def __init__(self, options: LanOptions) -> None:
        self._options = options
        self._public_key = b""
        self._port = 0
        self._announced: frozenset[bytes] = frozenset()
        self._sought: frozenset[bytes] = frozenset()
        self._links: tuple[Link, ...] = ()
        self._responder: Responder | None = None
        self._salt = b""
        self._peers: dict[str, _Peer] = {}
        self._neighbours: Counter[str] = Counter()
        #: Who was given out as found, and whose news are waiting to be.
        self._given: set[str] = set()
        self._news: dict[str, None] = {}
        self._lost_hosts: set[str] = set()
        self._has_news = asyncio.Event()
        self._to_announce = asyncio.Event()
        #: When a topic was looked for first, and an event for when somebody was given out who serves it.
        self._seekings: dict[bytes, tuple[float, asyncio.Event]] = {}
        self._next_look = 0.0
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._closed = False

    # ---- what the promise asks for ----

    async def start(self, *, public_key: bytes, listen: Callable[[str], Awaitable[Listener]]) -> None:
        self._public_key = public_key
        links = read_links(self._options.wanted)
        await self._listen(listen, only_loopback=bool(links) and all(link.is_loopback for link in links))
        await self._settle_on(links)
        self._start(self._follow_links())
        self._start(self._keep_announced())

    def announce(self, topics: frozenset[bytes]) -> None:
        if topics != self._announced:
            self._announced = topics
            self._to_announce.set()

    def look_up(self, topics: frozenset[bytes]) -> None:
        new, old = topics - self._sought, self._sought - topics
        self._sought = topics
        for topic in old:
            del self._seekings[topic]
        for topic in new:
            self._seekings[topic] = self._loop.time(), asyncio.Event()
        if new and not self._next_look:
            self._look()
        elif not topics:
            self._next_look = 0.0
        for name, peer in self._peers.items():
            shared = (peer.topics - old) | peer.announcement.matches(new)
            if shared != peer.topics:
                peer.topics = shared
                self._tell(name)

    async def events(self) -> AsyncIterator[DiscoveryEvent]:
        while not self._closed:
            await self._has_news.wait()
            self._has_news.clear()
            if self._lost_hosts:
                hosts, self._lost_hosts = frozenset(self._lost_hosts), set()
                yield HostsLost(hosts=hosts)
            news, self._news = self._news, {}
            for name in news:
                peer = self._peers.get(name)
                if peer is not None and peer.topics:
                    self._given.add(name)
                    topics = peer.topics
                    yield PeerFound(
                        peer_id=name,
                        addresses=peer.addresses,
                        topics=topics,
                        is_peer=peer.announcement.is_peer,
                    )
                    for topic in topics:
                        if topic in self._seekings:
                            self._seekings[topic][1].set()
                elif name in self._given:
                    self._given.discard(name)
                    yield PeerLost(peer_id=name)

    async def first_round(self, topic: bytes) -> None:
        if topic not in self._seekings or self._responder is None:
            return
        since, found = self._seekings[topic]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(since + ROUND_SECONDS):
                await found.wait()
                await asyncio.sleep(SETTLING_SECONDS)

    async def reconfirm(self, peer_id: str) -> None:
        responder = self._responder
        if responder is not None and peer_id in self._peers and not await responder.ask(peer_id):
            self._forget(peer_id)

    async def aclose(self) -> None:
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        responder, self._responder = self._responder, None
        if responder is not None:
            self._close(responder)
        if self._closing:
            await asyncio.wait(self._closing)
        self._has_news.set()

    # ---- what we listen on and say ----

    async def _listen(self, listen: Callable[[str], Awaitable[Listener]], *, only_loopback: bool) -> None:
        """One port for both families, because one announcement has one port."""
        listener = await listen(f"tcp://{'127.0.0.1' if only_loopback else '0.0.0.0'}:{self._options.port}")
        self._port = parse_address(listener.addresses[0]).port or 0
        if not only_loopback:
            try:
                await listen(f"tcp://[::]:{self._port}")
            except TransportError as error:
                _logger.info("no peer will come over IPv6: %s", error)

    async def _keep_announced(self) -> None:
        while True:
            await self._to_announce.wait()
            async with self._turn:
                await self._announce()
            await asyncio.sleep(ANNOUNCE_GAP_SECONDS)

    async def _announce(self) -> None:
        self._to_announce.clear()
        if self._responder is not None:
            text = encode(self._salt, self._public_key, self._announced) if self._announced else None
            await self._responder.publish(text)

    # ---- who is there ----

    def _look(self) -> None:
        if self._responder is None or not self._sought:
            self._next_look = 0.0
            return
        self._responder.look()
        patience_seconds = LOOK_SECONDS + LOOK_SECONDS_PER_PEER * len(self._peers)
        self._next_look = self._loop.time() + patience_seconds * random.uniform(0.75, 1.25)

    def _seen(self, sight: Sight) -> None:
        announcement = decode(sight.text)
        if announcement is None or announcement.is_peer(self._public_key):
            return
        addresses = dialable_addresses(sight.hosts, sight.port, self._links, limit=ADDRESS_COUNT_MAX)
        peer = _Peer(announcement, addresses, announcement.matches(self._sought))
        if not addresses or not self._has_room(sight.name, peer):
            return
        old = self._peers.get(sight.name)
        if old != peer:
            self._neighbours[peer.host] += 1
            if old is not None:
                self._count_out(old)
            self._peers[sight.name] = peer
            self._tell(sight.name)

    def _has_room(self, name: str, peer: _Peer) -> bool:
        """Those who have something in common with us come before those who do not, and those who say what it is
        before those who only say that there is more.
        """
        if name in self._peers:
            return True
        if self._neighbours[peer.host] >= PEER_COUNT_MAX_PER_HOST:
            rivals = [each for each, rival in self._peers.items() if rival.host == peer.host]
        elif len(self._peers) >= PEER_COUNT_MAX:
            rivals = list(self._peers)
        else:
            return True
        least = min(rivals, key=lambda each: _worth(self._peers[each]))
        if _worth(self._peers[least]) >= _worth(peer):
            return False
        self._forget(least)
        return True

    def _forget(self, name: str) -> None:
        peer = self._peers.pop(name, None)
        if peer is not None:
            self._count_out(peer)
            self._tell(name)

    def _count_out(self, peer: _Peer) -> None:
        self._neighbours[peer.host] -= 1
        if not self._neighbours[peer.host]:
            del self._neighbours[peer.host]

    def _tell(self, name: str) -> None:
        self._news[name] = None
        self._has_news.set()

    # ---- the links ----

    async def _follow_links(self) -> None:
        asleep = _seconds_asleep()
        while True:
            await asyncio.sleep(LINKS_SECONDS)
            before, asleep = asleep, _seconds_asleep()
            links = read_links(self._options.wanted)
            try:
                if links != self._links or asleep - before > SLEEP_SECONDS or (links and self._responder is None):
                    await self._settle_on(links)
                elif self._next_look and self._loop.time() >= self._next_look:
                    self._look()
            except TransportError as error:
                _logger.warning("%s; trying again in %g seconds", error, LINKS_SECONDS)

    async def _settle_on(self, links: tuple[Link, ...]) -> None:
        """Begin anew on these links: what was heard on the others need not be true here."""
        async with self._turn:
            old, self._responder = self._responder, None
            gone = {host for link in self._links for host in link.hosts}
            gone -= {host for link in links for host in link.hosts}
            self._links = links
            if gone:
                self._lost_hosts |= gone
                self._has_news.set()
            if old is not None:
                self._close(old)
            for name in list(self._peers):
                self._forget(name)
            if not links:
                return
            responder = Responder(links, port=self._port, on_seen=self._seen, on_gone=self._forget)
            await responder.open()
            # Whoever saw us elsewhere does not recognise us here by name or hashes.
            self._responder, self._salt = responder, new_salt()
            await self._announce()
            self._look()

    def _close(self, responder: Responder) -> None:
        """In a task of its own, which nothing cancels: a goodbye takes a quarter of a second."""
        task = self._loop.create_task(responder.aclose())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _worth(peer: _Peer) -> int:
    return 2 * bool(peer.topics) - peer.announcement.has_more


def _seconds_asleep() -> float:
    """How long the machine has slept since it was started."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.clock_gettime(clock) - time.clock_gettime(time.CLOCK_MONOTONIC) if clock is not None else 0.0

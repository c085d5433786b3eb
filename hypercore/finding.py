"""Finding peers for a swarm: tells one discovery what is served and sought, and keeps a connection to who was found.

Shell floor, below the swarm. What a discovery says is hearsay until a handshake proves it, so everything here is
bounded: peers that are kept in mind, dials under way, and how often one is tried that does not answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, MutableMapping, Set
from typing import Any, Final
from weakref import WeakSet

from hypercore.contacts import Contact, log, short
from hypercore.dialling import is_refusal, refusal
from hypercore.errors import (
    ConnectError,
    HypercoreError,
    OwnAddressError,
    PeerBannedError,
    PeerRefusedError,
    StreamBrokenError,
    TransportError,
)
from hypercore.peer import Peer
from hypercore.replication import Hub
from hypercore.session import Replication
from hypercore.transport import Discovery, HostsLost, Listener, PeerFound, PeerLost
from hypercore.urls import parse_address

#: Found peers that are dialled; whoever is found beyond that has to dial us.
FOUND_COUNT_MAX: Final = 256
#: A peer near enough to be discovered answers at once or not at all.
DIAL_SECONDS: Final = 3.0
#: Time for others after the first who found us.
SETTLING_SECONDS: Final = 0.15
#: Wait before a found peer is dialled again: the first time, and at most. Doubled each time, with jitter.
FIRST_RETRY_SECONDS: Final = 0.2
LAST_RETRY_SECONDS: Final = 30.0
#: A connection that lived this long was a good one: the next dial starts with the first wait again.
GOOD_CONNECTION_SECONDS: Final = 5.0
#: After so many failures in a row discovery is asked whether the peer is still there.
FAILURES_TO_RECONFIRM: Final = 3
#: After so many answers of something that does not speak our language, which may be a printer, it is left in peace.
STRANGE_ANSWERS_MAX: Final = 3
STRANGE_RETRY_SECONDS: Final = 600.0
#: Within this time a live connection shows it: a peer with nothing to say sends a keepalive every 5 seconds.
DOUBT_SECONDS: Final = 8.0

Dial = Callable[[str, float], Awaitable[Replication]]


class Finding:
    """One discovery at work.

    `dial` gives a connection whose handshake is done, or raises, and `slots` is held meanwhile. `connected` are the
    swarm's connections by the public key of the peer. `doubted` takes those that the peer seems to have left behind:
    the next one that proves the same key replaces it. Why a found peer cannot be reached is in `errors`, by address.
    """

    def __init__(
        self,
        discovery: Discovery,
        *,
        public_key: bytes,
        dial: Dial,
        connected: Mapping[bytes, Replication],
        doubted: set[Replication],
        slots: asyncio.Semaphore,
        errors: MutableMapping[str, HypercoreError],
    ) -> None:
        self._discovery = discovery
        self._public_key = public_key
        self._dial = dial
        self._connected = connected
        self._doubted = doubted
        self._errors = errors
        self._found: dict[str, _Found] = {}
        #: Connections from where discovery does not place the peer, and which showed that they live.
        self._trusted: WeakSet[Replication] = WeakSet()
        self._slots = slots
        self._seeking: dict[bytes, tuple[Hub | None, asyncio.Task[None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()

    async def start(self, listen: Callable[[str], Awaitable[Listener]]) -> None:
        """Raises `TransportError`."""
        await self._discovery.start(public_key=self._public_key, listen=listen)
        self._start(self._follow())

    async def aclose(self) -> None:
        """Say goodbye, and dial nobody any more. Twice is fine."""
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._discovery.aclose()

    # ---- cores ----

    @property
    def contacts(self) -> list[Contact]:
        """Those who are found at the moment."""
        return [found.contact for found in self._found.values()]

    def set_topics(self, *, served: Set[bytes], sought: Mapping[bytes, Hub | None]) -> None:
        """Serve and seek exactly these. The cores that are new among the sought ones hold on until the first round of
        discovery is over: who was found in it is connected, or cannot be reached. None is a topic without a core.
        """
        self._discovery.announce(frozenset(served))
        self._discovery.look_up(frozenset(sought))
        for topic, (hub, task) in list(self._seeking.items()):
            if topic not in sought or sought[topic] is not hub:
                del self._seeking[topic]
                task.cancel()
        for topic in sought.keys() - self._seeking.keys():
            hub = sought[topic]
            task = self._start(self._dial_found(topic) if hub is None else self._first_round(topic, hub))
            if hub is not None:
                hub.finding += 1
                # A callback, because a task that is cancelled before it runs never gets to its `finally`.
                task.add_done_callback(functools.partial(_round_ended, hub))
            self._seeking[topic] = hub, task

    async def flush(self) -> None:
        """Return when the first round is over for every topic."""
        if rounds := [task for _, task in self._seeking.values() if not task.done()]:
            await asyncio.wait(rounds)

    async def _first_round(self, topic: bytes, hub: Hub) -> None:
        """Over when discovery says so and those whom it found were dialled; or soon after somebody who has the core
        found us, for those who hear of us hear it at the same moment.
        """
        came = asyncio.Event()

        def peer_changed(peer: Peer, is_there: bool) -> None:
            if is_there:
                came.set()

        async def be_found() -> None:
            sessions: Iterable[Replication] = ()
            while not any(session in self._connected.values() for session in sessions):  # Storages are peers, too.
                await came.wait()
                came.clear()
                await asyncio.sleep(SETTLING_SECONDS)
                sessions = [peer.session for peer in hub.peers]

        hub.on_peer.append(peer_changed)
        if hub.peers:
            came.set()
        waiting = [self._loop.create_task(self._dial_found(topic)), self._loop.create_task(be_found())]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            hub.on_peer.remove(peer_changed)
            for task in waiting:
                task.cancel()

    async def _dial_found(self, topic: bytes) -> None:
        await self._discovery.first_round(topic)
        there = [found for found in self._found.values() if topic in found.peer.topics]
        log.log(logging.DEBUG if there else logging.INFO, "found %d peers of %s so far", len(there), short(topic))
        # Somebody may be named who is not there, and a dial is all that we wait for them.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DIAL_SECONDS):
                for found in there:
                    await found.tried.wait()

    # ---- peers ----

    async def _follow(self) -> None:
        async for event in self._discovery.events():
            match event:
                case PeerFound():
                    self._take(event)
                case PeerLost(peer_id=peer_id):
                    if (lost := self._found.pop(peer_id, None)) is not None:
                        log.debug("discovery has lost %s", lost.contact)
                        lost.keeper.cancel()
                        lost.tried.set()
                        for address in lost.peer.addresses:
                            self._errors.pop(address, None)
                case HostsLost(hosts=hosts):
                    for replication in list(self._connected.values()):
                        if _host(replication.local_address) in hosts:
                            replication.fail(StreamBrokenError("this machine has left the network it was made over"))

    def _take(self, peer: PeerFound) -> None:
        found = self._found.get(peer.peer_id)
        if found is not None:
            found.peer, found.contact.addresses = peer, peer.addresses
            found.changed.set()
        elif len(self._found) < FOUND_COUNT_MAX:
            found = self._found[peer.peer_id] = _Found(peer)
            log.debug("discovery has found %s", found.contact)
            found.keeper = self._start(self._keep(found))

    async def _keep(self, found: _Found) -> None:
        """Keep a connection to a peer for as long as it is found."""
        wait_seconds, failures, strange_answers = FIRST_RETRY_SECONDS, 0, 0
        while True:
            replication, error = self._connection_to(found), None
            if replication is None:
                try:
                    async with self._slots:
                        # It may have dialled us while we waited for our turn.
                        replication = self._connection_to(found) or await self._dial_any(found)
                except HypercoreError as failure:
                    error = failure
                    failures += 1
                    strange_answers += not isinstance(error, TransportError)
            found.tried.set()
            if isinstance(error, OwnAddressError):
                found.contact.failed(error, None)
                return  # Somebody tells us where we are.
            if replication is not None:
                began = self._loop.time()
                found.remote = replication.remote_public_key
                found.contact.connected(replication)
                error = await self._until_over(found, replication)
                failures = strange_answers = 0
                if self._loop.time() - began > GOOD_CONNECTION_SECONDS:
                    wait_seconds = FIRST_RETRY_SECONDS
            elif failures >= FAILURES_TO_RECONFIRM:
                failures = 0
                await self._discovery.reconfirm(found.peer.peer_id)
            if isinstance(error, PeerBannedError | PeerRefusedError):
                wait_seconds, strange_answers = LAST_RETRY_SECONDS, 0
            if strange_answers >= STRANGE_ANSWERS_MAX:
                wait_seconds, strange_answers = STRANGE_RETRY_SECONDS, 0
            seconds = wait_seconds * random.uniform(0.5, 1.5)
            found.contact.failed(error, seconds)
            await asyncio.sleep(seconds)
            wait_seconds = min(2 * wait_seconds, LAST_RETRY_SECONDS)

    def _connection_to(self, found: _Found) -> Replication | None:
        """The connection that there is to a found peer already, whoever dialled it."""
        for key, replication in self._connected.items():
            if not replication.is_closed and (key == found.remote or found.peer.is_peer(key)):
                return replication
        return None

    async def _dial_any(self, found: _Found) -> Replication:
        """A connection to the first address that works."""
        failure: HypercoreError = ConnectError("the peer has no address")
        found.contact.dialling()
        for address in found.peer.addresses:
            try:
                replication = await self._dial(address, DIAL_SECONDS)
            except OwnAddressError:
                raise
            except HypercoreError as error:
                failure = self._errors[address] = error
            else:
                self._errors.pop(address, None)
                return replication
        raise failure

    async def _until_over(self, found: _Found, last: Replication) -> HypercoreError | None:
        """Return when there is no connection to the peer any more, and why.

        One whose other end is none of the addresses where the peer is found now may be dead, and TCP would not know
        for minutes: it has to show some sign of life.
        """
        while (replication := self._connection_to(found)) is not None:
            last = replication
            found.changed.clear()
            began = self._loop.time()
            is_doubtful = self._is_elsewhere(found.peer, replication) and replication not in self._trusted
            if is_doubtful:
                self._doubted.add(replication)
            waiting = [self._loop.create_task(work) for work in (replication.wait_closed(), found.changed.wait())]
            try:
                timeout_seconds = DOUBT_SECONDS if is_doubtful else None
                done, _ = await asyncio.wait(waiting, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in waiting:
                    task.cancel()
            if is_doubtful and not done:
                self._doubted.discard(replication)
                self._trusted.add(replication)
                if replication.heard_at < began:
                    replication.fail(StreamBrokenError("the peer has left the address it was connected from"))
        if is_refusal(last):
            return refusal(last.remote_address, self._public_key)
        return last.error

    def _is_elsewhere(self, peer: PeerFound, replication: Replication) -> bool:
        return _host(replication.remote_address) not in {_host(address) for address in peer.addresses}

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class _Found:
    """A peer as discovery tells of it, and what we do about it."""

    def __init__(self, peer: PeerFound) -> None:
        self.peer = peer
        self.contact = Contact(peer.addresses)
        #: The key that it proved the last time.
        self.remote = b""
        #: It was dialled once, or need not be.
        self.tried = asyncio.Event()
        self.changed = asyncio.Event()
        self.keeper: asyncio.Task[None]


def _round_ended(hub: Hub, _: asyncio.Task[None]) -> None:
    hub.finding -= 1
    hub.changed()


def _host(address: str) -> str | None:
    """The host of an address without its scope: the same machine, whatever the interface."""
    host = parse_address(address).host if address else None
    return host.partition("%")[0] if host else None

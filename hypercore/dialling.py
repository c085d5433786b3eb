"""Dialling: to each address a connection, and when it ends or cannot be made, again after a while.

Shell floor, below the swarm. What is dialled over and what becomes of a stream is not its business.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Callable, Iterable, MutableMapping
from typing import Final

from hypercore.connections import Connections
from hypercore.contacts import Contact, log, short
from hypercore.errors import (
    ConnectTimeoutError,
    HypercoreError,
    OwnAddressError,
    PeerBannedError,
    PeerRefusedError,
)
from hypercore.peer import Peer
from hypercore.replication import Hub
from hypercore.session import Replication
from hypercore.transport import Transport

#: Dials under way at once: a home router's table of half-open connections is small, and a list of dead addresses still
#: comes to its end soon.
MOST_DIALS: Final = 16
#: From the first packet to the end of the handshake.
DIAL_SECONDS: Final = 10.0
#: Wait before a peer is dialled again: the first time, and at most. Doubled each time, with jitter, so that many
#: readers do not come back to a restarted writer in one moment.
FIRST_RETRY_SECONDS: Final = 0.2
LAST_RETRY_SECONDS: Final = 30.0
#: A connection that lived this long was a good one: the next dial starts with the first wait again.
GOOD_CONNECTION_SECONDS: Final = 5.0
#: After the first peer of a core is there, the others are given this long: those that answer at all have by then, and
#: a dial that hangs would hold everybody for `DIAL_SECONDS`.
SETTLING_SECONDS: Final = 1.0


class Dialler:
    """Keeps a connection to each contact that it was started with. Why there is none is in `errors`, by address."""

    def __init__(
        self,
        connections: Connections,
        *,
        transport: Callable[[str], Transport],
        most_dials: int,
        errors: MutableMapping[str, HypercoreError],
    ) -> None:
        #: Held during a dial, by all who dial.
        self.slots = asyncio.Semaphore(most_dials)
        self._connections = connections
        self._transport = transport
        self._errors = errors
        self._tasks: dict[asyncio.Task[None], Contact] = {}

    def start(self, contacts: Iterable[Contact], first_round: FirstRound) -> None:
        """Dial everybody at once, each at its one address, and go on."""
        loop = asyncio.get_running_loop()
        self._tasks = {loop.create_task(self._keep(contact, first_round)): contact for contact in contacts}

    async def stop(self) -> None:
        """Dial no more; connections stay. Twice is fine."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for contact in self._tasks.values():
            contact.rest()
        self._tasks = {}

    async def dial(self, address: str, timeout_seconds: float = DIAL_SECONDS) -> Replication:
        """A connection whose handshake is done, over whatever transport the address is of. Raises `HypercoreError`."""
        self._connections.check_room()
        connection: Replication | None = None
        try:
            async with asyncio.timeout(timeout_seconds):
                stream = await self._transport(address).connect(address, timeout_seconds=timeout_seconds)
                connection = self._connections.run(stream, initiator=True)
                await connection.opened()
        except HypercoreError:
            raise
        except TimeoutError as error:
            if connection is not None:
                connection.abort()
            raise ConnectTimeoutError(f"{address} did not answer within {timeout_seconds:g} seconds") from error
        return connection

    async def _keep(self, contact: Contact, first_round: FirstRound) -> None:
        (address,) = contact.addresses
        wait_seconds = FIRST_RETRY_SECONDS
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            error: HypercoreError | None = None
            try:
                connection = self._connection_to(contact) or await self._dial(contact, address)
            except HypercoreError as failure:
                error = self._errors[address] = failure
            else:
                self._errors.pop(address, None)
                contact.connected(connection)
            finally:
                first_round.tried(contact)
            if error is None:
                error = await self._until_over(connection, address)
                if loop.time() - began > GOOD_CONNECTION_SECONDS:
                    wait_seconds = FIRST_RETRY_SECONDS
            match error:
                case OwnAddressError():
                    contact.failed(error, None)
                    return
                case PeerBannedError() | PeerRefusedError():
                    wait_seconds = LAST_RETRY_SECONDS
            seconds = wait_seconds * random.uniform(0.5, 1.5)
            wait_seconds = min(2 * wait_seconds, LAST_RETRY_SECONDS)
            contact.failed(error, seconds)
            await asyncio.sleep(seconds)

    async def _dial(self, contact: Contact, address: str) -> Replication:
        async with self.slots:
            contact.dialling()
            return await self.dial(address)

    def _connection_to(self, contact: Contact) -> Replication | None:
        """The connection that there is already, as when the peer dialled us."""
        connection = self._connections.current.get(contact.public_key)
        return None if connection is None or connection.is_closed else connection

    async def _until_over(self, connection: Replication, address: str) -> HypercoreError | None:
        """Return when there is no connection to the peer any more, this one or another, and why."""
        last: Replication | None = connection
        while last is not None:
            connection = last
            await connection.wait_closed()
            last = self._connections.current.get(connection.remote_public_key)
            if last is connection or (last is not None and last.is_closed):
                last = None
        if is_refusal(connection):
            self._errors[address] = refusal(address, self._connections.public_key)
            return self._errors[address]
        return connection.error


def is_refusal(connection: Replication) -> bool:
    """Whether the peer ended it as soon as it knew who we are."""
    is_brief = connection.stats().connected_seconds < GOOD_CONNECTION_SECONDS
    return is_brief and connection.has_peer_ended and not connection.has_spoken


def refusal(address: str, public_key: bytes) -> PeerRefusedError:
    return PeerRefusedError(
        f"{address} ended the connection as soon as it knew our key, {short(public_key)}: is that in its allow-list?"
    )


class FirstRound:
    """Cores that hold their waiters back until every contact was tried once, or soon after a peer of theirs is there.

    `is_ours` tells the connections that count: a storage is a peer, too, but it may be an old copy.
    """

    def __init__(self, contacts: Iterable[Contact], is_ours: Callable[[Replication], bool]) -> None:
        self._untried = set(contacts)
        self._is_ours = is_ours
        self._holding: dict[Hub, Callable[[Peer, bool], None]] = {}
        self._timers: list[asyncio.TimerHandle] = []
        #: Every contact was tried.
        self.over = asyncio.Event()
        if not self._untried:
            self.over.set()

    def hold(self, hub: Hub) -> None:
        """Let a core's waiters wait for the round, unless it is over."""
        if not self.over.is_set() and hub not in self._holding:
            hub.finding += 1
            self._holding[hub] = came = functools.partial(self._peer_changed, hub)
            hub.on_peer.append(came)

    def release(self, hub: Hub) -> None:
        """Hold a core's waiters no longer."""
        came = self._holding.pop(hub, None)
        if came is not None:
            hub.on_peer.remove(came)
            hub.finding -= 1
            hub.changed()

    def tried(self, contact: Contact) -> None:
        """A dial has ended, well or not."""
        self._untried.discard(contact)
        if not self._untried and not self.over.is_set():
            log.debug("every address was dialled once")
            self.end()

    def end(self) -> None:
        """Hold nobody any more. Twice is fine."""
        self.over.set()
        for timer in self._timers:
            timer.cancel()
        for hub in list(self._holding):
            self.release(hub)

    def _peer_changed(self, hub: Hub, peer: Peer, is_there: bool) -> None:
        if is_there and self._is_ours(peer.session):
            timer = asyncio.get_running_loop().call_later(SETTLING_SECONDS, self.release, hub)
            self._timers.append(timer)

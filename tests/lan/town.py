"""A discovery inside this process, for everything about finding peers that needs no network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Never

from hypercore.errors import AddressError
from hypercore.transport import Discovery, DiscoveryEvent, Listener, PeerFound, PeerLost, Transport

#: What says the end of the events.
_END = None


class Town(Transport):
    """Everybody in it hears of everybody else. As a transport it has one discovery, as `lan:` has."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.people: list[TownDiscovery] = []

    def discovery(self) -> TownDiscovery:
        self.people.append(TownDiscovery(self, f"{self.name}-{len(self.people)}"))
        return self.people[-1]

    async def connect(self, address: str, *, timeout_seconds: float = 10.0) -> Never:
        raise AddressError(address)

    async def listen(self, address: str) -> Never:
        raise AddressError(address)


class TownDiscovery(Discovery):
    """Listens on a pipe. `say` puts anything into its ears; `round_over` ends the first round."""

    def __init__(self, town: Town, name: str) -> None:
        self.name = name
        self.public_key = b""
        self.addresses: tuple[str, ...] = ()
        self.announced: frozenset[bytes] = frozenset()
        self.sought: frozenset[bytes] = frozenset()
        self.round_over = asyncio.Event()
        self.reconfirmed: list[str] = []
        self.closed = False
        self._town = town
        self._events: asyncio.Queue[DiscoveryEvent | None] = asyncio.Queue()
        self._told: dict[str, frozenset[bytes]] = {}

    async def start(self, *, public_key: bytes, listen: Callable[[str], Awaitable[Listener]]) -> None:
        self.public_key = public_key
        self.addresses = tuple((await listen(f"pipe:{self.name}")).addresses)

    def announce(self, topics: frozenset[bytes]) -> None:
        self.announced = topics
        for person in self._town.people:
            person.hear_of(self)

    def look_up(self, topics: frozenset[bytes]) -> None:
        self.sought = topics
        for person in self._town.people:
            self.hear_of(person)

    def hear_of(self, person: TownDiscovery) -> None:
        shared = self.sought & person.announced
        if person is self or self.closed:
            return
        if shared and self._told.get(person.name) != shared:
            self._told[person.name] = shared
            key = person.public_key
            self.say(
                PeerFound(peer_id=person.name, addresses=person.addresses, topics=shared, is_peer=lambda k: k == key)
            )
        elif not shared and self._told.pop(person.name, False):
            self.say(PeerLost(peer_id=person.name))

    def say(self, event: DiscoveryEvent) -> None:
        self._events.put_nowait(event)

    async def events(self) -> AsyncIterator[DiscoveryEvent]:
        while (event := await self._events.get()) is not _END:
            yield event

    async def first_round(self, topic: bytes) -> None:
        await self.round_over.wait()

    async def reconfirm(self, peer_id: str) -> None:
        self.reconfirmed.append(peer_id)

    async def aclose(self) -> None:
        self.closed = True
        self.announce(frozenset())
        self._events.put_nowait(_END)

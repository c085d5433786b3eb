"""What a discovery promises, kept over multicast DNS and inside this process; and who breaks it is caught."""

from __future__ import annotations

import asyncio
import functools
import itertools

import pytest

from hypercore.errors import ConnectError
from hypercore.testing import DiscoveryContract
from hypercore.transport import Discovery, PeerFound
from hypercore_lan.discovery import LanDiscovery, LanOptions
from tests.lan.town import Town, TownDiscovery

_names = itertools.count()


class TestLan(DiscoveryContract):
    def make_discovery(self) -> Discovery:
        return LanDiscovery(LanOptions(interfaces="127.0.0.1"))


class TestTown(DiscoveryContract):
    @functools.cached_property
    def town(self) -> Town:
        return Town(f"contract-{next(_names)}")

    def make_discovery(self) -> Discovery:
        discovery = self.town.discovery()
        discovery.round_over.set()
        return discovery


# ---- the contract notices ----------------------------------------------------------------------------


class Gossip(TownDiscovery):
    """Tells everybody of everybody."""

    def hear_of(self, person: TownDiscovery) -> None:
        if person is not self and person.announced and self.sought:
            key = person.public_key
            topics = person.announced
            self.say(
                PeerFound(peer_id=person.name, addresses=person.addresses, topics=topics, is_peer=lambda k: k == key)
            )


class Narcissus(TownDiscovery):
    """Finds itself."""

    def hear_of(self, person: TownDiscovery) -> None:
        super().hear_of(person)
        if person is self and self.sought & self.announced:
            self.say(PeerFound(peer_id="me", addresses=("pipe:me",), topics=self.sought, is_peer=lambda _: False))


class Clinging(TownDiscovery):
    """Never loses anybody."""

    def say(self, event: object) -> None:
        if isinstance(event, PeerFound):
            super().say(event)


class Liar(TownDiscovery):
    """Takes everybody for the same peer, somewhere else."""

    def say(self, event: object) -> None:
        if isinstance(event, PeerFound):
            event = PeerFound(
                peer_id=event.peer_id, addresses=("pipe:nowhere",), topics=event.topics, is_peer=lambda _: True
            )
            super().say(event)


class Endless(TownDiscovery):
    """Its rounds never end, and neither do its events."""

    async def first_round(self, topic: bytes) -> None:
        await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (Gossip, "test_who_looks_for_something_else_hears_nothing"),
        (Gossip, "test_only_topics_that_are_looked_for_are_told"),
        (Narcissus, "test_everybody_finds_everybody_and_nobody_finds_himself"),
        (Clinging, "test_who_closes_is_lost"),
        (Clinging, "test_who_serves_nothing_more_that_is_looked_for_is_lost"),
        (Liar, "test_who_looks_for_a_topic_finds_who_serves_it"),
        (Liar, "test_whoever_is_found_can_be_dialled_where_it_is_said_to_be"),
        (Endless, "test_a_first_round_ends_when_nobody_is_there"),
    ],
)
def test_a_discovery_that_breaks_a_promise_is_caught(broken: type[TownDiscovery], promise: str) -> None:
    town = Town(f"broken-{next(_names)}")

    class Broken(DiscoveryContract):
        timeout_seconds = 1.0

        def make_discovery(self) -> Discovery:
            town.people.append(broken(town, f"{town.name}-{len(town.people)}"))
            town.people[-1].round_over.set()
            return town.people[-1]

    with pytest.raises((AssertionError, ConnectError)):
        getattr(Broken(), promise)()

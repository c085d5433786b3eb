"""Discovery over real multicast DNS, on loopback: what goes out, what comes in, and what strangers try."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from hypercore import Hypercore, Swarm
from hypercore.errors import AddressError, OptionError, TransportError
from hypercore.plugins import open_transport
from hypercore.transport import DiscoveryEvent, Listener, PeerFound, PeerLost
from hypercore_lan import discovery as discovery_module
from hypercore_lan.announcement import encode, new_salt
from hypercore_lan.discovery import LanDiscovery, LanOptions
from hypercore_lan.responder import SERVICE_TYPE
from tests.replication.links import eventually
from tests.running import run

LAN = "lan:?interfaces=127.0.0.1"
LOOPBACK = LanOptions(interfaces="127.0.0.1")


def new_topic() -> bytes:
    """Nobody else's: other tests run on the same loopback."""
    return secrets.token_bytes(32)


async def listen(address: str) -> Listener:
    return await open_transport(address).listen(address)


class Ears:
    """Everything that a discovery tells."""

    def __init__(self, discovery: LanDiscovery) -> None:
        self.discovery = discovery
        self.found: dict[str, PeerFound] = {}
        self.heard: list[DiscoveryEvent] = []

    async def listen(self) -> None:
        async for event in self.discovery.events():
            self.heard.append(event)
            match event:
                case PeerFound():
                    self.found[event.peer_id] = event
                case PeerLost():
                    del self.found[event.peer_id]

    def names(self, topic: bytes) -> list[str]:
        return [name for name, event in self.found.items() if topic in event.topics]


@asynccontextmanager
async def discovering(options: LanOptions = LOOPBACK) -> AsyncIterator[Ears]:
    listeners: list[Listener] = []

    async def listen_here(address: str) -> Listener:
        listeners.append(await listen(address))
        return listeners[-1]

    ears = Ears(LanDiscovery(options))
    listening = asyncio.create_task(ears.listen())
    try:
        await ears.discovery.start(public_key=secrets.token_bytes(32), listen=listen_here)
        yield ears
    finally:
        await ears.discovery.aclose()
        await listening
        for listener in listeners:
            await listener.aclose()


class Stranger:
    """Says anything on the network."""

    def __init__(self, zeroconf: AsyncZeroconf) -> None:
        self.zeroconf = zeroconf

    async def say(
        self, text: bytes, *, port: int = 9, addresses: tuple[str, ...] = ("127.0.0.1",), name: str = ""
    ) -> AsyncServiceInfo:
        name = name or secrets.token_hex(8)
        info = AsyncServiceInfo(
            SERVICE_TYPE,
            f"{name}.{SERVICE_TYPE}",
            port=port,
            properties=text,
            server=f"{name}.local.",
            parsed_addresses=list(addresses),
        )
        await self.zeroconf.async_register_service(info, cooperating_responders=True)
        return info


@asynccontextmanager
async def stranger() -> AsyncIterator[Stranger]:
    zeroconf = AsyncZeroconf(interfaces=["127.0.0.1"])
    await zeroconf.zeroconf.async_wait_for_start()
    try:
        yield Stranger(zeroconf)
    finally:
        await zeroconf.async_close()


def genuine(*topics: bytes) -> bytes:
    return encode(new_salt(), secrets.token_bytes(32), topics)


# ---- what it is for ----------------------------------------------------------------------------------


def test_who_serves_a_topic_is_found_by_who_looks_for_it_and_by_nobody_else() -> None:
    async def scene() -> None:
        topic = new_topic()
        async with discovering() as server, discovering() as reader, discovering() as other:
            other.discovery.look_up(frozenset([new_topic()]))
            reader.discovery.look_up(frozenset([topic]))
            server.discovery.announce(frozenset([topic, new_topic()]))
            await reader.discovery.first_round(topic)
            await eventually(lambda: len(reader.names(topic)) == 1)
            assert not other.found
            (found,) = reader.found.values()
            assert found.topics == {topic}
            (address,) = found.addresses
            async with await open_transport(address).connect(address):
                pass

    run(scene())


def test_a_topic_that_is_announced_later_is_found_and_one_that_is_withdrawn_is_lost() -> None:
    async def scene() -> None:
        first, second = new_topic(), new_topic()
        async with discovering() as server, discovering() as reader:
            reader.discovery.look_up(frozenset([first, second]))
            server.discovery.announce(frozenset([first]))
            await eventually(lambda: len(reader.names(first)) == 1)
            server.discovery.announce(frozenset([first, second]))
            await eventually(lambda: len(reader.names(second)) == 1)
            server.discovery.announce(frozenset([second]))
            await eventually(lambda: not reader.names(first))
            assert len(reader.names(second)) == 1
            server.discovery.announce(frozenset())
            await eventually(lambda: not reader.found)

    run(scene())


def test_a_topic_that_is_looked_for_later_is_found_among_those_who_are_known() -> None:
    async def scene() -> None:
        first, second = new_topic(), new_topic()
        async with discovering() as server, discovering() as reader:
            server.discovery.announce(frozenset([first, second]))
            reader.discovery.look_up(frozenset([first]))
            await eventually(lambda: len(reader.names(first)) == 1)
            reader.discovery.look_up(frozenset([first, second]))
            await eventually(lambda: len(reader.names(second)) == 1)
            reader.discovery.look_up(frozenset([second]))
            await eventually(lambda: not reader.names(first))
            reader.discovery.look_up(frozenset())
            await eventually(lambda: not reader.found)

    run(scene())


def test_who_closes_is_lost_at_once_because_he_said_goodbye() -> None:
    async def scene() -> None:
        topic = new_topic()
        async with discovering() as reader:
            reader.discovery.look_up(frozenset([topic]))
            async with discovering() as server:
                server.discovery.announce(frozenset([topic]))
                await eventually(lambda: len(reader.names(topic)) == 1)
            await eventually(lambda: not reader.found)

    run(scene())


def test_who_is_gone_without_a_goodbye_is_lost_when_he_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        monkeypatch.setattr("hypercore_lan.responder.ASK_SECONDS", 0.3)
        topic = new_topic()
        async with discovering() as reader, stranger() as dead:
            reader.discovery.look_up(frozenset([topic]))
            info = await dead.say(genuine(topic))
            await eventually(lambda: len(reader.names(topic)) == 1)
            (name,) = reader.found
            await reader.discovery.reconfirm(name)
            assert name in reader.found  # He is there, and answers.
            dead.zeroconf.zeroconf.registry.async_remove(info)  # Now he does not any more, and has not said so.
            await reader.discovery.reconfirm(name)
            await eventually(lambda: not reader.found)
            await dead.say(genuine(topic), name=name.partition(".")[0])
            await eventually(lambda: name in reader.found)

    run(scene())


def test_two_programs_find_each_other_with_a_core_and_a_swarm_alone() -> None:
    async def scene() -> None:
        async with Hypercore("memory:") as core, Swarm(LAN) as server:
            server.join(core)
            await core.append(["one", "two"])
            async with Hypercore("memory:", core.key) as clone, Swarm(LAN) as swarm:
                swarm.join(clone)
                assert await clone.update()
                assert await clone.get(1) == b"two"
                await eventually(lambda: len(server.connections()) == len(swarm.connections()) == 1)

    run(scene())


def test_a_swarm_that_is_alone_ends_its_first_round() -> None:
    async def scene() -> None:
        async with Hypercore("memory:", secrets.token_bytes(32)) as clone, Swarm(LAN) as swarm:
            swarm.join(clone)
            await clone.update()
            await swarm.flush()
            assert clone.length == 0

    run(scene())


def test_many_programs_on_one_host_all_find_each_other() -> None:
    async def scene() -> None:
        topic = new_topic()
        crowd = [discovering() for _ in range(8)]
        people = [await each.__aenter__() for each in crowd]
        for person in people:
            person.discovery.announce(frozenset([topic]))
            person.discovery.look_up(frozenset([topic]))
        await eventually(lambda: all(len(person.names(topic)) == 7 for person in people))
        for each in crowd:
            await each.__aexit__(None, None, None)

    run(scene())


def test_hundreds_of_topics_fit_and_thousands_are_still_found() -> None:
    async def scene() -> None:
        topics = [new_topic() for _ in range(1000)]
        async with discovering() as server, discovering() as reader:
            server.discovery.announce(frozenset(topics[:250]))
            reader.discovery.look_up(frozenset(topics))
            await eventually(lambda: sum(len(each.topics) for each in reader.found.values()) == 250)
            server.discovery.announce(frozenset(topics))
            await eventually(lambda: sum(len(each.topics) for each in reader.found.values()) == 1000)

    run(scene())


def test_changes_of_topics_that_follow_each_other_are_announced_together() -> None:
    class Watcher:
        updates = 0

        def changed(self, **_: object) -> None:
            self.updates += 1

    async def scene() -> None:
        topics = [new_topic() for _ in range(100)]
        watcher = Watcher()
        async with stranger() as other, discovering() as server, discovering() as reader:
            browser = AsyncServiceBrowser(other.zeroconf.zeroconf, SERVICE_TYPE, handlers=[watcher.changed])
            reader.discovery.look_up(frozenset(topics))
            for count in range(1, 101):
                server.discovery.announce(frozenset(topics[:count]))
                await asyncio.sleep(0)
            await eventually(lambda: any(len(each.topics) == 100 for each in reader.found.values()))
            assert watcher.updates < 20
            await browser.async_cancel()

    run(scene())


# ---- what strangers try ------------------------------------------------------------------------------


def test_nonsense_is_passed_over_and_the_true_peer_still_found() -> None:
    async def scene() -> None:
        topic = new_topic()
        async with discovering() as reader, stranger() as liar:
            reader.discovery.look_up(frozenset([topic]))
            await liar.say(b"")
            await liar.say(b"\x04v=99")
            await liar.say(genuine(topic), port=0)
            await liar.say(genuine(topic), addresses=("8.8.8.8",))
            await liar.say(genuine(topic), addresses=("192.0.2.7", "2001:db8::1"))
            await liar.say(b"".join(b"\xfft%02d=" % number + bytes(251) for number in range(20)))
            honest = await liar.say(genuine(topic))
            await eventually(lambda: bool(reader.found))
            await reader.discovery.first_round(topic)
            assert list(reader.found) == [honest.name]

    run(scene())


def test_a_flood_of_peers_on_one_host_is_bounded() -> None:
    async def scene() -> None:
        topic = new_topic()
        async with discovering() as reader, stranger() as liar:
            reader.discovery.look_up(frozenset([topic]))
            await asyncio.gather(*(liar.say(genuine(topic), port=1 + number) for number in range(200)))
            await eventually(lambda: len(reader.found) == discovery_module.PEER_COUNT_MAX_PER_HOST)
            await reader.discovery.first_round(topic)
            assert len(reader.found) == discovery_module.PEER_COUNT_MAX_PER_HOST

    run(scene())


def test_who_has_something_in_common_takes_the_place_of_who_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        monkeypatch.setattr(discovery_module, "PEER_COUNT_MAX", 10)
        topic = new_topic()
        async with discovering() as reader, stranger() as others:
            reader.discovery.look_up(frozenset([topic]))
            for number in range(30):
                await others.say(genuine(new_topic()), addresses=(f"127.0.0.{2 + number}",))
            await eventually(lambda: len(reader.discovery._peers) == 10)
            for _ in range(3):
                await others.say(genuine(topic))
            await eventually(lambda: len(reader.found) == 3)
            assert len(reader.discovery._peers) == 10

    run(scene())


def test_a_peer_does_not_find_itself_even_when_its_words_are_repeated_by_somebody_else() -> None:
    async def scene() -> None:
        topic = new_topic()
        async with discovering() as reader, stranger() as parrot:
            reader.discovery.look_up(frozenset([topic]))
            reader.discovery.announce(frozenset([topic]))
            await parrot.say(encode(new_salt(), reader.discovery._public_key, [topic]))
            honest = await parrot.say(genuine(topic))
            await eventually(lambda: bool(reader.found))
            assert list(reader.found) == [honest.name]

    run(scene())


# ---- what is asked for wrongly -----------------------------------------------------------------------


@pytest.mark.parametrize("address", ["lan://host", "lan:eth0"])
def test_an_address_with_more_in_it_is_refused(address: str) -> None:
    with pytest.raises(AddressError, match="interfaces=eth0"):
        open_transport(address)


@pytest.mark.parametrize("option", ["port=70000", "interface=eth0"])
def test_a_wrong_option_is_named(option: str) -> None:
    with pytest.raises(OptionError, match=option.partition("=")[0]):
        open_transport(f"lan:?{option}")


def test_lan_itself_is_neither_dialled_nor_listened_on() -> None:
    async def scene() -> None:
        transport = open_transport("lan:")
        with pytest.raises(AddressError):
            await transport.connect("lan:")
        with pytest.raises(AddressError):
            await transport.listen("lan:")

    run(scene())


def test_a_fixed_port_is_listened_on_and_one_that_is_taken_is_told() -> None:
    async def scene() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(TransportError, match="in use"):
                await Swarm(f"{LAN}&port={port}").start()
        async with Swarm(f"{LAN}&port={port}") as swarm:
            assert swarm.addresses == [f"tcp://127.0.0.1:{port}"]

    run(scene())


def test_without_any_network_a_swarm_waits_for_one_and_keeps_nobody_waiting() -> None:
    async def scene() -> None:
        async with Hypercore("memory:", secrets.token_bytes(32)) as clone:
            async with Swarm("lan:?interfaces=nothing-of-that-name") as swarm:
                swarm.join(clone)
                await clone.update()

    run(scene())

"""Who is let in and how many: floods, room, and the firewall."""

from __future__ import annotations

import asyncio

import pytest

from hypercore import connections as connections_module
from hypercore import dialling as dialling_module
from hypercore.connections import MOST_A_PEER, MOST_BANNED, MOST_HANDSHAKES, Connections
from hypercore.contacts import PeerInfo
from hypercore.core import Hypercore
from hypercore.crypto import KeyPair
from hypercore.duplex import stream_pair
from hypercore.errors import OptionError, PeerBannedError, PeerRefusedError, StreamBrokenError
from hypercore.plugins import open_transport
from hypercore.session import Replication
from hypercore.swarm import Swarm
from hypercore.transport import ByteStream
from tests.replication.links import eventually
from tests.replication.swarms import LARGE, SMALL, GatedTransport, connections, install, names, retry_at_once, writer_of
from tests.running import run


@pytest.fixture
def address() -> str:
    return next(names)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    retry_at_once(monkeypatch)


async def is_cut(stream: ByteStream) -> bool:
    """Wait for the other end of a stream to be closed; whatever it said before does not count."""
    try:
        while await stream.receive():
            pass
    except StreamBrokenError:
        pass
    return True


# ---- floods --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["pipe", "tcp"])
def test_handshakes_that_never_end_are_few_and_keep_nobody_out(scheme: str) -> None:
    async def main() -> None:
        transport = open_transport(f"{scheme}:")
        listen = "tcp://127.0.0.1:0" if scheme == "tcp" else "pipe:"
        async with await writer_of(3) as writer, Swarm(listen) as server:
            server.join(writer)
            silent = [await transport.connect(server.addresses[0]) for _ in range(3 * MOST_HANDSHAKES)]
            cut = [asyncio.create_task(is_cut(stream)) for stream in silent]
            await eventually(lambda: sum(task.done() for task in cut) == 2 * MOST_HANDSHAKES)
            assert not any(task.done() for task in cut[-MOST_HANDSHAKES:]), "the oldest go first"
            async with Hypercore("memory:", writer.key) as reader, Swarm(peers=server.addresses) as swarm:
                swarm.join(reader)
                assert await reader.get(2) == b"block 2"
                assert not writer.hub.opening, "nobody waits for those who never say who they are"
            assert sum(task.done() for task in cut) == 2 * MOST_HANDSHAKES + 1
        await asyncio.gather(*cut, *(stream.aclose() for stream in silent))

    run(main())


def test_a_flood_of_good_handshakes_leaves_those_that_are_there_and_room_for_those_that_are_dialled(
    address: str,
) -> None:
    async def main() -> None:
        wanted = next(names)
        async with await writer_of(3) as writer, Hypercore("memory:", writer.key) as copy:
            async with Swarm(address, peers=[wanted], most_connections=8) as server, Swarm(peers=[address]) as friend:
                server.join(copy)
                await friend.flush()
                flood = [Swarm(peers=[address]) for _ in range(20)]
                for swarm in flood:
                    await swarm.start()
                await eventually(lambda: len(server.connections()) == 6)
                assert friend.public_key in {each.remote_public_key for each in server.connections()}
                async with Swarm(wanted) as source:
                    source.join(writer)
                    await eventually(lambda: len(server.connections()) == 7)
                    assert await copy.get(2) == b"block 2"
                    assert friend.public_key in {each.remote_public_key for each in server.connections()}
                for swarm in flood:
                    await swarm.destroy()

    run(main())


def test_who_was_not_let_in_comes_in_when_there_is_room(address: str) -> None:
    async def main() -> None:
        async with await writer_of(3) as writer, Swarm(address, most_connections=1) as server:
            server.join(writer)
            async with Swarm(peers=[address]) as first:
                await first.flush()
                async with Hypercore("memory:", writer.key) as reader, Swarm(peers=[address]) as second:
                    second.join(reader)
                    await eventually(lambda: address in second.dial_errors)
                    (peer,) = second.peers
                    assert peer.error is second.dial_errors[address]
                    await first.destroy()
                    await eventually(lambda: bool(second.connections()))
                    assert await reader.get(2) == b"block 2"

    run(main())


def test_nobody_is_dialled_when_there_is_no_room(address: str) -> None:
    async def main() -> None:
        other = next(names)
        async with Swarm(address) as server, Swarm(other), Swarm(peers=[address, other], most_connections=1) as swarm:
            await swarm.flush()
            assert len(swarm.connections()) == 1
            (error,) = swarm.dial_errors.values()
            assert "most_connections" in str(error)
            await server.destroy()
            await eventually(lambda: list(swarm.dial_errors) == [address])

    run(main())


def test_dials_under_way_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        gated = GatedTransport("pipe:")
        install(gated, monkeypatch)
        nowhere = [next(names) for _ in range(20)]
        async with Swarm(peers=nowhere, most_dials=3) as swarm:
            await eventually(lambda: gated.under_way == 3)
            assert [peer.state for peer in swarm.peers].count("dialling") == 3
            for each in nowhere:
                gated.let(each)
            await swarm.flush()
            assert swarm.dial_errors.keys() == set(nowhere)
            assert gated.most_under_way == 3

    run(main())


def test_one_host_may_not_take_all_the_room_and_this_machine_may() -> None:
    async def main() -> None:
        dialled: list[Replication] = []

        async def come_from(host: str, inside: Connections) -> Replication:
            far, near = stream_pair(f"tcp://{host}:{1000 + len(dialled)}", "tcp://10.0.0.9:4977")
            assert near.remote_address.startswith(f"tcp://{host}:")
            dialled.append(Replication(far, initiator=True))
            dialled[-1].start_running()
            inside.accept(near)
            return dialled[-1]

        async with connections(KeyPair.generate()) as inside:
            for _ in range(4):
                await (await come_from("10.0.0.1", inside)).opened()
            await eventually(lambda: len(inside.open()) == 4)
            fifth = await come_from("10.0.0.1", inside)
            await fifth.wait_closed()
            for host in ("10.0.0.2", "10.0.0.2", "10.0.0.2"):
                await (await come_from(host, inside)).opened()
            await eventually(lambda: len(inside.open()) == 7)
        for each in dialled:
            await each.aclose()
        dialled.clear()
        async with connections(KeyPair.generate()) as inside:
            for _ in range(8):
                await (await come_from("127.0.0.1", inside)).opened()
            await eventually(lambda: len(inside.open()) == 8)
        for each in dialled:
            await each.aclose()

    run(main())


def test_one_peer_does_not_take_more_than_a_few_although_it_is_its_turn_to_choose(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer with the smaller key that opens connections and ends none of them."""
    monkeypatch.setattr(connections_module, "CHOICE_SECONDS", 1000.0)

    async def main() -> None:
        transport = open_transport("pipe:")
        async with Swarm(address, key_pair=LARGE) as server:
            dialled = []
            for _ in range(10):
                connection = Replication(await transport.connect(address), initiator=True, key_pair=SMALL)
                connection.start_running()
                await connection.opened()
                dialled.append(connection)
            await eventually(lambda: sum(each.is_closed for each in dialled) == 10 - MOST_A_PEER)
            assert not any(each.is_closed for each in dialled[-MOST_A_PEER:])
            assert len(server.peers) == 1
            for each in dialled:
                await each.aclose()

    run(main())


# ---- the firewall --------------------------------------------------------------------------------------


def the_one(infos: list[PeerInfo]) -> PeerInfo:
    (info,) = infos
    return info


def test_only_those_on_the_list_are_let_in_and_the_others_learn_nothing(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialling_module, "LAST_RETRY_SECONDS", 1000.0)

    async def main() -> None:
        async with await writer_of(3) as writer, Hypercore("memory:", writer.key) as reader:
            async with Swarm(address, allow=[SMALL.public_key.hex()]) as server:
                server.join(writer)
                async with Swarm(peers=[address], key_pair=LARGE) as swarm:
                    swarm.join(reader)
                    await eventually(lambda: [each.state for each in swarm.peers] == ["refused"])
                    refused = the_one(swarm.peers)
                    assert isinstance(swarm.dial_errors[address], PeerRefusedError)
                    assert refused.error is swarm.dial_errors[address]
                    assert refused.public_key == server.public_key
                    assert (refused.retry_seconds or 0) > 400, "it is not tried again soon"
                    banned = the_one(server.peers)
                    assert banned.state == "banned"
                    assert banned.public_key == LARGE.public_key
                    assert isinstance(banned.error, PeerBannedError)
                    assert LARGE.public_key.hex() not in str(banned.error)
                    assert not server.connections()
                    assert not writer.peers
                async with Swarm(peers=[address], key_pair=SMALL) as swarm:
                    swarm.join(reader)
                    assert await reader.get(2) == b"block 2"

    run(main())


def test_who_dials_a_peer_that_its_own_firewall_refuses_says_so_and_tells_it_no_core(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialling_module, "LAST_RETRY_SECONDS", 1000.0)

    async def main() -> None:
        asked: list[bytes] = []

        def firewall(public_key: bytes) -> bool:
            asked.append(public_key)
            return public_key == LARGE.public_key

        async with await writer_of(3) as writer, Swarm(address, key_pair=LARGE) as server:
            async with Hypercore("memory:", writer.key) as reader, Swarm(peers=[address], firewall=firewall) as swarm:
                server.join(writer)
                swarm.join(reader)
                await swarm.flush()
                banned = the_one(swarm.peers)
                assert banned.state == "banned"
                assert isinstance(banned.error, PeerBannedError)
                assert (banned.retry_seconds or 0) > 400
                assert asked == [LARGE.public_key]
                await eventually(lambda: not len(server._connections))
                assert not writer.peers

    run(main())


def test_a_firewall_that_fails_refuses_and_its_error_is_told(address: str) -> None:
    async def main() -> None:
        told: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))

        def broken(public_key: bytes) -> bool:
            raise RuntimeError("no list today")

        async with Swarm(address, firewall=broken) as server, Swarm(peers=[address]) as swarm:
            await eventually(lambda: bool(server.peers))
            assert the_one(server.peers).state == "banned"
            await swarm.flush()
        assert isinstance(told[0], RuntimeError)

    run(main())


def test_only_so_many_of_those_that_were_refused_are_remembered(address: str) -> None:
    async def main() -> None:
        async with Swarm(address, allow=[]) as server:
            transport = open_transport("pipe:")
            for _ in range(MOST_BANNED + 5):
                connection = Replication(await transport.connect(address), initiator=True)
                await connection.start_running()
            await eventually(lambda: not len(server._connections))
            assert len(server.peers) == MOST_BANNED

    run(main())


def test_one_key_where_a_list_belongs_is_told_at_once() -> None:
    with pytest.raises(OptionError, match="list"):
        Swarm(allow=bytes(32))  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="1 or more"):
        Swarm(most_connections=0)

"""Two programs that dial each other keep one connection, the same one; and a peer that comes back is let in at once."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from random import Random

import pytest

from hypercore import connections as connections_module
from hypercore import dialling as dialling_module
from hypercore.core import Hypercore
from hypercore.crypto import KeyPair
from hypercore.duplex import stream_pair
from hypercore.peer import Peer
from hypercore.plugins import open_transport
from hypercore.swarm import Swarm
from hypercore.transport import ByteStream
from tests.processes import Program, running
from tests.replication.links import eventually
from tests.replication.swarms import LARGE, SMALL, Crossroads, connections, install, names, writer_of
from tests.running import run
from tests.soak import SOAK

SEED = 17
#: A thousand in a soak.
COUNT = min(1000, 100 * SOAK)
PROGRAM = Path(__file__).parent / "swarm_program.py"


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dials wait for each other here, and need not wait for anything else."""
    monkeypatch.setattr(dialling_module, "FIRST_RETRY_SECONDS", 0.0)


def is_settled(one: Swarm, other: Swarm) -> bool:
    """Whether both have one connection and nothing under way or ending, and it is the same one."""
    ours, theirs = one.connections(), other.connections()
    return (
        len(ours) == len(theirs) == len(one._connections) == len(other._connections) == 1
        and ours[0].handshake_hash == theirs[0].handshake_hash
    )


@pytest.mark.parametrize("scheme", ["pipe", "tcp"])
def test_dials_that_cross_many_times_end_with_one_connection_each_time_and_no_request_is_lost(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = COUNT

    async def main() -> None:
        crossroads = Crossroads(open_transport(f"{scheme}:"), SEED)
        install(crossroads, monkeypatch)
        random = Random(SEED)
        if scheme == "pipe":
            at_small, at_large = next(names), next(names)
        else:
            at_small, at_large = "tcp://127.0.0.1:0", "tcp://127.0.0.1:0"
            async with Swarm(at_small) as one, Swarm(at_large) as other:  # Ports that are free.
                (at_small,), (at_large,) = one.addresses, other.addresses
        async with await writer_of(count) as writer, Hypercore("memory:", writer.key) as reader:
            small = Swarm(at_small, peers=[at_large], key_pair=SMALL)
            large = Swarm(at_large, peers=[at_small], key_pair=LARGE)
            small.join(writer)
            large.join(reader)
            requests: list[asyncio.Task[bytes]] = []

            def ask(peer: Peer, is_there: bool) -> None:
                if is_there and len(requests) < crossroads.meetings:
                    requests.append(asyncio.create_task(reader.get(len(requests))))

            reader.hub.on_peer.append(ask)
            async with small, large:
                for number in range(count):
                    await eventually(lambda: crossroads.dials == 2 * number + 2 and is_settled(small, large))  # noqa: B023
                    await eventually(lambda: len(requests) == number + 1)  # noqa: B023
                    assert await requests[number] == b"block %d" % number, f"seed {SEED}"
                    assert is_settled(small, large), f"seed {SEED}, crossing {number}"
                    random.choice((small, large)).connections()[0].abort()
                    await eventually(lambda: not is_settled(small, large))

    run(main(), timeout_seconds=180)


async def start_program(program: Program, **options: object) -> dict[str, object]:
    await program.type(json.dumps(options) + "\n")
    said = await program.json()
    assert isinstance(said, dict)
    return said


def test_two_processes_that_cross_many_times_have_one_connection_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The other process waits with each dial until it is told, as this one does."""
    count = COUNT

    async def main() -> None:
        random = Random(SEED)
        crossroads = Crossroads(open_transport("tcp:"), SEED)
        install(crossroads, monkeypatch)

        async def look() -> tuple[list[str], list[int]]:
            await program.type("look\n")
            while "connections" not in (said := await program.json()):
                dials.append(said)
            return said["connections"], said["counts"]

        dials: list[object] = []
        async with running(sys.executable, PROGRAM) as program, Swarm("tcp://127.0.0.1:0") as door:
            ours = door.addresses[0]
            await door.destroy()
            there = await start_program(program, seed=2, listen="tcp://127.0.0.1:0", peers=[ours], gated=True)
            theirs = str(there["addresses"][0])  # type: ignore[index]
            async with Hypercore("memory:", str(there["key"])) as reader, Swarm(ours, peers=[theirs]) as swarm:
                swarm.join(reader)
                for number in range(count):
                    while not dials:
                        dials.append(await program.json())
                    assert dials == [{"dialling": number}], f"seed {SEED}"
                    dials.clear()
                    await crossroads.meet()
                    await program.type("go\n")
                    while True:
                        hashes, counts = await look()
                        here = [each.handshake_hash.hex() for each in swarm.connections()]
                        counts += [crossroads.dials, len(swarm._connections)]
                        if here == hashes and len(here) == 1 and counts == [number + 1, 1] * 2:
                            break
                    assert await reader.get(number % 100) == b"block %d" % (number % 100)
                    if number + 1 < count:
                        if random.random() < 0.5:
                            swarm.connections()[0].abort()
                        else:
                            await program.type("cut\n")
                        await eventually(lambda: not swarm.connections())
                assert not dials

    run(main(), timeout_seconds=180)


@pytest.mark.parametrize("chooser", ["here", "there"])
def test_a_restarted_peer_is_let_in_while_its_old_connection_is_dead_and_does_not_know(
    chooser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is frozen, so that its kernel goes on answering for it. The new one has its key."""
    monkeypatch.setattr(connections_module, "CHOICE_SECONDS", 0.1)

    async def main() -> None:
        keys = {seed: KeyPair.from_seed(bytes([seed]) * 32).public_key for seed in (3, 4)}
        smaller, larger = sorted(keys, key=lambda seed: keys[seed])
        here, there = (smaller, larger) if chooser == "here" else (larger, smaller)
        async with Swarm("tcp://127.0.0.1:0", key_pair=KeyPair.from_seed(bytes([here]) * 32)) as swarm:
            async with running(sys.executable, PROGRAM) as old, running(sys.executable, PROGRAM) as new:
                said = await start_program(old, seed=there, peers=swarm.addresses)
                async with Hypercore("memory:", str(said["key"])) as reader:
                    swarm.join(reader)
                    await eventually(lambda: bool(reader.peers))
                    assert await reader.get(0) == b"block 0"
                    (dead,) = swarm.connections()
                    old.process.send_signal(signal.SIGSTOP)
                    await start_program(new, seed=there, peers=swarm.addresses)
                    await eventually(lambda: any(each is not dead for each in swarm.connections()))
                    assert await reader.get(1) == b"block 1"
                    await eventually(lambda: len(swarm.connections()) == 1)
                    assert swarm.connections() != [dead]
                    assert swarm.connections()[0].remote_public_key == keys[there]
                    assert await reader.get(2) == b"block 2"
                    assert len(reader.peers) == 1

    run(main(), timeout_seconds=25)  # After 30 seconds of silence it would be let in by anybody.


class Slow(ByteStream):
    """Its first message leaves at once, and the others when they are let go."""

    def __init__(self, inner: ByteStream) -> None:
        self.inner = inner
        self.go = asyncio.Event()
        self._is_first = True

    async def receive(self) -> bytes:
        return await self.inner.receive()

    async def send(self, data: bytes) -> None:
        if not self._is_first:
            await self.go.wait()
        self._is_first = False
        await self.inner.send(data)

    async def aclose(self) -> None:
        await self.inner.aclose()

    def abort(self) -> None:
        self.inner.abort()

    @property
    def remote_address(self) -> str:
        return self.inner.remote_address


def test_an_old_connection_ends_only_when_both_ends_know_that_the_new_one_works() -> None:
    async def main() -> None:
        async with connections(SMALL) as chooser, connections(LARGE) as other:
            theirs, ours = stream_pair()
            older = other.run(theirs, initiator=True)
            chooser.accept(ours)
            await older.opened()
            await eventually(lambda: len(chooser.open()) == 1)
            chooser.open()[0].has_spoken = True
            mine, yours = stream_pair()
            slow = Slow(mine)
            newer = chooser.run(slow, initiator=True)
            other.accept(yours)
            await newer.opened()
            for _ in range(50):
                await asyncio.sleep(0)
            assert len(chooser.open()) == 2, "the other side does not know of the new one yet"
            assert other.open() == [older]
            slow.go.set()
            await eventually(lambda: len(chooser) == len(other) == 1)
            assert chooser.open() == [newer]
            assert other.open()[0].handshake_hash == newer.handshake_hash

    run(main())


def test_of_two_that_cross_before_a_word_is_said_the_one_that_the_larger_key_dialled_is_kept() -> None:
    async def main() -> None:
        async with connections(SMALL) as small, connections(LARGE) as large:
            for first, second in ((small, large), (large, small)):
                for dialler, listener in ((first, second), (second, first)):
                    theirs, ours = stream_pair()
                    dialler.run(theirs, initiator=True)
                    listener.accept(ours)
                await eventually(lambda: len(small) == len(large) == 1)
                await eventually(lambda: bool(small.open() and large.open()))
                assert large.open()[0].is_initiator
                assert not small.open()[0].is_initiator
                large.open()[0].abort()
                await eventually(lambda: not len(small) and not len(large))

    run(main())

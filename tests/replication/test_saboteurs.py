"""Peers that hold the real log and answer from it badly: late, twice, in any order, damaged, refused, or not at all.

Beside one honest peer they delay a reader by little, and nothing false is ever stored.
"""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest

from hypercore.core import Hypercore
from hypercore.errors import HypercoreError, TransportError
from hypercore.proofs import Proof
from hypercore.protocol.messages import Data, Message, NoData, Range, Request, Sync
from tests.replication.hostile import Stranger
from tests.replication.links import eventually, link
from tests.running import run

SABOTEURS = 3
BLOCKS = 150


class Saboteur:
    """Serves `source` through a stranger's mouth, with a fault now and then."""

    def __init__(self, stranger: Stranger, source: Hypercore, chance: random.Random) -> None:
        self.stranger = stranger
        self.source = source
        self.chance = chance
        self._requests: list[Request] = []
        self._news = asyncio.Event()
        stranger.on_message = self._hear
        self._task = asyncio.get_running_loop().create_task(self._serve())

    def _hear(self, message: Message) -> None:
        if isinstance(message, Request):
            self._requests.append(message)
            self._news.set()
        elif isinstance(message, Sync):
            self._requests.append(Request(-1, 0, None))  # type: ignore[arg-type]
            self._news.set()

    async def say_what_is_there(self) -> None:
        source = self.source
        known = self.stranger.received(Sync)
        last = known[-1] if known else None
        acked = last.length if isinstance(last, Sync) and last.fork == source.fork else 0
        await self.stranger.send(
            Sync(source.fork, source.length, acked, True, True, True, True, False), Range(False, 0, source.length)
        )

    async def _serve(self) -> None:
        chance = self.chance
        with contextlib.suppress(TransportError, HypercoreError):
            while True:
                await self._news.wait()
                self._news.clear()
                for _ in range(chance.choice([0, 0, 3, 30])):
                    await asyncio.sleep(0)
                if chance.random() < 0.5:
                    chance.shuffle(self._requests)
                while self._requests:
                    request = self._requests.pop(0)
                    if request.id < 0:
                        await self.say_what_is_there()
                    else:
                        await self._answer(request)

    async def _answer(self, request: Request) -> None:
        chance, send = self.chance, self.stranger.send
        try:
            proof = await self.source.hub.log.prove(request.proof)
        except HypercoreError:
            await send(NoData(request.id, 1))
            return
        match chance.choice(["right"] * 12 + ["refused", "twice", "damaged", "other", "silent"]):
            case "right":
                await send(Data(request.id, proof))
            case "refused":
                await send(NoData(request.id, chance.choice([0, 1, 2])))
            case "twice":
                await send(Data(request.id, proof), Data(request.id, proof))
            case "damaged":
                await send(Data(request.id, damaged(proof, chance)))
            case "other":
                await send(Data(request.id + 1, proof))
            case _:
                pass

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        await self.stranger.close()


def damaged(proof: Proof, chance: random.Random) -> Proof:
    block, upgrade = proof.block, proof.upgrade
    if block is not None and chance.random() < 0.7:
        if block.nodes and chance.random() < 0.5:
            return proof._replace(block=block._replace(nodes=block.nodes[:-1]))
        return proof._replace(block=block._replace(value=block.value + b"!"))
    if upgrade is not None:
        return proof._replace(upgrade=upgrade._replace(signature=bytes(len(upgrade.signature))))
    return proof._replace(fork=proof.fork + 1)


async def sabotage(seed: int) -> None:
    chance = random.Random(seed)
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    async with Hypercore("memory:") as writer:
        await writer.append([chance.randbytes(chance.randrange(300)) for _ in range(BLOCKS)])
        async with Hypercore("memory:", writer.key) as reader:
            saboteurs = []
            for _ in range(SABOTEURS):
                saboteur = Saboteur(await Stranger(reader).opened(), writer, chance)
                await saboteur.say_what_is_there()
                saboteurs.append(saboteur)
            download = reader.download(0, None)
            for _ in range(chance.choice([0, 20, 200])):
                await asyncio.sleep(0)
            wire = await link(writer, reader)
            for _ in range(chance.randrange(4)):
                if chance.random() < 0.4:
                    await writer.truncate(chance.randrange(BLOCKS // 2, writer.length))
                await writer.append([chance.randbytes(5) for _ in range(chance.randrange(1, 20))])
                for saboteur in saboteurs:
                    with contextlib.suppress(TransportError, HypercoreError):
                        await saboteur.say_what_is_there()
                for _ in range(chance.choice([0, 20, 200])):
                    await asyncio.sleep(0)
            await eventually(lambda: (reader.fork, reader.contiguous_length) == (writer.fork, writer.length))
            assert await reader.tree_hash() == await writer.tree_hash()
            for index in range(writer.length):
                assert await reader.get(index) == await writer.get(index), f"seed {seed}: block {index}"
            assert wire.left.error is wire.right.error is None, f"seed {seed}"
            (honest,) = [peer for peer in reader.peers if peer.session is wire.right]
            assert not honest.remote.strikes, f"seed {seed}: the honest peer was blamed"
            assert not reader.hub.frozen
            download.destroy()
            for saboteur in saboteurs:
                await saboteur.close()
    assert not faults, f"seed {seed}: {faults}"


@pytest.mark.parametrize("seed", range(6))
def test_saboteurs_delay_a_reader_and_spoil_nothing(seed: int) -> None:
    run(sabotage(seed))

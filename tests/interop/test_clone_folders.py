"""The folder of a clone that holds some blocks: what one reader stored, the other one reads and goes on with."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from hypercore import Hypercore
from hypercore.log.engine import Log
from hypercore.testing import CrashStorage
from hypercore_file import FileStorage
from hypercore_memory import MemoryStorage
from tests.histories import Append, Clear, Model, Truncate, random_block
from tests.interop.doomed import KEY_PAIR
from tests.interop.folders import SEED, NodeFolder, audit, found, node_difference, node_found
from tests.interop.stage import Role, connect
from tests.log.logs import fetch, upgrade_proof
from tests.running import run

pytestmark = pytest.mark.interop


class Clone:
    """A clone's folder that goes from hand to hand, while the writer goes on."""

    def __init__(self, writer: NodeFolder, node: NodeFolder, folder: Path, seed: int, *, compat: bool) -> None:
        self.writer = writer
        self.node = node
        self.folder = folder
        self.random = Random(seed)
        self.compat = compat
        self.written = Model()
        #: What the clone should hold: the blocks that it lacks are the cleared ones.
        self.model = Model()
        self.key = b""

    async def write(self, action: Append | Truncate) -> None:
        await self.writer.perform(action)
        self.written = self.written.after(action)

    def batch(self, count: int) -> Append:
        return Append(tuple(random_block(self.random, largest=20_000) for _ in range(count)))

    def plan(self) -> list[int]:
        """Some blocks to fetch, single ones and a row."""
        length = self.written.length
        row = self.random.randrange(length)
        return sorted({*self.random.sample(range(length), 8), *range(row, min(length, row + 5))})

    def got(self, wanted: list[int]) -> None:
        """The clone is where the writer is, and has what it had of that and what it wanted."""
        common = self.common_length()
        lacking = set(range(self.written.length)) - set(wanted)
        lacking -= set(range(common)) - self.model.cleared
        self.model = Model(self.written.blocks, frozenset(lacking), self.written.fork)

    def common_length(self) -> int:
        """Blocks at the start that the clone and the writer have in common."""
        pairs = zip(self.model.blocks, self.written.blocks, strict=False)
        return next(
            (index for index, (old, new) in enumerate(pairs) if old != new), min(self.model.length, self.written.length)
        )

    async def ours(self, said: str) -> None:
        wanted = self.plan()
        async with Hypercore(str(self.folder), self.key) as core:
            replication = await connect(await self.writer.peer(), core, role=Role(we_dial=True, we_initiate=True))
            await core.update()
            assert (core.fork, core.length) == (self.written.fork, self.written.length), said
            for index in wanted:
                assert await core.get(index) == self.written.blocks[index], f"{said}, block {index}"
            self.got(wanted)
            start = wanted[len(wanted) // 2]
            await core.clear(start, start + 3)
            self.model = self.model.after(Clear(start, start + 3))
            await replication.aclose()
        log = await Log.open(FileStorage(self.folder), create_if_missing=False, read_only=True)
        self.model = await found(log, [self.model], said)
        await log.aclose()
        await audit(self.node, self.folder, self.model, said, compat=self.compat, writable=False)

    async def its(self, said: str) -> None:
        wanted = self.plan()
        await self.node.open(self.folder, key=self.key.hex())
        problem = node_difference(await self.node.view(), self.model, compat=self.compat, writable=False)
        assert not problem, f"{said}: {problem}"
        peer, writer = await self.node.peer(), await self.writer.peer()
        await peer.command("dial", port=(await writer.command("listen"))["port"])
        await peer.command("wait", length=self.written.length, fork=self.written.fork)
        for index in wanted:
            assert (await peer.command("get", index=index))["hex"] == self.written.blocks[index].hex(), said
        self.got(wanted)
        problem = node_difference(await self.node.view(), self.model, compat=self.compat, writable=False)
        assert not problem, f"{said}, by Node: {problem}"
        await peer.command("disconnect")
        await self.node.close()


@pytest.mark.parametrize("seed", range(4))
def test_a_sparse_clone_goes_from_hand_to_hand_and_follows_the_writer(seed: int, tmp_path: Path) -> None:
    async def main() -> None:
        compat = seed % 2 == 0
        async with NodeFolder() as writer, NodeFolder() as node:
            await writer.open(tmp_path / "writer", seed=SEED, compat=compat)
            clone = Clone(writer, node, tmp_path / "clone", seed, compat=compat)
            clone.key = bytes.fromhex((await writer.view())["key"])
            await clone.write(clone.batch(150))
            for number in range(8):
                await (clone.its if (number + seed // 2) % 2 else clone.ours)(f"seed {seed}, turn {number}")
                if number % 3 == 2:
                    await clone.write(Truncate(clone.random.randrange(20, clone.written.length)))
                await clone.write(clone.batch(clone.random.randint(1, 60)))

    run(main(), timeout_seconds=120)


@pytest.mark.parametrize("compat", [False, True], ids=["manifest", "compat"])
def test_a_reader_that_dies_at_any_moment_leaves_a_folder_that_node_reads(compat: bool, tmp_path: Path) -> None:
    async def main() -> None:
        random = Random(int(compat))
        writer = await Log.open(MemoryStorage(), key_pair=KEY_PAIR, compat=compat)
        storage = CrashStorage(MemoryStorage())
        reader = await Log.open(storage, key=writer.key, durability="none")
        #: The count of steps, and what was acknowledged by then.
        life = [(len(storage.steps), Model())]
        written: list[bytes] = []
        for _ in range(3):
            written += [random_block(random, largest=9000) for _ in range(random.randint(5, 30))]
            await writer.append(written[writer.length :])
            held = {index for index in range(reader.length) if reader.has(index)}
            for wanted in [None, *random.sample(sorted(set(range(writer.length)) - held), 4)]:
                if wanted is None:
                    assert await reader.apply([await upgrade_proof(writer, reader)]) == [None]
                else:
                    await fetch(writer, reader, [wanted])
                    held.add(wanted)
                lacking = frozenset(range(writer.length)) - held
                life.append((len(storage.steps), Model(tuple(written), lacking)))
            if random.random() < 0.5:
                await reader.flush()
        async with NodeFolder() as node:
            for after in range(life[0][0], len(storage.steps) + 1):
                moment = max(number for number, (steps, _) in enumerate(life) if steps <= after)
                for torn_bytes in (None, random.randrange(100)):
                    said = f"{after} of {len(storage.steps)} steps, {torn_bytes} bytes of the next"
                    folder = tmp_path / f"{after}-{torn_bytes}"
                    async with FileStorage(folder) as left:
                        await storage.kill(left, after=after, torn_bytes=torn_bytes)
                    await node.open(folder, create=False)
                    possible = [model for _, model in life[moment : moment + 2]]
                    node_found(await node.view(), possible, said, compat=compat, writable=False)
                    await node.close()

    run(main())

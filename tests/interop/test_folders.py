"""One folder, used by Node's hypercore 10 and by us in turn: each sees all that the other one wrote."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from random import Random

import pytest

from hypercore.log.engine import Log
from hypercore_file import FileStorage
from tests.histories import (
    Action,
    Append,
    Clear,
    Model,
    Truncate,
    perform,
    random_action,
)
from tests.interop.doomed import KEY_PAIR, Death, write_and_die
from tests.interop.folders import SEED, NodeFolder, audit, folder_bytes, found, node_difference, node_found
from tests.running import run

pytestmark = pytest.mark.interop

LARGEST_BLOCK = 300_000


def states(model: Model, actions: list[Action]) -> list[Model]:
    """The models before, between and after the actions."""
    models = [model]
    for action in actions:
        models.append(models[-1].after(action))
    return models


def random_actions(random: Random, model: Model, count: int) -> list[Action]:
    actions: list[Action] = []
    for _ in range(count):
        action = random_action(random, model, largest_block=LARGEST_BLOCK)
        actions.append(action)
        model = model.after(action)
    return actions


class Turns:
    """A folder that goes from hand to hand."""

    def __init__(self, node: NodeFolder, folder: Path, seed: int, *, compat: bool) -> None:
        self.node = node
        self.folder = folder
        self.seed = seed
        self.compat = compat
        self.random = Random(seed)
        #: After a crash nobody knows which of these the folder holds.
        self.possible = [Model()]
        #: Whether everything is out of the log's entries, by our hand.
        self.flushed = False
        self.said = ""

    async def ours(self) -> None:
        random = self.random
        log = await Log.open(
            FileStorage(self.folder), key_pair=KEY_PAIR, compat=self.compat, durability=random.choice(["none", "flush"])
        )
        model = await found(log, self.possible, f"{self.said}, by us")
        actions = random_actions(random, model, random.randint(1, 6))
        end = random.choice(["close", "flush", "kill"])
        if end == "kill":
            await log.aclose()
            death = Death(acknowledged=random.randint(0, len(actions)))
            done = write_and_die(self.folder, actions, death, compat=self.compat)
            self.possible, self.flushed = states(model, actions)[done:], False
            return
        for action in actions:
            await perform(log, action)
            model = model.after(action)
        if end == "flush":
            await log.flush()
        await log.aclose()
        self.possible, self.flushed = [model], end == "flush"
        if random.random() < 0.3:
            await audit(self.node, self.folder, model, self.said, compat=self.compat)

    async def its(self) -> None:
        random, node = self.random, self.node
        await node.open(self.folder, seed=SEED, compat=self.compat)
        view = await node.view()
        model = node_found(view, self.possible, f"{self.said}, by Node", compat=self.compat)
        if self.flushed or not model.cleared:
            assert view["contiguousLength"] == model.contiguous_length, self.said
        actions = random_actions(random, model, random.randint(1, 6))
        dies = random.random() < 0.25
        for action in actions[: -1 if dies else None]:
            await node.perform(action)
        models = states(model, actions)
        if dies:
            under_way = asyncio.create_task(node.perform(actions[-1]))
            for _ in range(random.choice([1, 10, 100, 1000])):
                await asyncio.sleep(0)
            await node.kill()
            await asyncio.gather(under_way, return_exceptions=True)
            self.possible = models[-2:]
        else:
            assert not node_difference(await node.view(), models[-1], compat=self.compat), (
                f"{self.said}, written by Node"
            )
            await node.close()
            self.possible = [models[-1]]


@pytest.mark.parametrize("seed", range(12))
def test_node_and_we_take_turns_on_one_folder(seed: int, tmp_path: Path) -> None:
    async def main() -> None:
        async with NodeFolder() as node:
            turns = Turns(node, tmp_path / "core", seed, compat=seed % 2 == 0)
            for number in range(seed % 4 // 2, 10 + seed % 4 // 2):
                turns.said = f"seed {seed}, turn {number}"
                await (turns.its() if number % 2 else turns.ours())

    run(main(), timeout_seconds=120)


@pytest.mark.parametrize("seed", range(6))
def test_a_writer_that_is_killed_leaves_all_that_it_acknowledged_to_us_and_to_node(seed: int, tmp_path: Path) -> None:
    async def main() -> None:
        random = Random(seed)
        compat = seed % 2 == 0
        folder, ours, its = tmp_path / "core", tmp_path / "ours", tmp_path / "its"
        model = Model()
        async with NodeFolder() as node:
            for number in range(10):
                # The next writer opens what the last one left.
                actions = random_actions(random, model, 10)
                if number % 2:
                    death = Death(acknowledged=random.randint(0, 9))
                else:
                    death = Death(operation=random.randint(3 if number == 0 else 1, 50))
                done = write_and_die(folder, actions, death, compat=compat)
                said = f"seed {seed}, death {number} by {death}, {done} of {actions} acknowledged"
                shutil.copytree(folder, ours)
                shutil.copytree(folder, its)
                log = await Log.open(FileStorage(ours), create_if_missing=False)
                model = await found(log, states(model, actions)[done:], said)
                await log.aclose()
                await audit(node, ours, model, said, compat=compat)
                await node.open(its, create=False)
                problem = node_difference(await node.view(), model, compat=compat)
                assert not problem, f"{said}, opened by Node: {problem}"
                await node.close()
                shutil.rmtree(ours)
                shutil.rmtree(its)

    run(main(), timeout_seconds=120)


class NodeFlushes:
    """When hypercore 10 moves the log's entries to the other files: the first mutation of a session, then every
    fourth one (disk spec, section 2.6)."""

    def __init__(self) -> None:
        self._left = 1

    def due(self, before: Model, action: Action) -> bool:
        if isinstance(action, Truncate) or before.view == before.after(action).view:
            # A truncation is flushed at once and counts for nothing.
            return False
        self._left -= 1
        if self._left:
            return False
        self._left = 4
        return True


def is_logged_by_both(action: Action, model: Model) -> bool:
    """Node fails when a clear gives no bytes back, and logs it; we know that there is nothing to do."""
    return not isinstance(action, Clear) or any(model.view.blocks[action.start : action.end])


@pytest.mark.parametrize("seed", range(8))
def test_the_same_history_makes_the_same_bytes(seed: int, tmp_path: Path) -> None:
    async def main() -> None:
        random = Random(seed)
        compat = seed % 2 == 0
        ours, its = tmp_path / "ours", tmp_path / "its"
        async with NodeFolder() as node, FileStorage(ours) as storage:
            log = await Log.open(storage, key_pair=KEY_PAIR, compat=compat)
            await node.open(its, seed=SEED, compat=compat)
            model, flushes = Model(), NodeFlushes()
            for number in range(30):
                action = random_action(random, model)
                if not is_logged_by_both(action, model):
                    continue
                await node.perform(action)
                await perform(log, action)
                if flushes.due(model, action):
                    await log.flush()
                model = model.after(action)
                differing = sorted(name for name, _ in folder_bytes(ours).items() ^ folder_bytes(its).items())
                assert not differing, f"seed {seed}, after action {number}, {action}"
            await log.aclose()

    run(main())


@pytest.mark.parametrize("node_begins", [False, True])
def test_a_core_of_several_pages_of_bits_and_many_pages_of_nodes_goes_from_hand_to_hand(
    node_begins: bool, tmp_path: Path
) -> None:
    async def main() -> None:
        folder = tmp_path / "core"
        model = Model()
        actions: list[Action] = [
            Append(tuple(b"%d" % index for index in range(33_000))),
            Clear(32_760, 32_780),
            Append((b"", b"the end")),
            Truncate(32_770),
            Append(tuple(b"%d again" % index for index in range(500))),
            Clear(100, 33_000),
        ]
        async with NodeFolder() as node:
            for number, action in enumerate(actions):
                said = f"action {number}"
                if number % 2 != node_begins:
                    await node.open(folder, seed=SEED, compat=False)
                    await node.perform(action)
                    await node.close()
                else:
                    log = await Log.open(FileStorage(folder), key_pair=KEY_PAIR)
                    await found(log, [model], said)
                    await perform(log, action)
                    await log.aclose()
                model = model.after(action)
            await audit(node, folder, model, "in the end", compat=False)
            log = await Log.open(FileStorage(folder), read_only=True)
            await found(log, [model], "in the end")
            await log.aclose()

    run(main(), timeout_seconds=120)

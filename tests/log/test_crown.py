"""On a storage where every read is a round trip, a block is two reads away, and the crown is never believed."""

from __future__ import annotations

from random import Random

import pytest

from hypercore.log import crown as crown_module
from hypercore.log import flat_tree
from hypercore.log.crown import crown_index, is_upper
from hypercore.log.engine import Log
from tests.histories import Append, Model, Truncate, difference, perform, random_engine_action, view_of
from tests.log.logs import Disk, DiskStorage
from tests.running import run

NODE_SIZE = 40


class FarStorage(DiskStorage):
    distant = True


async def far_log(disk: Disk, **options: bool) -> Log:
    disk.holder = None
    return await Log.open(FarStorage(disk), **options)  # type: ignore[arg-type]


async def filled(disk: Disk, *, block_count: int, text: bytes = b"block") -> None:
    log = await far_log(disk)
    for start in range(0, block_count, 5000):
        await log.append([b"%s %d" % (text, index) for index in range(start, min(start + 5000, block_count))])
    await log.flush()
    await log.aclose()


def check_crown(disk: Disk, length: int) -> None:
    """Whatever the crown holds of the tree is what the tree holds, and it holds all of it."""
    tree, crown = disk.contents.get("tree", b""), disk.contents.get("crown", b"")
    for index in range(255, len(tree) // NODE_SIZE, 256):
        if flat_tree.right_span(index) < 2 * length:
            place = crown_index(index) * NODE_SIZE
            assert crown[place : place + NODE_SIZE] == tree[index * NODE_SIZE : (index + 1) * NODE_SIZE], index


def test_the_crown_is_the_tree_above_256_blocks() -> None:
    assert [index for index in range(1100) if is_upper(index)] == [255, 511, 767, 1023]
    assert [crown_index(index) for index in (255, 511, 767, 1023)] == [0, 1, 2, 3]
    for index in range(255, 1 << 20, 256):
        upper = crown_index(index)
        assert flat_tree.depth(upper) == flat_tree.depth(index) - 8
        assert flat_tree.offset(upper) == flat_tree.offset(index)


def test_a_block_of_a_far_log_is_one_read_of_nodes_and_one_of_bytes() -> None:
    async def promise() -> None:
        disk = Disk()
        await filled(disk, block_count=100_000)
        check_crown(disk, 100_000)
        log = await far_log(disk, read_only=True)
        random = Random(1)
        for _ in range(200):
            index = random.randrange(log.length)
            disk.reads.clear()
            assert await log.get(index) == b"block %d" % index
            assert [name for name, _, _ in disk.reads] in (["tree", "data"], ["data"], []), disk.reads
            disk.reads.clear()
            assert await log.get(index) == b"block %d" % index
            assert all(name == "data" for name, _, _ in disk.reads)
        await log.aclose()

    run(promise())


def test_a_large_crown_is_read_as_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crown_module, "_WHOLE_SIZE_MAX", 1000)

    async def promise() -> None:
        disk = Disk()
        await filled(disk, block_count=20_000)
        log = await far_log(disk)
        for index in range(0, 20_000, 61):
            assert await log.get(index) == b"block %d" % index
        await log.truncate(9_999)
        await log.append([b"new"] * 2000)
        await log.flush()
        check_crown(disk, log.length)
        for index in range(0, log.length, 61):
            assert await log.get(index) == (b"block %d" % index if index < 9_999 else b"new")
        await log.aclose()

    run(promise())


@pytest.mark.parametrize("length", [1, 255, 256, 257, 511, 512, 513, 767, 1024, 1500, 2047, 2048])
def test_a_cut_leaves_nothing_of_the_other_history(length: int) -> None:
    async def promise() -> None:
        disk = Disk()
        await filled(disk, block_count=2048)
        log = await far_log(disk)
        if length < 2048:
            await log.truncate(length)
        await log.append([b"other"] * 700)
        await log.flush()
        check_crown(disk, log.length)
        await log.truncate(length)
        await log.flush()
        check_crown(disk, log.length)
        await log.append([b"third"] * 1300)
        await log.aclose()
        log = await far_log(disk)
        for index in range(log.length):
            assert await log.get(index) == (b"block %d" % index if index < length else b"third")
        await log.flush()
        check_crown(disk, log.length)
        await log.aclose()

    run(promise())


@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "zeros", "flipped", "of another log"])
def test_a_crown_that_is_wrong_costs_time_and_nothing_else(damage: str) -> None:
    async def promise() -> None:
        disk = Disk()
        await filled(disk, block_count=5000)
        crown = disk.contents["crown"]
        match damage:
            case "gone":
                del disk.contents["crown"]
            case "empty":
                crown.clear()
            case "cut":
                del crown[len(crown) // 2 :]
            case "zeros":
                crown[:] = bytes(len(crown))
            case "flipped":
                for place in range(0, len(crown), 13):
                    crown[place] ^= 1
            case _:
                other = Disk()
                await filled(other, block_count=5000, text=b"brick")
                disk.contents["crown"] = other.contents["crown"]
        log = await far_log(disk)
        assert not log.warnings
        for index in range(0, 5000, 7):
            assert await log.get(index) == b"block %d" % index, (damage, index)
        await log.append([b"more"] * 300)
        await log.aclose()
        log = await far_log(disk)
        assert log.length == 5300
        for index in range(0, 5300, 11):
            assert await log.get(index) == (b"block %d" % index if index < 5000 else b"more")
        await log.aclose()

    run(promise())


def test_a_random_history_of_a_far_log_is_what_a_list_says() -> None:
    async def promise(seed: int) -> None:
        random = Random(seed)
        disk = Disk()
        log = await far_log(disk)
        model = Model()
        for step in range(120):
            action = random_engine_action(random, model)
            if random.random() < 0.1 and model.length > 300:
                action = Truncate(random.randrange(model.length))
            elif random.random() < 0.2:
                action = Append(tuple(b"%d" % random.randrange(99) for _ in range(random.randrange(600))))
            await perform(log, action)
            model = model.after(action)
            if random.random() < 0.15:
                await log.aclose()
                log = await far_log(disk)
            if step % 10 == 0:
                assert not (found := difference(await view_of(log), model)), f"seed {seed}, step {step}: {found}"
        await log.flush()
        check_crown(disk, log.length)
        assert not (found := difference(await view_of(log), model)), f"seed {seed}: {found}"
        await log.aclose()

    for seed in range(6):
        run(promise(seed))

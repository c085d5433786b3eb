"""The node store: what counts of a tree file, what is trusted, and what a read meets that is overtaken."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from hypercore.crypto import BLAKE2B
from hypercore.log import flat_tree, tree
from hypercore.log.merkle import append_blocks
from hypercore.log.node_layout import NODE_SIZE
from hypercore.log.tree import NodeStore
from hypercore.log.tree_file import TreeFile
from hypercore.proofs import Node
from tests.log.logs import Disk, DiskFile, DiskStorage
from tests.running import run

BLOCKS = [b"%d" % index * (index % 7) for index in range(2000)]
ROOTS, CREATED = append_blocks((), 0, BLOCKS, BLAKE2B)
NODES = {node.index: node for node in CREATED}
OFFSETS = [sum(len(block) for block in BLOCKS[:index]) for index in range(len(BLOCKS))]


def file_of(nodes: dict[int, Node]) -> bytes:
    data = bytearray((max(nodes) + 1) * NODE_SIZE)
    for index, node in nodes.items():
        data[index * NODE_SIZE : (index + 1) * NODE_SIZE] = node.size.to_bytes(8, "little") + node.hash
    return bytes(data)


def store_on(storage: DiskStorage, *, overlay: dict[int, Node] | None = None, floor: int | None = None) -> NodeStore:
    size = len(storage.disk.contents.get("tree", b""))
    store = NodeStore(TreeFile(storage, size, overlay=overlay, floor=floor), BLAKE2B)
    store.set_roots(ROOTS, len(BLOCKS))
    return store


def test_every_node_is_found_with_its_byte_offset_wherever_it_lies() -> None:
    async def scenario() -> None:
        in_file = {index: node for index, node in NODES.items() if index % 3}
        in_log = {index: node for index, node in NODES.items() if not index % 3}
        store = store_on(Disk({"tree": file_of(in_file)}).storage(), overlay=in_log)
        for index, node in NODES.items():
            assert await store.locate(index) == (OFFSETS[flat_tree.left_span(index) // 2], node)
        assert await store.locate(2 * len(BLOCKS)) is None
        assert await store.nodes([0, 4001, 1023, 5]) == [NODES[0], None, NODES[1023], NODES[5]]

    run(scenario())


def test_one_look_reads_everything_that_it_needs_at_once() -> None:
    class Counting(DiskFile):
        async def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
            trips.append(len(ranges))
            return await super().read_many(ranges)

    class CountingStorage(DiskStorage):
        async def open(self, name: str, *, create: bool = False) -> DiskFile:
            return Counting(self, name)

    trips: list[int] = []

    async def scenario() -> None:
        store = store_on(CountingStorage(Disk({"tree": file_of(NODES)})))
        assert await store.locate(1234) is not None
        assert len(trips) == 1
        assert await store.nodes([40, 700, 2000]) == [NODES[40], NODES[700], NODES[2000]]
        assert len(trips) == 2

    run(scenario())


def test_a_damaged_node_on_the_way_up_is_made_anew_and_served_right() -> None:
    async def scenario() -> None:
        files = {"tree": file_of(NODES | {5: Node(5, 3, bytes(32)), 1023: Node(1023, 1, b"x" * 32)})}
        store = store_on(Disk(files).storage())
        assert await store.locate(4) == (OFFSETS[2], NODES[4])
        assert await store.nodes([5, 1023]) == [NODES[5], NODES[1023]]

    run(scenario())


def test_a_damaged_sibling_is_not_passed_over() -> None:
    async def scenario() -> None:
        for wrong in (
            Node(6, NODES[6].size, bytes(32)),
            Node(6, NODES[6].size + 1, NODES[6].hash),
            Node(6, 2**64 - 1, b"x" * 32),
        ):
            store = store_on(Disk({"tree": file_of(NODES | {6: wrong})}).storage())
            assert await store.locate(4) is None
            assert await store.locate(6) is None
            assert await store.locate(8) == (OFFSETS[4], NODES[8])

    run(scenario())


def test_what_a_cut_left_in_the_file_does_not_count() -> None:
    async def scenario() -> None:
        store = store_on(Disk({"tree": file_of(NODES)}).storage(), floor=1000)
        roots, _ = append_blocks((), 0, BLOCKS[:1000], BLAKE2B)
        store.set_roots(roots, 1000)
        for index in (0, 999, 1998, 511, 1279):
            assert await store.locate(index) == (OFFSETS[flat_tree.left_span(index) // 2], NODES[index])
        assert await store.file.stored([1998, 2000, 1023, 2047]) == [NODES[1998], None, None, None]

    run(scenario())


def test_a_node_that_the_log_calls_blank_is_absent() -> None:
    async def scenario() -> None:
        disk = Disk({"tree": file_of(NODES)})
        file = TreeFile(disk.storage(), len(disk.contents["tree"]), blanks=frozenset({4, 2000}))
        store = NodeStore(file, BLAKE2B)
        store.set_roots(ROOTS, len(BLOCKS))
        assert await file.stored([4, 6]) == [None, NODES[6]]
        assert await store.nodes([4, 6, 8, 2000]) == [None, None, NODES[8], None]

    run(scenario())


class OvertakenStorage(DiskStorage):
    """Reads of the tree file wait, with the bytes of before in their hands."""

    def __init__(self, disk: Disk) -> None:
        super().__init__(disk)
        self.gate = asyncio.Event()
        self.gate.set()

    async def open(self, name: str, *, create: bool = False) -> DiskFile:
        await super().open(name, create=create)
        return OvertakenFile(self, name)


class OvertakenFile(DiskFile):
    async def read(self, offset: int, size: int) -> bytes:
        data = await super().read(offset, size)
        assert isinstance(self.storage, OvertakenStorage)
        await self.storage.gate.wait()
        return data


def test_a_read_that_a_checkpoint_overtakes_is_read_again() -> None:
    async def scenario() -> None:
        disk = Disk({"tree": bytes(len(NODES) * NODE_SIZE)})
        storage = OvertakenStorage(disk)
        store = store_on(storage, overlay=dict(NODES))
        storage.gate.clear()
        looking = asyncio.create_task(store.locate(1234))
        raw = asyncio.create_task(store.file.stored([4001]))
        await asyncio.sleep(0)
        # The checkpoint takes the nodes out of memory; what was read before does not have them.
        runs = store.file.unwritten_runs()
        for offset, data in runs:
            disk.contents["tree"].extend(bytes(max(0, offset + len(data) - len(disk.contents["tree"]))))
            disk.contents["tree"][offset : offset + len(data)] = data
        store.file.was_written(runs)
        storage.gate.set()
        assert await looking == (OFFSETS[617], NODES[1234])
        assert await raw == [None]

    run(scenario())


def test_a_read_that_a_cut_overtakes_brings_back_nothing_of_the_other_fork() -> None:
    async def scenario() -> None:
        storage = OvertakenStorage(Disk({"tree": file_of(NODES)}))
        store = store_on(storage)
        storage.gate.clear()
        looking = asyncio.create_task(store.locate(1234))
        await asyncio.sleep(0)
        other = [b"other %d" % index for index in range(2000)]
        roots, created = append_blocks((), 0, other, BLAKE2B)
        store.cut(0)
        store.add(created)
        store.set_roots(roots, 2000)
        storage.gate.set()
        placed = await looking
        assert placed is not None
        assert placed[1] in created

    run(scenario())


def test_memory_stays_bounded_and_answers_stay_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "MAX_PAGES", 16)
    monkeypatch.setattr(tree, "MAX_UPPER", 16)

    async def scenario() -> None:
        roots, created = append_blocks((), 0, [b"x"] * 20_000, BLAKE2B)
        nodes = {node.index: node for node in created}
        data = file_of(nodes)
        store = NodeStore(TreeFile(Disk({"tree": data}).storage(), len(data)), BLAKE2B)
        store.set_roots(roots, 20_000)
        for index in (*range(0, 40_000, 97), *range(39_998, 0, -97), 16383, 255):
            assert await store.locate(index) == (flat_tree.left_span(index) // 2, nodes[index])
            assert len(store._pages) <= 16
            assert len(store._upper) <= 40
        # More pages are wanted at once than may stay.
        indexes = list(range(0, 40_000, 500))
        assert await store.nodes(indexes) == [nodes[index] for index in indexes]

    run(scenario())


def test_steps_to_what_is_stored_are_counted_and_a_node_that_was_not_checked_is_looked_at() -> None:
    async def scenario() -> None:
        path = {index: NODES[index] for index in (0, 2, 5, 11, 23, 47, 95, 191, 383, 767, 1535)}
        upper = {index: NODES[index] for index in NODES if ~index & (index + 1) >= 256}
        store = store_on(Disk({"tree": file_of(NODES)}).storage(), overlay={})
        assert store.missing_steps(8) is None
        assert await store.locate(0) is not None
        assert store.missing_steps(2) == 0
        # Stored, but nobody has checked it yet: that takes a closer look.
        assert store.missing_steps(40) is None
        sparse = store_on(Disk({"tree": file_of(path | upper)}).storage())
        assert await sparse.locate(0) is not None
        assert [sparse.missing_steps(index) for index in (0, 2, 4, 6, 8, 20, 100)] == [0, 0, 1, 1, 2, 3, 5]

    run(scenario())


def test_a_graft_needs_a_checked_node_at_its_end() -> None:
    async def scenario() -> None:
        path = {index: NODES[index] for index in (0, 2, 5, 11, 23, 47, 95, 191, 383, 767, 1535)}
        upper = {index: NODES[index] for index in NODES if ~index & (index + 1) >= 256}
        store = store_on(Disk({"tree": file_of(path | upper)}).storage())
        assert store.graft(NODES[12], [NODES[14], NODES[9]]) is None, "the page is not in memory"
        await store.locate(0)
        assert store.graft(NODES[12], [NODES[14]]) is None
        assert store.graft(NODES[12], [NODES[14], NODES[13]]) is None
        assert store.graft(NODES[12]._replace(hash=bytes(32)), [NODES[14], NODES[9]]) is None
        assert store.graft(NODES[12], [NODES[14], NODES[9]._replace(size=NODES[9].size + 1)]) is None
        assert store.graft(NODES[12], [NODES[14], NODES[9], *[NODES[3]] * 20]) is None, "out of the tree"
        assert store.file.overlay == {}
        grafted = store.graft(NODES[12], [NODES[14], NODES[9], NODES[3]])
        assert grafted is not None
        offset, new = grafted
        assert offset == OFFSETS[6]
        assert set(new) == {NODES[12], NODES[14], NODES[13], NODES[9]}
        assert await store.nodes([9, 12, 13, 14]) == [NODES[9], NODES[12], NODES[13], NODES[14]]
        # Its neighbour needs no proof any more.
        assert store.graft(NODES[14], []) == (OFFSETS[7], [])

    run(scenario())

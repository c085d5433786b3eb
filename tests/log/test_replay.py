"""A header and its entries add up to one state: the one that the writer had acknowledged."""

from __future__ import annotations

from typing import Any

import pytest

from hypercore.bitfield import PAGE_SIZE, Bitfield
from hypercore.crypto import BLAKE2B
from hypercore.errors import CorruptError
from hypercore.log.flat_tree import full_roots
from hypercore.log.oplog import BitRange, Entry, Header, ReorgHint, Replayed, TreeUpgrade, replay
from hypercore.proofs import Node
from tests import disk_vectors
from tests.disk_vectors import Files
from tests.log.oplogs import KEY, replay_files

HASH = b"h" * 32
#: Both without an expectation: no header is left, and a leaf is gone from the tree file.
OPENABLE = [name for name in disk_vectors.NAMES if name not in ("both-slots-corrupt", "lost-leaf")]
#: Vectors whose tree file was damaged on purpose: their roots are not for the log to know.
DAMAGED_TREES = {"flipped-root"}


def _root(replayed: Replayed, tree: bytes, index: int) -> Node:
    """A tree node: from the log, or else from the tree file as far as that counts."""
    if index in replayed.nodes:
        return replayed.nodes[index]
    assert index not in replayed.blanks
    assert replayed.counts_in_file(index), f"node {index}"
    raw = tree[40 * index : 40 * index + 40]
    return Node(index, int.from_bytes(raw[:8], "little"), raw[8:])


def _tree_hash(replayed: Replayed, files: Files) -> str:
    tree = files.get("tree", b"")
    return BLAKE2B.tree([_root(replayed, tree, index) for index in full_roots(replayed.length)]).hex()


def _bitfield(replayed: Replayed, files: Files) -> Bitfield:
    bitfield, data = Bitfield(), files.get("bitfield", b"")
    for number in range((len(data) + PAGE_SIZE - 1) // PAGE_SIZE):
        bitfield.load_page(number, data[number * PAGE_SIZE : (number + 1) * PAGE_SIZE])
    for bits in replayed.ranges:
        bitfield.set_range(bits.start, bits.length, not bits.drop)
    return bitfield


def _state(replayed: Replayed, files: Files) -> dict[str, Any]:
    return {
        "fork": replayed.fork,
        "length": replayed.length,
        "treeHash": _tree_hash(replayed, files),
        "signature": replayed.signature.hex() or None,
        "have": [list(run) for run in _bitfield(replayed, files).runs()],
    }


# ---- what hypercore 10 wrote ------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPENABLE)
def test_every_vector_replays_to_what_a_careful_reader_must_find(name: str) -> None:
    files, vector = disk_vectors.files(name), disk_vectors.load(name)
    _image, replayed = replay_files(files)
    robust = vector.get("robust")
    expected = vector.get("expect", {}) | (robust if isinstance(robust, dict) else {})
    state = _state(replayed, files)
    if name in DAMAGED_TREES:
        del state["treeHash"]
    if name == "crash-reorg":
        del state["signature"]  # of the tree that Node did not find
    assert state == {key: expected[key] for key in state if key in expected}
    assert {"fork", "length"} <= expected.keys()


@pytest.mark.parametrize("name", [name for name in OPENABLE if "expect" in disk_vectors.load(name)])
def test_user_data_hints_and_contiguous_length_of_every_vector_are_right(name: str) -> None:
    files, vector = disk_vectors.files(name), disk_vectors.load(name)
    _image, replayed = replay_files(files)
    expected = vector["expect"]
    pairs = {pair["key"]: bytes.fromhex(pair["value"]) for pair in expected["userData"] if pair["value"]}
    assert list(replayed.user_data.items()) == list(pairs.items())
    hints = [{"from": hint.from_fork, "to": hint.to_fork, "ancestors": hint.ancestors} for hint in replayed.reorg_hints]
    assert hints == expected["reorgs"]
    contiguous = _bitfield(replayed, files).first_unset(0, replayed.length)
    assert (replayed.length if contiguous is None else contiguous) == vector["trueContiguousLength"]


@pytest.mark.parametrize("number", range(len(disk_vectors.crash_scenarios())))
def test_every_crash_recovers_to_the_state_before_or_after(number: int) -> None:
    scenario = disk_vectors.crash_scenarios()[number]
    for state in disk_vectors.crash_states(scenario):
        _image, replayed = replay_files(state.files)
        seen = _state(replayed, state.files)
        expected = [{key: side[key] for key in seen} for side in state.expected]
        if scenario["commitAfter"] is None and seen not in expected:
            # Two entries: after the first one, the upgrade is there and its block is not.
            between = expected[1] | {"have": expected[0]["have"]}
            assert seen == between, state.name
        else:
            assert seen in expected, state.name
        for key, value in replayed.user_data.items():
            values = [pair["value"] for side in state.expected for pair in side["userData"] if pair["key"] == key]
            assert value.hex() in values or f"{len(value)} bytes" in values, state.name


# ---- the tree -------------------------------------------------------------------------------------


def _upgrade(length: int, *, ancestors: int, fork: int = 0) -> TreeUpgrade:
    return TreeUpgrade(fork, ancestors, length, b"s" * 64)


def _leaf(block: int, size: int = 1) -> Node:
    return Node(2 * block, size, HASH)


def test_without_entries_the_state_is_the_headers() -> None:
    header = Header(
        key=KEY,
        user_data=(("a", b"1"), ("b", b""), ("a", b"2"), ("b", b"3")),
        fork=2,
        length=5,
        root_hash=HASH,
        signature=b"s",
        reorg_hints=(ReorgHint(0, 2, 3),),
    )
    replayed = replay(header, ())
    assert replayed.user_data == {"a": b"1"}, "the first pair of a key counts, and an empty value is none"
    assert (replayed.fork, replayed.length, replayed.signature) == (2, 5, b"s")
    assert (replayed.root_hash, replayed.reorg_hints) == (HASH, header.reorg_hints)
    assert (replayed.nodes, replayed.blanks, replayed.ranges) == ({}, frozenset(), ())
    assert not replayed.was_cut
    assert replayed.counts_in_file(10**6)


def test_user_data_is_replaced_in_place_added_at_the_end_and_removed() -> None:
    header = Header(key=KEY, user_data=(("a", b"1"), ("b", b"2"), ("c", b"3")))
    changes = [("b", b"4"), ("d", b"5"), ("a", None), ("none", None)]
    replayed = replay(header, [Entry(user_data=change) for change in changes])
    assert list(replayed.user_data.items()) == [("b", b"4"), ("c", b"3"), ("d", b"5")]
    assert replayed.root_hash == b"", "the tree is still the header's"


def test_nodes_come_after_the_cut_of_their_own_entry() -> None:
    header = Header(key=KEY, length=2)
    entries = [
        Entry(nodes=(_leaf(2), _leaf(3)), upgrade=_upgrade(4, ancestors=2)),
        Entry(nodes=(_leaf(1, 9), _leaf(2, 9)), upgrade=_upgrade(3, ancestors=1, fork=1)),
    ]
    replayed = replay(header, entries)
    assert replayed.nodes == {2: _leaf(1, 9), 4: _leaf(2, 9)}, "and the leaf of block 3 is gone"
    assert (replayed.fork, replayed.length, replayed.floor, replayed.was_cut) == (1, 3, 1, True)
    assert replayed.root_hash is None


def test_nodes_that_reach_over_a_cut_are_dropped_and_those_below_stay() -> None:
    nodes = (_leaf(0), _leaf(1), Node(1, 2, HASH), _leaf(2), _leaf(3), Node(5, 2, HASH), Node(3, 4, HASH))
    entries = [
        Entry(nodes=nodes, upgrade=_upgrade(4, ancestors=0)),
        Entry(upgrade=_upgrade(3, ancestors=3, fork=1), bits=BitRange(True, 3, 1), empty_nodes=True),
    ]
    assert sorted(replay(Header(key=KEY), entries).nodes) == [0, 1, 2, 4]


def test_nodes_of_the_tree_file_count_below_the_deepest_cut_only() -> None:
    entries = [
        Entry(upgrade=_upgrade(3, ancestors=3, fork=1)),
        Entry(nodes=(_leaf(3), _leaf(4)), upgrade=_upgrade(5, ancestors=3, fork=1)),
        Entry(upgrade=_upgrade(4, ancestors=4, fork=2)),
    ]
    replayed = replay(Header(key=KEY, length=8), entries)
    assert replayed.floor == 3
    assert [index for index in range(16) if replayed.counts_in_file(index)] == [0, 1, 2, 4]
    assert sorted(replayed.nodes) == [6]


def test_a_blank_hides_the_node_in_the_tree_file_until_a_new_one_comes() -> None:
    blank = Node(2, 0, bytes(32))
    header = Header(key=KEY, length=4)
    replayed = replay(header, [Entry(nodes=(_leaf(1), blank)), Entry(nodes=(_leaf(0), Node(4, 0, HASH)))])
    assert sorted(replayed.nodes) == [0, 4]
    assert replayed.blanks == {2}
    replayed = replay(header, [Entry(nodes=(blank,)), Entry(nodes=(_leaf(1),))])
    assert sorted(replayed.nodes) == [2]
    assert not replayed.blanks


def test_many_cuts_cost_no_more_than_their_entries() -> None:
    count = 4000
    grown = Entry(nodes=tuple(_leaf(block) for block in range(count)), upgrade=_upgrade(count, ancestors=0))
    shrinking = [Entry(upgrade=_upgrade(length, ancestors=length)) for length in range(count - 1, 0, -1)]
    replayed = replay(Header(key=KEY), [grown, *shrinking])
    assert (sorted(replayed.nodes), replayed.length, replayed.floor) == ([0], 1, 1)


def test_a_new_fork_of_a_tree_with_blocks_leaves_a_hint() -> None:
    entries = [
        Entry(upgrade=_upgrade(0, ancestors=0, fork=1)),
        Entry(nodes=(_leaf(0), _leaf(1)), upgrade=_upgrade(2, ancestors=0, fork=1)),
        Entry(upgrade=_upgrade(1, ancestors=1, fork=4)),
    ]
    assert replay(Header(key=KEY), entries).reorg_hints == (ReorgHint(1, 4, 1),)


def test_bit_ranges_come_in_the_order_they_were_logged() -> None:
    ranges = (BitRange(True, 0, 3), BitRange(False, 1, 1), BitRange(True, 2**40, 2**50))
    entries = [Entry(bits=ranges[0]), Entry(nodes=(_leaf(1),), bits=ranges[1]), Entry(bits=ranges[2])]
    assert replay(Header(key=KEY, length=3), entries).ranges == ranges


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (Entry(upgrade=_upgrade(9, ancestors=6)), "6 ancestors"),
        (Entry(upgrade=_upgrade(3, ancestors=4)), "4 ancestors, going from 5 to 3"),
        (Entry(nodes=(Node(10, 1, HASH),)), "tree node 10 in a log of 5"),
        (Entry(nodes=(Node(2**40, 1, HASH),), upgrade=_upgrade(6, ancestors=5)), "in a log of 6"),
        (Entry(bits=BitRange(False, 0, 1)), "1 blocks arrive with 0 leaves"),
        (Entry(nodes=(_leaf(0), Node(1, 2, HASH)), bits=BitRange(False, 0, 2)), "2 blocks arrive with 1 leaves"),
        (Entry(nodes=(_leaf(0),), bits=BitRange(False, 5, 2**50)), "blocks arrive with 1 leaves"),
    ],
)
def test_an_entry_that_contradicts_the_log_is_refused_by_name_and_place(entry: Entry, message: str) -> None:
    harmless = Entry(user_data=("a", b"1"))
    with pytest.raises(CorruptError, match=message) as caught:
        replay(Header(key=KEY, length=5), [harmless, entry], [8192, 8205])
    assert (caught.value.file, caught.value.offset) == ("oplog", 8205)
    assert "byte 8205" in str(caught.value)


def test_blocks_above_the_length_may_wait_for_a_signature() -> None:
    pending = Entry(nodes=(_leaf(5), _leaf(6)), bits=BitRange(False, 5, 2))
    signing = Entry(upgrade=_upgrade(7, ancestors=5), bits=BitRange(False, 5, 0), empty_nodes=True)
    header = Header(key=KEY, length=5)
    assert replay(header, [pending]).length == 5
    assert sorted(replay(header, [pending, signing]).nodes) == [10, 12]

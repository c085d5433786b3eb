"""The numbering of the tree."""

from __future__ import annotations

import random

from hypercore.log import flat_tree
from tests.log.trees import vectors

FLAT_TREE = vectors("merkle")["flatTree"]


def test_full_roots_agree_with_node_for_every_recorded_length() -> None:
    for length, roots in FLAT_TREE["fullRoots"].items():
        assert flat_tree.full_roots(int(length)) == roots


def test_every_recorded_node_has_its_relations() -> None:
    for node in FLAT_TREE["nodes"]:
        index = node["index"]
        assert flat_tree.depth(index) == node["depth"]
        assert flat_tree.offset(index) == node["offset"]
        assert flat_tree.node_index(node["depth"], node["offset"]) == index
        assert flat_tree.parent(index) == node["parent"]
        assert flat_tree.sibling(index) == node["sibling"]
        assert flat_tree.left_span(index) == node["leftSpan"]
        assert flat_tree.right_span(index) == node["rightSpan"]
        assert flat_tree.children(index) == (tuple(node["children"]) if node["children"] else None)


def test_growth_covers_the_new_blocks_once_and_in_order() -> None:
    seed = 20240611
    rng = random.Random(seed)
    for _ in range(500):
        start = rng.randrange(1 << rng.randrange(1, 40))
        end = start + rng.randrange(1 << rng.randrange(1, 40))
        position = 2 * start
        for index in flat_tree.growth(start, end):
            assert flat_tree.left_span(index) == position, (seed, start, end)
            position += 2 * flat_tree.leaf_count(index)
        assert position == 2 * end, (seed, start, end)
        assert len(flat_tree.growth(start, end)) <= 2 * 41, (seed, start, end)


def test_growth_completes_the_subtrees_that_the_start_left_open() -> None:
    assert flat_tree.growth(1, 13) == [2, 5, 11, 19, 24]
    assert flat_tree.growth(5, 7) == [10, 12]
    assert flat_tree.growth(6, 8) == [13]
    assert flat_tree.growth(7, 7) == []


def test_a_path_is_the_siblings_from_a_node_to_its_ancestor() -> None:
    assert flat_tree.path(6, 3) == [4, 1]
    assert flat_tree.path(3, 3) == []
    assert flat_tree.path(9, 7) == [13, 3]


def test_an_ancestor_is_reached_by_parents() -> None:
    for index in range(64):
        node = index
        for steps in range(8):
            assert flat_tree.ancestor(index, steps) == node
            node = flat_tree.parent(node)


def test_a_node_contains_its_span_and_nothing_else() -> None:
    for index in range(64):
        inside = {other for other in range(256) if flat_tree.contains(index, other)}
        assert inside == set(range(flat_tree.left_span(index), flat_tree.right_span(index) + 1))
        assert flat_tree.leaf_count(index) == sum(1 for other in inside if other % 2 == 0)

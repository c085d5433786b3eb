"""Flat-tree numbers: a binary tree laid out in one line (wire spec, section 6.1; disk spec, section 6.1).

Pure arithmetic. Block i is leaf 2i; a node's depth is the count of its trailing one bits. All functions take and
give node numbers ("tree index") unless they say blocks.
"""

from __future__ import annotations


def depth(index: int) -> int:
    """Levels above the leaves; a leaf has depth 0."""
    return (~index & (index + 1)).bit_length() - 1


def offset(index: int) -> int:
    """Place of the node among the nodes of its depth, from the left."""
    return index >> (depth(index) + 1)


def node_index(depth: int, offset: int) -> int:
    """The node at `depth` that is `offset`-th from the left."""
    return ((2 * offset + 1) << depth) - 1


def parent(index: int) -> int:
    bit = ~index & (index + 1)  # 2^depth
    return index - bit if index & (bit << 1) else index + bit


def ancestor(index: int, steps: int) -> int:
    """The node `steps` levels above."""
    level = depth(index)
    return node_index(level + steps, index >> (level + steps + 1))


def sibling(index: int) -> int:
    bit = (~index & (index + 1)) << 1
    return index - bit if index & bit else index + bit


def children(index: int) -> tuple[int, int] | None:
    """Left and right child, or None for a leaf."""
    bit = ~index & (index + 1)
    if bit == 1:
        return None
    half = bit >> 1
    return index - half, index + half


def left_span(index: int) -> int:
    """The leftmost leaf below."""
    return index - (~index & (index + 1)) + 1


def right_span(index: int) -> int:
    """The rightmost leaf below."""
    return index + (~index & (index + 1)) - 1


def contains(index: int, other: int) -> bool:
    """Whether node `other` lies in the subtree of `index` (a node contains itself)."""
    reach = (~index & (index + 1)) - 1
    return index - reach <= other <= index + reach


def leaf_count(index: int) -> int:
    """Blocks below the node."""
    return ~index & (index + 1)


def full_roots(length: int) -> list[int]:
    """The roots of a tree of `length` blocks, from the left."""
    return growth(0, length)


def growth(start: int, end: int) -> list[int]:
    """The subtrees, from the left, that take a tree of `start` blocks to `end` blocks.

    Each is as large as its place allows: the nodes of an upgrade proof. From 0 they are the full roots.
    """
    indexes = []
    while start < end:
        size = 1 << ((end - start).bit_length() - 1)
        if start:
            size = min(size, start & -start)
        indexes.append(2 * start + size - 1)
        start += size
    return indexes


def astride(length: int) -> list[int]:
    """The nodes that reach across the end of `length` blocks although they lie before it in the line."""
    end = 2 * length
    indexes = []
    index = end - 2
    while end and offset(index):
        index = parent(index)
        if index < end <= right_span(index):
            indexes.append(index)
    return indexes


def path(index: int, top: int) -> list[int]:
    """The siblings that lead from node `index` up to its ancestor `top`, lowest first."""
    siblings = []
    bit = ~index & (index + 1)  # 2^depth, kept up to date on the way
    while index != top:
        if index & (bit << 1):
            siblings.append(index - (bit << 1))
            index -= bit
        else:
            siblings.append(index + (bit << 1))
            index += bit
        bit <<= 1
    return siblings


def path_with_siblings(index: int, top: int) -> list[int]:
    """The nodes on the way from `index` up to its ancestor `top`, each with its sibling; `top` is left out."""
    return [node for beside in path(index, top) for node in (sibling(beside), beside)]

"""Proving: the answer that a server gives to a request (wire spec, sections 5.5, 5.6 and 6.6).

Pure. Knows which nodes lead a reader from what it has to what it asks for, and a `NodeSource` that looks them up; not
how the reader verifies them, nor who asks.
"""

from __future__ import annotations

from itertools import islice
from typing import NamedTuple

from hypercore.errors import ProofRequestError
from hypercore.log import flat_tree
from hypercore.log.merkle import NodeSource
from hypercore.log.seek import byte_offset, held_nodes, seek_target, unpadded_size
from hypercore.proofs import (
    BlockProof,
    HashProof,
    Proof,
    ProofRequest,
    SeekProof,
    SeekRequest,
    UpgradeProof,
    UpgradeRequest,
)


async def build_proof(
    source: NodeSource,
    request: ProofRequest,
    *,
    length: int,
    fork: int,
    signature: bytes,
    block: bytes | None = None,
    prologue_length: int = 0,
    manifest: bytes | None = None,
) -> Proof:
    """The answer to `request` from a tree of `length` blocks, signed with `signature`.

    `block` is the value of the block that is asked for; `manifest` is the encoded manifest, None for a compat core.
    An upgrade that starts inside the prologue is answered from 0 to the prologue's end. Costs one look-up, and one
    for each level that a seek descends. Wire spec, section 6.6.

    Raises `ProofRequestError` for bounds and contradictions, and its subclass `ProofNotHeldError` when the request
    is sound but nodes are missing here.
    """
    if request.fork != fork:
        raise ProofRequestError(f"a proof on fork {request.fork} is asked for, this tree has fork {fork}")
    wanted = request.block
    if wanted is not None and block is None:
        raise ProofRequestError(f"block {wanted.index} is asked for and its value is not here")
    if not request.manifest:
        manifest = None
    if not length:
        return Proof(fork, manifest=manifest)
    if wanted is not None and block is not None and request.upgrade is None and request.seek is None:
        nodes = await held_nodes(source, _climb_indexes(2 * wanted.index, wanted.nodes, 2 * length))
        return Proof(fork, BlockProof(wanted.index, block, nodes), None, None, None, manifest)

    plan = await _plan(source, request, length, prologue_length)
    found = iter(await held_nodes(source, [index for indexes in plan.lists for index in indexes]))
    path, seek_nodes, upgrade_nodes, additional = (tuple(islice(found, len(indexes))) for indexes in plan.lists)
    return Proof(
        fork,
        block=BlockProof(wanted.index, block, path) if wanted is not None and block is not None else None,
        hash=HashProof(request.hash.index, path) if wanted is None and request.hash is not None else None,
        seek=SeekProof(request.seek.byte_offset, seek_nodes) if request.seek is not None and seek_nodes else None,
        upgrade=plan.upgrade and UpgradeProof(*plan.upgrade, upgrade_nodes, additional, signature),
        manifest=manifest,
    )


class _Plan(NamedTuple):
    """The indexes to look up: of the block or hash part, the seek part, the upgrade's nodes, its additional nodes."""

    lists: tuple[list[int], list[int], list[int], list[int]]
    upgrade: UpgradeRequest | None


async def _plan(source: NodeSource, request: ProofRequest, length: int, prologue_length: int) -> _Plan:
    first: int | None = None
    steps = 0
    if request.block is not None:
        first, steps = 2 * request.block.index, request.block.nodes
    elif request.hash is not None:
        first, steps = request.hash
    start, end = _upgrade_span(request.upgrade, length, prologue_length)
    path: list[int] = []
    seek_path: list[int] = []
    target: int | None = None  # The node whose path runs into the upgrade's nodes.
    if first is not None and (request.upgrade is None or flat_tree.right_span(first) < 2 * start):
        path = _climb_indexes(first, steps, 2 * end)
        if request.seek is not None:
            top = flat_tree.ancestor(first, steps)
            sought = await _target_below(source, request.seek, top, length)
            path, seek_path = _detour(path, sought)
    elif first is not None:
        if flat_tree.left_span(first) < 2 * start or flat_tree.right_span(first) >= 2 * end:
            raise ProofRequestError(f"tree node {first} is not inside the upgrade from {start} to {end}")
        if request.seek is not None:
            raise ProofRequestError("a block or hash in the new part and a seek cannot be proved together")
        target = first
    elif request.seek is not None and request.upgrade is not None:
        target = await _target_in_tree(source, request.seek, end)

    upgrade_nodes: list[int] = []
    for index in flat_tree.growth(start, end) if request.upgrade is not None else ():
        if target is None or not flat_tree.contains(index, target):
            upgrade_nodes.append(index)
        elif first is None:
            seek_path = [target, *flat_tree.path(target, index)]
        else:
            path = flat_tree.path(target, index)
    if request.block is None and first is not None:
        path = [first, *path]
    if request.upgrade is None:
        return _Plan((path, seek_path, [], []), None)
    additional = flat_tree.growth(end, length)
    return _Plan((path, seek_path, upgrade_nodes, additional), UpgradeRequest(start, end - start))


def _upgrade_span(upgrade: UpgradeRequest | None, length: int, prologue_length: int) -> tuple[int, int]:
    """The first block and the end of the part that the proof is about."""
    if upgrade is None:
        return 0, length
    start, end = upgrade.start, upgrade.start + upgrade.length
    if start < prologue_length:
        start, end = 0, prologue_length
    if not start < end <= length:
        raise ProofRequestError(f"an upgrade from {start} to {end} is asked for, the tree has {length} blocks")
    return start, end


def _climb_indexes(index: int, steps: int, head: int) -> list[int]:
    """The siblings on `steps` steps up from node `index`, none of which may reach leaf `head`."""
    # No tree is higher than its length has bits, so a hostile count never becomes a huge number.
    if steps <= head.bit_length():
        top = flat_tree.ancestor(index, steps)
        if flat_tree.right_span(top) < head:
            return flat_tree.path(index, top)
    raise ProofRequestError(f"{steps} steps up from tree node {index} reach outside of {head // 2} blocks")


def _detour(path: list[int], sought: int) -> tuple[list[int], list[int]]:
    """Leave out the sibling that the reader can compute from the node sought for, and show the way from there."""
    for sibling in path:
        if sibling != sought and flat_tree.contains(sibling, sought):
            return [index for index in path if index != sibling], [sought, *flat_tree.path(sought, sibling)]
    return path, []


async def _target_below(source: NodeSource, seek: SeekRequest, top: int, length: int) -> int:
    """The node that holds the byte offset; it must lie below `top`."""
    roots = await held_nodes(source, flat_tree.full_roots(length))
    (node,) = await held_nodes(source, [top])
    blocks_before = flat_tree.left_span(top) >> 1
    start = await byte_offset(source, roots, top) - seek.padding * blocks_before
    if not start <= seek.byte_offset < start + unpadded_size(node, seek.padding):
        raise ProofRequestError(f"byte offset {seek.byte_offset} is not below tree node {top}")
    return await seek_target(source, top, seek.byte_offset - start, seek.padding)


async def _target_in_tree(source: NodeSource, seek: SeekRequest, end: int) -> int | None:
    """The node that holds the byte offset in the tree of `end` blocks; None past its end."""
    left = seek.byte_offset
    for root in await held_nodes(source, flat_tree.full_roots(end)):
        size = unpadded_size(root, seek.padding)
        if left == size:
            return root.index
        if left < size:
            return await seek_target(source, root.index, left, seek.padding)
        left -= size
    return None

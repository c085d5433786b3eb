"""From a header and the entries behind it to the state that they add up to (disk spec, section 4.2).

Pure. Reads no tree node: it says which nodes the log has, and which nodes of the tree file count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hypercore.crypto import HASH_SIZE
from hypercore.errors import CorruptError
from hypercore.log.entry import BitRange, Entry
from hypercore.log.flat_tree import right_span
from hypercore.log.header import Header, ReorgHint, add_reorg_hint
from hypercore.proofs import Node

_BLANK_HASH: Final = bytes(HASH_SIZE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """The state of a log after its entries.

    A node is looked up in `nodes`, then is absent if its index is in `blanks`, then in the tree file, where it counts
    only if its whole subtree lies below `floor` blocks (None: no cut happened, all count). `ranges` are to be applied
    to the bitfield in order; a drop may reach further than the bitfield. `root_hash` is the header's, and None when
    an entry changed the tree since.
    """

    user_data: dict[str, bytes]
    nodes: dict[int, Node]
    blanks: frozenset[int]
    floor: int | None
    fork: int
    length: int
    signature: bytes
    root_hash: bytes | None
    ranges: tuple[BitRange, ...]
    reorg_hints: tuple[ReorgHint, ...]

    @property
    def was_cut(self) -> bool:
        """Whether the log holds a truncation or reorg, so that it should be flushed before the next mutation."""
        return self.floor is not None

    def counts_in_file(self, index: int) -> bool:
        """Whether tree node `index` may be taken from the tree file."""
        return self.floor is None or right_span(index) < 2 * self.floor


def replay(header: Header, entries: Sequence[Entry], offsets: Sequence[int] = ()) -> Replayed:
    """Apply the entries in order. `offsets` are their byte offsets in file `oplog`, for messages.

    Raises `CorruptError` naming file and offset for an entry that contradicts the log (section 9).
    """
    user_data: dict[str, bytes] = {}
    for key, value in header.user_data:
        user_data.setdefault(key, value)
    # An empty value in a header was stored by mistake and says "absent".
    user_data = {key: value for key, value in user_data.items() if value}
    fork, length, signature = header.fork, header.length, header.signature
    root_hash: bytes | None = header.root_hash
    hints = header.reorg_hints
    cuts: list[int | None] = []
    for number, entry in enumerate(entries):
        problem = _contradiction(entry, length)
        if problem:
            offset = offsets[number] if number < len(offsets) else None
            where = "" if offset is None else f" at byte {offset}"
            raise CorruptError(f"entry {number}{where} of file oplog: {problem}", file="oplog", offset=offset)
        if entry.user_data is not None:
            key, new_value = entry.user_data
            if new_value is None:
                user_data.pop(key, None)
            else:
                user_data[key] = new_value
        upgrade = entry.upgrade
        cuts.append(upgrade.ancestors if upgrade is not None and upgrade.ancestors < length else None)
        if upgrade is not None:
            if upgrade.fork != fork and length > 0:
                hints = add_reorg_hint(hints, from_fork=fork, to_fork=upgrade.fork, ancestors=upgrade.ancestors)
            fork, length, signature = upgrade.fork, upgrade.length, upgrade.signature
            root_hash = None
    nodes, blanks = _overlay(entries, cuts)
    return Replayed(
        user_data=user_data,
        nodes=nodes,
        blanks=blanks,
        floor=min((cut for cut in cuts if cut is not None), default=None),
        fork=fork,
        length=length,
        signature=signature,
        root_hash=root_hash,
        ranges=tuple(entry.bits for entry in entries if entry.bits is not None),
        reorg_hints=hints,
    )


def _contradiction(entry: Entry, length: int) -> str | None:
    """What is impossible about an entry that follows a tree of `length` blocks (section 9), if anything."""
    reach = length
    if entry.upgrade is not None:
        _fork, ancestors, new_length, _signature = entry.upgrade
        if not ancestors <= min(length, new_length):
            return f"{ancestors} ancestors, going from {length} to {new_length} blocks"
        reach = max(reach, new_length)
    if entry.bits is not None and not entry.bits.drop:
        leaf_count = sum(1 for node in entry.nodes if not node.index & 1)
        if entry.bits.length > leaf_count:
            return f"{entry.bits.length} blocks arrive with {leaf_count} leaves"
        reach = max(reach, entry.bits.start + entry.bits.length)
    highest = max((node.index for node in entry.nodes), default=0)
    if entry.nodes and highest >= 2 * reach:
        return f"tree node {highest} in a log of {reach} blocks"
    return None


def _overlay(entries: Sequence[Entry], cuts: Sequence[int | None]) -> tuple[dict[int, Node], frozenset[int]]:
    """The nodes of the entries that no later entry replaced or cut off, and the indexes of those made blank.

    Goes backwards, so that each node is looked at once, however many cuts there are. A cut happens before the nodes
    of its own entry arrive.
    """
    nodes: dict[int, Node] = {}
    blanks: set[int] = set()
    floor: int | None = None
    for entry, cut in zip(reversed(entries), reversed(cuts), strict=True):
        for node in reversed(entry.nodes):
            index = node.index
            if index in nodes or index in blanks or (floor is not None and right_span(index) >= 2 * floor):
                continue
            if node.size == 0 and node.hash == _BLANK_HASH:
                blanks.add(index)
            else:
                nodes[index] = node
        if cut is not None:
            floor = cut if floor is None else min(floor, cut)
    return nodes, frozenset(blanks)

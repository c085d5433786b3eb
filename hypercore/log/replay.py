"""From a header and the entries behind it to the state that they add up to (disk spec, section 4.2).

Pure. Reads no tree node: it says which nodes the log has, and which nodes of the tree file count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hypercore.log.entry import BitRange, Entry
from hypercore.log.header import Header, ReorgHint
from hypercore.proofs import Node


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
        raise NotImplementedError


def replay(header: Header, entries: Sequence[Entry], offsets: Sequence[int] = ()) -> Replayed:
    """Apply the entries in order. `offsets` are their byte offsets in file `oplog`, for messages.

    Raises `CorruptError` naming file and offset for an entry that contradicts the log (section 9).
    """
    raise NotImplementedError

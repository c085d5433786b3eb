"""What an open log is at one moment, and the header that says so on disk.

Knows the parts of a log and how they become a header and a checkpoint (disk spec, sections 2.4, 3 and 7.3). It must
not know who calls, nor read or write anything itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from hypercore.bitfield import PAGE_SIZE, Bitfield
from hypercore.crypto import KeyPair
from hypercore.log import blocks, crown, oplog, tree_file
from hypercore.log.manifest import Authority
from hypercore.log.node_layout import NODE_SIZE
from hypercore.log.oplog import Entry, ExternalPointer, Header, ReorgHint, SlotState, StoredKeyPair
from hypercore.log.tree import NodeStore
from hypercore.proofs import Node
from hypercore.storage import Operation, Sync, Truncate, Write

OPLOG: Final = "oplog"
HEADER: Final = "header"
BITFIELD: Final = "bitfield"
TREE: Final = tree_file.FILE
DATA: Final = blocks.FILE
CROWN: Final = crown.FILE

#: The files of a log, in the order in which they are asked for.
FILES: Final = (OPLOG, TREE, BITFIELD, DATA, HEADER, CROWN)


@dataclass(slots=True, kw_only=True)
class LogState:
    """An open log. `length` and `contiguous_length` are blocks, `byte_length` and `end_offset` bytes."""

    authority: Authority
    stored_key_pair: StoredKeyPair | None
    key_pair: KeyPair | None
    user_data: dict[str, bytes]
    fork: int
    length: int
    byte_length: int
    roots: tuple[Node, ...]
    signature: bytes
    reorg_hints: tuple[ReorgHint, ...]
    contiguous_length: int
    slots: SlotState
    #: Where the next entry goes in file `oplog`.
    end_offset: int
    #: Where the header lies if it once was too large for its slot.
    external: ExternalPointer | None
    tree: NodeStore
    blocks: blocks.BlockFile
    bitfield: Bitfield
    #: Blocks whose bytes turned out to be damaged. Their bits are off in memory and stay on in the file.
    damaged: set[int] = field(default_factory=set)
    warnings: list[str] = field(default_factory=list)

    @property
    def root_hash(self) -> bytes:
        """The tree hash; empty for a log that never had blocks."""
        if self.length == 0 and self.fork == 0:
            return b""
        return self.authority.tree_hash.tree(self.roots)

    @property
    def has_entries(self) -> bool:
        """Whether the log says something that the other files do not."""
        return self.end_offset > oplog.ENTRIES_OFFSET

    def framed(self, entry: Entry, *, partial: bool = False) -> bytes:
        """The bytes of an entry as they go to the log now."""
        return oplog.frame(oplog.encode_entry(entry), bit=self.slots.active, partial=partial)

    def header(self) -> Header:
        """The header of this moment."""
        return Header(
            key=self.authority.key,
            manifest=self.authority.manifest,
            key_pair=self.stored_key_pair,
            user_data=tuple(self.user_data.items()),
            fork=self.fork,
            length=self.length,
            root_hash=self.root_hash,
            signature=self.signature,
            reorg_hints=self.reorg_hints,
            contiguous_length=self.contiguous_length,
        )

    def learn(self, authority: Authority) -> None:
        """The manifest may have come with a proof; it also says with which hash the tree is made."""
        self.authority = authority
        self.tree.hash_with(authority.tree_hash)

    def note_set(self, start: int, end: int) -> None:
        """The blocks from `start` to `end` are here now."""
        self.bitfield.set_range(start, end - start)
        if self.damaged:
            self.damaged.difference_update(range(start, end))
        if start <= self.contiguous_length < end:
            self.contiguous_length = self.held_until(end)

    def note_dropped(self, start: int, end: int) -> None:
        """The blocks from `start` to `end` are no longer here."""
        self.bitfield.set_range(start, end - start, False)
        self.damaged = {index for index in self.damaged if not start <= index < end}
        self.contiguous_length = min(self.contiguous_length, start)

    def note_damaged(self, index: int) -> None:
        """The bytes of block `index` are not what they should be: somebody else has to be asked for it."""
        self.bitfield.set(index, False)
        self.damaged.add(index)
        self.contiguous_length = min(self.contiguous_length, index)

    def held_until(self, start: int) -> int:
        """The first block from `start` on that is not here, or the length."""
        if start >= self.length:
            return self.length
        unset = self.bitfield.first_unset(start, self.length)
        return self.length if unset is None else unset


class Checkpoint(NamedTuple):
    """The operations that move everything out of the log's entries, and what holds once they are done."""

    operations: list[Operation]
    runs: list[tuple[int, bytes]]
    slots: SlotState
    external: ExternalPointer | None


def header_writes(
    header: Header, slots: SlotState, external: ExternalPointer | None, *, sync: bool
) -> tuple[list[Operation], ExternalPointer | None]:
    """The writes that make `header` the valid one, and where its body lies if not in the slot."""
    operations: list[Operation] = []
    body = oplog.encode_header(header)
    if external is not None or len(body) > oplog.MAX_SLOT_BODY_SIZE:
        external = oplog.external_region(external, len(body))
        operations.append(Write(HEADER, external.start, body))
        if sync:
            operations.append(Sync((HEADER,)))
        body = oplog.encode_external_pointer(external)
    offset, bit = slots.next_write()
    operations.append(Write(OPLOG, offset, oplog.frame(body, bit=bit)))
    return operations, external


def plan_checkpoint(state: LogState, *, sync: bool) -> Checkpoint:
    """Bits and nodes to their files, then the new header, then the entries go (disk spec, section 7.3)."""
    operations: list[Operation] = [
        Write(BITFIELD, number * PAGE_SIZE, _with_damaged(state, number, page))
        for number, page in state.bitfield.dirty_pages()
    ]
    runs = state.tree.file.unwritten_runs()
    cut = state.tree.file.owed_cut()
    cut_operations: list[Operation] = []
    if cut is not None:
        cut_operations.append(Truncate(TREE, cut.size))
        cut_operations.extend(Write(TREE, offset, bytes(NODE_SIZE)) for offset in cut.blanks)
        if cut.first:
            operations.extend(cut_operations)
    operations.extend(Write(TREE, offset, data) for offset, data in runs)
    operations.extend(state.tree.file.crown_operations())
    if sync:
        operations.append(Sync((DATA, BITFIELD, TREE)))
    writes, external = header_writes(state.header(), state.slots, state.external, sync=sync)
    operations.extend(writes)
    if sync:
        operations.append(Sync((OPLOG,)))
    if cut is not None and not cut.first:
        operations.extend(cut_operations)
    operations.append(Truncate(OPLOG, oplog.ENTRIES_OFFSET))
    return Checkpoint(operations, runs, state.slots.written(), external)


def _with_damaged(state: LogState, number: int, page: bytes) -> bytes:
    """A page as it goes to the file: damage seen today may be a bad cable, so it is not written down."""
    first = number * PAGE_SIZE * 8
    here = [index - first for index in state.damaged if first <= index < first + PAGE_SIZE * 8]
    if not here:
        return page
    restored = bytearray(page)
    for bit in here:
        restored[bit >> 3] |= 1 << (bit & 7)
    return bytes(restored)


def finish_checkpoint(state: LogState, checkpoint: Checkpoint) -> None:
    """The checkpoint's operations have all been carried out."""
    state.slots = checkpoint.slots
    state.external = checkpoint.external
    state.end_offset = oplog.ENTRIES_OFFSET
    state.tree.file.was_written(checkpoint.runs)
    state.bitfield.clear_dirty()

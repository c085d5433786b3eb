"""The log file: two header slots, then entries, all in frames with a checksum (disk spec, sections 2 and 9).

Pure: gets the bytes of file `oplog` and says what they hold and what is wrong with them; the engine decides what to
do about it, and does all reading and writing. Knows nothing of trees.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from hypercore.log.entry import BitRange, Entry, TreeUpgrade, decode_entry, encode_entry
from hypercore.log.header import (
    ExternalPointer,
    Header,
    ReorgHint,
    StoredKeyPair,
    add_reorg_hint,
    decode_header,
    encode_external_pointer,
    encode_header,
    external_region,
)
from hypercore.log.replay import Replayed, replay

__all__ = [
    "BitRange",
    "Entry",
    "ExternalPointer",
    "Finding",
    "FindingKind",
    "Header",
    "OplogImage",
    "ReorgHint",
    "Replayed",
    "SlotState",
    "StoredKeyPair",
    "TreeUpgrade",
    "add_reorg_hint",
    "decode_entry",
    "decode_header",
    "encode_entry",
    "encode_external_pointer",
    "encode_header",
    "external_region",
    "frame",
    "parse_oplog",
    "replay",
]

SLOT_SIZE: Final = 4096
#: Where entries begin: behind both slots.
ENTRIES_OFFSET: Final = 2 * SLOT_SIZE
FRAME_HEAD_SIZE: Final = 8
#: A header body above this goes to file `header`.
MAX_SLOT_BODY_SIZE: Final = SLOT_SIZE - FRAME_HEAD_SIZE
#: The other implementation computes the frame word in signed 32-bit numbers.
MAX_BODY_SIZE: Final = 2**29 - 1
#: Honest logs stay below 64 KiB plus one entry; the largest entry that others can read has about 40 MB.
MAX_OPLOG_SIZE: Final = 256 * 1024 * 1024


def frame(body: bytes, *, bit: int, partial: bool = False) -> bytes:
    """`body` with its checksum, length and bits in front. Raises `ValueError` for a body of 2^29 bytes or more."""
    raise NotImplementedError


@dataclass(frozen=True, slots=True)
class SlotState:
    """The header bits of both slots, which say where the next header goes (section 2.2)."""

    #: A log that has no header yet: its first one goes to slot 0 with bit 0.
    bit0: int = 1
    bit1: int = 0

    @property
    def active(self) -> int:
        """The slot that holds the header, and the bit that entries carry."""
        return self.bit0 ^ self.bit1

    def next_write(self) -> tuple[int, int]:
        """Byte offset and bit of the next header. It becomes valid at once and all entries so far become stale."""
        raise NotImplementedError

    def written(self) -> SlotState:
        """The state once `next_write` has been carried out."""
        raise NotImplementedError


class FindingKind(Enum):
    """What may be wrong with a log that can be opened nevertheless."""

    #: The very first header was never finished: no core was ever here.
    TORN_CREATION = "torn creation"
    #: One slot is damaged, and the entries prove that the other one is the right one.
    DAMAGED_SLOT = "damaged slot"
    #: The header has bytes behind its last field.
    HEADER_LEFTOVER = "header leftover"
    #: The last write was not finished.
    TORN_TAIL = "torn tail"
    #: A batch at the end is not complete.
    PARTIAL_BATCH = "partial batch"
    #: Entries that the header already contains.
    STALE_ENTRIES = "stale entries"
    #: The newest header was complete once and is damaged: what is here is older.
    DAMAGED_ACTIVE_SLOT = "damaged active slot"
    #: An entry is damaged and good ones follow it: what is here is older.
    DAMAGED_ENTRY = "damaged entry"
    #: An entry has the right checksum and makes no sense.
    UNREADABLE_ENTRY = "unreadable entry"

    @property
    def forbids_writing(self) -> bool:
        """Acknowledged blocks are gone: appending now would sign a second history."""
        return self in _FORBID_WRITING


_FORBID_WRITING: Final = frozenset(
    {FindingKind.DAMAGED_ACTIVE_SLOT, FindingKind.DAMAGED_ENTRY, FindingKind.UNREADABLE_ENTRY}
)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to report: `offset` is the byte offset in file `oplog`."""

    kind: FindingKind
    offset: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OplogImage:
    """What a log file holds.

    `header` is None when no core was ever created here. `entries` are those that count, beginning at the byte
    offsets `entry_offsets`. New entries go to `end_offset`; `size` is the size of the file.
    """

    size: int
    slots: SlotState
    header: Header | ExternalPointer | None
    entries: tuple[Entry, ...]
    entry_offsets: tuple[int, ...]
    end_offset: int
    findings: tuple[Finding, ...]

    @property
    def needs_cut(self) -> bool:
        """Whether bytes behind the entries have to go before anything is written."""
        return self.size > self.end_offset

    @property
    def writing_forbidden_by(self) -> Finding | None:
        """The reason to refuse to open for writing, if there is one."""
        return next((finding for finding in self.findings if finding.kind.forbids_writing), None)


def parse_oplog(data: bytes, *, limit: int = MAX_OPLOG_SIZE) -> OplogImage:
    """What the bytes of file `oplog` hold; no bytes at all is a log that was never created.

    Raises `NewerFormatError` when a newer program wrote it, `ForeignStorageError` when it is something else, and
    `CorruptError` when no header is left or there are more than `limit` bytes (ask for the size before reading).
    """
    raise NotImplementedError

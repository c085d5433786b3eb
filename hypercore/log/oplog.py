"""The log file: two header slots, then entries, all in frames with a checksum (disk spec, sections 2 and 9).

Pure: gets the bytes of file `oplog` and says what they hold and what is wrong with them; the engine decides what to
do about it, and does all reading and writing. Knows nothing of trees.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

from hypercore.encoding import Reader
from hypercore.errors import CorruptError, DecodeError, ForeignStorageError, NewerFormatError
from hypercore.log.entry import BitRange, Entry, TreeUpgrade, decode_entry, encode_entry
from hypercore.log.frames import FRAME_HEAD_SIZE, find_entry_frame, frame, read_frame
from hypercore.log.header import (
    ExternalPointer,
    Header,
    ReorgHint,
    StoredKeyPair,
    add_reorg_hint,
    decode_external_header,
    decode_header,
    encode_external_pointer,
    encode_header,
    external_region,
    read_header,
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
    "decode_external_header",
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
#: A header body above this goes to file `header`.
MAX_SLOT_BODY_SIZE: Final = SLOT_SIZE - FRAME_HEAD_SIZE
#: Honest logs stay below 64 KiB plus one entry; the largest entry that others can read has about 40 MB.
MAX_OPLOG_SIZE: Final = 256 * 1024 * 1024

_FILE: Final = "oplog"


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
        """Byte offset and bit of the next header; writing it makes all entries so far stale."""
        return (SLOT_SIZE, 1 - self.bit1) if self.active == 0 else (0, 1 - self.bit0)

    def written(self) -> SlotState:
        """The state once `next_write` has been carried out."""
        return SlotState(self.bit0, 1 - self.bit1) if self.active == 0 else SlotState(1 - self.bit0, self.bit1)


class FindingKind(Enum):
    """What may be wrong with a log that can be opened nevertheless."""

    #: The very first header was never finished: no core was ever here.
    TORN_CREATION = "torn creation"
    #: One slot is damaged, and the entries prove that the other one is the newer one.
    DAMAGED_SLOT = "damaged slot"
    #: The header has bytes behind its last field, which were ignored.
    HEADER_LEFTOVER = "header leftover"
    #: The last write was not finished.
    TORN_TAIL = "torn tail"
    #: A batch at the end is not complete.
    PARTIAL_BATCH = "partial batch"
    #: Entries that the header already contains.
    STALE_ENTRIES = "stale entries"
    #: The newest header was complete once and is damaged: what is here is older.
    DAMAGED_ACTIVE_SLOT = "damaged active slot"
    #: One slot is damaged, and nothing proves that it was the older one.
    DOUBTFUL_SLOT = "doubtful slot"
    #: An entry is damaged and good ones follow it: what is here is older.
    DAMAGED_ENTRY = "damaged entry"
    #: An entry has the right checksum and makes no sense.
    UNREADABLE_ENTRY = "unreadable entry"

    @property
    def forbids_writing(self) -> bool:
        """Acknowledged blocks may be gone: appending now could sign a second history."""
        return self in _FORBID_WRITING


_FORBID_WRITING: Final = frozenset(
    {
        FindingKind.DAMAGED_ACTIVE_SLOT,
        FindingKind.DOUBTFUL_SLOT,
        FindingKind.DAMAGED_ENTRY,
        FindingKind.UNREADABLE_ENTRY,
    }
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
    size = len(data)
    if size > limit:
        raise CorruptError(f"file {_FILE} has {size} bytes; at most {limit} are accepted", file=_FILE, offset=limit)
    slots = _read_slot(data, 0), _read_slot(data, 1)
    if slots[0] is None and slots[1] is None:
        return _without_header(data)
    state, findings = _choose_slot(data, slots)
    active = slots[state.active]
    assert active is not None
    if active.leftover:
        message = f"the header in slot {state.active} has {active.leftover} bytes behind its last field"
        findings.append(Finding(FindingKind.HEADER_LEFTOVER, active.end - active.leftover, message))
    entries, offsets, end_offset, problem = _read_entries(data, state.active)
    header_lost = any(finding.kind is FindingKind.DAMAGED_ACTIVE_SLOT for finding in findings)
    if problem and not (header_lost and problem.kind is FindingKind.STALE_ENTRIES):
        findings.append(problem)
    whole = len(entries)
    while whole and entries[whole - 1][1]:
        whole -= 1
    if whole < len(entries):
        message = f"the last {len(entries) - whole} entries are a batch that was never finished"
        findings.append(Finding(FindingKind.PARTIAL_BATCH, offsets[whole], message))
        end_offset = offsets[whole]
    return OplogImage(
        size=size,
        slots=state,
        header=active.header,
        entries=tuple(entry for entry, _partial in entries[:whole]),
        entry_offsets=tuple(offsets[:whole]),
        end_offset=end_offset,
        findings=tuple(findings),
    )


class _Slot(NamedTuple):
    """A slot whose checksum holds. `header` is None when its body makes no sense, and `problem` says why."""

    bit: int
    header: Header | ExternalPointer | None
    end: int
    leftover: int = 0
    problem: str = ""


def _read_slot(data: bytes, number: int) -> _Slot | None:
    offset = number * SLOT_SIZE
    found = read_frame(data, offset, min(offset + SLOT_SIZE, len(data)))
    if found is None:
        return None
    reader = Reader(found.body)
    try:
        header = read_header(reader)
    except NewerFormatError as error:
        # Falling back to the other slot would roll back what the newer program wrote.
        raise NewerFormatError(f"slot {number} of file {_FILE}: {error}") from error
    except DecodeError as error:
        return _Slot(found.bit, None, found.end, problem=str(error))
    return _Slot(found.bit, header, found.end, reader.remaining)


def _choose_slot(data: bytes, slots: tuple[_Slot | None, _Slot | None]) -> tuple[SlotState, list[Finding]]:
    """The slot that counts, and what is to be said about the other one (section 2.2)."""
    if slots[0] is not None and slots[1] is not None:
        state = SlotState(slots[0].bit, slots[1].bit)
        return _choose_readable(slots[0], slots[1], state)
    state = _alone(slots)
    active = slots[state.active]
    assert active is not None
    if active.header is None:
        raise _nothing_left(state.active, active)
    offset = (1 - state.active) * SLOT_SIZE
    first = read_frame(data, ENTRIES_OFFSET, len(data))
    damaged = f"slot {1 - state.active} is damaged"
    if first is not None and first.bit != state.active:
        # A header that was being written would have left entries that match the other slot.
        message = f"{damaged}, and the entries belong to it: the newest header was lost"
        return state, [Finding(FindingKind.DAMAGED_ACTIVE_SLOT, offset, message)]
    if state == SlotState(0, 0) and not data[SLOT_SIZE:ENTRIES_OFFSET].strip(b"\x00"):
        return state, []  # a young log: the second slot has never been written
    if first is None:
        message = f"{damaged}, and no entry tells whether it was the newer one"
        return state, [Finding(FindingKind.DOUBTFUL_SLOT, offset, message)]
    return state, [Finding(FindingKind.DAMAGED_SLOT, offset, f"{damaged}; the entries belong to the other one")]


def _choose_readable(first: _Slot, second: _Slot, state: SlotState) -> tuple[SlotState, list[Finding]]:
    """The choice between two slots whose checksums hold: a body that makes no sense is no header all the same."""
    active, other = (second, first) if state.active else (first, second)
    if other.header is None and active.header is None:
        raise _nothing_left(state.active, active)
    if other.header is None:
        message = f"slot {1 - state.active}, the older one, cannot be read: {other.problem}"
        return state, [Finding(FindingKind.DAMAGED_SLOT, (1 - state.active) * SLOT_SIZE, message)]
    if active.header is None:
        message = f"slot {state.active} cannot be read: {active.problem}; the header in the other slot is older"
        fallen_back = _alone((first, None) if state.active else (None, second))
        return fallen_back, [Finding(FindingKind.DAMAGED_ACTIVE_SLOT, state.active * SLOT_SIZE, message)]
    return state, []


def _nothing_left(number: int, slot: _Slot) -> CorruptError:
    message = f"no header is left in file {_FILE}: slot {number} has a right checksum, and yet {slot.problem}"
    return CorruptError(message, file=_FILE, offset=number * SLOT_SIZE)


def _alone(slots: tuple[_Slot | None, _Slot | None]) -> SlotState:
    """The state when only one slot is valid: the other one's bit is taken such that this one is active."""
    if slots[0] is not None:
        return SlotState(slots[0].bit, slots[0].bit)
    assert slots[1] is not None
    return SlotState(1 - slots[1].bit, slots[1].bit)


def _without_header(data: bytes) -> OplogImage:
    """A log with no valid slot: one that never came to be, or a loss, or something else altogether."""
    size = len(data)
    blank = not data[:ENTRIES_OFFSET].strip(b"\x00")
    if size < ENTRIES_OFFSET and (blank or _is_torn_creation(data)):
        findings = () if blank else (Finding(FindingKind.TORN_CREATION, 0, "the first header was never finished"),)
        return OplogImage(
            size=size,
            slots=SlotState(),
            header=None,
            entries=(),
            entry_offsets=(),
            end_offset=ENTRIES_OFFSET,
            findings=findings,
        )
    if (
        blank
        or _looks_like_slot(data, 0)
        or _looks_like_slot(data, SLOT_SIZE)
        or read_frame(data, ENTRIES_OFFSET, size)
    ):
        raise CorruptError(f"both header slots of file {_FILE} are damaged ({size} bytes)", file=_FILE, offset=0)
    raise ForeignStorageError(f"file {_FILE} ({size} bytes) is not the log of a core")


def _is_torn_creation(data: bytes) -> bool:
    """Whether this is the beginning of the first header of a log, and nothing else."""
    size = int.from_bytes(data[4:8], "little") >> 2
    return len(data) < FRAME_HEAD_SIZE or (_looks_like_slot(data, 0) and len(data) < FRAME_HEAD_SIZE + size)


def _looks_like_slot(data: bytes, offset: int) -> bool:
    """Whether a frame with a header may have begun here: a size that fits, and a version that exists."""
    size = int.from_bytes(data[offset + 4 : offset + 8], "little") >> 2
    return 0 < size <= MAX_SLOT_BODY_SIZE and data[offset + 8 : offset + 9] in (b"", b"\x00", b"\x01")


def _read_entries(data: bytes, bit: int) -> tuple[list[tuple[Entry, bool]], list[int], int, Finding | None]:
    """The entries with their partial bits, their offsets, the offset behind them, and why they end there."""
    entries: list[tuple[Entry, bool]] = []
    offsets: list[int] = []
    offset, size = ENTRIES_OFFSET, len(data)
    while offset < size:
        found = read_frame(data, offset, size)
        if found is None:
            return entries, offsets, offset, _explain_damage(data, offset, bit)
        if found.bit != bit:
            message = f"{size - offset} bytes of entries that the header already contains"
            return entries, offsets, offset, Finding(FindingKind.STALE_ENTRIES, offset, message)
        try:
            entries.append((decode_entry(found.body), found.partial))
        except NewerFormatError as error:
            raise NewerFormatError(f"the entry at byte {offset} of file {_FILE}: {error}") from error
        except DecodeError as error:
            message = f"the entry at byte {offset} has a right checksum and cannot be read: {error}"
            return entries, offsets, offset, Finding(FindingKind.UNREADABLE_ENTRY, offset, message)
        offsets.append(offset)
        offset = found.end
    return entries, offsets, offset, None


def _explain_damage(data: bytes, offset: int, bit: int) -> Finding:
    """Whether the bytes at `offset` are the rest of an unfinished write, or damage amid good entries."""
    behind = find_entry_frame(data, offset, bit)
    if behind is None:
        message = f"the last write was not finished: {len(data) - offset} bytes of no use at byte {offset}"
        return Finding(FindingKind.TORN_TAIL, offset, message)
    message = f"the entry at byte {offset} is damaged, and good entries follow it at byte {behind}"
    return Finding(FindingKind.DAMAGED_ENTRY, offset, message)

"""A log says what it holds and what is wrong with it, and never takes damage for an unfinished write."""

from __future__ import annotations

import random
from dataclasses import replace
from zlib import crc32

import pytest

from hypercore.errors import CorruptError, ForeignStorageError, FormatError, NewerFormatError
from hypercore.log.frames import MAX_BODY_SIZE, find_entry_frame, read_frame
from hypercore.log.oplog import (
    BitRange,
    Entry,
    ExternalPointer,
    FindingKind,
    Header,
    SlotState,
    decode_header,
    encode_entry,
    encode_external_pointer,
    encode_header,
    frame,
    parse_oplog,
)
from hypercore.proofs import Node
from tests import disk_vectors
from tests.log.oplogs import ENTRIES, KEY, NOTE, SLOT, full_header, log, replay_files, slot

HEADER = Header(key=KEY)
#: What is to be said about the vectors that are not in order.
FINDINGS = {
    "active-slot-corrupt": [FindingKind.DAMAGED_ACTIVE_SLOT],
    "crash-stale-entries": [FindingKind.STALE_ENTRIES],
    "flipped-middle-entry": [FindingKind.DAMAGED_ENTRY],
    "garbage-oplog-tail": [FindingKind.TORN_TAIL],
    "partial-batches-torn": [FindingKind.TORN_TAIL, FindingKind.PARTIAL_BATCH],
    "torn-oplog-tail": [FindingKind.TORN_TAIL],
}
#: What a crash of the process may leave behind.
CRASH_FINDINGS = {FindingKind.TORN_TAIL, FindingKind.STALE_ENTRIES, FindingKind.DAMAGED_SLOT}
OPENABLE = [name for name in disk_vectors.NAMES if name != "both-slots-corrupt"]


def _kinds(data: bytes) -> list[FindingKind]:
    return [finding.kind for finding in parse_oplog(data).findings]


# ---- what hypercore 10 wrote ------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPENABLE)
def test_every_vector_is_read_and_diagnosed(name: str) -> None:
    image = parse_oplog(disk_vectors.files(name)["oplog"])
    assert [finding.kind for finding in image.findings] == FINDINGS.get(name, [])
    forbidden = name in ("active-slot-corrupt", "flipped-middle-entry")
    assert (image.writing_forbidden_by is not None) == forbidden
    cut = disk_vectors.load(name).get("openWrites") or []
    assert [f"oplog truncate({image.end_offset})"] * image.needs_cut == cut


@pytest.mark.parametrize("name", OPENABLE)
def test_the_slots_of_every_vector_are_what_it_says(name: str) -> None:
    vector = disk_vectors.load(name)["oplog"]
    image = parse_oplog(disk_vectors.files(name)["oplog"])
    if name != "active-slot-corrupt" and vector["slot1"]["crc"]:
        assert image.slots == SlotState(vector["slot0"]["bit"], vector["slot1"]["bit"])
    else:
        assert image.slots.active == 0


@pytest.mark.parametrize("name", OPENABLE)
def test_headers_and_entries_of_every_vector_are_written_as_they_were_read(name: str) -> None:
    files = disk_vectors.files(name)
    data = files["oplog"]
    for number in range(2):
        found = read_frame(data, number * SLOT, (number + 1) * SLOT)
        if found is None:
            continue
        header = decode_header(found.body)
        if isinstance(header, ExternalPointer):
            assert encode_external_pointer(header) == found.body
        elif header.version == 0:
            assert decode_header(encode_header(header)) == replace(header, version=1)
        else:
            assert encode_header(header) == found.body
    image = parse_oplog(data)
    if isinstance(image.header, ExternalPointer):
        start, end = image.header.start, image.header.start + image.header.length
        assert encode_header(full_header(image, files)) == files["header"][start:end]
    written = b""
    for entry, offset in zip(image.entries, image.entry_offsets, strict=True):
        partial = bool(data[offset + 4] & 2)
        written += frame(encode_entry(entry), bit=image.slots.active, partial=partial)
    assert written == data[ENTRIES : image.end_offset]


def test_a_log_without_a_valid_slot_is_refused() -> None:
    with pytest.raises(CorruptError, match="both header slots") as caught:
        parse_oplog(disk_vectors.files("both-slots-corrupt")["oplog"])
    assert (caught.value.file, caught.value.offset) == ("oplog", 0)


@pytest.mark.parametrize("number", range(len(disk_vectors.crash_scenarios())))
def test_no_crash_is_taken_for_damage(number: int) -> None:
    for state in disk_vectors.crash_states(disk_vectors.crash_scenarios()[number]):
        image = parse_oplog(state.files["oplog"])
        assert image.header is not None, state.name
        assert image.writing_forbidden_by is None, state.name
        assert {finding.kind for finding in image.findings} <= CRASH_FINDINGS, state.name


# ---- slots ----------------------------------------------------------------------------------------


def test_headers_are_written_to_the_slots_in_turn_and_make_older_entries_stale() -> None:
    state, data = SlotState(), bytearray(2 * SLOT)
    places = []
    for length in range(6):
        offset, bit = state.next_write()
        places.append((offset, bit))
        data[offset : offset + SLOT] = slot(Header(key=KEY, length=length), bit)
        stale = frame(encode_entry(NOTE), bit=state.active)
        state = state.written()
        image = parse_oplog(bytes(data) + stale)
        assert image.slots.active == state.active
        assert image.header == Header(key=KEY, length=length)
        assert image.entries == ()
        # The very first entry of a log cannot be stale: nothing has been written before the first header.
        if length:
            assert [finding.kind for finding in image.findings] == [FindingKind.STALE_ENTRIES]
            assert (image.end_offset, image.needs_cut) == (ENTRIES, True)
    assert places == [(0, 0), (SLOT, 1), (0, 1), (SLOT, 0), (0, 0), (SLOT, 1)]


@pytest.mark.parametrize("torn", [0, 3, 8, 9, 40])
@pytest.mark.parametrize("bits", [(0, 0), (0, 1), (1, 1), (1, 0)])
def test_a_torn_header_leaves_the_older_one_and_its_entries(bits: tuple[int, int], torn: int) -> None:
    state = SlotState(*bits)
    slots = [slot(Header(key=KEY, length=number), bits[number]) for number in range(2)]
    offset, bit = state.next_write()
    data = bytearray(b"".join(slots) + frame(encode_entry(NOTE), bit=state.active))
    data[offset : offset + torn] = slot(Header(key=KEY, length=9), bit)[:torn]
    image = parse_oplog(bytes(data))
    assert image.header == Header(key=KEY, length=state.active)
    assert image.entries == (NOTE,)
    assert image.writing_forbidden_by is None


def test_a_log_that_died_before_it_had_two_slots_opens() -> None:
    image = parse_oplog(frame(encode_header(HEADER), bit=0))
    assert (image.header, image.entries, image.findings) == (HEADER, (), ())
    assert (image.slots, image.end_offset, image.needs_cut) == (SlotState(0, 0), ENTRIES, False)


@pytest.mark.parametrize("data", [b"", bytes(100), bytes(8191)])
def test_a_log_without_any_bytes_was_never_created(data: bytes) -> None:
    image = parse_oplog(data)
    assert (image.header, image.entries, image.findings) == (None, (), ())
    assert image.slots.next_write() == (0, 0)


@pytest.mark.parametrize("size", [1, 4, 7, 8, 9, 12, 38])
def test_a_first_header_that_was_never_finished_is_no_core(size: int) -> None:
    data = frame(encode_header(HEADER), bit=0)
    assert size < len(data)
    image = parse_oplog(data[:size])
    assert image.header is None
    assert [finding.kind for finding in image.findings] == [FindingKind.TORN_CREATION]


def test_a_whole_first_header_that_is_damaged_is_a_loss_and_no_unfinished_creation() -> None:
    data = bytearray(frame(encode_header(HEADER), bit=0))
    data[20] ^= 1
    with pytest.raises(CorruptError):
        parse_oplog(bytes(data))
    with pytest.raises(CorruptError):
        parse_oplog(bytes(data).ljust(ENTRIES, b"\x00"))
    with pytest.raises(CorruptError):
        parse_oplog(bytes(ENTRIES))


@pytest.mark.parametrize("data", [b"# my notes\n" * 20, b"\x89PNG\r\n\x1a\n" + b"abc" * 4000, b"MANIFEST-000005\n"])
def test_a_file_that_never_was_a_log_is_told_from_a_damaged_one(data: bytes) -> None:
    with pytest.raises(ForeignStorageError):
        parse_oplog(data)


def test_the_newest_header_is_missed_when_the_entries_belong_to_it() -> None:
    data = bytearray(slot(HEADER, 0) + slot(Header(key=KEY, length=3), 1) + frame(encode_entry(NOTE), bit=1))
    assert _kinds(bytes(data)) == []
    data[SLOT + 20] ^= 1
    image = parse_oplog(bytes(data))
    assert image.header == HEADER
    assert image.entries == ()
    reason = image.writing_forbidden_by
    assert reason is not None
    assert (reason.kind, reason.offset) == (FindingKind.DAMAGED_ACTIVE_SLOT, SLOT)
    data[SLOT : 2 * SLOT] = bytes(SLOT)
    assert _kinds(bytes(data)) == [FindingKind.DAMAGED_ACTIVE_SLOT], "zeros, too, can be a loss"


@pytest.mark.parametrize("damaged", [0, SLOT])
def test_a_damaged_slot_is_doubtful_when_no_entry_proves_it_the_older_one(damaged: int) -> None:
    data = bytearray(slot(HEADER, 0) + slot(Header(key=KEY, length=3), 1))
    data[damaged + 20] ^= 1
    reason = parse_oplog(bytes(data)).writing_forbidden_by
    assert reason is not None
    assert (reason.kind, reason.offset) == (FindingKind.DOUBTFUL_SLOT, damaged)


def test_an_empty_slot_is_doubtful_when_it_must_have_been_written() -> None:
    assert _kinds(slot(HEADER, 0) + bytes(SLOT)) == []
    assert _kinds(slot(HEADER, 1) + bytes(SLOT)) == [FindingKind.DOUBTFUL_SLOT], "bit 1 comes after a turn of slot 1"
    assert _kinds(bytes(SLOT) + slot(HEADER, 1)) == [FindingKind.DOUBTFUL_SLOT]


def test_a_damaged_slot_is_harmless_when_the_entries_belong_to_the_other_one() -> None:
    data = bytearray(slot(HEADER, 0) + slot(Header(key=KEY, length=3), 1) + frame(encode_entry(NOTE), bit=1))
    data[20] ^= 1
    image = parse_oplog(bytes(data))
    assert image.header == Header(key=KEY, length=3)
    assert image.entries == (NOTE,)
    assert [finding.kind for finding in image.findings] == [FindingKind.DAMAGED_SLOT]
    assert image.writing_forbidden_by is None


@pytest.mark.parametrize("body", [b"\x02\x00" + KEY, b"\x01\x40" + KEY, b"\x01\x02" + KEY + b"\x07"])
@pytest.mark.parametrize("bit", [0, 1])
def test_a_slot_of_a_newer_program_is_never_passed_over(body: bytes, bit: int) -> None:
    with pytest.raises(NewerFormatError, match="slot 1 of file oplog"):
        parse_oplog(slot(HEADER, 0) + slot(body, bit))


def test_a_slot_with_a_right_checksum_and_no_header_in_it_is_a_loss_when_it_is_the_newer_one() -> None:
    nonsense = b"\x01\x00short"
    entry = frame(encode_entry(NOTE), bit=0)
    image = parse_oplog(slot(HEADER, 0) + slot(nonsense, 1) + entry)
    assert (image.header, image.entries, image.slots) == (HEADER, (NOTE,), SlotState(0, 0))
    reason = image.writing_forbidden_by
    assert reason is not None
    assert (reason.kind, reason.offset) == (FindingKind.DAMAGED_ACTIVE_SLOT, SLOT)
    assert _kinds(slot(HEADER, 0) + slot(nonsense, 0) + entry) == [FindingKind.DAMAGED_SLOT]
    for other in (nonsense, b""):
        with pytest.raises(CorruptError, match="no header is left"):
            parse_oplog(slot(nonsense, 0) + slot(other, 1)[:SLOT] if other else slot(nonsense, 0) + bytes(SLOT))


def test_bytes_behind_a_header_are_reported() -> None:
    data = slot(encode_header(HEADER) + b"more", 0) + bytes(SLOT)
    finding = parse_oplog(data).findings[0]
    assert (finding.kind, data[finding.offset : finding.offset + 4]) == (FindingKind.HEADER_LEFTOVER, b"more")


# ---- entries --------------------------------------------------------------------------------------


@pytest.mark.parametrize("torn", [1, 7, 8, 9, 13])
def test_the_rest_of_an_unfinished_write_is_cut(torn: int) -> None:
    data = log(NOTE, NOTE)
    last = len(data) - len(frame(encode_entry(NOTE), bit=0))
    image = parse_oplog(data[: last + torn])
    assert image.entries == (NOTE,)
    assert (image.end_offset, image.needs_cut) == (last, True)
    assert [finding.kind for finding in image.findings] == [FindingKind.TORN_TAIL]


def test_a_large_write_that_was_torn_is_no_damage() -> None:
    generator = random.Random(5)
    nodes = tuple(Node(2 * index, 65_536, generator.randbytes(32)) for index in range(5000))
    large = Entry(nodes=nodes, bits=BitRange(False, 0, 5000))
    data = log(NOTE, large)
    for size in (9000, 100_000, len(data) - 1):
        assert _kinds(data[:size]) == [FindingKind.TORN_TAIL], f"torn at {size}"


@pytest.mark.parametrize("bit_number", range(0, 8 * 17, 5))
def test_damage_to_an_entry_that_good_ones_follow_is_no_torn_tail(bit_number: int) -> None:
    entries = [NOTE, Entry(user_data=("second", b"y")), Entry(bits=BitRange(True, 1, 2)), NOTE]
    data = bytearray(log(*entries))
    offset = parse_oplog(bytes(data)).entry_offsets[1]
    data[offset + bit_number // 8] ^= 1 << bit_number % 8
    image = parse_oplog(bytes(data))
    assert image.entries == (NOTE,)
    reason = image.writing_forbidden_by
    assert reason is not None
    assert (reason.kind, reason.offset) == (FindingKind.DAMAGED_ENTRY, offset)


def test_stale_entries_behind_an_unfinished_write_prove_nothing() -> None:
    stale = frame(encode_entry(NOTE), bit=1)
    assert _kinds(log(NOTE) + b"rubbish" + stale + stale) == [FindingKind.TORN_TAIL]


def test_entries_that_the_header_already_contains_end_the_log() -> None:
    data = log(NOTE)
    image = parse_oplog(data + frame(encode_entry(NOTE), bit=1) + frame(encode_entry(NOTE), bit=0))
    assert image.entries == (NOTE,)
    assert image.end_offset == len(data)
    assert [finding.kind for finding in image.findings] == [FindingKind.STALE_ENTRIES]


def test_a_batch_counts_whole_or_not_at_all() -> None:
    first = log(NOTE)
    part = frame(encode_entry(NOTE), bit=0, partial=True)
    last = frame(encode_entry(NOTE), bit=0)
    whole = parse_oplog(first + part + part + last)
    assert (len(whole.entries), whole.findings, whole.needs_cut) == (4, (), False)
    unfinished = parse_oplog(first + part + part)
    assert (len(unfinished.entries), unfinished.end_offset) == (1, len(first))
    assert [finding.kind for finding in unfinished.findings] == [FindingKind.PARTIAL_BATCH]
    assert unfinished.needs_cut


def test_an_entry_with_a_right_checksum_that_makes_no_sense_is_refused_for_writing() -> None:
    data = log(NOTE)
    image = parse_oplog(data + frame(b"\x02\x05short", bit=0) + frame(encode_entry(NOTE), bit=0))
    assert image.entries == (NOTE,)
    reason = image.writing_forbidden_by
    assert reason is not None
    assert (reason.kind, reason.offset) == (FindingKind.UNREADABLE_ENTRY, len(data))


def test_an_entry_of_a_newer_program_is_refused() -> None:
    with pytest.raises(NewerFormatError, match="entry at byte 8192"):
        parse_oplog(log() + frame(b"\x10", bit=0))


def test_a_log_above_the_limit_is_refused_unread() -> None:
    data = log(NOTE)
    assert parse_oplog(data, limit=len(data)).entries == (NOTE,)
    with pytest.raises(CorruptError, match="at most"):
        parse_oplog(data, limit=len(data) - 1)


class _Huge(bytes):
    def __len__(self) -> int:
        return MAX_BODY_SIZE + 1


def test_a_body_that_others_could_not_read_is_not_framed() -> None:
    with pytest.raises(ValueError, match="at most 536870911"):
        frame(_Huge(), bit=0)


def test_a_frame_is_the_bytes_of_the_specification() -> None:
    assert frame(encode_entry(Entry(bits=BitRange(True, 2, 2))), bit=1).hex() == "aaaf7dcd1100000008010202"
    assert read_frame(bytes(8), 0, 8) is None, "eight zeros are no frame"


# ---- hostile files --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", disk_vectors.NAMES)
def test_random_damage_raises_nothing_but_format_errors(name: str) -> None:
    files = disk_vectors.files(name)
    generator = random.Random(name)
    for attempt in range(60):
        data = bytearray(files["oplog"])
        for _ in range(generator.randrange(1, 5)):
            match generator.randrange(4):
                case 0:
                    del data[generator.randrange(len(data) + 1) :]
                case 1:
                    start = generator.randrange(len(data) + 1)
                    data[start : start + generator.randrange(64)] = bytes(generator.randrange(64))
                case _ if data:
                    # Most of the file is padding; damage where something is.
                    base = generator.choice([0, SLOT, ENTRIES])
                    data[min(base + generator.randrange(400), len(data) - 1)] = generator.randrange(256)
        _survives(files | {"oplog": bytes(data)}, f"{name}, attempt {attempt}")


@pytest.mark.parametrize("name", disk_vectors.NAMES)
def test_damage_below_a_right_checksum_raises_nothing_but_format_errors(name: str) -> None:
    files = disk_vectors.files(name)
    generator = random.Random(name)
    frames = _frames(files["oplog"])
    for attempt in range(60):
        data = bytearray(files["oplog"])
        start, end = generator.choice(frames)
        for _ in range(generator.randrange(1, 4)):
            data[generator.randrange(start + 8, end)] = generator.randrange(256)
        data[start : start + 4] = crc32(data[start + 4 : end]).to_bytes(4, "little")
        _survives(files | {"oplog": bytes(data)}, f"{name}, attempt {attempt}")


def _frames(data: bytes) -> list[tuple[int, int]]:
    ends = [(start, start + 8 + (int.from_bytes(data[start + 4 : start + 8], "little") >> 2)) for start in (0, SLOT)]
    frames, offset = ends, ENTRIES
    while found := read_frame(data, offset, len(data)):
        frames.append((offset, found.end))
        offset = found.end
    return [(start, end) for start, end in frames if start + 8 < end <= len(data)]


def _survives(files: disk_vectors.Files, said: str) -> None:
    """A damaged log is read, or refused with an error of ours."""
    try:
        image = parse_oplog(files["oplog"])
        if isinstance(image.header, Header):
            replay_files(files)
    except FormatError:
        return
    except Exception as error:
        raise AssertionError(f"{said}: {error!r}") from error
    assert image.end_offset >= ENTRIES, said
    assert len(image.entries) == len(image.entry_offsets), said


def test_bytes_made_to_look_like_endless_entries_are_given_up_on() -> None:
    # Every twelfth place looks like the start of an entry as long as the rest of the file.
    size = 12_000
    lure = bytearray(log())
    while len(lure) < ENTRIES + size:
        left = ENTRIES + size - len(lure)
        lure += b"crc!" + ((left - 8) << 2).to_bytes(4, "little") + b"\x02\xfd" + (left // 40).to_bytes(2, "little")
    assert find_entry_frame(bytes(lure), ENTRIES, 0) is None
    assert find_entry_frame(bytes(lure), ENTRIES, 0, effort=10 * size) is not None

"""The pure parts: extents against a plain list, frames, and decoders that are shown anything."""

from __future__ import annotations

import itertools
import zlib
from random import Random

import pytest

from hypercore.errors import CorruptError, FormatError, NewerFormatError
from hypercore_s3.commits import DELETE, TRUNCATE, UNLINK, WRITE, WRITE_HERE, Commit, Step, decode_commit, encode_front
from hypercore_s3.extents import Extents
from hypercore_s3.frames import FRAME_SIZE, body_of, cut
from hypercore_s3.index import FileIndex, Index, decode_footer, decode_index, encode_footer, encode_index
from hypercore_s3.layout import Head, Pointer, commit_name, decode_head, encode_head

CHECKPOINT = "checkpoints/0000000000000009-0123456789abcdef"


@pytest.mark.parametrize("seed", range(30))
def test_extents_say_of_each_byte_what_a_list_of_bytes_says(seed: int) -> None:
    random = Random(seed)
    bodies = [body_of(commit_name(number), base=0, size=1000) for number in range(3)]
    extents = Extents()
    model: list[tuple[object, int] | None] = [None] * 200
    for _ in range(120):
        start = random.randrange(200)
        end = random.randrange(start, 201)
        source = random.choice([None, b"x" * 300, *bodies])
        # Often where the one before would go on, so that they are joined.
        offset = start if random.random() < 0.5 else random.randrange(50)
        extents.put(start, end, source, offset)
        model[start:end] = [None if source is None else (source, offset + index) for index in range(end - start)]
        held = list(extents)
        assert all(one.start < one.end for one in held), f"seed {seed}"
        assert all(one.end <= two.start for one, two in itertools.pairwise(held)), f"seed {seed}"
        first = random.randrange(200)
        last = random.randrange(first, 201)
        found: list[tuple[object, int] | None] = [None] * (last - first)
        for one in extents.within(first, last):
            for index in range(one.end - one.start):
                found[one.start - first + index] = (one.source, one.offset + index)
        assert found == model[first:last], f"seed {seed}"
        before = extents.before(last)
        assert (before is None) == (not any(one.end == last for one in held)), f"seed {seed}"


def test_pages_that_follow_each_other_are_one_extent() -> None:
    body = body_of(CHECKPOINT, base=8, size=3000)
    extents = Extents()
    for start in (0, 2000, 1000):
        extents.put(start, start + 1000, body, start)
    assert [(one.start, one.end, one.offset) for one in extents] == [(0, 3000, 0)]


@pytest.mark.parametrize("seed", range(20))
def test_a_payload_in_pieces_is_cut_into_frames_and_comes_back(seed: int) -> None:
    random = Random(seed)
    pieces = [random.randbytes(random.choice([1, 100, FRAME_SIZE, 200_000])) for _ in range(random.randrange(6))]
    payload = b"".join(pieces)
    body = body_of(CHECKPOINT, base=8, size=len(payload), aligned=random.randrange(2 * FRAME_SIZE))
    frames = cut(body, pieces)
    assert b"".join(frames) == payload
    assert len(frames) == body.count
    raw = bytes(8) + b"".join(body.framed(frames))
    assert len(raw) == 8 + body.framed_size
    for number, frame in enumerate(frames):
        assert raw[body.position(number) :][: len(frame)] == frame
        assert payload[body.start(number) :][: len(frame)] == frame
        assert body.number(body.start(number)) == number
        assert body.checked(number, number + 1, raw[body.position(number) :][: len(frame) + 4]) == [frame]


def test_a_good_frame_in_the_wrong_place_or_object_is_damage() -> None:
    payload = bytes(3 * FRAME_SIZE)
    body = body_of(CHECKPOINT, base=0, size=len(payload))
    raw = b"".join(body.framed(cut(body, [payload])))
    frame = raw[: FRAME_SIZE + 4]
    assert body.checked(0, 1, frame) == [bytes(FRAME_SIZE)]
    with pytest.raises(CorruptError):
        body.checked(1, 2, frame)
    with pytest.raises(CorruptError):
        body_of(commit_name(1), base=0, size=len(payload)).checked(0, 1, frame)
    with pytest.raises(CorruptError):
        body.checked(0, 1, frame[:-1])


HEAD = Head(
    owner="ab" * 16,
    host="host",
    pid=7,
    process="",
    epoch=3,
    lease_seconds=60.0,
    released=False,
    checkpoint=Pointer(name=CHECKPOINT, sequence=9, size=1000, hot=8, index_offset=500, index_size=460),
    proved="here",
    beat=5,
)
COMMIT = Commit(
    sequence=9,
    epoch=3,
    owner=bytes(range(16)),
    attempt=4,
    steps=[
        Step(WRITE, "oplog", 5, 3),
        Step(WRITE_HERE, "data", 0, 200_000),
        Step(DELETE, "data", 7, 100),
        Step(WRITE, "tree", 0, 2),
        Step(TRUNCATE, "ü", 0, 1 << 40),
        Step(UNLINK, "tree"),
    ],
    small=[b"abc", b"de"],
    body=body_of(commit_name(9), base=0, size=200_000, aligned=100),
)


def an_index() -> Index:
    body, other = body_of(CHECKPOINT, base=8, size=1000), body_of(commit_name(3), base=99, size=5000, aligned=7)
    data, tree = Extents(), Extents()
    data.put(0, 5000, other, 0)
    data.put(100, 200, b"inline" * 50, 3)
    tree.put(7, 900, body, 10)
    return Index(
        sequence=9,
        epoch=2,
        files=[FileIndex("data", 1 << 20, 9000, data), FileIndex("tree", 5, 900, tree)],
        bodies=[body, other],
        doomed=[commit_name(4), commit_name(5)],
    )


def test_what_is_encoded_is_decoded() -> None:
    assert decode_head(encode_head(HEAD)) == HEAD
    front = encode_front(COMMIT)
    assert COMMIT.body is not None
    commit = decode_commit(front, COMMIT.name, len(front) + COMMIT.body.framed_size)
    assert (commit.sequence, commit.epoch, commit.owner, commit.attempt) == (9, 3, bytes(range(16)), 4)
    assert (commit.steps, commit.small, commit.fence) == (COMMIT.steps, [b"abc", b"de"], False)
    assert commit.body is not None
    assert (commit.body.base, commit.body.first, commit.body.size) == (len(front), 100, 200_000)
    index = decode_index(encode_index(an_index()), CHECKPOINT)
    assert (index.sequence, index.epoch, index.doomed) == (9, 2, an_index().doomed)
    assert [(one.name, one.identity, one.size) for one in index.files] == [("data", 1 << 20, 9000), ("tree", 5, 900)]
    said = [(one.start, one.end) for one in index.files[0].extents]
    assert said == [(0, 100), (100, 200), (200, 5000)]
    inline = list(index.files[0].extents)[1]
    assert isinstance(inline.source, bytes)
    assert inline.source[inline.offset :][:100] == (b"inline" * 50)[3:103]
    footer = encode_footer(index_offset=500, index_size=400, hot=8)
    pointer = decode_footer(footer, CHECKPOINT, 1000)
    assert (pointer.sequence, pointer.hot, pointer.index_offset, pointer.index_size) == (9, 8, 500, 400)


def decoders() -> dict[str, tuple[bytes, object]]:
    front = encode_front(COMMIT)
    assert COMMIT.body is not None
    size = len(front) + COMMIT.body.framed_size
    return {
        "head": (encode_head(HEAD), decode_head),
        "commit": (front, lambda data: decode_commit(data, COMMIT.name, size)),
        "index": (encode_index(an_index()), lambda data: decode_index(data, CHECKPOINT)),
        "footer": (
            encode_footer(index_offset=500, index_size=400, hot=8),
            lambda data: decode_footer(data, CHECKPOINT, 1000),
        ),
    }


@pytest.mark.parametrize("what", ["head", "commit", "index", "footer"])
def test_every_flipped_bit_and_every_cut_is_found_out(what: str) -> None:
    data, decode = decoders()[what]
    assert callable(decode)
    for position in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            # JSON may be written in several ways; what counts is what it says.
            try:
                assert what == "head", f"{what}: bit {bit} of byte {position}: {decode(bytes(damaged))}"
                assert decode(bytes(damaged)) == HEAD, f"bit {bit} of byte {position}"
            except FormatError:
                continue
    for size in range(len(data) - 1):
        with pytest.raises(FormatError):
            decode(data[:size])


@pytest.mark.parametrize("what", ["head", "commit", "index", "footer"])
@pytest.mark.parametrize("seed", range(5))
def test_a_decoder_that_is_shown_anything_refuses_it_with_a_typed_error(what: str, seed: int) -> None:
    random = Random(seed)
    data, decode = decoders()[what]
    assert callable(decode)
    for _ in range(400):
        damaged = bytearray(data)
        for _ in range(random.randrange(1, 6)):
            position = random.randrange(len(damaged))
            damaged[position] = random.choice([0, 255, random.randrange(256)])
        if random.random() < 0.3:
            damaged += random.randbytes(random.randrange(100))
        if random.random() < 0.8 and what != "head":
            # With the right checksum, as somebody would write it who wants to do harm.
            end = len(encode_front(COMMIT)) - 4 if what == "commit" else len(damaged) - 4
            damaged[end : end + 4] = zlib.crc32(damaged[:end]).to_bytes(4, "little")
        try:
            decode(bytes(damaged))
        except FormatError:
            continue


def test_a_newer_version_is_called_newer() -> None:
    with pytest.raises(NewerFormatError):
        decode_head(encode_head(HEAD).replace(b'"version": 1', b'"version": 2'))
    for what in ("commit", "index"):
        data, decode = decoders()[what]
        assert callable(decode)
        newer = data[:7] + b"\x02" + data[8:-4]
        with pytest.raises(NewerFormatError):
            decode(newer + zlib.crc32(newer).to_bytes(4, "little"))

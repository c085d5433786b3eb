"""Headers come back from their bytes as they were, and nothing that is not a header is taken for one."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from hypercore.encoding import encode_buffer, encode_uint
from hypercore.errors import DecodeError, NewerFormatError
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
)
from hypercore.log.manifest import default_manifest
from tests.log.oplogs import KEY

FULL = Header(
    key=KEY,
    manifest=default_manifest(KEY),
    key_pair=StoredKeyPair(KEY, b"s" * 64),
    user_data=(("one", b"1"), ("", b"\x00" * 300), ("one", b"")),
    fork=3,
    length=70_000,
    root_hash=b"r" * 32,
    signature=b"q" * 68,
    reorg_hints=(ReorgHint(0, 1, 5), ReorgHint(1, 3, 65_000)),
    contiguous_length=2**40,
)
VERSION_0 = b"\x00" + b"".join(encode_buffer(kind) for kind in (b"blake2b", b"raw", b"ed25519"))


@pytest.mark.parametrize(
    "header",
    [FULL, Header(key=KEY), replace(FULL, key_pair=StoredKeyPair(KEY, None)), replace(FULL, manifest=None)],
    ids=["full", "bare", "public key only", "no manifest"],
)
def test_a_header_comes_back_as_it_was(header: Header) -> None:
    assert decode_header(encode_header(header)) == header
    assert decode_external_header(encode_header(header)) == header


def test_a_pointer_to_an_external_header_comes_back_as_it_was() -> None:
    body = encode_external_pointer(ExternalPointer(8192, 5320))
    assert body.hex() == "0101fd0020fdc814"
    assert decode_header(body) == ExternalPointer(8192, 5320)


def test_keys_of_user_data_that_are_not_text_keep_their_bytes() -> None:
    body = encode_header(replace(FULL, user_data=(("k\udcff\udc80", b"v"),)))
    assert b"\x03k\xff\x80\x01v" in body
    assert encode_header(_decoded(body)) == body


def test_a_secret_key_is_never_shown() -> None:
    assert "ssss" not in repr(FULL)


def test_the_contiguous_length_may_be_missing() -> None:
    body = encode_header(Header(key=KEY, contiguous_length=7))
    assert _decoded(body[:-1]) == Header(key=KEY)


def test_bytes_behind_a_header_are_ignored_in_a_slot_and_refused_in_the_external_file() -> None:
    body = encode_header(FULL) + b"more"
    assert decode_header(body) == FULL
    with pytest.raises(DecodeError, match="4 bytes are left over"):
        decode_external_header(body)


def test_an_external_header_cannot_point_further() -> None:
    with pytest.raises(DecodeError, match="yet another"):
        decode_external_header(encode_external_pointer(ExternalPointer(0, 10)))


def test_a_version_0_header_means_a_version_0_manifest_of_its_public_key() -> None:
    fields = encode_uint(0) + encode_uint(2) + encode_uint(9) + encode_buffer(b"r" * 32) + encode_buffer(b"q" * 64)
    keys = encode_buffer(KEY) + encode_buffer(b"s" * 64)
    expected = Header(
        key=KEY,
        manifest=default_manifest(KEY, version=0),
        key_pair=StoredKeyPair(KEY, b"s" * 64),
        fork=2,
        length=9,
        root_hash=b"r" * 32,
        signature=b"q" * 64,
        version=0,
    )
    assert decode_header(VERSION_0 + fields + keys + b"\x00") == expected
    assert decode_header(VERSION_0 + fields + keys + b"\x00\x05") == replace(expected, contiguous_length=5)
    reader = VERSION_0 + fields + encode_buffer(KEY) + b"\x00" + b"\x00"
    assert decode_header(reader) == replace(expected, key_pair=None)
    assert _decoded(encode_header(expected)) == replace(expected, version=1)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"\x02\x06" + KEY, "version 2"),
        (b"\xfd\x00\x01" + KEY, "version 256"),
        (b"\x01\x08" + KEY, "flags 0x8"),
        (b"\x01\x02" + KEY + b"\x04\x00\x00\x00\x00", "manifest has version 4"),
    ],
)
def test_what_a_newer_program_wrote_is_told_from_damage(body: bytes, message: str) -> None:
    with pytest.raises(NewerFormatError, match=message):
        decode_header(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x01",
        b"\x01\x00" + KEY[:31],
        b"\x01\x00" + KEY + b"\xfe\xff\xff\xff\xff",  # four thousand million pairs of user data
        b"\x01\x00" + KEY + b"\x00" + b"\xff" * 9,  # a fork above 2^53 - 1
        b"\x00\x03abc\x03raw\x07ed25519",
        VERSION_0 + b"\x00" * 8,  # no public key
    ],
)
def test_bytes_that_are_no_header_are_refused(body: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_header(body)


@pytest.mark.parametrize("seed", range(4))
def test_random_damage_to_a_header_is_refused_or_harmless(seed: int) -> None:
    generator = random.Random(seed)
    whole = encode_header(FULL)
    for _ in range(500):
        body = bytearray(whole[: generator.randrange(len(whole) + 1)])
        for _ in range(generator.randrange(3) if body else 0):
            body[generator.randrange(len(body))] = generator.randrange(256)
        try:
            header = decode_header(bytes(body))
        except (DecodeError, NewerFormatError):
            continue
        if isinstance(header, Header):
            assert _decoded(encode_header(header)) == replace(header, version=1), f"seed {seed}: {body.hex()}"


def test_external_headers_take_turns_and_never_touch_the_living_one() -> None:
    first = external_region(None, 5312)
    assert first == ExternalPointer(0, 5312)
    second = external_region(first, 5320)
    assert second == ExternalPointer(8192, 5320)
    assert external_region(second, 8192) == ExternalPointer(0, 8192)
    assert external_region(second, 8193) == ExternalPointer(16384, 8193)
    assert external_region(ExternalPointer(0, 4096), 10) == ExternalPointer(4096, 10)


@pytest.mark.parametrize("seed", range(3))
def test_no_sequence_of_external_headers_overwrites_the_one_before(seed: int) -> None:
    generator = random.Random(seed)
    previous = external_region(None, 5000)
    for _ in range(200):
        new = external_region(previous, generator.randrange(1, 30_000))
        apart = new.start >= previous.start + previous.length or new.start + new.length <= previous.start
        assert apart, f"seed {seed}: {previous}, {new}"
        previous = new


def test_reorg_hints_stay_few_and_never_promise_more_than_the_newest_fork_kept() -> None:
    hints: tuple[ReorgHint, ...] = ()
    for fork, ancestors in enumerate([3, 5, 7, 9, 11]):
        hints = add_reorg_hint(hints, from_fork=fork, to_fork=fork + 1, ancestors=ancestors)
    assert [hint.ancestors for hint in hints] == [5, 7, 9, 11]
    hints = add_reorg_hint(hints, from_fork=5, to_fork=6, ancestors=8)
    assert hints == (ReorgHint(2, 3, 7), ReorgHint(5, 6, 8))
    assert len(add_reorg_hint(hints, from_fork=6, to_fork=7, ancestors=8)) == 3
    assert add_reorg_hint(hints, from_fork=6, to_fork=7, ancestors=0) == (ReorgHint(6, 7, 0),)


def _decoded(body: bytes) -> Header:
    header = decode_header(body)
    assert isinstance(header, Header)
    return header

"""Entries come back from their bytes as they were, and nothing that is not an entry is taken for one."""

from __future__ import annotations

import random

import pytest

from hypercore.errors import DecodeError, NewerFormatError
from hypercore.log.entry import MAX_NODE_COUNT, BitRange, Entry, TreeUpgrade, decode_entry, encode_entry
from hypercore.proofs import Node

HASH = bytes(range(32))
FULL = Entry(
    user_data=("key", b"value"),
    nodes=(Node(2, 7, HASH), Node(1, 14, HASH[::-1])),
    upgrade=TreeUpgrade(1, 2, 300, b"s" * 64),
    bits=BitRange(False, 1, 299),
)


@pytest.mark.parametrize(
    "entry",
    [
        FULL,
        Entry(),
        Entry(user_data=("gone", None)),
        Entry(user_data=("k\udcff", b"\x00")),
        Entry(bits=BitRange(True, 2**53 - 1, 2**32)),
        Entry(upgrade=TreeUpgrade(1, 5, 5, b""), bits=BitRange(True, 5, 3), empty_nodes=True),
        Entry(upgrade=TreeUpgrade(1, 5, 5, b"")),
    ],
)
def test_an_entry_comes_back_as_it_was(entry: Entry) -> None:
    assert decode_entry(encode_entry(entry)) == entry


def test_nodes_come_back_whatever_the_size_of_their_numbers() -> None:
    numbers = [0, 1, 0xFC, 0xFD, 0xFFFF, 0x10000, 0xFFFFFFFF, 0x100000000, 2**53 - 1]
    nodes = tuple(Node(index, size, HASH) for index in numbers for size in numbers)
    body = encode_entry(Entry(nodes=nodes))
    assert decode_entry(body).nodes == nodes
    lengths = [1, 1, 1, 3, 3, 5, 5, 9, 9]
    assert len(body) == 2 + sum(i + j + 32 for i in lengths for j in lengths), "the shortest forms are written"


def test_entries_are_the_bytes_of_the_specification() -> None:
    assert encode_entry(Entry(bits=BitRange(True, 2, 2))).hex() == "08010202"
    assert encode_entry(Entry(user_data=("first", None))).hex() == "0105666972737400"
    cut = Entry(upgrade=TreeUpgrade(1, 5, 5, b""), bits=BitRange(True, 5, 3), empty_nodes=True)
    assert encode_entry(cut).hex() == "0e000105050001" + "0503"


def test_bytes_behind_an_entry_are_ignored() -> None:
    assert decode_entry(encode_entry(FULL) + b"more") == FULL


def test_an_entry_that_others_could_not_read_is_not_written() -> None:
    with pytest.raises(ValueError, match="at most 1048576"):
        encode_entry(Entry(nodes=[Node(0, 0, HASH)] * (MAX_NODE_COUNT + 1)))
    with pytest.raises(ValueError, match="above 2"):
        encode_entry(Entry(nodes=[Node(2**53, 0, HASH)]))
    with pytest.raises(ValueError, match="negative"):
        encode_entry(Entry(nodes=[Node(0, -1, HASH)]))


def test_an_unknown_flag_was_written_by_something_newer() -> None:
    with pytest.raises(NewerFormatError, match="flags 0x18"):
        decode_entry(b"\x18\x00\x00\x00")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x01\x05abc",
        b"\x02\x01" + bytes(33),
        b"\x02\xfe\xff\xff\xff\xff" + bytes(100),  # four thousand million nodes
        b"\x02\x02\x00\x00" + HASH + b"\xfd\x00\x01\x00" + HASH[:30],  # enough bytes, were the numbers shorter
        b"\x04\x00\x00\x00",
        b"\x08\x00\x00",
        b"\x08\x00\x00" + b"\xff" * 9,
        b"\x02\x01" + b"\xff" * 9 + bytes(33),
    ],
)
def test_bytes_that_are_no_entry_are_refused(body: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_entry(body)


@pytest.mark.parametrize("seed", range(4))
def test_random_damage_to_an_entry_is_refused_or_harmless(seed: int) -> None:
    generator = random.Random(seed)
    whole = encode_entry(FULL)
    for _ in range(500):
        body = bytearray(whole[: generator.randrange(len(whole) + 1)])
        for _ in range(generator.randrange(4) if body else 0):
            body[generator.randrange(len(body))] = generator.randrange(256)
        try:
            entry = decode_entry(bytes(body))
        except (DecodeError, NewerFormatError):
            continue
        assert decode_entry(encode_entry(entry)) == entry, f"seed {seed}: {body.hex()}"

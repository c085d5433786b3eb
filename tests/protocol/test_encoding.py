"""Compact encoding agrees with the recorded values, and refuses what the wire must not carry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hypercore.encoding import MAX_SAFE_INTEGER, Reader, encode_buffer, encode_string, encode_uint
from hypercore.errors import DecodeError
from hypercore.protocol.messages import Bitfield
from tests.protocol.support import encoded, load

VECTORS = load("compact-encoding.json")

#: Codecs of the recording that neither the wire nor the files use, so that there is nothing of ours to try.
UNUSED = {"bool", "int", "uint8", "uint16", "uint24", "uint32", "uint64"}


def encode_words(words: list[int]) -> bytes:
    data = b"".join(word.to_bytes(4, "little") for word in words)
    return encoded(Bitfield(0, data))[2:]


def read_words(reader: Reader) -> list[int]:
    count = reader.count(smallest_item_size=4)
    return [int.from_bytes(reader.fixed(4), "little") for _ in range(count)]


ENCODERS: dict[str, Callable[[Any], bytes]] = {
    "uint": encode_uint,
    "buffer": lambda value: encode_buffer(bytes.fromhex(value)),
    "optionalBuffer": lambda value: encode_buffer(None if value is None else bytes.fromhex(value)),
    "string": encode_string,
    "fixed32": bytes.fromhex,
    "fixed64": bytes.fromhex,
    "raw": bytes.fromhex,
    "array(uint)": lambda values: encode_uint(len(values)) + b"".join(map(encode_uint, values)),
    "array(string)": lambda values: encode_uint(len(values)) + b"".join(map(encode_string, values)),
    "uint32array": encode_words,
}

DECODERS: dict[str, Callable[[Reader], Any]] = {
    "uint": Reader.uint,
    "buffer": lambda reader: reader.buffer().hex(),
    "optionalBuffer": lambda reader: reader.buffer().hex(),
    "string": Reader.string,
    "fixed32": lambda reader: reader.fixed(32).hex(),
    "fixed64": lambda reader: reader.fixed(64).hex(),
    "raw": lambda reader: reader.rest().hex(),
    "array(uint)": lambda reader: [reader.uint() for _ in range(reader.count(smallest_item_size=1, limit=2**20))],
    "array(string)": lambda reader: [reader.string() for _ in range(reader.count(smallest_item_size=1, limit=2**20))],
    "uint32array": read_words,
}


def used(kind: str) -> list[Any]:
    return [vector for vector in VECTORS[kind] if vector["codec"] not in UNUSED]


def test_every_codec_of_the_recording_is_ours_or_unused() -> None:
    codecs = {vector["codec"] for kind in ("good", "lenient", "refused") for vector in VECTORS[kind]}
    assert codecs == ENCODERS.keys() | UNUSED


@pytest.mark.parametrize("vector", used("good"), ids=lambda vector: f"{vector['codec']}-{vector['hex'][:20]}")
def test_values_repeat_both_ways(vector: dict[str, Any]) -> None:
    codec, value = vector["codec"], vector["value"]
    if codec == "uint" and value > MAX_SAFE_INTEGER:
        with pytest.raises(ValueError, match=str(value)):
            encode_uint(value)
        return
    data = bytes.fromhex(vector["hex"])
    assert ENCODERS[codec](value) == data
    reader = Reader(data)
    assert DECODERS[codec](reader) == (value or "" if codec == "optionalBuffer" else value)
    assert reader.remaining == 0


@pytest.mark.parametrize("vector", used("lenient"), ids=lambda vector: f"{vector['codec']}-{vector['hex']}")
def test_odd_forms_are_read(vector: dict[str, Any]) -> None:
    reader = Reader(bytes.fromhex(vector["hex"]))
    assert DECODERS[vector["codec"]](reader) == vector["value"]
    assert reader.offset == vector["consumed"]


@pytest.mark.parametrize("vector", used("refused"), ids=lambda vector: f"{vector['codec']}-{vector['hex']}")
def test_short_and_oversized_input_is_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(DecodeError):
        DECODERS[vector["codec"]](Reader(bytes.fromhex(vector["hex"])))


def test_a_reader_stays_between_its_ends() -> None:
    reader = Reader(b"\xfd\x05\x00\x07", 3, 4)
    assert reader.uint() == 7
    with pytest.raises(DecodeError):
        Reader(b"\xfd\x05\x00", 0, 2).uint()
    with pytest.raises(DecodeError):
        Reader(b"\x03abc", 0, 3).buffer()

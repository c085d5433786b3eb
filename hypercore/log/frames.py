"""Frames: a body with its checksum, its length and two bits in front (disk spec, section 2.1).

Pure. Knows nothing of what the bodies mean, except for the one question whether damage is followed by something that
was once written on purpose.
"""

from __future__ import annotations

import re
import struct
from typing import Final, NamedTuple
from zlib import crc32

from hypercore.encoding import decode_uint
from hypercore.errors import DecodeError
from hypercore.log.entry import LARGEST_NODE_SIZE, SMALLEST_NODE_SIZE

FRAME_HEAD_SIZE: Final = 8
#: The other implementation computes the second word of the head in signed 32-bit numbers.
MAX_BODY_SIZE: Final = 2**29 - 1

#: What an entry holds besides user data and nodes: an upgrade with its signature, and a bit range.
_MAX_REST_SIZE: Final = 70_000
#: Bytes that a search may put through the checksum. The torn write of the largest entry there is needs a third of it;
#: only a file made for the purpose needs more, and it must not keep us busy for hours.
SEARCH_EFFORT: Final = 4 * 2**30

_pack_u32 = struct.Struct("<I").pack
_pack_head = struct.Struct("<II").pack
_unpack_head = struct.Struct("<II").unpack_from


class Frame(NamedTuple):
    """A frame whose checksum holds. `end` is the offset behind it."""

    bit: int
    partial: bool
    body: bytes
    end: int


def frame(body: bytes, *, bit: int, partial: bool = False) -> bytes:
    """`body` with its head in front. Raises `ValueError` for a body of 2^29 bytes or more."""
    size = len(body)
    if size > MAX_BODY_SIZE:
        raise ValueError(f"a body of {size} bytes; at most {MAX_BODY_SIZE} fit in a frame")
    word = size << 2 | partial << 1 | bit
    return _pack_head(crc32(body, crc32(_pack_u32(word))), word) + body


def read_frame(data: bytes, offset: int, end: int) -> Frame | None:
    """The frame at `offset`, or None when none that is whole and undamaged lies there before `end`."""
    start = offset + FRAME_HEAD_SIZE
    if start > end:
        return None
    checksum, word = _unpack_head(data, offset)
    stop = start + (word >> 2)
    if stop > end or word >> 2 > MAX_BODY_SIZE:
        return None
    body = data[start:stop]
    if crc32(body, crc32(data[offset + 4 : start])) != checksum:
        return None
    return Frame(word & 1, bool(word & 2), body, stop)


def find_entry_frame(data: bytes, offset: int, bit: int, *, effort: int = SEARCH_EFFORT) -> int | None:
    """Where behind `offset` the first whole frame lies that carries `bit` and could hold an entry.

    Answers with an offset, too, when more than `effort` bytes would have to be summed up to find out: then the bytes
    were made to look like entries, and are not the rest of an unfinished write.
    """
    size = len(data)
    view = memoryview(data)
    # The byte before a body is the top byte of its length, nearly always zero: a quick thing to search for. Two bytes
    # further left is the one with the bit; the first one behind is the flags of an entry.
    low_bytes = b"".join(b"\\x%02x" % value for value in range(bit, 256, 2))
    high_byte = b"\\x00-\\x%02x" % min((size - offset) >> 22, 255)
    pattern = re.compile(b"(?s)(?<=[" + low_bytes + b"]..)[" + high_byte + b"](?=[\x01-\x0f])")
    for match in pattern.finditer(data, offset + FRAME_HEAD_SIZE):
        start = match.end()
        checksum, word = _unpack_head(data, start - FRAME_HEAD_SIZE)
        stop = start + (word >> 2)
        if stop > size or not _could_be_entry(data, start, stop):
            continue
        if crc32(view[start - 4 : stop]) == checksum:
            return start - FRAME_HEAD_SIZE
        effort -= stop - start
        if effort < 0:
            return start - FRAME_HEAD_SIZE
    return None


def _could_be_entry(data: bytes, start: int, stop: int) -> bool:
    """Whether the body is as long as its fields say, as far as can be told without walking through its nodes."""
    flags, offset = data[start], start + 1
    try:
        if flags & 1:
            offset = _skip(data, offset, stop, buffers=2)
        if flags & 2:
            count, offset = decode_uint(data, offset, stop)
            left = stop - offset
            return count * SMALLEST_NODE_SIZE <= left <= count * LARGEST_NODE_SIZE + _MAX_REST_SIZE
        if flags & 4:
            offset = _skip(data, offset, stop, numbers=3, buffers=1)
        if flags & 8:
            offset = _skip(data, offset + 1, stop, numbers=2)
    except DecodeError:
        return False
    return offset == stop


def _skip(data: bytes, offset: int, stop: int, *, numbers: int = 0, buffers: int = 0) -> int:
    """The offset behind so many numbers and buffers."""
    for _ in range(numbers):
        _number, offset = decode_uint(data, offset, stop)
    for _ in range(buffers):
        size, offset = decode_uint(data, offset, stop)
        offset += size
    return offset

"""Compact encoding: the integers, buffers and arrays of Hypercore's messages and files (wire spec, section 1).

Ground floor: knows bytes and numbers, not what they mean. Everything is little-endian. Writers use the shortest
form; readers accept any form, refuse numbers above 2^53 - 1, and never look past the end that they were given.
"""

from __future__ import annotations

import struct
from typing import Final

from hypercore.errors import DecodeError

#: Numbers are doubles in the other implementation; above this they would lose digits, so nobody may send them.
MAX_SAFE_INTEGER: Final = 2**53 - 1

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_pack_marked_u16 = struct.Struct("<BH").pack
_pack_marked_u32 = struct.Struct("<BI").pack
_pack_marked_u64 = struct.Struct("<BQ").pack

_SMALL: Final = tuple(bytes([value]) for value in range(253))


def encode_uint(value: int) -> bytes:
    """The shortest form of `value`, 1 to 9 bytes.

    Raises `ValueError` when the value is negative or above 2^53 - 1.
    """
    if 0 <= value <= 0xFC:
        return _SMALL[value]
    if value < 0:
        raise ValueError(f"{value} is negative")
    if value <= 0xFFFF:
        return _pack_marked_u16(0xFD, value)
    if value <= 0xFFFFFFFF:
        return _pack_marked_u32(0xFE, value)
    if value <= MAX_SAFE_INTEGER:
        return _pack_marked_u64(0xFF, value)
    raise ValueError(f"{value} is above 2^53 - 1")


def decode_uint(data: bytes | memoryview, offset: int, end: int) -> tuple[int, int]:
    """The number at `offset` and the offset behind it. Raises `DecodeError`."""
    if offset >= end:
        raise DecodeError(f"a number is missing at byte {offset}")
    first = data[offset]
    if first <= 0xFC:
        return first, offset + 1
    if first == 0xFD:
        if offset + 3 <= end:
            return data[offset + 1] | data[offset + 2] << 8, offset + 3
    elif first == 0xFE:
        if offset + 5 <= end:
            return _U32.unpack_from(data, offset + 1)[0], offset + 5
    elif offset + 9 <= end:
        value: int = _U64.unpack_from(data, offset + 1)[0]
        if value > MAX_SAFE_INTEGER:
            raise DecodeError(f"the number {value} at byte {offset} is above 2^53 - 1")
        return value, offset + 9
    raise DecodeError(f"the number at byte {offset} is cut off")


def encode_buffer(data: bytes | None) -> bytes:
    """`data` with its length in front; none and empty look the same."""
    if not data:
        return b"\x00"
    return encode_uint(len(data)) + data


def encode_string(text: str) -> bytes:
    """UTF-8 with its byte length in front."""
    return encode_buffer(text.encode())


class Reader:
    """A cursor over `data[offset:end]` for decoders that are not on the hot path."""

    __slots__ = ("data", "end", "offset")

    def __init__(self, data: bytes, offset: int = 0, end: int | None = None) -> None:
        self.data = data
        self.offset = offset
        self.end = len(data) if end is None else end

    @property
    def remaining(self) -> int:
        """Bytes not read yet."""
        return self.end - self.offset

    def uint(self) -> int:
        value, self.offset = decode_uint(self.data, self.offset, self.end)
        return value

    def fixed(self, size: int) -> bytes:
        """Exactly `size` raw bytes."""
        start, stop = self.offset, self.offset + size
        if stop > self.end:
            raise DecodeError(f"{size} bytes wanted at byte {start}, {self.remaining} are left")
        self.offset = stop
        return bytes(self.data[start:stop])

    def buffer(self, *, limit: int = MAX_SAFE_INTEGER) -> bytes:
        """Bytes with their length in front, at most `limit` of them."""
        size = self.uint()
        if size > limit:
            raise DecodeError(f"{size} bytes announced at byte {self.offset}, at most {limit} are accepted")
        return self.fixed(size)

    def string(self, *, limit: int = MAX_SAFE_INTEGER) -> str:
        """UTF-8 text of at most `limit` bytes; invalid UTF-8 becomes U+FFFD, as it does for other peers."""
        return self.buffer(limit=limit).decode(errors="replace")

    def count(self, *, smallest_item_size: int, limit: int = MAX_SAFE_INTEGER) -> int:
        """The count of an array, checked against `limit` and against the bytes that are left to hold it."""
        count = self.uint()
        if count > limit:
            raise DecodeError(f"an array of {count} items at byte {self.offset}, at most {limit} are accepted")
        if count * smallest_item_size > self.remaining:
            raise DecodeError(f"an array of {count} items at byte {self.offset} cannot fit in {self.remaining} bytes")
        return count

    def rest(self) -> bytes:
        """Everything that is left."""
        return self.fixed(self.remaining)

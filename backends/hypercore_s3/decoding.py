"""Bytes taken apart one after the other, never past their end, in memory proportional to their size.

Pure. It must not know what is being read, only what may be called how.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any, Final

from hypercore.errors import CorruptError, NewerFormatError, OptionError
from hypercore.storage import check_name
from hypercore_s3.layout import checkpoint_sequence, commit_sequence

#: No file grows beyond it, so that sums of offsets fit into 64 bits.
FILE_SIZE_MAX: Final = 1 << 60

_CHECK: Final = struct.Struct("<I")
CHECK_SIZE: Final = _CHECK.size


def checked(data: bytes) -> bytes:
    """The bytes, and their checksum behind them."""
    return data + _CHECK.pack(zlib.crc32(data))


def holds(data: bytes) -> bool:
    """Whether the last bytes are the checksum of those before."""
    if len(data) < CHECK_SIZE:
        return False
    return bool(_CHECK.unpack_from(data, len(data) - CHECK_SIZE)[0] == zlib.crc32(memoryview(data)[:-CHECK_SIZE]))


def pack_name(name: str) -> bytes:
    """As `Reader.name` reads it."""
    data = name.encode()
    return bytes((len(data),)) + data


def check_magic(found: bytes, wanted: bytes, name: str, what: str) -> None:
    """The last byte of a magic is the version. Raises `CorruptError`, `NewerFormatError`."""
    if found == wanted:
        return
    if found[:-1] == wanted[:-1]:
        raise NewerFormatError(f"object {name} is a {what} of version {found[-1]}, and this program reads {wanted[-1]}")
    raise CorruptError(f"object {name} is damaged: it is no {what}", file=name)


class Reader:
    """Bytes from `position` to `end`, taken one after the other; never past the end."""

    def __init__(self, data: bytes, position: int, end: int, name: str) -> None:
        self._data = data
        self._position = position
        self.end = end
        self._name = name

    @property
    def left(self) -> int:
        return self.end - self._position

    def corrupt(self, why: str) -> CorruptError:
        return CorruptError(f"object {self._name} is damaged: {why}", file=self._name)

    def bytes(self, size: int) -> bytes:
        """The next bytes."""
        if size > self.left:
            raise self.corrupt("it ends too soon")
        data = self._data[self._position : self._position + size]
        self._position += size
        return data

    def take(self, fields: struct.Struct) -> tuple[Any, ...]:
        return fields.unpack(self.bytes(fields.size))

    def fitting(self, count: int) -> int:
        """A count that the bytes that are left can hold."""
        if count > self.left:
            raise self.corrupt("it ends too soon")
        return count

    def name(self) -> str:
        """What a file is called."""
        try:
            name = self.bytes(self.bytes(1)[0]).decode()
            check_name(name)
        except (UnicodeDecodeError, OptionError) as error:
            raise self.corrupt("a name in it is none") from error
        return name

    def object_name(self) -> str:
        """What a commit or a checkpoint is called: nothing else is ever read or removed."""
        name = self.bytes(self.bytes(1)[0]).decode(errors="replace")
        if commit_sequence(name) is None and checkpoint_sequence(name) is None:
            raise self.corrupt("a name in it is none")
        return name

"""An object's payload in frames, each followed by its CRC-32: what is read can be checked piece by piece.

Pure. It must not know what the payload means. A check also covers the object's name and the frame's number, so
that good bytes in the wrong place are found out, too.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from hypercore.errors import CorruptError

#: A whole number of the engine's tree pages (20 KiB) and bitfield pages (4 KiB). What is larger costs a random
#: reader more bytes than the request itself is worth, what is smaller more checks and table.
FRAME_SIZE: Final = 80 * 1024
_CHECK: Final = struct.Struct("<I")
CHECK_SIZE: Final = _CHECK.size


@dataclass(frozen=True, slots=True, eq=False)
class Body:
    """The payload of one object: `size` bytes, from byte `base` of the object on, in frames.

    The first frame holds `first` bytes, the last what is left, every other one `FRAME_SIZE`. So pages that follow
    something of any size can begin with a frame. `name` is the object's, below the storage's prefix.
    """

    name: str
    base: int
    first: int
    size: int

    @property
    def count(self) -> int:
        """Frames."""
        return self.number(self.size - 1) + 1 if self.size else 0

    @property
    def framed_size(self) -> int:
        """Bytes that the payload takes in the object, checks included."""
        return self.size + CHECK_SIZE * self.count

    def number(self, offset: int) -> int:
        """The frame in which the payload's byte `offset` lies."""
        return 0 if offset < self.first else 1 + (offset - self.first) // FRAME_SIZE

    def start(self, number: int) -> int:
        """Where in the payload a frame begins."""
        return 0 if number == 0 else min(self.first + (number - 1) * FRAME_SIZE, self.size)

    def position(self, number: int) -> int:
        """Where in the object a frame begins."""
        return self.base + self.start(number) + CHECK_SIZE * number

    def check(self, number: int, data: bytes) -> bytes:
        """What follows the frame's bytes in the object."""
        seed = zlib.crc32(_CHECK.pack(number), zlib.crc32(self.name.encode()))
        return _CHECK.pack(zlib.crc32(data, seed))

    def framed(self, frames: Sequence[bytes]) -> list[bytes]:
        """The payload's frames as they lie in the object."""
        pieces: list[bytes] = []
        for number, data in enumerate(frames):
            pieces += (data, self.check(number, data))
        return pieces

    def checked(self, first: int, end: int, raw: bytes) -> list[bytes]:
        """The frames from `first` to `end` out of the bytes that the object has there. Raises `CorruptError`."""
        frames = []
        position = 0
        for number in range(first, end):
            size = self.start(number + 1) - self.start(number)
            data = raw[position : position + size]
            position += size + CHECK_SIZE
            if len(data) < size or raw[position - CHECK_SIZE : position] != self.check(number, data):
                where = self.position(number)
                raise CorruptError(
                    f"object {self.name} is damaged: its bytes from {where} on do not fit their checksum",
                    file=self.name,
                    offset=where,
                )
            frames.append(data)
        return frames


def body_of(name: str, *, base: int, size: int, aligned: int = 0) -> Body:
    """A body in which a frame begins at the payload's byte `aligned`."""
    return Body(name, base, aligned % FRAME_SIZE or FRAME_SIZE, size)


def cut(body: Body, pieces: Iterable[bytes]) -> list[bytes]:
    """The payload, which comes in pieces of any size, as the bytes of its frames."""
    frames: list[bytes] = []
    parts: list[bytes | memoryview] = []
    room = body.first
    for piece in pieces:
        if len(piece) == room and not parts:
            frames.append(piece)
            room = FRAME_SIZE
            continue
        view = memoryview(piece)
        while len(view) >= room:
            parts.append(view[:room])
            frames.append(b"".join(parts))
            parts.clear()
            view, room = view[room:], FRAME_SIZE
        if view:
            parts.append(view)
            room -= len(view)
    if parts:
        frames.append(b"".join(parts))
    return frames

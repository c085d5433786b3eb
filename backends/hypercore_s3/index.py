"""The bytes of a checkpoint's end: the index of all files, and the footer that says where it begins.

Pure. Everything has a checksum and is refused with a typed error when it does not hold.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from hypercore.errors import CorruptError
from hypercore_s3.decoding import CHECK_SIZE, FILE_SIZE_MAX, Reader, check_magic, checked, holds, pack_name
from hypercore_s3.extents import Extents
from hypercore_s3.frames import FRAME_SIZE, Body
from hypercore_s3.layout import Pointer, check_pointer, checkpoint_sequence


class FileIndex(NamedTuple):
    """A file as an index knows it. `identity` tells it from others that had its name before or after."""

    name: str
    identity: int
    size: int
    extents: Extents


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """All files as they were after commit `sequence`."""

    sequence: int
    epoch: int
    files: Sequence[FileIndex]
    bodies: Sequence[Body]
    #: Objects that nothing points into any more, and that may still be there.
    doomed: Sequence[str]


_INDEX_MAGIC: Final = b"hcs3idx\x01"
#: magic; sequence, epoch; how many bodies, files, doomed objects; bytes kept in the index itself
_INDEX: Final = struct.Struct("<8sQQIIIQ")
_BODY: Final = struct.Struct("<QIQ")
_FILE: Final = struct.Struct("<QQQ")
_EXTENT: Final = struct.Struct("<QQQQ")
#: In place of a body's number: the bytes are in the index.
_INLINE: Final = (1 << 64) - 1
_FOOTER_MAGIC: Final = b"hcs3end\x01"
#: magic; where the index begins, its size, where the hot pages begin. A checksum follows
_FOOTER: Final = struct.Struct("<8sQQQ")
FOOTER_SIZE: Final = _FOOTER.size + CHECK_SIZE


def encode_index(index: Index) -> bytes:
    """The index, without the footer."""
    numbers = {body: number for number, body in enumerate(index.bodies)}
    parts: list[bytes] = []
    inline: list[bytes] = []
    inline_size = 0
    for name, identity, size, extents in index.files:
        parts += (pack_name(name), _FILE.pack(identity, size, len(extents)))
        rows: list[int] = []
        for start, end, source, offset in extents:
            if isinstance(source, Body):
                rows += (start, end, numbers[source], offset)
            else:
                rows += (start, end, _INLINE, inline_size)
                inline.append(source[offset : offset + end - start])
                inline_size += end - start
        parts.append(struct.pack(f"<{len(rows)}Q", *rows))
    head = _INDEX.pack(
        _INDEX_MAGIC,
        index.sequence,
        index.epoch,
        len(index.bodies),
        len(index.files),
        len(index.doomed),
        inline_size,
    )
    bodies = [pack_name(body.name) + _BODY.pack(body.base, body.first, body.size) for body in index.bodies]
    return checked(b"".join([head, *bodies, *parts, *map(pack_name, index.doomed), *inline]))


def decode_index(data: bytes, name: str) -> Index:
    """Raises `CorruptError`, `NewerFormatError`."""
    if not holds(data):
        raise CorruptError(f"object {name} is damaged: its index does not fit its checksum", file=name)
    reader = Reader(data, 0, len(data) - CHECK_SIZE, name)
    magic, sequence, epoch, body_count, file_count, doomed_count, inline_size = reader.take(_INDEX)
    check_magic(magic, _INDEX_MAGIC, name, "index")
    bodies = []
    for _ in range(reader.fitting(body_count)):
        body = Body(reader.object_name(), *reader.take(_BODY))
        if not 0 < body.first <= FRAME_SIZE or not body.size <= FILE_SIZE_MAX >= body.base:
            raise reader.corrupt("what it says of another object makes no sense")
        bodies.append(body)
    inline = data[reader.end - inline_size : reader.end] if inline_size <= reader.left else b""
    files = [_read_file(reader, bodies, inline) for _ in range(reader.fitting(file_count))]
    doomed = [reader.object_name() for _ in range(reader.fitting(doomed_count))]
    if reader.left != inline_size or len({file.name for file in files}) != len(files):
        raise reader.corrupt("its parts do not fit together")
    return Index(sequence=sequence, epoch=epoch, files=files, bodies=bodies, doomed=doomed)


def _read_file(reader: Reader, bodies: Sequence[Body], inline: bytes) -> FileIndex:
    name = reader.name()
    identity, size, count = reader.take(_FILE)
    if count * _EXTENT.size > reader.left or size > FILE_SIZE_MAX:
        raise reader.corrupt("its parts do not fit together")
    extents = Extents()
    reached = 0
    for start, end, number, offset in _EXTENT.iter_unpack(reader.bytes(count * _EXTENT.size)):
        if not reached <= start < end <= size or (number != _INLINE and number >= len(bodies)):
            raise reader.corrupt("its extents make no sense")
        source = inline if number == _INLINE else bodies[number]
        if offset + end - start > (len(inline) if number == _INLINE else bodies[number].size):
            raise reader.corrupt("its extents make no sense")
        extents.append(start, end, source, offset)
        reached = end
    return FileIndex(name, identity, size, extents)


def encode_footer(*, index_offset: int, index_size: int, hot: int) -> bytes:
    """The last bytes of a checkpoint: what the head says of it, for when the head is lost."""
    return checked(_FOOTER.pack(_FOOTER_MAGIC, index_offset, index_size, hot))


def decode_footer(data: bytes, name: str, size: int) -> Pointer:
    """What the footer, the last bytes of a checkpoint of `size` bytes, says of it. Raises `CorruptError`."""
    sequence = checkpoint_sequence(name)
    if len(data) != FOOTER_SIZE or sequence is None:
        raise CorruptError(f"object {name} is cut short: it has no footer", file=name)
    if not holds(data):
        raise CorruptError(f"object {name} is damaged: its footer does not fit its checksum", file=name)
    magic, index_offset, index_size, hot = _FOOTER.unpack_from(data)
    check_magic(magic, _FOOTER_MAGIC, name, "checkpoint")
    pointer = Pointer(
        name=name, sequence=sequence, size=size, hot=hot, index_offset=index_offset, index_size=index_size
    )
    try:
        check_pointer(pointer)
    except ValueError as error:
        raise CorruptError(f"object {name} is damaged: {error}", file=name) from error
    return pointer


#: A checkpoint begins with this, so that whoever looks at one sees what it is.
CHECKPOINT_MAGIC: Final = b"hcs3chk\x01"

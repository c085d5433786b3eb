"""The bytes of the objects: head, commit, checkpoint index, and what they are called.

Pure: nothing is fetched here. Everything has a checksum, is refused with a typed error when it does not hold, and
is decoded in memory proportional to its own size. docs/decisions/s3-layout.md says what the objects are for.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple

from hypercore.errors import CorruptError, NewerFormatError, OptionError
from hypercore.storage import check_name
from hypercore_s3.extents import Extents
from hypercore_s3.frames import FRAME_SIZE, Body

VERSION: Final = 1
HEAD: Final = "head"
_COMMIT_NAME: Final = re.compile(r"commits/[0-9a-f]{16}")
_PROBE_NAME: Final = re.compile(r"probe-[0-9a-f]{32}")
_CHECKPOINT_NAME: Final = re.compile(r"checkpoints/([0-9a-f]{16})-[0-9a-f]{16}")

#: No file grows beyond it, so that sums of offsets fit into 64 bits.
FILE_SIZE_MAX: Final = 1 << 60
#: A commit's operations; also how many of them a file's identity can tell apart.
STEPS_MAX: Final = 1 << 20
#: The table of a whole mirror of a thousand terabytes is smaller.
INDEX_SIZE_MAX: Final = 1 << 30
#: Small writes of one commit; four times of what is folded at the latest.
FRONT_SIZE_MAX: Final = 1 << 30

_CHECK: Final = struct.Struct("<I")


def commit_name(sequence: int) -> str:
    """What the commit of this number is called."""
    return f"commits/{sequence:016x}"


def checkpoint_name(sequence: int, unique: bytes) -> str:
    """What a checkpoint that covers the commits up to `sequence` is called."""
    return f"checkpoints/{sequence:016x}-{unique.hex()}"


def probe_name(owner: bytes) -> str:
    """What the object is called on which `owner` tries the endpoint's conditions; it is there for a moment."""
    return f"probe-{owner.hex()}"


def checkpoint_sequence(name: str) -> int | None:
    """The number that a checkpoint's name says; None for what is no checkpoint."""
    match = _CHECKPOINT_NAME.fullmatch(name)
    return None if match is None else int(match[1], 16)


def commit_sequence(name: str) -> int | None:
    """The number of a commit's name; None for what is no commit."""
    return int(name[-16:], 16) if _COMMIT_NAME.fullmatch(name) else None


def belongs(name: str) -> bool:
    """Whether an object of this name is ours, or of another storage below this one's prefix."""
    parts = name.split("/")
    if parts[-1] == HEAD or _PROBE_NAME.fullmatch(parts[-1]):
        return True
    return any(pattern.fullmatch("/".join(parts[-2:])) for pattern in (_COMMIT_NAME, _CHECKPOINT_NAME))


# ---- the head -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointer:
    """The newest checkpoint. `size` bytes in all; the index and the pages before it that were written last begin at
    `hot`."""

    name: str
    sequence: int
    size: int
    hot: int
    index_offset: int
    index_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Who may write, and from where on the commits count."""

    #: 16 random bytes of the storage object that has the lease, as hex.
    owner: str
    host: str
    pid: int
    #: What tells, on the same machine, whether the process is still there; empty when nothing does.
    process: str
    epoch: int
    lease_seconds: float
    released: bool
    checkpoint: Pointer | None
    #: The place whose conditional writes were tried.
    proved: str
    #: Raised with every PUT, so that no two heads ever have the same ETag.
    beat: int


def encode_head(head: Head) -> bytes:
    """The object `head`: JSON, because operators look into it."""
    fields = {"format": "hypercore-s3", "version": VERSION, **asdict(head)}
    text = json.dumps({**fields, "check": _json_check(fields)}, indent=1)
    return text.encode() + b"\n"


def _json_check(fields: Mapping[str, object]) -> int:
    return zlib.crc32(json.dumps(fields, sort_keys=True).encode())


def decode_head(data: bytes) -> Head:
    """Raises `CorruptError`, `NewerFormatError`."""
    try:
        fields = json.loads(data)
        if fields.pop("format") != "hypercore-s3":
            raise ValueError("it is something else")
        version = fields.pop("version")
        if isinstance(version, int) and version > VERSION:
            raise NewerFormatError(
                f"object {HEAD} is of version {version}, and this program reads {VERSION}; it needs a newer one"
            )
        if fields.pop("check") != _json_check({"format": "hypercore-s3", "version": version, **fields}):
            raise ValueError("it does not fit its checksum")
        pointer = fields.pop("checkpoint")
        head = Head(checkpoint=None if pointer is None else Pointer(**pointer), **fields)
        if head.checkpoint is not None:
            _check_pointer(head.checkpoint)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CorruptError(
            f"object {HEAD} is damaged ({error}); when it is removed, it is made again from the newest checkpoint",
            file=HEAD,
        ) from error
    return head


def _check_pointer(pointer: Pointer) -> None:
    if not 0 <= pointer.hot <= pointer.index_offset <= pointer.index_offset + pointer.index_size <= pointer.size:
        raise ValueError("its checkpoint's index lies outside of it")
    if pointer.index_size > INDEX_SIZE_MAX:
        raise ValueError(f"its checkpoint's index has {pointer.index_size} bytes")


# ---- a commit -------------------------------------------------------------------------------------

WRITE: Final = 0
#: A write whose bytes stay where they are in the commit.
WRITE_HERE: Final = 1
DELETE: Final = 2
TRUNCATE: Final = 3
UNLINK: Final = 4


class Step(NamedTuple):
    """One change of one file. `size` is that of the bytes, of what is deleted, or of the file."""

    kind: int
    name: str
    offset: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """A commit as it was made or read. The bytes of small writes are here, in order; large ones lie in `body`."""

    sequence: int
    epoch: int
    owner: bytes
    #: Tells the commits of one owner apart: a number never used twice.
    attempt: int
    #: It says only that nobody else's commit can have this number; it is never removed.
    fence: bool = False
    steps: Sequence[Step] = ()
    small: Sequence[bytes] = ()
    body: Body | None = None

    @property
    def name(self) -> str:
        return commit_name(self.sequence)

    @property
    def small_size(self) -> int:
        """Bytes that have to be folded."""
        return sum(map(len, self.small))


_COMMIT_MAGIC: Final = b"hcs3cmt\x01"
#: magic; flags; sequence, epoch, attempt; owner; sizes of the table, the small and the large payload; where the
#: payload's second frame begins. A checksum over all of the front follows the small payload.
_COMMIT: Final = struct.Struct("<8sIQQQ16sIIQI")
_STEP: Final = struct.Struct("<BHQQ")
_COUNTS: Final = struct.Struct("<HI")
#: What is read of a commit at first: the front of nearly every one is shorter.
FRONT_GUESS: Final = 128 * 1024


def encode_front(commit: Commit) -> bytes:
    """All of a commit but its large payload."""
    numbers: dict[str, int] = {}
    for step in commit.steps:
        numbers.setdefault(step.name, len(numbers))
    if len(commit.steps) >= STEPS_MAX or len(numbers) > 0xFFFF:
        raise OptionError(f"a commit of {len(commit.steps)} operations on {len(numbers)} files is too large")
    table = b"".join(
        [
            _COUNTS.pack(len(numbers), len(commit.steps)),
            *(_pack_name(name) for name in numbers),
            *(_STEP.pack(kind, numbers[name], offset, size) for kind, name, offset, size in commit.steps),
        ]
    )
    small_size = commit.small_size
    if small_size > FRONT_SIZE_MAX:
        raise OptionError(f"a commit with {small_size} bytes of small writes is too large")
    body = commit.body
    head = _COMMIT.pack(
        _COMMIT_MAGIC,
        int(commit.fence),
        commit.sequence,
        commit.epoch,
        commit.attempt,
        commit.owner,
        len(table),
        small_size,
        0 if body is None else body.size,
        FRAME_SIZE if body is None else body.first,
    )
    front = b"".join([head, table, *commit.small])
    return front + _CHECK.pack(zlib.crc32(front))


def front_size(table_size: int, small_size: int) -> int:
    """Bytes before a commit's large payload."""
    return _COMMIT.size + table_size + small_size + _CHECK.size


def needed_front(data: bytes, name: str) -> int:
    """How many bytes the front has of which `data` is the beginning. Raises `CorruptError`, `NewerFormatError`."""
    if len(data) < _COMMIT.size:
        raise CorruptError(f"object {name} is cut short: {len(data)} bytes are no commit", file=name)
    magic, *_, table_size, small_size, _, _ = _COMMIT.unpack_from(data)
    _check_magic(magic, _COMMIT_MAGIC, name, "commit")
    if small_size > FRONT_SIZE_MAX or table_size > STEPS_MAX * 2 * _STEP.size:
        raise CorruptError(f"object {name} is damaged: no commit has a front of such a size", file=name)
    return front_size(table_size, small_size)


def decode_commit(data: bytes, name: str, size: int) -> Commit:
    """The commit whose front `data` begins with; the object has `size` bytes. Raises `CorruptError`."""
    end = needed_front(data, name)
    if len(data) < end or _CHECK.unpack_from(data, end - _CHECK.size)[0] != zlib.crc32(
        memoryview(data)[: end - _CHECK.size]
    ):
        raise CorruptError(f"object {name} is damaged: its front does not fit its checksum", file=name)
    _, flags, sequence, epoch, attempt, owner, table_size, small_size, large_size, first = _COMMIT.unpack_from(data)
    reader = _Reader(data, _COMMIT.size, _COMMIT.size + table_size, name)
    steps = _read_steps(reader)
    body = None
    if large_size:
        body = Body(name, end, first, large_size)
        if not 0 < first <= FRAME_SIZE:
            raise reader.corrupt("its frames make no sense")
    small = []
    position = reader.end
    for step in steps:
        if step.kind == WRITE:
            small.append(data[position : position + step.size])
            position += step.size
    here = sum(step.size for step in steps if step.kind == WRITE_HERE)
    if position - reader.end != small_size or here != large_size or commit_name(sequence) != name:
        raise reader.corrupt("its parts do not fit together")
    if size != end + (0 if body is None else body.framed_size):
        raise CorruptError(f"object {name} is cut short: it has {size} bytes", file=name)
    return Commit(
        sequence=sequence,
        epoch=epoch,
        owner=owner,
        attempt=attempt,
        fence=bool(flags & 1),
        steps=steps,
        small=small,
        body=body,
    )


def _read_steps(reader: _Reader) -> list[Step]:
    name_count, step_count = reader.take(_COUNTS)
    names = [reader.name() for _ in range(name_count)]
    if reader.left != step_count * _STEP.size:
        raise reader.corrupt("its table has another size")
    steps = []
    for kind, number, offset, size in _STEP.iter_unpack(reader.bytes(reader.left)):
        if kind > UNLINK or number >= name_count or offset + size > FILE_SIZE_MAX:
            raise reader.corrupt("its table makes no sense")
        steps.append(Step(kind, names[number], offset, size))
    return steps


# ---- a checkpoint's index ------------------------------------------------------------------------


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
#: magic; where the index begins, its size, where the hot pages begin; checksum
_FOOTER: Final = struct.Struct("<8sQQQI")
FOOTER_SIZE: Final = _FOOTER.size


def encode_index(index: Index) -> bytes:
    """The index, without the footer."""
    numbers = {body: number for number, body in enumerate(index.bodies)}
    parts: list[bytes] = []
    inline: list[bytes] = []
    inline_size = 0
    for name, identity, size, extents in index.files:
        parts += (_pack_name(name), _FILE.pack(identity, size, len(extents)))
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
    bodies = [_pack_name(body.name) + _BODY.pack(body.base, body.first, body.size) for body in index.bodies]
    data = b"".join([head, *bodies, *parts, *map(_pack_name, index.doomed), *inline])
    return data + _CHECK.pack(zlib.crc32(data))


def decode_index(data: bytes, name: str) -> Index:
    """Raises `CorruptError`, `NewerFormatError`."""
    if len(data) < _INDEX.size + _CHECK.size or _CHECK.unpack_from(data, len(data) - _CHECK.size)[0] != zlib.crc32(
        memoryview(data)[: -_CHECK.size]
    ):
        raise CorruptError(f"object {name} is damaged: its index does not fit its checksum", file=name)
    reader = _Reader(data, 0, len(data) - _CHECK.size, name)
    magic, sequence, epoch, body_count, file_count, doomed_count, inline_size = reader.take(_INDEX)
    _check_magic(magic, _INDEX_MAGIC, name, "index")
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


def _read_file(reader: _Reader, bodies: Sequence[Body], inline: bytes) -> FileIndex:
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
    data = _FOOTER.pack(_FOOTER_MAGIC, index_offset, index_size, hot, 0)[: -_CHECK.size]
    return data + _CHECK.pack(zlib.crc32(data))


def decode_footer(data: bytes, name: str, size: int) -> Pointer:
    """What the footer, the last bytes of a checkpoint of `size` bytes, says of it. Raises `CorruptError`."""
    sequence = checkpoint_sequence(name)
    if len(data) != FOOTER_SIZE or sequence is None:
        raise CorruptError(f"object {name} is cut short: it has no footer", file=name)
    magic, index_offset, index_size, hot, check = _FOOTER.unpack(data)
    if check != zlib.crc32(data[: -_CHECK.size]):
        raise CorruptError(f"object {name} is damaged: its footer does not fit its checksum", file=name)
    _check_magic(magic, _FOOTER_MAGIC, name, "checkpoint")
    pointer = Pointer(
        name=name, sequence=sequence, size=size, hot=hot, index_offset=index_offset, index_size=index_size
    )
    try:
        _check_pointer(pointer)
    except ValueError as error:
        raise CorruptError(f"object {name} is damaged: {error}", file=name) from error
    return pointer


#: A checkpoint begins with this, so that whoever looks at one sees what it is.
CHECKPOINT_MAGIC: Final = b"hcs3chk\x01"

# ---- reading ---------------------------------------------------------------------------------------


def _pack_name(name: str) -> bytes:
    data = name.encode()
    return bytes((len(data),)) + data


def _check_magic(found: bytes, wanted: bytes, name: str, what: str) -> None:
    if found == wanted:
        return
    if found[:-1] == wanted[:-1]:
        raise NewerFormatError(f"object {name} is a {what} of version {found[-1]}, and this program reads {wanted[-1]}")
    raise CorruptError(f"object {name} is damaged: it is no {what}", file=name)


class _Reader:
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

"""The bytes of a commit: a table of its steps, small writes, then large ones in frames.

Pure. Everything has a checksum and is refused with a typed error when it does not hold.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from hypercore.errors import CorruptError, OptionError
from hypercore_s3.decoding import CHECK_SIZE, FILE_SIZE_MAX, Reader, check_magic, checked, holds, pack_name
from hypercore_s3.frames import FRAME_SIZE, Body
from hypercore_s3.layout import commit_name

#: A commit's operations; also how many of them a file's identity can tell apart.
STEPS_MAX: Final = 1 << 20
#: Small writes of one commit: several times what is folded at the latest. Readers hold several of them at once.
FRONT_SIZE_MAX: Final = 64 << 20

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
            *(pack_name(name) for name in numbers),
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
    return checked(b"".join([head, table, *commit.small]))


def front_size(table_size: int, small_size: int) -> int:
    """Bytes before a commit's large payload."""
    return _COMMIT.size + table_size + small_size + CHECK_SIZE


def needed_front(data: bytes, name: str) -> int:
    """How many bytes the front has of which `data` is the beginning. Raises `CorruptError`, `NewerFormatError`."""
    if len(data) < _COMMIT.size:
        raise CorruptError(f"object {name} is cut short: {len(data)} bytes are no commit", file=name)
    magic, *_, table_size, small_size, _, _ = _COMMIT.unpack_from(data)
    check_magic(magic, _COMMIT_MAGIC, name, "commit")
    if small_size > FRONT_SIZE_MAX or table_size > STEPS_MAX * 2 * _STEP.size:
        raise CorruptError(f"object {name} is damaged: no commit has a front of such a size", file=name)
    return front_size(table_size, small_size)


def decode_commit(data: bytes, name: str, size: int) -> Commit:
    """The commit whose front `data` begins with; the object has `size` bytes. Raises `CorruptError`."""
    end = needed_front(data, name)
    if len(data) < end or not holds(data[:end]):
        raise CorruptError(f"object {name} is damaged: its front does not fit its checksum", file=name)
    _, flags, sequence, epoch, attempt, owner, table_size, small_size, large_size, first = _COMMIT.unpack_from(data)
    reader = Reader(data, _COMMIT.size, _COMMIT.size + table_size, name)
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


def _read_steps(reader: Reader) -> list[Step]:
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

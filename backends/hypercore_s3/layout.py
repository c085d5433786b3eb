"""What the objects are called, and the bytes of the head.

Pure: nothing is fetched here. docs/decisions/s3-layout.md says what the objects are for; `commits` and `index` have
the bytes of the others.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final

from hypercore.errors import CorruptError, NewerFormatError

VERSION: Final = 1
HEAD: Final = "head"
_COMMIT_NAME: Final = re.compile(r"commits/[0-9a-f]{16}")
_PROBE_NAME: Final = re.compile(r"probe-[0-9a-f]{32}")
_CHECKPOINT_NAME: Final = re.compile(r"checkpoints/([0-9a-f]{16})-[0-9a-f]{16}")

#: Commits and leases ever; a file's identity has room for the number of a commit below it.
NUMBER_MAX: Final = 1 << 44
#: What is read before the index: a fold makes it a little over 1 MiB.
HOT_SIZE_MAX: Final = 4 << 20
#: The table of a whole mirror of a thousand terabytes is smaller.
INDEX_SIZE_MAX: Final = 1 << 30


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
        _check_head(head)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CorruptError(
            f"object {HEAD} is damaged ({error}); when it is removed, it is made again from the newest checkpoint",
            file=HEAD,
        ) from error
    return head


def _check_head(head: Head) -> None:
    """Raises `ValueError` unless every field is of its kind, whoever wrote it."""
    kinds = {"owner": str, "host": str, "process": str, "proved": str, "released": bool}
    for name, kind in kinds.items():
        if type(getattr(head, name)) is not kind:
            raise ValueError(f"its {name} is none")
    for name in ("pid", "epoch", "beat"):
        _check_number(getattr(head, name), name)
    if type(head.lease_seconds) not in (int, float) or not 0 <= head.lease_seconds < NUMBER_MAX:
        raise ValueError("its lease_seconds are none")
    if head.checkpoint is not None:
        check_pointer(head.checkpoint)


def _check_number(number: object, name: str, limit: int = NUMBER_MAX) -> None:
    if type(number) is not int or not 0 <= number < limit:
        raise ValueError(f"its {name} is none")


def check_pointer(pointer: Pointer) -> None:
    """Raises `ValueError` for one that contradicts itself."""
    _check_number(pointer.sequence, "sequence")
    for name in ("size", "hot", "index_offset", "index_size"):
        _check_number(getattr(pointer, name), name, 1 << 60)
    if type(pointer.name) is not str or checkpoint_sequence(pointer.name) != pointer.sequence:
        raise ValueError("its checkpoint has a name that is none")
    if pointer.index_offset - pointer.hot > HOT_SIZE_MAX:
        raise ValueError("its checkpoint's pages are too many")
    if not 0 <= pointer.hot <= pointer.index_offset <= pointer.index_offset + pointer.index_size <= pointer.size:
        raise ValueError("its checkpoint's index lies outside of it")
    if pointer.index_size > INDEX_SIZE_MAX:
        raise ValueError(f"its checkpoint's index has {pointer.index_size} bytes")

"""The header of a log: who signs it, and how far its tree had come (disk spec, sections 2.4, 3.1 and 3.2).

Pure: bytes in, values out. Knows neither frames nor slots, and reads no file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from hypercore.crypto import KEY_SIZE, SECRET_KEY_SIZE
from hypercore.encoding import Reader, encode_buffer, encode_uint
from hypercore.errors import DecodeError, NewerFormatError
from hypercore.log.manifest import Manifest, decode_manifest, default_manifest, encode_manifest

#: What we write. Version 0 is read, and becomes version 1 when its header is written again.
HEADER_VERSION: Final = 1

_EXTERNAL: Final = 1
_MANIFEST: Final = 2
_KEY_PAIR: Final = 4

#: External headers begin at multiples of this.
_REGION_ALIGNMENT: Final = 4096
#: Smallest encodings, against which array counts are checked before anything is allocated.
_USER_DATA_PAIR_SIZE: Final = 2
_REORG_HINT_SIZE: Final = 3
#: A new fork of a log keeps this many hints at most (section 6.8).
_REORG_HINT_COUNT: Final = 4


@dataclass(frozen=True, slots=True)
class StoredKeyPair:
    """The key pair as it was stored: nobody has checked yet that the two belong together.

    `public_key` should have 32 bytes and `secret_key` 64; `secret_key` is None when only the public key is known.
    """

    public_key: bytes
    secret_key: bytes | None = field(repr=False)

    @property
    def has_right_sizes(self) -> bool:
        return (
            len(self.public_key) == KEY_SIZE
            and self.secret_key is not None
            and (len(self.secret_key) == SECRET_KEY_SIZE)
        )


@dataclass(frozen=True, slots=True)
class ReorgHint:
    """The tree went from one fork to another, keeping `ancestors` blocks."""

    from_fork: int
    to_fork: int
    ancestors: int


@dataclass(frozen=True, slots=True)
class ExternalPointer:
    """The header is too large for its slot and lies in file `header`: `length` bytes from byte `start`."""

    start: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The state of a log before the entries behind it.

    `key` is the core's 32-byte key, `manifest` None for a reader that has not seen one yet. `user_data` holds every
    stored pair in order; an empty value means "absent", and of equal keys the first counts. `length` is in blocks.
    `root_hash` and `signature` are empty when there is none. `contiguous_length` and `reorg_hints` are hints.
    """

    key: bytes
    manifest: Manifest | None = None
    key_pair: StoredKeyPair | None = None
    user_data: tuple[tuple[str, bytes], ...] = ()
    fork: int = 0
    length: int = 0
    root_hash: bytes = b""
    signature: bytes = b""
    reorg_hints: tuple[ReorgHint, ...] = ()
    contiguous_length: int = 0
    version: int = HEADER_VERSION


def encode_header(header: Header) -> bytes:
    """The body of a header, always in version 1."""
    raise NotImplementedError


def encode_external_pointer(pointer: ExternalPointer) -> bytes:
    """The body of a slot whose header lies in file `header`."""
    raise NotImplementedError


def decode_header(body: bytes, *, whole: bool = False) -> Header | ExternalPointer:
    """The header in `body`, version 0 or 1. Bytes behind the last field are ignored, unless `whole` is asked for.

    Raises `NewerFormatError` for an unknown version of header or manifest, or an unknown flag, and `DecodeError`
    for anything else that does not follow the format.
    """
    raise NotImplementedError


def external_region(previous: ExternalPointer | None, size: int) -> ExternalPointer:
    """Where in file `header` a body of `size` bytes goes, so that the previous one stays whole (section 2.4)."""
    raise NotImplementedError


def add_reorg_hint(
    hints: tuple[ReorgHint, ...], *, from_fork: int, to_fork: int, ancestors: int
) -> tuple[ReorgHint, ...]:
    """The hints after the tree moved to another fork (section 6.8)."""
    raise NotImplementedError

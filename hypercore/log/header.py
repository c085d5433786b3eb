"""The header of a log: who signs it, and how far its tree had come (disk spec, sections 2.4, 3.1 and 3.2).

Pure: bytes in, values out. Knows neither frames nor slots, and reads no file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from hypercore.crypto import KEY_SIZE
from hypercore.encoding import Reader, encode_buffer, encode_uint
from hypercore.errors import DecodeError, NewerFormatError
from hypercore.log.manifest import Manifest, decode_manifest, default_manifest, encode_manifest

#: What we write. Version 0 is read, and becomes version 1 when its header is written again.
HEADER_VERSION: Final = 1

_EXTERNAL: Final = 1
_MANIFEST: Final = 2
_KEY_PAIR: Final = 4
_KNOWN_FLAGS: Final = _EXTERNAL | _MANIFEST | _KEY_PAIR

#: A version 0 header names what it is made of; no other names were ever written.
_VERSION_0_TYPES: Final = ("blake2b", "raw", "ed25519")
_MAX_TYPE_SIZE: Final = 32
#: Keys of user data that are not UTF-8 come back as they were when the header is written again.
_KEEP_BYTES: Final = "surrogateescape"

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
    flags = (_MANIFEST if header.manifest else 0) | (_KEY_PAIR if header.key_pair else 0)
    parts = [bytes([HEADER_VERSION, flags]), header.key]
    if header.manifest:
        parts.append(encode_manifest(header.manifest))
    if header.key_pair:
        parts += encode_buffer(header.key_pair.public_key), encode_buffer(header.key_pair.secret_key)
    parts.append(encode_uint(len(header.user_data)))
    for key, value in header.user_data:
        parts += encode_buffer(key.encode(errors=_KEEP_BYTES)), encode_buffer(value)
    parts += encode_uint(header.fork), encode_uint(header.length)
    parts += encode_buffer(header.root_hash), encode_buffer(header.signature)
    parts.append(encode_uint(len(header.reorg_hints)))
    for hint in header.reorg_hints:
        parts += encode_uint(hint.from_fork), encode_uint(hint.to_fork), encode_uint(hint.ancestors)
    parts.append(encode_uint(header.contiguous_length))
    return b"".join(parts)


def encode_external_pointer(pointer: ExternalPointer) -> bytes:
    """The body of a slot whose header lies in file `header`."""
    return bytes([HEADER_VERSION, _EXTERNAL]) + encode_uint(pointer.start) + encode_uint(pointer.length)


def decode_header(body: bytes) -> Header | ExternalPointer:
    """The header in the body of a slot, version 0 or 1. Bytes behind the last field are ignored.

    Raises `NewerFormatError` for an unknown version of header or manifest, or an unknown flag, and `DecodeError`
    for anything else that does not follow the format.
    """
    return read_header(Reader(body))


def decode_external_header(body: bytes) -> Header:
    """The header in the bytes that an `ExternalPointer` points to; it has no checksum, so all of it must fit.

    Raises as `decode_header` does, and `DecodeError` for bytes left over or for another pointer.
    """
    reader = Reader(body)
    header = read_header(reader)
    if isinstance(header, ExternalPointer):
        raise DecodeError("the external header points to yet another one")
    if reader.remaining:
        raise DecodeError(f"{reader.remaining} bytes are left over behind the external header")
    return header


def read_header(reader: Reader) -> Header | ExternalPointer:
    """As `decode_header`; leaves the reader behind the last field."""
    version = reader.uint()
    if version == 0:
        return _read_version_0(reader)
    if version > HEADER_VERSION:
        raise NewerFormatError(f"the header has version {version}; up to {HEADER_VERSION} is understood")
    flags = reader.uint()
    if flags & ~_KNOWN_FLAGS:
        # What an unknown flag brings along cannot be skipped, so nothing behind it can be read.
        raise NewerFormatError(f"the header has flags {flags:#x}; {_KNOWN_FLAGS:#x} are understood")
    if flags & _EXTERNAL:
        return ExternalPointer(reader.uint(), reader.uint())
    key = reader.fixed(KEY_SIZE)
    manifest = key_pair = None
    if flags & _MANIFEST:
        manifest, reader.offset = decode_manifest(reader.data, reader.offset, reader.end)
    if flags & _KEY_PAIR:
        key_pair = StoredKeyPair(reader.buffer(), reader.buffer() or None)
    user_data = _read_user_data(reader)
    fork, length, root_hash, signature = reader.uint(), reader.uint(), reader.buffer(), reader.buffer()
    return Header(
        key=key,
        manifest=manifest,
        key_pair=key_pair,
        user_data=user_data,
        fork=fork,
        length=length,
        root_hash=root_hash,
        signature=signature,
        reorg_hints=_read_reorg_hints(reader),
        contiguous_length=reader.uint() if reader.remaining else 0,
    )


def _read_version_0(reader: Reader) -> Header:
    types = tuple(reader.string(limit=_MAX_TYPE_SIZE) for _ in _VERSION_0_TYPES)
    if types != _VERSION_0_TYPES:
        raise DecodeError(f"a version 0 header of types {types}; only {_VERSION_0_TYPES} exist")
    user_data = _read_user_data(reader)
    fork, length, root_hash, signature = reader.uint(), reader.uint(), reader.buffer(), reader.buffer()
    public_key, secret_key = reader.buffer(), reader.buffer()
    if len(public_key) != KEY_SIZE:
        raise DecodeError(f"the public key of a version 0 header has {len(public_key)} bytes")
    return Header(
        key=public_key,
        manifest=default_manifest(public_key, version=0),
        key_pair=StoredKeyPair(public_key, secret_key) if secret_key else None,
        user_data=user_data,
        fork=fork,
        length=length,
        root_hash=root_hash,
        signature=signature,
        reorg_hints=_read_reorg_hints(reader),
        contiguous_length=reader.uint() if reader.remaining else 0,
        version=0,
    )


def _read_user_data(reader: Reader) -> tuple[tuple[str, bytes], ...]:
    count = reader.count(smallest_item_size=_USER_DATA_PAIR_SIZE)
    return tuple((reader.buffer().decode(errors=_KEEP_BYTES), reader.buffer()) for _ in range(count))


def _read_reorg_hints(reader: Reader) -> tuple[ReorgHint, ...]:
    count = reader.count(smallest_item_size=_REORG_HINT_SIZE)
    return tuple(ReorgHint(reader.uint(), reader.uint(), reader.uint()) for _ in range(count))


def external_region(previous: ExternalPointer | None, size: int) -> ExternalPointer:
    """Where in file `header` a body of `size` bytes goes, so that the previous one stays whole (section 2.4)."""
    if previous is None:
        return ExternalPointer(0, size)
    if size <= previous.start:
        return ExternalPointer(0, size)
    end = previous.start + previous.length
    return ExternalPointer(-(-end // _REGION_ALIGNMENT) * _REGION_ALIGNMENT, size)


def add_reorg_hint(
    hints: tuple[ReorgHint, ...], *, from_fork: int, to_fork: int, ancestors: int
) -> tuple[ReorgHint, ...]:
    """The hints after a tree that was not empty moved to another fork (section 6.8)."""
    kept = list(hints[-(_REORG_HINT_COUNT - 1) :])
    while kept and kept[-1].ancestors > ancestors:
        kept.pop()
    return (*kept, ReorgHint(from_fork, to_fork, ancestors))

"""The ten messages of the hypercore channel, and the handshake that opens it (wire spec, sections 4.1 and 4.2).

Parts floor: values and their bytes, nothing of what they are for. Decoders read `data[offset:end]`, never past it;
bytes left over and unknown flags are ignored, as they are how newer peers say more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from hypercore.encoding import Reader, decode_uint, encode_buffer, encode_uint
from hypercore.errors import DecodeError
from hypercore.proofs import (
    BlockProof,
    BlockRequest,
    HashProof,
    HashRequest,
    Node,
    Proof,
    ProofRequest,
    SeekProof,
    SeekRequest,
    UpgradeProof,
    UpgradeRequest,
)

CAPABILITY_SIZE: Final = 32
#: A path has at most 53 levels, and the nodes of an upgrade are at most two paths.
MAX_NODES: Final = 128
#: One signer needs 64 or 68 bytes; this is room for several hundred.
MAX_SIGNATURE_SIZE: Final = 64 * 1024
#: Twice a length must still be a number that everybody can hold.
MAX_LENGTH: Final = 2**52
#: A bitfield message covers at most 2^21 blocks; what lies beyond is not looked at.
MAX_BITFIELD_SIZE: Final = 65536 * 4
#: Names are short words; this is the bound of all names on the wire.
MAX_NAME_SIZE: Final = 256

_HASH_SIZE: Final = 32
#: One byte each for index and size, and the hash.
_SMALLEST_NODE: Final = 34

#: Half the price of calling the class of a named tuple, where every block makes several.
_new: Final = tuple.__new__


class ChannelHandshake(NamedTuple):
    """What each side says when it opens the channel: whether it answers seeks, and its proof of knowing the key."""

    seeks: bool
    capability: bytes


class Sync(NamedTuple):
    """The sender's signed tree, what it last heard of the receiver's, and what it does (wire spec, section 5.2)."""

    fork: int
    length: int
    remote_length: int
    can_upgrade: bool = False
    uploading: bool = False
    downloading: bool = False
    has_manifest: bool = False
    allow_push: bool = False


class Request(NamedTuple):
    """Ask for a proof. `id` is chosen by the requester; `priority` 0 normal, 1 high, 2 very high."""

    id: int
    priority: int
    proof: ProofRequest


class Cancel(NamedTuple):
    """The request needs no answer any more."""

    request_id: int


class Data(NamedTuple):
    """The answer to a request. Id 0: unasked, a push or a proof of conflict."""

    request_id: int
    proof: Proof


class NoData(NamedTuple):
    """The request will not be answered. `reason` 0 not said, 1 not available, 2 invalid request."""

    request_id: int
    reason: int = 0


class Want(NamedTuple):
    """Tell me what you have of these blocks; with `any`, one range that begins with the first is enough."""

    start: int
    length: int
    any: bool = False


class Unwant(NamedTuple):
    """Takes a `Want` back."""

    start: int
    length: int
    any: bool = False


class Bitfield(NamedTuple):
    """Which blocks the sender has, from block `start` on: block `start + i` is byte `i >> 3`, bit `i & 7`.

    `words` is a multiple of 4 bytes, at most 262,144.
    """

    start: int
    words: bytes


class Range(NamedTuple):
    """The sender has these blocks, or with `drop` no longer has them."""

    drop: bool
    start: int
    length: int


class Extension(NamedTuple):
    """A message of the application's own. An empty name on the wire means the name of the previous one; a received
    value always has the name."""

    name: str
    payload: bytes


Message = Sync | Request | Cancel | Data | NoData | Want | Unwant | Bitfield | Range | Extension


# ---- encoding --------------------------------------------------------------------------------------
#
# An encoder appends to a list of parts, so that a block is copied only when its frame is put together.


def encode_channel_handshake(handshake: ChannelHandshake) -> bytes:
    """What the open of a hypercore channel carries, 33 bytes."""
    return encode_uint(1 if handshake.seeks else 0) + handshake.capability


def encode(message: Message, parts: list[bytes]) -> int:
    """Append type and payload of `message` to `parts`; gives their size together.

    Raises `ValueError` for a number that cannot be sent.
    """
    start = len(parts)
    _ENCODERS[type(message)](message, parts)
    if len(parts) == start + 1:
        return len(parts[start])
    return sum(map(len, parts[start:]))


def _encode_sync(message: Sync, parts: list[bytes]) -> None:
    flags = (
        (1 if message.can_upgrade else 0)
        | (2 if message.uploading else 0)
        | (4 if message.downloading else 0)
        | (8 if message.has_manifest else 0)
        | (16 if message.allow_push else 0)
    )
    numbers = (flags, message.fork, message.length, message.remote_length)
    parts.append(b"\x00" + b"".join(map(encode_uint, numbers)))


def _encode_request(message: Request, parts: list[bytes]) -> None:
    fork, block, hash_, seek, upgrade, manifest = message.proof
    flags = 16 if manifest else 0
    numbers = [0, message.id, fork]
    for flag, part in (1, block), (2, hash_), (4, seek), (8, upgrade):
        if part is not None:
            flags |= flag
            numbers += part
    if message.priority:
        flags |= 32
        numbers.append(message.priority)
    numbers[0] = flags
    parts.append(b"\x01" + b"".join(map(encode_uint, numbers)))


def _encode_cancel(message: Cancel, parts: list[bytes]) -> None:
    parts.append(b"\x02" + encode_uint(message.request_id))


def _encode_data(message: Data, parts: list[bytes]) -> None:
    request_id, (fork, block, hash_, seek, upgrade, manifest) = message
    flags = (
        (1 if block is not None else 0)
        | (2 if hash_ is not None else 0)
        | (4 if seek is not None else 0)
        | (8 if upgrade is not None else 0)
        | (16 if manifest is not None else 0)
    )
    head = b"\x03" + encode_uint(flags) + encode_uint(request_id) + encode_uint(fork)
    if block is not None:
        parts += (head + encode_uint(block.index) + encode_uint(len(block.value)), block.value)
        head = _encode_nodes(block.nodes)
    if hash_ is not None:
        head += encode_uint(hash_.index) + _encode_nodes(hash_.nodes)
    if seek is not None:
        head += encode_uint(seek.byte_offset) + _encode_nodes(seek.nodes)
    if upgrade is not None:
        head += encode_uint(upgrade.start) + encode_uint(upgrade.length)
        head += _encode_nodes(upgrade.nodes) + _encode_nodes(upgrade.additional) + encode_buffer(upgrade.signature)
    parts.append(head)
    if manifest is not None:
        parts.append(manifest)


def _encode_nodes(nodes: tuple[Node, ...]) -> bytes:
    parts = [encode_uint(len(nodes))]
    for index, size, hash_ in nodes:
        parts += (encode_uint(index), encode_uint(size), hash_)
    return b"".join(parts)


def _encode_no_data(message: NoData, parts: list[bytes]) -> None:
    reason = b"\x01" + encode_uint(message.reason) if message.reason else b"\x00"
    parts.append(b"\x04" + encode_uint(message.request_id) + reason)


def _encode_want(message: Want, parts: list[bytes]) -> None:
    parts.append(b"\x05" + _encode_region(message))


def _encode_unwant(message: Unwant, parts: list[bytes]) -> None:
    parts.append(b"\x06" + _encode_region(message))


def _encode_region(message: Want | Unwant) -> bytes:
    return encode_uint(message.start) + encode_uint(message.length) + (b"\x01" if message.any else b"")


def _encode_bitfield(message: Bitfield, parts: list[bytes]) -> None:
    words = message.words
    if len(words) % 4:
        raise ValueError(f"a bitfield of {len(words)} bytes is not made of words of 4 bytes")
    parts.append(b"\x07" + encode_uint(message.start) + encode_uint(len(words) // 4))
    parts.append(words)


def _encode_range(message: Range, parts: list[bytes]) -> None:
    drop, start, length = message
    flags = (1 if drop else 0) | (2 if length == 1 else 0)
    tail = b"" if length == 1 else encode_uint(length)
    parts.append(b"\x08" + encode_uint(flags) + encode_uint(start) + tail)


def _encode_extension(message: Extension, parts: list[bytes]) -> None:
    parts.append(b"\x09" + encode_buffer(message.name.encode()))
    parts.append(message.payload)


_ENCODERS: Final[dict[type, Callable[[Any, list[bytes]], None]]] = {
    Sync: _encode_sync,
    Request: _encode_request,
    Cancel: _encode_cancel,
    Data: _encode_data,
    NoData: _encode_no_data,
    Want: _encode_want,
    Unwant: _encode_unwant,
    Bitfield: _encode_bitfield,
    Range: _encode_range,
    Extension: _encode_extension,
}


# ---- decoding --------------------------------------------------------------------------------------


def decode_channel_handshake(data: bytes) -> ChannelHandshake:
    """Raises `DecodeError`."""
    reader = Reader(data)
    return ChannelHandshake(bool(reader.uint() & 1), reader.fixed(CAPABILITY_SIZE))


def decode(data: bytes, offset: int, end: int) -> Message | None:
    """The message whose type and payload are `data[offset:end]`; None for a type that is unknown.

    Raises `DecodeError`. An extension message with an empty name is given as it is.
    """
    kind, offset = decode_uint(data, offset, end)
    if kind < len(_DECODERS):
        return _DECODERS[kind](data, offset, end)
    return None


def _decode_sync(data: bytes, offset: int, end: int) -> Sync:
    flags, offset = decode_uint(data, offset, end)
    fork, offset = decode_uint(data, offset, end)
    length, offset = decode_uint(data, offset, end)
    remote_length, offset = decode_uint(data, offset, end)
    if length > MAX_LENGTH or remote_length > MAX_LENGTH:
        raise DecodeError(f"a sync speaks of {max(length, remote_length)} blocks; 2^52 is the most a core can have")
    return Sync(fork, length, remote_length, *(bool(flags & bit) for bit in (1, 2, 4, 8, 16)))


def _decode_request(data: bytes, offset: int, end: int) -> Request:
    block = hash_ = seek = upgrade = None
    priority = 0
    flags, offset = decode_uint(data, offset, end)
    id_, offset = decode_uint(data, offset, end)
    fork, offset = decode_uint(data, offset, end)
    if flags & 1:
        first, offset = decode_uint(data, offset, end)
        second, offset = decode_uint(data, offset, end)
        block = BlockRequest(first, second)
    if flags & 2:
        first, offset = decode_uint(data, offset, end)
        second, offset = decode_uint(data, offset, end)
        hash_ = HashRequest(first, second)
    if flags & 4:
        first, offset = decode_uint(data, offset, end)
        second, offset = decode_uint(data, offset, end)
        seek = SeekRequest(first, second)
    if flags & 8:
        first, offset = decode_uint(data, offset, end)
        second, offset = decode_uint(data, offset, end)
        upgrade = UpgradeRequest(first, second)
    if flags & 32:
        priority, offset = decode_uint(data, offset, end)
    return Request(id_, priority, ProofRequest(fork, block, hash_, seek, upgrade, bool(flags & 16)))


def _decode_cancel(data: bytes, offset: int, end: int) -> Cancel:
    return Cancel(decode_uint(data, offset, end)[0])


def _decode_data(data: bytes, offset: int, end: int) -> Data:
    block = hash_ = seek = upgrade = manifest = None
    flags, offset = decode_uint(data, offset, end)
    request_id, offset = decode_uint(data, offset, end)
    fork, offset = decode_uint(data, offset, end)
    if flags & 1:
        index, offset = decode_uint(data, offset, end)
        value, offset = _decode_buffer(data, offset, end)
        nodes, offset = _decode_nodes(data, offset, end)
        block = _new(BlockProof, (index, value, nodes))
    if flags & 2:
        index, offset = decode_uint(data, offset, end)
        nodes, offset = _decode_nodes(data, offset, end)
        hash_ = HashProof(index, nodes)
    if flags & 4:
        byte_offset, offset = decode_uint(data, offset, end)
        nodes, offset = _decode_nodes(data, offset, end)
        seek = SeekProof(byte_offset, nodes)
    if flags & 8:
        start, offset = decode_uint(data, offset, end)
        length, offset = decode_uint(data, offset, end)
        nodes, offset = _decode_nodes(data, offset, end)
        additional, offset = _decode_nodes(data, offset, end)
        signature, offset = _decode_buffer(data, offset, end)
        if len(signature) > MAX_SIGNATURE_SIZE:
            raise DecodeError(f"a signature of {len(signature)} bytes, at most {MAX_SIGNATURE_SIZE} are accepted")
        upgrade = UpgradeProof(start, length, nodes, additional, signature)
    if flags & 16:
        manifest = data[offset:end]
    return _new(Data, (request_id, _new(Proof, (fork, block, hash_, seek, upgrade, manifest))))


def _decode_buffer(data: bytes, offset: int, end: int) -> tuple[bytes, int]:
    size, offset = decode_uint(data, offset, end)
    stop = offset + size
    if stop > end:
        raise DecodeError(f"{size} bytes announced at byte {offset}, {end - offset} are left")
    return data[offset:stop], stop


def _decode_nodes(data: bytes, offset: int, end: int) -> tuple[tuple[Node, ...], int]:
    """Every block brings a few nodes, so the one- and three-byte forms of their numbers are read in place."""
    count, offset = decode_uint(data, offset, end)
    if not count:
        return (), offset
    if count > MAX_NODES or count * _SMALLEST_NODE > end - offset:
        raise DecodeError(f"a list of {count} nodes with {end - offset} bytes left; at most {MAX_NODES} are accepted")
    nodes = []
    last = end - _SMALLEST_NODE
    for _ in range(count):
        if offset > last:
            raise DecodeError(f"a list of {count} nodes is cut off")
        # Here 34 bytes are left and a number takes at most 9, so the numbers are read without looking at the end.
        index = data[offset]
        if index <= 0xFC:
            offset += 1
        elif index == 0xFD:
            index = data[offset + 1] | data[offset + 2] << 8
            offset += 3
        else:
            index, offset = decode_uint(data, offset, end)
        size = data[offset]
        if size <= 0xFC:
            offset += 1
        elif size == 0xFD:
            size = data[offset + 1] | data[offset + 2] << 8
            offset += 3
        else:
            size, offset = decode_uint(data, offset, end)
        start = offset
        offset += _HASH_SIZE
        nodes.append(_new(Node, (index, size, data[start:offset])))
    if offset > end:
        raise DecodeError(f"a list of {count} nodes is cut off")
    return tuple(nodes), offset


def _decode_no_data(data: bytes, offset: int, end: int) -> NoData:
    request_id, offset = decode_uint(data, offset, end)
    flags = reason = 0
    if offset < end:
        flags, offset = decode_uint(data, offset, end)
    if flags & 1:
        reason, offset = decode_uint(data, offset, end)
    return NoData(request_id, reason)


def _decode_want(data: bytes, offset: int, end: int) -> Want:
    return Want(*_decode_region(data, offset, end))


def _decode_unwant(data: bytes, offset: int, end: int) -> Unwant:
    return Unwant(*_decode_region(data, offset, end))


def _decode_region(data: bytes, offset: int, end: int) -> tuple[int, int, bool]:
    start, offset = decode_uint(data, offset, end)
    length, offset = decode_uint(data, offset, end)
    flags = decode_uint(data, offset, end)[0] if offset < end else 0
    return start, length, bool(flags & 1)


def _decode_bitfield(data: bytes, offset: int, end: int) -> Bitfield:
    start, offset = decode_uint(data, offset, end)
    count, offset = decode_uint(data, offset, end)
    if count * 4 > end - offset:
        raise DecodeError(f"a bitfield of {count} words with {end - offset} bytes left")
    return Bitfield(start, data[offset : offset + min(count * 4, MAX_BITFIELD_SIZE)])


def _decode_range(data: bytes, offset: int, end: int) -> Range:
    length = 1
    flags, offset = decode_uint(data, offset, end)
    start, offset = decode_uint(data, offset, end)
    if not flags & 2:
        length, offset = decode_uint(data, offset, end)
    return Range(bool(flags & 1), start, length)


def _decode_extension(data: bytes, offset: int, end: int) -> Extension:
    reader = Reader(data, offset, end)
    return Extension(reader.string(limit=MAX_NAME_SIZE), reader.rest())


_DECODERS: Final[tuple[Callable[[bytes, int, int], Message], ...]] = (
    _decode_sync,
    _decode_request,
    _decode_cancel,
    _decode_data,
    _decode_no_data,
    _decode_want,
    _decode_unwant,
    _decode_bitfield,
    _decode_range,
    _decode_extension,
)

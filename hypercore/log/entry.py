"""The entries of a log: one mutation each (disk spec, section 4.1).

Pure: bytes in, values out. Knows neither frames nor what the mutations add up to. Entries are named tuples because
one or more are made for every append, and a named tuple costs a third of a frozen dataclass.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from hypercore.crypto import HASH_SIZE
from hypercore.encoding import Reader, decode_uint, encode_buffer, encode_uint
from hypercore.errors import DecodeError, NewerFormatError
from hypercore.proofs import Node

#: Other implementations refuse to read a longer array, so a larger append has to be several entries (section 0).
MAX_NODE_COUNT: Final = 0x100000

_USER_DATA: Final = 1
_NODES: Final = 2
_UPGRADE: Final = 4
_BITS: Final = 8
_KNOWN_FLAGS: Final = _USER_DATA | _NODES | _UPGRADE | _BITS
_DROP: Final = 1

# A node in one piece, by the forms that its index and its size take.
_U16_INDEX: Final = tuple(struct.Struct(f"<BH{size}32s").pack for size in ("B", "BH", "BI"))
_U32_INDEX: Final = tuple(struct.Struct(f"<BI{size}32s").pack for size in ("B", "BH", "BI"))

#: Two numbers of one byte and a hash.
SMALLEST_NODE_SIZE: Final = 34
#: Two numbers of nine bytes and a hash.
LARGEST_NODE_SIZE: Final = 50
#: Keys of user data that are not UTF-8 come back as they were when they are written again.
_KEEP_BYTES: Final = "surrogateescape"


class TreeUpgrade(NamedTuple):
    """The tree now has `length` blocks on `fork`, `ancestors` of them from before; `signature` may be empty."""

    fork: int
    ancestors: int
    length: int
    signature: bytes


class BitRange(NamedTuple):
    """The `length` blocks from `start` on are here, or with `drop` no longer here."""

    drop: bool
    start: int
    length: int


class Entry(NamedTuple):
    """One mutation. `user_data` is a key and its new value, or None for "delete the key".

    `empty_nodes` writes an array of no nodes (truncations have one), which is not the same bytes as no array.
    """

    user_data: tuple[str, bytes | None] | None = None
    nodes: Sequence[Node] = ()
    upgrade: TreeUpgrade | None = None
    bits: BitRange | None = None
    empty_nodes: bool = False


def encode_entry(entry: Entry) -> bytes:
    """The body of an entry. Raises `ValueError` for more than `MAX_NODE_COUNT` nodes or a number out of range."""
    user_data, nodes, upgrade, bits, empty_nodes = entry
    flags = 0
    parts = [b""]
    if user_data is not None:
        flags = _USER_DATA
        parts += encode_buffer(user_data[0].encode(errors=_KEEP_BYTES)), encode_buffer(user_data[1])
    if nodes or empty_nodes:
        flags |= _NODES
        if len(nodes) > MAX_NODE_COUNT:
            raise ValueError(f"{len(nodes)} nodes in one entry; others read at most {MAX_NODE_COUNT}")
        parts.append(encode_uint(len(nodes)))
        parts += _encode_nodes(nodes)
    if upgrade is not None:
        flags |= _UPGRADE
        fork, ancestors, length, signature = upgrade
        parts += encode_uint(fork), encode_uint(ancestors), encode_uint(length), encode_buffer(signature)
    if bits is not None:
        flags |= _BITS
        parts += bytes([bits.drop]), encode_uint(bits.start), encode_uint(bits.length)
    parts[0] = encode_uint(flags)
    return b"".join(parts)


def _encode_nodes(nodes: Sequence[Node]) -> list[bytes]:
    """The nodes one by one, each with a single call where its numbers take up to five bytes, which halves the cost."""
    encoded: list[bytes] = []
    add = encoded.append
    for index, size, digest in nodes:
        if not 0xFC < index <= 0xFFFFFFFF or size > 0xFFFFFFFF:
            add(encode_uint(index) + encode_uint(size) + digest)
            continue
        (pack_byte, pack_u16, pack_u32), form = (_U16_INDEX, 0xFD) if index <= 0xFFFF else (_U32_INDEX, 0xFE)
        if size <= 0xFC:
            add(pack_byte(form, index, size, digest))
        elif size <= 0xFFFF:
            add(pack_u16(form, index, 0xFD, size, digest))
        else:
            add(pack_u32(form, index, 0xFE, size, digest))
    return encoded


def decode_entry(body: bytes) -> Entry:
    """The entry in `body`; bytes behind the last field are ignored.

    Raises `NewerFormatError` for an unknown flag and `DecodeError` for anything else that does not follow the format.
    """
    reader = Reader(body)
    flags = reader.uint()
    if flags & ~_KNOWN_FLAGS:
        # Leaving out half of a mutation would be worse than not reading it.
        raise NewerFormatError(f"an entry has flags {flags:#x}; {_KNOWN_FLAGS:#x} are understood")
    user_data = upgrade = bits = None
    nodes: tuple[Node, ...] = ()
    if flags & _USER_DATA:
        user_data = (reader.buffer().decode(errors=_KEEP_BYTES), reader.buffer() or None)
    if flags & _NODES:
        nodes = _read_nodes(reader)
    if flags & _UPGRADE:
        upgrade = TreeUpgrade(reader.uint(), reader.uint(), reader.uint(), reader.buffer())
    if flags & _BITS:
        bits = BitRange(bool(reader.fixed(1)[0] & _DROP), reader.uint(), reader.uint())
    return Entry(user_data, nodes, upgrade, bits, bool(flags & _NODES) and not nodes)


def _read_nodes(reader: Reader) -> tuple[Node, ...]:
    """An array of nodes. A large append has a million, so the short forms of numbers are read right here."""
    count = reader.count(smallest_item_size=SMALLEST_NODE_SIZE)
    data, offset, end = reader.data, reader.offset, reader.end
    nodes = []
    for _ in range(count):
        index, offset = decode_uint(data, offset, end)
        size, offset = decode_uint(data, offset, end)
        stop = offset + HASH_SIZE
        nodes.append(Node(index, size, data[offset:stop]))
        offset = stop
    if offset > end:
        raise DecodeError("the last node of an entry is cut off")
    reader.offset = offset
    return tuple(nodes)

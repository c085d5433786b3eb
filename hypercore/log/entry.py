"""The entries of a log: one mutation each (disk spec, section 4.1).

Pure: bytes in, values out. Knows neither frames nor what the mutations add up to. Entries are named tuples because
one or more are made for every append, and a named tuple costs a third of a frozen dataclass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from hypercore.proofs import Node

#: Other implementations refuse to read a longer array, so a larger append has to be several entries (section 0).
MAX_NODE_COUNT: Final = 0x100000

_USER_DATA: Final = 1
_NODES: Final = 2
_UPGRADE: Final = 4
_BITS: Final = 8


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
    raise NotImplementedError


def decode_entry(body: bytes) -> Entry:
    """The entry in `body`; bytes behind the last field are ignored.

    Raises `NewerFormatError` for an unknown flag and `DecodeError` for anything else that does not follow the format.
    """
    raise NotImplementedError

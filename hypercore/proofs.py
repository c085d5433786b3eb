"""The values that the log and the protocol exchange: tree nodes, requests for proofs, and proofs.

Ground floor: pure values, no behaviour. They are named tuples because several are made for every block that
travels, and a named tuple costs a third of a frozen dataclass. (mypy minds that `index` hides `tuple.index`, which
nobody calls here; it is the field's word.) Formats: wire spec, sections 4.2 and 6.
"""

from __future__ import annotations

from typing import NamedTuple


class Node(NamedTuple):
    """One node of the Merkle tree.

    `index` is its flat-tree number, `size` the byte size of the blocks below it, `hash` its 32-byte hash.
    """

    index: int  # type: ignore[assignment]
    size: int
    hash: bytes


class BlockRequest(NamedTuple):
    """Block `index`, proved up to the ancestor that lies `nodes` steps above its leaf."""

    index: int  # type: ignore[assignment]
    nodes: int


class HashRequest(NamedTuple):
    """Tree node `index` (a flat-tree number), proved up to the ancestor `nodes` steps above it."""

    index: int  # type: ignore[assignment]
    nodes: int


class SeekRequest(NamedTuple):
    """The block that holds `byte_offset`; each block begins with `padding` bytes that do not count."""

    byte_offset: int
    padding: int = 0


class UpgradeRequest(NamedTuple):
    """Take the reader from `start` blocks `length` blocks further."""

    start: int
    length: int


class ProofRequest(NamedTuple):
    """What a reader asks for in one request, on tree `fork`."""

    fork: int
    block: BlockRequest | None = None
    hash: HashRequest | None = None
    seek: SeekRequest | None = None
    upgrade: UpgradeRequest | None = None
    manifest: bool = False


class BlockProof(NamedTuple):
    """A block's bytes and the siblings on the way up. `value` may be empty: an empty block is a block."""

    index: int  # type: ignore[assignment]
    value: bytes
    nodes: tuple[Node, ...]


class HashProof(NamedTuple):
    """A tree node (first of `nodes`) and the siblings on the way up."""

    index: int  # type: ignore[assignment]
    nodes: tuple[Node, ...]


class SeekProof(NamedTuple):
    """The nodes that lead to the subtree holding `byte_offset`."""

    byte_offset: int
    nodes: tuple[Node, ...]


class UpgradeProof(NamedTuple):
    """The nodes from `start` to `start + length` and beyond (`additional`), and the signature of where they end."""

    start: int
    length: int
    nodes: tuple[Node, ...]
    additional: tuple[Node, ...]
    signature: bytes


class Proof(NamedTuple):
    """An answer to a `ProofRequest`. `manifest` is the encoded manifest, undecoded."""

    fork: int
    block: BlockProof | None = None
    hash: HashProof | None = None
    seek: SeekProof | None = None
    upgrade: UpgradeProof | None = None
    manifest: bytes | None = None

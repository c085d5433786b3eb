"""Finding byte offsets in a tree (wire spec, section 5.6; disk spec, section 6.3). Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hypercore.log.proof import NodeSource
from hypercore.proofs import HashRequest, Node, SeekRequest


class Found(NamedTuple):
    index: int  # type: ignore[assignment]
    offset: int


class InDoubt(NamedTuple):
    """`hash` None: ask together with an upgrade, the known bytes do not reach that far."""

    seek: SeekRequest
    hash: HashRequest | None


async def seek(
    source: NodeSource, roots: Sequence[Node], length: int, byte_offset: int, padding: int = 0
) -> Found | InDoubt:
    raise NotImplementedError


async def byte_offset(source: NodeSource, roots: Sequence[Node], tree_index: int) -> int:
    """Bytes of all blocks left of node `tree_index`, one batched lookup."""
    raise NotImplementedError

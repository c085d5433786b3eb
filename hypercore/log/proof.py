"""Building and verifying proofs (wire spec, section 6). Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from hypercore.log.manifest import Authority
from hypercore.proofs import Node, Proof, ProofRequest


class NodeSource(Protocol):
    """Where stored nodes are looked up, many at once."""

    async def nodes(self, indexes: Sequence[int]) -> Sequence[Node | None]: ...


async def missing_nodes(source: NodeSource, tree_index: int, length: int) -> int:
    raise NotImplementedError


async def build_proof(
    source: NodeSource,
    request: ProofRequest,
    *,
    length: int,
    fork: int,
    signature: bytes,
    block: bytes | None = None,
    prologue_length: int = 0,
    manifest: bytes | None = None,
) -> Proof:
    """Raises ProofRequestError (bounds), ProofNotHeldError (a subclass: nodes missing here)."""
    raise NotImplementedError


class VerifiedUpgrade(NamedTuple):
    roots: tuple[Node, ...]
    length: int
    byte_length: int
    signature: bytes
    asked_length: int
    asked_roots: tuple[Node, ...]


class Verified(NamedTuple):
    """Call `settle(source, verified)` for the nodes to store; do not store `nodes` as they are."""

    fork: int
    nodes: list[Node]
    top: Node | None
    top_is_given: bool
    provisional: tuple[int, ...]
    upgrade: VerifiedUpgrade | None
    authority: Authority


def verify_proof(proof: Proof, *, length: int, fork: int, roots: Sequence[Node], authority: Authority) -> Verified:
    """Raises VerificationError; StaleProofError (subclass) if upgrade.start or fork are not ours; DecodeError for a bad manifest."""
    raise NotImplementedError


def verify_fork_proof(proof: Proof, *, authority: Authority) -> Verified:
    """A tree from nothing (upgrade.start 0): a fork proof or a conflict proof."""
    raise NotImplementedError


async def settle(source: NodeSource, verified: Verified) -> list[Node]:
    """Compare `top` with the stored node and give exactly the nodes to store. Raises VerificationError."""
    raise NotImplementedError


async def proves_conflict(source: NodeSource, verified: Verified, *, length: int) -> bool:
    raise NotImplementedError

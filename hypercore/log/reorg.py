"""Following a fork: how much of the old tree is shared with the new one (wire spec, section 5.10). Pure."""

from __future__ import annotations

from typing import Self

from hypercore.log.proof import NodeSource, Verified
from hypercore.proofs import Node, Proof, ProofRequest


class Reorg:
    """ancestors: common blocks so far; nodes: all to be stored after the cut; the new roots etc. are in `upgrade`."""

    verified: Verified
    ancestors: int
    nodes: list[Node]

    @classmethod
    async def begin(cls, source: NodeSource, verified: Verified, *, length: int) -> Self:
        """`source` is the old tree, `length` its length, `verified` comes from `verify_fork_proof`."""
        raise NotImplementedError

    def next_request(self) -> ProofRequest | None:
        raise NotImplementedError

    async def receive(self, source: NodeSource, proof: Proof) -> None:
        raise NotImplementedError

    def give_up(self) -> None:
        """Stop narrowing: keep what is known to be shared."""
        raise NotImplementedError

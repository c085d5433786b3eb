"""Following a fork: how much of the old tree the new one shares (wire spec, section 5.10).

Pure: a state machine that asks for hashes of the new tree until the first difference from the old one is found. It
never touches the old tree; whoever drives it cuts that back to `ancestors` blocks and stores `nodes` when it is done.
"""

from __future__ import annotations

from typing import Self

from hypercore.errors import VerificationError
from hypercore.log import flat_tree
from hypercore.log.proof import NodeSource, Verified, VerifiedUpgrade, verify_proof
from hypercore.proofs import HashRequest, Node, Proof, ProofRequest


class Reorg:
    """Compares a verified new tree with the stored old one, left to right, subtree by subtree.

    `ancestors` is the count of leading blocks that are known to be shared, and grows. `upgrade` and `verified` are
    the new tree's. Begin with `begin`; while `next_request` gives a request, send it and hand the answer to
    `receive`, or call `give_up` when nobody answers: what is shared by then is kept, the rest is fetched again.
    """

    __slots__ = ("_doubtful", "_known", "_pending", "ancestors", "generation", "length", "upgrade", "verified")

    def __init__(self, verified: Verified, upgrade: VerifiedUpgrade, *, length: int) -> None:
        self.verified = verified
        self.upgrade = upgrade
        self.length = length
        self.ancestors = 0
        #: For whoever holds the old tree, to tell whether it is still the same one.
        self.generation = 0
        #: Nodes of the new tree, by index.
        self._known = {node.index: node for node in verified.nodes}
        self._doubtful = set(verified.provisional)
        #: Subtrees of the new tree that were not compared yet, the leftmost at the end.
        self._pending = [root.index for root in reversed(upgrade.roots)]

    @classmethod
    async def begin(cls, source: NodeSource, verified: Verified, *, length: int) -> Self:
        """`source` holds the old tree of `length` blocks; `verified` comes from `verify_fork_proof`."""
        assert verified.upgrade is not None
        reorg = cls(verified, verified.upgrade, length=length)
        await reorg._compare(source)
        return reorg

    def next_request(self) -> ProofRequest | None:
        """What to ask for next on the new fork; None when `ancestors` is final.

        The path of the subtree's last block is asked for, because logs are mostly cut near their end.
        """
        if not self._pending:
            return None
        index = self._pending[-1]
        leaf = min(flat_tree.right_span(index), 2 * self.length - 2)
        return ProofRequest(self.verified.fork, hash=HashRequest(leaf, flat_tree.depth(index)))

    async def receive(self, source: NodeSource, proof: Proof) -> None:
        """Take the answer to `next_request`. Raises `VerificationError` and changes nothing when it does not hold."""
        request = self.next_request()
        if request is None or request.hash is None:
            raise VerificationError("no proof is awaited")
        if proof.hash is None or proof.hash.index != request.hash.index:
            raise VerificationError(f"the hash of tree node {request.hash.index} is missing from its proof")
        asked = Proof(proof.fork, hash=proof.hash)
        verified = verify_proof(
            asked,
            length=self.upgrade.length,
            fork=self.verified.fork,
            roots=self.upgrade.roots,
            authority=self.verified.authority,
        )
        root = self._known[self._pending[-1]]
        top = verified.top
        if top is None or top.index != root.index or top.hash != root.hash:
            raise VerificationError(f"the proof does not lead to the hash of tree node {root.index}")
        # The subtree's size is computed now. If it was forged, its sibling's was by as much (wire spec, 6.9).
        sibling = self._known.get(flat_tree.sibling(root.index))
        if sibling is not None and top.size != root.size:
            self._known[sibling.index] = sibling._replace(size=sibling.size + root.size - top.size)
        self._known.update((node.index, node) for node in verified.nodes)
        self._doubtful.update(verified.provisional)
        await self._compare(source)

    def give_up(self) -> None:
        """Stop asking and keep what is known to be shared."""
        self._pending.clear()

    async def nodes(self, source: NodeSource) -> list[Node]:
        """The nodes of the new tree to store after the old one, `source`, was cut back to `ancestors` blocks."""
        doubtful = sorted(index for index in self._doubtful if flat_tree.right_span(index) < 2 * self.ancestors)
        kept = {node.index for node in await source.nodes(doubtful) if node is not None} if doubtful else set()
        return [node for index, node in sorted(self._known.items()) if index not in kept]

    async def _compare(self, source: NodeSource) -> None:
        """Go on until the difference is found, or until nodes of the new tree are wanted."""
        while self._pending:
            index = self._pending[-1]
            if flat_tree.left_span(index) >= 2 * self.length:
                self._pending.clear()
                return
            children = flat_tree.children(index)
            straddles = flat_tree.right_span(index) >= 2 * self.length
            indexes = (index,) if straddles or children is None else (index, *children)
            ours = await source.nodes(indexes)
            if not straddles:
                if ours[0] is not None and ours[0].hash == self._known[index].hash:
                    self._pending.pop()
                    self.ancestors += flat_tree.leaf_count(index)
                    continue
                if children is None or any(node is None for node in ours):
                    # A leaf that differs, or a part of which no block is held: nothing more is to be saved.
                    self._pending.clear()
                    return
            assert children is not None
            if any(child not in self._known for child in children):
                return
            self._pending[-1:] = reversed(children)

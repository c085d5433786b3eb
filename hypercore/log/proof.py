"""Proofs as a reader sees them: what to ask for, what an answer shows, and what of it to store (wire spec, 6).

Pure. Knows the nodes that a `NodeSource` looks up, hashes and signatures; not files, peers or messages.

A reader checks that an answer is to what it asked (proofs do not know), then `verify_proof`, which needs no storage,
then `settle`, which compares with what is stored and gives the nodes to store. Between `settle` and the commit the
tree must not shrink or change its fork. The other side is `build_proof`, in `prove`.

On sizes (6.9): a node's hash commits to its size, but only who can compute the hash can tell. Two siblings that are
both merely given can have bytes shifted between them, and nothing else can be forged: a parent's hash vouches for
the sum, so one true size makes the other true. Such pairs are `provisional`. They never replace stored nodes, they
are true as soon as anything below one of them is known (`settle` sees to it), and so they never have children here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from hypercore.encoding import MAX_SAFE_INTEGER
from hypercore.errors import StaleProofError, UnanchoredProofError, VerificationError
from hypercore.log import flat_tree
from hypercore.log.manifest import Authority, decode_manifest
from hypercore.log.merkle import NodeSource as NodeSource
from hypercore.log.merkle import parent_node
from hypercore.log.prove import build_proof as build_proof
from hypercore.proofs import Node, Proof, UpgradeProof

#: A path has at most 53 levels and an upgrade at most two paths.
MAX_PROOF_NODES: Final = 128
#: Twice the length is a leaf's index, and must still be a safe number.
MAX_LENGTH: Final = 2**52


async def missing_nodes(source: NodeSource, tree_index: int, length: int) -> int:
    """The `nodes` of a request: steps up from `tree_index` to the first node that is stored (wire spec, 6.5)."""
    index, head = tree_index, 2 * length
    bit = ~index & (index + 1)  # 2^depth, kept up to date on the way
    steps = 0
    batch_size = 4  # Mostly a node near the leaf is stored; a second look-up takes all the rest.
    while True:
        climb: list[int] = []
        while index + bit - 1 < head and len(climb) < batch_size:
            climb.append(index)
            index += -bit if index & (bit << 1) else bit
            bit <<= 1
        if not climb:
            return steps
        for node in await source.nodes(climb):
            if node is not None:
                return steps
            steps += 1
        batch_size = MAX_PROOF_NODES


class VerifiedUpgrade(NamedTuple):
    """A longer tree that its authority signed.

    `asked_length` and `asked_roots` are where the part that was asked for ends; the server may have gone on from
    there to `length`. `signature` is as it is stored, empty at the end of a prologue.
    """

    roots: tuple[Node, ...]
    length: int
    byte_length: int
    signature: bytes
    asked_length: int
    asked_roots: tuple[Node, ...]


class Verified(NamedTuple):
    """What a proof shows, provided that `top` is the stored node: `settle` says so and gives the nodes to store.

    `nodes` are all nodes seen or made, in the order of other implementations, some of them twice. `top` is the node
    where a climb ended that no upgrade vouches for, `top_is_given` whether it was merely given, not computed.
    `provisional` are nodes whose size nothing vouches for. `authority` knows the manifest, if one came.
    """

    fork: int
    nodes: list[Node]
    top: Node | None
    top_is_given: bool
    provisional: tuple[int, ...]
    upgrade: VerifiedUpgrade | None
    authority: Authority


def verify_proof(proof: Proof, *, length: int, fork: int, roots: Sequence[Node], authority: Authority) -> Verified:
    """Verify an answer against a tree of `length` blocks with these `roots`. Wire spec, section 6.7.

    Raises `VerificationError` when something does not hold; its subclass `StaleProofError` when the proof is for
    another fork, or for an upgrade from another length, than the tree has now; `DecodeError` for a manifest that
    cannot be read.
    """
    if proof.fork != fork:
        raise StaleProofError(f"the proof is for fork {proof.fork}, this tree has fork {fork}")
    if proof.manifest is not None:
        manifest, _ = decode_manifest(proof.manifest)
        learned = Authority.of(authority.key, manifest)
        # Nothing vouches for a compat core's manifest, so a peer's word for it is not kept.
        authority = authority if learned.is_compat else learned
    block, hash_part, seek, upgrade = proof.block, proof.hash, proof.seek, proof.upgrade
    tree_hash = authority.tree_hash
    end = length if upgrade is None else upgrade.start + upgrade.length
    nodes: list[Node] = []
    provisional: tuple[int, ...] = ()
    root: Node | None = None
    is_given = False
    if seek is not None and seek.nodes:
        root = _climb(seek.nodes[0], seek.nodes[1:], authority, nodes)
        is_given = len(seek.nodes) == 1
        provisional = () if is_given else (seek.nodes[0].index, seek.nodes[1].index)
    if block is not None:
        if block.index >= end:
            raise VerificationError(f"block {block.index} is past the end, {end}")
        value = block.value
        leaf = Node(2 * block.index, len(value), tree_hash.leaf(value))
        path = block.nodes if root is None else _with_sought(leaf, block.nodes, root)
        root = _climb(leaf, path, authority, nodes)
        is_given = False
    elif hash_part is not None:
        if not hash_part.nodes or hash_part.nodes[0].index != hash_part.index:
            raise VerificationError(f"the hash of tree node {hash_part.index} is missing from its proof")
        first, path = hash_part.nodes[0], hash_part.nodes[1:]
        if root is not None:
            path = _with_sought(first, path, root)
        if path and (path[0] is not root or is_given):
            provisional += (first.index, path[0].index)
        root = _climb(first, path, authority, nodes)
        is_given = not path
    if upgrade is None:
        return Verified(fork, nodes, root, is_given, provisional, None, authority)
    growth = _Growth(roots, length, authority, nodes)
    root = growth.take_upgrade(upgrade, root, is_given)
    upgraded = growth.finish(upgrade, fork)
    provisional += tuple(growth.provisional)
    return Verified(fork, nodes, root, root is not None and is_given, provisional, upgraded, authority)


def verify_fork_proof(proof: Proof, *, authority: Authority) -> Verified:
    """Verify a tree from nothing, on the proof's own fork: what a fork and a conflict are shown with.

    The result's `upgrade` is never None. Raises as `verify_proof` does.
    """
    if proof.upgrade is None or proof.upgrade.start != 0:
        raise VerificationError("a whole tree was asked for and the proof does not begin at 0")
    verified = verify_proof(proof, length=0, fork=proof.fork, roots=(), authority=authority)
    if verified.top is not None:
        raise VerificationError(f"tree node {verified.top.index} belongs to no root of the proof")
    return verified


def _climb(node: Node, path: Sequence[Node], authority: Authority, nodes: list[Node]) -> Node:
    """The ancestor that `path`, the siblings from `node` upwards, leads to. Every node on the way goes to `nodes`."""
    if len(path) > MAX_PROOF_NODES:
        raise VerificationError(f"a proof of {len(path)} nodes; at most {MAX_PROOF_NODES} are accepted")
    nodes.append(node)
    hash_parent = authority.tree_hash.parent
    index, size, node_hash = node
    bit = ~index & (index + 1)  # 2^depth, kept up to date on the way
    for sibling in path:
        nodes.append(sibling)
        sibling_index, sibling_size, sibling_hash = sibling
        size += sibling_size
        is_right = index & (bit << 1)
        if sibling_index != (index - (bit << 1) if is_right else index + (bit << 1)):
            raise VerificationError(f"tree node {sibling_index} is not the sibling of {index}")
        if is_right:
            index -= bit
            node_hash = hash_parent(size, sibling_hash, node_hash)
        else:
            index += bit
            node_hash = hash_parent(size, node_hash, sibling_hash)
        bit <<= 1
        node = Node(index, size, node_hash)
        nodes.append(node)
    return node


def _with_sought(first: Node, path: Sequence[Node], sought: Node) -> tuple[Node, ...]:
    """The path with the root of a seek put into its place; where it does not belong, the climb will refuse it."""
    place = max(0, flat_tree.depth(sought.index) - flat_tree.depth(first.index))
    return (*path[:place], sought, *path[place:])


class _Growth:
    """Own roots, growing by the nodes of an upgrade."""

    __slots__ = ("asked_roots", "authority", "given", "length", "nodes", "provisional", "roots", "start")

    def __init__(self, roots: Sequence[Node], length: int, authority: Authority, nodes: list[Node]) -> None:
        self.roots = list(roots)
        self.start = self.length = length
        self.authority = authority
        self.nodes = nodes
        self.given: set[int] = set()
        self.provisional: list[int] = []
        self.asked_roots: tuple[Node, ...] = ()

    def take_upgrade(self, upgrade: UpgradeProof, extra: Node | None, extra_is_given: bool) -> Node | None:
        """Take the part that was asked for. `extra`, already climbed to, counts as one of its nodes if it fits.

        Gives `extra` back if it did not.
        """
        if upgrade.start != self.length:
            raise StaleProofError(f"the upgrade starts at {upgrade.start}, this tree has {self.length} blocks")
        if len(upgrade.nodes) > MAX_PROOF_NODES or len(upgrade.additional) > MAX_PROOF_NODES:
            raise VerificationError(f"an upgrade of more than {MAX_PROOF_NODES} nodes")
        end = upgrade.start + upgrade.length
        if not self.start < end <= MAX_LENGTH:
            raise VerificationError(f"an upgrade from {self.start} to {end}")
        given = iter(upgrade.nodes)
        for index in flat_tree.growth(self.start, end):
            if extra is not None and extra.index == index:
                self._push(extra, is_given=extra_is_given)
                extra = None
                continue
            node = next(given, None)
            if node is None or node.index != index:
                raise VerificationError(f"the upgrade lacks tree node {index}")
            self._push(node, is_given=True)
        if next(given, None) is not None:
            raise VerificationError("the upgrade has more nodes than it needs")
        self.asked_roots = tuple(self.roots)
        return extra

    def finish(self, upgrade: UpgradeProof, fork: int) -> VerifiedUpgrade:
        """Take what follows on the part asked for, and check the signature."""
        asked_length = self.length
        prologue = self.authority.prologue
        if prologue is not None and self.start < prologue.length:
            tree_hash = self.authority.tree_hash.tree(self.asked_roots)
            if self.start or asked_length != prologue.length or tree_hash != prologue.hash:
                raise VerificationError(f"the upgrade does not show the prologue of {prologue.length} blocks")
        for node in upgrade.additional:
            if flat_tree.left_span(node.index) != 2 * self.length:
                raise VerificationError(f"tree node {node.index} does not follow on block {self.length - 1}")
            self._push(node, is_given=True)
            if self.length > MAX_LENGTH:
                raise VerificationError(f"a tree of {self.length} blocks")
        byte_length = sum(root.size for root in self.roots)
        if byte_length > MAX_SAFE_INTEGER:
            raise VerificationError(f"a tree of {byte_length} bytes")
        if not self.authority.verify(self.roots, self.length, fork, upgrade.signature):
            raise VerificationError(f"the signature of the tree of {self.length} blocks, fork {fork}, does not hold")
        return VerifiedUpgrade(
            tuple(self.roots), self.length, byte_length, upgrade.signature, asked_length, self.asked_roots
        )

    def _push(self, node: Node, *, is_given: bool) -> None:
        self.length += flat_tree.leaf_count(node.index)
        self.nodes.append(node)
        if is_given:
            self.given.add(node.index)
        while self.roots and flat_tree.sibling(node.index) == self.roots[-1].index:
            left = self.roots.pop()
            if left.index in self.given and node.index in self.given:
                self.provisional += (left.index, node.index)
            node = parent_node(left, node, self.authority.tree_hash)
            self.nodes.append(node)
        self.roots.append(node)


async def settle(source: NodeSource, verified: Verified) -> list[Node]:
    """Compare with what is stored in the reader's tree, and give exactly the nodes to store.

    One look-up for a block without upgrade. A stored node whose forged size the proof has exposed is among the nodes
    with its true one, and so is its sibling. Raises `VerificationError` when the proof does not end in a stored node.
    """
    nodes, top = verified.nodes, verified.top
    if top is not None:
        (stored,) = await source.nodes((top.index,))
        if stored is None:
            raise UnanchoredProofError(f"the proof ends in tree node {top.index}, which is not known here")
        if stored.hash != top.hash:
            raise VerificationError(f"the proof does not lead to the hash of tree node {top.index}")
        if stored.size == top.size:
            nodes = nodes[:-1] if nodes[-1] is top else nodes
        elif verified.top_is_given:
            raise VerificationError(f"tree node {top.index} has {stored.size} bytes, the proof says {top.size}")
        else:
            nodes = [*nodes, *await _true_sibling(source, top)]
    if verified.provisional:
        kept = await source.nodes(verified.provisional)
        known = {(node.index, node.hash) for node in kept if node is not None}
        nodes = [node for node in nodes if (node.index, node.hash) not in known]
    return nodes


async def _true_sibling(source: NodeSource, node: Node) -> list[Node]:
    """The sibling of a node whose stored size was forged: what it has too little, the other had too much."""
    index = flat_tree.sibling(node.index)
    sibling, parent = await source.nodes((index, flat_tree.parent(node.index)))
    if sibling is None or parent is None or parent.size < node.size:
        return []
    return [Node(index, parent.size - node.size, sibling.hash)]


async def proves_conflict(source: NodeSource, verified: Verified, *, length: int) -> bool:
    """Whether a verified tree of our own fork contradicts ours of `length` blocks (wire spec, section 5.11).

    Both are signed, so a subtree that is complete in both must be the same.
    """
    shared = [node for node in verified.nodes if flat_tree.right_span(node.index) < 2 * length]
    stored = await source.nodes([node.index for node in shared])
    return any(ours is not None and ours.hash != theirs.hash for ours, theirs in zip(stored, shared, strict=True))

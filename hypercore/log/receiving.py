"""Proofs from peers, verified one after the other, on their way into one commit.

Knows how each proof builds on those before it (disk spec, section 6.6). It must not know where proofs come from, and
writes nothing.
"""

from __future__ import annotations

from hypercore.log import oplog
from hypercore.log.oplog import BitRange, Entry, TreeUpgrade
from hypercore.log.proof import settle, verify_proof
from hypercore.log.state import LogState
from hypercore.proofs import Proof


class Batch:
    """What a log becomes when the proofs that hold are stored."""

    def __init__(self, state: LogState) -> None:
        self._state = state
        self._bit = state.slots.active
        self._data: list[tuple[int, bytes]] = []
        self._stored: set[int] = set()
        self.authority = state.authority
        self.roots = state.roots
        self.length = state.length
        self.byte_length = state.byte_length
        self.signature = state.signature
        self.frames: list[bytes] = []

    @property
    def is_empty(self) -> bool:
        """Whether nothing new was learned."""
        return not self.frames and self.authority is self._state.authority

    async def add(self, proof: Proof) -> None:
        """Verify `proof` and take it in. Raises `VerificationError` or `DecodeError`; then nothing of it is kept."""
        state, tree = self._state, self._state.tree
        verified = verify_proof(proof, length=self.length, fork=state.fork, roots=self.roots, authority=self.authority)
        nodes = await settle(tree, verified)
        if verified.authority is not self.authority:
            self.authority = verified.authority
            tree.hash_with(self.authority.tree_hash)
        upgrade = None
        if verified.upgrade is not None:
            new = verified.upgrade
            upgrade = TreeUpgrade(state.fork, self.length, new.length, new.signature)
            self.roots, self.length, self.signature = new.roots, new.length, new.signature
            self.byte_length = new.byte_length
        if nodes:
            tree.add(nodes)
        if upgrade is not None:
            tree.set_roots(self.roots, self.length)
        bits = None
        block = proof.block
        if block is not None and block[0] not in self._stored and not state.bitfield.get(block[0]):
            index = block[0]
            placed = tree.known(2 * index) or await tree.locate(2 * index)
            assert placed is not None, "a verified leaf hangs under a root"
            offset, leaf = placed
            if not any(node[0] == leaf[0] for node in nodes):
                # Whoever replays the log wants to see the leaf of every block that it speaks of.
                nodes = [leaf, *nodes]
            self._data.append((offset, block[1]))
            self._stored.add(index)
            bits = BitRange(False, index, 1)
        if nodes or upgrade is not None or bits is not None:
            body = oplog.encode_entry(Entry(None, nodes, upgrade, bits))
            self.frames.append(oplog.frame(body, bit=self._bit))

    def writes(self) -> list[tuple[int, bytes]]:
        """Block bytes by byte offset, neighbours joined."""
        joined: list[tuple[int, bytes]] = []
        start = end = -1
        parts: list[bytes] = []
        for offset, data in sorted(self._data):
            if offset != end:
                if parts:
                    joined.append((start, b"".join(parts)))
                    parts = []
                start = offset
            parts.append(data)
            end = offset + len(data)
        if parts:
            joined.append((start, b"".join(parts)))
        return joined

    def runs(self) -> list[tuple[int, int]]:
        """The blocks that are new here, as runs from start to end."""
        runs: list[tuple[int, int]] = []
        for index in sorted(self._stored):
            if runs and runs[-1][1] == index:
                runs[-1] = (runs[-1][0], index + 1)
            else:
                runs.append((index, index + 1))
        return runs

"""Proofs from peers, verified one after the other, on their way into one commit.

Knows how each proof builds on those before it (disk spec, section 6.6). It must not know where proofs come from, and
writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from hypercore.errors import DecodeError, VerificationError
from hypercore.log.commits import Commits
from hypercore.log.oplog import BitRange, Entry, TreeUpgrade
from hypercore.log.proof import settle, verify_proof
from hypercore.log.state import LogState
from hypercore.proofs import BlockProof, Node, Proof


class Batch:
    """What a log becomes when the proofs that hold are stored.

    Nodes go into the tree in memory as they are verified; what is known of blocks and length waits for the commit.
    """

    def __init__(self, state: LogState) -> None:
        self._state = state
        self._frames: list[bytes] = []
        self._data: list[tuple[int, bytes]] = []
        #: Blocks that are new, as runs from start to end.
        self._runs: list[list[int]] = []
        self._stored: set[int] = set()
        #: Nodes of the last run, whose entry is not written yet.
        self._run_nodes: list[Node] = []
        self.authority = state.authority
        self.roots = state.roots
        self.length = state.length
        self.byte_length = state.byte_length
        self.signature = state.signature

    @property
    def is_empty(self) -> bool:
        """Whether nothing new was learned."""
        return not self._frames and not self._run_nodes and self.authority is self._state.authority

    async def add(self, proof: Proof) -> None:
        """Verify `proof` and take it in. Raises `VerificationError` or `DecodeError`; then nothing of it is kept."""
        fork, block, of_hash, seek, upgrade, manifest = proof
        if (
            block is not None
            and of_hash is None
            and seek is None
            and upgrade is None
            and manifest is None
            and fork == self._state.fork
            and self._add_block(block)
        ):
            return
        await self._add_whole(proof)

    def _add_block(self, block: BlockProof) -> bool:
        """Most proofs are one block whose neighbours came just before: then few nodes are new. False: look closer."""
        index, value, path = block
        if not 0 <= index < self.length:
            return False
        leaf = Node(2 * index, len(value), self.authority.tree_hash.leaf(value))
        grafted = self._state.tree.graft(leaf, path)
        if grafted is None:
            return False
        offset, nodes = grafted
        self._store(index, value, offset, nodes, leaf)
        return True

    async def _add_whole(self, proof: Proof) -> None:
        state, tree = self._state, self._state.tree
        verified = verify_proof(proof, length=self.length, fork=state.fork, roots=self.roots, authority=self.authority)
        nodes = await settle(tree, verified)
        if verified.authority is not self.authority:
            self.authority = verified.authority
            tree.hash_with(self.authority.tree_hash)
        tree.add(nodes)
        if verified.upgrade is not None:
            new = verified.upgrade
            upgrade = TreeUpgrade(state.fork, self.length, new.length, new.signature)
            self.roots, self.length, self.signature = new.roots, new.length, new.signature
            self.byte_length = new.byte_length
            tree.set_roots(self.roots, self.length)
            self._end_run()
            self._log(Entry(None, nodes, upgrade, None))
            nodes = []
        if proof.block is not None:
            placed = await tree.locate(2 * proof.block.index)
            if placed is None:
                raise VerificationError(f"block {proof.block.index} is not below a root")
            self._store(proof.block.index, proof.block.value, placed[0], nodes, placed[1])
        elif nodes:
            self._end_run()
            self._log(Entry(None, nodes, None, None))

    def _store(self, index: int, value: bytes, offset: int, nodes: list[Node], leaf: Node) -> None:
        if index in self._stored or self._state.bitfield.get(index):
            # The block is here; its nodes may be new nevertheless.
            if nodes:
                self._end_run()
                self._log(Entry(None, nodes, None, None))
            return
        self._stored.add(index)
        self._data.append((offset, value))
        if self._run_nodes and self._runs[-1][1] == index:
            self._runs[-1][1] = index + 1
        else:
            self._end_run()
            self._runs.append([index, index + 1])
        self._run_nodes += nodes
        if not any(node[0] == leaf[0] for node in nodes):
            # Whoever replays the log wants to see the leaf of every block that it speaks of.
            self._run_nodes.append(leaf)

    def _end_run(self) -> None:
        if self._run_nodes:
            start, end = self._runs[-1]
            self._log(Entry(None, self._run_nodes, None, BitRange(False, start, end - start)))
            self._run_nodes = []

    def _log(self, entry: Entry) -> None:
        self._frames.append(self._state.framed(entry))

    def frames(self) -> list[bytes]:
        """The entries to write."""
        self._end_run()
        return self._frames

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
        joined: list[tuple[int, int]] = []
        for start, end in sorted(self._runs):
            if joined and joined[-1][1] == start:
                joined[-1] = (joined[-1][0], end)
            else:
                joined.append((start, end))
        return joined


async def apply(commits: Commits, proofs: Sequence[Proof]) -> list[VerificationError | None]:
    """Store all proofs that hold in one commit; run while no other mutation runs. See `Log.apply`."""
    await commits.certain()
    state = commits.state
    batch = Batch(state)
    results: list[VerificationError | None] = []
    try:
        for proof in proofs:
            try:
                await batch.add(proof)
            except VerificationError as error:
                results.append(error)
            except DecodeError as error:
                results.append(VerificationError(str(error)))
            else:
                results.append(None)
        if batch.is_empty:
            return results
        if frames := batch.frames():
            await commits.commit_entries(frames, batch.writes())
    except BaseException:
        # Nodes of proofs that are not committed are in memory now.
        commits.uncertain = True
        raise
    start = state.length
    learned = batch.authority is not state.authority
    state.learn(batch.authority)
    state.roots, state.length, state.signature = batch.roots, batch.length, batch.signature
    state.byte_length = batch.byte_length
    runs = batch.runs()
    for first, end in runs:
        state.note_set(first, end)
    if state.length > start:
        commits.notify("upgrade", start, state.length)
    for first, end in runs:
        commits.notify("blocks", first, end)
    # A manifest reaches the disk with a header only.
    await commits.checkpoint_if_due(now=learned)
    return results

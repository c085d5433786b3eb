"""The log: what is stored, verified reads of it, and the one door to changing it.

Knows the parts of a log. It must not know where the bytes lie (a `Storage` does), who the peers are, or what a block
means. How changes are made is in `commits`, `appending`, `receiving` and `cutting`; formats and their order are in
the disk spec, sections 6 and 7.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from hypercore import crypto
from hypercore.bitfield import Bitfield
from hypercore.crypto import KeyPair, TreeHash
from hypercore.errors import (
    BlockIndexError,
    BlockNotAvailableError,
    ClosedError,
    CorruptError,
    HypercoreError,
    OptionError,
    OutOfBoundsError,
    StaleProofError,
    StorageMissingError,
    VerificationError,
)
from hypercore.log import audit, cutting, flat_tree, proof, receiving, seek
from hypercore.log.appending import MAX_BLOCK_SIZE as MAX_BLOCK_SIZE
from hypercore.log.appending import Appender
from hypercore.log.commits import Commits
from hypercore.log.commits import Durability as Durability
from hypercore.log.commits import LogChange as LogChange
from hypercore.log.creating import Identity, create
from hypercore.log.creating import overwrite as overwrite_log
from hypercore.log.manifest import Authority, Manifest, encode_manifest
from hypercore.log.opening import inspect, load, refuse_missing
from hypercore.log.prove import build_proof
from hypercore.log.reorg import Reorg
from hypercore.log.repair import read_again
from hypercore.proofs import Node, Proof, ProofRequest
from hypercore.storage import Storage

DURABILITIES: Final = ("none", "flush", "always")


class Log:
    """One log in one storage. Made by `Log.open`; closed by `aclose`, which closes the storage too."""

    def __init__(self, commits: Commits) -> None:
        self._commits = commits
        self._appender = Appender(commits)
        #: Whoever reads the block behind the last one read will go on, so that reading ahead pays.
        self._next_index = 0

    # ---- opening and closing -------------------------------------------------------------------------

    @classmethod
    async def open(
        cls,
        storage: Storage,
        *,
        key: bytes | None = None,
        key_pair: KeyPair | None = None,
        manifest: Manifest | None = None,
        compat: bool = False,
        hash: str = "blake2b",  # noqa: A002 - the manifest's own word
        create_if_missing: bool = True,
        overwrite: bool = False,
        read_only: bool = False,
        durability: Durability = "flush",
        user_data: Mapping[str, bytes] | None = None,
    ) -> Log:
        """The log in `storage`, or a new one.

        A new log belongs to `key` (somebody else's: a reader), else to `manifest`, else to `key_pair`, else to a
        fresh key pair; `compat` makes the public key itself the key, `hash` may be "blake3". `user_data` is for
        a new log only. With `read_only` no lease is taken and nothing is ever written.

        Raises `StorageMissingError`, `StorageConflictError` (another key), `ForeignStorageError`,
        `NewerFormatError`, `CorruptError`, `LockedError`; after any of them not one byte has changed. Disk spec,
        section 9.
        """
        if durability not in DURABILITIES:
            raise OptionError(f"durability {durability!r} is unknown; it is one of {', '.join(DURABILITIES)}")
        if read_only and overwrite:
            raise OptionError("a log cannot be overwritten and opened read-only at once")
        wanted = Identity.of(key, key_pair, manifest, compat=compat, hash=hash)
        sync = durability != "none"
        if durability == "always" and not read_only:
            await storage.require_durable()
        if overwrite:
            state = await overwrite_log(storage, wanted, user_data, sync=sync)
            return cls(Commits(storage, state, durability=durability, read_only=False))
        inspection = await inspect(storage)
        if inspection.header is None:
            refuse_missing(inspection, may_create=create_if_missing and not read_only)
            await storage.acquire()
            inspection = await inspect(storage)
            if inspection.header is None:
                refuse_missing(inspection, may_create=True)
                state = await create(storage, wanted, user_data, sync=sync)
                return cls(Commits(storage, state, durability=durability, read_only=False))
        state = await load(storage, inspection, key=wanted.expected, key_pair=key_pair, writing=not read_only)
        commits = Commits(storage, state, durability=durability, read_only=read_only)
        if read_only:
            commits.seen_oplog = inspection.oplog
        else:
            await storage.acquire()
            again = await inspect(storage)
            if again.oplog != inspection.oplog:
                # Another writer was here between our look and our lease.
                commits.state = await load(storage, again, key=wanted.expected, key_pair=key_pair)
            await commits.take_over(again)
        return cls(commits)

    async def refresh(self) -> bool:
        """Take in what another process has written since; whether there was anything. For a log that was opened
        read-only: a writer knows all that there is.

        Raises what `open` raises, and `CorruptError` when less is there than there was; then nothing has changed.
        """
        return self._commits.read_only and await self._commits.refresh()

    async def flush(self) -> None:
        """Move everything from the log's entries to the other files, and sync unless the durability is "none"."""
        self._commits.check_changeable()
        await self._commits.exclusively(self._flush())

    async def _flush(self) -> None:
        await self._commits.certain()
        if self._commits.state.has_entries:
            await self._commits.checkpoint()

    async def aclose(self) -> None:
        """Wait for mutations under way, then close the storage. Twice is fine."""
        await self._commits.aclose()

    async def purge(self) -> None:
        """Remove the log's files, secret key first, and close. What else is in the storage stays."""
        await self._commits.purge()

    # ---- what the log is -----------------------------------------------------------------------------

    @property
    def key(self) -> bytes:
        """The 32-byte key by which readers know the core."""
        return self._commits.state.authority.key

    @property
    def discovery_key(self) -> bytes:
        """The 32 bytes under which peers look for the core without giving its key away."""
        return crypto.discovery_key(self._commits.state.authority.key)

    @property
    def authority(self) -> Authority:
        return self._commits.state.authority

    @property
    def manifest(self) -> Manifest | None:
        """None for a reader that has not learned it yet."""
        return self._commits.state.authority.manifest

    @property
    def is_compat(self) -> bool:
        return self._commits.state.authority.is_compat

    @property
    def tree_hash_function(self) -> TreeHash:
        return self._commits.state.authority.tree_hash

    @property
    def key_pair(self) -> KeyPair | None:
        return self._commits.state.key_pair

    @property
    def writable(self) -> bool:
        """Whether `append` and `truncate` can work."""
        state = self._commits.state
        manifest = state.authority.manifest
        return state.key_pair is not None and not self._commits.read_only and (manifest is None or manifest.quorum == 1)

    @property
    def read_only(self) -> bool:
        return self._commits.read_only

    @property
    def closed(self) -> bool:
        return self._commits.closed

    @property
    def listeners(self) -> list[Callable[[LogChange], None]]:
        """Called with each `LogChange`, at once after its commit; add to it and remove from it freely."""
        return self._commits.listeners

    @property
    def storage(self) -> Storage:
        return self._commits.storage

    @property
    def durability(self) -> Durability:
        return self._commits.durability

    @property
    def length(self) -> int:
        """Blocks."""
        return self._commits.state.length

    @property
    def byte_length(self) -> int:
        """Bytes of all blocks."""
        return self._commits.state.byte_length

    @property
    def written_bytes(self) -> int:
        """Bytes of blocks that were stored since the log was opened; it never shrinks."""
        return self._commits.written_bytes

    @property
    def contiguous_length(self) -> int:
        """Blocks that are here from the first on, without a hole."""
        return self._commits.state.contiguous_length

    @property
    def fork(self) -> int:
        return self._commits.state.fork

    @property
    def roots(self) -> tuple[Node, ...]:
        return self._commits.state.roots

    @property
    def signature(self) -> bytes:
        return self._commits.state.signature

    @property
    def bitfield(self) -> Bitfield:
        """Which blocks are here. For looking only; bits at or above `length` mean nothing."""
        return self._commits.state.bitfield

    @property
    def user_data(self) -> Mapping[str, bytes]:
        """A view of all user data."""
        return MappingProxyType(self._commits.state.user_data)

    @property
    def warnings(self) -> list[str]:
        """What was found damaged, or is wrong with the storage, and could be lived with."""
        return [*self._commits.storage.warnings, *self._commits.state.warnings]

    # ---- reading -------------------------------------------------------------------------------------

    def has(self, index: int) -> bool:
        """Whether block `index` is stored here."""
        state = self._commits.state
        return 0 <= index < state.length and state.bitfield.get(index)

    async def get(self, index: int) -> bytes | None:
        """The bytes of block `index`, verified against the tree; None when it is not stored here.

        Raises `BlockIndexError` outside of the log and `CorruptError` when the stored bytes are damaged; after that
        the block counts as not stored, so that a peer may be asked for it.
        """
        state = self._commits.state
        if not 0 <= index < state.length:
            raise BlockIndexError(f"block {index} is outside of the log, which has {state.length} blocks")
        if not state.bitfield.get(index):
            return None
        try:
            leaf = state.tree.leaf(index)
            if leaf is None and (placed := await state.tree.locate(2 * index)) is not None:
                leaf = placed[0], *placed[1][1:]
            if leaf is not None:
                offset, size, digest = leaf
                if index == self._next_index:
                    block = await state.blocks.read_sequence(offset, size)
                else:
                    block = await state.blocks.read(offset, size) if size else b""
                self._next_index = index + 1
                if state.authority.tree_hash.leaf(block) == digest:
                    return block
        except (OutOfBoundsError, StorageMissingError, ClosedError, CorruptError):
            pass
        return await self._get_slowly(index)

    async def _get_slowly(self, index: int) -> bytes | None:
        """Once more while nothing else moves: only now is a mismatch damage."""
        self._commits.check_open()
        async with self._commits.lock:
            # After a commit that failed, the files may be a step ahead of what is known.
            await self._commits.certain()
            state = self._commits.state
            if index >= state.length or not state.bitfield.get(index):
                return None
            state.blocks.forget()
            found = await read_again(state, index)
            if isinstance(found, bytes):
                return found
            state.note_damaged(index)
        raise found

    async def byte_offset(self, index: int) -> int:
        """The byte at which block `index` begins; `length` gives the byte length.

        Raises `BlockIndexError`, and `BlockNotAvailableError` when the tree nodes that say so are not here.
        """
        state = self._commits.state
        if index == state.length:
            return state.byte_length
        if not 0 <= index < state.length:
            raise BlockIndexError(f"block {index} is outside of the log, which has {state.length} blocks")
        node = 2 * index
        while True:
            placed = await state.tree.locate(node)
            if placed is not None:
                return placed[0]
            # Any subtree that begins with the block begins where it begins.
            node = flat_tree.parent(node)
            if flat_tree.left_span(node) != 2 * index:
                raise BlockNotAvailableError(f"the tree nodes that say where block {index} begins are not here")

    async def seek(self, byte_offset: int, padding: int = 0) -> seek.Found | seek.InDoubt:
        """The block that holds `byte_offset`, or what to ask a peer for. Each block begins with `padding` bytes
        that do not count."""
        state = self._commits.state
        return await seek.seek(state.tree, state.roots, state.length, byte_offset, padding)

    async def nodes(self, indexes: Sequence[int]) -> list[Node | None]:
        """The tree nodes that are stored and hash up to a root; None for the others."""
        return await self._commits.state.tree.nodes(indexes)

    async def missing_nodes(self, tree_index: int) -> int:
        """How many steps up from `tree_index` nothing is stored: the `nodes` of a request (wire spec, 6.5)."""
        state = self._commits.state
        steps = state.tree.missing_steps(tree_index)
        return await proof.missing_nodes(state.tree, tree_index, state.length) if steps is None else steps

    async def tree_hash(self, length: int | None = None) -> bytes:
        """The 32-byte hash of the tree as it was at `length`.

        Raises `BlockIndexError`, and `BlockNotAvailableError` when a root of that length is not here.
        """
        state = self._commits.state
        if length is None or length == state.length:
            return state.authority.tree_hash.tree(state.roots)
        return state.authority.tree_hash.tree(await cutting.roots_at(state, length))

    async def can_upgrade_from(self, length: int) -> bool:
        """Whether a reader of `length` blocks can be brought up to here: all roots of that length are held."""
        state = self._commits.state
        return 0 <= length <= state.length and await state.tree.roots_at(length) is not None

    def get_user_data(self, key: str) -> bytes | None:
        return self._commits.state.user_data.get(key)

    def audit(self, progress: Callable[[int], None] | None = None) -> AsyncIterator[CorruptError]:
        """Check the signature, every tree node and every stored block; one `CorruptError`, not raised, for each
        thing that is wrong.

        `progress` is told now and then how many blocks were checked. Raises `CorruptError` when the log is truncated
        meanwhile, and `StorageError`.
        """
        return audit.audit(self._commits, progress)

    # ---- serving -------------------------------------------------------------------------------------

    async def prove(self, request: ProofRequest) -> Proof:
        """The answer to a peer's request (wire spec, section 5.8).

        Raises `BlockNotAvailableError` when the block or the fork is not here, `ProofRequestError` when no such
        proof can exist, `CorruptError` when the stored block is damaged.
        """
        while True:
            state, generation = self._commits.state, self._commits.generation
            manifest = None
            if request.manifest and not state.authority.is_compat and state.authority.manifest is not None:
                manifest = encode_manifest(state.authority.manifest)
            if request.fork != state.fork:
                if manifest is None:
                    raise BlockNotAvailableError(f"fork {request.fork} was asked for, and this is fork {state.fork}")
                return Proof(request.fork, manifest=manifest)
            block = None
            if request.block is not None:
                index = request.block[0]
                if 0 <= index < state.length:
                    block = await self.get(index)
                if block is None:
                    raise BlockNotAvailableError(f"block {index} is not stored here")
            prologue = state.authority.prologue
            try:
                built = await build_proof(
                    state.tree,
                    request,
                    length=state.length,
                    fork=state.fork,
                    signature=state.signature,
                    block=block,
                    prologue_length=0 if prologue is None else prologue.length,
                    manifest=manifest,
                )
            except HypercoreError:
                if generation == self._commits.generation:
                    raise
                continue
            if generation == self._commits.generation:
                return built

    async def conflicts(self, candidate: Proof) -> bool:
        """Whether a proof from nothing shows two signed trees on one fork (wire spec, section 5.11).

        Raises `VerificationError` when the proof itself does not hold.
        """
        state, generation = self._commits.state, self._commits.generation
        verified = proof.verify_fork_proof(candidate, authority=state.authority)
        if verified.fork != state.fork:
            return False  # A truncated log has every right to another history.
        conflict = await proof.proves_conflict(state.tree, verified, length=state.length)
        return conflict and generation == self._commits.generation

    # ---- changing ------------------------------------------------------------------------------------

    async def append(self, blocks: Sequence[bytes]) -> tuple[int, int]:
        """Append the blocks, all or none; the length in blocks and in bytes after them.

        Several calls in flight share one commit and one signature. Raises `NotWritableError`, `OptionError` for a
        block above 15 MiB, `StorageError`: then the blocks may or may not be there, and the next call finds out.
        """
        return await self._appender.append(blocks)

    async def apply(self, proofs: Sequence[Proof]) -> list[VerificationError | None]:
        """Verify each proof, and store all that hold in one commit. One result a proof: None, or why not.

        Blocks that are here already are not written again. Raises `StorageError`.
        """
        self._commits.check_changeable()
        return await self._commits.exclusively(receiving.apply(self._commits, proofs))

    async def begin_reorg(self, candidate: Proof) -> Reorg:
        """Start to follow another fork, proved from nothing by `candidate` (wire spec, section 5.10).

        Ask a peer for `next_request()` of the result until it is None, `receive` the answers with this log as their
        source, then `commit_reorg`. Raises `VerificationError`, and `StaleProofError` for a fork that is not newer.
        """
        state, generation = self._commits.state, self._commits.generation
        verified = proof.verify_fork_proof(candidate, authority=state.authority)
        if verified.fork <= state.fork:
            raise StaleProofError(f"fork {verified.fork} is not newer than ours, {state.fork}")
        reorg = await Reorg.begin(state.tree, verified, length=state.length)
        reorg.generation = generation
        return reorg

    async def commit_reorg(self, reorg: Reorg) -> None:
        """Become the other fork: keep the common blocks, drop the rest.

        Raises `StaleProofError` when this log moved to another fork since `begin_reorg`.
        """
        self._commits.check_changeable()
        await self._commits.exclusively(cutting.follow(self._commits, reorg))

    async def truncate(self, length: int, *, fork: int | None = None) -> None:
        """Cut the log to `length` blocks and sign that on a new fork, the next one unless told.

        Raises `NotWritableError`, `BlockIndexError`, and `OptionError` for a fork that is not newer.
        """
        self._commits.check_writable()
        await self._commits.exclusively(cutting.truncate(self._commits, length, fork))

    async def clear(self, start: int, end: int | None = None) -> None:
        """Drop the bytes of the blocks from `start` to `end` (one block unless told). They can be fetched again.

        Raises `BlockIndexError` for a negative start.
        """
        self._commits.check_changeable()
        end = start + 1 if end is None else end
        await self._commits.exclusively(cutting.clear(self._commits, start, end))

    async def set_user_data(self, key: str, value: bytes | None) -> None:
        """Store `value` under `key`, or remove the key with None.

        Raises `OptionError` for an empty value, which could not be told from none in the files.
        """
        self._commits.check_changeable()
        await self._commits.exclusively(cutting.set_user_data(self._commits, key, value))

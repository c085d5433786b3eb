"""The log: one writer's mutations, everybody's verified reads.

Knows the parts of a log and takes turns among callers. It must not know where the bytes lie (a `Storage` does), who
the peers are, or what a block means. Formats and order of operations: disk spec, sections 6 and 7.

Every mutation is one commit of the storage, made under one lock. Its entry in the log is the commit point: memory is
changed after it, listeners hear of it after that. Appends that are in flight together become one commit with one
signature. What is in the log's entries moves to the other files at checkpoints.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, TypeVar

from hypercore import crypto
from hypercore.bitfield import Bitfield
from hypercore.crypto import KeyPair, TreeHash
from hypercore.errors import (
    BlockIndexError,
    BlockNotAvailableError,
    ClosedError,
    CorruptError,
    DecodeError,
    FencedError,
    HypercoreError,
    NotWritableError,
    OptionError,
    OutOfBoundsError,
    StorageError,
    StorageMissingError,
    VerificationError,
)
from hypercore.log import flat_tree, oplog, proof, seek
from hypercore.log.creating import Identity, create
from hypercore.log.creating import overwrite as overwrite_log
from hypercore.log.entry import MAX_NODE_COUNT
from hypercore.log.manifest import Authority, Manifest, encode_manifest
from hypercore.log.merkle import append_blocks
from hypercore.log.opening import Inspection, inspect, load, refuse_missing
from hypercore.log.oplog import BitRange, Entry, TreeUpgrade
from hypercore.log.receiving import Batch
from hypercore.log.reorg import Reorg
from hypercore.log.state import (
    DATA,
    FILES,
    HEADER,
    OPLOG,
    LogState,
    delete_of,
    finish_checkpoint,
    plan_checkpoint,
)
from hypercore.proofs import Node, Proof, ProofRequest
from hypercore.storage import Operation, Storage, Sync, Truncate, Write

T = TypeVar("T")

Durability = Literal["none", "flush", "always"]
DURABILITIES: Final = ("none", "flush", "always")

#: Other implementations refuse a larger block, because a message that carries one must fit into a frame.
MAX_BLOCK_SIZE: Final = 15 * 1024 * 1024
#: Replaying this many bytes of entries at the next open takes a few milliseconds. Other implementations
#: move the entries on at the same size.
CHECKPOINT_ENTRY_BYTES: Final = 64 * 1024
#: Half of what other implementations can read in one entry, which has two nodes a block.
MAX_ENTRY_BLOCKS: Final = MAX_NODE_COUNT // 4
#: A commit of appends in flight takes no more blocks or bytes than this (one caller's own batch may be larger).
MAX_GROUP_BLOCKS: Final = 16384
MAX_GROUP_BYTES: Final = 16 * 1024 * 1024
#: User data is written again with every header, so it should stay small.
MAX_USER_DATA_SIZE: Final = 1024 * 1024


class LogChange(NamedTuple):
    """Something was committed. The blocks from `start` to `end` are what it was about.

    "append": they were appended here. "upgrade": the length grew by them, which says nothing of who has them.
    "blocks": they were received and are here. "clear": they are no longer here. "truncate": they are no longer part
    of the log, and the fork is another one. `fork` and `length` are the log's afterwards.
    """

    kind: Literal["append", "upgrade", "blocks", "clear", "truncate"]
    start: int
    end: int
    fork: int
    length: int


@types.coroutine
def _resume(body: Coroutine[Any, Any, T], waited: Any) -> Generator[Any, Any, T]:
    """Go on with a coroutine that has begun already and waits for `waited`."""
    try:
        while True:
            try:
                value = yield waited
            except BaseException as error:
                waited = body.throw(error)
            else:
                waited = body.send(value)
    except StopIteration as stop:
        result: T = stop.value
        return result


class _Group:
    """Appends that wait for the same commit."""

    __slots__ = ("block_count", "byte_count", "callers")

    def __init__(self) -> None:
        self.callers: list[tuple[Sequence[bytes], asyncio.Future[tuple[int, int]]]] = []
        self.block_count = 0
        self.byte_count = 0


class Log:
    """One log in one storage. Made by `Log.open`; closed by `aclose`, which closes the storage too."""

    def __init__(self, storage: Storage, state: LogState, *, durability: Durability, read_only: bool) -> None:
        self._storage = storage
        self._state = state
        self._durability: Durability = durability
        self._read_only = read_only
        self._lock = asyncio.Lock()
        #: Raised with every cut: what was looked up before it may not hold after it.
        self._generation = 0
        #: A commit failed, and the storage has to say what is true before the next one.
        self._uncertain = False
        self._poison: HypercoreError | None = None
        self._unsynced = False
        self._closed = False
        self._group: _Group | None = None
        self._last_appender: asyncio.Task[Any] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        #: Whoever reads the block behind the last one read will go on, so that reading ahead pays.
        self._next_index = 0
        self.listeners: list[Callable[[LogChange], None]] = []

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
        if overwrite:
            state = await overwrite_log(storage, wanted, user_data, sync=sync)
            return cls(storage, state, durability=durability, read_only=False)
        inspection = await inspect(storage)
        if inspection.header is None:
            refuse_missing(inspection, may_create=create_if_missing and not read_only)
            await storage.acquire()
            inspection = await inspect(storage)
            if inspection.header is None:
                refuse_missing(inspection, may_create=True)
                state = await create(storage, wanted, user_data, sync=sync)
                return cls(storage, state, durability=durability, read_only=False)
        state = await load(storage, inspection, key=wanted.expected, key_pair=key_pair, writing=not read_only)
        log = cls(storage, state, durability=durability, read_only=read_only)
        if not read_only:
            await storage.acquire()
            again = await inspect(storage)
            if again.oplog != inspection.oplog:
                # Another writer was here between our look and our lease.
                log._state = await load(storage, again, key=wanted.expected, key_pair=key_pair)
                inspection = again
            await log._take_over(inspection)
        return log

    async def _take_over(self, inspection: Inspection) -> None:
        """The lease is ours: cut what a crash left in the log file, and finish a truncation that it interrupted."""
        if inspection.image.needs_cut:
            await self._storage.commit([Truncate(OPLOG, inspection.image.end_offset)])
        if self._state.tree.owed_cut() is not None:
            await self._checkpoint()

    async def flush(self) -> None:
        """Move everything from the log's entries to the other files, and sync unless the durability is "none"."""
        self._check_changeable()
        await self._exclusively(self._flush())

    async def _flush(self) -> None:
        await self._certain()
        await self._checkpoint()

    async def aclose(self) -> None:
        """Wait for mutations under way, then close the storage. Twice is fine."""
        if self._closed:
            return
        self._closed = True
        while self._tasks:
            await asyncio.wait(self._tasks)
        async with self._lock:
            try:
                if self._unsynced and self._durability != "none" and not self._uncertain:
                    await self._storage.commit([Sync((DATA, OPLOG))])
            finally:
                await self._state.tree.aclose()
                await self._state.blocks.aclose()
                await self._storage.aclose()

    async def purge(self) -> None:
        """Remove the log's files, secret key first, and close. What else is in the storage stays."""
        self._check_changeable()
        self._closed = True
        while self._tasks:
            await asyncio.wait(self._tasks)
        async with self._lock:
            try:
                await self._state.tree.aclose()
                await self._state.blocks.aclose()
                for name in (OPLOG, HEADER, *FILES):
                    await self._storage.unlink(name)
            finally:
                await self._storage.aclose()

    # ---- what the log is -----------------------------------------------------------------------------

    @property
    def key(self) -> bytes:
        """The 32-byte key by which readers know the core."""
        return self._state.authority.key

    @property
    def discovery_key(self) -> bytes:
        """The 32 bytes under which peers look for the core without giving its key away."""
        return crypto.discovery_key(self._state.authority.key)

    @property
    def authority(self) -> Authority:
        return self._state.authority

    @property
    def manifest(self) -> Manifest | None:
        """None for a reader that has not learned it yet."""
        return self._state.authority.manifest

    @property
    def is_compat(self) -> bool:
        return self._state.authority.is_compat

    @property
    def tree_hash_function(self) -> TreeHash:
        return self._state.authority.tree_hash

    @property
    def key_pair(self) -> KeyPair | None:
        return self._state.key_pair

    @property
    def writable(self) -> bool:
        """Whether `append` and `truncate` can work."""
        state = self._state
        manifest = state.authority.manifest
        return state.key_pair is not None and not self._read_only and (manifest is None or manifest.quorum == 1)

    @property
    def read_only(self) -> bool:
        return self._read_only

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def storage(self) -> Storage:
        return self._storage

    @property
    def durability(self) -> Durability:
        return self._durability

    @property
    def length(self) -> int:
        """Blocks."""
        return self._state.length

    @property
    def byte_length(self) -> int:
        """Bytes of all blocks."""
        return self._state.byte_length

    @property
    def contiguous_length(self) -> int:
        """Blocks that are here from the first on, without a hole."""
        return self._state.contiguous_length

    @property
    def fork(self) -> int:
        return self._state.fork

    @property
    def roots(self) -> tuple[Node, ...]:
        return self._state.roots

    @property
    def signature(self) -> bytes:
        return self._state.signature

    @property
    def bitfield(self) -> Bitfield:
        """Which blocks are here. For looking only; bits at or above `length` mean nothing."""
        return self._state.bitfield

    @property
    def user_data(self) -> Mapping[str, bytes]:
        """A view of all user data."""
        return MappingProxyType(self._state.user_data)

    @property
    def warnings(self) -> list[str]:
        """What was found damaged and could be lived with."""
        return self._state.warnings

    # ---- reading -------------------------------------------------------------------------------------

    def has(self, index: int) -> bool:
        """Whether block `index` is stored here."""
        state = self._state
        return 0 <= index < state.length and state.bitfield.get(index)

    async def get(self, index: int) -> bytes | None:
        """The bytes of block `index`, verified against the tree; None when it is not stored here.

        Raises `BlockIndexError` outside of the log and `CorruptError` when the stored bytes are damaged; after that
        the block counts as not stored, so that a peer may be asked for it.
        """
        state = self._state
        if not 0 <= index < state.length:
            raise BlockIndexError(f"block {index} is outside of the log, which has {state.length} blocks")
        if not state.bitfield.get(index):
            return None
        try:
            leaf = state.tree.leaf(index)
            if leaf is None:
                placed = await state.tree.locate(2 * index)
                if placed is None:
                    return await self._get_slowly(index)
                offset, (_index, size, digest) = placed
            else:
                offset, size, digest = leaf
            if index == self._next_index:
                block = await state.blocks.read_sequence(offset, size)
            else:
                block = await state.blocks.read(offset, size) if size else b""
        except (OutOfBoundsError, StorageMissingError, ClosedError):
            return await self._get_slowly(index)
        self._next_index = index + 1
        if state.authority.tree_hash.leaf(block) == digest:
            return block
        return await self._get_slowly(index)

    async def _get_slowly(self, index: int) -> bytes | None:
        """Once more while nothing else moves: only now is a mismatch damage."""
        self._check_open()
        async with self._lock:
            state = self._state
            if index >= state.length or not state.bitfield.get(index):
                return None
            state.blocks.forget()
            placed = await state.tree.locate(2 * index)
            if placed is None:
                problem = f"the tree nodes of block {index} are damaged or missing"
                file = "tree"
            else:
                offset, leaf = placed
                file = DATA
                try:
                    block = await state.blocks.read(offset, leaf.size) if leaf.size else b""
                    if state.authority.tree_hash.leaf(block) == leaf.hash:
                        return block
                    problem = f"the bytes of block {index} do not match their hash"
                except (OutOfBoundsError, StorageMissingError):
                    problem = f"the bytes of block {index} are missing"
            state.note_damaged(index)
        raise CorruptError(f"{problem} in file {file}; fetch the block again from a peer", file=file, index=index)

    async def byte_offset(self, index: int) -> int:
        """The byte at which block `index` begins; `length` gives the byte length.

        Raises `BlockIndexError`, and `BlockNotAvailableError` when the tree nodes that say so are not here.
        """
        state = self._state
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
        state = self._state
        return await seek.seek(state.tree, state.roots, state.length, byte_offset, padding)

    async def nodes(self, indexes: Sequence[int]) -> list[Node | None]:
        """The tree nodes that are stored and hash up to a root; None for the others."""
        return await self._state.tree.nodes(indexes)

    async def missing_nodes(self, tree_index: int) -> int:
        """How many steps up from `tree_index` nothing is stored: the `nodes` of a request (wire spec, 6.5)."""
        state = self._state
        steps = state.tree.missing_steps(tree_index)
        return await proof.missing_nodes(state.tree, tree_index, state.length) if steps is None else steps

    async def tree_hash(self, length: int | None = None) -> bytes:
        """The 32-byte hash of the tree as it was at `length`.

        Raises `BlockIndexError`, and `BlockNotAvailableError` when a root of that length is not here.
        """
        state = self._state
        if length is None or length == state.length:
            return state.authority.tree_hash.tree(state.roots)
        return state.authority.tree_hash.tree(await self._roots_at(length))

    async def _roots_at(self, length: int) -> list[Node]:
        if not 0 <= length <= self._state.length:
            raise BlockIndexError(f"length {length} is outside of the log, which has {self._state.length} blocks")
        found = await self._state.tree.nodes(flat_tree.full_roots(length))
        roots = [root for root in found if root is not None]
        if len(roots) < len(found):
            raise BlockNotAvailableError(f"the roots of length {length} are not all here")
        return roots

    async def can_upgrade_from(self, length: int) -> bool:
        """Whether a reader of `length` blocks can be brought up to here: all roots of that length are held."""
        if not 0 <= length <= self._state.length:
            return False
        return None not in await self._state.tree.nodes(flat_tree.full_roots(length))

    def get_user_data(self, key: str) -> bytes | None:
        return self._state.user_data.get(key)

    # ---- serving -------------------------------------------------------------------------------------

    async def prove(self, request: ProofRequest) -> Proof:
        """The answer to a peer's request (wire spec, section 5.8).

        Raises `BlockNotAvailableError` when the block or the fork is not here, `ProofRequestError` when no such
        proof can exist, `CorruptError` when the stored block is damaged.
        """
        while True:
            state, generation = self._state, self._generation
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
                built = await proof.build_proof(
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
                if generation == self._generation:
                    raise
                continue
            if generation == self._generation:
                return built

    async def conflicts(self, candidate: Proof) -> bool:
        """Whether a proof from nothing shows two signed trees on one fork (wire spec, section 5.11).

        Raises `VerificationError` when the proof itself does not hold.
        """
        state = self._state
        verified = proof.verify_fork_proof(candidate, authority=state.authority)
        return await proof.proves_conflict(state.tree, verified, length=state.length)

    # ---- appending -----------------------------------------------------------------------------------

    async def append(self, blocks: Sequence[bytes]) -> tuple[int, int]:
        """Append the blocks, all or none; the length in blocks and in bytes after them.

        Several calls in flight share one commit and one signature. Raises `NotWritableError`, `OptionError` for a
        block above 15 MiB, `StorageError`: then the blocks may or may not be there, and the next call finds out.
        """
        self._check_writable()
        byte_count = 0
        for block in blocks:
            if not isinstance(block, bytes):
                raise OptionError(f"a block is bytes, not {type(block).__name__}")
            byte_count += len(block)
        if byte_count > MAX_BLOCK_SIZE and any(len(block) > MAX_BLOCK_SIZE for block in blocks):
            raise OptionError(f"a block has at most {MAX_BLOCK_SIZE} bytes")
        group, lock = self._group, self._lock
        if group is None and not lock.locked():
            # Nobody else is appending, or it was this very task, which waited for each of its appends: no reason
            # to wait for company. Another task in the same turn of the loop means that there is company.
            task, last = asyncio.current_task(), self._last_appender
            if last is None or last is task:
                if last is None:
                    self._last_appender = task
                    asyncio.get_running_loop().call_soon(self._forget_appender)
                await lock.acquire()
                return await self._shielded(self._append_and_release(blocks))
        if (
            group is None
            or group.block_count + len(blocks) > MAX_GROUP_BLOCKS
            or group.byte_count + byte_count > MAX_GROUP_BYTES
        ):
            group = self._group = _Group()
            self._spawn(self._append_group(group))
        group.block_count += len(blocks)
        group.byte_count += byte_count
        future: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
        group.callers.append((blocks, future))
        return await future

    def _forget_appender(self) -> None:
        self._last_appender = None

    async def _append_and_release(self, blocks: Sequence[bytes]) -> tuple[int, int]:
        try:
            return await self._append(blocks)
        finally:
            self._lock.release()

    async def _append_group(self, group: _Group) -> None:
        callers: list[tuple[Sequence[bytes], asyncio.Future[tuple[int, int]]]] = []
        try:
            async with self._lock:
                if self._group is group:
                    self._group = None
                # A caller that gave up in time has not appended.
                callers = [caller for caller in group.callers if not caller[1].done()]
                length, byte_length = await self._append([block for blocks, _ in callers for block in blocks])
        except BaseException as error:
            for _, future in callers or group.callers:
                if not future.done():
                    future.set_exception(error)
            if not isinstance(error, Exception):
                raise
            return
        for blocks, future in reversed(callers):
            if not future.done():
                future.set_result((length, byte_length))
            length -= len(blocks)
            byte_length -= sum(map(len, blocks))

    async def _append(self, blocks: Sequence[bytes]) -> tuple[int, int]:
        if self._uncertain:
            await self._certain()
        self._check_writable()
        state = self._state
        count = len(blocks)
        if not count:
            return state.length, state.byte_length
        start, end = state.length, state.length + count
        authority, key_pair = state.authority, state.key_pair
        assert key_pair is not None
        roots: Sequence[Node] = state.roots
        nodes: list[Node] = []
        frames: list[bytes] = []
        bit = state.slots.active
        signature = b""
        for first in range(start, end, MAX_ENTRY_BLOCKS):
            last = min(first + MAX_ENTRY_BLOCKS, end)
            part = blocks if count == last - first else blocks[first - start : last - start]
            roots, created = append_blocks(roots, first, part, authority.tree_hash)
            signature = authority.sign(authority.tree_hash.tree(roots), last, state.fork, key_pair)
            upgrade = TreeUpgrade(state.fork, first, last, signature)
            body = oplog.encode_entry(Entry(None, created, upgrade, BitRange(False, first, last - first)))
            frames.append(oplog.frame(body, bit=bit, partial=last < end))
            nodes = nodes + created if nodes else created
        data = blocks[0] if count == 1 else b"".join(blocks)
        await self._commit_entries(frames, [(state.byte_length, data)])
        state.tree.add(nodes)
        state.tree.set_roots(roots, end)
        state.roots, state.length, state.signature = tuple(roots), end, signature
        state.byte_length += len(data)
        state.note_set(start, end)
        self._notify("append", start, end)
        await self._checkpoint_if_due()
        return end, state.byte_length

    # ---- receiving -----------------------------------------------------------------------------------

    async def apply(self, proofs: Sequence[Proof]) -> list[VerificationError | None]:
        """Verify each proof, and store all that hold in one commit. One result a proof: None, or why not.

        Blocks that are here already are not written again. Raises `StorageError`.
        """
        self._check_changeable()
        return await self._exclusively(self._apply(proofs))

    async def _apply(self, proofs: Sequence[Proof]) -> list[VerificationError | None]:
        await self._certain()
        results: list[VerificationError | None] = []
        batch = Batch(self._state)
        try:
            for candidate in proofs:
                try:
                    await batch.add(candidate)
                except VerificationError as error:
                    results.append(error)
                except DecodeError as error:
                    results.append(VerificationError(str(error)))
                else:
                    results.append(None)
            if batch.is_empty:
                return results
            if frames := batch.frames():
                await self._commit_entries(frames, batch.writes())
        except BaseException:
            # Nodes of proofs that are not committed are in memory now.
            self._uncertain = True
            raise
        state = self._state
        start = state.length
        learned = state.authority.manifest is None and batch.authority.manifest is not None
        state.learn(batch.authority)
        state.roots, state.length, state.signature = batch.roots, batch.length, batch.signature
        state.byte_length = batch.byte_length
        for first, last in batch.runs():
            state.note_set(first, last)
        if state.length > start:
            self._notify("upgrade", start, state.length)
        for first, last in batch.runs():
            self._notify("blocks", first, last)
        await self._checkpoint_if_due(now=learned)
        return results

    async def begin_reorg(self, candidate: Proof) -> Reorg:
        """Start to follow another fork, proved from nothing by `candidate` (wire spec, section 5.10).

        Ask a peer for `next_request()` of the result until it is None, `receive` the answers with this log as their
        source, then `commit_reorg`. Raises `VerificationError`.
        """
        state, generation = self._state, self._generation
        verified = proof.verify_fork_proof(candidate, authority=state.authority)
        if verified.fork <= state.fork:
            raise VerificationError(f"fork {verified.fork} is not newer than ours, {state.fork}")
        reorg = await Reorg.begin(state.tree, verified, length=state.length)
        reorg.generation = generation
        return reorg

    async def commit_reorg(self, reorg: Reorg) -> None:
        """Become the other fork: keep the common blocks, drop the rest.

        Raises `VerificationError` when this log moved on to a fork as new in the meantime.
        """
        self._check_changeable()
        await self._exclusively(self._commit_reorg(reorg))

    async def _commit_reorg(self, reorg: Reorg) -> None:
        await self._certain()
        state, verified = self._state, reorg.verified
        upgrade = verified.upgrade
        assert upgrade is not None
        if reorg.generation != self._generation or verified.fork <= state.fork:
            raise VerificationError(f"the log went to fork {state.fork} while fork {verified.fork} was looked at")
        nodes = await reorg.nodes(state.tree)
        state.authority = verified.authority
        state.tree.hash_with(state.authority.tree_hash)
        await self._cut(reorg.ancestors, verified.fork, upgrade.roots, upgrade.length, upgrade.signature, nodes=nodes)

    # ---- taking away ---------------------------------------------------------------------------------

    async def truncate(self, length: int, *, fork: int | None = None) -> None:
        """Cut the log to `length` blocks and sign that on a new fork, the next one unless told.

        Raises `NotWritableError`, `BlockIndexError`, and `OptionError` for a fork that is not newer.
        """
        self._check_writable()
        await self._exclusively(self._truncate(length, fork))

    async def _truncate(self, length: int, fork: int | None) -> None:
        await self._certain()
        self._check_writable()
        state = self._state
        if fork is None:
            fork = state.fork + 1
        elif fork <= state.fork:
            raise OptionError(f"the log is on fork {state.fork}; a truncation needs a newer one, not {fork}")
        roots = await self._roots_at(length)
        signature = b""
        if length:
            assert state.key_pair is not None
            tree_hash = state.authority.tree_hash.tree(roots)
            signature = state.authority.sign(tree_hash, length, fork, state.key_pair)
        await self._cut(length, fork, roots, length, signature)

    async def _cut(
        self,
        ancestors: int,
        fork: int,
        roots: Sequence[Node],
        length: int,
        signature: bytes,
        *,
        nodes: Sequence[Node] = (),
    ) -> None:
        """Go over to another tree that has the first `ancestors` blocks in common with this one."""
        state = self._state
        old_length = state.length
        dropped = BitRange(True, ancestors, old_length - ancestors)
        entry = Entry(None, nodes, TreeUpgrade(fork, ancestors, length, signature), dropped, empty_nodes=not nodes)
        await self._commit_entries([oplog.frame(oplog.encode_entry(entry), bit=state.slots.active)], [])
        self._generation += 1
        if old_length:
            state.reorg_hints = oplog.add_reorg_hint(
                state.reorg_hints, from_fork=state.fork, to_fork=fork, ancestors=ancestors
            )
        state.tree.cut(ancestors)
        state.tree.add(nodes)
        state.tree.set_roots(roots, length)
        state.fork, state.roots, state.length, state.signature = fork, tuple(roots), length, signature
        state.byte_length = sum(root.size for root in roots)
        state.note_dropped(ancestors, max(old_length, ancestors))
        state.blocks.forget()
        self._notify("truncate", ancestors, old_length)
        if length > ancestors:
            self._notify("upgrade", ancestors, length)
        await self._checkpoint_if_due(now=True)

    async def clear(self, start: int, end: int | None = None) -> None:
        """Drop the bytes of the blocks from `start` to `end` (one block unless told). They can be fetched again.

        Raises `BlockIndexError` for a negative start.
        """
        self._check_changeable()
        await self._exclusively(self._clear(start, start + 1 if end is None else end))

    async def _clear(self, start: int, end: int) -> None:
        await self._certain()
        state = self._state
        if start < 0:
            raise BlockIndexError(f"block {start} is outside of the log")
        end = min(end, state.length)
        bits = state.bitfield
        if start >= end or bits.first_set(start, end) is None:
            return
        # The hole may be wider than what is cleared now: neighbours that are not here go with it.
        last_before = bits.last_set_before(start)
        first_behind = bits.first_set(end, state.length)
        low, high = 0, state.byte_length
        if last_before is not None:
            placed = await state.tree.locate(2 * last_before)
            low = placed[0] + placed[1].size if placed else -1
        if first_behind is not None:
            placed = await state.tree.locate(2 * first_behind)
            high = placed[0] if placed else -1
        deletes = delete_of(low, high - low) if low >= 0 and high >= 0 else []
        entry = Entry(None, (), None, BitRange(True, start, end - start))
        frame = oplog.frame(oplog.encode_entry(entry), bit=state.slots.active)
        await self._commit_entries([frame], [], then=deletes)
        state.note_dropped(start, end)
        if deletes:
            state.blocks.deleted(low, high - low)
        self._notify("clear", start, end)
        await self._checkpoint_if_due()

    async def set_user_data(self, key: str, value: bytes | None) -> None:
        """Store `value` under `key`, or remove the key with None.

        Raises `OptionError` for an empty value, which could not be told from none in the files.
        """
        self._check_changeable()
        if value is not None and not 0 < len(value) <= MAX_USER_DATA_SIZE:
            raise OptionError(f"a value of user data has 1 to {MAX_USER_DATA_SIZE} bytes, not {len(value)}")
        await self._exclusively(self._set_user_data(key, value))

    async def _set_user_data(self, key: str, value: bytes | None) -> None:
        await self._certain()
        state = self._state
        if state.user_data.get(key) == value:
            return
        frame = oplog.frame(oplog.encode_entry(Entry((key, value))), bit=state.slots.active)
        await self._commit_entries([frame], [])
        if value is None:
            del state.user_data[key]
        else:
            state.user_data[key] = value
        await self._checkpoint_if_due()

    # ---- committing ----------------------------------------------------------------------------------

    async def _commit_entries(
        self, frames: Sequence[bytes], data: Sequence[tuple[int, bytes]], *, then: Sequence[Operation] = ()
    ) -> None:
        """Block bytes, then the entries: the commit point. Block bytes are durable before an entry speaks of them."""
        state = self._state
        entries = frames[0] if len(frames) == 1 else b"".join(frames)
        operations: list[Operation] = [Write(DATA, offset, piece) for offset, piece in data if piece]
        if self._durability == "always":
            if operations:
                operations.append(Sync((DATA,)))
            operations += (Write(OPLOG, state.end_offset, entries), Sync((OPLOG,)))
        else:
            operations.append(Write(OPLOG, state.end_offset, entries))
            self._unsynced = True
        operations += then
        try:
            await self._storage.commit(operations)
        except BaseException as error:
            self._failed(error)
            raise
        state.end_offset += len(entries)
        for offset, piece in data:
            state.blocks.wrote(offset, len(piece))

    async def _checkpoint_if_due(self, *, now: bool = False) -> None:
        """The mutation is committed already, so a failure here is not its failure: the next one finds out."""
        if not now and self._state.end_offset < oplog.ENTRIES_OFFSET + CHECKPOINT_ENTRY_BYTES:
            return
        try:
            await self._checkpoint()
        except StorageError as error:
            self._state.warnings.append(f"a checkpoint failed and will be tried again: {error}")

    async def _checkpoint(self) -> None:
        state = self._state
        checkpoint = plan_checkpoint(state, sync=self._durability != "none")
        try:
            await self._storage.commit(checkpoint.operations)
        except BaseException as error:
            self._failed(error)
            raise
        finish_checkpoint(state, checkpoint)
        self._unsynced = False

    def _failed(self, error: BaseException) -> None:
        """A commit failed: any prefix of it may have happened."""
        self._uncertain = True
        if isinstance(error, FencedError):
            self._poison = error

    async def _certain(self) -> None:
        """After a failed commit: read again what is true, as opening does, before anything builds on it."""
        if self._poison is not None:
            raise self._poison
        self._check_open()
        if not self._uncertain:
            return
        old = self._state
        inspection = await inspect(self._storage)
        if inspection.header is None:
            raise CorruptError(f"the log in file {OPLOG} is gone since it was opened", file=OPLOG)
        state = await load(self._storage, inspection, key=old.authority.key, key_pair=old.key_pair)
        if (state.fork, state.length) < (old.fork, old.length):
            raise CorruptError(
                f"{old.length} blocks of fork {old.fork} were acknowledged and file {OPLOG} holds {state.length} of "
                f"fork {state.fork}; going on would sign a second history",
                file=OPLOG,
            )
        state.warnings = old.warnings + state.warnings
        self._state = state
        self._generation += 1
        await old.tree.aclose()
        await old.blocks.aclose()
        await self._take_over(inspection)
        self._uncertain = False
        if state.fork > old.fork:
            # Where the two part is not known any more, and nobody needs it exactly.
            self._notify("truncate", 0, old.length)
            self._notify("upgrade", 0, state.length)
        elif state.length > old.length:
            self._notify("upgrade", old.length, state.length)
        for start, count in state.bitfield.runs(0, state.length):
            self._notify("blocks", start, start + count)

    def _notify(self, kind: Literal["append", "upgrade", "blocks", "clear", "truncate"], start: int, end: int) -> None:
        if not self.listeners:
            return
        change = LogChange(kind, start, end, self._state.fork, self._state.length)
        for listener in tuple(self.listeners):
            try:
                listener(change)
            except Exception as error:
                # The mutation is committed; what somebody makes of the news must not look like its failure.
                asyncio.get_running_loop().call_exception_handler(
                    {"message": "a listener of a log failed", "exception": error}
                )

    # ---- taking turns --------------------------------------------------------------------------------

    async def _exclusively(self, body: Coroutine[Any, Any, T]) -> T:
        """Run `body` while no other mutation runs, to its end even if the caller is cancelled meanwhile."""
        try:
            await self._lock.acquire()
        except BaseException:
            body.close()
            raise

        async def hold() -> T:
            try:
                return await body
            finally:
                self._lock.release()

        return await self._shielded(hold())

    async def _shielded(self, body: Coroutine[Any, Any, T]) -> T:
        """A cancelled caller must not tear a mutation between the storage and memory."""
        if self._storage.prompt:
            # Most commits here end without waiting for anything; only one that waits is worth a task.
            try:
                waited = body.send(None)
            except StopIteration as stop:
                result: T = stop.value
                return result
            return await asyncio.shield(self._spawn(_resume(body, waited)))
        return await asyncio.shield(self._spawn(body))

    def _spawn(self, body: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(body)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # ---- may we? -------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the log is closed")

    def _check_changeable(self) -> None:
        self._check_open()
        if self._read_only:
            raise NotWritableError("the log was opened read-only")

    def _check_writable(self) -> None:
        if self._closed or self._read_only:
            self._check_changeable()
        if self._state.key_pair is None:
            raise NotWritableError("the secret key of this core is not here, so nothing can be signed")

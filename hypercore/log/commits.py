"""How a mutation of a log becomes a commit of its storage, one at a time.

Knows the order of operations (disk spec, section 7.3), what to do when one fails, and how callers take turns. It
must not know what the mutations are.

The entry in the log is the commit point: memory changes after it, listeners hear of it after that. Then, when the
entries have grown, a checkpoint moves what they say to the other files.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeVar

from hypercore.errors import (
    ClosedError,
    CorruptError,
    FencedError,
    HypercoreError,
    NotWritableError,
    OutOfBoundsError,
    StorageError,
)
from hypercore.log import oplog
from hypercore.log.opening import Inspection, inspect, load, read_oplog
from hypercore.log.oplog import Entry
from hypercore.log.state import DATA, FILES, HEADER, OPLOG, LogState, finish_checkpoint, plan_checkpoint
from hypercore.storage import Operation, Storage, Sync, Truncate, Write

T = TypeVar("T")

Durability = Literal["none", "flush", "always"]
ChangeKind = Literal["append", "upgrade", "blocks", "clear", "truncate"]

#: A checkpoint waits for the disk, so it should be rare; replaying so much after a crash takes about 30 ms.
CHECKPOINT_ENTRY_BYTES: Final = 512 * 1024
#: Above this, closing makes a checkpoint: replaying this much at the next open takes 3 ms.
CLOSING_ENTRY_BYTES: Final = 64 * 1024
#: When so many bytes of blocks wait for the disk, a sync of them begins beside the appends, so that the next
#: checkpoint need not wait for all of them.
SYNC_AHEAD_BYTES: Final = 8 * 1024 * 1024
#: A writer at work may move things between two reads of a reader, hardly ever so many times in a row.
REFRESH_ATTEMPTS: Final = 5


class LogChange(NamedTuple):
    """Something was committed. The blocks from `start` to `end` are what it was about.

    "append": they were appended here. "upgrade": the length grew by them, which says nothing of who has them.
    "blocks": they were received and are here. "clear": they are no longer here. "truncate": they are no longer part
    of the log, and the fork is another one. `fork` and `length` are the log's afterwards.
    """

    kind: ChangeKind
    start: int
    end: int
    fork: int
    length: int


class Commits:
    """The state of one log, and the only way to change it."""

    def __init__(self, storage: Storage, state: LogState, *, durability: Durability, read_only: bool) -> None:
        self.storage = storage
        self.state = state
        self.durability: Durability = durability
        self.read_only = read_only
        self.closed = False
        self.listeners: list[Callable[[LogChange], None]] = []
        #: Held during a mutation.
        self.lock = asyncio.Lock()
        #: Raised with every cut: what was looked up before it may not hold after it.
        self.generation = 0
        #: A commit failed, and the storage has to say what is true before the next one.
        self.uncertain = False
        #: Why no commit can ever work again.
        self._poison: HypercoreError | None = None
        #: The log file as a reader last saw it.
        self.seen_oplog: bytes | None = None
        #: Bytes of blocks that were stored since this was opened.
        self.written_bytes = 0
        self._unsynced = False
        self._unsynced_bytes = 0
        self._sync_ahead: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    # ---- may we? -------------------------------------------------------------------------------------

    def check_open(self) -> None:
        """Raises `ClosedError`."""
        if self.closed:
            raise ClosedError("the log is closed")

    def check_changeable(self) -> None:
        """Raises `ClosedError` or `NotWritableError`."""
        self.check_open()
        if self.read_only:
            raise NotWritableError("the log was opened read-only")

    def check_writable(self) -> None:
        """Raises `ClosedError` or `NotWritableError`."""
        if self.closed or self.read_only:
            self.check_changeable()
        if self.state.key_pair is None:
            raise NotWritableError("the secret key of this core is not here, so nothing can be signed")

    # ---- taking turns --------------------------------------------------------------------------------

    async def exclusively(self, mutation: Coroutine[Any, Any, T]) -> T:
        """Run `mutation` while no other one runs, to its end even if the caller is cancelled meanwhile."""
        try:
            await self.lock.acquire()
        except BaseException:
            mutation.close()
            raise
        return await self.shielded(self.releasing(mutation))

    async def releasing(self, mutation: Coroutine[Any, Any, T]) -> T:
        """Run `mutation`, then release the lock, which is held already."""
        try:
            return await mutation
        finally:
            self.lock.release()

    async def shielded(self, mutation: Coroutine[Any, Any, T]) -> T:
        """A cancelled caller must not tear a mutation between the storage and memory."""
        if self.storage.prompt:
            # Most commits here end without waiting for anything; only one that waits is worth a task.
            try:
                waited = mutation.send(None)
            except StopIteration as stop:
                result: T = stop.value
                return result
            return await asyncio.shield(self.spawn(_resume(mutation, waited)))
        return await asyncio.shield(self.spawn(mutation))

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task that closing waits for."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # ---- committing ----------------------------------------------------------------------------------

    async def commit_entries(
        self, frames: Sequence[bytes], data: Sequence[tuple[int, bytes]] = (), *, then: Sequence[Operation] = ()
    ) -> None:
        """Block bytes, then the entries: the commit point. Block bytes are durable before an entry speaks of them."""
        state = self.state
        entries = frames[0] if len(frames) == 1 else b"".join(frames)
        operations: list[Operation] = [Write(DATA, offset, piece) for offset, piece in data if piece]
        if data and not operations and not state.blocks.exists:
            # Other implementations cannot read even an empty block where there is no file.
            operations.append(Truncate(DATA, 0))
        if self.durability == "always":
            if operations:
                operations.append(Sync((DATA,)))
            operations += (Write(OPLOG, state.end_offset, entries), Sync((OPLOG,)))
        else:
            operations.append(Write(OPLOG, state.end_offset, entries))
            self._unsynced = True
        operations += then
        await self._commit(operations)
        state.end_offset += len(entries)
        for offset, piece in data:
            state.blocks.wrote(offset, len(piece))
            self._unsynced_bytes += len(piece)
            self.written_bytes += len(piece)
        if self._unsynced_bytes > SYNC_AHEAD_BYTES and self.durability == "flush" and self._sync_ahead is None:
            self._unsynced_bytes = 0
            self._sync_ahead = self.spawn(self._sync_blocks())

    async def _sync_blocks(self) -> None:
        try:
            await self.state.blocks.sync()
        except (StorageError, ClosedError):
            # Nothing was promised yet; the checkpoint's own sync will say it.
            pass
        finally:
            self._sync_ahead = None

    async def _commit(self, operations: Sequence[Operation]) -> None:
        """After a failure any prefix of the operations may have happened."""
        try:
            await self.storage.commit(operations)
        except BaseException as error:
            self.uncertain = True
            if isinstance(error, FencedError):
                self._poison = error
            raise

    async def checkpoint_if_due(self, *, now: bool = False) -> None:
        """The mutation is committed already, so a failure here is not its failure: the next one finds out."""
        if not now and self.state.end_offset < oplog.ENTRIES_OFFSET + CHECKPOINT_ENTRY_BYTES:
            return
        try:
            await self.checkpoint()
        except StorageError as error:
            self.state.warnings.append(f"a checkpoint failed and will be tried again: {error}")

    async def checkpoint(self) -> None:
        """Move everything from the entries to the other files."""
        state, sync = self.state, self.durability != "none"
        operations: list[Operation] = []
        if not state.has_entries:
            # Only an entry that goes with the old header tells a new one that was torn from one that is damaged.
            operations.append(Write(OPLOG, state.end_offset, state.framed(Entry(empty_nodes=True))))
            if sync:
                operations.append(Sync((OPLOG,)))
        checkpoint = plan_checkpoint(state, sync=sync)
        await self._commit(operations + checkpoint.operations)
        finish_checkpoint(state, checkpoint)
        self._unsynced = False
        self._unsynced_bytes = 0

    async def take_over(self, inspection: Inspection) -> None:
        """The lease is ours: cut what a crash left in the log file, and finish a truncation that it interrupted."""
        if inspection.image.needs_cut:
            await self._commit([Truncate(OPLOG, inspection.image.end_offset)])
        if self.state.tree.file.owed_cut() is not None:
            await self.checkpoint()

    async def certain(self) -> None:
        """After a failed commit: read again what is true, as opening does, before anything builds on it.

        Raises `CorruptError` when less is there than was acknowledged.
        """
        if self._poison is not None:
            raise self._poison
        self.check_open()
        if self.uncertain:
            await self._read_again()

    async def refresh(self) -> bool:
        """For a log that only reads: take in what the writer has written since; whether there was anything.

        Raises `CorruptError` when less is there than there was, and what opening raises.
        """
        self.check_open()
        async with self.lock:
            await self.storage.refresh()
            for attempt in range(1, REFRESH_ATTEMPTS + 1):
                try:
                    if await read_oplog(self.storage) == self.seen_oplog:
                        return False  # So it is nearly always, and known by the one file.
                    await self._adopt(await inspect(self.storage))
                except (CorruptError, OutOfBoundsError):
                    # The writer may have moved things between two of our reads; what is damaged stays so.
                    if attempt == REFRESH_ATTEMPTS:
                        raise
                    await self.storage.refresh()
                else:
                    return True
        return False

    async def _read_again(self) -> None:
        inspection = await inspect(self.storage)
        await self._adopt(inspection)
        await self.take_over(inspection)
        self.uncertain = False

    async def _adopt(self, inspection: Inspection) -> None:
        """What was found in the storage takes the place of what is known. `CorruptError` when that loses anything."""
        old = self.state
        if inspection.header is None:
            raise CorruptError(f"the log in file {OPLOG} is gone since it was opened", file=OPLOG)
        state = await load(
            self.storage, inspection, key=old.authority.key, key_pair=old.key_pair, writing=not self.read_only
        )
        if (state.fork, state.length) < (old.fork, old.length):
            raise CorruptError(
                f"{old.length} blocks of fork {old.fork} were acknowledged and file {OPLOG} holds {state.length} of "
                f"fork {state.fork}; going on would sign a second history",
                file=OPLOG,
            )
        if state.fork == old.fork and await state.tree.roots_at(old.length) not in (None, [*old.roots]):
            raise CorruptError(
                f"the first {old.length} blocks of fork {old.fork} are others than those that were here: a second "
                f"history has taken their place in file {OPLOG}",
                file=OPLOG,
            )
        if state.authority.manifest is None and old.authority.manifest is not None:
            state.learn(old.authority)  # It came with a proof, and has not reached a header yet.
        # What opening finds again is not told again.
        state.warnings = list(dict.fromkeys(old.warnings + state.warnings))
        held = old.bitfield
        self.state = state
        self.seen_oplog = inspection.oplog
        self.generation += 1
        await old.tree.file.aclose()
        await old.blocks.aclose()
        if state.fork > old.fork:
            # Where the two part is not known any more, and nobody needs it exactly.
            self.notify("truncate", 0, old.length)
            self.notify("upgrade", 0, state.length)
        elif state.length > old.length:
            self.notify("upgrade", old.length, state.length)
        same_fork = state.fork == old.fork
        for start, count in state.bitfield.runs(0, state.length):
            first = held.first_unset(start, start + count) if same_fork else start
            if first is not None:
                self.notify("blocks", first, start + count)

    def notify(self, kind: ChangeKind, start: int, end: int) -> None:
        """Tell the listeners."""
        if not self.listeners:
            return
        change = LogChange(kind, start, end, self.state.fork, self.state.length)
        for listener in tuple(self.listeners):
            try:
                listener(change)
            except Exception as error:
                # The mutation is committed; what somebody makes of the news must not look like its failure.
                asyncio.get_running_loop().call_exception_handler(
                    {"message": "a listener of a log failed", "exception": error}
                )

    # ---- the end -------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Wait for mutations under way, then close the storage."""
        if self.closed:
            return
        self.closed = True
        await self._settled()
        async with self.lock:
            try:
                if not self.uncertain and not self.read_only:
                    await self._leave_tidy()
            finally:
                await self._let_go()

    async def _leave_tidy(self) -> None:
        if self.state.end_offset > oplog.ENTRIES_OFFSET + CLOSING_ENTRY_BYTES:
            await self.checkpoint()
        elif self._unsynced and self.durability != "none":
            await self._commit([Sync((DATA, OPLOG))])

    async def purge(self) -> None:
        """Remove the files, those that may hold the secret key first, and close."""
        self.check_changeable()
        self.closed = True
        await self._settled()
        async with self.lock:
            try:
                for name in (OPLOG, HEADER, *FILES):
                    await self.storage.unlink(name)
            finally:
                await self._let_go()

    async def _settled(self) -> None:
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _let_go(self) -> None:
        await self.state.tree.file.aclose()
        await self.state.blocks.aclose()
        await self.storage.aclose()


async def _resume(begun: Coroutine[Any, Any, T], waited: Any) -> T:
    """Go on with a coroutine that has begun already and waits for `waited`."""
    return await _steps(begun, waited)


@types.coroutine
def _steps(begun: Coroutine[Any, Any, T], waited: Any) -> Generator[Any, Any, T]:
    try:
        while True:
            try:
                value = yield waited
            except BaseException as error:
                waited = begun.throw(error)
            else:
                waited = begun.send(value)
    except StopIteration as stop:
        result: T = stop.value
        return result

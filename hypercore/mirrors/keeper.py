"""One core of a mirror: written here, or, while another process holds the lease, read from what that one writes.

Shell floor, above core and swarm. A keeper is one task that opens the core, waits for what goes wrong, and tries again.
The blocks come and go without it: it adds nothing to the path of a block, and counts only when it is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from hypercore.core import Durability, Hypercore
from hypercore.downloads import Download
from hypercore.errors import (
    ClosedError,
    FormatError,
    HypercoreError,
    LockedError,
    StorageError,
    StorageFullError,
    StorageMissingError,
)
from hypercore.log.engine import Log, LogChange
from hypercore.mirrors.budget import Budget
from hypercore.mirrors.status import CoreStatus, PeerStatus, Rate, Role
from hypercore.peer import STORING, Peer
from hypercore.plugins import open_storage
from hypercore.storage import Storage
from hypercore.swarm import Swarm
from hypercore.urls import hide_secrets

#: How often one that stands by looks what the writer has written since. A look costs a bucket a request or two.
REFRESH_SECONDS: Final = 2.0
#: Looks between two attempts to become the writer.
TAKE_OVER_REFRESHES: Final = 3
#: Wait before a storage that failed is tried again: the first time, and at most. Doubled each time, with jitter.
FIRST_RETRY_SECONDS: Final = 1.0
LAST_RETRY_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What all cores of a mirror have in common."""

    #: Where the core of a key lies.
    place: Callable[[bytes], str | Storage]
    #: It is an address; a function of the program's may make something new at every call.
    is_address: bool
    start: int
    end: int | None
    durability: Durability
    has_sources: bool


class Keeper:
    """Keeps the core of `key`. `opening` bounds how many are opened at once; `on_news` is called when its role or
    error changes."""

    def __init__(
        self,
        key: bytes,
        *,
        plan: Plan,
        swarm: Swarm,
        budget: Budget,
        opening: asyncio.Semaphore,
        on_news: Callable[[], None],
    ) -> None:
        self.key = key
        self._plan = plan
        self._swarm = swarm
        self._budget = budget
        self._opening = opening
        self._on_news = on_news
        self.core: Hypercore | None = None
        self.role: Role = "opening"
        self.error: str | None = None
        self._retry_seconds = FIRST_RETRY_SECONDS
        self._retried_at = 0.0
        self._download: Download | None = None
        self._failure: HypercoreError | None = None
        self._has_failed = asyncio.Event()
        self._changed = asyncio.Event()
        #: A source has said what it has, at least once.
        self._has_met = False
        #: Stored bytes when they were counted, at which fork, and what the log had written by then.
        self._counted_bytes = self._counted_written = 0
        self._counted_fork = -1
        #: What this core takes of the budget.
        self._used_bytes = 0
        self._block_rate, self._byte_rate = Rate(), Rate()
        self._peer_rates: dict[Peer, Rate] = {}
        #: Blocks and bytes, received from and sent to peers that are gone.
        self._gone = (0, 0, 0, 0)
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def aclose(self) -> None:
        """Stop, and close the core."""
        self._task.cancel()
        await asyncio.wait([self._task])
        await self._drop_core()
        self._tell()

    # ---- the task ----

    async def _run(self) -> None:
        while True:
            try:
                await self._turn()
            except HypercoreError as error:
                await self._rest(error)
            except Exception as error:
                # A fault of ours or of a plugin's: the other cores go on, and it is not hidden.
                context = {"message": f"the mirror of {self.key.hex()} failed", "exception": error}
                asyncio.get_running_loop().call_exception_handler(context)
                await self._rest(error)

    async def _turn(self) -> None:
        try:
            core = await self._open_writer()
        except LockedError:
            await self._stand_by(None)
        except HypercoreError as error:
            if self.core is None:
                raise
            await self._stand_by(error)  # What can be read is served nevertheless.
        else:
            await self._write(core)

    async def _rest(self, error: Exception) -> None:
        await self._drop_core()
        self._become("failed", error)
        await self._wait_to_retry()

    async def _wait_to_retry(self) -> None:
        now = asyncio.get_running_loop().time
        if now() - self._retried_at > 2 * LAST_RETRY_SECONDS:
            self._retry_seconds = FIRST_RETRY_SECONDS  # It worked for a while.
        await asyncio.sleep(self._retry_seconds * random.uniform(0.5, 1.5))
        self._retry_seconds = min(2 * self._retry_seconds, LAST_RETRY_SECONDS)
        self._retried_at = now()

    def _become(self, role: Role, error: Exception | None = None) -> None:
        text = None if error is None else self._describe(error)
        if (role, text) != (self.role, self.error):
            self.role, self.error = role, text
            self._tell()

    def _describe(self, error: Exception) -> str:
        """The error, and where it happened when it does not say that itself."""
        text = str(error) or type(error).__name__
        if self._plan.is_address and isinstance(error, (StorageError, FormatError)):
            where = hide_secrets(str(self._plan.place(self.key)))
            return text if where in text else f"{where}: {text}"
        return text

    def _tell(self) -> None:
        self._changed.set()
        self._on_news()

    # ---- opening and closing ----

    async def _open_writer(self) -> Hypercore:
        async with self._opening:
            storage = open_storage(self._plan.place(self.key))
            if self.core is not None:
                # Somebody else held the lease a moment ago; to ask for it is cheaper than to open the core.
                try:
                    await storage.acquire()
                except BaseException:
                    await storage.aclose()
                    raise
            return await self._open(storage, read_only=False)

    async def _open(self, storage: Storage, *, read_only: bool) -> Hypercore:
        core = Hypercore(storage, self.key, read_only=read_only, durability=self._plan.durability)
        try:
            await core.ready()
        except BaseException:
            with contextlib.suppress(HypercoreError):
                await core.close()
            await storage.aclose()
            raise
        return core

    async def _replace_core(self, core: Hypercore, *, client: bool) -> None:
        """Serve `core` from now on, over the connections that served the one before it."""
        old, self.core = self.core, core
        connections = []
        if old is not None:
            connections = list(old.hub.sessions)
            self._stop_counting(old)
            self._swarm.leave(old)
        core.hub.on_failure.append(self._take_failure)
        core.hub.on_peer.append(self._take_peer)
        self._swarm.join(core, client=client)
        for connection in connections:
            connection.add(core.hub)
        if old is not None:
            await _close_quietly(old)

    async def _drop_core(self) -> None:
        core, self.core = self.core, None
        if core is not None:
            self._stop_counting(core)
            await _close_quietly(core)

    def _stop_counting(self, core: Hypercore) -> None:
        self.pause()
        for peer in core.peers:
            self._take_peer(peer, False)
        core.hub.on_peer.remove(self._take_peer)
        self._budget.use(-self._used_bytes)
        self._used_bytes = 0

    # ---- standing by ----

    async def _stand_by(self, error: HypercoreError | None) -> None:
        """Serve what another process writes, until it is time to ask for the lease again.

        `error` is why this one could not write, other than that somebody does.
        """
        for _ in range(TAKE_OVER_REFRESHES):
            try:
                await self._refresh()
            except StorageMissingError:
                await self._drop_core()  # The writer has not written yet.
                self._become("standby", error)
            except HypercoreError as problem:
                await self._drop_core()
                self._become("standby", problem)
            else:
                self._become("standby", error)
            await asyncio.sleep(REFRESH_SECONDS * random.uniform(0.75, 1.25))

    async def _refresh(self) -> None:
        core = self.core
        if core is not None and self.role == "standby":
            if not await core.refresh():
                return
        else:
            async with self._opening:
                core = await self._open(open_storage(self._plan.place(self.key)), read_only=True)
            await self._replace_core(core, client=False)
        await self._count(core.hub.log)

    # ---- writing ----

    async def _write(self, core: Hypercore) -> None:
        """Keep the copy. Returns when another writer took over; raises when the core has to be opened anew."""
        self._failure = None
        self._has_failed.clear()
        log, hub = core.hub.log, core.hub
        await self._replace_core(core, client=True)
        await self._count(log)
        if self._budget.most_bytes is not None:
            hub.on_change.append(self._take_change)
        self._become("writer")
        self.resume()
        while True:
            await self._has_failed.wait()
            failure = self._failure
            assert failure is not None
            if isinstance(failure, LockedError):
                return
            if not isinstance(failure, StorageError):
                raise failure
            self._become("writer", failure)
            await self._wait_to_retry()
            try:
                await log.flush()  # Also finds out what is true after the commit that failed.
            except StorageError as error:
                self._failure = error
                continue
            self._failure = None
            self._has_failed.clear()
            self._become("writer")
            for connection in self._swarm.connections():
                connection.add(hub)

    def _take_failure(self, error: HypercoreError) -> None:
        self._failure = error
        self._has_failed.set()

    def _take_change(self, change: LogChange | None) -> None:
        if change is not None and change.kind in STORING:
            self.account()

    # ---- what is wanted ----

    def resume(self) -> None:
        """Download what is missing, unless it may not."""
        if self.core is not None and self._download is None and self.role == "writer" and not self._budget.is_full:
            self._download = self.core.download(self._plan.start, self._plan.end)

    def pause(self) -> None:
        """Download no more."""
        if self._download is not None:
            self._download.destroy()
            self._download = None
            self._changed.set()

    async def look(self) -> None:
        """From time to time: see to what no event tells of."""
        core, download = self.core, self._download
        if core is None or self.role != "writer":
            return
        if core.hub.log.fork != self._counted_fork:
            with contextlib.suppress(HypercoreError):
                await self._count(core.hub.log)
        self.account()
        if download is not None and download is self._download and self._have() < download.progress.have:
            self.pause()  # Blocks were found damaged, or cut off after all of a range was here.
        self.resume()

    # ---- counting ----

    async def _count(self, log: Log) -> None:
        """Count the stored bytes anew; from then on they follow from what is written."""
        fork, written = log.fork, log.written_bytes
        counted = await count_stored_bytes(log)
        self._counted_bytes, self._counted_written, self._counted_fork = counted, written, fork
        self.account()

    @property
    def stored_bytes(self) -> int:
        if self.core is None:
            return 0
        return self._counted_bytes + self.core.hub.log.written_bytes - self._counted_written

    def account(self) -> None:
        """Say what this core takes of the budget; one that stands by takes nothing."""
        if self.core is not None and not self.core.hub.log.read_only:
            size = self.stored_bytes
            grown, self._used_bytes = size - self._used_bytes, size
            self._budget.use(grown)

    def _want(self) -> int:
        length = self.core.length if self.core is not None else 0
        return max(0, (length if self._plan.end is None else self._plan.end) - self._plan.start)

    def _have(self) -> int:
        if self.core is None:
            return 0
        log, start = self.core.hub.log, self._plan.start
        end = log.length if self._plan.end is None else min(self._plan.end, log.length)
        if log.contiguous_length >= end:
            return max(0, end - start)
        return log.bitfield.count(start, end)

    def _take_peer(self, peer: Peer, is_here: bool) -> None:
        if not is_here:
            self._peer_rates.pop(peer, None)
            counts = (peer.blocks_received, peer.bytes_received, peer.blocks_sent, peer.bytes_sent)
            blocks_in, bytes_in, blocks_out, bytes_out = (
                before + now for before, now in zip(self._gone, counts, strict=True)
            )
            self._gone = (blocks_in, bytes_in, blocks_out, bytes_out)

    def status(self, now: float) -> CoreStatus:
        core = self.core
        have = self._have()
        stored = self.stored_bytes
        peers = tuple(self._peer_status(peer, now) for peer in core.peers) if core is not None else ()
        gone = self._gone
        error = self.error
        if error is None and core is not None and core.hub.frozen:
            error = core.hub.warnings[-1]
        return CoreStatus(
            key=self.key,
            role=self.role,
            have=have,
            want=self._want(),
            length=core.length if core is not None else 0,
            fork=core.fork if core is not None else 0,
            stored_bytes=stored,
            blocks_per_second=self._block_rate.look(have, now),
            bytes_per_second=self._byte_rate.look(stored, now),
            blocks_received=gone[0] + sum(peer.blocks_received for peer in peers),
            bytes_received=gone[1] + sum(peer.bytes_received for peer in peers),
            blocks_sent=gone[2] + sum(peer.blocks_sent for peer in peers),
            bytes_sent=gone[3] + sum(peer.bytes_sent for peer in peers),
            peers=peers,
            error=error,
        )

    def _peer_status(self, peer: Peer, now: float) -> PeerStatus:
        rate = self._peer_rates.setdefault(peer, Rate())
        return PeerStatus(
            address=peer.remote_address,
            length=peer.remote_length,
            blocks_received=peer.blocks_received,
            bytes_received=peer.bytes_received,
            blocks_sent=peer.blocks_sent,
            bytes_sent=peer.bytes_sent,
            blocks_per_second=rate.look(peer.blocks_received, now),
        )

    # ---- waiting ----

    async def synced(self) -> None:
        """Return when all that is wanted is here, as far as the sources have said what there is.

        Raises `StorageFullError` when the byte cap is reached before that, and `ClosedError`.
        """
        while True:
            if self._task.done():
                raise ClosedError("the mirror is closed, or keeps this core no longer")
            self._changed.clear()
            if (core := self.core) is None:
                await self._changed.wait()
                continue
            core.hub.on_change.append(self._note_change)
            try:
                if self._is_complete(core):
                    with contextlib.suppress(ClosedError):
                        await core.update()  # A source that is longer has its say first.
                    if core is self.core and self._is_complete(core):
                        return
                elif self._budget.is_full and self.role == "writer":
                    raise StorageFullError(
                        f"{self.key.hex()}: the cap of {self._budget.most_bytes} bytes is reached with "
                        f"{self._have()} of {self._want()} blocks"
                    )
                await self._changed.wait()
            finally:
                core.hub.on_change.remove(self._note_change)

    def _note_change(self, _change: LogChange | None) -> None:
        self._changed.set()

    def _is_complete(self, core: Hypercore) -> bool:
        if self._have() < self._want():
            return False
        if self._plan.end is not None or self.role == "standby" or core.writable:
            return True
        # Without a word from a source, nothing is known to be all.
        for peer in core.peers:
            is_source = peer.session.is_initiator or not self._plan.has_sources
            self._has_met |= peer.remote.synced and (is_source or peer.remote_length > 0)
        return self._has_met


async def count_stored_bytes(log: Log) -> int:
    """Bytes of the blocks that are stored. Reads two tree nodes for each unbroken run of them."""
    if log.contiguous_length == log.length:
        return log.byte_length
    total = 0
    for start, count in list(log.bitfield.runs(0, log.length)):
        with contextlib.suppress(HypercoreError):  # Whatever is wrong there shows when the block is read.
            last = start + count - 1
            (leaf,) = await log.nodes([2 * last])
            if leaf is not None:
                total += await log.byte_offset(last) + leaf.size - await log.byte_offset(start)
    return total


async def _close_quietly(core: Hypercore) -> None:
    """What fails at the end is found again when the storage is opened next."""
    with contextlib.suppress(HypercoreError):
        await core.close()

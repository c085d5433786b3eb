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
from hypercore.log.engine import LogChange
from hypercore.mirrors.budget import Budget
from hypercore.mirrors.status import CoreStatus, Role
from hypercore.mirrors.tally import Tally
from hypercore.peer import STORING
from hypercore.plugins import open_storage
from hypercore.storage import Storage
from hypercore.swarm import Swarm
from hypercore.urls import hide_secrets

#: How often one that stands by looks what the writer has written since, and how often it asks for the lease.
REFRESH_SECONDS: Final = 2.0
TAKE_OVER_SECONDS: Final = 5.0
#: Where requests cost money (a look at a bucket is 2, to ask for the lease in vain 1) a standby asks for the lease so
#: many times more seldom, and looks that much more seldom while nothing new comes.
DISTANT_TIMES: Final = 4.0
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
    #: Sources are whoever discovery finds, and may be readers that have nothing yet.
    finds_sources: bool = False


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
        self._refresh_seconds = REFRESH_SECONDS
        self._download: Download | None = None
        self._failure: HypercoreError | None = None
        self._has_failed = asyncio.Event()
        self._changed = asyncio.Event()
        #: A source has said what it has, at least once.
        self._has_met = False
        self._tally = Tally(plan.start, plan.end, budget)
        #: A core that another one has replaced, while it closes.
        self._old: Hypercore | None = None
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def aclose(self) -> None:
        """Stop, and close the core."""
        self._task.cancel()
        await asyncio.wait([self._task])
        await self._drop_core()
        if self._old is not None:
            await self._close_quietly(self._old)
        self._tell()

    def status(self, now: float) -> CoreStatus:
        """How it is; `now` is the loop's time."""
        return self._tally.status(self.key, self.role, self.error, now)

    # ---- the task ----

    async def _run(self) -> None:
        while True:
            try:
                await self._turn()
            except HypercoreError as error:
                await self._rest(error)
            except Exception as error:
                self._report(error)
                await self._rest(error)

    def _report(self, error: Exception) -> None:
        """A fault of ours or of a plugin's: the other cores go on, and it is not hidden."""
        context = {"message": f"the mirror of {self.key.hex()} failed", "exception": error}
        asyncio.get_running_loop().call_exception_handler(context)

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
            self.pause()
            self._swarm.leave(old)
        self._tally.attach(core)
        core.hub.on_failure.append(self._take_failure)
        self._swarm.join(core, client=client)
        for connection in connections:
            connection.add(core.hub)
        if old is not None:
            self._old = old
            await self._close_quietly(old)
            self._old = None

    async def _drop_core(self) -> None:
        core, self.core = self.core, None
        if core is not None:
            self.pause()
            self._tally.detach()
            await self._close_quietly(core)

    async def _close_quietly(self, core: Hypercore) -> None:
        """What fails at the end is found again when the storage is opened next."""
        try:
            await core.close()
        except HypercoreError:
            pass
        except Exception as error:
            self._report(error)

    def _rejoin(self, core: Hypercore) -> None:
        """A connection on which our storage failed carries the core no longer; now it works again."""
        for connection in self._swarm.connections():
            connection.add(core.hub)

    # ---- standing by ----

    async def _stand_by(self, error: HypercoreError | None) -> None:
        """Serve what another process writes, until it is time to ask for the lease again.

        `error` is why this one could not write, other than that somebody does.
        """
        now = asyncio.get_running_loop().time
        ends = now() + TAKE_OVER_SECONDS * self._patience
        while True:
            try:
                is_new = await self._refresh()
            except StorageMissingError:
                await self._drop_core()  # The writer has not written yet.
                is_new = False
                self._become("standby", error)
            except HypercoreError as problem:
                await self._drop_core()
                is_new = False
                self._become("standby", problem)
            else:
                self._become("standby", error)
                if self._has_failed.is_set() and self.core is not None:
                    self._has_failed.clear()
                    self._rejoin(self.core)
            grown = 1.0 if is_new else min(1.5 * self._refresh_seconds / REFRESH_SECONDS, self._patience)
            self._refresh_seconds = grown * REFRESH_SECONDS
            if now() + self._refresh_seconds >= ends:
                await asyncio.sleep(max(0.0, ends - now()) * random.uniform(0.75, 1.25))
                return
            await asyncio.sleep(self._refresh_seconds * random.uniform(0.75, 1.25))

    @property
    def _patience(self) -> float:
        """By how much more seldom a place is asked whose requests cost money."""
        return DISTANT_TIMES if self.core is not None and self.core.hub.log.storage.distant else 1.0

    async def _refresh(self) -> bool:
        """Take in what is new, and say whether anything was."""
        core = self.core
        if core is not None and self.role == "standby":
            if not await core.refresh():
                return False
        else:
            async with self._opening:
                core = await self._open(open_storage(self._plan.place(self.key)), read_only=True)
            await self._replace_core(core, client=False)
        await self._tally.count()
        return True

    # ---- writing ----

    async def _write(self, core: Hypercore) -> None:
        """Keep the copy. Returns when another writer took over; raises when the core has to be opened anew."""
        self._failure = None
        self._has_failed.clear()
        log, hub = core.hub.log, core.hub
        await self._replace_core(core, client=True)
        await self._tally.count()
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
            self._rejoin(core)

    def _take_failure(self, error: HypercoreError) -> None:
        self._failure = error
        self._has_failed.set()

    def _take_change(self, change: LogChange | None) -> None:
        if change is not None and change.kind in STORING:
            self._tally.account()

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
        if core.fork != self._tally.counted_fork:
            await self._tally.count()
        self._tally.account()
        if download is not None and download is self._download and self._tally.have < download.progress.have:
            self.pause()  # Blocks were found damaged, or cut off after all of a range was here.
        self.resume()

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
                        f"{self._tally.have} of {self._tally.want} blocks"
                    )
                await self._changed.wait()
            finally:
                core.hub.on_change.remove(self._note_change)

    def _note_change(self, _change: LogChange | None) -> None:
        self._changed.set()

    def _is_complete(self, core: Hypercore) -> bool:
        if self._tally.have < self._tally.existing:
            return False
        if self.role == "standby" or core.writable:
            return True
        if core.hub.local.needs_manifest and any(peer.remote.has_manifest for peer in core.peers):
            return False  # Without it no reader could tell who signed.
        if self._plan.end is not None and core.length >= self._plan.end:
            return True
        # Without a word from a source, nothing is known to be all.
        for peer in core.peers:
            is_source = peer.session.is_initiator or not self._plan.has_sources
            is_source = is_source and not self._plan.finds_sources
            self._has_met |= peer.remote.synced and (is_source or peer.remote_length > 0)
        return self._has_met

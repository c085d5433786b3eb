"""One writer of a place: its commits, one at a time, and the folds behind them.

It must not know files' handles nor who calls. The PUT of a commit decides everything; memory changes only when it
is known to have happened. docs/decisions/s3-layout.md says why two writers cannot both succeed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from hypercore.errors import CorruptError, FencedError, HypercoreError, LockedError, StorageError
from hypercore_s3.commits import Commit, encode_front
from hypercore_s3.contents import Plan
from hypercore_s3.folding import Fold, fold, switch
from hypercore_s3.frames import body_of, cut
from hypercore_s3.journal import Journal, Reading
from hypercore_s3.layout import checkpoint_sequence, commit_name, commit_sequence
from hypercore_s3.lease import FoundHead, HeadGoneError, Lease
from hypercore_s3.objects import ConditionFailedError
from hypercore_s3.pages import Pages
from hypercore_s3.place import Place

#: Opening reads every commit since the last fold, and each waits in memory; a fold costs three requests.
FOLD_COMMITS: Final = 256
FOLD_BYTES: Final = 8 << 20
#: Above so many times of that, commits wait for the fold.
PRESSURE: Final = 4
#: Closing folds when there is more than the fence of opening: every commit is a request for whoever opens next.
CLOSING_COMMITS: Final = 1
#: After a fold that failed, so many more commits or bytes come first, in parts of what makes one due.
RETRY_PART: Final = 4


class Writer:
    """The writer's side of a storage. It reads and changes what `journal` knows."""

    def __init__(self, place: Place, pages: Pages, journal: Journal, lease: Lease, *, title: str) -> None:
        self._place = place
        self._pages = pages
        self._journal = journal
        self._lease = lease
        self._title = title
        lease.is_last = self._is_last
        self._attempt = 0
        #: A commit of which it is not known whether it happened.
        self._uncertain: Commit | None = None
        self._poison: FencedError | None = None
        self._fold: asyncio.Task[None] | None = None
        self._fold_error: HypercoreError | None = None
        self._fold_again = (0, 0)
        self._renewal: asyncio.TimerHandle | None = None
        self._renewing: asyncio.Task[None] | None = None
        #: Whether the writer before was cut off, and may have left what nobody knows of.
        self._sweeps = False
        self.delete_warning = ""

    @property
    def leased(self) -> bool:
        return self._lease.head is not None

    @property
    def warnings(self) -> list[str]:
        said = [self.delete_warning] if self.delete_warning else []
        if self._fold_error is not None:
            said.append(f"{self._title}: a checkpoint failed and will be tried again: {self._fold_error}")
        return said

    def check(self) -> None:
        """Raises `FencedError` once another writer took over, and `StorageError` in a process made by fork."""
        if self._poison is not None:
            raise self._poison
        self._lease.check_process()

    # ---- the lease -----------------------------------------------------------------------------------

    async def acquire(self) -> None:
        """Take the lease and put a fence behind the last commit. Raises `LockedError`."""
        self.check()
        if self.leased:
            return
        journal, lease = self._journal, self._lease
        found = await self._look()
        try:
            taken = await lease.take(found, lost=journal.lost)
        except HeadGoneError:
            await journal.refresh()
            found = journal.found
            taken = await lease.take(found, lost=journal.lost)
        try:
            await self._put_fence(taken)
        except Exception as error:
            if found is None and isinstance(error, LockedError | CorruptError):
                await lease.withdraw()
            await lease.release()
            raise
        self._sweeps = found is not None and not found.head.released
        self._begin_renewing(taken.head.lease_seconds)

    async def _look(self) -> FoundHead | None:
        """The head, by which somebody may be at work. Who finds none knows what it must have said, as it is now: what
        was seen of a place long ago is no ground for a new head."""
        journal = self._journal
        if not journal.loaded:
            found = await journal.look()
            if found is not None:
                # Before anything else is read for nothing.
                self._lease.check_free(found)
            await journal.refresh(found)
        elif journal.found is not None:
            # What was seen of the holder may be old. Of other heads the PUT finds out.
            found = journal.found if journal.found.head.released else await journal.look()
            if found is not None:
                return found
            await journal.refresh()
        else:
            await journal.refresh()
        return journal.found

    async def _put_fence(self, taken: FoundHead) -> None:
        """Whoever wrote before cannot go on: the number of the next commit is taken.

        As long as the head is ours nobody removes commits, so that the first one that is missing is the next one.
        Who was replaced before the fence was put cannot tell that by the fence: it may have read past commits that
        the next writer had folded away already.
        """
        lease, journal = self._lease, self._journal
        try:
            reading, fence = await self._fence(taken)
        except CorruptError as error:
            if await lease.is_ours():
                raise
            raise self._too_late() from error
        if not await lease.is_ours():
            raise self._too_late()
        journal.take_in(reading)
        journal.contents.apply(fence)

    async def _fence(self, taken: FoundHead) -> tuple[Reading, Commit]:
        lease, journal = self._lease, self._journal

        def check(commit: Commit) -> None:
            if commit.epoch >= taken.head.epoch and commit.owner != lease.owner:
                raise self._too_late()

        reading = journal.known() if journal.stands_at(taken) else await journal.catch_up(taken, check)
        while True:
            fence = self._make(Plan({}), after=reading.sequence, fence=True)
            try:
                await self._place.put(fence.name, [encode_front(fence)], if_absent=True)
            except ConditionFailedError:
                # The last word of the one before, or our own fence, when the answer was lost.
                other = await journal.read_commit(fence.sequence)
                if not (self._is_ours(other) and other.attempt == fence.attempt):
                    reading = await journal.catch_up(taken, check, reading)
                    continue
            return reading, fence

    async def _is_last(self) -> bool:
        """Whether nobody took over: they would have left a fence behind what is known, and fences stay."""
        number = self._journal.contents.sequence
        for name in await self._place.names("commits/", behind=commit_name(number)):
            following = commit_sequence(name)
            if following is not None and not self._is_ours(await self._journal.read_commit(following)):
                return False
        return True

    def _too_late(self) -> LockedError:
        return LockedError(f"{self._title}: another writer took the lease at the same moment")

    def _is_ours(self, commit: Commit) -> bool:
        """Whether it was made under this very lease."""
        return (commit.owner, commit.epoch) == (self._lease.owner, self._lease.epoch)

    def _begin_renewing(self, lease_seconds: float) -> None:
        """Be heard of in time. What keeps this alive is the storage, not the timer."""
        loop = asyncio.get_running_loop()
        moves = self._lease.moves
        this = weakref.ref(self)

        def due() -> None:
            writer = this()
            if writer is not None and writer.leased and writer._poison is None:
                if writer._lease.moves == moves:
                    writer._renewing = loop.create_task(writer.renew())
                writer._begin_renewing(lease_seconds)

        self._renewal = loop.call_later(lease_seconds / 3, due)

    async def renew(self) -> None:
        """Say that this writer is still there. To fail is no harm: the commits decide."""
        try:
            await self._lease.move()
        except FencedError as error:
            self._poison = self._poison or error
        except HypercoreError:
            pass

    # ---- commits -------------------------------------------------------------------------------------

    async def commit(self, make: Callable[[], Plan]) -> None:
        """Put what `make` plans, on the contents as they are then, as one commit. The caller lets nobody else in.

        Raises `FencedError`, and `StorageError` when it is not known whether it happened.
        """
        self.check()
        if self._uncertain is not None and await self.settle():
            raise StorageError(
                f"{self._title}: an earlier change that had failed has arrived after all; this one was not made"
            )
        plan = make()
        if not plan.steps:
            return
        await self._wait_for_room()
        # While it waited nobody else changed anything, but a fold may have found out that the lease is gone.
        self.check()
        commit = self._make(plan, after=self._journal.contents.sequence)
        front = encode_front(commit)
        pieces = [front]
        if commit.body is not None:
            commit = replace(commit, body=replace(commit.body, base=len(front)))
            assert commit.body is not None
            pieces += commit.body.framed(cut(commit.body, plan.large))
        try:
            await self._place.put(commit.name, pieces, if_absent=True)
        except ConditionFailedError as error:
            self._uncertain = commit
            await self._lost_to(commit, error)
        except BaseException:
            self._uncertain = commit
            raise
        self._applied(commit)

    def _make(self, plan: Plan, *, after: int, fence: bool = False) -> Commit:
        self._attempt += 1
        lease = self._lease
        commit = Commit(
            sequence=after + 1,
            epoch=lease.epoch,
            owner=lease.owner,
            attempt=self._attempt,
            fence=fence,
            steps=plan.steps,
            small=plan.small,
        )
        if plan.large_size:
            body = body_of(commit.name, base=0, size=plan.large_size, aligned=plan.aligned)
            commit = replace(commit, body=body)
        return commit

    async def _lost_to(self, commit: Commit, error: StorageError) -> None:
        """There is a commit of this number already: ours, whose answer was lost, or somebody else's."""
        other = await self._journal.read_commit(commit.sequence)
        if not self._is_ours(other):
            self._poison = self._lease.fenced()
            raise self._poison from error
        if other.attempt != commit.attempt:
            self._uncertain = None
            self._journal.contents.apply(other)
            raise StorageError(f"{self._title}: an earlier change that was given up has arrived after all") from error

    def _applied(self, commit: Commit) -> None:
        self._uncertain = None
        self._journal.contents.apply(commit)
        self._fold_if_due()

    async def settle(self) -> bool:
        """Find out whether the uncertain commit happened, and see to it that it never will if it has not: its number
        is taken by a fence. Whether it had happened.

        Raises `StorageError` when that cannot be found out yet.
        """
        self.check()
        uncertain = self._uncertain
        if uncertain is None:
            return False
        seal = self._make(Plan({}), after=self._journal.contents.sequence, fence=True)
        try:
            await self._place.put(seal.name, [encode_front(seal)], if_absent=True)
        except ConditionFailedError as error:
            other = await self._journal.read_commit(seal.sequence)
            if not self._is_ours(other):
                self._poison = self._lease.fenced()
                raise self._poison from error
        else:
            other = seal
        happened = other.attempt == uncertain.attempt
        self._applied(uncertain if happened else other)
        return happened

    @property
    def uncertain(self) -> bool:
        return self._uncertain is not None and self._poison is None

    # ---- folds ---------------------------------------------------------------------------------------

    def _is_due(self, times: int = 1) -> bool:
        contents = self._journal.contents
        return contents.pending_commits > times * FOLD_COMMITS or contents.pending_bytes > times * FOLD_BYTES

    def _fold_if_due(self) -> None:
        contents = self._journal.contents
        if self._fold is not None or not self._is_due():
            return
        commits, size = self._fold_again
        if contents.pending_commits >= commits or contents.pending_bytes >= size:
            self._begin_fold()

    def _begin_fold(self) -> asyncio.Task[None]:
        if self._fold is None:
            self._fold = asyncio.get_running_loop().create_task(self._fold_behind())
        return self._fold

    async def _fold_behind(self) -> None:
        """A fold beside the commits. Its failure is not theirs; the next one tries again."""
        contents = self._journal.contents
        try:
            await self.fold()
        except HypercoreError as error:
            self._fold_error = error
            self._fold_again = (
                contents.pending_commits + FOLD_COMMITS // RETRY_PART,
                contents.pending_bytes + FOLD_BYTES // RETRY_PART,
            )
        else:
            self._fold_error = None
            self._fold_again = (0, 0)
        finally:
            self._fold = None

    async def _wait_for_room(self) -> None:
        """What waits to be folded is bounded. Raises what keeps it from being folded."""
        while self._is_due(PRESSURE):
            await asyncio.shield(self._begin_fold())
            if self._fold_error is not None:
                raise StorageError(
                    f"{self._title}: {self._journal.contents.pending_commits} commits wait for a checkpoint, and it "
                    "cannot be put"
                ) from self._fold_error

    async def fold(self, *, release: bool = False) -> None:
        """Put a checkpoint of what is committed now, move the head to it, and remove what it makes worthless."""
        contents = self._journal.contents
        for file in contents.files.values():
            file.touched = []
        commits, size, before = contents.pending_commits, contents.pending_bytes, set(contents.objects)
        folded = fold(contents, self._pages.known, os.urandom(8))
        try:
            # From here on it may be there, and somebody has to remove it.
            contents.objects.add(folded.pointer.name)
            # Nobody else knows its name, and trying again puts the same.
            await self._place.put(folded.pointer.name, folded.pieces)
            await self._move(folded, release=release)
            switch(folded)
        finally:
            for file, *_ in folded.moved:
                file.touched = None
            for file in contents.files.values():
                file.touched = None
        contents.objects = folded.objects | (contents.objects - before)
        contents.doomed = folded.doomed
        contents.pending_commits -= commits
        contents.pending_bytes -= size
        contents.version += 1
        self._journal.folded(folded.pointer)
        for number, data in enumerate(folded.frames):
            self._pages.keep(folded.body, number, data)
        await self._remove_doomed(folded.pointer.sequence)

    async def _move(self, folded: Fold, *, release: bool) -> None:
        try:
            await self._lease.move(lambda head: replace(head, checkpoint=folded.pointer, released=release))
        except FencedError as error:
            # The other one may have taken the head over when it pointed to our checkpoint already, so that it is not
            # ours to remove.
            self._poison = self._poison or error
            raise

    async def _strays(self, covered: int) -> list[str]:
        """Checkpoints that no index names: the folds that the writer before us did not finish.

        Later ones than the commit that our own covers are none of our business, because we may have been replaced.
        """
        names = set(await self._place.names("checkpoints/")) - self._journal.contents.objects
        return sorted(name for name in names if (checkpoint_sequence(name) or covered) < covered)

    async def _remove_doomed(self, covered: int) -> None:
        contents = self._journal.contents
        doomed = sorted(contents.doomed)
        try:
            if self._sweeps:
                doomed += await self._strays(covered)
            await self._place.delete(doomed)
            self._sweeps = False
        except StorageError as error:
            # The index names them, so that a later fold tries again.
            self.delete_warning = f"{self._title}: {len(doomed)} objects could not be removed: {error}"
            return
        self.delete_warning = ""
        self._pages.forget(doomed)
        contents.doomed.difference_update(doomed)

    # ---- the end -------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Let the fold end, and give the lease back."""
        if self._renewal is not None:
            self._renewal.cancel()
        for task in (self._fold, self._renewing):
            if task is not None:
                await asyncio.wait([task])
        if not self.leased or self._poison is not None or self._lease.is_copied:
            return
        if self._journal.contents.pending_commits > CLOSING_COMMITS:
            # Every commit is in the store, and the next one who opens it hears what is wrong.
            with contextlib.suppress(HypercoreError):
                await self.fold(release=True)
        if self._poison is None:
            await self._lease.release()

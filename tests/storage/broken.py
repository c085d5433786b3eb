"""Backends that break one promise each, and the promise that must catch them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import ClassVar, cast

from hypercore.errors import ClosedError, FencedError, LockedError, OutOfBoundsError, StorageMissingError
from hypercore.storage import Delete, Operation, RandomAccess, Storage, Write
from hypercore.testing.wrappers import CHANGES, Step, WrappedFile, WrappedStorage

#: Class of the broken backend -> name of the contract's test that must fail.
CAUGHT_BY: dict[type[Broken], str] = {}


class Broken(WrappedStorage):
    """A memory storage that a subclass breaks, in itself or in its files."""

    file_class: ClassVar[type[WrappedFile]] = WrappedFile

    def __init_subclass__(cls, caught_by: str) -> None:
        CAUGHT_BY[cls] = f"test_{caught_by}"

    async def open(self, name: str, *, create: bool = False) -> WrappedFile:
        return self.file_class(self, name, (await super().open(name, create=create)).inner)


class ShortFile(WrappedFile):
    async def read(self, offset: int, size: int) -> bytes:
        return await self.inner.read(offset, min(size, max(0, await self.inner.size() - offset)))


class ReadsShort(Broken, caught_by="a_read_past_the_end_is_an_error_and_never_short"):
    file_class = ShortFile


class OffByOneFile(WrappedFile):
    async def read(self, offset: int, size: int) -> bytes:
        found = await self.inner.read(offset, size)
        return found if offset != 3 else found[1:] + found[:1]


class ReadsOneOff(Broken, caught_by="a_read_gives_exactly_the_bytes_that_were_written"):
    file_class = OffByOneFile


class LogFile(WrappedFile):
    async def write(self, offset: int, data: bytes) -> None:
        if data:
            await self.inner.truncate(offset)
        await self.inner.write(offset, data)


class CutsWhatIsBehindAWrite(Broken, caught_by="a_write_in_the_middle_changes_nothing_else"):
    file_class = LogFile


class TwoStepFile(WrappedFile):
    """A large write is prepared elsewhere and then put in place, over what was written meanwhile."""

    async def write(self, offset: int, data: bytes) -> None:
        if len(data) > 100_000:
            before = await self.inner.read(0, await self.inner.size())
            await asyncio.sleep(0)
            await self.inner.write(0, before)
        await self.inner.write(offset, data)


class DisturbsSmallWritesByLargeOnes(
    Broken, caught_by="large_and_small_calls_in_flight_together_do_not_disturb_each_other"
):
    file_class = TwoStepFile


class RoundingFile(WrappedFile):
    async def sync(self) -> None:
        await self.inner.truncate(-(-await self.inner.size() // 4096) * 4096)


class RoundsTheSizeOnSync(Broken, caught_by="sync_changes_nothing_and_may_be_repeated"):
    file_class = RoundingFile


class StrictFile(WrappedFile):
    async def read(self, offset: int, size: int) -> bytes:
        if offset > await self.inner.size():
            raise OutOfBoundsError("offset is past the end")
        return await self.inner.read(offset, size)


class RefusesEmptyReads(Broken, caught_by="a_read_of_no_bytes_is_never_an_error"):
    file_class = StrictFile


class SortingFile(WrappedFile):
    async def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        return await super().read_many(sorted(ranges))


class ReadsManyInAnotherOrder(Broken, caught_by="several_reads_at_once_give_what_each_alone_gives_in_their_order"):
    file_class = SortingFile


class MutableFile(WrappedFile):
    async def read(self, offset: int, size: int) -> bytes:
        return cast(bytes, bytearray(await self.inner.read(offset, size)))


class ReadsBytearrays(Broken, caught_by="what_was_read_is_bytes_and_what_was_written_is_a_copy"):
    file_class = MutableFile


class SharingFile(WrappedFile):
    kept: bytes = b""

    async def write(self, offset: int, data: bytes) -> None:
        self.kept = data

    async def read(self, offset: int, size: int) -> bytes:
        return bytes(self.kept)[offset : offset + size]


class KeepsTheCallersBuffer(Broken, caught_by="what_was_read_is_bytes_and_what_was_written_is_a_copy"):
    file_class = SharingFile


class DirtyGapFile(WrappedFile):
    async def write(self, offset: int, data: bytes) -> None:
        size = await self.inner.size()
        await self.inner.write(offset, data)
        if data and offset > size:
            await self.inner.write(size, b"\xff" * (offset - size))


class LeavesGapsDirty(Broken, caught_by="a_gap_before_a_write_reads_as_zeros"):
    file_class = DirtyGapFile


class RememberingFile(WrappedFile):
    async def truncate(self, size: int) -> None:
        self.rest = b""
        if size < await self.inner.size():
            self.rest = await self.inner.read(size, await self.inner.size() - size)
        self.cut = size
        await self.inner.truncate(size)

    async def write(self, offset: int, data: bytes) -> None:
        rest = getattr(self, "rest", b"")
        if rest and offset > self.cut:
            await self.inner.write(self.cut, rest)
        await self.inner.write(offset, data)


class ShowsOldBytesInAGap(Broken, caught_by="a_gap_where_bytes_once_were_reads_as_zeros"):
    file_class = RememberingFile


class ExtendingFile(WrappedFile):
    async def write(self, offset: int, data: bytes) -> None:
        await self.inner.write(offset, data)
        if not data and offset > await self.inner.size():
            await self.inner.truncate(offset)


class ExtendsOnAnEmptyWrite(Broken, caught_by="an_empty_write_changes_nothing"):
    file_class = ExtendingFile


class NarrowFile(WrappedFile):
    async def write(self, offset: int, data: bytes) -> None:
        await self.inner.write(offset & 0xFFFFFFFF, data)

    async def read(self, offset: int, size: int) -> bytes:
        return await self.inner.read(offset & 0xFFFFFFFF, size)


class CountsIn32Bits(Broken, caught_by="a_gap_of_gigabytes_costs_nothing"):
    file_class = NarrowFile


class OneCallFile(WrappedFile):
    async def write(self, offset: int, data: bytes) -> None:
        await self.inner.write(offset, data[: 1 << 20])


class WritesOnlyWhatOneCallTakes(Broken, caught_by="a_large_transfer_is_whole"):
    file_class = OneCallFile


class PageDeletingFile(WrappedFile):
    async def delete(self, offset: int, size: int) -> None:
        start = offset // 4096 * 4096
        await self.inner.delete(start, -(-(offset + size) // 4096) * 4096 - start)


class DeletesWholePages(Broken, caught_by="a_delete_touches_nothing_outside_of_its_range"):
    file_class = PageDeletingFile


class CuttingFile(WrappedFile):
    async def delete(self, offset: int, size: int) -> None:
        if offset < await self.inner.size():
            await self.inner.truncate(offset)


class DeletesToTheEnd(Broken, caught_by="a_delete_touches_nothing_outside_of_its_range"):
    file_class = CuttingFile


class ZeroingFile(WrappedFile):
    async def delete(self, offset: int, size: int) -> None:
        await self.inner.write(offset, bytes(min(size, 1 << 20)))


class GrowsOnDelete(Broken, caught_by="a_delete_never_makes_the_file_longer_and_one_of_no_bytes_does_nothing"):
    file_class = ZeroingFile


class ShrinkingFile(WrappedFile):
    async def truncate(self, size: int) -> None:
        await self.inner.truncate(min(size, await self.inner.size()))


class NeverExtendsOnTruncate(Broken, caught_by="truncate_makes_the_size_exact_and_grows_with_zeros"):
    file_class = ShrinkingFile


class GrowingFile(WrappedFile):
    async def truncate(self, size: int) -> None:
        await self.inner.truncate(max(size, await self.inner.size()))


class NeverShrinksOnTruncate(Broken, caught_by="truncate_makes_the_size_exact_and_grows_with_zeros"):
    file_class = GrowingFile


class FromTheEndFile(WrappedFile):
    async def read(self, offset: int, size: int) -> bytes:
        return await self.inner.read(offset + await self.inner.size() if offset < 0 else offset, size)


class CountsNegativeOffsetsFromTheEnd(Broken, caught_by="a_negative_offset_or_size_is_refused_and_changes_nothing"):
    file_class = FromTheEndFile


class WholeFile(WrappedFile):
    """Reads all, changes it, writes all back, with a pause between: what others wrote in the pause is lost."""

    async def write(self, offset: int, data: bytes) -> None:
        content = bytearray(await self.inner.read(0, await self.inner.size()))
        await asyncio.sleep(0)
        content.extend(bytes(max(0, offset - len(content))))
        content[offset : offset + len(data)] = data
        await self.inner.write(0, bytes(content))


class LosesConcurrentWrites(Broken, caught_by="calls_in_flight_together_all_take_effect"):
    file_class = WholeFile


class SharedPositionFile(WrappedFile):
    position = 0

    async def read(self, offset: int, size: int) -> bytes:
        self.position = offset
        await asyncio.sleep(0)
        return await self.inner.read(self.position, size)


class SeeksAndReads(Broken, caught_by="calls_in_flight_together_all_take_effect"):
    file_class = SharedPositionFile


class LateFile(WrappedFile):
    async def write(self, offset: int, data: bytes) -> None:
        async def later() -> None:
            await asyncio.sleep(0)
            await self.inner.write(offset, data)

        self.task = asyncio.ensure_future(later())


class WritesBehind(Broken, caught_by="a_call_sees_what_had_finished_before_through_any_handle"):
    file_class = LateFile


class CachingFile(WrappedFile):
    held: int | None = None

    async def size(self) -> int:
        if self.held is None:
            self.held = await self.inner.size()
        return self.held


class RemembersTheSize(Broken, caught_by="a_call_sees_what_had_finished_before_through_any_handle"):
    file_class = CachingFile


class UnstoppableFile(WrappedFile):
    """As a thread is: a cancelled call returns at once, and its work goes on."""

    async def write(self, offset: int, data: bytes) -> None:
        async def work() -> None:
            for _ in range(20 if len(data) > 100 else 0):
                await asyncio.sleep(0)
            await self.inner.write(offset, data)

        await asyncio.shield(asyncio.ensure_future(work()))

    async def sync(self) -> None:
        for _ in range(40):
            await asyncio.sleep(0)


class LetsACancelledWriteLandLater(Broken, caught_by="a_cancelled_write_does_not_land_after_a_later_one"):
    file_class = UnstoppableFile


class UnclosableFile(WrappedFile):
    async def aclose(self) -> None:
        pass


class NeverClosesFiles(Broken, caught_by="a_closed_file_refuses_every_call_and_other_handles_live_on"):
    file_class = UnclosableFile


class OnceClosableFile(WrappedFile):
    closed = False

    async def aclose(self) -> None:
        if self.closed:
            raise ClosedError("closed")
        self.closed = True
        await self.inner.aclose()


class CannotCloseTwice(Broken, caught_by="a_closed_file_refuses_every_call_and_other_handles_live_on"):
    file_class = OnceClosableFile


# ---- storages -------------------------------------------------------------------------------------


class MakesWhatItOpens(Broken, caught_by="a_new_place_is_empty_and_looking_at_it_leaves_it_so"):
    async def open(self, name: str, *, create: bool = False) -> WrappedFile:
        return await super().open(name, create=True)


class NotAFileNotFoundError(Broken, caught_by="a_missing_file_is_also_pythons_file_not_found"):
    async def open(self, name: str, *, create: bool = False) -> WrappedFile:
        try:
            return await super().open(name, create=create)
        except StorageMissingError as error:
            raise KeyError(name) from error


class EmptiesWhatItMakes(Broken, caught_by="a_file_that_is_made_is_empty_and_one_that_exists_is_kept"):
    async def open(self, name: str, *, create: bool = False) -> WrappedFile:
        file = await super().open(name, create=create)
        if create:
            await file.inner.truncate(0)
        return file


class IgnoresCase(Broken, caught_by="files_do_not_mix"):
    async def open(self, name: str, *, create: bool = False) -> WrappedFile:
        return await super().open(name.lower(), create=create)


class HidesDotFiles(Broken, caught_by="files_do_not_mix"):
    async def names(self) -> frozenset[str]:
        return frozenset(name for name in await super().names() if not name.startswith("."))


class TakesPathsForNames(Broken, caught_by="a_name_that_is_a_path_is_refused"):
    async def open(self, name: str, *, create: bool = False) -> WrappedFile:
        return await super().open(name.replace("/", "-"), create=create)


class KeepsHandlesOfUnlinkedFiles(Broken, caught_by="an_unlinked_file_is_gone_and_its_handles_are_closed"):
    async def unlink(self, name: str) -> None:
        if name in await self.names():
            await (await self.open(name)).inner.truncate(0)


class UnlinksOnlyWhatIsThere(Broken, caught_by="an_unlinked_file_is_gone_and_its_handles_are_closed"):
    async def unlink(self, name: str) -> None:
        await (await self.open(name)).aclose()
        await super().unlink(name)


class HasNoLock(Broken, caught_by="a_second_writer_is_refused_until_the_first_one_closes"):
    async def acquire(self) -> None:
        pass


class LocksOnce(Broken, caught_by="a_second_writer_is_refused_until_the_first_one_closes"):
    taken = False

    async def acquire(self) -> None:
        if self.taken:
            raise LockedError("taken")
        await super().acquire()
        self.taken = True


class NeverGivesTheLeaseBack(Broken, caught_by="a_second_writer_is_refused_until_the_first_one_closes"):
    leases: ClassVar[set[str]] = set()

    async def acquire(self) -> None:
        await super().acquire()
        if (place := str(self.inner)) in self.leases:
            raise LockedError(place)
        self.leases.add(place)


class RefusedWritersRelease(
    Broken, caught_by="a_refused_writer_that_closes_takes_nothing_from_the_one_who_has_the_lease"
):
    holders: ClassVar[dict[str, Broken]] = {}

    async def acquire(self) -> None:
        if self.holders.setdefault(str(self.inner), self) is not self:
            raise LockedError("taken")

    async def aclose(self) -> None:
        self.holders.pop(str(self.inner), None)
        await super().aclose()


class ChecksThenTakes(Broken, caught_by="of_many_writers_at_once_exactly_one_is_let_in"):
    holders: ClassVar[dict[str, Broken]] = {}

    async def acquire(self) -> None:
        holder = self.holders.get(str(self.inner))
        if holder not in (None, self):
            raise LockedError("taken")
        await asyncio.sleep(0)
        self.holders[str(self.inner)] = self


class ReadsWithTheLeaseOnly(Broken, caught_by="reading_needs_no_lease"):
    async def open(self, name: str, *, create: bool = False) -> WrappedFile:
        await self.acquire()
        return await super().open(name, create=create)


class EmptiesWhatItLocks(Broken, caught_by="the_lease_changes_no_file_and_makes_none_that_holds_anything"):
    async def acquire(self) -> None:
        await super().acquire()
        await (await self.inner.open("oplog", create=True)).truncate(0)


class SignsWhatItLocks(Broken, caught_by="the_lease_changes_no_file_and_makes_none_that_holds_anything"):
    async def acquire(self) -> None:
        await super().acquire()
        if not await self.names():
            await (await self.inner.open("oplog", create=True)).write(0, b"mine")


class LosesTheOrder(Broken, caught_by="a_commit_does_its_operations_in_order"):
    async def commit(self, operations: Sequence[Operation]) -> None:
        await super().commit(sorted(operations, key=lambda operation: type(operation).__name__))


class LosesTheLastOperation(Broken, caught_by="a_commit_does_its_operations_in_order"):
    async def commit(self, operations: Sequence[Operation]) -> None:
        await super().commit(operations[:-1])


class MergesOverlappingWrites(
    Broken, caught_by="a_commit_of_neighbouring_and_overlapping_writes_is_what_they_are_one_by_one"
):
    async def commit(self, operations: Sequence[Operation]) -> None:
        merged: list[Operation] = []
        for operation in operations:
            last = merged[-1] if merged else None
            if (
                isinstance(operation, Write)
                and isinstance(last, Write)
                and last.name == operation.name
                and last.offset <= operation.offset <= last.offset + len(last.data)
            ):
                merged[-1] = Write(last.name, last.offset, last.data + operation.data)
            else:
                merged.append(operation)
        await super().commit(merged)


class MakesFilesToDeleteFromThem(Broken, caught_by="a_commit_makes_the_files_it_writes_and_no_others"):
    async def commit(self, operations: Sequence[Operation]) -> None:
        for operation in operations:
            if isinstance(operation, Delete):
                await self.open(operation.name, create=True)
        await super().commit(operations)


class CommitsToACopy(Broken, caught_by="a_commit_and_open_files_see_each_other"):
    files: dict[str, RandomAccess]

    async def commit(self, operations: Sequence[Operation]) -> None:
        for operation in operations:
            if isinstance(operation, Write):
                held = self.__dict__.setdefault("files", {})
                if operation.name not in held:
                    held[operation.name] = await self.inner.open(operation.name, create=True)
                await held[operation.name].write(operation.offset, operation.data)


class CutsLargeCommits(Broken, caught_by="a_large_commit_with_syncs_is_whole"):
    async def commit(self, operations: Sequence[Operation]) -> None:
        small = [operation for operation in operations if not isinstance(operation, Write) or len(operation.data) < 1e6]
        await super().commit(small)


class ForgetsWhenItIsClosed(Broken, caught_by="what_was_written_is_there_when_the_place_is_opened_again"):
    async def aclose(self) -> None:
        try:
            for name in await self.inner.names():
                await self.inner.unlink(name)
        except ClosedError:
            pass
        await super().aclose()


class NeverCloses(Broken, caught_by="a_closed_storage_refuses_every_call_and_its_files_too"):
    async def aclose(self) -> None:
        pass


class KeepsFilesOpen(Broken, caught_by="a_closed_storage_refuses_every_call_and_its_files_too"):
    closed = False

    async def open(self, name: str, *, create: bool = False) -> WrappedFile:
        if self.closed:
            raise ClosedError("closed")
        return await super().open(name, create=create)

    async def aclose(self) -> None:
        self.closed = True


class IsReadOnly(Broken, caught_by="a_storage_that_was_never_used_can_be_closed"):
    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.writable = False


class CommitsWhatNobodyAsked(Broken, caught_by="random_histories_agree_with_a_model"):
    count = 0

    async def commit(self, operations: Sequence[Operation]) -> None:
        self.count += 1
        if self.count == 7:
            operations = [*operations, Write("data", 5, b"!")]
        await super().commit(operations)


# ---- fencing --------------------------------------------------------------------------------------


class Fenced(WrappedStorage):
    """A lease that can be taken away: whoever took it last has it, and every change asks who that is."""

    holders: ClassVar[dict[str, Fenced]] = {}

    def __init__(self, inner: Storage, *, steals: bool = False) -> None:
        super().__init__(inner)
        self._steals = steals

    async def acquire(self) -> None:
        if not self._steals:
            self.check()
        self.holders[str(self.inner)] = self

    def check(self) -> None:
        if self.holders.get(str(self.inner), self) is not self:
            raise FencedError(f"{self} was replaced")

    async def perform(self, step: Step, file: RandomAccess | None) -> bytes:
        if step.verb in CHANGES:
            self.check()
        return await super().perform(step, file)


class FencedAtTheLeaseOnly(Fenced):
    """Refuses a replaced writer that asks for its lease, and not one that just goes on writing."""

    async def perform(self, step: Step, file: RandomAccess | None) -> bytes:
        return await WrappedStorage.perform(self, step, file)


class FencedCommitsOnly(FencedAtTheLeaseOnly):
    async def commit(self, operations: Sequence[Operation]) -> None:
        self.check()
        await super().commit(operations)

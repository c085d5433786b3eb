"""The promises of `hypercore.storage.RandomAccess` as tests; `StorageContract` adds those of `Storage`.

Aside of the floors: it imports the promises only, and no test runner.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random
from typing import cast

from hypercore.errors import ClosedError, HypercoreError, OptionError, OutOfBoundsError
from hypercore.storage import RandomAccess, Storage

Body = Callable[[Storage], Awaitable[None]]


class RandomAccessContract:
    """Each `test_` method makes a storage, keeps one promise to the test, and closes the storage."""

    #: Decides all that is random; part of every message.
    seed: int = 1
    #: A promise that takes longer is broken: it hangs.
    timeout_seconds: float = 60.0
    #: How far past the end a write may be. Less where a gap costs what its zeros cost.
    gap_bytes: int = (4 << 30) + 12345
    #: A transfer large enough to be treated apart from small ones.
    large_bytes: int = (3 << 20) + 1

    async def make_storage(self) -> Storage:
        """A storage at a new, empty place."""
        raise NotImplementedError("a contract needs make_storage()")

    async def reopen(self, storage: Storage) -> Storage:
        """Another storage at the same place as `storage`, which may be open or closed."""
        raise NotImplementedError("a contract needs reopen()")

    # ---- reading ----

    def test_a_read_gives_exactly_the_bytes_that_were_written(self) -> None:
        async def promise(storage: Storage) -> None:
            file = await storage.open("data", create=True)
            await file.write(0, b"0123456789")
            for offset in range(10):
                for size in range(1, 11 - offset):
                    await self._expect_bytes(file, offset, b"0123456789"[offset : offset + size])

        self._prove(promise)

    def test_a_read_past_the_end_is_an_error_and_never_short(self) -> None:
        async def promise(storage: Storage) -> None:
            file = await storage.open("data", create=True)
            await self._raises(OutOfBoundsError, file.read(0, 1), "a read of an empty file")
            await file.write(0, b"abc")
            for offset, size in ((0, 4), (2, 2), (3, 1), (4, 1), (1000, 1), (1 << 40, 1)):
                await self._raises(OutOfBoundsError, file.read(offset, size), f"{size} bytes at {offset} of 3")
            await self._raises(OutOfBoundsError, file.read_many([(0, 3), (1, 3)]), "one of several reads past the end")

        self._prove(promise)

    def test_a_read_of_no_bytes_is_never_an_error(self) -> None:
        async def promise(storage: Storage) -> None:
            file = await storage.open("data", create=True)
            await self._expect_bytes(file, 0, b"")
            await file.write(0, b"abc")
            for offset in (0, 3, 4, 1 << 40):
                self._expect(await file.read(offset, 0) == b"", f"a read of no bytes at {offset} gave some")

        self._prove(promise)

    def test_several_reads_at_once_give_what_each_alone_gives_in_their_order(self) -> None:
        async def promise(storage: Storage) -> None:
            file = await storage.open("data", create=True)
            content = Random(self.seed).randbytes(100_000)
            await file.write(0, content)
            ranges = [(90_000, 10_000), (0, 1), (500, 0), (0, 100_000), (0, 1), (65_000, 2_000)]
            got = await file.read_many(ranges)
            self._expect(got == [content[offset : offset + size] for offset, size in ranges], "read_many gave others")
            self._expect(await file.read_many([]) == [], "read_many of nothing gave something")

        self._prove(promise)

    def test_what_was_read_is_bytes_and_what_was_written_is_a_copy(self) -> None:
        async def promise(storage: Storage) -> None:
            file = await storage.open("data", create=True)
            mutable = bytearray(b"first")
            await file.write(0, cast(bytes, mutable))
            mutable[:] = b"other"
            got = await file.read(0, 5)
            self._expect(type(got) is bytes, f"read gave a {type(got).__name__}, not bytes")
            self._expect(got == b"first", "the storage keeps the caller's buffer instead of a copy of it")
            await file.write(0, b"third")
            self._expect(got == b"first", "what was read changed when it was overwritten")

        self._prove(promise)

    # ---- writing ----

    def test_a_write_in_the_middle_changes_nothing_else(self) -> None:
        async def promise(storage: Storage) -> None:
            file = await storage.open("data", create=True)
            await file.write(0, b"0123456789")
            await file.write(3, b"abc")
            await self._expect_content(file, b"012abc6789")
            await file.write(8, b"xyz")
            await self._expect_content(file, b"012abc67xyz")

        self._prove(promise)

    def test_a_gap_before_a_write_reads_as_zeros(self) -> None:
        async def promise(storage: Storage) -> None:
            file = await storage.open("data", create=True)
            await file.write(5, b"end")
            await self._expect_content(file, bytes(5) + b"end")
            await file.write(70_000, b"far")
            await self._expect_content(file, bytes(5) + b"end" + bytes(69_992) + b"far")

        self._prove(promise)

    def test_a_gap_where_bytes_once_were_reads_as_zeros(self) -> None:
        async def promise(storage: Storage) -> None:
            file = await storage.open("data", create=True)
            for size in (100, 70_000, 140_000):
                await file.write(0, b"x" * size)
                await file.truncate(size // 3)
                await file.write(size - 1, b"e")
                await self._expect_content(file, b"x" * (size // 3) + bytes(size - 1 - size // 3) + b"e")

        self._prove(promise)

    def test_an_empty_write_changes_nothing(self) -> None:
        async def promise(storage: Storage) -> None:
            file = await storage.open("data", create=True)
            await file.write(0, b"")
            self._expect(await file.size() == 0, "an empty write made the file longer")
            await file.write(0, b"abc")
            for offset in (0, 3, 100):
                await file.write(offset, b"")
            await self._expect_content(file, b"abc")

        self._prove(promise)

    def test_a_gap_of_gigabytes_costs_nothing(self) -> None:
        async def promise(storage: Storage) -> None:
            file = await storage.open("data", create=True)
            await file.write(0, b"near")
            await file.write(self.gap_bytes, b"far")
            self._expect(await file.size() == self.gap_bytes + 3, f"the size is {await file.size()} after a gap")
            for offset in (0xFFFF_FFFE, 0x7FFF_FFFE, 0x1_0000_0000, self.gap_bytes - 4):
                if 4 <= offset <= self.gap_bytes - 4:
                    await self._expect_bytes(file, offset, bytes(4))
            await self._expect_bytes(file, self.gap_bytes - 2, b"\0\0far")
            await self._expect_bytes(file, 0, b"near\0")
            await file.delete(4, self.gap_bytes - 4)
            await self._expect_bytes(file, self.gap_bytes, b"far")
            await file.truncate(4)
            await self._expect_content(file, b"near")

        self._prove(promise)

    def test_a_large_transfer_is_whole(self) -> None:
        async def promise(storage: Storage) -> None:
            file = await storage.open("data", create=True)
            content = Random(self.seed).randbytes(self.large_bytes)
            await file.write(7, content)
            self._expect(await file.size() == 7 + len(content), "a large write was short")
            self._expect(await file.read(7, len(content)) == content, "a large transfer came back damaged")
            await self._raises(OutOfBoundsError, file.read(8, len(content)), "a large read past the end")

        self._prove(promise)

    # ---- deleting and truncating ----

    def test_a_delete_touches_nothing_outside_of_its_range(self) -> None:
        async def promise(storage: Storage) -> None:
            random = Random(self.seed)
            for number, (offset, size) in enumerate(((0, 10), (4000, 5000), (65_000, 70_000), (60_000, 140_000))):
                file = await storage.open(f"data-{number}", create=True)
                content = random.randbytes(200_000)
                await file.write(0, content)
                await file.delete(offset, size)
                await self._adopt_delete(file, bytearray(content), offset, size)
                await file.write(offset, b"new")
                await self._expect_bytes(file, offset, b"new")

        self._prove(promise)

    def test_a_delete_never_makes_the_file_longer_and_one_of_no_bytes_does_nothing(self) -> None:
        async def promise(storage: Storage) -> None:
            file = await storage.open("data", create=True)
            await file.delete(0, 100)
            self._expect(await file.size() == 0, "a delete in an empty file made it longer")
            await file.write(0, b"abcdef")
            for offset in (0, 3, 6, 100):
                await file.delete(offset, 0)
            await file.delete(6, 10)
            await file.delete(1 << 40, 10)
            await self._expect_content(file, b"abcdef")
            await file.delete(4, 1000)
            await self._adopt_delete(file, bytearray(b"abcdef"), 4, 1000)

        self._prove(promise)

    def test_truncate_makes_the_size_exact_and_grows_with_zeros(self) -> None:
        async def promise(storage: Storage) -> None:
            file = await storage.open("data", create=True)
            model = bytearray()
            await file.write(0, b"x" * 200_000)
            model += b"x" * 200_000
            for size in (200_000, 150_000, 65_536, 65_535, 100, 100, 101, 70_000, 0, 1, 8192, 0):
                await file.truncate(size)
                model = model[:size].ljust(size, b"\0")
                await self._expect_content(file, bytes(model))

        self._prove(promise)

    def test_a_negative_offset_or_size_is_refused_and_changes_nothing(self) -> None:
        async def promise(storage: Storage) -> None:
            file = await storage.open("data", create=True)
            await file.write(0, b"abc")
            await self._raises(OptionError, file.read(-1, 1), "read(-1, 1)")
            await self._raises(OptionError, file.read(1, -1), "read(1, -1)")
            await self._raises(OptionError, file.write(-1, b"x"), "write(-1, ...)")
            await self._raises(OptionError, file.delete(-1, 2), "delete(-1, 2)")
            await self._raises(OptionError, file.delete(2, -1), "delete(2, -1)")
            await self._raises(OptionError, file.truncate(-1), "truncate(-1)")
            await self._expect_content(file, b"abc")

        self._prove(promise)

    # ---- in flight together ----

    def test_calls_in_flight_together_all_take_effect(self) -> None:
        async def promise(storage: Storage) -> None:
            file = await storage.open("data", create=True)
            random = Random(self.seed)
            pieces = [random.randbytes(random.choice((1, 100, 5000))) for _ in range(40)]
            offsets = [sum(map(len, pieces[:number])) for number in range(len(pieces))]
            order = list(range(len(pieces)))
            random.shuffle(order)
            await asyncio.gather(*(file.write(offsets[number], pieces[number]) for number in order))
            got = await asyncio.gather(*(file.read(offsets[number], len(pieces[number])) for number in order))
            self._expect(got == [pieces[number] for number in order], "reads in flight together gave other bytes")
            await self._expect_content(file, b"".join(pieces))

        self._prove(promise)

    def test_large_and_small_calls_in_flight_together_do_not_disturb_each_other(self) -> None:
        async def promise(storage: Storage) -> None:
            file = await storage.open("data", create=True)
            large = Random(self.seed).randbytes(self.large_bytes)
            await file.write(0, b"small" * 10)
            await asyncio.gather(
                file.write(1000, large), *(file.write(number * 5, b"SMALL") for number in range(10)), file.sync()
            )
            got = await asyncio.gather(file.read(1000, len(large)), *(file.read(n * 5, 5) for n in range(10)))
            self._expect(got == [large] + [b"SMALL"] * 10, "large and small calls disturbed each other")

        self._prove(promise)

    def test_a_call_sees_what_had_finished_before_through_any_handle(self) -> None:
        async def promise(storage: Storage) -> None:
            one = await storage.open("data", create=True)
            other = await storage.open("data")
            for number in range(20):
                writer, reader = (one, other) if number % 2 else (other, one)
                await writer.write(number * 3, b"%03d" % number)
                await self._expect_bytes(reader, number * 3, b"%03d" % number)
                self._expect(await reader.size() == number * 3 + 3, "another handle sees an old size")
            await one.truncate(5)
            await self._expect_content(other, b"00000")

        self._prove(promise)

    def test_a_cancelled_write_does_not_land_after_a_later_one(self) -> None:
        async def promise(storage: Storage) -> None:
            file = await storage.open("data", create=True)
            await file.write(0, bytes(self.large_bytes))
            for _ in range(5):
                old = asyncio.ensure_future(file.write(0, b"o" * self.large_bytes))
                await asyncio.sleep(0)
                old.cancel()
                with suppress(asyncio.CancelledError):
                    await old
                await file.write(0, b"new")
                await file.sync()
                await self._expect_bytes(file, 0, b"new")

        self._prove(promise)

    # ---- the end ----

    def test_sync_changes_nothing_and_may_be_repeated(self) -> None:
        async def promise(storage: Storage) -> None:
            file = await storage.open("data", create=True)
            await file.sync()
            await file.write(0, b"abc")
            await file.sync()
            await file.sync()
            await self._expect_content(file, b"abc")

        self._prove(promise)

    def test_a_closed_file_refuses_every_call_and_other_handles_live_on(self) -> None:
        async def promise(storage: Storage) -> None:
            file = await storage.open("data", create=True)
            other = await storage.open("data")
            await file.write(0, b"abc")
            await file.aclose()
            await file.aclose()
            await self._expect_closed(file)
            await self._expect_content(other, b"abc")
            await other.write(0, b"x")
            await other.aclose()
            await self._expect_closed(other)
            again = await storage.open("data")
            await self._expect_content(again, b"xbc")

        self._prove(promise)

    # ---- for the promises ----

    def _prove(self, promise: Body) -> None:
        """Run one promise on a new storage, and close all that it opened."""

        async def prove() -> None:
            self._opened: list[Storage] = []
            async with asyncio.timeout(self.timeout_seconds):
                storage = await self._new()
                try:
                    await promise(storage)
                except BaseException:
                    for opened in self._opened:
                        with suppress(HypercoreError):
                            await opened.aclose()
                    raise
                for opened in self._opened:
                    await opened.aclose()

        asyncio.run(prove())

    async def _new(self) -> Storage:
        storage = await self.make_storage()
        self._opened.append(storage)
        return storage

    async def _again(self, storage: Storage) -> Storage:
        again = await self.reopen(storage)
        self._expect(again is not storage, "reopen() must give another object, and it gave the same one")
        self._opened.append(again)
        return again

    def _expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            raise AssertionError(f"{otherwise} (seed {self.seed})")

    async def _raises(self, kind: type[BaseException], call: Awaitable[object], what: str) -> None:
        try:
            result = await call
        except kind:
            return
        except Exception as error:
            raise AssertionError(f"{what} raised {error!r} instead of {kind.__name__}") from error
        raise AssertionError(f"{what} gave {result!r:.80} instead of raising {kind.__name__}")

    async def _expect_bytes(self, file: RandomAccess, offset: int, want: bytes) -> None:
        got = await file.read(offset, len(want))
        self._expect(got == want, f"{len(want)} bytes at {offset} are {got!r:.80} and not {want!r:.80}")

    async def _expect_content(self, file: RandomAccess, want: bytes) -> None:
        size = await file.size()
        self._expect(size == len(want), f"the size is {size} and not {len(want)}")
        got = await file.read(0, size)
        if got != want:
            first = next(index for index in range(size) if got[index] != want[index])
            raise AssertionError(f"byte {first} of {size} is {got[first]} and not {want[first]} (seed {self.seed})")

    async def _expect_closed(self, file: RandomAccess) -> None:
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "read": lambda: file.read(0, 1),
            "a read of no bytes": lambda: file.read(0, 0),
            "read_many": lambda: file.read_many([(0, 1)]),
            "write": lambda: file.write(0, b"x"),
            "an empty write": lambda: file.write(0, b""),
            "delete": lambda: file.delete(0, 1),
            "truncate": lambda: file.truncate(0),
            "size": file.size,
            "sync": file.sync,
        }
        for name, call in calls.items():
            await self._raises(ClosedError, call(), f"{name} of a closed file")

    async def _adopt_delete(self, file: RandomAccess, model: bytearray, offset: int, size: int) -> None:
        """Check what a delete has left, and take it over into the model, which may not foretell it."""
        end = min(offset + size, len(model))
        got_size = await file.size()
        least = len(model) if end < len(model) or end <= offset else offset
        self._expect(
            least <= got_size <= len(model),
            f"the size became {got_size} when {size} bytes at {offset} of {len(model)} were deleted",
        )
        got = await file.read(0, got_size)
        for index, byte in enumerate(got):
            inside = offset <= index < end
            if byte != model[index] and not (inside and byte == 0):
                raise AssertionError(
                    f"byte {index} became {byte} when {size} bytes at {offset} of {len(model)} were deleted; "
                    f"it was {model[index]} (seed {self.seed})"
                )
        model[:] = got

"""The promises of `hypercore.storage` as tests, for anyone's backend.

Aside of the floors: it imports the promises only, and no test runner. Subclass `StorageContract` in a test module;
each of its `test_` methods is then one promise that your backend keeps:

    class TestMyStorage(StorageContract):
        async def make_storage(self) -> Storage:
            return MyStorage(new_empty_place())

        async def reopen(self, storage: Storage) -> Storage:
            return MyStorage(storage.place)
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from random import Random

from hypercore.errors import ClosedError, FencedError, LockedError, OptionError, StorageMissingError
from hypercore.storage import Delete, Operation, Storage, Sync, Truncate, Write
from hypercore.testing.random_access import RandomAccessContract

#: Names that would lead out of the place, or that no file system can hold.
BAD_NAMES = ("", ".", "..", "a/b", "/a", "../a", "a/", "a\0b", "n" * 256)
#: Names that are unusual and right.
ODD_NAMES = ("a b", "ü-ß-日本", ".hidden", "%2F", "a:b", "-", "n" * 200)


class StorageContract(RandomAccessContract):
    """The promises of a storage and its files. Two methods are needed, `make_storage` and `reopen`."""

    #: How many random histories are compared with a model, and how long each is.
    histories: int = 4
    history_length: int = 120

    async def replace_writer(self, storage: Storage) -> Storage | None:
        """For a backend that can lose its lease: a storage whose `acquire` took it from `storage`; None: it cannot."""
        return None

    # ---- files and names ----

    def test_a_new_place_is_empty_and_looking_at_it_leaves_it_so(self) -> None:
        async def promise(storage: Storage) -> None:
            for _ in range(2):
                names = await storage.names()
                self._expect(isinstance(names, frozenset), f"names gave a {type(names).__name__}, not a frozenset")
                self._expect(names == frozenset(), f"a new place holds {sorted(names)}")
                await self._raises(StorageMissingError, storage.open("data"), "open of a file that does not exist")
                await storage.unlink("data")
                await storage.commit([Delete("data", 0, 10), Sync(("data", "oplog"))])

        self._prove(promise)

    def test_a_missing_file_is_also_pythons_file_not_found(self) -> None:
        async def promise(storage: Storage) -> None:
            await self._raises(FileNotFoundError, storage.open("data", create=False), "open of a missing file")

        self._prove(promise)

    def test_a_file_that_is_made_is_empty_and_one_that_exists_is_kept(self) -> None:
        async def promise(storage: Storage) -> None:
            file = await storage.open("data", create=True)
            await self._expect_content(file, b"")
            self._expect(await storage.names() == {"data"}, "a file that was made is not among the names")
            await file.write(0, b"abc")
            for create in (True, False):
                await self._expect_content(await storage.open("data", create=create), b"abc")

        self._prove(promise)

    def test_files_do_not_mix(self) -> None:
        async def promise(storage: Storage) -> None:
            names = [f"file-{number}" for number in range(12)] + ["file", "File-", *ODD_NAMES]
            for name in names:
                await (await storage.open(name, create=True)).write(0, name.encode())
            self._expect(await storage.names() == set(names), f"the names became {sorted(await storage.names())}")
            for name in names:
                await self._expect_content(await storage.open(name), name.encode())
            again = await self._again(storage)
            self._expect(await again.names() == set(names), "another storage at this place sees other names")

        self._prove(promise)

    def test_a_name_that_is_a_path_is_refused(self) -> None:
        async def promise(storage: Storage) -> None:
            for name in BAD_NAMES:
                await self._raises(OptionError, storage.open(name, create=True), f"open of {name!r:.20} to make it")
                await self._raises(OptionError, storage.open(name), f"open of {name!r:.20}")
                await self._raises(OptionError, storage.unlink(name), f"unlink of {name!r:.20}")
                await self._raises(OptionError, storage.commit([Write(name, 0, b"x")]), f"commit to {name!r:.20}")
            self._expect(await storage.names() == frozenset(), "a bad name left something behind")

        self._prove(promise)

    def test_an_unlinked_file_is_gone_and_its_handles_are_closed(self) -> None:
        async def promise(storage: Storage) -> None:
            file = await storage.open("data", create=True)
            other = await storage.open("other", create=True)
            await file.write(0, b"abc")
            await storage.unlink("data")
            await storage.unlink("data")
            await self._expect_closed(file)
            self._expect(await storage.names() == {"other"}, "an unlinked file is still among the names")
            await self._raises(StorageMissingError, storage.open("data"), "open of an unlinked file")
            new = await storage.open("data", create=True)
            await self._expect_content(new, b"")
            await new.write(0, b"new")
            await self._expect_closed(file)
            await file.aclose()
            await self._expect_content(new, b"new")
            await self._expect_content(other, b"")

        self._prove(promise)

    # ---- the lease ----

    def test_a_second_writer_is_refused_until_the_first_one_closes(self) -> None:
        async def promise(storage: Storage) -> None:
            second = await self._again(storage)
            await storage.acquire()
            await storage.acquire()
            for _ in range(2):
                await self._raises(LockedError, second.acquire(), "acquire of a second writer")
            await storage.commit([Write("data", 0, b"first")])
            await storage.aclose()
            await second.acquire()
            await second.commit([Write("data", 0, b"other")])
            third = await self._again(storage)
            await self._raises(LockedError, third.acquire(), "acquire while the second writer has the lease")

        self._prove(promise)

    def test_a_refused_writer_that_closes_takes_nothing_from_the_one_who_has_the_lease(self) -> None:
        async def promise(storage: Storage) -> None:
            await storage.acquire()
            refused = await self._again(storage)
            await self._raises(LockedError, refused.acquire(), "acquire of a second writer")
            await refused.aclose()
            third = await self._again(storage)
            await self._raises(LockedError, third.acquire(), "acquire after a refused writer closed")
            await storage.commit([Write("data", 0, b"mine")])

        self._prove(promise)

    def test_of_many_writers_at_once_exactly_one_is_let_in(self) -> None:
        async def promise(storage: Storage) -> None:
            rivals = [storage] + [await self._again(storage) for _ in range(7)]
            results = await asyncio.gather(*(rival.acquire() for rival in rivals), return_exceptions=True)
            winners = [result for result in results if result is None]
            losers = [result for result in results if isinstance(result, LockedError)]
            self._expect(len(winners) == 1 and len(losers) == 7, f"of 8 writers at once: {results}")

        self._prove(promise)

    def test_reading_needs_no_lease(self) -> None:
        async def promise(storage: Storage) -> None:
            await storage.acquire()
            reader = await self._again(storage)
            await storage.commit([Write("data", 0, b"abc"), Sync(("data",))])
            await self._expect_content(await reader.open("data"), b"abc")
            await self._raises(LockedError, reader.acquire(), "acquire of a reader")
            await self._expect_content(await reader.open("data"), b"abc")
            self._expect("data" in await reader.names(), "a reader without the lease sees no names")

        self._prove(promise)

    def test_the_lease_changes_no_file_and_makes_none_that_holds_anything(self) -> None:
        async def promise(storage: Storage) -> None:
            for name in ("oplog", "data"):
                await (await storage.open(name, create=True)).write(0, name.encode())
            await storage.aclose()
            again = await self._again(storage)
            await again.acquire()
            for name in ("oplog", "data"):
                await self._expect_content(await again.open(name), name.encode())
            empty = await self._new()
            await empty.acquire()
            for name in await empty.names():
                await self._expect_content(await empty.open(name), b"")

        self._prove(promise)

    def test_a_writer_who_was_replaced_can_change_nothing(self) -> None:
        async def promise(storage: Storage) -> None:
            await storage.acquire()
            await storage.commit([Write("data", 0, b"old")])
            file = await storage.open("data")
            successor = await self.replace_writer(storage)
            if successor is None:
                return
            self._opened.append(successor)
            await successor.acquire()
            await self._raises(FencedError, storage.commit([Write("data", 0, b"bad")]), "commit of a replaced writer")
            await self._raises(FencedError, file.write(0, b"bad"), "write of a replaced writer")
            await self._raises(FencedError, file.truncate(0), "truncate of a replaced writer")
            await self._raises(FencedError, storage.unlink("data"), "unlink of a replaced writer")
            await self._raises(FencedError, storage.acquire(), "acquire of a replaced writer")
            await self._expect_content(await successor.open("data"), b"old")
            await successor.commit([Write("data", 0, b"new")])
            await self._expect_content(await successor.open("data"), b"new")

        self._prove(promise)

    # ---- commits ----

    def test_a_commit_does_its_operations_in_order(self) -> None:
        async def promise(storage: Storage) -> None:
            await self._commit_and_compare(
                storage,
                [
                    Write("data", 0, b"aaaaaaaa"),
                    Write("oplog", 4, b"entry"),
                    Write("data", 2, b"bbbb"),
                    Write("data", 6, b"cc"),
                    Write("data", 8, b"dd"),
                    Write("data", 7, b"ee"),
                    Sync(("data", "oplog")),
                    Truncate("oplog", 6),
                    Write("oplog", 10, b"later"),
                    Truncate("tree", 3),
                    Write("tree", 0, b"t"),
                    Truncate("data", 7),
                    Truncate("data", 20),
                    Write("data", 12, b"end"),
                    Sync(("tree",)),
                    Write("tree", 1, b"last"),
                ],
            )

        self._prove(promise)

    def test_a_commit_of_neighbouring_and_overlapping_writes_is_what_they_are_one_by_one(self) -> None:
        async def promise(storage: Storage) -> None:
            random = Random(self.seed)
            operations: list[Operation] = []
            offset = 0
            for _ in range(1500):
                data = random.randbytes(random.randrange(60))
                operations.append(Write("tree", offset, data))
                offset += len(data) - (1 if data and random.random() < 0.2 else 0)
            await self._commit_and_compare(storage, operations)

        self._prove(promise)

    def test_a_commit_makes_the_files_it_writes_and_no_others(self) -> None:
        async def promise(storage: Storage) -> None:
            await storage.commit([])
            await storage.commit([Delete("gone", 0, 5), Sync(("gone", "data")), Write("data", 0, b"x")])
            self._expect(await storage.names() == {"data"}, f"a commit left {sorted(await storage.names())}")
            await storage.commit([Truncate("tree", 0), Delete("data", 0, 0)])
            self._expect(await storage.names() == {"data", "tree"}, "a truncate did not make its file")
            await self._expect_content(await storage.open("data"), b"x")

        self._prove(promise)

    def test_a_commit_and_open_files_see_each_other(self) -> None:
        async def promise(storage: Storage) -> None:
            file = await storage.open("data", create=True)
            await file.write(0, b"abc")
            await storage.commit([Write("data", 3, b"def")])
            await self._expect_content(file, b"abcdef")
            await file.truncate(4)
            await storage.commit([Write("data", 5, b"x")])
            await self._expect_content(file, b"abcd\0x")
            await storage.unlink("data")
            await storage.commit([Write("data", 0, b"new")])
            await self._expect_closed(file)
            await self._expect_content(await storage.open("data"), b"new")
            await storage.commit([Delete("data", 0, 3)])
            await self._adopt_delete(await storage.open("data"), bytearray(b"new"), 0, 3)

        self._prove(promise)

    def test_a_large_commit_with_syncs_is_whole(self) -> None:
        async def promise(storage: Storage) -> None:
            large = Random(self.seed).randbytes(self.large_bytes)
            await self._commit_and_compare(
                storage,
                [
                    Write("data", 0, large),
                    Sync(("data",)),
                    Write("oplog", 0, b"entry"),
                    Sync(("oplog",)),
                    Write("data", 5, b"after"),
                    Truncate("oplog", 2),
                ],
            )

        self._prove(promise)

    # ---- the end ----

    def test_what_was_written_is_there_when_the_place_is_opened_again(self) -> None:
        async def promise(storage: Storage) -> None:
            await storage.acquire()
            await storage.commit([Write("data", 70_000, b"abc"), Write("oplog", 0, b"entry")])
            await (await storage.open("tree", create=True)).truncate(40)
            await storage.unlink("oplog")
            await storage.aclose()
            again = await self._again(storage)
            self._expect(
                await again.names() == {"data", "tree"}, f"after opening again there is {sorted(await again.names())}"
            )
            await self._expect_content(await again.open("data"), bytes(70_000) + b"abc")
            await self._expect_content(await again.open("tree"), bytes(40))

        self._prove(promise)

    def test_a_closed_storage_refuses_every_call_and_its_files_too(self) -> None:
        async def promise(storage: Storage) -> None:
            await storage.acquire()
            file = await storage.open("data", create=True)
            await file.write(0, b"abc")
            await storage.commit([Write("data", 0, b"x"), Write("oplog", 0, b"y")])
            await storage.aclose()
            await storage.aclose()
            await self._expect_closed(file)
            await file.aclose()
            calls: dict[str, Callable[[], Awaitable[object]]] = {
                "open": lambda: storage.open("data"),
                "open to make": lambda: storage.open("new", create=True),
                "names": storage.names,
                "unlink": lambda: storage.unlink("data"),
                "acquire": storage.acquire,
                "commit": lambda: storage.commit([Write("data", 0, b"z")]),
            }
            for name, call in calls.items():
                await self._raises(ClosedError, call(), f"{name} of a closed storage")
            await self._expect_content(await (await self._again(storage)).open("data"), b"xbc")

        self._prove(promise)

    def test_a_storage_that_was_never_used_can_be_closed(self) -> None:
        async def promise(storage: Storage) -> None:
            async with storage:
                self._expect(isinstance(storage.persistent, bool), "persistent is no bool")
                self._expect(storage.writable is True, "a new place can only be read")
            await self._raises(ClosedError, storage.names(), "names after `async with`")

        self._prove(promise)

    # ---- everything together ----

    def test_random_histories_agree_with_a_model(self) -> None:
        for history in range(self.histories):

            async def promise(storage: Storage, seed: int = self.seed * 1000 + history) -> None:
                try:
                    await self._live_through(storage, Random(seed))
                except AssertionError as error:
                    raise AssertionError(f"history {seed}: {error}") from error

            self._prove(promise)

    async def _live_through(self, storage: Storage, random: Random) -> None:
        model: dict[str, bytearray] = {}
        for _ in range(self.history_length):
            name = random.choice(("data", "oplog", "tree"))
            held = model.get(name)
            match random.randrange(10):
                case 0 | 1 | 2 | 3:
                    operations = [_random_operation(random, model) for _ in range(random.randrange(1, 6))]
                    for operation in operations:
                        _apply(model, operation)
                    await storage.commit(operations)
                case 4 if held is not None:
                    offset, size = random.randrange(len(held) + 10), random.choice((0, 10, 5000, 100_000))
                    if random.random() < 0.5:
                        await storage.commit([Delete(name, offset, size)])
                    else:
                        await (await storage.open(name)).delete(offset, size)
                    await self._adopt_delete(await storage.open(name), held, offset, size)
                case 5:
                    await storage.unlink(name)
                    model.pop(name, None)
                case 6 if held is not None:
                    size = random.randrange(len(held) + 1)
                    offset = random.randrange(len(held) - size + 1)
                    await self._expect_bytes(await storage.open(name), offset, bytes(held[offset : offset + size]))
                case 7:
                    self._expect(
                        await storage.names() == model.keys(), f"the names are {sorted(await storage.names())}"
                    )
                case 8 if random.random() < 0.3:
                    await storage.aclose()
                    storage = await self._again(storage)
                case 9:
                    file = await storage.open(name, create=True)
                    data = random.randbytes(random.choice((1, 40, 4096, 70_000)))
                    offset = random.randrange(150_000)
                    await file.write(offset, data)
                    await file.aclose()
                    model.setdefault(name, bytearray())
                    _apply(model, Write(name, offset, data))
        for name, held in model.items():
            await self._expect_content(await storage.open(name), bytes(held))

    async def _commit_and_compare(self, storage: Storage, operations: Sequence[Operation]) -> None:
        """The commit, twice, leaves what a model says it leaves."""
        model: dict[str, bytearray] = {}
        for _ in range(2):
            await storage.commit(operations)
            for operation in operations:
                _apply(model, operation)
            self._expect(await storage.names() == model.keys(), f"a commit left {sorted(await storage.names())}")
            for name, held in model.items():
                await self._expect_content(await storage.open(name), bytes(held))


def _random_operation(random: Random, model: dict[str, bytearray]) -> Operation:
    name = random.choice(("data", "oplog", "tree"))
    size = len(model.get(name, b""))
    match random.randrange(6):
        case 0:
            return Truncate(name, random.randrange(size + 10_000))
        case 1:
            return Sync((name, "data"))
        case 2:
            return Write(name, size, random.randbytes(random.randrange(3000)))
        case _:
            return Write(name, random.randrange(size + 70_000), random.randbytes(random.choice((0, 1, 40, 4096, 9000))))


def _apply(model: dict[str, bytearray], operation: Operation) -> None:
    """What an operation means, in the plainest words. A delete is not foretold, but checked."""
    match operation:
        case Write(name, offset, data):
            held = model.setdefault(name, bytearray())
            if data:
                held.extend(bytes(max(0, offset - len(held))))
                held[offset : offset + len(data)] = data
        case Truncate(name, size):
            held = model.setdefault(name, bytearray())
            held.extend(bytes(max(0, size - len(held))))
            del held[size:]
        case Delete() | Sync():
            pass

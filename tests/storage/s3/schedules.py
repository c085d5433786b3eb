"""Writers and readers of one bucket, taken apart at each request, and put together in an order that a seed decides.

Any request may be carried out and its answer lost, never arrive, arrive long after its sender gave up, or be carried
out twice. Any actor may be paused or die. What must hold is checked at every acknowledgement and every read.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from hypercore.errors import ClosedError, FencedError, LockedError, StorageError
from hypercore.storage import Operation, Storage, Write
from hypercore_s3.storage import S3Storage
from tests.storage.s3.fake_client import Bucket, FakeClient

#: A record names who wrote it, and is never written twice.
RECORD_SIZE = 16
#: Enough to be large where the tests say what is large.
LARGE_BYTES = 100
#: Several times what any of them takes.
TURNS_MAX = 20_000


@dataclass
class Asked:
    """A request that waits to be carried out."""

    actor: str
    verb: str
    apply: Callable[[], object]
    answer: asyncio.Future[object]


@dataclass
class World:
    """One bucket, who uses it, and what was acknowledged."""

    seed: int
    bucket: Bucket = field(default_factory=Bucket)
    waiting: list[Asked] = field(default_factory=list)
    late: list[Callable[[], object]] = field(default_factory=list)
    paused: dict[str, int] = field(default_factory=dict)
    dead: set[str] = field(default_factory=set)
    #: How often the head may get lost; then the place is not empty from the beginning.
    lost_heads_max: int = 0
    #: What lies at which place of the file, as somebody was told.
    acknowledged: dict[int, bytes] = field(default_factory=dict)
    calm: bool = False
    over: bool = False
    fenced: int = 0
    takeovers: int = 0
    reads: int = 0
    turns: int = 0
    story: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = Random(self.seed)

    def storage(self, actor: str, **options: object) -> S3Storage:
        async def carry(verb: str, key: str, apply: Callable[[], object]) -> object:
            if self.over:
                raise StorageError("the world has ended")
            asked = Asked(actor, verb, apply, asyncio.get_running_loop().create_future())
            self.waiting.append(asked)
            result = await asked.answer
            self.story.append(f"{actor} {verb} {key}")
            return result

        return S3Storage("bucket", "p", client=FakeClient(self.bucket, carry=carry), most_connections=4, **options)

    def expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            story = "\n".join(self.story[-60:])
            raise AssertionError(f"seed {self.seed}: {otherwise}\n{story}")

    # ---- the actors ------------------------------------------------------------------------------

    async def write(self, actor: str, commits: int) -> None:
        """One writer after the other: each takes the lease when it can, and appends records until it is fenced."""
        life = 0
        while commits:
            life += 1
            name = f"{actor}.{life}"
            storage = self.storage(actor, take_over=self.random.random() < 0.3)
            try:
                await storage.acquire()
                self.takeovers += 1
                commits = await self._append(storage, name, commits)
            except FencedError:
                self.fenced += 1
                await self._stays_fenced(storage)
            except StorageError:
                pass
            await self._close(storage)

    async def _append(self, storage: S3Storage, name: str, commits: int) -> int:
        number = 0
        while commits:
            commits -= 1
            number += 1
            record = f"{name}-{number}".encode().ljust(RECORD_SIZE)
            place = await self._place(storage)
            operations: list[Operation] = [Write("oplog", place * RECORD_SIZE, record)]
            if self.random.random() < 0.5:
                operations.insert(0, Write("data", place * LARGE_BYTES, record.ljust(LARGE_BYTES, b".")))
            elif self.random.random() < 0.2:
                operations.append(Write("tree", self.random.randrange(1000), record))
            try:
                await storage.commit(operations)
            except FencedError:
                raise
            except StorageError as error:
                self.story.append(f"{name} failed at {place}: {error}")
                continue
            self.story.append(f"{name} acknowledged {record!r} at {place}")
            known = self.acknowledged.setdefault(place, record)
            self.expect(known == record, f"both {known!r} and {record!r} were acknowledged at {place}")
            if self.random.random() < 0.1:
                await storage._writer.renew()
            if self.random.random() < 0.08:
                break
        return commits

    async def _place(self, storage: Storage) -> int:
        """Where the next record goes; after a failure only when it is certain."""
        while True:
            try:
                names = await storage.names()
                if "oplog" not in names:
                    return 0
                file = await storage.open("oplog")
                size = await file.size()
            except (FencedError, ClosedError):
                raise
            except StorageError:
                continue
            self.expect(size % RECORD_SIZE == 0, f"the file has {size} bytes")
            return size // RECORD_SIZE

    async def _stays_fenced(self, storage: S3Storage) -> None:
        for _ in range(2):
            try:
                await storage.commit([Write("oplog", 0, b"overwritten")])
            except LockedError:
                continue
            except StorageError:
                continue
            self.expect(False, "a writer who was fenced wrote again")

    async def _close(self, storage: S3Storage) -> None:
        with contextlib.suppress(StorageError):
            await storage.aclose()

    async def read(self, actor: str, times: int) -> None:
        """Readers who open, look, refresh and look again; each sees all that was acknowledged before."""
        storage = self.storage(actor)
        for _ in range(times):
            if self.random.random() < 0.4:
                await self._close(storage)
                storage = self.storage(actor)
            before, calm = dict(self.acknowledged), self.calm
            try:
                names = await storage.names()
                await storage.refresh()
                names = await storage.names()
                records, data = await self._all(storage, names)
            except (StorageError, ClosedError) as error:
                self.story.append(f"{actor} could not read: {error}")
                self.expect(not calm, f"a reader failed although nothing did: {error!r}")
                continue
            self.reads += 1
            for place, record in before.items():
                self.expect(
                    place < len(records) and records[place] == record,
                    f"{record!r} was acknowledged at {place}, and a reader sees {records[place : place + 1]}",
                )
            for place in range(len(data) // LARGE_BYTES):
                piece = data[place * LARGE_BYTES : (place + 1) * LARGE_BYTES]
                good = not piece.strip(b"\0") or piece == piece[:RECORD_SIZE].ljust(LARGE_BYTES, b".")
                self.expect(good, f"a reader sees {piece!r} at {place}")
        await self._close(storage)

    async def _all(self, storage: Storage, names: frozenset[str]) -> tuple[list[bytes], bytes]:
        found = {}
        for name in ("oplog", "data"):
            file = await storage.open(name) if name in names else None
            found[name] = await file.read(0, await file.size()) if file is not None else b""
        oplog = found["oplog"]
        records = [oplog[start : start + RECORD_SIZE] for start in range(0, len(oplog), RECORD_SIZE)]
        return records, found["data"]

    # ---- the order of things ----------------------------------------------------------------------

    async def run(self, *, writers: int, steps: int) -> None:
        """Everybody at once, in the order that the seed decides; then without faults, to the end."""
        if self.lost_heads_max:
            await self._begin()
        tasks = [asyncio.ensure_future(self.write(f"w{number}", 12)) for number in range(writers)]
        tasks += [asyncio.ensure_future(self.read(f"r{number}", 8)) for number in range(2)]
        try:
            for _ in range(steps):
                await self._turn(tasks)
            self.calm = True
            idle = 0
            while not all(task.done() for task in tasks[writers:]) or not self._writers_ended(tasks[:writers]):
                idle = 0 if await self._turn(tasks) else idle + 1
                self.expect(idle < 1000, "nobody can go on")
            self._apply_late()
            last = asyncio.ensure_future(self.read("last", 2))
            tasks.append(last)
            while not last.done():
                await self._turn(tasks)
            await last
        finally:
            self.over = True
            others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

    async def _begin(self) -> None:
        storage = S3Storage("bucket", "p", client=FakeClient(self.bucket))
        for place in range(3):
            self.acknowledged[place] = f"first-{place}".encode().ljust(RECORD_SIZE)
            await storage.commit([Write("oplog", place * RECORD_SIZE, self.acknowledged[place])])
        await storage.aclose()

    def _writers_ended(self, tasks: list[asyncio.Task[None]]) -> bool:
        return all(task.done() or f"w{number}" in self.dead for number, task in enumerate(tasks))

    async def _turn(self, tasks: list[asyncio.Task[None]]) -> bool:
        """One request is carried out, or something goes wrong. False when there was none."""
        self.turns += 1
        self.expect(self.turns < TURNS_MAX, "it never ends")
        for _ in range(8):
            await asyncio.sleep(0)
        for task in tasks:
            if task.done():
                task.result()
        random = self.random
        self.bucket.now += 200.0 if random.random() < 0.02 else random.random() * 3
        if self.lost_heads_max and not self.calm and random.random() < 0.01 and "p/head" in self.bucket.objects:
            self.lost_heads_max -= 1
            del self.bucket.objects["p/head"]
            self.story.append("the head is lost")
        if self.late and random.random() < 0.1:
            self._apply_late(random.randrange(len(self.late)))
        for actor in list(self.paused):
            self.paused[actor] -= 1
            if self.paused[actor] <= 0 or self.calm:
                del self.paused[actor]
        ready = [one for one in self.waiting if one.actor not in self.paused and one.actor not in self.dead]
        if not ready:
            return False
        asked = random.choice(ready)
        if not self.calm:
            if random.random() < 0.02:
                self.paused[asked.actor] = random.choice([10, 100])
                self.story.append(f"{asked.actor} pauses before {asked.verb}")
                return True
            if random.random() < 0.004 and asked.actor.startswith("w"):
                self.dead.add(asked.actor)
                self.story.append(f"{asked.actor} dies before {asked.verb}")
                if random.random() < 0.5:
                    self.late.append(asked.apply)
                return True
        self.waiting.remove(asked)
        if not asked.answer.done():
            self._answer(asked)
        return True

    def _answer(self, asked: Asked) -> None:
        luck = 1.0 if self.calm else self.random.random()
        changes = asked.verb in ("put", "delete")
        try:
            if luck < 0.03 and changes:
                self.late.append(asked.apply)
                raise StorageError("no answer yet")
            if luck < 0.06:
                raise StorageError("never arrived")
            if luck < 0.12 and changes:
                # The answer was lost, and the client tried again.
                with contextlib.suppress(StorageError):
                    asked.apply()
            result = asked.apply()
            if 0.12 < luck < 0.17:
                raise StorageError("the answer was lost")
        except Exception as error:
            self.story.append(f"{asked.actor} {asked.verb} -> {error}")
            asked.answer.set_exception(error)
        else:
            asked.answer.set_result(result)

    def _apply_late(self, index: int | None = None) -> None:
        for apply in list(self.late) if index is None else [self.late.pop(index)]:
            with contextlib.suppress(StorageError):
                apply()
                self.story.append("something arrived late")

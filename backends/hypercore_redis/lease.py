"""The writer's lease of one place, and everything that only its holder may do.

Knows the head: who writes, how many commits there have been, what files there are. It must not know who reads.

Two writers never both commit, whatever the clocks say: each commit names the writer that the head must name, and the
commit before it. Time only decides how long a writer that is silent keeps others out.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from redis.exceptions import ResponseError

from hypercore.errors import (
    CorruptError,
    FencedError,
    ForeignStorageError,
    HypercoreError,
    LockedError,
    NewerFormatError,
    StorageError,
    StorageFullError,
)
from hypercore_redis import scripts
from hypercore_redis.channel import Channel, LostConnectionError, Reply
from hypercore_redis.options import PlaceOptions
from hypercore_redis.pages import DROPPED_PAGES_MAX, Contents, Draft, Layout, format_ranges, parse_number
from hypercore_redis.scripts import Argument
from hypercore_redis.session import FAREWELL_SECONDS, LostCommitsError, Session, pairs, run_on

T = TypeVar("T")

#: A commit of more bytes takes milliseconds to be packed (1.2 a MiB).
PROMPT_BYTES_MAX: Final = 1024 * 1024
#: The lease is renewed when this part of it has gone by without a commit.
RENEWALS: Final = 3
#: Connections that break each time the writer has just said who it is are not worth more patience.
_RESUMES_MAX: Final = 10


class Lease:
    """Taken by `acquire`, or by the first change."""

    def __init__(self, session: Session, layout: Layout, options: PlaceOptions) -> None:
        self._session = session
        self._layout = layout
        self._options = options
        self._milliseconds = int(options.lease_seconds * 1000)
        #: What lies in the place; None without the lease.
        self.contents: Contents | None = None
        #: The last commit that was seen: ours when we write, anybody's when we read.
        self.sequence = 0
        self._who = secrets.token_hex(8)
        #: Two processes of one name would take each other's commits for their own.
        self._pid = os.getpid()
        self._writer = b""
        #: A commit was sent and not answered.
        self._in_doubt = False
        #: Why nothing can be changed any more, and why nothing can be trusted any more.
        self._fenced: FencedError | None = None
        self._lost: LostCommitsError | None = None
        #: Held during a change.
        self._turn = asyncio.Lock()
        self._used_at = 0.0
        self._untidy = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    def check(self) -> None:
        """Raises `LostCommitsError` when what was seen here is no longer here."""
        if self._lost is not None:
            raise self._lost

    def check_process(self) -> None:
        """Raises `StorageError` in a process that was made by fork while the lease was held."""
        if os.getpid() != self._pid:
            if self.contents is not None:
                raise StorageError(
                    f"{self._layout.head!r} in {self._session} was opened for writing by process {self._pid}, of "
                    f"which this one, {os.getpid()}, is a copy; two of them cannot write. Open the storage anew in the "
                    "process that shall write"
                )
            self._who, self._pid = secrets.token_hex(8), os.getpid()

    def _check_changeable(self) -> None:
        self.check()
        self.check_process()
        if self._fenced is not None:
            raise self._fenced

    def saw(self, sequence: bytes | None) -> None:
        """A reader found this in the head; None: there is no head. Raises `LostCommitsError`."""
        found = 0 if sequence is None else parse_number(sequence)
        if found < self.sequence:
            self._lose(found)
        self.sequence = found

    def _lose(self, found: int) -> None:
        there = "nothing is there" if found <= 0 else f"commit {found} is the last one there"
        self._lost = LostCommitsError(
            f"{self._session}: commit {self.sequence} of {self._layout.head!r} was seen, and {there}: the server was "
            "restarted without what it had, emptied, or replaced by a replica that lacked it; acknowledged changes are "
            "gone. Nothing was changed; what is left can be looked at by opening the storage anew"
        )
        self.contents = None
        raise self._lost

    # ---- taking it -----------------------------------------------------------------------------------

    async def acquire(self) -> None:
        """Raises `LockedError`, `FencedError`, `LostCommitsError`, `FormatError`, `StorageError`."""
        self._check_changeable()
        if self.contents is None:
            await to_the_end(self._acquire())

    async def _acquire(self) -> None:
        async with self._turn:
            await self._hold()

    async def _hold(self) -> Contents:
        self._check_changeable()
        known = await self.known()
        self._check_changeable()
        if known is not None:
            return known
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": int(time.time())}
        arguments = (
            self._who,
            self._milliseconds,
            json.dumps(holder),
            int(self._options.take_over),
            self.sequence,
        )
        keys = (self._layout.head, self._layout.guard)
        reply = await self._session.patiently(lambda channel: run_on(channel, scripts.ACQUIRE, keys, arguments))
        match reply[0]:
            case b"held":
                raise LockedError(self._describe(reply[1], parse_number(reply[2])))
            case b"gone":
                self._lose(-1)
            case b"damaged":
                raise CorruptError(
                    f"the head {self._layout.head!r} in {self._session} is damaged: its sequence, epoch or until is no "
                    "number. Somebody else wrote to it; what a peer has can be copied from there, or a backup restored"
                )
            case b"format":
                check_format(reply[1] if len(reply) > 1 else None, self._session)
        contents = self._adopt(reply)
        # Whatever comes over a new connection comes after it is known whether we are still the writer.
        self._session.greet = self._resume
        self._keeper = asyncio.get_running_loop().create_task(self._keep())
        return contents

    def _describe(self, holder: bytes, milliseconds: int) -> str:
        try:
            who = json.loads(holder)
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(who["since"]))
            shown = f"process {who['pid']} on {who['host']} since {since}"
        except (ValueError, KeyError, TypeError, OverflowError, OSError, RecursionError):
            shown = "another writer"
        return (
            f"{self._layout.head!r} in {self._session} is held by {shown}. Close that writer; if it is dead, wait "
            f"{-(-milliseconds // 1000)} s for its lease to end, or open with take_over=true"
        )

    async def _resume(self, channel: Channel) -> None:
        """On a new connection: still the writer? What was sent over the old one and not carried out never will be."""
        self.check()
        if self.contents is None:
            return
        reply = await run_on(channel, scripts.RESUME, (self._layout.head,), (self._who, self._milliseconds))
        if reply[0] == b"mine":
            self._adopt(reply)
        else:
            self._refused(reply)

    def _adopt(self, reply: Reply) -> Contents:
        head = pairs(reply[2])
        found = parse_number(head.get(b"sequence"))
        if self.contents is None:
            self.sequence = found
        elif found != self.sequence and not (self._in_doubt and found == self.sequence + 1):
            self._lose(found)
        self.sequence, self._in_doubt = found, False
        self._writer = reply[1]
        self.contents = Contents.parse(head)
        self._used_at = asyncio.get_running_loop().time()
        if self.contents.debris:
            self._untidy.set()
        return self.contents

    def _refused(self, reply: Reply) -> bool:
        """The head names another writer or commit: what that means for us. True: it is us, of an older connection."""
        _, writer, sequence, epoch, holder = [*reply, *[None] * 4][:5]
        found = -1 if sequence is None else parse_number(sequence)
        if writer is None or found < self.sequence:
            self._lose(found)
        if writer.partition(b":")[2] == self._who.encode():
            return True
        if parse_number(epoch) < parse_number(self._writer.partition(b":")[0]):
            self._lose(found)
        self.contents = None
        self._fenced = FencedError(
            f"another writer took over {self._layout.head!r} in {self._session}; this one can never write again. "
            + self._describe(holder or b"", 0).partition(". ")[0]
        )
        return False

    async def known(self) -> Contents | None:
        """What lies in the place, as whoever has the lease knows it; None: only the server knows.

        Nobody knows while a connection is lost: a commit may or may not have been done, another writer have come.
        """
        self.check()
        if self.contents is not None and not self._session.alive:
            await self._session.connect()
        return self.contents

    # ---- changing ------------------------------------------------------------------------------------

    async def commit(self, build: Callable[[Draft], None], byte_count: int = 0) -> None:
        """Carry out what `build` puts into the draft, all or nothing, to its end even if the caller is cancelled.

        Of many bytes, `byte_count` in all, the loop has its turn before they are copied into a command: whoever
        calls has just hashed them. Raises `FencedError`, `StorageFullError` and other `StorageError`; after the last,
        whether it was done is found out by the next call.
        """
        if byte_count > PROMPT_BYTES_MAX or self._turn.locked() or self.contents is None or not self._session.alive:
            await to_the_end(self._commit(build))
            return
        # Mostly there is one reply to wait for, which needs no task.
        async with self._turn:
            draft = Draft(self._layout, self.contents)
            build(draft)
            if draft.is_empty:
                return
            reply = None
            number = self.sequence + 1
            if not draft.is_large:
                sending = self._session.send(scripts.COMMIT.command(draft.keys, self._arguments(draft, number)))
                self._in_doubt = True
                try:
                    reply = await asyncio.shield(sending)
                except asyncio.CancelledError:
                    await to_the_end(self._settle(draft, number, sending))
                    raise
                except (LostConnectionError, ResponseError):
                    pass  # what it means, and whether to try again, is decided below
            if reply == 1:
                self._committed(draft, number)
            else:
                await to_the_end(self._carry_out(draft, number))

    async def _settle(self, draft: Draft, number: int, sending: Awaitable[Reply]) -> None:
        reply = None
        with contextlib.suppress(LostConnectionError, ResponseError):
            reply = await sending
        if reply == 1:
            self._committed(draft, number)
        else:
            await self._carry_out(draft, number)

    async def _commit(self, build: Callable[[Draft], None]) -> None:
        async with self._turn:
            draft = Draft(self._layout, await self._hold())
            build(draft)
            if not draft.is_empty:
                await self._carry_out(draft, self.sequence + 1)

    async def _carry_out(self, draft: Draft, number: int) -> None:
        """Patiently, as commit `number`, which an earlier try may have been already."""
        try:
            if draft.is_large:
                await self._put_aside(draft)
            await self._send(draft, number)
        except StorageFullError:
            raise
        except HypercoreError:
            # The next call begins with asking the head what is true.
            self._session.drop("what the head says is in doubt")
            raise
        finally:
            if self.contents is not None and self.contents.debris:
                self._untidy.set()

    def _arguments(self, draft: Draft, number: int) -> tuple[Argument, ...]:
        return (self._writer, number - 1, number, self._milliseconds, *draft.arguments())

    def _committed(self, draft: Draft, number: int) -> None:
        self.sequence = number
        self.contents = draft.contents
        self._in_doubt = False
        self._used_at = asyncio.get_running_loop().time()
        if draft.contents.debris:
            self._untidy.set()

    async def _send(self, draft: Draft, number: int) -> None:
        async def send(channel: Channel) -> Reply:
            self._check_changeable()
            if self.sequence == number:
                return 1  # a connection was lost after it, and resuming found it done
            self._in_doubt = True
            try:
                reply = await run_on(channel, scripts.COMMIT, draft.keys, self._arguments(draft, number))
            except ResponseError:
                self._in_doubt = False
                raise
            self._in_doubt = False
            return reply

        try:
            reply = await self._persist(send)
        except StorageError as error:
            if self._in_doubt and type(error) is StorageError:
                raise StorageError(f"{error}; whether the last change was made is not known") from error
            raise
        if reply != 1:
            raise StorageError(f"{self._session}: what was put aside for a large commit is gone; nothing was changed")
        self._committed(draft, number)

    async def _persist(self, work: Callable[[Channel], Awaitable[Reply]]) -> Reply:
        """Do `work`, which names the writer; again if an older connection of ours had a last word meanwhile."""
        for _ in range(_RESUMES_MAX):
            reply = await self._session.patiently(work)
            if not isinstance(reply, list) or reply[0] != b"refused":
                return reply
            if self._refused(reply):
                self._session.drop("an older connection had a last word")
            self._check_changeable()
        raise StorageError(f"{self._session}: the connection breaks again and again")

    async def _put_aside(self, draft: Draft) -> None:
        while self.contents is not None and "" in self.contents.debris:
            await self._sweep("")
        for keys, values in draft.stage():
            debris = [(0, draft.staged_count)]
            await self._persist(partial(self._stage, (self._layout.head, *keys), ("-", format_ranges(debris), *values)))
            if self.contents is not None:
                self.contents.debris[""] = debris

    async def _stage(self, keys: Sequence[str], arguments: Sequence[Argument], channel: Channel) -> Reply:
        return await run_on(channel, scripts.STAGE, keys, (self._writer, *arguments))

    # ---- keeping it ----------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Renew the lease of a writer that has nothing to write, and sweep away what nobody can see any more."""
        seconds = self._options.lease_seconds / RENEWALS
        loop = asyncio.get_running_loop()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._untidy.wait()
            try:
                async with self._turn:
                    if self.contents is None:
                        return
                    if self.contents.debris:
                        await self._sweep(next(iter(self.contents.debris)))
                    else:
                        self._untidy.clear()
                    if loop.time() - self._used_at >= seconds * 0.9:
                        await self._renew()
            except HypercoreError:
                # A change will say what is wrong, in the call of somebody who wants to know.
                self._untidy.clear()

    async def _renew(self) -> None:
        await self._persist(
            lambda channel: run_on(channel, scripts.RENEW, (self._layout.head,), (self._writer, self._milliseconds))
        )
        self._used_at = asyncio.get_running_loop().time()

    async def _sweep(self, name: str) -> None:
        """Some of the debris of one file."""
        assert self.contents is not None
        (first, end), *others = self.contents.debris[name]
        stop = min(end, first + DROPPED_PAGES_MAX)
        left = [(stop, end), *others] if stop < end else others
        keys = (self._layout.head, *(self._layout.page(name, number) for number in range(first, stop)))
        await self._persist(
            lambda channel: run_on(channel, scripts.SWEEP, keys, (self._writer, f"-{name}", format_ranges(left)))
        )
        if self.contents is not None:
            if left:
                self.contents.debris[name] = left
            else:
                self.contents.debris.pop(name, None)

    # ---- the end -------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Give the lease back."""
        if os.getpid() != self._pid:
            return  # The lease is that of the process of which this one is a copy.
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        async with self._turn:
            if self.contents is None:
                return
            await self._session.farewell(self._leave)
            self.contents = None

    async def _leave(self, channel: Channel) -> None:
        now = asyncio.get_running_loop().time
        ends = now() + FAREWELL_SECONDS / 2
        with contextlib.suppress(HypercoreError):
            # What is left is swept away by the next writer, who must not wait for that.
            while self.contents is not None and self.contents.debris and now() < ends:
                await self._sweep(next(iter(self.contents.debris)))
        await run_on(channel, scripts.RELEASE, (self._layout.head, self._layout.guard), (self._writer,))


def check_format(found: bytes | None, shown: object) -> None:
    """Raises `ForeignStorageError` or `NewerFormatError` unless a head says it is one of ours."""
    if found is None or not found.isdigit():
        raise ForeignStorageError(f"{shown}: the keys of this prefix are another program's; nothing was changed")
    if found != scripts.FORMAT:
        raise NewerFormatError(
            f"{shown}: this place has layout {found.decode()}, and this version knows {scripts.FORMAT.decode()}"
        )


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Its result. A caller that is cancelled waits too: what was sent must not land after what is sent next."""
    task = asyncio.get_running_loop().create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()
        raise

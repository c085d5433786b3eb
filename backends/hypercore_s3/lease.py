"""The head: who may write, and where from on the commits count. It moves by conditional PUTs only.

It must not know what the commits say. Clocks decide only when it is polite to take the lease from somebody; that
two writers never both succeed rests on the conditions alone. docs/decisions/s3-layout.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

from hypercore.errors import FencedError, HypercoreError, LockedError, StorageError
from hypercore_s3.layout import HEAD, Head, Pointer, decode_head, encode_head, probe_name
from hypercore_s3.objects import ConditionFailedError, ObjectMissingError
from hypercore_s3.place import Place

#: Larger than any head; what is larger is something else.
HEAD_SIZE_MAX: Final = 64 * 1024
#: Somebody who changes the head so often between our look and our PUT is not worth waiting for.
TRIES_MAX: Final = 10


class HeadGoneError(StorageError):
    """The head is not there any more: what it said last has to be found out before there can be a new one."""


class FoundHead(NamedTuple):
    """The head as it lies there."""

    head: Head
    etag: str
    age_seconds: float


async def read_head(place: Place) -> FoundHead | None:
    """None when there is none. Raises `CorruptError`, `NewerFormatError`."""
    try:
        found = await place.get(HEAD, size=HEAD_SIZE_MAX)
    except ObjectMissingError:
        return None
    return FoundHead(decode_head(found.data), found.etag, found.age_seconds)


class Lease:
    """The right of one storage object, `owner`, to move the head of one place."""

    def __init__(self, place: Place, *, title: str, owner: bytes, lease_seconds: float, take_over: bool) -> None:
        self._place = place
        self._title = title
        self.owner = owner
        #: Two processes of one owner would take each other's commits for their own.
        self._pid = os.getpid()
        self._lease_seconds = lease_seconds
        self._take_over = take_over
        self._moving = asyncio.Lock()
        self._etag = ""
        #: The head as we last put it; None without the lease.
        self.head: Head | None = None
        #: Raised with each move.
        self.moves = 0
        #: Whether nobody has written since we did; asked when the head, which would say it, is gone.
        self.is_last: Callable[[], Awaitable[bool]] | None = None

    @property
    def epoch(self) -> int:
        assert self.head is not None
        return self.head.epoch

    @property
    def is_copied(self) -> bool:
        """Whether this process was made by fork since."""
        return os.getpid() != self._pid

    def check_process(self) -> None:
        """Raises `StorageError` in a process that was made by fork while the lease was held."""
        if self.is_copied and self.head is not None:
            raise StorageError(
                f"{self._title} was opened for writing by process {self._pid}, of which this one, {os.getpid()}, is a "
                "copy; two of them cannot write. Open the storage anew in the process that shall write"
            )

    # ---- taking it ------------------------------------------------------------------------------------

    async def take(self, found: FoundHead | None, *, lost: tuple[Pointer | None, int] = (None, 0)) -> FoundHead:
        """Become the one who moves the head. `lost` is what a missing head must have said at least: the checkpoint
        and the epoch.

        Raises `LockedError` when somebody else has the lease, `StorageError` when nothing can be written safely.
        """
        if self.is_copied:
            self.owner, self._pid = os.urandom(len(self.owner)), os.getpid()
        for _ in range(TRIES_MAX):
            if found is not None:
                self.check_free(found)
            proved = self._place.client.place
            if found is None or found.head.proved != proved:
                await prove_conditions(self._place, self.owner)
            checkpoint, epoch = lost if found is None else (found.head.checkpoint, found.head.epoch)
            head = Head(
                owner=self.owner.hex(),
                host=socket.gethostname(),
                pid=os.getpid(),
                process=this_process(),
                epoch=epoch + 1,
                lease_seconds=self._lease_seconds,
                released=False,
                checkpoint=checkpoint,
                proved=proved,
                beat=0 if found is None else found.head.beat + 1,
            )
            try:
                etag = await self._put(head, None if found is None else found.etag)
            except (ConditionFailedError, ObjectMissingError) as error:
                found = await read_head(self._place)
                if found is None:
                    raise HeadGoneError(
                        f"{self._title}: object {HEAD} was removed while the lease was taken; try again"
                    ) from error
            except StorageError:
                # Its answer may be what was lost.
                found = await read_head(self._place)
                if found is None or found.head != head:
                    raise
            else:
                found = FoundHead(head, etag, 0.0)
            if found is not None and found.head == head:
                self.head, self._etag = head, found.etag
                self.moves += 1
                return found
        raise LockedError(f"{self._title}: others take the lease again and again")

    async def _put(self, head: Head, etag: str | None) -> str:
        return await self._place.put(HEAD, [encode_head(head)], if_absent=etag is None, if_etag=etag)

    def check_free(self, found: FoundHead) -> None:
        """Raises `LockedError` when the head says that another writer may be at work."""
        head = found.head
        left = head.lease_seconds - found.age_seconds
        if (
            head.released
            or head.owner == self.owner.hex()
            or left < 0
            or self._take_over
            or (head.process and has_ended(head.process))
        ):
            return
        raise LockedError(
            f"{self._title} is held by another writer (process {head.pid} on {head.host}), which was heard of "
            f"{found.age_seconds:.0f} s ago; close that one, or wait {left + 1:.0f} s if it is gone, or take over "
            "with take_over=True"
        )

    async def is_ours(self) -> bool:
        """Whether the head is still the one that was put last, or an earlier one of ours."""
        assert self.head is not None
        found = await read_head(self._place)
        return found is not None and (found.head.owner, found.head.epoch) == (self.head.owner, self.head.epoch)

    # ---- having it ------------------------------------------------------------------------------------

    async def move(self, change: Callable[[Head], Head] = lambda head: head) -> None:
        """Replace the head by what `change` makes of it; without one only to be heard of.

        Raises `FencedError` when somebody else has the lease by now, and `StorageError` when it is not known
        whether the head has moved.
        """
        async with self._moving:
            assert self.head is not None
            head = change(replace(self.head, beat=self.head.beat + 1))
            etag: str | None = self._etag
            for _ in range(TRIES_MAX):
                try:
                    self._etag = await self._put(head, etag)
                except StorageError as error:
                    found = await read_head(self._place)
                    if found is not None and found.head == head:
                        # It had moved, and the answer was lost.
                        self._etag = found.etag
                    elif found is not None and (found.head.owner, found.head.epoch) != (head.owner, head.epoch):
                        raise self.fenced(found.head) from error
                    elif not isinstance(error, ConditionFailedError | ObjectMissingError):
                        raise
                    else:
                        # An earlier move, given up, has arrived late; or somebody removed the head.
                        etag = None if found is None else found.etag
                        if found is None and self.is_last is not None and not await self.is_last():
                            raise self.fenced() from error
                        if found is not None:
                            head = replace(head, beat=max(head.beat, found.head.beat) + 1)
                        continue
                self.head = head
                self.moves += 1
                return
        raise StorageError(f"{self._title}: the head changes again and again, and not by another writer")

    def fenced(self, by: Head | None = None) -> FencedError:
        """What a writer is told who was replaced."""
        who = "" if by is None else f" (process {by.pid} on {by.host})"
        return FencedError(
            f"{self._title}: another writer{who} took over while this one was away, so this one cannot write any "
            "more; open the storage again to take its turn"
        )

    async def release(self) -> None:
        """Let the next writer in at once. Whoever cannot is replaced when the lease has run out."""
        if self.head is not None and not self.head.released:
            with contextlib.suppress(HypercoreError):
                await self.move(lambda head: replace(head, released=True))
        self.head = None

    async def withdraw(self) -> None:
        """Remove the head that was made where none was: it does not say what the one did that was lost."""
        with contextlib.suppress(HypercoreError):
            if await self.is_ours():
                await self._place.delete([HEAD])
        self.head = None


# ---- can this endpoint be trusted? -------------------------------------------------------------------


async def prove_conditions(place: Place, owner: bytes) -> None:
    """Try on an object of no worth whether conditional writes are refused when they should be.

    Raises `StorageError` that names the endpoint when they are not: two writers would overwrite each other there.
    """
    name, pieces = probe_name(owner), [b"whether this endpoint honours conditional writes"]
    etag = await place.put(name, pieces)
    ignored = []
    try:
        for condition, header in ((None, "If-None-Match"), (_another(etag), "If-Match")):
            try:
                await place.put(name, pieces, if_absent=condition is None, if_etag=condition)
            except (ConditionFailedError, ObjectMissingError):
                continue
            ignored.append(header)
    finally:
        with contextlib.suppress(StorageError):
            await place.delete([name])
    if ignored:
        raise StorageError(
            f"{place.client.place} ignores {' and '.join(ignored)} of a PUT, so nothing keeps two writers there from "
            "overwriting each other; it can be read from, but not written to"
        )


def _another(etag: str) -> str:
    """An ETag of the same shape that is not this one."""
    for position, character in enumerate(etag):
        if character.isalnum():
            return etag[:position] + ("1" if character == "0" else "0") + etag[position + 1 :]
    return etag + "0"


# ---- is the other one still alive? ----------------------------------------------------------------


def this_process() -> str:
    """What tells this process apart from all others of this machine, or nothing where that cannot be told."""
    with contextlib.suppress(OSError):
        return f"{_machine()} {os.getpid()} {_start_of(os.getpid())}"
    return ""


def has_ended(process: str) -> bool:
    """Whether a process of this very machine, since it was started, is there no longer. False also means unknown."""
    machine, _, rest = process.rpartition(" ")
    machine, _, pid = machine.rpartition(" ")
    try:
        if not pid.isdecimal() or machine != _machine():
            return False
        try:
            return _start_of(int(pid)) != rest
        except FileNotFoundError:
            return True
    except OSError:
        return False


def _machine() -> str:
    """One boot of one machine and one space of process numbers, which containers have of their own."""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"


def _start_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]

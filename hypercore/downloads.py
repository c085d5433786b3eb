"""Downloads: ranges of blocks that are wanted whether or not anybody reads them yet.

Shell floor: a handle over the replicator's `Download` that knows when it is complete.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from hypercore.errors import BlockNotAvailableError, ClosedError, WaitTimeoutError
from hypercore.log.engine import Log, LogChange
from hypercore.peer import DROPPING, STORING
from hypercore.protocol.wanted import Download as Wanted
from hypercore.replication import Hub


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a download is: `have` of `want` blocks are here."""

    have: int
    want: int


class Download:
    """A running download, made by `Hypercore.download`. It goes on until it is done or `destroy` is called."""

    def __init__(
        self, log: Log, hub: Hub, *, start: int, end: int | None, blocks: Iterable[int] | None, linear: bool = False
    ) -> None:
        self._log = log
        self._hub = hub
        self._blocks = frozenset(blocks) if blocks is not None else None
        chosen = sorted(self._blocks) if self._blocks is not None else None
        self._wanted = Wanted(start, end, chosen, linear)
        self._start, self._end_block = start, end
        self._waiters: list[asyncio.Future[None]] = []
        self._is_destroyed = self._is_done = False
        if self._blocks is not None:
            self._want = len(self._blocks)
            self._have = sum(log.has(index) for index in self._blocks)
        else:
            self._want = 0 if end is None else end - start
            self._have = log.bitfield.count(start, end if end is not None else log.length)
        hub.on_change.append(self._changed)
        hub.replicator.add_download(self._wanted)
        hub.pump()
        self._finish_if_done()

    @property
    def progress(self) -> Progress:
        """Blocks here and blocks wanted; for a download without end, wanted is the length as it is known now."""
        return Progress(self._have, self._want if self._is_bounded else max(0, self._log.length - self._start))

    @property
    def _is_bounded(self) -> bool:
        return self._end_block is not None or self._blocks is not None

    @property
    def is_done(self) -> bool:
        """Whether every wanted block has come; never for a download without end."""
        return self._is_done

    async def done(self, *, timeout: float | None = None) -> None:
        """Wait until every wanted block is here.

        Raises `BlockNotAvailableError` when nobody is left who could deliver them and nobody is being looked for,
        `ClosedError` when the core was closed, and `WaitTimeoutError` after `timeout` seconds.
        """
        try:
            async with asyncio.timeout(timeout):
                while not self._is_done:
                    self._check_hopeful()
                    await self._change()
        except TimeoutError as error:
            raise WaitTimeoutError(f"{self._missing()} after {timeout} seconds") from error

    def _check_hopeful(self) -> None:
        if self._is_destroyed:
            raise BlockNotAvailableError("the download was destroyed before it was done")
        if self._hub.closed:
            raise ClosedError("the core was closed before the download was done")
        if not self._hub.may_have_peers:
            raise BlockNotAvailableError(f"{self._missing()}, and there is no peer and no search for one")

    def _missing(self) -> str:
        have, want = self.progress.have, self.progress.want
        return f"{want - have} of {want} blocks are missing"

    async def _change(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def destroy(self) -> None:
        """Stop wanting these blocks. Twice is fine."""
        self._is_destroyed = True
        self._end()

    def _finish_if_done(self) -> None:
        if self._is_bounded and self._have >= self._want:
            self._is_done = True
            self._end()

    def _end(self) -> None:
        """Want nothing any more, and hear of nothing."""
        self._hub.replicator.remove_download(self._wanted)
        if self._changed in self._hub.on_change:
            self._hub.on_change.remove(self._changed)
        self._wake()

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    def _changed(self, change: LogChange | None) -> None:
        if change is None:
            if not self._hub.may_have_peers:
                self._wake()
            return
        start, end = change.start, change.end
        if change.kind in DROPPING:
            # Blocks may have been here or not; count anew, it is rare.
            self._recount()
            if self._is_bounded:
                self._hub.replicator.look_again(self._wanted, start)
                self._hub.pump()
        elif change.kind in STORING:
            if self._blocks is not None:
                self._have += sum(index in self._blocks for index in range(start, end))
            else:
                last = end if self._end_block is None else min(end, self._end_block)
                self._have += max(0, last - max(start, self._start))
        self._finish_if_done()

    def _recount(self) -> None:
        if self._blocks is not None:
            self._have = sum(self._log.has(index) for index in self._blocks)
        else:
            end = self._log.length if self._end_block is None else self._end_block
            self._have = self._log.bitfield.count(self._start, end)

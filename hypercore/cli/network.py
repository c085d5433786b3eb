"""Commands that talk to peers: serve, clone, follow, and copy, whose peer is in the same process."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from hypercore.cli.console import CommandError, Output, Progress, complain, count_of
from hypercore.cli.local import check_persistent, reader_of
from hypercore.core import Hypercore
from hypercore.downloads import Download
from hypercore.duplex import stream_pair
from hypercore.errors import BlockNotAvailableError, FormatError, ProtocolError, StorageError, WaitTimeoutError
from hypercore.events import PeerAdded, PeerRemoved
from hypercore.log.engine import LogChange
from hypercore.swarm import Swarm
from hypercore.urls import Address, hide_secrets, parse_address

#: How often a wait looks whether it is stuck.
TICK_SECONDS: Final = 0.1
#: What is in flight is here by then, when the other blocks cannot be had.
DAMAGE_SECONDS: Final = 1.0
#: Ranges of a log with holes that are fetched at once.
MOST_RANGES: Final = 64


class _News:
    """Wakes a command when anything changes in a core: a block, the length, a peer."""

    def __init__(self, core: Hypercore) -> None:
        self._hooks = core.hub.on_change
        self._event = asyncio.Event()
        #: The lowest block from which on the writer took blocks back, since it was last set to None.
        self.cut: int | None = None

    def __enter__(self) -> _News:
        self._hooks.append(self._changed)
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.remove(self._changed)

    def _changed(self, change: LogChange | None) -> None:
        if change is not None and change.kind == "truncate":
            self.cut = change.start if self.cut is None else min(self.cut, change.start)
        self._event.set()

    async def wait(self, timeout_seconds: float | None = None) -> None:
        """Return at a change since the last return, or when the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._event.wait()
        self._event.clear()


# ---- serve ----------------------------------------------------------------------------------------


async def serve(options: argparse.Namespace, output: Output) -> None:
    async with (
        Hypercore(options.storage, create_if_missing=False) as core,
        Swarm(*options.listen) as swarm,
    ):
        swarm.join(core)
        key, addresses = core.key.hex(), swarm.addresses
        await output.report(
            {"key": key, "discovery_key": core.discovery_key.hex(), "addresses": addresses},
            f"key      {key}",
            f"length   {count_of(core.length, 'block')}, {count_of(core.byte_length, 'byte')}",
            *(f"address  {address}" for address in addresses),
            f"try      hypercore clone {key} ./copy --from {addresses[0]}",
        )
        if os.isatty(2) and not options.json:
            await _tell_of_peers(core)
        else:
            await asyncio.Event().wait()


async def _tell_of_peers(core: Hypercore) -> None:
    async for event in core.events():
        match event:
            case PeerAdded(peer):
                complain(f"{peer.remote_address} is here")
            case PeerRemoved(peer):
                complain(f"{peer.remote_address} is gone; it was sent {count_of(peer.blocks_sent, 'block')}")


# ---- clone and copy -------------------------------------------------------------------------------


async def clone(options: argparse.Namespace, output: Output) -> None:
    began = time.monotonic()
    async with Hypercore(options.storage, options.key) as core, Swarm(peers=options.peers) as swarm:
        swarm.join(core)
        with _resumable(core, quiet=options.json) as progress:
            await _meet(core, swarm, options, progress)
            await _fetch(core, lambda: [(0, core.length)], options.timeout, progress)
        await _summary("cloned", core, began, output)


async def copy(options: argparse.Namespace, output: Output) -> None:
    began = time.monotonic()
    check_persistent(options.source, options.destination)
    from_, to = hide_secrets(options.source), hide_secrets(options.destination)
    if _place(options.source) == _place(options.destination):
        raise CommandError(f"{from_} is both the source and the destination")
    async with _named(reader_of(options.source), from_) as source:
        keys: dict[str, Any] = {}
        if options.with_secret_key:
            if source.key_pair is None:
                raise CommandError(f"{from_} has no secret key to copy")
            keys = {"key_pair": source.key_pair, "manifest": source.manifest}
        async with _named(Hypercore(options.destination, source.key, **keys), to) as core:
            if (core.fork, core.length) > (source.fork, source.length):
                raise CommandError(
                    f"{to} is ahead: {count_of(core.length, 'block')} of fork {core.fork}, "
                    f"and {from_} has {source.length:,} of fork {source.fork}"
                )
            if options.with_secret_key and core.key_pair is None:
                raise CommandError(f"{to} already holds a reader's copy, which cannot become a writer")
            ours, theirs = stream_pair(from_, to)
            async with source.replicate(theirs, initiator=False), core.replicate(ours, initiator=True):
                with _resumable(core, quiet=options.json) as progress:
                    await _catch_up(core, source, options.timeout)
                    await _fetch(core, lambda: _held(source), options.timeout, progress, source=source)
            await _summary("copied", core, began, output)


def _place(address: str) -> Address:
    """The address, with one name for one folder."""
    place = parse_address(address)
    return replace(place, path=os.path.realpath(place.path)) if place.scheme == "file" else place


@contextlib.asynccontextmanager
async def _named(core: Hypercore, where: str) -> AsyncIterator[Hypercore]:
    """`core`, open; when it cannot be opened, of two storages it is said which."""
    try:
        await core.ready()
    except (StorageError, FormatError) as error:
        raise CommandError(f"{where}: {error}") from error
    async with core:
        yield core


@contextlib.contextmanager
def _resumable(core: Hypercore, *, quiet: bool) -> Iterator[Progress]:
    """Shows progress, and says what is here when a signal ends the job."""
    progress = Progress("blocks", quiet=quiet)
    try:
        yield progress
    except asyncio.CancelledError:
        have, want = core.hub.log.bitfield.count(0, core.length), core.length
        raise CommandError(
            f"interrupted with {have:,} of {want:,} blocks; the same command goes on from here"
        ) from None
    finally:
        progress.clear()


def _held(core: Hypercore) -> Iterator[tuple[int, int]]:
    """The runs of blocks, (start, end), that are stored here."""
    return ((start, start + count) for start, count in core.hub.log.bitfield.runs(0, core.length))


async def _summary(done: str, core: Hypercore, began: float, output: Output) -> None:
    seconds = time.monotonic() - began
    stored = core.hub.log.bitfield.count(0, core.length)
    much = f"{count_of(stored, 'block')}, {count_of(core.byte_length, 'byte')}"
    if stored < core.length:  # A copy of what had holes itself.
        much = f"{stored:,} of {count_of(core.length, 'block')}, all that the source holds"
    await output.report(
        {
            "key": core.key.hex(),
            "length": core.length,
            "byte_length": core.byte_length,
            "fork": core.fork,
            "seconds": round(seconds, 3),
        },
        f"{done} {much}, every one verified, in {seconds:.2f} seconds",
    )


async def _meet(core: Hypercore, swarm: Swarm, options: argparse.Namespace, progress: Progress) -> None:
    """Wait for a peer that has the core, and for what it says of the length. Raises `CommandError` if nobody comes."""
    ends = time.monotonic() + options.timeout
    with _News(core) as news:
        while not core.peers:
            everybody_answered = not core.hub.may_have_peers and len(swarm.connections()) == len(options.peers)
            reasons = "; ".join(_reason(swarm, address, options.peers) for address in options.peers)
            if time.monotonic() >= ends or everybody_answered:
                raise CommandError(f"nobody delivers core {core.key.hex()}: {reasons}")
            progress.say(f"waiting for a peer: {reasons}")
            await news.wait(TICK_SECONDS)
    with contextlib.suppress(WaitTimeoutError):
        await core.update(timeout=options.timeout)


def _reason(swarm: Swarm, address: str, addresses: Sequence[str]) -> str:
    """Why there is no peer at `address`, one of the `addresses` that are dialled."""
    error = swarm.dial_errors.get(address)
    if isinstance(error, ProtocolError):
        return f"{address} is no peer that we understand: {error}"
    if error is not None:
        return str(error) if address in str(error) else f"{address}: {error}"
    answered = [connection.remote_address for connection in swarm.connections()]
    if address in answered or len(answered) == len(addresses):
        return f"{address} does not have it"
    return f"{address} has not answered yet; is it a peer?"


async def _catch_up(core: Hypercore, source: Hypercore, timeout_seconds: float) -> None:
    """Wait until `core` is as long as `source`, which is its peer in this process."""
    ends = time.monotonic() + timeout_seconds
    while (core.fork, core.length) != (source.fork, source.length):
        if time.monotonic() >= ends:
            raise CommandError(f"the copy did not reach the source's length of {source.length} blocks")
        await core.update(timeout=timeout_seconds)
        await asyncio.sleep(0)


async def _fetch(
    core: Hypercore,
    ranges: Callable[[], Iterable[tuple[int, int]]],
    timeout_seconds: float,
    progress: Progress,
    *,
    source: Hypercore | None = None,
) -> None:
    """Fetch all `ranges` of (start, end); begin anew when the writer goes back to another fork meanwhile.

    Raises `CommandError` when no block came for `timeout_seconds`; when `source`, the only peer, complains of damage
    it is over sooner.
    """
    while True:
        fork = core.fork
        remaining = iter(ranges())
        while group := list(itertools.islice(remaining, MOST_RANGES)):
            downloads = [core.download(start, end) for start, end in group]
            try:
                for download in downloads:
                    await _finish(core, download, timeout_seconds, progress, source)
            finally:
                for download in downloads:
                    download.destroy()
        if core.fork == fork:
            return


async def _finish(
    core: Hypercore, download: Download, timeout_seconds: float, progress: Progress, source: Hypercore | None
) -> None:
    fork, stored, since = core.fork, -1, 0.0
    while not download.is_done and core.fork == fork:
        count = core.hub.log.bitfield.count(0, core.length)
        if core.peers:
            progress.show(count, core.length)
        else:
            progress.say(f"{count:,} of {core.length:,} blocks; the peer is gone, and is dialled again")
        damage = tuple(source.hub.warnings) if source is not None else ()
        if count != stored:
            stored, since = count, time.monotonic()
        elif time.monotonic() - since >= (min(timeout_seconds, DAMAGE_SECONDS) if damage else timeout_seconds):
            have, want = download.progress.have, download.progress.want
            why = "; ".join(damage) or (
                f"nothing came for {timeout_seconds:g} seconds from {count_of(len(core.peers), 'peer')}"
            )
            raise CommandError(
                f"{want - have:,} of {want:,} blocks are missing: {why}; the same command goes on from here"
            )
        try:
            await download.done(timeout=TICK_SECONDS)
        except TimeoutError:
            continue
        except BlockNotAvailableError:
            await asyncio.sleep(TICK_SECONDS)  # The peer is gone, and is being dialled again.


# ---- follow ---------------------------------------------------------------------------------------


async def follow(options: argparse.Namespace, output: Output) -> None:
    task = asyncio.current_task()
    assert task is not None
    output.watch_closing(task.cancel)
    async with Hypercore(options.storage, options.key) as core, Swarm(peers=options.peers) as swarm:
        swarm.join(core)
        progress = Progress("blocks", quiet=options.json)
        try:
            await _meet(core, swarm, options, progress)
        finally:
            progress.clear()
        start = core.length if options.start is None else options.start
        if os.isatty(2) and not options.json:
            complain(f"connected; printing from block {start:,} on")
        async for index, block in _new_blocks(core, start, output.flush):
            if output.as_json:
                value = {"index": index, "length": core.length, "size": len(block), "hex": block.hex()}
                await output.value(value)
            else:
                await output.write(block if block.endswith(b"\n") else block + b"\n")


async def _new_blocks(core: Hypercore, start: int, pause: Callable[[], Any]) -> AsyncIterator[tuple[int, bytes]]:
    """Every block from `start` on as it arrives. When the writer goes back, so does this. `pause` is awaited before
    each wait."""
    index = start
    download = core.download(start)
    try:
        with _News(core) as news:
            while True:
                while await core.has(index):
                    yield index, await core.get_raw(index)
                    index += 1
                    if news.cut is not None:
                        index, news.cut = min(index, news.cut), None
                await pause()
                await news.wait()
                if news.cut is not None:
                    index, news.cut = min(index, news.cut), None
    finally:
        download.destroy()

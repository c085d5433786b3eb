"""Commands that talk to peers: serve, clone, follow, and copy, which needs none."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, Final

from hypercore.cli.console import CommandError, Output, Progress, complain, count_of
from hypercore.cli.local import check_persistent, reader_of
from hypercore.copying import Copied, is_same_place
from hypercore.copying import copy as copy_log
from hypercore.core import Hypercore
from hypercore.downloads import Download
from hypercore.errors import (
    BlockNotAvailableError,
    FormatError,
    ProtocolError,
    StorageConflictError,
    StorageMissingError,
    WaitTimeoutError,
)
from hypercore.events import PeerAdded, PeerRemoved
from hypercore.log.engine import LogChange
from hypercore.plugins import finds_peers
from hypercore.storage_peers import address_for, is_storage_peer
from hypercore.swarm import Swarm
from hypercore.urls import hide_secrets

#: How often a wait looks whether it is stuck.
TICK_SECONDS: Final = 0.1
#: What is in flight is here by then, when the other blocks cannot be had.
DAMAGE_SECONDS: Final = 1.0
#: Whoever is on the local network is found in one second; who is not found by then makes people wonder.
DOCTOR_SECONDS: Final = 4.0
#: What is wrong with a storage that is a peer, and will be so in a moment, too.
LASTING: Final = (FormatError, StorageMissingError)


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
        await tell_addresses(core, swarm, options, output)
        await until_interrupted(core, options)


async def tell_addresses(core: Hypercore, swarm: Swarm, options: argparse.Namespace, output: Output) -> None:
    """Say what a reader needs."""
    key, addresses = core.key.hex(), swarm.addresses
    await output.report(
        {"key": key, "discovery_key": core.discovery_key.hex(), "addresses": addresses},
        f"key      {key}",
        f"length   {count_of(core.length, 'block')}, {count_of(core.byte_length, 'byte')}",
        *_where(addresses, options),
        f"try      hypercore clone {key} ./copy {_way_to(addresses, options)}",
    )


def _where(addresses: Sequence[str], options: argparse.Namespace) -> Iterator[str]:
    """Where it is served, for people."""
    if any(map(finds_peers, options.listen)):
        # By how many addresses this machine is reached there is discovery's business, and changes.
        ports = dict.fromkeys(address.rpartition(":")[2] for address in addresses)
        yield f"lan      found by its key on the local network; TCP port {', '.join(ports)}"
    if not all(map(finds_peers, options.listen)):
        yield from (f"address  {address}" for address in addresses)


def _way_to(addresses: Sequence[str], options: argparse.Namespace) -> str:
    """How a reader reaches what is served."""
    return "--lan" if any(map(finds_peers, options.listen)) else f"--from {addresses[0]}"


async def until_interrupted(core: Hypercore, options: argparse.Namespace) -> None:
    """Go on serving; on a terminal tell who comes and goes."""
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
    with _resumable(quiet=options.json) as job:
        async with _replicated(options, job) as (core, swarm):
            await _fetch(core, swarm, options, job)
            await _summary("cloned", core, core.length, began, output)


async def copy(options: argparse.Namespace, output: Output) -> None:
    began = time.monotonic()
    check_persistent(options.source, options.destination)
    _refuse_same(options.source, options.destination)
    with _resumable(quiet=options.json) as job:
        copied = await copy_log(
            options.source, options.destination, with_secret_key=options.with_secret_key, on_progress=job.show
        )
    old = copied.stored_blocks - copied.copied_blocks
    await _summary("copied", copied, copied.copied_blocks, began, output, old)


def _refuse_same(source: str, destination: str) -> None:
    if is_same_place(source, destination):
        raise CommandError(f"{hide_secrets(source)} is both the source and the destination")


class _Job(Progress):
    """Progress in blocks, for a job that can be interrupted and gone on with."""

    def __init__(self, *, quiet: bool) -> None:
        super().__init__("blocks", quiet=quiet)
        self._have = self._want = 0
        #: The core that is being filled, once there is one.
        self.core: Hypercore | None = None

    def show(self, have: int, want: int | None) -> None:
        self._have, self._want = have, want or 0
        super().show(have, want)

    def __str__(self) -> str:
        if self.core is not None:
            self._have, self._want = self.core.hub.log.bitfield.count(0, self.core.length), self.core.length
        return f"{self._have:,} of {self._want:,} blocks"


@contextlib.contextmanager
def _resumable(*, quiet: bool) -> Iterator[_Job]:
    """Shows progress, and says what is here when a signal ends the job."""
    job = _Job(quiet=quiet)
    try:
        yield job
    except asyncio.CancelledError:
        raise CommandError(f"interrupted with {job}; the same command goes on from here") from None
    finally:
        job.clear()


async def _summary(done: str, core: Hypercore | Copied, new: int, began: float, output: Output, old: int = 0) -> None:
    """`new` blocks were stored by this command, `old` ones were there already."""
    seconds = time.monotonic() - began
    much = count_of(new, "block")
    if new == core.length:
        much += f", {count_of(core.byte_length, 'byte')}"
    elif new + old < core.length:  # A copy of what had holes itself.
        much = f"{new:,} of {count_of(core.length, 'block')}, all that the source holds"
    there = f"; {old:,} were there already" if old else ""
    await output.report(
        {
            "key": core.key.hex(),
            "length": core.length,
            "byte_length": core.byte_length,
            "fork": core.fork,
            "seconds": round(seconds, 3),
        },
        f"{done} {much}, every one verified, in {seconds:.2f} seconds{there}",
    )


# ---- meeting peers --------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _replicated(options: argparse.Namespace, job: _Job) -> AsyncIterator[tuple[Hypercore, Swarm]]:
    """The core in STORAGE, with a peer that has it.

    A storage that is empty stays so until somebody is met who knows the key: after a mistyped one, or when nobody is
    there, nothing is left that would be in the way of the next command.
    """
    for address in options.peers:
        if is_storage_peer(address):
            _refuse_same(address, options.storage)
    places = [address for address in options.peers if finds_peers(address)]
    async with Swarm(*places, peers=[address for address in options.peers if address not in places]) as swarm:
        if not await _holds_core(options.storage):
            async with Hypercore("memory:", options.key) as scout:
                swarm.join(scout)
                await _meet(scout, swarm, options, job)
        async with Hypercore(options.storage, options.key) as core:
            swarm.join(core)
            await _meet(core, swarm, options, job)
            job.core = core
            yield core, swarm


async def _holds_core(address: str) -> bool:
    try:
        async with reader_of(address):
            return True
    except StorageMissingError:
        return False


async def _meet(core: Hypercore, swarm: Swarm, options: argparse.Namespace, progress: Progress) -> None:
    """Wait for a peer that has the core, and for the length that it can prove.

    Raises `CommandError` if nobody comes, or nobody can prove what he says that he has.
    """
    began = time.monotonic()
    ends, doctor_at = began + options.timeout, began + min(DOCTOR_SECONDS, options.timeout / 2)
    addresses = [address_for(address, core.key, core.discovery_key) for address in options.peers]
    finds = any(map(finds_peers, addresses))
    with _News(core) as news:
        while not core.peers:
            hopeless = sum(isinstance(swarm.dial_errors.get(address), LASTING) for address in addresses)
            everybody_answered = not finds and len(swarm.connections()) + hopeless == len(addresses)
            reasons = _reasons(swarm, addresses)
            if time.monotonic() >= ends or (everybody_answered and not core.hub.may_have_peers):
                raise CommandError(f"nobody delivers core {core.key.hex()}: {reasons}")
            if finds and time.monotonic() >= doctor_at:
                doctor_at = math.inf
                progress.clear()
                complain(f"{reasons}; `hypercore lan doctor {core.key.hex()}` says why")
            progress.say(f"waiting for a peer: {reasons}")
            await news.wait(TICK_SECONDS)
    try:
        await core.update(timeout=options.timeout)
        _check_proven(core, is_over=False)
    except WaitTimeoutError:
        _check_proven(core, is_over=True)


def _check_proven(core: Hypercore, *, is_over: bool) -> None:
    """Refuse to go on with less than all peers claim, once they had their time or can say no more."""
    claims = [
        f"{peer.remote_address} has {count_of(peer.remote_length, 'block')} and proves {core.length:,}"
        for peer in core.peers
        if (peer.remote_fork, peer.remote_length) > (core.fork, core.length)
        and (is_over or peer.remote.paused or not peer.remote.can_upgrade)
    ]
    if claims and len(claims) == len(core.peers):
        raise CommandError(f"nobody delivers core {core.key.hex()}: {'; '.join(claims)}")


def _reasons(swarm: Swarm, addresses: Sequence[str]) -> str:
    return "; ".join(_reason(swarm, address, addresses) for address in addresses)


def _reason(swarm: Swarm, address: str, addresses: Sequence[str]) -> str:
    """Why there is no peer at `address`, one of the `addresses` that are dialled."""
    error, name = swarm.dial_errors.get(address), hide_secrets(address)
    if finds_peers(address):
        failed = [str(info.error) for info in swarm.peers if info.error is not None]
        return "; ".join(failed) or "nobody on this network has announced this log yet"
    if isinstance(error, ProtocolError):
        return f"{name} is no peer that we understand: {error}"
    if isinstance(error, StorageConflictError):
        return f"{name}: {str(error).partition(';')[0]}"  # What it advises is for a storage of ours.
    if error is not None:
        return str(error) if name in str(error) else f"{name}: {error}"
    answered = [connection.remote_address for connection in swarm.connections()]
    if name in answered or len(answered) == len(addresses):
        return f"{name} does not have it"
    return f"{name} has not answered yet; is it a peer?"


# ---- fetching -------------------------------------------------------------------------------------


async def _fetch(core: Hypercore, swarm: Swarm, options: argparse.Namespace, job: _Job) -> None:
    """Fetch every block; begin anew when the writer goes back to another fork meanwhile.

    Raises `CommandError` when no block came for the time that the user gave.
    """
    while True:
        fork = core.fork
        download = core.download(0, core.length)
        try:
            await _finish(core, swarm, download, options, job)
        finally:
            download.destroy()
        if core.fork == fork:
            return


async def _finish(core: Hypercore, swarm: Swarm, download: Download, options: argparse.Namespace, job: _Job) -> None:
    only_storages = all(map(is_storage_peer, options.peers))
    fork, stored, since = core.fork, -1, 0.0
    known: set[str] = set()
    while not download.is_done and core.fork == fork:
        count = core.hub.log.bitfield.count(0, core.length)
        if core.peers:
            job.show(count, core.length)
        else:
            job.say(f"{count:,} of {core.length:,} blocks; the peer is gone, and is dialled again")
        # A peer may come back, a damaged block of a storage does not.
        damage = tuple(core.hub.warnings) if only_storages else ()
        if count != stored or not known.issuperset(damage):
            # Much damage in a row takes its time, and what lies behind it may be whole.
            stored, since = count, time.monotonic()
            known.update(damage)
        elif time.monotonic() - since >= (min(options.timeout, DAMAGE_SECONDS) if damage else options.timeout):
            have, want = download.progress.have, download.progress.want
            raise CommandError(
                f"{want - have:,} of {want:,} blocks are missing: {_why_stuck(core, swarm, options, damage)}; "
                "the same command goes on from here"
            )
        try:
            await download.done(timeout=TICK_SECONDS)
        except TimeoutError:
            continue
        except BlockNotAvailableError:
            await asyncio.sleep(TICK_SECONDS)  # The peer is gone, and is being dialled again.


def _why_stuck(core: Hypercore, swarm: Swarm, options: argparse.Namespace, damage: Sequence[str]) -> str:
    if damage:
        return damage[0] + (f", and {len(damage) - 1} more" if len(damage) > 1 else "")
    nothing = f"nothing came for {options.timeout:g} seconds from {count_of(len(core.peers), 'peer')}"
    return "; ".join([nothing, *(hide_secrets(str(error)) for error in swarm.dial_errors.values())])


# ---- follow ---------------------------------------------------------------------------------------


async def follow(options: argparse.Namespace, output: Output) -> None:
    task = asyncio.current_task()
    assert task is not None
    output.watch_closing(task.cancel)
    job = _Job(quiet=options.json)
    try:
        async with _replicated(options, job) as (core, _swarm):
            job.clear()
            start = core.length if options.start is None else options.start
            if os.isatty(2) and not options.json:
                complain(f"connected; printing from block {start:,} on")
            async for index, block in _new_blocks(core, start, output.flush):
                if output.as_json:
                    value = {"index": index, "length": core.length, "size": len(block), "hex": block.hex()}
                    await output.value(value)
                else:
                    await output.write(block if block.endswith(b"\n") else block + b"\n")
    finally:
        job.clear()


async def _new_blocks(core: Hypercore, start: int, pause: Callable[[], Any]) -> AsyncIterator[tuple[int, bytes]]:
    """Every block from `start` on as it arrives. When the writer goes back, so does this. `pause` is awaited before
    each wait."""
    index = start
    download = core.download(start, linear=True)
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

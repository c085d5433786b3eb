"""The mirror command: it tells people, or a program, how the mirror is, and tells the mirror its keys."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
from collections.abc import Iterator
from typing import Any, Final

from hypercore.cli.console import CommandError, Output, Progress, complain, count_of, describe_os_error, progress_line
from hypercore.cli.keys import KeyList
from hypercore.cli.network import DOCTOR_SECONDS
from hypercore.errors import OptionError
from hypercore.mirrors.mirror import Mirror
from hypercore.mirrors.status import CoreStatus, MirrorStatus
from hypercore.plugins import finds_peers

#: A report is at most so old.
REPORT_SECONDS: Final = 1.0
#: At a terminal the rate and the peers are drawn more often.
DRAW_SECONDS: Final = 0.25
#: A source that cannot be reached for so long is told of; one that only starts anew is not.
SOURCE_SECONDS: Final = 5.0
#: How often it is looked whether the keys have changed.
KEYS_SECONDS: Final = 3.0
#: Files that may be open for many logs, when the system lets us ask for more.
MOST_FILES: Final = 65536


async def mirror(options: argparse.Namespace, output: Output) -> None:
    many = _many(options)
    start, end = options.range
    running = Mirror(
        options.storage,
        await _read(many) if many is not None else [options.key],
        sources=options.sources,
        listen=options.listen,
        start=start,
        end=end,
        most_bytes=options.most_bytes,
        durability=options.durability,
        metrics=options.metrics,
        health=options.health,
    )
    async with running:
        report = _Report(running, output, is_many=many is not None, once=options.once)
        try:
            with _hangup_reloads(many) as hangup:
                await _watch(running, report, many, hangup, once=options.once)
        except asyncio.CancelledError:
            if not options.once:
                raise
            status = running.status()
            raise CommandError(
                f"interrupted with {status.have:,} of {status.want:,} blocks; the same command goes on from here"
            ) from None
        finally:
            report.progress.clear()


def _many(options: argparse.Namespace) -> KeyList | None:
    if (options.keys is None) == (options.key is None):
        raise OptionError("say which log: its KEY before the STORAGE, or many with --keys, and not both")
    if options.keys is None:
        return None
    if "{key}" not in options.storage and "{discovery_key}" not in options.storage:
        raise OptionError(f"many logs need many places: {options.storage}/{{key}} says where each one goes")
    _allow_many_files()
    return KeyList(options.keys)


def _allow_many_files() -> None:
    """Each log of a folder is some open files, and the system's first limit is soon reached."""
    try:
        import resource
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _read(many: KeyList) -> list[bytes]:
    """The keys of the list. Raises `CommandError`."""
    try:
        return await asyncio.to_thread(many.read)
    except OSError as error:
        raise CommandError(describe_os_error(error)) from error
    except OptionError as error:
        raise CommandError(str(error)) from error


@contextlib.contextmanager
def _hangup_reloads(many: KeyList | None) -> Iterator[asyncio.Event]:
    """SIGHUP, which ends other commands, has the keys read again."""
    hangup = asyncio.Event()
    if many is not None and hasattr(signal, "SIGHUP"):
        with contextlib.suppress(NotImplementedError):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hangup.set)
    yield hangup


async def _watch(mirror: Mirror, report: _Report, many: KeyList | None, hangup: asyncio.Event, *, once: bool) -> None:
    loop = asyncio.get_running_loop()
    await report.begin()
    synced = loop.create_task(mirror.synced())
    news = loop.create_task(mirror.news())
    told = loop.create_task(hangup.wait())
    looked_at = loop.time()
    try:
        while True:
            await asyncio.wait(
                {news, told} if report.is_synced else {synced, news, told},
                timeout=report.every_seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if synced.done() and not report.is_synced and (once or synced.exception() is None):
                synced.result()
                report.is_synced = True
            if news.done():
                news = loop.create_task(mirror.news())
            await report.tell(mirror.status())
            if once:
                if report.is_synced:
                    return
                _check_hopeful(mirror.status())
            elif synced.done() and not report.is_synced:
                # The cap was reached; it may be synced another time, when there is room.
                synced = loop.create_task(mirror.synced()) if not mirror.status().is_full else synced
            if many is not None and (told.done() or loop.time() - looked_at >= KEYS_SECONDS):
                if told.done() or await asyncio.to_thread(many.has_changed):
                    await _reload(mirror, many, report)
                if told.done():
                    hangup.clear()
                    told = loop.create_task(hangup.wait())
                looked_at = loop.time()
    finally:
        for task in (synced, news, told):
            task.cancel()
        await asyncio.wait({synced, news, told})


async def _reload(mirror: Mirror, many: KeyList, report: _Report) -> None:
    """A list that cannot be read changes nothing."""
    before = mirror.keys
    try:
        await mirror.set_keys(await _read(many))
    except CommandError as error:
        complain(f"{error}; the keys stay as they were")
    else:
        await report.tell_keys(frozenset(before), frozenset(mirror.keys))


def _check_hopeful(status: MirrorStatus) -> None:
    """Raises `CommandError` when waiting longer is not what somebody wants who wants it done once."""
    left = [core for core in status.cores if core.role != "standby" and (core.have < core.want or core.error)]
    if left and all(core.role == "failed" for core in left):
        raise CommandError(f"{status.have:,} of {status.want:,} blocks are here: " + "; ".join(status.problems))
    if status.sources_gone_seconds is not None and status.problems and not status.connections:
        raise CommandError("; ".join(status.problems))


class _Report:
    """What is told of a mirror: each change to a program, and to people what they need to know."""

    def __init__(self, mirror: Mirror, output: Output, *, is_many: bool, once: bool) -> None:
        self._mirror = mirror
        self._once = once
        self._output = output
        self._is_many = is_many
        self.is_synced = False
        self.progress = Progress("blocks", quiet=output.as_json)
        self.every_seconds = DRAW_SECONDS if self.progress.is_shown else REPORT_SECONDS
        self._last: dict[str, Any] = {}
        self._roles: dict[bytes, tuple[str, str | None]] = {}
        #: Since when a source cannot be reached, and which ones that was told of.
        self._lost: dict[str, float] = {}
        self._told_lost: set[str] = set()
        self._was_full = self._was_synced = self._was_advised = False
        self._began = asyncio.get_running_loop().time()

    async def begin(self) -> None:
        mirror = self._mirror
        if self._output.as_json:
            await self.tell(mirror.status())
            return
        for address in mirror.addresses:
            await self._output.line(f"address  {address}")
        for address in mirror.monitor_addresses:
            await self._output.line(f"monitor  {address.replace('tcp://', 'http://')}")

    async def tell(self, status: MirrorStatus) -> None:
        if self._output.as_json:
            await self._tell_program(status)
        else:
            await self._tell_people(status)

    # ---- to a program ----

    async def _tell_program(self, status: MirrorStatus) -> None:
        value = _value(status) | {
            "synced": self.is_synced and status.have >= status.want,
            "monitor": self._mirror.monitor_addresses,
        }
        if _steady(value) != self._last:
            self._last = _steady(value)
            await self._output.value(value)
            await self._output.flush()

    # ---- to people ----

    async def tell_keys(self, before: frozenset[bytes], now: frozenset[bytes]) -> None:
        """The list of keys was read again."""
        if not self._output.as_json:
            new, dropped = len(now - before), len(before - now)
            await self._line(f"keys: {count_of(len(now), 'log')}, {new} new, {dropped} dropped")

    async def _tell_people(self, status: MirrorStatus) -> None:
        for core in status.cores:
            if self._roles.get(core.key) != (core.role, core.error):
                before = self._roles.get(core.key, ("opening", None))
                self._roles[core.key] = core.role, core.error
                await self._tell_role(core, *before)
        await self._tell_sources(status)
        if status.is_full and not self._was_full:
            await self._line(
                f"full: {count_of(status.stored_bytes, 'byte')} are stored, and the cap is {status.most_bytes:,}; "
                "nothing more is downloaded, all that is here is served"
            )
        self._was_full = status.is_full
        self._advise(status)
        if self.is_synced and not self._was_synced:
            self._was_synced = True
            much = f"{count_of(status.have, 'block')}, {count_of(status.stored_bytes, 'byte')}"
            await self._line(f"synced: {much}" + (f" of {count_of(len(status.cores), 'log')}" if self._is_many else ""))
        self.progress.say(_line(status))

    def _advise(self, status: MirrorStatus) -> None:
        """Nobody is found on the local network: say once who knows why."""
        silent = [error for address, error in status.sources.items() if error is not None and finds_peers(address)]
        is_late = asyncio.get_running_loop().time() - self._began >= DOCTOR_SECONDS
        if silent and is_late and not self._was_advised:
            self._was_advised = True
            self.progress.clear()
            key = "KEY" if self._is_many else status.cores[0].key.hex()
            complain(f"{silent[0]}; `hypercore lan doctor {key}` says why")

    async def _tell_sources(self, status: MirrorStatus) -> None:
        now = asyncio.get_running_loop().time()
        for address, error in status.sources.items():
            if error is None:
                self._lost.pop(address, None)
                if address in self._told_lost:
                    self._told_lost.discard(address)
                    await self._line(f"{address} is reached again")
            elif finds_peers(address) or address in self._told_lost:
                continue
            elif now - self._lost.setdefault(address, now) >= SOURCE_SECONDS:
                self._told_lost.add(address)
                self.progress.clear()
                complain(f"{error if address in error else f'{address}: {error}'}; it is tried again")

    async def _tell_role(self, core: CoreStatus, role_before: str, error_before: str | None) -> None:
        name = f"{core.key.hex()[:8]}: " if self._is_many else ""
        if core.error is not None:
            if self._once:
                return  # It is what the command fails with, if it lasts.
            self.progress.clear()
            complain(f"{name}{core.error}; it is tried again")
        elif core.role == "standby":
            await self._line(f"{name}standing by: another process writes here, and this one serves what is there")
        elif core.role == "writer" and (role_before in ("standby", "failed") or error_before is not None):
            await self._line(f"{name}writing")

    async def _line(self, text: str) -> None:
        self.progress.clear()
        await self._output.line(text)


def _line(status: MirrorStatus) -> str:
    """`12,345 of 20,000 blocks, 61%, 3,400 a second; tcp://host:4977 3,400`."""
    peers: dict[str, float] = {}
    for core in status.cores:
        for peer in core.peers:
            peers[peer.address] = peers.get(peer.address, 0.0) + peer.blocks_per_second
    parts = [progress_line(status.have, status.want, "blocks", status.blocks_per_second)]
    parts += [f"{address} {rate:,.0f}" for address, rate in sorted(peers.items(), key=lambda each: -each[1])]
    return "; ".join(parts)


def _value(status: MirrorStatus) -> dict[str, Any]:
    return {
        "have": status.have,
        "want": status.want,
        "stored_bytes": status.stored_bytes,
        "blocks_per_second": round(status.blocks_per_second, 1),
        "bytes_per_second": round(status.bytes_per_second, 1),
        "full": status.is_full,
        "connections": status.connections,
        "addresses": list(status.addresses),
        "sources": dict(status.sources),
        "problems": list(status.problems),
        "cores": [_core_value(core) for core in status.cores],
    }


def _core_value(core: CoreStatus) -> dict[str, Any]:
    return {
        "key": core.key.hex(),
        "role": core.role,
        "have": core.have,
        "want": core.want,
        "length": core.length,
        "fork": core.fork,
        "stored_bytes": core.stored_bytes,
        "blocks_per_second": round(core.blocks_per_second, 1),
        "bytes_per_second": round(core.bytes_per_second, 1),
        "error": core.error,
        "peers": [
            {
                "address": peer.address,
                "length": peer.length,
                "blocks_received": peer.blocks_received,
                "blocks_sent": peer.blocks_sent,
                "blocks_per_second": round(peer.blocks_per_second, 1),
            }
            for peer in core.peers
        ],
    }


def _steady(value: dict[str, Any]) -> dict[str, Any]:
    """The report without what changes while nothing happens."""

    def cut(part: Any) -> Any:
        if isinstance(part, dict):
            return {name: cut(inner) for name, inner in part.items() if not name.endswith("_per_second")}
        return [cut(inner) for inner in part] if isinstance(part, list) else part

    return {name: cut(inner) for name, inner in value.items() if name != "problems"} | {
        "failing": bool(value["problems"])
    }

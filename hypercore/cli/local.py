"""Commands that need no peer: create, append, cat, get, info, verify, plugins."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

from hypercore.cli.console import CommandError, Input, Output, Progress, count_of
from hypercore.core import Hypercore
from hypercore.crypto import KeyPair
from hypercore.errors import BlockNotAvailableError, StorageMissingError
from hypercore.log.engine import MAX_BLOCK_SIZE, Log
from hypercore.plugins import PluginInfo, list_plugins, open_storage
from hypercore.urls import hide_secrets

#: Input is read and appended in pieces of at most this many bytes, and of a pipe whatever has arrived.
READ_SIZE: Final = 256 * 1024
#: One append takes at most this many blocks, so that a file of empty lines needs no more memory than another.
MOST_BATCH_BLOCKS: Final = 4096


def reader_of(address: str) -> Hypercore:
    """The core that lies at `address`, to look at: takes no lock and writes nothing."""
    return Hypercore(address, create_if_missing=False, read_only=True)


def check_persistent(*addresses: str) -> None:
    """Refuse a storage that ends with this process. Raises `CommandError`."""
    for address in addresses:
        if not open_storage(address).persistent:
            raise CommandError(f"{hide_secrets(address)} is gone when this command ends; name a storage that stays")


# ---- writing --------------------------------------------------------------------------------------


async def create(options: argparse.Namespace, output: Output) -> None:
    check_persistent(options.storage)
    try:
        async with reader_of(options.storage) as there:
            where = hide_secrets(options.storage)
            raise CommandError(f"{where} already holds core {there.key.hex()}; nothing was changed")
    except StorageMissingError:
        pass
    # With a key pair of our own a core that somebody else makes in this moment is a conflict and not ours.
    key_pair = KeyPair.generate()
    async with Hypercore(options.storage, key_pair=key_pair, compat=options.compat, hash=options.hash) as core:
        key = core.key.hex()
        await output.report({"key": key, "discovery_key": core.discovery_key.hex()}, key)


async def append(options: argparse.Namespace, output: Output) -> None:
    check_persistent(options.storage)
    if options.chunk > MAX_BLOCK_SIZE:
        raise CommandError(f"--chunk {options.chunk}: a block has at most {MAX_BLOCK_SIZE} bytes")
    source = Input(options.file)
    progress = Progress("bytes", quiet=options.json)
    count = size = 0
    try:
        async with Hypercore(options.storage, create_if_missing=False) as core:
            if not core.writable:  # Told before anybody types a line.
                where = hide_secrets(options.storage)
                raise CommandError(
                    f"{where} is a copy: its writer's secret key is not here, so nothing can be appended"
                )
            batches = lines_of(source) if options.lines else chunks_of(source, options.chunk)
            try:
                async for batch in batches:
                    await core.append(batch)
                    count += len(batch)
                    size += sum(map(len, batch))
                    progress.show(size, source.size)
            except asyncio.CancelledError:
                raise CommandError(f"interrupted; {count_of(count, 'block')} were appended") from None
            finally:
                progress.clear()
            await output.report(
                {
                    "key": core.key.hex(),
                    "appended_blocks": count,
                    "appended_bytes": size,
                    "length": core.length,
                    "byte_length": core.byte_length,
                },
                f"appended {count_of(count, 'block')}, {count_of(size, 'byte')}; "
                f"the log has {count_of(core.length, 'block')}",
            )
    finally:
        source.close()


async def lines_of(source: Input) -> AsyncIterator[list[bytes]]:
    """The lines without their newlines, in batches as they arrive; a last line may lack the newline."""
    parts: list[bytes] = []
    size = number = 0
    while data := await source.read(READ_SIZE):
        first, *lines = data.split(b"\n")
        parts.append(first)
        size += len(first)
        if size > MAX_BLOCK_SIZE:
            raise CommandError(f"line {number + 1} is longer than {MAX_BLOCK_SIZE} bytes, which no block may be")
        if lines:
            lines.insert(0, b"".join(parts))
            parts = [lines.pop()]
            size = len(parts[0])
            number += len(lines)
            for start in range(0, len(lines), MOST_BATCH_BLOCKS):
                yield lines[start : start + MOST_BATCH_BLOCKS]
    if size:
        yield [b"".join(parts)]


async def chunks_of(source: Input, chunk_size: int) -> AsyncIterator[list[bytes]]:
    """Pieces of exactly `chunk_size` bytes and a rest, in batches."""
    most_size = max(chunk_size, min(READ_SIZE, chunk_size * MOST_BATCH_BLOCKS))
    most_size -= most_size % chunk_size
    while data := await _read_fully(source, most_size):
        yield [data[start : start + chunk_size] for start in range(0, len(data), chunk_size)]


async def _read_fully(source: Input, size: int) -> bytes:
    parts = []
    while size and (data := await source.read(min(size, READ_SIZE))):
        parts.append(data)
        size -= len(data)
    return b"".join(parts)


# ---- reading --------------------------------------------------------------------------------------


async def cat(options: argparse.Namespace, output: Output) -> None:
    async with reader_of(options.storage) as core:
        end = core.length if options.end is None else options.end
        for name, bound in (("--start", options.start), ("--end", end)):
            if bound > core.length:
                raise CommandError(f"{name} {bound}: {_the_log_has(core)}")
        if options.start > end:
            raise CommandError(f"blocks {options.start} to {end} are no range")
        # What goes to a terminal or a pager is its own progress.
        progress = Progress("blocks", quiet=options.json or not output.is_file)
        for index in range(options.start, end):
            await _print_block(core, index, output)
            if options.lines and not output.as_json:
                await output.write(b"\n")
            progress.show(index - options.start, end - options.start)
        progress.clear()


async def get(options: argparse.Namespace, output: Output) -> None:
    async with reader_of(options.storage) as core:
        if options.index >= core.length:
            raise CommandError(f"block {options.index} does not exist; {_the_log_has(core)}")
        await _print_block(core, options.index, output)


def _the_log_has(core: Hypercore) -> str:
    return f"the log has {count_of(core.length, 'block')}"


async def _print_block(core: Hypercore, index: int, output: Output) -> None:
    try:
        block = await core.get_raw(index)
    except BlockNotAvailableError:
        raise CommandError(f"block {index} is not stored here; `hypercore clone` fetches it from a peer") from None
    if output.as_json:
        await output.value({"index": index, "size": len(block), "hex": block.hex()})
    else:
        await output.write(block)


async def info(options: argparse.Namespace, output: Output) -> None:
    async with reader_of(options.storage) as core:
        about = await core.info()
        # Opened to look at, no core is writable; what is meant is whether the secret key is here.
        writable = core.key_pair is not None
        value = {
            "key": about.key.hex(),
            "id": core.id,
            "discovery_key": about.discovery_key.hex(),
            "length": about.length,
            "byte_length": about.byte_length,
            "contiguous_length": about.contiguous_length,
            "stored_blocks": about.stored_blocks,
            "fork": about.fork,
            "writable": writable,
            "compat": about.compat,
            "hash": about.hash,
            "warnings": list(about.warnings),
        }
        kind = "compat" if about.compat else f"manifest, {about.hash}"
        rows = {
            "key": value["key"],
            "id": value["id"],
            "discovery key": value["discovery_key"],
            "length": f"{count_of(about.length, 'block')}, {count_of(about.byte_length, 'byte')}",
            "stored here": f"{count_of(about.stored_blocks, 'block')}, the first {about.contiguous_length:,} unbroken",
            "fork": about.fork,
            "writable": "yes, the secret key is here" if writable else "no",
            "kind": kind,
        }
        lines = [f"{name:<14} {text}" for name, text in rows.items()]
        await output.report(value, *lines, *(f"{'warning':<14} {warning}" for warning in about.warnings))


async def verify(options: argparse.Namespace, output: Output) -> None:
    log = await Log.open(open_storage(options.storage), create_if_missing=False, read_only=True)
    try:
        count = 0
        checked_count = log.bitfield.count(0, log.length)
        for warning in log.warnings:
            await output.report({"warning": warning}, f"warning: {warning}")
        progress = Progress("blocks", quiet=options.json)
        async for error in log.audit(lambda done: progress.show(done, checked_count)):
            count += 1
            progress.clear()
            await output.report({"problem": str(error), "file": error.file, "index": error.index}, str(error))
        progress.clear()
        summary = {"key": log.key.hex(), "length": log.length, "checked_blocks": checked_count, "problems": count}
        if output.as_json:
            await output.value(summary)
        if count:
            raise CommandError(count_of(count, "problem"))
        if not output.as_json:
            await output.line(
                f"{count_of(checked_count, 'block')} of {log.length:,}, every hash and the signature hold"
            )
    finally:
        await log.aclose()


# ---- plugins --------------------------------------------------------------------------------------


async def plugins(_options: argparse.Namespace, output: Output) -> None:
    for plugin in list_plugins():
        await output.report(_plugin_value(plugin), *_plugin_lines(plugin))


def _plugin_value(plugin: PluginInfo) -> dict[str, Any]:
    def offers(providers: Any) -> list[dict[str, Any]]:
        return [
            {"scheme": each.scheme, "summary": each.summary, "opener": each.opener, "extra": each.extra}
            for each in providers
        ]

    return {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "disabled": plugin.disabled,
        "error": plugin.error,
        "storages": offers(plugin.storages),
        "transports": offers(plugin.transports),
    }


def _plugin_lines(plugin: PluginInfo) -> list[str]:
    origin = f"{plugin.distribution} {plugin.version}".strip()
    lines = [
        f"{each.scheme + ':':<10} {what:<10} {each.summary} ({origin})"
        for what, providers in (("storage", plugin.storages), ("transport", plugin.transports))
        for each in providers
    ]
    if plugin.disabled:
        lines.append(f"{plugin.name:<10} {'off':<10} switched off by HYPERCORE_DISABLE_PLUGINS ({origin})")
    if plugin.error is not None:
        lines.append(f"{plugin.name:<10} {'broken':<10} {plugin.error} ({origin})")
    return lines

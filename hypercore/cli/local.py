"""Commands that need no peer: create, cat, get, info, verify, plugins."""

from __future__ import annotations

import argparse
from typing import Any

from hypercore.cli.console import CommandError, Output, Progress, complain, count_of
from hypercore.core import Hypercore
from hypercore.crypto import KeyPair
from hypercore.errors import BlockNotAvailableError, StorageMissingError
from hypercore.log.engine import Log
from hypercore.plugins import PluginInfo, list_plugins, open_storage
from hypercore.urls import hide_secrets


def reader_of(address: str) -> Hypercore:
    """The core that lies at `address`, to look at: takes no lock and writes nothing."""
    return Hypercore(address, create_if_missing=False, read_only=True)


def check_persistent(*addresses: str) -> None:
    """Refuse a storage that ends with this process. Raises `CommandError`."""
    for address in addresses:
        if not open_storage(address).persistent:
            raise CommandError(f"{hide_secrets(address)} is gone when this command ends; name a storage that stays")


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
        for warning in (await core.info()).warnings:
            complain(f"warning: {warning}")  # Of the place: now another one can still be chosen.


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

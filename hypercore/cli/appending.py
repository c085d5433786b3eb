"""Appending what comes in, and with --listen serving it meanwhile.

It must not know what the bytes mean. The one writer of a log is also who can serve it live: no other process may
append while it is served, so the command that serves appends.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

from hypercore.cli.console import CommandError, Input, Output, Progress, count_of, describe_os_error, named
from hypercore.cli.local import check_persistent
from hypercore.cli.network import tell_addresses, until_interrupted
from hypercore.core import Hypercore
from hypercore.errors import HypercoreError
from hypercore.log.engine import MAX_BLOCK_SIZE
from hypercore.swarm import Swarm
from hypercore.urls import hide_secrets

#: Input is read and appended in pieces of at most this many bytes, and of a pipe whatever has arrived.
READ_SIZE: Final = 256 * 1024
#: One append takes at most this many blocks, so that a file of empty lines needs no more memory than another.
MOST_BATCH_BLOCKS: Final = 4096


async def append(options: argparse.Namespace, output: Output) -> None:
    check_persistent(options.storage)
    if options.chunk > MAX_BLOCK_SIZE:
        raise CommandError(f"--chunk {options.chunk}: a block has at most {MAX_BLOCK_SIZE} bytes")
    with contextlib.closing(Input(options.file)) as source:
        async with Hypercore(options.storage, create_if_missing=False, durability=options.durability) as core:
            if not core.writable:  # Told before anybody types a line.
                where = hide_secrets(options.storage)
                raise CommandError(
                    f"{where} is a copy: its writer's secret key is not here, so nothing can be appended"
                )
            if not options.listen:
                await _append(core, source, options, output)
                return
            async with Swarm(*options.listen) as swarm:
                swarm.join(core)
                await tell_addresses(core, swarm, options, output)
                await _append(core, source, options, output)
                await until_interrupted(core, options)


async def _append(core: Hypercore, source: Input, options: argparse.Namespace, output: Output) -> None:
    progress = Progress("bytes", quiet=options.json)
    count = size = 0
    batches = lines_of(source) if options.lines else chunks_of(source, options.chunk)
    interrupted = False
    try:
        async for batch in batches:
            await core.append(batch)
            count += len(batch)
            size += sum(map(len, batch))
            progress.show(size, source.size)
    except asyncio.CancelledError:
        # A pipe that is served live has no other end than this; half a file is not what was asked for.
        if not options.listen or source.size is not None:
            raise CommandError(f"interrupted; {count_of(count, 'block')} were appended") from None
        interrupted = True
    except (HypercoreError, OSError) as error:
        # Whoever wants to go on has to know from where.
        if count:
            why = describe_os_error(error) if isinstance(error, OSError) else named(error, options.storage)
            raise CommandError(f"{why}; before that {count_of(count, 'block')} were appended") from error
        raise
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
        f"appended {count_of(count, 'block')}, {count_of(size, 'byte')}; the log has {count_of(core.length, 'block')}",
    )
    if interrupted:
        raise asyncio.CancelledError


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

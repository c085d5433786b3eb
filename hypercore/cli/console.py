"""Standard input, output and error of the command.

It must not know what is printed. Reads and writes wait in the event loop and never block it, so that a signal ends
the command however slow the other end of a pipe is, and so that replication goes on meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import select
import shutil
import stat
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from hypercore.errors import FormatError, HypercoreError, StorageError
from hypercore.urls import hide_secrets

#: Output is collected up to this many bytes before it is written.
OUTPUT_BUFFER_SIZE: Final = 64 * 1024
#: A progress line appears when a job takes longer, and is drawn again after this time.
PROGRESS_AFTER_SECONDS: Final = 1.0
PROGRESS_EVERY_SECONDS: Final = 0.1
#: A pipe that says it is ready takes this many bytes without waiting.
PIPE_WRITE_SIZE: Final = select.PIPE_BUF


class OutputClosedError(Exception):
    """Whoever read our output has had enough. Nothing failed."""


class CommandError(Exception):
    """The job failed; the message is the one line that says why."""


def occupy_standard_descriptors() -> None:
    """A standard descriptor that the caller closed would be given to the first file we open, and be printed into."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def complain(message: str) -> None:
    """One line on standard error."""
    text = " ".join(message.split())
    with contextlib.suppress(OSError):  # There may be nobody left to tell.
        os.write(2, f"hypercore: {text}\n".encode(errors="backslashreplace"))


def describe_os_error(error: OSError) -> str:
    """What an error of the system says, without its number."""
    text = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {text}" if error.filename else text


def named(error: HypercoreError, storage: str | None) -> str:
    """What an error of ours says, with the storage it is about when it does not name that itself."""
    message = str(error) or type(error).__name__
    if storage is not None and isinstance(error, (StorageError, FormatError)):
        where = hide_secrets(storage)
        # A place such as "." is in every message, and a server says its address without the query.
        known = {where, where.partition("?")[0]}
        return message if where.strip("./") and any(each in message for each in known) else f"{where}: {message}"
    return message


def _can_wait(descriptor: int) -> bool:
    """Whether the loop can wait for it: pipes, sockets and terminals; files and devices are always ready."""
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(descriptor)


class _Descriptor:
    """Waits until a descriptor is ready."""

    def __init__(self, descriptor: int, event: int) -> None:
        self.number = descriptor
        self.can_wait = _can_wait(descriptor)
        self._event = event
        self._poll = select.poll()
        self._poll.register(descriptor, event)

    async def ready(self) -> None:
        if not self.can_wait or self._poll.poll(0):
            await asyncio.sleep(0)  # A long job lets signals and peers have their turn.
            return
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        add, remove = (
            (loop.add_reader, loop.remove_reader)
            if self._event == select.POLLIN
            else (loop.add_writer, loop.remove_writer)
        )

        def wake() -> None:
            if not waiter.done():
                waiter.set_result(None)

        add(self.number, wake)
        try:
            await waiter
        finally:
            remove(self.number)


class Input:
    """A file or standard input (`-`)."""

    def __init__(self, path: str) -> None:
        self._owned = path != "-"
        self._name = path if self._owned else "standard input"
        self._descriptor = _Descriptor(os.open(path, os.O_RDONLY) if self._owned else 0, select.POLLIN)
        status = os.fstat(self._descriptor.number)
        #: Bytes in it, when that is known before it is read.
        self.size = status.st_size if stat.S_ISREG(status.st_mode) else None

    async def read(self, size: int) -> bytes:
        """Up to `size` bytes, as soon as there are any; `b""` at the end."""
        while True:
            await self._descriptor.ready()
            try:
                return os.read(self._descriptor.number, size)
            except BlockingIOError:
                continue
            except OSError as error:
                error.filename = self._name
                raise

    def close(self) -> None:
        if self._owned:
            os.close(self._descriptor.number)


class Output:
    """Standard output. Every call may raise `OutputClosedError`."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self._buffer = bytearray()
        self._descriptor = _Descriptor(1, select.POLLOUT)
        self.is_file = stat.S_ISREG(os.fstat(1).st_mode)

    async def write(self, data: bytes) -> None:
        """Raw bytes."""
        self._buffer += data
        if len(self._buffer) >= OUTPUT_BUFFER_SIZE:
            await self.flush()

    async def line(self, text: str) -> None:
        """One line of text, at once."""
        await self.write(text.encode(errors="surrogateescape") + b"\n")
        await self.flush()

    async def value(self, value: Mapping[str, Any]) -> None:
        """One JSON object a line; it goes out with the next `flush`."""
        await self.write(json.dumps(value, separators=(",", ":")).encode() + b"\n")

    async def report(self, value: Mapping[str, Any], *lines: str) -> None:
        """`value` with --json, and the lines for people otherwise."""
        if self.as_json:
            await self.value(value)
            await self.flush()
        else:
            for line in lines:
                await self.line(line)

    async def flush(self) -> None:
        """Hand over everything that was written."""
        view = memoryview(bytes(self._buffer))
        self._buffer.clear()
        piece_size = PIPE_WRITE_SIZE if self._descriptor.can_wait else OUTPUT_BUFFER_SIZE
        while view:
            await self._descriptor.ready()
            try:
                view = view[os.write(self._descriptor.number, view[:piece_size]) :]
            except BlockingIOError:
                continue
            except OSError as error:
                if error.errno in (errno.EPIPE, errno.ECONNRESET):
                    raise OutputClosedError from error
                error.filename = "standard output"
                raise

    def watch_closing(self, call: Callable[[], object]) -> None:
        """Call once when the reader of our pipe has gone, even if nothing is written."""
        if not stat.S_ISFIFO(os.fstat(1).st_mode):
            return
        loop = asyncio.get_running_loop()

        def closed() -> None:
            loop.remove_reader(1)
            call()

        loop.add_reader(1, closed)


class Progress:
    """One line on standard error that is drawn again and again, for a job of more than a second at a terminal."""

    def __init__(self, unit: str, *, quiet: bool) -> None:
        self._unit = unit
        self.is_shown = not quiet and os.isatty(2)
        self._began = time.monotonic()
        self._next = self._began + PROGRESS_AFTER_SECONDS
        self._first: int | None = None
        self._is_drawn = False

    def show(self, have: int, want: int | None) -> None:
        """`have` of `want` units are done; `want` is None when nobody knows."""
        if not self.is_shown:
            return
        now = time.monotonic()
        if self._first is None:
            self._first = have
        if now >= self._next:
            self._draw(progress_line(have, want, self._unit, (have - self._first) / (now - self._began)), now)

    def say(self, text: str) -> None:
        """What is being waited for."""
        now = time.monotonic()
        if self.is_shown and now >= self._next:
            self._draw(text, now)

    def _draw(self, text: str, now: float) -> None:
        self._next = now + PROGRESS_EVERY_SECONDS
        width = shutil.get_terminal_size(fallback=(80, 24)).columns - 1
        sys.stderr.write(f"\r\x1b[K{text[:width]}")
        sys.stderr.flush()
        self._is_drawn = True

    def clear(self) -> None:
        """Leave the line empty for what comes."""
        if self._is_drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._is_drawn = False


def progress_line(have: int, want: int | None, unit: str, rate: float) -> str:
    """`12,345 of 20,000 blocks, 61%, 3,400 a second`."""
    if want:
        return f"{have:,} of {want:,} {unit}, {100 * have // want}%, {rate:,.0f} a second"
    return f"{have:,} {unit}, {rate:,.0f} a second"


def count_of(number: int, unit: str) -> str:
    """`1 block`, `2,000 blocks`."""
    return f"{number:,} {unit}" if number == 1 else f"{number:,} {unit}s"

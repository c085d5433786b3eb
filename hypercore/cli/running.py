"""From arguments to an exit code: the event loop, signals, and errors as one line.

It must not know what a command does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from hypercore.cli.arguments import build_parser
from hypercore.cli.console import (
    CommandError,
    Output,
    OutputClosedError,
    complain,
    describe_os_error,
    named,
    occupy_standard_descriptors,
)
from hypercore.errors import HypercoreError, OptionError

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2

#: Commands that go on until they are told to stop: to stop is how they succeed.
ENDLESS: Final = frozenset({"serve", "follow", "mirror"})

_FAILURES: Final = (CommandError, HypercoreError, OSError)
_SIGNALS: Final = ("SIGINT", "SIGTERM", "SIGHUP")


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; only argparse itself exits, for help (0) and usage (2)."""
    occupy_standard_descriptors()
    try:
        options = build_parser().parse_args(arguments)
    finally:
        _flush_help()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_run(options))


async def _run(options: argparse.Namespace) -> int:
    from hypercore.cli.commands import COMMANDS  # With it comes the whole library, which `--help` does not need.

    output = Output(as_json=options.json)
    try:
        with _signals_cancel():
            try:
                await COMMANDS[options.command](options, output)
            except _FAILURES:
                await output.flush()  # What was printed before the failure counts.
                raise
            await output.flush()
    except asyncio.CancelledError:
        if _is_endless(options):
            return DONE
        complain("interrupted")
        return FAILED
    except OutputClosedError:
        return DONE
    except CommandError as error:
        complain(str(error))
        return FAILED
    except HypercoreError as error:
        complain(named(error, options.storage if "storage" in options else None))
        return USAGE if isinstance(error, OptionError) else FAILED
    except OSError as error:
        complain(describe_os_error(error))
        return FAILED
    return DONE


def _is_endless(options: argparse.Namespace) -> bool:
    return options.command in ENDLESS or bool(options.command == "append" and options.listen)


@contextlib.contextmanager
def _signals_cancel() -> Iterator[None]:
    """The first signal ends the command in good order, a second one at once."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    taken = []

    def stop(number: signal.Signals) -> None:
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)
        task.cancel()

    for name in _SIGNALS:
        number = getattr(signal, name, None)
        # A signal that the caller has us ignore (nohup, a job in the background) stays ignored.
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            with contextlib.suppress(NotImplementedError):
                loop.add_signal_handler(number, stop, number)
                taken.append(number)
    try:
        yield
    finally:
        for number in taken:
            loop.remove_signal_handler(number)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, when it is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _flush_help() -> None:
    """argparse prints help by itself; a reader that left early must not make a noise at the very end."""
    if sys.stdout is None:  # Closed by the caller, whatever its type says.
        return
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

"""A writer of ours in a process of its own, which dies without warning.

The processes are forked from one that has imported everything, so that fifty of them take a few seconds.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from hypercore.crypto import KeyPair
from hypercore.log.engine import Durability, Log
from hypercore.storage import Storage
from hypercore.testing import FaultyStorage
from hypercore.testing.wrappers import Step
from hypercore_file import FileStorage
from tests.histories import Action, perform

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload([__name__])

KEY_PAIR = KeyPair.from_seed(b"\x01" * 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """When the writer dies: as soon as we heard of `acknowledged` actions, while it goes on with the next ones; or by
    itself at its `operation`-th operation on the storage, in the middle of it if that is a write. At the latest when
    it has done everything, without closing."""

    acknowledged: int | None = None
    operation: int | None = None


def write_and_die(
    folder: Path, actions: Sequence[Action], death: Death, *, compat: bool, durability: Durability = "none"
) -> int:
    """Let a writer do the actions until it dies; how many it acknowledged."""
    ours, its = _processes.Pipe(duplex=False)
    process = _processes.Process(target=_write, args=(its, folder, actions, death, compat, durability))
    process.start()
    its.close()
    count = 0
    try:
        while True:
            if count == death.acknowledged:
                process.kill()
            ours.recv_bytes()
            count += 1
    except EOFError:
        pass
    finally:
        process.join()
        ours.close()
    assert process.exitcode == -signal.SIGKILL, f"the writer did not die, but ended with {process.exitcode}"
    process.close()
    return count


def _write(
    acknowledge: Connection,
    folder: Path,
    actions: Sequence[Action],
    death: Death,
    compat: bool,
    durability: Durability,
) -> None:
    async def main() -> None:
        storage: Storage = FileStorage(folder)
        if death.operation is not None:
            storage = FaultyStorage(storage, fail_at=death.operation, partial=True, error=_die)
        log = await Log.open(storage, key_pair=KEY_PAIR, compat=compat, durability=durability)
        for action in actions:
            await perform(log, action)
            acknowledge.send_bytes(b"done")
        _die()

    asyncio.run(main())


def _die(step: Step | None = None) -> BaseException:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError(f"still alive after {step}")

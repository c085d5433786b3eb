"""Runs a server for as long as the test run lives, and not a moment longer.

    python -m tests.servers.supervise OWNER FOLDER COMMAND...

It goes to the background. When the process OWNER ends, however it does, the server is killed and the parent of FOLDER
removed; when this process is killed, the kernel kills the server. FOLDER gets the server's `log`, and `ended` when it
ends before its owner. What FOLDER's `leftovers` names, one path a line, is removed with the server.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def die_with_parent() -> None:
    """For a child, before it becomes its program: the kernel kills it when the thread that made it ends."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    owner, folder, command = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # The owner's end is what counts; it may clean up for a while.
    owner_end = os.pidfd_open(owner)
    if os.fork():
        return
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder,
            env=os.environ | {"TMPDIR": str(folder)},
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    try:
        select.select([owner_end, os.pidfd_open(server.pid)], [], [])
    finally:
        server.kill()
        server.wait()
        if (folder / "leftovers").exists():
            for path in (folder / "leftovers").read_text().splitlines():
                Path(path).unlink(missing_ok=True)
        if select.select([owner_end], [], [], 0)[0]:
            shutil.rmtree(folder.parent, ignore_errors=True)
        else:
            (folder / "ended").touch()


if __name__ == "__main__":
    main()

"""The servers that tests start: shared by a test run, and gone when it is."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

PROGRAM = "import sys; from tests.servers.s3 import moto; print(moto().endpoint_url, flush=True); sys.stdin.read()"


@contextmanager
def session(folder: Path) -> Iterator[tuple[subprocess.Popen[str], socket.socket]]:
    """A process that uses a server, and a connection to that server."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_XDIST_WORKER"}
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment | {"TMPDIR": str(folder)}
    ) as process:
        try:
            assert process.stdout is not None
            address = urlsplit(process.stdout.readline().strip())
            with socket.create_connection((str(address.hostname), address.port or 0), timeout=30) as connection:
                yield process, connection
        finally:
            process.kill()


def end_of(connection: socket.socket) -> bool:
    """Wait until the other end is gone."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def supervisor_of(owner: int) -> int:
    """The process that minds the server of this test run."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"tests.servers.supervise" in words and str(owner).encode() in words:
            return int(folder.name)
    raise AssertionError(f"nobody minds the server of {owner}")


def test_a_server_ends_with_its_test_run_however_that_ends(tmp_path: Path) -> None:
    with session(tmp_path) as (process, connection):
        supervisor = os.pidfd_open(supervisor_of(process.pid))
        process.send_signal(signal.SIGKILL)
        assert end_of(connection)
        # Its end comes after the folder's.
        assert select.select([supervisor], [], [], 30)[0]
        os.close(supervisor)
        assert list(tmp_path.iterdir()) == []


def test_a_server_ends_with_the_process_that_minds_it(tmp_path: Path) -> None:
    with session(tmp_path) as (process, connection):
        os.kill(supervisor_of(process.pid), signal.SIGKILL)
        assert end_of(connection)

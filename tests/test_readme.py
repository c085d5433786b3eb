"""The README's writer and reader are real programs: they are run, word for word but for the port."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
TIMEOUT_SECONDS = 60


def programs(port: int) -> list[str]:
    found = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    return [program.replace("4977", str(port)) for program in found]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert isinstance(port, int)
        return port


@contextmanager
def running(program: str, folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The program, killed at the end, or when it keeps us waiting too long: then its next line is empty."""
    # Unbuffered, so that each line can be awaited as a person at a terminal would.
    command = [sys.executable, "-u", "-c", program, *arguments]
    with subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        watchdog = threading.Timer(TIMEOUT_SECONDS, process.kill)
        watchdog.start()
        try:
            yield process
        finally:
            watchdog.cancel()
            process.kill()


def type_line(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def next_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def test_the_programs_have_at_most_twenty_lines() -> None:
    assert [len(program.splitlines()) <= 20 for program in programs(4977)] == [True, True]


def test_the_reader_skips_what_was_and_shows_what_comes(tmp_path: Path) -> None:
    writer_program, reader_program = programs(free_port())
    with running(writer_program, tmp_path) as writer:
        key = next_line(writer)
        assert len(bytes.fromhex(key)) == 32
        with running(reader_program, tmp_path, key) as reader:
            assert next_line(reader) == "Skipping 0 earlier blocks..."
            for line in ("first", "second", "third"):
                type_line(writer, line)
                assert next_line(reader) == line
        with running(reader_program, tmp_path, key) as again:
            assert next_line(again) == "Skipping 3 earlier blocks..."
            type_line(writer, "fourth")
            assert next_line(again) == "fourth"

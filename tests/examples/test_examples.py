"""The examples are run as their docstrings say, and do what they say."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path

import pytest

from tests.processes import EXAMPLES, program, running
from tests.running import run

ANY_PORT = "tcp://127.0.0.1:0"


def example(name: str, *arguments: str | Path) -> list[str]:
    """The lines that an example prints; it must succeed and not complain."""
    done = program(sys.executable, EXAMPLES / name, *arguments)
    assert (done.code, done.errors) == (0, "")
    return done.output.decode().splitlines()


def test_every_example_is_tested() -> None:
    tested = {"writer.py", "reader.py", "step_1.py", "step_2.py", "step_3.py", "demo.py"}
    tested_on_servers = {"backends.py", "cloud_mirror.py"}  # In test_cloud.
    tested_on_hosts = {"lan_writer.py", "lan_reader.py"}  # In tests/lan.
    assert {path.name for path in EXAMPLES.glob("*.py")} == tested | tested_on_servers | tested_on_hosts


def test_step_1_makes_a_log_that_grows_with_every_run(tmp_path: Path) -> None:
    key, before, *blocks, after = example("step_1.py", tmp_path / "log")
    assert re.fullmatch("key     [0-9a-f]{64}", key)
    assert before == "length  0"
    assert blocks == ["block 0 is b'hello'", "block 1 is b'and'", "block 2 is b'goodbye'"]
    assert after == "length  3 blocks, 15 bytes"
    again = example("step_1.py", tmp_path / "log")
    assert (again[0], again[1], again[-1]) == (key, "length  3", "length  6 blocks, 30 bytes")


def test_step_2_downloads_just_what_is_read() -> None:
    first, *blocks, last, refused = example("step_2.py")
    assert first == "the clone knows of 1000 blocks and holds 0"
    assert blocks == [f"block {index} is b'block number {index}'" for index in (7, 500, 999)]
    assert last == "the clone knows of 1000 blocks and holds 3"
    assert refused.startswith("the clone cannot be appended to: ")


def test_step_3_reads_each_block_as_it_is_appended() -> None:
    first, *lines = example("step_3.py")
    assert first == "Skipping 1 earlier blocks..."
    assert [line for line in lines if line.startswith("read live")] == [
        *("read live: one", "read live: two", "read live: three"),
    ]
    assert "the log has 2 blocks now" in lines


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_is_typed_into_the_writer_appears_at_the_reader(number: signal.Signals, tmp_path: Path) -> None:
    async def scene() -> None:
        async with running(sys.executable, EXAMPLES / "writer.py", tmp_path / "w", ANY_PORT) as writer:
            key, address = await writer.line(), await writer.line()
            async with running(sys.executable, EXAMPLES / "reader.py", key, address, tmp_path / "r") as reader:
                assert await reader.line() == "Skipping 0 earlier blocks..."
                for line in ("hello", "world", ""):
                    await writer.type(f"{line}\n")
                    assert await reader.line() == line
                assert await reader.done(number) == (0, b"", "")
            async with running(sys.executable, EXAMPLES / "reader.py", key, address, tmp_path / "r") as reader:
                assert await reader.line() == "Skipping 3 earlier blocks..."
                await writer.type("and on it goes\n")
                assert await reader.line() == "and on it goes"
                # Clean also for a reader whose writer goes first.
                assert await writer.done(number) == (0, b"", "")
                assert (await reader.done(number)).code == 0

    run(scene())


def test_the_writer_goes_on_serving_when_its_input_ends(tmp_path: Path) -> None:
    async def scene() -> None:
        async with running(sys.executable, EXAMPLES / "writer.py", tmp_path / "w", ANY_PORT) as writer:
            key, address = await writer.line(), await writer.line()
            await writer.type("all there is\n")
            assert writer.process.stdin is not None
            writer.process.stdin.close()
            async with running(sys.executable, EXAMPLES / "reader.py", key, address, tmp_path / "r") as reader:
                assert (await reader.line()).startswith("Skipping")
                assert writer.process.returncode is None
                assert (await writer.done(signal.SIGTERM)).code == 0

    run(scene())


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("step_1.py", ("nowhere://log",), "UnknownSchemeError: "),
        ("reader.py", ("abc",), "OptionError: a key is "),
        (
            "reader.py",
            ("00" * 32, "localhost:4977", "memory:"),
            "UnknownSchemeError: no plugin offers the scheme 'localhost'",
        ),
        ("writer.py", ("memory:", "tcp://127.0.0.1:x"), "AddressError: "),
        ("lan_writer.py", ("nowhere://log",), "UnknownSchemeError: "),
        ("lan_reader.py", ("abc",), "OptionError: a key is "),
        ("cloud_mirror.py", ("abc", "./copy"), "OptionError: a key is "),
    ],
)
def test_a_mistake_is_one_line(name: str, arguments: tuple[str, ...], said: str) -> None:
    done = program(sys.executable, EXAMPLES / name, *arguments)
    assert done.code == 1
    assert done.errors.startswith(said)
    assert done.errors.count("\n") == 1


def test_the_demo_ends_with_a_summary() -> None:
    lines = example("demo.py")
    assert any(re.search(r"\[#+\] (\d+) of \1 blocks$", line) for line in lines)
    assert sum("(live, after" in line for line in lines) == 3
    summary = re.fullmatch(r"(\d+) blocks, ([\d,]+) bytes, all of them verified, in \d+\.\d\d seconds", lines[-1])
    assert summary
    licence = (EXAMPLES.parent / "LICENSE").read_bytes().splitlines()
    assert int(summary[1]) == len(licence) + 3

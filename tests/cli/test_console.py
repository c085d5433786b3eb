"""What the command does to its input and its terminal."""

from __future__ import annotations

import os
import random
import sys

import pytest

from hypercore.cli import console, running
from hypercore.cli.appending import MOST_BATCH_BLOCKS, chunks_of, lines_of
from hypercore.cli.console import CommandError, Input, Progress, count_of, progress_line
from hypercore.log.engine import MAX_BLOCK_SIZE
from tests.running import run


class Pieces(Input):
    """An input whose reads give these pieces, whatever size was asked for, as long as it is no smaller."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    async def read(self, size: int) -> bytes:
        if not self._pieces:
            return b""
        piece = self._pieces.pop(0)
        if len(piece) > size:
            self._pieces.insert(0, piece[size:])
        return piece[:size]


def lines(*pieces: bytes) -> list[list[bytes]]:
    async def collect() -> list[list[bytes]]:
        return [batch async for batch in lines_of(Pieces(list(pieces)))]

    return run(collect())


def test_a_line_is_given_as_soon_as_its_newline_is_there() -> None:
    assert lines(b"one\ntw", b"o\n", b"\nthree") == [[b"one"], [b"two"], [b""], [b"three"]]


def test_text_that_ends_with_a_newline_has_no_empty_last_line() -> None:
    assert lines(b"one\n") == [[b"one"]]
    assert lines(b"\n") == [[b""]]
    assert lines() == []


@pytest.mark.parametrize("seed", range(20))
def test_lines_do_not_depend_on_how_the_input_arrives(seed: int) -> None:
    generator = random.Random(seed)
    text = bytes(generator.choices(b"ab\n", k=500))
    cuts = sorted(generator.choices(range(len(text)), k=20))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True) if start < end]
    given = [line for batch in lines(*pieces) for line in batch]
    expected = text.removesuffix(b"\n").split(b"\n") if text else []
    assert given == expected, f"seed {seed}"


def test_a_batch_of_lines_is_bounded() -> None:
    batches = lines(b"\n" * (2 * MOST_BATCH_BLOCKS + 1))
    assert [len(batch) for batch in batches] == [MOST_BATCH_BLOCKS, MOST_BATCH_BLOCKS, 1]


def test_a_line_of_the_largest_size_is_a_block_and_a_longer_one_is_refused() -> None:
    assert [len(line) for (line,) in lines(bytes(MAX_BLOCK_SIZE))] == [MAX_BLOCK_SIZE]
    with pytest.raises(CommandError, match="line 3 is longer"):
        lines(b"one\ntwo\n", bytes(MAX_BLOCK_SIZE), b"x")


@pytest.mark.parametrize("seed", range(10))
def test_chunks_are_full_however_the_input_arrives(seed: int) -> None:
    generator = random.Random(seed)
    data = generator.randbytes(1000)
    size = generator.randrange(1, 200)

    async def collect() -> list[bytes]:
        pieces = Pieces([data[:7], data[7:500], data[500:501], data[501:]])
        return [chunk async for batch in chunks_of(pieces, size) for chunk in batch]

    chunks = run(collect())
    assert b"".join(chunks) == data, f"seed {seed}"
    assert [len(chunk) for chunk in chunks[:-1]] == [size] * (len(chunks) - 1), f"seed {seed}"


def test_progress_says_how_far_and_how_fast() -> None:
    assert progress_line(12_345, 20_000, "blocks", 3400.4) == "12,345 of 20,000 blocks, 61%, 3,400 a second"
    assert progress_line(12_345, None, "bytes", 0.0) == "12,345 bytes, 0 a second"


@pytest.mark.parametrize(
    ("is_terminal", "quiet", "is_drawn"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_progress_is_drawn_at_a_terminal_only_and_wiped_at_the_end(
    is_terminal: bool,
    quiet: bool,
    is_drawn: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(console, "PROGRESS_AFTER_SECONDS", 0.0)
    monkeypatch.setattr(os, "isatty", lambda _: is_terminal)
    progress = Progress("blocks", quiet=quiet)
    progress.show(1, 2)
    assert ("1 of 2 blocks" in capsys.readouterr().err) == is_drawn
    progress.clear()
    assert capsys.readouterr().err == ("\r\x1b[K" if is_drawn else "")


def test_a_short_job_shows_no_progress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "isatty", lambda _: True)
    progress = Progress("blocks", quiet=False)
    progress.show(1, 2)
    progress.clear()
    assert capsys.readouterr().err == ""


def test_counts_agree_with_their_units() -> None:
    assert [count_of(number, "block") for number in (0, 1, 2000)] == ["0 blocks", "1 block", "2,000 blocks"]


def test_uvloop_is_used_when_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    import uvloop

    assert running._loop_factory() is uvloop.new_event_loop
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert running._loop_factory() is None

"""Writers interleaved at every request, in orders that seeds decide: see `schedules`.

Never two acknowledged commits in one place, never an acknowledged one missing from what a later reader sees, and who
was fenced stays so.
"""

from __future__ import annotations

import pytest

from hypercore_s3 import contents, folding, writer
from tests.running import run
from tests.soak import SOAK
from tests.storage.s3.schedules import LARGE_BYTES, World

#: Seeds of one test.
SEEDS = 50


@pytest.fixture(autouse=True)
def _everything_happens_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "LARGE_SIZE", LARGE_BYTES)
    monkeypatch.setattr(folding, "LARGE_SIZE", LARGE_BYTES)
    monkeypatch.setattr(writer, "FOLD_COMMITS", 3)
    monkeypatch.setattr(writer, "CLOSING_COMMITS", 1)


@pytest.mark.parametrize("first", range(0, 300 * SOAK, SEEDS))
def test_two_writers_never_both_succeed(first: int) -> None:
    _live_through(range(first, first + SEEDS), writers=2)


@pytest.mark.parametrize("first", range(100_000, 100_000 + 100 * SOAK, SEEDS))
def test_three_writers_never_both_succeed(first: int) -> None:
    _live_through(range(first, first + SEEDS), writers=3)


@pytest.mark.parametrize("first", range(200_000, 200_000 + 100 * SOAK, SEEDS))
def test_a_head_that_is_lost_at_any_moment_loses_nothing_else(first: int) -> None:
    _live_through(range(first, first + SEEDS), writers=3, lost_heads_max=1)


def _live_through(seeds: range, *, writers: int, lost_heads_max: int = 0) -> None:
    acknowledged = reads = takeovers = fenced = 0
    for seed in seeds:
        world = World(seed, lost_heads_max=lost_heads_max)
        run(world.run(writers=writers, steps=250))
        acknowledged += len(world.acknowledged)
        reads, takeovers, fenced = reads + world.reads, takeovers + world.takeovers, fenced + world.fenced
    # Or nothing was tried.
    assert acknowledged > 10 * SEEDS
    assert min(reads, takeovers) > SEEDS
    assert fenced > SEEDS / 10

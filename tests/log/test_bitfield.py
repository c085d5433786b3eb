"""The bitfield does what a plain set of numbers does, only cheaper."""

from __future__ import annotations

import random

import pytest

from hypercore.bitfield import PAGE_BLOCKS, PAGE_SIZE, Bitfield
from tests import disk_vectors

#: Three pages and a bit.
SPACE = 3 * PAGE_BLOCKS + 100
#: Where mistakes like to sit.
BORDERS = [
    0, 1, 7, 8, 31, 32, 33, PAGE_BLOCKS - 1, PAGE_BLOCKS, PAGE_BLOCKS + 1, 2 * PAGE_BLOCKS - 1, 2 * PAGE_BLOCKS, SPACE,
]  # fmt: skip


def _block(generator: random.Random) -> int:
    near = generator.choice(BORDERS) + generator.randint(-9, 9)
    return min(max(generator.choice([near, generator.randrange(SPACE)]), 0), SPACE)


def _range(generator: random.Random) -> tuple[int, int]:
    start, end = sorted([_block(generator), _block(generator)])
    return (start, end) if generator.random() < 0.5 else (start, min(start + generator.randrange(70), SPACE))


def _runs(blocks: set[int], start: int, end: int) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for block in sorted(block for block in blocks if start <= block < end):
        if runs and sum(runs[-1]) == block:
            runs[-1] = runs[-1][0], runs[-1][1] + 1
        else:
            runs.append((block, 1))
    return runs


def _page(blocks: set[int], number: int) -> bytes:
    page = bytearray(PAGE_SIZE)
    for block in blocks:
        if block // PAGE_BLOCKS == number:
            page[block % PAGE_BLOCKS // 8] |= 1 << block % 8
    return bytes(page)


def _change(generator: random.Random, bitfield: Bitfield, model: set[int]) -> None:
    """One random change, to both."""
    start, end = _range(generator)
    match generator.randrange(6):
        case 0:
            bitfield.set(start)
            model.add(start)
        case 1:
            bitfield.set(start, False)
            model.discard(start)
        case 2 | 3:
            bitfield.set_range(start, end - start)
            model.update(range(start, end))
        case 4:
            bitfield.set_range(start, end - start, False)
            model.difference_update(range(start, end))
        case _:
            start -= start % 32
            words = generator.choice([bytes(64), b"\xff" * PAGE_SIZE, generator.randbytes(4 * generator.randrange(90))])
            bitfield.set_from_words(start, words)
            model.difference_update(range(start, start + 8 * len(words)))
            model.update(start + bit for bit in range(8 * len(words)) if words[bit >> 3] >> (bit & 7) & 1)


@pytest.mark.parametrize("seed", range(8))
def test_it_answers_like_a_set_whatever_was_done_to_it(seed: int) -> None:
    generator = random.Random(seed)
    bitfield, model = Bitfield(), set[int]()
    for step in range(40):
        _change(generator, bitfield, model)
        start, end = _range(generator)
        inside = [block for block in range(start, end) if block in model]
        said = f"seed {seed}, step {step}, blocks {start} to {end}"
        assert [bitfield.get(block) for block in BORDERS] == [block in model for block in BORDERS], said
        assert bitfield.get(start) == (start in model), said
        assert bitfield.count(start, end) == len(inside), said
        assert bitfield.first_set(start, end) == (inside[0] if inside else None), said
        gap = next((block for block in range(start, end) if block not in model), None)
        assert bitfield.first_unset(start, end) == gap, said
        assert bitfield.is_full(start, end) == (gap is None), said
        assert bitfield.last_set_before(end) == max((block for block in model if block < end), default=None), said
        assert list(bitfield.runs(start, end)) == _runs(model, start, end), said


@pytest.mark.parametrize("seed", range(6))
def test_its_dirty_pages_are_all_that_a_file_needs(seed: int) -> None:
    generator = random.Random(seed)
    bitfield, model, file = Bitfield(), set[int](), dict[int, bytes]()
    for _ in range(40):
        _change(generator, bitfield, model)
        if generator.random() < 0.3:
            file.update(bitfield.dirty_pages())
            bitfield.clear_dirty()
    file.update(bitfield.dirty_pages())
    for number in range(5):
        assert file.get(number, bytes(PAGE_SIZE)) == _page(model, number), f"seed {seed}, page {number}"
    loaded = Bitfield()
    for number, page in file.items():
        loaded.load_page(number, page)
    assert list(loaded.runs()) == _runs(model, 0, SPACE + PAGE_BLOCKS), f"seed {seed}"
    assert loaded.dirty_pages() == []


def test_a_change_that_changes_nothing_makes_no_page_dirty() -> None:
    bitfield = Bitfield()
    bitfield.set_range(0, PAGE_BLOCKS + 5)
    bitfield.clear_dirty()
    bitfield.set(3)
    bitfield.set_range(2, PAGE_BLOCKS)
    bitfield.set_range(0, PAGE_BLOCKS)
    bitfield.set(PAGE_BLOCKS + 5, False)
    bitfield.set_range(PAGE_BLOCKS + 5, 2**50, False)
    bitfield.set_from_words(0, b"\xff" * PAGE_SIZE)
    assert bitfield.dirty_pages() == []


def test_a_page_that_did_not_reach_the_file_is_dirty_again_when_told_so() -> None:
    bitfield = Bitfield()
    bitfield.set(1)
    bitfield.clear_dirty()
    bitfield.mark_dirty(0)
    assert bitfield.dirty_pages() == [(0, b"\x02".ljust(PAGE_SIZE, b"\x00"))]


def test_a_page_that_became_empty_is_written_as_zeros() -> None:
    bitfield = Bitfield()
    bitfield.load_page(2, b"\xff" * PAGE_SIZE)
    bitfield.set_range(0, 2**53, False)
    assert bitfield.dirty_pages() == [(2, bytes(PAGE_SIZE))]


def test_pages_that_are_full_stay_apart_from_each_other() -> None:
    bitfield = Bitfield()
    bitfield.set_range(0, 2 * PAGE_BLOCKS)
    bitfield.set(5, False)
    assert not bitfield.get(5)
    assert bitfield.get(PAGE_BLOCKS + 5)
    assert bitfield.page(1) == b"\xff" * PAGE_SIZE
    other = Bitfield()
    other.set_range(0, PAGE_BLOCKS)
    assert other.get(5)


def test_a_short_last_page_ends_in_zeros() -> None:
    bitfield = Bitfield()
    bitfield.load_page(0, b"\xff\x01")
    assert list(bitfield.runs()) == [(0, 9)]


def test_nothing_is_ever_set_at_or_above_the_limit() -> None:
    bitfield = Bitfield(limit_blocks=PAGE_BLOCKS + 13)
    bitfield.set(PAGE_BLOCKS + 13)
    bitfield.set(2**60)
    bitfield.set(-1)
    assert list(bitfield.runs()) == []
    bitfield.set_range(40, 2**62)
    assert list(bitfield.runs()) == [(40, PAGE_BLOCKS - 27)]
    bitfield.set_from_words(0, b"\xff" * 2 * PAGE_SIZE)
    bitfield.set_from_words(2**40, b"\xff" * 400)
    bitfield.load_page(1, b"\xff" * PAGE_SIZE)
    bitfield.load_page(2, b"\xff" * PAGE_SIZE)
    assert list(bitfield.runs()) == [(0, PAGE_BLOCKS + 13)]
    assert not bitfield.get(PAGE_BLOCKS + 13)
    assert not bitfield.get(2 * PAGE_BLOCKS)
    assert bitfield.first_unset() is None
    assert not bitfield.is_full(0, PAGE_BLOCKS + 14)
    assert bitfield.count() == PAGE_BLOCKS + 13


def test_questions_about_endless_ranges_are_answered() -> None:
    bitfield = Bitfield()
    bitfield.set(2**52)
    bitfield.set(7)
    bitfield.set_range(2**40, 2**50, False)
    assert bitfield.first_set(8) == 2**52
    assert bitfield.first_unset(2**52) == 2**52 + 1
    assert bitfield.last_set_before(2**52) == 7
    assert bitfield.count() == 2
    assert list(bitfield.runs()) == [(7, 1), (2**52, 1)]
    assert bitfield.last_set_before(0) is None
    assert bitfield.first_unset(5, 5) is None


@pytest.mark.parametrize("start", [0, 32, PAGE_BLOCKS - 64, PAGE_BLOCKS, 2 * PAGE_BLOCKS - 32])
@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 64, PAGE_BLOCKS, 2 * PAGE_BLOCKS + 7])
def test_words_hold_the_bits_of_the_range_and_no_others(start: int, count: int) -> None:
    generator = random.Random(count)
    bitfield, model = Bitfield(), set[int]()
    for block in [*BORDERS, *generator.sample(range(SPACE), 5000)]:
        bitfield.set(block)
        model.add(block)
    words = bitfield.words(start, count)
    assert len(words) == (count + 31) // 32 * 4
    held = {start + bit for bit in range(8 * len(words)) if words[bit >> 3] >> (bit & 7) & 1}
    assert held == {block for block in model if start <= block < start + count}
    copy = Bitfield()
    copy.set_range(start, count)
    copy.set_from_words(start, words)
    assert list(copy.runs()) == list(bitfield.runs(start, start + count))


def test_words_begin_at_a_multiple_of_32() -> None:
    with pytest.raises(ValueError, match="not the first of a word"):
        Bitfield().words(8, 32)
    with pytest.raises(ValueError, match="not the first of a word"):
        Bitfield().set_from_words(33, b"\xff" * 4)


def test_bits_lie_where_hypercore_10_puts_them() -> None:
    bitfield = Bitfield()
    bitfield.load_page(0, disk_vectors.files("cleared")["bitfield"])
    assert [list(run) for run in bitfield.runs()] == disk_vectors.load("cleared")["expect"]["have"]

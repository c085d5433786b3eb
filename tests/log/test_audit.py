"""An audit finds whatever is damaged, and nothing where all is well."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from hypercore.errors import CorruptError
from hypercore.log.engine import Log
from hypercore.plugins import open_storage
from tests.running import run

BLOCKS = [bytes([index]) * (index % 7) for index in range(50)]


async def open_log(folder: Path, *, read_only: bool = True) -> Log:
    return await Log.open(open_storage(str(folder)), read_only=read_only)


async def make_log(folder: Path) -> None:
    log = await open_log(folder, read_only=False)
    await log.append(BLOCKS)
    await log.flush()  # From now on the files say it all.
    await log.aclose()


async def findings(folder: Path) -> list[CorruptError]:
    log = await open_log(folder)
    try:
        return [error async for error in log.audit()]
    finally:
        await log.aclose()


async def whatever_is_found(folder: Path) -> tuple[list[CorruptError], list[str]]:
    """Findings and warnings; what keeps the log from opening is a finding too."""
    try:
        log = await open_log(folder)
    except CorruptError as error:
        return [error], []
    try:
        return [error async for error in log.audit()], log.warnings
    finally:
        await log.aclose()


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x40
    path.write_bytes(data)


def test_a_sound_log_has_no_findings(tmp_path: Path) -> None:
    async def scene() -> None:
        await make_log(tmp_path)
        assert await findings(tmp_path) == []

    run(scene())


def test_an_empty_log_has_no_findings(tmp_path: Path) -> None:
    async def scene() -> None:
        await (await open_log(tmp_path, read_only=False)).aclose()
        assert await findings(tmp_path) == []

    run(scene())


@pytest.mark.parametrize("seed", range(30))
def test_a_flipped_bit_in_a_block_is_found_and_names_it(seed: int, tmp_path: Path) -> None:
    async def scene() -> None:
        await make_log(tmp_path)
        index = random.Random(seed).choice([index for index, block in enumerate(BLOCKS) if block])
        flip(tmp_path / "data", sum(map(len, BLOCKS[:index])))
        assert [(error.file, error.index) for error in await findings(tmp_path)] == [("data", index)], f"seed {seed}"

    run(scene())


@pytest.mark.parametrize("seed", range(30))
def test_a_flipped_bit_in_the_tree_is_found_or_mended(seed: int, tmp_path: Path) -> None:
    async def scene() -> None:
        await make_log(tmp_path)
        before = (tmp_path / "tree").read_bytes()
        position = random.Random(seed).choice([place for place, byte in enumerate(before) if byte])
        flip(tmp_path / "tree", position)
        found, warnings = await whatever_is_found(tmp_path)
        # A root is made anew from its children, and the log says so.
        assert found or warnings, f"seed {seed}"
        assert {error.file for error in found} <= {"tree"}, f"seed {seed}"

    run(scene())


def test_a_missing_file_is_a_finding_for_each_of_its_blocks(tmp_path: Path) -> None:
    async def scene() -> None:
        await make_log(tmp_path)
        (tmp_path / "data").unlink()
        assert [error.index for error in await findings(tmp_path)] == [
            index for index, block in enumerate(BLOCKS) if block
        ]

    run(scene())


def test_cleared_blocks_are_no_findings(tmp_path: Path) -> None:
    async def scene() -> None:
        log = await open_log(tmp_path, read_only=False)
        await log.append(BLOCKS)
        await log.clear(10, 20)
        await log.aclose()
        assert await findings(tmp_path) == []

    run(scene())


def test_a_log_that_was_cut_and_grew_again_has_no_findings(tmp_path: Path) -> None:
    async def scene() -> None:
        log = await open_log(tmp_path, read_only=False)
        for length in (50, 33, 7):
            await log.append(BLOCKS)
            await log.truncate(length)
            await log.flush()
        await log.append(BLOCKS[:3])
        await log.aclose()
        assert await findings(tmp_path) == []

    run(scene())


def test_progress_is_told_while_it_goes_on(tmp_path: Path) -> None:
    async def scene() -> None:
        log = await open_log(tmp_path, read_only=False)
        await log.append([b"x"] * 1000)
        counts: list[int] = []
        assert [error async for error in log.audit(counts.append)] == []
        assert counts == [256, 512, 768, 1000]
        await log.aclose()

    run(scene())

"""An audit finds everything that is wrong with a log, and nothing that is right."""

from __future__ import annotations

import asyncio
import random

import pytest

from hypercore.errors import CorruptError
from hypercore.log.engine import Log
from tests import disk_vectors
from tests.log.logs import Disk, fetch, have, new_log, reader_of
from tests.log.test_engine_vectors import OPENING
from tests.running import run


async def problems(log: Log) -> list[CorruptError]:
    return [problem async for problem in log.audit()]


@pytest.mark.parametrize("name", [name for name in OPENING if name not in ("lost-data", "lost-leaf")])
def test_folders_of_hypercore_10_that_are_sound_are_found_sound(name: str) -> None:
    async def scenario() -> None:
        log = await Log.open(Disk(disk_vectors.files(name)).storage())
        assert [str(problem) for problem in await problems(log)] == []
        await log.flush()
        assert [str(problem) for problem in await problems(log)] == []

    run(scenario())


def test_lost_bytes_and_lost_nodes_are_found() -> None:
    async def scenario() -> None:
        data = await problems(await Log.open(Disk(disk_vectors.files("lost-data")).storage()))
        assert [(problem.file, problem.index) for problem in data] == [("data", 2), ("data", 3)]
        leaf = await problems(await Log.open(Disk(disk_vectors.files("lost-leaf")).storage()))
        assert [(problem.file, problem.offset, problem.index) for problem in leaf] == [
            ("tree", 40 * 5, None),
            ("tree", None, 2),
            ("tree", None, 3),
        ]

    run(scenario())


def test_progress_is_told_and_a_sparse_clone_is_sound() -> None:
    async def scenario() -> None:
        writer = await new_log()
        await writer.append([b"%d" % index for index in range(2000)])
        reader = await reader_of(writer)
        await fetch(writer, reader, random.Random(1).sample(range(2000), 100))
        told: list[int] = []
        assert [problem async for problem in reader.audit(told.append)] == []
        assert told == sorted(told)
        assert told[-1] == len(have(reader)) == 100
        writer_told: list[int] = []
        assert [problem async for problem in writer.audit(writer_told.append)] == []
        assert writer_told[-1] == 2000

    run(scenario())


@pytest.mark.parametrize("file", ["tree", "data"])
@pytest.mark.parametrize("seed", range(12))
def test_one_flipped_bit_is_always_found(file: str, seed: int) -> None:
    async def scenario() -> None:
        generator = random.Random(seed)
        disk = Disk()
        log = await new_log(disk)
        # A full tree: each node that is stored below its root is vouched for.
        await log.append([generator.randbytes(generator.randrange(1, 30)) for _ in range(1024)])
        await log.flush()
        await log.aclose()
        held = disk.contents[file]
        offset = generator.randrange(len(held))
        held[offset] ^= 1 << generator.randrange(8)
        log = await Log.open(disk.storage())
        found = await problems(log)
        # A damaged root is made anew when the log is opened, and said then.
        assert found or log.warnings, f"seed {seed}, byte {offset}"
        assert {problem.file for problem in found} <= {file}, f"seed {seed}, byte {offset}"

    run(scenario())


def test_a_log_that_is_cut_meanwhile_is_looked_at_again() -> None:
    async def scenario() -> None:
        log = await new_log()
        await log.append([b"x"] * 1000)
        task = asyncio.create_task(problems(log))
        await asyncio.sleep(0)
        await log.truncate(10)
        with pytest.raises(CorruptError, match="look again"):
            await task

    run(scenario())

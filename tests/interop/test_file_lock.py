"""Node's hypercore 10 and the file backend keep each other off one folder."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hypercore.errors import LockedError
from hypercore_file import FileStorage
from tests.running import run

pytestmark = pytest.mark.interop

HYPERCORE = Path(__file__).parent / "node" / "hypercore10" / "node_modules" / "hypercore"

#: Opens the folder, says how that went, and stays until its input ends.
OPENER = """
const Hypercore = require(process.argv[1])
const core = new Hypercore(process.argv[2])
core.ready().then(
  () => {
    console.log('open')
    process.stdin.resume().on('end', () => core.close())
  },
  (error) => console.log(error.code)
)
"""


@pytest.fixture
def node() -> Iterator[Callable[[Path], str]]:
    started = []

    def start(folder: Path) -> str:
        process = subprocess.Popen(
            ["node", "-e", OPENER, str(HYPERCORE), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        return process.stdout.readline().strip()

    yield start
    for process in started:
        process.communicate(timeout=30)


def test_while_node_has_the_folder_open_we_may_read_and_not_write(tmp_path: Path, node: Callable[[Path], str]) -> None:
    async def body() -> None:
        assert node(tmp_path) == "open"
        async with FileStorage(tmp_path) as storage:
            with pytest.raises(LockedError, match="oplog is locked"):
                await storage.acquire()
            assert await (await storage.open("oplog")).size() == 8192

    run(body())


def test_while_we_have_the_lease_node_is_locked_out_and_afterwards_it_is_not(
    tmp_path: Path, node: Callable[[Path], str]
) -> None:
    async def body() -> None:
        async with FileStorage(tmp_path) as storage:
            await storage.acquire()
            assert node(tmp_path) == "ELOCKED"
        assert node(tmp_path) == "open"

    run(body())

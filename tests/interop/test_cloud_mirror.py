"""A Node reader that is fed by a mirror in a bucket, while the writer is away."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from tests.processes import EXAMPLES, running
from tests.running import run
from tests.servers.s3 import new_prefix, seaweedfs

pytestmark = pytest.mark.interop

NODE = Path(__file__).parent / "node"


@pytest.mark.parametrize("major", [10, 11])
def test_a_node_reader_reads_from_a_mirror_in_a_bucket(major: int, tmp_path: Path) -> None:
    bucket = seaweedfs().url(new_prefix() + "/{key}")
    shutil.copy(EXAMPLES / "node_reader.js", tmp_path)
    # Where `npm install hypercore` would have put it.
    os.symlink(NODE / f"hypercore{major}" / "node_modules", tmp_path / "node_modules")

    async def scene() -> None:
        async with running(sys.executable, EXAMPLES / "writer.py", tmp_path / "w", "tcp://127.0.0.1:0") as writer:
            key, source = await writer.line(), await writer.line()
            await writer.type("".join(f"line {number}\n" for number in range(1000)))
            async with running(
                *(sys.executable, EXAMPLES / "cloud_mirror.py", key, bucket, source, "tcp://127.0.0.1:0")
            ) as mirror:
                port = (await mirror.line()).rpartition(":")[2]
                while not (await mirror.line()).startswith("1000 of 1000 blocks"):
                    pass
                async with running("env", "-C", tmp_path, "node", "node_reader.js", key, port) as reader:
                    for number in range(1000):
                        assert await reader.line() == f"line {number}"
                    await writer.type("and what comes\n")
                    assert await reader.line() == "and what comes"
                    assert (await writer.done(signal.SIGTERM)).code == 0
                async with running(
                    *(
                        "env",
                        "-C",
                        tmp_path,
                        "sh",
                        "-c",
                        f"rm -r node-reader-storage-*; exec node node_reader.js {key} {port}",
                    )
                ) as reader:
                    # The writer is gone; all of it comes from the bucket.
                    for number in range(1000):
                        assert await reader.line() == f"line {number}"
                    assert await reader.line() == "and what comes"
                assert (await mirror.done(signal.SIGTERM)).code == 0

    run(scene())

"""The examples that need a server: one program on four backends, and a mirror in a bucket that is killed on the way."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from tests.processes import EXAMPLES, hypercore, program, running
from tests.running import run
from tests.servers.redis import shared_server
from tests.servers.s3 import moto, new_prefix

ANY_PORT = "tcp://127.0.0.1:0"


def test_one_program_runs_on_four_backends(tmp_path: Path) -> None:
    redis = shared_server("redis").address(prefix=new_prefix())
    bucket = moto().url(new_prefix())
    addresses = (tmp_path / "log", "memory:", redis, bucket)
    for length in (3, 6):
        done = program(sys.executable, EXAMPLES / "backends.py", *addresses)
        assert (done.code, done.errors) == (0, "")
        lengths = [line.partition(" ")[0] for line in done.output.decode().splitlines()]
        assert lengths == [str(length), "3", str(length), str(length)]


def test_a_backend_that_is_not_there_is_named() -> None:
    done = program(sys.executable, EXAMPLES / "backends.py", "redis://127.0.0.1:1/0")
    assert done.code == 1
    assert "127.0.0.1:1" in done.errors
    assert "Traceback" not in done.errors


def test_a_mirror_in_a_bucket_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    bucket = moto().url(new_prefix() + "/{key}", lease_seconds=2)

    async def scene() -> None:
        async with running(sys.executable, EXAMPLES / "writer.py", tmp_path / "w", ANY_PORT) as writer:
            key, source = await writer.line(), await writer.line()
            await writer.type("".join(f"line {number}\n" for number in range(500)))
            command = (sys.executable, EXAMPLES / "cloud_mirror.py", key, bucket, source, ANY_PORT)
            async with running(*command) as mirror:
                assert (await mirror.line()).startswith("readers dial tcp://127.0.0.1:")
                while not (await mirror.line()).startswith("500 of 500 blocks"):
                    pass
                await writer.type("".join(f"line {number}\n" for number in range(500, 2000)))
                mirror.process.kill()
            async with running(*command) as mirror:
                address = (await mirror.line()).removeprefix("readers dial ")
                while not (await mirror.line()).startswith("2000 of 2000 blocks"):
                    pass
                assert (await writer.done(signal.SIGTERM)).code == 0
                async with running(
                    *(sys.executable, "-m", "hypercore", "clone", key, tmp_path / "copy", "--from", address)
                ) as reader:
                    assert (await reader.done()).code == 0
                assert (await mirror.done(signal.SIGTERM)).code == 0
        lines = hypercore("cat", tmp_path / "copy", "--lines").output.decode().splitlines()
        assert lines == [f"line {number}" for number in range(2000)]
        assert hypercore("verify", bucket.replace("{key}", key)).code == 0

    run(scene())

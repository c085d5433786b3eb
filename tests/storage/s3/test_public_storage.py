"""A log in a public bucket is read over the web, by anybody and without credentials."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from hypercore import Hypercore, NotWritableError, StorageMissingError, Swarm
from hypercore.plugins import open_storage
from tests.processes import hypercore
from tests.running import run
from tests.servers.s3 import new_prefix, seaweedfs

BLOCKS = [b"block %d" % number for number in range(300)] + [bytes(200_000)]


class Published(NamedTuple):
    key: str
    url: str
    prefix: str


@pytest.fixture
def published() -> Published:
    server = seaweedfs()
    prefix = new_prefix() + "/with space"

    async def publish() -> str:
        address = replace(server, bucket=server.public_bucket).url(prefix.replace(" ", "%20"))
        async with Hypercore(address) as core:
            await core.append(BLOCKS)
            return core.key.hex()

    key = run(publish())
    return Published(key, f"{server.endpoint_url}/{server.public_bucket}/{prefix}".replace(" ", "%20"), prefix)


def test_it_is_opened_like_any_other_storage_and_cannot_be_changed(published: Published) -> None:
    async def promise() -> None:
        storage = open_storage(published.url, most_connections=4)
        assert str(storage) == published.url
        async with Hypercore(storage, read_only=True) as core:
            assert core.key.hex() == published.key
            assert [await core.get(index) for index in range(core.length)] == BLOCKS
            with pytest.raises(NotWritableError):
                await core.append(b"more")
        with pytest.raises(NotWritableError):
            await open_storage(published.url).acquire()

    run(promise())


def test_it_is_a_peer(published: Published, tmp_path: Path) -> None:
    async def promise() -> None:
        async with Hypercore(tmp_path / "copy", published.key) as core, Swarm(peers=[published.url]) as swarm:
            swarm.join(core)
            assert await core.update()
            assert await core.get(17) == BLOCKS[17]
            await core.download(0, core.length).done()
            assert core.contiguous_length == len(BLOCKS)

    run(promise())


def test_the_command_clones_it(published: Published, tmp_path: Path) -> None:
    done = hypercore("clone", published.key, tmp_path / "copy", "--from", published.url)
    assert (done.code, done.errors) == (0, "")
    assert hypercore("verify", tmp_path / "copy").code == 0
    assert hypercore("cat", tmp_path / "copy").output == b"".join(BLOCKS)


def test_a_place_with_nothing_in_it_says_so(published: Published) -> None:
    async def promise() -> None:
        with pytest.raises(StorageMissingError, match="no core"):
            async with Hypercore(f"{published.url}-not", read_only=True):
                pass

    run(promise())
    done = hypercore("info", f"{published.url}-not")
    assert done.code == 1
    assert "Traceback" not in done.errors

"""Connections break and processes die: what was downloaded stays, and the rest comes afterwards, on either side."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from hypercore.core import Hypercore
from hypercore.errors import BlockNotAvailableError
from hypercore.plugins import open_storage
from hypercore.swarm import Swarm
from hypercore.testing import CrashStorage, FlakyStream
from tests.interop.node_peer import NodePeer
from tests.interop.stage import (
    NodeCore,
    Stage,
    all_settings,
    blocks,
    clone_whole,
    contents,
    digest,
    few_settings,
    node_clones_whole,
    open_in,
)
from tests.replication.links import eventually

pytestmark = pytest.mark.interop

#: A connection that breaks after so many bytes has carried some of the blocks, but not all.
BREAKING_BYTES = 150_000


@all_settings
def test_we_come_back_and_download_only_what_is_missing(stage: Stage) -> None:
    async def main() -> None:
        writer = await stage.node_writer(400)
        folder = str(stage.folder / "reader")
        async with stage.core(writer.key, storage=folder) as reader:
            await stage.connect(reader)
            await reader.update()
            await reader.download(0, 150).done()
        await writer.command("append", count=50, size=20)
        async with stage.core(writer.key, storage=folder) as reader:
            assert (reader.length, reader.contiguous_length) == (400, 150)
            await stage.connect(reader)
            await clone_whole(reader)
            assert reader.peers[0].blocks_received == 300
            assert await contents(reader) == blocks(0, 450, 20)

    stage.run(main())


@all_settings
def test_node_comes_back_and_downloads_only_what_is_missing(stage: Stage) -> None:
    async def main() -> None:
        async with stage.core() as writer:
            await writer.append(blocks(0, 400, 20))
            reader = await stage.node_clone(writer.key)
            first = await stage.connect(writer)
            await reader.command("wait", length=400)
            await reader.command("download", end=150)
            await first.aclose()
            await reader.close()
            await writer.append(blocks(400, 450, 20))
            assert (await reader.command("open", storage=str(stage.folder / reader.name)))["length"] == 400
            await stage.connect(writer)
            assert await node_clones_whole(reader, 450) == digest(blocks(0, 450, 20))
            assert writer.peers[0].blocks_sent == 300

    stage.run(main())


@few_settings
def test_we_go_on_where_a_connection_broke(stage: Stage) -> None:
    async def main() -> None:
        writer = await stage.node_writer(300, 1000)
        stage.complaints_expected = True
        async with stage.core(writer.key) as reader:
            breaking = await stage.connect(reader, wrap=lambda stream: FlakyStream(stream, reset_after=BREAKING_BYTES))
            with pytest.raises(BlockNotAvailableError):
                await reader.download(0, 300).done()
            await breaking.wait_closed()
            stored = (await reader.info()).stored_blocks
            assert stored < 300
            await stage.connect(reader)
            await clone_whole(reader)
            assert reader.peers[0].blocks_received == 300 - stored
            assert await contents(reader) == blocks(0, 300, 1000)

    stage.run(main())


@few_settings
def test_node_goes_on_where_a_connection_broke(stage: Stage) -> None:
    async def main() -> None:
        stage.complaints_expected = True
        async with stage.core() as writer:
            await writer.append(blocks(0, 300, 1000))
            reader = await stage.node_clone(writer.key)
            breaking = await stage.connect(writer, wrap=lambda stream: FlakyStream(stream, reset_after=BREAKING_BYTES))
            await reader.command("wait", length=300)
            downloading = asyncio.create_task(reader.command("download"))
            await breaking.wait_closed()
            await reader.peer.event("disconnected")
            stored = await reader.stored()  # At least: answers that have come may not be verified yet.
            await stage.connect(writer)
            assert (await downloading)["sha256"] == digest(blocks(0, 300, 1000))
            assert 0 < writer.peers[0].blocks_sent <= 300 - stored

    stage.run(main())


@few_settings
def test_a_swarm_dials_again_and_goes_on_live(stage: Stage) -> None:
    async def main() -> None:
        stage.complaints_expected = True
        writer = await stage.node_writer(3)
        port = (await writer.peer.command("listen"))["port"]
        async with stage.core(writer.key) as reader, Swarm(peers=[f"tcp://127.0.0.1:{port}"]) as swarm:
            swarm.join(reader)
            stream = reader.create_read_stream(live=True)
            assert [await anext(stream) for _ in range(3)] == blocks(0, 3, 20)
            for turn in range(2):
                await eventually(lambda: bool(reader.peers))
                await writer.peer.command("disconnect")
                await writer.command("append", text=f"after break {turn}")
                assert await anext(stream) == b"after break %d" % turn
            await stream.aclose()  # type: ignore[attr-defined]

    stage.run(main())


async def start_writer(stage: Stage, *, port: int = 0) -> tuple[NodeCore, int]:
    """A writer in a process of its own, which a test may kill."""
    peer = await NodePeer.start(stage.major, "folder")
    core = await open_in(peer, "main", storage=str(stage.folder / "writer"), compat=stage.compat)
    return core, (await peer.command("listen", port=port))["port"]


@few_settings
def test_we_go_on_when_a_killed_writer_of_nodes_is_back(stage: Stage) -> None:
    async def main() -> None:
        writer, port = await start_writer(stage)
        await writer.command("append", count=200, size=500)
        async with stage.core(writer.key) as reader, Swarm(peers=[f"tcp://127.0.0.1:{port}"]) as swarm:
            swarm.join(reader)
            await reader.update()
            mirror = reader.download()
            await eventually(lambda: mirror.progress.have > 20)
            await writer.peer.kill()
            await eventually(lambda: not reader.peers)
            writer, _ = await start_writer(stage, port=port)
            assert (await writer.command("info"))["length"] == 200
            await writer.command("append", count=50, size=500)
            await eventually(lambda: reader.contiguous_length == 250)
            assert await contents(reader) == blocks(0, 250, 500)
            mirror.destroy()
        await writer.peer.stop()

    stage.run(main())


@few_settings
def test_a_killed_reader_of_nodes_comes_back_and_goes_on(stage: Stage) -> None:
    async def main() -> None:
        async with stage.core() as writer, Swarm("tcp://127.0.0.1:0") as swarm:
            await writer.append(blocks(0, 300, 2000))
            swarm.join(writer)
            port = int(swarm.addresses[0].rpartition(":")[2])

            async def start_reader() -> NodeCore:
                peer = await NodePeer.start(stage.major, "folder")
                storage = str(stage.folder / "reader")
                core = await open_in(peer, "main", storage=storage, key=writer.key.hex())
                await peer.command("dial", port=port)
                await core.command("wait", length=300)
                return core

            reader = await start_reader()
            await reader.command("download", end=100)
            downloading = asyncio.create_task(reader.command("download", start=100))
            await eventually(lambda: writer.peers[0].blocks_sent > 120)
            await reader.peer.kill()
            await asyncio.wait([downloading])
            assert downloading.exception() is not None or downloading.result()["blocks"] == 200
            await eventually(lambda: not writer.peers)
            reader = await start_reader()
            stored = await reader.stored()
            assert await node_clones_whole(reader, 300) == digest(blocks(0, 300, 2000))
            assert writer.peers[0].blocks_sent == 300 - stored
            await reader.peer.stop()

    stage.run(main())


def knows_the_signer(reader: Hypercore, stage: Stage) -> bool:
    return stage.compat or reader.manifest is not None


@all_settings
def test_a_copy_that_was_killed_at_any_step_becomes_whole_with_node(stage: Stage) -> None:
    """Its manifest, too, which reaches our storage last."""

    async def main() -> None:
        writer = await stage.node_writer(4)
        place = f"memory:{writer.key.hex()}"
        crash = CrashStorage(open_storage(place))
        async with open_storage(place) as inner:
            async with stage.core(writer.key, storage=crash) as reader:
                await stage.connect(reader)
                await clone_whole(reader)
            crash.inner = inner  # The reader closed its own.
            for after in range(len(crash.steps) + 1):
                left = await crash.kill(open_storage("memory:"), after=after)
                async with stage.core(writer.key, storage=left) as reader:
                    await stage.connect(reader)
                    await clone_whole(reader)
                    await eventually(partial(knows_the_signer, reader, stage))
                    assert await contents(reader) == blocks(0, 4, 20), f"killed after step {after}"

    stage.run(main())

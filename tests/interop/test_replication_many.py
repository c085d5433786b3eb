"""More than two: several peers, several cores, several signers; and what travels beside the blocks."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from hypercore.core import Hypercore
from hypercore.crypto import KeyPair
from hypercore.log.manifest import Authority, Manifest, Signer, manifest_key
from hypercore.peer import Peer
from tests.interop.node_peer import NodePeer
from tests.interop.stage import (
    FEW_SETTINGS,
    Stage,
    all_settings,
    blocks,
    clone_whole,
    connect,
    contents,
    digest,
    few_settings,
    node_clones_whole,
    open_in,
)
from tests.replication.links import eventually, link

pytestmark = pytest.mark.interop

manifest_settings = pytest.mark.parametrize(
    "setting", [setting for setting in FEW_SETTINGS if not setting.compat], ids=str
)


# ---- several peers ----


@few_settings
def test_we_download_from_node_10_and_node_11_and_a_copy_of_ours_at_once(wide_stage: Stage) -> None:
    stage = wide_stage

    async def main() -> None:
        async with AsyncExitStack() as stack:
            writer = await stack.enter_async_context(stage.core())
            await writer.append(blocks(0, 1200, 200))
            copy = await stack.enter_async_context(stage.core(writer.key))
            await link(writer, copy)
            await clone_whole(copy)
            for major in (10, 11):
                theirs = await stage.node_clone(writer.key, major=major)
                first = await stage.connect(writer, major=major)
                await node_clones_whole(theirs, 1200)
                await first.aclose()
            reader = await stack.enter_async_context(stage.core(writer.key))
            await link(copy, reader)
            for major in (10, 11):
                await stage.connect(reader, major=major)
            await eventually(lambda: len(reader.peers) == 3)
            await clone_whole(reader)
            assert await contents(reader) == blocks(0, 1200, 200)
            received = [peer.blocks_received for peer in reader.peers]
            assert sum(received) == 1200
            assert min(received) > 0, received

    stage.run(main())


@few_settings
def test_node_downloads_from_node_10_and_node_11_and_a_copy_of_ours_at_once(wide_stage: Stage) -> None:
    stage = wide_stage

    async def main() -> None:
        async with stage.core() as writer:
            await writer.append(blocks(0, 1200, 200))
            for major in (10, 11):
                theirs = await stage.node_clone(writer.key, major=major)
                first = await stage.connect(writer, major=major)
                await node_clones_whole(theirs, 1200)
                await first.aclose()
            async with await NodePeer.start(stage.major, "folder") as third:
                storage = str(stage.folder / "third")
                reader = await open_in(third, "main", storage=storage, key=writer.key.hex())
                for major in (10, 11):
                    port = (await (await stage.node(major)).command("listen"))["port"]
                    await third.command("dial", port=port)
                ours = await connect(third, writer, role=stage.role)
                await reader.command("wait", peers=3)
                assert await node_clones_whole(reader, 1200) == digest(blocks(0, 1200, 200))
                assert 0 < writer.peers[0].blocks_sent <= 1200
                await ours.aclose()

    stage.run(main())


@few_settings
def test_a_chain_from_node_over_us_to_the_other_node_carries_appends_and_truncations(wide_stage: Stage) -> None:
    stage = wide_stage

    async def main() -> None:
        writer = await stage.node_writer(100)
        async with stage.core(writer.key) as middle:
            reader = await stage.node_clone(writer.key, major=stage.other_major)
            await stage.connect(middle)
            await stage.connect(middle, major=stage.other_major)
            # What passes through is stored on the way, because somebody further on wants it or because we mirror all.
            mirror = middle.download()
            assert await node_clones_whole(reader, 100) == digest(blocks(0, 100, 20))
            await reader.command("tail", count=10)
            for number in range(10):
                await writer.command("append", text=f"live {number}")
                assert bytes.fromhex((await reader.event("block"))["hex"]) == b"live %d" % number
            await writer.command("truncate", length=50)
            await reader.command("wait", fork=1, length=50)
            await writer.command("append", count=20, size=30)
            await eventually(lambda: middle.contiguous_length == 70)
            assert await node_clones_whole(reader, 70) == digest(blocks(0, 50, 20) + blocks(50, 70, 30))
            mirror.destroy()

    stage.run(main())


# ---- several cores ----


@all_settings
def test_cores_in_both_directions_share_one_connection_and_unknown_ones_are_declined(stage: Stage) -> None:
    async def main() -> None:
        async with stage.core() as one, stage.core() as two, stage.core() as unknown_there:
            theirs = await stage.node_writer(7, 10)
            await stage.node_writer(9, 10)
            for core in (one, two, unknown_there):
                await core.append([b"%s %d" % (core.key[:4], index) for index in range(5)])
            async with stage.core(theirs.key) as clone:
                readers = [await stage.node_clone(core.key) for core in (one, two)]
                await stage.connect(one, two, unknown_there, clone)
                await clone_whole(clone)
                assert await contents(clone) == blocks(0, 7, 10)
                for core, reader in zip((one, two), readers, strict=True):
                    assert await node_clones_whole(reader, 5) == digest(await contents(core))
                assert one.peers[0].session is clone.peers[0].session
                assert not unknown_there.peers

    stage.run(main())


@pytest.mark.parametrize("is_reopened", [False, True], ids=["new", "reopened"])
@few_settings
def test_a_corestore_of_nodes_exchanges_several_cores_with_us_over_one_connection(
    stage: Stage, is_reopened: bool
) -> None:
    async def main() -> None:
        storage = str(stage.folder / "store")
        async with AsyncExitStack() as stack:
            peer = await NodePeer.start(stage.major, "folder")
            await peer.command("store", storage=storage)
            theirs = [await open_in(peer, name) for name in ("red", "green", "blue")]
            for number, core in enumerate(theirs):
                await core.command("append", count=20 + number, size=30)
            ours = [await stack.enter_async_context(stage.core()) for _ in range(3)]
            for number, writer in enumerate(ours):
                await writer.append(blocks(0, 10 + number, 25))
            if is_reopened:
                await peer.stop()
                peer = await NodePeer.start(stage.major, "folder")
                await peer.command("store", storage=storage)
                theirs[0] = await open_in(peer, "red")
            await stack.enter_async_context(peer)
            # Of their cores some are only on the disk of the store, which opens them when we ask.
            clones = [await stack.enter_async_context(stage.core(core.key)) for core in theirs]
            readers = [await open_in(peer, f"clone{at}", key=core.key.hex()) for at, core in enumerate(ours[:2])]
            replication = await connect(peer, *ours, *clones, role=stage.role)
            for number, clone in enumerate(clones):
                await clone_whole(clone)
                assert await contents(clone) == blocks(0, 20 + number, 30)
            readers.append(await open_in(peer, "later", key=ours[2].key.hex()))
            for number, reader in enumerate(readers):
                assert await node_clones_whole(reader, 10 + number) == digest(blocks(0, 10 + number, 25))
            await theirs[0].command("append", text="live")
            assert await clones[0].get(20) == b"live"
            assert len({core.peers[0].session for core in (*ours, *clones)}) == 1
            assert replication.error is None
            await replication.aclose()

    stage.run(main())


# ---- several signers, other hashes, two histories ----


def pairs_and_manifest(quorum: int) -> tuple[list[KeyPair], Manifest, dict[str, Any]]:
    """Three signers; the manifest as ours and as Node's."""
    pairs = [KeyPair.from_seed(bytes((each,)) * 32) for each in (1, 2, 3)]
    signers = tuple(Signer(pair.public_key, bytes((9, number)) * 16) for number, pair in enumerate(pairs))
    described = {
        "version": 1,
        "quorum": quorum,
        "signers": [{"publicKey": each.public_key.hex(), "namespace": each.namespace.hex()} for each in signers],
    }
    return pairs, Manifest(version=1, quorum=quorum, signers=signers), described


@manifest_settings
@pytest.mark.parametrize("signer", [0, 2])
def test_what_any_one_of_several_signers_writes_here_node_reads(stage: Stage, signer: int) -> None:
    async def main() -> None:
        pairs, manifest, _ = pairs_and_manifest(1)
        written = blocks(0, 12, 20)
        async with stage.core(key_pair=pairs[signer], manifest=manifest) as ours:
            assert ours.key == manifest_key(manifest)
            await ours.append(written)
            reader = await stage.node_clone(ours.key)
            await stage.connect(ours)
            assert await node_clones_whole(reader, 12) == digest(written)

    stage.run(main())


@manifest_settings
def test_a_core_that_needs_two_of_three_signatures_comes_from_node_to_us_and_on_to_node(wide_stage: Stage) -> None:
    stage = wide_stage

    async def main() -> None:
        # Node signs for one signer only; what several signed is put together elsewhere.
        pairs, manifest, described = pairs_and_manifest(2)
        written = blocks(0, 5, 20)
        authority = Authority.of(manifest_key(manifest), manifest)
        async with stage.core() as same:
            await same.append(written)
            tree_hash = await same.tree_hash()
        signature = authority.assemble(
            dict(authority.sign_part(tree_hash, 5, 0, pair) for pair in (pairs[2], pairs[0]))
        )
        theirs = await stage.node_core(manifest=described)
        await theirs.command("append", blocks=[block.hex() for block in written], signature=signature.hex())
        async with stage.core(theirs.key) as clone:
            await stage.connect(clone)
            await clone_whole(clone)
            assert await contents(clone) == written
            reader = await stage.node_clone(theirs.key, major=stage.other_major)
            await stage.connect(clone, major=stage.other_major)
            assert await node_clones_whole(reader, 5) == digest(written)

    stage.run(main())


@few_settings
def test_node_refuses_a_core_that_hashes_with_blake3_and_goes_on_with_others(stage: Stage) -> None:
    async def main() -> None:
        stage.complaints_expected = True
        async with stage.core() as plain, Hypercore("memory:", hash="blake3") as other:
            await plain.append("plain")
            await other.append("other")
            refused = await stage.node_clone(other.key)
            connection = await stage.connect(other)
            await connection.wait_closed()
            assert "Unknown hash" in (await refused.peer.event("stream-error"))["message"]
            assert (await refused.command("info"))["length"] == 0
            await refused.close()
            reader = await stage.node_clone(plain.key)
            await stage.connect(plain)
            await reader.command("wait", length=1)
            assert await reader.get(0) == b"plain"
            await refused.command("open", storage=str(stage.folder / refused.name), key=other.key.hex())

    stage.run(main())


@few_settings
def test_two_histories_under_one_key_are_noticed_by_both(stage: Stage) -> None:
    async def main() -> None:
        stage.complaints_expected = True
        seed = b"twice" + bytes(27)
        async with stage.core(key_pair=KeyPair.from_seed(seed)) as ours:
            await ours.append(["same", "ours", "and more"])
            theirs = await stage.node_writer(seed=seed.hex())
            assert theirs.key == ours.key
            await theirs.command("append", blocks=[b"same".hex(), b"theirs".hex()])
            await stage.connect(ours)
            await theirs.event("conflict")
            await eventually(lambda: ours.hub.frozen)
            assert await ours.get(1) == b"ours"
            stage.forget(theirs)

    stage.run(main())


# ---- beside the blocks ----


@all_settings
def test_extension_messages_travel_both_ways(stage: Stage) -> None:
    async def main() -> None:
        async with stage.core() as ours:
            await ours.append("something")
            theirs = await stage.node_clone(ours.key)
            got: list[tuple[bytes, Peer]] = []
            chat = ours.register_extension("chat", lambda payload, peer: got.append((payload, peer)))
            ours.register_extension("nobody-there-knows").broadcast(b"lost")
            await theirs.command("extension", name="chat")
            await stage.connect(ours)
            await theirs.command("wait", peers=1)
            await eventually(lambda: bool(ours.peers))
            for payload in (b"hello", b"", bytes(range(256)) * 400):
                chat.broadcast(payload)
                assert bytes.fromhex((await theirs.event("extension", name="chat"))["hex"] or "") == payload
                await theirs.command("extension", name="chat", message=payload.hex())
                await eventually(lambda: bool(got))
                assert got.pop() == (payload, ours.peers[0])
            await theirs.command("extension", name="nobody-here-knows", message=b"lost".hex())
            await theirs.command("extension", name="chat", message=b"last".hex())
            await eventually(lambda: bool(got))
            assert [payload for payload, _ in got] == [b"last"]

    stage.run(main())


@few_settings
def test_readers_on_both_sides_of_one_connection_help_each_other(stage: Stage) -> None:
    async def main() -> None:
        async with stage.core() as writer, stage.core(writer.key) as ours:
            await writer.append(blocks(0, 200, 20))
            first = await link(writer, ours)
            await ours.update()
            await ours.download(0, 100).done()
            await first.cut()
            theirs = await stage.node_clone(writer.key)
            second = await stage.connect(writer)
            await theirs.command("wait", length=200)
            await theirs.command("download", start=100)
            await second.aclose()
            await stage.connect(ours)
            downloading = asyncio.create_task(theirs.command("download"))
            await clone_whole(ours)
            assert (await downloading)["sha256"] == digest(blocks(0, 200, 20)) == digest(await contents(ours))
            assert (ours.peers[0].blocks_received, ours.peers[0].blocks_sent) == (100, 100)

    stage.run(main())

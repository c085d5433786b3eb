"""The counterpart itself: Node's hypercore 10 and 11 do with each other what the other tests ask of them."""

from __future__ import annotations

import asyncio
from hashlib import sha256
from pathlib import Path

import pytest

from tests.interop import node_peer
from tests.interop.node_peer import NodeMissingError, NodePeer, NodePeerError, filled_block
from tests.running import run

pytestmark = pytest.mark.interop

MAJORS = (10, 11)


def digest(blocks: list[bytes]) -> str:
    return sha256(b"".join(blocks)).hexdigest()


@pytest.mark.parametrize("writer_major", MAJORS)
@pytest.mark.parametrize("reader_major", MAJORS)
@pytest.mark.parametrize("compat", [False, True], ids=["manifest", "compat"])
def test_a_reader_clones_what_a_writer_appended_and_follows(
    writer_major: int, reader_major: int, compat: bool, tmp_path: Path
) -> None:
    async def main() -> None:
        writing = NodePeer.start(writer_major, "serve", storage=tmp_path / "w", compat=compat, count=100, size=1000)
        async with await writing as writer:
            assert writer.ready["length"] == 100
            reading = NodePeer.start(
                reader_major, "fetch", storage=tmp_path / "r", key=writer.ready["key"], port=writer.port
            )
            async with await reading as reader:
                assert reader.ready["sha256"] == digest([filled_block(index, 1000) for index in range(100)])
                assert reader.ready["treeHash"] == writer.ready["treeHash"]
                assert (reader.ready["contiguousLength"], reader.ready["writable"]) == (100, False)
                await writer.command("append", text="live")
                block = await reader.event("block")
                assert (block["index"], bytes.fromhex(block["hex"])) == (100, b"live")

    run(main())


@pytest.mark.parametrize("dialer_is_initiator", [True, False])
@pytest.mark.parametrize("writer_dials", [True, False])
def test_either_side_dials_and_either_side_starts_the_handshake(
    writer_dials: bool, dialer_is_initiator: bool, tmp_path: Path
) -> None:
    async def main() -> None:
        async with (
            await NodePeer.start(10, "folder", storage=tmp_path / "w") as writer,
            await NodePeer.start(11, "folder", storage=tmp_path / "r", key=writer.ready["key"]) as reader,
        ):
            await writer.command("append", blocks=["00", "0102", ""])
            dialer, listener = (writer, reader) if writer_dials else (reader, writer)
            port = (await listener.command("listen", initiator=not dialer_is_initiator))["port"]
            await dialer.command("dial", port=port, initiator=dialer_is_initiator)
            await reader.command("wait", peers=1)
            assert (await reader.command("update"))["length"] == 3
            assert [(await reader.command("get", index=index))["hex"] for index in range(3)] == ["00", "0102", ""]

    run(main())


@pytest.mark.parametrize(("writer_major", "reader_major"), [(10, 11), (11, 10)])
def test_truncations_clears_and_reconnections_reach_the_reader(
    writer_major: int, reader_major: int, tmp_path: Path
) -> None:
    async def main() -> None:
        async with (
            await NodePeer.start(writer_major, "serve", storage=tmp_path / "w", count=20, size=10) as writer,
            await NodePeer.start(reader_major, "folder", storage=tmp_path / "r", key=writer.ready["key"]) as reader,
        ):
            await reader.command("dial", port=writer.port)
            await reader.command("wait", length=20)
            await reader.command("download", start=5, end=8)
            assert (await reader.command("has", start=5, end=8))["has"]
            assert not (await reader.command("has", start=8))["has"]
            await writer.command("truncate", length=10)
            truncated = await reader.command("wait", fork=1)
            assert truncated["length"] == 10
            assert (await reader.command("disconnect"))["count"] == 1
            await writer.command("append", count=5, size=10)
            await writer.command("clear", start=0, end=3)
            await reader.command("dial", port=writer.port)
            await reader.command("wait", length=15)
            assert (await reader.command("get", index=12))["hex"] == filled_block(12, 10).hex()
            with pytest.raises(NodePeerError, match="get"):
                await reader.command("get", index=1, timeout=50)
            assert (await reader.command("seek", offset=125)) == {"index": 12, "offset": 5}

    run(main())


def test_extensions_and_several_cores_share_one_connection(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            await NodePeer.start(10, "serve", storage=tmp_path / "w1") as writer,
            await NodePeer.start(11, "folder", storage=tmp_path / "r1", key=writer.ready["key"]) as reader,
        ):
            second = await writer.command("open", core="second", storage=str(tmp_path / "w2"))
            await writer.command("append", core="second", text="in the second")
            await reader.command("open", core="second", storage=str(tmp_path / "r2"), key=second["key"])
            await writer.command("extension", name="greeting")
            await reader.command("extension", name="greeting")
            await reader.command("dial", port=writer.port)
            await reader.command("wait", core="second", length=1)
            got = await reader.command("get", core="second", index=0)
            assert bytes.fromhex(got["hex"]) == b"in the second"
            await reader.command("wait", peers=1)
            await writer.command("wait", peers=1)
            await reader.command("extension", name="greeting", message=b"hello".hex())
            assert bytes.fromhex((await writer.event("extension", name="greeting"))["hex"]) == b"hello"

    run(main())


def test_a_folder_is_opened_changed_and_closed_again_and_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with await NodePeer.start(10, "folder") as node:
            storage = str(tmp_path / "core")
            made = await node.command("open", storage=storage)
            for turn in range(1, 4):
                await node.command("append", count=10, size=100)
                await node.command("clear", start=turn)
                await node.command("truncate", length=turn * 5)
                await node.command("userdata", key="turn", value=bytes((turn,)).hex())
                await node.command("close")
                again = await node.command("open", storage=storage, create=False)
                assert (again["key"], again["length"], again["fork"]) == (made["key"], turn * 5, turn)
                assert (await node.command("userdata", key="turn"))["value"] == bytes((turn,)).hex()
                assert (await node.command("audit"))["corrections"] == {"tree": 0, "blocks": 0}
                assert (await node.command("get", index=turn, wait=False))["hex"] is None

    run(main())


def test_a_command_that_fails_says_why(tmp_path: Path) -> None:
    async def main() -> None:
        async with await NodePeer.start(11, "folder", storage=tmp_path / "w") as node:
            with pytest.raises(NodePeerError, match="there is no command dance"):
                await node.command("dance")
            with pytest.raises(NodePeerError, match="no core other is open"):
                await node.command("info", core="other")
            with pytest.raises(NodePeerError, match="STORAGE_EMPTY"):
                await node.command("open", core="other", storage=str(tmp_path / "empty"), create=False)
            with pytest.raises(NodePeerError, match=r"did not answer wait .* within 0\.05 s"):
                await node.command("wait", length=1, timeout_seconds=0.05)
            hanging = asyncio.ensure_future(node.command("wait", length=1))
            await node.command("info")
            await node.kill()
            with pytest.raises(NodePeerError, match="ended"):
                await hanging

    run(main())


def test_what_is_missing_is_an_error_that_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(node_peer, "NODE_FOLDER", tmp_path)
    with pytest.raises(NodeMissingError, match="`make interop` installs it"):
        run(NodePeer.start(10, "folder"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NodeMissingError, match="`make interop` needs it"):
        run(NodePeer.start(10, "folder"))

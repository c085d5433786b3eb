"""Commands that talk to peers, in processes of their own over real TCP."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
from pathlib import Path

import pytest

from hypercore import Hypercore, Swarm
from hypercore.plugins import open_storage
from tests.processes import HYPERCORE, HYPERCORE_WITHOUT_UVLOOP, Program, folder_bytes, hypercore, new_log, running
from tests.replication.links import eventually
from tests.replication.test_storage_peers import forge
from tests.running import run

LINES = [f"line {index}" for index in range(100)]
ANY_PORT = "tcp://127.0.0.1:0"


async def address_of(serve: Program) -> str:
    first = await serve.json()
    assert set(first) == {"key", "discovery_key", "addresses"}
    (address,) = first["addresses"]
    assert isinstance(address, str)
    return address


def serving(folder: Path, address: str = ANY_PORT) -> tuple[str | Path, ...]:
    return (*HYPERCORE, "serve", folder, "--listen", address, "--json")


def cloning(key: str, folder: Path, *addresses: str) -> tuple[str | Path, ...]:
    peers = [part for address in addresses for part in ("--from", address)]
    return (*HYPERCORE, "clone", key, folder, *peers, "--json")


def following(key: str, storage: str | Path, address: str) -> tuple[str | Path, ...]:
    return (*HYPERCORE, "follow", key, storage, "--from", address)


def block_of(index: int, line: str) -> dict[str, object]:
    return {"index": index, "size": len(line), "hex": line.encode().hex()}


def without_length(block: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in block.items() if name != "length"}


# ---- serve ----------------------------------------------------------------------------------------


def test_serve_prints_what_a_reader_needs_and_stops_at_a_signal(tmp_path: Path) -> None:
    key = new_log(tmp_path / "log", LINES)

    async def scene() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            async with running(*HYPERCORE, "serve", tmp_path / "log", "--listen", ANY_PORT) as serve:
                assert await serve.line() == f"key      {key}"
                assert await serve.line() == "length   100 blocks, 690 bytes"
                address = re.fullmatch(r"address  (tcp://127\.0\.0\.1:[1-9]\d*)", await serve.line())
                assert address
                assert await serve.line() == f"try      hypercore clone {key} ./copy --from {address[1]}"
                assert await serve.done(number) == (0, b"", "")

    run(scene())


def test_serve_listens_at_several_addresses(tmp_path: Path) -> None:
    new_log(tmp_path / "log", LINES)

    async def scene() -> None:
        async with running(*serving(tmp_path / "log"), "--listen", ANY_PORT) as serve:
            assert len(set((await serve.json())["addresses"])) == 2

    run(scene())


def test_serve_says_that_an_address_is_taken(tmp_path: Path) -> None:
    new_log(tmp_path / "one", LINES)
    new_log(tmp_path / "two", LINES)

    async def scene() -> None:
        async with running(*serving(tmp_path / "one")) as serve:
            address = await address_of(serve)
            async with running(*serving(tmp_path / "two", address)) as second:
                done = await second.done()
                assert (done.code, done.output) == (1, b"")
                assert address in done.errors

    run(scene())


# ---- clone ----------------------------------------------------------------------------------------


def test_a_clone_holds_everything_and_says_so(tmp_path: Path) -> None:
    key = new_log(tmp_path / "log", LINES)

    async def scene() -> None:
        async with running(*serving(tmp_path / "log")) as serve:
            address = await address_of(serve)
            async with running(*cloning(key, tmp_path / "clone", address)) as clone:
                done = await clone.done()
                assert (done.code, done.errors) == (0, "")
                (summary,) = done.json()
                assert set(summary) == {"key", "length", "byte_length", "fork", "seconds"}
                assert [summary[name] for name in ("key", "length", "byte_length", "fork")] == [key, 100, 690, 0]
                assert 0 < summary["seconds"] < 60
            # Once more: there is nothing left to fetch.
            async with running(*cloning(key, tmp_path / "clone", address)) as again:
                assert (await again.done()).json()[0]["length"] == 100
            assert (await serve.done(signal.SIGTERM)).code == 0

    run(scene())
    assert hypercore("cat", tmp_path / "clone", "--lines").output.decode().splitlines() == LINES
    assert hypercore("verify", tmp_path / "clone").code == 0


def test_a_clone_takes_what_was_appended_since(tmp_path: Path) -> None:
    key = new_log(tmp_path / "log", LINES)

    async def clone_once() -> int:
        async with running(*serving(tmp_path / "log")) as serve:
            async with running(*cloning(key, tmp_path / "clone", await address_of(serve))) as clone:
                length = (await clone.done()).json()[0]["length"]
                assert isinstance(length, int)
                return length

    assert run(clone_once()) == 100
    hypercore("append", tmp_path / "log", "--lines", given=b"one more\n")
    assert run(clone_once()) == 101


def test_a_clone_of_a_clone_from_two_peers_is_as_good(tmp_path: Path) -> None:
    key = new_log(tmp_path / "log", LINES)
    assert hypercore("copy", tmp_path / "log", tmp_path / "mirror").code == 0

    async def scene() -> None:
        async with running(*serving(tmp_path / "log")) as one, running(*serving(tmp_path / "mirror")) as two:
            addresses = [await address_of(one), await address_of(two)]
            async with running(*cloning(key, tmp_path / "clone", *addresses)) as clone:
                assert (await clone.done()).code == 0
        assert hypercore("cat", tmp_path / "clone").output == "".join(LINES).encode()

    run(scene())


def test_one_peer_of_two_is_enough(tmp_path: Path) -> None:
    key = new_log(tmp_path / "log", LINES)

    async def scene() -> None:
        async with running(*serving(tmp_path / "log")) as serve:
            addresses = ["tcp://127.0.0.1:1", await address_of(serve)]
            async with running(*cloning(key, tmp_path / "clone", *addresses)) as clone:
                assert (await clone.done()).code == 0

    run(scene())


def test_a_key_that_the_peer_does_not_have_is_told_at_once(tmp_path: Path) -> None:
    key = new_log(tmp_path / "log", LINES)
    wrong = "ab" * 32

    async def scene() -> None:
        async with running(*serving(tmp_path / "log")) as serve:
            address = await address_of(serve)
            async with running(*cloning(wrong, tmp_path / "clone", address)) as clone:
                done = await clone.done()
                assert (done.code, done.output) == (1, b"")
                assert done.errors == f"hypercore: nobody delivers core {wrong}: {address} does not have it\n"
            # Nothing is left that would be in the way of the right key.
            assert not (tmp_path / "clone").exists()
            async with running(*cloning(key, tmp_path / "clone", address)) as clone:
                assert (await clone.done()).code == 0

    run(scene())


@pytest.mark.parametrize(
    ("greeting", "said"),
    [(b"", "has not answered yet"), (b"HTTP/1.1 400 Bad Request\r\n\r\n", "is no peer that we understand")],
)
def test_a_server_of_something_else_is_told_from_a_peer(greeting: bytes, said: str, tmp_path: Path) -> None:
    async def scene() -> None:
        async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(greeting)
            visitors.append(writer)

        visitors: list[asyncio.StreamWriter] = []
        server = await asyncio.start_server(greet, "127.0.0.1", 0)
        address = f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with running(*cloning("ab" * 32, tmp_path / "clone", address), "--timeout", "1") as clone:
            done = await clone.done()
            assert (done.code, done.output) == (1, b"")
            assert f"{address} {said}" in done.errors
        server.close()
        for writer in visitors:
            writer.close()

    run(scene())


@pytest.mark.parametrize("address", ["127.0.0.1:4977", "localhost:4977"])
def test_an_address_without_a_scheme_is_told_at_once(address: str, tmp_path: Path) -> None:
    new_log(tmp_path / "log", LINES)
    for arguments in (("serve", tmp_path / "log", "--listen"), ("clone", "ab" * 32, tmp_path / "clone", "--from")):
        done = hypercore(*arguments, address)
        assert (done.code, done.output) == (2, b"")
        assert "'tcp://host:port'" in done.errors
        assert done.errors.count("\n") == 1


@pytest.mark.parametrize("command", ["clone", "follow"])
def test_nobody_there_ends_in_time_with_the_reason(command: str, tmp_path: Path) -> None:
    done = hypercore(command, "ab" * 32, tmp_path / "x", "--from", "tcp://127.0.0.1:1", "--timeout", "0.5")
    assert (done.code, done.output) == (1, b"")
    assert done.errors.startswith(f"hypercore: nobody delivers core {'ab' * 32}: ")
    assert "tcp://127.0.0.1:1" in done.errors
    assert done.errors.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_a_storage_of_another_core_is_left_as_it_is(tmp_path: Path) -> None:
    new_log(tmp_path / "log", LINES)
    before = folder_bytes(tmp_path)
    done = hypercore("clone", "ab" * 32, tmp_path / "log", "--from", "tcp://127.0.0.1:1", "--timeout", "0.5")
    assert done.code == 1
    assert "holds core" in done.errors
    assert folder_bytes(tmp_path) == before


async def serve_with_holes(folder: Path, origin: Hypercore, *blocks: int) -> None:
    """A clone in `folder` that holds only some blocks of `origin`."""
    async with Swarm("pipe:holes") as server:
        server.join(origin)
        async with Hypercore(str(folder), origin.key) as clone, Swarm(peers=["pipe:holes"]) as swarm:
            swarm.join(clone)
            await clone.update()
            await clone.download(blocks=blocks).done()


def test_an_incomplete_clone_says_what_is_missing_and_goes_on_when_somebody_has_it(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Hypercore("memory:") as origin:
            await origin.append(LINES)
            key = origin.key.hex()
            await serve_with_holes(tmp_path / "holes", origin, *range(40))
            async with running(*serving(tmp_path / "holes")) as serve:
                address = await address_of(serve)
                async with running(*cloning(key, tmp_path / "clone", address), "--timeout", "0.5") as clone:
                    done = await clone.done()
                    assert (done.code, done.output) == (1, b"")
                    assert "60 of 100 blocks are missing" in done.errors
            async with Swarm(ANY_PORT) as swarm:
                swarm.join(origin)
                async with running(*cloning(key, tmp_path / "clone", *swarm.addresses)) as clone:
                    assert (await clone.done()).code == 0
                # What was here already was not fetched again.
                assert hypercore("verify", tmp_path / "clone").code == 0

    run(scene())


def test_an_interrupted_clone_says_how_far_it_came(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Hypercore("memory:") as origin:
            await origin.append(LINES)
            await serve_with_holes(tmp_path / "holes", origin, *range(40))
            async with running(*serving(tmp_path / "holes")) as serve:
                address = await address_of(serve)
                async with running(*cloning(origin.key.hex(), tmp_path / "clone", address)) as clone:
                    stored = 0
                    while stored < 40:
                        async with running(*HYPERCORE, "info", tmp_path / "clone", "--json") as look:
                            stored = sum(about["stored_blocks"] for about in (await look.done()).json())
                    done = await clone.done(signal.SIGTERM)
                    assert (done.code, done.output) == (1, b"")
                    assert "interrupted with 40 of 100 blocks" in done.errors

    run(scene())


# ---- follow ---------------------------------------------------------------------------------------


def test_follow_prints_each_new_block_as_it_comes(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Hypercore("memory:") as origin, Swarm(ANY_PORT) as swarm:
            await origin.append(LINES)
            swarm.join(origin)
            key, (address,) = origin.key.hex(), swarm.addresses
            async with (
                running(*following(key, tmp_path / "one", address), "--json", "--start", "98") as objects,
                running(*following(key, tmp_path / "two", address), "--start", "99") as lines,
            ):
                assert without_length(await objects.json()) == block_of(98, LINES[98])
                assert without_length(await objects.json()) == block_of(99, LINES[99])
                assert await lines.line() == LINES[99]
                for index, text in enumerate(("new", "and newer\n", ""), start=100):
                    await origin.append(text)
                    assert await objects.json() == {**block_of(index, text), "length": index + 1}
                    assert await lines.line() == text.removesuffix("\n")
                assert await objects.done(signal.SIGINT) == (0, b"", "")
                assert await lines.done(signal.SIGTERM) == (0, b"", "")

    run(scene())
    # It stores what it prints, and only that.
    assert hypercore("get", tmp_path / "one", "100").output == b"new"
    assert hypercore("get", tmp_path / "one", "0").code == 1


def test_follow_begins_behind_what_is_there_already(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Hypercore("memory:") as origin, Swarm(ANY_PORT) as swarm:
            await origin.append(LINES)
            swarm.join(origin)
            async with running(*following(origin.key.hex(), "memory:", *swarm.addresses), "--json") as follow:
                # Whenever it is ready: all it prints are blocks that were appended after its start.
                while not follow.process.stdout.at_eof():  # type: ignore[union-attr]
                    length = (await origin.append("tick")).length
                    if origin.peers and origin.peers[0].blocks_sent:
                        break
                    async with running(*HYPERCORE, "--version") as pause:
                        await pause.done()
                first = await follow.json()
                assert 100 <= first["index"] < length
                assert bytes.fromhex(first["hex"]) == b"tick"

    run(scene())


def test_follow_finds_a_writer_that_was_away(tmp_path: Path) -> None:
    log = tmp_path / "log"
    key = new_log(log, ["first"])

    async def scene() -> None:
        async with running(*serving(log)) as serve:
            address = await address_of(serve)
            async with running(*following(key, tmp_path / "copy", address), "--start", "0") as follow:
                assert await follow.line() == "first"
                serve.process.kill()
                await serve.process.wait()
                for text in ("second", "third"):
                    assert hypercore("append", log, "--lines", given=f"{text}\n".encode()).code == 0
                    async with running(*serving(log, address)):
                        assert await follow.line() == text
                assert (await follow.done(signal.SIGTERM)).code == 0

    run(scene())


def test_follow_goes_back_with_a_writer_that_took_blocks_back(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Hypercore("memory:") as origin, Swarm(ANY_PORT) as swarm:
            await origin.append(["a", "b", "c", "d"])
            swarm.join(origin)
            async with running(*following(origin.key.hex(), "memory:", *swarm.addresses), "--start", "0") as follow:
                assert [await follow.line() for _ in range(4)] == ["a", "b", "c", "d"]
                await origin.truncate(2)
                await origin.append("C")
                assert await follow.line() == "C"
                await origin.append("D")
                assert await follow.line() == "D"

    run(scene())


@pytest.mark.parametrize("program", [HYPERCORE, HYPERCORE_WITHOUT_UVLOOP], ids=["uvloop", "asyncio"])
def test_follow_ends_when_nobody_reads_it_any_more(program: tuple[str, ...]) -> None:
    async def scene() -> None:
        async with Hypercore("memory:") as origin, Swarm(ANY_PORT) as swarm:
            await origin.append("only")
            swarm.join(origin)
            # A shell's pipe, because asyncio's are sockets. Nothing is ever written after the first line.
            arguments = (*following(origin.key.hex(), "memory:", *swarm.addresses)[len(HYPERCORE) :], "--start", "0")
            command = shlex.join(map(str, (*program, *arguments)))
            async with running("bash", "-c", f"{command} | head -1; echo ${{PIPESTATUS[0]}}") as pipeline:
                done = await pipeline.done()
                assert (done.output, done.errors) == (b"only\n0\n", "")

    run(scene())


# ---- storages as peers ----------------------------------------------------------------------------


def test_a_clone_from_a_folder_needs_no_server(tmp_path: Path) -> None:
    key = new_log(tmp_path / "log", LINES)
    before = folder_bytes(tmp_path / "log")
    for address in (str(tmp_path / "log"), f"file:{tmp_path / 'log'}"):
        done = hypercore("clone", key, tmp_path / "clone", "--from", address, "--json")
        assert (done.code, done.errors) == (0, "")
        assert done.json()[0]["length"] == 100
    assert hypercore("verify", tmp_path / "clone").code == 0
    assert folder_bytes(tmp_path / "log") == before


def test_a_clone_takes_from_a_damaged_folder_what_is_whole_and_the_rest_from_another(tmp_path: Path) -> None:
    key = new_log(tmp_path / "log", LINES)
    assert hypercore("copy", tmp_path / "log", tmp_path / "good").code == 0
    data = bytearray((tmp_path / "log" / "data").read_bytes())
    data[0] ^= 1
    (tmp_path / "log" / "data").write_bytes(data)
    done = hypercore("clone", key, tmp_path / "clone", "--from", tmp_path / "log")
    assert (done.code, done.output) == (1, b"")
    assert f"1 of 100 blocks are missing: {tmp_path / 'log'}: block 0 is damaged" in done.errors
    assert hypercore("verify", tmp_path / "clone").code == 0

    async def scene() -> None:
        async with running(*serving(tmp_path / "good")) as serve:
            addresses = [str(tmp_path / "log"), await address_of(serve)]
            async with running(*cloning(key, tmp_path / "clone", *addresses)) as clone:
                assert (await clone.done()).code == 0

    run(scene())
    assert hypercore("cat", tmp_path / "clone", "--lines").output.decode().splitlines() == LINES


@pytest.mark.parametrize("command", ["clone", "follow"])
def test_a_storage_that_is_no_peer_is_told_at_once_and_nothing_is_made(command: str, tmp_path: Path) -> None:
    key, wrong = new_log(tmp_path / "log", LINES), "ab" * 32
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "letter").write_text("dear")
    for name, asked, said in (
        ("log", wrong, f"this storage holds core {key}, not {wrong}\n"),
        ("none", key, "there is no core in this storage"),
        ("foreign", key, "letter is here"),
    ):
        done = hypercore(command, asked, tmp_path / "clone", "--from", tmp_path / name)
        assert (done.code, done.output) == (1, b"")
        assert done.errors.startswith(f"hypercore: nobody delivers core {asked}: {tmp_path / name}: ")
        assert said in done.errors
        assert done.errors.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["foreign", "log"]


def test_a_peer_that_cannot_prove_what_it_has_is_no_empty_log(tmp_path: Path) -> None:
    async def make() -> None:
        async with open_storage(tmp_path / "forged") as storage:
            await forge(storage, bytes.fromhex("ab" * 32), 1000)

    run(make())
    done = hypercore("clone", "ab" * 32, tmp_path / "clone", "--from", tmp_path / "forged")
    assert (done.code, done.output) == (1, b"")
    assert f"{tmp_path / 'forged'} has 1,000 blocks and proves 0" in done.errors
    assert not (tmp_path / "clone").exists()


@pytest.mark.parametrize(
    ("address", "said"),
    [("nothing://here", "neither a peer's"), ("word", "'./word'"), ("file:./x?colour=red", "colour")],
)
def test_an_address_of_neither_kind_is_told_at_once(address: str, said: str, tmp_path: Path) -> None:
    done = hypercore("clone", "ab" * 32, tmp_path / "clone", "--from", address)
    assert (done.code, done.output) == (2, b"")
    assert said in done.errors
    assert done.errors.count("\n") == 1


def test_a_clone_of_itself_is_refused(tmp_path: Path) -> None:
    key = new_log(tmp_path / "log", LINES)
    done = hypercore("clone", key, tmp_path / "log", "--from", f"{tmp_path}/./log/")
    assert done.code == 1
    assert "both the source and the destination" in done.errors


def test_follow_reads_live_what_another_process_appends_to_a_folder(tmp_path: Path) -> None:
    key = new_log(tmp_path / "log", ["first"])

    async def scene() -> None:
        async with running(*following(key, "memory:", str(tmp_path / "log")), "--start", "0") as follow:
            assert await follow.line() == "first"
            async with running(*HYPERCORE, "append", tmp_path / "log", "--lines") as append:
                for text in ("second", "third"):
                    await append.type(f"{text}\n")
                    assert await follow.line() == text
            assert (await follow.done(signal.SIGTERM)).code == 0

    run(scene())


# ---- appending and serving at once ----------------------------------------------------------------


def appending(folder: Path, *arguments: str | Path) -> tuple[str | Path, ...]:
    return (*HYPERCORE, "append", folder, *arguments, "--lines", "--listen", ANY_PORT)


def test_a_reader_has_each_line_as_it_is_appended(tmp_path: Path) -> None:
    key = new_log(tmp_path / "log", ["first"])

    async def scene() -> None:
        async with running(*appending(tmp_path / "log"), "--json") as append:
            address = await address_of(append)
            async with running(*following(key, "memory:", address), "--start", "0") as follow:
                assert await follow.line() == "first"
                for text in ("second", "third"):
                    await append.type(f"{text}\n")
                    assert await follow.line() == text
            done = await append.done(signal.SIGINT)
            assert (done.code, done.errors) == (0, "")
            (summary,) = done.json()
            assert (summary["appended_blocks"], summary["length"]) == (2, 3)

    run(scene())


def test_after_the_end_of_the_input_it_is_served_until_interrupted(tmp_path: Path) -> None:
    key = new_log(tmp_path / "log")
    (tmp_path / "lines").write_text("one\ntwo\n")

    async def scene() -> None:
        async with running(*appending(tmp_path / "log", tmp_path / "lines")) as append:
            assert await append.line() == f"key      {key}"
            assert await append.line() == "length   0 blocks, 0 bytes"
            address = (await append.line()).removeprefix("address  ")
            assert (await append.line()).startswith("try      hypercore clone")
            assert await append.line() == "appended 2 blocks, 6 bytes; the log has 2 blocks"
            async with running(*cloning(key, tmp_path / "clone", address)) as clone:
                assert (await clone.done()).json()[0]["length"] == 2
            assert await append.done(signal.SIGTERM) == (0, b"", "")

    run(scene())


def test_a_copy_is_not_served_in_the_place_of_being_appended_to(tmp_path: Path) -> None:
    new_log(tmp_path / "log", LINES)
    assert hypercore("copy", tmp_path / "log", tmp_path / "copy").code == 0
    done = hypercore("append", tmp_path / "copy", "--listen", ANY_PORT)
    assert (done.code, done.output) == (1, b"")
    assert "is a copy" in done.errors


# ---- copy -----------------------------------------------------------------------------------------


def test_a_copy_onto_itself_is_refused(tmp_path: Path) -> None:
    new_log(tmp_path / "log", ["one"])
    (tmp_path / "alias").symlink_to(tmp_path / "log")
    for same in ("log", "log/", "./log", "alias"):
        result = hypercore("copy", tmp_path / "log", f"{tmp_path}/{same}")
        assert result.code == 1
        assert "both the source and the destination" in result.errors


def test_a_copy_is_the_same_log_without_the_secret_key(tmp_path: Path) -> None:
    key = new_log(tmp_path / "log", LINES)
    done = hypercore("copy", tmp_path / "log", tmp_path / "copy", "--json")
    (summary,) = done.json()
    assert set(summary) == {"key", "length", "byte_length", "fork", "seconds"}
    assert (summary["key"], summary["length"]) == (key, 100)
    assert hypercore("cat", tmp_path / "copy").output == "".join(LINES).encode()
    (about,) = hypercore("info", tmp_path / "copy", "--json").json()
    assert not about["writable"]


def test_a_copy_with_the_secret_key_can_be_appended_to(tmp_path: Path) -> None:
    new_log(tmp_path / "log", LINES)
    assert hypercore("copy", tmp_path / "log", tmp_path / "copy", "--with-secret-key").code == 0
    assert hypercore("append", tmp_path / "copy", "--lines", given=b"more\n").code == 0
    assert hypercore("cat", tmp_path / "copy", "--start", "99", "--lines").output == b"line 99\nmore\n"
    assert hypercore("verify", tmp_path / "copy").code == 0


def test_a_reader_s_clone_has_no_secret_key_to_copy(tmp_path: Path) -> None:
    new_log(tmp_path / "log", LINES)
    assert hypercore("copy", tmp_path / "log", tmp_path / "copy").code == 0
    done = hypercore("copy", tmp_path / "copy", tmp_path / "second", "--with-secret-key")
    assert done.code == 1
    assert "has no secret key" in done.errors
    assert not (tmp_path / "second").exists()


def test_a_copy_keeps_the_holes_of_its_source(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Hypercore("memory:") as origin:
            await origin.append(LINES)
            await serve_with_holes(tmp_path / "holes", origin, 0, 1, 50, 99)

    run(scene())
    copied = hypercore("copy", tmp_path / "holes", tmp_path / "copy")
    assert copied.code == 0
    assert copied.output.startswith(b"copied 4 of 100 blocks, all that the source holds")
    (about,) = hypercore("info", tmp_path / "copy", "--json").json()
    assert (about["length"], about["stored_blocks"]) == (100, 4)
    assert hypercore("get", tmp_path / "copy", "50").output == b"line 50"
    assert hypercore("verify", tmp_path / "copy").code == 0


def test_a_copy_follows_its_source_also_to_another_fork(tmp_path: Path) -> None:
    log, copy = tmp_path / "log", tmp_path / "copy"
    new_log(log, LINES)
    assert hypercore("copy", log, copy).code == 0

    async def rewrite() -> None:
        async with Hypercore(str(log)) as core:
            await core.truncate(50)
            await core.append(["rewritten", "history"])

    run(rewrite())
    (summary,) = hypercore("copy", log, copy, "--json").json()
    assert (summary["length"], summary["fork"]) == (52, 1)
    assert hypercore("cat", copy, "--start", "49", "--lines").output == b"line 49\nrewritten\nhistory\n"


def test_a_copy_is_not_made_over_a_newer_one_or_another_log(tmp_path: Path) -> None:
    new_log(tmp_path / "log", LINES)
    new_log(tmp_path / "other", LINES)
    assert hypercore("copy", tmp_path / "log", tmp_path / "newer", "--with-secret-key").code == 0
    assert hypercore("append", tmp_path / "newer", given=b"ahead").code == 0
    before = folder_bytes(tmp_path)
    ahead = hypercore("copy", tmp_path / "log", tmp_path / "newer")
    assert ahead.code == 1
    assert "is ahead" in ahead.errors
    other = hypercore("copy", tmp_path / "log", tmp_path / "other")
    assert other.code == 1
    assert f"{tmp_path / 'other'}: this storage holds core" in other.errors
    assert folder_bytes(tmp_path) == before


def test_a_damaged_block_is_not_copied_and_is_named(tmp_path: Path) -> None:
    new_log(tmp_path / "log", LINES)
    data = bytearray((tmp_path / "log" / "data").read_bytes())
    data[0] ^= 1
    (tmp_path / "log" / "data").write_bytes(data)
    done = hypercore("copy", tmp_path / "log", tmp_path / "copy")
    assert (done.code, done.output) == (1, b"")
    assert "block 0" in done.errors
    # The other ninety-nine are there.
    (about,) = hypercore("info", tmp_path / "copy", "--json").json()
    assert about["stored_blocks"] == 99


def test_a_copy_that_is_killed_goes_on_with_the_rest(tmp_path: Path) -> None:
    key = new_log(tmp_path / "log", [f"{index:010}" * 1000 for index in range(3000)])

    async def scene() -> None:
        data = tmp_path / "copy" / "data"
        for size in (1, 8_000_000, 16_000_000):
            async with running(*HYPERCORE, "copy", tmp_path / "log", tmp_path / "copy") as copy:
                process = copy.process
                await eventually(
                    lambda size=size, process=process: (  # type: ignore[misc]
                        process.returncode is not None or (data.exists() and data.stat().st_size >= size)
                    )
                )

    run(scene())
    done = hypercore("copy", tmp_path / "log", tmp_path / "copy")
    assert done.code == 0
    assert re.fullmatch(rb"copied \d[\d,]* blocks?, every one verified, in .* were there already\n", done.output)
    assert hypercore("verify", tmp_path / "copy").code == 0
    (about,) = hypercore("info", tmp_path / "copy", "--json").json()
    assert (about["key"], about["stored_blocks"]) == (key, 3000)
    again = hypercore("copy", tmp_path / "log", tmp_path / "copy").output
    assert again.startswith(b"copied 0 blocks")
    assert b"3,000 were there already" in again


def test_quiet_means_that_nothing_but_json_is_printed(tmp_path: Path) -> None:
    new_log(tmp_path / "log", LINES)
    done = hypercore("copy", tmp_path / "log", tmp_path / "copy", "--json", env={**os.environ, "COLUMNS": "20"})
    assert done.errors == ""
    assert [json.loads(line)["length"] for line in done.output.splitlines()] == [100]

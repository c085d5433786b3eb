"""`hypercore mirror` as an operator runs it: processes of their own, over real TCP, stopped and killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import signal
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from hypercore import Hypercore, Swarm
from hypercore.cli import mirror as command
from hypercore.cli.arguments import build_parser
from hypercore.cli.console import Output
from tests.mirror.scenes import Source, block
from tests.processes import HYPERCORE, Program, hypercore, running
from tests.replication.links import eventually
from tests.running import run

ANY_PORT = "tcp://127.0.0.1:0"
NOBODY = "tcp://127.0.0.1:1"


@contextlib.asynccontextmanager
async def served(count: int, size: int = 10, cores: int = 1) -> AsyncIterator[list[Source]]:
    """Cores in this process, all served at one TCP address."""
    async with contextlib.AsyncExitStack() as stack:
        swarm = await stack.enter_async_context(Swarm(ANY_PORT))
        sources = []
        for _ in range(cores):
            core = await stack.enter_async_context(Hypercore("memory:"))
            await core.append([block(index, size) for index in range(count)])
            swarm.join(core)
            sources.append(Source(core, swarm, swarm.addresses[0]))
        yield sources


def mirroring(source: Source, storage: str | Path, *options: str | Path) -> tuple[str | Path, ...]:
    return (*HYPERCORE, "mirror", source.core.key.hex(), storage, "--from", source.address, "--json", *options)


async def report(mirror: Program, is_it: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Its first report of which something holds."""
    while line := await mirror.line():
        value: dict[str, Any] = json.loads(line)
        if is_it(value):
            return value
    done = await mirror.done()
    raise AssertionError(f"the mirror ended with {done.code}: {done.errors}")


async def get(url: str) -> tuple[int, bytes]:
    host, port = url.removeprefix("tcp://").rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return int(answer.split()[1]), answer.partition(b"\r\n\r\n")[2]


# ---- one log --------------------------------------------------------------------------------------


def test_once_copies_everything_and_ends(tmp_path: Path) -> None:
    async def scene() -> None:
        async with served(500) as (source,), running(*mirroring(source, tmp_path / "copy", "--once")) as mirror:
            done = await mirror.done()
            assert (done.code, done.errors) == (0, "")
            last = done.json()[-1]
            assert (last["have"], last["want"], last["stored_bytes"], last["synced"]) == (500, 500, 5000, True)
            (core,) = last["cores"]
            assert (core["key"], core["role"], core["length"]) == (source.core.key.hex(), "writer", 500)
            assert core["peers"][0]["address"] == source.address
            assert last["sources"] == {source.address: None}

    run(scene())
    assert hypercore("verify", tmp_path / "copy").code == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_follows_live_and_serves_until_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    async def scene() -> None:
        async with (
            served(10) as (source,),
            running(*mirroring(source, tmp_path / "copy", "--listen", ANY_PORT)) as mirror,
        ):
            first = await mirror.json()
            await report(mirror, lambda value: value["have"] == 10 and value["synced"])
            await source.core.append(block(10))
            await report(mirror, lambda value: value["have"] == 11)
            async with Hypercore("memory:", source.core.key) as reader, Swarm(peers=first["addresses"]) as swarm:
                swarm.join(reader)
                await reader.wait_for_length(11)
                assert await reader.get(10) == block(10)
            done = await mirror.done(number)
            assert (done.code, done.errors) == (0, "")

    run(scene())


def test_a_signal_ends_it_also_when_its_peers_hang(tmp_path: Path) -> None:
    async def scene() -> None:
        async with served(5000, size=1000) as (source,):
            command = (*HYPERCORE, "serve", tmp_path / "log", "--listen", ANY_PORT, "--json")
            key = hypercore("create", tmp_path / "log").output.decode().strip()
            hypercore("append", tmp_path / "log", "--lines", given=b"line\n" * 100)
            async with running(*command) as serve:
                (address,) = (await serve.json())["addresses"]
                both = ("--from", address, "--listen", ANY_PORT)
                async with running(*HYPERCORE, "mirror", key, tmp_path / "copy", *both, "--json") as mirror:
                    await report(mirror, lambda value: value["have"] == 100)
                    serve.process.send_signal(signal.SIGSTOP)
                    done = await mirror.done(signal.SIGTERM)
                    assert (done.code, done.errors) == (0, "")
                serve.process.send_signal(signal.SIGCONT)
                await serve.done(signal.SIGTERM)
            assert source.blocks_sent == 0

    run(scene())


def test_stopped_in_the_middle_it_says_how_far_it_came_and_goes_on_from_there(tmp_path: Path) -> None:
    async def scene() -> None:
        async with served(3000, size=4000) as (source,):
            async with running(*mirroring(source, tmp_path / "copy", "--once")) as mirror:
                await eventually(lambda: source.blocks_sent > 100)
                done = await mirror.done(signal.SIGTERM)
            assert done.code == 1
            assert re.fullmatch(
                r"hypercore: interrupted with [\d,]+ of [\d,]+ blocks; the same command goes on from here\n",
                done.errors,
            )
            async with running(*mirroring(source, tmp_path / "copy", "--once")) as mirror:
                done = await mirror.done()
                assert done.json()[-1]["have"] == 3000

    run(scene())


def test_killed_at_any_moment_it_downloads_again_only_what_was_in_flight(tmp_path: Path) -> None:
    count, size = 4000, 4000

    def has_sent(source: Source, blocks: int) -> bool:
        return source.blocks_sent > blocks

    async def scene() -> None:
        async with served(count, size) as (source,):
            kills = 0
            for reached in (count // 10, count // 3, 2 * count // 3):
                async with running(*mirroring(source, tmp_path / "copy")) as mirror:
                    await eventually(partial(has_sent, source, reached))
                    await mirror.done(signal.SIGKILL)
                    kills += 1
                await eventually(lambda: not source.core.peers)
            async with running(*mirroring(source, tmp_path / "copy", "--once")) as mirror:
                assert (await mirror.done()).json()[-1]["have"] == count
            await eventually(lambda: not source.core.peers)
            # A window of requests, and what lay in the sockets' and the source's own buffers.
            assert count <= source.blocks_sent <= count + kills * (512 + 8 * 1024 * 1024 // size)

    run(scene())
    assert hypercore("verify", tmp_path / "copy").code == 0


def test_a_range_and_a_cap_are_kept(tmp_path: Path) -> None:
    async def scene() -> None:
        async with served(3000) as (source,):
            async with running(*mirroring(source, tmp_path / "part", "--range", "20:30", "--once")) as mirror:
                last = (await mirror.done()).json()[-1]
                assert (last["have"], last["want"], last["cores"][0]["length"]) == (10, 10, 3000)
            async with running(*mirroring(source, tmp_path / "full", "--most-bytes", "0.5KB", "--once")) as mirror:
                done = await mirror.done()
                assert done.code == 1
                assert "the cap of 500 bytes is reached" in done.errors
            async with running(
                *mirroring(source, tmp_path / "full", "--most-bytes", "500", "--listen", ANY_PORT)
            ) as it:
                full = await report(it, lambda value: value["full"])
                assert full["have"] >= 50
                async with Hypercore("memory:", source.core.key) as reader, Swarm(peers=full["addresses"]) as swarm:
                    swarm.join(reader)
                    assert await reader.get(0) == block(0)
                assert (await it.done(signal.SIGTERM)).code == 0

    run(scene())


def test_people_are_told_what_happens_and_shown_how_far_it_is(tmp_path: Path) -> None:
    async def scene() -> None:
        async with served(20) as (source,):
            arguments = ("mirror", source.core.key.hex(), tmp_path / "copy", "--from", source.address)
            more = ("--listen", ANY_PORT, "--health", "127.0.0.1:0")
            async with running(*HYPERCORE, *arguments, *more) as mirror:
                assert re.fullmatch(r"address  tcp://127\.0\.0\.1:\d+", await mirror.line())
                assert re.fullmatch(r"monitor  http://127\.0\.0\.1:\d+", await mirror.line())
                assert await mirror.line() == "synced: 20 blocks, 200 bytes"
                assert await mirror.done(signal.SIGTERM) == (0, b"", "")

    run(scene())


def test_people_are_told_when_a_source_is_lost_and_when_it_is_reached_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "SOURCE_SECONDS", 0.0)
    told = ["", ""]

    def said(stream: int, text: str) -> bool:
        told[:] = [before + new for before, new in zip(told, capfd.readouterr(), strict=True)]
        return text in told[stream]

    async def scene() -> None:
        address = f"pipe:{tmp_path.name}"
        async with Hypercore("memory:") as core:
            await core.append(b"one")
            words = ["mirror", core.key.hex(), str(tmp_path), "--from", address]
            running = asyncio.create_task(command.mirror(build_parser().parse_args(words), Output()))
            await eventually(lambda: said(1, "; it is tried again\n"))
            assert told[1].count("\n") == 1
            async with Swarm(address) as swarm:
                swarm.join(core)
                await eventually(lambda: said(0, f"{address} is reached again\n") and said(0, "synced: 1 block"))
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running

    run(scene())


def test_at_a_terminal_the_progress_names_rate_and_peers(tmp_path: Path) -> None:
    async def scene() -> None:
        async with served(20) as (source,):
            leader, follower = pty.openpty()
            process = await asyncio.create_subprocess_exec(
                *(*HYPERCORE, "mirror", source.core.key.hex(), tmp_path / "copy", "--from", source.address),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=follower,
                env={**os.environ, "COLUMNS": "200"},
            )
            os.close(follower)
            try:
                drawn = b""
                while b"20 of 20 blocks, 100%" not in drawn:
                    drawn += await asyncio.to_thread(os.read, leader, 4096)
                assert re.search(rb"\d+ a second; " + re.escape(source.address.encode()) + rb" \d+", drawn)
            finally:
                process.terminate()
                assert await process.wait() == 0
                os.close(leader)

    run(scene())


def test_metrics_and_health_are_served(tmp_path: Path) -> None:
    async def scene() -> None:
        async with served(20) as (source,):
            both = ("--metrics", "127.0.0.1:0", "--health", "127.0.0.1:0")
            async with running(*mirroring(source, tmp_path / "copy", *both)) as mirror:
                value = await report(mirror, lambda value: value["synced"])
                (address,) = value["monitor"]
                status, body = await get(address)
                assert (status, json.loads(body)["have"]) == (200, 20)
                host, port = address.removeprefix("tcp://").rsplit(":", 1)
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
                text = (await reader.read()).decode().partition("\r\n\r\n")[2]
                writer.close()
                assert "hypercore_mirror_blocks_have" in {each.name for each in text_string_to_metric_families(text)}

    run(scene())


# ---- many logs ------------------------------------------------------------------------------------


def test_the_keys_of_a_file_are_mirrored_and_read_again_at_a_hangup_and_when_they_change(tmp_path: Path) -> None:
    async def scene() -> None:
        async with served(5, cores=3) as sources:
            keys = [source.core.key.hex() for source in sources]
            listed = tmp_path / "keys"
            listed.write_text(keys[0] + "\n")
            place = f"{tmp_path}/logs/{{key}}"
            command = ("mirror", place, "--keys", listed, "--from", sources[0].address, "--json")
            async with running(*HYPERCORE, *command) as mirror:
                await report(mirror, lambda value: value["have"] == 5)
                listed.write_text("\n".join(keys[:2]))
                mirror.process.send_signal(signal.SIGHUP)
                value = await report(mirror, lambda value: value["have"] == 10)
                assert [core["key"] for core in value["cores"]] == keys[:2]
                listed.write_text("\n".join(keys[1:]))  # Nobody is told.
                value = await report(mirror, lambda value: {core["key"] for core in value["cores"]} == set(keys[1:]))
                await report(mirror, lambda value: value["have"] == 10)
                listed.write_text("nonsense")
                mirror.process.send_signal(signal.SIGHUP)
                assert mirror.process.stderr is not None
                complaint = (await mirror.process.stderr.readline()).decode()
                assert f"{listed}, line 1" in complaint
                assert "stay as they were" in complaint
                await sources[1].core.append(b"more")
                await report(mirror, lambda value: value["have"] == 11)
                assert (await mirror.done(signal.SIGTERM)).code == 0
        assert sorted(path.name for path in await asyncio.to_thread(list, (tmp_path / "logs").iterdir())) == sorted(
            keys
        )

    run(scene())


def test_people_are_told_that_the_keys_were_read_again(tmp_path: Path) -> None:
    async def scene() -> None:
        async with served(5, cores=3) as sources:
            keys = [source.core.key.hex() for source in sources]
            listed = tmp_path / "keys"
            listed.write_text("\n".join(keys[:1]))
            words = ("mirror", f"{tmp_path}/logs/{{key}}", "--keys", listed, "--from", sources[0].address)
            async with running(*HYPERCORE, *words) as mirror:
                assert await mirror.line() == "synced: 5 blocks, 50 bytes of 1 log"
                listed.write_text("\n".join(keys[1:]))
                mirror.process.send_signal(signal.SIGHUP)
                assert await mirror.line() == "keys: 2 logs, 2 new, 1 dropped"
                assert (await mirror.done(signal.SIGTERM)).code == 0

    run(scene())


# ---- two of them ----------------------------------------------------------------------------------


def test_a_second_process_serves_the_first_ones_copy_and_takes_over_when_that_is_killed(tmp_path: Path) -> None:
    async def scene() -> None:
        copy = tmp_path / "copy"
        async with served(50) as (source,), running(*mirroring(source, copy)) as first:
            await report(first, lambda value: value["synced"])
            async with running(*mirroring(source, copy, "--listen", ANY_PORT)) as second:
                value = await report(second, lambda value: value["have"] == 50)
                assert value["cores"][0]["role"] == "standby"
                async with Hypercore("memory:", source.core.key) as reader, Swarm(peers=value["addresses"]) as swarm:
                    swarm.join(reader)
                    await reader.wait_for_length(50)
                    (connection,) = swarm.connections()
                    await source.core.append(block(50))
                    await reader.wait_for_length(51)  # Written by the first, read by the second.
                    await first.done(signal.SIGKILL)
                    await report(second, lambda value: value["cores"][0]["role"] == "writer")
                    await source.core.append(block(51))
                    await reader.wait_for_length(52)
                    assert await reader.get(51) == block(51)
                    assert swarm.connections() == [connection]
                assert (await second.done(signal.SIGTERM)).code == 0
            await eventually(lambda: not source.core.peers)
            assert source.blocks_sent == 52

    run(scene())
    assert hypercore("verify", tmp_path / "copy").code == 0


# ---- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("./copy", "--from", NOBODY), 2, "say which log"),
        (("00" * 32, "./copy", "--keys", "keys", "--from", NOBODY), 2, "say which log"),
        (("./copy", "--keys", "keys", "--from", NOBODY), 2, "./copy/{key}"),
        (("./{key}", "--keys", "./no-such-file", "--from", NOBODY), 1, "no-such-file"),
        (("00" * 32, "./copy"), 2, "source"),
        (("00" * 32, "./copy", "--from", NOBODY, "--health", "9100"), 2, "HOST:PORT"),
        (("00" * 32, "nowhere://x", "--from", NOBODY), 2, "nowhere"),
        (("00" * 32, "./copy", "--from", NOBODY, "--range", "5:5"), 2, "range"),
        (("00" * 32, "./copy", "--from", NOBODY, "--range", "5"), 2, "range"),
        (("00" * 32, "./copy", "--from", NOBODY, "--most-bytes", "a lot"), 2, "size"),
        (("00" * 32, "./copy", "--from", NOBODY, "--most-bytes", "0"), 2, "size"),
        (("xx" * 32, "./copy", "--from", NOBODY), 2, "hex digit"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(tmp_path: Path, arguments: tuple[str, ...], code: int, said: str) -> None:
    done = hypercore("mirror", *arguments)
    assert done.code == code, done.errors
    assert said in done.errors.splitlines()[-1]
    assert done.output == b""


def test_a_storage_with_something_else_in_it_is_told_and_once_fails(tmp_path: Path) -> None:
    key = hypercore("create", tmp_path / "other").output.decode().strip()
    done = hypercore("mirror", "00" * 32, tmp_path / "other", "--from", NOBODY, "--once", "--json")
    assert done.code == 1
    assert key in done.errors
    assert done.json()[-1]["cores"][0]["role"] == "failed"
    for_people = hypercore("mirror", "00" * 32, tmp_path / "other", "--from", NOBODY, "--once")
    assert key in for_people.errors
    assert for_people.errors.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("10MB", 10_000_000), ("10GiB", 10 * 2**30), ("1.5k", 1500), ("2Ki", 2048), ("1 TiB", 2**40)],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    from hypercore.cli.arguments import build_parser

    options = build_parser().parse_args(["mirror", "00" * 32, "./copy", "--most-bytes", text])
    assert options.most_bytes == size


@pytest.mark.parametrize(("text", "expected"), [("5:9", (5, 9)), ("5:", (5, None)), (":9", (0, 9)), (":", (0, None))])
def test_ranges_are_open_where_nothing_is_said(text: str, expected: tuple[int, int | None]) -> None:
    from hypercore.cli.arguments import build_parser

    options = build_parser().parse_args(["mirror", "00" * 32, "./copy", "--range", text])
    assert options.range == expected

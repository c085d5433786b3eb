"""`--lan`: the commands find each other with nothing but the key, on hosts of their own."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.lan.hosts import Host, needs_hosts, network
from tests.processes import HYPERCORE, HYPERCORE_WITHOUT_UVLOOP, hypercore, new_log, running
from tests.running import run

FORGED_KEY = "77" * 32


def on(host: Host, *arguments: str | Path, command: tuple[str, ...] = HYPERCORE) -> tuple[str, ...]:
    return host.command(*command, *arguments)


@needs_hosts
@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
@pytest.mark.parametrize("command", [HYPERCORE, HYPERCORE_WITHOUT_UVLOOP], ids=["uvloop", "asyncio"])
def test_what_is_served_is_cloned_with_its_key_alone(family: str, command: tuple[str, ...], tmp_path: Path) -> None:
    key = new_log(tmp_path / "log", ["one", "two"])

    async def scene() -> None:
        with network(2, ipv4=family == "ipv4", ipv6=family == "ipv6") as (one, other):
            async with running(*on(one, "serve", tmp_path / "log", "--lan", command=command)) as serve:
                assert [(await serve.line()).partition(" ")[0] for _ in range(2)] == ["key", "length"]
                assert (await serve.line()).startswith("lan      found by its key on the local network; TCP port ")
                assert await serve.line() == f"try      hypercore clone {key} ./copy --lan"
                async with running(*on(other, "clone", key, tmp_path / "copy", "--lan", command=command)) as clone:
                    done = await clone.done()
                    assert (done.code, done.errors) == (0, "")
                assert await serve.done(signal.SIGTERM) == (0, b"", "")

    run(scene())
    assert hypercore("cat", tmp_path / "copy", "--lines").output == b"one\ntwo\n"


@needs_hosts
def test_what_is_appended_is_followed_and_mirrored_live(tmp_path: Path) -> None:
    key = new_log(tmp_path / "log")

    async def scene() -> None:
        with network(3) as (one, two, three):
            async with (
                running(*on(one, "append", tmp_path / "log", "--lines", "--lan")) as append,
                running(*on(two, "mirror", key, tmp_path / "mirror", "--lan", "--json")) as mirror,
            ):
                while not (await append.line()).startswith("try"):
                    pass
                await append.type("first\n")
                while (await mirror.json())["have"] < 1:
                    pass
                # The writer goes, and the mirror serves on.
                assert (await append.done(signal.SIGTERM)).code == 0
                async with running(*on(three, "follow", key, "memory:", "--lan", "--start", "0")) as follow:
                    assert await follow.line() == "first"
                    async with running(*on(one, "append", tmp_path / "log", "--lines", "--lan")) as again:
                        await again.type("second\n")
                        assert await follow.line() == "second"
                        for each in (follow, again, mirror):
                            assert (await each.done(signal.SIGTERM)).code == 0

    run(scene())


@needs_hosts
def test_an_address_with_options_does_instead(tmp_path: Path) -> None:
    key = new_log(tmp_path / "log", ["one"])

    async def scene() -> None:
        with network(2) as (one, other):
            serve = on(one, "serve", tmp_path / "log", "--listen", "lan:?interfaces=eth*&port=4977", "--json")
            async with running(*serve) as server:
                assert all(address.endswith(":4977") for address in (await server.json())["addresses"])
                async with running(*on(other, "clone", key, tmp_path / "c", "--from", "lan:?interfaces=eth0")) as clone:
                    assert (await clone.done()).code == 0

    run(scene())


@needs_hosts
@pytest.mark.parametrize("command", ["clone", "follow"])
def test_while_nobody_is_found_it_says_who_knows_why_and_gives_up(command: str, tmp_path: Path) -> None:
    async def scene() -> None:
        with network(1) as (host,):
            async with running(*on(host, command, FORGED_KEY, tmp_path / "copy", "--lan", "--timeout", "3")) as program:
                done = await program.done()
                assert done.code == 1
                hint, end = done.errors.splitlines()
                assert "nobody on this network has announced this log yet" in hint
                assert f"`hypercore lan doctor {FORGED_KEY}` says why" in hint
                assert end.endswith("nobody on this network has announced this log yet")
        assert not (tmp_path / "copy").exists()

    run(scene())


@needs_hosts
def test_a_mirror_that_finds_nobody_says_so_and_goes_on(tmp_path: Path) -> None:
    key = new_log(tmp_path / "log", ["one"])

    async def scene() -> None:
        with network(2) as (one, other):
            async with running(*on(one, "mirror", key, tmp_path / "mirror", "--lan")) as mirror:
                assert mirror.process.stderr is not None
                hint = (await mirror.process.stderr.readline()).decode()
                assert f"`hypercore lan doctor {key}` says why" in hint
                async with running(*on(other, "serve", tmp_path / "log", "--lan")):
                    while not (await mirror.line()).startswith("synced: 1 block"):
                        pass
                assert (await mirror.done(signal.SIGTERM)).code == 0

    run(scene())


@pytest.mark.parametrize(
    "command", [("serve", "./log"), ("clone", FORGED_KEY, "./copy"), ("follow", FORGED_KEY, "./c")]
)
def test_without_any_way_to_peers_the_ways_are_named(command: tuple[str, ...]) -> None:
    done = hypercore(*command)
    assert done.code == 2
    assert "--lan" in done.errors

"""Mirrors in servers: what holds for a folder holds for Redis, Valkey and S3, by their addresses alone."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from urllib.parse import urlencode

import pytest

from hypercore import Hypercore, Mirror, OptionError, Swarm
from tests.mirror.scenes import Source, block, new_name, read_from, soon, source_of, until
from tests.mirror.test_command import ANY_PORT, mirroring, report, served
from tests.processes import running
from tests.replication.links import eventually
from tests.running import run
from tests.servers import redis, s3


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    soon(monkeypatch)


def _redis(kind: redis.Kind) -> str:
    return redis.shared_server(kind).address(prefix=new_name(), lease_seconds=1)


def _s3(start: Callable[[], s3.S3Server]) -> str:
    server = start()
    options = {
        "endpoint_url": server.endpoint_url,
        "region": "us-east-1",
        "access_key": server.admin.access_key,
        "secret_key": server.admin.secret_key,
        "lease_seconds": "1",
    }
    return f"s3://{server.bucket}/{s3.new_prefix()}?{urlencode(options)}"


PLACES: dict[str, Callable[[], str]] = {
    "redis": partial(_redis, "redis"),
    "valkey": partial(_redis, "valkey"),
    "moto": partial(_s3, s3.moto),
    "seaweedfs": partial(_s3, s3.seaweedfs),
}


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> str:
    """The address of a new place in a server."""
    return PLACES[request.param]()


def mirror_at(place: str, source: Source) -> Mirror:
    return Mirror(place, [source.core.key], sources=[source.address], listen=[f"pipe:{new_name()}"])


def test_a_mirror_in_a_server_follows_serves_and_goes_on_where_it_was(place: str) -> None:
    async def scene() -> None:
        async with source_of(500, size=100) as source:
            async with mirror_at(place, source) as mirror:
                await mirror.synced()
                await source.core.append(block(500, 100))
                await until(mirror, lambda core: core.have == 501)
                blocks = await read_from(mirror.addresses[0], source.core.key, 490, 501)
                assert blocks == [block(index, 100) for index in range(490, 501)]
            await eventually(lambda: not source.core.peers)
            async with mirror_at(place, source) as mirror:
                await mirror.synced()
                assert (mirror.status().have, mirror.status().stored_bytes) == (501, 50_100)
            assert source.blocks_sent == 501

    run(scene())


def test_a_standby_in_a_server_serves_what_the_writer_writes_and_takes_over_when_that_closes(place: str) -> None:
    async def scene() -> None:
        async with source_of(20) as source:
            first = mirror_at(place, source)
            await first.start()
            await first.synced()
            async with mirror_at(place, source) as second:
                core = await until(second, lambda core: core.have == 20)
                assert core.role == "standby"
                async with Hypercore("memory:", source.core.key) as reader, Swarm(peers=second.addresses) as swarm:
                    swarm.join(reader)
                    await source.core.append(block(20))
                    await reader.wait_for_length(21)  # Written by the first, read by the second.
                    assert await reader.get(20) == block(20)
                    await first.aclose()
                    await until(second, lambda core: core.role == "writer")
                    await source.core.append(block(21))
                    await reader.wait_for_length(22)
                    assert await reader.get(21) == block(21)
            assert source.blocks_sent == 22

    run(scene())


def test_a_standby_takes_over_when_the_lease_of_a_killed_process_ends(place: str) -> None:
    async def scene() -> None:
        async with served(50) as (source,), running(*mirroring(source, place)) as first:
            await report(first, lambda value: value["synced"])
            async with Mirror(place, [source.core.key], sources=[source.address]) as second:
                await until(second, lambda core: (core.role, core.have) == ("standby", 50))
                await first.done(signal.SIGKILL)
                await until(second, lambda core: core.role == "writer")
                await source.core.append(block(50))
                await until(second, lambda core: core.have == 51)
            await eventually(lambda: not source.core.peers)
            assert source.blocks_sent == 51
        async with Hypercore(place, read_only=True) as copy:
            assert [await copy.get(index) for index in range(51)] == [block(index) for index in range(51)]

    run(scene())


def test_a_paused_writer_is_replaced_and_stands_by_when_it_wakes(place: str) -> None:
    async def scene() -> None:
        async with served(20) as (source,), running(*mirroring(source, place, "--listen", ANY_PORT)) as first:
            await report(first, lambda value: value["synced"])
            first.process.send_signal(signal.SIGSTOP)
            async with Mirror(place, [source.core.key], sources=[source.address]) as second:
                await until(second, lambda core: core.role == "writer")
                await source.core.append(block(20))
                await until(second, lambda core: core.have == 21)
                first.process.send_signal(signal.SIGCONT)
                value = await report(
                    first, lambda value: value["have"] == 21 and value["cores"][0]["role"] == "standby"
                )
                assert value["problems"] == []
                assert second.status().cores[0].role == "writer"
            assert (await first.done(signal.SIGTERM)).code == 0

    run(scene())


def test_an_address_that_takes_leases_away_is_refused() -> None:
    with pytest.raises(OptionError, match="take_over"):
        Mirror("redis://127.0.0.1/0?take_over=true", [bytes(32)], sources=["pipe:x"])

"""Metrics and health over HTTP, also when whoever asks means no good."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from hypercore import ConnectError, Hypercore, Mirror, StorageFullError, Swarm, TransportError
from hypercore.mirrors import mirror as mirror_module
from hypercore.mirrors import monitor as monitor_module
from hypercore.mirrors.monitor import MOST_REQUESTS, REQUEST_SIZE, Monitor
from hypercore.mirrors.status import MirrorStatus, Rate
from hypercore.plugins import open_storage, open_transport
from hypercore.testing import FaultyStorage
from hypercore.transport import ByteStream
from tests.mirror.scenes import block, new_name, read_from, soon, source_of, until
from tests.replication.links import eventually
from tests.running import run


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    soon(monkeypatch)


@contextlib.asynccontextmanager
async def connected(address: str) -> AsyncIterator[ByteStream]:
    transport = open_transport(address)
    stream = await transport.connect(address)
    try:
        yield stream
    finally:
        await stream.aclose()
        await transport.aclose()


async def ask(address: str, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send a request; the answer's status, headers and body."""
    async with connected(address) as stream:
        with contextlib.suppress(TransportError):
            await stream.send(request)
        answer = b""
        while data := await stream.receive():
            answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    assert headers["Connection"] == "close"
    return int(first.split()[1]), headers, body


async def get(address: str, path: str) -> tuple[int, dict[str, str], bytes]:
    return await ask(address, f"GET {path} HTTP/1.1\r\nHost: mirror\r\n\r\n".encode())


async def metrics_of(address: str) -> dict[tuple[str, ...], float]:
    """Each sample by its name and the values of its labels."""
    status, headers, body = await get(address, "/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain")
    assert int(headers["Content-Length"]) == len(body)
    return {
        (sample.name.removeprefix("hypercore_mirror_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def idle() -> MirrorStatus:
    return MirrorStatus(
        cores=(),
        addresses=(),
        sources={},
        sources_gone_seconds=None,
        connections=0,
        most_bytes=None,
        is_full=False,
        problems=(),
    )


@contextlib.asynccontextmanager
async def monitor() -> AsyncIterator[str]:
    """The address of one that serves the health of a mirror without cores."""
    served = Monitor(idle, health=f"pipe:{new_name()}")
    await served.start()
    try:
        yield served.addresses[0]
    finally:
        await served.aclose()


# ---- metrics --------------------------------------------------------------------------------------


def test_metrics_are_what_the_status_says() -> None:
    async def scene() -> None:
        async with source_of(30) as source:
            key = source.core.key.hex()
            mirror = Mirror(
                "memory:",
                [key],
                sources=[source.address],
                listen=[f"pipe:{new_name()}"],
                most_bytes=10_000,
                metrics="127.0.0.1:0",
            )
            async with mirror:
                await mirror.synced()
                assert await read_from(mirror.addresses[0], source.core.key, 7, 8) == [block(7)]
                await until(mirror, lambda core: len(core.peers) == 1)
                (address,) = mirror.monitor_addresses
                found = await metrics_of(address)
                for name, value in {
                    "blocks_have": 30,
                    "blocks_want": 30,
                    "length_blocks": 30,
                    "fork": 0,
                    "stored_bytes": 300,
                    "peers": 1,
                    "failing": 0,
                    "blocks_received_total": 30,
                    "bytes_received_total": 300,
                    "blocks_sent_total": 1,
                    "bytes_sent_total": 10,
                }.items():
                    assert found[name, key] == value, name
                assert found["cores", "writer"] == 1
                assert found["cores", "failed"] == 0
                assert found["source_up", source.address] == 1
                assert [found[(name,)] for name in ("full", "healthy", "most_bytes")] == [0, 1, 10_000]
                assert found[("process_resident_memory_bytes",)] > 0
                await source.core.append(block(30))
                await until(mirror, lambda core: core.have == 31)
                assert (await metrics_of(address))["blocks_have", key] == 31

    run(scene())


def test_a_source_that_is_down_shows_in_the_metrics() -> None:
    async def scene() -> None:
        source = f"pipe:{new_name()}"
        async with Mirror("memory:", [bytes(32)], sources=[source], metrics=f"pipe:{new_name()}") as mirror:
            await eventually(lambda: mirror.status().sources[source] is not None)
            assert (await metrics_of(mirror.monitor_addresses[0]))["source_up", source] == 0

    run(scene())


def test_metrics_without_the_library_name_what_to_install() -> None:
    code = """
import asyncio, sys
sys.modules["prometheus_client"] = None
from hypercore import Mirror, MissingDriverError
async def main():
    try:
        await Mirror("memory:", [bytes(32)], listen=["pipe:x"], metrics="127.0.0.1:0").start()
    except MissingDriverError as error:
        print(error)
    async with Mirror("memory:", [bytes(32)], listen=["pipe:x"], health="pipe:y"):
        print("health needs nothing")
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == [
        "metrics need prometheus-client, which is not installed: pip install 'hypercore-py[metrics]'",
        "health needs nothing",
    ], done.stderr


def test_a_mirror_without_metrics_does_not_load_their_library() -> None:
    code = "import sys; from hypercore import Mirror; Mirror('memory:', listen=['pipe:x']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "hypercore.mirrors.monitor" in done.stdout.split()
    assert not [name for name in done.stdout.split() if name.startswith("prometheus_client")]


# ---- health ---------------------------------------------------------------------------------------


def test_health_and_metrics_may_share_an_address_or_have_one_each() -> None:
    async def scene() -> None:
        one, other = f"pipe:{new_name()}", f"pipe:{new_name()}"
        listen = [f"pipe:{new_name()}"]
        async with Mirror("memory:", listen=listen, metrics=one, health=one) as mirror:
            assert mirror.monitor_addresses == [one]
            assert (await get(one, "/health"))[0] == 200
            assert (await get(one, "/metrics"))[0] == 200
        async with Mirror("memory:", listen=listen, metrics=one, health=other) as mirror:
            assert mirror.monitor_addresses == [one, other]
            assert (await get(one, "/health"))[0] == 404
            assert (await get(other, "/health"))[0] == 200

    run(scene())


def test_a_mirror_is_well_until_its_storage_fails_and_again_when_it_works() -> None:
    async def scene() -> None:
        inner = FaultyStorage(open_storage("memory:"), lasting=True, error=lambda _step: StorageFullError("no space"))
        async with source_of(3) as source:
            mirror = Mirror(
                lambda _key: inner, [source.core.key], sources=[source.address], health="http://127.0.0.1:0/"
            )
            async with mirror:
                await mirror.synced()
                (address,) = mirror.monitor_addresses
                status, headers, body = await get(address, "/health")
                assert (status, headers["Content-Type"]) == (200, "application/json")
                assert json.loads(body) == {
                    "status": "ok",
                    "problems": [],
                    "cores": 1,
                    "have": 3,
                    "want": 3,
                    "full": False,
                }
                inner.fail_at = inner.count + 1
                await source.core.append(block(3))
                await until(mirror, lambda core: core.error is not None)
                status, _, body = await get(address, "/health?verbose=1")
                assert status == 503
                assert json.loads(body)["problems"] == [f"core {source.core.key.hex()}: no space"]
                inner.fail_at = None
                await until(mirror, lambda core: core.have == 4 and core.error is None)
                assert (await get(address, "/health"))[0] == 200

    run(scene())


def test_a_mirror_is_not_well_when_its_sources_are_gone_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        address, health = f"pipe:{new_name()}", f"pipe:{new_name()}"
        async with Hypercore("memory:") as core:
            await core.append(b"block")
            async with Mirror("memory:", [core.key], sources=[address], health=health) as mirror:
                await eventually(lambda: mirror.status().sources_gone_seconds is not None)
                assert (await get(health, "/health"))[0] == 200  # They have not been gone for long.
                monkeypatch.setattr(mirror_module, "PATIENCE_SECONDS", 0.0)
                status, _, body = await get(health, "/health")
                assert status == 503
                (problem,) = json.loads(body)["problems"]
                assert "no source could be reached" in problem
                assert address in problem
                async with Swarm(address) as swarm:
                    swarm.join(core)
                    await mirror.synced()
                    await eventually(lambda: mirror.status().sources_gone_seconds is None)
                    assert (await get(health, "/health"))[0] == 200

    run(scene())


def test_one_source_of_two_is_enough_to_be_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_module, "PATIENCE_SECONDS", 0.0)

    async def scene() -> None:
        down = f"pipe:{new_name()}"
        async with source_of(3) as source:
            async with Mirror("memory:", [source.core.key], sources=[down, source.address]) as mirror:
                await mirror.synced()
                await eventually(lambda: mirror.status().sources[down] is not None)
                assert mirror.status().sources[source.address] is None
                assert mirror.status().problems == ()

    run(scene())


# ---- whoever asks ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_bytes", "expected"),
    [
        (b"HEAD /health HTTP/1.1\r\n\r\n", 200),
        (b"GET /health HTTP/1.0\r\n\r\n", 200),
        (b"POST /health HTTP/1.1\r\n\r\n", 405),
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"GET /health\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (b"GET http://other/health HTTP/1.1\r\n\r\n", 400),
        (b"GET /%s HTTP/1.1\r\n\r\n" % (b"x" * REQUEST_SIZE), 431),
        (b"GET /health HTTP/1.1\r\nX: %s" % (b"x" * 3 * REQUEST_SIZE), 431),
    ],
)
def test_every_request_gets_its_answer(request_bytes: bytes, expected: int) -> None:
    async def scene() -> None:
        async with monitor() as address:
            status, headers, body = await ask(address, request_bytes)
            assert status == expected
            assert (body == b"") is request_bytes.startswith(b"HEAD")
            assert int(headers["Content-Length"]) > 0

    run(scene())


def test_a_request_may_come_in_pieces_and_may_never_come() -> None:
    async def scene() -> None:
        async with monitor() as address:
            async with connected(address):
                pass
            async with connected(address) as stream:
                for piece in (b"GET /hea", b"lth HTTP/1.1\r\nHost: x\r", b"\n\r\n"):
                    await stream.send(piece)
                assert (await stream.receive()).startswith(b"HTTP/1.1 200 ")

    run(scene())


def test_whoever_keeps_it_waiting_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor_module, "REQUEST_SECONDS", 0.01)

    async def scene() -> None:
        async with monitor() as address, connected(address) as stream:
            await stream.send(b"GET /health HTTP/1.1\r\nX-Slow: ")
            assert await stream.receive() == b""

    run(scene())


def test_more_connections_than_it_serves_are_closed_and_the_next_ones_are_served() -> None:
    async def scene() -> None:
        async with monitor() as address:
            async with contextlib.AsyncExitStack() as stack:
                slow = [await stack.enter_async_context(connected(address)) for _ in range(MOST_REQUESTS)]
                for stream in slow:
                    await stream.send(b"GET /health ")
                async with connected(address) as one_more:
                    assert await one_more.receive() == b""
                for stream in slow:
                    await stream.send(b"HTTP/1.1\r\n\r\n")
                    assert (await stream.receive()).startswith(b"HTTP/1.1 200 ")
            assert (await get(address, "/health"))[0] == 200

    run(scene())


def test_a_fault_while_answering_is_an_error_and_not_the_end() -> None:
    async def scene() -> None:
        faults: list[object] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: faults.append(context["exception"]))
        is_broken = True

        def status() -> MirrorStatus:
            if is_broken:
                raise ZeroDivisionError
            return idle()

        served = Monitor(status, health=f"pipe:{new_name()}")
        await served.start()
        assert (await get(served.addresses[0], "/health"))[0] == 500
        assert [type(fault) for fault in faults] == [ZeroDivisionError]
        is_broken = False
        assert (await get(served.addresses[0], "/health"))[0] == 200
        await served.aclose()
        await served.aclose()
        with pytest.raises(ConnectError):
            await get(served.addresses[0], "/health")

    run(scene())


def test_an_address_that_is_taken_is_told() -> None:
    async def scene() -> None:
        async with monitor() as address:
            with pytest.raises(TransportError):
                await Mirror("memory:", listen=[f"pipe:{new_name()}"], health=address).start()

    run(scene())


# ---- rates ----------------------------------------------------------------------------------------


def test_a_steady_growth_is_its_rate_from_the_second_look_on() -> None:
    rate = Rate()
    assert rate.look(1000, 0.0) == 0.0
    for second in range(1, 20):
        assert rate.look(1000 + 50 * second, float(second)) == pytest.approx(50.0)


def test_a_rate_follows_a_change_in_some_seconds_and_ends_in_none() -> None:
    rate = Rate()
    for second in range(10):
        rate.look(100 * second, float(second))
    assert 50 < rate.look(900, 10.0) < 100
    for second in range(11, 60):
        rate.look(900, float(second))
    assert rate.look(900, 60.0) < 0.1


def test_looking_often_or_seldom_gives_the_same_rate() -> None:
    often, seldom = Rate(), Rate()
    for step in range(1001):
        often.look(step, step / 100)
    for step in (0, 500, 1000):
        seldom.look(step, step / 100)
    assert often.look(1000, 10.0) == pytest.approx(100.0, rel=0.05)
    assert seldom.look(1000, 10.0) == pytest.approx(100.0, rel=0.05)


def test_blocks_that_are_taken_back_are_no_growth() -> None:
    rate = Rate()
    rate.look(100, 0.0)
    assert rate.look(20, 1.0) == 0.0

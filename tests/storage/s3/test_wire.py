"""The storage over real wires: answers that are lost, servers that are busy, keys that may not, a client of one's
own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import pytest

from hypercore.errors import NotWritableError, StorageError
from hypercore.log.engine import Log
from hypercore.storage import Write
from hypercore_s3.objects import AccessDeniedError
from hypercore_s3.storage import S3Storage
from tests.running import run
from tests.servers.proxy import Answer, LoseAnswer, Proxy, Seen
from tests.servers.s3 import Credentials, S3Server, seaweedfs
from tests.storage.s3.clients import KINDS


def at(
    server: S3Server, prefix: str, *, url: str = "", who: Credentials | None = None, kind: str = "boto3"
) -> S3Storage:
    keys = who or server.admin
    return S3Storage(
        server.bucket,
        prefix,
        client=kind,
        endpoint_url=url or server.endpoint_url,
        region="us-east-1",
        access_key=keys.access_key,
        secret_key=keys.secret_key,
    )


def puts_of(part: str) -> Callable[[Seen], bool]:
    """Requests that put an object whose key has this in it."""

    def when(seen: Seen) -> bool:
        return seen.method == "PUT" and part in seen.key

    return when


@pytest.mark.parametrize("part", ["commits/", "head", "checkpoints/"])
def test_a_put_whose_answer_is_lost_is_tried_again_finds_itself_and_goes_on(
    server: S3Server, prefix: str, kind: str, part: str
) -> None:
    async def scenario() -> None:
        async with Proxy(server.endpoint_url) as proxy:
            held = at(server, prefix, url=proxy.url, kind=kind)
            await held.commit([Write("data", 0, b"one")])
            proxy.script(LoseAnswer(), when=puts_of(part))
            await held.commit([Write("data", 3, b"two")])
            await held._writer.fold()
            await held.commit([Write("data", 6, b"three")])
            await held.aclose()
            lost = [seen for seen in proxy.seen if seen.forwarded and seen.status is None]
            assert len(lost) == 1
            if kind == "boto3":
                # Every request that left was counted; obstore sends one again by itself when a connection breaks.
                assert held.client.counts.requests == len(proxy.seen)
        again = at(server, prefix)
        assert await (await again.open("data")).read(0, 11) == b"onetwothree"
        await again.aclose()

    run(scenario())


def test_a_busy_server_is_asked_again_and_nothing_is_written_twice(server: S3Server, prefix: str, kind: str) -> None:
    async def scenario() -> None:
        async with Proxy(server.endpoint_url) as proxy:
            log = await Log.open(at(server, prefix, url=proxy.url, kind=kind))
            proxy.script(Answer(503, "SlowDown"), times=2)
            assert (await log.append([b"one"]))[0] == 1
            proxy.script(Answer(500, "InternalError"), times=1)
            assert await log.get(0) == b"one"
            assert (await log.append([b"two"]))[0] == 2
            await log.aclose()
        log = await Log.open(at(server, prefix), read_only=True)
        assert [await log.get(index) for index in range(log.length)] == [b"one", b"two"]
        await log.aclose()

    run(scenario())


@pytest.mark.parametrize("kind", KINDS)
def test_who_may_only_read_reads_and_is_told_when_they_write(prefix: str, kind: str) -> None:
    server = seaweedfs()

    async def scenario() -> None:
        log = await Log.open(at(server, prefix))
        await log.append([b"one"])
        await log.aclose()
        log = await Log.open(at(server, prefix, who=server.reader, kind=kind), read_only=True)
        assert await log.get(0) == b"one"
        await log.aclose()
        held = at(server, prefix, who=server.reader, kind=kind)
        with pytest.raises((AccessDeniedError, NotWritableError)):
            await held.acquire()
        await held.aclose()
        held = at(server, prefix, who=server.writer, kind=kind)
        with pytest.raises(StorageError):
            await held.names()
        await held.aclose()

    run(scenario())


def test_a_client_of_ones_own_is_used_and_not_closed(server: S3Server, prefix: str) -> None:
    async def scenario() -> None:
        with closing(server.boto3()) as client:
            for number in range(2):
                log = await Log.open(S3Storage(server.bucket, prefix, client=client))
                await log.append([b"%d" % number])
                assert log.length == number + 1
                await log.aclose()
            assert client.list_objects_v2(Bucket=server.bucket, Prefix=prefix)["KeyCount"] > 2

    run(scenario())

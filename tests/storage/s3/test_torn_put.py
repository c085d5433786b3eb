"""A PUT that ends before its body, because the client was killed, leaves no object."""

from __future__ import annotations

import asyncio

import pytest

from hypercore.errors import StorageError
from hypercore_s3.objects import ObjectMissingError
from tests.running import run
from tests.servers.proxy import Proxy, Reset, Seen
from tests.servers.s3 import S3Server, seaweedfs
from tests.storage.s3.clients import Kind, opened


@pytest.fixture(scope="module")
def real_server() -> S3Server:
    # moto believes whatever it is told of a body; SeaweedFS looks.
    return seaweedfs()


async def head_without_body(server: S3Server, seen: Seen, *, body_bytes: int) -> None:
    """Send what the client sent, up to so many bytes of the body, and hang up."""
    address = server.endpoint_url.removeprefix("http://").rstrip("/").partition(":")
    reader, writer = await asyncio.open_connection(address[0], int(address[2]))
    lines = [f"{seen.method} {seen.target} HTTP/1.1", *(f"{name}: {value}" for name, value in seen.headers.items())]
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + seen.body[:body_bytes])
    await writer.drain()
    writer.write_eof()
    # The server has done what it does when it has hung up, too.
    await reader.read()
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("body_bytes", [0, 1, 5000])
def test_a_put_that_was_cut_off_leaves_nothing(kind: Kind, real_server: S3Server, prefix: str, body_bytes: int) -> None:
    async def test() -> None:
        async with Proxy(real_server.endpoint_url) as proxy, opened(kind, real_server.endpoint_url) as direct:
            async with opened(kind, proxy.url, deadline_seconds=0.01) as client:
                proxy.script(Reset(), when=lambda seen: seen.method == "PUT", times=None)
                with pytest.raises(StorageError):
                    await client.put(f"{prefix}/torn", [b"x" * 10_000], if_absent=True)
            seen = proxy.of("PUT")[0]
            await head_without_body(real_server, seen, body_bytes=body_bytes)
            with pytest.raises(ObjectMissingError):
                await direct.get(f"{prefix}/torn")
            await direct.put(f"{prefix}/torn", [b"x" * 10_000], if_absent=True)

    run(test())

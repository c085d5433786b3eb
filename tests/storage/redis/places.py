"""New places in servers, and the ways that tests look at them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

from hypercore.plugins import open_storage
from hypercore.storage import Storage
from hypercore_redis import RedisStorage
from tests.servers.redis import RedisServer
from tests.servers.tcp_proxy import TcpProxy

_numbers = itertools.count()


def new_prefix() -> str:
    return f"place-{next(_numbers)}"


def storage_at(server: RedisServer | TcpProxy, prefix: str | None = None, **options: Any) -> RedisStorage:
    """A storage in this server, in a new place or the one of that prefix."""
    options = {"prefix": new_prefix() if prefix is None else prefix, **options}
    if isinstance(server, TcpProxy):
        storage: Storage = open_storage(f"redis://127.0.0.1:{server.port}/0", **options)
    else:
        storage = open_storage(server.address(), **options)
    assert isinstance(storage, RedisStorage)
    return storage


async def content(storage: Storage, name: str = "data") -> bytes:
    """All of a file."""
    file = await storage.open(name)
    return await file.read(0, await file.size())


def keys(server: RedisServer, prefix: str) -> list[str]:
    """What of a place is in the server."""
    with server.client() as client:
        return sorted(key.decode() for key in client.scan_iter(match=f"{{{prefix}}}*", count=10_000))


async def eventually(holds: Callable[[], bool]) -> None:
    """Wait for something that happens by itself; the test's own time limit ends it."""
    while not holds():  # noqa: ASYNC110 - it happens in another process
        await asyncio.sleep(0.005)


def let_the_lease_end(server: RedisServer, storage: RedisStorage) -> None:
    """As if its time had gone by."""
    if server.ask("EXISTS", storage.layout.head):
        server.ask("HSET", storage.layout.head, "until", "1")

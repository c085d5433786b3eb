"""Where the server is: at an address, behind Sentinels, in a cluster, or behind a client that the user made.

Knows redis-py's connections; it must not know what is sent over them. Every server is asked for one connection at a
time, and for a new one when that is lost, because it may be somewhere else by then.
"""

from __future__ import annotations

import asyncio
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.sentinel import Sentinel

from hypercore.errors import OptionError
from hypercore_redis.options import Target

#: A class of connections.
Connections = Callable[..., AbstractConnection]


class Server(ABC):
    """Gives connections to the one server that holds a key and may change it."""

    #: For messages; no secret in it.
    shown: str
    #: Whether another server takes over when this one fails, so that a replica is not the end of it.
    moves: bool = False

    @abstractmethod
    async def connect(self, key: str) -> AbstractConnection:
        """A connection of the caller's own, to the primary. Raises errors of redis-py and `OSError`."""

    async def others(self, key: str) -> AsyncIterator[AbstractConnection]:
        """A connection to each server that may take its place, one after the other."""
        no_others: tuple[AbstractConnection, ...] = ()
        for connection in no_others:
            yield connection


class SingleServer(Server):
    """A server at a fixed address."""

    def __init__(self, shown: str, kind: Connections, arguments: Mapping[str, Any]) -> None:
        self.shown = shown
        self._kind = kind
        self._arguments = arguments

    async def connect(self, key: str) -> AbstractConnection:
        return await connected(self._kind(**self._arguments))


class SentinelServer(Server):
    """The server that the Sentinels call the primary now."""

    moves = True

    def __init__(
        self,
        shown: str,
        service: str,
        hosts: tuple[tuple[str, int], ...],
        kind: Connections,
        arguments: Mapping[str, Any],
        sentinel_arguments: Mapping[str, Any],
    ) -> None:
        self.shown = shown
        self._service = service
        self._hosts = hosts
        self._kind = kind
        self._arguments = arguments
        self._sentinel_arguments = sentinel_arguments

    async def connect(self, key: str) -> AbstractConnection:
        sentinel = self._sentinel()
        try:
            host, port = await sentinel.discover_master(self._service)
        finally:
            await _close(*sentinel.sentinels)
        return await connected(self._kind(**self._arguments, host=host, port=port))

    async def others(self, key: str) -> AsyncIterator[AbstractConnection]:
        sentinel = self._sentinel()
        try:
            addresses = await sentinel.discover_slaves(self._service)
        finally:
            await _close(*sentinel.sentinels)
        for host, port in addresses:
            yield await connected(self._kind(**self._arguments, host=host, port=port))

    def _sentinel(self) -> Any:
        make: Any = Sentinel  # redis-py has not typed it
        return make(list(self._hosts), sentinel_kwargs=dict(self._sentinel_arguments))


class ClusterServer(Server):
    """The node of a cluster that holds the key's slot now."""

    moves = True

    def __init__(self, shown: str, client: RedisCluster, *, owned: bool) -> None:
        self.shown = shown
        self._client = client
        self._owned = owned

    async def connect(self, key: str) -> AbstractConnection:
        await self._look()
        try:
            node = self._client.get_node_from_key(key)
            if node is None:
                raise OptionError(f"{self.shown}: no node of the cluster holds the slot of {key!r}")
            return await connected(node.connection_class(**node.connection_kwargs))
        finally:
            await self._let_go()

    async def others(self, key: str) -> AsyncIterator[AbstractConnection]:
        await self._look()
        try:
            for node in self._client.nodes_manager.slots_cache[self._client.keyslot(key)][1:]:
                yield await connected(node.connection_class(**node.connection_kwargs))
        finally:
            await self._let_go()

    async def _look(self) -> None:
        """Who holds what may have changed since the last time."""
        if self._owned or self._client._initialize:
            await self._client.initialize()
        else:
            await self._client.nodes_manager.initialize()

    async def _let_go(self) -> None:
        if self._owned:
            await self._client.aclose()


class ClientServer(Server):
    """Where a client that the user made would connect; the connections are ours, not its pool's."""

    def __init__(self, client: Redis) -> None:
        self._pool = client.connection_pool
        self.shown = self._place()
        self.moves = hasattr(self._pool, "sentinel_manager")

    def _place(self) -> str:
        arguments = self._pool.connection_kwargs
        if "path" in arguments:
            return f"redis://{arguments['path']}?db={arguments.get('db', 0)}"
        return f"redis://{arguments.get('host', 'localhost')}:{arguments.get('port', 6379)}/{arguments.get('db', 0)}"

    async def connect(self, key: str) -> AbstractConnection:
        pool: Any = self._pool
        return await connected(pool.make_connection())


async def connected(connection: Any) -> AbstractConnection:
    """Connect, and leave nothing open when that fails or the caller is cancelled."""
    try:
        await connection.connect()
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
    taken: AbstractConnection = connection
    return taken


async def _close(*clients: Redis) -> None:
    await asyncio.gather(*(client.aclose() for client in clients), return_exceptions=True)


def server_of(client: object) -> Server:
    """The server of a client of redis-py. Raises `OptionError` for anything else."""
    if isinstance(client, RedisCluster):
        return ClusterServer("a cluster", client, owned=False)
    if isinstance(client, Redis):
        return ClientServer(client)
    raise OptionError(f"client must be a redis.asyncio.Redis or RedisCluster, not a {type(client).__name__}")


def server_at(target: Target) -> Server:
    """The server that an address means."""
    options = target.options
    # One of several hosts that does not answer must leave time for the next one.
    connect_seconds = options.timeout_seconds / 4
    common: dict[str, Any] = {"socket_connect_timeout": connect_seconds, "socket_timeout": None}
    if target.tls:
        common |= {
            "ssl_ca_certs": _path(options.tls_ca_file),
            "ssl_certfile": _path(options.tls_certificate_file),
            "ssl_keyfile": _path(options.tls_key_file),
            "ssl_cert_reqs": "required" if options.tls_verify else "none",
            "ssl_check_hostname": options.tls_verify,
        }
    login: dict[str, Any] = {"username": target.username, "password": target.password}
    kind: Connections = SSLConnection if target.tls else Connection
    if options.cluster:
        (host, port), *others = target.hosts
        cluster = {
            **common,
            **login,
            "host": host,
            "port": port,
            "startup_nodes": [ClusterNode(*other) for other in others] or None,
            "socket_timeout": connect_seconds,
            "ssl": target.tls,
            "protocol": 2,
        }
        client = RedisCluster(**cluster)
        return ClusterServer(target.shown, client, owned=True)
    arguments = {**common, **login, "db": options.db, "protocol": 2}
    if options.sentinel is not None:
        sentinel_arguments = {
            "socket_connect_timeout": connect_seconds,
            "socket_timeout": connect_seconds,
            "username": options.sentinel_username,
            "password": options.sentinel_password,
            "ssl": target.tls,
            **{name: value for name, value in common.items() if name.startswith("ssl_")},
        }
        return SentinelServer(
            target.shown,
            options.sentinel,
            target.hosts,
            kind,
            arguments,
            sentinel_arguments,
        )
    if target.socket_path is not None:
        return SingleServer(target.shown, UnixDomainSocketConnection, {**arguments, "path": target.socket_path})
    ((host, port),) = target.hosts
    return SingleServer(target.shown, kind, {**arguments, "host": host, "port": port})


def _path(path: str | os.PathLike[str] | None) -> str | None:
    return None if path is None else os.fspath(path)

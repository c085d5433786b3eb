"""Storages as peers: a folder, a bucket or a server that holds a core is read as if somebody served it.

Shell floor, below the swarm. Each storage is opened read-only as a core of exactly the key that is wanted, and
replicates with us over a pair of streams inside this process, by the session code of every peer: so every block is
verified against the key before it is stored, whatever the storage holds. It must not know what is wanted, nor where
the bytes lie.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import Sequence
from typing import Final

from hypercore.contacts import Contact, PeerInfo
from hypercore.duplex import stream_pair
from hypercore.errors import (
    AddressError,
    ClosedError,
    CorruptError,
    HypercoreError,
    OutOfBoundsError,
    StorageConflictError,
    StorageError,
)
from hypercore.log.engine import Log, LogChange
from hypercore.peer import Peer
from hypercore.plugins import is_storage, open_storage
from hypercore.replication import Hub
from hypercore.session import Replication
from hypercore.urls import Address, hide_secrets, parse_address

#: How often a storage is looked at again while somebody follows: when a look costs little, and when it is far away
#: and every look is paid for.
REFRESH_SECONDS: Final = 2.0
DISTANT_REFRESH_SECONDS: Final = 10.0
#: A writer at work may move things between two reads of ours, hardly ever so many times in a row.
OPEN_ATTEMPTS: Final = 3
#: Wait before a storage that failed is opened again: the first time, and at most. Doubled each time, with jitter.
FIRST_RETRY_SECONDS: Final = 0.2
LAST_RETRY_SECONDS: Final = 30.0
#: A storage that could be read for this long was a good one: the next wait is the first one again.
GOOD_SECONDS: Final = 5.0
#: News of a storage has crossed the streams of this process by then; if not, something is wrong with it.
NEWS_SECONDS: Final = 10.0


def is_storage_peer(address: str) -> bool:
    """Whether a peer's address is that of a storage.

    Raises `AddressError` for one that is nobody's. A bare word could be the name of a host as well as of a folder.
    """
    if "/" not in address and os.sep not in address and parse_address(address) == Address(scheme="file", path=address):
        raise AddressError(
            f"{hide_secrets(address)!r} names no peer: over TCP it is written 'tcp://host:port', and a folder of that "
            f"name './{hide_secrets(address)}'"
        )
    return is_storage(address)


def address_for(address: str, key: bytes, discovery_key: bytes) -> str:
    """The address of one core: `{key}` and `{discovery_key}` in it stand for the core's, in hex."""
    return address.replace("{key}", key.hex()).replace("{discovery_key}", discovery_key.hex())


class StoragePeers:
    """The storages of a swarm, each a peer of every core that was added.

    `errors` holds the last error of each address until it works. An address with `{key}` or `{discovery_key}` in it
    is one of its own for every core.
    """

    def __init__(self, errors: dict[str, HypercoreError], *, refresh_seconds: float | None = None) -> None:
        self.errors = errors
        self.refresh_seconds = refresh_seconds
        self._addresses: tuple[str, ...] = ()
        self._peers: dict[Hub, list[StoragePeer]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, addresses: Sequence[str]) -> None:
        """Begin to open `addresses` for the cores that were added, and for those that will be.

        Raises `OptionError` or `PluginError` for an address that cannot be understood.
        """
        for address in addresses:
            await open_storage(address_for(address, bytes(32), bytes(32))).aclose()
        self._addresses = tuple(addresses)
        for hub in list(self._peers):
            self._begin(hub)

    def add(self, hub: Hub) -> None:
        """Replicate a core from every storage; until each was tried once the core's waiters hold on."""
        if hub not in self._peers:
            self._peers[hub] = []
            self._begin(hub)

    def _begin(self, hub: Hub) -> None:
        for address in self._addresses:
            peer = StoragePeer(address_for(address, hub.log.key, hub.log.discovery_key), hub, self)
            self._peers[hub].append(peer)
            peer.task = task = asyncio.get_running_loop().create_task(peer.run())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def remove(self, hub: Hub) -> None:
        """Read for this core no longer."""
        for peer in self._peers.pop(hub, ()):
            peer.stop()

    def _all(self) -> list[StoragePeer]:
        return [peer for peers in self._peers.values() for peer in peers]

    def connections(self) -> list[Replication]:
        """Our ends of the connections whose handshake is done."""
        sessions = [peer.session for peer in self._all()]
        return [each for each in sessions if each is not None and each.remote_public_key and not each.is_closed]

    def infos(self) -> list[PeerInfo]:
        """Each storage as a peer, once for every core."""
        now = asyncio.get_running_loop().time()
        return [peer.contact.info(now) for peer in self._all()]

    def works(self, address: str) -> bool:
        """Whether any core is read from the address."""
        return any(each.remote_address == hide_secrets(address) for each in self.connections())

    async def flush(self) -> None:
        """Return when every storage was tried once for every core."""
        for peer in self._all():
            await peer.tried.wait()

    async def aclose(self) -> None:
        """Close every storage. Twice is fine."""
        for hub in list(self._peers):
            self.remove(hub)
        if self._tasks:
            await asyncio.wait(self._tasks)


class StoragePeer:
    """One storage, as a peer of one core: opened, replicated from, looked at again, and after a failure tried again."""

    def __init__(self, address: str, hub: Hub, owner: StoragePeers) -> None:
        self._address = address
        self._hub = hub
        self._owner = owner
        #: Our end of the connection, while there is one.
        self.session: Replication | None = None
        #: How it stands with it. A storage has no key of its own.
        self.contact = Contact((address,))
        #: The storage was opened once, or could not be.
        self.tried = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        hub.finding += 1

    def stop(self) -> None:
        """Let go of the core at once; the storage is closed soon after, in `task`."""
        if self.session is not None:
            self.session.remove(self._hub)
        if self.task is not None:
            self.task.cancel()
        self._end_first_try()

    def _end_first_try(self) -> None:
        if not self.tried.is_set():
            self.tried.set()
            self._hub.finding -= 1
            self._hub.changed()

    async def run(self) -> None:
        """Until it is cancelled."""
        loop = asyncio.get_running_loop()
        wait_seconds = FIRST_RETRY_SECONDS
        while True:
            began = loop.time()
            failure: HypercoreError
            self.contact.dialling()
            try:
                await self._read()
            except HypercoreError as error:
                failure = error
            except Exception as error:
                # A fault of ours or of a plugin: the other peers go on, it is not hidden, and it is tried again.
                loop.call_exception_handler({"message": f"reading {self._name} failed", "exception": error})
                failure = StorageError(f"{self._name}: an internal error: {error!r}")
            self._failed(failure)
            self._end_first_try()
            if loop.time() - began > GOOD_SECONDS:
                wait_seconds = FIRST_RETRY_SECONDS
            seconds = wait_seconds * random.uniform(0.5, 1.5)
            self.contact.failed(failure, seconds)
            await asyncio.sleep(seconds)
            wait_seconds = min(2 * wait_seconds, LAST_RETRY_SECONDS)

    @property
    def _name(self) -> str:
        return hide_secrets(self._address)

    def _failed(self, error: HypercoreError) -> None:
        if isinstance(error, StorageConflictError) and self._owner.works(self._address):
            return  # It holds another core of ours, which is no failure of the address.
        self._owner.errors[self._address] = error
        self._hub.changed()

    async def _read(self) -> None:
        """Open the storage and replicate from it, until that fails with the error that says why."""
        log = await self._open()
        source = _Source(log, self._hub, self._name)
        try:
            self.session = source.session
            async with source:
                await source.session.opened()
                self.contact.reading()
                self._owner.errors.pop(self._address, None)
                self._end_first_try()
                await source.run(self._owner.refresh_seconds)
        finally:
            self.session = None

    async def _open(self) -> Log:
        for _ in range(OPEN_ATTEMPTS - 1):
            with contextlib.suppress(CorruptError, OutOfBoundsError):
                return await self._open_once()
        return await self._open_once()

    async def _open_once(self) -> Log:
        storage = open_storage(self._address)
        try:
            return await Log.open(storage, key=self._hub.log.key, create_if_missing=False, read_only=True)
        except BaseException:
            await storage.aclose()
            raise


class _FarEnd(Replication):
    """The storage's end: with its core it has nothing more to say, and the reason must not be lost."""

    def drop(self, hub: Hub, error: HypercoreError) -> None:
        self.fail(error)


class _Source:
    """An open storage, connected with us. Closes the log with itself."""

    def __init__(self, log: Log, hub: Hub, name: str) -> None:
        self._log = log
        self._hub = hub
        self._name = name
        self._far_hub = Hub(log)
        self._far_hub.on_warning = self._warn
        far, near = stream_pair(name, "a reader in this process")
        self._far_end = _FarEnd(far, initiator=False)
        self._far_end.add(self._far_hub)
        self.session = Replication(near, initiator=True)
        self.session.add(hub)
        #: Set when somebody wants to know what the storage holds now, and what he waits for.
        self._asked = asyncio.Event()
        self._looks: list[asyncio.Future[None]] = []

    async def __aenter__(self) -> None:
        self._far_end.start_running()
        self.session.start_running()
        self._hub.on_look.append(self.look)

    async def __aexit__(self, *_: object) -> None:
        self._hub.on_look.remove(self.look)
        for waiter in self._looks:
            if not waiter.done():
                waiter.set_result(None)
        self._far_hub.close()
        try:
            await self.session.aclose()
            await self._far_end.aclose()
        finally:
            await self._log.aclose()

    def _warn(self, message: str) -> None:
        self._hub.warn(f"{self._name}: {message}")

    async def run(self, refresh_seconds: float | None) -> None:
        """Look at the storage whenever it is due; raise what ends the connection."""
        loop = asyncio.get_running_loop()
        interval = refresh_seconds or (DISTANT_REFRESH_SECONDS if self._log.storage.distant else REFRESH_SECONDS)
        ended = [loop.create_task(each.wait_closed()) for each in (self.session, self._far_end)]
        refreshing = loop.create_task(self._keep_fresh(interval))
        try:
            await asyncio.wait([*ended, refreshing], return_when=asyncio.FIRST_COMPLETED)
            if refreshing.done():
                refreshing.result()
        finally:
            for task in (*ended, refreshing):
                task.cancel()
            await asyncio.wait([*ended, refreshing])
        # The storage's reason goes first: our end only sees that the connection is over.
        raise self._far_end.error or self.session.error or ClosedError(f"{self._name}: the connection was closed")

    async def _keep_fresh(self, interval_seconds: float) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval_seconds):
                    await self._asked.wait()
            if not self._asked.is_set() and not self._hub.is_followed:
                continue
            self._asked.clear()
            looks, self._looks = self._looks, []
            try:
                await self._log.refresh()
            finally:
                for waiter in looks:
                    if not waiter.done():
                        waiter.set_result(None)

    async def look(self) -> None:
        """See what the storage holds now, and return when our end has heard of it, or cannot any more."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._looks.append(waiter)
        self._asked.set()
        await waiter
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(NEWS_SECONDS):
                await self._heard()

    async def _heard(self) -> None:
        news = asyncio.Event()

        def changed(_: LogChange | None) -> None:
            news.set()

        self._hub.on_change.append(changed)
        try:
            while (peer := self._near_peer()) is not None:
                remote = peer.remote
                if (remote.fork, remote.length) == (self._log.fork, self._log.length):
                    return
                news.clear()
                await news.wait()
        finally:
            self._hub.on_change.remove(changed)

    def _near_peer(self) -> Peer | None:
        return next((peer for peer in self._hub.peers if peer.session is self.session), None)

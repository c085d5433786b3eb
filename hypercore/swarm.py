"""A swarm: connections to peers over any transports, for any number of cores.

Shell floor: listens, dials, tries again with back-off, keeps one connection a peer, and gives every connection all the
cores that were joined. What flows over a connection is the session's.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from hypercore.crypto import KeyPair
from hypercore.errors import ClosedError, ConnectError, ConnectTimeoutError, HypercoreError, OptionError
from hypercore.finding import Finding
from hypercore.plugins import open_transport
from hypercore.replication import Hub
from hypercore.session import Replication
from hypercore.storage_peers import StoragePeers, is_storage_peer
from hypercore.transport import ByteStream, Discovery, Listener, Transport
from hypercore.urls import hide_secrets

if TYPE_CHECKING:
    from hypercore.core import Hypercore

#: Wait before a peer is dialled again: the first time, and at most. Doubled each time, with jitter, so that many
#: readers do not come back to a restarted writer in one moment.
FIRST_RETRY_SECONDS: Final = 0.2
LAST_RETRY_SECONDS: Final = 30.0
#: A connection that lived this long was a good one: the next dial starts with the first wait again.
GOOD_CONNECTION_SECONDS: Final = 5.0
#: Connections at once; further ones are closed as they come.
MOST_CONNECTIONS: Final = 256


class Swarm:
    """Finds and keeps connections.

    `addresses` are listened on: `tcp://0.0.0.0:4977`, `tcp://[::1]:0`, `pipe:name`; with `lan:` the peers on the local
    network find each other. `peers` are dialled and, when the connection ends, dialled again; `dial_errors` says of
    each that cannot be reached why, and nothing else does. `key_pair` names this program to its peers (a fresh one
    otherwise).

    A peer may also be a storage, as `./folder` or `s3://bucket/prefix`, that holds the core (one address for many cores
    has `{key}` or `{discovery_key}` in it): it is read as if somebody served it, and while anybody follows it is looked
    at again every `refresh_seconds` (2, or 10 when it is far away).

        async with Hypercore("./reader", key) as core, Swarm(peers=["tcp://writer.local:4977"]) as swarm:
            swarm.join(core)
            await core.update()
    """

    def __init__(
        self,
        *addresses: str,
        peers: Iterable[str] = (),
        key_pair: KeyPair | None = None,
        most_connections: int = MOST_CONNECTIONS,
        refresh_seconds: float | None = None,
    ) -> None:
        if isinstance(peers, str):
            raise OptionError(f"peers is a list of addresses: peers=[{hide_secrets(peers)!r}]")
        self._listen_addresses = addresses
        self._peer_addresses = tuple(peers)
        self._key_pair = key_pair or KeyPair.generate()
        self._most_connections = most_connections
        self._transports: dict[str, Transport] = {}
        self._listeners: list[Listener] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._replications: set[Replication] = set()
        self._by_remote: dict[bytes, Replication] = {}
        self._findings: list[Finding] = []
        #: Connections whose peer was found elsewhere since; the next one to that peer takes their place.
        self._doubted: set[Replication] = set()
        self._hubs: dict[bytes, Hub] = {}
        #: Topics that peers may ask for, those that they are asked for, and those whose cores wait for the first round.
        self._served: set[bytes] = set()
        self._sought: set[bytes] = set()
        self._finding: set[bytes] = set()
        self._first_dials = len(self._peer_addresses)
        self._flushed = asyncio.Event()
        self._started = False
        self._destroyed = False
        #: The last error of each address that is dialled, until it works.
        self.dial_errors: dict[str, HypercoreError] = {}
        self._storages = StoragePeers(self.dial_errors, refresh_seconds=refresh_seconds)

    # ---- life ----

    async def start(self) -> None:
        """Listen and begin to dial; `async with` does it.

        Raises `TransportError` when an address is not to be had, and `OptionError` for one that no plugin knows.
        """
        self._check_open()
        if self._started:
            return
        self._started = True
        try:
            storages = [address for address in self._peer_addresses if is_storage_peer(address)]
            dialled = [address for address in self._peer_addresses if address not in storages]
            for address in dialled:
                self._transport(address)
            for address in self._listen_addresses:
                if (discovery := self._transport(address).discovery()) is None:
                    await self._listen(address)
                else:
                    await self._find(discovery)
                self._check_open()
            await self._storages.start(storages)
        except BaseException:
            await self.destroy()
            raise
        for listener in self._listeners:
            self._spawn(self._accept(listener))
        for address in dialled:
            self._spawn(self._keep_dialling(address))
        self._first_dials = len(dialled)
        self._end_first_round()
        self._topics_changed()

    def _check_open(self) -> None:
        if self._destroyed:
            raise ClosedError("the swarm is destroyed")

    async def destroy(self) -> None:
        """Close everything. Twice is fine."""
        self._destroyed = True
        await asyncio.gather(*(finding.aclose() for finding in self._findings))
        for listener in self._listeners:
            await listener.aclose()
        replications = list(self._replications)  # Whoever watches one forgets it when it is cancelled.
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await asyncio.gather(*(replication.aclose() for replication in replications))
        await self._storages.aclose()
        for hub in list(self._hubs.values()):
            self._leave(hub)
        for transport in self._transports.values():
            await transport.aclose()
        self._first_dials = 0
        self._end_first_round()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.destroy()

    # ---- cores ----

    def join(self, core: Hypercore, *, server: bool = True, client: bool = True) -> None:
        """Replicate `core` over every connection, present and future, until it closes; the core must be open.

        `server` accepts it from peers that ask for it, `client` asks peers for it. Until the first round of dialling
        is over the core's `update` and `get` hold on.
        """
        self._check_open()
        hub = core.hub
        if hub.closed:
            raise ClosedError("the core is closed")
        topic = core.discovery_key
        if topic in self._hubs:
            return
        self._hubs[topic] = hub
        hub.sources += 1
        hub.on_close.append(self._leave)
        if server:
            self._served.add(topic)
        if client:
            self._sought.add(topic)
            if self._first_dials:
                hub.finding += 1
                self._finding.add(topic)
            for replication in self._replications:
                replication.add(hub)
            self._storages.add(hub)
        self._topics_changed()

    def leave(self, core: Hypercore) -> None:
        """Replicate `core` no longer."""
        hub = self._hubs.get(core.discovery_key)
        if hub is not None:
            self._leave(hub)
            for replication in self._replications:
                replication.remove(hub)

    def _leave(self, hub: Hub) -> None:
        topic = hub.log.discovery_key
        if self._hubs.pop(topic, None) is None:
            return
        hub.on_close.remove(self._leave)
        self._storages.remove(hub)
        self._served.discard(topic)
        self._sought.discard(topic)
        hub.sources -= 1
        self._topics_changed()
        if topic in self._finding:
            self._finding.discard(topic)
            hub.finding -= 1
        hub.changed()

    # ---- what is going on ----

    @property
    def public_key(self) -> bytes:
        """The key by which peers know this program."""
        return self._key_pair.public_key

    @property
    def addresses(self) -> list[str]:
        """What peers may dial, with real port numbers."""
        return [address for listener in self._listeners for address in listener.addresses]

    def connections(self) -> list[Replication]:
        """The connections whose handshake is done."""
        dialled = [each for each in self._replications if each.remote_public_key and not each.is_closed]
        return dialled + self._storages.connections()

    async def flush(self) -> None:
        """Return when every address was dialled once, with or without success. Starts the swarm if need be."""
        if not self._destroyed:
            await self.start()
        await self._flushed.wait()
        for finding in self._findings:
            await finding.flush()
        await self._storages.flush()

    # ---- work ----

    def _transport(self, address: str) -> Transport:
        scheme = address.partition(":")[0]
        if scheme not in self._transports:
            self._transports[scheme] = open_transport(address)
        return self._transports[scheme]

    async def _listen(self, address: str) -> Listener:
        listener = await self._transport(address).listen(address)
        self._listeners.append(listener)
        return listener

    async def _find(self, discovery: Discovery) -> None:
        finding = Finding(
            discovery,
            public_key=self.public_key,
            dial=self._dial_found,
            connected=self._by_remote,
            doubted=self._doubted,
            errors=self.dial_errors,
        )
        self._findings.append(finding)
        await finding.start(self._listen)

    def _topics_changed(self) -> None:
        sought = {topic: self._hubs[topic] for topic in self._sought}
        for finding in self._findings:
            finding.set_topics(served=self._served, sought=sought)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: Listener) -> None:
        async for stream in listener:
            if len(self._replications) >= self._most_connections:
                await stream.aclose()
                continue
            self._run(stream, initiator=False)

    async def _keep_dialling(self, address: str) -> None:
        wait_seconds = FIRST_RETRY_SECONDS
        loop = asyncio.get_running_loop()
        try:
            replication = await self._dial(address)
        finally:
            self._first_dials -= 1
            self._end_first_round()
        while True:
            began = loop.time()
            if replication is not None:
                await replication.wait_closed()
                remote = replication.remote_public_key
                if remote == self.public_key:
                    self.dial_errors[address] = ConnectError(f"{address} is this very program")
                    return
                if (kept := self._by_remote.get(remote)) is not None:
                    await kept.wait_closed()  # The peer is connected already, by another way.
                if loop.time() - began > GOOD_CONNECTION_SECONDS:
                    wait_seconds = FIRST_RETRY_SECONDS
            await asyncio.sleep(wait_seconds * random.uniform(0.5, 1.5))
            wait_seconds = min(2 * wait_seconds, LAST_RETRY_SECONDS)
            replication = await self._dial(address)

    async def _dial(self, address: str) -> Replication | None:
        """A connection whose handshake is done; None, and the reason in `dial_errors`, when there is none."""
        try:
            replication = self._run(await self._transport(address).connect(address), initiator=True)
            await replication.opened()
        except HypercoreError as error:
            self.dial_errors[address] = error
            return None
        self.dial_errors.pop(address, None)
        return replication

    async def _dial_found(self, address: str, timeout_seconds: float) -> Replication:
        """A connection whose handshake is done, over whatever transport the address is of."""
        replication: Replication | None = None
        try:
            async with asyncio.timeout(timeout_seconds):
                stream = await self._transport(address).connect(address, timeout_seconds=timeout_seconds)
                replication = self._run(stream, initiator=True)
                await replication.opened()
        except TimeoutError as error:
            if replication is not None:
                await replication.aclose()
            raise ConnectTimeoutError(f"{address} did not answer within {timeout_seconds:g} seconds") from error
        return replication

    def _end_first_round(self) -> None:
        if self._first_dials > 0:
            return
        self._flushed.set()
        for topic in self._finding:
            hub = self._hubs[topic]
            hub.finding -= 1
            hub.changed()
        self._finding.clear()

    def _run(self, stream: ByteStream, *, initiator: bool) -> Replication:
        replication = Replication(stream, initiator=initiator, key_pair=self._key_pair, on_offer=self._offered)
        self._replications.add(replication)
        for topic in self._sought:
            replication.add(self._hubs[topic])
        replication.start_running()
        self._spawn(self._watch(replication))
        return replication

    async def _watch(self, replication: Replication) -> None:
        try:
            await replication.opened()
            await self._keep_one(replication)
            await replication.wait_closed()
        except HypercoreError:
            pass  # It never opened; whoever dialled has the reason.
        finally:
            self._replications.discard(replication)
            self._doubted.discard(replication)
            remote = replication.remote_public_key
            if self._by_remote.get(remote) is replication:
                del self._by_remote[remote]

    async def _keep_one(self, replication: Replication) -> None:
        """Of two connections to one peer both sides keep the same: the one that the smaller public key dialled.

        When one side dialled both, by two addresses, the handshakes decide.
        """
        remote = replication.remote_public_key
        if remote == self.public_key:
            await replication.aclose()
            return

        def rank(each: Replication) -> tuple[bool, bytes]:
            return each.is_initiator == (self.public_key < remote), each.handshake_hash

        other = self._by_remote.get(remote)
        if other is None or other.is_closed:
            self._by_remote[remote] = replication
        elif other in self._doubted or rank(replication) > rank(other):
            self._by_remote[remote] = replication
            await other.aclose()
        else:
            await replication.aclose()

    async def _offered(self, discovery_key: bytes) -> Hub | None:
        return self._hubs.get(discovery_key) if discovery_key in self._served else None

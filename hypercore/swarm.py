"""A swarm: connections to peers over any transports, for any number of cores.

Shell floor: listens and dials, lets discovery find peers, and gives every connection all the cores that were joined.
Which connections are kept is `connections`' business, when an address is dialled again `dialling`'s, and what flows
over a connection the session's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from hypercore.connections import Connections
from hypercore.contacts import Contact, PeerInfo, log, merged, short
from hypercore.crypto import KeyPair
from hypercore.dialling import MOST_DIALS, Dialler, FirstRound
from hypercore.errors import ClosedError, HypercoreError, OptionError
from hypercore.finding import Finding
from hypercore.keys import decode_key
from hypercore.plugins import finds_peers, open_transport
from hypercore.replication import Hub
from hypercore.session import Replication
from hypercore.storage_peers import StoragePeers, is_storage_peer
from hypercore.transport import Discovery, Listener, Transport
from hypercore.urls import hide_secrets

if TYPE_CHECKING:
    from hypercore.core import Hypercore

#: Connections at once. One that idles costs some 30 KiB; this many are also far below the usual 1,024 descriptors.
MOST_CONNECTIONS: Final = 256
#: This part of the connections is kept for those that we dial, so that whoever dials us cannot take all the room.
RESERVED_PART: Final = 4
#: One host, other than this machine, may have this part of all connections.
HOST_PART: Final = 2


@dataclass(slots=True)
class _Topic:
    """What was joined under one discovery key: a core, or only the topic, or both."""

    hub: Hub | None = None
    #: Whether the core is served and sought.
    core_server: bool = False
    core_client: bool = False
    #: Whether peers are met who join the same topic.
    server: bool = False
    client: bool = False


class Swarm:
    """Finds and keeps connections.

    `addresses` are listened on: `tcp://0.0.0.0:4977`, `tcp://[::1]:0`, `pipe:name`; with `lan:` the peers on the local
    network find each other. `peers` are dialled and, when the connection ends, dialled again; `dial_errors` says of
    each that cannot be reached why, and `Swarm.peers` how it stands with everybody. `key_pair` names this program to
    its peers (a fresh one otherwise).

    A peer may also be a storage, as `./folder` or `s3://bucket/prefix`, that holds the core (one address for many cores
    has `{key}` or `{discovery_key}` in it): it is read as if somebody served it, and while anybody follows it is looked
    at again every `refresh_seconds` (2, or 10 when it is far away).

    `allow` are the only keys (bytes, hex or z-base-32) that peers may prove, and `firewall(public_key)` is asked about
    each, as in Hyperswarm: True refuses it. Both hold whoever dialled; a refused peer learns nothing but our key.

    `most_connections` bounds all of them, a quarter of them is kept for those that we dial, and one other host may have
    half; `most_dials` are under way at once. The logger `hypercore.swarm` tells what happens, one line a change.

        async with Hypercore("./reader", key) as core, Swarm(peers=["tcp://writer.local:4977"]) as swarm:
            swarm.join(core)
            await core.update()
    """

    def __init__(
        self,
        *addresses: str,
        peers: Iterable[str] = (),
        key_pair: KeyPair | None = None,
        allow: Iterable[bytes | str] | None = None,
        firewall: Callable[[bytes], bool] | None = None,
        most_connections: int = MOST_CONNECTIONS,
        most_dials: int = MOST_DIALS,
        refresh_seconds: float | None = None,
    ) -> None:
        if isinstance(peers, str):
            raise OptionError(f"peers is a list of addresses: peers=[{hide_secrets(peers)!r}]")
        if isinstance(allow, str | bytes):
            raise OptionError("allow is a list of public keys")
        if most_connections < 1 or most_dials < 1:
            raise OptionError("most_connections and most_dials are 1 or more")
        self._listen_addresses = addresses
        self._peer_addresses = tuple(peers)
        self._allow = None if allow is None else {decode_key(key) for key in allow}
        self._firewall = firewall
        self._most_connections = most_connections
        #: The last error of each address that is dialled, until it works.
        self.dial_errors: dict[str, HypercoreError] = {}
        self._connections = Connections(
            key_pair or KeyPair.generate(),
            most=most_connections,
            most_a_host=max(1, most_connections // HOST_PART),
            is_banned=self._is_banned,
            on_offer=self._offered,
        )
        self._dialler = Dialler(
            self._connections, transport=self._transport, most_dials=most_dials, errors=self.dial_errors
        )
        #: The peers that are dialled; before the start also those that turn out to be storages.
        self._contacts = [Contact((address,)) for address in self._peer_addresses]
        self._first_round = FirstRound(self._contacts, is_ours=self._connections.__contains__)
        self._storages = StoragePeers(self.dial_errors, refresh_seconds=refresh_seconds)
        self._transports: dict[str, Transport] = {}
        self._listeners: list[Listener] = []
        self._findings: list[Finding] = []
        self._accepting: set[asyncio.Task[None]] = set()
        self._topics: dict[bytes, _Topic] = {}
        #: Held while it goes from rest to work and back.
        self._turning = asyncio.Lock()
        self._is_started = self._is_suspended = self._is_destroyed = False

    # ---- life ----

    async def start(self) -> None:
        """Listen and begin to dial; `async with` does it.

        Raises `TransportError` when an address is not to be had, and `OptionError` for one that no plugin knows.
        """
        self._check_open()
        if self._is_started:
            return
        self._is_started = True
        try:
            storages = [address for address in self._peer_addresses if is_storage_peer(address)]
            for contact in list(self._contacts):
                (address,) = contact.addresses
                if finds_peers(address):
                    raise OptionError(f"{address} is no one peer: what finds peers is given first, Swarm({address!r})")
                if address in storages:
                    self._contacts.remove(contact)
                    self._first_round.tried(contact)
                else:
                    self._transport(address)
            await self._storages.start(storages)
            async with self._turning:
                if not self._is_suspended:
                    await self._work()
        except BaseException:
            await self.destroy()
            raise

    def _check_open(self) -> None:
        if self._is_destroyed:
            raise ClosedError("the swarm is destroyed")

    async def _work(self) -> None:
        """Listen, announce and dial."""
        self._connections.resume()
        for address in self._listen_addresses:
            if (discovery := self._transport(address).discovery()) is None:
                await self._listen(address)
            else:
                await self._find(discovery)
            self._check_open()
        dials = bool(self._contacts or self._findings)
        reserved = self._most_connections // RESERVED_PART if dials else 0
        self._connections.most_inbound = self._most_connections - reserved
        for listener in self._listeners:
            log.info("listening at %s", ", ".join(listener.addresses))
            task = asyncio.get_running_loop().create_task(self._accept(listener))
            self._accepting.add(task)
            task.add_done_callback(self._accepting.discard)
        self._dialler.start(self._contacts, self._first_round)
        self._topics_changed()

    async def _rest(self) -> None:
        """Withdraw, close everything, dial nobody."""
        self._first_round.end()
        for task in self._accepting:
            task.cancel()
        if self._accepting:
            await asyncio.wait(self._accepting)
        listeners, self._listeners = self._listeners, []
        findings, self._findings = self._findings, []
        for listener in listeners:
            await listener.aclose()
        await self._dialler.stop()
        await asyncio.gather(
            self._connections.aclose(), self._storages.aclose(), *(finding.aclose() for finding in findings)
        )

    async def suspend(self) -> None:
        """Close every connection and listener, announce nothing and dial nobody, until `resume`. Twice is fine.

        What is joined stays joined, and what is joined meanwhile is kept for later. A program that waits for a block is
        told that there are no peers; one that follows live goes on waiting.
        """
        self._check_open()
        self._is_suspended = True
        async with self._turning:
            if self._is_suspended and self._is_started:
                await self._rest()
                log.info("suspended")

    async def resume(self) -> None:
        """Take up again what `suspend` put down, and dial at once. Twice is fine.

        An address with port 0 gets another port. Raises `TransportError` when an address is not to be had any more;
        then the swarm stays suspended.
        """
        self._check_open()
        async with self._turning:
            self._check_open()
            if not self._is_suspended:
                return
            self._is_suspended = False
            self._first_round = FirstRound(self._contacts, is_ours=self._connections.__contains__)
            for topic in self._topics.values():
                if topic.hub is not None and topic.core_client:
                    self._first_round.hold(topic.hub)
                    self._storages.add(topic.hub)
            if self._is_started:
                log.info("resumed")
                try:
                    await self._work()
                except BaseException:
                    self._is_suspended = True
                    await self._rest()
                    raise

    async def destroy(self) -> None:
        """Close everything, within about a second although peers hang. Twice is fine."""
        self._is_destroyed = True
        async with self._turning:
            await self._rest()
        for topic in list(self._topics.values()):
            if topic.hub is not None:
                self._leave(topic.hub)
        for transport in self._transports.values():
            await transport.aclose()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.destroy()

    # ---- cores ----

    def join(self, core: Hypercore | bytes | str, *, server: bool = True, client: bool = True) -> None:
        """Replicate `core` over every connection, present and future, until it closes; the core must be open.

        `server` accepts it from peers that ask for it, `client` asks peers for it. Until the first round of dialling
        is over, or soon after a peer of the core is there, the core's `update` and `get` hold on.

        A discovery key (32 bytes, hex or z-base-32) instead of a core is a place to meet: discovery announces it
        (`server`) and looks for others there (`client`). Every connection that comes of it carries all cores that are
        joined, under whatever key; the topic alone replicates nothing.

        Joined again, `server` and `client` are what was said last.
        """
        self._check_open()
        if isinstance(core, bytes | str):
            topic = self._topics.setdefault(decode_key(core), _Topic())
            topic.server, topic.client = server, client
            self._topics_changed()
            return
        hub, key = core.hub, core.discovery_key
        if hub.closed:
            raise ClosedError("the core is closed")
        known = self._topics.get(key)
        if known is not None and known.hub is not None:
            if known.hub is not hub or (known.core_server, known.core_client) == (server, client):
                return
            self._leave(hub)
        topic = self._topics.setdefault(key, _Topic())
        topic.hub, topic.core_server, topic.core_client = hub, server, client
        hub.sources += 1
        hub.on_close.append(self._leave)
        if client:
            self._first_round.hold(hub)
            self._connections.seek(hub)
            if not self._is_suspended:
                self._storages.add(hub)
        if server:
            self._connections.serve(hub)
        log.debug("joined %s", short(key))
        self._topics_changed()

    def leave(self, core: Hypercore | bytes | str) -> None:
        """Replicate `core` no longer, or be found under a discovery key no longer. Connections stay."""
        if isinstance(core, bytes | str):
            key = decode_key(core)
            if (topic := self._topics.get(key)) is not None:
                topic.server = topic.client = False
                self._tidy(key)
        elif (topic := self._topics.get(core.discovery_key)) is not None and topic.hub is not None:
            self._leave(topic.hub)

    def _leave(self, hub: Hub) -> None:
        key = hub.log.discovery_key
        topic = self._topics.get(key)
        if topic is None or topic.hub is not hub:
            return
        topic.hub, topic.core_server, topic.core_client = None, False, False
        hub.on_close.remove(self._leave)
        hub.sources -= 1
        self._storages.remove(hub)
        self._connections.forget(hub)
        self._first_round.release(hub)
        log.debug("left %s", short(key))
        self._tidy(key)
        hub.changed()

    def _tidy(self, key: bytes) -> None:
        topic = self._topics[key]
        if topic.hub is None and not topic.server and not topic.client:
            del self._topics[key]
        self._topics_changed()

    def _topics_changed(self) -> None:
        served = {key for key, topic in self._topics.items() if topic.server or topic.core_server}
        sought = {
            key: topic.hub if topic.core_client else None
            for key, topic in self._topics.items()
            if topic.client or topic.core_client
        }
        for finding in self._findings:
            finding.set_topics(served=served, sought=sought)

    # ---- what is going on ----

    @property
    def public_key(self) -> bytes:
        """The key by which peers know this program."""
        return self._connections.public_key

    @property
    def addresses(self) -> list[str]:
        """What peers may dial, with real port numbers."""
        return [address for listener in self._listeners for address in listener.addresses]

    @property
    def is_suspended(self) -> bool:
        return self._is_suspended

    def connections(self) -> list[Replication]:
        """The connections whose handshake is done. `stats()` of each says what it has carried."""
        return self._connections.open() + self._storages.connections()

    @property
    def peers(self) -> list[PeerInfo]:
        """Everybody known: who is dialled or was found, who dialled us, storages, and who was refused of late."""
        now = asyncio.get_running_loop().time()
        contacts = [*self._contacts, *self._connections.banned]
        for finding in self._findings:
            contacts += finding.contacts
        return merged([contact.info(now) for contact in contacts], self._connections.infos()) + self._storages.infos()

    async def flush(self) -> None:
        """Return when every address was dialled once, with or without success. Starts the swarm if need be."""
        if not self._is_destroyed:
            await self.start()
        await self._first_round.over.wait()
        for finding in list(self._findings):
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
            dial=self._dialler.dial,
            connected=self._connections.current,
            doubted=self._connections.doubted,
            slots=self._dialler.slots,
            errors=self.dial_errors,
        )
        self._findings.append(finding)
        await finding.start(self._listen)

    async def _accept(self, listener: Listener) -> None:
        async for stream in listener:
            self._connections.accept(stream)

    def _is_banned(self, key: bytes) -> bool:
        if self._allow is not None and key not in self._allow:
            return True
        try:
            return self._firewall is not None and bool(self._firewall(key))
        except Exception as error:
            # A gate that is broken stays shut, and its error is not hidden.
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a swarm's firewall failed", "exception": error}
            )
            return True

    async def _offered(self, discovery_key: bytes) -> Hub | None:
        topic = self._topics.get(discovery_key)
        return topic.hub if topic is not None and topic.core_server else None

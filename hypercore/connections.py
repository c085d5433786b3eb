"""The connections of a swarm: how many, with whom, and one a peer.

Shell floor, below the swarm. It is given byte streams, accepted and dialled ones, and knows nothing of how they came to
be. What flows over a connection is the session's.

Of several connections to one peer one is kept, and so that both sides keep the same one only one of them chooses: the
side with the smaller public key. It keeps the newer one, which proves that the peer is there while an old one may have
been dead for long; of two that crossed before a word was said, the one that the larger key dialled, as Hyperswarm does.
The other side waits for the choice, and makes it itself when none comes.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, Final

from hypercore.contacts import Contact, PeerInfo, log, short
from hypercore.crypto import KeyPair
from hypercore.errors import (
    ClosedError,
    ConnectError,
    HypercoreError,
    OwnAddressError,
    PeerBannedError,
    StreamBrokenError,
    StreamClosedError,
)
from hypercore.replication import Hub
from hypercore.session import OnOffer, Replication
from hypercore.transport import ByteStream
from hypercore.urls import parse_address

#: Handshakes of those who dial us, under way at once: each costs a few KiB and at most ten seconds, and an honest peer
#: needs it for a few round trips only.
MOST_HANDSHAKES: Final = 64
#: Connections with one peer at once, while it is not decided which of them is kept.
MOST_A_PEER: Final = 4
#: How long the side that does not choose waits for the choice: many round trips of a slow network.
CHOICE_SECONDS: Final = 2.0
#: Peers that our firewall refused and that are remembered, for `Swarm.peers`.
MOST_BANNED: Final = 64
#: A close takes that long at most; who does not take our last words by then is cut off.
CLOSE_SECONDS: Final = 1.0


class Connections:
    """All connections of one swarm.

    `most` is the bound on all of them, and `most_a_host` on those that come from one host other than this machine.
    `is_banned` decides by the key that the peer proved. `on_offer` looks up what peers ask for.
    """

    def __init__(
        self,
        key_pair: KeyPair,
        *,
        most: int,
        most_a_host: int,
        is_banned: Callable[[bytes], bool],
        on_offer: OnOffer,
    ) -> None:
        self._key_pair = key_pair
        self._most, self._most_a_host = most, most_a_host
        #: Of all, those that others may have made.
        self.most_inbound = most
        self._is_banned = is_banned
        self._on_offer = on_offer
        #: What every peer is asked for, by discovery key.
        self.sought: dict[bytes, Hub] = {}
        #: The one to talk to, by the public key of the peer.
        self.current: dict[bytes, Replication] = {}
        #: Connections whose peer was found elsewhere since; a newer one to that peer takes their place.
        self.doubted: set[Replication] = set()
        self._all: set[Replication] = set()
        #: Those whose handshake is done, the oldest first, by the public key of the peer.
        self._by_key: dict[bytes, list[Replication]] = {}
        #: The hosts that inbound connections come from: while they shake hands, in their order, and afterwards.
        self._shaking: dict[Replication, str] = {}
        self._inbound: dict[Replication, str] = {}
        self._banned: dict[bytes, Contact] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: list[asyncio.TimerHandle] = []
        self._is_closed = False
        self._is_full = False

    # ---- what there is ----

    @property
    def public_key(self) -> bytes:
        return self._key_pair.public_key

    def open(self) -> list[Replication]:
        """The connections whose handshake is done."""
        return [each for same in self._by_key.values() for each in same if not each.is_closed]

    def __len__(self) -> int:
        """All, also those that shake hands or end."""
        return len(self._all)

    def __contains__(self, connection: object) -> bool:
        return connection in self._all

    def infos(self) -> list[PeerInfo]:
        """The peers that are connected."""
        return [
            PeerInfo(
                addresses=(each.remote_address,), public_key=key, state="connected", error=None, retry_seconds=None
            )
            for key, each in self.current.items()
            if not each.is_closed
        ]

    @property
    def banned(self) -> list[Contact]:
        """Those who dialled us of late and were refused."""
        return list(self._banned.values())

    # ---- cores ----

    def seek(self, hub: Hub) -> None:
        """Ask every peer for a core, and every one that comes."""
        self.sought[hub.log.discovery_key] = hub
        for connection in self._all:
            if connection.is_initiator or connection.remote_public_key:
                connection.add(hub)

    def serve(self, hub: Hub) -> None:
        """Give a core to the peers that asked for it before it was here."""
        for connection in self._all:
            if connection.was_asked_for(hub.log.discovery_key):
                connection.add(hub)

    def forget(self, hub: Hub) -> None:
        """Replicate a core no longer."""
        self.sought.pop(hub.log.discovery_key, None)
        for connection in self._all:
            connection.remove(hub)

    # ---- streams ----

    def check_room(self) -> None:
        """Raises `ConnectError` when there is no room for one more."""
        if len(self._all) >= self._most:
            raise ConnectError(f"there are {len(self._all)} connections already, as many as may be (most_connections)")

    def accept(self, stream: ByteStream) -> None:
        """Take a stream that somebody made, if there is room; it is cut if not."""
        host = _host(stream.remote_address)
        is_full = self._is_closed or len(self._inbound) >= self.most_inbound or len(self._all) >= self._most
        if is_full != self._is_full and not self._is_closed:
            self._is_full = is_full
            log.info("%d inbound connections; further ones are %s", len(self._inbound), "cut" if is_full else "taken")
        if is_full or (host and Counter(self._inbound.values())[host] >= self._most_a_host):
            stream.abort()
            return
        connection = self.run(stream, initiator=False)
        self._shaking[connection] = host
        if len(self._shaking) > MOST_HANDSHAKES or len(self._shaking) + len(self._inbound) > self.most_inbound:
            # Whoever floods us is first to lose, and an honest peer is done before it is its turn.
            (crowd, _), *_ = Counter(self._shaking.values()).most_common(1)
            oldest = next(each for each, its_host in self._shaking.items() if its_host == crowd)
            del self._shaking[oldest]
            oldest.abort(StreamBrokenError("too many handshakes are under way"))

    def run(self, stream: ByteStream, *, initiator: bool) -> Replication:
        """A running connection over `stream`. Raises `ClosedError` when all are being closed."""
        if self._is_closed:
            stream.abort()
            raise ClosedError("the swarm is closing its connections")
        connection = Replication(stream, initiator=initiator, key_pair=self._key_pair, on_offer=self._on_offer)
        connection.on_handshake = self._shaken
        connection.on_confirmed = self._confirmed
        self._all.add(connection)
        if initiator:
            # Who waits for a core waits for this one, too. Anybody may dial us, and is not waited for.
            for hub in self.sought.values():
                connection.add(hub)
        connection.start_running().add_done_callback(lambda _: self._ended(connection))
        return connection

    # ---- one a peer ----

    def _shaken(self, connection: Replication) -> None:
        key = connection.remote_public_key
        host = self._shaking.pop(connection, "")
        if key == self.public_key:
            raise OwnAddressError(f"{connection.remote_address} is this very program")
        if self._is_banned(key):
            self._ban(key, connection)
        if not connection.is_initiator:
            self._inbound[connection] = host
            for hub in self.sought.values():
                connection.add(hub)
        same = self._by_key.setdefault(key, [])
        same.append(connection)
        self.current[key] = connection
        self._banned.pop(key, None)
        if len(same) == 1:
            how = "which we dialled" if connection.is_initiator else "which dialled us"
            log.info("connected with %s at %s, %s", short(key), connection.remote_address, how)
        elif len(same) > MOST_A_PEER:
            self._end(same[0])

    def _ban(self, key: bytes, connection: Replication) -> None:
        error = PeerBannedError(f"the firewall of this program refuses {short(key)} at {connection.remote_address}")
        if not connection.is_initiator:
            contact = self._banned.pop(key, None) or Contact((connection.remote_address,))
            contact.addresses, contact.public_key = (connection.remote_address,), key
            contact.failed(error, None)
            self._banned[key] = contact
            if len(self._banned) > MOST_BANNED:
                del self._banned[next(iter(self._banned))]
        raise error

    def _confirmed(self, connection: Replication) -> None:
        """Both ends know that this one works, so none is left without any when older ones are closed."""
        key = connection.remote_public_key
        for older in [each for each in self._by_key.get(key, ()) if each is not connection and each.is_confirmed]:
            if self.public_key < key:
                self._choose(older, connection)
            elif older in self.doubted:
                self._end(older)
            else:
                loop = asyncio.get_running_loop()
                timer = loop.call_later(CHOICE_SECONDS, self._choose_late, older, connection)
                self._timers = [each for each in self._timers if each.when() > loop.time()] + [timer]

    def _choose(self, older: Replication, newer: Replication) -> None:
        is_fresh = not older.has_spoken and older.stats().connected_seconds < CHOICE_SECONDS
        has_crossed = is_fresh and older.is_initiator != newer.is_initiator and older not in self.doubted
        # Ours is the smaller key.
        kept, ended = (older, newer) if has_crossed and newer.is_initiator else (newer, older)
        self.current[kept.remote_public_key] = kept
        self._end(ended)

    def _choose_late(self, older: Replication, newer: Replication) -> None:
        if not older.is_closed and not newer.is_closed:
            self._end(older)

    def _end(self, connection: Replication) -> None:
        """There is another one with the same peer."""
        if not connection.is_closed:
            log.debug("a second connection with %s is closed", short(connection.remote_public_key))
            self._spawn(connection.aclose())

    def _ended(self, connection: Replication) -> None:
        self._all.discard(connection)
        self._shaking.pop(connection, None)
        self._inbound.pop(connection, None)
        self.doubted.discard(connection)
        key = connection.remote_public_key
        same = self._by_key.get(key, [])
        if connection not in same:
            log.debug("a stream with %s ended in the handshake: %s", connection.remote_address, connection.error)
            return
        same.remove(connection)
        if same:
            if self.current.get(key) is connection:
                self.current[key] = same[-1]
            return
        del self._by_key[key]
        del self.current[key]
        why = connection.error or ("it closed" if connection.has_peer_ended else "we closed")
        log.info("disconnected from %s at %s: %s", short(key), connection.remote_address, why)

    # ---- the end ----

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def resume(self) -> None:
        """Take streams again."""
        self._is_closed = False

    async def aclose(self) -> None:
        """Close all within about `CLOSE_SECONDS`; streams that come later are cut."""
        self._is_closed = True
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        for connection in list(self._all):
            if connection in self._shaking:
                connection.abort(StreamClosedError("this program closed its connections"))
            self._spawn(connection.aclose())
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_SECONDS)
        for connection in list(self._all):
            connection.abort()
        while self._tasks:
            await asyncio.wait(self._tasks)


def _host(address: str) -> str:
    """The host of an address; empty when it is this machine, whose programs are not told apart, or has none."""
    try:
        host = (parse_address(address).host or "").partition("%")[0]
        return "" if not host or ipaddress.ip_address(host).is_loopback else host
    except (HypercoreError, ValueError):
        return ""

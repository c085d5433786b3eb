"""Everybody that a swarm knows of, and how it stands with them; every change is one line of the log.

Shell floor, below all that dials and accepts. It opens no connection itself. The log, `hypercore.swarm`, says at
`INFO` what a program's user may want to know and at `DEBUG` what happens again and again. No key is in it in full.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, Literal

from hypercore.errors import HypercoreError, PeerBannedError, PeerRefusedError
from hypercore.session import Replication
from hypercore.urls import hide_secrets

log: Final = logging.getLogger("hypercore.swarm")

PeerState = Literal["connected", "dialling", "waiting", "refused", "banned"]
#: Of several that are known of one peer, the first one says how it stands with it.
_BEST: Final[tuple[PeerState, ...]] = ("connected", "dialling", "waiting", "refused", "banned")


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerInfo:
    """A peer as its swarm knows it at the moment."""

    #: Where it is dialled, without secrets; where it came from when it dialled us.
    addresses: tuple[str, ...]
    #: The key that it proved, 32 bytes; empty when it never did.
    public_key: bytes
    #: "waiting" to be dialled; "banned" by our firewall; "refused" when it ends connections as soon as it knows us.
    state: PeerState
    #: Why it is not connected, as far as that is known.
    error: HypercoreError | None
    #: Seconds until it is dialled again; None when it is connected or being dialled, and when nobody dials it.
    retry_seconds: float | None


class Contact:
    """One peer that is looked after; whoever does says here what happens."""

    def __init__(self, addresses: Iterable[str]) -> None:
        self.addresses = tuple(addresses)
        self.public_key = b""
        self.state: PeerState = "waiting"
        self.error: HypercoreError | None = None
        self._retry_at: float | None = None

    def dialling(self) -> None:
        self.state, self._retry_at = "dialling", None
        log.debug("dialling %s", self)

    def connected(self, connection: Replication) -> None:
        """It is, whoever dialled; the connection itself has its own line in the log."""
        self.state, self.error, self._retry_at = "connected", None, None
        self.public_key = connection.remote_public_key

    def reading(self) -> None:
        """It is a storage, and open."""
        self.state, self.error, self._retry_at = "connected", None, None
        log.info("reading %s", self)

    def failed(self, error: HypercoreError | None, retry_seconds: float | None) -> None:
        """There is no connection because of `error`, and the next try is in `retry_seconds`, or never."""
        is_new = type(error) is not type(self.error)
        self.error = error
        match error:
            case PeerBannedError():
                self.state = "banned"
            case PeerRefusedError():
                self.state = "refused"
            case _:
                self.state = "waiting"
        self._retry_at = None if retry_seconds is None else asyncio.get_running_loop().time() + retry_seconds
        then = "it is not dialled again" if retry_seconds is None else f"next try in {retry_seconds:.1f} s"
        if error is None:
            log.debug("the connection to %s is over; %s", self, then)
        else:
            log.log(logging.INFO if is_new else logging.DEBUG, "no connection to %s: %s; %s", self, error, then)

    def rest(self) -> None:
        """Nobody dials it for now."""
        self.state, self._retry_at = "waiting", None

    def info(self, now: float) -> PeerInfo:
        return PeerInfo(
            addresses=tuple(hide_secrets(address) for address in self.addresses),
            public_key=self.public_key,
            state=self.state,
            error=self.error,
            retry_seconds=None if self._retry_at is None else max(0.0, self._retry_at - now),
        )

    def __str__(self) -> str:
        address = hide_secrets(self.addresses[0]) if self.addresses else "a peer without an address"
        return f"{address} ({short(self.public_key)})" if self.public_key else address


def short(key: bytes) -> str:
    """Enough of a key to tell peers apart in a log."""
    return f"{key[:4].hex()}..."


def merged(known: Iterable[PeerInfo], connected: Iterable[PeerInfo]) -> list[PeerInfo]:
    """One for each peer: of `known` several may be the same one, and `connected` is how it stands with some of them."""
    result: list[PeerInfo] = []
    by_key: dict[bytes, list[PeerInfo]] = {}
    for info in known:
        if info.public_key:
            by_key.setdefault(info.public_key, []).append(info)
        else:
            result.append(info)
    for info in connected:
        if info.public_key in by_key:
            info = replace(info, addresses=())  # It is known by where it is dialled.
        by_key.setdefault(info.public_key, []).append(info)
    for same in by_key.values():
        best = min(same, key=lambda info: _BEST.index(info.state))
        addresses = dict.fromkeys(address for info in same for address in info.addresses)
        result.append(replace(best, addresses=tuple(addresses)))
    return result

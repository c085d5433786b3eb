"""Which blocks of a core are wanted, which of them are in flight, and which to ask of a peer next.

Pure. It knows nothing of trees, trust and time-outs; the replicator does.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from hypercore.bitfield import Bitfield
from hypercore.protocol.remote import WANT_REGION_BLOCKS, RemotePeer


class LocalTree(Protocol):
    """What is to be known of the own log."""

    @property
    def fork(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def byte_length(self) -> int: ...
    @property
    def bitfield(self) -> Bitfield: ...
    @property
    def has_manifest(self) -> bool: ...
    @property
    def needs_manifest(self) -> bool: ...


@dataclass(slots=True, eq=False)
class Download:
    """Blocks that somebody wants: [start, end), or `blocks`, in order. `end` None follows the log as it grows."""

    start: int
    end: int | None
    blocks: list[int] | None = None
    #: Somebody reads them from the first one on.
    linear: bool = False
    #: The part that is asked for first, when there are several peers; what lies before it comes afterwards.
    late: Download | None = None


class WantedBlocks:
    """Single blocks that somebody waits for, and downloads."""

    def __init__(self, local: LocalTree) -> None:
        self._local = local
        self._gets: dict[int, int] = {}
        #: Those of them that are not in flight.
        self._idle_gets: dict[int, None] = {}
        self._downloads: list[Download] = []
        #: The peers that were asked for a block and have not answered.
        self._asked: dict[int, list[RemotePeer]] = {}

    def __bool__(self) -> bool:
        """Whether anything is wanted."""
        return bool(self._gets or self._downloads)

    # ---- what is wanted ----

    def add(self, index: int) -> None:
        """Somebody waits for block `index`; counted, see `remove`."""
        self._gets[index] = self._gets.get(index, 0) + 1
        if index not in self._asked:
            self._idle_gets[index] = None

    def remove(self, index: int) -> None:
        count = self._gets.get(index, 0) - 1
        if count > 0:
            self._gets[index] = count
        else:
            self._gets.pop(index, None)
            self._idle_gets.pop(index, None)

    def add_download(self, download: Download) -> None:
        self._downloads.append(download)

    def remove_download(self, download: Download, peers: Iterable[RemotePeer]) -> None:
        for peer in peers:
            for part in (download, download.late):
                peer.cursors.pop(part, None)
                peer.cursors.pop((part, "rare"), None)
        if download in self._downloads:
            self._downloads.remove(download)

    def is_urgent(self, index: int) -> bool:
        """Whether somebody waits for this very block."""
        return index in self._gets

    def is_open(self, index: int) -> bool:
        """Whether block `index` is wanted and nobody was asked for it."""
        if index in self._asked:
            return False
        if index in self._gets:
            return True
        return any(
            each.blocks is None and each.start <= index and (each.end is None or index < each.end)
            for each in self._downloads
        )

    # ---- what is in flight ----

    def begin(self, index: int, peer: RemotePeer) -> None:
        """The peer is asked for the block."""
        self._asked.setdefault(index, []).append(peer)
        self._idle_gets.pop(index, None)

    def end(self, index: int, peer: RemotePeer) -> None:
        """The peer has answered, or will not."""
        peers = self._asked.get(index)
        if peers is not None:
            if peer in peers:
                peers.remove(peer)
            if not peers:
                del self._asked[index]

    def again(self, index: int, peers: Iterable[RemotePeer]) -> None:
        """The block did not come: it must be found again, by every peer's cursor."""
        if index in self._gets and index not in self._asked:
            self._idle_gets[index] = None
        for peer in peers:
            peer.rewind(index)

    def asked(self, index: int) -> list[RemotePeer]:
        """Who was asked for block `index` and has not answered."""
        return list(self._asked.get(index, ()))

    # ---- what to ask next ----

    def choose(
        self,
        peer: RemotePeer,
        room: int,
        *,
        downloads: bool = True,
        scatter: float | None = None,
        others: Sequence[RemotePeer] = (),
    ) -> list[int]:
        """Up to `room` blocks to ask of the peer, urgent ones first; what nobody knows it to have becomes a `want`.

        With `scatter`, 0 up to 1, downloads begin at that part of what they want, and come back to what lies before.
        Of a download nothing is chosen that `others` have.
        """
        limit = min(self._local.length, peer.length)
        chosen: list[int] = []
        have = self._local.bitfield
        for index in self._idle_gets:
            if len(chosen) >= room:
                break
            if index < limit and not have.get(index):
                if peer.has(index):
                    self._take(index, chosen)
                else:
                    peer.want(index)
        for index in chosen:
            del self._idle_gets[index]
        for download in self._downloads if downloads else ():
            if len(chosen) >= room:
                break
            if download.blocks is not None:
                cursor = max(download.start, peer.cursors.get(download, 0))
                peer.cursors[download] = self._from_list(download.blocks, cursor, peer, limit, room, chosen)
                continue
            end = limit if download.end is None else min(limit, download.end)
            if download.late is None and scatter is not None and not download.linear:
                self._split(download, end, scatter)
            for part in filter(None, (download.late, download)):
                key = (part, "rare") if others else part
                cursor = max(part.start, peer.cursors.get(key, 0))
                peer.cursors[key] = self._from_range(cursor, end, peer, room, chosen, others)
                end = min(end, part.start)
        return chosen

    def _split(self, download: Download, end: int, scatter: float) -> None:
        """Begin a download somewhere in what is missing."""
        first = self._local.bitfield.first_unset(download.start, end)
        if first is not None:
            download.late = Download(first + int((end - first) * scatter), download.end)

    def _take(self, index: int, chosen: list[int]) -> None:
        chosen.append(index)
        self._asked[index] = []  # By whom is noted when the request is made; until then nobody else shall take it.

    def _from_list(
        self, blocks: list[int], cursor: int, peer: RemotePeer, limit: int, room: int, chosen: list[int]
    ) -> int:
        """Choose from the wanted blocks, which are in order, from `cursor` on; where to go on next time."""
        have, asked = self._local.bitfield, self._asked
        for position in range(bisect_left(blocks, cursor), len(blocks)):
            index = blocks[position]
            if index >= limit or len(chosen) >= room:
                return index
            if index in asked or have.get(index):
                continue
            if peer.has(index):
                self._take(index, chosen)
            else:
                peer.want(index)
        return limit

    def _from_range(
        self, cursor: int, end: int, peer: RemotePeer, room: int, chosen: list[int], others: Sequence[RemotePeer]
    ) -> int:
        """Choose missing blocks of [cursor, end) that the peer has and none of the others; where to go on next time."""
        have, asked = self._local.bitfield, self._asked
        while len(chosen) < room:
            missing = have.first_unset(cursor, end)
            if missing is None:
                return end
            if missing in asked:
                cursor = missing + 1
                continue
            # Region by region, because of each that is not known to be held the peer is asked once.
            region_end = min(end, (missing // WANT_REGION_BLOCKS + 1) * WANT_REGION_BLOCKS)
            held = peer.first_held(missing, region_end)
            if held != missing:
                peer.want(missing)
                cursor = region_end if held is None else held
            else:
                if not any(other.has(missing) for other in others):
                    self._take(missing, chosen)
                cursor = missing + 1
        return cursor

"""Who reads a file in sequence, and how much of it should be fetched before they ask.

It must not know where the bytes lie: it says which range of the file to begin with, and what to give up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from hypercore_s3.pages import Fetch

#: Reading ahead begins with so much and doubles while the reader goes on.
FIRST_WINDOW_SIZE: Final = 256 * 1024
#: In flight for one reader: a line of 100 MB/s to a store that answers in 30 ms is full with it.
WINDOW_SIZE_MAX: Final = 4 << 20
#: Readers of one file that go on where they stopped, each somewhere else.
READERS_MAX: Final = 8

#: Begins to fetch a range of the file, from offset to offset.
Begin = Callable[[int, int], Sequence[Fetch]]
GiveUp = Callable[[Sequence[Fetch]], None]


class _Reader:
    """One sequence of reads. `next` is where it goes on, `reached` how far is fetched, both byte offsets."""

    __slots__ = ("fetches", "next", "reached", "window")

    def __init__(self, following: int) -> None:
        self.next = self.reached = following
        self.window = 0
        self.fetches: list[Fetch] = []


class ReadAhead:
    """The readers of one file."""

    def __init__(self, begin: Begin, give_up: GiveUp) -> None:
        self._begin = begin
        self._give_up = give_up
        #: The one who read last is the last.
        self._readers: list[_Reader] = []

    def read(self, offset: int, size: int, file_size: int) -> None:
        """Somebody reads this range now."""
        end = offset + size
        for reader in self._readers:
            if reader.next == offset:
                break
        else:
            if len(self._readers) == READERS_MAX:
                self._give_up(self._readers.pop(0).fetches)
            self._readers.append(_Reader(end))
            return
        self._readers.remove(reader)
        self._readers.append(reader)
        reader.next = end
        reader.reached = max(reader.reached, end)
        if reader.reached - end > reader.window // 2:
            return
        reader.window = min(max(2 * reader.window, FIRST_WINDOW_SIZE), WINDOW_SIZE_MAX)
        until = min(end + reader.window, file_size)
        if until > reader.reached:
            reader.fetches = [fetch for fetch in reader.fetches if not fetch.task.done()]
            reader.fetches += self._begin(reader.reached, until)
            reader.reached = until

    def forget(self) -> None:
        """Nobody reads any more."""
        for reader in self._readers:
            self._give_up(reader.fetches)
        self._readers.clear()

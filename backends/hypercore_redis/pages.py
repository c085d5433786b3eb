"""Files as pages: which keys a range lies in, and what a commit has to do to them.

Pure: it knows the layout (docs/decisions/redis-layout.md) and no server.

A page that is missing, or the missing tail of one, reads as zeros; beyond the end of a file there is nothing but
zeros. Pages that a commit would have to remove by the thousand become debris instead: the head says that they
count as missing, and they are swept away later.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from hypercore.errors import CorruptError, OptionError
from hypercore.storage import Delete, Operation, Sync, Truncate, Write, check_name, check_range
from hypercore_redis.scripts import PAGE_BYTES, Argument

#: So many pages are removed in one go: less than 5 ms of the server's time.
DROPPED_PAGES_MAX: Final = 1000
#: A commit with more data than this is put aside in parts first, so that the server never stands still for long.
COMMIT_BYTES_MAX: Final = 16 * 1024 * 1024
#: Data of a large commit is put aside if it is longer than what putting it aside costs.
STAGED_BYTES_MIN: Final = 4096

#: Of a number in the head: sums of them fit into 64 bits.
_DIGITS_MAX: Final = 18

#: Page numbers `first` to `end - 1`.
Range = tuple[int, int]


def pieces(offset: int, size: int) -> list[tuple[int, int, int]]:
    """A range of a file as (page number, start and end in the page)."""
    found = []
    end = offset + size
    while offset < end:
        number, start = divmod(offset, PAGE_BYTES)
        stop = min(start + end - offset, PAGE_BYTES)
        found.append((number, start, stop))
        offset += stop - start
    return found


class Layout:
    """The names of the keys of one place, which all lie in one hash slot of a cluster."""

    def __init__(self, prefix: str) -> None:
        #: A hash: `format`, `sequence`, `epoch`, `writer`, `until`, `holder`, `/<file>` its size, `-<file>` its debris.
        self.head = f"{{{prefix}}}"
        #: Exists as long as the head does, so that a lost head is told from a new place.
        self.guard = f"{self.head}/"

    def page(self, name: str, number: int) -> str:
        return f"{self.head}/{name}/{number}"

    def staged(self, number: int) -> str:
        """What is put aside are the pages of a file without a name, all of them debris until they are moved."""
        return self.page("", number)


class Contents:
    """What the head says of the files: sizes in bytes, and which pages are debris."""

    __slots__ = ("debris", "sizes")

    def __init__(self, sizes: dict[str, int], debris: dict[str, list[Range]]) -> None:
        self.sizes = sizes
        self.debris = debris

    @classmethod
    def parse(cls, head: Mapping[bytes, bytes]) -> Contents:
        """Raises `CorruptError`."""
        sizes = {_name(field): parse_number(value) for field, value in head.items() if field[:1] == b"/"}
        debris = {_name(field): parse_ranges(value) for field, value in head.items() if field[:1] == b"-" and value}
        return cls(sizes, debris)

    def is_debris(self, name: str, number: int) -> bool:
        return name in self.debris and inside(self.debris[name], number)


def _damaged(text: bytes | None, what: str) -> CorruptError:
    return CorruptError(
        f"the head of a place in Redis is damaged: it has {text!r:.60} where {what} should be. Somebody else wrote to "
        "it; what a peer has can be copied from there, or a backup restored"
    )


def parse_number(text: bytes | None) -> int:
    """A number in the head. Raises `CorruptError`."""
    if text is None or not text.isdigit() or len(text) > _DIGITS_MAX:
        raise _damaged(text, "a number")
    return int(text)


def parse_ranges(text: bytes | None) -> list[Range]:
    """Ranges in the head. Raises `CorruptError`."""
    ranges = []
    for part in text.split(b",") if text else ():
        first, _, end = part.partition(b"-")
        ranges.append((parse_number(first), parse_number(end)))
        if ranges[-1][0] >= ranges[-1][1]:
            raise _damaged(part, "a range of pages")
    return ranges


def _name(field: bytes) -> str:
    """The file that a field is about; what was put aside is that of a file without a name."""
    try:
        name = field[1:].decode()
        if name or field != b"-":
            check_name(name)
    except (UnicodeDecodeError, OptionError) as error:
        raise _damaged(field, "the name of a file") from error
    return name


def format_ranges(ranges: Sequence[Range]) -> str:
    return ",".join(f"{first}-{end}" for first, end in ranges)


def inside(ranges: Sequence[Range], number: int) -> bool:
    return any(first <= number < end for first, end in ranges)


def without(ranges: Sequence[Range], number: int) -> list[Range]:
    """The ranges without one page."""
    left: list[Range] = []
    for first, end in ranges:
        if first <= number < end:
            left += [part for part in ((first, number), (number + 1, end)) if part[0] < part[1]]
        else:
            left.append((first, end))
    return left


class _Step:
    """One operation on one page. The data of neighbouring writes is joined when all is known."""

    __slots__ = ("data", "end", "offset", "place", "verb")

    def __init__(self, verb: str, place: int, offset: int, data: list[bytes] | int, end: int = 0) -> None:
        self.verb = verb
        self.place = place
        self.offset = offset
        self.data = data
        self.end = end

    def joined(self) -> bytes:
        """The data of all its writes; when that is a whole page, nothing of the old one is needed."""
        assert isinstance(self.data, list)
        data = b"".join(self.data)
        if len(data) == PAGE_BYTES:
            self.verb = "whole"
        return data


class Draft:
    """A commit on its way from operations on files to operations on pages. Made once, used once."""

    def __init__(self, layout: Layout, before: Contents) -> None:
        self.contents = Contents(dict(before.sizes), dict(before.debris))
        self._layout = layout
        self._before = before
        self._steps: list[_Step] = []
        self._places: dict[tuple[str, int], int] = {}
        self._keys: list[str] = [layout.head]
        self._drops_left = DROPPED_PAGES_MAX
        #: Bytes of data.
        self.byte_count = 0
        #: How many keys were put aside; they are the last of `keys`.
        self.staged_count = 0

    # ---- operations ----------------------------------------------------------------------------------

    def add(self, operation: Operation) -> None:
        """Raises `OptionError` for a bad name, offset or size."""
        if isinstance(operation, Sync):
            return
        check_name(operation.name)
        if isinstance(operation, Write):
            self._write(operation.name, operation.offset, operation.data)
        elif isinstance(operation, Truncate):
            self._truncate(operation.name, operation.size)
        elif isinstance(operation, Delete):
            self._delete(operation.name, operation.offset, operation.size)

    def unlink(self, name: str) -> None:
        size = self.contents.sizes.pop(name, 0)
        self._drop(name, 0, -(-size // PAGE_BYTES))

    def _write(self, name: str, offset: int, data: bytes) -> None:
        check_range(offset)
        sizes = self.contents.sizes
        end = offset + len(data)
        size = sizes.get(name)
        if size is None:
            sizes[name] = end if data else 0
        elif end > size and data:
            sizes[name] = end
        if not data:
            return
        self.byte_count += len(data)
        number, start = divmod(offset, PAGE_BYTES)
        if start + len(data) <= PAGE_BYTES:
            self._put(name, number, start, bytes(data))
            return
        position = 0
        for number, start, stop in pieces(offset, len(data)):
            self._put(name, number, start, bytes(data[position : position + stop - start]))
            position += stop - start

    def _put(self, name: str, number: int, start: int, data: bytes) -> None:
        place = self._place(name, number)
        if self.contents.debris and self.contents.is_debris(name, number):
            self._revive(name, number)
            self._steps.append(_Step("drop", place, 0, 0))
        if len(data) == PAGE_BYTES:
            self._steps.append(_Step("whole", place, 0, [data]))
            return
        last = self._steps[-1] if self._steps else None
        if last is not None and last.place == place and last.end == start and isinstance(last.data, list) and last.end:
            last.data.append(data)
            last.end += len(data)
            return
        # A page that will fill up is made in its full size: one that grows is moved about, and ends with slack.
        verb = "grow" if number else "write"
        self._steps.append(_Step(verb, place, start, [data], start + len(data)))

    def _truncate(self, name: str, size: int) -> None:
        check_range(0, size)
        held = self.contents.sizes.get(name, 0)
        self.contents.sizes[name] = size
        if size < held:
            number, start = divmod(size, PAGE_BYTES)
            if start:
                self._change(name, number, "cut", start, 0)
            self._drop(name, number + (1 if start else 0), -(-held // PAGE_BYTES))

    def _delete(self, name: str, offset: int, size: int) -> None:
        check_range(offset, size)
        held = self.contents.sizes.get(name, 0)
        end = min(offset + size, held)
        if end <= offset:
            return
        number, start = divmod(offset, PAGE_BYTES)
        last, stop = divmod(end, PAGE_BYTES)
        if end == held and stop:
            last, stop = last + 1, 0  # behind the end of the file there is nothing to keep
        if number == last:
            self._change(name, number, "zero", start, stop - start)
            return
        if start:
            self._change(name, number, "zero", start, PAGE_BYTES - start)
        self._drop(name, number + (1 if start else 0), last)
        if stop:
            self._change(name, last, "zero", 0, stop)

    # ---- pages ---------------------------------------------------------------------------------------

    def _place(self, name: str, number: int) -> int:
        """Where the key of a page is among those of the script, counted from 1."""
        place = self._places.get((name, number))
        if place is None:
            self._keys.append(self._layout.page(name, number))
            place = self._places[name, number] = len(self._keys)
        return place

    def _change(self, name: str, number: int, verb: str, offset: int, size: int) -> None:
        if not self.contents.is_debris(name, number):
            self._steps.append(_Step(verb, self._place(name, number), offset, size))

    def _drop(self, name: str, first: int, end: int) -> None:
        if end - first <= self._drops_left:
            for number in range(first, end):
                if not self.contents.is_debris(name, number):
                    self._drops_left -= 1
                    self._steps.append(_Step("drop", self._place(name, number), 0, 0))
        elif first < end:
            self.contents.debris[name] = _merged([*self.contents.debris.get(name, ()), (first, end)])

    def _revive(self, name: str, number: int) -> None:
        left = without(self.contents.debris[name], number)
        if left:
            self.contents.debris[name] = left
        else:
            del self.contents.debris[name]

    # ---- what the server is told ---------------------------------------------------------------------

    @property
    def is_empty(self) -> bool:
        """Nothing would change."""
        before, after = self._before, self.contents
        return not self._steps and before.sizes == after.sizes and before.debris == after.debris

    @property
    def takes_no_room(self) -> bool:
        """Nothing is written and nothing becomes longer."""
        sizes = self._before.sizes
        return not self.byte_count and all(size <= sizes.get(name, -1) for name, size in self.contents.sizes.items())

    @property
    def is_large(self) -> bool:
        """Too large for one command."""
        return self.byte_count > COMMIT_BYTES_MAX

    def stage(self) -> Iterator[tuple[list[str], list[bytes]]]:
        """For a large commit: what to put aside where, in parts. Afterwards the commit moves it to its place."""
        size = 0
        keys: list[str] = []
        values: list[bytes] = []
        for step in self._steps:
            if not isinstance(step.data, list) or not step.data:
                continue
            data = step.joined()
            if len(data) < STAGED_BYTES_MIN:
                continue
            key = self._layout.staged(self.staged_count)
            self.staged_count += 1
            keys.append(key)
            values.append(data)
            size += len(data)
            self._keys.append(key)
            step.verb = "rename" if step.verb == "whole" else "copy"
            step.data = len(self._keys)
            if size >= COMMIT_BYTES_MAX // 16:
                yield keys, values
                keys, values, size = [], [], 0
        if keys:
            yield keys, values

    @property
    def keys(self) -> Sequence[str]:
        return self._keys

    def arguments(self) -> list[Argument]:
        """Those of `scripts.COMMIT` from whether it takes room on."""
        if self.staged_count:
            self.contents.debris.pop("", None)
        fields: list[Argument] = []
        gone: list[Argument] = ["-"] if self.staged_count else []
        for name, size in self.contents.sizes.items():
            if self._before.sizes.get(name) != size:
                fields += (f"/{name}", size)
        for name, ranges in self.contents.debris.items():
            if self._before.debris.get(name) != ranges:
                fields += (f"-{name}", format_ranges(ranges))
        gone += [f"/{name}" for name in self._before.sizes if name not in self.contents.sizes]
        gone += [f"-{name}" for name in self._before.debris if name not in self.contents.debris]
        arguments: list[Argument] = [int(self.takes_no_room), self.staged_count, len(fields), *fields, len(gone), *gone]
        for step in self._steps:
            data = step.data if isinstance(step.data, int) else step.joined()
            arguments += (step.verb, step.place, step.offset, data)
        return arguments


def _merged(ranges: Sequence[Range]) -> list[Range]:
    merged: list[Range] = []
    for first, end in sorted(ranges):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((first, end))
    return merged

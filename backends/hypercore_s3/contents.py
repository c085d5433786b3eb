"""What a place holds after one commit: its files, and the objects that their bytes lie in.

Pure. A list of operations becomes the steps of a commit here, and a commit changes the files here. It must not know
how commits are stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from hypercore.errors import CorruptError, OptionError
from hypercore.storage import Delete, Operation, Sync, Truncate, Write, check_name, check_range
from hypercore_s3.commits import DELETE, STEPS_MAX, TRUNCATE, UNLINK, WRITE, WRITE_HERE, Commit, Step
from hypercore_s3.decoding import FILE_SIZE_MAX
from hypercore_s3.extents import Extents, Source
from hypercore_s3.frames import FRAME_SIZE
from hypercore_s3.index import Index

#: Files are folded in pages of this size, one a frame.
PAGE_SIZE: Final = FRAME_SIZE
#: A write of so many bytes stays in its commit. To put it into a checkpoint would cost its bytes once more; an extent
#: costs 32 bytes in every index from now on.
LARGE_SIZE: Final = 256 * 1024
#: Files that are read in the pieces in which they were written: a fold never cuts one in two. The others are read in
#: pages wherever they were written. What is wrong here costs a request, never a byte.
STREAMED_FILES: Final = frozenset({"data"})


class File:
    """One file. It is another one when it was unlinked and made again."""

    __slots__ = ("extents", "identity", "name", "size", "touched")

    def __init__(self, name: str, identity: int) -> None:
        self.name = name
        self.identity = identity
        self.size = 0
        self.extents = Extents()
        #: What was changed since a fold began.
        self.touched: list[tuple[int, int]] | None = None

    @property
    def streamed(self) -> bool:
        return self.name in STREAMED_FILES

    def touch(self, start: int, end: int) -> None:
        if self.touched is not None and start < end:
            self.touched.append((start, end))


class Plan:
    """The steps that a list of operations comes to, and the bytes that go with them."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        """`sizes` are those of the files that exist."""
        self.steps: list[Step] = []
        #: The bytes of the writes that have to be folded, a piece a step.
        self.small: list[bytes] = []
        #: The bytes of the others, and how many they are.
        self.large: list[bytes] = []
        self.large_size = 0
        #: Where in them the first page of a file begins.
        self.aligned = 0
        self._pages_seen = False
        self._sizes: dict[str, int | None] = dict(sizes)
        self._pieces: list[bytes] = []
        self._name = ""
        self._start = self._end = 0

    @classmethod
    def of(cls, operations: Sequence[Operation], files: Mapping[str, File]) -> Plan:
        """Raises `OptionError` for names and ranges that nobody may ask for."""
        plan = cls({name: file.size for name, file in files.items()})
        for operation in operations:
            plan._add(operation)
        plan._end_run()
        return plan

    def _add(self, operation: Operation) -> None:
        match operation:
            case Write(name, offset, data):
                check_name(name)
                _check_fits(offset, len(data))
                if not data:
                    self._make(name)
                    return
                if name != self._name or offset != self._end or not self._pieces:
                    self._end_run()
                    self._name, self._start = name, offset
                self._pieces.append(data if type(data) is bytes else bytes(data))
                self._end = offset + len(data)
                self._sizes[name] = max(self._sizes.get(name) or 0, self._end)
            case Truncate(name, size):
                check_name(name)
                _check_fits(size, 0)
                if self._sizes.get(name) != size:
                    self._change(Step(TRUNCATE, name, 0, size), size)
            case Delete(name, offset, size):
                check_name(name)
                check_range(offset, size)
                size = min(size, (self._sizes.get(name) or 0) - offset)
                if size > 0:
                    self._change(Step(DELETE, name, offset, size), self._sizes[name])
            case Sync(names):
                for name in names:
                    check_name(name)

    def unlink(self, name: str) -> None:
        check_name(name)
        if self._sizes.get(name) is not None:
            self._change(Step(UNLINK, name), None)

    def _make(self, name: str) -> None:
        if self._sizes.get(name) is None:
            self._change(Step(TRUNCATE, name), 0)

    def _change(self, step: Step, size: int | None) -> None:
        self._end_run()
        self._sizes[step.name] = size
        self.steps.append(step)

    def _end_run(self) -> None:
        """Neighbouring writes are one; of a large one whole pages stay where they are."""
        if not self._pieces:
            return
        pieces, self._pieces = self._pieces, []
        name, start, end = self._name, self._start, self._end
        if end - start < LARGE_SIZE:
            self._write(name, start, pieces)
        elif name in STREAMED_FILES:
            self._write_here(name, start, end, pieces)
        else:
            first, last = -(-start // PAGE_SIZE) * PAGE_SIZE, end // PAGE_SIZE * PAGE_SIZE
            self._write(name, start, _part(pieces, 0, first - start))
            if not self._pages_seen:
                self._pages_seen, self.aligned = True, self.large_size
            self._write_here(name, first, last, _part(pieces, first - start, last - start))
            self._write(name, last, _part(pieces, last - start, end - start))

    def _write(self, name: str, start: int, pieces: list[bytes]) -> None:
        if pieces:
            data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            self.steps.append(Step(WRITE, name, start, len(data)))
            self.small.append(data)

    def _write_here(self, name: str, start: int, end: int, pieces: list[bytes]) -> None:
        self.steps.append(Step(WRITE_HERE, name, start, end - start))
        self.large += pieces
        self.large_size += end - start


def _check_fits(offset: int, size: int) -> None:
    check_range(offset, size)
    if offset + size > FILE_SIZE_MAX:
        raise OptionError(f"a file has at most {FILE_SIZE_MAX} bytes, and {offset + size} were asked for")


def _part(pieces: Iterable[bytes], start: int, end: int) -> list[bytes]:
    """What lies between two offsets of what the pieces are together."""
    part = []
    position = 0
    for piece in pieces:
        first, last = max(start - position, 0), min(end - position, len(piece))
        if first < last:
            part.append(piece if last - first == len(piece) else piece[first:last])
        position += len(piece)
    return part


class Contents:
    """The files as they are after commit `sequence`."""

    def __init__(self) -> None:
        self.sequence = 0
        self.epoch = 0
        self.files: dict[str, File] = {}
        #: The objects that will not be needed for ever; a fold says which of them nothing points into any more.
        self.objects: set[str] = set()
        #: Objects that were found so, and of which it is not known that they are gone.
        self.doomed: set[str] = set()
        #: What was committed since the last fold.
        self.pending_bytes = 0
        self.pending_commits = 0
        #: Raised with each change of what is here.
        self.version = 0

    @classmethod
    def of(cls, index: Index, checkpoint: str) -> Contents:
        """What a checkpoint says."""
        contents = cls()
        contents.sequence, contents.epoch = index.sequence, index.epoch
        for name, identity, size, extents in index.files:
            file = contents.files[name] = File(name, identity)
            file.size, file.extents = size, extents
        contents.objects = {checkpoint, *(body.name for body in index.bodies)}
        contents.doomed = set(index.doomed)
        return contents

    def apply(self, commit: Commit) -> None:
        """Take the next commit in. Raises `CorruptError` when it cannot be the next one."""
        if commit.sequence != self.sequence + 1 or commit.epoch < self.epoch:
            raise CorruptError(
                f"object {commit.name} is of epoch {commit.epoch} and follows commit {self.sequence} of epoch "
                f"{self.epoch}: two writers were at work, or somebody removed objects",
                file=commit.name,
            )
        self.version += 1
        self.sequence, self.epoch = commit.sequence, commit.epoch
        if not commit.fence:
            self.objects.add(commit.name)
        self.pending_commits += 1
        self.pending_bytes += commit.small_size
        small = iter(commit.small)
        position = 0
        for number, step in enumerate(commit.steps):
            identity = commit.sequence * STEPS_MAX + number
            if step.kind == WRITE:
                self._write(self._file(step.name, identity), step, next(small), 0)
            elif step.kind == WRITE_HERE:
                assert commit.body is not None
                self._write(self._file(step.name, identity), step, commit.body, position)
                position += step.size
            elif step.kind == TRUNCATE:
                file = self._file(step.name, identity)
                self._drop(file, step.size, file.size)
                file.size = step.size
            elif step.kind == DELETE and step.name in self.files:
                self._drop(self.files[step.name], step.offset, step.offset + step.size)
            elif step.kind == UNLINK:
                self.files.pop(step.name, None)

    def _file(self, name: str, identity: int) -> File:
        file = self.files.get(name)
        if file is None:
            file = self.files[name] = File(name, identity)
        return file

    def _write(self, file: File, step: Step, source: Source, offset: int) -> None:
        end = step.offset + step.size
        file.extents.put(step.offset, end, source, offset)
        file.touch(step.offset, end)
        file.size = max(file.size, end)

    def _drop(self, file: File, start: int, end: int) -> None:
        file.extents.put(start, end, None)
        file.touch(start, end)

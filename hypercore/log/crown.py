"""The file `crown`: the tree's upper nodes once more, close together, for storages where every read is a round trip.

Knows where they lie; the decision is docs/decisions/crown.md. It must not know which nodes are right. It holds nothing
that file `tree` does not hold, so losing it costs time only.

The nodes that lie above 256 blocks or more form a tree of their own, and lie in the file as the nodes of that tree
would lie in file `tree`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from hypercore.errors import OutOfBoundsError, StorageMissingError
from hypercore.log import flat_tree
from hypercore.log.node_layout import BLANK_HASH, NODE_SIZE, joined_runs, unpack_node
from hypercore.proofs import Node
from hypercore.storage import Operation, RandomAccess, Storage, Truncate, Write

FILE: Final = "crown"

#: Nodes of this depth and more are here: those that span the pages of file `tree`.
CROWN_DEPTH: Final = 8
#: Up to this size the file is read as one piece when the log is opened: 3 million blocks have less.
_WHOLE_SIZE_MAX: Final = 1024 * 1024

_BLANK: Final = (0, BLANK_HASH)


def crown_index(index: int) -> int:
    """Where a node of the tree is in the crown, as an index of the crown's own tree."""
    return (index + 1 >> CROWN_DEPTH) - 1


def is_upper(index: int) -> bool:
    """Whether a node of the tree belongs to the crown."""
    return not index + 1 & (1 << CROWN_DEPTH) - 1


class Crown:
    """The upper nodes of one log as the file has them."""

    def __init__(self, storage: Storage, file_size: int) -> None:
        self._storage = storage
        self._file: RandomAccess | None = None
        self._size = file_size - file_size % NODE_SIZE
        #: The whole file, as long as it is small.
        self._content: bytearray | None = None if self._size else bytearray()
        #: A node turned out to be wrong: file `tree` alone is asked from now on, until the next opening.
        self.distrusted = False

    async def load(self) -> None:
        """Read the file if it is small."""
        if 0 < self._size <= _WHOLE_SIZE_MAX:
            self._content = bytearray(await (await self._handle()).read(0, self._size))

    async def read(self, indexes: Iterable[int]) -> dict[int, Node]:
        """Those of the nodes that are here."""
        wanted = [index for index in indexes if is_upper(index) and (crown_index(index) + 1) * NODE_SIZE <= self._size]
        if not wanted or self.distrusted:
            return {}
        if self._content is not None:
            pieces: Sequence[bytes | memoryview] = [
                memoryview(self._content)[crown_index(index) * NODE_SIZE :] for index in wanted
            ]
        else:
            try:
                file = await self._handle()
                pieces = await file.read_many([(crown_index(index) * NODE_SIZE, NODE_SIZE) for index in wanted])
            except (OutOfBoundsError, StorageMissingError):
                return {}  # A cut since; the file `tree` knows.
        contents = ((index, unpack_node(piece)) for index, piece in zip(wanted, pieces, strict=True))
        return {index: Node(index, *content) for index, content in contents if content != _BLANK}

    def operations(self, nodes: Iterable[Node], cut_length: int | None) -> list[Operation]:
        """What brings the file up to date with `nodes`, after a cut at `cut_length` blocks if there was one."""
        operations: list[Operation] = []
        if cut_length is not None:
            size, blanks = _cut(cut_length)
            operations.append(Truncate(FILE, size))
            operations += [Write(FILE, index * NODE_SIZE, bytes(NODE_SIZE)) for index in blanks]
        return operations + [Write(FILE, offset, data) for offset, data in _runs(nodes)]

    def was_written(self, nodes: Iterable[Node], cut_length: int | None) -> None:
        """The operations have been carried out."""
        content = self._content
        if cut_length is not None:
            self._size, blanks = _cut(cut_length)
            if content is not None:
                _resize(content, self._size)
                for index in blanks:
                    content[index * NODE_SIZE : (index + 1) * NODE_SIZE] = bytes(NODE_SIZE)
        for offset, data in _runs(nodes):
            end = offset + len(data)
            self._size = max(self._size, end)
            if content is not None:
                _resize(content, max(len(content), end))
                content[offset:end] = data
        if self._size > _WHOLE_SIZE_MAX:
            self._content = None

    async def _handle(self) -> RandomAccess:
        if self._file is None:
            self._file = await self._storage.open(FILE)
        return self._file

    async def aclose(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            await self._file.aclose()
            self._file = None


def _cut(length: int) -> tuple[int, list[int]]:
    """Bytes that a cut at `length` blocks leaves of the file, and the nodes in it that reach across the cut."""
    leaves = length >> CROWN_DEPTH
    size = max(0, 2 * leaves - 1) * NODE_SIZE
    return size, [index for index in flat_tree.astride(leaves) if (index + 1) * NODE_SIZE <= size]


def _runs(nodes: Iterable[Node]) -> list[tuple[int, bytes]]:
    """The upper ones of the nodes as `(byte offset in the file, bytes)`, neighbours joined."""
    return joined_runs((crown_index(node[0]), node) for node in nodes if is_upper(node[0]))


def _resize(content: bytearray, size: int) -> None:
    if size <= len(content):
        del content[size:]
    else:
        content.extend(bytes(size - len(content)))

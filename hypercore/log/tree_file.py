"""The file `tree` and what the log has to say about it (disk spec, section 5.1).

Knows where nodes lie, in pages, and which of them the file does not hold yet or holds no longer. It must not know
which nodes are right.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from hypercore.errors import ClosedError, OutOfBoundsError
from hypercore.log import flat_tree
from hypercore.log.crown import Crown
from hypercore.log.node_layout import BLANK_HASH, NODE_SIZE, joined_runs, pack_node_into, unpack_node
from hypercore.proofs import Node
from hypercore.storage import Operation, RandomAccess, Storage

FILE: Final = "tree"
#: A page holds the whole subtree above 256 blocks, and one node from higher up.
PAGE_SHIFT: Final = 9
PAGE_NODES: Final = 1 << PAGE_SHIFT
IN_PAGE: Final = PAGE_NODES - 1
_PAGE_SIZE: Final = PAGE_NODES * NODE_SIZE

_UNCHECKED: Final = array("q", [-1]) * PAGE_NODES


class Page:
    """Nodes `base` to `base + 511`. `offsets` is -1 where a node was not checked."""

    __slots__ = ("base", "data", "offsets")

    def __init__(self, base: int, content: bytes) -> None:
        self.base = base
        if len(content) < _PAGE_SIZE:
            content = content[: len(content) - len(content) % NODE_SIZE].ljust(_PAGE_SIZE, b"\0")
        self.data = bytearray(content)
        self.offsets = _UNCHECKED[:]

    def distrust(self) -> None:
        self.offsets = _UNCHECKED[:]

    def put(self, node: Node) -> None:
        pack_node_into(self.data, (node[0] & IN_PAGE) * NODE_SIZE, node[1], node[2])

    def trust(self, node: Node, offset: int) -> None:
        self.put(node)
        self.offsets[node[0] & IN_PAGE] = offset

    def blank(self, index: int) -> None:
        pack_node_into(self.data, (index & IN_PAGE) * NODE_SIZE, 0, BLANK_HASH)


class TreeCut(NamedTuple):
    """Cut the file to `size` bytes, then blank the nodes at the byte offsets `blanks`.

    `first`: before the new nodes are written, because some of them lie behind the cut. Else after the new header,
    because then no crash leaves a folder that other implementations cannot open (disk spec, section 7.3).
    """

    size: int
    blanks: tuple[int, ...]
    first: bool


class TreeFile:
    """The nodes of one log as they are stored: in the file, or in the log's entries and on their way there."""

    def __init__(
        self,
        storage: Storage,
        file_size: int,
        *,
        overlay: Mapping[int, Node] | None = None,
        blanks: frozenset[int] = frozenset(),
        floor: int | None = None,
        crown: Crown | None = None,
    ) -> None:
        """`overlay`, `blanks` and `floor` are what replaying the log gave (disk spec, section 4.2)."""
        self._storage = storage
        #: The upper nodes in a file of their own, if there is one.
        self.crown = crown
        self._file: RandomAccess | None = None
        #: Bytes that may be read: behind a cut nothing counts, and a checkpoint may cut the file there at any time.
        self._size = file_size if floor is None else min(file_size, max(0, 2 * floor - 1) * NODE_SIZE)
        #: Nodes that are in the log but not yet in the file.
        self.overlay: dict[int, Node] = dict(overlay or {})
        self._blanks = blanks
        #: Leaf index from which on the file may hold nodes of another fork, which do not count; None when all count.
        self._end: int | None = None if floor is None else 2 * floor
        #: Raised whenever the file was changed, or what counts in it: bytes that were asked for before may be old.
        self.version = 0

    def cut(self, length: int) -> None:
        """Forget every node that is not wholly below the first `length` blocks; the file may still hold some."""
        end = 2 * length
        reach = flat_tree.right_span
        self.overlay = {index: node for index, node in self.overlay.items() if reach(index) < end}
        self._end = end if self._end is None else min(end, self._end)
        self._size = min(self._size, max(0, end - 1) * NODE_SIZE)
        self.version += 1

    # ---- reading -------------------------------------------------------------------------------------

    async def stored(self, indexes: Sequence[int]) -> list[Node | None]:
        """The nodes as they are stored, whether they fit the tree or not; read one by one and not kept."""
        return (await self.read((), indexes))[1]

    async def read(self, numbers: Sequence[int], indexes: Sequence[int]) -> tuple[list[Page], list[Node | None]]:
        """Pages, and single nodes, in one round trip, as they will be stored after the next checkpoint."""
        while True:
            version = self.version
            sizes = [min(_PAGE_SIZE, self._size - number * _PAGE_SIZE) for number in numbers]
            filed = [index for index in indexes if index not in self.overlay and self._counts_in_file(index)]
            held = await self.crown.read(filed) if self.crown is not None and filed else {}
            single = [index for index in filed if index not in held]
            ranges = [(number * _PAGE_SIZE, size) for number, size in zip(numbers, sizes, strict=True) if size > 0]
            ranges += [(index * NODE_SIZE, NODE_SIZE) for index in single]
            try:
                contents = iter(await self._read(ranges))
            except (OutOfBoundsError, ClosedError):
                if version == self.version:
                    raise
            else:
                # Otherwise the file changed meanwhile.
                if version == self.version:
                    break
        pages = [
            Page(number << PAGE_SHIFT, next(contents) if size > 0 else b"")
            for number, size in zip(numbers, sizes, strict=True)
        ]
        for page in pages:
            self._bring_up_to_date(page)
        for index in single:
            size, digest = unpack_node(next(contents))
            if size or digest != BLANK_HASH:
                held[index] = Node(index, size, digest)
        return pages, [self.overlay.get(index) or held.get(index) for index in indexes]

    def _bring_up_to_date(self, page: Page) -> None:
        """Make a page that was read from the file show what the log says since."""
        inside = range(page.base, page.base + PAGE_NODES)
        if self._end is not None:
            for index in inside:
                if flat_tree.right_span(index) >= self._end:
                    page.blank(index)
        for index in self._blanks:
            if index in inside:
                page.blank(index)
        if len(self.overlay) < PAGE_NODES:
            for node in self.overlay.values():
                if node[0] in inside:
                    page.put(node)
        else:
            for index in inside:
                if index in self.overlay:
                    page.put(self.overlay[index])

    def _counts_in_file(self, index: int) -> bool:
        return (
            (index + 1) * NODE_SIZE <= self._size
            and index not in self._blanks
            and (self._end is None or flat_tree.right_span(index) < self._end)
        )

    async def _read(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        if not ranges:
            return []
        if self._file is None:
            self._file = await self._storage.open(FILE)
        return await self._file.read_many(ranges)

    # ---- writing -------------------------------------------------------------------------------------

    def unwritten_runs(self) -> list[tuple[int, bytes]]:
        """The nodes that are only in the log as `(byte offset in the file, bytes)`, neighbours joined."""
        return joined_runs(self.overlay.items())

    def owed_cut(self) -> TreeCut | None:
        """What a cut still has to do to the file, if there was one (disk spec, section 6.4)."""
        end = self._end
        if end is None:
            return None
        size = max(0, end - 1) * NODE_SIZE
        # Cutting the file is not enough: a node astride the cut can lie before its end.
        astride = [index * NODE_SIZE for index in flat_tree.astride(end >> 1) if index not in self.overlay]
        first = any(flat_tree.right_span(index) >= end for index in self.overlay)
        return TreeCut(size, tuple(astride), first)

    def crown_operations(self) -> list[Operation]:
        """What a checkpoint writes to the file `crown`, if there is one."""
        if self.crown is None:
            return []
        return self.crown.operations(self.overlay.values(), None if self._end is None else self._end >> 1)

    def was_written(self, runs: Sequence[tuple[int, bytes]]) -> None:
        """The runs, and the cut if there was one, are in the file now."""
        cut = self.owed_cut()
        if self.crown is not None:
            self.crown.was_written(self.overlay.values(), None if self._end is None else self._end >> 1)
        if cut is not None:
            self._end = None
            self._size = max([cut.size, *(offset + NODE_SIZE for offset in cut.blanks)])
        self._size = max([self._size, *(offset + len(data) for offset, data in runs)])
        self.version += 1
        self.overlay.clear()

    async def aclose(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            await self._file.aclose()
            self._file = None
        if self.crown is not None:
            await self.crown.aclose()

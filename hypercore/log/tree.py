"""The stored Merkle tree: nodes in memory and in the file `tree`, and which of them may be trusted.

Knows where nodes lie (disk spec, section 5.1) and that a node counts only when it hangs under a root. It must not
know who signed the roots, nor what the log or the blocks look like.

Three layers, looked at in this order. *Trusted* nodes are known to hash up to a root, and their byte offset is
known. The *overlay* holds nodes that are in the log but not yet in the file. *Pages* are raw bytes of the file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from hypercore.crypto import TreeHash
from hypercore.log import flat_tree
from hypercore.log.merkle import parent_node
from hypercore.proofs import Node
from hypercore.storage import RandomAccess, Storage

NODE_SIZE: Final = 40
#: A page holds 512 nodes: the whole subtree above 256 blocks and one higher node. It is what one read brings.
PAGE_SHIFT: Final = 9
PAGE_NODES: Final = 1 << PAGE_SHIFT
PAGE_SIZE: Final = PAGE_NODES * NODE_SIZE
#: 2.6 MB a log at most; a page that falls out costs one read.
MAX_PAGES: Final = 128
#: About 6 MB a log at most. When it is full the lowest nodes go: they are the most, and the quickest to find again.
MAX_TRUSTED: Final = 16384

FILE: Final = "tree"

_NODE: Final = struct.Struct("<Q32s")
_BLANK_HASH: Final = bytes(32)

#: A node and the byte offset at which its leftmost block begins.
Placed = tuple[int, Node]


class _PagesNeeded(Exception):  # noqa: N818 - a signal between two functions of this module, never an error
    def __init__(self, pages: set[int]) -> None:
        self.pages = pages


class TreeCut(NamedTuple):
    """Cut the file to `size` bytes, then blank the nodes at the byte offsets `blanks`.

    `first`: before the new nodes are written, because some of them lie behind the cut. Else after the new header,
    because then no crash leaves a folder that other implementations cannot open (disk spec, section 7.3).
    """

    size: int
    blanks: tuple[int, ...]
    first: bool


class NodeStore:
    """The nodes of one log."""

    def __init__(
        self,
        storage: Storage,
        tree_hash: TreeHash,
        file_size: int,
        *,
        overlay: Mapping[int, Node] | None = None,
        blanks: frozenset[int] = frozenset(),
        floor: int | None = None,
    ) -> None:
        """`overlay`, `blanks` and `floor` are what replaying the log gave (disk spec, section 4.2)."""
        self._storage = storage
        self._file: RandomAccess | None = None
        self._file_size = file_size
        self._pages: dict[int, bytes] = {}
        self._trusted: dict[int, Placed] = {}
        self._roots: tuple[Node, ...] = ()
        self._tree_hash = tree_hash
        self._end = 0
        #: Leaf index from which on the file may hold nodes of another fork, which do not count; None when all count.
        self._file_end: int | None = None if floor is None else 2 * floor
        self._blanks = blanks
        #: Nodes that are in the log but not yet in the file.
        self.overlay: dict[int, Node] = dict(overlay or {})

    # ---- what the tree is ----------------------------------------------------------------------------

    def hash_with(self, tree_hash: TreeHash) -> None:
        """The manifest was learned, and it says which hash the tree is made with."""
        self._tree_hash = tree_hash

    def set_roots(self, roots: Iterable[Node], length: int) -> None:
        """These are the checked roots of the tree, which has `length` blocks."""
        self._roots = tuple(roots)
        self._end = 2 * length
        self._trust_roots()

    def _trust_roots(self) -> None:
        start = 0
        for root in self._roots:
            self._trusted[root.index] = (start, root)
            start += root.size

    def cut(self, length: int) -> None:
        """Forget every node that is not wholly below the first `length` blocks; the file may still hold some."""
        end = 2 * length
        reach = flat_tree.right_span
        self.overlay = {index: node for index, node in self.overlay.items() if reach(index) < end}
        self._trusted = {index: placed for index, placed in self._trusted.items() if reach(index) < end}
        self._file_end = end if self._file_end is None else min(end, self._file_end)

    def add(self, nodes: Iterable[Node]) -> None:
        """Put nodes that the log holds into the overlay. Two sizes for one hash make all trust start over."""
        trusted = self._trusted
        for node in nodes:
            index = node[0]
            self.overlay[index] = node
            known = trusted.get(index)
            if known is not None and known[1] != node:
                self.distrust()
                trusted = self._trusted

    def distrust(self) -> None:
        """Forget what was checked, but for the roots."""
        self._trusted = {}
        self._trust_roots()

    # ---- looking up ----------------------------------------------------------------------------------

    def known(self, index: int) -> Placed | None:
        """The node if it is known to hang under a root, without looking anywhere."""
        return self._trusted.get(index)

    async def locate(self, index: int) -> Placed | None:
        """The node and its byte offset, if it is stored and hashes up to a root; None otherwise."""
        placed = self._trusted.get(index)
        if placed is not None:
            return placed
        if flat_tree.right_span(index) >= self._end:
            return None
        while True:
            try:
                return self._climb(index)
            except _PagesNeeded as needed:
                await self._load(needed.pages)

    async def locate_all(self, indexes: Sequence[int]) -> list[Placed | None]:
        """`locate` for several, with as few reads as can be."""
        needed: set[int] = set()
        for index in indexes:
            if index not in self._trusted and flat_tree.right_span(index) < self._end:
                try:
                    self._climb(index)
                except _PagesNeeded as missing:
                    needed |= missing.pages
        if needed:
            await self._load(needed)
        return [await self.locate(index) for index in indexes]

    async def nodes(self, indexes: Sequence[int]) -> list[Node | None]:
        """The nodes that are stored and hash up to a root; None for the others."""
        return [None if placed is None else placed[1] for placed in await self.locate_all(indexes)]

    async def stored(self, indexes: Sequence[int]) -> list[Node | None]:
        """The nodes as they are stored, whether they fit the tree or not."""
        needed = {
            index >> PAGE_SHIFT
            for index in indexes
            if index not in self.overlay and index >> PAGE_SHIFT not in self._pages
        }
        if needed:
            await self._load(needed)
        found: list[Node | None] = []
        for index in indexes:
            while True:
                try:
                    found.append(self._stored(index))
                    break
                except _PagesNeeded as missing:
                    # More pages were asked for than the cache holds.
                    await self._load(missing.pages)
        return found

    def _stored(self, index: int) -> Node | None:
        node = self.overlay.get(index)
        if node is not None:
            return node
        if self._file_end is not None and flat_tree.right_span(index) >= self._file_end:
            return None
        if index in self._blanks:
            return None
        page = self._pages.get(index >> PAGE_SHIFT)
        if page is None:
            raise _PagesNeeded({index >> PAGE_SHIFT})
        start = (index & (PAGE_NODES - 1)) * NODE_SIZE
        if start + NODE_SIZE > len(page):
            return None
        size, digest = _NODE.unpack_from(page, start)
        if size == 0 and digest == _BLANK_HASH:
            return None
        return Node(index, size, digest)

    def _climb(self, index: int) -> Placed | None:
        """From a node up to the nearest trusted ancestor, with the siblings on the way as the proof.

        What is stored on the way itself is not read: a parent is what its children make it.
        """
        node = self._gather(index, trusted := self._trusted, path := [])
        if node is None:
            return None
        hash_parent = self._tree_hash.parent
        made = [node]
        for sibling in path:
            size = node[1] + sibling[1]
            if node[0] < sibling[0]:
                digest = hash_parent(size, node[2], sibling[2])
            else:
                digest = hash_parent(size, sibling[2], node[2])
            node = Node((node[0] + sibling[0]) >> 1, size, digest)
            made.append(node)
        start, top = trusted[node[0]]
        if node[2] != top[2] or node[1] != top[1]:
            return None
        # All of it holds; on the way down every node learns its byte offset.
        for node, sibling in zip(reversed(made[:-1]), reversed(path), strict=True):
            if node[0] < sibling[0]:
                trusted[sibling[0]] = (start + node[1], sibling)
            else:
                trusted[sibling[0]] = (start, sibling)
                start += sibling[1]
            trusted[node[0]] = placed = (start, node)
        if len(trusted) > MAX_TRUSTED:
            self._shed()
        return placed

    def _gather(self, index: int, trusted: dict[int, Placed], path: list[Node]) -> Node | None:
        """The stored node `index`; into `path` the siblings up to a trusted ancestor. None when one is absent.

        Raises `_PagesNeeded` with all that lie in the way, so that one round trip brings them.
        """
        needed: set[int] | None = None
        try:
            first = self._stored(index)
            if first is None:
                return None
        except _PagesNeeded as missing:
            first = None
            needed = missing.pages
        while index not in trusted:
            bit = ~index & (index + 1)
            double = bit << 1
            sibling = index - double if index & double else index + double
            index = index - bit if index & double else index + bit
            known = trusted.get(sibling)
            if known is not None:
                path.append(known[1])
                continue
            try:
                node = self._stored(sibling)
            except _PagesNeeded as missing:
                needed = missing.pages if needed is None else needed | missing.pages
                continue
            if node is None:
                return None
            path.append(node)
        if needed is not None:
            raise _PagesNeeded(needed)
        return first

    def _shed(self) -> None:
        span = 4  # blocks below the lowest nodes that stay
        while len(self._trusted) > MAX_TRUSTED // 2:
            self._trusted = {index: placed for index, placed in self._trusted.items() if ~index & (index + 1) >= span}
            span *= 2
        self._trust_roots()

    # ---- the file ------------------------------------------------------------------------------------

    async def _load(self, pages: Iterable[int]) -> None:
        numbers = sorted(pages)
        ranges = []
        for number in numbers:
            start = number * PAGE_SIZE
            ranges.append((start, max(0, min(PAGE_SIZE, self._file_size - start))))
        wanted = [(start, size) for start, size in ranges if size]
        contents = iter(await (await self._handle()).read_many(wanted)) if wanted else iter(())
        while self._pages and len(self._pages) + len(numbers) > MAX_PAGES:
            del self._pages[next(iter(self._pages))]
        for number, (_start, size) in zip(numbers, ranges, strict=True):
            self._pages[number] = next(contents) if size else b""

    async def _handle(self) -> RandomAccess:
        if self._file is None:
            self._file = await self._storage.open(FILE)
        return self._file

    def unwritten_runs(self) -> list[tuple[int, bytes]]:
        """The overlay as `(byte offset in the file, bytes)`, neighbours joined."""
        runs: list[tuple[int, bytes]] = []
        pack = _NODE.pack
        parts: list[bytes] = []
        first = following = -1
        overlay = self.overlay
        for index in sorted(overlay):
            if index != following:
                if parts:
                    runs.append((first * NODE_SIZE, b"".join(parts)))
                    parts = []
                first = index
            node = overlay[index]
            parts.append(pack(node[1], node[2]))
            following = index + 1
        if parts:
            runs.append((first * NODE_SIZE, b"".join(parts)))
        return runs

    def owed_cut(self) -> TreeCut | None:
        """What a cut still has to do to the file, if there was one (disk spec, section 6.4)."""
        end = self._file_end
        if end is None:
            return None
        size = max(0, end - 1) * NODE_SIZE
        # Cutting the file is not enough: a node astride the cut can lie before its end.
        astride = []
        index = end - 2
        while end and flat_tree.offset(index):
            index = flat_tree.parent(index)
            if index < end <= flat_tree.right_span(index) and index not in self.overlay:
                astride.append(index * NODE_SIZE)
        first = any(flat_tree.right_span(index) >= end for index in self.overlay)
        return TreeCut(size, tuple(astride), first)

    def was_written(self, runs: Sequence[tuple[int, bytes]]) -> None:
        """The runs, and the cut if there was one, are in the file now."""
        cut = self.owed_cut()
        if cut is not None:
            self._pages.clear()
            self._file_end = None
            self._file_size = max([cut.size, *(offset + NODE_SIZE for offset in cut.blanks)])
        for offset, data in runs:
            self._file_size = max(self._file_size, offset + len(data))
            for number in range(offset // PAGE_SIZE, (offset + len(data) - 1) // PAGE_SIZE + 1):
                page = self._pages.get(number)
                if page is None:
                    continue
                start = number * PAGE_SIZE
                low, high = max(offset, start), min(offset + len(data), start + PAGE_SIZE)
                head = page[: low - start].ljust(low - start, b"\0")
                self._pages[number] = head + data[low - offset : high - offset] + page[high - start :]
        self.overlay.clear()

    async def aclose(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            await self._file.aclose()
            self._file = None


async def remake_node(store: NodeStore, index: int, tree_hash: TreeHash) -> Node | None:
    """The node as its stored children make it, or None."""
    below = flat_tree.children(index)
    if below is None:
        return None
    left, right = await store.stored(below)
    if left is None or right is None:
        return None
    return parent_node(left, right, tree_hash)

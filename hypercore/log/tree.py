"""The stored Merkle tree: nodes in memory and in the file `tree`, and which of them may be trusted.

Knows where nodes lie (disk spec, section 5.1) and that a node counts only when it hangs under a root. It must not
know who signed the roots, nor what the log or the blocks look like.

The file is read in pages of 512 nodes: the whole subtree above 256 blocks, and one node from higher up. A page shows
what the file will hold after the next checkpoint, so the nodes that are only in the log are in it as well. Beside
each node stands the byte offset of its first block as soon as the node is known to hash up to a root. Nodes above
the pages are few and lie far apart; those that were checked stay in a dict.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from hypercore.crypto import TreeHash
from hypercore.encoding import MAX_SAFE_INTEGER
from hypercore.errors import OutOfBoundsError
from hypercore.log import flat_tree
from hypercore.proofs import Node
from hypercore.storage import RandomAccess, Storage

FILE: Final = "tree"
NODE_SIZE: Final = 40

_PAGE_SHIFT: Final = 9
_PAGE_NODES: Final = 1 << _PAGE_SHIFT
_PAGE_SIZE: Final = _PAGE_NODES * NODE_SIZE
_IN_PAGE: Final = _PAGE_NODES - 1
#: Place of a page's highest node that has all its children in the page.
_TOP: Final = 255
#: With 24 KiB a page this is 6 MB at most, and 65,536 blocks are found without reading or hashing nodes again.
MAX_PAGES: Final = 256
#: About 5 MB at most. When it is full the lowest nodes go: they are the most, and the quickest to check again.
MAX_UPPER: Final = 16384

_NODE: Final = struct.Struct("<Q32s")
_unpack = _NODE.unpack_from
_pack_into = _NODE.pack_into
_BLANK_HASH: Final = bytes(32)
_BLANK: Final = (0, _BLANK_HASH)
_UNCHECKED: Final = array("q", [-1]) * _PAGE_NODES

#: A node and the byte offset at which its first block begins.
Placed = tuple[int, Node]


class _PagesNeeded(Exception):  # noqa: N818 - says what to read first; never leaves this module
    def __init__(self, pages: set[int]) -> None:
        self.pages = pages


class _Page:
    """Nodes `base` to `base + 511`. `offsets` is -1 where a node was not checked."""

    __slots__ = ("base", "data", "offsets")

    def __init__(self, base: int, content: bytes) -> None:
        self.base = base
        if len(content) < _PAGE_SIZE:
            content = content[: len(content) - len(content) % NODE_SIZE].ljust(_PAGE_SIZE, b"\0")
        self.data = bytearray(content)
        self.offsets = _UNCHECKED[:]

    def put(self, node: Node) -> None:
        _pack_into(self.data, (node[0] & _IN_PAGE) * NODE_SIZE, node[1], node[2])

    def trust(self, node: Node, offset: int) -> None:
        self.put(node)
        self.offsets[node[0] & _IN_PAGE] = offset

    def blank(self, index: int) -> None:
        _pack_into(self.data, (index & _IN_PAGE) * NODE_SIZE, 0, _BLANK_HASH)


class TreeCut(NamedTuple):
    """Cut the file to `size` bytes, then blank the nodes at the byte offsets `blanks`.

    `first`: before the new nodes are written, because some of them lie behind the cut. Else after the new header,
    because then no crash leaves a folder that other implementations cannot open (disk spec, section 7.3).
    """

    size: int
    blanks: tuple[int, ...]
    first: bool


class NodeStore:
    """The nodes of one log: a `NodeSource` that gives only what hashes up to a root."""

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
        #: Bytes that may be read: behind a cut nothing counts, and the file may be cut there at any time.
        self._file_size = file_size if floor is None else min(file_size, max(0, 2 * floor - 1) * NODE_SIZE)
        self._hash_parent = tree_hash.parent
        #: Nodes that are in the log but not yet in the file.
        self.overlay: dict[int, Node] = dict(overlay or {})
        self._blanks = blanks
        #: Leaf index from which on the file may hold nodes of another fork, which do not count; None when all count.
        self._file_end: int | None = None if floor is None else 2 * floor
        #: Raised whenever the file was changed, or what counts in it: bytes that were asked for before may be old.
        self._file_version = 0
        self._pages: dict[int, _Page] = {}
        self._upper: dict[int, Placed] = {}
        self._roots: tuple[Node, ...] = ()
        self._end = 0

    # ---- what the tree is ----------------------------------------------------------------------------

    def hash_with(self, tree_hash: TreeHash) -> None:
        """The manifest was learned, and it says which hash the tree is made with."""
        self._hash_parent = tree_hash.parent

    def set_roots(self, roots: Sequence[Node], length: int) -> None:
        """These are the checked roots of the tree, which has `length` blocks."""
        self._roots = tuple(roots)
        self._end = 2 * length
        self._trust_roots()

    def _trust_roots(self) -> None:
        start = 0
        for root in self._roots:
            index = root[0]
            page = self._pages.get(index >> _PAGE_SHIFT)
            if page is not None:
                page.trust(root, start)
            if index & _IN_PAGE == _TOP or index & _IN_PAGE == _IN_PAGE:
                self._upper[index] = (start, root)
            start += root[1]

    def add(self, nodes: Iterable[Node]) -> None:
        """The log holds these nodes. A true size in place of a forged one moves what follows, so that trust starts
        over."""
        overlay, pages, upper = self.overlay, self._pages, self._upper
        moved = False
        for node in nodes:
            index = node[0]
            overlay[index] = node
            page = pages.get(index >> _PAGE_SHIFT)
            if page is not None:
                place = index & _IN_PAGE
                if page.offsets[place] >= 0 and _unpack(page.data, place * NODE_SIZE) != node[1:]:
                    moved = True
                page.put(node)
            known = upper.get(index)
            if known is not None and known[1] != node:
                moved = True
        if moved:
            self._distrust()

    def graft(self, leaf: Node, path: Sequence[Node]) -> tuple[int, list[Node]] | None:
        """Add a leaf that `path`, its siblings upwards, connects to a checked node of its page.

        Gives the leaf's byte offset and the nodes that are new. None when the page is not in memory, or when the
        path does not lead to a checked node, or out of the tree; then nothing has changed, and the proof deserves a
        closer look. The nodes that the path holds beyond the first checked node are not looked at.
        """
        index, size, digest = leaf
        page = self._pages.get(index >> _PAGE_SHIFT)
        steps_up = len(path)
        if page is None or ((index >> 1 >> steps_up) + 1) << steps_up + 1 > self._end:
            return None
        base, data, offsets, hash_parent = page.base, page.data, page.offsets, self._hash_parent
        place = index & _IN_PAGE
        steps = []
        bit = 1
        siblings = iter(path)
        while offsets[place] < 0:
            sibling = next(siblings, None)
            if sibling is None or place == _TOP:
                return None
            double = bit << 1
            is_right = place & double
            sibling_index, sibling_size, sibling_digest = sibling
            if sibling_index != base + (place - double if is_right else place + double):
                return None
            steps.append((place, size, digest, sibling))
            size += sibling_size
            if is_right:
                place -= bit
                digest = hash_parent(size, sibling_digest, digest)
            else:
                place += bit
                digest = hash_parent(size, digest, sibling_digest)
            bit = double
        if (size, digest) != _unpack(data, place * NODE_SIZE):
            return None
        new: list[Node] = []
        overlay = self.overlay
        start = offsets[place]
        for place, size, digest, sibling in reversed(steps):
            sibling_index, sibling_size, sibling_digest = sibling
            sibling_place = sibling_index & _IN_PAGE
            if place < sibling_place:
                offsets[sibling_place] = start + size
            else:
                offsets[sibling_place] = start
                start += sibling_size
            offsets[place] = start
            _pack_into(data, place * NODE_SIZE, size, digest)
            _pack_into(data, sibling_place * NODE_SIZE, sibling_size, sibling_digest)
            overlay[sibling_index] = sibling
            overlay[base + place] = node = Node(base + place, size, digest)
            new.append(sibling)
            new.append(node)
        return start, new

    def missing_steps(self, index: int) -> int | None:
        """Steps up from a node of a page to the first one that is stored; None when that takes more than the page."""
        page = self._pages.get(index >> _PAGE_SHIFT)
        place = index & _IN_PAGE
        if page is None or ~index & (index + 1) > 128 or flat_tree.right_span(index) >= self._end:
            return None
        offsets, data = page.offsets, page.data
        bit = ~place & (place + 1)
        steps = 0
        while offsets[place] < 0:
            if place == _TOP or _unpack(data, place * NODE_SIZE) != _BLANK:
                return None
            place += -bit if place & (bit << 1) else bit
            bit <<= 1
            steps += 1
        return steps

    def _distrust(self) -> None:
        self._upper = {}
        for page in self._pages.values():
            page.offsets = _UNCHECKED[:]
        self._trust_roots()

    def cut(self, length: int) -> None:
        """Forget every node that is not wholly below the first `length` blocks; the file may still hold some."""
        end = 2 * length
        reach = flat_tree.right_span
        self.overlay = {index: node for index, node in self.overlay.items() if reach(index) < end}
        self._upper = {index: placed for index, placed in self._upper.items() if reach(index) < end}
        self._pages = {}
        self._file_end = end if self._file_end is None else min(end, self._file_end)
        self._file_size = min(self._file_size, max(0, end - 1) * NODE_SIZE)
        self._file_version += 1

    # ---- looking up ----------------------------------------------------------------------------------

    def leaf(self, block: int) -> tuple[int, int, bytes] | None:
        """Byte offset, size and hash of a block below the length, if that can be told without reading."""
        page = self._pages.get(block >> (_PAGE_SHIFT - 1))
        if page is None:
            return None
        place = 2 * block & _IN_PAGE
        offset = page.offsets[place]
        if offset < 0:
            try:
                if not self._climb(page, place):
                    return None
            except _PagesNeeded:
                return None
            offset = page.offsets[place]
        size, digest = _unpack(page.data, place * NODE_SIZE)
        return offset, size, digest

    async def locate(self, index: int) -> Placed | None:
        """The node and its byte offset, if it is stored and hashes up to a root; None otherwise."""
        while True:
            try:
                return self._find(index)
            except _PagesNeeded as needed:
                await self._load(needed.pages)

    async def nodes(self, indexes: Sequence[int]) -> list[Node | None]:
        """The nodes that are stored and hash up to a root; None for the others. One round trip for what is not in
        memory, mostly."""
        nodes: list[Node | None] = []
        pages = self._pages
        try:
            for index in indexes:
                page = pages.get(index >> _PAGE_SHIFT)
                place = index & _IN_PAGE
                if page is not None and page.offsets[place] >= 0:
                    size, digest = _unpack(page.data, place * NODE_SIZE)
                    nodes.append(Node(index, size, digest))
                else:
                    placed = self._find(index)
                    nodes.append(None if placed is None else placed[1])
        except _PagesNeeded:
            return await self._nodes_slowly(indexes)
        return nodes

    async def roots_at(self, length: int) -> list[Node] | None:
        """The roots that the tree had at `length` blocks, or None when one is not stored."""
        found = await self.nodes(flat_tree.full_roots(length))
        roots = [root for root in found if root is not None]
        return roots if len(roots) == len(found) else None

    async def _nodes_slowly(self, indexes: Sequence[int]) -> list[Node | None]:
        needed: set[int] = set()
        for index in indexes:
            try:
                self._find(index)
            except _PagesNeeded as missing:
                needed |= missing.pages
        await self._load(needed)
        placed = [await self.locate(index) for index in indexes]
        return [None if found is None else found[1] for found in placed]

    def _find(self, index: int) -> Placed | None:
        if ~index & (index + 1) > 128:
            return self._find_upper(index)
        page = self._pages.get(index >> _PAGE_SHIFT)
        place = index & _IN_PAGE
        if page is None:
            if flat_tree.right_span(index) >= self._end:
                return None
            raise _PagesNeeded({index >> _PAGE_SHIFT} | self._pages_above(index))
        offset = page.offsets[place]
        if offset < 0:
            if flat_tree.right_span(index) >= self._end or not self._climb(page, place):
                return None
            offset = page.offsets[place]
        size, digest = _unpack(page.data, place * NODE_SIZE)
        return offset, Node(index, size, digest)

    def _pages_above(self, index: int) -> set[int]:
        """The other pages that checking a node will need, so that they are read together with its own."""
        top = index | _TOP if index & _IN_PAGE < _TOP else (index & ~_IN_PAGE) | _TOP
        if flat_tree.right_span(top) < self._end:
            try:
                self._find_upper(top)
            except _PagesNeeded as needed:
                return needed.pages
        return set()

    def _climb(self, page: _Page, place: int) -> bool:
        """Check a node of a page: hash it up to one that is checked already, with the siblings on the way.

        What is stored on the way itself is not looked at: a parent is what its children make it. Whatever this
        passes is checked afterwards.
        """
        data, offsets, hash_parent = page.data, page.offsets, self._hash_parent
        size, digest = _unpack(data, place * NODE_SIZE)
        # A size above 2^53 is damage; without this, the sum of two might not fit into the hash's 64 bits.
        if size > MAX_SAFE_INTEGER or (not size and digest == _BLANK_HASH):
            return False
        steps = []
        bit = ~place & (place + 1)
        while offsets[place] < 0:
            if place == _TOP:
                top = self._find_upper(page.base + _TOP)
                if top is None:
                    return False
                page.trust(top[1], top[0])
                break
            double = bit << 1
            is_right = place & double
            sibling = place - double if is_right else place + double
            sibling_size, sibling_digest = _unpack(data, sibling * NODE_SIZE)
            if sibling_size > MAX_SAFE_INTEGER or (not sibling_size and sibling_digest == _BLANK_HASH):
                return False
            steps.append((place, size, digest, sibling, sibling_size))
            size += sibling_size
            if is_right:
                place -= bit
                digest = hash_parent(size, sibling_digest, digest)
            else:
                place += bit
                digest = hash_parent(size, digest, sibling_digest)
            bit = double
        if (size, digest) != _unpack(data, place * NODE_SIZE):
            return False
        # All of it holds; on the way down every node learns its byte offset.
        start = offsets[place]
        for place, size, digest, sibling, sibling_size in reversed(steps):
            if place < sibling:
                offsets[sibling] = start + size
            else:
                offsets[sibling] = start
                start += sibling_size
            offsets[place] = start
            if place & 1:
                _pack_into(data, place * NODE_SIZE, size, digest)
        return True

    def _find_upper(self, index: int) -> Placed | None:
        """A node that is not below the top of a page. Raises `_PagesNeeded` with all pages that are in the way."""
        trusted = self._upper
        known = trusted.get(index)
        if known is not None:
            return known
        if flat_tree.right_span(index) >= self._end:
            return None
        needed: set[int] = set()
        path: list[Node] = []
        node = self._stored(index, needed)
        above = index
        while above not in trusted:
            sibling = flat_tree.sibling(above)
            above = flat_tree.parent(above)
            held = trusted.get(sibling)
            beside = held[1] if held is not None else self._stored(sibling, needed)
            if beside is not None:
                path.append(beside)
            elif not needed:
                return None
        if needed:
            raise _PagesNeeded(needed)
        if node is None:
            return None
        passed = [node]
        for beside in path:
            left, right = (node, beside) if node[0] < beside[0] else (beside, node)
            size = left[1] + right[1]
            if size > MAX_SAFE_INTEGER:
                return None
            node = Node((left[0] + right[0]) >> 1, size, self._hash_parent(size, left[2], right[2]))
            passed.append(node)
        start, top = trusted[above]
        if node != top:
            return None
        for node, beside in zip(reversed(passed[:-1]), reversed(path), strict=True):
            if node[0] < beside[0]:
                trusted[beside[0]] = (start + node[1], beside)
            else:
                trusted[beside[0]] = (start, beside)
                start += beside[1]
            trusted[node[0]] = (start, node)
        if len(trusted) > MAX_UPPER:
            self._shed()
        return start, passed[0]

    def _stored(self, index: int, needed: set[int]) -> Node | None:
        """The node as its page has it; a page that is not here is added to `needed`."""
        page = self._pages.get(index >> _PAGE_SHIFT)
        if page is None:
            needed.add(index >> _PAGE_SHIFT)
            return None
        size, digest = _unpack(page.data, (index & _IN_PAGE) * NODE_SIZE)
        return Node(index, size, digest) if size or digest != _BLANK_HASH else None

    def _shed(self) -> None:
        reach = 2 * (_TOP + 1)
        while len(self._upper) > MAX_UPPER // 2:
            self._upper = {index: placed for index, placed in self._upper.items() if ~index & (index + 1) >= reach}
            reach *= 2
        self._trust_roots()

    # ---- the file ------------------------------------------------------------------------------------

    async def _load(self, numbers: Iterable[int]) -> None:
        wanted = sorted(numbers)
        while True:
            version = self._file_version
            ranges = [(number, min(_PAGE_SIZE, self._file_size - number * _PAGE_SIZE)) for number in wanted]
            reads = [(number * _PAGE_SIZE, size) for number, size in ranges if size > 0]
            try:
                contents = iter(await (await self._handle()).read_many(reads) if reads else ())
            except OutOfBoundsError:
                if version == self._file_version:
                    raise
            if version == self._file_version:
                break
        while self._pages and len(self._pages) + len(wanted) > MAX_PAGES:
            del self._pages[next(iter(self._pages))]
        for number, size in ranges:
            page = _Page(number << _PAGE_SHIFT, next(contents) if size > 0 else b"")
            self._bring_up_to_date(page)
            self._pages[number] = page
        self._trust_roots()

    def _bring_up_to_date(self, page: _Page) -> None:
        """Make a page that was read from the file show what the log says since."""
        inside = range(page.base, page.base + _PAGE_NODES)
        if self._file_end is not None:
            for index in inside:
                if flat_tree.right_span(index) >= self._file_end:
                    page.blank(index)
        for index in self._blanks:
            if index in inside:
                page.blank(index)
        if len(self.overlay) < _PAGE_NODES:
            for node in self.overlay.values():
                if node[0] in inside:
                    page.put(node)
        else:
            for index in inside:
                if index in self.overlay:
                    page.put(self.overlay[index])

    async def stored(self, indexes: Sequence[int]) -> list[Node | None]:
        """The nodes as they are stored, whether they fit the tree or not; read one by one and not kept."""
        reads = [
            (index * NODE_SIZE, NODE_SIZE)
            for index in indexes
            if index not in self.overlay and self._counts_in_file(index)
        ]
        contents = iter(await (await self._handle()).read_many(reads) if reads else ())
        found: list[Node | None] = []
        for index in indexes:
            node = self.overlay.get(index)
            if node is None and self._counts_in_file(index):
                size, digest = _NODE.unpack(next(contents))
                if size or digest != _BLANK_HASH:
                    node = Node(index, size, digest)
            found.append(node)
        return found

    def _counts_in_file(self, index: int) -> bool:
        return (
            (index + 1) * NODE_SIZE <= self._file_size
            and index not in self._blanks
            and (self._file_end is None or flat_tree.right_span(index) < self._file_end)
        )

    async def _handle(self) -> RandomAccess:
        if self._file is None:
            self._file = await self._storage.open(FILE)
        return self._file

    def unwritten_runs(self) -> list[tuple[int, bytes]]:
        """The nodes that are only in the log as `(byte offset in the file, bytes)`, neighbours joined."""
        runs: list[tuple[int, bytes]] = []
        pack = _NODE.pack
        parts: list[bytes] = []
        first = following = -1
        for index, node in sorted(self.overlay.items()):
            if index != following:
                if parts:
                    runs.append((first * NODE_SIZE, b"".join(parts)))
                    parts = []
                first = index
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
            self._file_end = None
            self._file_size = max([cut.size, *(offset + NODE_SIZE for offset in cut.blanks)])
        self._file_size = max([self._file_size, *(offset + len(data) for offset, data in runs)])
        self._file_version += 1
        self.overlay.clear()

    async def aclose(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            await self._file.aclose()
            self._file = None

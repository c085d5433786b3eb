"""The Merkle tree: which of the stored nodes may be trusted, and where their blocks begin.

Knows that a node counts only when it hashes up to a root (disk spec, section 5.1). It must not know how nodes are
stored, who signed the roots, nor what the log or the blocks look like.

Nodes are kept in pages. Beside each node stands the byte offset of its first block as soon as the node was checked.
Nodes above the pages are few and lie far apart; those that were checked stay in a dict.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from hypercore.crypto import TreeHash
from hypercore.encoding import MAX_SAFE_INTEGER
from hypercore.log import flat_tree
from hypercore.log.node_layout import BLANK_HASH, NODE_SIZE, pack_node_into, unpack_node
from hypercore.log.tree_file import IN_PAGE, PAGE_SHIFT, Page, TreeFile
from hypercore.proofs import Node

#: With 24 KiB a page this is 6 MB at most, and 65,536 blocks are found without reading or hashing nodes again. It
#: has to be more than the pages on one way up, which are 53 at most.
MAX_PAGES: Final = 256
#: So many nodes are looked up together: their pages have room beside each other.
MAX_LOOKED_UP: Final = 64
#: About 5 MB at most. When it is full the lowest nodes go: they are the most, and the quickest to check again.
MAX_UPPER: Final = 16384

_BLANK: Final = (0, BLANK_HASH)
#: Place of a page's highest node that has all its children in the page.
_TOP: Final = 255

#: A node and the byte offset at which its first block begins.
Placed = tuple[int, Node]


class _Needed(Exception):  # noqa: N818 - says what to read first; never leaves this module
    def __init__(self, pages: Iterable[int], nodes: Iterable[int]) -> None:
        self.pages = frozenset(pages)
        #: Nodes from above the pages, which are read one by one.
        self.nodes = frozenset(nodes)


class NodeStore:
    """The nodes of one log: a `NodeSource` that gives only what hashes up to a root."""

    def __init__(self, file: TreeFile, tree_hash: TreeHash) -> None:
        self.file = file
        self._hash_parent = tree_hash.parent
        self._pages: dict[int, Page] = {}
        self._upper: dict[int, Placed] = {}
        #: Nodes as they were just read, for the one who asked for them.
        self._read_above: dict[int, Node | None] = {}
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
            page = self._pages.get(index >> PAGE_SHIFT)
            if page is not None:
                page.trust(root, start)
            if index & IN_PAGE == _TOP or index & IN_PAGE == IN_PAGE:
                self._upper[index] = (start, root)
            start += root[1]

    def add(self, nodes: Iterable[Node]) -> None:
        """The log holds these nodes. A true size in place of a forged one moves what follows, so that trust starts
        over."""
        overlay, pages, upper = self.file.overlay, self._pages, self._upper
        moved = False
        for node in nodes:
            index = node[0]
            overlay[index] = node
            page = pages.get(index >> PAGE_SHIFT)
            if page is not None:
                place = index & IN_PAGE
                if page.offsets[place] >= 0 and unpack_node(page.data, place * NODE_SIZE) != node[1:]:
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
        page = self._pages.get(index >> PAGE_SHIFT)
        steps_up = len(path)
        if page is None or ((index >> 1 >> steps_up) + 1) << steps_up + 1 > self._end:
            return None
        base, data, offsets, hash_parent = page.base, page.data, page.offsets, self._hash_parent
        place = index & IN_PAGE
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
        if (size, digest) != unpack_node(data, place * NODE_SIZE):
            return None
        new: list[Node] = []
        overlay = self.file.overlay
        start = offsets[place]
        for place, size, digest, sibling in reversed(steps):
            sibling_index, sibling_size, sibling_digest = sibling
            sibling_place = sibling_index & IN_PAGE
            if place < sibling_place:
                offsets[sibling_place] = start + size
            else:
                offsets[sibling_place] = start
                start += sibling_size
            offsets[place] = start
            pack_node_into(data, place * NODE_SIZE, size, digest)
            pack_node_into(data, sibling_place * NODE_SIZE, sibling_size, sibling_digest)
            overlay[sibling_index] = sibling
            overlay[base + place] = node = Node(base + place, size, digest)
            new.append(sibling)
            new.append(node)
        return start, new

    def missing_steps(self, index: int) -> int | None:
        """Steps up from a node of a page to the first one that is stored; None when that takes more than the page."""
        page = self._pages.get(index >> PAGE_SHIFT)
        place = index & IN_PAGE
        if page is None or ~index & (index + 1) > 128 or flat_tree.right_span(index) >= self._end:
            return None
        offsets, data = page.offsets, page.data
        bit = ~place & (place + 1)
        steps = 0
        while offsets[place] < 0:
            if place == _TOP or unpack_node(data, place * NODE_SIZE) != _BLANK:
                return None
            place += -bit if place & (bit << 1) else bit
            bit <<= 1
            steps += 1
        return steps

    def _distrust(self) -> None:
        self._upper = {}
        for page in self._pages.values():
            page.distrust()
        self._trust_roots()

    def cut(self, length: int) -> None:
        """Forget every node that is not wholly below the first `length` blocks."""
        end = 2 * length
        self.file.cut(length)
        self._upper = {index: placed for index, placed in self._upper.items() if flat_tree.right_span(index) < end}
        self._pages = {}

    # ---- looking up ----------------------------------------------------------------------------------

    def leaf(self, block: int) -> tuple[int, int, bytes] | None:
        """Byte offset, size and hash of a block below the length, if that can be told without reading."""
        page = self._pages.get(block >> (PAGE_SHIFT - 1))
        if page is None:
            return None
        place = 2 * block & IN_PAGE
        offset = page.offsets[place]
        if offset < 0:
            try:
                if not self._climb(page, place):
                    return None
            except _Needed:
                return None
            offset = page.offsets[place]
        size, digest = unpack_node(page.data, place * NODE_SIZE)
        return offset, size, digest

    async def locate(self, index: int) -> Placed | None:
        """The node and its byte offset, if it is stored and hashes up to a root; None otherwise."""
        return (await self._find_all([index]))[0]

    async def nodes(self, indexes: Sequence[int]) -> list[Node | None]:
        """The nodes that are stored and hash up to a root; None for the others. One round trip for what is not in
        memory, mostly."""
        nodes: list[Node | None] = []
        pages = self._pages
        try:
            for index in indexes:
                page = pages.get(index >> PAGE_SHIFT)
                place = index & IN_PAGE
                if page is not None and page.offsets[place] >= 0:
                    size, digest = unpack_node(page.data, place * NODE_SIZE)
                    nodes.append(Node(index, size, digest))
                else:
                    placed = self._find(index)
                    nodes.append(None if placed is None else placed[1])
        except _Needed:
            return await self._nodes_slowly(indexes)
        return nodes

    async def roots_at(self, length: int) -> list[Node] | None:
        """The roots that the tree had at `length` blocks, or None when one is not stored."""
        found = await self.nodes(flat_tree.full_roots(length))
        roots = [root for root in found if root is not None]
        return roots if len(roots) == len(found) else None

    async def _nodes_slowly(self, indexes: Sequence[int]) -> list[Node | None]:
        return [None if found is None else found[1] for found in await self._find_all(indexes)]

    async def _find_all(self, indexes: Sequence[int]) -> list[Placed | None]:
        found: dict[int, Placed | None] = {}
        for start in range(0, len(indexes), MAX_LOOKED_UP):
            missing = list(indexes[start : start + MAX_LOOKED_UP])
            while missing:
                pages: set[int] = set()
                nodes: set[int] = set()
                without = []
                for index in missing:
                    try:
                        found[index] = self._find(index)
                    except _Needed as needed:
                        pages |= needed.pages
                        nodes |= needed.nodes
                        without.append(index)
                # What was read for these indexes was right until now, and nobody keeps it up to date.
                self._read_above = {}
                missing = without
                if missing:
                    await self._load(sorted(pages), sorted(nodes))
        return [found[index] for index in indexes]

    def _find(self, index: int) -> Placed | None:
        if ~index & (index + 1) > 128:
            return self._find_upper(index)
        page = self._pages.get(index >> PAGE_SHIFT)
        place = index & IN_PAGE
        if page is None:
            if flat_tree.right_span(index) >= self._end:
                return None
            raise _Needed([index >> PAGE_SHIFT], self._nodes_above(index))
        offset = page.offsets[place]
        if offset < 0:
            if flat_tree.right_span(index) >= self._end or not self._climb(page, place):
                return None
            offset = page.offsets[place]
        size, digest = unpack_node(page.data, place * NODE_SIZE)
        return offset, Node(index, size, digest)

    def _nodes_above(self, index: int) -> frozenset[int]:
        """The nodes from above that checking a node will need, so that they are read together with its page."""
        top = index | _TOP if index & IN_PAGE < _TOP else (index & ~IN_PAGE) | _TOP
        if flat_tree.right_span(top) < self._end:
            try:
                self._find_upper(top)
            except _Needed as needed:
                return needed.nodes
        return frozenset()

    def _climb(self, page: Page, place: int) -> bool:
        """Check a node of a page: hash it up to one that is checked already, with the siblings on the way.

        What is stored on the way itself is not looked at: a parent is what its children make it. Whatever this
        passes is checked afterwards.
        """
        data, offsets, hash_parent = page.data, page.offsets, self._hash_parent
        size, digest = unpack_node(data, place * NODE_SIZE)
        # A size above 2^53 is damage; without this, the sum of two might not fit into the hash's 64 bits.
        if size > MAX_SAFE_INTEGER or (not size and digest == BLANK_HASH):
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
            sibling_size, sibling_digest = unpack_node(data, sibling * NODE_SIZE)
            if sibling_size > MAX_SAFE_INTEGER or (not sibling_size and sibling_digest == BLANK_HASH):
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
        if (size, digest) != unpack_node(data, place * NODE_SIZE):
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
                pack_node_into(data, place * NODE_SIZE, size, digest)
        return True

    def _find_upper(self, index: int) -> Placed | None:
        """A node that is not below the top of a page. Raises `_Needed` with all nodes on the way that are not here."""
        trusted = self._upper
        known = trusted.get(index)
        if known is not None:
            return known
        if flat_tree.right_span(index) >= self._end:
            return None
        unchecked = [index]
        above = index
        held: list[Node | None] = []
        while above not in trusted:
            sibling = flat_tree.sibling(above)
            above = flat_tree.parent(above)
            placed = trusted.get(sibling)
            if placed is None:
                unchecked.append(sibling)
            held.append(None if placed is None else placed[1])
        if not all(map(self._is_read, unchecked)):
            # All of them together: what is here now may be gone when the rest has come.
            raise _Needed((), unchecked)
        node = self._stored(index)
        if node is None:
            return None
        siblings = iter(unchecked[1:])
        passed = [node]
        path: list[Node] = []
        for known_beside in held:
            beside = known_beside or self._stored(next(siblings))
            if beside is None:
                return None
            path.append(beside)
            left, right = (node, beside) if node[0] < beside[0] else (beside, node)
            size = left[1] + right[1]
            if size > MAX_SAFE_INTEGER:
                return None
            node = Node((left[0] + right[0]) >> 1, size, self._hash_parent(size, left[2], right[2]))
            passed.append(node)
        start, top = trusted[above]
        if node != top:
            if self.file.crown is not None and not self.file.crown.distrusted:
                # What lies in the tree itself may be better.
                self.file.crown.distrusted = True
                self._read_above.clear()
                return self._find_upper(index)
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

    def _is_read(self, index: int) -> bool:
        return index in self._read_above or index >> PAGE_SHIFT in self._pages

    def _stored(self, index: int) -> Node | None:
        """The node as it was read."""
        page = self._pages.get(index >> PAGE_SHIFT)
        if page is None:
            return self._read_above[index]
        size, digest = unpack_node(page.data, (index & IN_PAGE) * NODE_SIZE)
        return Node(index, size, digest) if size or digest != BLANK_HASH else None

    def _shed(self) -> None:
        reach = 2 * (_TOP + 1)
        while len(self._upper) > MAX_UPPER // 2:
            self._upper = {index: placed for index, placed in self._upper.items() if ~index & (index + 1) >= reach}
            reach *= 2
        self._trust_roots()

    async def _load(self, wanted: Sequence[int], above: Sequence[int]) -> None:
        pages, nodes = await self.file.read(wanted, above)
        self._read_above = dict(zip(above, nodes, strict=True))
        while self._pages and len(self._pages) + len(wanted) > MAX_PAGES:
            del self._pages[next(iter(self._pages))]
        self._pages.update(zip(wanted, pages, strict=True))
        self._trust_roots()

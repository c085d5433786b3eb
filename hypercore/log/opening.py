"""From what lies in a storage to an open log, or to an error that names what was found.

Reads only: not one byte changes here. Knows the files and what may be wrong with them (disk spec, sections 2.3, 4.2,
4.3 and 9). It must not know who asked, and never decides to create anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from hypercore.bitfield import PAGE_BLOCKS, PAGE_SIZE, Bitfield
from hypercore.crypto import KeyPair
from hypercore.encoding import MAX_SAFE_INTEGER
from hypercore.errors import (
    CorruptError,
    DecodeError,
    ForeignStorageError,
    NewerFormatError,
    StorageConflictError,
    StorageMissingError,
    VerificationError,
)
from hypercore.log import flat_tree, oplog
from hypercore.log.blocks import BlockFile
from hypercore.log.crown import Crown
from hypercore.log.manifest import Authority
from hypercore.log.oplog import ExternalPointer, FindingKind, Header, OplogImage, Replayed
from hypercore.log.repair import remake_node
from hypercore.log.state import BITFIELD, CROWN, DATA, FILES, HEADER, OPLOG, TREE, LogState
from hypercore.log.tree import NodeStore
from hypercore.log.tree_file import TreeFile
from hypercore.proofs import Node
from hypercore.storage import Storage

#: What hypercore 11 and corestores leave in a folder; a log must never be made beside them.
_HYPERCORE_11: Final = frozenset({"CORESTORE", "db"})
_CORESTORE: Final = frozenset({"primary-key", "cores"})
#: A tree file of hypercore 9 and older begins with this.
_OLD_TREE: Final = bytes.fromhex("0502570200002807424c414b453262")
_BITFIELD_READ_SIZE: Final = 256 * PAGE_SIZE
#: User data and a manifest of thousands of signers are far below this.
MAX_EXTERNAL_HEADER_SIZE: Final = 64 * 1024 * 1024

#: Without the manifest nobody can tell who signed a length. An honest one is below this, and what is read to open a
#: log grows with it.
MAX_UNSIGNED_LENGTH: Final = 1 << 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What lies in a storage: sizes in bytes of the files that exist, and the log file, decoded."""

    sizes: dict[str, int]
    oplog: bytes
    image: OplogImage
    header: Header | None
    external: ExternalPointer | None

    @property
    def leftovers(self) -> list[str]:
        """Files of a log that are not empty although there is no log."""
        if self.header is not None:
            return []
        return [name for name in FILES if name != OPLOG and self.sizes.get(name)]


async def inspect(storage: Storage) -> Inspection:
    """What is here. Raises `ForeignStorageError`, `NewerFormatError` or `CorruptError`, and changes nothing."""
    names = await storage.names()
    if names & _HYPERCORE_11:
        found = ", ".join(sorted(names & _HYPERCORE_11))
        raise ForeignStorageError(
            f"this storage belongs to hypercore 11 (it holds {found}), whose format is another one; "
            "replicate the core into an empty storage instead"
        )
    sizes: dict[str, int] = {}
    data = b""
    for name in FILES:
        if name in names:
            sizes[name] = await _size(storage, name)
    if sizes.get(OPLOG):
        if sizes[OPLOG] > oplog.MAX_OPLOG_SIZE:
            raise CorruptError(
                f"file {OPLOG} has {sizes[OPLOG]} bytes; no log writes more than {oplog.MAX_OPLOG_SIZE}", file=OPLOG
            )
        data = await _read(storage, OPLOG, 0, sizes[OPLOG])
    image = oplog.parse_oplog(data)
    header, external = image.header, None
    if isinstance(header, ExternalPointer):
        external = header
        header = await _read_external(storage, external, sizes.get(HEADER, 0))
    others = names - set(FILES)
    if header is None and others:
        shown = ", ".join(sorted(others)[:5]) + (", ..." if len(others) > 5 else "")
        if names & _CORESTORE:
            raise ForeignStorageError(f"this storage holds a whole corestore ({shown}), not one core")
        raise ForeignStorageError(
            f"this storage is not empty and holds no core: {shown} is here; a new core needs an empty one"
        )
    return Inspection(sizes=sizes, oplog=data, image=image, header=header, external=external)


async def read_oplog(storage: Storage) -> bytes:
    """File `oplog` as it is; empty when it is missing, or longer than any log makes it, which `inspect` explains."""
    try:
        file = await storage.open(OPLOG)
    except StorageMissingError:
        return b""
    try:
        size = await file.size()
        return await file.read(0, size) if 0 < size <= oplog.MAX_OPLOG_SIZE else b""
    finally:
        await file.aclose()


async def _size(storage: Storage, name: str) -> int:
    file = await storage.open(name)
    try:
        return await file.size()
    finally:
        await file.aclose()


async def _read(storage: Storage, name: str, offset: int, size: int) -> bytes:
    file = await storage.open(name)
    try:
        return await file.read(offset, size)
    finally:
        await file.aclose()


async def _read_external(storage: Storage, pointer: ExternalPointer, size: int) -> Header:
    """The header that did not fit into its slot. It has no checksum, so everything about it has to fit."""
    end = pointer.start + pointer.length
    if end > size or not 0 < pointer.length <= MAX_EXTERNAL_HEADER_SIZE:
        raise CorruptError(
            f"the header should be {pointer.length} bytes at byte {pointer.start} of file {HEADER}, which has {size}",
            file=HEADER,
            offset=pointer.start,
        )
    body = await _read(storage, HEADER, pointer.start, pointer.length)
    try:
        return oplog.decode_external_header(body)
    except NewerFormatError:
        raise
    except DecodeError as error:
        raise CorruptError(
            f"the header in file {HEADER} is damaged: {error}", file=HEADER, offset=pointer.start
        ) from error


async def load(
    storage: Storage,
    inspection: Inspection,
    *,
    key: bytes | None = None,
    key_pair: KeyPair | None = None,
    writing: bool = True,
) -> LogState:
    """The log that `inspection` found, checked: key, manifest, roots, signature, key pair.

    Raises `StorageConflictError` for another key than `key`, `CorruptError` and its relatives for damage.
    """
    header, image = inspection.header, inspection.image
    assert header is not None
    if key is not None and header.key != key:
        raise StorageConflictError(
            f"this storage holds core {header.key.hex()}, not {key.hex()}; each core needs a storage of its own"
        )
    for finding in image.findings:
        if finding.kind is FindingKind.UNREADABLE_ENTRY or (writing and finding.kind.forbids_writing):
            raise CorruptError(finding.message, file=OPLOG, offset=finding.offset)
    warnings = [finding.message for finding in image.findings if finding.kind is not FindingKind.STALE_ENTRIES]
    try:
        authority = Authority.of(header.key, header.manifest)
    except VerificationError as error:
        raise CorruptError(f"the header contradicts itself: {error}", file=OPLOG) from error

    replayed = oplog.replay(header, image.entries, image.entry_offsets)
    if authority.manifest is None and replayed.length > MAX_UNSIGNED_LENGTH:
        raise CorruptError(f"file {OPLOG} claims {replayed.length} blocks that nobody signed", file=OPLOG)
    crown = None
    if storage.distant:
        crown = Crown(storage, inspection.sizes.get(CROWN, 0))
        await crown.load()
    file = TreeFile(
        storage,
        inspection.sizes.get(TREE, 0),
        overlay=replayed.nodes,
        blanks=replayed.blanks,
        floor=replayed.floor,
        crown=crown,
    )
    nodes = NodeStore(file, authority.tree_hash)
    try:
        roots = await _checked_roots(nodes, authority, replayed, warnings)
    except CorruptError:
        await _refuse_old_tree(storage, inspection.sizes)
        raise
    if not replayed.length:
        await _refuse_old_tree(storage, inspection.sizes)
    nodes.set_roots(roots, replayed.length)
    if header.contiguous_length and not inspection.sizes.get(BITFIELD):
        # It is written before the header that counts on it.
        warnings.append(f"file {BITFIELD} is lost, and with it which blocks are stored here: none of them are known")
    bitfield = await _read_bitfield(storage, inspection.sizes.get(BITFIELD, 0), replayed)
    await _drop_strays(bitfield, nodes, replayed.length)
    state = LogState(
        authority=authority,
        stored_key_pair=header.key_pair,
        key_pair=_usable_key_pair(header, authority, key_pair, warnings),
        user_data=replayed.user_data,
        fork=replayed.fork,
        length=replayed.length,
        byte_length=sum(root.size for root in roots),
        roots=tuple(roots),
        signature=replayed.signature,
        reorg_hints=replayed.reorg_hints,
        contiguous_length=0,
        slots=image.slots,
        end_offset=image.end_offset,
        external=inspection.external,
        tree=nodes,
        blocks=BlockFile(storage, inspection.sizes.get(DATA)),
        bitfield=bitfield,
        warnings=warnings,
    )
    state.contiguous_length = state.held_until(0)
    return state


async def _refuse_old_tree(storage: Storage, sizes: dict[str, int]) -> None:
    if sizes.get(TREE, 0) >= len(_OLD_TREE) and await _read(storage, TREE, 0, len(_OLD_TREE)) == _OLD_TREE:
        raise ForeignStorageError(f"file {TREE} is of hypercore 9 or older, whose format is another one")


async def _checked_roots(nodes: NodeStore, authority: Authority, replayed: Replayed, warnings: list[str]) -> list[Node]:
    """The roots, vouched for by the header's tree hash and the signature; made from their children if need be."""
    indexes = flat_tree.full_roots(replayed.length)
    stored = await nodes.file.stored(indexes)
    roots = [node for node in stored if node is not None]
    if len(roots) == len(stored) and _fits(roots, authority, replayed):
        return roots
    if nodes.file.crown is not None and not nodes.file.crown.distrusted:
        nodes.file.crown.distrusted = True
        return await _checked_roots(nodes, authority, replayed, warnings)
    remade = [await remake_node(nodes.file, index, authority.tree_hash) for index in indexes]
    for choice in (zip(remade, stored, strict=True), zip(stored, remade, strict=True)):
        roots = [node for node in (first or second for first, second in choice) if node is not None]
        if len(roots) == len(indexes) and _fits(roots, authority, replayed):
            changed = [root for root, was in zip(roots, stored, strict=True) if root != was]
            nodes.add(changed)
            numbers = ", ".join(str(root.index) for root in changed)
            warnings.append(f"root {numbers} of file {TREE} was damaged, and is made anew from its children")
            return roots
    absent = next((index for index, root in zip(indexes, stored, strict=True) if root is None), None)
    if absent is not None:
        raise CorruptError(
            f"root {absent} of {replayed.length} blocks is missing in file {TREE}", file=TREE, offset=absent * 40
        )
    raise CorruptError(
        f"the roots in file {TREE} do not fit the signature of length {replayed.length}, fork {replayed.fork}",
        file=TREE,
    )


def _fits(roots: list[Node], authority: Authority, replayed: Replayed) -> bool:
    if sum(root.size for root in roots) > MAX_SAFE_INTEGER:
        return False
    if replayed.length == 0:
        return True
    if replayed.root_hash is not None and authority.tree_hash.tree(roots) != replayed.root_hash:
        return False
    if authority.manifest is None:
        # A reader that died before its manifest reached a header: whose signature it is cannot be told.
        return True
    return authority.verify(roots, replayed.length, replayed.fork, replayed.signature)


async def _read_bitfield(storage: Storage, size: int, replayed: Replayed) -> Bitfield:
    """As many pages as the length needs and one more, for blocks that wait above it to be signed."""
    bitfield = Bitfield()
    page_count = -(-replayed.length // PAGE_BLOCKS) + 1
    size = min(size & ~3, page_count * PAGE_SIZE)
    # Piece by piece: a page without bits takes no memory, and a file may have terabytes of them.
    for start in range(0, size, _BITFIELD_READ_SIZE):
        data = await _read(storage, BITFIELD, start, min(_BITFIELD_READ_SIZE, size - start))
        for offset in range(0, len(data), PAGE_SIZE):
            page = data[offset : offset + PAGE_SIZE].ljust(PAGE_SIZE, b"\0")
            bitfield.load_page((start + offset) // PAGE_SIZE, page)
    for drop, start, length in replayed.ranges:
        bitfield.set_range(start, length, not drop)
    return bitfield


async def _drop_strays(bitfield: Bitfield, nodes: NodeStore, length: int) -> None:
    """Clear bits above the length, but for blocks that wait there to be signed: a run that begins at the length
    and has its leaves."""
    keep = length
    while bitfield.get(keep):
        (leaf,) = await nodes.file.stored([2 * keep])
        if leaf is None:
            break
        keep += 1
    last = bitfield.last_set_before(MAX_SAFE_INTEGER)
    if last is not None and last >= keep:
        bitfield.set_range(keep, last + 1 - keep, False)


def _usable_key_pair(
    header: Header, authority: Authority, given: KeyPair | None, warnings: list[str]
) -> KeyPair | None:
    """The stored key pair if it is sound and one of the signers', else the given one."""
    if given is not None and not authority.can_sign(given):
        raise StorageConflictError(f"the given key pair cannot sign core {header.key.hex()}, which is stored here")
    stored = header.key_pair
    if stored is None or stored.secret_key is None:
        return given
    key_pair = KeyPair(stored.public_key, stored.secret_key)
    if authority.can_sign(key_pair):
        return key_pair
    warnings.append("the stored key pair does not fit this core, so nothing can be appended with it")
    return given


def refuse_missing(inspection: Inspection, *, may_create: bool) -> None:
    """There is no log: whether one may be made here. Raises `CorruptError` or `StorageMissingError`."""
    leftovers = inspection.leftovers
    if leftovers:
        found = ", ".join(f"{name} ({inspection.sizes[name]} bytes)" for name in leftovers)
        raise CorruptError(
            f"file {OPLOG} holds no header, but {found} is here: the log was lost, and nothing was changed",
            file=OPLOG,
        )
    if not may_create:
        raise StorageMissingError("there is no core in this storage")

"""Copying a log from one storage to another, verified, and gone on with after any interruption.

Shell floor. Both ends are logs of this process, so nothing travels: the source proves, the destination verifies and
stores, as it would what a peer sends. It must not know where the bytes lie.

    await copy("./log", "s3://bucket/log")
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Any, Final

from hypercore.errors import (
    BlockNotAvailableError,
    CorruptError,
    FormatError,
    HypercoreError,
    NotWritableError,
    OptionError,
    ProofRequestError,
    StorageConflictError,
    StorageError,
    StorageMissingError,
)
from hypercore.log import flat_tree
from hypercore.log.engine import Log
from hypercore.plugins import open_storage
from hypercore.proofs import BlockRequest, Proof, ProofRequest, UpgradeRequest
from hypercore.storage import Storage
from hypercore.urls import hide_secrets, parse_address

#: One commit of the destination: so many bytes, because far away a commit is one request, and blocks at most.
GROUP_BYTES: Final = 8 * 1024 * 1024
GROUP_BLOCKS: Final = 2048
#: Blocks that are read at once where every read is a round trip.
MOST_READS_AT_ONCE: Final = 256
#: A source that is cut again and again while it is copied is somebody at work on it.
MOST_FORKS: Final = 8

Place = str | os.PathLike[str] | Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """What the destination holds now. Lengths are blocks unless they say bytes."""

    key: bytes
    length: int
    byte_length: int
    fork: int
    #: Blocks that are stored, which are fewer than the length where the source has holes.
    stored_blocks: int
    #: Blocks of these that this very call brought.
    copied_blocks: int


async def copy(
    source: Place,
    destination: Place,
    *,
    with_secret_key: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Copied:
    """Copy every block that `source` holds, each verified on its way, and the user data.

    The destination is empty, or an older copy; what it holds already is not read again. It becomes a reader's copy,
    or with `with_secret_key` a writer: then only one of the two may ever append again. `on_progress` is told blocks
    stored and blocks held by the source.

    Raises `StorageMissingError`, `StorageConflictError` (the destination holds another core, or is ahead),
    `NotWritableError` (there is no secret key to copy), and once everything else is copied `CorruptError` when blocks
    of the source are damaged. Messages name the storage. The same call goes on where this one was.
    """
    if is_same_place(source, destination):
        raise OptionError(f"{_name(source)} is both the source and the destination")
    with _naming(source):
        origin = await _open(source, create_if_missing=False, read_only=True)
    async with contextlib.aclosing(origin):
        options: dict[str, Any] = {"user_data": dict(origin.user_data)}
        if with_secret_key:
            await _check_may_become_writer(origin, source, destination)
            options |= {"key_pair": origin.key_pair, "manifest": origin.manifest}
        with _naming(destination):
            target = await _open(destination, key=origin.key, **options)
        async with contextlib.aclosing(target):
            copying = _Copying(origin, target, _name(source), _name(destination), on_progress)
            return await copying.run()


async def _open(place: Place, **options: Any) -> Log:
    storage = open_storage(place)
    try:
        return await Log.open(storage, **options)
    except BaseException:
        await storage.aclose()
        raise


async def _check_may_become_writer(origin: Log, source: Place, destination: Place) -> None:
    if origin.key_pair is None:
        raise NotWritableError(f"{_name(source)} has no secret key to copy")
    try:
        with _naming(destination):
            there = await _open(destination, key=origin.key, create_if_missing=False, read_only=True)
    except StorageMissingError:
        return
    async with contextlib.aclosing(there):
        if there.key_pair is None:
            raise StorageConflictError(
                f"{_name(destination)} already holds a reader's copy, which cannot become a writer"
            )


def is_same_place(source: Place, destination: Place) -> bool:
    """Whether both are known to be one place, by whatever names."""
    if isinstance(source, Storage) or isinstance(destination, Storage):
        return source is destination
    one, other = parse_address(source), parse_address(destination)
    if one.scheme == other.scheme == "file":
        return os.path.realpath(one.path) == os.path.realpath(other.path)
    return one == other and one.path + (one.host or "") != ""  # `memory:` is another place each time.


def _name(place: Place) -> str:
    return hide_secrets(os.fspath(place)) if isinstance(place, str | os.PathLike) else str(place)


@contextlib.contextmanager
def _naming(place: Place) -> Iterator[None]:
    """Of two storages an error says which it is about."""
    try:
        yield
    except (StorageError, FormatError) as error:
        if (name := _name(place)) not in str(error):
            error.args = (f"{name}: {error}",)
        raise


class _Copying:
    """One copy under way."""

    def __init__(
        self, origin: Log, target: Log, source: str, destination: str, on_progress: Callable[[int, int], None] | None
    ) -> None:
        self._origin = origin
        self._target = target
        self._source = source
        self._destination = destination
        self._on_progress = on_progress or (lambda _have, _want: None)
        self._copied_blocks = 0
        #: Why a block of the source could not be had.
        self._damage: dict[int, str] = {}
        #: Blocks that are to be read next.
        self._ahead: list[int] = []
        #: Tree nodes that the proofs of the group under way bring.
        self._promised: set[int] = set()

    async def run(self) -> Copied:
        origin, target = self._origin, self._target
        if (target.fork, target.length) > (origin.fork, origin.length):
            raise StorageConflictError(
                f"{self._destination} is ahead: {target.length:,} blocks of fork {target.fork}, and {self._source} has "
                f"{origin.length:,} of fork {origin.fork}"
            )
        for _ in range(MOST_FORKS):
            await self._catch_up()
            self._damage.clear()
            self._ahead.clear()
            await self._copy_blocks()
            # A writer that cuts the log while it is copied makes whole blocks look damaged.
            if not self._damage or not await origin.refresh() or origin.fork == target.fork:
                break
        for key, value in origin.user_data.items():
            if target.user_data.get(key) != value:
                await target.set_user_data(key, value)
        await target.flush()  # Or a checkpoint that failed would be nobody's failure.
        if self._damage:
            index, reason = min(self._damage.items())
            count = len(self._damage)
            others = f", and {count - 1:,} others cannot be had either" if count > 1 else ""
            raise CorruptError(
                f"{self._source}: {reason}{others}; all other blocks were copied, and the same command takes the rest "
                "once the source is whole",
                index=index,
            )
        return Copied(
            key=target.key,
            length=target.length,
            byte_length=target.byte_length,
            fork=target.fork,
            stored_blocks=target.bitfield.count(0, target.length),
            copied_blocks=self._copied_blocks,
        )

    # ---- the tree ----

    async def _catch_up(self) -> None:
        """Bring the destination to the source's fork and length."""
        origin, target = self._origin, self._target
        if origin.fork > target.fork and (origin.length or target.length):
            await self._follow_fork()
        needs_manifest = target.manifest is None and origin.manifest is not None and not origin.is_compat
        while target.length < origin.length or needs_manifest:
            upgrade = None
            if target.length < origin.length:
                upgrade = UpgradeRequest(target.length, origin.length - target.length)
            await self._take(ProofRequest(target.fork, upgrade=upgrade, manifest=needs_manifest))
            needs_manifest = False

    async def _take(self, request: ProofRequest) -> None:
        try:
            proof = await self._origin.prove(request)
        except ProofRequestError as error:
            raise CorruptError(f"{self._source} lacks parts of the tree that a copy needs: {error}") from error
        before = self._target.length
        (wrong,) = await self._target.apply([proof])
        if wrong is not None or (request.upgrade is not None and self._target.length == before):
            raise CorruptError(f"{self._source}: its proof of {self._origin.length:,} blocks does not hold: {wrong}")

    async def _follow_fork(self) -> None:
        origin, target = self._origin, self._target
        if not origin.length:
            raise StorageConflictError(
                f"{self._source} is empty on fork {origin.fork}, for which nothing is signed, and {self._destination} "
                f"has {target.length:,} blocks of fork {target.fork}"
            )
        whole = UpgradeRequest(0, origin.length)
        proof = await origin.prove(ProofRequest(origin.fork, upgrade=whole, manifest=target.manifest is None))
        reorg = await target.begin_reorg(proof)
        while (request := reorg.next_request()) is not None:
            try:
                await reorg.receive(target, await origin.prove(request))
            except HypercoreError:
                break  # What is known to be shared by now is kept, and the rest copied anew.
        await target.commit_reorg(reorg)

    # ---- the blocks ----

    async def _copy_blocks(self) -> None:
        group: list[tuple[int, Proof]] = []
        size = 0
        missing = self._missing()
        while indexes := await self._next_indexes(missing):
            group += await self._read(indexes)
            size += sum(len(proof.block.value) for _, proof in group[-len(indexes) :] if proof.block is not None)
            if size >= GROUP_BYTES or len(group) >= GROUP_BLOCKS:
                await self._store(group)
                group, size = [], 0
        await self._store(group)

    def _missing(self) -> Iterator[int]:
        """The blocks that are at the source and not at the destination, in order."""
        origin, target = self._origin, self._target
        for start, count in origin.bitfield.runs(0, origin.length):
            index = target.bitfield.first_unset(start, start + count)
            while index is not None:
                yield index
                index = target.bitfield.first_unset(index + 1, start + count)

    async def _next_indexes(self, missing: Iterator[int]) -> list[int]:
        """The blocks to read next: one, or where that takes a round trip as many as may be held in memory."""
        if not self._origin.storage.distant:
            return list(islice(missing, 1))
        self._ahead += islice(missing, MOST_READS_AT_ONCE - len(self._ahead))
        leaves = await self._origin.nodes([2 * index for index in self._ahead])
        sizes = accumulate(0 if leaf is None else leaf.size for leaf in leaves)
        count = max(1, sum(size <= GROUP_BYTES for size in sizes))
        indexes, self._ahead = self._ahead[:count], self._ahead[count:]
        return indexes

    async def _read(self, indexes: Sequence[int]) -> list[tuple[int, Proof]]:
        """The blocks with what proves them to the destination, less those that are damaged."""
        requests = [await self._request(index) for index in indexes]
        if len(requests) == 1:
            proofs = [await self._prove(*requests)]
        else:
            proofs = await asyncio.gather(*map(self._prove, requests))
        return [(index, proof) for index, proof in zip(indexes, proofs, strict=True) if proof is not None]

    async def _request(self, index: int) -> ProofRequest:
        """Asks for the hashes that the destination lacks and that no earlier proof of the group brings."""
        target, leaf = self._target, 2 * index
        steps = self._steps_to_promised(leaf)
        if steps is None:
            steps = await target.missing_nodes(leaf)
        self._promised.update(flat_tree.path_with_siblings(leaf, flat_tree.ancestor(leaf, steps)))
        return ProofRequest(target.fork, BlockRequest(index, steps))

    def _steps_to_promised(self, leaf: int) -> int | None:
        promised, end = self._promised, 2 * self._target.length
        node, steps = leaf, 0
        while promised and node not in promised:
            if flat_tree.right_span(node) >= end:
                return None
            node = flat_tree.parent(node)
            steps += 1
        return steps if promised else None

    async def _prove(self, request: ProofRequest) -> Proof | None:
        assert request.block is not None
        index = request.block.index
        try:
            return await self._origin.prove(request)
        except (CorruptError, ProofRequestError, BlockNotAvailableError) as error:
            self._damage[index] = str(error)
            return None

    async def _store(self, group: list[tuple[int, Proof]]) -> None:
        """Verify and store a group in one commit."""
        self._promised.clear()
        if not group:
            return
        errors = await self._target.apply([proof for _, proof in group])
        for (index, _), error in zip(group, errors, strict=True):
            if error is None:
                self._copied_blocks += 1
            else:
                await self._store_alone(index)  # It counted on the hashes that a damaged block was to bring.
        self._on_progress(
            self._target.bitfield.count(0, self._target.length), self._origin.bitfield.count(0, self._origin.length)
        )
        await asyncio.sleep(0)  # A storage that never waits leaves signals and peers their turn here.

    async def _store_alone(self, index: int) -> None:
        for _, proof in await self._read([index]):
            (error,) = await self._target.apply([proof])
            if error is None:
                self._copied_blocks += 1
            else:
                self._damage[index] = f"block {index} does not fit the signed tree: {error}"
        self._promised.clear()

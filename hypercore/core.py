"""`Hypercore`: the log as a program uses it.

Shell floor: opens a storage through the plugins, an engine on it, and a hub for its peers; everything else is
delegated. Design: an object a core, no callbacks but `on_wait`, waiting that says why and ends.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

from hypercore.codecs import BINARY, Codec, codec_of
from hypercore.crypto import KeyPair, discovery_key
from hypercore.downloads import Download
from hypercore.duplex import stream_pair
from hypercore.errors import (
    BlockIndexError,
    BlockNotAvailableError,
    ClosedError,
    CorruptError,
    OptionError,
    WaitTimeoutError,
)
from hypercore.events import CoreEvent, EventFeed
from hypercore.extensions import Extension, Extensions
from hypercore.keys import decode_key, encode_z32
from hypercore.log.engine import Log
from hypercore.log.manifest import Manifest
from hypercore.peer import Peer
from hypercore.plugins import open_storage
from hypercore.proofs import BlockRequest, HashRequest, Proof, ProofRequest, SeekRequest, UpgradeRequest
from hypercore.replication import Hub
from hypercore.session import Replication
from hypercore.storage import Storage
from hypercore.streams import WriteStream, read_blocks, read_bytes
from hypercore.transport import ByteStream
from hypercore.urls import hide_secrets
from hypercore.waiting import Waiting

Durability = Literal["none", "flush", "always"]


class AppendResult(NamedTuple):
    """The log after an append: `length` in blocks and `byte_length`."""

    length: int
    byte_length: int


class SeekResult(NamedTuple):
    """Where a byte offset lies: block `index`, and `offset` bytes into it."""

    index: int  # type: ignore[assignment]
    offset: int


@dataclass(frozen=True, slots=True)
class Info:
    """A core at a glance. Lengths are blocks unless they say bytes."""

    key: bytes
    discovery_key: bytes
    length: int
    byte_length: int
    contiguous_length: int
    stored_blocks: int
    fork: int
    padding: int
    writable: bool
    compat: bool
    hash: str
    warnings: tuple[str, ...]


class Hypercore:
    """A secure append-only log.

        async with Hypercore("./log") as core:
            await core.append(b"hello")
            print(core.key.hex(), await core.get(0))

    Use it with `async with`, or call `ready()` and `close()`.

    `storage` is an address (`./folder`, `memory:`, ...), a path or a `Storage`. With `key` (bytes, hex or z-base-32)
    the core of that key is opened or, when the storage is empty, cloned. Without it the core that lies there is
    opened, whosever it is, and an empty storage gets a new one that is writable.

    What a new core is: `key_pair` signs it (a fresh one otherwise), `manifest` says who else may, `compat=True` makes
    the public key itself its key, as in hypercore 9, and `hash="blake3"` suits large blocks and cannot be read by
    Node. `user_data` is what it begins with; see `set_user_data`.

    How it is opened: `create_if_missing=False` raises `StorageMissingError` instead of making a core,
    `overwrite=True` forgets the one that is there, `read_only=True` takes no lock and writes nothing, also while
    another process writes. `durability` says what an acknowledged append survives: "none" a crash of the process,
    "flush" the same plus, as of the last checkpoint, a crash of the machine, "always" both, at once.

    What a block is to the program: `value_encoding` is "binary" (bytes; text is encoded), "utf-8", "json" or a
    `Codec`.

    How `get` waits for a block that is not here, unless it is told otherwise: not at all with `wait=False`, at most
    `timeout` seconds. `on_wait(index)` is called when it begins to.

    Raises `OptionError` here, and when it is opened `StorageConflictError` (another key), `LockedError` (another
    writer), `ForeignStorageError`, `NewerFormatError` or `CorruptError`; none of them has changed a byte.
    """

    def __init__(
        self,
        storage: str | os.PathLike[str] | Storage,
        key: bytes | str | None = None,
        *,
        key_pair: KeyPair | None = None,
        manifest: Manifest | None = None,
        compat: bool = False,
        create_if_missing: bool = True,
        overwrite: bool = False,
        read_only: bool = False,
        value_encoding: str | Codec = "binary",
        hash: Literal["blake2b", "blake3"] = "blake2b",  # noqa: A002 - the field's word
        durability: Durability = "flush",
        user_data: Mapping[str, bytes] | None = None,
        wait: bool = True,
        timeout: float | None = None,
        on_wait: Callable[[int], None] | None = None,
    ) -> None:
        if durability not in ("none", "flush", "always"):
            raise OptionError(f"durability {durability!r} is unknown; there are none, flush and always")
        self._address = storage
        self._codec = codec_of(value_encoding)
        self._key = decode_key(key) if key is not None else None
        self._open_options: dict[str, Any] = {
            "key_pair": key_pair,
            "manifest": manifest,
            "compat": compat,
            "create_if_missing": create_if_missing,
            "overwrite": overwrite,
            "read_only": read_only,
            "hash": hash,
            "durability": durability,
            "user_data": user_data,
        }
        self._wait = wait
        self._timeout = timeout
        self._on_wait = on_wait
        self._log: Log | None = None
        self._hub: Hub | None = None
        self._opening: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._is_closed = False
        self._waiters: Waiting
        self._replications: set[Replication] = set()
        self._events = EventFeed()
        self._extensions = Extensions()

    # ---- opening and closing ----

    async def ready(self) -> None:
        """Open the core; the first call does it, later ones wait for the same opening."""
        if self._is_closed:
            raise ClosedError("the core is closed")
        if self._log is not None:
            return
        if self._opening is None:
            self._opening = asyncio.get_running_loop().create_task(self._open())
        try:
            await asyncio.shield(self._opening)
        finally:
            if self._opening is not None and self._opening.done() and self._log is None:
                self._opening = None

    async def _open(self) -> None:
        owned = not isinstance(self._address, Storage)
        storage = open_storage(self._address)
        try:
            log = await Log.open(storage, key=self._key, **self._open_options)
        except BaseException:
            if owned:
                await storage.aclose()
            raise
        self._log = log
        self._hub = hub = Hub(log)
        self._waiters = Waiting(log, hub)
        self._events.bind(hub)
        self._extensions.bind(hub)

    async def refresh(self) -> bool:
        """With `read_only`: take in what the process that writes has written since; whether there was anything.

        Raises `CorruptError` when less is there than there was.
        """
        await self.ready()
        return await self._check_open().refresh()

    async def close(self) -> None:
        """End replication, close the log and give the storage back. Waiters get `ClosedError`.

        Twice is fine, and every caller returns when it is done; a caller that is cancelled does not stop it half-way.
        """
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        if self._opening is not None and not self._opening.done():
            await asyncio.wait([self._opening])
        self._is_closed = True
        if self._hub is not None:
            self._hub.close()
            self._waiters.close()
        self._events.close()
        try:
            for replication in list(self._replications):
                if not replication.has_cores:
                    await replication.aclose()
        finally:
            if self._log is not None:
                await self._log.aclose()

    async def __aenter__(self) -> Self:
        await self.ready()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        if self._log is None:
            where = self._address if isinstance(self._address, Storage) else hide_secrets(str(self._address))
            return f"<Hypercore {where!r} not open>"
        state = "closed" if self._is_closed else "writable" if self.writable else "readable"
        return f"<Hypercore {self.key.hex()[:8]} length={self.length} fork={self.fork} {state}>"

    @property
    def _opened(self) -> Log:
        if self._log is None:
            raise ClosedError("the core is not open yet: use `async with`, or await ready() first")
        return self._log

    @property
    def hub(self) -> Hub:
        """The core's side of replication; a swarm joins it."""
        if self._hub is None:
            raise ClosedError("the core is not open yet: use `async with`, or await ready() first")
        return self._hub

    def _check_open(self) -> Log:
        if self._is_closed:
            raise ClosedError("the core is closed")
        return self._opened

    # ---- what it is ----

    @property
    def key(self) -> bytes:
        """The 32 bytes that name the core and that everything in it is verified against."""
        if self._log is None and self._key is not None:
            return self._key
        return self._opened.key

    @property
    def id(self) -> str:
        """The key as 52 letters of z-base-32."""
        return encode_z32(self.key)

    @property
    def discovery_key(self) -> bytes:
        """32 bytes to look for peers by; it does not give the key away."""
        return discovery_key(self.key)

    @property
    def key_pair(self) -> KeyPair | None:
        """The signing key pair when the secret key is here."""
        return self._opened.key_pair

    @property
    def manifest(self) -> Manifest | None:
        """Who may sign; None while a reader has not learned it."""
        return self._opened.manifest

    @property
    def length(self) -> int:
        """Blocks in the log, as far as it is verified."""
        return self._opened.length

    @property
    def byte_length(self) -> int:
        """Bytes in those blocks."""
        return self._opened.byte_length

    @property
    def contiguous_length(self) -> int:
        """Blocks that are here from block 0 on without a gap."""
        return self._opened.contiguous_length

    @property
    def fork(self) -> int:
        """How often the writer rewrote history."""
        return self._opened.fork

    @property
    def padding(self) -> int:
        """Bytes at the head of each block that are not the program's; 0 without encryption."""
        return 0

    @property
    def peers(self) -> tuple[Peer, ...]:
        """Who is connected and replicates this core."""
        return tuple(self.hub.peers)

    @property
    def readable(self) -> bool:
        """Whether it is open."""
        return self._log is not None and not self._is_closed

    @property
    def writable(self) -> bool:
        """Whether it is open and this program may append: the secret key is here, and it suffices to sign."""
        return self.readable and self._opened.writable

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    async def info(self) -> Info:
        """A core at a glance."""
        await self.ready()
        log = self._check_open()
        return Info(
            key=log.key,
            discovery_key=log.discovery_key,
            length=log.length,
            byte_length=log.byte_length,
            contiguous_length=log.contiguous_length,
            stored_blocks=log.bitfield.count(0, log.length),
            fork=log.fork,
            padding=self.padding,
            writable=log.writable,
            compat=log.is_compat,
            hash=log.tree_hash_function.name,
            warnings=(*log.warnings, *self.hub.warnings),
        )

    # ---- writing ----

    async def append(self, block: Any) -> AppendResult:
        """Append one block, or a list of blocks as one batch; all of it or nothing.

        A list that is one block, in JSON, goes into another list: `append([[1, 2]])`. Raises `NotWritableError`
        without the secret key, `OptionError` for what is no block or larger than 15 MiB.
        """
        if self._log is None:
            await self.ready()
        if self._is_closed:
            raise ClosedError("the core is closed")
        encode = self._codec.encode
        blocks = [encode(each) for each in block] if isinstance(block, (list, tuple)) else [encode(block)]
        return AppendResult(*await self._opened.append(blocks))

    async def truncate(self, length: int, *, fork: int | None = None) -> None:
        """Cut the log to `length` blocks and sign it under a new fork number (the next one by default)."""
        await self.ready()
        await self._check_open().truncate(length, fork=fork)

    async def clear(self, start: int, end: int | None = None) -> None:
        """Free the room of blocks [start, end), or of block `start`; they can be downloaded again."""
        await self.ready()
        await self._check_open().clear(start, start + 1 if end is None else end)

    def create_write_stream(self) -> WriteStream:
        """A writer that appends in batches; use it with `async with`."""
        return WriteStream(self)

    async def set_user_data(self, key: str, value: bytes | None) -> None:
        """Keep a few bytes beside the log, never replicated; None removes them."""
        if not isinstance(value, bytes | None):
            raise OptionError(f"user data is bytes, not {type(value).__name__}")
        await self.ready()
        await self._check_open().set_user_data(key, value)

    async def get_user_data(self, key: str) -> bytes | None:
        """What `set_user_data` kept under `key`; None when there is nothing."""
        await self.ready()
        return self._check_open().user_data.get(key)

    # ---- reading ----

    async def get(self, index: int, *, wait: bool | None = None, timeout: float | None = None) -> Any:
        """Block `index`, verified and decoded.

        A block that is not here is asked of the peers. Raises `BlockNotAvailableError` when nobody could deliver it
        (no peer and no search for one) or with `wait=False`, `TimeoutError` after `timeout` seconds, `CorruptError`
        when it is damaged here and nobody has it whole.
        """
        log = self._log
        if log is None:
            await self.ready()
            log = self._opened
        if self._is_closed:
            raise ClosedError("the core is closed")
        block = None
        if 0 <= index < log.length:
            try:
                block = await log.get(index)
            except CorruptError:
                if not (self._wait if wait is None else wait) or not self.hub.may_have_peers:
                    raise
        if block is None:
            block = await self._fetch(index, wait, timeout)
        return block if self._codec is BINARY else self._codec.decode(block)

    async def get_raw(self, index: int) -> bytes:
        """Block `index` as it is stored, undecoded; waits as `get` does."""
        await self.ready()
        log = self._check_open()
        block = await log.get(index) if 0 <= index < log.length else None
        return block if block is not None else await self._fetch(index, None, None)

    async def _fetch(self, index: int, wait: bool | None, timeout: float | None) -> bytes:
        log = self._opened
        if index < 0:
            raise BlockIndexError(f"block {index}: an index is 0 or more")
        if log.writable and index >= log.length:
            raise BlockIndexError(f"block {index} does not exist yet: the log has {log.length} blocks")
        if not (self._wait if wait is None else wait):
            raise BlockNotAvailableError(f"block {index} is not stored here, and wait is off")
        if self._on_wait is not None:
            self._on_wait(index)
        limit = self._timeout if timeout is None else timeout
        try:
            async with asyncio.timeout(limit):
                return await self._waiters.block(index)
        except TimeoutError as error:
            raise WaitTimeoutError(
                f"block {index} did not come within {limit} seconds; {len(self.peers)} peers are connected"
            ) from error

    async def has(self, start: int, end: int | None = None) -> bool:
        """Whether block `start`, or every block of [start, end), is stored here."""
        await self.ready()
        log = self._check_open()
        return log.has(start) if end is None else log.bitfield.is_full(start, end)

    async def seek(self, byte_offset: int, *, timeout: float | None = None) -> SeekResult:
        """The block that holds `byte_offset`, asking peers for the sizes that are not known here.

        The offset `byte_length` gives `(length, 0)`. Raises `BlockIndexError` past the end.
        """
        await self.ready()
        log, hub = self._check_open(), self.hub
        if byte_offset < 0 or (byte_offset > log.byte_length and (log.writable or not hub.may_have_peers)):
            raise BlockIndexError(f"byte offset {byte_offset} is outside of the {log.byte_length} bytes of the log")
        limit = self._timeout if timeout is None else timeout
        try:
            async with asyncio.timeout(limit):
                return SeekResult(*await self._waiters.place(byte_offset, self.padding))
        except TimeoutError as error:
            raise WaitTimeoutError(f"byte offset {byte_offset} was not found within {limit} seconds") from error

    async def tree_hash(self, length: int | None = None) -> bytes:
        """The hash that the writer signs for the first `length` blocks (all by default), 32 bytes."""
        await self.ready()
        return await self._check_open().tree_hash(length)

    async def proof(
        self,
        *,
        block: BlockRequest | int | None = None,
        hash: HashRequest | None = None,  # noqa: A002 - the field's word
        seek: SeekRequest | None = None,
        upgrade: UpgradeRequest | None = None,
    ) -> Proof:
        """A proof that another program can verify against the key. Raises `ProofRequestError`."""
        await self.ready()
        log = self._check_open()
        wanted = BlockRequest(block, 0) if isinstance(block, int) else block
        return await log.prove(ProofRequest(log.fork, wanted, hash, seek, upgrade))

    def create_read_stream(
        self,
        *,
        start: int = 0,
        end: int | None = None,
        live: bool = False,
        reverse: bool = False,
        snapshot: bool = True,
    ) -> AsyncIterator[Any]:
        """Blocks of [start, end) in order, read ahead from the peers.

        Without `end`: to the length at the start, or with `snapshot=False` to the length when that is reached, or with
        `live=True` without end, each new block as it comes.
        """
        if start < 0 or (end is not None and end < start):
            raise BlockIndexError(f"a stream from block {start} to {end} is no range")
        if live and reverse:
            raise OptionError("a live stream cannot be reversed")
        return read_blocks(self, start=start, end=end, live=live, reverse=reverse, snapshot=snapshot)

    def create_byte_stream(self, *, byte_offset: int = 0, byte_length: int | None = None) -> AsyncIterator[bytes]:
        """The bytes of the log from `byte_offset` on, at most `byte_length` of them, block by block."""
        return read_bytes(self, byte_offset=byte_offset, byte_length=byte_length)

    # ---- peers ----

    async def update(self, *, wait: bool = True, timeout: float | None = None) -> bool:
        """Learn the newest length that the peers can prove; whether the log changed.

        With `wait` it first lets every search and every connection under way have its say; without peers and
        searches it returns at once.
        """
        await self.ready()
        log = self._check_open()
        before = (log.fork, log.length)
        try:
            async with asyncio.timeout(timeout):
                if wait:
                    await self._waiters.settled()
        except TimeoutError as error:
            raise WaitTimeoutError(f"the peers did not answer within {timeout} seconds") from error
        self._check_open()
        return (log.fork, log.length) != before

    def download(
        self,
        start: int = 0,
        end: int | None = None,
        *,
        blocks: Iterable[int] | None = None,
        linear: bool = False,
    ) -> Download:
        """Fetch blocks [start, end), or `blocks`, from the peers; without `end` everything that ever comes.

        From several peers they come in any order, so that readers can fetch from each other; `linear` is for who reads
        them as they come.
        """
        log = self._check_open()
        if start < 0 or (end is not None and end < start):
            raise BlockIndexError(f"a download from block {start} to {end} is no range")
        return Download(log, self.hub, start=start, end=end, blocks=blocks, linear=linear)

    def finding_peers(self) -> Callable[[], None]:
        """Say that a search for peers is under way: waiters hold on until the returned function is called."""
        hub = self.hub
        hub.finding += 1
        is_done = False

        def done() -> None:
            nonlocal is_done
            if not is_done:
                is_done = True
                hub.finding -= 1
                hub.changed()

        return done

    def replicate(
        self,
        stream: ByteStream | Replication | bool | None = None,
        *,
        initiator: bool | None = None,
        key_pair: KeyPair | None = None,
    ) -> Replication:
        """Replicate with a peer.

        `replicate(stream, initiator=...)` runs over a byte stream. `replicate(replication)` shares a connection that
        already carries another core. `replicate(True)` or `replicate(initiator=False)` gives a `Replication` whose
        `receive` and `send` carry the bytes over anything.
        """
        hub = self.hub
        if self._is_closed:
            raise ClosedError("the core is closed")
        if isinstance(stream, Replication):
            stream.add(hub)
            if stream.ends_with_cores:
                self._keep(stream)
            return stream
        if isinstance(stream, bool):
            initiator, stream = stream, None
        if initiator is None:
            raise OptionError("say which side speaks first: initiator=True (by custom the one that dialled) or False")
        outside: ByteStream | None = None
        if stream is None:
            stream, outside = stream_pair()
        replication = Replication(stream, initiator=initiator, key_pair=key_pair, outside=outside, ends_with_cores=True)
        replication.add(hub)
        self._keep(replication)
        return replication

    def _keep(self, replication: Replication) -> None:
        """The connection is to be closed when the last core on it is."""
        self._replications.add(replication)
        replication.start_running().add_done_callback(lambda _task: self._replications.discard(replication))

    def register_extension(self, name: str, on_message: Callable[[bytes, Peer], None] | None = None) -> Extension:
        """Exchange the program's own messages with peers that registered the same name."""
        return self._extensions.register(name, on_message)

    def events(self) -> AsyncIterator[CoreEvent]:
        """What happens from this call on, until the core is closed."""
        if self._is_closed:
            raise ClosedError("the core is closed")
        return self._events.read()

    async def wait_for_length(self, length: int, *, live: bool = True) -> bool:
        """Wait until the log has `length` blocks; False when the core was closed first.

        Raises `BlockNotAvailableError` when it cannot grow: not writable, and no peer or search for one.
        """
        self._check_open()
        return await self._waiters.length(length, live=live)

    async def wait_for_peers(self) -> bool:
        """Wait until somebody may deliver; False when nobody is being looked for."""
        self._check_open()
        return await self._waiters.peers()

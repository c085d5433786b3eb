"""A new log: whose it is, and its first header.

Knows which key a set of options means (disk spec, section 6.12). Writes only where `opening` found nothing, or where
overwriting was asked for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Final, NamedTuple, Self

from hypercore.crypto import KEY_SIZE, KeyPair
from hypercore.errors import CorruptError, NewerFormatError, OptionError, VerificationError
from hypercore.log import oplog
from hypercore.log.manifest import Authority, Manifest, default_manifest, manifest_key
from hypercore.log.opening import inspect, load
from hypercore.log.oplog import Header, SlotState, StoredKeyPair
from hypercore.log.state import FILES, OPLOG, LogState, header_writes
from hypercore.storage import Operation, Storage, Sync, Truncate

HASHES: Final = ("blake2b", "blake3")


class Identity(NamedTuple):
    """Who the caller says the log belongs to. `expected` is the key that an existing log must have, if any."""

    key: bytes | None
    key_pair: KeyPair | None
    manifest: Manifest | None
    compat: bool
    hash: str

    @classmethod
    def of(
        cls,
        key: bytes | None,
        key_pair: KeyPair | None,
        manifest: Manifest | None,
        *,
        compat: bool,
        hash: str,  # noqa: A002
    ) -> Self:
        """Raises `OptionError` for options that contradict each other."""
        if hash not in HASHES:
            raise OptionError(f"hash {hash!r} is unknown; it is one of {', '.join(HASHES)}")
        if compat and hash != "blake2b":
            raise OptionError(f"a compat core hashes with blake2b, not {hash}")
        if key is not None and len(key) != KEY_SIZE:
            raise OptionError(f"a key has {KEY_SIZE} bytes, not {len(key)}")
        if key_pair is not None and not key_pair.is_consistent:
            raise OptionError("the secret key does not belong to the public key")
        identity = cls(key, key_pair, manifest, compat, hash)
        if manifest is not None:
            authority = identity._authority(key if key is not None else manifest_key(manifest), manifest)
            if key_pair is not None and not authority.can_sign(key_pair):
                raise OptionError("the key pair is not among the manifest's signers")
        return identity

    @property
    def expected(self) -> bytes | None:
        if self.key is None and self.manifest is not None:
            return manifest_key(self.manifest)
        return self.key

    def authority(self) -> tuple[Authority, KeyPair | None]:
        """Whose a new log is, and with which key pair; a fresh one when nothing was asked for."""
        if self.manifest is not None:
            key = self.key if self.key is not None else manifest_key(self.manifest)
            return self._authority(key, self.manifest), self.key_pair
        if self.key is not None and self.key_pair is None:
            return Authority.of(self.key, None), None
        key_pair = self.key_pair or KeyPair.generate()
        public_key = key_pair.public_key
        modern = default_manifest(public_key, hash=self.hash)
        if self.key is None:
            return self._authority(public_key if self.compat else manifest_key(modern), modern), key_pair
        for manifest in (modern, default_manifest(public_key, version=0)):
            if self.key in (public_key, manifest_key(manifest)):
                return self._authority(self.key, manifest), key_pair
        raise OptionError(f"the key pair is not that of core {self.key.hex()}; give the core's manifest too")

    def _authority(self, key: bytes, manifest: Manifest) -> Authority:
        try:
            return Authority.of(key, manifest)
        except VerificationError as error:
            raise OptionError(str(error)) from error


async def create(
    storage: Storage, identity: Identity, user_data: Mapping[str, bytes] | None, *, sync: bool, emptied: bool = False
) -> LogState:
    """Write the first header of a new log, in a storage that holds none. `emptied`: empty its files first."""
    authority, key_pair = identity.authority()
    header = Header(
        key=authority.key,
        manifest=authority.manifest,
        key_pair=None if key_pair is None else StoredKeyPair(key_pair.public_key, key_pair.secret_key),
        user_data=tuple((user_data or {}).items()),
    )
    operations: list[Operation] = []
    if emptied:
        # The log file last: until then it still says that something was here.
        names = await storage.names()
        there = [name for name in (*FILES[1:], OPLOG) if name in names]
        operations += [Truncate(name, 0) for name in there]
        if sync:
            operations.append(Sync(tuple(there)))
    writes, _external = header_writes(header, SlotState(), None, sync=sync)
    operations += writes
    operations.append(Truncate(OPLOG, oplog.ENTRIES_OFFSET))
    if sync:
        operations.append(Sync((OPLOG,)))
    await storage.commit(operations)
    return await load(storage, await inspect(storage), key_pair=key_pair)


async def overwrite(
    storage: Storage, identity: Identity, user_data: Mapping[str, bytes] | None, *, sync: bool
) -> LogState:
    """A new log in place of whatever log is here, sound or not. Raises `ForeignStorageError` for anything else."""
    identity.authority()
    with contextlib.suppress(CorruptError, NewerFormatError):
        # A damaged log of ours is what was asked to go; what is foreign stays.
        await inspect(storage)
    await storage.acquire()
    return await create(storage, identity, user_data, sync=sync, emptied=True)

"""Who may sign a log: the manifest, the key that is its hash, and signatures over trees.

Pure. Knows keys, hashes and signed bytes; not where they are stored, nor how they travel. Formats: wire spec,
sections 4.3, 6.3 and 6.4; disk spec, sections 3.3 to 3.5. The hash field is explained in
`docs/decisions/blake3-manifest.md`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from hypercore import crypto
from hypercore.encoding import Reader, encode_buffer, encode_uint
from hypercore.errors import DecodeError, NewerManifestError, NotWritableError, OptionError, VerificationError
from hypercore.log.merkle import grow
from hypercore.proofs import Node

#: Versions that are understood. 2 and 3 are 1 with two more optional fields.
NEWEST_MANIFEST_VERSION: Final = 3
#: Bounds of ours, each far above any use: a manifest travels in one message and lies in every header.
MAX_SIGNERS: Final = 256
MAX_LINKED: Final = 256
MAX_USER_DATA_SIZE: Final = 64 * 1024
#: Bounds of a signature: 256 signers with a patch each and the patches' nodes fit.
MAX_SIGNATURE_SIZE: Final = 64 * 1024
MAX_PATCH_NODES: Final = 128

_HASH_NUMBERS: Final = {"blake2b": 0, "blake3": 0xB3}
_HASH_NAMES: Final = {number: name for name, number in _HASH_NUMBERS.items()}
_TREE_HASHES: Final = {"blake2b": crypto.BLAKE2B, "blake3": crypto.BLAKE3}
_SMALLEST_ENTRY_SIZE: Final = 66
_SMALLEST_NODE_SIZE: Final = 34

_ALLOW_PATCH, _PROLOGUE, _LINKED, _USER_DATA = 1, 2, 4, 8
_STATIC, _ONE_SIGNER, _SEVERAL_SIGNERS = 0, 1, 2

_pack_length_and_fork = struct.Struct("<QQ").pack


@dataclass(frozen=True, slots=True)
class Signer:
    """One key that may sign: a 32-byte Ed25519 public key, set apart by a 32-byte namespace."""

    public_key: bytes
    namespace: bytes = crypto.DEFAULT_NAMESPACE
    signature: str = "ed25519"


@dataclass(frozen=True, slots=True)
class Prologue:
    """The first `length` blocks are known beforehand: their tree hash is `hash`, and they need no signature."""

    hash: bytes
    length: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a core is: `quorum` of its `signers` sign each tree, whose nodes are made with `hash`.

    `hash` is "blake2b" or "blake3". With `allow_patch` a signer may have signed a longer tree than the one that is
    verified. `linked` (32-byte keys) and `user_data` need version 2. Wire spec, section 4.3.
    """

    version: int = 1
    hash: str = "blake2b"
    allow_patch: bool = False
    quorum: int = 1
    signers: tuple[Signer, ...] = ()
    prologue: Prologue | None = None
    linked: tuple[bytes, ...] | None = None
    user_data: bytes | None = None


def default_manifest(public_key: bytes, *, version: int = 1, hash: str = "blake2b") -> Manifest:  # noqa: A002
    """The manifest of a core that the holder of `public_key` writes alone."""
    if hash not in _HASH_NUMBERS:
        raise OptionError(f"hash {hash!r} is unknown; choose one of {', '.join(_HASH_NUMBERS)}")
    return Manifest(version=version, hash=hash, signers=(Signer(public_key),))


def manifest_key(manifest: Manifest) -> bytes:
    """The core key of a manifest core: always BLAKE2b, always over our own encoding, 32 bytes."""
    return crypto.blake2b(crypto.MANIFEST, encode_manifest(manifest))


def tree_hash_of(manifest: Manifest | None) -> crypto.TreeHash:
    """The hashes of the tree's nodes."""
    return crypto.BLAKE2B if manifest is None else _TREE_HASHES[manifest.hash]


# ---- encoding -------------------------------------------------------------------------------------


def encode_manifest(manifest: Manifest) -> bytes:
    """The one canonical encoding. A version 0 manifest takes the smallest layout that holds it."""
    head = encode_uint(manifest.version)
    hash_number = encode_uint(_HASH_NUMBERS[manifest.hash])
    signers = b"".join(b"\x00" + signer.namespace + signer.public_key for signer in manifest.signers)
    quorum_and_signers = encode_uint(manifest.quorum) + encode_uint(len(manifest.signers)) + signers
    if manifest.version == 0:
        if manifest.prologue is not None and not manifest.signers:
            return head + hash_number + bytes([_STATIC]) + manifest.prologue.hash
        if manifest.quorum == 1 and len(manifest.signers) == 1 and not manifest.allow_patch:
            return head + hash_number + bytes([_ONE_SIGNER]) + signers
        return head + hash_number + bytes([_SEVERAL_SIGNERS, manifest.allow_patch]) + quorum_and_signers
    flags = _ALLOW_PATCH if manifest.allow_patch else 0
    tail = b""
    if manifest.prologue is not None:
        flags |= _PROLOGUE
        tail += manifest.prologue.hash + encode_uint(manifest.prologue.length)
    if manifest.linked is not None:
        flags |= _LINKED
        tail += encode_uint(len(manifest.linked)) + b"".join(manifest.linked)
    if manifest.user_data is not None:
        flags |= _USER_DATA
        tail += encode_buffer(manifest.user_data)
    return head + encode_uint(flags) + hash_number + quorum_and_signers + tail


def decode_manifest(data: bytes, offset: int = 0, end: int | None = None) -> tuple[Manifest, int]:
    """The manifest at `offset`, and the offset behind it.

    Raises `DecodeError` for damage, and its subclass `NewerManifestError` (also a `NewerFormatError`) for numbers
    that only a newer program knows, so that a reader of files can tell the two apart.
    """
    reader = Reader(data, offset, end)
    version = reader.uint()
    if version > NEWEST_MANIFEST_VERSION:
        raise NewerManifestError(f"the manifest has version {version}; up to {NEWEST_MANIFEST_VERSION} is understood")
    manifest = _decode_version_0(reader) if version == 0 else _decode_version_1(reader, version)
    return manifest, reader.offset


def _decode_version_0(reader: Reader) -> Manifest:
    hash_name = _decode_hash(reader)
    layout = reader.uint()
    if layout == _STATIC:
        return Manifest(version=0, hash=hash_name, quorum=0, prologue=Prologue(reader.fixed(crypto.HASH_SIZE), 0))
    if layout == _ONE_SIGNER:
        return Manifest(version=0, hash=hash_name, signers=(_decode_signer(reader),))
    if layout != _SEVERAL_SIGNERS:
        raise NewerManifestError(f"a version 0 manifest has layout {layout}; 0, 1 and 2 are understood")
    flags = _decode_flags(reader, known=_ALLOW_PATCH)
    quorum = reader.uint()
    return Manifest(version=0, hash=hash_name, allow_patch=bool(flags), quorum=quorum, signers=_decode_signers(reader))


def _decode_version_1(reader: Reader, version: int) -> Manifest:
    known = _ALLOW_PATCH | _PROLOGUE
    flags = _decode_flags(reader, known=known if version == 1 else known | _LINKED | _USER_DATA)
    hash_name = _decode_hash(reader)
    quorum = reader.uint()
    signers = _decode_signers(reader)
    prologue = linked = user_data = None
    if flags & _PROLOGUE:
        prologue = Prologue(reader.fixed(crypto.HASH_SIZE), reader.uint())
    if flags & _LINKED:
        count = reader.count(smallest_item_size=crypto.KEY_SIZE, limit=MAX_LINKED)
        linked = tuple(reader.fixed(crypto.KEY_SIZE) for _ in range(count))
    if flags & _USER_DATA:
        # Other implementations read an empty buffer as none, and hash what they have read.
        user_data = reader.buffer(limit=MAX_USER_DATA_SIZE) or None
    return Manifest(version, hash_name, bool(flags & _ALLOW_PATCH), quorum, signers, prologue, linked, user_data)


def _decode_flags(reader: Reader, *, known: int) -> int:
    flags = reader.uint()
    if flags & ~known:
        # What an unknown flag brings along cannot be skipped, so nothing behind it can be read.
        raise NewerManifestError(f"the manifest has flags {flags:#x}; {known:#x} are understood in its version")
    return flags


def _decode_hash(reader: Reader) -> str:
    number = reader.uint()
    if number not in _HASH_NAMES:
        raise NewerManifestError(f"the manifest names hash {number}, which is unknown")
    return _HASH_NAMES[number]


def _decode_signers(reader: Reader) -> tuple[Signer, ...]:
    # A signer of an unknown scheme may be shorter than ours, and must be found newer, not damaged.
    count = reader.count(smallest_item_size=1, limit=MAX_SIGNERS)
    return tuple(_decode_signer(reader) for _ in range(count))


def _decode_signer(reader: Reader) -> Signer:
    scheme = reader.uint()
    if scheme != 0:
        raise NewerManifestError(f"the manifest names signature scheme {scheme}, which is unknown")
    namespace = reader.fixed(crypto.HASH_SIZE)
    return Signer(reader.fixed(crypto.KEY_SIZE), namespace)


# ---- signing and verifying ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Authority:
    """Who may sign the trees of one core. Made by `Authority.of`.

    A compat core's key is its only signer's public key; nothing else in its manifest counts, because nothing
    vouches for it. `tree_hash` makes the nodes of this core.
    """

    key: bytes
    manifest: Manifest | None
    is_compat: bool
    tree_hash: crypto.TreeHash

    @classmethod
    def of(cls, key: bytes, manifest: Manifest | None) -> Authority:
        """The authority over core `key`. Without a manifest it is taken for compat, until a manifest arrives.

        Raises `VerificationError` when the manifest is not this core's.
        """
        if manifest is None:
            return cls(key, None, True, crypto.BLAKE2B)
        if len(manifest.signers) == 1 and manifest.signers[0].public_key == key:
            if manifest.hash != "blake2b":
                raise VerificationError(f"a core whose key is its public key cannot hash with {manifest.hash}")
            return cls(key, manifest, True, crypto.BLAKE2B)
        if manifest_key(manifest) != key:
            raise VerificationError(f"the manifest does not hash to the key {key.hex()}")
        return cls(key, manifest, False, tree_hash_of(manifest))

    @property
    def prologue(self) -> Prologue | None:
        """The blocks that the manifest itself vouches for; trees shorter than this are never valid."""
        if self.is_compat or self.manifest is None or self.manifest.version == 0:
            return None
        return self.manifest.prologue

    def can_sign(self, key_pair: crypto.KeyPair) -> bool:
        """Whether the key pair is one of the signers', and sound."""
        return self._signer_of(key_pair) is not None and key_pair.is_consistent

    def signable(self, tree_hash: bytes, length: int, fork: int, *, signer: int = 0) -> bytes:
        """The bytes that signer number `signer` signs: 80 for a compat core, else 112."""
        tail = tree_hash + _pack_length_and_fork(length, fork)
        if self.is_compat or self.manifest is None:
            return crypto.TREE + tail
        context = self.manifest.signers[signer].namespace if self.manifest.version == 0 else self.key
        return crypto.TREE + context + tail

    def sign(self, tree_hash: bytes, length: int, fork: int, key_pair: crypto.KeyPair) -> bytes:
        """The signature as it is stored and sent: 64 bytes, or a container for 68; none at the prologue's end.

        Raises `NotWritableError` when this key pair alone cannot sign.
        """
        quorum = 1 if self.is_compat or self.manifest is None else self.manifest.quorum
        if quorum != 1:
            raise NotWritableError(f"this core needs {quorum} signatures; collect them and assemble them")
        prologue = self.prologue
        if prologue is not None and length <= prologue.length:
            if length == prologue.length and tree_hash == prologue.hash:
                return b""
            raise NotWritableError(f"the first {prologue.length} blocks are fixed by the prologue of this core")
        signer, signature = self.sign_part(tree_hash, length, fork, key_pair)
        return self.assemble({signer: signature})

    def sign_part(self, tree_hash: bytes, length: int, fork: int, key_pair: crypto.KeyPair) -> tuple[int, bytes]:
        """The number of the signer and its 64-byte signature: one of those that `assemble` takes.

        Raises `NotWritableError` when the key pair is no signer's.
        """
        signer = self._signer_of(key_pair)
        if signer is None:
            raise NotWritableError("this key pair is not among the core's signers")
        return signer, crypto.sign(self.signable(tree_hash, length, fork, signer=signer), key_pair)

    def assemble(self, signatures: Mapping[int, bytes]) -> bytes:
        """One stored signature out of several signers', all over the same tree. None is verified here.

        Raises `NotWritableError` when there are fewer than the quorum.
        """
        if self._is_raw:
            return signatures[0]
        assert self.manifest is not None
        if len(signatures) < self.manifest.quorum:
            raise NotWritableError(f"{len(signatures)} signatures of the {self.manifest.quorum} that are needed")
        before, behind = (b"\x00", b"") if self.manifest.version == 0 else (b"", b"\x00")
        entries = [before + encode_uint(signer) + part + behind for signer, part in sorted(signatures.items())]
        return encode_uint(len(entries)) + b"".join(entries) + b"\x00"

    def verify(self, roots: Sequence[Node], length: int, fork: int, signature: bytes) -> bool:
        """Whether `signature` vouches for the tree of `roots`. Wire spec, section 6.4."""
        tree_hash = self.tree_hash.tree(roots)
        prologue = self.prologue
        if prologue is not None and length <= prologue.length:
            return length == prologue.length and tree_hash == prologue.hash
        if self._is_raw:
            public_key = self.key if self.manifest is None else self.manifest.signers[0].public_key
            return crypto.verify(self.signable(tree_hash, length, fork), signature, public_key)
        return self._verify_container(roots, tree_hash, length, fork, signature)

    @property
    def _is_raw(self) -> bool:
        """Whether a signature is stored as its 64 bytes, without a container around it."""
        manifest = self.manifest
        if self.is_compat or manifest is None:
            return True
        one = len(manifest.signers) == 1 and manifest.quorum == 1
        return manifest.version == 0 and one and not manifest.allow_patch

    def _signer_of(self, key_pair: crypto.KeyPair) -> int | None:
        if self.manifest is None:
            return 0 if key_pair.public_key == self.key else None
        for number, signer in enumerate(self.manifest.signers):
            if signer.public_key == key_pair.public_key:
                return number
        return None

    def _verify_container(
        self, roots: Sequence[Node], tree_hash: bytes, length: int, fork: int, signature: bytes
    ) -> bool:
        manifest = self.manifest
        assert manifest is not None
        try:
            entries, patch_nodes = _decode_container(signature, manifest.version)
        except DecodeError:
            return False
        if manifest.quorum < 1 or len(entries) < manifest.quorum:
            return False
        signed: set[int] = set()
        for number, part, patch in entries[: manifest.quorum]:
            if number >= len(manifest.signers) or number in signed:
                return False
            signed.add(number)
            patched_hash = tree_hash
            if patch:
                if not manifest.allow_patch:
                    return False
                patched = grow(roots, length, length + patch, patch_nodes, self.tree_hash)
                if patched is None:
                    return False
                patched_hash = self.tree_hash.tree(patched)
            message = self.signable(patched_hash, length + patch, fork, signer=number)
            if not crypto.verify(message, part, manifest.signers[number].public_key):
                return False
        return True


def _decode_container(data: bytes, version: int) -> tuple[list[tuple[int, bytes, int]], dict[int, Node]]:
    """Signer, signature and patch (0: none) of every entry, and the nodes of the patches by index.

    Bytes behind the container are ignored: other readers keep and pass on such signatures, so refusing them would
    cut us off from a log that everybody else can follow.
    """
    if len(data) > MAX_SIGNATURE_SIZE:
        raise DecodeError(f"a signature of {len(data)} bytes; at most {MAX_SIGNATURE_SIZE} are accepted")
    reader = Reader(data)
    entries = []
    for _ in range(reader.count(smallest_item_size=_SMALLEST_ENTRY_SIZE, limit=MAX_SIGNERS)):
        has_patch = version == 0 and reader.uint() & 1
        signer = reader.uint()
        part = reader.fixed(crypto.SIGNATURE_SIZE)
        if version > 0:
            patch = reader.uint()
        elif has_patch:
            reader.uint()
            patch = reader.uint()
            # Version 0 also says which of the nodes belong to this patch; the indexes say it as well.
            for _ in range(reader.count(smallest_item_size=1, limit=MAX_PATCH_NODES)):
                reader.uint()
        else:
            patch = 0
        entries.append((signer, part, patch))
    nodes: dict[int, Node] = {}
    for _ in range(reader.count(smallest_item_size=_SMALLEST_NODE_SIZE, limit=MAX_PATCH_NODES)):
        index, size = reader.uint(), reader.uint()
        nodes[index] = Node(index, size, reader.fixed(crypto.HASH_SIZE))
    return entries, nodes

"""Who may sign a log: the manifest, the key that is its hash, and signatures over trees.

Pure. Knows keys, hashes and signed bytes; not where they are stored, nor how they travel. Formats: wire spec,
sections 4.3, 6.3 and 6.4; disk spec, sections 3.3 to 3.5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from hypercore import crypto
from hypercore.proofs import Node


@dataclass(frozen=True, slots=True)
class Signer:
    """One key that may sign."""

    public_key: bytes
    namespace: bytes = crypto.DEFAULT_NAMESPACE
    signature: str = "ed25519"


@dataclass(frozen=True, slots=True)
class Prologue:
    """The tree hash that the first `length` blocks must have; they need no signature."""

    hash: bytes
    length: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a core is: `quorum` of its `signers` sign each tree, hashed with `hash` ("blake2b" or "blake3")."""

    version: int = 1
    hash: str = "blake2b"
    allow_patch: bool = False
    quorum: int = 1
    signers: tuple[Signer, ...] = ()
    prologue: Prologue | None = None
    linked: tuple[bytes, ...] | None = None
    user_data: bytes | None = None


def default_manifest(public_key: bytes, *, version: int = 1, hash: str = "blake2b") -> Manifest:
    raise NotImplementedError


def encode_manifest(manifest: Manifest) -> bytes:
    raise NotImplementedError


def decode_manifest(data: bytes, offset: int = 0, end: int | None = None) -> tuple[Manifest, int]:
    """The manifest at `offset` and the offset behind it. Raises `DecodeError`, `NewerManifestError` (is a DecodeError and a NewerFormatError)."""
    raise NotImplementedError


def manifest_key(manifest: Manifest) -> bytes:
    raise NotImplementedError


def tree_hash_of(manifest: Manifest | None) -> crypto.TreeHash:
    raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Authority:
    """Made by `Authority.of`. `tree_hash` is the one to use for this core's nodes."""

    key: bytes
    manifest: Manifest | None
    is_compat: bool
    tree_hash: crypto.TreeHash

    @classmethod
    def of(cls, key: bytes, manifest: Manifest | None) -> Authority:
        raise NotImplementedError

    def can_sign(self, key_pair: crypto.KeyPair) -> bool:
        raise NotImplementedError

    def signable(self, tree_hash: bytes, length: int, fork: int, *, signer: int = 0) -> bytes:
        raise NotImplementedError

    def sign(self, tree_hash: bytes, length: int, fork: int, key_pair: crypto.KeyPair) -> bytes:
        """Stored form; b"" at exactly the prologue's length."""
        raise NotImplementedError

    def sign_part(self, tree_hash: bytes, length: int, fork: int, key_pair: crypto.KeyPair) -> tuple[int, bytes]:
        raise NotImplementedError

    def assemble(self, signatures: Mapping[int, bytes]) -> bytes:
        raise NotImplementedError

    def verify(self, roots: Sequence[Node], length: int, fork: int, signature: bytes) -> bool:
        raise NotImplementedError

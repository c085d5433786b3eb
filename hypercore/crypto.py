"""Hashes, signatures, key agreement and ciphers: the only module that imports nacl and blake3.

Ground floor. Failures of the libraries become `VerificationError` here, so that nobody above needs to know
which exception a binding happens to raise. Formulas: wire spec, sections 2, 4.1 and 6.2; disk spec, section 0.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import blake3 as _blake3
import nacl.bindings as _sodium
import nacl.exceptions as _nacl_errors

# The library's own bindings, below the ones it documents: those cost three times the cipher for a small message,
# and keep a buffer of the largest message that ever passed.
from nacl._sodium import ffi as _ffi
from nacl._sodium import lib as _lib

from hypercore.errors import VerificationError
from hypercore.proofs import Node

HASH_SIZE: Final = 32
KEY_SIZE: Final = 32
SECRET_KEY_SIZE: Final = 64
SIGNATURE_SIZE: Final = 64
#: Bytes that a secret-stream message adds to its plaintext: one tag byte and the MAC.
SECRET_STREAM_OVERHEAD: Final = 17
SECRET_STREAM_HEADER_SIZE: Final = 24

_SODIUM_FAILURES = (
    _nacl_errors.CryptoError,  # BadSignatureError and nacl's RuntimeError are subclasses
    _nacl_errors.RuntimeError,
    _nacl_errors.ValueError,
    ValueError,
)


def random_bytes(size: int) -> bytes:
    """`size` bytes from the operating system's generator."""
    return os.urandom(size)


# ---- hashes ---------------------------------------------------------------------------------------


def blake2b(*parts: bytes, key: bytes = b"", size: int = HASH_SIZE) -> bytes:
    """BLAKE2b over the joined parts, optionally keyed; 32 bytes unless told otherwise."""
    return hashlib.blake2b(b"".join(parts), digest_size=size, key=key).digest()


def namespace(name: str, number: int) -> bytes:
    """A 32-byte constant that separates one use of a hash from another: `H(H(name) || number)`."""
    return blake2b(blake2b(name.encode()), bytes([number]))


TREE: Final = namespace("hypercore", 0)
REPLICATE_INITIATOR: Final = namespace("hypercore", 1)
REPLICATE_RESPONDER: Final = namespace("hypercore", 2)
MANIFEST: Final = namespace("hypercore", 3)
DEFAULT_NAMESPACE: Final = namespace("hypercore", 4)


def discovery_key(key: bytes) -> bytes:
    """The 32-byte name under which a core may be looked for without giving its key away."""
    return blake2b(b"hypercore", key=key)


_pack_u64 = struct.Struct("<Q").pack
_pack_u64_pair = struct.Struct("<QQ").pack


@dataclass(frozen=True, slots=True)
class TreeHash:
    """The three hashes of a Merkle tree, in one hash function.

    `leaf(block)`, `parent(size, left_hash, right_hash)` where `size` is the sum of both subtrees in bytes, and
    `tree(roots)`; all give 32 bytes. Wire spec, section 6.2.
    """

    name: str
    leaf: Callable[[bytes], bytes]
    parent: Callable[[int, bytes, bytes], bytes]
    tree: Callable[[Iterable[Node]], bytes]


def _blake2b_tree_hash() -> TreeHash:
    # Copying a primed state is half the price of making a new one, and this runs twice for every block.
    leaf_state = hashlib.blake2b(b"\x00", digest_size=HASH_SIZE)
    parent_state = hashlib.blake2b(b"\x01", digest_size=HASH_SIZE)

    def leaf(block: bytes) -> bytes:
        state = leaf_state.copy()
        state.update(_pack_u64(len(block)))
        state.update(block)
        return state.digest()

    def parent(size: int, left: bytes, right: bytes) -> bytes:
        state = parent_state.copy()
        state.update(_pack_u64(size) + left + right)
        return state.digest()

    def tree(roots: Iterable[Node]) -> bytes:
        state = hashlib.blake2b(b"\x02", digest_size=HASH_SIZE)
        for root in roots:
            state.update(root.hash + _pack_u64_pair(root.index, root.size))
        return state.digest()

    return TreeHash("blake2b", leaf, parent, tree)


def _blake3_tree_hash() -> TreeHash:
    blake3 = _blake3.blake3
    #: Below this many bytes starting threads costs more than it saves.
    threaded_size = 512 * 1024

    def leaf(block: bytes) -> bytes:
        size = len(block)
        threads = _blake3.blake3.AUTO if size >= threaded_size else 1
        state = blake3(b"\x00" + _pack_u64(size), max_threads=threads)
        return state.update(block).digest()

    def parent(size: int, left: bytes, right: bytes) -> bytes:
        return blake3(b"\x01" + _pack_u64(size) + left + right).digest()

    def tree(roots: Iterable[Node]) -> bytes:
        parts = [root.hash + _pack_u64_pair(root.index, root.size) for root in roots]
        return blake3(b"\x02" + b"".join(parts)).digest()

    return TreeHash("blake3", leaf, parent, tree)


BLAKE2B: Final = _blake2b_tree_hash()
#: Ours: a manifest whose hash field says BLAKE3. Other implementations refuse it clearly.
BLAKE3: Final = _blake3_tree_hash()


# ---- Ed25519 --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KeyPair:
    """An Ed25519 signing key pair: a 32-byte public key and a 64-byte secret key (seed || public key)."""

    public_key: bytes
    secret_key: bytes = field(repr=False)

    @classmethod
    def from_seed(cls, seed: bytes) -> KeyPair:
        """The key pair of a 32-byte seed."""
        return cls(*_sodium.crypto_sign_seed_keypair(seed))

    @classmethod
    def generate(cls) -> KeyPair:
        """A fresh random key pair."""
        return cls.from_seed(random_bytes(32))

    @property
    def is_consistent(self) -> bool:
        """Whether the secret key belongs to the public key."""
        if len(self.public_key) != KEY_SIZE or len(self.secret_key) != SECRET_KEY_SIZE:
            return False
        public_key, secret_key = _sodium.crypto_sign_seed_keypair(self.secret_key[:32])
        return bool(public_key == self.public_key and secret_key == self.secret_key)


def sign(message: bytes, key_pair: KeyPair) -> bytes:
    """The 64-byte detached signature of `message`."""
    signed: bytes = _sodium.crypto_sign(message, key_pair.secret_key)
    return signed[:SIGNATURE_SIZE]


def verify(message: bytes, signature: bytes, public_key: bytes) -> bool:
    """Whether `signature` is `public_key`'s over `message`."""
    if len(signature) != SIGNATURE_SIZE or len(public_key) != KEY_SIZE:
        return False
    try:
        _sodium.crypto_sign_open(signature + message, public_key)
    except _SODIUM_FAILURES:
        return False
    return True


def agree(key_pair: KeyPair, public_key: bytes) -> bytes:
    """Key agreement on Ed25519 points (wire spec, section 2.2): 32 shared bytes.

    Raises `VerificationError` for a point off the curve, of small order, or not canonical.
    """
    scalar = bytearray(hashlib.sha512(key_pair.secret_key[:32]).digest()[:32])
    scalar[0] &= 248
    scalar[31] &= 127
    scalar[31] |= 64
    try:
        shared: bytes = _sodium.crypto_scalarmult_ed25519_noclamp(bytes(scalar), public_key)
    except _SODIUM_FAILURES as error:
        raise VerificationError("the peer's public key is not a valid curve point") from error
    return shared


# ---- ciphers --------------------------------------------------------------------------------------


def hmac_blake2b(key: bytes, data: bytes) -> bytes:
    """HMAC over 64-byte BLAKE2b, 64 bytes."""
    return hmac.digest(key, data, hashlib.blake2b)


def aead_encrypt(plaintext: bytes, associated_data: bytes, nonce: bytes, key: bytes) -> bytes:
    """ChaCha20-Poly1305 (IETF): ciphertext with its 16-byte tag."""
    sealed: bytes = _sodium.crypto_aead_chacha20poly1305_ietf_encrypt(plaintext, associated_data, nonce, key)
    return sealed


def aead_decrypt(ciphertext: bytes, associated_data: bytes, nonce: bytes, key: bytes) -> bytes:
    """The plaintext; raises `VerificationError` when the tag does not hold."""
    try:
        opened: bytes = _sodium.crypto_aead_chacha20poly1305_ietf_decrypt(ciphertext, associated_data, nonce, key)
    except _SODIUM_FAILURES as error:
        raise VerificationError("a sealed message does not authenticate") from error
    return opened


_push = _lib.crypto_secretstream_xchacha20poly1305_push
_pull = _lib.crypto_secretstream_xchacha20poly1305_pull
_allocate = _ffi.new_allocator(should_clear_after_alloc=False)
_bytes_type = _ffi.typeof("unsigned char[]")
_NULL = _ffi.NULL
_TAG_MESSAGE: Final = 0


class SecretStreamSender:
    """The sending half of libsodium's XChaCha20-Poly1305 secret stream.

    `key` is 32 bytes; `header` is 24 random bytes that the receiver needs. Both ends derive the same state from
    them, so making it with the pull initialiser lets the caller own the randomness.
    """

    __slots__ = ("_state", "header")

    def __init__(self, key: bytes, header: bytes) -> None:
        self.header = header
        self._state = _secret_stream_state(key, header)

    def encrypt(self, plaintext: bytes, prefix: bytes = b"") -> bytes:
        """`prefix` as it is, and behind it the next message: 17 bytes longer than `plaintext`."""
        start, size = len(prefix), len(plaintext)
        sealed = _allocate(_bytes_type, start + size + SECRET_STREAM_OVERHEAD)
        view = _ffi.buffer(sealed)
        view[0:start] = prefix
        _push(self._state, sealed + start, _NULL, plaintext, size, _NULL, 0, _TAG_MESSAGE)
        data: bytes = view[:]
        return data


class SecretStreamReceiver:
    """The receiving half. `header` came from the sender."""

    __slots__ = ("_state",)

    def __init__(self, key: bytes, header: bytes) -> None:
        self._state = _secret_stream_state(key, header)

    def decrypt(self, ciphertext: bytes) -> bytes:
        """The next plaintext; the tag is not looked at. Raises `VerificationError` and leaves the state as it was."""
        size = len(ciphertext) - SECRET_STREAM_OVERHEAD
        if size < 0:
            raise VerificationError(f"a message of the secret stream has {len(ciphertext)} bytes, too few")
        opened = _allocate(_bytes_type, size)
        if _pull(self._state, opened, _NULL, _NULL, ciphertext, len(ciphertext), _NULL, 0) != 0:
            raise VerificationError("a message of the secret stream does not authenticate")
        plaintext: bytes = _ffi.buffer(opened)[:]
        return plaintext


def _secret_stream_state(key: bytes, header: bytes) -> Any:
    state = _sodium.crypto_secretstream_xchacha20poly1305_state()
    _sodium.crypto_secretstream_xchacha20poly1305_init_pull(state, header, key)
    return state.statebuf

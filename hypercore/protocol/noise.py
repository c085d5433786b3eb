"""The Noise handshake (wire spec, section 2.2): `Noise_XX_Ed25519_ChaChaPoly_BLAKE2b` and its IK sibling.

Parts floor: knows handshake patterns and nothing of what runs over the keys. No randomness: key pairs are passed in,
and an ephemeral pair must be fresh and used once.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

from hypercore.crypto import KEY_SIZE, KeyPair, aead_decrypt, aead_encrypt, agree, blake2b, hmac_blake2b
from hypercore.errors import HandshakeError, VerificationError

#: Bytes of a Noise hash, and so of the handshake hash.
HASH_SIZE: Final = 64
#: Bytes that sealing adds.
TAG_SIZE: Final = 16

_nonce = struct.Struct("<4xQ").pack


@dataclass(frozen=True, slots=True)
class Pattern:
    """A handshake pattern: whose static key is known beforehand, and the tokens of each message in turn.

    The initiator sends the first message, the responder the second, and so on.
    """

    name: str
    responder_is_known: bool
    messages: tuple[tuple[str, ...], ...]


XX: Final = Pattern("XX", False, (("e",), ("e", "ee", "s", "es"), ("s", "se")))
IK: Final = Pattern("IK", True, (("e", "es", "s", "ss"), ("e", "ee", "se")))


class HandshakeResult(NamedTuple):
    """What both sides take away: 32-byte keys to send and receive with, the 64-byte hash that names this handshake,
    and the peer's 32-byte static key."""

    tx_key: bytes
    rx_key: bytes
    handshake_hash: bytes
    remote_public_key: bytes


class SymmetricState:
    """The running hash, the chaining key, and the cipher key with its counter (None and 0 before the first DH)."""

    __slots__ = ("chaining_key", "counter", "hash", "key")

    def __init__(self, protocol_name: str, prologue: bytes) -> None:
        self.hash = protocol_name.encode().ljust(HASH_SIZE, b"\x00")
        self.chaining_key = self.hash
        self.key: bytes | None = None
        self.counter = 0
        self.mix_hash(prologue)

    def mix_hash(self, data: bytes) -> None:
        self.hash = blake2b(self.hash, data, size=HASH_SIZE)

    def mix_key(self, shared: bytes) -> None:
        self.chaining_key, key = _derive(self.chaining_key, shared)
        self.key, self.counter = key[:KEY_SIZE], 0

    def seal(self, plaintext: bytes) -> bytes:
        """`plaintext` sealed, or as it is while there is no key; the hash takes in what travels."""
        if self.key is None:
            self.mix_hash(plaintext)
            return plaintext
        sealed = aead_encrypt(plaintext, self.hash, _nonce(self.counter), self.key)
        self.counter += 1
        self.mix_hash(sealed)
        return sealed

    def open(self, sealed: bytes) -> bytes:
        """The other side of `seal`. Raises `VerificationError`."""
        if self.key is None:
            self.mix_hash(sealed)
            return sealed
        plaintext = aead_decrypt(sealed, self.hash, _nonce(self.counter), self.key)
        self.counter += 1
        self.mix_hash(sealed)
        return plaintext

    def split(self) -> tuple[bytes, bytes]:
        """The keys of the two directions, the initiator's sending key first."""
        first, second = _derive(self.chaining_key, b"")
        return first[:KEY_SIZE], second[:KEY_SIZE]


class Handshake:
    """One side of a handshake: `send` and `receive` in turn until `complete`, then `result`.

    `ephemeral` is a fresh random key pair. `remote_public_key` is the responder's static key, for the initiator of
    a pattern that knows it beforehand. Every failure is a `HandshakeError` and final.
    """

    def __init__(
        self,
        initiator: bool,
        static: KeyPair,
        ephemeral: KeyPair,
        prologue: bytes = b"",
        *,
        pattern: Pattern = XX,
        remote_public_key: bytes | None = None,
    ) -> None:
        if pattern.responder_is_known and initiator and remote_public_key is None:
            raise ValueError(f"the initiator of {pattern.name} must know the responder's key")
        self.pattern = pattern
        self.initiator = initiator
        self.symmetric = SymmetricState(f"Noise_{pattern.name}_Ed25519_ChaChaPoly_BLAKE2b", prologue)
        self._static = static
        self._ephemeral = ephemeral
        self._remote_static = remote_public_key
        self._remote_ephemeral: bytes | None = None
        self._turn = 0
        if pattern.responder_is_known:
            self.symmetric.mix_hash(_present(remote_public_key) if initiator else static.public_key)

    @property
    def complete(self) -> bool:
        """Whether all messages were exchanged."""
        return self._turn == len(self.pattern.messages)

    @property
    def result(self) -> HandshakeResult:
        """The keys. Raises `HandshakeError` before the handshake is complete."""
        if not self.complete:
            raise HandshakeError("the handshake is not complete")
        first, second = self.symmetric.split()
        tx_key, rx_key = (first, second) if self.initiator else (second, first)
        return HandshakeResult(tx_key, rx_key, self.symmetric.hash, _present(self._remote_static))

    def send(self, payload: bytes = b"") -> bytes:
        """Our next message, with `payload` in it (sealed once there is a key)."""
        parts = []
        for token in self._next_tokens(ours=True):
            if token == "e":
                parts.append(self._ephemeral.public_key)
                self.symmetric.mix_hash(self._ephemeral.public_key)
            elif token == "s":
                parts.append(self.symmetric.seal(self._static.public_key))
            else:
                self._agree(token)
        parts.append(self.symmetric.seal(payload))
        self._turn += 1
        return b"".join(parts)

    def receive(self, message: bytes) -> bytes:
        """Take the peer's next message; gives the payload in it."""
        offset = 0
        try:
            for token in self._next_tokens(ours=False):
                if token == "e":
                    self._remote_ephemeral = _take(message, offset, KEY_SIZE)
                    offset += KEY_SIZE
                    self.symmetric.mix_hash(self._remote_ephemeral)
                elif token == "s":
                    size = KEY_SIZE if self.symmetric.key is None else KEY_SIZE + TAG_SIZE
                    self._remote_static = self.symmetric.open(_take(message, offset, size))
                    offset += size
                else:
                    self._agree(token)
            payload = self.symmetric.open(message[offset:])
        except VerificationError as error:
            raise HandshakeError(f"message {self._turn + 1} of the handshake does not hold: {error}") from error
        self._turn += 1
        return payload

    def _next_tokens(self, *, ours: bool) -> tuple[str, ...]:
        if self.complete or ours != (self.initiator == (self._turn % 2 == 0)):
            raise HandshakeError(f"it is not {'our' if ours else 'their'} turn in the handshake")
        return self.pattern.messages[self._turn]

    def _agree(self, token: str) -> None:
        """Mix in a DH. The token names the initiator's key first, whichever side computes it."""
        ours, theirs = (token[0], token[1]) if self.initiator else (token[1], token[0])
        key_pair = self._ephemeral if ours == "e" else self._static
        public_key = self._remote_ephemeral if theirs == "e" else self._remote_static
        try:
            self.symmetric.mix_key(agree(key_pair, _present(public_key)))
        except VerificationError as error:
            raise HandshakeError(f"the handshake failed: {error}") from error


def _derive(chaining_key: bytes, material: bytes) -> tuple[bytes, bytes]:
    """HKDF with two 64-byte outputs."""
    secret = hmac_blake2b(chaining_key, material)
    first = hmac_blake2b(secret, b"\x01")
    return first, hmac_blake2b(secret, first + b"\x02")


def _take(message: bytes, offset: int, size: int) -> bytes:
    part = message[offset : offset + size]
    if len(part) != size:
        raise HandshakeError(f"a handshake message of {len(message)} bytes is too short")
    return part


def _present(key: bytes | None) -> bytes:
    assert key is not None, "the pattern uses a key before it was exchanged"
    return key

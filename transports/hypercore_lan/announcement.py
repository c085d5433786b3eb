"""What a peer says of itself in its TXT record (`docs/lan.md`, section 3): pure bytes in, values out.

It knows neither the network nor multicast DNS. Topics are not named: a salted hash of each is, which only those
recognise who know the topic.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

#: The version of this layout. Announcements of another one are not ours to read.
VERSION: Final = b"1"
#: What is spoken over the connection, by the name that its channels are opened with.
PROTOCOL: Final = b"hypercore/alpha"
#: Sizes are those of text: salt and hashes are base64url, four characters for three bytes, because many a program
#: takes a TXT record for text.
SALT_SIZE: Final = 12
PEER_HASH_SIZE: Final = 12
#: Of 252 announced and 100 sought topics that have nothing in common two look alike in one announcement of 660, and
#: all that it costs is one connection.
TOPIC_HASH_SIZE: Final = 4
#: A string of a TXT record has at most 255 bytes, of which `t0=` takes three.
TOPICS_PER_STRING: Final = (255 - 3) // TOPIC_HASH_SIZE
STRING_COUNT_MAX: Final = 4
#: So that the whole answer fits one unfragmented packet of Ethernet; a peer with more says that it has.
TOPIC_COUNT_MAX: Final = STRING_COUNT_MAX * TOPICS_PER_STRING
#: Ours has at most 1,078 bytes; room is left for strings of later versions, and what is larger is not read.
TEXT_SIZE_MAX: Final = 2048

_DOMAIN: Final = b"hypercore-lan-1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """What one peer says of itself."""

    salt: bytes
    peer_hash: bytes
    topic_hashes: frozenset[bytes]
    #: It serves more than it can list here.
    has_more: bool = False

    def matches(self, topics: Iterable[bytes]) -> frozenset[bytes]:
        """Those of `topics` that it serves or, when it did not list all, may serve."""
        if self.has_more:
            return frozenset(topics)
        if not self.topic_hashes:
            return frozenset()
        return frozenset(topic for topic in topics if hash_topic(self.salt, topic) in self.topic_hashes)

    def is_peer(self, public_key: bytes) -> bool:
        """Whether it says that it is the peer of this key; only the handshake proves it."""
        return hmac.compare_digest(hash_peer(self.salt, public_key), self.peer_hash)


def new_salt() -> bytes:
    """A salt that nobody has used."""
    return secrets.token_urlsafe(SALT_SIZE // 4 * 3).encode()


def hash_topic(salt: bytes, topic: bytes) -> bytes:
    """How an announcement with this salt lists a topic."""
    return _hash(salt, topic, TOPIC_HASH_SIZE)


def hash_peer(salt: bytes, public_key: bytes) -> bytes:
    """How an announcement with this salt names the peer."""
    return _hash(salt, public_key, PEER_HASH_SIZE)


def _hash(salt: bytes, value: bytes, size: int) -> bytes:
    digest = hashlib.blake2b(value, digest_size=size // 4 * 3, key=salt, person=_DOMAIN).digest()
    return base64.urlsafe_b64encode(digest)


def encode(salt: bytes, public_key: bytes, topics: Iterable[bytes]) -> bytes:
    """The text of a TXT record. The hashes are sorted, so nothing tells in which order topics were joined."""
    hashes = sorted({hash_topic(salt, topic) for topic in topics})
    strings = [b"v=" + VERSION, b"p=" + PROTOCOL, b"s=" + salt, b"k=" + hash_peer(salt, public_key)]
    if len(hashes) > TOPIC_COUNT_MAX:
        del hashes[TOPIC_COUNT_MAX:]
        strings.append(b"m")
    for number, start in enumerate(range(0, len(hashes), TOPICS_PER_STRING)):
        strings.append(b"t%d=" % number + b"".join(hashes[start : start + TOPICS_PER_STRING]))
    return b"".join(bytes((len(string),)) + string for string in strings)


def decode(text: bytes) -> Announcement | None:
    """What a TXT record says; None when it is of another version or protocol, or makes no sense."""
    if len(text) > TEXT_SIZE_MAX:
        return None
    values: dict[bytes, bytes] = {}
    for string in _strings(text):
        name, _, value = string.partition(b"=")
        values.setdefault(name.lower(), value)  # Of a name that comes twice the first counts (RFC 6763, section 6.4).
    salt, peer_hash = values.get(b"s", b""), values.get(b"k", b"")
    if values.get(b"v") != VERSION or values.get(b"p") != PROTOCOL:
        return None
    if len(salt) != SALT_SIZE or len(peer_hash) != PEER_HASH_SIZE:
        return None
    hashes: set[bytes] = set()
    for number in range(STRING_COUNT_MAX):
        listed = values.get(b"t%d" % number, b"")
        if len(listed) % TOPIC_HASH_SIZE:
            return None
        hashes.update(listed[start : start + TOPIC_HASH_SIZE] for start in range(0, len(listed), TOPIC_HASH_SIZE))
    return Announcement(salt=salt, peer_hash=peer_hash, topic_hashes=frozenset(hashes), has_more=b"m" in values)


def _strings(text: bytes) -> Iterator[bytes]:
    """The strings of a TXT record (RFC 6763, section 6.1); one that reaches past the end is cut there."""
    offset = 0
    while offset < len(text):
        size = text[offset]
        yield text[offset + 1 : offset + 1 + size]
        offset += 1 + size

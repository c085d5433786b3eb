"""What a peer says of itself: as `docs/lan.md` has it, unreadable to strangers, and harmless when it is nonsense."""

from __future__ import annotations

import hashlib
import random

import pytest

from hypercore_lan.announcement import (
    TEXT_SIZE_MAX,
    TOPIC_COUNT_MAX,
    TOPICS_PER_STRING,
    decode,
    encode,
    hash_peer,
    hash_topic,
)

SALT = b"saltsaltsalt"
KEY = b"k" * 32


def topics(count: int) -> list[bytes]:
    return [hashlib.sha256(b"%d" % number).digest() for number in range(count)]


def strings(text: bytes) -> list[bytes]:
    found = []
    while text:
        found.append(text[1 : 1 + text[0]])
        text = text[1 + text[0] :]
    return found


def packed(*parts: bytes) -> bytes:
    return b"".join(bytes((len(part),)) + part for part in parts)


def test_the_bytes_are_those_of_the_document() -> None:
    topic = bytes(32)
    assert strings(encode(SALT, KEY, [topic])) == [
        b"v=1",
        b"p=hypercore/alpha",
        b"s=" + SALT,
        b"k=5ZXkjX6An67n",
        b"t0=no5n",
    ]


@pytest.mark.parametrize("count", [1, TOPICS_PER_STRING, TOPICS_PER_STRING + 1, TOPIC_COUNT_MAX])
def test_who_knows_a_topic_recognises_it(count: int) -> None:
    served = topics(count)
    announcement = decode(encode(SALT, KEY, served))
    assert announcement is not None
    assert announcement.matches(served) == set(served)
    assert announcement.matches([b"o" * 32]) == set()
    assert not announcement.has_more


def test_who_serves_more_than_fits_says_so_and_everybody_may_ask() -> None:
    text = encode(SALT, KEY, topics(TOPIC_COUNT_MAX + 1))
    announcement = decode(text)
    assert announcement is not None
    assert announcement.has_more
    assert len(announcement.topic_hashes) == TOPIC_COUNT_MAX
    assert announcement.matches([b"o" * 32]) == {b"o" * 32}


def test_it_fits_one_packet_however_much_is_served() -> None:
    assert len(encode(SALT, KEY, topics(5000))) < 1200


def test_a_peer_recognises_itself_and_those_it_is_connected_to() -> None:
    announcement = decode(encode(SALT, KEY, topics(1)))
    assert announcement is not None
    assert announcement.is_peer(KEY)
    assert not announcement.is_peer(b"x" * 32)


def test_neither_keys_nor_topics_can_be_read_and_nothing_is_the_same_under_another_salt() -> None:
    served = topics(3)
    one, other = encode(SALT, KEY, served), encode(SALT[::-1], KEY, served)
    assert not any(secret[:4] in text for secret in (KEY, *served) for text in (one, other))
    assert hash_peer(SALT, KEY) != hash_peer(SALT[::-1], KEY)
    assert {hash_topic(SALT, each) for each in served}.isdisjoint(hash_topic(SALT[::-1], each) for each in served)


def test_the_order_in_which_topics_were_joined_cannot_be_seen() -> None:
    served = topics(20)
    assert encode(SALT, KEY, served) == encode(SALT, KEY, reversed(served))


GOOD = (b"v=1", b"p=hypercore/alpha", b"s=" + SALT, b"k=" + b"K" * 12)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\x00",
        b"\xff",
        packed(b"v=2", *GOOD[1:]),
        packed(b"v=1", b"p=other", *GOOD[2:]),
        packed(*GOOD[:2], b"s=short", GOOD[3]),
        packed(*GOOD[:3]),
        packed(*GOOD, b"t0=odd"),
        packed(*GOOD, *(b"x%d=" % number + bytes(200) for number in range(20))),
        packed(b"v=2", *GOOD),
    ],
    ids=[
        "empty",
        "no string",
        "cut",
        "version",
        "protocol",
        "salt",
        "no key",
        "odd hashes",
        "oversized",
        "first counts",
    ],
)
def test_what_makes_no_sense_is_not_read(text: bytes) -> None:
    assert decode(text) is None


def test_strings_of_later_versions_are_passed_over() -> None:
    assert decode(packed(b"new=1", *GOOD, b"flag", b"")) is not None
    assert decode(packed(*GOOD)) == decode(packed(*(part[:1].upper() + part[1:] for part in GOOD)))


def test_noise_is_refused_or_read_but_never_an_error() -> None:
    for seed in range(300):
        noise = random.Random(seed)
        text = bytearray(encode(SALT, KEY, topics(noise.randrange(80))))
        for _ in range(noise.randrange(1, 20)):
            text[noise.randrange(len(text))] = noise.randrange(256)
        del text[noise.randrange(len(text)) :]
        found = decode(bytes(text))
        assert found is None or len(found.topic_hashes) <= TOPIC_COUNT_MAX, f"seed {seed}"
    assert decode(bytes(TEXT_SIZE_MAX + 1)) is None

"""Every channel message: recorded bytes both ways, odd forms that must pass, damage that must not."""

from __future__ import annotations

import random
from typing import Any

import pytest

from hypercore.errors import DecodeError
from hypercore.proofs import BlockProof, Node, Proof, UpgradeProof
from hypercore.protocol import messages
from hypercore.protocol.messages import (
    Bitfield,
    Cancel,
    ChannelHandshake,
    Data,
    Extension,
    Message,
    NoData,
    Sync,
    Want,
    decode,
    decode_channel_handshake,
    encode_channel_handshake,
)
from tests.protocol.support import SESSIONS, encoded, load, message_of

VECTORS = load("messages.json")
TYPES = {vector["name"]: vector["type"] for vector in VECTORS["messages"] if vector["type"] is not None}


def whole(name: str, payload: str) -> bytes:
    return bytes([TYPES[name]]) + bytes.fromhex(payload)


def handshake_of(value: dict[str, Any]) -> ChannelHandshake:
    return ChannelHandshake(value["seeks"], bytes.fromhex(value["capability"]))


def decoded(data: bytes) -> Message | None:
    """What `data` says, between bytes that no decoder may look at."""
    framed = b"\xff" * 7 + data + b"\xff" * 64
    return decode(framed, 7, 7 + len(data))


@pytest.mark.parametrize("vector", VECTORS["messages"], ids=lambda vector: f"{vector['name']}-{vector['payload'][:24]}")
def test_messages_repeat_both_ways(vector: dict[str, Any]) -> None:
    name, payload, value = vector["name"], vector["payload"], vector["value"]
    if name == "handshake":
        assert decode_channel_handshake(bytes.fromhex(payload)) == handshake_of(value)
        assert encode_channel_handshake(handshake_of(value)).hex() == payload
        return
    data, message = whole(name, payload), message_of(name, value)
    assert decoded(data) == message
    assert encoded(message) == data


@pytest.mark.parametrize("vector", VECTORS["messages"], ids=lambda vector: f"{vector['name']}-{vector['payload'][:24]}")
def test_what_hypercore_10_writes_is_read(vector: dict[str, Any]) -> None:
    """Node 10 leaves out the fields that it does not know; the rest must be as it says."""
    if vector["type"] is None or vector["encodedByHypercore10"] == "same bytes":
        payload = vector["payload"]
    else:
        payload = vector["encodedByHypercore10"]
    if vector["type"] is None:
        assert decode_channel_handshake(bytes.fromhex(payload)) == handshake_of(vector["value"])
        return
    value = dict(vector["value"])
    if payload != vector["payload"]:
        for field in vector["fieldsHypercore10DoesNotRead"]:
            value[field] = 0 if field == "reason" else False
    assert decoded(whole(vector["name"], payload)) == message_of(vector["name"], value)


@pytest.mark.parametrize("vector", VECTORS["lenient"], ids=lambda vector: f"{vector['name']}-{vector['payload']}")
def test_odd_forms_are_read(vector: dict[str, Any]) -> None:
    if vector["name"] == "handshake":
        assert decode_channel_handshake(bytes.fromhex(vector["payload"])) == handshake_of(vector["value"])
    else:
        assert decoded(whole(vector["name"], vector["payload"])) == message_of(vector["name"], vector["value"])


@pytest.mark.parametrize("vector", VECTORS["refused"], ids=lambda vector: f"{vector['name']}-{vector['payload']}")
def test_short_payloads_are_refused(vector: dict[str, Any]) -> None:
    name, payload = vector["name"], bytes.fromhex(vector["payload"])
    with pytest.raises(DecodeError):
        _ = decode_channel_handshake(payload) if name == "handshake" else decoded(bytes([TYPES[name]]) + payload)


def recorded_messages() -> list[bytes]:
    """Every message of every session, type and payload."""
    found = []
    for name in SESSIONS:
        for entry in load(name)["frames"]:
            frame = entry.get("frame")
            items = frame["items"] if frame and frame["name"] == "batch" else [frame or {}]
            found += [bytes([item["type"]]) + bytes.fromhex(item["payload"]) for item in items if "payload" in item]
    return found


def test_no_recorded_message_may_be_cut_anywhere() -> None:
    """Each prefix either is refused or is a message that says less (optional tails, raw rests)."""
    whole_rest = (Extension, Data, NoData, Want, messages.Unwant)
    for data in {bytes(data) for data in recorded_messages()}:
        message = decoded(data)
        for size in range(len(data)):
            try:
                shorter = decoded(data[:size])
            except DecodeError:
                continue
            assert shorter != message or data[size:].strip(b"\x00") == b""
            assert isinstance(shorter, whole_rest), f"{data.hex()} cut to {size} bytes"


def test_an_unknown_type_says_nothing() -> None:
    assert decoded(b"\x0a") is None
    assert decoded(b"\xfd\x0a\x00whatever") is None


def test_an_absent_type_is_refused() -> None:
    with pytest.raises(DecodeError):
        decoded(b"")


def test_a_type_in_a_longer_form_is_the_same_type() -> None:
    assert decoded(b"\xfd\x02\x00\x07") == Cancel(7)


@pytest.mark.parametrize("seed", range(40))
def test_data_messages_of_any_shape_come_back(seed: int) -> None:
    rng = random.Random(seed)

    def number() -> int:
        return rng.choice([0, 1, 252, 253, 65_535, 65_536, 2**32 - 1, 2**32, 2**53 - 1])

    def nodes() -> tuple[Node, ...]:
        return tuple(Node(number(), number(), rng.randbytes(32)) for _ in range(rng.choice([0, 1, 3, 128])))

    value = rng.randbytes(rng.choice([0, 1, 252, 253, 70_000]))
    block = BlockProof(number(), value, nodes()) if rng.random() < 0.7 else None
    upgrade = None
    if rng.random() < 0.5:
        upgrade = UpgradeProof(number(), number(), nodes(), nodes(), rng.randbytes(rng.choice([0, 64, 68])))
    manifest = rng.randbytes(100) if rng.random() < 0.3 else None
    message = Data(number(), Proof(number(), block, None, None, upgrade, manifest))
    assert decoded(encoded(message)) == message, f"seed {seed}"


def test_an_empty_block_is_a_block() -> None:
    message = Data(1, Proof(0, BlockProof(3, b"", ())))
    again = decoded(encoded(message))
    assert isinstance(again, Data)
    assert again.proof.block == BlockProof(3, b"", ())


def test_encoding_a_block_does_not_copy_it() -> None:
    value = bytes(65_536)
    parts: list[bytes] = []
    messages.encode(Data(1, Proof(0, BlockProof(3, value, ()))), parts)
    assert any(part is value for part in parts)


# ---- bounds ----------------------------------------------------------------------------------------


def test_a_list_claims_no_more_nodes_than_bound_and_bytes_allow() -> None:
    node = b"\x01\x01" + bytes(32)
    assert decoded(b"\x03\x02\x01\x00\x05\x80" + node * 128) is not None
    with pytest.raises(DecodeError, match="128"):
        decoded(b"\x03\x02\x01\x00\x05\x81" + node * 129)
    with pytest.raises(DecodeError):
        decoded(b"\x03\x02\x01\x00\x05\xff" + b"\xff\xff\xff\xff\xff\xff\x1f\x00")
    with pytest.raises(DecodeError):
        decoded(b"\x03\x02\x01\x00\x05\x02" + node + node[:-1])


def test_a_node_whose_numbers_are_long_may_not_reach_past_the_end() -> None:
    long_number = b"\xff" + (2**33).to_bytes(8, "little")
    for size in range(9 + 9 + 32):
        with pytest.raises(DecodeError):
            decoded(b"\x03\x02\x01\x00\x05\x01" + (long_number * 2 + bytes(32))[:size])


def test_a_signature_is_bounded() -> None:
    def message(size: int) -> bytes:
        return encoded(Data(1, Proof(0, upgrade=UpgradeProof(0, 1, (), (), bytes(size)))))

    assert decoded(message(65_536)) is not None
    with pytest.raises(DecodeError, match="signature"):
        decoded(message(65_537))


def test_a_length_above_2_to_the_52_is_refused() -> None:
    assert decoded(encoded(Sync(0, 2**52, 2**52))) == Sync(0, 2**52, 2**52)
    for sync in Sync(0, 2**52 + 1, 0), Sync(0, 0, 2**52 + 1):
        with pytest.raises(DecodeError):
            decoded(encoded(sync))


def test_a_bitfield_is_clamped_and_its_claim_checked() -> None:
    assert decoded(encoded(Bitfield(0, bytes(4 * 65_536)))) == Bitfield(0, bytes(4 * 65_536))
    assert decoded(encoded(Bitfield(0, bytes(4 * 65_537)))) == Bitfield(0, bytes(4 * 65_536))
    with pytest.raises(DecodeError):
        decoded(b"\x07\x00\xff" + (2**53 - 1).to_bytes(8, "little") + bytes(100))
    with pytest.raises(ValueError, match="words"):
        encoded(Bitfield(0, b"123"))


def test_an_extension_name_is_bounded() -> None:
    assert decoded(encoded(Extension("n" * 256, b"x"))) == Extension("n" * 256, b"x")
    with pytest.raises(DecodeError):
        decoded(encoded(Extension("n" * 257, b"x")))


def test_numbers_that_nobody_may_send_are_refused_on_both_sides() -> None:
    with pytest.raises(DecodeError):
        decoded(b"\x02\xff" + (2**53).to_bytes(8, "little"))
    for number in -1, 2**53:
        with pytest.raises(ValueError, match=str(number)):
            encoded(Cancel(number))


# ---- chance ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
def test_random_bytes_decode_or_are_refused_and_nothing_else(seed: int) -> None:
    rng = random.Random(seed)
    recorded = recorded_messages()
    for _ in range(300):
        if rng.random() < 0.5:
            data = bytes([rng.randrange(10)]) + rng.randbytes(rng.randrange(80))
        else:
            mutable = bytearray(rng.choice(recorded))
            for _ in range(rng.randrange(1, 4)):
                mutable[rng.randrange(len(mutable))] = rng.choice([0, 1, 0xFC, 0xFD, 0xFE, 0xFF, rng.randrange(256)])
            data = bytes(mutable)
        try:
            message = decoded(data)
        except DecodeError:
            continue
        if message is None or isinstance(message, Extension):
            continue
        again = decoded(encoded(message))
        assert again == message, f"seed {seed}: {data.hex()}"

"""Frames and encryption: recorded bytes, every way to cut them, and what a peer that breaks them meets."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable

import pytest

from hypercore.errors import HandshakeError, ProtocolError
from hypercore.protocol.secret_stream import MAX_FRAME_SIZE, MAX_MESSAGE_SIZE, SecretStream, stream_id
from tests.protocol.support import EPHEMERAL, STATIC, load

VECTOR = load("handshake.json")
STREAM = VECTOR["stream"]
KEYS = load("keys.json")


def make_stream(role: str, *, header: bytes | None = None) -> SecretStream:
    return SecretStream(
        role == "initiator",
        STATIC[role],
        ephemeral=EPHEMERAL[role],
        header=role.encode().ljust(24, b".") if header is None else header,
    )


def recorded_header(role: str) -> bytes:
    """The random header that a recording's side drew: the last 24 bytes of its first frame of 56."""
    frame = next(w["hex"] for w in STREAM["writes"] if w["from"] == role and w["hex"].startswith("380000"))
    return bytes.fromhex(frame)[-24:]


def exchange() -> tuple[SecretStream, SecretStream]:
    initiator, responder = make_stream("initiator"), make_stream("responder")
    responder.receive_data(initiator.data_to_send())
    initiator.receive_data(responder.data_to_send())
    responder.receive_data(initiator.data_to_send())
    initiator.receive_data(responder.data_to_send())
    assert initiator.established
    assert responder.established
    return initiator, responder


def frame(body: bytes) -> bytes:
    return len(body).to_bytes(3, "little") + body


def test_a_recorded_stream_repeats_byte_for_byte() -> None:
    sides = {role: make_stream(role, header=recorded_header(role)) for role in STATIC}
    written = dict.fromkeys(STATIC, b"")
    expected = {"initiator": STREAM["allInitiatorBytes"], "responder": STREAM["allResponderBytes"]}
    plaintexts = {role: [bytes.fromhex(text) for text in STREAM["plaintexts"][role]] for role in STATIC}

    def turn(role: str, other: str) -> list[bytes]:
        data = sides[role].data_to_send()
        written[role] += data
        return sides[other].receive_data(data)

    turn("initiator", "responder")
    turn("responder", "initiator")
    turn("initiator", "responder")
    turn("responder", "initiator")
    for role, other in ("initiator", "responder"), ("responder", "initiator"):
        for text in plaintexts[role]:
            sides[role].send(text)
        assert turn(role, other) == [text for text in plaintexts[role] if text]
        assert written[role].hex() == expected[role]
        assert sides[role].handshake_hash == bytes.fromhex(STREAM["handshakeHash"])
        assert sides[role].remote_public_key == STATIC[other].public_key


def test_stream_ids_agree() -> None:
    for role in ("initiator", "responder"):
        vector = KEYS["streamIds"]
        assert stream_id(bytes.fromhex(vector["handshakeHash"]), initiator=role == "initiator").hex() == vector[role]
        ours = stream_id(bytes.fromhex(STREAM["handshakeHash"]), initiator=role == "initiator")
        assert ours.hex() == STREAM["streamIds"][role]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_stream_fed_one_byte_at_a_time_gives_the_same_messages(kind: Callable[[bytes], bytes]) -> None:
    initiator, responder = make_stream("initiator"), make_stream("responder")
    messages: list[bytes] = []

    def trickle(sender: SecretStream, receiver: SecretStream) -> None:
        for byte in sender.data_to_send():
            messages.extend(receiver.receive_data(kind(bytes([byte]))))

    trickle(initiator, responder)
    trickle(responder, initiator)
    initiator.send(b"before the header of the peer came")
    initiator.send(b"")
    initiator.send(b"x" * 300)
    trickle(initiator, responder)
    assert messages == [b"before the header of the peer came", b"x" * 300]


@pytest.mark.parametrize("seed", range(20))
def test_a_stream_cut_anywhere_gives_the_same_messages(seed: int) -> None:
    rng = random.Random(seed)
    initiator, responder = exchange()
    sent = [rng.randbytes(rng.choice([1, 2, 17, 252, 253, 1024, 70_000])) for _ in range(60)]
    for message in sent:
        initiator.send(message)
    data = initiator.data_to_send()
    got: list[bytes] = []
    offset = 0
    while offset < len(data):
        size = rng.choice([1, 2, 3, 4, 5, 100, 1000, 65_536, 262_144])
        got += responder.receive_data(data[offset : offset + size])
        offset += size
    assert got == sent, f"seed {seed}"


def test_the_longest_message_passes_in_pieces_and_a_longer_one_is_refused() -> None:
    initiator, responder = exchange()
    message = bytes(MAX_MESSAGE_SIZE)
    initiator.send(message)
    data = initiator.data_to_send()
    assert data[:3] == MAX_FRAME_SIZE.to_bytes(3, "little")
    got: list[bytes] = []
    for offset in range(0, len(data), 65_536):
        got += responder.receive_data(data[offset : offset + 65_536])
    assert got == [message]
    with pytest.raises(ValueError, match="too long"):
        initiator.send(bytes(MAX_MESSAGE_SIZE + 1))


def test_a_partial_frame_is_the_only_thing_that_is_kept() -> None:
    initiator, responder = exchange()
    for _ in range(200):
        initiator.send(bytes(10_000))
    data = initiator.data_to_send()
    tracemalloc.start()
    try:
        for offset in range(0, len(data), 4096):
            responder.receive_data(data[offset : offset + 4096])
        held, _peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 64 * 1024


def test_nothing_can_be_sent_before_the_handshake() -> None:
    with pytest.raises(ValueError, match="before the handshake"):
        make_stream("responder").send(b"early")


def test_a_header_of_another_length_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="24"):
        make_stream("initiator", header=bytes(23))


# ---- a peer that breaks the rules ------------------------------------------------------------------


def responder_with(*frames: bytes) -> None:
    responder = make_stream("responder")
    for data in frames:
        responder.receive_data(data)


def honest_frames() -> list[bytes]:
    """What an honest initiator sends until its header, each frame with its length."""
    initiator, responder = make_stream("initiator"), make_stream("responder")
    first = initiator.data_to_send()
    responder.receive_data(first)
    initiator.receive_data(responder.data_to_send())
    rest = initiator.data_to_send()
    return [first, rest[: 3 + 64], rest[3 + 64 :]]


def broken_peers() -> dict[str, list[bytes]]:
    """What each broken peer of the recording sends to a responder."""
    first, third, header = honest_frames()
    reflected = bytearray(header)
    handshake_hash = bytes.fromhex(STREAM["handshakeHash"])
    reflected[3:35] = stream_id(handshake_hash, initiator=False)
    damaged = bytearray(third)
    damaged[-1] ^= 1
    return {
        "first frame of length zero, then another byte": [b"\x00\x00\x00", b"\x01"],
        "first message 31 bytes": [frame(first[3:34])],
        "first message with an identity point": [frame(b"\x01".ljust(32, b"\x00"))],
        "first message with 32 bytes off the curve": [frame(b"\x02".ljust(32, b"\x00"))],
        "first message 33 bytes (one byte of clear payload)": [frame(first[3:] + b"x")],
        "third message damaged": [first, bytes(damaged)],
        "header frame of the wrong length": [first, third, frame(header[3:] + b"x")],
        "header frame with the other role's stream id": [first, third, bytes(reflected)],
        "frame of 16 bytes after the header": [first, third, header, frame(bytes(16))],
        "frame that does not authenticate": [first, third, header, frame(bytes(40))],
    }


def test_the_recorded_broken_peers_are_all_tried() -> None:
    names = {vector["name"] for vector in VECTOR["broken"]}
    assert names == broken_peers().keys() | {"raw stream ends after the first message"}


@pytest.mark.parametrize("name", broken_peers())
def test_a_broken_peer_is_ended(name: str) -> None:
    early = not name.startswith("frame ")
    with pytest.raises(HandshakeError if early else ProtocolError):
        responder_with(*broken_peers()[name])


def test_a_stream_that_ends_in_the_handshake_is_a_failed_handshake() -> None:
    responder = make_stream("responder")
    responder.receive_data(honest_frames()[0])
    with pytest.raises(HandshakeError, match="finished before"):
        responder.receive_eof()


def test_a_stream_may_end_between_frames_only() -> None:
    initiator, responder = exchange()
    initiator.send(b"whole")
    data = initiator.data_to_send()
    responder.receive_data(data[:-1])
    with pytest.raises(ProtocolError, match="inside a frame"):
        responder.receive_eof()
    assert responder.receive_data(data[-1:]) == [b"whole"]
    responder.receive_eof()


def test_two_initiators_are_told_so() -> None:
    with pytest.raises(HandshakeError, match="initiator too"):
        make_stream("initiator").receive_data(make_stream("initiator").data_to_send())


def test_our_own_header_coming_back_is_told_apart_from_a_foreign_one() -> None:
    first, third, _ = honest_frames()
    responder = make_stream("responder")
    responder.receive_data(first)
    responder.data_to_send()
    responder.receive_data(third)
    own = responder.data_to_send()
    with pytest.raises(HandshakeError, match="reflected"):
        responder.receive_data(own)
    with pytest.raises(HandshakeError, match="not of this handshake"):
        responder_with(*honest_frames()[:2], frame(bytes(56)))


def test_a_stranger_makes_us_keep_next_to_nothing() -> None:
    """A frame is refused by its length alone, long before its body is here."""
    with pytest.raises(HandshakeError, match="16777215"):
        make_stream("responder").receive_data(b"\xff\xff\xff")
    with pytest.raises(HandshakeError, match="96"):
        make_stream("initiator").receive_data(b"\x61\x00\x00")


def test_a_frame_over_our_own_bound_is_refused_by_its_length() -> None:
    initiator, responder = make_stream("initiator"), make_stream("responder")
    small = SecretStream(
        False, STATIC["responder"], ephemeral=EPHEMERAL["responder"], header=bytes(24), frame_size=1000
    )
    small.receive_data(initiator.data_to_send())
    initiator.receive_data(small.data_to_send())
    initiator.send(bytes(1000 - 17))
    assert small.receive_data(initiator.data_to_send()) == [bytes(1000 - 17)]
    with pytest.raises(ProtocolError, match="1001"):
        small.receive_data((1001).to_bytes(3, "little"))
    assert not responder.established

"""The Noise handshake agrees with the recorded transcripts, state by state."""

from __future__ import annotations

from typing import Any

import pytest

from hypercore.crypto import KeyPair, agree, discovery_key
from hypercore.errors import HandshakeError, VerificationError
from hypercore.protocol.noise import IK, XX, Handshake, Pattern
from tests.protocol.support import EPHEMERAL, STATIC, load

NOISE = load("handshake.json")["noise"]
KEYS = load("keys.json")
PATTERNS = {"XX": XX, "IK": IK, "XXwithPayloads": XX}


def both_sides(pattern: Pattern) -> dict[str, Handshake]:
    known = STATIC["responder"].public_key if pattern.responder_is_known else None
    return {
        "initiator": Handshake(
            True, STATIC["initiator"], EPHEMERAL["initiator"], pattern=pattern, remote_public_key=known
        ),
        "responder": Handshake(False, STATIC["responder"], EPHEMERAL["responder"], pattern=pattern),
    }


def state_of(handshake: Handshake) -> dict[str, Any]:
    symmetric = handshake.symmetric
    return {
        "h": symmetric.hash.hex(),
        "ck": symmetric.chaining_key.hex(),
        "k": symmetric.key and symmetric.key.hex(),
        "n": symmetric.counter,
    }


@pytest.mark.parametrize("name", NOISE)
def test_transcripts_repeat_with_every_state_between(name: str) -> None:
    vector = NOISE[name]
    sides = both_sides(PATTERNS[name])
    for side in sides.values():
        start = state_of(side)
        if not PATTERNS[name].responder_is_known:
            assert (start["h"], start["ck"]) == (vector["start"]["h"], vector["start"]["ck"])
    for message in vector["messages"]:
        sender = sides[message["from"]]
        receiver = sides["responder" if message["from"] == "initiator" else "initiator"]
        data = sender.send(bytes.fromhex(message["payload"]))
        assert data.hex() == message["bytes"]
        assert len(data) == message["length"]
        assert receiver.receive(data).hex() == message["payload"]
        if message["stateAfter"] is not None:
            assert state_of(sender) == state_of(receiver) == message["stateAfter"]
    for role, other in ("initiator", "responder"), ("responder", "initiator"):
        result = sides[role].result
        tx, rx = ("initiatorTx", "initiatorRx") if role == "initiator" else ("initiatorRx", "initiatorTx")
        assert result.tx_key.hex() == vector[tx]
        assert result.rx_key.hex() == vector[rx]
        assert result.handshake_hash.hex() == vector["handshakeHash"]
        assert result.remote_public_key == STATIC[other].public_key


def test_keys_of_seeds_and_their_discovery_keys_agree() -> None:
    for vector in KEYS["keyPairs"]:
        key_pair = KeyPair.from_seed(bytes.fromhex(vector["seed"]))
        assert key_pair.public_key.hex() == vector["publicKey"]
        assert key_pair.secret_key.hex() == vector["secretKey"]
        assert discovery_key(key_pair.public_key).hex() == vector["discoveryKey"]


def test_key_agreement_is_the_same_from_both_sides() -> None:
    for vector in KEYS["dh"]:
        a, b = (KeyPair.from_seed(bytes.fromhex(vector[seed])) for seed in ("seedA", "seedB"))
        assert (a.public_key.hex(), b.public_key.hex()) == (vector["publicA"], vector["publicB"])
        assert agree(a, b.public_key).hex() == agree(b, a.public_key).hex() == vector["shared"]


@pytest.mark.parametrize("point", KEYS["badPoints"], ids=lambda point: point["name"])
def test_a_bad_point_ends_key_agreement_and_handshake(point: dict[str, Any]) -> None:
    assert point["refused"]
    public_key = bytes.fromhex(point["publicKey"])
    with pytest.raises(VerificationError):
        agree(STATIC["initiator"], public_key)
    responder = both_sides(XX)["responder"]
    responder.receive(public_key)
    with pytest.raises(HandshakeError):
        responder.send()


@pytest.mark.parametrize("pattern", [XX, IK], ids=lambda pattern: pattern.name)
def test_a_flipped_bit_anywhere_ends_the_handshake(pattern: Pattern) -> None:
    count = len(pattern.messages)
    for damaged in range(count):
        for position in (0, 31, 32, 47, -1):
            sides = both_sides(pattern)
            with pytest.raises(HandshakeError):  # noqa: PT012 - the damage of an early message shows in a later one
                for turn in range(count):
                    sender, receiver = (sides["initiator"], sides["responder"])[:: 1 if turn % 2 == 0 else -1]
                    message = bytearray(sender.send())
                    if turn == damaged:
                        message[position % len(message)] ^= 1
                    receiver.receive(bytes(message))


def test_a_truncated_message_ends_the_handshake() -> None:
    for size in (0, 1, 31, 32, 79, 80, 95):
        sides = both_sides(XX)
        sides["responder"].receive(sides["initiator"].send())
        with pytest.raises(HandshakeError):
            sides["initiator"].receive(sides["responder"].send()[:size])


def test_speaking_out_of_turn_is_an_error() -> None:
    sides = both_sides(XX)
    with pytest.raises(HandshakeError, match="turn"):
        sides["responder"].send()
    first = sides["initiator"].send()
    with pytest.raises(HandshakeError, match="turn"):
        sides["initiator"].send()
    sides["responder"].receive(first)
    with pytest.raises(HandshakeError, match="turn"):
        sides["responder"].receive(first)
    with pytest.raises(HandshakeError, match="not complete"):
        _ = sides["responder"].result


def test_a_prologue_that_differs_ends_the_handshake() -> None:
    initiator = Handshake(True, STATIC["initiator"], EPHEMERAL["initiator"], b"one")
    responder = Handshake(False, STATIC["responder"], EPHEMERAL["responder"], b"another")
    responder.receive(initiator.send())
    with pytest.raises(HandshakeError):
        initiator.receive(responder.send())


def test_an_initiator_of_ik_must_know_whom_it_calls() -> None:
    with pytest.raises(ValueError, match="must know"):
        Handshake(True, STATIC["initiator"], EPHEMERAL["initiator"], pattern=IK)

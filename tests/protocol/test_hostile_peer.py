"""A peer that knows the handshake and means harm: its connection ends, and memory stays bounded until then."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable

import pytest

from hypercore.crypto import discovery_key
from hypercore.encoding import encode_buffer, encode_uint
from hypercore.errors import ProtocolError
from hypercore.protocol.channel import PROTOCOL
from hypercore.protocol.connection import Connection, capability
from hypercore.protocol.events import ChannelOffered, ChannelOpened, HandshakeDone, MessageReceived
from hypercore.protocol.limits import DEFAULT_LIMITS, Limits
from hypercore.protocol.messages import Cancel
from hypercore.protocol.mux import ChannelState
from hypercore.protocol.secret_stream import SecretStream
from tests.protocol.support import CORE_KEY, EPHEMERAL, SESSIONS, STATIC, load, make_connection


class Attacker:
    """Speaks the secret stream as the initiator, and says whatever it is told to the connection in front of it."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self.victim: Connection = make_connection("responder", limits=limits)
        self.stream = SecretStream(True, STATIC["initiator"], ephemeral=EPHEMERAL["initiator"], header=bytes(24))
        for _ in range(3):
            self.victim.receive_data(self.stream.data_to_send())
            self.stream.receive_data(self.victim.data_to_send())
        (self.done,) = self.victim.events()

    def say(self, *frames: bytes) -> None:
        for frame in frames:
            self.stream.send(frame)
        self.victim.receive_data(self.stream.data_to_send())

    def capability(self, key: bytes = CORE_KEY, *, initiator: bool = True) -> bytes:
        assert isinstance(self.done, HandshakeDone)
        return capability(key, self.done.handshake_hash, initiator=initiator)

    def open_frame(
        self, remote_id: int = 1, key: bytes = CORE_KEY, shown: bytes | None = None, protocol: bytes = PROTOCOL
    ) -> bytes:
        shown = self.capability(key) if shown is None else shown
        name = encode_buffer(protocol) + encode_buffer(discovery_key(key))
        return b"\x00\x01" + encode_uint(remote_id) + name + b"\x01" + shown


def assert_dead(connection: Connection) -> None:
    """A dead connection says why, takes nothing, gives nothing and asks for nothing."""
    assert connection.error is not None
    with pytest.raises(ProtocolError) as caught:
        connection.receive_data(b"more")
    assert caught.value is connection.error
    with pytest.raises(ProtocolError):
        connection.open_channel(CORE_KEY)
    with pytest.raises(ProtocolError):
        connection.handle_timeout(1.0)
    assert connection.data_to_send() == b""
    assert connection.next_timeout() is None
    assert connection.channels == []
    assert not connection.is_paused


def test_a_peer_that_does_not_know_the_key_is_ended_when_we_answer() -> None:
    attacker = Attacker()
    attacker.say(attacker.open_frame(shown=bytes(32)))
    assert attacker.victim.events() == [ChannelOffered(discovery_key(CORE_KEY))]
    with pytest.raises(ProtocolError, match="key it does not know"):
        attacker.victim.open_channel(CORE_KEY)
    assert_dead(attacker.victim)


def test_a_peer_that_shows_our_own_capability_is_ended() -> None:
    attacker = Attacker()
    channel = attacker.victim.open_channel(CORE_KEY)
    with pytest.raises(ProtocolError, match="key it does not know"):
        attacker.say(attacker.open_frame(shown=attacker.capability(initiator=False)))
    assert channel.state is ChannelState.CLOSED
    channel.send(Cancel(1))
    channel.close()
    assert_dead(attacker.victim)


def test_a_peer_under_either_name_of_the_protocol_is_one_peer() -> None:
    attacker = Attacker()
    attacker.say(attacker.open_frame(protocol=b"hypercore"))
    channel = attacker.victim.open_channel(CORE_KEY)
    assert channel.state is ChannelState.OPEN
    (answer,) = attacker.stream.receive_data(attacker.victim.data_to_send())
    assert answer.startswith(b"\x00\x01\x01" + encode_buffer(b"hypercore/alpha"))


def test_other_protocols_and_ids_are_rejected_without_asking() -> None:
    attacker = Attacker()
    attacker.say(b"\x00\x01\x01" + encode_buffer(b"other") + encode_buffer(bytes(32)))
    attacker.say(b"\x00\x01\x01" + encode_buffer(PROTOCOL) + encode_buffer(bytes(31)))
    assert attacker.victim.events() == []
    (batch,) = attacker.stream.receive_data(attacker.victim.data_to_send())
    assert batch == bytes.fromhex("000000 020201 020201")


def open_victim(limits: Limits = DEFAULT_LIMITS) -> Attacker:
    attacker = Attacker(limits)
    attacker.say(attacker.open_frame())
    channel = attacker.victim.open_channel(CORE_KEY)
    assert attacker.victim.events() == [ChannelOffered(channel.discovery_key), ChannelOpened(channel)]
    attacker.victim.data_to_send()
    return attacker


BAD_FRAMES = {
    "a channel id alone": b"\x01",
    "a cut number": b"\x01\x02\xfd\x01",
    "a number above 2^53 - 1": b"\x01\x02" + b"\xff" * 9,
    "a message that is too short": b"\x01\x00\x07",
    "a nested batch": b"\x00\x00\x00\x03\x00\x01\x01",
    "an item past the end of its batch": b"\x00\x00\x01\x09\x02\x01",
    "an item of 2^53 bytes": b"\x00\x00\x01\xff" + (2**53 - 1).to_bytes(8, "little") + b"\x02",
    "an id in use": b"\x00\x01\x01\x01p\x00",
    "an id out of order": b"\x00\x01\x03\x01p\x00",
    "id 0": b"\x00\x01\x00\x01p\x00",
    "a cut open": b"\x00\x01\x02\x09p",
    "a list of 2^32 nodes": b"\x01\x03\x01\x01\x00\x00\x00\xfe\xff\xff\xff\xff",
    "a block longer than its message": b"\x01\x03\x01\x01\x00\x00\xfe\xff\xff\xff\x7fabc",
    "a sync of 2^53 - 1 blocks": b"\x01\x00\x00\x00\xff" + (2**53 - 1).to_bytes(8, "little") + b"\x00",
}


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_a_frame_that_breaks_the_protocol_ends_the_connection(name: str) -> None:
    attacker = open_victim()
    with pytest.raises(ProtocolError):
        attacker.say(BAD_FRAMES[name])
    assert_dead(attacker.victim)


def test_what_came_before_the_bad_frame_is_still_handed_out() -> None:
    attacker = open_victim()
    with pytest.raises(ProtocolError):
        attacker.say(b"\x01\x02\x07", b"\x00\x00\x01\x02\x02\x08\x01\x02")
    messages = [event.message for event in attacker.victim.events() if isinstance(event, MessageReceived)]
    assert messages == [Cancel(7), Cancel(8)]


HARMLESS_FRAMES = {
    "an unknown control type": b"\x00\x09junk",
    "an unknown message type": b"\x01\x0ajunk",
    "a message on a channel that is not open": b"\x05\x00",
    "a close of a channel that is not open": b"\x00\x03\x09",
    "a reject of a channel that was never opened": b"\x00\x02\x09",
    "a reject of a channel that is open": b"\x00\x02\x01",
    "a batch without items": b"\x00\x00\x01",
    "bytes behind a message": b"\x01\x02\x07junk",
    "unknown flags": b"\x01\x00\xe0\x00\x00\x00",
}


@pytest.mark.parametrize("name", HARMLESS_FRAMES)
def test_what_is_to_be_ignored_is_ignored(name: str) -> None:
    attacker = open_victim()
    attacker.say(HARMLESS_FRAMES[name])
    attacker.victim.events()
    attacker.say(b"\x01\x02\x2a")
    (event,) = attacker.victim.events()
    assert isinstance(event, MessageReceived)
    assert event.message == Cancel(42)


# ---- floods ----------------------------------------------------------------------------------------


def test_reading_is_to_pause_while_much_waits_for_a_decision() -> None:
    attacker = Attacker()
    attacker.say(attacker.open_frame())
    assert not attacker.victim.is_paused
    attacker.say(b"\x01\x09\x01e" + bytes(40_000))
    assert attacker.victim.is_paused
    attacker.victim.handle_timeout(0.0)
    attacker.victim.handle_timeout(1000.0)
    attacker.victim.open_channel(CORE_KEY)
    assert not attacker.victim.is_paused


def held_after(attack: Callable[[Attacker], None], limits: Limits = DEFAULT_LIMITS) -> int:
    """The most bytes that an attack makes its victim hold, which it may survive or not."""
    attacker = Attacker(limits)
    tracemalloc.start()
    try:
        attack(attacker)
    except ProtocolError:
        assert attacker.victim.error is not None
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return peak


def flood_undecided(attacker: Attacker) -> None:
    attacker.say(attacker.open_frame())
    for _ in range(1000):
        attacker.say(b"\x01\x09\x01e" + bytes(10_000))
    raise AssertionError("the flood had no end")


def flood_tiny_undecided(attacker: Attacker) -> None:
    attacker.say(attacker.open_frame())
    for _ in range(1000):
        attacker.say(b"\x00\x00\x01" + b"\x02\x02\x01" * 1000)
    raise AssertionError("the flood had no end")


def flood_opens(attacker: Attacker) -> None:
    for number in range(1, 40_000):
        attacker.say(attacker.open_frame(min(number, DEFAULT_LIMITS.channels + 1), number.to_bytes(32)))
    raise AssertionError("the flood had no end")


def flood_foreign_opens(attacker: Attacker) -> None:
    item = b"\x01\x01\x05other\x00"
    batch = b"\x00\x00\x00" + (encode_uint(len(item)) + item) * 1000
    for _ in range(1000):
        attacker.say(batch)
    raise AssertionError("the flood had no end")


FLOODS = [flood_undecided, flood_tiny_undecided, flood_opens, flood_foreign_opens]


@pytest.mark.parametrize("flood", FLOODS, ids=lambda flood: flood.__name__)
def test_a_flood_ends_the_connection_within_a_bound(flood: Callable[[Attacker], None]) -> None:
    assert held_after(flood) < 16 * 2**20


def frame_of_tiny_items(attacker: Attacker) -> None:
    attacker.say(attacker.open_frame())
    attacker.victim.open_channel(CORE_KEY)
    attacker.say(b"\x00\x00\x01" + b"\x02\x02\x07" * (5 * 2**20))


def frame_of_nodes(attacker: Attacker) -> None:
    attacker.say(attacker.open_frame())
    attacker.victim.open_channel(CORE_KEY)
    item = b"\x03\x02\x01\x00\x05\x80" + (b"\x01\x01" + bytes(32)) * 128
    attacker.say(b"\x00\x00\x01" + (encode_uint(len(item)) + item) * (4 * 2**20 // len(item)))


def frame_of_switches(attacker: Attacker) -> None:
    attacker.say(b"\x00\x00\x01" + b"\x00\x01" * 2**20)


WORST_FRAMES = [(frame_of_tiny_items, 80), (frame_of_nodes, 48), (frame_of_switches, 12)]


@pytest.mark.parametrize(("attack", "bound_mib"), WORST_FRAMES)
def test_the_worst_frames_cost_a_small_multiple_of_their_size(
    attack: Callable[[Attacker], None], bound_mib: int
) -> None:
    """Frames of 15, 4 and 2 MiB. What the attacker holds is counted too: its plaintext and two copies sealed."""
    assert held_after(attack) < bound_mib * 2**20


def test_half_a_frame_costs_what_was_sent_of_it() -> None:
    def attack(attacker: Attacker) -> None:
        attacker.victim.receive_data(b"\xff\xff\xff")
        for _ in range(100):
            attacker.victim.receive_data(bytes(10_000))

    assert held_after(attack) < 2 * 2**20


def test_the_smallest_frame_bound_bounds_memory() -> None:
    def attack(attacker: Attacker) -> None:
        attacker.victim.receive_data(b"\xff\xff\x00")
        attacker.victim.receive_data(bytes(10_000))
        raise AssertionError("the frame was accepted")

    assert held_after(attack, Limits(frame_size=65_534)) < 2**20


@pytest.mark.parametrize("seed", range(40))
def test_random_frames_on_an_open_channel_end_or_are_taken(seed: int) -> None:
    rng = random.Random(seed)
    frames = [
        bytes.fromhex(entry["hex"])
        for name in rng.sample(SESSIONS, 3)
        for entry in load(name)["frames"]
        if "hex" in entry
    ]
    attacker = open_victim()
    for _ in range(200):
        data = bytearray(rng.choice(frames))
        for _ in range(rng.randrange(4)):
            data[rng.randrange(len(data))] = rng.choice([0, 1, 2, 0xFC, 0xFD, 0xFE, 0xFF, rng.randrange(256)])
        if rng.random() < 0.1:
            del data[rng.randrange(len(data)) :]
        try:
            attacker.say(bytes(data))
        except ProtocolError:
            assert_dead(attacker.victim)
            attacker = open_victim()
        for event in attacker.victim.events():
            if isinstance(event, ChannelOffered):
                attacker.victim.reject(event.discovery_key)
        attacker.victim.data_to_send()


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_after_the_handshake_end_the_connection(seed: int) -> None:
    rng = random.Random(seed)
    attacker = open_victim()
    attacker.stream.send(rng.randbytes(100))
    data = bytearray(attacker.stream.data_to_send())
    data[rng.randrange(3, len(data))] ^= 1 << rng.randrange(8)
    with pytest.raises(ProtocolError, match="authenticate"):
        attacker.victim.receive_data(data)
    assert_dead(attacker.victim)


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_instead_of_a_handshake_end_the_connection(seed: int) -> None:
    rng = random.Random(seed)
    for role in "initiator", "responder":
        connection = make_connection("initiator" if role == "initiator" else "responder")
        with pytest.raises(ProtocolError):
            connection.receive_data(rng.randbytes(200))
        assert_dead(connection)

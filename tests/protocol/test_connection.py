"""Two connections that talk through strings of bytes, and what a connection does about time and a finished peer."""

from __future__ import annotations

import itertools
import random

import pytest

from hypercore.crypto import discovery_key
from hypercore.errors import HandshakeError, PeerTimeoutError, ProtocolError
from hypercore.proofs import BlockProof, BlockRequest, Node, Proof, ProofRequest
from hypercore.protocol.channel import Channel
from hypercore.protocol.connection import Connection, capability
from hypercore.protocol.events import (
    ChannelClosed,
    ChannelOffered,
    ChannelOpened,
    ChannelRejected,
    Event,
    HandshakeDone,
    MessageReceived,
    PeerFinished,
)
from hypercore.protocol.messages import (
    Bitfield,
    Cancel,
    Data,
    Extension,
    Message,
    NoData,
    Range,
    Request,
    Sync,
    Unwant,
    Want,
)
from hypercore.protocol.mux import ChannelState
from tests.protocol.support import CORE_KEY, STATIC, connected, load, make_connection, opened, pump, received

NODES = (Node(2, 100, b"\x01" * 32), Node(300, 70_000, b"\x02" * 32), Node(70_000, 2**40, b"\x03" * 32))


def one_of_each() -> list[Message]:
    return [
        Sync(0, 7, 0, can_upgrade=True, uploading=True),
        Range(False, 0, 7),
        Bitfield(32, b"\x0f\x00\x00\x00"),
        Want(0, 2**21),
        Unwant(0, 2**21, any=True),
        Request(1, 1, ProofRequest(0, block=BlockRequest(3, 2))),
        Data(1, Proof(0, BlockProof(3, b"value", NODES))),
        Data(2, Proof(0, BlockProof(4, b"", ()))),
        NoData(2, 1),
        Cancel(2),
        Extension("greeting", b"hello"),
    ]


def test_capabilities_agree_with_the_recorded_ones() -> None:
    for vector in load("keys.json")["capabilities"]:
        key, handshake_hash = bytes.fromhex(vector["key"]), bytes.fromhex(vector["handshakeHash"])
        for role in "initiator", "responder":
            assert capability(key, handshake_hash, initiator=role == "initiator").hex() == vector[role]


def test_the_handshake_tells_each_side_who_the_other_is() -> None:
    initiator, responder = make_connection("initiator"), make_connection("responder")
    pump(initiator, responder)
    (first,), (second,) = initiator.events(), responder.events()
    assert isinstance(first, HandshakeDone)
    assert isinstance(second, HandshakeDone)
    assert first.handshake_hash == second.handshake_hash
    assert first.remote_public_key == initiator.remote_public_key == STATIC["responder"].public_key
    assert second.remote_public_key == responder.remote_public_key == STATIC["initiator"].public_key


def test_the_initiator_sends_its_first_messages_without_waiting_for_the_peers_header() -> None:
    initiator, responder = make_connection("initiator"), make_connection("responder")
    responder.receive_data(initiator.data_to_send())
    initiator.receive_data(responder.data_to_send())
    initiator.open_channel(CORE_KEY)
    responder.receive_data(initiator.data_to_send())
    assert [type(event) for event in responder.events()] == [HandshakeDone, ChannelOffered]


def test_a_channel_is_offered_accepted_and_carries_every_message() -> None:
    initiator, responder = connected()
    ours = initiator.open_channel(CORE_KEY)
    assert ours.state is ChannelState.OPENING
    assert not ours.remote_seeks
    pump(initiator, responder)
    assert responder.events() == [ChannelOffered(discovery_key(CORE_KEY))]
    theirs = responder.open_channel(CORE_KEY)
    assert theirs.state is ChannelState.OPEN
    pump(initiator, responder)
    assert initiator.events() == [ChannelOpened(ours)]
    assert responder.events() == [ChannelOpened(theirs)]
    assert ours.remote_seeks
    assert theirs.remote_seeks
    assert (ours.key, ours.discovery_key) == (CORE_KEY, discovery_key(CORE_KEY))
    for message in one_of_each():
        ours.send(message)
        theirs.send(message)
    pump(initiator, responder)
    assert received(responder) == one_of_each()
    assert received(initiator) == one_of_each()
    assert initiator.channels == [ours]


def test_messages_sent_ahead_of_the_answer_arrive_after_it() -> None:
    initiator, responder = connected()
    ours = initiator.open_channel(CORE_KEY)
    for message in one_of_each():
        ours.send(message)
    pump(initiator, responder)
    assert [type(event) for event in responder.events()] == [ChannelOffered]
    theirs = responder.open_channel(CORE_KEY)
    events = responder.events()
    assert events[0] == ChannelOpened(theirs)
    assert [event.message for event in events[1:] if isinstance(event, MessageReceived)] == one_of_each()


def test_opening_an_open_channel_gives_that_channel() -> None:
    initiator, ours, _, _ = opened()
    assert initiator.open_channel(CORE_KEY) is ours
    assert not initiator.data_to_send()


def test_a_rejected_channel_is_closed_and_may_be_opened_again() -> None:
    initiator, responder = connected()
    ours = initiator.open_channel(CORE_KEY)
    pump(initiator, responder)
    responder.reject(discovery_key(CORE_KEY))
    responder.reject(discovery_key(CORE_KEY))
    pump(initiator, responder)
    assert initiator.events() == [ChannelRejected(ours)]
    assert ours.state is ChannelState.CLOSED
    ours.send(Cancel(1))
    again = initiator.open_channel(CORE_KEY)
    assert again is not ours
    responder.open_channel(CORE_KEY)
    pump(initiator, responder)
    assert ChannelOpened(again) in initiator.events()


def test_a_closed_channel_is_closed_for_both_and_may_be_opened_again() -> None:
    initiator, ours, responder, theirs = opened()
    theirs.send(Cancel(1))
    theirs.close()
    theirs.close()
    theirs.send(Cancel(2))
    pump(initiator, responder)
    assert initiator.events() == [MessageReceived(ours, Cancel(1)), ChannelClosed(ours)]
    assert responder.events() == []
    assert ours.state is theirs.state is ChannelState.CLOSED
    assert initiator.channels == []
    again = initiator.open_channel(CORE_KEY)
    pump(initiator, responder)
    assert responder.events() == [ChannelOffered(discovery_key(CORE_KEY))]
    responder.open_channel(CORE_KEY)
    pump(initiator, responder)
    assert again.state is ChannelState.OPEN


def test_an_extension_message_without_name_has_the_name_of_the_last_one() -> None:
    initiator, ours, responder, _ = opened()
    sent = [Extension("one", b"1"), Extension("", b"2"), Extension("two", b"3"), Extension("", b"4")]
    for message in sent:
        ours.send(message)
    pump(initiator, responder)
    names = [message.name for message in received(responder) if isinstance(message, Extension)]
    assert names == ["one", "one", "two", "two"]


def test_a_burst_of_messages_is_one_message_of_the_stream() -> None:
    initiator, ours, responder, _ = opened()
    for number in range(100):
        ours.send(Cancel(number))
    assert initiator.buffered_bytes >= 200
    data = initiator.data_to_send()
    assert int.from_bytes(data[:3], "little") == len(data) - 3
    assert initiator.buffered_bytes == 0
    responder.receive_data(data)
    assert received(responder) == [Cancel(number) for number in range(100)]


def test_a_block_of_15_mib_passes() -> None:
    initiator, ours, responder, _ = opened()
    message = Data(1, Proof(0, BlockProof(0, bytes(15 * 2**20), NODES)))
    ours.send(Cancel(1))
    ours.send(message)
    ours.send(Cancel(2))
    pump(initiator, responder)
    assert received(responder) == [Cancel(1), message, Cancel(2)]


def test_a_block_that_fits_into_no_frame_is_the_callers_mistake() -> None:
    initiator, ours, _, _ = opened()
    with pytest.raises(ValueError, match="does not fit"):
        ours.send(Data(1, Proof(0, BlockProof(0, bytes(2**24), ()))))
    ours.send(Cancel(1))
    assert initiator.data_to_send()


def conversation(rng: random.Random, sizes: list[int]) -> None:
    """A whole random conversation of two connections whose bytes are cut as `sizes` says."""
    sides = {"initiator": make_connection("initiator"), "responder": make_connection("responder")}
    keys = [bytes([number]) * 32 for number in range(1, 5)]
    wanted = {discovery_key(key): key for key in keys[:3]}
    wires = {"initiator": bytearray(), "responder": bytearray()}
    sent: dict[tuple[str, bytes], list[Message]] = {}
    got: dict[tuple[str, bytes], list[Message]] = {}
    rejected: list[bytes] = []

    def handle(name: str, connection: Connection, event: Event) -> None:
        if isinstance(event, HandshakeDone):
            for key in rng.sample(keys, 4) if name == "initiator" else rng.sample(keys[:3], 2):
                connection.open_channel(key)
        elif isinstance(event, ChannelOffered):
            if event.discovery_key in wanted:
                connection.open_channel(wanted[event.discovery_key])
            else:
                connection.reject(event.discovery_key)
        elif isinstance(event, ChannelOpened):
            speak(name, event.channel)
        elif isinstance(event, ChannelRejected):
            rejected.append(event.channel.key)
        elif isinstance(event, MessageReceived):
            got.setdefault((name, event.channel.key), []).append(event.message)

    def speak(name: str, channel: Channel) -> None:
        other = "responder" if name == "initiator" else "initiator"
        for _ in range(rng.randrange(40)):
            message = rng.choice(one_of_each())
            if rng.random() < 0.1:
                message = Data(9, Proof(1, BlockProof(5, rng.randbytes(rng.choice([0, 1000, 70_000])), NODES)))
            channel.send(message)
            sent.setdefault((other, channel.key), []).append(message)

    idle = 0
    while idle < 2:
        idle += 1
        for name, connection in sides.items():
            other = "responder" if name == "initiator" else "initiator"
            wires[other] += connection.data_to_send()
            if wires[name]:
                idle = 0
                size = rng.choice(sizes)
                connection.receive_data(bytes(wires[name][:size]))
                del wires[name][:size]
            for event in connection.events():
                handle(name, connection, event)
    for connection in sides.values():
        connection.receive_eof()
        assert connection.events() == [PeerFinished()]
    assert got == sent
    assert rejected == keys[3:]
    assert {channel.key for channel in sides["initiator"].channels} == set(wanted.values())


@pytest.mark.parametrize("seed", range(25))
def test_a_conversation_does_not_depend_on_how_its_bytes_are_cut(seed: int) -> None:
    try:
        conversation(random.Random(seed), [1, 2, 3, 50, 1000, 10_000, 100_000])
    except AssertionError as error:
        raise AssertionError(f"seed {seed}") from error


@pytest.mark.parametrize("seed", range(3))
def test_a_conversation_passes_one_byte_at_a_time(seed: int) -> None:
    try:
        conversation(random.Random(1000 + seed), [1])
    except AssertionError as error:
        raise AssertionError(f"seed {1000 + seed}") from error


# ---- the peer finishes -----------------------------------------------------------------------------


def test_a_finished_peer_is_told_and_can_still_be_written_to() -> None:
    initiator, ours, responder, _ = opened()
    initiator.receive_eof()
    assert initiator.events() == [PeerFinished()]
    ours.send(Cancel(1))
    pump(initiator, responder)
    assert received(responder) == [Cancel(1)]


def test_an_end_inside_a_frame_is_an_abort() -> None:
    initiator, ours, responder, _ = opened()
    ours.send(Cancel(1))
    responder.receive_data(initiator.data_to_send()[:-1])
    with pytest.raises(ProtocolError, match="inside a frame"):
        responder.receive_eof()
    assert responder.error is not None


def test_an_end_before_the_handshake_is_done_is_a_failed_handshake() -> None:
    connection = make_connection("initiator")
    with pytest.raises(HandshakeError):
        connection.receive_eof()


# ---- time ------------------------------------------------------------------------------------------


def tick(connection: Connection, *, until: float) -> list[float]:
    """Let time pass as a session does; gives the moments at which something was written."""
    written = []
    while (due := connection.next_timeout()) is not None and due <= until:
        connection.handle_timeout(due)
        if connection.data_to_send():
            written.append(due)
    return written


def test_a_handshake_that_stalls_is_ended_after_ten_seconds() -> None:
    connection = make_connection("responder")
    assert connection.next_timeout() == 0.0
    connection.handle_timeout(1000.0)
    with pytest.raises(HandshakeError, match="10 seconds"):
        tick(connection, until=1011.0)
    assert connection.next_timeout() is None


def test_dribbling_bytes_does_not_prolong_the_handshake() -> None:
    connection = make_connection("responder")
    connection.handle_timeout(0.0)
    for second in range(1, 10):
        connection.receive_data(b"\x20\x00\x00" if second == 1 else b"x")
        connection.handle_timeout(float(second))
    with pytest.raises(HandshakeError):
        connection.handle_timeout(10.0)


def test_an_idle_connection_keeps_itself_alive_every_five_seconds() -> None:
    initiator, _, responder, _ = opened()
    initiator.handle_timeout(0.0)
    responder.handle_timeout(0.0)
    times: list[float] = []
    for second in range(1, 61):
        for sender, receiver in (initiator, responder), (responder, initiator):
            sender.handle_timeout(float(second))
            data = sender.data_to_send()
            if data:
                assert len(data) == 20
                receiver.receive_data(data)
                times += [second] if sender is initiator else []
        assert initiator.events() == responder.events() == []
    gaps = [later - sooner for sooner, later in itertools.pairwise(times)]
    assert times
    assert set(gaps) <= {5.0, 6.0}


def test_a_connection_that_writes_needs_no_keepalive() -> None:
    initiator, ours, _, _ = opened()
    initiator.handle_timeout(0.0)
    for second in range(1, 25):
        ours.send(Cancel(second))
        initiator.data_to_send()
        initiator.handle_timeout(float(second))
        assert not initiator.data_to_send()


def test_a_silent_peer_is_ended_after_thirty_seconds() -> None:
    initiator, _, _, _ = opened()
    initiator.handle_timeout(0.0)
    tick(initiator, until=29.5)
    with pytest.raises(PeerTimeoutError) as caught:
        tick(initiator, until=32.0)
    assert isinstance(caught.value, TimeoutError)
    assert initiator.error is caught.value


def test_a_peer_that_we_do_not_listen_to_is_not_silent() -> None:
    initiator, _, _, _ = opened()
    initiator.handle_timeout(0.0)
    for second in range(1, 100):
        initiator.handle_timeout(float(second), is_reading=False)
    tick(initiator, until=129.0 - 0.5)
    with pytest.raises(PeerTimeoutError):
        tick(initiator, until=131.0)


def test_a_keepalive_is_a_sign_of_life() -> None:
    initiator, _, responder, _ = opened()
    initiator.handle_timeout(0.0)
    responder.handle_timeout(0.0)
    for second in range(1, 120):
        for connection in initiator, responder:
            connection.handle_timeout(float(second))
        pump(initiator, responder)
    assert initiator.error is responder.error is None


def test_a_finished_peer_may_be_silent() -> None:
    initiator, _, _, _ = opened()
    initiator.receive_eof()
    initiator.handle_timeout(0.0)
    tick(initiator, until=100.0)
    assert initiator.error is None


# ---- the caller's mistakes -------------------------------------------------------------------------


def test_a_channel_needs_the_handshake_and_a_whole_key() -> None:
    connection = make_connection("initiator")
    with pytest.raises(ValueError, match="handshake"):
        connection.open_channel(CORE_KEY)
    initiator, _ = connected()
    with pytest.raises(ValueError, match="31 bytes"):
        initiator.open_channel(CORE_KEY[:31])

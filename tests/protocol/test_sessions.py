"""Whole sessions that two Node cores recorded: every frame is understood, and written again byte for byte."""

from __future__ import annotations

from typing import Any

import pytest

from hypercore.encoding import encode_uint
from hypercore.protocol.channel import ALIASES, PROTOCOL
from hypercore.protocol.connection import Connection
from hypercore.protocol.events import (
    ChannelClosed,
    ChannelOffered,
    ChannelOpened,
    Event,
    HandshakeDone,
    MessageReceived,
)
from hypercore.protocol.messages import ChannelHandshake, Message, decode, encode, encode_channel_handshake
from hypercore.protocol.mux import ChannelState, Mux, MuxChannel, Offer
from tests.protocol.support import EPHEMERAL, SESSIONS, STATIC, load, message_of

ROLES = {"a": "initiator", "b": "responder"}
WITH_RAW_BYTES = [name for name in SESSIONS if "raw" in load(name)]


class Side(Mux):
    """One end of a replayed session; its channels decode what they receive."""

    def __init__(self) -> None:
        super().__init__(aliases=ALIASES)
        self.received: list[Message] = []
        self.offers: list[Offer] = []

    def on_offer(self, offer: Offer) -> None:
        self.offers.append(offer)


class Decoding(MuxChannel):
    def __init__(self, side: Side, id: bytes, handshake: bytes) -> None:  # noqa: A002
        super().__init__(PROTOCOL, id, handshake)
        self._side = side

    def on_item(self, data: bytes, offset: int, end: int) -> None:
        message = decode(data, offset, end)
        assert message is not None
        self._side.received.append(message)


def act(side: Side, item: dict[str, Any], expected: list[Message]) -> bool:
    """Do what the recorded item says was done; whether our side could."""
    if item["name"] == "open":
        handshake = ChannelHandshake(item["handshake"]["seeks"], bytes.fromhex(item["handshake"]["capability"]))
        channel = Decoding(side, bytes.fromhex(item["channelId"]), encode_channel_handshake(handshake))
        side.open(channel)
        assert channel.local_id == item["id"]
        return True
    number = item["id"] if item["name"] == "close" else item["channel"]
    found = [channel for channel in side.channels if channel.local_id == number]
    if not found:
        # The other side's close crossed this one on the way: nothing of ours is open any more.
        assert item["name"] == "close"
        return False
    if item["name"] == "close":
        side.close(found[0])
        return True
    message = message_of(item["name"], item["value"])
    parts: list[bytes] = []
    side.send(found[0], parts, encode(message, parts))
    assert b"".join(parts) == bytes([item["type"]]) + bytes.fromhex(item["payload"])
    expected.append(message)
    return True


@pytest.mark.parametrize("name", SESSIONS)
def test_a_session_replays_in_both_directions(name: str) -> None:
    sides = {"a": Side(), "b": Side()}
    count = 0
    for entry in load(name)["frames"]:
        if "frame" not in entry:
            continue
        sender, receiver = sides[entry["from"]], sides["b" if entry["from"] == "a" else "a"]
        recorded, frame = bytes.fromhex(entry["hex"]), entry["frame"]
        items = frame["items"] if frame["name"] == "batch" else [frame]
        expected: list[Message] = []
        done = [act(sender, item, expected) for item in items]
        if all(done):
            (written,) = sender.take_frames()
            if frame["name"] == "batch" and len(items) == 1:
                # Node writes a batch even for a single item; ours is the plain message that is in it.
                channel = encode_uint(items[0]["channel"])
                assert written.startswith(channel)
                item = written[len(channel) :]
                written = b"\x00\x00" + channel + encode_uint(len(item)) + item
            assert written == recorded
        before = len(receiver.received)
        deciding = len(receiver.offers)
        receiver.receive(recorded)
        if len(receiver.offers) == deciding and any(
            channel.state is ChannelState.OPEN for channel in receiver.channels
        ):
            assert receiver.received[before:] == expected
            count += len(expected)
    assert count > 5


def drain(connection: Connection, key: bytes) -> list[Event]:
    """Take events, accepting every offer."""
    events: list[Event] = []
    while taken := connection.events():
        events += taken
        for event in taken:
            if isinstance(event, ChannelOffered):
                connection.open_channel(key)
    return events


@pytest.mark.parametrize("listener", ["initiator", "responder"])
@pytest.mark.parametrize("name", WITH_RAW_BYTES)
def test_raw_socket_bytes_decrypt_to_the_recorded_messages(name: str, listener: str) -> None:
    """One recorded side speaks to our connection, which holds the other one's keys."""
    session = load(name)
    speaker = "responder" if listener == "initiator" else "initiator"
    key = bytes.fromhex(session["key"])
    connection = Connection(
        "initiator" if listener == "initiator" else "responder",
        STATIC[listener],
        ephemeral=EPHEMERAL[listener],
        header=bytes(24),
    )
    raw = bytes.fromhex(session["raw"][f"{speaker}Bytes"])
    own = bytes.fromhex(session["raw"][f"{listener}Bytes"])
    events: list[Event] = []
    for offset in range(0, len(raw), 100):
        connection.receive_data(raw[offset : offset + 100])
        events += drain(connection, key)
        if offset == 0:
            assert connection.remote_public_key is not None or listener == "responder"
    assert own.startswith(connection.data_to_send()[: 3 + (32 if listener == "initiator" else 96)])
    connection.receive_eof()

    done = events[0]
    assert isinstance(done, HandshakeDone)
    assert done.handshake_hash.hex() == session["handshakeHash"]
    assert done.remote_public_key.hex() == session[speaker]["publicKey"]
    assert sum(isinstance(event, ChannelOpened) for event in events) == 1
    assert not any(isinstance(event, ChannelClosed) for event in events)
    expected = []
    for entry in session["frames"]:
        if "frame" in entry and ROLES[entry["from"]] == speaker:
            items = entry["frame"].get("items", [entry["frame"]])
            expected += [message_of(item["name"], item["value"]) for item in items if "value" in item]
    assert [event.message for event in events if isinstance(event, MessageReceived)] == expected
    assert len(expected) > 10


def test_four_sessions_hold_raw_bytes() -> None:
    assert len(WITH_RAW_BYTES) == 4
    assert len(SESSIONS) == 23

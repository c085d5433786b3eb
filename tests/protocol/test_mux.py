"""Channels: recorded scenarios, malformed frames and their fate, the life of a channel, batches, and bounds."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from hypercore.encoding import Reader, encode_buffer, encode_uint
from hypercore.errors import DecodeError, ProtocolError
from hypercore.protocol.limits import Limits
from hypercore.protocol.mux import MAX_ITEM_SIZE, ChannelState, Mux, MuxChannel, Offer
from hypercore.protocol.secret_stream import MAX_MESSAGE_SIZE
from tests.protocol.support import load

VECTORS = load("protomux.json")


class Recorder(MuxChannel):
    """Remembers what happens to it, in order."""

    def __init__(self, protocol: bytes, id: bytes = b"", handshake: bytes = b"") -> None:  # noqa: A002
        super().__init__(protocol, id, handshake)
        self.log: list[tuple[str, bytes]] = []

    def on_open(self, handshake: bytes) -> None:
        self.log.append(("open", handshake))

    def on_reject(self) -> None:
        self.log.append(("reject", b""))

    def on_close(self) -> None:
        self.log.append(("close", b""))

    def on_item(self, data: bytes, offset: int, end: int) -> None:
        self.log.append(("item", data[offset:end]))

    @property
    def items(self) -> list[bytes]:
        return [data for kind, data in self.log if kind == "item"]


class Listener(Mux):
    """Keeps offers in a list, or hands them to `decide`."""

    def __init__(
        self,
        decide: Callable[[Listener, Offer], None] | None = None,
        *,
        aliases: dict[bytes, bytes] | None = None,
        limits: Limits | None = None,
    ) -> None:
        super().__init__(aliases=aliases, limits=limits or Limits())
        self.offered: list[Offer] = []
        self._decide = decide

    def on_offer(self, offer: Offer) -> None:
        self.offered.append(offer)
        if self._decide is not None:
            self._decide(self, offer)


def decline(mux: Listener, offer: Offer) -> None:
    mux.reject(offer)


def accept(mux: Listener, offer: Offer) -> None:
    mux.open(Recorder(offer.protocol, offer.id))


def send(mux: Mux, channel: MuxChannel, item: bytes) -> None:
    mux.send(channel, (item,), len(item))


def sent(mux: Mux) -> list[str]:
    return [frame.hex() for frame in mux.take_frames()]


def carry(sender: Mux, receiver: Mux) -> list[bytes]:
    frames = sender.take_frames()
    for frame in frames:
        receiver.receive(frame)
    return frames


def opened() -> tuple[Listener, Recorder, Listener, Recorder]:
    """Two muxes with one channel open between them."""
    a, b = Listener(), Listener()
    ours, theirs = Recorder(b"p"), Recorder(b"p")
    a.open(ours)
    carry(a, b)
    b.open(theirs)
    carry(b, a)
    return a, ours, b, theirs


def open_frame(remote_id: int, protocol: bytes = b"p", id: bytes = b"", handshake: bytes = b"") -> bytes:  # noqa: A002
    return b"\x00\x01" + encode_uint(remote_id) + encode_buffer(protocol) + encode_buffer(id) + handshake


# ---- recorded scenarios ----------------------------------------------------------------------------


def scenario(number: int) -> tuple[str, list[str]]:
    """The scenario's name and the frames of a side, as they were written, `a:` or `b:` in front."""
    vector = VECTORS["scenarios"][number]
    return vector["name"], [f"{f['from']}:{f['hex']}" for f in vector["frames"] if "hex" in f]


class Stage:
    """Two muxes and everything that travels between them, as the recording writes it."""

    def __init__(self, a: Listener, b: Listener) -> None:
        self.a, self.b = a, b
        self.written: list[str] = []

    def flush(self, name: str) -> None:
        sender, receiver = (self.a, self.b) if name == "a" else (self.b, self.a)
        self.written += [f"{name}:{frame.hex()}" for frame in carry(sender, receiver)]


def test_all_recorded_scenarios_are_played() -> None:
    assert len(VECTORS["scenarios"]) == 7


def test_scenario_one_channel_one_message_close() -> None:
    _, frames = scenario(0)
    stage = Stage(Listener(), Listener())
    ours, theirs = Recorder(b"example"), Recorder(b"example")
    stage.a.open(ours)
    stage.flush("a")
    stage.b.open(theirs)
    stage.flush("b")
    send(stage.a, ours, bytes.fromhex("00026869"))
    stage.flush("a")
    send(stage.b, theirs, bytes.fromhex("00057468657265"))
    stage.flush("b")
    stage.a.close(ours)
    stage.flush("a")
    assert stage.written == frames
    assert theirs.log == [("open", b""), ("item", b"\x00\x02hi"), ("close", b"")]
    assert ours.log == [("open", b""), ("item", b"\x00\x05there")]


def test_scenario_open_with_id_and_handshake() -> None:
    _, frames = scenario(1)
    stage = Stage(Listener(), Listener())
    ours = Recorder(b"hypercore/alpha", b"\x09" * 32, encode_buffer(b"from a"))
    theirs = Recorder(b"hypercore/alpha", b"\x09" * 32, encode_buffer(b"from b"))
    stage.a.open(ours)
    stage.flush("a")
    stage.b.open(theirs)
    stage.flush("b")
    assert stage.written == frames
    assert theirs.log == [("open", b"\x06from a")]
    assert ours.log == [("open", b"\x06from b")]


def test_scenario_batches() -> None:
    _, frames = scenario(2)
    a, b = Listener(), Listener(accept)
    stage = Stage(a, b)
    one, two = Recorder(b"one"), Recorder(b"two")
    for channel in one, two:
        a.open(channel)
        stage.flush("a")
    # b had opened both as well; here it accepts, and its two opens leave in one batch.
    assert stage.written == frames[:2]
    stage.flush("b")
    assert one.state is two.state is ChannelState.OPEN
    for hex_frame in frames[4:6]:
        b.receive(bytes.fromhex(hex_frame[2:]))
    b_one, b_two = (channel for channel in b.channels if isinstance(channel, Recorder))
    assert b_one.items == [b"\x00\x01a", bytes.fromhex("01fd2c01"), b"\x00\x01b", b"\x01\x01"]
    assert b_two.items == [b"\x00\x01c"]
    send(a, one, b"\x00\x01a")
    send(a, one, bytes.fromhex("01fd2c01"))
    assert ["a:" + frame for frame in sent(a)] == [frames[4]]
    send(a, one, b"\x00\x01b")
    send(a, two, b"\x00\x01c")
    send(a, one, b"\x01\x01")
    assert ["a:" + frame for frame in sent(a)] == [frames[5]]
    a.open(Recorder(b"three"))
    three = a.channel(b"three", b"")
    assert three is not None
    send(a, three, b"\x00\x05early")
    a.close(two)
    frame = a.take_frames()
    assert ["a:" + data.hex() for data in frame] == [frames[6]]
    b.receive(frame[0])
    b_three = b.channel(b"three", b"")
    assert isinstance(b_three, Recorder)
    assert b_three.log == [("open", b""), ("item", b"\x00\x05early")]
    assert b_two.log[-1] == ("close", b"")
    # Node writes a lone item as a batch; it is read all the same.
    b.receive(bytes.fromhex(frames[7][2:]))
    assert b_one.items[-1] == bytes.fromhex("0107")


def test_scenario_rejected_id_is_used_again() -> None:
    _, frames = scenario(3)
    stage = Stage(Listener(), Listener())
    nobody, somebody = Recorder(b"nobody"), Recorder(b"somebody")
    stage.a.open(nobody)
    stage.flush("a")
    stage.b.reject(stage.b.offered[0])
    stage.flush("b")
    assert nobody.log == [("reject", b"")]
    assert nobody.state is ChannelState.CLOSED
    stage.a.open(somebody)
    stage.flush("a")
    stage.b.open(Recorder(b"somebody"))
    stage.flush("b")
    assert stage.written == frames
    assert somebody.state is ChannelState.OPEN


def test_scenario_messages_before_the_answer_are_kept_and_a_closed_channel_reopens() -> None:
    _, frames = scenario(4)
    stage = Stage(Listener(), Listener())
    ours, theirs = Recorder(b"lazy"), Recorder(b"lazy")
    stage.a.open(ours)
    stage.flush("a")
    early = bytes.fromhex(frames[1][2:])[1:]
    send(stage.a, ours, early)
    stage.flush("a")
    stage.b.open(theirs)
    stage.flush("b")
    assert theirs.log == [("open", b""), ("item", early)]
    stage.a.close(ours)
    stage.flush("a")
    assert theirs.log[-1] == ("close", b"")
    stage.a.open(Recorder(b"lazy"))
    stage.flush("a")
    stage.b.open(Recorder(b"lazy"))
    stage.flush("b")
    assert stage.written == frames


def test_scenario_two_names_of_one_protocol_pair() -> None:
    _, frames = scenario(5)
    aliases = {b"old-name": b"new-name"}
    b = Listener(accept, aliases=aliases)
    b.receive(bytes.fromhex(frames[0][2:]))
    channel = b.channel(b"new-name", b"\xaa")
    assert isinstance(channel, Recorder)
    assert channel.state is ChannelState.OPEN
    assert ["b:" + frame for frame in sent(b)] == frames[1:]


def test_scenario_a_reject_of_what_we_did_not_wait_for_is_dropped() -> None:
    """b opened `new-name` for a's `old-name`; a, which knows no alias, rejects b's open. Node's b ends there."""
    _, frames = scenario(6)
    b = Listener(accept, aliases={b"old-name": b"new-name"})
    b.receive(bytes.fromhex(frames[0][2:]))
    assert ["b:" + frame for frame in sent(b)] == frames[1:2]
    b.receive(bytes.fromhex(frames[2][2:]))
    assert [channel.state for channel in b.channels] == [ChannelState.OPEN]


# ---- malformed frames ------------------------------------------------------------------------------

#: Where we end the stream and Node goes on (wire spec, section 7).
STRICTER = {"batch whose last item claims too much", "batch inside a batch"}
#: Where Node ends the stream and we go on.
MILDER = {"reject of an id never opened"}


class StringChannel(Recorder):
    """The recording's receiver: message type 0 is one string, other types are unknown."""

    def on_item(self, data: bytes, offset: int, end: int) -> None:
        reader = Reader(data, offset, end)
        if reader.uint() == 0:
            self.log.append(("item", reader.string().encode()))


@pytest.mark.parametrize("case", VECTORS["injected"]["cases"], ids=lambda case: case["name"])
def test_malformed_frames_meet_the_fate_that_the_spec_names(case: dict[str, Any]) -> None:
    mux = Listener(decline)
    channel = StringChannel(b"p")
    mux.open(channel)
    answers = mux.take_frames()
    if case["before"]:
        mux.receive(bytes.fromhex(case["before"]))
    ends = case["name"] in STRICTER or (case["destroyed"] is not None and case["name"] not in MILDER)
    if ends:
        with pytest.raises((ProtocolError, DecodeError)):
            mux.receive(bytes.fromhex(case["frame"]))
    else:
        mux.receive(bytes.fromhex(case["frame"]))
        # The recording's receiver takes a rejected or closed channel for what it is and sends nothing more.
        assert [item.decode() for item in channel.items] == case["received"]
        assert [frame.hex() for frame in answers + mux.take_frames()] == case["sentByOther"]


def test_the_cases_that_differ_from_node_are_among_the_recorded() -> None:
    cases = {case["name"] for case in VECTORS["injected"]["cases"]}
    assert len(cases) == 25
    assert cases >= STRICTER | MILDER


# ---- the life of a channel -------------------------------------------------------------------------


def test_two_opens_that_cross_are_one_channel() -> None:
    a, b = Listener(), Listener()
    ours, theirs = Recorder(b"p", b"x", b"A"), Recorder(b"p", b"x", b"B")
    a.open(ours)
    b.open(theirs)
    forth, back = a.take_frames(), b.take_frames()
    b.receive(forth[0])
    a.receive(back[0])
    assert ours.log == [("open", b"B")]
    assert theirs.log == [("open", b"A")]
    assert not a.offered
    assert not b.offered
    assert not a.take_frames()


def test_each_side_numbers_channels_for_itself() -> None:
    a, b = Listener(), Listener(accept)
    b.open(Recorder(b"only-b"))
    carry(b, a)
    first, second = Recorder(b"first"), Recorder(b"second")
    a.open(first)
    a.open(second)
    carry(a, b)
    carry(b, a)
    theirs = b.channel(b"second", b"")
    assert isinstance(theirs, Recorder)
    assert (second.local_id, second.remote_id, theirs.local_id, theirs.remote_id) == (2, 3, 3, 2)
    send(b, theirs, b"\x00hello")
    carry(b, a)
    assert second.items == [b"\x00hello"]
    a.close(second)
    carry(a, b)
    assert theirs.log[-1] == ("close", b"")


def test_closes_that_cross_are_ignored_and_both_ids_are_free() -> None:
    a, ours, b, theirs = opened()
    a.close(ours)
    b.close(theirs)
    forth, back = a.take_frames(), b.take_frames()
    b.receive(forth[0])
    a.receive(back[0])
    assert ours.log == theirs.log == [("open", b"")]
    again = Recorder(b"p")
    a.open(again)
    assert again.local_id == 1
    carry(a, b)
    b.open(Recorder(b"p"))
    carry(b, a)
    assert again.state is ChannelState.OPEN


def test_what_is_under_way_on_a_closed_channel_is_ignored() -> None:
    a, ours, b, theirs = opened()
    send(b, theirs, b"\x00late")
    a.close(ours)
    carry(b, a)
    assert ours.items == []
    send(a, ours, b"\x00nowhere")
    assert len(a.take_frames()) == 1


def test_an_opening_channel_closes_once_the_peer_has_opened() -> None:
    a, b = Listener(), Listener()
    ours, theirs = Recorder(b"p"), Recorder(b"p")
    a.open(ours)
    carry(a, b)
    a.close(ours)
    send(a, ours, b"\x00nowhere")
    assert not a.take_frames()
    assert a.channels == [ours]
    b.open(theirs)
    carry(b, a)
    assert ours.state is ChannelState.CLOSED
    assert ours.log == []
    carry(a, b)
    assert theirs.log == [("open", b""), ("close", b"")]


def test_an_opening_channel_that_was_closed_may_be_rejected() -> None:
    a, b = Listener(), Listener(decline)
    ours = Recorder(b"p")
    a.open(ours)
    a.close(ours)
    carry(a, b)
    carry(b, a)
    assert ours.state is ChannelState.CLOSED
    assert ours.log == []
    a.open(Recorder(b"p"))


def test_closing_may_be_taken_back_until_the_peer_answers() -> None:
    a, b = Listener(), Listener(accept)
    ours = Recorder(b"p")
    a.open(ours)
    a.close(ours)
    a.keep(ours)
    carry(a, b)
    carry(b, a)
    assert ours.state is ChannelState.OPEN


def test_an_offer_may_be_taken_back() -> None:
    mux = Listener()
    mux.receive(open_frame(1))
    mux.receive(b"\x01\x00held")
    mux.receive(b"\x00\x03\x01")
    assert mux.undecided_size == 0
    mux.reject(mux.offered[0])
    assert not mux.take_frames()
    channel = Recorder(b"p")
    mux.open(channel)
    assert channel.state is ChannelState.OPENING
    mux.receive(open_frame(1))
    assert channel.log == [("open", b"")]


def test_a_second_offer_of_a_pair_is_rejected() -> None:
    mux = Listener()
    mux.receive(open_frame(1))
    mux.receive(open_frame(2))
    assert len(mux.offered) == 1
    assert sent(mux) == ["000202"]
    mux.open(Recorder(b"p"))
    assert sent(mux) == ["000101017000"]
    mux.receive(open_frame(2))
    assert sent(mux) == ["000202"]


def test_opening_an_open_pair_twice_is_the_callers_mistake() -> None:
    a, _, _, _ = opened()
    with pytest.raises(ValueError, match="open already"):
        a.open(Recorder(b"p"))


def test_an_offer_whose_handshake_is_refused_is_not_answered() -> None:
    class Picky(Recorder):
        def on_open(self, handshake: bytes) -> None:
            raise ProtocolError("no")

    mux = Listener()
    mux.receive(open_frame(1))
    with pytest.raises(ProtocolError):
        mux.open(Picky(b"p"))
    assert not mux.take_frames()


# ---- batches ---------------------------------------------------------------------------------------


def test_what_is_queued_between_two_takes_is_one_frame() -> None:
    a, ours, b, theirs = opened()
    for number in range(50):
        send(a, ours, bytes([0, number]))
    frames = carry(a, b)
    assert len(frames) == 1
    assert theirs.items == [bytes([0, number]) for number in range(50)]
    send(a, ours, b"\x00x")
    assert sent(a) == ["010078"]


def test_a_batch_is_closed_at_its_limit_and_order_is_kept() -> None:
    rng = random.Random(7)
    limits = Limits(batch_size=10_000)
    a, b = Listener(limits=limits), Listener(accept)
    channels = [Recorder(bytes([65 + number])) for number in range(5)]
    for channel in channels:
        a.open(channel)
    carry(a, b)
    carry(b, a)
    written: dict[bytes, list[bytes]] = {channel.protocol: [] for channel in channels}
    for _ in range(500):
        channel = rng.choice(channels)
        item = b"\x00" + rng.randbytes(rng.choice([0, 1, 251, 252, 253, 5000, 30_000]))
        written[channel.protocol].append(item)
        send(a, channel, item)
    queued = a.queued_size
    frames = carry(a, b)
    assert all(len(frame) <= 10_000 or len(frame) <= 30_001 + 20 for frame in frames)
    assert sum(map(len, frames)) <= queued <= sum(map(len, frames)) + 500 * 20
    assert a.queued_size == 0
    for theirs in b.channels:
        assert isinstance(theirs, Recorder)
        assert theirs.items == written[theirs.protocol], "seed 7"


def test_the_longest_item_fits_into_one_frame_and_a_longer_one_is_refused() -> None:
    a, ours, b, theirs = opened()
    item = bytes(MAX_ITEM_SIZE)
    send(a, ours, b"\x00before")
    send(a, ours, item)
    send(a, ours, b"\x00after")
    frames = carry(a, b)
    assert [len(frame) <= MAX_MESSAGE_SIZE for frame in frames] == [True] * 3
    assert theirs.items == [b"\x00before", item, b"\x00after"]
    with pytest.raises(ValueError, match="does not fit"):
        send(a, ours, item + b"x")


def test_even_the_largest_batches_fit_into_a_frame() -> None:
    a, ours, _, _ = opened()
    a._batch_size = MAX_ITEM_SIZE
    half = bytes(MAX_ITEM_SIZE // 2 - 19)
    send(a, ours, half)
    send(a, ours, half)
    frames = a.take_frames()
    assert len(frames) == 1
    assert len(frames[0]) <= MAX_MESSAGE_SIZE


# ---- bounds ----------------------------------------------------------------------------------------


def test_channels_are_bounded_and_further_opens_rejected() -> None:
    mux = Listener(limits=Limits(channels=10))
    for number in range(1, 11):
        mux.receive(open_frame(number, bytes([number])))
    mux.receive(open_frame(11, b"one too many"))
    assert len(mux.offered) == 10
    assert sent(mux) == ["00020b"]
    mux.reject(mux.offered[0])
    mux.receive(open_frame(11, b"room again"))
    assert len(mux.offered) == 11


def test_our_own_open_is_answered_however_many_channels_there_are() -> None:
    mux = Listener(limits=Limits(channels=3))
    ours = Recorder(b"ours")
    mux.open(ours)
    for number in (1, 2):
        mux.receive(open_frame(number, bytes([number])))
    mux.receive(open_frame(3, b"ours"))
    assert ours.state is ChannelState.OPEN


def test_bytes_on_offered_channels_are_counted_and_bounded() -> None:
    mux = Listener(limits=Limits(undecided_size_max=10_000))
    mux.receive(open_frame(1, handshake=bytes(33)))
    assert mux.undecided_size == 33
    mux.receive(b"\x01\x00" + bytes(100))
    assert mux.undecided_size == 33 + 101 + 512
    mux.open(Recorder(b"p"))
    assert mux.undecided_size == 0
    mux.receive(open_frame(2, b"q"))
    flood = b"\x00\x00\x02" + b"\x01\x00" * 1000
    with pytest.raises(ProtocolError, match="nobody has accepted"):
        mux.receive(flood)
    assert mux.undecided_size < 11_000


def test_a_peer_that_opens_and_never_reads_is_ended() -> None:
    mux = Listener(decline, limits=Limits(unsent_rejects=100))
    for _ in range(100):
        mux.receive(open_frame(1))
    mux.take_frames()
    item = open_frame(1)[1:]
    flood = b"\x00\x00\x00" + (encode_uint(len(item)) + item) * 101
    with pytest.raises(ProtocolError, match="does not read"):
        mux.receive(flood)


def test_names_are_bounded() -> None:
    mux = Listener()
    mux.receive(open_frame(1, b"p" * 256, b"i" * 256))
    for frame in open_frame(2, b"p" * 257), open_frame(2, b"p", b"i" * 257):
        with pytest.raises(DecodeError):
            mux.receive(frame)


def test_ids_are_dense_whatever_the_peer_claims() -> None:
    mux = Listener()
    for claimed in 0, 2, 2**32, 2**53 - 1:
        with pytest.raises(ProtocolError, match="out of order"):
            mux.receive(open_frame(claimed))


@pytest.mark.parametrize("seed", range(30))
def test_random_frames_are_taken_or_refused_and_nothing_else(seed: int) -> None:
    rng = random.Random(seed)
    frames = [
        bytes.fromhex(frame["hex"]) for vector in VECTORS["scenarios"] for frame in vector["frames"] if "hex" in frame
    ]
    mux = Listener(lambda mux, offer: rng.choice([accept, decline, lambda *_: None])(mux, offer))
    for _ in range(400):
        data = bytearray(rng.choice(frames) if rng.random() < 0.7 else rng.randbytes(rng.randrange(30)))
        for _ in range(rng.randrange(3)):
            if data:
                data[rng.randrange(len(data))] = rng.choice([0, 1, 2, 3, 0xFD, 0xFF, rng.randrange(256)])
        try:
            mux.receive(bytes(data))
        except (ProtocolError, DecodeError):
            mux = Listener(accept)
        for channel in mux.channels:
            if rng.random() < 0.1:
                mux.close(channel)
        mux.take_frames()
        assert mux.undecided_size >= 0, f"seed {seed}"

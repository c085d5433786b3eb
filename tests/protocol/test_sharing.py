"""Several readers of one log spare the writer: each begins elsewhere, and they take from each other what is there."""

from __future__ import annotations

import random

from hypercore.protocol.remote import Ask, RemotePeer
from hypercore.protocol.replicator import ASKED_BYTES, FEWEST_ASKS, HOT_SWAP_SECONDS, MOST_ASKS, Replicator
from hypercore.protocol.wanted import Download
from tests.protocol.test_replicator import Local, block_answer, indexes, peer_with

LENGTH = 1000


def reader(scatter: float, *peers: RemotePeer, size: int = 100) -> tuple[Local, Replicator]:
    local = Local(length=LENGTH, byte_length=size * LENGTH)
    replicator = Replicator(local, scatter=scatter)
    for peer in peers:
        replicator.add_peer(peer)
    return local, replicator


def answer_all(local: Local, replicator: Replicator, peer: RemotePeer, now: float) -> None:
    for ask in list(peer.asks.values()):
        assert replicator.answered(peer, block_answer(ask), now) is ask
        local.bitfield.set_range(ask.index, 1, True)


def test_with_one_peer_a_download_begins_at_its_beginning() -> None:
    writer = peer_with(LENGTH)
    _, replicator = reader(0.5, writer)
    replicator.add_download(Download(0, None))
    assert indexes(replicator.next_asks(writer, 0.0)) == list(range(MOST_ASKS))


def test_with_several_peers_it_begins_anywhere_and_comes_back_to_the_rest() -> None:
    writer, other = peer_with(LENGTH), peer_with(LENGTH, holds=0)
    local, replicator = reader(0.75, writer, other)
    download = Download(0, LENGTH)
    replicator.add_download(download)
    first = indexes(replicator.next_asks(writer, 0.0))
    assert first == [*range(750, 1000), *range(262)]
    answer_all(local, replicator, writer, 0.1)
    assert indexes(replicator.next_asks(writer, 0.1)) == list(range(262, 750))
    replicator.remove_download(download)
    assert writer.cursors == other.cursors == {}


def test_who_reads_from_the_first_block_on_gets_it_first() -> None:
    writer, other = peer_with(LENGTH), peer_with(LENGTH, holds=0)
    _, replicator = reader(0.75, writer, other)
    replicator.add_download(Download(10, None, linear=True))
    assert indexes(replicator.next_asks(writer, 0.0))[:3] == [10, 11, 12]


def test_of_what_a_swift_peer_with_less_has_nothing_is_asked_of_one_with_more() -> None:
    writer, other = peer_with(LENGTH), peer_with(LENGTH, holds=100)
    local, replicator = reader(0.0, writer, other)
    replicator.add_download(Download(0, 300))
    large = ASKED_BYTES // 40
    local.byte_length = large * LENGTH  # A window of forty blocks.
    assert indexes(replicator.next_asks(other, 0.0)) == list(range(40))
    assert indexes(replicator.next_asks(writer, 0.1)) == list(range(100, 120))  # Two who deliver share the window.


def test_a_peer_with_less_that_is_slow_spares_nobody() -> None:
    writer, other = peer_with(LENGTH), peer_with(LENGTH, holds=100)
    local, replicator = reader(0.0, writer, other)
    replicator.add_download(Download(0, 300))
    local.byte_length = ASKED_BYTES // 40 * LENGTH
    replicator.next_asks(other, 0.0)
    assert indexes(replicator.next_asks(writer, HOT_SWAP_SECONDS))[0] == 40


def test_when_the_peer_with_less_has_no_more_the_other_one_is_woken_and_asked() -> None:
    writer, other = peer_with(LENGTH), peer_with(LENGTH, holds=100)
    local, replicator = reader(0.0, writer, other)
    replicator.add_download(Download(0, 100))
    local.byte_length = ASKED_BYTES // 40 * LENGTH
    asked = indexes(replicator.next_asks(other, 0.0))
    assert replicator.next_asks(writer, 0.0) == []
    replicator.is_stirred = False
    answer_all(local, replicator, other, 0.1)
    assert replicator.is_stirred
    assert indexes(replicator.next_asks(writer, 0.1)) == list(range(len(asked), 2 * len(asked)))


def test_an_idle_peer_takes_the_last_of_what_another_one_is_slow_with_and_first_what_is_waited_for() -> None:
    slow, idle = peer_with(LENGTH), peer_with(LENGTH)
    _, replicator = reader(0.0, slow, idle)
    replicator.want_block(7)
    replicator.add_download(Download(0, 200))
    replicator.next_asks(slow, 0.0)
    assert replicator.next_asks(idle, 0.1) == []
    taken = indexes(replicator.next_asks(idle, HOT_SWAP_SECONDS))
    assert taken[:3] == [7, 199, 198]
    assert FEWEST_ASKS <= len(taken) < 200


def test_five_readers_take_less_than_half_of_it_from_the_writer() -> None:
    """In rounds: everybody answers everything that he was asked in the last one, half of the time."""
    seed, length, count = 11, 5000, 5
    dice = random.Random(seed)
    locals_ = [Local(length=length, byte_length=ASKED_BYTES // 64 * length) for _ in range(count)]
    readers = [Replicator(local, scatter=dice.random()) for local in locals_]
    writers = [peer_with(length) for _ in readers]
    # What reader `i` knows of reader `j`.
    known = [[peer_with(length, holds=0) for _ in readers] for _ in readers]
    for i, replicator in enumerate(readers):
        for peer in [writers[i], *(peer for j, peer in enumerate(known[i]) if j != i)]:
            replicator.add_peer(peer)
        replicator.add_download(Download(0, length))
    uploads = rounds = 0
    while any(local.bitfield.count(0, length) < length for local in locals_):
        rounds += 1
        now = rounds / 100
        assert rounds < 2000, f"seed {seed}: it does not end"
        gained: list[tuple[int, int]] = []
        for i, replicator in enumerate(readers):
            order = list(replicator.peers)
            dice.shuffle(order)
            for peer in order:
                replicator.next_asks(peer, now)
                if dice.random() < 0.5:
                    continue
                asks: list[Ask] = list(peer.asks.values())
                for ask in asks:
                    assert replicator.answered(peer, block_answer(ask), now) is ask
                    locals_[i].bitfield.set_range(ask.index, 1, True)
                    gained.append((i, ask.index))
                uploads += len(asks) if peer is writers[i] else 0
        for i, index in gained:
            for j in range(count):
                if j != i:
                    known[j][i].take_range(index, 1, drop=False)
    assert uploads < count * length / 2, f"seed {seed}: the writer uploaded {uploads / length:.2f} copies"


def test_the_whole_of_it_arrives_although_the_peer_with_less_goes() -> None:
    writer, other = peer_with(LENGTH), peer_with(LENGTH, holds=500)
    local, replicator = reader(0.3, writer, other)
    replicator.add_download(Download(0, LENGTH))
    replicator.next_asks(other, 0.0)
    replicator.next_asks(writer, 0.0)
    replicator.remove_peer(other)
    for step in range(20):
        answer_all(local, replicator, writer, step / 10)
        replicator.next_asks(writer, step / 10)
    assert local.bitfield.count(0, LENGTH) == LENGTH

"""The replicator decides what to ask of whom, without I/O: every rule as a promise, and a simulation."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from hypercore.bitfield import Bitfield
from hypercore.proofs import (
    BlockProof,
    HashProof,
    HashRequest,
    Proof,
    ProofRequest,
    SeekRequest,
    UpgradeProof,
    UpgradeRequest,
)
from hypercore.protocol import messages
from hypercore.protocol.remote import REMEMBERED_BLOCKS, WANT_REGION_BLOCKS, Ask, AskKind, Demand, RemotePeer
from hypercore.protocol.replicator import (
    ANSWER_TIMEOUT_SECONDS,
    HOT_SWAP_SECONDS,
    MOST_ASKS,
    MOST_STRIKES,
    MOST_TIMEOUTS,
    REFILL_SHARE,
    Replicator,
    UnaskedPartError,
)
from hypercore.protocol.wanted import Download


@dataclass
class Local:
    fork: int = 0
    length: int = 0
    byte_length: int = 0
    has_manifest: bool = True
    needs_manifest: bool = False
    bitfield: Bitfield = field(default_factory=Bitfield)


def peer_with(length: int, *, acked: int | None = None, fork: int = 0, holds: int | None = None) -> RemotePeer:
    peer = RemotePeer()
    peer.take_sync(
        messages.Sync(fork, length, length if acked is None else acked, True, True, True, True, False), local_fork=fork
    )
    peer.take_range(0, length if holds is None else holds, drop=False)
    return peer


def set_up(length: int, *peers: RemotePeer) -> tuple[Local, Replicator]:
    local = Local(length=length, byte_length=100 * length)
    replicator = Replicator(local)
    for peer in peers:
        replicator.add_peer(peer)
    return local, replicator


def indexes(asks: list[Ask]) -> list[int]:
    return [ask.index for ask in asks]


def block_answer(ask: Ask, fork: int = 0) -> messages.Data:
    return messages.Data(ask.id, Proof(fork, block=BlockProof(ask.index, b"x", ())))


def test_nothing_is_asked_of_a_peer_that_has_not_said_what_it_has() -> None:
    peer = RemotePeer()
    _, replicator = set_up(10, peer)
    replicator.add_download(Download(0, None))
    assert replicator.next_asks(peer, 0.0) == []


def test_an_upgrade_is_asked_only_when_the_peer_has_heard_our_length() -> None:
    late = peer_with(10, acked=3)
    _, replicator = set_up(5, late)
    assert replicator.next_asks(late, 0.0) == []
    late.take_sync(messages.Sync(0, 10, 5, True, True, True, True, False), local_fork=0)
    (ask,) = replicator.next_asks(late, 0.0)
    assert ask.kind is AskKind.UPGRADE
    assert ask.request.upgrade == UpgradeRequest(5, 5)


@pytest.mark.parametrize("length", [0, 5, 8])
def test_a_missing_manifest_is_asked_of_a_peer_that_has_it_also_when_nothing_else_is_missing(length: int) -> None:
    peer = peer_with(5 if length else 0, acked=length)
    local, replicator = set_up(length, peer)
    local.needs_manifest = True
    (ask,) = replicator.next_asks(peer, 0.0)
    assert (ask.kind, ask.request) == (AskKind.MANIFEST, ProofRequest(0, manifest=True))
    assert replicator.next_asks(peer, 1.0) == [], "once is enough"
    replicator.no_data(peer, ask.id, 1.0)
    assert replicator.next_asks(peer, 2.0) == [], "it does not have it after all"


def test_no_upgrade_is_asked_while_the_answer_to_one_is_on_the_way_into_the_storage() -> None:
    first, second = peer_with(10, acked=5), peer_with(12, acked=5)
    local, replicator = set_up(5, first, second)
    (ask,) = replicator.next_asks(first, 0.0)
    assert replicator.answered(first, messages.Data(ask.id, Proof(0)), 0.1) is ask
    replicator.storing_upgrades += 1
    assert replicator.next_asks(first, 0.2) == []
    assert replicator.next_asks(second, 5.0) == []
    replicator.storing_upgrades -= 1
    local.length = 10
    second.take_sync(messages.Sync(0, 12, 10, True, True, True, True, False), local_fork=0)
    assert [each.kind for each in replicator.next_asks(second, 5.1)] == [AskKind.UPGRADE]


def test_only_one_upgrade_is_in_flight_over_all_peers() -> None:
    first, second = peer_with(10, acked=0), peer_with(12, acked=0)
    _, replicator = set_up(0, first, second)
    assert len(replicator.next_asks(first, 0.0)) == 1
    assert replicator.next_asks(second, 0.0) == []
    replicator.remove_peer(first)
    assert [ask.kind for ask in replicator.next_asks(second, 0.0)] == [AskKind.UPGRADE]


def test_a_slow_upgrade_is_asked_of_another_peer_too() -> None:
    slow, quick, third = (peer_with(length, acked=5) for length in (1000, 12, 14))
    local, replicator = set_up(5, slow, quick, third)
    (first,) = replicator.next_asks(slow, 0.0)
    assert replicator.next_asks(quick, HOT_SWAP_SECONDS / 2) == []
    (second,) = replicator.next_asks(quick, HOT_SWAP_SECONDS)
    assert second.request.upgrade == UpgradeRequest(5, 7)
    assert replicator.next_asks(third, HOT_SWAP_SECONDS) == []
    assert replicator.next_asks(slow, 2 * HOT_SWAP_SECONDS) == [], "the slow one is not asked twice"
    assert replicator.answered(quick, messages.Data(second.id, Proof(0)), 1.0) is second
    local.length = 12
    assert replicator.answered(slow, messages.Data(first.id, Proof(0)), 1.0) is first


def test_a_slow_witness_of_a_fork_does_not_keep_from_another() -> None:
    slow, quick = peer_with(5, fork=1), peer_with(6, fork=1)
    _, replicator = set_up(10, slow, quick)
    assert [ask.kind for ask in replicator.next_asks(slow, 0.0)] == [AskKind.FORK]
    assert replicator.next_asks(quick, HOT_SWAP_SECONDS / 2) == []
    assert [ask.kind for ask in replicator.next_asks(quick, HOT_SWAP_SECONDS)] == [AskKind.FORK]
    replicator.forked(quick, 1, followed=True)
    assert replicator.settled(slow) is False, "its answer is still to come"


def test_the_first_new_block_travels_with_the_upgrade_when_it_is_wanted() -> None:
    peer = peer_with(8, acked=7)
    _, replicator = set_up(7, peer)
    replicator.want_block(7)
    (ask,) = replicator.next_asks(peer, 0.0)
    assert ask.request.block is not None
    assert (ask.kind, ask.request.block.index, ask.request.upgrade) == (AskKind.UPGRADE, 7, UpgradeRequest(7, 1))


def test_a_download_asks_each_missing_block_once_and_no_more_than_the_window() -> None:
    peer = peer_with(2000)
    local, replicator = set_up(2000, peer)
    local.bitfield.set_range(3, 4, True)
    replicator.add_download(Download(0, 2000))
    first = replicator.next_asks(peer, 0.0)
    assert indexes(first) == [0, 1, 2, *range(7, 7 + MOST_ASKS - 3)]
    assert replicator.next_asks(peer, 0.0) == []
    share = MOST_ASKS // REFILL_SHARE
    for ask in first[: share - 1]:
        assert replicator.answered(peer, block_answer(ask), 0.0) is ask
        local.bitfield.set(ask.index)
    assert replicator.next_asks(peer, 0.0) == [], "a few free places are not worth a message"
    replicator.answered(peer, block_answer(first[share - 1]), 0.0)
    local.bitfield.set(first[share - 1].index)
    assert indexes(replicator.next_asks(peer, 0.0)) == list(range(4 + MOST_ASKS, 4 + MOST_ASKS + share))


def test_large_blocks_narrow_the_window() -> None:
    peer = peer_with(2000)
    local, replicator = set_up(2000, peer)
    local.byte_length = 2000 * 1024 * 1024
    replicator.add_download(Download(0, None))
    assert len(replicator.next_asks(peer, 0.0)) == 16


def test_two_peers_share_a_download_without_overlap() -> None:
    one, two = peer_with(100), peer_with(100)
    _, replicator = set_up(100, one, two)
    replicator.add_download(Download(0, 100, blocks=list(range(0, 100, 2))))
    replicator.add_download(Download(0, 100))
    asked = indexes(replicator.next_asks(one, 0.0)) + indexes(replicator.next_asks(two, 0.0))
    assert sorted(asked) == list(range(100))


def test_blocks_that_a_peer_lost_are_asked_of_another() -> None:
    one, two = peer_with(10), peer_with(10)
    _, replicator = set_up(10, one, two)
    replicator.want_block(4)
    (ask,) = replicator.next_asks(one, 0.0)
    replicator.no_data(one, ask.id, 0.0)
    assert not one.has(4)
    assert one.has(3)
    assert one.has(5)
    assert replicator.next_asks(one, 0.0) == []
    assert indexes(replicator.next_asks(two, 0.0)) == [4]


def test_a_slow_block_is_asked_of_an_idle_peer_and_the_slower_answer_is_cancelled() -> None:
    slow, quick = peer_with(10), peer_with(10)
    local, replicator = set_up(10, slow, quick)
    replicator.want_block(4)
    (first,) = replicator.next_asks(slow, 0.0)
    assert replicator.next_asks(quick, HOT_SWAP_SECONDS / 2) == []
    (second,) = replicator.next_asks(quick, HOT_SWAP_SECONDS)
    assert second.index == 4
    assert replicator.answered(quick, block_answer(second), 1.0) is second
    local.bitfield.set(4)
    assert list(replicator.duplicates(second, quick)) == [(slow, first)]
    assert replicator.answered(slow, block_answer(first), 1.0) is None


def test_a_block_that_two_peers_are_slow_with_is_asked_of_a_third() -> None:
    peers = [peer_with(10) for _ in range(3)]
    _, replicator = set_up(10, *peers)
    replicator.want_block(4)
    now = 0.0
    for peer in peers:
        assert indexes(replicator.next_asks(peer, now)) == [4]
        for other in peers:
            assert replicator.next_asks(other, now + HOT_SWAP_SECONDS / 2) == []
        now += HOT_SWAP_SECONDS


def test_a_block_that_travels_with_a_slow_upgrade_is_asked_of_another_peer() -> None:
    slow, quick = peer_with(10, acked=5), peer_with(10, acked=5)
    local, replicator = set_up(5, slow, quick)
    replicator.want_block(5)
    assert indexes(replicator.next_asks(slow, 0.0)) == [5]
    local.length = 10
    quick.acked_length = 10
    assert replicator.next_asks(quick, HOT_SWAP_SECONDS / 2) == []
    assert indexes(replicator.next_asks(quick, HOT_SWAP_SECONDS)) == [5]


def test_a_silent_peer_is_passed_over_and_given_up_in_the_end() -> None:
    silent, other = peer_with(10), peer_with(10)
    _, replicator = set_up(10, silent, other)
    given_up: list[RemotePeer] = []
    replicator.on_give_up = lambda peer, _reason: given_up.append(peer)
    replicator.add_download(Download(0, 10))
    assert len(replicator.next_asks(silent, 0.0)) == 10
    now = 0.0
    for round_ in range(MOST_TIMEOUTS):
        now += ANSWER_TIMEOUT_SECONDS
        expired = replicator.expire(now)
        assert {peer for peer, _ in expired} == {silent}
        if round_ == 0:
            assert len(replicator.next_asks(other, now)) == 10
            replicator.remove_peer(other)
        assert len(replicator.next_asks(silent, now)) == 1, "a peer that was silent must first show that it answers"
    assert given_up == [silent]


def test_a_wrong_answer_pauses_the_peer_until_it_has_cleared_itself() -> None:
    peer, other = peer_with(10), peer_with(10)
    _, replicator = set_up(10, peer, other)
    replicator.want_block(1)
    (ask,) = replicator.next_asks(peer, 0.0)
    with pytest.raises(UnaskedPartError):
        replicator.answered(peer, messages.Data(ask.id, Proof(0, block=BlockProof(2, b"", ()))), 0.0)
    replicator.distrust(peer, "not what was asked")
    (check,) = replicator.next_asks(peer, 0.0)
    assert (check.id, check.kind, check.request.upgrade) == (0, AskKind.CONFLICT, UpgradeRequest(0, 10))
    assert indexes(replicator.next_asks(other, 0.0)) == [1]
    proof = Proof(0, upgrade=UpgradeProof(0, 10, (), (), b""))
    assert replicator.answered(peer, messages.Data(0, proof), 0.0) is check
    replicator.cleared(peer)
    replicator.want_block(2)
    assert indexes(replicator.next_asks(peer, 0.0)) == [2]


def test_a_peer_that_goes_on_lying_is_given_up() -> None:
    peer = peer_with(10)
    _, replicator = set_up(10, peer)
    reasons: list[str] = []
    replicator.on_give_up = lambda _peer, reason: reasons.append(reason)
    for number in range(MOST_STRIKES):
        assert not reasons
        replicator.distrust(peer, f"lie {number}")
    assert len(reasons) == 1


def test_wrong_answers_are_forgiven_when_the_writer_truncated_meanwhile() -> None:
    peer = peer_with(10)
    local, replicator = set_up(10, peer)
    reasons: list[str] = []
    replicator.on_give_up = lambda _peer, reason: reasons.append(reason)
    for fork in range(1, 2 * MOST_STRIKES):
        replicator.distrust(peer, "computed half before and half after a truncation")
        peer.take_sync(messages.Sync(fork, 5, 0, False, True, True, True, False), local_fork=fork - 1)
        (ask,) = replicator.next_asks(peer, 0.0)
        assert ask.kind is AskKind.FORK
        replicator.answered(peer, messages.Data(ask.id, Proof(fork, upgrade=UpgradeProof(0, 5, (), (), b""))), 0.0)
        replicator.forked(peer, fork, followed=True)
        local.fork, local.length = fork, 5
    assert not reasons


def test_a_peer_that_only_claims_forks_is_given_up_all_the_same() -> None:
    peer = peer_with(10)
    _, replicator = set_up(10, peer)
    reasons: list[str] = []
    replicator.on_give_up = lambda _peer, reason: reasons.append(reason)
    for fork in range(1, MOST_STRIKES + 1):
        assert not reasons
        replicator.distrust(peer, "a lie")
        peer.take_sync(messages.Sync(fork, 5, 0, False, True, True, True, False), local_fork=0)
        replicator.forked(peer, fork, followed=False)
    assert len(reasons) == 1
    assert len(peer.refused_forks) == 1


def test_a_fork_that_could_not_be_followed_does_not_keep_from_the_next() -> None:
    peer = peer_with(5, fork=1)
    _, replicator = set_up(10, peer)
    (ask,) = replicator.next_asks(peer, 0.0)
    replicator.answered(peer, messages.Data(ask.id, Proof(1, upgrade=UpgradeProof(0, 5, (), (), b""))), 0.0)
    peer.take_sync(messages.Sync(2, 4, 0, False, True, True, True, False), local_fork=0)
    replicator.forked(peer, 1, followed=False)
    (again,) = replicator.next_asks(peer, 0.0)
    assert again.request.fork == 2


def test_a_higher_fork_is_asked_for_from_nothing_and_a_lower_one_never() -> None:
    higher, lower = peer_with(5, fork=2), peer_with(50, fork=0)
    local, replicator = set_up(10, higher, lower)
    local.fork = 1
    replicator.want_block(1)
    (ask,) = replicator.next_asks(higher, 0.0)
    assert (ask.kind, ask.request.fork, ask.request.upgrade) == (AskKind.FORK, 2, UpgradeRequest(0, 5))
    assert replicator.next_asks(higher, 0.0) == []
    assert replicator.next_asks(lower, 0.0) == []
    replicator.answered(higher, messages.Data(ask.id, Proof(2, upgrade=UpgradeProof(0, 5, (), (), b""))), 0.0)
    replicator.forked(higher, 2, followed=False)
    assert replicator.next_asks(higher, 0.0) == [], "a fork that could not be followed is not tried for ever"


def test_a_region_is_wanted_once_and_again_after_a_fork() -> None:
    peer = peer_with(10, holds=0)
    local, replicator = set_up(10, peer)
    replicator.want_block(3)
    replicator.add_download(Download(0, None))
    assert replicator.next_asks(peer, 0.0) == []
    replicator.next_asks(peer, 0.0)
    assert peer.wants_to_send == [0]
    peer.wants_to_send.clear()
    local.fork = 1
    peer.take_sync(messages.Sync(1, 10, 10, True, True, True, True, False), local_fork=1)
    replicator.next_asks(peer, 0.0)
    assert peer.wants_to_send == [0]
    peer.take_range(0, 10, drop=False)
    assert len(replicator.next_asks(peer, 0.0)) == 10


def test_a_want_that_a_fork_overtook_is_sent_again_by_a_download_too() -> None:
    peer = peer_with(10, holds=3)
    local, replicator = set_up(10, peer)
    replicator.add_download(Download(0, None))
    assert indexes(replicator.next_asks(peer, 0.0)) == [0, 1, 2]
    assert peer.wants_to_send == [0]
    local.fork = 1
    peer.take_sync(messages.Sync(1, 10, 10, True, True, True, True, False), local_fork=1)
    assert peer.wants_to_send == []
    replicator.next_asks(peer, 0.0)
    assert peer.wants_to_send == [0]


def test_a_peer_is_asked_again_after_a_wrong_answer_when_it_has_news() -> None:
    peer = peer_with(10)
    _, replicator = set_up(10, peer)
    replicator.want_block(3)
    replicator.distrust(peer, "wrong")
    for ask in replicator.next_asks(peer, 0.0):
        assert ask.kind is AskKind.CONFLICT
    peer.take_sync(messages.Sync(0, 10, 10, True, True, True, True, False), local_fork=0)
    assert peer.paused, "what it has said before is no news"
    peer.take_sync(messages.Sync(0, 11, 10, True, True, True, True, False), local_fork=0)
    assert 3 in indexes(replicator.next_asks(peer, 0.0))


def test_every_region_that_a_download_needs_is_wanted() -> None:
    length = 3 * WANT_REGION_BLOCKS + 10
    peer = peer_with(length, holds=0)
    _, replicator = set_up(length, peer)
    replicator.add_download(Download(5, None))
    assert replicator.next_asks(peer, 0.0) == []
    assert peer.wants_to_send == [0, 1, 2, 3]
    peer.take_bitfield(2 * WANT_REGION_BLOCKS, b"\x04\x00\x00\x00")
    assert indexes(replicator.next_asks(peer, 0.0)) == [2 * WANT_REGION_BLOCKS + 2]


def test_a_list_of_blocks_is_asked_for_once_each_and_again_after_a_refusal() -> None:
    peer = peer_with(1000)
    local, replicator = set_up(1000, peer)
    wanted = [*range(0, 900, 3), 1500]
    local.bitfield.set(6)
    replicator.add_download(Download(0, None, wanted))
    asks = replicator.next_asks(peer, 0.0)
    assert indexes(asks) == [index for index in wanted if index not in (6, 1500)]
    assert replicator.next_asks(peer, 0.0) == []
    replicator.no_data(peer, asks[3].id, 0.0)
    assert replicator.next_asks(peer, 0.0) == []
    peer.take_range(asks[3].index, 1, drop=False)
    for ask in asks[4:]:
        local.bitfield.set(ask.index)
        replicator.answered(peer, block_answer(ask), 0.0)
    local.length = 2000
    peer.take_sync(messages.Sync(0, 2000, 2000, True, True, True, True, False), local_fork=0)
    peer.take_range(0, 2000, drop=False)
    assert indexes(replicator.next_asks(peer, 0.0)) == [asks[3].index, 1500]


def test_a_refusal_for_a_fork_that_the_peer_has_left_says_nothing_of_what_it_has_now() -> None:
    peer = peer_with(10)
    _, replicator = set_up(10, peer)
    replicator.want_block(3)
    (ask,) = replicator.next_asks(peer, 0.0)
    peer.take_sync(messages.Sync(1, 8, 0, False, True, True, True, False), local_fork=0)
    peer.take_range(0, 8, drop=False)
    replicator.no_data(peer, ask.id, 0.0)
    assert peer.has(3)
    replicator.forked(peer, 1, followed=False)


def test_a_demand_that_no_peer_can_meet_fails_at_once() -> None:
    results: list[Proof | None] = []
    short, lower, deaf, paused = peer_with(3), peer_with(10, fork=0), peer_with(10, fork=1), peer_with(10, fork=1)
    local, replicator = set_up(10, short, lower, deaf, paused)
    local.fork = 1
    deaf.seeks = False
    replicator.distrust(paused, "it lied")
    request = ProofRequest(1, hash=HashRequest(3, 2), seek=SeekRequest(50, 0))
    replicator.add_demand(Demand(request, lambda _peer, proof: results.append(proof)))
    assert results == [None]
    new = RemotePeer()
    replicator.add_peer(new)
    replicator.add_demand(Demand(request, lambda _peer, proof: results.append(proof)))
    assert results == [None], "a peer that has not said a word yet may be the one"


def test_a_demand_of_one_peer_ends_with_the_trust_in_it() -> None:
    results: list[Proof | None] = []
    peer = peer_with(10, fork=1)
    _, replicator = set_up(5, peer)
    request = ProofRequest(1, hash=HashRequest(3, 2))
    replicator.add_demand(Demand(request, lambda _peer, proof: results.append(proof), peer))
    replicator.distrust(peer, "it lied")
    assert results == [None]
    replicator.add_demand(Demand(request, lambda _peer, proof: results.append(proof), peer))
    assert results == [None, None]


def test_a_peer_that_does_not_upload_is_not_waited_for() -> None:
    peer = peer_with(10)
    _, replicator = set_up(5, peer)
    assert not replicator.settled(peer)
    peer.take_sync(messages.Sync(0, 10, 5, True, False, True, True, False), local_fork=0)
    assert replicator.settled(peer)


def test_a_demand_goes_to_one_peer_after_the_other_and_fails_when_none_can() -> None:
    one, two = peer_with(10), peer_with(10)
    _, replicator = set_up(10, one, two)
    results: list[Proof | None] = []
    request = ProofRequest(0, hash=HashRequest(3, 2))
    replicator.add_demand(Demand(request, lambda _peer, proof: results.append(proof)))
    (ask,) = replicator.next_asks(one, 0.0)
    assert ask.request is request
    replicator.no_data(one, ask.id, 0.0)
    assert replicator.next_asks(one, 0.0) == []
    (again,) = replicator.next_asks(two, 0.0)
    assert results == []
    replicator.no_data(two, again.id, 0.0)
    assert results == [None]


def test_an_answer_may_lack_a_part_but_never_hold_one_that_was_not_asked() -> None:
    peer = peer_with(10)
    _, replicator = set_up(10, peer)
    extra = [
        Proof(1),
        Proof(0, hash=HashProof(2, ())),
        Proof(0, upgrade=UpgradeProof(0, 10, (), (), b"")),
        Proof(0, manifest=b"x"),
    ]
    for proof in extra:
        replicator.want_block(1)
        peer.paused = False
        (ask,) = [each for each in replicator.next_asks(peer, 0.0) if each.index == 1]
        with pytest.raises(UnaskedPartError):
            replicator.answered(peer, messages.Data(ask.id, proof), 0.0)
    (ask,) = [each for each in replicator.next_asks(peer, 0.0) if each.index == 1]
    assert replicator.answered(peer, messages.Data(ask.id, Proof(0)), 0.0) is ask


def test_lies_about_blocks_cost_little_memory() -> None:
    peer = RemotePeer()
    for start in (0, 1, 2**40, 2**53 - 100):
        peer.take_range(start, 2**53 - 1 - start, drop=False)
        peer.take_range(start + 5, 2**50, drop=True)
        peer.take_bitfield(start - start % 32, b"\xff" * 4096)
    for region in range(10_000):
        peer.want(region * WANT_REGION_BLOCKS)
    assert len(peer.wanted) <= 4096
    pages = REMEMBERED_BLOCKS // 32768
    assert len(peer.held.dirty_pages()) <= pages


@pytest.mark.parametrize("seed", range(20))
def test_every_block_that_some_honest_peer_holds_arrives(seed: int) -> None:
    """Random peers that hold different blocks, forget, fall silent, leave and lie; only what nobody has stays away."""
    chance = random.Random(seed)
    length = chance.choice([1, 31, 33, 500, 3000])
    local, replicator = set_up(length)
    truth: dict[RemotePeer, set[int]] = {}
    flaky: set[RemotePeer] = set()
    given_up: set[RemotePeer] = set()
    replicator.on_give_up = lambda peer, _reason: given_up.add(peer)
    for number in range(chance.randint(2, 5)):
        holds = set(chance.sample(range(length), chance.randint(0, length)))
        peer = peer_with(length, holds=0)
        for index in holds:
            peer.take_range(index, 1, drop=False)
        if number > 0 and chance.random() < 0.5:
            flaky.add(peer)
            peer.take_range(0, length, drop=False)  # it claims everything
        truth[peer] = holds
        replicator.add_peer(peer)
    replicator.add_download(Download(0, length))
    reachable = set().union(*(held for peer, held in truth.items() if peer not in flaky))
    now = 0.0
    in_flight: list[tuple[RemotePeer, Ask]] = []
    for _ in range(20_000):
        now += 0.05
        if all(local.bitfield.get(index) for index in reachable):
            break
        for peer in [each for each in given_up if each in replicator.peers]:
            replicator.remove_peer(peer)
        for peer in list(replicator.peers):
            in_flight.extend((peer, ask) for ask in replicator.next_asks(peer, now) if ask.index >= 0)
        chance.shuffle(in_flight)
        for _ in range(min(len(in_flight), 200)):
            peer, ask = in_flight.pop()
            if peer not in replicator.peers or (peer in flaky and chance.random() < 0.2):
                continue  # never answered
            if ask.index in truth[peer]:
                if replicator.answered(peer, block_answer(ask), now) is not None:
                    local.bitfield.set(ask.index)
                    list(replicator.duplicates(ask, peer))
            else:
                replicator.no_data(peer, ask.id, now)
        replicator.expire(now)
        if flaky and chance.random() < 0.01:
            gone = chance.choice([each for each in truth if each in flaky])
            flaky.discard(gone)
            replicator.remove_peer(gone)
    missing = [index for index in reachable if not local.bitfield.get(index)]
    assert not missing, f"seed {seed}: {len(missing)} of {length} blocks never came"
    assert all(len(peer.asks) <= MOST_ASKS for peer in replicator.peers)

"""Following a fork: what is shared stays, what is not goes, and the new tree is whole."""

from __future__ import annotations

import random

import pytest

from hypercore.errors import VerificationError
from hypercore.log import flat_tree
from hypercore.log.proof import verify_fork_proof
from hypercore.log.reorg import Reorg
from hypercore.proofs import HashProof, Proof, ProofRequest, UpgradeRequest
from tests.log.trees import Reader, Writer, reader_of
from tests.running import run


def forked(writer: Writer, shared: int, more: list[bytes]) -> Writer:
    return Writer([*writer.blocks[:shared], *more], authority=writer.authority, fork=writer.fork + 1)


async def begin(reader: Reader, new: Writer, asked: int | None = None) -> Reorg:
    request = ProofRequest(new.fork, upgrade=UpgradeRequest(0, asked or len(new.blocks)))
    verified = verify_fork_proof(await new.answer(request), authority=new.authority)
    return await Reorg.begin(reader.tree, verified, length=reader.length)


async def narrow(reorg: Reorg, reader: Reader, new: Writer) -> int:
    """Answer all requests; gives their count."""
    count = 0
    while (request := reorg.next_request()) is not None:
        await reorg.receive(reader.tree, await new.answer(request))
        count += 1
    return count


async def finish(reorg: Reorg, reader: Reader) -> None:
    """What an engine does when nothing is left to ask."""
    nodes = await reorg.nodes(reader.tree)
    cut = 2 * reorg.ancestors
    for index in [index for index in reader.tree if flat_tree.right_span(index) >= cut]:
        del reader.tree[index]
    for block in [block for block in reader.blocks if block >= reorg.ancestors]:
        del reader.blocks[block]
    for node in nodes:
        reader.tree[node.index] = node
    reader.fork, reader.length = reorg.verified.fork, reorg.upgrade.length
    reader.roots = reorg.upgrade.roots


async def check_whole(reader: Reader, new: Writer, context: object) -> None:
    for block in range(reader.length):
        if block not in reader.blocks:
            request = ProofRequest(new.fork, block=await reader.block_request(block))
            await reader.apply(await new.answer(request))
    assert reader.tree == new.tree, context
    assert [reader.blocks[index] for index in range(reader.length)] == new.blocks, context


@pytest.mark.parametrize("seed", range(60))
def test_a_reader_that_follows_a_fork_keeps_all_that_is_shared(seed: int) -> None:
    async def follow() -> None:
        rng = random.Random(seed)
        old = Writer([rng.randbytes(rng.randrange(5)) + b"old" for _ in range(rng.randrange(1, 60))])
        reader = await reader_of(old, len(old.blocks), range(len(old.blocks)))
        shared = rng.randrange(len(old.blocks) + 1)
        new = forked(old, shared, [rng.randbytes(4) for _ in range(rng.randrange(0 if shared else 1, 30))])
        reorg = await begin(reader, new, rng.randrange(1, len(new.blocks) + 1))
        requests = await narrow(reorg, reader, new)
        assert reorg.ancestors == shared, seed
        assert requests <= 6, seed
        await finish(reorg, reader)
        assert sorted(reader.blocks) == list(range(shared)), seed
        await check_whole(reader, new, seed)

    run(follow())


@pytest.mark.parametrize("seed", range(60))
def test_a_sparse_reader_keeps_every_block_that_is_shared(seed: int) -> None:
    async def follow() -> None:
        rng = random.Random(seed)
        old = Writer([rng.randbytes(3) for _ in range(rng.randrange(1, 60))])
        held = [block for block in range(len(old.blocks)) if rng.random() < 0.3]
        reader = await reader_of(old, len(old.blocks), held)
        shared = rng.randrange(len(old.blocks) + 1)
        new = forked(old, shared, [rng.randbytes(4) for _ in range(rng.randrange(0 if shared else 1, 30))])
        reorg = await begin(reader, new)
        await narrow(reorg, reader, new)
        assert reorg.ancestors <= shared, seed
        await finish(reorg, reader)
        assert sorted(reader.blocks) == [block for block in held if block < shared], seed
        await check_whole(reader, new, seed)

    run(follow())


def test_a_cut_near_the_end_is_found_with_one_request() -> None:
    async def follow() -> None:
        old = Writer([b"%d" % number for number in range(1000)])
        reader = await reader_of(old, 1000, range(1000))
        for count in (1, 3, 5000):
            new = forked(old, 998, [b"x"] * count)
            reorg = await begin(reader, new)
            assert await narrow(reorg, reader, new) <= 1
            assert reorg.ancestors == 998

    run(follow())


def test_a_shorter_and_a_longer_tree_of_the_same_blocks_share_all_of_the_shorter() -> None:
    async def follow() -> None:
        old = Writer([b"%d" % number for number in range(13)])
        for length in range(1, 13):
            new = forked(old, length, [])
            reader = await reader_of(old, 13, range(13))
            reorg = await begin(reader, new)
            assert await narrow(reorg, reader, new) == 0
            assert reorg.ancestors == length
            longer = forked(new, length, old.blocks[length:])
            reader = await reader_of(old, length, range(length))
            reorg = await begin(reader, longer)
            await narrow(reorg, reader, longer)
            assert reorg.ancestors == length

    run(follow())


def test_nothing_is_asked_about_a_part_of_which_nothing_is_held() -> None:
    async def follow() -> None:
        old = Writer([b"%d" % number for number in range(13)])
        reader = await reader_of(old, 13, [12])
        reorg = await begin(reader, forked(old, 10, [b"x", b"y", b"z"]))
        assert reorg.next_request() is None
        assert reorg.ancestors == 8

    run(follow())


def test_giving_up_keeps_what_is_known_to_be_shared() -> None:
    async def follow() -> None:
        old = Writer([b"%d" % number for number in range(13)])
        reader = await reader_of(old, 13, range(13))
        new = forked(old, 10, [b"x", b"y", b"z"])
        reorg = await begin(reader, new)
        assert reorg.next_request() is not None
        reorg.give_up()
        assert reorg.next_request() is None
        assert reorg.ancestors == 8
        await finish(reorg, reader)
        await check_whole(reader, new, "given up")

    run(follow())


def test_a_bad_answer_changes_nothing_and_a_good_one_is_still_taken() -> None:
    async def follow() -> None:
        old = Writer([b"%d" % number for number in range(13)])
        reader = await reader_of(old, 13, range(13))
        new = forked(old, 10, [b"x", b"y", b"z"])
        reorg = await begin(reader, new)
        request = reorg.next_request()
        assert request is not None
        good = await new.answer(request)
        assert good.hash is not None
        nodes = good.hash.nodes
        forged = nodes[0]._replace(hash=bytes(32))
        for bad in (
            Proof(1),
            good._replace(fork=0),
            good._replace(hash=HashProof(2, (new.tree[2],))),
            good._replace(hash=good.hash._replace(nodes=nodes[:-1])),
            good._replace(hash=good.hash._replace(nodes=(forged, *nodes[1:]))),
        ):
            with pytest.raises(VerificationError):
                await reorg.receive(reader.tree, bad)
            assert reorg.ancestors == 8
        await reorg.receive(reader.tree, good)
        assert reorg.ancestors == 10
        with pytest.raises(VerificationError, match="awaited"):
            await reorg.receive(reader.tree, good)

    run(follow())


@pytest.mark.parametrize("seed", range(60))
def test_forged_sizes_in_a_fork_never_replace_stored_ones_and_heal(seed: int) -> None:
    async def follow() -> None:
        rng = random.Random(seed)
        old = Writer([rng.randbytes(rng.randrange(5, 9)) for _ in range(rng.randrange(2, 40))])
        reader = await reader_of(old, len(old.blocks), range(len(old.blocks)))
        shared = rng.randrange(1, len(old.blocks) + 1)
        new = forked(old, shared, [rng.randbytes(4) for _ in range(rng.randrange(30))])
        request = ProofRequest(new.fork, upgrade=UpgradeRequest(0, rng.randrange(1, len(new.blocks) + 1)))
        verified = verify_fork_proof(forge(rng, await new.answer(request)), authority=new.authority)
        reorg = await Reorg.begin(reader.tree, verified, length=reader.length)
        while (wanted := reorg.next_request()) is not None:
            await reorg.receive(reader.tree, forge(rng, await new.answer(wanted)))
        assert reorg.ancestors == shared, seed
        await finish(reorg, reader)
        for index, node in reader.tree.items():
            children = flat_tree.children(index)
            if flat_tree.right_span(index) < 2 * shared:
                assert node == new.tree[index], (seed, index)
            elif children is not None and children[0] in reader.tree:
                for seen in (index, flat_tree.sibling(index)):
                    assert reader.tree.get(seen) == (new.tree.get(seen) if seen in reader.tree else None), (seed, seen)
        await check_whole(reader, new, seed)

    def forge(rng: random.Random, proof: Proof) -> Proof:
        """Shift bytes wherever the hashes allow it."""
        if proof.hash is not None and len(proof.hash.nodes) > 1:
            first, second, *rest = proof.hash.nodes
            by = rng.randrange(-first.size, second.size + 1)
            pair = (first._replace(size=first.size + by), second._replace(size=second.size - by))
            proof = proof._replace(hash=proof.hash._replace(nodes=(*pair, *rest)))
        upgrade = proof.upgrade
        if upgrade is not None and upgrade.nodes and upgrade.additional:
            last, first = upgrade.nodes[-1], upgrade.additional[0]
            if flat_tree.sibling(last.index) == first.index:
                by = rng.randrange(-last.size, first.size + 1)
                nodes = (*upgrade.nodes[:-1], last._replace(size=last.size + by))
                additional = (first._replace(size=first.size - by), *upgrade.additional[1:])
                proof = proof._replace(upgrade=upgrade._replace(nodes=nodes, additional=additional))
        return proof

    run(follow())

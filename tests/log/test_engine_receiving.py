"""What a reader makes of proofs: right ones, wrong ones, forged ones, and other forks."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from hypercore.errors import BlockNotAvailableError, ProofRequestError, StorageFullError, VerificationError
from hypercore.log.engine import Log, LogChange
from hypercore.log.seek import Found, InDoubt
from hypercore.proofs import (
    BlockRequest,
    HashProof,
    HashRequest,
    Node,
    Proof,
    ProofRequest,
    SeekRequest,
    UpgradeRequest,
)
from hypercore.storage import Write
from hypercore.testing import CrashStorage
from hypercore_memory import MemoryStorage
from tests.log.logs import (
    KEY_PAIR,
    Disk,
    DiskFile,
    DiskStorage,
    FailingStorage,
    block_proof,
    contents,
    fetch,
    follow,
    have,
    new_log,
    reader_of,
    shown,
    upgrade_proof,
)
from tests.running import run


def blocks(count: int, *, start: int = 0) -> list[bytes]:
    return [b"block %d" % index * (index % 5) for index in range(start, start + count)]


async def writer_of(count: int, **options: Any) -> Log:
    log = await new_log(**options)
    await log.append(blocks(count))
    return log


# ---- taking ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"compat": True}, {"hash": "blake3"}])
def test_a_reader_learns_the_manifest_the_length_and_the_blocks(options: dict[str, Any]) -> None:
    async def scenario() -> None:
        writer = await writer_of(100, **options)
        disk = Disk()
        reader = await reader_of(writer, disk)
        assert (reader.length, reader.byte_length, reader.contiguous_length) == (100, writer.byte_length, 0)
        await fetch(writer, reader, range(100))
        assert reader.contiguous_length == 100
        dropped = await Log.open(disk.storage())
        for log in (reader, dropped):
            assert await contents(log) == blocks(100)
            assert await log.tree_hash() == await writer.tree_hash()
            assert not log.writable
            if not options.get("compat"):
                assert log.manifest == writer.manifest

    run(scenario())


def test_many_proofs_are_one_commit_and_neighbours_one_write() -> None:
    async def scenario() -> None:
        writer = await writer_of(60)
        disk = Disk()
        reader = await reader_of(writer, disk)
        before = len(disk.commits)
        proofs = [await block_proof(writer, reader, index) for index in (*range(20, 40), 51, 7, 8)]
        random.Random(1).shuffle(proofs)
        assert await reader.apply(proofs) == [None] * len(proofs)
        (commit,) = disk.commits[before:]
        assert [operation.name for operation in commit if isinstance(operation, Write)] == ["data"] * 3 + ["oplog"]
        assert have(reader) == [7, 8, *range(20, 40), 51]

    run(scenario())


@pytest.mark.parametrize("hash_name", ["blake2b", "blake3"])
def test_an_upgrade_and_a_block_can_come_in_one_proof(hash_name: str) -> None:
    async def scenario() -> None:
        writer = await writer_of(13, hash=hash_name)
        reader = await reader_of(writer, upgraded=False)
        both = await writer.prove(ProofRequest(0, BlockRequest(6, 0), upgrade=UpgradeRequest(0, 13), manifest=True))
        heard: list[LogChange] = []
        reader.listeners.append(heard.append)
        assert await reader.apply([both]) == [None]
        assert heard == [LogChange("upgrade", 0, 13, 0, 13), LogChange("blocks", 6, 7, 0, 13)]
        assert await reader.get(6) == blocks(13)[6]

    run(scenario())


def test_proofs_that_build_on_each_other_hold_in_one_call() -> None:
    async def scenario() -> None:
        writer = await writer_of(9)
        reader = await reader_of(writer, upgraded=False)
        first = await upgrade_proof(writer, reader)
        await writer.append(blocks(8, start=9))
        second = await writer.prove(ProofRequest(0, BlockRequest(11, 0), upgrade=UpgradeRequest(9, 8)))
        third = await writer.prove(ProofRequest(0, BlockRequest(10, 1)))
        assert await reader.apply([first, second, third]) == [None] * 3
        assert (reader.length, have(reader)) == (17, [10, 11])

    run(scenario())


def test_a_block_that_is_here_is_not_written_again() -> None:
    async def scenario() -> None:
        writer = await writer_of(20)
        disk = Disk()
        reader = await reader_of(writer, disk)
        proof = await block_proof(writer, reader, 7)
        heard: list[LogChange] = []
        await fetch(writer, reader, [7])
        reader.listeners.append(heard.append)
        commits = len(disk.commits)
        assert await reader.apply([proof, proof]) == [None, None]
        assert len(disk.commits) == commits
        assert heard == []

    run(scenario())


def test_a_block_that_was_cleared_or_damaged_can_be_fetched_again() -> None:
    async def scenario() -> None:
        writer = await writer_of(20)
        disk = Disk()
        reader = await reader_of(writer, disk)
        await fetch(writer, reader, range(20))
        await reader.clear(3, 9)
        await fetch(writer, reader, [4, 5, 8])
        assert have(reader) == [0, 1, 2, 4, 5, 8, *range(9, 20)]
        dropped = await Log.open(disk.storage())
        assert have(dropped) == have(reader)
        assert await dropped.get(4) == blocks(20)[4]

    run(scenario())


def test_what_the_next_upgrade_brings_is_asked_for_from_the_length_that_is_here() -> None:
    async def scenario() -> None:
        writer = await new_log()
        disk = Disk()
        reader = await Log.open(disk.storage(), key=writer.key)
        for index in range(40):
            await writer.append([b"%d" % index])
            assert await reader.apply([await upgrade_proof(writer, reader)]) == [None]
            if index % 3 == 0:
                await fetch(writer, reader, [index])
        assert await reader.tree_hash() == await writer.tree_hash()
        dropped = await Log.open(disk.storage())
        assert have(dropped) == list(range(0, 40, 3))
        assert await dropped.tree_hash() == await writer.tree_hash()

    run(scenario())


def test_proofs_whose_commit_failed_are_taken_when_they_come_again() -> None:
    async def scenario() -> None:
        writer = await writer_of(20)
        disk = Disk()
        storage = FailingStorage(disk)
        reader = await Log.open(storage, key=writer.key)
        upgrade = await upgrade_proof(writer, reader)
        for done in range(3):
            storage.commits_left, storage.operations_done = 0, 0
            with pytest.raises(StorageFullError):
                await reader.apply([upgrade])
            assert reader.length == 0, done
        assert await reader.apply([upgrade]) == [None]
        proofs = [await block_proof(writer, reader, index) for index in (3, 4, 9)]
        for done in range(2):
            storage.commits_left, storage.operations_done = 0, done
            with pytest.raises(StorageFullError):
                await reader.apply(proofs)
            assert have(reader) == []
        # Whoever asks meanwhile is told what a reader knows that never saw them.
        assert await reader.apply(proofs) == [None] * 3
        assert have(reader) == [3, 4, 9]
        dropped = await Log.open(disk.storage())
        assert [await dropped.get(index) for index in (3, 4, 9)] == [blocks(20)[index] for index in (3, 4, 9)]

    run(scenario())


def test_a_manifest_that_came_alone_survives_a_crash_within_any_write() -> None:
    async def scenario() -> None:
        writer = await new_log()
        storage = CrashStorage(MemoryStorage())
        reader = await Log.open(storage, key=writer.key, durability="none")
        before = len(storage.steps)
        assert await reader.apply([await writer.prove(ProofRequest(0, manifest=True))]) == [None]
        for after in range(before, len(storage.steps) + 1):
            size = len(storage.steps[after].data) if after < len(storage.steps) else 0
            for torn_bytes in range(0, size, 3):
                left = MemoryStorage()
                await storage.kill(left, after=after, torn_bytes=torn_bytes)
                again = await Log.open(left, create_if_missing=False)
                assert again.manifest in (None, writer.manifest)
        whole = MemoryStorage()
        await storage.kill(whole, after=len(storage.steps))
        assert (await Log.open(whole)).manifest == writer.manifest

    run(scenario())


# ---- refusing -------------------------------------------------------------------------------------


def _tampered(proof: Proof) -> list[Proof]:
    """The proof with one thing about it wrong, in every place there is."""
    wrong: list[Proof] = []
    block, upgrade = proof.block, proof.upgrade
    flip = bytes([1]) + bytes(31)

    def bad_nodes(nodes: tuple[Node, ...]) -> list[tuple[Node, ...]]:
        bad: list[tuple[Node, ...]] = [()] if nodes else []
        for place, node in enumerate(nodes):
            hash_flipped = bytes(a ^ b for a, b in zip(node.hash, flip, strict=True))
            others = (
                node._replace(hash=hash_flipped),
                node._replace(size=node.size + 1),
                node._replace(index=node.index + 2),
            )
            bad += [(*nodes[:place], other, *nodes[place + 1 :]) for other in others]
        return bad

    if block is not None:
        wrong += [proof._replace(block=block._replace(nodes=nodes)) for nodes in bad_nodes(block.nodes)]
        wrong += [
            proof._replace(block=block._replace(value=block.value + b"!")),
            proof._replace(block=block._replace(index=block.index + 1)),
            proof._replace(block=block._replace(index=block.index + 2**40)),
        ]
    if upgrade is not None:
        wrong += [proof._replace(upgrade=upgrade._replace(nodes=nodes)) for nodes in bad_nodes(upgrade.nodes)]
        wrong += [
            proof._replace(upgrade=upgrade._replace(signature=bytes(len(upgrade.signature)))),
            proof._replace(upgrade=upgrade._replace(signature=b"")),
            proof._replace(upgrade=upgrade._replace(length=upgrade.length + 1)),
            proof._replace(upgrade=upgrade._replace(start=upgrade.start + 1)),
            proof._replace(upgrade=upgrade._replace(nodes=(*upgrade.nodes, upgrade.nodes[-1]))),
            proof._replace(manifest=b"\x01\x02\x03"),
            proof._replace(manifest=None),
        ]
    wrong.append(proof._replace(fork=proof.fork + 1))
    return wrong


@pytest.mark.parametrize("part", ["upgrade", "both", "block"])
def test_a_wrong_proof_is_refused_and_nothing_of_it_is_kept(part: str) -> None:
    async def scenario() -> None:
        writer = await writer_of(13)
        reader_disk = Disk()
        reader = await reader_of(writer, reader_disk, upgraded=part == "block")
        request = {
            "upgrade": ProofRequest(0, upgrade=UpgradeRequest(0, 13), manifest=True),
            "both": ProofRequest(0, BlockRequest(6, 0), upgrade=UpgradeRequest(0, 13), manifest=True),
            "block": ProofRequest(0, BlockRequest(6, await reader.missing_nodes(12))),
        }[part]
        right = await writer.prove(request)
        wrong = _tampered(right)
        before, files = await shown(reader), reader_disk.files()
        for candidate in wrong:
            (result,) = await reader.apply([candidate])
            assert isinstance(result, VerificationError), candidate
        assert await shown(reader) == before
        assert reader_disk.files() == files
        # Beside the wrong ones the right one is taken all the same.
        results = await reader.apply([wrong[0], right, wrong[-1]])
        assert [result is None for result in results] == [False, True, False]
        if part != "upgrade":
            assert await reader.get(6) == blocks(13)[6]

    run(scenario())


def test_a_proof_of_another_core_is_refused() -> None:
    async def scenario() -> None:
        writer, other = await writer_of(5), await writer_of(5, compat=True)
        reader = await reader_of(writer, upgraded=False)
        for manifest in (True, False):
            stolen = await other.prove(ProofRequest(0, upgrade=UpgradeRequest(0, 5), manifest=manifest))
            (result,) = await reader.apply([stolen])
            assert isinstance(result, VerificationError)
        assert (reader.length, reader.manifest) == (0, None)

    run(scenario())


def test_forged_sizes_cost_nobody_the_honest_block() -> None:
    """Two given siblings can have bytes shifted between them; the first honest block repairs it (wire spec, 6.9)."""

    async def scenario() -> None:
        writer = await new_log()
        await writer.append([b"%d" % index * 10 for index in range(10, 26)])
        disk = Disk()
        reader = await reader_of(writer, disk)
        honest = await writer.prove(ProofRequest(0, hash=HashRequest(4, await reader.missing_nodes(4))))
        assert honest.hash is not None
        leaf, sibling, *rest = honest.hash.nodes
        forged = HashProof(4, (leaf._replace(size=15), sibling._replace(size=25), *rest))
        assert await reader.apply([Proof(0, hash=forged)]) == [None]
        await fetch(writer, reader, [3, 2, 1, 0])
        assert [await reader.get(index) for index in range(4)] == [await writer.get(index) for index in range(4)]
        assert [await reader.byte_offset(index) for index in range(5)] == [0, 20, 40, 60, 80]
        dropped = await Log.open(disk.storage())
        assert [await dropped.get(index) for index in range(4)] == [await writer.get(index) for index in range(4)]

    run(scenario())


# ---- proving --------------------------------------------------------------------------------------


def test_a_request_that_cannot_be_answered_says_why() -> None:
    async def scenario() -> None:
        writer = await writer_of(10)
        await writer.clear(4)
        cases: list[tuple[ProofRequest, type[Exception]]] = [
            (ProofRequest(0, BlockRequest(4, 0)), BlockNotAvailableError),
            (ProofRequest(0, BlockRequest(10, 0)), BlockNotAvailableError),
            (ProofRequest(1, BlockRequest(3, 0)), BlockNotAvailableError),
            (ProofRequest(0, BlockRequest(3, 40)), ProofRequestError),
            (ProofRequest(0, upgrade=UpgradeRequest(10, 0)), ProofRequestError),
            (ProofRequest(0, upgrade=UpgradeRequest(0, 11)), ProofRequestError),
            (ProofRequest(0, hash=HashRequest(2**50, 0)), ProofRequestError),
        ]
        for request, error in cases:
            with pytest.raises(error):
                await writer.prove(request)

    run(scenario())


def test_an_empty_log_answers_with_its_manifest_and_nothing_else() -> None:
    async def scenario() -> None:
        writer = await new_log()
        answer = await writer.prove(ProofRequest(0, manifest=True))
        assert answer == Proof(0, manifest=answer.manifest)
        assert await writer.prove(ProofRequest(0)) == Proof(0)
        # A request on another fork still gets the manifest, and nothing but that.
        assert await writer.prove(ProofRequest(9, manifest=True)) == Proof(9, manifest=answer.manifest)
        disk = Disk()
        reader = await reader_of(writer, disk)
        assert await reader.apply([answer]) == [None]
        assert reader.manifest == writer.manifest
        dropped = await Log.open(disk.storage())
        assert dropped.manifest == writer.manifest
        compat = await new_log(compat=True)
        assert await compat.prove(ProofRequest(0, manifest=True)) == Proof(0)

    run(scenario())


def test_a_reader_serves_what_it_holds() -> None:
    async def scenario() -> None:
        writer = await writer_of(40)
        middle = await reader_of(writer)
        await fetch(writer, middle, range(10, 30))
        end = await reader_of(middle)
        await fetch(middle, end, range(29, 9, -1))
        assert have(end) == list(range(10, 30))
        with pytest.raises(BlockNotAvailableError):
            await middle.prove(ProofRequest(0, BlockRequest(3, 0)))

    run(scenario())


@pytest.mark.parametrize("seed", range(12))
def test_sparse_clones_of_clones_agree_with_a_list(seed: int) -> None:
    """A writer and three readers; anybody takes anything from whoever has it, and any of them may be dropped."""

    async def scenario() -> None:
        generator = random.Random(seed)
        writer = await new_log(hash=generator.choice(["blake2b", "blake3"]))
        model: list[bytes] = []
        disks = [Disk() for _ in range(3)]
        readers = [await Log.open(disk.storage(), key=writer.key) for disk in disks]
        wanted: list[set[int]] = [set() for _ in disks]
        for _ in range(80):
            me = generator.randrange(3)
            reader, here = readers[me], wanted[me]
            source = generator.choice([writer, *readers])
            match generator.randrange(7):
                case 0:
                    new = [generator.randbytes(generator.randrange(40)) for _ in range(generator.randrange(1, 30))]
                    await writer.append(new)
                    model += new
                case 1 if source.length > reader.length and await source.can_upgrade_from(reader.length):
                    assert await reader.apply([await upgrade_proof(source, reader)]) == [None], f"seed {seed}"
                case 2 if here:
                    start = generator.choice(sorted(here))
                    end = min(start + generator.randrange(1, 5), reader.length)
                    await reader.clear(start, end)
                    here.difference_update(range(start, end))
                case 3:
                    readers[me] = await Log.open(disks[me].storage())
                case _ if source.length >= reader.length > 0:
                    offered = [index for index in have(source) if index < reader.length]
                    chosen = generator.sample(offered, min(len(offered), generator.randrange(1, 9)))
                    await fetch(source, reader, chosen)
                    here.update(chosen)
            for reader, here in zip(readers, wanted, strict=True):
                assert have(reader) == sorted(here), f"seed {seed}"
        for reader in readers:
            for index in have(reader):
                assert await reader.get(index) == model[index], f"seed {seed}, block {index}"
            if reader.length:
                assert await reader.tree_hash() == await writer.tree_hash(reader.length), f"seed {seed}"

    run(scenario())


# ---- seeking --------------------------------------------------------------------------------------


def test_a_seek_finds_the_block_or_says_what_to_ask_for() -> None:
    async def scenario() -> None:
        writer = await writer_of(33)
        reader = await reader_of(writer)
        all_bytes = b"".join(blocks(33))
        for byte_offset in range(0, len(all_bytes), 13):
            found = await writer.seek(byte_offset)
            assert isinstance(found, Found)
            start = await writer.byte_offset(found.index)
            assert start + found.offset == byte_offset
            while isinstance(doubt := await reader.seek(byte_offset), InDoubt):
                assert doubt.hash is not None
                answer = await writer.prove(ProofRequest(0, hash=doubt.hash, seek=doubt.seek))
                assert await reader.apply([answer]) == [None]
            assert isinstance(doubt, Found)
            assert await writer.byte_offset(doubt.index) + doubt.offset == byte_offset
        assert await writer.seek(len(all_bytes)) == Found(33, 0)

    run(scenario())


def test_a_seek_beyond_what_is_known_asks_for_an_upgrade() -> None:
    async def scenario() -> None:
        writer = await writer_of(33)
        reader = await reader_of(writer, upgraded=False)
        doubt = await reader.seek(50)
        assert doubt == InDoubt(SeekRequest(50), None)
        answer = await writer.prove(ProofRequest(0, seek=SeekRequest(50), upgrade=UpgradeRequest(0, 33), manifest=True))
        assert await reader.apply([answer]) == [None]
        assert reader.length == 33

    run(scenario())


# ---- forks and conflicts --------------------------------------------------------------------------


def test_a_reader_that_follows_a_fork_keeps_what_is_common() -> None:
    async def scenario() -> None:
        writer = await writer_of(23)
        disk = Disk()
        reader = await reader_of(writer, disk)
        await fetch(writer, reader, range(23))
        await writer.truncate(11)
        await writer.append(blocks(20, start=100))
        heard: list[LogChange] = []
        reader.listeners.append(heard.append)
        await follow(writer, reader)
        assert (reader.fork, reader.length) == (1, 31)
        assert have(reader) == list(range(11))
        assert heard == [LogChange("truncate", 11, 23, 1, 31), LogChange("upgrade", 11, 31, 1, 31)]
        await fetch(writer, reader, range(11, 31))
        again = await Log.open(disk.storage())
        assert await contents(again) == await contents(writer)
        assert again.fork == 1

    run(scenario())


@pytest.mark.parametrize("seed", range(15))
def test_following_forks_ends_in_the_writers_log_wherever_it_was_cut(seed: int) -> None:
    async def scenario() -> None:
        generator = random.Random(seed)
        writer = await writer_of(generator.randrange(1, 60))
        disk = Disk()
        reader = await reader_of(writer, disk)
        for _ in range(6):
            held = generator.sample(range(reader.length), generator.randrange(reader.length + 1))
            await fetch(writer, reader, held)
            if generator.random() < 0.3:
                await reader.flush()
            old = [await writer.get(index) for index in range(writer.length)]
            cut = generator.randrange(writer.length + 1)
            await writer.truncate(cut)
            await writer.append([generator.randbytes(9) for _ in range(generator.randrange(1, 40))])
            kept = [index for index in have(reader) if index < cut]
            await follow(writer, reader)
            # What was common and known to be so is still here, and never anything else.
            assert set(have(reader)) <= set(kept), f"seed {seed}"
            for index in have(reader):
                assert await reader.get(index) == old[index] == await writer.get(index), f"seed {seed}"
            assert await reader.tree_hash() == await writer.tree_hash(), f"seed {seed}"
            if generator.random() < 0.4:
                reader = await Log.open(disk.storage())
                assert await reader.tree_hash() == await writer.tree_hash(), f"seed {seed}"
        await fetch(writer, reader, [index for index in range(reader.length) if not reader.has(index)])
        assert await contents(reader) == await contents(writer), f"seed {seed}"

    run(scenario())


def test_an_older_fork_is_not_followed_and_a_reorg_that_came_too_late_is_refused() -> None:
    async def scenario() -> None:
        writer = await writer_of(10)
        old = await writer.prove(ProofRequest(0, upgrade=UpgradeRequest(0, 10), manifest=True))
        reader = await reader_of(writer)
        with pytest.raises(VerificationError):
            await reader.begin_reorg(old)
        await writer.truncate(5)
        await writer.append([b"x"])
        proof = await writer.prove(ProofRequest(1, upgrade=UpgradeRequest(0, 6)))
        first, second = await reader.begin_reorg(proof), await reader.begin_reorg(proof)
        for reorg in (first, second):
            reorg.give_up()
        await reader.commit_reorg(first)
        with pytest.raises(VerificationError):
            await reader.commit_reorg(second)
        assert (reader.fork, reader.length) == (1, 6)

    run(scenario())


def test_a_reorg_that_another_one_overtook_is_refused() -> None:
    async def scenario() -> None:
        writer = await writer_of(20)
        reader = await reader_of(writer)
        await fetch(writer, reader, range(20))
        first, second = await new_log(), await new_log()
        for log, common, fork in ((first, 5, 1), (second, 15, 2)):
            await log.append(blocks(20))
            await log.truncate(common, fork=fork)
            await log.append([b"%d" % fork] * 8)
        late = await reader.begin_reorg(await second.prove(ProofRequest(2, upgrade=UpgradeRequest(0, 23))))
        while (wanted := late.next_request()) is not None:
            await late.receive(reader, await second.prove(wanted))
        assert late.ancestors == 15
        await follow(first, reader)
        # Of the fifteen blocks that were common to the old tree only five are left.
        with pytest.raises(VerificationError):
            await reader.commit_reorg(late)
        await follow(second, reader)
        assert have(reader) == list(range(5))
        assert await reader.tree_hash() == await second.tree_hash()

    run(scenario())


@pytest.mark.parametrize("hash_name", ["blake2b", "blake3"])
def test_an_empty_reader_may_begin_with_a_later_fork(hash_name: str) -> None:
    async def scenario() -> None:
        writer = await writer_of(20, hash=hash_name)
        await writer.truncate(9)
        await writer.append(blocks(4, start=50))
        disk = Disk()
        reader = await Log.open(disk.storage(), key=writer.key)
        await follow(writer, reader)
        assert (reader.fork, reader.length, reader.manifest) == (1, 13, writer.manifest)
        await fetch(writer, reader, range(13))
        dropped = await Log.open(disk.storage())
        assert dropped.manifest == writer.manifest
        assert await contents(dropped) == await contents(writer)

    run(scenario())


def test_a_proof_that_a_truncation_overtakes_is_of_one_tree_or_none() -> None:
    class SlowToRead(DiskFile):
        async def read(self, offset: int, size: int) -> bytes:
            data = await super().read(offset, size)
            if self.name in slow:
                await gate.wait()
            return data

    class SlowToReadStorage(DiskStorage):
        async def open(self, name: str, *, create: bool = False) -> DiskFile:
            await super().open(name, create=create)
            return SlowToRead(self, name)

    slow: set[str] = set()
    gate = asyncio.Event()

    async def scenario() -> None:
        for file in ("data", "tree"):
            gate.clear()
            log = await Log.open(SlowToReadStorage(Disk()), key_pair=KEY_PAIR)
            await log.append([b"block %d" % index for index in range(700)])
            await log.flush()
            slow.add(file)
            asked = [
                asyncio.create_task(log.prove(ProofRequest(0, BlockRequest(300, 2)))),
                asyncio.create_task(log.prove(ProofRequest(0, upgrade=UpgradeRequest(0, 700)))),
            ]
            await asyncio.sleep(0)
            slow.clear()
            await log.truncate(100)
            await log.append([b"other %d" % index for index in range(650)])
            gate.set()
            for result in await asyncio.gather(*asked, return_exceptions=True):
                assert isinstance(result, BlockNotAvailableError) or (
                    isinstance(result, Proof) and result.upgrade is not None and file == "data"
                )

    run(scenario())


def test_two_signed_histories_of_one_fork_are_a_conflict() -> None:
    async def scenario() -> None:
        one, other, same = await new_log(), await new_log(), await new_log()
        await one.append(blocks(8))
        await same.append(blocks(12))
        await other.append([*blocks(6), b"different", b"history"])
        request = ProofRequest(0, upgrade=UpgradeRequest(0, 8), manifest=True)
        assert await one.conflicts(await other.prove(request))
        assert not await one.conflicts(await same.prove(request))
        lie = (await other.prove(request))._replace(fork=3)
        with pytest.raises(VerificationError):
            await one.conflicts(lie)

    run(scenario())

"""Who takes a place over from whom, and from what they believe to be there: nothing that was acknowledged goes."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable
from dataclasses import replace

import pytest

from hypercore.errors import ClosedError, CorruptError, FencedError, LockedError, StorageError
from hypercore.storage import Write
from hypercore_s3 import journal, writer
from hypercore_s3.commits import Commit, encode_front
from hypercore_s3.extents import Extents
from hypercore_s3.index import FileIndex, decode_index, encode_footer, encode_index
from hypercore_s3.layout import commit_name, commit_sequence, decode_head, encode_head
from hypercore_s3.storage import S3Storage
from tests.running import run
from tests.storage.s3.fake_client import Bucket, Carry, FakeClient, at_once

LARGE = 300 << 10
STANDBYS = ["it saw nothing", "it saw the first commits", "it saw them and looks again", "it saw a head given back"]


def storage(bucket: Bucket, carry: Carry = at_once, **options: object) -> S3Storage:
    return S3Storage("bucket", "p", client=FakeClient(bucket, carry=carry), **options)


async def content(held: S3Storage, name: str) -> bytes:
    file = await held.open(name)
    return await file.read(0, await file.size())


async def write(held: S3Storage, numbers: range) -> None:
    for number in numbers:
        await held.commit([Write("oplog", number, b"%d" % number)])


# ---- a lost head and somebody who saw less ---------------------------------------------------------------


@pytest.mark.parametrize("standby", STANDBYS)
def test_who_saw_less_and_takes_a_place_whose_head_was_lost_takes_all_of_it(standby: str) -> None:
    async def scenario() -> None:
        bucket = Bucket()
        held, other = storage(bucket), storage(bucket)
        if standby == "it saw nothing":
            await other.names()
        await write(held, range(3))
        if standby == "it saw a head given back":
            await held.aclose()
            held = storage(bucket)
        if standby != "it saw nothing":
            await other.names()
        await write(held, range(3, 6))
        await held._writer.fold()
        await write(held, range(6, 8))
        await held.aclose()
        # As the error about a damaged head says.
        del bucket.objects["p/head"]
        if standby == "it saw them and looks again":
            await other.refresh()
            assert await content(other, "oplog") == b"01234567"
        await other.acquire()
        assert await content(other, "oplog") == b"01234567"
        await other.commit([Write("oplog", 8, b"8")])
        await other.aclose()
        assert await content(storage(bucket), "oplog") == b"012345678"

    run(scenario())


def test_a_lost_head_and_a_damaged_checkpoint_are_an_error_and_never_an_older_state() -> None:
    async def scenario() -> None:
        bucket = Bucket()
        held = storage(bucket)
        await held.commit([Write("data", 0, bytes(200 << 10))])
        await write(held, range(3))
        await held._writer.fold()
        first = {key for key in bucket.objects if "checkpoints" in key}
        # In pieces of their own, so that the first checkpoint is needed on.
        await held.commit([Write("data", 200 << 10, bytes(LARGE))])
        await write(held, range(3, 6))
        await held._writer.fold()
        (second,) = {key for key in bucket.objects if "checkpoints" in key} - first
        assert first <= bucket.objects.keys()
        assert await content(storage(bucket), "oplog") == b"012345"
        del bucket.objects["p/head"]
        bucket.objects[second] = bucket.objects[second][:-1] + bytes([bucket.objects[second][-1] ^ 1])
        with pytest.raises(CorruptError, match="checkpoint behind it"):
            await storage(bucket).names()

    run(scenario())


@pytest.mark.parametrize("work", ["it says that it is still there", "it folds", "it closes"])
def test_a_writer_that_was_replaced_makes_no_new_head_when_that_of_its_successor_is_lost(work: str) -> None:
    async def scenario() -> None:
        bucket = Bucket()
        held, other = storage(bucket), storage(bucket, take_over=True)
        await write(held, range(3))
        await other.acquire()
        await write(other, range(3, 6))
        await other._writer.fold()
        await write(other, range(6, 8))
        await other.aclose()
        del bucket.objects["p/head"]
        if work == "it says that it is still there":
            await held._writer.renew()
        elif work == "it folds":
            with pytest.raises(FencedError):
                await held._writer.fold()
        else:
            await held.aclose()
        assert "p/head" not in bucket.objects
        assert await content(storage(bucket), "oplog") == b"01234567"
        with pytest.raises((FencedError, ClosedError)):
            await write(held, range(3, 4))

    run(scenario())


def test_a_head_that_was_made_for_a_place_that_is_not_empty_any_more_is_removed_again() -> None:
    """A writer that is held up for long between its look at an empty place and its PUT, and a head that gets lost."""

    async def scenario() -> None:
        bucket = Bucket()

        async def carry(verb: str, key: str, apply: Callable[[], object]) -> object:
            if (verb, key) == ("put", "p/head") and not filled:
                filled.append(key)
                held = storage(bucket)
                await write(held, range(6))
                await held._writer.fold()
                await held.aclose()
                del bucket.objects["p/head"]
            return apply()

        filled: list[str] = []
        late = storage(bucket, carry)
        with pytest.raises(LockedError):
            await late.acquire()
        assert "p/head" not in bucket.objects
        await late.commit([Write("oplog", 6, b"6")])
        await late.aclose()
        assert await content(storage(bucket), "oplog") == b"0123456"

    run(scenario())


# ---- fences that came too late ------------------------------------------------------------------------------


def test_a_fence_under_the_number_of_a_commit_that_was_folded_away_is_shown_to_nobody() -> None:
    """As a candidate leaves it that was itself replaced before it had put its fence."""

    async def scenario() -> None:
        bucket = Bucket()
        seen: list[bytes] = []

        async def carry(verb: str, key: str, apply: Callable[[], object]) -> object:
            if watched:
                extents = watched[0].files["oplog"].extents
                pieces = [(one.source, one.offset, one.offset + one.end - one.start) for one in extents]
                seen.append(b"".join(source[first:end] for source, first, end in pieces if isinstance(source, bytes)))
            return apply()

        watched: list[S3Storage] = []
        held, reader = storage(bucket), storage(bucket, carry)
        await write(held, range(2))
        await reader.names()
        assert reader._journal.contents.sequence == 3
        await held.commit([Write("oplog", 2, b"2"), Write("oplog", 3, b"3")])
        await held.commit([Write("data", 0, bytes(LARGE)), Write("oplog", 4, b"4")])
        await held._writer.fold()
        assert f"p/{commit_name(4)}" not in bucket.objects, "the commit was folded away"
        assert f"p/{commit_name(5)}" in bucket.objects, "the bytes of this one stay where they are"
        late = Commit(sequence=4, epoch=1, owner=os.urandom(16), attempt=1, fence=True)
        bucket.put(f"p/{late.name}", encode_front(late))
        watched.append(reader)
        await reader.refresh()
        watched.clear()
        assert set(seen) == {b"01"}, "what was there before, until it is certain what is there now"
        assert await content(reader, "oplog") == b"01234"
        await held.aclose()
        await reader.aclose()

    run(scenario())


# ---- copies of a process ------------------------------------------------------------------------------------


def test_a_storage_that_fork_copied_before_it_wrote_is_another_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        bucket = Bucket()
        held, copied = storage(bucket), storage(bucket)
        copied._writer._lease.owner = held._writer._lease.owner
        await write(held, range(2))
        monkeypatch.setattr(os, "getpid", lambda: 0)
        with pytest.raises(LockedError):
            await copied.acquire()
        monkeypatch.undo()
        await write(held, range(2, 4))
        await held.aclose()
        assert await content(storage(bucket), "oplog") == b"0123"

    run(scenario())


def test_a_storage_that_fork_copied_while_it_wrote_writes_in_one_process_only(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        bucket = Bucket()
        held = storage(bucket)
        await write(held, range(2))
        monkeypatch.setattr(os, "getpid", lambda: 0)
        with pytest.raises(StorageError, match="Open the storage anew"):
            await write(held, range(2, 3))
        monkeypatch.undo()
        await write(held, range(2, 4))
        await held.aclose()
        assert await content(storage(bucket), "oplog") == b"0123"

    run(scenario())


def test_a_commit_of_the_same_owner_under_a_later_lease_is_that_of_another_writer() -> None:
    """Whatever made two of one: never do both write."""

    async def scenario() -> None:
        bucket = Bucket()
        held, copied = storage(bucket), storage(bucket)
        copied._writer._lease.owner = held._writer._lease.owner
        await held.acquire()
        await copied.acquire()
        with pytest.raises(FencedError):
            await write(held, range(1))
        await write(copied, range(3))
        await copied.aclose()
        assert await content(storage(bucket), "oplog") == b"012"

    run(scenario())


# ---- what it costs to be refused ----------------------------------------------------------------------------


def test_to_be_refused_the_lease_is_one_get() -> None:
    async def scenario() -> None:
        bucket = Bucket()
        held = storage(bucket)
        await write(held, range(9))
        for other in (storage(bucket), held_reader := storage(bucket)):
            if other is held_reader:
                await other.names()
            assert isinstance(other.client, FakeClient)
            other.client.requests.clear()
            with pytest.raises(LockedError):
                await other.acquire()
            assert [(one.verb, one.key) for one in other.client.requests] == [("get", "p/head")]
        await held.aclose()

    run(scenario())


# ---- heads that somebody else wrote -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("owner", 3),
        ("epoch", -1),
        ("epoch", "1"),
        ("epoch", 1 << 63),
        ("beat", 1.5),
        ("pid", None),
        ("released", "no"),
        ("lease_seconds", "60"),
        ("lease_seconds", float("nan")),
        ("lease_seconds", 10**400),
        ("process", []),
        ("checkpoint", "checkpoints/1"),
        ("checkpoint.name", "commits/0000000000000001"),
        ("checkpoint.name", 7),
        ("checkpoint.sequence", 1 << 63),
        ("checkpoint.sequence", 1.0),
        ("checkpoint.hot", 1 << 70),
        ("checkpoint.size", "large"),
        ("checkpoint.index_size", -1),
    ],
    ids=lambda value: f"{value}"[:30],
)
def test_a_head_of_any_content_is_refused_with_a_typed_error(field: str, value: object) -> None:
    async def scenario() -> None:
        bucket = Bucket()
        held = storage(bucket)
        await write(held, range(3))
        await held.aclose()
        head = decode_head(bucket.objects["p/head"])
        name, _, part = field.partition(".")
        if part:
            assert head.checkpoint is not None
            value_of: object = replace(head.checkpoint, **{part: value})  # type: ignore[arg-type]
        else:
            value_of = value
        bucket.put("p/head", encode_head(replace(head, **{name: value_of})))  # type: ignore[arg-type]
        for work in (storage(bucket).names, storage(bucket).acquire):
            with pytest.raises(CorruptError, match="head is damaged"):
                await work()

    run(scenario())


def test_a_head_that_is_damaged_under_a_writer_is_a_warning_and_never_a_lost_commit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(writer, "FOLD_COMMITS", 2)

    async def scenario() -> None:
        complaints: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        bucket = Bucket()
        held = storage(bucket)
        await write(held, range(2))
        bucket.put("p/head", b"no head")
        await held._writer.renew()
        for number in range(2, 7):
            await write(held, range(number, number + 1))
            while held._writer._fold is not None:
                await asyncio.wait([held._writer._fold])
        assert "head is damaged" in held.warnings[0]
        await held.aclose()
        del held
        gc.collect()
        assert not complaints
        with pytest.raises(CorruptError, match="head is damaged"):
            await storage(bucket).names()
        del bucket.objects["p/head"]
        assert await content(storage(bucket), "oplog") == b"0123456"

    run(scenario())


# ---- stores that mean harm ----------------------------------------------------------------------------------


def test_commits_without_end_fill_nobodys_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "COMMITS_MAX", 500)

    async def scenario() -> None:
        bucket = Bucket()
        held = storage(bucket)
        await write(held, range(2))
        owner = held._writer._lease.owner

        async def carry(verb: str, key: str, apply: Callable[[], object]) -> object:
            number = commit_sequence(key.removeprefix("p/"))
            if verb == "get" and number is not None and key not in bucket.objects:
                made = Commit(sequence=number, epoch=1, owner=owner, attempt=number, fence=True)
                bucket.put(key, encode_front(made))
            return apply()

        reader = storage(bucket, carry)
        with pytest.raises(CorruptError, match="without a checkpoint"):
            await reader.names()
        await reader.aclose()
        await held.aclose()

    run(scenario())


@pytest.mark.parametrize("size", [1 << 40, 1 << 60])
def test_an_index_that_speaks_of_pages_without_end_is_damage_and_no_loop(size: int) -> None:
    async def scenario() -> None:
        bucket = Bucket()
        held = storage(bucket)
        await held.commit([Write("data", 0, bytes(1000)), Write("oplog", 0, b"0")])
        await held._writer.fold()
        await held.aclose()
        head = decode_head(bucket.objects["p/head"])
        pointer = head.checkpoint
        assert pointer is not None
        key = f"p/{pointer.name}"
        whole = bucket.objects[key]
        begin, end = pointer.index_offset, pointer.index_offset + pointer.index_size
        index = decode_index(whole[begin:end], pointer.name)
        (body,) = index.bodies
        files = [FileIndex(name, identity, 0, Extents()) for name, identity, *_ in index.files]
        changed = encode_index(replace(index, bodies=[replace(body, size=size)], files=files))
        footer = encode_footer(index_offset=begin, index_size=len(changed), hot=pointer.hot)
        bucket.put(key, whole[:begin] + changed + footer)
        there = replace(pointer, size=len(bucket.objects[key]), index_size=len(changed))
        bucket.put("p/head", encode_head(replace(head, checkpoint=there)))
        with pytest.raises(CorruptError, match="pages do not end where its index begins"):
            await storage(bucket).names()

    run(scenario())

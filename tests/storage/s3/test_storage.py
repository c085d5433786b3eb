"""What an S3 storage promises beyond the contract: leases, damage, lost heads, permissions, readers, the cache."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest

from hypercore.errors import (
    ClosedError,
    CorruptError,
    FencedError,
    FormatError,
    LockedError,
    NewerFormatError,
    OptionError,
    StorageError,
)
from hypercore.plugins import open_storage as open_address
from hypercore.storage import Delete, Operation, Sync, Truncate, Write
from hypercore.urls import parse_address
from hypercore_s3 import lease, writer
from hypercore_s3.layout import commit_name, decode_head, encode_head
from hypercore_s3.objects import AccessDeniedError, Found
from hypercore_s3.storage import S3Storage, open_storage
from tests.running import run
from tests.storage.s3.fake_client import Bucket, Carry, FakeClient, at_once

KIB, MIB = 1 << 10, 1 << 20


def storage(bucket: Bucket, carry: Carry = at_once, *, prefix: str = "p", **options: object) -> S3Storage:
    return S3Storage("bucket", prefix, client=FakeClient(bucket, carry=carry), **options)


def asked(held: S3Storage) -> list[tuple[str, str]]:
    """The requests of a storage so far, without their sizes."""
    assert isinstance(held.client, FakeClient)
    return [(one.verb, one.key.removeprefix("p/")) for one in held.client.requests]


async def content(held: S3Storage, name: str) -> bytes:
    file = await held.open(name)
    return await file.read(0, await file.size())


async def filled(bucket: Bucket, *, data: int = 1 * MIB) -> dict[str, bytes]:
    """A place with files of every kind of extent: large ones, small ones, pages, and what is in no checkpoint yet."""
    held = storage(bucket)
    random = Random(1)
    model = {"data": random.randbytes(data), "tree": random.randbytes(300 * KIB), "oplog": random.randbytes(9000)}
    await held.commit([Write(name, 0, piece) for name, piece in model.items()])
    await held.commit([Write("data", data, b"tail"), Write("tree", 100, b"new")])
    await held._writer.fold()
    await held.commit([Write("oplog", 9000, b"more")])
    await held._writer._lease.release()
    await held.aclose()
    model["data"] += b"tail"
    model["tree"] = model["tree"][:100] + b"new" + model["tree"][103:]
    model["oplog"] += b"more"
    return model


# ---- addresses ---------------------------------------------------------------------------------------


def test_an_address_says_bucket_prefix_and_options() -> None:
    held = open_storage(parse_address("s3://bucket/some/prefix?lease_seconds=5&endpoint_url=http://127.0.0.1:1"))
    assert str(held) == "s3://bucket/some/prefix"
    assert held.options.lease_seconds == 5
    assert held.distant
    assert isinstance(open_address("s3://bucket?region=x"), S3Storage)
    for wrong in ("s3:bucket", "s3:///prefix", "s3://bucket:9000/prefix", "s3://key:secret@bucket/prefix"):
        with pytest.raises(OptionError):
            open_storage(parse_address(wrong))
    with pytest.raises(OptionError, match="lease_seconds"):
        open_storage(parse_address("s3://bucket?lease_second=5"))
    with pytest.raises(OptionError, match="900"):
        S3Storage("bucket", "p" * 901)


def test_storages_of_one_bucket_do_not_meet_whatever_their_prefixes_are() -> None:
    async def scenario() -> None:
        bucket = Bucket()
        prefixes = ["", "a", "a/b", "a/commits", "a/checkpoints", "a/head", "ab"]
        held = {prefix: storage(bucket, prefix=prefix) for prefix in reversed(prefixes)}
        for prefix, one in held.items():
            assert await one.names() == frozenset(), prefix
            await one.commit([Write("oplog", 0, prefix.encode() or b"root"), Write("data", 0, bytes(300 * KIB))])
        for one in held.values():
            await one.aclose()
        for key in [key for key in bucket.objects if key.endswith("head")]:
            del bucket.objects[key]
        for prefix in prefixes:
            again = storage(bucket, prefix=prefix)
            assert await content(again, "oplog") == (prefix.encode() or b"root"), prefix
            await again.aclose()

    run(scenario())


# ---- the lease -----------------------------------------------------------------------------------------


def test_a_writer_that_is_heard_of_keeps_its_lease_and_one_that_is_not_is_replaced() -> None:
    async def scenario() -> None:
        bucket = Bucket()
        first = storage(bucket, lease_seconds=30.0)
        await first.acquire()
        for _ in range(5):
            bucket.now += 20
            await first._writer.renew()
            second = storage(bucket)
            with pytest.raises(LockedError, match="is held by another writer"):
                await second.acquire()
            await second.aclose()
        bucket.now += 31
        second = storage(bucket)
        await second.acquire()
        with pytest.raises(FencedError):
            await first.commit([Write("data", 0, b"x")])
        await second.commit([Write("data", 0, b"y")])
        await first.aclose()
        assert await content(second, "data") == b"y"
        await second.aclose()

    run(scenario())


def test_who_is_locked_out_is_told_by_whom_for_how_long_and_what_to_do() -> None:
    async def scenario() -> None:
        bucket = Bucket()
        first = storage(bucket, lease_seconds=30.0)
        await first.acquire()
        bucket.now += 10
        second = storage(bucket)
        with pytest.raises(LockedError, match=r"process \d+ on .*10 s ago.*wait 21 s.*take_over=True"):
            await second.acquire()
        await first.aclose()
        await second.acquire()
        await second.aclose()

    run(scenario())


def test_a_writer_of_this_machine_whose_process_has_ended_is_replaced_at_once() -> None:
    async def scenario() -> None:
        bucket = Bucket()
        first = storage(bucket)
        await first.acquire()
        head = decode_head(bucket.objects["p/head"])
        assert not lease.has_ended(head.process)
        machine, pid, start = head.process.rsplit(" ", 2)
        for process, gone in (
            (f"{machine} {pid} {int(start) - 1}", True),
            (f"{machine} 4194305 {start}", True),
            (f"another {machine} 4194305 {start}", False),
            ("nonsense", False),
            ("", False),
        ):
            assert lease.has_ended(process) == gone, process
            bucket.objects["p/head"] = encode_head(replace(head, process=process))
            second = storage(bucket)
            if gone:
                await second.acquire()
            else:
                with pytest.raises(LockedError):
                    await second.acquire()
            await second.aclose()

    run(scenario())


def test_the_renewal_is_due_a_third_into_the_lease_and_ends_with_the_storage() -> None:
    async def scenario() -> None:
        bucket = Bucket()
        renewed = asyncio.Event()

        async def carry(verb: str, key: str, apply: Callable[[], object]) -> object:
            result = apply()
            if key == "p/head" and verb == "put" and decode_head(bucket.objects[key]).beat == 3:
                renewed.set()
            return result

        held = storage(bucket, carry, lease_seconds=0.003)
        await held.acquire()
        await renewed.wait()
        await held.aclose()
        assert decode_head(bucket.objects["p/head"]).released

    run(scenario())


def test_a_fenced_writer_hears_of_it_by_its_renewal_too() -> None:
    async def scenario() -> None:
        bucket = Bucket()
        first = storage(bucket)
        await first.acquire()
        second = storage(bucket, take_over=True)
        await second.acquire()
        await first._writer.renew()
        before = copy.copy(bucket.objects)
        with pytest.raises(FencedError):
            await first.commit([Write("data", 0, b"x")])
        await first.aclose()
        assert bucket.objects == before
        await second.aclose()

    run(scenario())


def test_an_endpoint_that_ignores_conditions_is_refused_for_writing_and_left_as_it_was() -> None:
    async def scenario() -> None:
        bucket = Bucket(ignores_conditions=True)
        held = storage(bucket)
        assert await held.names() == frozenset()
        with pytest.raises(StorageError, match="fake ignores If-None-Match and If-Match"):
            await held.acquire()
        assert bucket.objects == {}
        await held.aclose()

    run(scenario())


def test_conditions_are_proved_once_and_again_when_the_bucket_has_moved() -> None:
    async def scenario() -> None:
        bucket = Bucket()
        probes = []
        for place in ("here", "here", "there"):
            client = FakeClient(bucket, place=place)
            held = S3Storage("bucket", "p", client=client)
            await held.acquire()
            await held.aclose()
            probes.append(any("probe" in one.key for one in client.requests))
        assert probes == [True, False, True]
        assert not [key for key in bucket.objects if "probe" in key]

    run(scenario())


# ---- commits -------------------------------------------------------------------------------------------


def test_what_changes_nothing_costs_nothing() -> None:
    async def scenario() -> None:
        held = storage(Bucket())
        await held.commit([Write("data", 0, b"abc")])
        before = len(asked(held))
        operations: list[Operation] = [Sync(("data",)), Truncate("data", 3), Delete("data", 3, 9), Delete("no", 0, 1)]
        await held.commit(operations)
        await held.commit([Write("data", 9, b"")])
        await held.unlink("no")
        assert len(asked(held)) == before
        await held.aclose()

    run(scenario())


@pytest.mark.parametrize("happened", [False, True])
def test_after_an_unknown_outcome_reads_show_what_was_until_it_is_known(happened: bool) -> None:
    async def scenario() -> None:
        bucket = Bucket()
        trouble = False

        async def carry(verb: str, key: str, apply: Callable[[], object]) -> object:
            if trouble and verb == "put":
                if happened:
                    apply()
                raise StorageError("no answer")
            return apply()

        held = storage(bucket, carry)
        await held.commit([Write("data", 0, b"old")])
        file = await held.open("data")
        trouble = True
        with pytest.raises(StorageError, match="no answer"):
            await held.commit([Write("data", 0, b"new")])
        assert await file.read(0, 3) == b"old"
        trouble = False
        if happened:
            with pytest.raises(StorageError, match="arrived after all"):
                await held.commit([Write("data", 3, b"!")])
        else:
            await held.commit([Write("data", 3, b"!")])
        assert await file.read(0, 3) == (b"new" if happened else b"old")
        await held.aclose()
        assert (await content(storage(bucket), "data")) == (b"new" if happened else b"old!")

    run(scenario())


def test_an_answer_that_was_lost_and_asked_for_again_is_a_success() -> None:
    async def scenario() -> None:
        bucket = Bucket()

        async def carry(verb: str, key: str, apply: Callable[[], object]) -> object:
            if verb == "put" and "probe" not in key:
                # As a client does that tries again after the first try's answer was lost.
                apply()
            return apply()

        held = storage(bucket, carry)
        for number in range(20):
            await held.commit([Write("data", number, b"%d" % (number % 10))])
        await held._writer.fold()
        await held.aclose()
        assert await content(storage(bucket), "data") == b"0123456789" * 2
        assert decode_head(bucket.objects["p/head"]).released

    run(scenario())


def test_commits_wait_for_a_fold_that_is_far_behind_and_say_so_when_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "FOLD_COMMITS", 5)

    async def scenario() -> None:
        broken = True

        async def carry(verb: str, key: str, apply: Callable[[], object]) -> object:
            await asyncio.sleep(0)
            if broken and "checkpoints" in key:
                raise StorageError("no room for checkpoints")
            return apply()

        held = storage(Bucket(), carry)

        async def write_on() -> None:
            for number in range(100):
                await held.commit([Write("data", number, b"x")])

        with pytest.raises(StorageError, match="commits wait for a checkpoint"):
            await write_on()
        assert 20 <= held._journal.contents.pending_commits <= 23
        assert "will be tried again" in held.warnings[0]
        broken = False
        await held.commit([Write("data", 99, b"x")])
        assert held.warnings == []
        await held.aclose()

    run(scenario())


def test_a_cancelled_commit_is_not_torn() -> None:
    async def scenario() -> None:
        bucket = Bucket()
        gate = asyncio.Event()

        async def carry(verb: str, key: str, apply: Callable[[], object]) -> object:
            if verb == "put" and key == f"p/{commit_name(2)}":
                await gate.wait()
            return apply()

        held = storage(bucket, carry)
        await held.acquire()
        call = asyncio.ensure_future(held.commit([Write("data", 0, b"abc")]))
        for _ in range(20):
            await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        gate.set()
        await held.commit([Write("data", 3, b"def")])
        assert await content(held, "data") == b"abcdef"
        await held.aclose()

    run(scenario())


# ---- damage ------------------------------------------------------------------------------------------------


def test_damage_of_any_object_is_an_error_and_never_wrong_bytes() -> None:
    async def scenario() -> None:
        whole = Bucket()
        model = await filled(whole)
        for key in sorted(whole.objects):
            data = whole.objects[key]
            random = Random(key)
            for _ in range(25):
                bucket = Bucket(dict(whole.objects), dict(whole.put_at))
                if random.random() < 0.3:
                    bucket.objects[key] = data[: random.randrange(len(data))]
                else:
                    position = random.randrange(len(data))
                    flipped = data[position] ^ 1 << random.randrange(8)
                    bucket.objects[key] = data[:position] + bytes([flipped]) + data[position + 1 :]
                held = storage(bucket)
                for name, want in model.items():
                    try:
                        assert await content(held, name) == want, f"{key}, {name}"
                    except FormatError:
                        continue
                await held.aclose()

    run(scenario())


def test_damage_harms_nobody_who_reads_beside_it_at_the_same_time() -> None:
    async def scenario() -> None:
        bucket = Bucket()
        writing = storage(bucket)
        data = Random(2).randbytes(MIB)
        await writing.commit([Write("data", 0, data)])
        await writing.aclose()
        name = max(bucket.objects, key=lambda each: len(bucket.objects[each]))
        spoiled = bytearray(bucket.objects[name])
        spoiled[MIB // 2] ^= 1
        bucket.objects[name] = bytes(spoiled)
        held = storage(bucket)
        file = await held.open("data")
        whole, before, behind = await asyncio.gather(
            file.read(0, MIB), file.read(100, 1000), file.read(MIB - 1000, 1000), return_exceptions=True
        )
        assert isinstance(whole, CorruptError)
        assert (before, behind) == (data[100:1100], data[-1000:])
        await held.aclose()

    run(scenario())


def test_what_was_damaged_on_its_way_is_asked_for_again() -> None:
    async def scenario() -> None:
        bucket = Bucket()
        model = await filled(bucket)
        seen: set[str] = set()

        class Noisy(FakeClient):
            async def get(self, key: str, *, offset: int = 0, size: int | None = None) -> Found:
                found = await super().get(key, offset=offset, size=size)
                if "head" in key or key in seen:
                    return found
                seen.add(key)
                # The last byte but some: of an index, of the last frame.
                spoiled = bytearray(found.data)
                spoiled[-60] ^= 4
                return replace(found, data=bytes(spoiled))

        held = S3Storage("bucket", "p", client=Noisy(bucket))
        for name, want in model.items():
            assert await content(held, name) == want
        await held.aclose()

    run(scenario())


def test_a_newer_head_is_refused_and_a_damaged_one_says_what_to_do() -> None:
    async def scenario() -> None:
        bucket = Bucket()
        await filled(bucket)
        sound = bucket.objects["p/head"]
        bucket.objects["p/head"] = sound.replace(b'"version": 1', b'"version": 9')
        with pytest.raises(NewerFormatError, match="version 9"):
            await storage(bucket).names()
        bucket.objects["p/head"] = sound[:-20]
        with pytest.raises(CorruptError, match="when it is removed"):
            await storage(bucket).names()

    run(scenario())


# ---- a lost head -------------------------------------------------------------------------------------------


def test_a_lost_head_is_made_again_from_the_newest_checkpoint() -> None:
    async def scenario() -> None:
        bucket = Bucket()
        model = await filled(bucket)
        epoch = decode_head(bucket.objects["p/head"]).epoch
        del bucket.objects["p/head"]
        before = copy.copy(bucket.objects)
        reader = storage(bucket)
        for name, want in model.items():
            assert await content(reader, name) == want
        assert "head was lost" in reader.warnings[0]
        await reader.refresh()
        await reader.aclose()
        assert bucket.objects == before, "a reader changes nothing"
        held = storage(bucket)
        await held.commit([Write("oplog", 0, b"on")])
        await held.aclose()
        assert decode_head(bucket.objects["p/head"]).epoch > epoch
        assert (await content(storage(bucket), "oplog"))[:2] == b"on"

    run(scenario())


def test_a_head_that_is_lost_under_a_writer_is_put_back() -> None:
    async def scenario() -> None:
        bucket = Bucket()
        held = storage(bucket)
        await held.commit([Write("data", 0, b"abc")])
        del bucket.objects["p/head"]
        await held._writer.fold()
        await held.commit([Write("data", 3, b"def")])
        await held.aclose()
        assert await content(storage(bucket), "data") == b"abcdef"

    run(scenario())


def test_a_lost_head_whose_commits_are_incomplete_is_an_error_and_never_an_empty_place() -> None:
    async def scenario() -> None:
        whole = Bucket()
        await filled(whole)
        del whole.objects["p/head"]
        for key in sorted(whole.objects):
            bucket = Bucket(dict(whole.objects), dict(whole.put_at))
            if key == max(whole.objects):
                continue  # of the last commit nothing says that it was there
            del bucket.objects[key]
            if key == f"p/{commit_name(1)}":
                continue  # the first fence: nobody needs it
            with pytest.raises(CorruptError):
                await content(storage(bucket), "data")

    run(scenario())


def test_a_checkpoint_that_the_head_never_pointed_to_is_not_taken_for_the_newest() -> None:
    async def scenario() -> None:
        bucket = Bucket()
        model = await filled(bucket)
        (name,) = [key for key in bucket.objects if "checkpoints" in key]
        # As a fold leaves it that was cut off; it sorts behind the good one.
        bucket.objects[name[:-16] + "f" * 16] = bucket.objects[name][: -MIB // 100]
        bucket.put_at[name[:-16] + "f" * 16] = 0.0
        del bucket.objects["p/head"]
        for file, want in model.items():
            assert await content(storage(bucket), file) == want

    run(scenario())


def test_what_is_foreign_is_reported_and_what_is_ours_is_not() -> None:
    async def scenario() -> None:
        bucket = Bucket()
        for key in ("p/photo.jpg", "p/deep/down/letter", "p/probe-" + "0" * 32, "p/other/head", "q/elsewhere"):
            bucket.put(key, b"x")
        held = storage(bucket)
        assert await held.names() == {"photo.jpg", "deep"}
        await held.aclose()

    run(scenario())


# ---- permissions -------------------------------------------------------------------------------------------


def test_where_missing_keys_are_hidden_a_reader_reads_and_a_missing_head_is_a_matter_of_permission() -> None:
    async def scenario() -> None:
        bucket = Bucket()
        model = await filled(bucket)

        async def carry(verb: str, key: str, apply: Callable[[], object]) -> object:
            if verb != "get" or key not in bucket.objects:
                raise AccessDeniedError(f"not allowed to {verb} {key}")
            return apply()

        reader = storage(bucket, carry)
        for name, want in model.items():
            assert await content(reader, name) == want
        with pytest.raises(AccessDeniedError):
            await reader.acquire()
        await reader.aclose()
        del bucket.objects["p/head"]
        with pytest.raises(PermissionError):
            await storage(bucket, carry).names()

    run(scenario())


def test_a_writer_that_may_not_delete_writes_on_and_warns() -> None:
    async def scenario() -> None:
        bucket = Bucket()
        allowed = False

        async def carry(verb: str, key: str, apply: Callable[[], object]) -> object:
            if verb == "delete" and not allowed:
                raise AccessDeniedError("not allowed to delete")
            return apply()

        held = storage(bucket, carry)
        for number in range(20):
            await held.commit([Write("data", number, b"x")])
        await held._writer.fold()
        assert "could not be removed" in held.warnings[0]
        await held.commit([Write("data", 20, b"x")])
        await held.aclose()
        before = len(bucket.objects)
        # Whoever may removes what was left.
        allowed = True
        held = storage(bucket, carry)
        await held.commit([Write("data", 21, b"x")])
        await held.aclose()
        assert held.warnings == []
        assert len(bucket.objects) < before - 15
        assert await content(storage(bucket), "data") == b"x" * 22

    run(scenario())


# ---- readers -------------------------------------------------------------------------------------------------


def test_a_reader_sees_the_writers_commits_when_it_refreshes_across_folds() -> None:
    async def scenario() -> None:
        bucket = Bucket()
        held, reader = storage(bucket), storage(bucket)
        assert await reader.names() == frozenset()
        await held.commit([Write("data", 0, bytes(400 * KIB))])
        await reader.refresh()
        file = await reader.open("data")
        random = Random(1)
        for number in range(30):
            piece = random.randbytes(random.choice([100, 90 * KIB, 300 * KIB]))
            await held.commit(
                [Write("data", random.randrange(300 * KIB), piece), Write("oplog", number, b"%d" % number)]
            )
            if number % 7 == 3:
                await held._writer.fold()
            assert await file.size() <= await (await held.open("data")).size()
            await reader.refresh()
            assert await file.read(0, await file.size()) == await content(held, "data")
            assert await content(reader, "oplog") == await content(held, "oplog")
        # A stale handle's file may be gone.
        await held.unlink("data")
        await held.commit([Write("data", 0, b"another")])
        await reader.refresh()
        with pytest.raises(ClosedError):
            await file.read(0, 1)
        assert await content(reader, "data") == b"another"
        await held.aclose()
        await reader.aclose()

    run(scenario())


def test_a_stale_reader_whose_objects_are_gone_looks_again() -> None:
    async def scenario() -> None:
        bucket = Bucket()
        held = storage(bucket)
        await held.commit([Write("data", 0, b"a" * MIB), Write("tree", 0, b"a" * 100)])
        await held._writer.fold()
        reader = storage(bucket, cache_bytes=0)
        file = await reader.open("data")
        await held.commit([Write("data", 0, b"b" * MIB)])
        await held._writer.fold()
        assert await file.read(0, 10) == b"b" * 10
        for key in list(bucket.objects):
            if key.startswith("p/commits/"):
                del bucket.objects[key]
        with pytest.raises(CorruptError, match="gone"):
            await file.read(100, 10)
        await held.aclose()
        await reader.aclose()

    run(scenario())


def test_the_writers_own_reads_go_on_over_its_folds() -> None:
    async def scenario() -> None:
        bucket = Bucket()
        gate = asyncio.Event()
        held_up = asyncio.Event()

        async def carry(verb: str, key: str, apply: Callable[[], object]) -> object:
            if verb == "get" and not gate.is_set() and "commits" in key:
                held_up.set()
                await gate.wait()
            return apply()

        held = storage(bucket)
        await held.commit([Write("data", 0, b"a" * MIB)])
        await held.aclose()
        held = storage(bucket, carry)
        gate.set()
        await held.acquire()
        gate.clear()
        file = await held.open("data")
        reading = asyncio.ensure_future(file.read(0, 10))
        await held_up.wait()
        await held.commit([Write("data", 0, b"b" * MIB)])
        await held._writer.fold()
        gate.set()
        assert await reading == b"b" * 10
        await held.aclose()

    run(scenario())


# ---- the cache -------------------------------------------------------------------------------------------------


def test_callers_who_want_the_same_page_share_a_get_and_one_who_gives_up_takes_it_from_nobody() -> None:
    async def scenario() -> None:
        bucket = Bucket()
        await filled(bucket)
        gate = asyncio.Event()
        gets: list[str] = []

        async def carry(verb: str, key: str, apply: Callable[[], object]) -> object:
            if "commits" in key and key.endswith("2"):
                gets.append(key)
                await gate.wait()
            return apply()

        gate.set()
        held = storage(bucket, carry)
        file = await held.open("data")
        gate.clear()
        gets.clear()
        calls = [asyncio.ensure_future(file.read(500_000 + number, 10)) for number in range(20)]
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(gets) == 1
        for call in calls[:7]:
            call.cancel()
        await asyncio.sleep(0)
        gate.set()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results[:7])
        assert all(isinstance(result, bytes) for result in results[7:])
        # One whom all have left is stopped, and the next one asks anew.
        gate.clear()
        calls = [asyncio.ensure_future(file.read(100_000, 10)) for _ in range(2)]
        for _ in range(10):
            await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        late = asyncio.ensure_future(file.read(100_000, 10))
        for _ in range(10):
            await asyncio.sleep(0)
        gate.set()
        assert len(await late) == 10
        assert len(gets) == 3
        await held.aclose()

    run(scenario())


def test_the_cache_holds_no_more_than_it_may() -> None:
    async def scenario() -> None:
        bucket = Bucket()
        model = await filled(bucket, data=6 * MIB)
        held = storage(bucket, cache_bytes=500_000)
        random = Random(1)
        file = await held.open("data")
        for _ in range(200):
            offset = random.randrange(5 * MIB)
            size = random.choice([10, 100_000, MIB])
            assert await file.read(offset, size) == model["data"][offset : offset + size]
            assert sum(map(len, held._pages._held.values())) == held._pages._held_bytes <= 500_000
        await held.aclose()

    run(scenario())


def test_closing_ends_reads_that_are_under_way() -> None:
    async def scenario() -> None:
        bucket = Bucket()
        await filled(bucket)
        stuck = False

        async def carry(verb: str, key: str, apply: Callable[[], object]) -> object:
            if stuck and verb == "get":
                await asyncio.get_running_loop().create_future()
            return apply()

        held = storage(bucket, carry)
        file = await held.open("data")
        stuck = True
        reading = asyncio.ensure_future(file.read(500_000, 10))
        for _ in range(5):
            await asyncio.sleep(0)
        await held.aclose()
        with pytest.raises(ClosedError):
            await reading

    run(scenario())

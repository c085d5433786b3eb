"""A mirror keeps copies of cores, whatever happens to it, its sources and its storages, and serves them meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from hypercore import (
    ClosedError,
    Hypercore,
    Mirror,
    OptionError,
    Proof,
    Storage,
    StorageFullError,
    Swarm,
    TransportError,
)
from hypercore.errors import UnknownSchemeError
from hypercore.log.engine import Log
from hypercore.mirrors import status as status_module
from hypercore.mirrors.tally import count_stored_bytes
from hypercore.plugins import open_storage
from hypercore.testing import CrashStorage, FaultyStorage, LatencyStorage
from tests.mirror.scenes import Source, block, new_name, read_from, soon, source_of, until
from tests.replication.links import eventually
from tests.running import run


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    soon(monkeypatch)


def mirror_of(source: Source, storage: str | Callable[[bytes], str | Storage], **options: object) -> Mirror:
    return Mirror(
        storage,
        [source.core.key],
        sources=[source.address],
        listen=[f"pipe:{new_name()}"],
        **options,  # type: ignore[arg-type]
    )


# ---- copies ---------------------------------------------------------------------------------------


def test_a_mirror_has_everything_and_follows_live() -> None:
    async def scene() -> None:
        async with source_of(300) as source, mirror_of(source, "memory:") as mirror:
            await mirror.synced()
            (core,) = mirror.status().cores
            assert (core.role, core.have, core.want, core.length, core.stored_bytes) == ("writer", 300, 300, 300, 3000)
            await source.core.append([block(index) for index in range(300, 310)])
            await until(mirror, lambda core: core.have == 310)
            assert mirror.status().stored_bytes == 3100
            await mirror.synced()

    run(scene())


def test_a_mirror_serves_what_it_has_when_the_source_is_gone() -> None:
    async def scene() -> None:
        async with source_of(50) as source:
            key = source.core.key
            mirror = mirror_of(source, "memory:")
            await mirror.start()
            await mirror.synced()
        async with mirror:
            blocks = await read_from(mirror.addresses[0], key, 0, 50)
            assert blocks == [block(index) for index in range(50)]
            await until(mirror, lambda core: core.blocks_sent == 50 and core.bytes_sent == 500)

    run(scene())


def test_a_reader_hears_of_new_blocks_from_the_mirror_alone() -> None:
    async def scene() -> None:
        async with source_of(5) as source, mirror_of(source, "memory:") as mirror:
            async with Hypercore("memory:", source.core.key) as reader, Swarm(peers=mirror.addresses) as swarm:
                swarm.join(reader)
                await reader.wait_for_length(5)
                await source.core.append(block(5))
                await reader.wait_for_length(6)
                assert await reader.get(5) == block(5)

    run(scene())


def test_a_range_is_all_that_is_copied() -> None:
    async def scene() -> None:
        async with source_of(200) as source, mirror_of(source, "memory:", start=50, end=60) as mirror:
            await mirror.synced()
            (core,) = mirror.status().cores
            assert (core.have, core.want, core.length, core.stored_bytes) == (10, 10, 200, 100)
            assert source.blocks_sent == 10
            assert await read_from(mirror.addresses[0], source.core.key, 50, 60) == [block(i) for i in range(50, 60)]

    run(scene())


def test_a_range_without_end_goes_on_with_the_log() -> None:
    async def scene() -> None:
        async with source_of(100) as source, mirror_of(source, "memory:", start=90) as mirror:
            await mirror.synced()
            assert mirror.status().have == 10
            await source.core.append(block(100))
            await until(mirror, lambda core: (core.have, core.want) == (11, 11))
            assert source.blocks_sent == 11

    run(scene())


def test_a_range_beyond_the_end_of_the_log_is_wanted_until_it_is_there() -> None:
    async def scene() -> None:
        async with source_of(5) as source, mirror_of(source, "memory:", start=3, end=8) as mirror:
            await until(mirror, lambda core: (core.have, core.want) == (2, 5))
            await source.core.append([block(index) for index in range(5, 10)])
            await until(mirror, lambda core: (core.have, core.want) == (5, 5))
            await mirror.synced()
            assert source.blocks_sent == 5

    run(scene())


def test_a_mirror_is_synced_with_what_there_is_of_a_range_that_goes_beyond() -> None:
    async def scene() -> None:
        async with source_of(5) as source, mirror_of(source, "memory:", start=3, end=8) as mirror:
            await mirror.synced()
            assert (mirror.status().have, mirror.status().want) == (2, 5)
        async with source_of(5) as source, mirror_of(source, "memory:", start=7, end=8) as mirror:
            await mirror.synced()
            (core,) = mirror.status().cores
            assert (core.have, core.want, core.length) == (0, 1, 5)

    run(scene())


@pytest.mark.parametrize("end", [None, 8])
def test_a_mirror_follows_a_writer_that_takes_blocks_back(end: int | None) -> None:
    async def scene() -> None:
        async with source_of(10) as source, mirror_of(source, "memory:", end=end) as mirror:
            await mirror.synced()
            await source.core.truncate(4)
            await source.core.append([b"other %d" % index for index in range(4, 9)])
            want = 9 if end is None else 8
            core = await until(mirror, lambda core: core.fork == 1 and (core.have, core.want) == (want, want))
            expected = [block(index) for index in range(4)] + [b"other %d" % index for index in range(4, want)]
            assert await read_from(mirror.addresses[0], source.core.key, 0, want) == expected
            core = await until(mirror, lambda core: core.stored_bytes == sum(map(len, expected)))
            assert core.error is None

    run(scene())


def test_a_mirror_that_is_started_again_downloads_only_what_is_new(tmp_path: Path) -> None:
    async def scene() -> None:
        async with source_of(100) as source:
            async with mirror_of(source, str(tmp_path / "{key}")) as mirror:
                await mirror.synced()
            await eventually(lambda: not source.core.peers)
            assert source.blocks_sent == 100
            await source.core.append(block(100))
            async with mirror_of(source, str(tmp_path / "{key}")) as mirror:
                await mirror.synced()
                assert mirror.status().have == 101
                assert mirror.status().stored_bytes == 1010
            assert source.blocks_sent == 101
        names.append(source.core.key.hex())

    names: list[str] = []
    run(scene())
    assert [path.name for path in tmp_path.iterdir()] == names


def test_what_a_mirror_finds_in_its_copy_did_not_come_just_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_module, "LOOK_SECONDS", 0.0)

    async def scene() -> None:
        async with source_of(100) as source:
            async with mirror_of(source, str(tmp_path)) as mirror:
                await mirror.synced()
            async with mirror_of(source, str(tmp_path)) as mirror:
                while (status := mirror.status()).stored_bytes < 1000 or not status.connections:
                    assert (status.blocks_per_second, status.bytes_per_second) == (0.0, 0.0)
                    await asyncio.sleep(0)
                await mirror.synced()
                status = mirror.status()
                assert (status.blocks_per_second, status.bytes_per_second) == (0.0, 0.0)

    run(scene())


def test_a_mirror_that_was_killed_at_any_step_becomes_whole_and_serves_new_readers() -> None:
    async def scene() -> None:
        crash = CrashStorage(open_storage(f"memory:{new_name()}"))
        inner = open_storage(str(crash.inner))
        async with inner, source_of(4) as source:
            async with mirror_of(source, lambda _key: crash) as mirror:
                await mirror.synced()
            crash.inner = inner  # The mirror closed its own.
            for after in range(len(crash.steps) + 1):
                left = await crash.kill(open_storage("memory:"), after=after)
                async with mirror_of(source, lambda _key, left=left: left) as mirror:  # type: ignore[misc]
                    await mirror.synced()
                    assert mirror.status().have == 4, f"killed after step {after}"
                    assert await read_from(mirror.addresses[0], source.core.key, 3, 4) == [block(3)]

    run(scene())


def test_a_writer_that_cannot_be_dialled_dials_the_mirror() -> None:
    async def scene() -> None:
        async with Hypercore("memory:") as core:
            await core.append([block(index) for index in range(20)])
            async with Mirror("memory:", [core.key], listen=[f"pipe:{new_name()}"]) as mirror:
                async with Swarm(peers=mirror.addresses) as swarm:
                    swarm.join(core)
                    await mirror.synced()
                    assert mirror.status().have == 20

    run(scene())


def test_a_mirror_of_a_mirror_is_as_good() -> None:
    async def scene() -> None:
        async with source_of(30) as source, mirror_of(source, "memory:") as first:
            await first.synced()
            async with Mirror("memory:", [source.core.key], sources=first.addresses) as second:
                await second.synced()
                assert second.status().have == 30
                await source.core.append(block(30))
                await until(second, lambda core: core.have == 31)

    run(scene())


def test_synced_waits_for_a_source_to_say_what_there_is() -> None:
    async def scene() -> None:
        address = f"pipe:{new_name()}"
        async with Hypercore("memory:") as core:
            await core.append([block(index) for index in range(20)])
            async with Mirror("memory:", [core.key], sources=[address]) as mirror:
                await eventually(lambda: mirror.status().sources[address] is not None)
                # Nobody is there, and of the nothing that is known everything is here.
                assert (mirror.status().have, mirror.status().want) == (0, 0)
                async with Swarm(address) as swarm:
                    swarm.join(core)
                    await mirror.synced()
                    assert mirror.status().have == 20
                    assert mirror.status().sources[address] is None

    run(scene())


def test_a_source_that_lies_is_of_no_effect_beside_an_honest_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        async with source_of(200) as honest, AsyncExitStack() as stack:
            liar = await stack.enter_async_context(Hypercore("memory:", honest.core.key))
            async with Swarm(peers=[honest.address]) as swarm:
                swarm.join(liar)
                await liar.update()
                await liar.download(0, 200).done()
            prove = liar.hub.log.prove

            async def lie(*arguments: object, **options: object) -> Proof:
                proof = await prove(*arguments, **options)  # type: ignore[arg-type]
                if proof.block is None:
                    return proof
                return proof._replace(block=proof.block._replace(value=b"a lie."))

            monkeypatch.setattr(liar.hub.log, "prove", lie)
            address = f"pipe:{new_name()}"
            liars = await stack.enter_async_context(Swarm(address))
            liars.join(liar)
            name = f"memory:{new_name()}"
            keys, sources = [honest.core.key], [address, honest.address]
            async with Mirror(name, keys, sources=sources) as mirror:
                await mirror.synced()
                async with Hypercore(name, read_only=True) as copy:
                    assert [await copy.get(index) for index in range(200)] == [block(i) for i in range(200)]

    run(scene())


def test_a_block_that_is_damaged_in_the_copy_is_fetched_again(tmp_path: Path) -> None:
    async def scene() -> None:
        async with source_of(20, size=100) as source, mirror_of(source, str(tmp_path)) as mirror:
            await mirror.synced()
            content = bytearray((tmp_path / "data").read_bytes())
            content[1234] ^= 1  # in block 12
            (tmp_path / "data").write_bytes(content)
            # A reader meets the damage, and the mirror what is missing now.
            assert await read_from(mirror.addresses[0], source.core.key, 12, 13) == [block(12, 100)]
            assert source.blocks_sent == 21
            await until(mirror, lambda core: core.have == 20)

    run(scene())


# ---- storages -------------------------------------------------------------------------------------


def test_a_far_away_storage_only_makes_it_slower() -> None:
    async def scene() -> None:
        storage = LatencyStorage(open_storage("memory:"), seconds=0.002)
        async with source_of(500) as source, mirror_of(source, lambda _key: storage) as mirror:
            await mirror.synced()
            assert mirror.status().have == 500
            assert await read_from(mirror.addresses[0], source.core.key, 499, 500) == [block(499)]

    run(scene())


def test_a_full_storage_is_told_of_and_served_from_and_tried_again() -> None:
    async def scene() -> None:
        inner = FaultyStorage(
            open_storage("memory:"), fail_at=1, lasting=True, error=lambda _step: StorageFullError("no space left")
        )
        inner.fail_at = None

        def fill(full: bool) -> None:
            inner.fail_at = inner.count + 1 if full else None

        async with source_of(20) as source, mirror_of(source, lambda _key: inner) as mirror:
            await mirror.synced()
            fill(True)
            await source.core.append([block(index) for index in range(20, 30)])
            core = await until(mirror, lambda core: core.error is not None)
            assert core.error == "no space left"
            assert mirror.status().problems == (f"core {source.core.key.hex()}: no space left",)
            blocks = await read_from(mirror.addresses[0], source.core.key, 0, 20)
            assert blocks == [block(index) for index in range(20)]
            fill(False)
            core = await until(mirror, lambda core: core.have == 30)
            await until(mirror, lambda core: core.error is None)
            assert mirror.status().problems == ()

    run(scene())


def test_a_storage_that_cannot_be_opened_takes_no_other_core_down(tmp_path: Path) -> None:
    async def scene() -> None:
        async with source_of(10) as source, source_of(10) as other:
            foreign, good = source.core.key, other.core.key
            (tmp_path / foreign.hex()).mkdir()
            (tmp_path / foreign.hex() / "oplog").write_bytes(b"the diary of somebody else" * 400)
            addresses = [source.address, other.address]
            async with Mirror(str(tmp_path / "{key}"), [foreign, good], sources=addresses) as mirror:
                await until(mirror, lambda core: core.have == 10, at=1)
                core = await until(mirror, lambda core: core.role == "failed")
                assert core.error is not None
                assert foreign.hex() in core.error
                (tmp_path / foreign.hex() / "oplog").unlink()  # Somebody cleans up.
                core = await until(mirror, lambda core: core.have == 10)
                assert (core.role, core.error) == ("writer", None)

    run(scene())


def test_a_fault_of_a_plugin_takes_no_other_core_down() -> None:
    async def scene() -> None:
        async with source_of(10) as source, source_of(10) as other:
            bad = source.core.key
            faults: list[object] = []
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _loop, context: faults.append(context["exception"]))

            def place(key: bytes) -> str:
                if key == bad:
                    raise ZeroDivisionError("a plugin's fault")
                return "memory:"

            async with Mirror(place, [bad, other.core.key], sources=[other.address]) as mirror:
                await until(mirror, lambda core: core.have == 10, at=1)
                assert mirror.status().cores[0].role == "failed"
                assert mirror.status().cores[0].error == "a plugin's fault"
            assert isinstance(faults[0], ZeroDivisionError)

    run(scene())


# ---- the byte cap ---------------------------------------------------------------------------------


def test_at_the_byte_cap_a_mirror_downloads_no_more_and_goes_on_serving() -> None:
    async def scene() -> None:
        # The window of one peer is at most 512 requests.
        async with source_of(3000, size=100) as source, mirror_of(source, "memory:", most_bytes=50_000) as mirror:
            with pytest.raises(StorageFullError, match="50000 bytes"):
                await mirror.synced()
            status = mirror.status()
            assert status.is_full
            await source.core.append(block(3000, 100))
            await until(mirror, lambda core: core.length == 3001)
            stored = mirror.status().stored_bytes
            assert 50_000 <= stored <= 50_000 + 2 * 512 * 100
            assert stored == 100 * mirror.status().have
            assert mirror.status().problems == ()
            assert await read_from(mirror.addresses[0], source.core.key, 0, 10) == [block(i, 100) for i in range(10)]

    run(scene())


def test_a_copy_that_is_full_already_downloads_nothing() -> None:
    async def scene() -> None:
        name = f"memory:{new_name()}"
        async with Hypercore(name, create_if_missing=True) as keep, source_of(100) as source:
            del keep
            place = f"memory:{new_name()}"
            async with Hypercore(place, source.core.key) as copy, Swarm(peers=[source.address]) as swarm:
                swarm.join(copy)
                await copy.update()
                await copy.download(0, 30).done()
                await copy.download(40, 50).done()
                assert await count_stored_bytes(copy.hub.log) == 400
                shadow = open_storage(place)
            before = source.blocks_sent
            async with mirror_of(source, place, most_bytes=400) as mirror:
                with pytest.raises(StorageFullError):
                    await mirror.synced()
                assert (mirror.status().have, mirror.status().stored_bytes) == (40, 400)
            await shadow.aclose()
            assert source.blocks_sent == before

    run(scene())


def test_the_cap_is_for_all_cores_together_and_one_that_is_dropped_makes_room() -> None:
    async def scene() -> None:
        async with source_of(100) as first, source_of(100) as second:
            keys, sources = [first.core.key, second.core.key], [first.address, second.address]
            async with Mirror(lambda _key: "memory:", keys, sources=sources, most_bytes=1500) as mirror:
                await eventually(lambda: mirror.status().is_full)
                assert mirror.status().stored_bytes >= 1500
                await mirror.set_keys([first.core.key])
                await mirror.synced()
                assert not mirror.status().is_full
                assert mirror.status().have == 100

    run(scene())


def test_counted_bytes_are_those_of_the_stored_blocks() -> None:
    async def scene() -> None:
        async with Hypercore("memory:") as core:
            await core.append([bytes(index) for index in range(40)])
            log: Log = core.hub.log
            assert await count_stored_bytes(log) == sum(range(40))
            await core.clear(3, 7)
            await core.clear(39)
            assert await count_stored_bytes(log) == sum(index for index in range(39) if not 3 <= index < 7)

    run(scene())


# ---- many cores -----------------------------------------------------------------------------------


def test_keys_come_and_go_while_it_runs(tmp_path: Path) -> None:
    async def scene() -> None:
        async with source_of(10) as first, source_of(20) as second:
            keys = [first.core.key, second.core.key]
            place = str(tmp_path / "{discovery_key}")
            async with Mirror(place, keys[:1], sources=[first.address, second.address]) as mirror:
                await mirror.synced()
                await mirror.set_keys(keys)
                await mirror.synced()
                assert [core.have for core in mirror.status().cores] == [10, 20]
                await mirror.set_keys(keys[1:])
                assert mirror.keys == (second.core.key,)
                await eventually(lambda: not first.core.peers)
                await mirror.set_keys([*keys, keys[0].hex()])
                await mirror.synced()
                assert mirror.status().have == 30
                with pytest.raises(OptionError, match="8 characters"):
                    await mirror.set_keys(["nonsense"])
                assert set(mirror.keys) == set(keys)
            assert (first.blocks_sent, second.blocks_sent) == (10, 20)

    run(scene())


def test_waiting_for_a_core_that_is_dropped_ends() -> None:
    async def scene() -> None:
        async with source_of(0) as source:
            async with Mirror("memory:", [bytes(32)], sources=[source.address]) as mirror:
                waiting = asyncio.ensure_future(mirror.synced())
                await until(mirror, lambda core: core.role == "writer")
                await mirror.set_keys([])
                with pytest.raises(ClosedError):
                    await waiting
                await mirror.synced()
                assert mirror.status().cores == ()

    run(scene())


def test_two_hundred_cores_share_one_connection() -> None:
    async def scene() -> None:
        address = f"pipe:{new_name()}"
        async with AsyncExitStack() as stack:
            swarm = await stack.enter_async_context(Swarm(address))
            cores = [await stack.enter_async_context(Hypercore("memory:")) for _ in range(200)]
            for number, core in enumerate(cores):
                await core.append([b"core %d block %d" % (number, index) for index in range(5)])
                swarm.join(core)
            mirror = Mirror(lambda _key: "memory:", [core.key for core in cores], sources=[address])
            async with mirror:
                await mirror.synced()
                status = mirror.status()
                assert [core.have for core in status.cores] == [5] * 200
                assert (status.have, status.want, status.connections) == (1000, 1000, 1)
                await cores[117].append(b"one more")
                await until(mirror, lambda core: core.have == 6, at=117)

    run(scene())


# ---- mistakes -------------------------------------------------------------------------------------


def test_what_cannot_work_is_refused_at_once() -> None:
    async def scene() -> None:
        some = ["tcp://127.0.0.1:1"]
        keys = [bytes([1]) * 32, bytes([2]) * 32]
        with pytest.raises(OptionError, match=r"\{key\}"):
            Mirror("./one", keys, sources=some)
        with pytest.raises(OptionError, match="source"):
            Mirror("./one", keys[:1])
        with pytest.raises(OptionError, match="range"):
            Mirror("./one", keys[:1], sources=some, start=5, end=4)
        with pytest.raises(OptionError, match="room"):
            Mirror("./one", keys[:1], sources=some, most_bytes=0)
        with pytest.raises(OptionError, match="lists"):
            Mirror("./one", keys[:1], sources="tcp://127.0.0.1:1")
        with pytest.raises(OptionError, match="address"):
            Mirror(open_storage("memory:"), keys[:1], sources=some)  # type: ignore[arg-type]
        with pytest.raises(UnknownSchemeError, match="nowhere"):
            await Mirror("nowhere://x/{key}", keys, sources=some).start()
        async with Mirror("memory:", keys[:1], sources=some) as mirror:
            with pytest.raises(OptionError, match=r"\{key\}"):
                await mirror.set_keys(keys)

    run(scene())


def test_an_address_that_is_taken_is_told_and_nothing_is_left_behind() -> None:
    async def scene() -> None:
        async with source_of(1) as source:
            with pytest.raises(TransportError):
                await Mirror("memory:", [source.core.key], listen=[source.address]).start()

    run(scene())


def test_a_mirror_that_is_closed_says_so_and_closes_twice() -> None:
    async def scene() -> None:
        async with source_of(1) as source:
            mirror = mirror_of(source, "memory:")
            await mirror.start()
            await mirror.aclose()
            await mirror.aclose()
            with pytest.raises(ClosedError):
                await mirror.synced()
            with pytest.raises(ClosedError):
                await mirror.set_keys([])
            with pytest.raises(ClosedError):
                await mirror.start()

    run(scene())


def test_what_is_appended_is_fetched_once_however_slow_the_storage_and_many_the_sources() -> None:
    async def scene() -> None:
        storage = LatencyStorage(open_storage("memory:"), seconds=0.01)
        async with source_of(5) as source, mirror_of(source, "memory:") as other:
            addresses = [source.address, *other.addresses]
            async with Mirror(lambda _key: storage, [source.core.key], sources=addresses) as mirror:
                await mirror.synced()
                for index in range(5, 25):
                    await source.core.append(block(index))
                    await eventually(lambda: mirror.status().have == other.status().have == source.core.length)
                # Two copies of 25 blocks.
                assert source.blocks_sent + other.status().cores[0].blocks_sent == 50

    run(scene())

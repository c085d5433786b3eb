"""A storage as a peer: read directly, verified like any peer, however damaged or far away it is."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hypercore import storage_peers
from hypercore.core import Hypercore
from hypercore.errors import (
    AddressError,
    BlockNotAvailableError,
    CorruptError,
    ForeignStorageError,
    OptionError,
    StorageConflictError,
    StorageError,
    StorageMissingError,
    UnknownSchemeError,
)
from hypercore.log import flat_tree
from hypercore.log.engine import Log
from hypercore.log.entry import BitRange, Entry, TreeUpgrade, encode_entry
from hypercore.log.frames import frame
from hypercore.log.header import Header
from hypercore.log.oplog import ENTRIES_OFFSET, SlotState
from hypercore.log.state import header_writes
from hypercore.plugins import open_storage
from hypercore.proofs import Node
from hypercore.storage import RandomAccess, Storage
from hypercore.swarm import Swarm
from hypercore.testing import FaultyStorage, LatencyStorage
from hypercore.testing.wrappers import Step
from hypercore_memory import MemoryStorage
from tests.processes import HYPERCORE, running
from tests.replication.links import eventually, link
from tests.running import run

_names = (f"memory:storage-peer-{number}" for number in itertools.count())
#: Only what is asked for is looked at again.
NEVER = 3600.0
Wrap = Callable[[Storage], Storage]


@pytest.fixture
def place() -> str:
    """The address of an empty storage."""
    return next(_names)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries again at once: what is tested is that it does, not when."""
    monkeypatch.setattr(storage_peers, "FIRST_RETRY_SECONDS", 0.001)
    monkeypatch.setattr(storage_peers, "LAST_RETRY_SECONDS", 0.01)


@pytest.fixture
def wrapped(monkeypatch: pytest.MonkeyPatch) -> Callable[[Wrap], None]:
    """Every storage that is opened as a peer from now on is wrapped."""

    def install(wrap: Wrap) -> None:
        monkeypatch.setattr(storage_peers, "open_storage", lambda address: wrap(open_storage(address)))

    return install


def blocks_of(count: int) -> list[bytes]:
    return [b"block %d" % index * (1 + index % 5) for index in range(count)]


async def writer_at(place: str, count: int) -> Hypercore:
    core = Hypercore(place)
    await core.ready()
    await core.append(blocks_of(count))
    return core


async def sound(core: Hypercore, blocks: list[bytes]) -> bool:
    """Whether everything that is stored is verified, and what was written."""
    log = core.hub.log
    problems = [error async for error in log.audit()]
    held = [index for index in range(log.length) if log.has(index)]
    return not problems and all([await log.get(index) == blocks[index] for index in held])


# ---- reading ------------------------------------------------------------------------------------------


def test_a_folder_is_a_peer_like_any_other(tmp_path: Path) -> None:
    async def main() -> None:
        async with await writer_at(str(tmp_path), 300) as writer:
            key = writer.key
        async with Hypercore("memory:", key) as reader, Swarm(peers=[str(tmp_path)]) as swarm:
            swarm.join(reader)
            assert await reader.update()
            assert reader.length == 300
            assert await reader.get(299) == blocks_of(300)[299]
            await reader.download(0, 300).done()
            assert await sound(reader, blocks_of(300))
            assert [each.remote_address for each in swarm.connections()] == [str(tmp_path)]
            assert [peer.blocks_received for peer in reader.peers] == [300]
            assert not swarm.dial_errors

    run(main())


def test_it_is_read_while_its_writer_has_it_open(place: str) -> None:
    async def main() -> None:
        async with await writer_at(place, 10) as writer, Hypercore("memory:", writer.key) as reader:
            async with Swarm(peers=[place]) as swarm:
                swarm.join(reader)
                assert await reader.get(9) == blocks_of(10)[9]
                await writer.append(b"it can still write")

    run(main())


def test_storages_and_peers_over_streams_deliver_together(place: str) -> None:
    async def main() -> None:
        async with await writer_at(place, 500) as writer, Swarm("pipe:together") as server:
            server.join(writer)
            async with Hypercore("memory:", writer.key) as reader, Swarm(peers=[place, "pipe:together"]) as swarm:
                swarm.join(reader)
                await reader.update()
                await swarm.flush()
                await eventually(lambda: len(reader.peers) == 2)
                await reader.download(0, 500).done()
                assert await sound(reader, blocks_of(500))

    run(main())


@pytest.mark.parametrize("template", ["{key}", "{discovery_key}", "logs-{discovery_key}-{key}"])
def test_one_address_may_stand_for_many_cores(template: str) -> None:
    async def main() -> None:
        pattern = f"memory:{template}"
        async with await writer_at("memory:", 1) as first, await writer_at("memory:", 2) as second:
            cores = first, second
            homes = [
                pattern.replace("{key}", core.key.hex()).replace("{discovery_key}", core.discovery_key.hex())
                for core in cores
            ]
            for home, core in zip(homes, cores, strict=True):
                copy = Hypercore(home, core.key)
                await copy.ready()
                await link(copy, core)
                await copy.update()
                await copy.download(0, core.length).done()
            readers = [Hypercore("memory:", core.key) for core in cores]
            async with readers[0], readers[1], Swarm(peers=[pattern]) as swarm:
                for reader in readers:
                    swarm.join(reader)
                assert await readers[0].get(0) == await readers[1].get(0) == b"block 0"
                assert await readers[1].get(1) == blocks_of(2)[1]
                assert not swarm.dial_errors
                assert sorted(each.remote_address for each in swarm.connections()) == sorted(homes)

    run(main())


def test_a_storage_of_one_core_is_no_failure_for_another_core(place: str) -> None:
    async def main() -> None:
        async with await writer_at(place, 3) as writer, Hypercore("memory:", writer.key) as reader:
            async with Hypercore("memory:", "ab" * 32) as stranger, Swarm(peers=[place]) as swarm:
                swarm.join(reader)
                swarm.join(stranger)
                assert await reader.get(2) == blocks_of(3)[2]
                with pytest.raises(BlockNotAvailableError):
                    await stranger.get(0)
                await eventually(lambda: not swarm.dial_errors)

    run(main())


def test_a_core_that_leaves_lets_go_of_the_storage(place: str) -> None:
    async def main() -> None:
        async with await writer_at(place, 3) as writer, Hypercore("memory:", writer.key) as reader:
            async with Swarm(peers=[place]) as swarm:
                swarm.join(reader)
                await reader.update()
                assert reader.peers
                swarm.leave(reader)
                assert not reader.peers
                assert not swarm.connections()
                with pytest.raises(BlockNotAvailableError):
                    await reader.get(0)
                swarm.join(reader)
                assert await reader.get(0) == b"block 0"

    run(main())


def test_a_core_that_closes_and_a_swarm_that_ends_leave_nothing_open(
    place: str, wrapped: Callable[[Wrap], None]
) -> None:
    closed: list[str] = []

    class Watched(LatencyStorage):
        async def aclose(self) -> None:
            closed.append(str(self))
            await super().aclose()

    async def main() -> None:
        async with await writer_at(place, 3) as writer:
            wrapped(lambda inner: Watched(inner, seconds=0))
            for swarm_ends_first in (True, False):
                closed.clear()
                reader, swarm = Hypercore("memory:", writer.key), Swarm(peers=[place])
                await reader.ready()
                swarm.join(reader)
                await swarm.flush()
                await reader.update()
                # One that only looked whether the address is understood is closed already.
                assert len(closed) == 1
                if swarm_ends_first:
                    await swarm.destroy()
                    assert len(closed) == 2
                    await reader.close()
                else:
                    await reader.close()
                    await eventually(lambda: len(closed) == 2)
                    await swarm.destroy()

    run(main())


# ---- what cannot be read --------------------------------------------------------------------------------


def test_an_address_that_is_nobodys_is_told_at_the_start() -> None:
    async def main() -> None:
        for wrong, error, said in (
            ("nothing://here", UnknownSchemeError, "neither a peer's .*tcp.* nor a storage's .*memory"),
            ("localhost:4977", UnknownSchemeError, "'tcp://host:port'"),
            ("127.0.0.1:4977", AddressError, "'tcp://host:port'"),
            ("folder", AddressError, r"'\./folder'"),
            ("memory:here?colour=red", OptionError, "colour"),
        ):
            with pytest.raises(error, match=said):
                await Swarm(peers=[wrong]).start()

    run(main())


def test_nothing_there_is_an_error_with_a_name_and_is_found_when_it_comes(place: str) -> None:
    async def main() -> None:
        async with await writer_at("memory:", 5) as origin, Hypercore("memory:", origin.key) as reader:
            async with Swarm(peers=[place], refresh_seconds=0.001) as swarm:
                swarm.join(reader)
                await swarm.flush()
                assert isinstance(swarm.dial_errors[place], StorageMissingError)
                assert not await reader.update()
                async with Hypercore(place, origin.key) as copy:
                    await link(copy, origin)
                    await copy.update()
                    await copy.download(0, 5).done()
                    await eventually(lambda: bool(reader.peers))
                    assert await reader.get(4) == blocks_of(5)[4]
                    assert not swarm.dial_errors

    run(main())


def test_another_core_or_something_else_is_an_error_with_a_name(tmp_path: Path) -> None:
    async def main() -> None:
        async with await writer_at(str(tmp_path / "other"), 3):
            pass
        (tmp_path / "foreign").mkdir()
        (tmp_path / "foreign" / "letters.txt").write_text("dear")
        (tmp_path / "damaged").mkdir()
        (tmp_path / "damaged" / "oplog").write_bytes(bytes(8192))
        (tmp_path / "damaged" / "tree").write_bytes(b"x" * 4000)
        for name, error in (
            ("other", StorageConflictError),
            ("foreign", ForeignStorageError),
            ("damaged", CorruptError),
            ("none", StorageMissingError),
        ):
            async with Hypercore("memory:", "ab" * 32) as reader, Swarm(peers=[str(tmp_path / name)]) as swarm:
                swarm.join(reader)
                assert not await reader.update()
                assert type(swarm.dial_errors[str(tmp_path / name)]) is error
                assert reader.length == 0
        assert not (tmp_path / "none").exists()

    run(main())


def test_a_secret_in_an_address_is_shown_nowhere(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with await writer_at(place, 3) as writer, Hypercore("memory:", writer.key) as reader:
            monkeypatch.setattr(storage_peers, "open_storage", lambda _: open_storage(place))
            async with Swarm(peers=["memory://user:hush@host/logs"]) as swarm:
                swarm.join(reader)
                await reader.update()
                assert [each.remote_address for each in swarm.connections()] == ["memory://***@host/logs"]
                assert "hush" not in repr(reader.peers)

    run(main())


def test_a_storage_that_fails_while_it_is_read_is_opened_again(place: str, wrapped: Callable[[Wrap], None]) -> None:
    failures = iter([40, 50, 60, 70])
    told: list[StorageError] = []

    def failing(inner: Storage) -> Storage:
        return FaultyStorage(inner, fail_at=next(failures, None), verbs={"read"}, lasting=True)

    async def main() -> None:
        async with await writer_at(place, 400) as writer, Hypercore("memory:", writer.key) as reader:
            wrapped(failing)
            async with Swarm(peers=[place]) as swarm:
                reader.hub.on_change.append(
                    lambda _: told.extend(each for each in swarm.dial_errors.values() if isinstance(each, StorageError))
                )
                swarm.join(reader)
                await swarm.flush()
                while reader.length != 400:
                    await reader.update()
                    await asyncio.sleep(0)  # Without a peer there is nothing to wait for.
                indexes = [index for index in range(400) if not reader.hub.log.has(index)]
                random.Random(3).shuffle(indexes)
                for index in indexes:
                    while not await reader.has(index):
                        try:
                            await reader.get(index)
                        except BlockNotAvailableError:
                            await asyncio.sleep(0)
                assert await sound(reader, blocks_of(400))
                assert not swarm.dial_errors
                assert any("injected" in str(error) for error in told)

    run(main())


def test_a_fault_of_a_plugin_is_told_and_hurts_nobody_else(place: str, wrapped: Callable[[Wrap], None]) -> None:
    def broken(step: Step) -> BaseException:
        return RuntimeError("a plugin's own mistake")

    async def main() -> None:
        heard: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(str(context["exception"])))
        async with await writer_at(place, 10) as writer, Hypercore("memory:", writer.key) as reader:
            wrapped(lambda inner: FaultyStorage(inner, fail_at=1, error=broken, verbs={"read"}))
            async with Swarm(peers=[place]) as swarm, Swarm("pipe:good") as server:
                server.join(writer)
                swarm.join(reader)
                await swarm.flush()
                assert isinstance(swarm.dial_errors[place], StorageError)
                assert "a plugin's own mistake" in heard
                async with Swarm(peers=["pipe:good"]) as other:
                    other.join(reader)
                    assert await reader.get(9) == blocks_of(10)[9]

    run(main())


# ---- what is damaged -------------------------------------------------------------------------------------


async def files_of(place: str) -> dict[str, bytes]:
    storage = open_storage(place)
    files: dict[str, bytes] = {}
    for name in sorted(await storage.names()):
        file = await storage.open(name)
        files[name] = await file.read(0, await file.size())
        await file.aclose()
    await storage.aclose()
    return files


async def fill(place: str, files: dict[str, bytes]) -> Storage:
    storage = open_storage(place)
    for name, content in files.items():
        file: RandomAccess = await storage.open(name, create=True)
        await file.write(0, content)
        await file.aclose()
    return storage


def is_stuck(core: Hypercore) -> Callable[[], bool]:
    """Whether no block can come any more: each is here, or nobody who is connected has it."""

    def stuck() -> bool:
        log = core.hub.log
        return all(
            log.has(index) or not any(peer.remote.has(index) and not peer.remote.paused for peer in core.peers)
            for index in range(log.length)
        )

    return stuck


async def read_damaged(files: dict[str, bytes], key: bytes, origin: Hypercore, what: str) -> int:
    """Read the damaged files as a peer: all that is stored must be right, and a good peer brings the rest."""
    place, blocks = next(_names), blocks_of(origin.length)
    async with await fill(place, files), Hypercore("memory:", key) as reader, Swarm(peers=[place]) as swarm:
        swarm.join(reader)
        await swarm.flush()
        await reader.update()
        assert reader.length <= origin.length, what
        download = reader.download(0, origin.length)
        await eventually(is_stuck(reader))
        assert await sound(reader, blocks), what
        alone = reader.hub.log.bitfield.count(0, reader.length)
        connection = await link(reader, origin)
        await reader.update()
        await download.done()
        assert reader.length == origin.length, what
        assert await sound(reader, blocks), what
        await connection.cut()
    return alone


def damages(files: dict[str, bytes], seed: int) -> Iterator[tuple[str, dict[str, bytes]]]:
    """One damage of one file each: a bit, a byte, a stretch, the end, the whole."""
    choose = random.Random(seed)
    for name, content in files.items():
        yield f"seed {seed}: {name} emptied", {**files, name: b""}
        yield f"seed {seed}: {name} removed", {each: files[each] for each in files if each != name}
        # What lies where differs, so that every part is met: the first bytes, each quarter, the last ones.
        size = len(content)
        starts = [0, *(size * quarter // 4 for quarter in range(4)), max(0, size - 64)]
        for start in starts:
            position = min(size - 1, start + choose.randrange(64))
            bit = choose.randrange(8)
            flipped = bytearray(content)
            flipped[position] ^= 1 << bit
            yield f"seed {seed}: {name} bit {bit} of byte {position}", {**files, name: bytes(flipped)}
            cut = choose.randrange(start, size)
            yield f"seed {seed}: {name} cut to {cut}", {**files, name: content[:cut]}
            noise = bytearray(content)
            noise[position : position + 40] = choose.randbytes(len(noise[position : position + 40]))
            yield f"seed {seed}: {name} noise at {position}", {**files, name: bytes(noise)}


@pytest.mark.parametrize("flushed", [True, False], ids=["in the files", "in the log's entries"])
@pytest.mark.parametrize("seed", [1, 2])
def test_no_damage_of_a_source_is_ever_stored(seed: int, flushed: bool, place: str) -> None:
    async def main() -> None:
        async with await writer_at(place, 90) as origin:
            if flushed:
                await origin.hub.log.flush()
                await origin.append(blocks_of(94)[90:])
            files = await files_of(place)
            assert set(files) >= {"oplog", "data"}
            whole, some = 0, 0
            for what, damaged in damages({name: content for name, content in files.items() if content}, seed):
                stored = await read_damaged({**dict.fromkeys(files, b""), **damaged}, origin.key, origin, what)
                whole += stored == origin.length
                some += 0 < stored < origin.length
            # The damage was felt, and was not the end of everything else.
            assert some, f"seed {seed}"

    run(main())


def test_the_reader_is_told_what_is_damaged_and_where(place: str) -> None:
    async def main() -> None:
        async with await writer_at(place, 20) as origin:
            files = await files_of(place)
            other = next(_names)
            damaged = bytes([files["data"][0] ^ 1]) + files["data"][1:]
            async with await fill(other, {**files, "data": damaged}), Hypercore("memory:", origin.key) as reader:
                async with Swarm(peers=[other]) as swarm:
                    swarm.join(reader)
                    await reader.update()
                    reader.download(0, 20)
                    await eventually(is_stuck(reader))
                    assert reader.hub.log.bitfield.count(0, 20) == 19
                    (warning,) = (await reader.info()).warnings
                    assert other in warning
                    assert "block 0 is damaged" in warning

    run(main())


async def forge(storage: Storage, key: bytes, length: int) -> None:
    """A log that nobody signed: every byte of it is as its format says, and its writer never saw it."""
    writes, _ = header_writes(Header(key=key), SlotState(), None, sync=False)
    await storage.commit(writes)
    nodes = [Node(index, 1000, bytes([7]) * 32) for index in flat_tree.full_roots(length)]
    if all(node.index != 2 * length - 2 for node in nodes):
        nodes.append(Node(2 * length - 2, 1, bytes([9]) * 32))
    entry = Entry(
        nodes=nodes, upgrade=TreeUpgrade(0, 0, length, bytes(64)), bits=BitRange(False, start=length - 1, length=1)
    )
    log = await storage.open("oplog", create=True)
    await log.write(ENTRIES_OFFSET, frame(encode_entry(entry), bit=SlotState().written().active))
    bits = await storage.open("bitfield", create=True)
    await bits.write(0, b"\xff" * 4096)
    await bits.write(2**30, b"\xff" * 4096)


@pytest.mark.parametrize("length", [1, 7, 100_000, 2**32])
def test_a_forged_log_proves_nothing(length: int, place: str) -> None:
    async def main() -> None:
        async with open_storage(place) as storage, Hypercore("memory:", "ab" * 32) as reader:
            await forge(storage, reader.key, length)
            async with Swarm(peers=[place]) as swarm:
                swarm.join(reader)
                assert not await reader.update()
                assert [peer.remote_length for peer in reader.peers] == [length]
                assert reader.length == 0
                assert all(peer.remote.paused for peer in reader.peers)

    run(main())


def test_a_forged_log_of_endless_length_is_not_even_opened(place: str) -> None:
    async def main() -> None:
        async with open_storage(place) as storage, Hypercore("memory:", "ab" * 32) as reader:
            await forge(storage, reader.key, 2**52)
            async with Swarm(peers=[place]) as swarm:
                swarm.join(reader)
                assert not await reader.update()
                assert "that nobody signed" in str(swarm.dial_errors[place])

    run(main())


# ---- following -----------------------------------------------------------------------------------------


def test_an_update_finds_what_the_writer_has_written_since(place: str) -> None:
    async def main() -> None:
        async with await writer_at(place, 3) as writer, Hypercore("memory:", writer.key) as reader:
            async with Swarm(peers=[place], refresh_seconds=NEVER) as swarm:
                swarm.join(reader)
                await reader.update()
                for _ in range(20):
                    length, _ = await writer.append(blocks_of(2000)[writer.length : writer.length * 2])
                    assert await reader.update()
                    assert reader.length == length
                    assert await reader.get(length - 1) == blocks_of(length)[length - 1]
                    if length > 500:
                        break
                assert not await reader.update()

    run(main())


def test_a_live_stream_follows_a_storage(place: str) -> None:
    async def main() -> None:
        async with await writer_at(place, 3) as writer, Hypercore("memory:", writer.key) as reader:
            async with Swarm(peers=[place], refresh_seconds=0.001) as swarm:
                swarm.join(reader)
                await reader.update()
                stream = reader.create_read_stream(live=True)
                assert [await anext(stream) for _ in range(3)] == blocks_of(3)
                for index in range(3, 40):
                    await writer.append(blocks_of(40)[index])
                    assert await anext(stream) == blocks_of(40)[index]

    run(main())


def test_a_storage_is_looked_at_only_while_somebody_follows(place: str, wrapped: Callable[[Wrap], None]) -> None:
    opened: list[LatencyStorage] = []

    def counted(inner: Storage) -> Storage:
        opened.append(LatencyStorage(inner, seconds=0))
        return opened[-1]

    async def main() -> None:
        async with await writer_at(place, 3) as writer, Hypercore("memory:", writer.key) as reader:
            wrapped(counted)
            async with Swarm(peers=[place], refresh_seconds=0.0001) as swarm:
                swarm.join(reader)
                await reader.update()
                await reader.download(0, 3).done()
                await reader.update()  # A look that had begun before is over now.
                *_, storage = opened
                before = storage.round_trips
                for _ in range(50):
                    await asyncio.sleep(0.0001)
                assert storage.round_trips == before
                download = reader.download(3)
                await eventually(lambda: storage.round_trips > before)
                download.destroy()

    run(main())


def test_a_storage_whose_writer_took_blocks_back_is_followed_to_the_other_fork(place: str) -> None:
    async def main() -> None:
        async with await writer_at(place, 100) as writer, Hypercore("memory:", writer.key) as reader:
            async with Swarm(peers=[place], refresh_seconds=NEVER) as swarm:
                swarm.join(reader)
                await reader.update()
                await reader.download(0, 100).done()
                await writer.truncate(40)
                await writer.append([b"another", b"history"])
                assert await reader.update()
                assert (reader.fork, reader.length) == (1, 42)
                assert await reader.get(41) == b"history"
                assert await sound(reader, [*blocks_of(40), b"another", b"history"])

    run(main())


def test_a_storage_that_lost_what_it_had_is_an_error_and_changes_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        folder = tmp_path / "log"
        async with await writer_at(str(folder), 10) as writer:
            key = writer.key
        async with Hypercore("memory:", key) as reader:
            async with Swarm(peers=[str(folder)], refresh_seconds=NEVER) as swarm:
                swarm.join(reader)
                await reader.update()
                (folder / "oplog").write_bytes(b"")
                await reader.update()
                await eventually(lambda: str(folder) in swarm.dial_errors)
                assert isinstance(swarm.dial_errors[str(folder)], CorruptError)
                assert reader.length == 10

    run(main())


def test_a_writer_in_another_process_is_followed_through_its_folder(tmp_path: Path) -> None:
    async def main() -> None:
        async with await writer_at(str(tmp_path / "log"), 3) as writer:
            key = writer.key
        async with Hypercore("memory:", key) as reader:
            async with Swarm(peers=[str(tmp_path / "log")], refresh_seconds=0.001) as swarm:
                swarm.join(reader)
                stream = reader.create_read_stream(live=True)
                assert [await anext(stream) for _ in range(3)] == blocks_of(3)
                async with running(*HYPERCORE, "append", tmp_path / "log", "-", "--lines") as append:
                    for number in range(200):
                        await append.type(f"line {number}\n")
                        assert await anext(stream) == b"line %d" % number
                assert not swarm.dial_errors

    run(main())


# ---- far away --------------------------------------------------------------------------------------------


class FarStorage(LatencyStorage):
    """Counts how many reads are on their way at once."""

    distant = True

    def __init__(self, inner: Storage, *, seconds: float) -> None:
        super().__init__(inner, seconds=seconds)
        self.distant = True
        self.under_way = self.most_under_way = 0

    async def wait(self) -> None:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await super().wait()
        self.under_way -= 1


@pytest.mark.parametrize("size", [10, 200_000])
def test_many_blocks_of_a_distant_storage_are_read_at_once(
    size: int, place: str, wrapped: Callable[[Wrap], None]
) -> None:
    opened: list[FarStorage] = []

    def far(inner: Storage) -> Storage:
        opened.append(FarStorage(inner, seconds=0.002))
        return opened[-1]

    async def main() -> None:
        async with Hypercore(place) as writer, Hypercore("memory:", writer.key) as reader:
            blocks = [bytes([index % 256]) * size for index in range(200)]
            await writer.append(blocks)
            wrapped(far)
            async with Swarm(peers=[place]) as swarm:
                swarm.join(reader)
                await reader.update()
                await reader.download(0, 200).done()
                assert [await reader.get(index) for index in range(200)] == blocks
                at_once = opened[-1].most_under_way
                assert at_once == (64 if size == 10 else 8 * 1024 * 1024 // size)

    run(main())


# ---- a standby ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("far", [False, True], ids=["near", "far"])
def test_a_standby_serves_what_another_process_writes_as_soon_as_it_looks(far: bool, place: str) -> None:
    async def main() -> None:
        async with await writer_at(place, 50) as writer:
            inner = MemoryStorage(place.partition(":")[2])
            storage = FarStorage(inner, seconds=0.0002) if far else inner
            async with Hypercore(storage, read_only=True) as standby, Hypercore("memory:", writer.key) as reader:
                await link(standby, reader)
                stream = reader.create_read_stream(live=True)
                assert [await anext(stream) for _ in range(50)] == blocks_of(50)
                for index in range(50, 120):
                    await writer.append(blocks_of(120)[index])
                    if index % 10 == 0:
                        await writer.hub.log.flush()  # Entries move to the files below the standby's feet.
                    assert await standby.refresh()
                    assert await anext(stream) == blocks_of(120)[index]
                await writer.truncate(60)
                await writer.append(b"on another fork")
                await standby.refresh()
                await reader.wait_for_length(61)
                await eventually(lambda: reader.fork == 1)
                assert await reader.get(60) == b"on another fork"
                assert await sound(reader, [*blocks_of(60), b"on another fork"])

    run(main())


def test_a_standby_can_be_refreshed_in_the_midst_of_serving(place: str) -> None:
    async def main() -> None:
        async with await writer_at(place, 400) as writer:
            storage = FarStorage(MemoryStorage(place.partition(":")[2]), seconds=0)
            async with Hypercore(storage, read_only=True) as standby, Hypercore("memory:", writer.key) as reader:
                await link(standby, reader)
                await reader.update()
                download = reader.download(0)
                for index in range(400, 500):
                    await writer.append(blocks_of(500)[index])
                    if index % 7 == 0:
                        await writer.hub.log.flush()
                    await standby.refresh()
                await eventually(lambda: reader.contiguous_length == 500)
                download.destroy()
                assert await sound(reader, blocks_of(500))
                assert not standby.hub.warnings
                assert len(reader.peers) == 1

    run(main())


def test_a_log_that_cannot_be_read_as_this_key_is_closed_again(place: str) -> None:
    async def main() -> None:
        async with await writer_at(place, 1):
            with pytest.raises(StorageConflictError):
                await Log.open(open_storage(place), key=bytes(32), read_only=True)

    run(main())

"""Folders of hypercore 10, opened by the engine: what Node wrote is read right, also where Node reads it wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hypercore.errors import CorruptError, HypercoreError
from hypercore.log.engine import Log
from tests import disk_vectors
from tests.log.logs import Disk, have, shown
from tests.running import run

#: These cannot be opened for writing: acknowledged blocks are lost, and going on would sign a second history.
REFUSED = {
    "active-slot-corrupt": ("oplog", 4096),
    "flipped-middle-entry": ("oplog", 8192),
    "both-slots-corrupt": ("oplog", 0),
}
OPENING = [name for name in disk_vectors.NAMES if name not in REFUSED]


def expected(name: str) -> dict[str, Any]:
    """Node's view, and the right one where Node's is wrong."""
    vector = disk_vectors.load(name)
    robust = vector.get("robust")
    view = dict(vector.get("expect") or {})
    if isinstance(robust, dict):
        view.update(robust)
        view.pop("blocks", None)
    if "roots" in view and name == "crash-reorg":
        view.pop("signature", None)
    if name == "flipped-root":
        # The right root is that of the same eight blocks elsewhere.
        for field in ("treeHash", "roots"):
            view[field] = disk_vectors.load("lost-data")["expect"][field]
    return view


def blocks_below_the_length(runs: list[list[int]], length: int) -> list[int]:
    return [index for start, count in runs for index in range(start, start + count) if index < length]


@pytest.mark.parametrize("name", OPENING)
@pytest.mark.parametrize("read_only", [False, True])
def test_a_folder_of_hypercore_10_shows_what_was_written(name: str, read_only: bool) -> None:
    async def scenario() -> None:
        disk = Disk(disk_vectors.files(name))
        log = await Log.open(disk.storage(), create_if_missing=False, read_only=read_only)
        view, says = expected(name), await shown(log)
        for field in ("fork", "length", "byteLength", "treeHash", "signature"):
            if field in view:
                assert says[field] == view[field], field
        if "have" in view:
            assert have(log) == blocks_below_the_length(view["have"], log.length)
        if "userData" in view:
            wanted = {pair["key"]: pair["value"] for pair in view["userData"] if pair["value"]}
            assert says["userData"] == wanted
        if "key" in view:
            assert (log.key.hex(), log.discovery_key.hex()) == (view["key"], view["discoveryKey"])
            assert log.is_compat == view["compat"]
            signers = [signer["publicKey"] for signer in (view["manifest"] or {}).get("signers", [])]
            alone = (view["manifest"] or {}).get("quorum") == 1
            can_sign = view["keyPair"] is not None and view["keyPair"]["publicKey"] in signers
            assert log.writable == (can_sign and alone and not read_only)
        true_contiguous_length = disk_vectors.load(name).get("trueContiguousLength")
        if true_contiguous_length is not None:
            assert log.contiguous_length == true_contiguous_length
        if read_only:
            assert disk.files() == disk_vectors.files(name)
            assert disk.holder is None
        await log.aclose()

    run(scenario())


@pytest.mark.parametrize("name", [name for name in OPENING if "blocks" in expected(name)])
def test_every_block_of_a_folder_of_hypercore_10_is_read_and_verified(name: str) -> None:
    damaged = {"lost-data": {2, 3}}.get(name, set())

    async def scenario() -> None:
        log = await Log.open(Disk(disk_vectors.files(name)).storage())
        for block in expected(name)["blocks"]:
            short = isinstance(block, list)
            index, offset, size, leaf = block if short else (block[key] for key in ("index", "offset", "size", "leaf"))
            if index in damaged or index >= log.length:
                continue
            assert await log.byte_offset(index) == offset
            value = await log.get(index)
            assert value is not None
            assert len(value) == size
            assert log.tree_hash_function.leaf(value).hex().startswith(leaf)
            assert short or value.hex() == block["raw"]
        await log.aclose()

    run(scenario())


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_folder_with_lost_blocks_is_refused_and_not_touched(name: str) -> None:
    async def scenario() -> None:
        disk = Disk(disk_vectors.files(name))
        with pytest.raises(CorruptError) as caught:
            await Log.open(disk.storage())
        file, offset = REFUSED[name]
        assert caught.value.file == file
        assert caught.value.offset in (None, offset)
        assert disk.files() == disk_vectors.files(name)

    run(scenario())


@pytest.mark.parametrize("name", ["active-slot-corrupt", "flipped-middle-entry"])
def test_what_is_left_of_a_damaged_log_can_be_read_on_request(name: str) -> None:
    async def scenario() -> None:
        disk = Disk(disk_vectors.files(name))
        log = await Log.open(disk.storage(), read_only=True)
        assert log.length == expected(name)["length"]
        assert log.warnings
        assert await log.get(0) == b"block-0"
        await log.aclose()
        assert disk.files() == disk_vectors.files(name)

    run(scenario())


@pytest.mark.parametrize("name", [name for name in OPENING if disk_vectors.load(name).get("openWrites")])
def test_what_a_crash_left_behind_the_entries_is_cut_off_at_once(name: str) -> None:
    async def scenario() -> None:
        disk = Disk(disk_vectors.files(name))
        await Log.open(disk.storage())
        (cut,) = disk_vectors.load(name)["openWrites"]
        assert cut == f"oplog truncate({len(disk.contents['oplog'])})"
        assert len(disk.commits) == 1

    run(scenario())


@pytest.mark.parametrize("name", ["crash-truncate-flush", "crash-reorg", "crash-twice"])
def test_a_truncation_that_a_crash_interrupted_is_finished_before_anything_else(name: str) -> None:
    async def scenario() -> None:
        disk = Disk(disk_vectors.files(name))
        log = await Log.open(disk.storage())
        # Node could not read these entries, so there are none any more.
        assert len(disk.contents["oplog"]) == 8192
        again = await Log.open(Disk(disk.files()).storage(), read_only=True)
        assert await shown(again) == await shown(log)

    run(scenario())


def test_lost_bytes_are_an_error_once_and_then_missing() -> None:
    async def scenario() -> None:
        log = await Log.open(Disk(disk_vectors.files("lost-data")).storage())
        for index in (2, 3):
            with pytest.raises(CorruptError) as caught:
                await log.get(index)
            assert (caught.value.file, caught.value.index) == ("data", index)
            assert not log.has(index)
            assert await log.get(index) is None
        assert log.contiguous_length == 2
        assert await log.get(4) == b"block-4"
        await log.aclose()

    run(scenario())


@pytest.mark.parametrize("first", [2, 3])
def test_a_lost_leaf_is_made_anew_from_the_bytes_of_its_block(first: int) -> None:
    async def scenario() -> None:
        disk = Disk(disk_vectors.files("lost-leaf"))
        log = await Log.open(disk.storage())
        for index in (first, *range(8)):
            assert await log.get(index) == b"block-%d" % index
        await log.append([b"block-8"])
        await log.flush()
        await log.aclose()
        tree = disk_vectors.files("lost-data")["tree"]
        assert disk.files()["tree"][: len(tree)] == tree

    run(scenario())


def test_a_lost_leaf_of_a_lost_block_makes_both_that_need_it_missing_and_no_other() -> None:
    async def scenario() -> None:
        files = disk_vectors.files("lost-leaf") | {"data": disk_vectors.files("lost-data")["data"]}
        log = await Log.open(Disk(files).storage())
        for index in (2, 3):
            with pytest.raises(CorruptError) as caught:
                await log.get(index)
            assert (caught.value.file, caught.value.index) == ("tree", index)
            assert await log.get(index) is None
        for index in (0, 1, 4, 5, 6, 7):
            assert await log.get(index) == b"block-%d" % index
        await log.aclose()

    run(scenario())


def test_a_damaged_root_is_made_anew_from_its_children_and_stays_good() -> None:
    async def scenario() -> None:
        disk = Disk(disk_vectors.files("flipped-root"))
        log = await Log.open(disk.storage())
        assert any("root 7" in warning for warning in log.warnings)
        await log.append([b"block-8"])
        await log.flush()
        await log.aclose()
        again = await Log.open(disk.storage())
        assert again.warnings == []
        assert [await again.get(index) for index in range(9)] == [b"block-%d" % index for index in range(9)]
        await again.aclose()

    run(scenario())


WRITABLE = [
    name
    for name in OPENING
    if expected(name).get("keyPair") and "multisig" not in name and expected(name)["manifest"]["signers"]
]


@pytest.mark.parametrize("name", WRITABLE)
def test_a_folder_of_hypercore_10_goes_on_where_it_stopped(name: str) -> None:
    async def scenario() -> None:
        disk = Disk(disk_vectors.files(name))
        log = await Log.open(disk.storage())
        before = [await _or_none(log, index) for index in range(log.length)]
        await log.append([b"one", b"", b"three"])
        await log.aclose()
        again = await Log.open(disk.storage())
        assert [await _or_none(again, index) for index in range(again.length)] == [*before, b"one", b"", b"three"]
        await again.flush()
        await again.aclose()
        flushed = await Log.open(disk.storage())
        assert [await _or_none(flushed, index) for index in range(flushed.length)] == [*before, b"one", b"", b"three"]
        await flushed.aclose()

    run(scenario())


async def _or_none(log: Log, index: int) -> bytes | None:
    try:
        return await log.get(index)
    except CorruptError:
        return None


@pytest.mark.parametrize("number", range(len(disk_vectors.crash_scenarios())))
def test_every_crash_of_hypercore_10_recovers_to_the_right_side(number: int) -> None:
    async def scenario() -> None:
        for state in disk_vectors.crash_states(disk_vectors.crash_scenarios()[number]):
            disk = Disk(state.files)
            for attempt in ("opened", "opened again"):
                try:
                    log = await Log.open(disk.storage(), create_if_missing=False)
                except HypercoreError as error:
                    raise AssertionError(f"{state.name}, {attempt}: {error}") from error
                says = await shown(log)
                # Two entries in one write: a state between them is as good, since it opened and was verified.
                between = disk_vectors.crash_scenarios()[number]["commitAfter"] is None
                agrees = any(_agrees(says, view) for view in state.expected)
                assert agrees or between, f"{state.name}, {attempt}: {says}"
                for index in have(log):
                    assert await log.get(index) is not None
                await log.flush()
                await log.aclose()

    run(scenario())


def _agrees(says: dict[str, Any], view: dict[str, Any]) -> bool:
    user_data = {pair["key"]: pair["value"] for pair in view["userData"]}
    same_user_data = says["userData"].keys() == user_data.keys() and all(
        len(says["userData"][key]) == 2 * 5000 if value == "5000 bytes" else says["userData"][key] == value
        for key, value in user_data.items()
    )
    fields = ("fork", "length", "byteLength", "treeHash", "signature")
    held = blocks_below_the_length(view["have"], view["length"])
    return (
        all(says[field] == view[field] for field in fields)
        and blocks_below_the_length(says["have"], says["length"]) == held
        and same_user_data
    )


STORE = json.loads((disk_vectors.FOLDER / "corestore.json").read_text())


@pytest.mark.parametrize("core", STORE["cores"], ids=[core["label"] for core in STORE["cores"]])
def test_a_core_of_a_corestore_opens_by_itself_with_its_names(core: dict[str, str]) -> None:
    async def scenario() -> None:
        folder = disk_vectors.FOLDER / "corestore" / core["path"]
        disk = Disk({path.name: path.read_bytes() for path in folder.iterdir()})
        before = disk.files()
        log = await Log.open(disk.storage(), key=bytes.fromhex(core["key"]), create_if_missing=False)
        assert log.discovery_key.hex() == core["discoveryKey"]
        assert log.key_pair is not None
        assert (log.key_pair.public_key.hex(), log.key_pair.secret_key.hex()) == (core["publicKey"], core["secretKey"])
        assert log.user_data["corestore/name"].decode() == core["name"]
        assert log.user_data["corestore/namespace"].hex() == core["namespace"]
        assert [len(await log.get(index) or b"") > 0 for index in range(log.length)] == [True] * log.length
        await log.aclose()
        assert disk.files() == before

    run(scenario())

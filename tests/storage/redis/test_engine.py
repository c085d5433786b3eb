"""The engine's random histories, unchanged, on real servers: whole, with broken connections, and seen by a reader."""

from __future__ import annotations

from random import Random

import pytest

from hypercore.errors import StorageError
from hypercore.log import commits
from hypercore.log.engine import Log
from hypercore.testing import FaultyStorage
from tests.histories import Model, difference, perform, random_engine_action, view_of
from tests.log.logs import KEY_PAIR
from tests.running import run
from tests.servers.redis import KINDS, Kind, shared_server
from tests.servers.tcp_proxy import TcpProxy
from tests.storage.redis.places import new_prefix, storage_at

both = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def _frequent_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short history should meet some that nobody asked for."""
    monkeypatch.setattr(commits, "CHECKPOINT_ENTRY_BYTES", 2000)


@both
@pytest.mark.parametrize("seed", range(6))
def test_a_random_history_agrees_with_the_model_across_openings(kind: Kind, seed: int) -> None:
    server = shared_server(kind)

    async def scenario() -> None:
        random = Random(seed)
        prefix = new_prefix()
        log = await Log.open(storage_at(server, prefix), key_pair=KEY_PAIR, compat=seed % 2 == 0)
        model = Model()
        for number in range(60):
            if random.random() < 0.08:
                await log.aclose()
                log = await Log.open(storage_at(server, prefix), create_if_missing=False)
            action = random_engine_action(random, model)
            await perform(log, action)
            model = model.after(action)
            if number % 5 == 4:
                assert not difference(await view_of(log), model), f"seed {seed}, action {number}, {action}"
        assert await log.tree_hash() == model.tree_hash, f"seed {seed}"
        await log.aclose()
        log = await Log.open(storage_at(server, prefix, read_only=True), read_only=True)
        assert not difference(await view_of(log), model), f"seed {seed}"
        await log.aclose()

    run(scenario())


@pytest.mark.parametrize("seed", range(4))
def test_a_history_over_connections_that_break_all_the_time_is_the_same_history(seed: int) -> None:
    server = shared_server("redis")

    async def scenario() -> None:
        random = Random(seed)
        async with TcpProxy(server.port) as proxy:
            log = await Log.open(storage_at(proxy), key_pair=KEY_PAIR)
            model = Model()
            for number in range(50):
                # Reconnecting takes some requests too, and may be what is cut.
                proxy.cut(at=random.randint(1, 3), answered=random.random() < 0.5)
                action = random_engine_action(random, model)
                await perform(log, action)
                model = model.after(action)
                if number % 10 == 9:
                    assert not difference(await view_of(log), model), f"seed {seed}, action {number}, {action}"
            assert proxy.connections > 20
            await log.aclose()

    run(scenario())


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_failure_at_any_request_leaves_the_log_before_or_after_what_was_asked(seed: int, answered: bool) -> None:
    """The connection breaks at the n-th request of a history and does not come back in time, for every n."""
    server = shared_server("redis")

    async def history(fail_at: int | None) -> int:
        said = f"seed {seed}, failing at request {fail_at}"
        random = Random(seed)
        prefix = new_prefix()
        async with TcpProxy(server.port) as proxy:
            storage = storage_at(proxy, prefix)
            log = await Log.open(storage, key_pair=KEY_PAIR)
            first = proxy.requests

            def mend() -> None:
                proxy.mend()
                storage.session._timeout_seconds = 30

            # What fails should fail soon.
            storage.session._timeout_seconds = 0.02
            if fail_at is not None:
                proxy.cut(at=fail_at, answered=answered, lasting=True)
            model = Model()
            for _ in range(8):
                action = random_engine_action(random, model)
                possible = [model.after(action)]
                try:
                    await perform(log, action)
                except StorageError:
                    mend()
                    possible = [*model.within(action), *possible]
                    # The next change is the first to find out what is true.
                    await log.flush()
                if proxy.broken:
                    mend()  # something beside it failed, such as a checkpoint
                    await log.flush()
                try:
                    view = await view_of(log)
                except StorageError:
                    mend()
                    view = await view_of(log)
                fits = [one for one in possible if not difference(view, one)]
                assert fits, f"{said}, {action}: " + " or: ".join(difference(view, one) for one in possible)
                model = fits[0]
            count = proxy.requests - first
            mend()
            await log.flush()
            await log.append([b"at last"])
            await log.aclose()
        log = await Log.open(storage_at(server, prefix, take_over=True), create_if_missing=False)
        assert await log.get(log.length - 1) == b"at last", said
        assert (await view_of(log)).blocks[:-1] == model.view.blocks, said
        await log.aclose()
        return count

    async def scenario() -> None:
        count = await history(None)
        assert count > 10
        for fail_at in range(1, count + 1):
            await history(fail_at)

    run(scenario())


def test_the_wrappers_of_the_test_suite_work_around_it() -> None:
    server = shared_server("redis")

    async def scenario() -> None:
        storage = FaultyStorage(storage_at(server), fail_at=12)
        log = await Log.open(storage, key_pair=KEY_PAIR)
        blocks = []
        failures = 0
        for number in range(20):
            try:
                await log.append([b"%d" % number])
                blocks.append(b"%d" % number)
            except StorageError:
                failures += 1
        assert failures == 1
        assert [await log.get(index) for index in range(log.length)] == blocks
        await log.aclose()

    run(scenario())


@both
def test_a_reader_beside_the_writer_sees_what_it_has_written(kind: Kind) -> None:
    server = shared_server(kind)

    async def scenario() -> None:
        random = Random(7)
        prefix = new_prefix()
        log = await Log.open(storage_at(server, prefix), key_pair=KEY_PAIR)
        reader = await Log.open(storage_at(server, prefix), read_only=True)
        model = Model()
        for number in range(40):
            action = random_engine_action(random, model)
            await perform(log, action)
            model = model.after(action)
            if number % 4 == 3:
                await reader.refresh()
                assert not difference(await view_of(reader), model), f"action {number}, {action}"
        await reader.aclose()
        await log.aclose()

    run(scenario())


@both
def test_purging_a_log_leaves_not_one_key(kind: Kind) -> None:
    from tests.storage.redis.places import keys

    server = shared_server(kind)

    async def scenario() -> None:
        prefix = new_prefix()
        log = await Log.open(storage_at(server, prefix), key_pair=KEY_PAIR)
        await log.append([bytes(60_000)] * 50)
        await log.flush()
        assert len(keys(server, prefix)) > 40
        await log.purge()
        assert keys(server, prefix) == []

    run(scenario())

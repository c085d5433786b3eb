"""The engine on S3: random histories, an end after every request, and answers that are lost."""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import Callable
from random import Random

import pytest

from hypercore.errors import LockedError, StorageError
from hypercore.log import commits
from hypercore.log.engine import Log
from hypercore_s3 import contents, folding, writer
from hypercore_s3.storage import S3Storage
from tests.histories import Action, Model, difference, perform, random_action, random_engine_action, view_of
from tests.log.logs import KEY_PAIR
from tests.running import run
from tests.servers.s3 import S3Server
from tests.storage.s3.fake_client import Bucket, Carry, FakeClient, at_once


@pytest.fixture(autouse=True)
def _everything_happens_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short history should meet checkpoints, folds, and writes that stay in their commits."""
    monkeypatch.setattr(commits, "CHECKPOINT_ENTRY_BYTES", 2000)
    monkeypatch.setattr(writer, "FOLD_COMMITS", 7)
    for module in (contents, folding):
        monkeypatch.setattr(module, "LARGE_SIZE", 4000)
        monkeypatch.setattr(module, "PAGE_SIZE", 1000)


def storage(bucket: Bucket, carry: Carry = at_once, **options: object) -> S3Storage:
    return S3Storage("bucket", "p", client=FakeClient(bucket, carry=carry), **options)


@pytest.mark.parametrize("cache_bytes", [0, 200_000, 64 << 20])
@pytest.mark.parametrize("seed", range(8))
def test_a_random_history_agrees_with_the_model_across_openings(seed: int, cache_bytes: int) -> None:
    async def scenario() -> None:
        random = Random(seed)
        bucket = Bucket()
        log = await Log.open(storage(bucket, cache_bytes=cache_bytes), key_pair=KEY_PAIR, compat=seed % 2 == 0)
        follower = await Log.open(storage(bucket), read_only=True)
        model = Model()
        for number in range(120):
            if random.random() < 0.06:
                await log.aclose()
                log = await Log.open(storage(bucket, cache_bytes=cache_bytes), create_if_missing=False)
            action = random_engine_action(random, model)
            await perform(log, action)
            model = model.after(action)
            if number % 6 == 5:
                assert not difference(await view_of(log), model), f"seed {seed}, action {number}, {action}"
                await follower.refresh()
                assert not difference(await view_of(follower), model), f"seed {seed}, follower after {number}"
        assert await log.tree_hash() == model.tree_hash, f"seed {seed}"
        await log.aclose()
        await follower.aclose()
        log = await Log.open(storage(bucket), read_only=True)
        assert not difference(await view_of(log), model), f"seed {seed}"
        await log.aclose()

    run(scenario())


@pytest.mark.parametrize("client", ["boto3", "obstore"])
def test_a_random_history_agrees_with_the_model_on_a_real_server(server: S3Server, prefix: str, client: str) -> None:
    def at() -> S3Storage:
        return S3Storage(
            server.bucket,
            prefix,
            client=client,
            endpoint_url=server.endpoint_url,
            region="us-east-1",
            access_key=server.admin.access_key,
            secret_key=server.admin.secret_key,
        )

    async def scenario() -> None:
        random = Random(3)
        log = await Log.open(at(), key_pair=KEY_PAIR)
        model = Model()
        for number in range(60):
            if random.random() < 0.08:
                await log.aclose()
                log = await Log.open(at(), create_if_missing=False)
            action = random_engine_action(random, model)
            await perform(log, action)
            model = model.after(action)
            if number % 10 == 9:
                assert not difference(await view_of(log), model), f"action {number}, {action}"
        await log.aclose()
        log = await Log.open(at(), read_only=True)
        assert not difference(await view_of(log), model)
        await log.aclose()

    run(scenario(), timeout_seconds=120)


class Ends(Exception):  # noqa: N818 - the end of a process, not an error
    """No request leaves any more."""


async def a_history(log: Log, seed: int, acknowledged: list[Model], begun: list[Action]) -> None:
    """Some actions, each noted before and after."""
    random = Random(seed)
    for _ in range(14):
        action = random_engine_action(random, acknowledged[-1])
        begun.append(action)
        await perform(log, action)
        acknowledged.append(acknowledged[-1].after(action))


@pytest.mark.parametrize("applied", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_an_end_after_any_request_loses_nothing_that_was_acknowledged(seed: int, applied: bool) -> None:
    """The process ends with the n-th request, which was carried out or was not, for each n."""

    async def life(bucket: Bucket, requests: int | None) -> tuple[int, list[Model], list[Action]]:
        count = 0
        ended: asyncio.Future[object] = asyncio.get_running_loop().create_future()

        async def carry(verb: str, key: str, apply: Callable[[], object]) -> object:
            nonlocal count
            count += 1
            if requests is not None and count > requests:
                if applied and count == requests + 1 and verb in ("put", "delete"):
                    apply()
                if not ended.done():
                    ended.set_result(None)
                await asyncio.get_running_loop().create_future()
            return apply()

        acknowledged, begun = [Model()], list[Action]()

        async def live() -> None:
            log = await Log.open(storage(bucket, carry), key_pair=KEY_PAIR)
            await a_history(log, seed, acknowledged, begun)
            await log.aclose()

        living: asyncio.Future[object] = asyncio.ensure_future(live())
        await asyncio.wait([living, ended], return_when=asyncio.FIRST_COMPLETED)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        ended.cancel()
        await asyncio.gather(living, return_exceptions=True)
        return count, acknowledged, begun

    async def scenario() -> None:
        total, _, _ = await life(Bucket(), None)
        assert total > 30
        for requests in range(total):
            bucket = Bucket()
            _, acknowledged, begun = await life(bucket, requests)
            said = f"seed {seed}, {requests} requests, then an end"
            log = await Log.open(storage(bucket, take_over=True), key_pair=KEY_PAIR)
            view = await view_of(log)
            allowed = [acknowledged[-1]]
            if len(begun) == len(acknowledged):
                allowed += acknowledged[-1].within(begun[-1])
            assert any(not difference(view, model) for model in allowed), f"{said}: {difference(view, allowed[0])}"
            length = log.length
            await log.append([b"after"])
            assert await log.get(length) == b"after"
            await log.aclose()
            log = await Log.open(storage(bucket), read_only=True)
            assert log.length == length + 1, said
            await log.aclose()

    run(scenario(), timeout_seconds=120)


@pytest.mark.parametrize("seed", range(30))
def test_a_history_whose_answers_get_lost_is_the_history_that_was_acknowledged(seed: int) -> None:
    async def scenario() -> None:
        random = Random(seed)
        late: list[Callable[[], object]] = []
        trouble = False

        async def carry(verb: str, key: str, apply: Callable[[], object]) -> object:
            await asyncio.sleep(0)
            luck = random.random() if trouble else 1.0
            if late and random.random() < 0.3:
                with contextlib.suppress(StorageError):
                    late.pop()()
            if luck < 0.05:
                if random.random() < 0.5:
                    late.append(apply)
                raise StorageError("it never arrived, or will later")
            result = apply()
            if luck < 0.1:
                raise StorageError("the answer was lost")
            return result

        bucket = Bucket()
        log = await Log.open(storage(bucket, carry), key_pair=KEY_PAIR)
        trouble = True
        model = Model()
        failures = 0
        for number in range(60):
            action = random_action(random, model)
            allowed = model.within(action)
            try:
                await perform(log, action)
                model = model.after(action)
                continue
            except StorageError:
                failures += 1
            trouble = False
            await log.flush()
            view = await view_of(log)
            matching = [one for one in allowed if not difference(view, one)]
            assert matching, f"seed {seed}, action {number}, {action}: {difference(view, model)}"
            model = matching[-1]
            trouble = True
        trouble = False
        assert failures, f"seed {seed}"
        await log.aclose()
        log = await Log.open(storage(bucket), read_only=True)
        assert not difference(await view_of(log), model), f"seed {seed}"
        await log.aclose()

    run(scenario())


def test_a_second_writer_is_refused_and_a_replaced_one_signs_nothing_more() -> None:
    async def scenario() -> None:
        bucket = Bucket()
        first = await Log.open(storage(bucket), key_pair=KEY_PAIR)
        await first.append([b"one"])
        with pytest.raises(LockedError, match="take_over=True"):
            await Log.open(storage(bucket), key_pair=KEY_PAIR)
        second = await Log.open(storage(bucket, take_over=True), key_pair=KEY_PAIR)
        before = copy.copy(bucket.objects)
        for _ in range(3):
            with pytest.raises(LockedError):
                await first.append([b"never"])
        assert bucket.objects == before
        await second.append([b"two"])
        assert [await second.get(index) for index in range(2)] == [b"one", b"two"]
        await first.aclose()
        await second.aclose()
        assert (await Log.open(storage(bucket), read_only=True)).length == 2

    run(scenario())

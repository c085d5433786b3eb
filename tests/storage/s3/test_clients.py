"""Both clients on both real servers: what an object client promises."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from hypercore.errors import ClosedError, OptionError
from hypercore_s3 import boto_client, obstore_client
from hypercore_s3.boto_driver import make_session
from hypercore_s3.objects import AccessDeniedError, ConditionFailedError, ObjectClient, ObjectMissingError
from tests.running import run
from tests.servers.s3 import Credentials, S3Server, moto, seaweedfs
from tests.storage.s3.clients import Kind, opened

#: What a URL, a header, XML or a folder of files could take for something else. (SeaweedFS makes "/" of a backslash.)
UNUSUAL_KEYS = (
    "spaces in it",
    "plus+and%20percent%and&ampersand",
    "quotes'\"and<angles>",
    "question?mark#hash;semi=equals",
    "tilde~caret^pipe|comma,",
    "brackets[0]{1}(2)*!$@:,",
    "umlauts äöü, 漢字, emoji 🎉",
    "dots/..hidden/a...b",
    "x" * 200,
)

#: Rivals who come within the same millisecond cost a SeaweedFS one or two seconds.
RACES = {"moto": 10, "seaweedfs": 3}


def test_what_was_put_is_got_back_whole_and_in_ranges(kind: Kind, server: S3Server, prefix: str) -> None:
    async def test() -> None:
        async with opened(kind, server.endpoint_url) as client:
            etag = await client.put(f"{prefix}/o", [b"hello", b"", b" ", b"world"])
            whole = await client.get(f"{prefix}/o")
            assert (whole.data, whole.etag, whole.size) == (b"hello world", etag, 11)
            for offset, size, data in [
                (0, 5, b"hello"),
                (3, None, b"lo world"),
                (6, 5, b"world"),
                (6, 500, b"world"),
                (10, 1, b"d"),
                (0, 11, b"hello world"),
            ]:
                found = await client.get(f"{prefix}/o", offset=offset, size=size)
                assert (found.data, found.etag, found.size) == (data, etag, 11), (offset, size)

    run(test())


def test_a_range_at_or_past_the_end_is_no_bytes_of_the_right_object(kind: Kind, server: S3Server, prefix: str) -> None:
    async def test() -> None:
        async with opened(kind, server.endpoint_url) as client:
            etag = await client.put(f"{prefix}/o", [b"hello world"])
            for offset, size in [(11, 1), (11, None), (12, 100), (1 << 40, 1), (3, 0), (11, 0), (12, 0)]:
                found = await client.get(f"{prefix}/o", offset=offset, size=size)
                assert (found.data, found.etag, found.size) == (b"", etag, 11), (offset, size)

    run(test())


def test_an_object_without_bytes_is_an_object(kind: Kind, server: S3Server, prefix: str) -> None:
    async def test() -> None:
        async with opened(kind, server.endpoint_url) as client:
            etag = await client.put(f"{prefix}/empty", [], if_absent=True)
            for offset, size in [(0, None), (0, 1), (0, 100), (7, 7)]:
                found = await client.get(f"{prefix}/empty", offset=offset, size=size)
                assert (found.data, found.etag, found.size) == (b"", etag, 0), (offset, size)

    run(test())


def test_a_body_of_16_mib_in_pieces_arrives_as_it_is(kind: Kind, server: S3Server, prefix: str) -> None:
    async def test() -> None:
        source = random.Random(1)
        pieces = [source.randbytes(size) for size in (1, 100_000, 3 << 20, 16383, 8 << 20, (5 << 20) - 16384 - 100_000)]
        whole = b"".join(pieces)
        assert len(whole) == 16 << 20
        async with opened(kind, server.endpoint_url) as client:
            etag = await client.put(f"{prefix}/large", pieces, if_absent=True)
            found = await client.get(f"{prefix}/large")
            assert found.data == whole
            assert (found.etag, found.size) == (etag, len(whole))
            part = await client.get(f"{prefix}/large", offset=99_999, size=4 << 20)
            assert part.data == whole[99_999 : 99_999 + (4 << 20)]
            assert client.counts.bytes_put == len(whole)
            assert client.counts.bytes_got == len(whole) + (4 << 20)
            assert client.counts.requests == 3

    run(test())


def test_what_is_not_there_is_missing(kind: Kind, server: S3Server, prefix: str) -> None:
    async def test() -> None:
        async with opened(kind, server.endpoint_url) as client:
            with pytest.raises(ObjectMissingError, match=f"{prefix}/none"):
                await client.get(f"{prefix}/none")
            with pytest.raises(ObjectMissingError, match=f"{prefix}/none"):
                await client.get(f"{prefix}/none", offset=5, size=5)

    run(test())


def test_a_bucket_that_does_not_exist_is_named_with_the_way_to_make_it(kind: Kind) -> None:
    async def test() -> None:
        async with opened(kind, moto().endpoint_url, bucket="no-such-bucket") as client:
            for call in (client.get("o"), client.put("o", [b""]), client.list("")):
                with pytest.raises(
                    ObjectMissingError, match=r"bucket does not exist .*no-such|no-such.*bucket does not"
                ):
                    await call

    run(test())


def test_of_rivals_for_a_new_key_exactly_one_wins(kind: Kind, server: S3Server, prefix: str) -> None:
    async def test() -> None:
        async with opened(kind, server.endpoint_url) as one, opened(kind, server.endpoint_url) as other:
            for race in range(RACES[server.name]):
                key = f"{prefix}/{race}"
                tries = [(one, other)[rival % 2].put(key, [b"%d" % rival], if_absent=True) for rival in range(8)]
                results = await asyncio.gather(*tries, return_exceptions=True)
                winners = [rival for rival, result in enumerate(results) if isinstance(result, str)]
                losers = [result for result in results if isinstance(result, ConditionFailedError)]
                assert (len(winners), len(losers)) == (1, 7), results
                found = await one.get(key)
                assert (found.data, found.etag) == (b"%d" % winners[0], results[winners[0]])

    run(test())


def test_of_rivals_who_replace_an_object_exactly_one_wins(kind: Kind, server: S3Server, prefix: str) -> None:
    async def test() -> None:
        async with opened(kind, server.endpoint_url) as client:
            etag = await client.put(f"{prefix}/head", [b"first"], if_absent=True)
            for race in range(RACES[server.name]):
                tries = [client.put(f"{prefix}/head", [b"%d %d" % (race, rival)], if_etag=etag) for rival in range(8)]
                results = await asyncio.gather(*tries, return_exceptions=True)
                winners = [rival for rival, result in enumerate(results) if isinstance(result, str)]
                losers = [result for result in results if isinstance(result, ConditionFailedError)]
                assert (len(winners), len(losers)) == (1, 7), results
                found = await client.get(f"{prefix}/head")
                assert (found.data, found.etag) == (b"%d %d" % (race, winners[0]), results[winners[0]])
                etag = found.etag

    run(test())


def test_a_condition_on_an_object_that_is_gone_does_not_hold(kind: Kind, server: S3Server, prefix: str) -> None:
    async def test() -> None:
        async with opened(kind, server.endpoint_url) as client:
            etag = await client.put(f"{prefix}/head", [b"first"])
            await client.delete([f"{prefix}/head"])
            with pytest.raises(ConditionFailedError):
                await client.put(f"{prefix}/head", [b"second"], if_etag=etag)
            with pytest.raises(ObjectMissingError):
                await client.get(f"{prefix}/head")

    run(test())


def test_one_client_goes_on_where_another_kind_stopped(server: S3Server, prefix: str) -> None:
    async def test() -> None:
        async with opened("boto3", server.endpoint_url) as boto, opened("obstore", server.endpoint_url) as obstore:
            etag = await boto.put(f"{prefix}/head", [b"1"], if_absent=True)
            assert (await obstore.get(f"{prefix}/head")).etag == etag
            etag = await obstore.put(f"{prefix}/head", [b"2"], if_etag=etag)
            assert (await boto.get(f"{prefix}/head")).etag == etag
            await boto.put(f"{prefix}/head", [b"3"], if_etag=etag)
            assert (await obstore.get(f"{prefix}/head")).data == b"3"

    run(test())


def test_a_listing_is_in_order_after_a_key_and_has_a_limit(kind: Kind, server: S3Server, prefix: str) -> None:
    async def test() -> None:
        async with opened(kind, server.endpoint_url) as client:
            names = [f"commits/{number:016x}" for number in range(12)] + ["checkpoints/1-a", "head"]
            keys = [f"{prefix}/{name}" for name in names]
            await asyncio.gather(*(client.put(key, [b"."]) for key in keys))
            commits = keys[:12]
            assert await client.list(f"{prefix}/") == [keys[12], *commits, keys[13]]
            assert await client.list(f"{prefix}/commits/") == commits
            assert await client.list(f"{prefix}/commits/", after=commits[4]) == commits[5:]
            assert await client.list(f"{prefix}/commits/", after=commits[4] + "0", limit=3) == commits[5:8]
            assert await client.list(f"{prefix}/commits/", after=commits[-1]) == []
            assert await client.list(f"{prefix}/commits/000000000000000", limit=2) == commits[:2]
            assert await client.list(f"{prefix}/com") == commits
            assert await client.list(f"{prefix}/comm", after=commits[10]) == commits[11:]
            assert await client.list(commits[7]) == [commits[7]]
            assert await client.list(f"{prefix}/d") == []
            assert await client.list(f"{prefix}-other/") == []

    run(test())


def test_a_listing_goes_on_over_pages(
    kind: Kind, server: S3Server, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boto_client, "LIST_KEYS_MAX", 3)
    monkeypatch.setattr(obstore_client, "LIST_KEYS_MAX", 3)

    async def test() -> None:
        async with opened(kind, server.endpoint_url) as client:
            keys = [f"{prefix}/{name}" for name in ("a1", "a2", "b1", "b2", "b3", "b4", "b5", "b6", "b7", "c1", "c2")]
            await asyncio.gather(*(client.put(key, [b"."]) for key in keys))
            assert await client.list(f"{prefix}/") == keys
            assert await client.list(f"{prefix}/b") == keys[2:9]
            assert await client.list(f"{prefix}/b", limit=5) == keys[2:7]
            assert await client.list(f"{prefix}/b", after=keys[3], limit=4) == keys[4:8]
            assert await client.list(f"{prefix}/a") == keys[:2]
            assert await client.list(f"{prefix}/c") == keys[9:]

    run(test())


def test_deleting_takes_what_is_there_and_minds_nothing_else(kind: Kind, server: S3Server, prefix: str) -> None:
    async def test() -> None:
        async with opened(kind, server.endpoint_url) as client:
            keys = [f"{prefix}/{number}" for number in range(5)]
            await asyncio.gather(*(client.put(key, [b"."]) for key in keys))
            await client.delete([])
            await client.delete([*keys[:3], f"{prefix}/never"])
            await client.delete([keys[0]])
            assert await client.list(f"{prefix}/") == keys[3:]
            assert client.counts.deletes == 2

    run(test())


def test_keys_are_taken_literally(kind: Kind, server: S3Server, prefix: str) -> None:
    async def test() -> None:
        async with opened(kind, server.endpoint_url) as client:
            keys = [f"{prefix}/{name}" for name in UNUSUAL_KEYS]
            for key in keys:
                await client.put(key, [key.encode()], if_absent=True)
            for key in keys:
                assert (await client.get(key)).data == key.encode()
            assert sorted(await client.list(f"{prefix}/")) == sorted(keys)
            await client.delete(keys)
            assert await client.list(f"{prefix}/") == []

    run(test())


def test_obstore_refuses_keys_that_it_would_change() -> None:
    async def test() -> None:
        async with opened("obstore", "http://127.0.0.1:9") as client:
            for key in ("/a", "a/", "a//b", "a/./b", "../a", "a\nb", ""):
                with pytest.raises(OptionError, match="obstore cannot name"):
                    await client.get(key)
                with pytest.raises(OptionError, match="obstore cannot name"):
                    await client.put(key, [b""])
                with pytest.raises(OptionError, match="obstore cannot name"):
                    await client.delete([key])
            assert client.counts.requests == 0

    run(test())


def test_who_may_only_read_is_told_what_is_missing(kind: Kind, prefix: str) -> None:
    server = seaweedfs()

    async def test() -> None:
        async with (
            opened(kind, server.endpoint_url) as admin,
            opened(kind, server.endpoint_url, who=server.reader) as reader,
        ):
            await admin.put(f"{prefix}/o", [b"hello"])
            assert (await reader.get(f"{prefix}/o")).data == b"hello"
            assert await reader.list(f"{prefix}/") == [f"{prefix}/o"]
            await _denied(reader, f"{prefix}/o", "put")
            await _denied(reader, f"{prefix}/o", "delete")
            assert (await reader.get(f"{prefix}/o")).data == b"hello"

    run(test())


def test_who_may_only_write_is_told_what_is_missing(kind: Kind, prefix: str) -> None:
    server = seaweedfs()

    async def test() -> None:
        async with opened(kind, server.endpoint_url, who=server.writer) as writer:
            await writer.put(f"{prefix}/o", [b"hello"], if_absent=True)
            await _denied(writer, f"{prefix}/o", "get")
            await _denied(writer, f"{prefix}/", "list")

    run(test())


def test_a_wrong_secret_is_not_a_missing_permission(kind: Kind, prefix: str) -> None:
    server = seaweedfs()
    stranger = Credentials(server.admin.access_key, "not the secret")

    async def test() -> None:
        async with opened(kind, server.endpoint_url, who=stranger) as client:
            with pytest.raises(AccessDeniedError, match="does not accept these credentials") as caught:
                await client.get(f"{prefix}/o")
            assert not caught.value.may_be_missing
            assert "not the secret" not in str(caught.value)
            assert client.counts.requests == 1

    run(test())


async def _denied(client: ObjectClient, key: str, verb: str) -> None:
    calls: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
        "get": lambda: client.get(key),
        "put": lambda: client.put(key, [b"."]),
        "delete": lambda: client.delete([key]),
        "list": lambda: client.list(key),
    }
    action = {"get": "s3:GetObject", "put": "s3:PutObject", "delete": "s3:DeleteObject", "list": "s3:ListBucket"}[verb]
    before = client.counts.requests
    with pytest.raises(AccessDeniedError, match=action) as caught:
        await calls[verb]()
    assert caught.value.action == action
    assert caught.value.may_be_missing == (verb == "get")
    assert client.counts.requests == before + 1


def test_a_closed_client_says_so_and_closes_twice(kind: Kind, server: S3Server, prefix: str) -> None:
    async def test() -> None:
        async with opened(kind, server.endpoint_url) as client:
            await client.put(f"{prefix}/o", [b"hello"])
            await client.aclose()
            await client.aclose()
            calls = (client.get("o"), client.put("o", [b""]), client.list(""), client.delete(["o"]))
            for call in calls:
                with pytest.raises(ClosedError):
                    await call

    run(test())


def test_a_client_that_was_never_used_closes(kind: Kind) -> None:
    async def test() -> None:
        async with opened(kind, "http://127.0.0.1:9"):
            pass

    run(test())


def test_making_a_client_imports_no_driver() -> None:
    program = (
        "import sys; from hypercore_s3.clients import make_client; from hypercore_s3.options import S3Options\n"
        "from hypercore_s3.public_client import PublicClient\n"
        "make_client('b', S3Options()); make_client('b', S3Options(client='obstore')); PublicClient('http://a')\n"
        "print([name for name in ('boto3', 'botocore', 'obstore', 'urllib3') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def test_a_program_may_end_right_after_its_last_request(kind: Kind, server: S3Server, prefix: str) -> None:
    program = (
        "import asyncio, sys\n"
        "from tests.storage.s3.clients import opened\n"
        "async def main():\n"
        "    async with opened(sys.argv[1], sys.argv[2]) as client:\n"
        "        await asyncio.gather(*(client.put(f'{sys.argv[3]}/{n}', [b'.']) for n in range(8)))\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-W", "error", "-c", program, kind, server.endpoint_url, prefix]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_boto3_knows_of_the_services_is_loaded_once_for_all_clients() -> None:
    def session(access_key: str) -> Any:
        return make_session(
            region="us-east-1", profile=None, access_key=access_key, secret_key="secret", session_token=None
        )

    first, second = session("one"), session("two")
    assert first.get_credentials().access_key == "one"
    assert second.get_credentials().access_key == "two"
    loaders = [one._session.get_component("data_loader") for one in (first, second)]
    assert loaders[0] is loaders[1]
    paths = list(loaders[0].search_paths)
    session("three")
    assert loaders[0].search_paths == paths, "they do not grow with each client"

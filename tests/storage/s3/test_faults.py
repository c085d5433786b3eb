"""Both clients behind a proxy that fails on purpose: what is tried again, what is not, and that every call ends."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from hypercore.errors import ClosedError, StorageError
from hypercore_s3 import retrying
from hypercore_s3.boto_client import BotoClient
from hypercore_s3.clients import make_client
from hypercore_s3.objects import AccessDeniedError, ConditionFailedError, ObjectClient, ObjectMissingError
from hypercore_s3.options import S3Options
from tests.running import run
from tests.servers.proxy import Answer, Fault, FlipBit, Hold, LoseAnswer, Proxy, Reset, Seen, StripConditions, Truncate
from tests.servers.s3 import S3Server, moto
from tests.storage.s3.clients import Kind, opened

Call = Callable[[ObjectClient], Coroutine[Any, Any, object]]

CALLS: dict[str, Call] = {
    "get": lambda client: client.get("o", offset=5, size=10),
    "put": lambda client: client.put("o", [b"hello"], if_absent=True),
    "replace": lambda client: client.put("o", [b"hello"], if_etag='"an-etag"'),
    "delete": lambda client: client.delete(["o", "p"]),
    "list": lambda client: client.list("o"),
}


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "FIRST_PAUSE_SECONDS", 0.01)


def is_(method: str) -> Callable[[Seen], bool]:
    return lambda seen: seen.method == method


@pytest.mark.parametrize(
    "trouble",
    [
        Answer(500, "InternalError"),
        Answer(502),
        Answer(503, "SlowDown"),
        Answer(504),
        Answer(429, "TooManyRequests"),
        Answer(400, "RequestTimeout"),
        Answer(409, "ConditionalRequestConflict"),
        Reset(),
    ],
    ids=lambda trouble: getattr(trouble, "code", "") or str(getattr(trouble, "status", "reset")),
)
def test_trouble_that_passes_is_waited_for(kind: Kind, prefix: str, trouble: Fault) -> None:
    async def test() -> None:
        async with Proxy(moto().endpoint_url) as proxy, opened(kind, proxy.url) as client:
            proxy.script(trouble, when=is_("PUT"), times=3)
            proxy.script(trouble, when=is_("GET"), times=2)
            await client.put(f"{prefix}/o", [b"hello"], if_absent=True)
            assert (await client.get(f"{prefix}/o")).data == b"hello"
            assert client.counts.puts == len(proxy.of("PUT")) == 4
            assert client.counts.gets == len(proxy.of("GET")) == 3
            assert (client.counts.bytes_put, client.counts.bytes_got) == (20, 5)

    run(test())


@pytest.mark.parametrize("verb", CALLS)
@pytest.mark.parametrize(
    ("status", "code"), [(400, "InvalidRequest"), (403, "AccessDenied"), (412, "PreconditionFailed"), (501, "")]
)
def test_what_the_store_means_is_not_asked_again(kind: Kind, verb: str, status: int, code: str) -> None:
    async def test() -> None:
        async with Proxy() as proxy, opened(kind, proxy.url) as client:
            proxy.script(Answer(status, code), times=None)
            expected = {403: AccessDeniedError, 412: ConditionFailedError}.get(status, StorageError)
            with pytest.raises(expected, match=str(status)):
                await CALLS[verb](client)
            assert len(proxy.seen) == client.counts.requests == 1

    run(test())


@pytest.mark.parametrize("verb", CALLS)
def test_trouble_that_stays_is_an_error_after_the_deadline(kind: Kind, verb: str) -> None:
    async def test() -> None:
        async with Proxy() as proxy, opened(kind, proxy.url, deadline_seconds=1.0) as client:
            proxy.script(Answer(503, "SlowDown"), times=None)
            with pytest.raises(StorageError, match=r"failed, after \d+ tries in .* s: "):
                await CALLS[verb](client)
            assert len(proxy.seen) == client.counts.requests > 1

    run(test())


@pytest.mark.parametrize("verb", CALLS)
def test_nobody_there_is_an_error_after_the_deadline(kind: Kind, verb: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]

    async def test() -> None:
        async with opened(kind, f"http://127.0.0.1:{port}", deadline_seconds=0.2) as client:
            with pytest.raises(StorageError, match=f"127.0.0.1:{port}"):
                await CALLS[verb](client)

    run(test())


def test_where_nothing_has_ever_answered_nobody_waits_for_the_deadline(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrying, "FIRST_ANSWER_SECONDS", 0.2)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]

    async def test() -> None:
        async with opened(kind, f"http://127.0.0.1:{port}", deadline_seconds=5000.0) as client:
            with pytest.raises(StorageError, match="nothing has ever answered there"):
                await client.get("o")

    run(test())


@pytest.mark.parametrize("first", [Answer(503, "SlowDown"), Answer(404, "NoSuchKey")], ids=["busy", "missing"])
def test_where_something_has_answered_once_trouble_is_waited_for(
    kind: Kind, prefix: str, first: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrying, "FIRST_ANSWER_SECONDS", 0.0)

    async def test() -> None:
        async with Proxy(moto().endpoint_url) as proxy, opened(kind, proxy.url) as client:
            proxy.script(first)
            proxy.script(Reset(), when=is_("PUT"), times=3)
            with contextlib.suppress(ObjectMissingError):
                await client.list(prefix)
            await client.put(f"{prefix}/o", [b"there"])
            assert len(proxy.of("PUT")) == 4

    run(test())


def test_a_lost_answer_is_tried_again_and_finds_what_it_did(kind: Kind, server: S3Server, prefix: str) -> None:
    async def test() -> None:
        async with Proxy(server.endpoint_url) as proxy, opened(kind, proxy.url) as client:
            proxy.script(LoseAnswer(), when=is_("PUT"))
            with pytest.raises(ConditionFailedError):
                await client.put(f"{prefix}/o", [b"mine"], if_absent=True)
            assert [seen.status for seen in proxy.of("PUT")] == [None, 412]
            found = await client.get(f"{prefix}/o")
            assert found.data == b"mine"

            proxy.script(LoseAnswer(), when=is_("PUT"))
            with pytest.raises(ConditionFailedError):
                await client.put(f"{prefix}/o", [b"again"], if_etag=found.etag)
            assert (await client.get(f"{prefix}/o")).data == b"again"

            proxy.script(LoseAnswer())
            assert (await client.get(f"{prefix}/o")).data == b"again"
            proxy.script(LoseAnswer(), when=is_("POST"))
            await client.delete([f"{prefix}/o", f"{prefix}/p"])
            proxy.script(LoseAnswer())
            assert await client.list(f"{prefix}/") == []

    run(test())


def test_what_hears_nothing_is_tried_again(kind: Kind, prefix: str) -> None:
    async def test() -> None:
        async with Proxy(moto().endpoint_url) as proxy, opened(kind, proxy.url, timeout_seconds=0.5) as client:
            await client.put(f"{prefix}/o", [b"hello"])
            stuck, deaf = Hold(), Hold(answered=True)
            proxy.script(stuck, when=is_("GET"))
            assert (await client.get(f"{prefix}/o")).data == b"hello"
            proxy.script(deaf, when=is_("PUT"))
            with pytest.raises(ConditionFailedError):
                await client.put(f"{prefix}/new", [b"hello"], if_absent=True)
            assert client.counts.requests == len([seen for seen in proxy.seen if seen.target != "/"]) == 5

    run(test())


def test_a_body_that_ends_early_is_never_data(kind: Kind, prefix: str) -> None:
    async def test() -> None:
        async with Proxy(moto().endpoint_url) as proxy, opened(kind, proxy.url, deadline_seconds=1.0) as client:
            data = bytes(range(256)) * 1024
            await client.put(f"{prefix}/o", [data])
            for kept in (0, 1, 1000, len(data) - 1):
                proxy.script(Truncate(kept), when=is_("GET"))
                assert (await client.get(f"{prefix}/o")).data == data
            proxy.script(Truncate(99), when=is_("GET"))
            assert (await client.get(f"{prefix}/o", offset=1000, size=100)).data == data[1000:1100]
            assert client.counts.gets == 10

            proxy.script(Truncate(1000), times=None)
            with pytest.raises(StorageError):
                await client.get(f"{prefix}/o")
            with pytest.raises(StorageError):
                await client.get(f"{prefix}/o", offset=5, size=2000)

    run(test())


@pytest.mark.parametrize("given", ["bytes 4-13/100", "bytes 5-14/10", "bytes 5-15/100", "bytes 0-99/100", "nonsense"])
def test_another_range_than_was_asked_is_never_data(kind: Kind, given: str) -> None:
    async def test() -> None:
        async with Proxy() as proxy, opened(kind, proxy.url) as client:
            headers = {"Content-Range": given, "ETag": '"e"', "Last-Modified": "Sat, 21 Nov 2026 00:00:00 GMT"}
            proxy.script(Answer(206, headers=headers, body=b"0123456789"), times=None)
            with pytest.raises(StorageError):
                await client.get("o", offset=5, size=10)

    run(test())


def test_a_store_that_ignores_ranges_is_refused_unless_the_whole_object_was_asked(kind: Kind) -> None:
    async def test() -> None:
        async with Proxy() as proxy, opened(kind, proxy.url) as client:
            headers = {"ETag": '"e"', "Last-Modified": "Sat, 21 Nov 2026 00:00:00 GMT"}
            dated = headers | {"Date": "Sat, 21 Nov 2026 00:01:40 GMT"}
            proxy.script(Answer(200, headers=dated, body=b"0123456789"), times=None)
            assert (await client.get("o")).data == b"0123456789"
            for offset, size in [(0, 5), (5, None), (5, 5), (3, 100)]:
                with pytest.raises(StorageError):
                    await client.get("o", offset=offset, size=size)

    run(test())


def test_an_object_is_as_old_as_the_servers_clock_says(kind: Kind) -> None:
    async def test() -> None:
        async with Proxy() as proxy, opened(kind, proxy.url) as client:
            # A clock that is years away from ours.
            headers = {
                "ETag": '"e"',
                "Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT",
                "Date": "Wed, 21 Oct 2015 07:30:00 GMT",
            }
            proxy.script(Answer(200, headers=headers, body=b"0123456789"), times=None)
            found = await client.get("o")
            # What obstore knows of the server's clock goes on with ours.
            assert 120 <= found.age_seconds < 120 + 60
            assert kind == "obstore" or found.age_seconds == 120

    run(test())


def test_credentials_that_are_not_good_any_more_are_not_a_missing_permission(kind: Kind) -> None:
    async def test() -> None:
        async with Proxy() as proxy, opened(kind, proxy.url) as client:
            for status, code in [(400, "ExpiredToken"), (403, "RequestTimeTooSkewed"), (403, "SignatureDoesNotMatch")]:
                proxy.script(Answer(status, code))
                with pytest.raises(AccessDeniedError, match="does not accept these credentials") as caught:
                    await client.get("o")
                assert not caught.value.may_be_missing

    run(test())


def test_a_server_that_does_not_say_what_time_it_is_has_new_objects_only(kind: Kind) -> None:
    async def test() -> None:
        async with Proxy() as proxy, opened(kind, proxy.url) as client:
            headers = {"ETag": '"e"', "Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}
            proxy.script(Answer(200, headers=headers, body=b"0123456789"), times=None)
            assert (await client.get("o")).age_seconds == 0

    run(test())


def test_a_hundred_callers_take_turns_on_eight_connections(kind: Kind, prefix: str) -> None:
    async def test() -> None:
        async with Proxy(moto().endpoint_url) as proxy, opened(kind, proxy.url, most_connections=8) as client:
            data = bytes(range(100)) * 100
            await client.put(f"{prefix}/o", [data])
            hold = Hold()
            proxy.script(hold, when=is_("GET"), times=None)
            gets = [asyncio.ensure_future(client.get(f"{prefix}/o", offset=n * 100, size=100)) for n in range(100)]
            await hold.arrived(8)
            hold.release()
            found = await asyncio.gather(*gets)
            assert [each.data for each in found] == [bytes(range(100))] * 100
            assert [each.data for each in found] == [data[n * 100 : n * 100 + 100] for n in range(100)]
            assert proxy.most_at_once == 8
            assert client.counts.gets == 100

    run(test())


def test_connections_are_used_again(kind: Kind, prefix: str) -> None:
    async def test() -> None:
        async with Proxy(moto().endpoint_url) as proxy, opened(kind, proxy.url) as client:
            await client.put(f"{prefix}/o", [b"0123456789"])
            for offset in range(10):
                await client.get(f"{prefix}/o", offset=offset, size=1)
            with pytest.raises(ObjectMissingError):
                await client.get(f"{prefix}/none")
            await client.list(f"{prefix}/")
            asked = [seen for seen in proxy.seen if seen.target != "/"]
            assert len(asked) == 13
            assert len({seen.connection for seen in asked if seen.method == "GET"}) == 1

    run(test())


@pytest.mark.parametrize("verb", CALLS)
def test_closing_ends_calls_that_are_under_way_or_wait(kind: Kind, verb: str) -> None:
    async def test() -> None:
        async with Proxy() as proxy, opened(kind, proxy.url, most_connections=2) as client:
            hold = Hold()
            proxy.script(hold, times=None)
            calls = [asyncio.ensure_future(CALLS[verb](client)) for _ in range(5)]
            await hold.arrived(2)
            closing = asyncio.ensure_future(client.aclose())
            for call in calls:
                with pytest.raises(ClosedError):
                    await call
            hold.release()
            await closing

    run(test())


def test_closing_ends_a_call_that_waits_for_its_next_try(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "FIRST_PAUSE_SECONDS", 1000.0)
    monkeypatch.setattr(retrying, "LONGEST_PAUSE_SECONDS", 1000.0)
    monkeypatch.setattr("hypercore_s3.retrying.random.uniform", lambda least, most: most)

    async def test() -> None:
        async with Proxy() as proxy, opened(kind, proxy.url, deadline_seconds=5000.0) as client:
            proxy.script(Answer(503, "SlowDown"), times=None)
            call = asyncio.ensure_future(client.get("o"))
            await proxy.answered()
            await client.aclose()
            with pytest.raises(ClosedError):
                await call

    run(test())


def test_closing_waits_no_longer_than_it_must_for_a_thread_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hypercore_s3.threads.CLOSE_SECONDS", 0.05)

    async def test() -> None:
        async with Proxy() as proxy, opened("boto3", proxy.url) as client:
            hold = Hold()
            proxy.script(hold)
            call = asyncio.ensure_future(client.put("o", [b"hello"]))
            await hold.arrived()
            await client.aclose()
            with pytest.raises(ClosedError):
                await call
            mine = [thread for thread in threading.enumerate() if proxy.url in thread.name]
            assert [thread.daemon for thread in mine] == [True]
            hold.release()
            await asyncio.to_thread(mine[0].join, 30)
            assert not mine[0].is_alive()

    run(test())


def test_a_caller_who_goes_away_leaves_the_others_alone(kind: Kind, prefix: str) -> None:
    async def test() -> None:
        async with Proxy(moto().endpoint_url) as proxy, opened(kind, proxy.url, most_connections=1) as client:
            await client.put(f"{prefix}/o", [b"hello"])
            hold = Hold()
            proxy.script(hold, when=is_("GET"), times=1)
            under_way = asyncio.ensure_future(client.get(f"{prefix}/o"))
            await hold.arrived()
            waiting = asyncio.ensure_future(client.get(f"{prefix}/o"))
            patient = asyncio.ensure_future(client.get(f"{prefix}/o"))
            await asyncio.sleep(0)
            waiting.cancel()
            under_way.cancel()
            for call in (under_way, waiting):
                with pytest.raises(asyncio.CancelledError):
                    await call
            hold.release()
            assert (await patient).data == b"hello"
            assert len(proxy.of("GET")) == 2

    run(test())


def test_a_body_is_signed_and_sent_without_waiting(kind: Kind, prefix: str) -> None:
    """The signature covers the SHA-256 of the body; nobody waits for a 100 Continue first."""

    async def test() -> None:
        async with Proxy(moto().endpoint_url) as proxy, opened(kind, proxy.url) as client:
            for pieces in ([b"small"], [bytes(1 << 20), bytes(1 << 20)]):
                await client.put(f"{prefix}/o", pieces)
                seen = proxy.of("PUT")[-1]
                assert seen.body == b"".join(pieces)
                assert seen.headers["x-amz-content-sha256"] == hashlib.sha256(seen.body).hexdigest()
                assert not {"expect", "x-amz-trailer", "transfer-encoding"} & set(seen.headers)

    run(test())


def test_conditions_cross_the_wire_with_the_put(kind: Kind, prefix: str) -> None:
    async def test() -> None:
        async with Proxy(moto().endpoint_url) as proxy, opened(kind, proxy.url) as client:
            etag = await client.put(f"{prefix}/o", [b"1"], if_absent=True)
            await client.put(f"{prefix}/o", [b"2"], if_etag=etag)
            await client.put(f"{prefix}/o", [b"3"])
            sent = [seen.conditions for seen in proxy.of("PUT")]
            assert sent == [{"if-none-match": "*"}, {"if-match": etag}, {}]
            assert [seen.key for seen in proxy.of("PUT")] == [f"{prefix}/o"] * 3

    run(test())


def test_a_store_that_ignores_conditions_overwrites(kind: Kind, prefix: str) -> None:
    async def test() -> None:
        async with Proxy(moto().endpoint_url) as proxy, opened(kind, proxy.url) as client:
            proxy.script(StripConditions(), times=None)
            await client.put(f"{prefix}/o", [b"1"], if_absent=True)
            await client.put(f"{prefix}/o", [b"2"], if_absent=True)
            await client.put(f"{prefix}/o", [b"3"], if_etag='"another"')
            assert (await client.get(f"{prefix}/o")).data == b"3"

    run(test())


def test_a_flipped_bit_is_found_by_nobody_here(kind: Kind, prefix: str) -> None:
    async def test() -> None:
        async with Proxy(moto().endpoint_url) as proxy, opened(kind, proxy.url) as client:
            await client.put(f"{prefix}/o", [b"hello"])
            proxy.script(FlipBit(1), when=is_("GET"))
            assert (await client.get(f"{prefix}/o")).data == b"hdllo"

    run(test())


def test_without_credentials_the_error_says_how_to_give_them(
    kind: Kind, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _forget_aws(monkeypatch, tmp_path)

    async def test() -> None:
        options = S3Options(client=kind, endpoint_url="http://127.0.0.1:9", deadline_seconds=1.0)
        client = make_client("bucket", options)
        with pytest.raises(AccessDeniedError, match="AWS_ACCESS_KEY_ID"):
            await client.get("o")
        await client.aclose()

    run(test())


def test_the_environment_says_where_and_who(
    kind: Kind, server: S3Server, prefix: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _forget_aws(monkeypatch, tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint_url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.admin.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.admin.secret_key)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-3")

    async def test() -> None:
        client = make_client(server.bucket, S3Options(client=kind))
        await client.put(f"{prefix}/o", [b"hello"])
        assert (await client.get(f"{prefix}/o")).data == b"hello"
        assert client.place == f"{server.endpoint_url}/{server.bucket}"
        await client.aclose()

    run(test())


def test_a_profile_says_where_and_who(
    kind: Kind, server: S3Server, prefix: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _forget_aws(monkeypatch, tmp_path)
    (tmp_path / "config").write_text(f"[profile logs]\nregion = eu-west-3\nendpoint_url = {server.endpoint_url}\n")
    keys = f"aws_access_key_id = {server.admin.access_key}\naws_secret_access_key = {server.admin.secret_key}\n"
    (tmp_path / "credentials").write_text(f"[logs]\n{keys}")

    async def test() -> None:
        client = make_client(server.bucket, S3Options(client=kind, profile="logs"))
        await client.put(f"{prefix}/o", [b"hello"])
        assert (await client.get(f"{prefix}/o")).data == b"hello"
        await client.aclose()
        stranger = make_client(server.bucket, S3Options(client=kind, profile="other"))
        with pytest.raises(StorageError, match="other"):
            await stranger.get(f"{prefix}/o")
        await stranger.aclose()

    run(test())


def test_a_client_that_was_handed_in_is_used_and_left_open(server: S3Server, prefix: str) -> None:
    async def test() -> None:
        theirs = server.boto3()
        client = BotoClient(server.bucket, client=theirs)
        await client.put(f"{prefix}/o", [b"hello"])
        assert client.place == f"{server.endpoint_url}/{server.bucket}"
        await client.aclose()
        assert theirs.get_object(Bucket=server.bucket, Key=f"{prefix}/o")["Body"].read() == b"hello"
        theirs.close()

    run(test())


def _forget_aws(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """As on a machine where nobody ever set up AWS."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(folder / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

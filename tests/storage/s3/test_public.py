"""A public bucket, or any web server, read over plain HTTP by nobody in particular."""

from __future__ import annotations

import asyncio
import functools
import http.server
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hypercore.errors import AddressError, ClosedError, StorageError
from hypercore_s3 import answers, public_client, retrying
from hypercore_s3.objects import AccessDeniedError, ObjectMissingError
from hypercore_s3.public_client import REDIRECTS_MAX, PublicClient
from tests.running import run
from tests.servers.proxy import Answer, Hold, LoseAnswer, Proxy, Reset, Truncate
from tests.servers.s3 import seaweedfs
from tests.storage.s3.clients import KINDS, opened
from tests.storage.s3.test_clients import UNUSUAL_KEYS


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "FIRST_PAUSE_SECONDS", 0.01)


@asynccontextmanager
async def reading(
    url: str, *, deadline_seconds: float = 30.0, most_connections: int = 16
) -> AsyncIterator[PublicClient]:
    """A client of a public place, closed at the end."""
    client = PublicClient(url, deadline_seconds=deadline_seconds, most_connections=most_connections)
    try:
        yield client
    finally:
        await client.aclose()


@pytest.fixture
def public(prefix: str) -> Iterator[str]:
    """The address of a folder in a real public bucket, with the objects `o` (11 bytes) and `empty`."""
    server = seaweedfs()
    driver = server.boto3()
    for name, body in {"o": b"hello world", "empty": b""}.items():
        driver.put_object(Bucket=server.public_bucket, Key=f"{prefix}/{name}", Body=body)
    for name in UNUSUAL_KEYS:
        driver.put_object(Bucket=server.public_bucket, Key=f"{prefix}/{name}", Body=name.encode())
    yield f"{server.endpoint_url}/{server.public_bucket}/{prefix}"
    driver.close()


def test_everybody_reads_a_public_bucket(public: str) -> None:
    async def test() -> None:
        for url in (public, f"{public}/"):
            async with reading(url) as client:
                assert not client.writable
                assert client.place == public
                whole = await client.get("o")
                assert (whole.data, whole.size) == (b"hello world", 11)
                for offset, size, data in [(0, 5, b"hello"), (6, None, b"world"), (6, 500, b"world"), (0, 0, b"")]:
                    found = await client.get("o", offset=offset, size=size)
                    assert (found.data, found.size, found.etag) == (data, 11, whole.etag), (offset, size)
                for offset, size in [(11, 1), (11, None), (500, 5), (500, 0)]:
                    found = await client.get("o", offset=offset, size=size)
                    assert (found.data, found.size) == (b"", 11), (offset, size)
                assert (await client.get("empty")).size == 0
                for key in UNUSUAL_KEYS:
                    assert (await client.get(key)).data == key.encode()

    run(test())


def test_what_is_not_there_or_not_public_is_missing_or_denied(public: str) -> None:
    async def test() -> None:
        async with reading(public) as client:
            with pytest.raises(ObjectMissingError, match="none"):
                await client.get("none")
        server = seaweedfs()
        async with reading(f"{server.endpoint_url}/{server.bucket}") as client:
            with pytest.raises(AccessDeniedError, match="s3:GetObject") as caught:
                await client.get("ready")
            assert caught.value.may_be_missing

    run(test())


def test_nothing_is_written_or_listed(public: str) -> None:
    async def test() -> None:
        async with reading(public) as client:
            for call in (client.put("o", [b"changed"]), client.delete(["o"]), client.list("")):
                with pytest.raises(StorageError, match="s3: address"):
                    await call
            assert client.counts.requests == 0
            await client.aclose()
            with pytest.raises(ClosedError):
                await client.get("o")
            for call in (client.put("o", [b"changed"]), client.delete(["o"]), client.list("")):
                with pytest.raises(ClosedError):
                    await call

    run(test())


def test_nobody_is_told_who_reads(public: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("default login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")

    async def test() -> None:
        async with Proxy() as proxy, reading(f"{proxy.url}/logs") as client:
            proxy.script(Answer(200, headers={"Set-Cookie": "who=you"}, body=b"hello"), times=None)
            await client.get("o")
            await client.get("o")
            expected = {"host", "accept-encoding", "user-agent"}
            assert [set(seen.headers) for seen in proxy.seen] == [expected, expected]
            assert len({seen.connection for seen in proxy.seen}) == 1

    run(test())


def test_an_address_with_a_secret_or_of_another_kind_is_refused() -> None:
    for url in (
        "http://me:secret@127.0.0.1/logs",
        "http://127.0.0.1/logs?token=secret",
        "http://127.0.0.1/logs#part",
        "ftp://127.0.0.1/logs",
        "127.0.0.1/logs",
        "me://me:secret@127.0.0.1/logs",
        "http://[::1/logs",
        "http:///logs",
    ):
        with pytest.raises(AddressError) as caught:
            PublicClient(url)
        assert "secret" not in str(caught.value)


def test_a_server_that_ignores_ranges_is_refused_unless_the_whole_object_was_asked(tmp_path: Path) -> None:
    (tmp_path / "o").write_bytes(b"0123456789")

    async def test(url: str) -> None:
        async with reading(url) as client:
            assert (await client.get("o")).data == b"0123456789"
            assert (await client.get("o", offset=0, size=10)).data == b"0123456789"
            assert (await client.get("o", offset=0, size=500)).data == b"0123456789"
            for offset, size in [(0, 5), (5, None), (5, 5), (0, 0)]:
                with pytest.raises(StorageError, match="does not honour range requests"):
                    await client.get("o", offset=offset, size=size)
            with pytest.raises(ObjectMissingError):
                await client.get("none")

    with web_server(functools.partial(Quiet, directory=str(tmp_path))) as url:
        run(test(url))


@pytest.mark.parametrize("given", ["bytes 4-13/100", "bytes 5-14/10", "bytes 5-15/100", "bytes 5-14/*", "", "nonsense"])
def test_another_range_than_was_asked_is_never_data(given: str) -> None:
    async def test() -> None:
        async with Proxy() as proxy, reading(proxy.url) as client:
            proxy.script(Answer(206, headers={"Content-Range": given}, body=b"0123456789"), times=None)
            with pytest.raises(StorageError):
                await client.get("o", offset=5, size=10)

    run(test())


def test_more_than_was_asked_is_never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "WHOLE_BYTES_MAX", 1000)
    monkeypatch.setattr(public_client, "WHOLE_BYTES_MAX", 1000)

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            while True:
                writer.write(b"100\r\n" + bytes(256) + b"\r\n")
                await writer.drain()
        except ConnectionError:
            writer.close()

    async def test() -> None:
        async with Proxy() as proxy, reading(proxy.url) as client:
            proxy.script(Answer(200, body=bytes(1001)), times=None)
            with pytest.raises(StorageError, match="1001 bytes"):
                await client.get("o")
        async with await asyncio.start_server(endless, "127.0.0.1", 0) as server:
            async with reading(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as client:
                with pytest.raises(StorageError, match="more than 1000 bytes"):
                    await client.get("o")

    run(test())


def test_trouble_that_passes_is_waited_for(public: str) -> None:
    async def test() -> None:
        async with Proxy(public.rsplit("/", 2)[0]) as proxy:
            async with reading(f"{proxy.url}/{public.split('/', 3)[3]}", deadline_seconds=5.0) as client:
                for fault in (Answer(503), Answer(429), Reset(), LoseAnswer(), Truncate(4)):
                    proxy.script(fault)
                    assert (await client.get("o", offset=0, size=8)).data == b"hello wo"
                assert client.counts.gets == len(proxy.seen) == 10
                assert client.counts.bytes_got == 40

    run(test())


def test_trouble_that_stays_is_an_error_after_the_deadline() -> None:
    async def test() -> None:
        async with Proxy() as proxy, reading(proxy.url, deadline_seconds=0.2) as client:
            proxy.script(Answer(503), times=None)
            with pytest.raises(StorageError, match="503"):
                await client.get("o")
            assert len(proxy.seen) == client.counts.gets > 1

    run(test())


def test_redirects_are_followed_to_their_end(public: str) -> None:
    async def test() -> None:
        async with Proxy() as proxy, reading(f"{proxy.url}/old") as client:
            proxy.script(Answer(301, headers={"Location": "/moved"}, body=b""), when=lambda seen: "/old" in seen.target)
            proxy.script(Answer(302, headers={"Location": f"{public}/o"}, body=b""))
            assert (await client.get("o", offset=6, size=5)).data == b"world"
            assert [seen.target for seen in proxy.seen] == ["/old/o", "/moved"]
            assert [seen.headers["range"] for seen in proxy.seen] == ["bytes=6-10"] * 2

    run(test())


def test_redirects_in_a_circle_or_to_another_kind_of_address_end() -> None:
    async def test() -> None:
        async with Proxy() as proxy, reading(proxy.url) as client:
            proxy.script(Answer(302, headers={"Location": "/again"}, body=b""), times=REDIRECTS_MAX + 1)
            with pytest.raises(StorageError, match="redirected more than"):
                await client.get("o")
            assert len(proxy.seen) == REDIRECTS_MAX + 1
            for location in ("ftp://127.0.0.1/o", "file:///etc/passwd"):
                proxy.script(Answer(302, headers={"Location": location}, body=b""))
                with pytest.raises(StorageError, match="is not followed"):
                    await client.get("o")

    run(test())


def test_a_secure_address_never_leads_to_an_open_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tls, certificate = self_signed(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))

    async def test(url: str) -> None:
        async with reading(url) as client:
            with pytest.raises(StorageError, match=r"sent from https://.* to http://.* not followed"):
                await client.get("folder")

    (tmp_path / "o").write_bytes(b"hello")

    class Redirecting(Quiet):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.1:9/o")
            self.end_headers()

    with web_server(Redirecting, tls) as url:
        run(test(url))


def test_a_server_whose_certificate_is_not_trusted_is_asked_nothing(tmp_path: Path) -> None:
    tls, _ = self_signed(tmp_path)

    async def test(url: str) -> None:
        async with reading(url) as client:
            with pytest.raises(StorageError, match="certificate") as caught:
                await client.get("o")
            assert "times" not in str(caught.value)
        for kind in KINDS:
            async with opened(kind, url) as other:
                with pytest.raises(StorageError, match=r"(?i)certificate") as caught:
                    await other.get("o")
                assert other.counts.gets == 1

    with web_server(Quiet, tls) as url:
        run(test(url))


def test_closing_ends_calls_and_a_caller_who_goes_away_leaves_the_others_alone(public: str) -> None:
    async def test() -> None:
        async with Proxy(public.rsplit("/", 2)[0]) as proxy:
            async with reading(f"{proxy.url}/{public.split('/', 3)[3]}", most_connections=1) as client:
                hold = Hold()
                proxy.script(hold)
                gone = asyncio.ensure_future(client.get("o"))
                await hold.arrived()
                patient = asyncio.ensure_future(client.get("o"))
                gone.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await gone
                hold.release()
                assert (await patient).data == b"hello world"

                stuck = Hold()
                proxy.script(stuck, times=None)
                calls = [asyncio.ensure_future(client.get("o")) for _ in range(3)]
                await stuck.arrived()
                closing = asyncio.ensure_future(client.aclose())
                for call in calls:
                    with pytest.raises(ClosedError):
                        await call
                stuck.release()
                await closing

    run(test())


def test_an_object_is_as_old_as_the_servers_clock_says() -> None:
    async def test() -> None:
        async with Proxy() as proxy, reading(proxy.url) as client:
            modified, date = "Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 21 Oct 2015 07:30:00 GMT"
            proxy.script(Answer(200, headers={"Last-Modified": modified, "Date": date}, body=b"x"))
            assert (await client.get("o")).age_seconds == 120
            proxy.script(Answer(200, headers={"Last-Modified": "some day", "Date": date}, body=b"x"))
            assert (await client.get("o")).age_seconds == 0
            proxy.script(Answer(200, headers={"Last-Modified": modified}, body=b"x"))
            assert (await client.get("o")).age_seconds == 0

    run(test())


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Python's own web server, which knows nothing of ranges."""

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - its name
        pass


class Server(http.server.ThreadingHTTPServer):
    """Who is refused by its clients says nothing."""

    def handle_error(self, request: object, client_address: object) -> None:
        pass


@contextmanager
def web_server(handler: Callable[..., Quiet], tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """A server with this handler; its address."""
    with Server(("127.0.0.1", 0), handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http{'s' if tls else ''}://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def self_signed(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """A certificate for 127.0.0.1 that nobody knows, as a server takes it, and its file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(encoding))
    (folder / "key.pem").write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    return context, folder / "certificate.pem"

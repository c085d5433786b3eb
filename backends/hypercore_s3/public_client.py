"""A public bucket, or any web server that honours range requests, as an object client that only reads.

It must not know what the objects mean, and sends no credentials. The server need not be a friend: what it answers is
bounded by what was asked, in bytes and in time.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TYPE_CHECKING, Final, NoReturn
from urllib.parse import quote, urljoin, urlsplit

from hypercore.errors import AddressError, MissingDriverError, StorageError
from hypercore.storage import check_range
from hypercore.urls import hide_secrets
from hypercore_s3.answers import (
    WHOLE_BYTES_MAX,
    Asked,
    Extent,
    TryAgainError,
    age_seconds,
    check_body,
    extent_of,
    range_header,
    refusal,
)
from hypercore_s3.objects import AccessDeniedError, Found
from hypercore_s3.retrying import RetryingClient
from hypercore_s3.threads import Wanted

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager

#: A server that moved sends one on once, perhaps twice (http to https); more is a circle.
REDIRECTS_MAX: Final = 3
REDIRECT_STATUSES: Final = frozenset((301, 302, 303, 307, 308))


class PublicClient(RetryingClient):
    """The objects below `base_url` (http or https), each at its key. Without a bucket's API there is no listing."""

    writable = False

    def __init__(
        self,
        base_url: str,
        *,
        timeout_seconds: float = 20.0,
        deadline_seconds: float = 60.0,
        most_connections: int = 16,
    ) -> None:
        try:
            parts = urlsplit(base_url)
        except ValueError as error:
            raise AddressError(f"{hide_secrets(base_url)!r} is no address") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise AddressError(f"a public bucket is an http or https address, not {hide_secrets(base_url)!r}")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise AddressError("the address of a public bucket has no user, password, query or fragment")
        super().__init__(
            base_url.rstrip("/"),
            timeout_seconds=timeout_seconds,
            deadline_seconds=deadline_seconds,
            most_connections=most_connections,
        )
        self._base_url = f"{self.place}/"
        self._pool: PoolManager | None = None

    async def get(self, key: str, *, offset: int = 0, size: int | None = None) -> Found:
        check_range(offset, size or 0)
        asked = Asked("get", key, self.place)
        expected = WHOLE_BYTES_MAX if size is None else size

        found = await self._ask(asked, expected, partial(self._get, asked, offset, size))
        self.counts.bytes_got += len(found.data)
        return found

    def _get(self, asked: Asked, offset: int, size: int | None, wanted: Wanted) -> Found:
        # One byte is asked for when none is wanted: what the answer says about the object is.
        wish = range_header(offset, max(size, 1) if size is not None else None)
        answer = self._open(asked, wish)
        try:
            if answer.status == 416:
                return _found(answer, b"", _size_behind(asked, answer.headers.get("Content-Range")))
            if answer.status not in (200, 206):
                raise refusal(asked, answer.status, message=(answer.reason or "")[:100])
            extent = extent_of(
                asked,
                answer.status,
                answer.headers.get("Content-Range"),
                _length(answer.headers.get("Content-Length")),
                offset,
                None if size is None else max(size, 1),
            )
            data = _read(asked, answer, extent, wanted)
        finally:
            # A body that was read to its end gave its connection back already.
            answer.close()
        return _found(answer, b"" if size == 0 else data, extent.object_size or len(data))

    def _open(self, asked: Asked, wish: str | None) -> BaseHTTPResponse:
        """The head of the answer, after redirects. No cookie, no credentials, no compression."""
        headers = {"Accept-Encoding": "identity", "User-Agent": "hypercore-py"}
        if wish is not None:
            headers["Range"] = wish
        url = self._base_url + quote(asked.key, safe="/~")
        assert self._pool is not None
        for _ in range(REDIRECTS_MAX + 1):
            answer = self._pool.request("GET", url, headers=headers, preload_content=False, redirect=False)
            location = answer.headers.get("Location")
            if answer.status not in REDIRECT_STATUSES or not location:
                return answer
            answer.close()
            following = urljoin(url, location)
            if urlsplit(following).scheme not in ("https", urlsplit(url).scheme):
                raise StorageError(f"{asked.place}: {asked} is sent from {url} to {following}, which is not followed")
            url = following
        raise StorageError(f"{asked.place}: {asked} is redirected more than {REDIRECTS_MAX} times, at last to {url}")

    def _load(self) -> None:
        try:
            import urllib3
        except ImportError as error:
            raise MissingDriverError("urllib3 is not installed; pip install 'hypercore-py[s3]'") from error
        timeout = urllib3.Timeout(connect=self._timeout_seconds, read=self._timeout_seconds)
        self._pool = urllib3.PoolManager(maxsize=self._most_connections, retries=False, timeout=timeout)

    def _unload(self) -> None:
        if self._pool is not None:
            self._pool.clear()

    def _meaning(self, error: Exception, asked: Asked) -> Exception:
        return _meaning(error, asked)

    async def put(
        self, key: str, pieces: Sequence[bytes], *, if_absent: bool = False, if_etag: str | None = None
    ) -> str:
        self._refuse(Asked("put", key, self.place))

    async def delete(self, keys: Sequence[str]) -> None:
        self._refuse(Asked("delete", keys[0] if keys else "", self.place))

    async def list(self, prefix: str, *, after: str = "", limit: int = 1000) -> list[str]:
        self._check_open()
        raise StorageError(f"{self.place}: a web server does not say what it has; list {prefix!r} needs an s3: address")

    def _refuse(self, asked: Asked) -> NoReturn:
        self._check_open()
        raise AccessDeniedError(f"{self.place} can only be read; {asked} needs an s3: address", action=asked.action)


def _read(asked: Asked, answer: BaseHTTPResponse, extent: Extent, wanted: Wanted) -> bytes:
    """The body, in the pieces in which it comes: a slow server must not hold a thread that nobody waits for."""
    most = WHOLE_BYTES_MAX if extent.size is None else extent.size
    parts: list[bytes] = []
    size = 0
    while size < most and (part := answer.read1(most - size)):
        parts.append(part)
        size += len(part)
        if not wanted():
            raise TryAgainError("nobody waits for it any more")
    if extent.size is None and size == most and answer.read1(1):
        raise StorageError(f"{asked.place}: {asked} is more than {most} bytes")
    check_body(extent, size)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _found(answer: BaseHTTPResponse, data: bytes, object_size: int) -> Found:
    put_at: datetime | None = None
    with suppress(ValueError):
        put_at = parsedate_to_datetime(answer.headers.get("Last-Modified", ""))
    age = age_seconds(answer.headers.get("Date"), put_at)
    return Found(data=data, etag=answer.headers.get("ETag", ""), size=object_size, age_seconds=age)


def _length(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 20 else None


def _size_behind(asked: Asked, content_range: str | None) -> int:
    """How large an object is, by the answer to a range past its end."""
    size = _length((content_range or "").strip().removeprefix("bytes */"))
    if size is None:
        raise StorageError(f"{asked.place}: {asked} does not say how large the object is ({content_range!r})")
    return size


def _meaning(error: Exception, asked: Asked) -> Exception:
    """Our error for one of urllib3's, or of the connection below it."""
    if isinstance(error, TryAgainError | StorageError | MissingDriverError):
        return error
    from urllib3 import exceptions

    match error:
        case exceptions.SSLError() if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return StorageError(f"{asked.place}: {asked} failed: the certificate of the server is not trusted: {error}")
        case exceptions.LocationValueError():
            return StorageError(f"{asked.place}: {asked} failed: {error}")
        case exceptions.HTTPError() | OSError():
            return TryAgainError(f"{type(error).__name__}: {error}")
    return StorageError(f"{asked.place}: {asked} failed: {type(error).__name__}: {error}")

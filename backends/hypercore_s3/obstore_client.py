"""obstore as an object client: the option for who reads much in small pieces, at a seventh of the CPU.

It must not know what the objects mean. obstore (Rust) could await its own I/O, but calls in threads are as quick and
end cleanly: a Rust thread that lets go of an awaited answer while the program ends aborts it. Who we are and where
the bucket is, boto3's chain finds out, as for the other client.

obstore says less than boto3: errors are texts with the status in them, the Date of an answer is not shown, and keys
that are no clean paths cannot be named. A listing asks for pages of 1000 keys whatever its limit.
"""

from __future__ import annotations

import http.client
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from hypercore.errors import MissingDriverError, OptionError, StorageError
from hypercore.storage import check_range
from hypercore_s3.answers import WHOLE_BYTES_MAX, Asked, Extent, TryAgainError, check_body, refusal
from hypercore_s3.boto_driver import make_client, make_session, meaning, place_of
from hypercore_s3.objects import DELETE_KEYS_MAX, Found
from hypercore_s3.retrying import SLOWEST_BYTES_PER_SECOND, RetryingClient
from hypercore_s3.threads import Wanted

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta, PutMode
    from obstore.store import ClientConfig, S3Credential, S3Store

#: Keys of one answer to a LIST.
LIST_KEYS_MAX: Final = 1000
#: Credentials may be renewed at any time; boto3 is asked for them so often.
CREDENTIALS_SECONDS: Final = 300.0
#: Two clocks have not gone apart by a tenth of a second in this time.
CLOCK_SECONDS: Final = 600.0

_STATUS = re.compile(r"Server returned non-2xx status code: (\d{3})(.*)", re.DOTALL)
_CODE = re.compile(r"<Code>([^<]*)</Code>")
_MESSAGE = re.compile(r"<Message>([^<]*)</Message>")
#: What the system said, such as "Connection refused".
_CAUSE = re.compile(r'message: "([^"]+)"')
#: A key that could not be deleted with the others.
_DELETE_CODE = re.compile(r"DeleteObjects request failed for key .*\(code: (\w+)\)", re.DOTALL)
_UNCLEAN_KEY = re.compile(r"(^|/)\.{0,2}(/|$)|[\x00-\x1f\x7f]")


class ObstoreClient(RetryingClient):
    """A bucket through obstore. What is not given is found by boto3's usual chain."""

    def __init__(
        self,
        bucket: str,
        *,
        endpoint_url: str | None = None,
        region: str | None = None,
        profile: str | None = None,
        path_style: bool | None = None,
        access_key: str | None = None,
        secret_key: str | None = None,
        session_token: str | None = None,
        timeout_seconds: float = 20.0,
        deadline_seconds: float = 60.0,
        most_connections: int = 16,
    ) -> None:
        super().__init__(
            place_of(bucket, endpoint_url),
            timeout_seconds=timeout_seconds,
            deadline_seconds=deadline_seconds,
            most_connections=most_connections,
        )
        self._bucket = bucket
        self._endpoint_url = endpoint_url
        self._region = region
        self._profile = profile
        self._path_style = path_style
        self._access_key = access_key
        self._secret_key = secret_key
        self._session_token = session_token
        self._reader: S3Store | None = None
        self._writer: S3Store | None = None
        self._asking_the_clock = threading.Lock()
        #: When it was read, by our clock, and how far the server's clock is ahead of that, in seconds.
        self._clock: tuple[float, float | None] | None = None
        self._date_url = ""

    async def get(self, key: str, *, offset: int = 0, size: int | None = None) -> Found:
        check_range(offset, size or 0)
        asked = Asked("get", _clean(key), self.place)
        found = None
        if size != 0:
            expected = WHOLE_BYTES_MAX if size is None else size
            found = await self._ask(asked, expected, partial(self._get, asked, offset, size))
        if found is None:
            # The range lies past the end. That answer does not say which object it was.
            found = await self._ask(asked, 0, partial(self._head, asked))
        self.counts.bytes_got += len(found.data)
        return found

    def _get(self, asked: Asked, offset: int, size: int | None, wanted: Wanted) -> Found | None:
        assert self._reader is not None
        options: GetOptions = {}
        if size is not None:
            options["range"] = (offset, offset + size)
        elif offset:
            options["range"] = {"offset": offset}
        try:
            answer = self._reader.get(asked.key, options=options)
        except Exception as error:
            if _status(error) == 416:
                return None
            raise
        whole = answer.meta["size"]
        start, end = answer.range
        if (start, end) != (offset, whole if size is None else min(offset + size, whole)):
            raise StorageError(f"{asked.place}: {asked} came with bytes {start} to {end} of {whole}")
        if size is None and end - start > WHOLE_BYTES_MAX:
            raise StorageError(f"{asked.place}: {asked} is {end - start} bytes, more than {WHOLE_BYTES_MAX}")
        data = bytes(answer.bytes())
        check_body(Extent(end - start, whole), len(data))
        return self._found(answer.meta, data)

    def _head(self, asked: Asked, wanted: Wanted) -> Found:
        assert self._reader is not None
        return self._found(self._reader.head(asked.key), b"")

    async def put(
        self, key: str, pieces: Sequence[bytes], *, if_absent: bool = False, if_etag: str | None = None
    ) -> str:
        asked = Asked("put", _clean(key), self.place)
        mode: PutMode = "create" if if_absent else "overwrite" if if_etag is None else {"e_tag": if_etag}

        def request(wanted: Wanted) -> str:
            assert self._writer is not None
            return self._writer.put(key, b"".join(pieces), mode=mode, use_multipart=False)["e_tag"] or ""

        return await self._ask(asked, sum(map(len, pieces)), request)

    async def delete(self, keys: Sequence[str]) -> None:
        for start in range(0, len(keys), DELETE_KEYS_MAX):
            batch = [_clean(key) for key in keys[start : start + DELETE_KEYS_MAX]]
            await self._ask(Asked("delete", batch[0], self.place), 0, partial(self._delete, batch))

    def _delete(self, keys: Sequence[str], wanted: Wanted) -> None:
        assert self._reader is not None
        self._reader.delete(keys)

    async def list(self, prefix: str, *, after: str = "", limit: int = 1000) -> list[str]:
        asked = Asked("list", prefix, self.place)
        keys: list[str] = []
        start: str | None = max(after, _before(prefix))
        while start is not None and len(keys) < limit:
            found = await self._ask(asked, 0, partial(self._list, prefix, start))
            keys += [key for key in found if key.startswith(prefix) and key > after]
            last = found[-1] if len(found) >= LIST_KEYS_MAX else None
            if last is not None and last <= start:
                raise StorageError(f"{self.place}: {asked} goes on without end")
            start = last if last is None or last < prefix or last.startswith(prefix) else None
        return keys[:limit]

    def _list(self, prefix: str, start: str, wanted: Wanted) -> Sequence[str]:
        # obstore knows folders only; what lies beside the prefix in its folder is jumped over, or left out.
        assert self._reader is not None
        folder = prefix.rpartition("/")[0]
        for entries in self._reader.list(folder, offset=start or None, chunk_size=LIST_KEYS_MAX):
            return [entry["path"] for entry in entries]
        return ()

    def _found(self, meta: ObjectMeta, data: bytes) -> Found:
        now = self._server_seconds()
        age = 0.0 if now is None else max(0.0, now - meta["last_modified"].timestamp())
        return Found(data=data, etag=meta["e_tag"] or "", size=meta["size"], age_seconds=age)

    def _load(self) -> None:
        try:
            from obstore.store import S3Store
        except ImportError as error:
            raise MissingDriverError("s3: obstore is not installed; pip install 'hypercore-py[obstore]'") from error
        endpoint_url, region, path_style = (
            self._endpoint_url,
            self._region or "us-east-1",
            self._path_style is not False,
        )
        if self._access_key is not None and endpoint_url is not None:
            provider = _given(self._access_key, self._secret_key, self._session_token)
        else:
            session = make_session(
                region=self._region,
                profile=self._profile,
                access_key=self._access_key,
                secret_key=self._secret_key,
                session_token=self._session_token,
            )
            client = make_client(
                endpoint_url=endpoint_url,
                region=self._region,
                profile=self._profile,
                path_style=self._path_style,
                access_key=None,
                secret_key=None,
                session_token=None,
                session=session,
                timeout_seconds=self._timeout_seconds,
                most_connections=1,
            )
            endpoint_url, region = client.meta.endpoint_url, client.meta.region_name
            path_style = client.meta.config.s3["addressing_style"] == "path" or "." in self._bucket
            client.close()
            provider = _found_by_boto3(session)
        self.place = place_of(self._bucket, endpoint_url)
        parts = urlsplit(endpoint_url)
        self._date_url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/"
        if not path_style:
            endpoint_url = f"{parts.scheme}://{self._bucket}.{parts.netloc}"

        def made(client_options: ClientConfig) -> S3Store:
            most_seconds = self._timeout_seconds + WHOLE_BYTES_MAX / SLOWEST_BYTES_PER_SECOND
            return S3Store(
                self._bucket,
                endpoint=endpoint_url,
                region=region,
                virtual_hosted_style_request=not path_style,
                # As Content-MD5 in the other client: a body that was cut off on its way must not become an object.
                checksum_algorithm="SHA256",
                client_options={
                    "allow_http": True,
                    "connect_timeout": timedelta(seconds=self._timeout_seconds),
                    "timeout": timedelta(seconds=most_seconds),
                    "pool_max_idle_per_host": str(self._most_connections),
                    **client_options,
                },
                retry_config={"max_retries": 0},
                credential_provider=provider,
            )

        # While a body is sent nothing is read, so only a reader may lose its patience with a silent server.
        self._reader = made({"read_timeout": timedelta(seconds=self._timeout_seconds)})
        self._writer = made({})

    def _unload(self) -> None:
        self._reader = self._writer = None

    def _meaning(self, error: Exception, asked: Asked) -> Exception:
        return _meaning(error, asked)

    def _server_seconds(self) -> float | None:
        """What the server's clock says, in seconds since 1970; None when it does not say.

        obstore does not show the Date of an answer, so a request that needs no permission asks for it now and then.
        """
        if not self._clock_is_fresh():
            with self._asking_the_clock:
                if not self._clock_is_fresh():
                    date = _date_of(self._date_url, self._timeout_seconds)
                    read_at = _boot_seconds()
                    self._clock = read_at, None if date is None else date - read_at
        assert self._clock is not None
        ahead = self._clock[1]
        return None if ahead is None else _boot_seconds() + ahead

    def _clock_is_fresh(self) -> bool:
        return self._clock is not None and _boot_seconds() - self._clock[0] < CLOCK_SECONDS


def _clean(key: str) -> str:
    """obstore would silently name another object where a key is no clean path."""
    if _UNCLEAN_KEY.search(key):
        raise OptionError(f"obstore cannot name the object {key!r}: it has an empty part, '.', '..' or a control")
    return key


def _before(prefix: str) -> str:
    """A key that sorts before all that begin with `prefix`, and if possible after all that sort before them."""
    last = prefix[-1:]
    return prefix[:-1] + chr(ord(last) - 1) + "\U0010ffff" if "!" <= last <= "~" and last != "/" else ""


def _status(error: Exception) -> int:
    match = _STATUS.search(str(error).partition("\n\nDebug source")[0])
    return int(match[1]) if match else 0


def _meaning(error: Exception, asked: Asked) -> Exception:
    """Our error for one of obstore's, which is a text."""
    if isinstance(error, TryAgainError | StorageError | MissingDriverError):
        return error
    text, _, detail = str(error).partition("\n\nDebug source")
    if match := _STATUS.search(text):
        code, message = _CODE.search(match[2]), _MESSAGE.search(match[2])
        return refusal(asked, int(match[1]), code[1] if code else "", message[1] if message else "")
    if match := _DELETE_CODE.search(text):
        return refusal(asked, 403 if match[1] == "AccessDenied" else 400, match[1], text)
    if "InvalidCertificate" in detail:
        return StorageError(f"{asked.place}: {asked} failed: the certificate of the server is not trusted: {text}")
    if "HttpError" in detail or isinstance(error, OSError):
        cause = _CAUSE.search(detail)
        return TryAgainError(f"{text} ({cause[1]})" if cause else text)
    if type(error).__module__.startswith("botocore"):
        return meaning(error, asked)  # It was asked who we are.
    return StorageError(f"{asked.place}: {asked} failed: {type(error).__name__}: {text}")


def _given(access_key: str, secret_key: str | None, session_token: str | None) -> Callable[[], S3Credential]:
    # A provider, because a key given as an option would be joined by the AWS_SESSION_TOKEN of another one.
    def provide() -> S3Credential:
        return {
            "access_key_id": access_key,
            "secret_access_key": secret_key or "",
            "token": session_token,
            "expires_at": None,
        }

    return provide


def _found_by_boto3(session: Any) -> Callable[[], S3Credential]:
    credentials = session.get_credentials()
    if credentials is None:
        from botocore.exceptions import NoCredentialsError

        raise NoCredentialsError

    def provide() -> S3Credential:
        now = credentials.get_frozen_credentials()
        return {
            "access_key_id": now.access_key,
            "secret_access_key": now.secret_key,
            "token": now.token,
            "expires_at": datetime.now(UTC) + timedelta(seconds=CREDENTIALS_SECONDS),
        }

    return provide


def _boot_seconds() -> float:
    """A clock that nobody sets, and that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _date_of(url: str, timeout_seconds: float) -> float | None:
    """The Date of any answer of a server, in seconds since 1970. Raises `TryAgainError`."""
    request = urllib.request.Request(url, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=timeout_seconds) as answer:
            date = answer.headers["Date"]
    except urllib.error.HTTPError as error:
        date = error.headers["Date"]
        error.close()
    except (OSError, http.client.HTTPException) as error:
        raise TryAgainError(f"the server's clock cannot be read: {error}") from error
    with suppress(TypeError, ValueError):
        return parsedate_to_datetime(date).timestamp()
    return None

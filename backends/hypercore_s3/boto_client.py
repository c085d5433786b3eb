"""boto3 as an object client: one shared client, in threads of its own.

It must not know what the objects mean. boto3 is imported by the first call, in a thread, because that takes half a
second. Its own retries are off: they would hide requests from the counts and answers that were lost.

Each body goes with its Content-MD5. Where it lies, the checksums that the backend writes into it protect it; but a
client that is killed between the head of a request and its body leaves an empty object on SeaweedFS, unless the head
says what the body is. Every server knows this header; the CRC that boto3 would add is left out, because some refuse it.
"""

from __future__ import annotations

import hashlib
import os
from base64 import b64encode
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from hypercore.errors import StorageError
from hypercore.storage import check_range
from hypercore_s3.answers import (
    WHOLE_BYTES_MAX,
    Asked,
    TryAgainError,
    age_seconds,
    check_body,
    extent_of,
    range_header,
    refusal,
)
from hypercore_s3.boto_driver import make_client, meaning, place_of
from hypercore_s3.objects import DELETE_KEYS_MAX, Found
from hypercore_s3.retrying import RetryingClient
from hypercore_s3.threads import Wanted

#: Below this, joining the pieces of a body is cheaper than sending them one by one.
JOINED_BYTES_MAX: Final = 1 << 20
#: Between two reads of a body its thread asks whether anybody still waits for it.
READ_BYTES: Final = 1 << 20
#: Keys of one answer to a LIST.
LIST_KEYS_MAX: Final = 1000


class BotoClient(RetryingClient):
    """A bucket through boto3. What is not given is found by boto3's usual chain.

    A `client` of boto3 is used as it is and never closed; its own retries should be off, too.
    """

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
        session: Any = None,
        client: Any = None,
        timeout_seconds: float = 20.0,
        deadline_seconds: float = 60.0,
        most_connections: int = 16,
    ) -> None:
        super().__init__(
            place_of(bucket, client.meta.endpoint_url if client is not None else endpoint_url),
            timeout_seconds=timeout_seconds,
            deadline_seconds=deadline_seconds,
            most_connections=most_connections,
        )
        self._bucket = bucket
        self._make = partial(
            make_client,
            endpoint_url=endpoint_url,
            region=region,
            profile=profile,
            path_style=path_style,
            access_key=access_key,
            secret_key=secret_key,
            session_token=session_token,
            session=session,
            timeout_seconds=timeout_seconds,
            most_connections=most_connections,
        )
        self._client = client
        self._client_is_ours = client is None

    async def get(self, key: str, *, offset: int = 0, size: int | None = None) -> Found:
        check_range(offset, size or 0)
        asked = Asked("get", key, self.place)
        expected = WHOLE_BYTES_MAX if size is None else size
        found = None
        if size != 0:
            found = await self._ask(asked, expected, partial(self._get, asked, offset, size))
        if found is None:
            # The range lies past the end. That answer does not say which object it was.
            found = await self._ask(asked, 0, partial(self._head, asked))
        self.counts.bytes_got += len(found.data)
        return found

    def _get(self, asked: Asked, offset: int, size: int | None, wanted: Wanted) -> Found | None:
        wish = range_header(offset, size)
        parameters = {"Range": wish} if wish is not None else {}
        try:
            answer = self._client.get_object(Bucket=self._bucket, Key=asked.key, **parameters)
        except self._client.exceptions.ClientError as error:
            if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 416:
                return None
            raise
        body = answer["Body"]
        try:
            status = answer["ResponseMetadata"]["HTTPStatusCode"]
            extent = extent_of(asked, status, answer.get("ContentRange"), answer.get("ContentLength"), offset, size)
            data = _read(body, WHOLE_BYTES_MAX if extent.size is None else extent.size, wanted)
            check_body(extent, len(data))
        finally:
            body.close()
        return _found(answer, data, len(data) if extent.object_size is None else extent.object_size)

    def _head(self, asked: Asked, wanted: Wanted) -> Found:
        answer = self._client.head_object(Bucket=self._bucket, Key=asked.key)
        return _found(answer, b"", answer["ContentLength"])

    async def put(
        self, key: str, pieces: Sequence[bytes], *, if_absent: bool = False, if_etag: str | None = None
    ) -> str:
        size = sum(map(len, pieces))
        condition = {}
        if if_absent:
            condition["IfNoneMatch"] = "*"
        if if_etag is not None:
            condition["IfMatch"] = if_etag

        def request(wanted: Wanted) -> str:
            body = b"".join(pieces) if size <= JOINED_BYTES_MAX else Pieces(pieces)
            answer = self._client.put_object(
                Bucket=self._bucket, Key=key, Body=body, ContentMD5=content_md5(pieces), **condition
            )
            return str(answer.get("ETag", ""))

        return await self._ask(Asked("put", key, self.place), size, request)

    async def delete(self, keys: Sequence[str]) -> None:
        for start in range(0, len(keys), DELETE_KEYS_MAX):
            batch = keys[start : start + DELETE_KEYS_MAX]
            asked = Asked("delete", batch[0], self.place)
            await self._ask(asked, 0, partial(self._delete, asked, batch))

    def _delete(self, asked: Asked, keys: Sequence[str], wanted: Wanted) -> None:
        objects = [{"Key": key} for key in keys]
        answer = self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": objects, "Quiet": True})
        for problem in answer.get("Errors", ()):
            code, message = problem.get("Code", ""), problem.get("Message", "")
            if code not in ("NoSuchKey", "404"):
                status = 403 if code == "AccessDenied" else 400
                raise refusal(Asked("delete", problem.get("Key", keys[0]), self.place), status, code, message)

    async def list(self, prefix: str, *, after: str = "", limit: int = 1000) -> list[str]:
        asked = Asked("list", prefix, self.place)
        keys: list[str] = []
        token: str | None = None
        while len(keys) < limit:
            more = min(limit - len(keys), LIST_KEYS_MAX)
            found, token = await self._ask(asked, 0, partial(self._list, asked, after, more, token))
            keys += found
            if token is None:
                break
        return keys

    def _list(
        self, asked: Asked, after: str, limit: int, token: str | None, wanted: Wanted
    ) -> tuple[Sequence[str], str | None]:
        parameters = {"ContinuationToken": token} if token is not None else {"StartAfter": after} if after else {}
        answer = self._client.list_objects_v2(Bucket=self._bucket, Prefix=asked.key, MaxKeys=limit, **parameters)
        keys = [entry["Key"] for entry in answer.get("Contents", ())]
        if not answer.get("IsTruncated"):
            return keys, None
        following = answer.get("NextContinuationToken")
        if not keys or following is None or following == token:
            raise StorageError(f"{self.place}: {asked} goes on without end")
        return keys, following

    def _load(self) -> None:
        if self._client is None:
            self._client = self._make()
        self.place = place_of(self._bucket, self._client.meta.endpoint_url)

    def _unload(self) -> None:
        if self._client_is_ours:
            self._client.close()

    def _meaning(self, error: Exception, asked: Asked) -> Exception:
        return meaning(error, asked)


class Pieces:
    """The pieces of a body as the file that boto3 takes, without a copy of them."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces
        self._size = sum(map(len, pieces))
        self._offset = 0
        #: Which piece is next, and from where.
        self._index = self._start = 0

    def read(self, size: int = -1) -> bytes | memoryview:
        """At most `size` bytes, fewer at the end of a piece, none at the end of all; all the rest without `size`."""
        if size < 0:
            return b"".join(iter(partial(self.read, self._size), b""))
        while self._index < len(self._pieces):
            part = memoryview(self._pieces[self._index])[self._start : self._start + size]
            if part:
                self._start += len(part)
                self._offset += len(part)
                return part
            self._index, self._start = self._index + 1, 0
        return b""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        target = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._offset, os.SEEK_END: self._size}[whence]
        self._offset = self._start = target
        self._index = 0
        while self._index < len(self._pieces) and self._start >= len(self._pieces[self._index]):
            self._start -= len(self._pieces[self._index])
            self._index += 1
        return target

    def tell(self) -> int:
        return self._offset


def _read(body: Any, size: int, wanted: Wanted) -> bytes:
    """The body, of which not more than `size` bytes may come."""
    parts: list[bytes] = []
    left = size
    while left and (part := body.read(min(left, READ_BYTES))):
        parts.append(part)
        left -= len(part)
        if not wanted():
            raise TryAgainError("nobody waits for it any more")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _found(answer: Any, data: bytes, object_size: int) -> Found:
    return Found(
        data=data,
        etag=answer.get("ETag", ""),
        size=object_size,
        age_seconds=age_seconds(answer["ResponseMetadata"]["HTTPHeaders"].get("date"), answer.get("LastModified")),
    )


def content_md5(pieces: Sequence[bytes]) -> str:
    """The header that lets a server notice a body that is not whole."""
    digest = hashlib.md5(usedforsecurity=False)
    for piece in pieces:
        digest.update(piece)
    return b64encode(digest.digest()).decode()

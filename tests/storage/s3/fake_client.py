"""A bucket in memory with exact conditions, whose requests can be held up, lost, and carried out too late."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from hypercore.errors import ClosedError, StorageError
from hypercore_s3.objects import ConditionFailedError, Found, ObjectClient, ObjectMissingError


class Request(NamedTuple):
    """What was asked: the verb, the key (or the prefix, or the first key), the bytes moved, and what came of it."""

    verb: str
    key: str
    size: int
    outcome: str


@dataclass
class Bucket:
    """The objects; several clients share one. `now` is the server's clock."""

    objects: dict[str, bytes] = field(default_factory=dict)
    put_at: dict[str, float] = field(default_factory=dict)
    now: float = 1_000_000.0
    #: As some endpoints do.
    ignores_conditions: bool = False

    def etag(self, key: str) -> str:
        # As S3 does: the same bytes have the same tag.
        return f'"{hashlib.md5(self.objects[key]).hexdigest()}"'

    def check(self, key: str, *, if_absent: bool, if_etag: str | None) -> None:
        if self.ignores_conditions:
            return
        if if_absent and key in self.objects:
            raise ConditionFailedError(f"{key} exists")
        if if_etag is not None:
            if key not in self.objects:
                raise ObjectMissingError(f"{key} is missing")
            if self.etag(key) != if_etag:
                raise ConditionFailedError(f"{key} is another one")

    def put(self, key: str, data: bytes, *, if_absent: bool = False, if_etag: str | None = None) -> str:
        self.check(key, if_absent=if_absent, if_etag=if_etag)
        self.objects[key] = data
        self.put_at[key] = self.now
        return self.etag(key)


#: Carries out a request, in whatever way: `apply` does it, and it may never be called, or called and not told of.
Carry = Callable[[str, str, Callable[[], object]], Awaitable[object]]


async def at_once(verb: str, key: str, apply: Callable[[], object]) -> object:
    return apply()


class FakeClient(ObjectClient):
    """One client of a bucket. `carry` stands between each request and the bucket."""

    def __init__(self, bucket: Bucket | None = None, *, carry: Carry = at_once, place: str = "fake") -> None:
        super().__init__()
        self.bucket = bucket if bucket is not None else Bucket()
        self.place = place
        self.carry = carry
        self.requests: list[Request] = []
        self.closed = False

    async def get(self, key: str, *, offset: int = 0, size: int | None = None) -> Found:
        self.counts.gets += 1

        def apply() -> Found:
            data = self.bucket.objects.get(key)
            if data is None:
                raise ObjectMissingError(f"{key} is missing")
            part = data[offset:] if size is None else data[offset : offset + size]
            age = self.bucket.now - self.bucket.put_at[key]
            return Found(data=part, etag=self.bucket.etag(key), size=len(data), age_seconds=age)

        found = await self._ask("get", key, apply)
        assert isinstance(found, Found)
        self.counts.bytes_got += len(found.data)
        self.requests[-1] = self.requests[-1]._replace(size=len(found.data))
        return found

    async def put(
        self, key: str, pieces: Sequence[bytes], *, if_absent: bool = False, if_etag: str | None = None
    ) -> str:
        self.counts.puts += 1
        data = b"".join(pieces)
        self.counts.bytes_put += len(data)
        etag = await self._ask(
            "put", key, lambda: self.bucket.put(key, data, if_absent=if_absent, if_etag=if_etag), len(data)
        )
        assert isinstance(etag, str)
        return etag

    async def delete(self, keys: Sequence[str]) -> None:
        self.counts.deletes += 1

        def apply() -> None:
            for key in keys:
                self.bucket.objects.pop(key, None)

        await self._ask("delete", keys[0] if keys else "", apply, len(keys))

    async def list(self, prefix: str, *, after: str = "", limit: int = 1000) -> list[str]:
        self.counts.lists += 1

        def apply() -> list[str]:
            return sorted(key for key in self.bucket.objects if key.startswith(prefix) and key > after)[:limit]

        keys = await self._ask("list", prefix, apply)
        assert isinstance(keys, list)
        return keys

    async def _ask(self, verb: str, key: str, apply: Callable[[], object], size: int = 0) -> object:
        if self.closed:
            raise ClosedError("the client is closed")
        try:
            result = await self.carry(verb, key, apply)
        except StorageError as error:
            self.requests.append(Request(verb, key, size, type(error).__name__))
            raise
        self.requests.append(Request(verb, key, size, "ok"))
        return result

    async def aclose(self) -> None:
        self.closed = True

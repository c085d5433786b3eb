"""The objects of one storage: those below its prefix, by the names that the layout gives them.

It must not know what the objects mean. Several storages share a bucket, each below a prefix of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from hypercore_s3.objects import DELETE_KEYS_MAX, Found, ObjectClient

#: Keys that one LIST gives.
LIST_KEYS_MAX: Final = 1000


class Place:
    """`client`'s bucket below `prefix`."""

    def __init__(self, client: ObjectClient, prefix: str) -> None:
        self.client = client
        self._prefix = f"{prefix}/" if prefix else ""

    async def get(self, name: str, *, offset: int = 0, size: int | None = None) -> Found:
        return await self.client.get(self._prefix + name, offset=offset, size=size)

    async def put(
        self, name: str, pieces: Sequence[bytes], *, if_absent: bool = False, if_etag: str | None = None
    ) -> str:
        return await self.client.put(self._prefix + name, pieces, if_absent=if_absent, if_etag=if_etag)

    async def delete(self, names: Sequence[str]) -> None:
        for first in range(0, len(names), DELETE_KEYS_MAX):
            await self.client.delete([self._prefix + name for name in names[first : first + DELETE_KEYS_MAX]])

    async def names(self, beginning: str = "", *, behind: str = "", limit: int | None = None) -> list[str]:
        """The names that begin so and come after `behind`, in order; all of them without `limit`."""
        found: list[str] = []
        while limit is None or len(found) < limit:
            most = LIST_KEYS_MAX if limit is None else min(LIST_KEYS_MAX, limit - len(found))
            last = found[-1] if found else behind
            after = self._prefix + last if last else ""
            keys = await self.client.list(self._prefix + beginning, after=after, limit=most)
            found += [key[len(self._prefix) :] for key in keys]
            if len(keys) < most:
                break
        return found

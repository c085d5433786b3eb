"""The few calls that the backend needs of an object store, whoever carries them out.

It must not know what the objects mean, nor any driver. A client retries what may be retried, with back-off, until
its deadline, and maps every driver error to one of ours.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hypercore.errors import StorageError, StorageMissingError

#: One DELETE request of S3 takes so many keys.
DELETE_KEYS_MAX: Final = 1000


class ObjectMissingError(StorageMissingError):
    """There is no object of this key, or no such bucket."""


class ConditionFailedError(StorageError):
    """A conditional PUT was refused: the key exists already, or its object is another one by now.

    When a retry follows a try whose answer was lost, the object that is in the way may be the one that was put.
    """


class AccessDeniedError(StorageError, PermissionError):
    """The credentials do not allow the request; the message says which permission it needs.

    `action` is that permission. `may_be_missing`: the object may as well not exist, because S3 does not say that to
    those who may not list the bucket.
    """

    def __init__(self, message: str, *, action: str = "", may_be_missing: bool = False) -> None:
        super().__init__(message)
        self.action = action
        self.may_be_missing = may_be_missing


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Bytes of an object, and what the server says about it."""

    data: bytes
    etag: str
    #: Bytes in the whole object.
    size: int
    #: How long ago it was put, by the server's own clock (to the second).
    age_seconds: float


@dataclass(slots=True)
class RequestCounts:
    """What was asked of the store so far: requests that left this machine (retries count), and bytes of bodies."""

    gets: int = 0
    puts: int = 0
    lists: int = 0
    deletes: int = 0
    bytes_got: int = 0
    bytes_put: int = 0

    @property
    def requests(self) -> int:
        return self.gets + self.puts + self.lists + self.deletes


class ObjectClient(ABC):
    """One bucket of an object store. Keys are whole; the client adds no prefix.

    Every call may raise `StorageError` (deadline passed, server out of order), `AccessDeniedError`, and
    `ClosedError` after `aclose`.
    """

    #: What is written to, for messages and for remembering what was found out about it: endpoint and bucket.
    place: str = ""
    #: False when objects can only be read.
    writable: bool = True

    def __init__(self) -> None:
        self.counts = RequestCounts()

    @abstractmethod
    async def get(self, key: str, *, offset: int = 0, size: int | None = None) -> Found:
        """`size` bytes from `offset` on, fewer at the end of the object; all the rest without `size`.

        `offset` at or past the end gives no bytes. Raises `ObjectMissingError`.
        """

    @abstractmethod
    async def put(
        self, key: str, pieces: Sequence[bytes], *, if_absent: bool = False, if_etag: str | None = None
    ) -> str:
        """Put the pieces as one object, whole or not at all, and return its ETag.

        `if_absent`: only when the key does not exist; `if_etag`: only when its object has this ETag. Raises
        `ConditionFailedError`, and when it does not know whether the object was put, `StorageError`.
        """

    @abstractmethod
    async def delete(self, keys: Sequence[str]) -> None:
        """Remove the objects; those that are missing are fine."""

    @abstractmethod
    async def list(self, prefix: str, *, after: str = "", limit: int = 1000) -> list[str]:
        """The first `limit` keys that begin with `prefix` and come after `after`, in order."""

    @abstractmethod
    async def aclose(self) -> None:
        """Let go of connections and threads. Twice is fine."""

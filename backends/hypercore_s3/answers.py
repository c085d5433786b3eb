"""What the answers of an object store mean, whichever client got them.

It must not know any driver: statuses, codes and headers go in, our errors come out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Final

from hypercore.errors import StorageError
from hypercore_s3.objects import AccessDeniedError, ConditionFailedError, ObjectMissingError

#: What is read whole without saying how large it may be. The backend's own objects have half of it at most.
WHOLE_BYTES_MAX: Final = 64 << 20

#: Statuses that may be others the next time.
RETRIED_STATUSES: Final = frozenset((408, 429, 500, 502, 503, 504))
#: Codes that say so whatever status they come with (400 and 409, as a rule).
RETRIED_CODES: Final = frozenset(
    (
        "ConditionalRequestConflict",
        "InternalError",
        "OperationAborted",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
    )
)

_ACTIONS: Final = {"get": "s3:GetObject", "put": "s3:PutObject", "delete": "s3:DeleteObject", "list": "s3:ListBucket"}
#: An answer with one of these is about who asks, not about what is asked.
_IDENTITY_CODES: Final = frozenset(
    ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "RequestTimeTooSkewed")
)
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")


class TryAgainError(Exception):
    """A try failed in a way that the next one need not; `answered`: there is a server, and it said so."""

    def __init__(self, message: str, *, answered: bool = False) -> None:
        super().__init__(message)
        self.answered = answered


@dataclass(frozen=True, slots=True)
class Asked:
    """One call, for messages: what was asked, of which key, in which place."""

    verb: str
    key: str
    place: str

    def __str__(self) -> str:
        return f"{self.verb} {self.key!r}"

    @property
    def action(self) -> str:
        """The permission that it needs."""
        return _ACTIONS[self.verb]


def refusal(asked: Asked, status: int, code: str = "", message: str = "") -> Exception:
    """The error for an answer that is none of 2xx: `TryAgainError`, or one for the caller."""
    said = f"{status} {code}".rstrip() + (f": {message[:500]}" if message else "")
    if code in RETRIED_CODES or status in RETRIED_STATUSES:
        return TryAgainError(said, answered=True)
    where = f"{asked.place}: {asked}"
    if code == "NoSuchBucket":
        return ObjectMissingError(
            f"{where}: the bucket does not exist ({said}). Make it first (aws s3 mb s3://NAME), or look for a "
            "spelling mistake in the address, endpoint or region"
        )
    if status == 412 or (status == 404 and asked.verb == "put"):
        # A few servers say 404 when an object that had to have a certain ETag is gone.
        return ConditionFailedError(f"{where}: its condition does not hold ({said})")
    if status == 404:
        return ObjectMissingError(f"{where}: there is no such object ({said})")
    if code in _IDENTITY_CODES:
        return AccessDeniedError(
            f"{where}: the server does not accept these credentials or this machine's clock ({said})",
            action=asked.action,
        )
    if status in (401, 403):
        hidden = asked.verb == "get"
        return AccessDeniedError(
            f"{where} was denied ({said}); it needs the permission {asked.action}"
            + (" (without s3:ListBucket a missing object is answered like this, too)" if hidden else ""),
            action=asked.action,
            may_be_missing=hidden,
        )
    return StorageError(f"{where} was refused: {said}")


def range_header(offset: int, size: int | None) -> str | None:
    """The Range that asks for these bytes; None is the whole object. A size of 0 cannot be asked for."""
    if size is None:
        return f"bytes={offset}-" if offset else None
    return f"bytes={offset}-{offset + size - 1}"


@dataclass(frozen=True, slots=True)
class Extent:
    """What an answer's head says about its body: how many bytes it has, and the whole object. None: not said."""

    size: int | None
    object_size: int | None


def extent_of(
    asked: Asked, status: int, content_range: str | None, content_length: int | None, offset: int, size: int | None
) -> Extent:
    """Hold what the head of an answer promises against what was asked. Raises `StorageError`."""
    if status == 206:
        match = _CONTENT_RANGE.fullmatch((content_range or "").strip())
        if match is None:
            raise StorageError(f"{asked.place}: {asked} came with the Content-Range {content_range!r}")
        first, last, whole = map(int, match.groups())
        end = whole if size is None else min(offset + size, whole)
        if (first, last + 1) != (offset, end) or content_length not in (None, end - offset):
            raise StorageError(
                f"{asked.place}: {asked} came with bytes {first}-{last} of {whole} ({content_length} bytes) "
                f"where {range_header(offset, size)} was asked"
            )
        extent = Extent(end - offset, whole)
    else:
        ranged = offset > 0 or size is not None
        if ranged and (offset or content_length is None or (size is not None and size < content_length)):
            raise StorageError(
                f"{asked.place} does not honour range requests: {asked}, {range_header(offset, size)} was answered "
                f"with the whole object ({content_length} bytes). It cannot hold a log"
            )
        extent = Extent(content_length, content_length)
    if extent.size is not None and extent.size > WHOLE_BYTES_MAX and size is None:
        raise StorageError(
            f"{asked.place}: {asked} would be {extent.size} bytes; without a size at most {WHOLE_BYTES_MAX} are read"
        )
    return extent


def check_body(extent: Extent, size: int) -> None:
    """A body must have the bytes that its head promised. Raises `TryAgainError`."""
    if extent.size is not None and size != extent.size:
        raise TryAgainError(f"the body ended after {size} of {extent.size} bytes", answered=True)


def age_seconds(date: str | None, put_at: datetime | None) -> float:
    """How long before `date`, the Date of an answer, the object was put; 0 when the server does not say."""
    try:
        return max(0.0, (parsedate_to_datetime(date or "") - put_at).total_seconds()) if put_at else 0.0
    except (TypeError, ValueError):
        return 0.0

"""What can be said about an S3 storage, in the query of its address or as keywords.

It must not know any driver: it is read before one is imported.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from hypercore.errors import OptionError

#: More in flight gains nothing that could be measured, and every one holds a thread and a connection.
CONNECTIONS_MAX: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Options:
    """Options of an S3 storage. What is None is found by boto3's usual chain: environment, profile, instance."""

    #: A server that speaks S3, such as `http://127.0.0.1:9000`; None is AWS, or what `AWS_ENDPOINT_URL` says.
    endpoint_url: str | None = None
    region: str | None = None
    #: A profile of the AWS configuration files.
    profile: str | None = None
    #: Whether the bucket stands in the path and not in the host name; None: it does when an `endpoint_url` is known.
    path_style: bool | None = None
    access_key: str | None = field(default=None, repr=False)
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    #: Who carries the requests: boto3 in threads, or obstore, which needs a seventh of the CPU for small ones.
    client: Literal["boto3", "obstore"] = "boto3"
    #: One try of one request that hears nothing for so long has failed.
    timeout_seconds: float = 20.0
    #: What may be tried again is tried until so long after the first try, and for 10 seconds where nothing has ever
    #: answered.
    deadline_seconds: float = 60.0
    #: Requests in flight at once; what exceeds it waits its turn.
    most_connections: int = 16
    #: A writer that has not been heard of for so long may be replaced.
    lease_seconds: float = 60.0
    #: Replace a writer that may still be alive.
    take_over: bool = False
    #: What the page cache holds at most.
    cache_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        for name in ("timeout_seconds", "deadline_seconds", "lease_seconds"):
            if not getattr(self, name) > 0:
                raise OptionError(f"an S3 storage: {name} must be more than 0, not {getattr(self, name)}")
        if not 1 <= self.most_connections <= CONNECTIONS_MAX:
            raise OptionError(
                f"an S3 storage: most_connections must be 1 to {CONNECTIONS_MAX}, not {self.most_connections}"
            )
        if self.cache_bytes < 0:
            raise OptionError(f"an S3 storage: cache_bytes must not be negative, but is {self.cache_bytes}")
        if (self.access_key is None) != (self.secret_key is None):
            raise OptionError("an S3 storage: access_key and secret_key go together; give both or neither")
        if self.session_token is not None and self.access_key is None:
            raise OptionError(
                "an S3 storage: a session_token goes with the access_key and secret_key it was issued with"
            )
        if self.endpoint_url is not None and not self.endpoint_url.startswith(("http://", "https://")):
            raise OptionError("an S3 storage: an endpoint_url begins with http:// or https://")

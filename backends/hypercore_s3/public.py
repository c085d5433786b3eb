"""A place of the S3 backend that everybody may read over the web: `https://host/bucket/prefix`.

It must not know how objects are laid out. Whoever wrote the place did so through `s3:`; here nothing can be changed,
and no credentials are sent.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Final
from urllib.parse import quote

from hypercore.errors import AddressError
from hypercore.options import build_options
from hypercore.urls import Address
from hypercore_s3.options import S3Options
from hypercore_s3.public_client import PublicClient
from hypercore_s3.storage import S3Storage

_OF: Final = "a storage in a public bucket"
_DEFAULTS: Final = S3Options()


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicOptions:
    """Options of a public place; they mean what those of `S3Options` mean."""

    timeout_seconds: float = _DEFAULTS.timeout_seconds
    deadline_seconds: float = _DEFAULTS.deadline_seconds
    most_connections: int = _DEFAULTS.most_connections
    cache_bytes: int = _DEFAULTS.cache_bytes


class _Web(PublicClient):
    """A place whose content nobody tells: without a head it looks as if there were nothing."""

    async def list(self, prefix: str, *, after: str = "", limit: int = 1000) -> list[str]:
        return []


class PublicStorage(S3Storage):
    """The place at an http or https address, for reading only. The options are those of `PublicOptions`."""

    def __init__(self, url: str, **options: object) -> None:
        chosen = build_options(PublicOptions, keywords=options, of=_OF)
        client = _Web(
            url,
            timeout_seconds=chosen.timeout_seconds,
            deadline_seconds=chosen.deadline_seconds,
            most_connections=chosen.most_connections,
        )
        super().__init__(url.rstrip("/"), client=client, **asdict(chosen))

    @staticmethod
    def title(bucket: str, prefix: str) -> str:
        """The address, as everybody knows it."""
        return bucket

    async def aclose(self) -> None:
        await super().aclose()
        await self.client.aclose()


def open_storage(address: Address, **options: object) -> PublicStorage:
    """The storage of an `https:` or `http:` address. Raises `AddressError`, `OptionError`."""
    if not address.host:
        raise AddressError(f"{str(address)!r}: a place on the web is written 'https://host/bucket/prefix'")
    chosen = build_options(PublicOptions, query=address.query, keywords=options, of=_OF)
    host = f"[{address.host}]" if ":" in address.host else address.host
    port = "" if address.port is None else f":{address.port}"
    if address.username is not None or address.password is not None:
        raise AddressError(f"{str(address)!r}: a public bucket has no user and no password")
    return PublicStorage(f"{address.scheme}://{host}{port}/{quote(address.path, safe='/~')}", **asdict(chosen))

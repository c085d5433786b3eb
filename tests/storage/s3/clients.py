"""Both clients, made as a storage makes them, for any server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from hypercore_s3.clients import make_client
from hypercore_s3.objects import ObjectClient
from hypercore_s3.options import S3Options
from tests.servers.s3 import ADMIN, Credentials

Kind = Literal["boto3", "obstore"]
KINDS: tuple[Kind, ...] = ("boto3", "obstore")


@asynccontextmanager
async def opened(
    kind: Kind,
    endpoint_url: str,
    *,
    bucket: str = "hypercore",
    who: Credentials = ADMIN,
    timeout_seconds: float = 20.0,
    deadline_seconds: float = 30.0,
    most_connections: int = 16,
) -> AsyncIterator[ObjectClient]:
    """A client of this kind, closed at the end."""
    options = S3Options(
        client=kind,
        endpoint_url=endpoint_url,
        region="us-east-1",
        access_key=who.access_key,
        secret_key=who.secret_key,
        timeout_seconds=timeout_seconds,
        deadline_seconds=deadline_seconds,
        most_connections=most_connections,
    )
    client = make_client(bucket, options)
    try:
        yield client
    finally:
        await client.aclose()

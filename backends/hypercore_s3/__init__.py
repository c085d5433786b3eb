"""The S3 backend: a core's files as immutable objects in a bucket, one conditional PUT a commit.

It must not know what the files mean. The driver (boto3) is imported when an address is first opened.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from hypercore.hookspecs import StorageProvider, hookimpl

if TYPE_CHECKING:
    from hypercore_s3.storage import S3Storage, open_storage

__all__ = ["S3Storage", "open_storage"]


def __getattr__(name: str) -> object:
    # Being found must cost next to nothing; what is behind the scheme is imported when it is first used.
    if name in __all__:
        return getattr(import_module("hypercore_s3.storage"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@hookimpl
def hypercore_storage_providers() -> list[StorageProvider]:
    """The scheme `s3`, and `https` and `http` for reading what lies in a public bucket."""
    return [
        StorageProvider(scheme=scheme, opener=f"hypercore_s3.{opener}:open_storage", summary=summary, extra="s3")
        for scheme, opener, summary in (
            ("s3", "storage", "immutable objects in a bucket of S3 or a server that speaks it"),
            ("https", "public", "a log that somebody keeps in a public bucket, read over the web"),
            ("http", "public", "the same without TLS"),
        )
    ]

"""The Redis backend: a core's files as pages in a Redis or Valkey server, one script a commit.

It must not know what the files mean. The driver (redis-py) is imported when an address is first opened.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from hypercore.hookspecs import StorageProvider, hookimpl

if TYPE_CHECKING:
    from hypercore_redis.storage import LostCommitsError, RedisOptions, RedisStorage, open_storage

__all__ = ["LostCommitsError", "RedisOptions", "RedisStorage", "open_storage"]


def __getattr__(name: str) -> object:
    # Being found must cost next to nothing; what is behind the scheme is imported when it is first used.
    if name in __all__:
        return getattr(import_module("hypercore_redis.storage"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@hookimpl
def hypercore_storage_providers() -> list[StorageProvider]:
    """The scheme `redis`; TLS is `rediss`."""
    return [
        StorageProvider(
            scheme=scheme,
            opener="hypercore_redis.storage:open_storage",
            summary=summary,
            extra="redis",
        )
        for scheme, summary in (
            ("redis", "pages in a Redis or Valkey server"),
            ("rediss", "the same over TLS"),
        )
    ]

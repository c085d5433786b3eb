"""The file backend: a folder of regular files that hypercore 10 for Node can open, and takes the same lock on.

It must not know what the files mean. Addresses: `./folder`, `/folder`, `file:folder?lock_name=primary-key`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from hypercore.hookspecs import StorageProvider, hookimpl

if TYPE_CHECKING:
    from hypercore_file.storage import FileOptions, FileStorage, open_storage

__all__ = ["FileOptions", "FileStorage", "open_storage"]


def __getattr__(name: str) -> object:
    # Being found must cost next to nothing; what is behind the scheme is imported when it is first used.
    if name in __all__:
        return getattr(import_module("hypercore_file.storage"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@hookimpl
def hypercore_storage_providers() -> list[StorageProvider]:
    """The scheme `file`, which is also that of a plain path."""
    return [
        StorageProvider(
            scheme="file",
            opener="hypercore_file.storage:open_storage",
            summary="a folder of files, as hypercore 10 for Node keeps them",
        )
    ]

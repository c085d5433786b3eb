"""The file backend: a folder of regular files that hypercore 10 for Node can open, and takes the same lock on.

It must not know what the files mean. Addresses: `./folder`, `/folder`, `file:folder?lock_name=primary-key`.
"""

from __future__ import annotations

from hypercore.hookspecs import StorageProvider, hookimpl
from hypercore_file.storage import FileOptions, FileStorage, open_storage

__all__ = ["FileOptions", "FileStorage", "open_storage"]


@hookimpl
def hypercore_storage_providers() -> list[StorageProvider]:
    """The scheme `file`, which is also that of a plain path."""
    return [
        StorageProvider(
            scheme="file",
            opener="hypercore_file:open_storage",
            summary="a folder of files, as hypercore 10 for Node keeps them",
        )
    ]

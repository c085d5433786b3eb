"""The memory backend: a storage that lives and dies with this process, and otherwise behaves exactly like files.

It must not know what the files mean. `memory:` is private to whoever opened it, `memory:name` is one place for
the whole process, which stays as long as it holds a file or somebody has it open.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from hypercore.hookspecs import StorageProvider, hookimpl

if TYPE_CHECKING:
    from hypercore_memory.storage import MemoryStorage, open_storage

__all__ = ["MemoryStorage", "open_storage"]


def __getattr__(name: str) -> object:
    # Being found must cost next to nothing; what is behind the scheme is imported when it is first used.
    if name in __all__:
        return getattr(import_module("hypercore_memory.storage"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@hookimpl
def hypercore_storage_providers() -> list[StorageProvider]:
    """The scheme `memory`."""
    return [
        StorageProvider(
            scheme="memory",
            opener="hypercore_memory.storage:open_storage",
            summary="files in the memory of this process, private or shared by name",
        )
    ]

"""The plugin: what it offers, and nothing that costs anything to import."""

from __future__ import annotations

from hypercore.hookspecs import StorageProvider, hookimpl


@hookimpl
def hypercore_storage_providers() -> list[StorageProvider]:
    """The scheme `toy`."""
    return [StorageProvider(scheme="toy", opener="hypercore_toy.storage:open_storage", summary="a dictionary of files")]

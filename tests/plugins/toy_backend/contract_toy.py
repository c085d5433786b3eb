"""The contract, for the toy: run by tests/plugins/test_toy_backend.py where the toy is installed."""

from __future__ import annotations

import itertools

from hypercore.plugins import open_storage
from hypercore.storage import Storage
from hypercore.testing import StorageContract

_numbers = itertools.count()


class TestToyStorage(StorageContract):
    gap_bytes = 1 << 20

    async def make_storage(self) -> Storage:
        return open_storage(f"toy:{next(_numbers)}?quota_bytes=4096")

    async def reopen(self, storage: Storage) -> Storage:
        return open_storage(str(storage), quota_bytes=8192)

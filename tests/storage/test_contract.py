"""Every backend that ships here, and every wrapper that is not told to break anything, keeps the contract."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hypercore.storage import Storage
from hypercore.testing import CrashStorage, FaultyStorage, LatencyStorage, StorageContract
from hypercore_file import FileStorage
from hypercore_memory import MemoryStorage

_numbers = itertools.count()


class TestMemoryStorage(StorageContract):
    async def make_storage(self) -> Storage:
        return MemoryStorage(f"contract-{next(_numbers)}")

    async def reopen(self, storage: Storage) -> Storage:
        return MemoryStorage(str(storage).removeprefix("memory:"))


class TestFileStorage(StorageContract):
    @pytest.fixture(autouse=True)
    def _folder(self) -> Iterator[None]:
        with tempfile.TemporaryDirectory() as folder:
            self.root = Path(folder)
            yield

    async def make_storage(self) -> Storage:
        return FileStorage(self.root / "new" / f"place-{next(_numbers)}")

    async def reopen(self, storage: Storage) -> Storage:
        return FileStorage(str(storage))


class _Wrapped(StorageContract):
    gap_bytes = 1 << 20

    def wrap(self, inner: Storage) -> Storage:
        raise NotImplementedError

    async def make_storage(self) -> Storage:
        return self.wrap(MemoryStorage(f"contract-{next(_numbers)}"))

    async def reopen(self, storage: Storage) -> Storage:
        assert isinstance(storage, CrashStorage | FaultyStorage | LatencyStorage)
        return self.wrap(MemoryStorage(str(storage.inner).removeprefix("memory:")))


class TestFaultyStorage(_Wrapped):
    def wrap(self, inner: Storage) -> Storage:
        return FaultyStorage(inner)


class TestCrashStorage(_Wrapped):
    def wrap(self, inner: Storage) -> Storage:
        return CrashStorage(inner)


class TestLatencyStorage(_Wrapped):
    def wrap(self, inner: Storage) -> Storage:
        return LatencyStorage(inner, seconds=0)

"""An S3 storage keeps the contract, in memory and on real servers."""

from __future__ import annotations

from hypercore.storage import Storage
from hypercore.testing import StorageContract
from hypercore_s3.storage import S3Storage
from tests.storage.s3.fake_client import Bucket, FakeClient


class TestInMemory(StorageContract):
    async def make_storage(self) -> Storage:
        return S3Storage("bucket", "some/prefix", client=FakeClient(Bucket()))

    async def reopen(self, storage: Storage) -> Storage:
        assert isinstance(storage, S3Storage)
        assert isinstance(storage.client, FakeClient)
        return S3Storage("bucket", "some/prefix", client=FakeClient(storage.client.bucket))

    async def replace_writer(self, storage: Storage) -> Storage:
        assert isinstance(storage, S3Storage)
        assert isinstance(storage.client, FakeClient)
        return S3Storage("bucket", "some/prefix", client=FakeClient(storage.client.bucket), take_over=True)

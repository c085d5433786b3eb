"""An S3 storage keeps the contract: in memory, and on real servers with both clients."""

from __future__ import annotations

from hypercore.storage import Storage
from hypercore.testing import StorageContract
from hypercore_s3.storage import S3Storage
from tests.servers.s3 import S3Server, moto, new_prefix, seaweedfs
from tests.storage.s3.fake_client import Bucket, FakeClient


class TestInMemory(StorageContract):
    histories = 20

    async def make_storage(self) -> Storage:
        return S3Storage("bucket", "some/prefix", client=FakeClient(Bucket()))

    async def reopen(self, storage: Storage) -> Storage:
        return self._again_at(storage)

    async def replace_writer(self, storage: Storage) -> Storage:
        return self._again_at(storage, take_over=True)

    def _again_at(self, storage: Storage, **options: object) -> Storage:
        assert isinstance(storage, S3Storage)
        assert isinstance(storage.client, FakeClient)
        return S3Storage("bucket", "some/prefix", client=FakeClient(storage.client.bucket), **options)


class _OnServer(StorageContract):
    histories = 1
    history_length = 60
    client = "boto3"

    def server(self) -> S3Server:
        raise NotImplementedError

    async def make_storage(self) -> Storage:
        return self._at(new_prefix())

    async def reopen(self, storage: Storage) -> Storage:
        return self._at(str(storage).rpartition("/")[2])

    async def replace_writer(self, storage: Storage) -> Storage:
        return self._at(str(storage).rpartition("/")[2], take_over=True)

    def _at(self, prefix: str, **options: object) -> Storage:
        server = self.server()
        return S3Storage(
            server.bucket,
            prefix,
            endpoint_url=server.endpoint_url,
            region="us-east-1",
            access_key=server.admin.access_key,
            secret_key=server.admin.secret_key,
            client=self.client,
            **options,
        )


class TestOnMoto(_OnServer):
    def server(self) -> S3Server:
        return moto()


class TestOnSeaweedFS(_OnServer):
    def server(self) -> S3Server:
        return seaweedfs()


class TestOnSeaweedFSThroughObstore(TestOnSeaweedFS):
    client = "obstore"

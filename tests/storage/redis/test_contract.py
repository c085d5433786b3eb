"""The Redis backend keeps the contract, on two different servers and in every way to reach them."""

from __future__ import annotations

import itertools

from hypercore.plugins import open_storage
from hypercore.storage import Storage
from hypercore.testing import StorageContract
from tests.servers.redis import Kind, shared_server

_numbers = itertools.count()


class _OnServer(StorageContract):
    kind: Kind
    unix = True

    async def make_storage(self) -> Storage:
        address = shared_server(self.kind).address(
            unix=self.unix, prefix=f"contract-{type(self).__name__}-{next(_numbers)}"
        )
        return open_storage(address)

    async def reopen(self, storage: Storage) -> Storage:
        return open_storage(str(storage))

    async def replace_writer(self, storage: Storage) -> Storage | None:
        return open_storage(str(storage), take_over=True)


class TestRedis(_OnServer):
    kind = "redis"


class TestValkey(_OnServer):
    kind = "valkey"


class TestRedisOverTcp(_OnServer):
    kind = "redis"
    unix = False

"""A program with a swarm and a core of 100 blocks, for tests of two processes. Reads its orders from standard input.

The first line is JSON: `seed` of its key pair and its core, `listen`, `peers`, and `gated` if its dials are to wait for
a `go` each. Then: `go`, `cut` (its connections), `look` (prints them).
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from hypercore import Hypercore, KeyPair, Swarm
from hypercore import dialling as dialling_module
from hypercore import swarm as swarm_module
from hypercore.plugins import open_transport
from hypercore.transport import ByteStream, Listener, Transport


def say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


class Gate(Transport):
    def __init__(self) -> None:
        self._inner = open_transport("tcp:")
        #: Dials that were let through and have come to a stream.
        self.dials = 0
        self.goes = asyncio.Semaphore(0)

    async def connect(self, address: str, *, timeout_seconds: float = 10.0) -> ByteStream:
        say(dialling=self.dials)
        await self.goes.acquire()
        stream = await self._inner.connect(address, timeout_seconds=timeout_seconds)
        self.dials += 1
        return stream

    async def listen(self, address: str) -> Listener:
        return await self._inner.listen(address)


async def main() -> None:
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    options = json.loads(await orders.readline())
    gate = Gate()
    if options.get("gated"):
        dialling_module.FIRST_RETRY_SECONDS = 0.0  # type: ignore[misc]
        setattr(swarm_module, "open_transport", lambda _: gate)  # noqa: B010
    key_pair = KeyPair.from_seed(bytes([options["seed"]]) * 32)
    listen = [options["listen"]] if "listen" in options else []
    async with Hypercore("memory:", key_pair=key_pair) as core:
        await core.append([b"block %d" % index for index in range(100)])
        async with Swarm(*listen, peers=options["peers"], key_pair=key_pair) as swarm:
            swarm.join(core)
            say(key=core.key.hex(), addresses=swarm.addresses)
            while order := (await orders.readline()).decode().strip():
                match order:
                    case "go":
                        gate.goes.release()
                    case "cut":
                        for connection in swarm.connections():
                            connection.abort()
                    case "look":
                        hashes = [each.handshake_hash.hex() for each in swarm.connections()]
                        say(connections=hashes, counts=[gate.dials, len(swarm._connections)])


asyncio.run(main())

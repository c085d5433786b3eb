"""Connects cores of one process, and tells when something has come true."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from hypercore.core import Hypercore
from hypercore.duplex import stream_pair
from hypercore.session import Replication
from hypercore.transport import ByteStream


class Link:
    """A connection between two cores; `cut` ends it without a goodbye."""

    def __init__(
        self,
        left: Hypercore,
        right: Hypercore,
        *,
        left_is_initiator: bool = True,
        wrap: Callable[[ByteStream], ByteStream] = lambda stream: stream,
    ) -> None:
        self.streams = [wrap(stream) for stream in stream_pair()]
        self.left: Replication = left.replicate(self.streams[0], initiator=left_is_initiator)
        self.right: Replication = right.replicate(self.streams[1], initiator=not left_is_initiator)

    async def opened(self) -> Link:
        await self.left.opened()
        await self.right.opened()
        return self

    async def cut(self) -> None:
        for stream in self.streams:
            await stream.aclose()
        await self.left.wait_closed()
        await self.right.wait_closed()


async def link(left: Hypercore, right: Hypercore, *, left_is_initiator: bool = True) -> Link:
    return await Link(left, right, left_is_initiator=left_is_initiator).opened()


async def eventually(is_true: Callable[[], bool]) -> None:
    """Let the loop turn until something holds; the test's own time limit ends it otherwise."""
    while not is_true():  # noqa: ASYNC110 - what is looked at are plain attributes
        await asyncio.sleep(0.001)

"""Serving one peer of one core: its requests and wants become answers (wire spec, sections 5.3 and 5.8).

Shell floor: reads the log, queues messages on a channel. What waits is bounded, and answers are made only as fast as
the peer takes them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import accumulate, chain, islice
from typing import Final

from hypercore.errors import (
    BlockNotAvailableError,
    CorruptError,
    ProofNotHeldError,
    ProofRequestError,
    ProtocolError,
)
from hypercore.log.engine import Log
from hypercore.protocol import messages
from hypercore.protocol.remote import WANT_REGION_BLOCKS

REASON_NOT_AVAILABLE: Final = 1
REASON_INVALID_REQUEST: Final = 2

#: Requests of one peer that wait for an answer; the next ones get noData. Others hold at most 512 in flight.
MOST_WAITING_REQUESTS: Final = 1024
#: `want` regions of one peer that wait for an answer; further ones are dropped, the peer asks again when it needs to.
MOST_WAITING_WANTS: Final = 64
#: Where every read is a round trip, so many answers are made at once, as far as their blocks fit into so many bytes:
#: 64 KiB blocks at 30 ms a trip come at 130 MB/s.
MOST_ANSWERS_AT_ONCE: Final = 64
ANSWER_BYTES_AT_ONCE: Final = 8 * 1024 * 1024
#: Requests that cannot be answered by anyone (out of bounds) before the peer loses its connection.
MOST_INVALID_REQUESTS: Final = 64


class Server:
    """Answers one peer. `send` queues a message on the peer's channel, `warn` tells of damage found here."""

    def __init__(self, log: Log, send: Callable[[messages.Message], None], warn: Callable[[str], None]) -> None:
        self._log = log
        self._send = send
        self._warn = warn
        self._urgent: dict[int, messages.Request] = {}
        self._normal: dict[int, messages.Request] = {}
        self._wants: dict[tuple[int, int, bool], None] = {}
        #: The requests that answers are being made for, unless they were cancelled.
        self._answering: dict[int, messages.Request] = {}
        self._invalid_requests = 0
        self.blocks_sent = 0
        self.bytes_sent = 0

    @property
    def has_work(self) -> bool:
        return bool(self._normal or self._urgent or self._wants)

    def take_request(self, request: messages.Request) -> bool:
        """Queue a request, in the place of one with its id that waits; False when too many wait already."""
        self.cancel(request.id)
        if len(self._urgent) + len(self._normal) >= MOST_WAITING_REQUESTS:
            self._send(messages.NoData(request.id, REASON_NOT_AVAILABLE))
            return False
        queue = self._urgent if request.priority else self._normal
        queue[request.id] = request
        return True

    def cancel(self, request_id: int) -> None:
        """Forget a request; one that was answered already or never came is nobody's fault."""
        self._urgent.pop(request_id, None)
        self._normal.pop(request_id, None)
        self._answering.pop(request_id, None)

    def take_want(self, want: messages.Want) -> None:
        """Queue the question what is held in a region."""
        if len(self._wants) < MOST_WAITING_WANTS:
            self._wants[want.start, want.length, want.any] = None

    def tell(self, start: int, end: int) -> None:
        """Answer unasked what is held in the regions of [start, end)."""
        for region in range(start // WANT_REGION_BLOCKS, -(-end // WANT_REGION_BLOCKS)):
            self._wants[region * WANT_REGION_BLOCKS, WANT_REGION_BLOCKS, False] = None

    async def answer_some(self) -> None:
        """Answer what waits first, and where that takes a round trip, what waits next as well."""
        if self._wants:
            want = next(iter(self._wants))
            del self._wants[want]
            self._answer_want(*want)
        elif self._log.storage.distant:
            await self._answer_together()
        else:
            request = next(iter((self._urgent or self._normal).values()))
            self._begin(request)
            self._deliver(request, await self._prove(request))

    async def _answer_together(self) -> None:
        waiting = list(islice(chain(self._urgent.values(), self._normal.values()), MOST_ANSWERS_AT_ONCE))
        count = await self._count_that_fits(waiting)
        # Some may have been cancelled meanwhile.
        requests = [request for request in waiting[:count] if self._begin(request)]
        answers = await asyncio.gather(*map(self._prove, requests), return_exceptions=True)
        for request, answer in zip(requests, answers, strict=True):
            if isinstance(answer, BaseException):
                raise answer
            self._deliver(request, answer)

    async def _count_that_fits(self, requests: Sequence[messages.Request]) -> int:
        """How many of the requests to answer at once, at least one. The leaves are needed for the answers anyway."""
        blocks = [request.proof.block for request in requests]
        leaves = [2 * block.index if block is not None and block.index < self._log.length else 0 for block in blocks]
        nodes = await self._log.nodes(leaves) if self._log.length else []
        sizes = accumulate(0 if node is None else node.size for node in nodes)
        return max(1, sum(size <= ANSWER_BYTES_AT_ONCE for size in sizes))

    def _begin(self, request: messages.Request) -> bool:
        """Take a request out of its queue; whether it still was in it."""
        queue = self._urgent if self._urgent.get(request.id) is request else self._normal
        if queue.get(request.id) is not request:
            return False
        del queue[request.id]
        self._answering[request.id] = request
        return True

    def _deliver(self, request: messages.Request, answer: tuple[messages.Message, ...]) -> None:
        if self._answering.get(request.id) is not request:
            return  # It was cancelled, or asked anew.
        del self._answering[request.id]
        for message in answer:
            self._send(message)
            if type(message) is messages.Data and message.proof.block is not None:
                self.blocks_sent += 1
                self.bytes_sent += len(message.proof.block.value)

    async def _prove(self, request: messages.Request) -> tuple[messages.Message, ...]:
        try:
            return (messages.Data(request.id, await self._log.prove(request.proof)),)
        except BlockNotAvailableError:
            return self._refusal(request)
        except CorruptError as error:
            what = "the tree" if error.index is None else f"block {error.index}"
            self._warn(f"{what} is damaged here and was not served: {error}")
            return self._refusal(request)
        except ProofNotHeldError:
            return self._refusal(request, REASON_INVALID_REQUEST)
        except ProofRequestError as error:
            self._invalid_requests += 1
            if self._invalid_requests >= MOST_INVALID_REQUESTS:
                raise ProtocolError(f"{self._invalid_requests} requests that nobody can answer: {error}") from error
            return (messages.NoData(request.id, REASON_INVALID_REQUEST),)

    def _refusal(self, request: messages.Request, reason: int = REASON_NOT_AVAILABLE) -> tuple[messages.Message, ...]:
        refusal = messages.NoData(request.id, reason)
        block = request.proof.block
        if block is None or request.proof.fork != self._log.fork:
            return (refusal,)
        # The peer believes that it can have the block; without the drop it would ask again at once.
        return messages.Range(True, block.index, 1), refusal

    def _answer_want(self, start: int, length: int, any_: bool) -> None:
        log, send = self._log, self._send
        contiguous = log.contiguous_length
        end = min(start + length, log.length)
        if start >= end or length > WANT_REGION_BLOCKS:
            return
        if end <= contiguous:
            send(messages.Range(False, 0, contiguous))
            return
        if any_:
            found = log.bitfield.first_set(start, end)
            if found is not None:
                send(messages.Range(False, 0, contiguous) if found < contiguous else messages.Range(False, found, 1))
            return
        first = start - start % 32
        last = -(-end // 32) * 32
        while first < last:
            stop = min(last, (first // WANT_REGION_BLOCKS + 1) * WANT_REGION_BLOCKS)
            send(messages.Bitfield(first, log.bitfield.words(first, stop - first)))
            first = stop

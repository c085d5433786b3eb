"""Transports that each break one promise, made from pipes, for the test that the contract catches them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import ClassVar

from hypercore.errors import ConnectError, PeerClosedError, StreamClosedError
from hypercore.testing import TransportContract
from hypercore.transport import ByteStream, Discovery, Listener, Transport
from hypercore_pipe import PipeTransport


class Stream(ByteStream):
    """A stream that passes everything on; the broken ones override one method."""

    def __init__(self, inner: ByteStream) -> None:
        self.inner = inner

    async def receive(self) -> bytes:
        return await self.inner.receive()

    async def send(self, data: bytes) -> None:
        await self.inner.send(data)

    async def aclose(self) -> None:
        await self.inner.aclose()

    def abort(self) -> None:
        self.inner.abort()

    @property
    def remote_address(self) -> str:
        return self.inner.remote_address


class BrokenListener(Listener):
    def __init__(self, inner: Listener, stream: type[Stream]) -> None:
        self.inner = inner
        self.stream = stream

    @property
    def addresses(self) -> Sequence[str]:
        return self.inner.addresses

    async def accept(self) -> ByteStream:
        return self.stream(await self.inner.accept())

    async def aclose(self) -> None:
        await self.inner.aclose()


class BrokenTransport(Transport):
    stream: ClassVar[type[Stream]] = Stream
    listener: ClassVar[type[BrokenListener]] = BrokenListener

    def __init__(self) -> None:
        self.inner = PipeTransport()

    async def connect(self, address: str, *, timeout_seconds: float = 10.0) -> ByteStream:
        return self.stream(await self.inner.connect(address, timeout_seconds=timeout_seconds))

    async def listen(self, address: str) -> Listener:
        return self.listener(await self.inner.listen(address), self.stream)


class BrokenContract(TransportContract):
    """The contract for one broken transport; not collected, because it is run by the test itself."""

    #: Some of the broken transports hang, and each test waits this long for them.
    timeout_seconds = 1.0
    transport: type[Transport] = BrokenTransport

    def make_transport(self) -> Transport:
        return self.transport()

    def listen_address(self) -> str:
        return "pipe:"


def of_stream(kind: type[Stream]) -> type[Transport]:
    return type(kind.__name__, (BrokenTransport,), {"stream": kind})


def of_listener(kind: type[BrokenListener]) -> type[Transport]:
    return type(kind.__name__, (BrokenTransport,), {"listener": kind})


# ---- bytes ----


class SwapsMessages(Stream):
    held: bytes | None = None

    async def send(self, data: bytes) -> None:
        if self.held is None and len(data) > 5000:
            self.held = data
            return
        await self.inner.send(data)
        if self.held is not None:
            held, self.held = self.held, None
            await self.inner.send(held)


class DropsTheEndOfLargeMessages(Stream):
    async def send(self, data: bytes) -> None:
        await self.inner.send(data if len(data) < 1_000_000 else data[:1_000_000] + bytes(len(data) - 1_000_000))


class HoldsSmallMessagesBack(Stream):
    held = b""

    async def send(self, data: bytes) -> None:
        self.held += data
        if len(self.held) >= 1000:
            held, self.held = self.held, b""
            await self.inner.send(held)


class GivesEmptyMessages(Stream):
    """An empty send arrives as an empty receive, which means the end."""

    held = b""

    async def send(self, data: bytes) -> None:
        await self.inner.send(data or b"\0")

    async def receive(self) -> bytes:
        data = self.held or await self.inner.receive()
        self.held = data[1:] if data.startswith(b"\0") else b""
        return b"" if data.startswith(b"\0") else data


class GivesBytearrays(Stream):
    async def receive(self) -> bytes:
        return bytearray(await self.inner.receive())  # type: ignore[return-value]


class OneDirectionAtATime(Stream):
    def __init__(self, inner: ByteStream) -> None:
        super().__init__(inner)
        self.turn = asyncio.Lock()

    async def receive(self) -> bytes:
        async with self.turn:
            return await self.inner.receive()

    async def send(self, data: bytes) -> None:
        async with self.turn:
            await self.inner.send(data)


# ---- back-pressure and ends ----


class BuffersWithoutBound(Stream):
    def __init__(self, inner: ByteStream) -> None:
        super().__init__(inner)
        self.queue: asyncio.Queue[bytes] = asyncio.Queue()
        self.pump: asyncio.Task[None] | None = None

    async def _pump(self) -> None:
        while True:
            await self.inner.send(await self.queue.get())

    async def send(self, data: bytes) -> None:
        if self.pump is None:
            self.pump = asyncio.ensure_future(self._pump())
        self.queue.put_nowait(data)

    async def aclose(self) -> None:
        if self.pump is not None:
            self.pump.cancel()
        await self.inner.aclose()


class RaisesAtTheEnd(Stream):
    async def receive(self) -> bytes:
        data = await self.inner.receive()
        if not data:
            raise PeerClosedError("the peer has finished")
        return data


class EndsOnce(Stream):
    ended = False

    async def receive(self) -> bytes:
        if self.ended:
            await asyncio.get_running_loop().create_future()
        data = await self.inner.receive()
        self.ended = not data
        return data


class ForgetsWhatIsOnItsWay(Stream):
    """The last message is still with the sender when it closes, and then gone, as after a reset."""

    last = b""

    async def send(self, data: bytes) -> None:
        await self.inner.send(self.last)
        self.last = data
        if len(data) < 1000:
            await self.inner.send(data)
            self.last = b""


class SwallowsSendsToAClosedPeer(Stream):
    async def send(self, data: bytes) -> None:
        try:
            await self.inner.send(data)
        except PeerClosedError:
            await asyncio.sleep(0)


class LosesUnreadBytesWhenASendFails(Stream):
    failed = False

    async def send(self, data: bytes) -> None:
        try:
            await self.inner.send(data)
        except PeerClosedError:
            self.failed = True
            raise

    async def receive(self) -> bytes:
        return b"" if self.failed else await self.inner.receive()


# ---- our own close ----


class LeavesReceiversWaiting(Stream):
    async def receive(self) -> bytes:
        try:
            return await self.inner.receive()
        except StreamClosedError:
            return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]


class EndsInsteadOfClosed(Stream):
    async def receive(self) -> bytes:
        try:
            return await self.inner.receive()
        except StreamClosedError:
            return b""


class ClosesOnce(Stream):
    closed = False

    async def aclose(self) -> None:
        if self.closed:
            raise StreamClosedError("it is closed")
        self.closed = True
        await self.inner.aclose()


class SendsAfterItsClose(Stream):
    async def send(self, data: bytes) -> None:
        try:
            await self.inner.send(data)
        except StreamClosedError:
            await asyncio.sleep(0)


class AbortsLater(Stream):
    """An abort that waits as a close does, for a peer who does not read."""

    def abort(self) -> None:
        self.closing = asyncio.ensure_future(self.wait_and_close())

    async def wait_and_close(self) -> None:
        await asyncio.get_running_loop().create_future()


class AbortsWithoutTheEnd(Stream):
    """The peer never hears of the abort."""

    aborted = False

    def abort(self) -> None:
        self.aborted = True

    async def receive(self) -> bytes:
        if self.aborted:
            raise StreamClosedError("it was aborted")
        return await super().receive()

    async def send(self, data: bytes) -> None:
        if self.aborted:
            raise StreamClosedError("it was aborted")
        await super().send(data)


class ClosesWhenThePeerDoes(Stream):
    """A close that waits for the peer, whatever happens meanwhile."""

    async def aclose(self) -> None:
        await self.inner.aclose()
        await asyncio.get_running_loop().create_future()


class StaysOpenAfterItsContext(Stream):
    async def __aexit__(self, *_: object) -> None:
        pass


class LosesBytesOfCancelledReceives(Stream):
    async def receive(self) -> bytes:
        data = await self.inner.receive()
        await asyncio.sleep(0)
        return data


# ---- listeners and dialing ----


class LosesEarlyBytes(BrokenListener):
    async def accept(self) -> ByteStream:
        stream = await super().accept()
        with suppress(TimeoutError):
            async with asyncio.timeout(0):
                await stream.receive()
        return stream


class MixesStreams(BrokenListener):
    """Every two accepted streams send to each other's peers."""

    alone: ByteStream | None = None

    async def accept(self) -> ByteStream:
        stream = await super().accept()
        if self.alone is None:
            self.alone = stream
        else:
            stream.send, self.alone.send = self.alone.send, stream.send  # type: ignore[method-assign]
            self.alone = None
        return stream


class LosesStreamsOfCancelledAccepts(BrokenListener):
    async def accept(self) -> ByteStream:
        stream = await super().accept()
        await asyncio.sleep(0)
        return stream


class TakesItsStreamsAlong(BrokenListener):
    def __init__(self, inner: Listener, stream: type[Stream]) -> None:
        super().__init__(inner, stream)
        self.accepted: list[ByteStream] = []

    async def accept(self) -> ByteStream:
        self.accepted.append(await super().accept())
        return self.accepted[-1]

    async def aclose(self) -> None:
        await super().aclose()
        for stream in self.accepted:
            await stream.aclose()


class LeavesAcceptorsWaiting(BrokenListener):
    async def accept(self) -> ByteStream:
        try:
            return await super().accept()
        except StreamClosedError:
            return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]


class TellsTheAddressItWasGiven(BrokenListener):
    @property
    def addresses(self) -> Sequence[str]:
        return (*self.inner.addresses, "pipe:")


class AcceptsWithoutBound(BrokenListener):
    """Takes every stream from the queue at once, into one of its own."""

    def __init__(self, inner: Listener, stream: type[Stream]) -> None:
        super().__init__(inner, stream)
        self.queue: asyncio.Queue[ByteStream | None] = asyncio.Queue()
        self.pump = asyncio.ensure_future(self._pump())

    async def _pump(self) -> None:
        async for stream in self.inner:
            self.queue.put_nowait(stream)
        self.queue.put_nowait(None)

    async def accept(self) -> ByteStream:
        stream = await self.queue.get()
        if stream is None:
            self.queue.put_nowait(None)
            raise StreamClosedError("it is closed")
        return stream


class RefusesWithAnOperatingSystemError(BrokenTransport):
    async def connect(self, address: str, *, timeout_seconds: float = 10.0) -> ByteStream:
        try:
            return await super().connect(address, timeout_seconds=timeout_seconds)
        except ConnectError as error:
            raise ConnectionRefusedError(111, "refused") from error


class DialsForEver(BrokenTransport):
    async def connect(self, address: str, *, timeout_seconds: float = 10.0) -> ByteStream:
        return await super().connect(address, timeout_seconds=3600.0)


class TakesAddressesOver(BrokenTransport):
    names: ClassVar[dict[str, Listener]] = {}

    async def listen(self, address: str) -> Listener:
        known = self.names.get(address)
        if known is not None:
            await known.aclose()
        listener = await super().listen(address)
        self.names[listener.addresses[0]] = listener
        return listener


class DialsAnything(BrokenTransport):
    async def connect(self, address: str, *, timeout_seconds: float = 10.0) -> ByteStream:
        if not address.startswith("pipe:"):
            raise ConnectError(f"nothing listens on {address}")
        return await super().connect(address, timeout_seconds=timeout_seconds)


class DiscoversWithAnything(BrokenTransport):
    def discovery(self) -> Discovery | None:
        return "look around"  # type: ignore[return-value]


#: What is broken, the promise that must catch it, and what it must say.
BROKEN: Sequence[tuple[type[Transport], str, str]] = (
    (of_stream(SwapsMessages), "bytes_arrive_complete_and_in_order_in_both_directions", "other bytes"),
    (of_stream(DropsTheEndOfLargeMessages), "one_large_message_arrives_whole", "damaged"),
    (of_stream(HoldsSmallMessagesBack), "one_byte_is_delivered_without_waiting_for_more", "hangs"),
    (of_stream(GivesEmptyMessages), "receive_gives_bytes_and_never_none_of_them_before_the_end", "has not finished"),
    (of_stream(GivesBytearrays), "receive_gives_bytes_and_never_none_of_them_before_the_end", "gave a bytearray"),
    (of_stream(OneDirectionAtATime), "both_directions_flow_at_once", "hangs"),
    (of_stream(BuffersWithoutBound), "a_sender_to_a_reader_that_does_not_read_stops_and_loses_nothing", "was sent"),
    (of_listener(LosesEarlyBytes), "bytes_sent_before_the_accept_are_kept", "hangs"),
    (of_stream(RaisesAtTheEnd), "after_the_last_byte_of_a_closed_peer_come_empty_bytes_every_time", "has finished"),
    (of_stream(EndsOnce), "after_the_last_byte_of_a_closed_peer_come_empty_bytes_every_time", "hangs"),
    (
        of_stream(ForgetsWhatIsOnItsWay),
        "all_that_was_sent_before_a_close_arrives_although_the_closer_left_bytes_unread",
        "0 arrived",
    ),
    (of_stream(SwallowsSendsToAClosedPeer), "send_to_a_closed_peer_says_so_and_its_bytes_stay_readable", "must raise"),
    (of_stream(SwallowsSendsToAClosedPeer), "a_waiting_send_ends_when_the_peer_closes", "must raise"),
    (
        of_stream(LosesUnreadBytesWhenASendFails),
        "send_to_a_closed_peer_says_so_and_its_bytes_stay_readable",
        "0 came after a failed send",
    ),
    (of_stream(LeavesReceiversWaiting), "a_waiting_receive_ends_when_we_close", "hangs"),
    (of_stream(EndsInsteadOfClosed), "a_waiting_receive_ends_when_we_close", "must raise StreamClosedError"),
    (of_stream(SendsAfterItsClose), "a_waiting_send_ends_when_we_close", "must raise"),
    (of_stream(ClosesOnce), "closing_twice_is_fine_and_everything_after_it_says_closed", "it is closed"),
    (of_stream(SendsAfterItsClose), "closing_twice_is_fine_and_everything_after_it_says_closed", "send after our"),
    (of_stream(EndsInsteadOfClosed), "a_stream_closes_after_its_peer_did", "must raise StreamClosedError"),
    (of_stream(AbortsLater), "an_abort_ends_a_waiting_send_although_the_peer_does_not_read", "hangs"),
    (of_stream(ClosesWhenThePeerDoes), "an_abort_ends_a_close_that_waits_for_the_peer", "hangs"),
    (of_stream(AbortsWithoutTheEnd), "the_peer_of_an_abort_sees_an_end_or_a_break", "hangs"),
    (of_stream(StaysOpenAfterItsContext), "leaving_the_context_closes", "hangs"),
    (of_stream(LosesBytesOfCancelledReceives), "a_cancelled_receive_loses_no_bytes", "hangs"),
    (of_listener(LosesStreamsOfCancelledAccepts), "a_cancelled_accept_loses_no_stream", "hangs"),
    (of_listener(TellsTheAddressItWasGiven), "every_address_of_a_listener_can_be_dialed", "no name"),
    (of_listener(MixesStreams), "many_streams_do_not_mix", "each other's"),
    (of_listener(LeavesAcceptorsWaiting), "closing_a_listener_ends_a_waiting_accept_and_every_later_one", "hangs"),
    (of_listener(LeavesAcceptorsWaiting), "iterating_a_listener_gives_streams_until_it_is_closed", "hangs"),
    (of_listener(TakesItsStreamsAlong), "streams_outlive_their_listener_and_its_address_is_free_again", "closed"),
    (of_listener(AcceptsWithoutBound), "dialing_a_listener_that_does_not_accept_times_out", "ConnectTimeoutError"),
    (TakesAddressesOver, "a_second_listener_on_an_address_is_refused", "must raise TransportError"),
    (RefusesWithAnOperatingSystemError, "dialing_where_nobody_listens_is_refused", "must raise ConnectError"),
    (DialsForEver, "dialing_a_listener_that_does_not_accept_times_out", "hangs"),
    (DialsAnything, "an_address_of_another_kind_is_refused", "must raise AddressError"),
    (DiscoversWithAnything, "discovery_is_there_or_none", "look around"),
)

"""The promises of `hypercore.transport` as tests, for anyone's transport.

Aside of the floors: it imports the promises only, and no test runner. Subclass `TransportContract` in a test
module; each of its `test_` methods is then one promise that your transport keeps:

    class TestMyTransport(TransportContract):
        def make_transport(self) -> Transport:
            return MyTransport()

        def listen_address(self) -> str:
            return "mine://127.0.0.1:0"
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from hashlib import blake2b
from random import Random
from typing import Any, TypeVar

from hypercore.errors import (
    AddressError,
    ConnectError,
    ConnectTimeoutError,
    HypercoreError,
    PeerClosedError,
    StreamBrokenError,
    StreamClosedError,
    TransportError,
)
from hypercore.transport import ByteStream, Discovery, Listener, Transport

#: A sender to a reader that does not read must stop before this: more than two kernels' largest default buffers.
BACK_PRESSURE_BOUND = 64 * 1024 * 1024
#: Streams that nobody accepts must stop being made before this many.
ACCEPT_QUEUE_BOUND = 2000
#: How long a sender is given to reach the bound above, and a dial to fail. A slow machine can make a broken
#: transport pass here, never a good one fail.
PATIENCE_SECONDS = 0.3
#: How long a task is given to get where it waits.
SETTLE_SECONDS = 0.03

_First = TypeVar("_First")
_Second = TypeVar("_Second")


class TransportContract:
    """Each `test_` method makes a transport, a listener and streams, and closes them."""

    #: Makes the event loop; None is asyncio's own. Subclass once more to prove the transport on another one.
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    #: A promise that takes longer is broken: it hangs.
    timeout_seconds: float = 60.0
    #: Decides all that is random; part of every message.
    seed: int = 1

    def make_transport(self) -> Transport:
        """A new transport."""
        raise NotImplementedError("a contract needs make_transport()")

    def listen_address(self) -> str:
        """An address on which a listener may be made at any time, as port 0 is."""
        raise NotImplementedError("a contract needs listen_address()")

    # ---- bytes ----

    def test_bytes_arrive_complete_and_in_order_in_both_directions(self) -> None:
        async def promise(one: ByteStream, other: ByteStream) -> None:
            random = Random(self.seed)
            messages = [random.randbytes(random.choice((1, 7, 100, 5000, 70_000))) for _ in range(200)]

            async def send() -> None:
                for message in messages:
                    await one.send(message)

            want = b"".join(messages)
            _, got = await _both(send(), _receive_exactly(other, len(want)))
            self._expect(got == want, "other bytes arrived than were sent")

        self._on_both_ends(promise)

    def test_one_large_message_arrives_whole(self) -> None:
        async def promise(one: ByteStream, other: ByteStream) -> None:
            message = Random(self.seed).randbytes(15 * 1024 * 1024 + 1)
            _, got = await _both(one.send(message), _receive_exactly(other, len(message)))
            self._expect(_digest(got) == _digest(message), "a message of 15 MiB arrived damaged")

        self._on_both_ends(promise)

    def test_one_byte_is_delivered_without_waiting_for_more(self) -> None:
        async def promise(one: ByteStream, other: ByteStream) -> None:
            for number in range(100):
                await one.send(bytes((number,)))
                self._expect(await other.receive() == bytes((number,)), f"byte {number} did not come alone")

        self._on_both_ends(promise)

    def test_receive_gives_bytes_and_never_none_of_them_before_the_end(self) -> None:
        async def promise(one: ByteStream, other: ByteStream) -> None:
            for message in (b"", b"a", b"", b"bc", b""):
                await one.send(message)
            got = b""
            while len(got) < 3:
                piece = await other.receive()
                self._expect(type(piece) is bytes, f"receive gave a {type(piece).__name__}, not bytes")
                self._expect(piece != b"", 'receive gave b"" although the peer has not finished')
                got += piece
            self._expect(got == b"abc", f"empty sends changed the bytes to {got!r}")

        self._on_both_ends(promise)

    def test_both_directions_flow_at_once(self) -> None:
        async def promise(one: ByteStream, other: ByteStream) -> None:
            random = Random(self.seed)
            there, back = random.randbytes(4_000_000), random.randbytes(4_000_000)
            sends = (_send_in_pieces(one, there), _send_in_pieces(other, back))
            receives = (_receive_exactly(other, len(there)), _receive_exactly(one, len(back)))
            _, _, got_there, got_back = await asyncio.gather(*sends, *receives)
            self._expect(got_there == there and got_back == back, "bytes were damaged while both ends sent")

        self._on_both_ends(promise)

    def test_bytes_sent_before_the_accept_are_kept(self) -> None:
        async def promise() -> None:
            async with self._listening() as (transport, listener):
                dialed = await transport.connect(listener.addresses[0])
                await dialed.send(b"early")
                accepted = await listener.accept()
                self._expect(await _receive_exactly(accepted, 5) == b"early", "the first bytes were lost")
                await dialed.aclose()
                await accepted.aclose()

        self._run(promise())

    # ---- back-pressure ----

    def test_a_sender_to_a_reader_that_does_not_read_stops_and_loses_nothing(self) -> None:
        async def promise(one: ByteStream, other: ByteStream) -> None:
            block = bytes(64 * 1024)
            sent_size = 0

            async def send() -> None:
                nonlocal sent_size
                while sent_size < BACK_PRESSURE_BOUND:
                    await one.send(block)
                    sent_size += len(block)

            sender = asyncio.ensure_future(send())
            await asyncio.wait((sender,), timeout=PATIENCE_SECONDS)
            self._expect(not sender.done(), f"a reader that does not read was sent {BACK_PRESSURE_BOUND} bytes")
            received_size = 0
            while received_size < BACK_PRESSURE_BOUND:
                received_size += len(await other.receive())
            await sender
            self._expect(received_size == sent_size, f"{sent_size} bytes were sent and {received_size} arrived")

        self._on_both_ends(promise)

    # ---- the peer closes ----

    def test_after_the_last_byte_of_a_closed_peer_come_empty_bytes_every_time(self) -> None:
        async def promise(one: ByteStream, other: ByteStream) -> None:
            await one.send(b"last words")
            await one.aclose()
            got = await _receive_to_end(other)
            self._expect(got == b"last words", f"the peer's last bytes arrived as {got!r}")
            for _ in range(3):
                self._expect(await other.receive() == b"", 'receive must give b"" every time after the end')

        self._on_both_ends(promise)

    def test_all_that_was_sent_before_a_close_arrives_although_the_closer_left_bytes_unread(self) -> None:
        async def promise(one: ByteStream, other: ByteStream) -> None:
            message = Random(self.seed).randbytes(3_000_000)
            await other.send(bytes(100_000))

            async def send_and_close() -> None:
                await one.send(message)
                await one.aclose()

            _, got = await _both(send_and_close(), _receive_to_end(other))
            self._expect(len(got) == len(message), f"{len(message)} bytes were sent and {len(got)} arrived")
            self._expect(got == message, "other bytes arrived than were sent")

        self._on_both_ends(promise)

    def test_send_to_a_closed_peer_says_so_and_its_bytes_stay_readable(self) -> None:
        async def promise(one: ByteStream, other: ByteStream) -> None:
            message = Random(self.seed).randbytes(50_000)
            await one.send(message)
            await one.aclose()
            await self._expect_error(PeerClosedError, _send_for_ever(other), "a send to a closed peer")
            got = await _receive_to_end(other)
            self._expect(got == message, f"of {len(message)} bytes of the peer {len(got)} came after a failed send")
            self._expect(await other.receive() == b"", 'receive must give b"" every time after the end')

        self._on_both_ends(promise)

    def test_a_waiting_send_ends_when_the_peer_closes(self) -> None:
        async def promise(one: ByteStream, other: ByteStream) -> None:
            sender = asyncio.ensure_future(_send_for_ever(one))
            await self._observe(sender)
            await other.aclose()
            await self._expect_error(PeerClosedError, sender, "a send that waited while its peer closed")

        self._on_both_ends(promise)

    # ---- we close ----

    def test_a_waiting_receive_ends_when_we_close(self) -> None:
        async def promise(one: ByteStream, other: ByteStream) -> None:
            receiver = asyncio.ensure_future(one.receive())
            await self._observe(receiver)
            await one.aclose()
            await self._expect_error(StreamClosedError, receiver, "a receive that waited while we closed")
            self._expect(await other.receive() == b"", "our peer must see the end")

        self._on_both_ends(promise)

    def test_a_waiting_send_ends_when_we_close(self) -> None:
        async def promise(one: ByteStream, other: ByteStream) -> None:
            sender = asyncio.ensure_future(_send_for_ever(one))
            await self._observe(sender)
            # The peer reads meanwhile, because a close may wait for what was sent before it.
            _, _ = await _both(one.aclose(), _receive_to_end(other))
            await self._expect_error(StreamClosedError, sender, "a send that waited while we closed")

        self._on_both_ends(promise)

    def test_closing_twice_is_fine_and_everything_after_it_says_closed(self) -> None:
        async def promise(one: ByteStream, other: ByteStream) -> None:
            await other.send(b"unread")
            await asyncio.gather(one.aclose(), one.aclose())
            await one.aclose()
            for _ in range(2):
                await self._expect_error(StreamClosedError, one.receive(), "a receive after our close")
                await self._expect_error(StreamClosedError, one.send(b"x"), "a send after our close")

        self._on_both_ends(promise)

    def test_an_abort_ends_a_waiting_send_although_the_peer_does_not_read(self) -> None:
        async def promise(one: ByteStream, other: ByteStream) -> None:
            sender = asyncio.ensure_future(_send_for_ever(one))
            await self._observe(sender)
            one.abort()
            await self._expect_error(StreamClosedError, sender, "a send that waited while we aborted")
            await one.aclose()

        self._on_both_ends(promise)

    def test_an_abort_ends_a_close_that_waits_for_the_peer(self) -> None:
        async def promise(one: ByteStream, other: ByteStream) -> None:
            sender = asyncio.ensure_future(_send_for_ever(one))
            await self._observe(sender)
            closing = asyncio.ensure_future(one.aclose())
            await self._observe(closing)
            one.abort()
            await closing
            await self._expect_error(StreamClosedError, sender, "a send that waited while we closed")

        self._on_both_ends(promise)

    def test_the_peer_of_an_abort_sees_an_end_or_a_break(self) -> None:
        async def promise(one: ByteStream, other: ByteStream) -> None:
            receiver = asyncio.ensure_future(one.receive())
            await other.send(b"")
            await self._observe(receiver)
            one.abort()
            one.abort()
            await self._expect_error(StreamClosedError, receiver, "a receive that waited while we aborted")
            await self._expect_error(StreamClosedError, one.send(b"x"), "a send after our abort")
            with suppress(StreamBrokenError):
                self._expect(await other.receive() == b"", "our peer must see the end")

        self._on_both_ends(promise)

    def test_leaving_the_context_closes(self) -> None:
        async def promise(one: ByteStream, other: ByteStream) -> None:
            async with one as entered:
                self._expect(entered is one, "a stream's context must give the stream")
            self._expect(await other.receive() == b"", "leaving the context must close the stream")

        self._on_both_ends(promise)

    def test_a_stream_closes_after_its_peer_did(self) -> None:
        async def promise(one: ByteStream, other: ByteStream) -> None:
            await one.aclose()
            await other.aclose()
            await self._expect_error(StreamClosedError, other.receive(), "a receive after both closed")

        self._on_both_ends(promise)

    # ---- cancellation ----

    def test_a_cancelled_receive_loses_no_bytes(self) -> None:
        async def promise(one: ByteStream, other: ByteStream) -> None:
            random = Random(self.seed)
            want = got = b""
            for _ in range(300):
                receiver = asyncio.ensure_future(other.receive())
                for _ in range(random.randrange(4)):
                    await asyncio.sleep(0)
                message = random.randbytes(random.randrange(1, 50))
                await one.send(message)
                want += message
                for _ in range(random.randrange(6)):
                    await asyncio.sleep(0)
                receiver.cancel()
                with suppress(asyncio.CancelledError):
                    got += await receiver
            got += await _receive_exactly(other, len(want) - len(got))
            self._expect(got == want, "cancelled receives lost or changed bytes")

        self._on_both_ends(promise)

    def test_a_cancelled_accept_loses_no_stream(self) -> None:
        async def promise() -> None:
            random = Random(self.seed)
            async with self._listening() as (transport, listener):
                dialed, accepted = [], []
                for _ in range(50):
                    acceptor = asyncio.ensure_future(listener.accept())
                    for _ in range(random.randrange(3)):
                        await asyncio.sleep(0)
                    dialed.append(await transport.connect(listener.addresses[0]))
                    for _ in range(random.randrange(6)):
                        await asyncio.sleep(0)
                    acceptor.cancel()
                    with suppress(asyncio.CancelledError):
                        accepted.append(await acceptor)
                while len(accepted) < len(dialed):
                    accepted.append(await listener.accept())
                await _close(*dialed, *accepted)

        self._run(promise())

    # ---- listeners ----

    def test_every_address_of_a_listener_can_be_dialed(self) -> None:
        async def promise() -> None:
            async with self._listening() as (transport, listener):
                self._expect(len(listener.addresses) > 0, "a listener must have an address")
                for address in listener.addresses:
                    dialed, accepted = await _both(transport.connect(address), listener.accept())
                    await dialed.send(b"hello")
                    self._expect(await _receive_exactly(accepted, 5) == b"hello", f"{address} leads elsewhere")
                    for stream in (dialed, accepted):
                        self._expect(":" in stream.remote_address, f"{stream.remote_address!r} is not an address")
                    await _close(dialed, accepted)

        self._run(promise())

    def test_many_streams_do_not_mix(self) -> None:
        async def promise() -> None:
            async with self._listening() as (transport, listener):
                dialed = await asyncio.gather(*(transport.connect(listener.addresses[0]) for _ in range(50)))
                accepted = [await listener.accept() for _ in dialed]
                random = Random(self.seed)
                messages = [bytes((number,)) + random.randbytes(20_000) for number in range(50)]

                async def echo(stream: ByteStream) -> None:
                    await stream.send(await _receive_exactly(stream, 20_001))

                sends = (_send_in_pieces(stream, message) for stream, message in zip(dialed, messages, strict=True))
                receives = (_receive_exactly(stream, 20_001) for stream in dialed)
                await asyncio.gather(*sends, *map(echo, accepted))
                self._expect(await asyncio.gather(*receives) == messages, "streams got each other's bytes")
                await _close(*dialed, *accepted)

        self._run(promise())

    def test_iterating_a_listener_gives_streams_until_it_is_closed(self) -> None:
        async def promise() -> None:
            async with self._listening() as (transport, listener):
                dialed = [await transport.connect(listener.addresses[0]) for _ in range(3)]
                accepted = []
                async for stream in listener:
                    accepted.append(stream)
                    if len(accepted) == 3:
                        await listener.aclose()
                await _close(*dialed, *accepted)

        self._run(promise())

    def test_closing_a_listener_ends_a_waiting_accept_and_every_later_one(self) -> None:
        async def promise() -> None:
            async with self._listening() as (_, listener):
                acceptor = asyncio.ensure_future(listener.accept())
                await self._observe(acceptor)
                await listener.aclose()
                await listener.aclose()
                await self._expect_error(StreamClosedError, acceptor, "an accept that waited while we closed")
                await self._expect_error(StreamClosedError, listener.accept(), "an accept after our close")

        self._run(promise())

    def test_streams_outlive_their_listener_and_its_address_is_free_again(self) -> None:
        async def promise() -> None:
            async with self._listening() as (transport, listener):
                address = listener.addresses[0]
                dialed, accepted = await _both(transport.connect(address), listener.accept())
                await listener.aclose()
                await dialed.send(b"still here")
                self._expect(await _receive_exactly(accepted, 10) == b"still here", "the stream died")
                async with await transport.listen(address) as successor:
                    self._expect(address in successor.addresses, f"{address} became {successor.addresses}")
                await _close(dialed, accepted)

        self._run(promise())

    def test_a_second_listener_on_an_address_is_refused(self) -> None:
        async def promise() -> None:
            async with self._listening() as (transport, listener):
                address = listener.addresses[0]
                await self._expect_error(TransportError, transport.listen(address), "a second listener")
                await self._expect_error(TransportError, self.make_transport().listen(address), "another's listener")

        self._run(promise())

    # ---- dialing ----

    def test_dialing_where_nobody_listens_is_refused(self) -> None:
        async def promise() -> None:
            async with self._listening() as (transport, listener):
                address = listener.addresses[0]
                await listener.aclose()
                await self._expect_error(ConnectError, transport.connect(address), "dialing a closed listener")

        self._run(promise())

    def test_dialing_a_listener_that_does_not_accept_times_out(self) -> None:
        async def promise() -> None:
            async with self._listening() as (transport, listener):
                dialed: list[ByteStream] = []

                async def dial_for_ever() -> None:
                    while len(dialed) < ACCEPT_QUEUE_BOUND:
                        timeout_seconds = PATIENCE_SECONDS
                        dialed.append(await transport.connect(listener.addresses[0], timeout_seconds=timeout_seconds))

                await self._expect_error(ConnectTimeoutError, dial_for_ever(), "dialing a listener that is full")
                await _close(*dialed)

        self._run(promise())

    def test_an_address_of_another_kind_is_refused(self) -> None:
        async def promise() -> None:
            transport = self.make_transport()
            for address in ("no-such-scheme:nothing", "", "::"):
                await self._expect_error(AddressError, transport.connect(address), f"dialing {address!r}")
                await self._expect_error(AddressError, transport.listen(address), f"listening on {address!r}")
            await transport.aclose()

        self._run(promise())

    def test_discovery_is_there_or_none(self) -> None:
        async def promise() -> None:
            transport = self.make_transport()
            discovery = transport.discovery()
            self._expect(discovery is None or isinstance(discovery, Discovery), f"discovery() gave {discovery!r}")
            await transport.aclose()

        self._run(promise())

    # ---- how ----

    def _run(self, promise: Coroutine[Any, Any, None]) -> None:
        async def bounded() -> None:
            try:
                async with asyncio.timeout(self.timeout_seconds):
                    await promise
            except TimeoutError as error:
                if isinstance(error, TransportError):
                    raise
                raise AssertionError(f"it hangs: not done after {self.timeout_seconds:g} s") from error

        with asyncio.Runner(loop_factory=self.loop_factory) as runner:
            runner.run(bounded())

    def _on_both_ends(self, promise: Callable[[ByteStream, ByteStream], Awaitable[None]]) -> None:
        """The promise, once from the end that dialed to the end that accepted, and once the other way round."""

        async def twice() -> None:
            for turned in (False, True):
                async with self._listening() as (transport, listener):
                    dialed, accepted = await _both(transport.connect(listener.addresses[0]), listener.accept())
                    await (promise(accepted, dialed) if turned else promise(dialed, accepted))
                    await _close(dialed, accepted)

        self._run(twice())

    @asynccontextmanager
    async def _listening(self) -> AsyncIterator[tuple[Transport, Listener]]:
        transport = self.make_transport()
        async with await transport.listen(self.listen_address()) as listener:
            yield transport, listener
        await transport.aclose()

    def _expect(self, holds: bool, message: str) -> None:
        if not holds:
            raise AssertionError(f"{message} (seed {self.seed})")

    async def _expect_error(self, kind: type[HypercoreError], call: Awaitable[Any], what: str) -> None:
        try:
            result = await call
        except kind:
            return
        except Exception as error:
            raise AssertionError(f"{what} must raise {kind.__name__}, and raised {error!r}") from error
        raise AssertionError(f"{what} must raise {kind.__name__}, and gave {result!r}")

    async def _observe(self, task: asyncio.Future[Any]) -> None:
        """Give the task time to get as far as it can."""
        await asyncio.wait((task,), timeout=SETTLE_SECONDS)


async def _both(first: Awaitable[_First], second: Awaitable[_Second]) -> tuple[_First, _Second]:
    return await asyncio.gather(first, second)


async def _close(*streams: ByteStream) -> None:
    await asyncio.gather(*(stream.aclose() for stream in streams))


async def _send_in_pieces(stream: ByteStream, data: bytes) -> None:
    for start in range(0, len(data), 10_000):
        await stream.send(data[start : start + 10_000])


async def _send_for_ever(stream: ByteStream) -> None:
    """Until an error. A transport whose sends neither wait nor fail would keep the loop for itself, so not quite."""
    block = bytes(64 * 1024)
    for _ in range(20_000):
        await stream.send(block)


async def _receive_exactly(stream: ByteStream, size: int) -> bytes:
    """Bytes up to `size` in all; more than that is an error of the transport, and shows as a longer result."""
    received = bytearray()
    while len(received) < size:
        piece = await stream.receive()
        if not piece:
            raise AssertionError(f'receive gave b"" after {len(received)} of {size} bytes, and nobody had closed')
        received += piece
    return bytes(received)


async def _receive_to_end(stream: ByteStream) -> bytes:
    received = bytearray()
    while piece := await stream.receive():
        received += piece
    return bytes(received)


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=32).digest()

"""What the TCP transport promises beyond the contract, on both event loops, against raw sockets."""

from __future__ import annotations

import asyncio
import resource
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

import hypercore_tcp.transport as tcp
from hypercore.errors import (
    AddressError,
    ConnectError,
    ConnectTimeoutError,
    OptionError,
    PeerClosedError,
    StreamBrokenError,
    StreamClosedError,
    TransportError,
)
from hypercore.transport import ByteStream
from hypercore.urls import parse_address
from hypercore_tcp import TcpOptions, TcpTransport, open_transport
from hypercore_tcp.addresses import dialable_addresses, format_address, host_and_port, resolve
from hypercore_tcp.stream import BUFFER_SIZE, FIRST_BUFFER_SIZE, TcpStream

Run = Callable[[Coroutine[Any, Any, None]], None]

#: A close with this linger time of zero seconds is a reset.
RESET = struct.pack("ii", 1, 0)


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a coroutine, on one loop and in another test on the other one."""

    def run(coroutine: Coroutine[Any, Any, None]) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(60):
                await coroutine
            left = asyncio.all_tasks() - {asyncio.current_task()}
            if left:
                await asyncio.wait(left, timeout=0.2)
            assert all(task.done() for task in left), f"tasks were left behind: {left}"

        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(bounded())

    return run


@asynccontextmanager
async def raw_peer(options: TcpOptions | None = None) -> AsyncIterator[tuple[TcpStream, socket.socket]]:
    """A stream that was accepted, and the plain socket that dialed it."""
    async with await TcpTransport(options).listen("tcp://127.0.0.1:0") as listener:
        peer = socket.socket()
        peer.setblocking(False)
        host, port = host_and_port(parse_address(listener.addresses[0]))
        await asyncio.get_running_loop().sock_connect(peer, (host, port))
        stream = await listener.accept()
    assert isinstance(stream, TcpStream)
    try:
        yield stream, peer
    finally:
        peer.close()
        await stream.aclose()


async def raw_receive_to_end(peer: socket.socket) -> bytes:
    received = b""
    while piece := await asyncio.get_running_loop().sock_recv(peer, 65536):
        received += piece
    return received


async def send_for_ever(stream: ByteStream) -> None:
    for _ in range(20_000):  # more than any queue holds; without an end a broken stream would keep the loop
        await stream.send(bytes(65536))


# ---- three causes, three errors ----


def test_when_the_peer_has_finished_we_may_still_send(run: Run) -> None:
    async def main() -> None:
        async with raw_peer() as (stream, peer):
            await asyncio.get_running_loop().sock_sendall(peer, b"that is all")
            peer.shutdown(socket.SHUT_WR)
            assert await stream.receive() == b"that is all"
            for _ in range(2):
                assert await stream.receive() == b""
            await stream.send(b"thank you")
            await stream.aclose()
            assert await raw_receive_to_end(peer) == b"thank you"

    run(main())


def test_a_reset_is_the_world_and_not_the_peer(run: Run) -> None:
    async def main() -> None:
        async with raw_peer() as (stream, peer):
            receiver = asyncio.ensure_future(stream.receive())
            await asyncio.sleep(0)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            peer.close()
            with pytest.raises(StreamBrokenError, match=r"the connection to tcp://127\.0\.0\.1:\d+ broke"):
                await receiver
            for _ in range(2):
                with pytest.raises(StreamBrokenError):
                    await stream.receive()
                with pytest.raises(StreamBrokenError):
                    await stream.send(b"x")

    run(main())


def test_a_reset_ends_a_waiting_send(run: Run) -> None:
    async def main() -> None:
        async with raw_peer() as (stream, peer):
            sender = asyncio.ensure_future(send_for_ever(stream))
            await asyncio.wait((sender,), timeout=0.05)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            peer.close()
            with pytest.raises(StreamBrokenError):
                await sender

    run(main())


def test_a_peer_that_closed_while_we_sent_is_no_broken_connection(run: Run) -> None:
    async def main() -> None:
        async with raw_peer() as (stream, peer):
            await asyncio.get_running_loop().sock_sendall(peer, bytes(100_000))
            # It had nothing unread, so this is a clean end; what we send then meets nobody.
            peer.close()
            with pytest.raises(PeerClosedError):
                await send_for_ever(stream)
            size = 0
            while piece := await stream.receive():
                size += len(piece)
            assert size == 100_000

    run(main())


# ---- receiving ----


def test_the_receive_buffer_grows_with_the_traffic_and_stays_bounded(run: Run) -> None:
    async def main() -> None:
        async with raw_peer() as (stream, peer):
            assert len(stream.get_buffer(-1)) == FIRST_BUFFER_SIZE
            total = 64 * BUFFER_SIZE
            sender = asyncio.ensure_future(asyncio.get_running_loop().sock_sendall(peer, bytes(total)))
            largest = 0
            while total:
                piece = await stream.receive()
                largest = max(largest, len(piece))
                total -= len(piece)
            await sender
            assert FIRST_BUFFER_SIZE < largest <= BUFFER_SIZE
            assert len(stream.get_buffer(-1)) <= BUFFER_SIZE

    run(main())


def test_neither_receive_nor_send_costs_a_task_or_a_timer() -> None:
    async def main() -> None:
        async with raw_peer() as (stream, peer):
            loop = asyncio.get_running_loop()

            async def echo() -> None:
                while piece := await loop.sock_recv(peer, 100):
                    await loop.sock_sendall(peer, piece)

            def refuse(*_: object, **__: object) -> None:
                raise AssertionError("a task or timer was made")

            echoing = asyncio.ensure_future(echo())
            names = ("create_task", "call_later", "call_at")
            saved = {name: getattr(loop, name) for name in names}
            for name in names:
                setattr(loop, name, refuse)
            for number in range(10):
                await stream.send(bytes((number,)))
                assert await stream.receive() == bytes((number,))
            for name in names:
                setattr(loop, name, saved[name])
            await stream.aclose()
            await echoing

    asyncio.run(main())


def test_a_second_task_that_receives_is_refused(run: Run) -> None:
    async def main() -> None:
        async with raw_peer() as (stream, peer):
            receiver = asyncio.ensure_future(stream.receive())
            await asyncio.sleep(0)
            with pytest.raises(TransportError, match="another task is already receiving"):
                await stream.receive()
            await asyncio.get_running_loop().sock_sendall(peer, b"for the first")
            assert await receiver == b"for the first"

    run(main())


def test_small_messages_leave_at_once(run: Run) -> None:
    async def main() -> None:
        async with await TcpTransport().listen("tcp://127.0.0.1:0") as listener:
            dialed = await TcpTransport().connect(listener.addresses[0])
            accepted = await listener.accept()
            for stream in (dialed, accepted):
                assert isinstance(stream, TcpStream)
                assert stream._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                await stream.aclose()

    run(main())


# ---- closing ----


def test_a_close_gives_up_on_a_peer_that_does_not_take_what_was_sent(run: Run) -> None:
    async def main() -> None:
        async with raw_peer(TcpOptions(close_timeout_seconds=0.05)) as (stream, peer):
            sender = asyncio.ensure_future(send_for_ever(stream))
            await asyncio.wait((sender,), timeout=0.05)
            await stream.aclose()
            with pytest.raises(StreamClosedError):
                await sender
            with pytest.raises(ConnectionResetError):
                await raw_receive_to_end(peer)

    run(main())


def test_a_close_waits_for_a_slow_peer_and_delivers_everything(run: Run) -> None:
    async def main() -> None:
        async with raw_peer() as (stream, peer):
            sender = asyncio.ensure_future(stream.send(bytes(20_000_000)))
            await asyncio.wait((sender,), timeout=0.05)
            assert not sender.done()
            closing = asyncio.ensure_future(stream.aclose())
            await asyncio.wait((closing,), timeout=0.05)
            assert not closing.done()
            assert len(await raw_receive_to_end(peer)) == 20_000_000
            await closing
            with pytest.raises(StreamClosedError):
                await sender

    run(main())


def test_a_close_delivers_everything_to_a_peer_that_first_wants_to_be_rid_of_its_own_bytes(run: Run) -> None:
    async def main() -> None:
        async with raw_peer() as (stream, peer):

            async def send_and_then_receive() -> bytes:
                await asyncio.get_running_loop().sock_sendall(peer, bytes(20_000_000))
                return await raw_receive_to_end(peer)

            exchange = asyncio.ensure_future(send_and_then_receive())
            sender = asyncio.ensure_future(stream.send(bytes(20_000_000)))
            await asyncio.wait((sender, exchange), timeout=0.05)
            assert not sender.done()
            await stream.aclose()
            assert len(await exchange) == 20_000_000
            with pytest.raises(StreamClosedError):
                await sender

    run(main())


def test_a_cancelled_close_cuts_the_connection_and_a_further_one_is_fine(run: Run) -> None:
    async def main() -> None:
        async with raw_peer() as (stream, _peer):
            sender = asyncio.ensure_future(send_for_ever(stream))
            await asyncio.wait((sender,), timeout=0.05)
            closing = asyncio.ensure_future(stream.aclose())
            await asyncio.sleep(0)
            closing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await closing
            await stream.aclose()
            with pytest.raises(StreamClosedError):
                await sender

    run(main())


def test_a_cancelled_send_has_sent_its_whole_message(run: Run) -> None:
    async def main() -> None:
        async with raw_peer() as (stream, peer):
            sender = asyncio.ensure_future(stream.send(bytes(20_000_000)))
            await asyncio.wait((sender,), timeout=0.05)
            sender.cancel()
            _, received = await asyncio.gather(stream.aclose(), raw_receive_to_end(peer))
            assert len(received) == 20_000_000

    run(main())


# ---- listening ----


def test_an_address_in_use_is_refused_and_the_message_says_what_to_do(run: Run) -> None:
    async def main() -> None:
        async with await TcpTransport().listen("tcp://127.0.0.1:0") as listener:
            address = listener.addresses[0]
            with pytest.raises(TransportError, match=f"cannot listen on {address}: it is in use; .*port 0"):
                await TcpTransport().listen(address)

    run(main())


def test_an_address_of_another_machine_is_refused_and_the_message_says_what_to_do(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(TransportError, match=r"not an address of this machine; listen on 127\.0\.0\.1"):
            await TcpTransport().listen("tcp://192.0.2.1:0")

    run(main())


def test_a_peer_that_left_before_it_was_accepted_is_passed_over(run: Run) -> None:
    async def main() -> None:
        async with await TcpTransport().listen("tcp://127.0.0.1:0") as listener:
            left = await TcpTransport().connect(listener.addresses[0])
            assert isinstance(left, TcpStream)
            left._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            left._transport.abort()
            await left.aclose()
            stays = await TcpTransport().connect(listener.addresses[0])
            await stays.send(b"here")
            accepted = await listener.accept()
            assert await accepted.receive() == b"here"
            await stays.aclose()
            await accepted.aclose()

    run(main())


def test_a_listener_outlives_a_shortage_of_descriptors(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(tcp, "ACCEPT_RETRY_SECONDS", 0.01)
        async with await TcpTransport().listen("tcp://127.0.0.1:0") as listener:
            dialed = await TcpTransport().connect(listener.addresses[0])
            limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            with socket.socket() as probe:
                lowest_free = probe.fileno()
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
            try:
                acceptor = asyncio.ensure_future(listener.accept())
                await asyncio.wait((acceptor,), timeout=0.05)
                assert not acceptor.done()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            accepted = await acceptor
            await dialed.aclose()
            await accepted.aclose()

    run(main())


def test_a_listener_on_all_addresses_tells_those_that_can_be_dialed() -> None:
    with socket.socket() as sock:
        sock.bind(("0.0.0.0", 0))
        port = sock.getsockname()[1]
        addresses = dialable_addresses(sock)
    assert addresses[-1] == f"tcp://127.0.0.1:{port}"
    assert all(address.endswith(f":{port}") and "0.0.0.0" not in address for address in addresses)


# ---- dialing ----


def test_a_name_is_dialed_by_whichever_of_its_addresses_answers(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        # The first address never answers, because its queue is full and nobody accepts; the second refuses.
        monkeypatch.setattr(tcp, "HAPPY_EYEBALLS_DELAY_SECONDS", 0.01)
        with socket.socket() as silent, socket.socket() as refusing, socket.socket() as first, socket.socket() as last:
            silent.bind(("127.0.0.1", 0))
            silent.listen(0)
            for filler in (first, last):
                filler.setblocking(False)
                filler.connect_ex(silent.getsockname())
            refusing.bind(("127.0.0.1", 0))
            async with await TcpTransport().listen("tcp://127.0.0.1:0") as listener:
                host, port = host_and_port(parse_address(listener.addresses[0]))
                endpoints = [(socket.AF_INET, sock.getsockname()) for sock in (silent, refusing)]

                async def found(*_: object) -> list[tuple[socket.AddressFamily, tuple[str, int]]]:
                    return [*endpoints, (socket.AF_INET, (host, port))]

                monkeypatch.setattr(tcp, "resolve", found)
                dialed = await TcpTransport().connect("tcp://several.test:1")
                accepted = await listener.accept()
                assert dialed.remote_address == listener.addresses[0]
                await dialed.aclose()
                await accepted.aclose()

    run(main())


def test_a_name_none_of_whose_addresses_answers_gives_every_reason(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        with socket.socket() as one, socket.socket() as other:
            for sock in (one, other):
                sock.bind(("127.0.0.1", 0))

            async def found(*_: object) -> list[tuple[socket.AddressFamily, tuple[str, int]]]:
                return [(socket.AF_INET, sock.getsockname()) for sock in (one, other)]

            monkeypatch.setattr(tcp, "resolve", found)
            with pytest.raises(ConnectError, match=r"it refused.*; it refused") as caught:
                await TcpTransport().connect("tcp://several.test:1")
            assert not isinstance(caught.value, ConnectTimeoutError)

    run(main())


def test_a_port_where_nobody_listens_says_so(run: Run) -> None:
    async def main() -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            address = format_address(sock.getsockname())
            with pytest.raises(ConnectError, match=f"cannot connect to {address}: it refused, so nothing listens"):
                await TcpTransport().connect(address)

    run(main())


def test_a_host_that_cannot_be_found_says_so(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(ConnectError, match=r"the host of tcp://no\.\.such\.\.host:1 cannot be found"):
            await TcpTransport().connect("tcp://no..such..host:1")

    run(main())


def test_localhost_is_a_name_like_any_other(run: Run) -> None:
    async def main() -> None:
        async with await TcpTransport().listen("tcp://localhost:0") as listener:
            for address in listener.addresses:
                port = parse_address(address).port
                dialed = await TcpTransport().connect(f"tcp://localhost:{port}")
                accepted = await listener.accept()
                await dialed.aclose()
                await accepted.aclose()

    run(main())


def test_a_dial_that_is_given_up_leaves_no_socket_behind(run: Run) -> None:
    async def main() -> None:
        with socket.socket() as silent, socket.socket() as first, socket.socket() as last:
            silent.bind(("127.0.0.1", 0))
            silent.listen(0)
            for filler in (first, last):
                filler.setblocking(False)
                filler.connect_ex(silent.getsockname())
            address = format_address(silent.getsockname())
            with socket.socket() as probe:
                lowest_free = probe.fileno()
            with pytest.raises(ConnectTimeoutError, match=r"did not answer within 0\.05 seconds"):
                await TcpTransport().connect(address, timeout_seconds=0.05)
            with socket.socket() as probe:
                assert probe.fileno() <= lowest_free

    run(main())


# ---- addresses and options ----


@pytest.mark.parametrize(
    ("name", "address"),
    [
        (("127.0.0.1", 4977), "tcp://127.0.0.1:4977"),
        (("::1", 4977, 0, 0), "tcp://[::1]:4977"),
        (("fe80::1", 4977, 0, 1), f"tcp://[fe80::1%{socket.if_indextoname(1)}]:4977"),
    ],
)
def test_a_socket_name_is_written_as_an_address_and_read_back(name: tuple[object, ...], address: str) -> None:
    assert format_address(name) == address
    host, port = host_and_port(parse_address(address))
    assert [where for _, where in asyncio.run(resolve(address, host, port))] == [name]


def test_the_zone_of_an_address_may_be_escaped() -> None:
    assert host_and_port(parse_address("tcp://[fe80::1%25eth0]:1")) == ("fe80::1%eth0", 1)


@pytest.mark.parametrize(
    "address", ["tcp:", "tcp://host", "tcp://host:1/path", "tcp://user@host:1", "tcp://:0", "tcp://host:0", "pipe:x"]
)
def test_an_address_that_cannot_be_dialed_is_refused(address: str) -> None:
    with pytest.raises(AddressError):
        asyncio.run(TcpTransport().connect(address))


def test_options_come_from_the_address_or_as_keywords() -> None:
    for transport in (
        open_transport("tcp://h:1?close_timeout_seconds=2"),
        open_transport("tcp:", close_timeout_seconds=2),
    ):
        assert transport._options == TcpOptions(close_timeout_seconds=2)
    with pytest.raises(OptionError, match="'speed'"):
        open_transport("tcp://h:1?speed=9")
    with pytest.raises(OptionError, match="close_timeout_seconds is 0 to 3600"):
        open_transport("tcp:", close_timeout_seconds=-1)

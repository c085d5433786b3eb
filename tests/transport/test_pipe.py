"""What the pipe transport promises beyond the contract: pairs, names, and TCP's manners."""

from __future__ import annotations

import asyncio

import pytest

from hypercore.duplex import BUFFER_SIZE, RECEIVE_SIZE, stream_pair
from hypercore.errors import AddressError, ConnectError, OptionError, TransportError
from hypercore.urls import parse_address
from hypercore_pipe import PipeTransport
from hypercore_pipe.transport import open_transport
from tests.running import run


def test_a_pair_is_two_ends_that_know_each_other_by_address() -> None:
    async def main() -> None:
        left, right = stream_pair("pipe:left", "pipe:right")
        assert (left.remote_address, right.remote_address) == ("pipe:right", "pipe:left")
        await left.send(b"to the right")
        await right.send(b"to the left")
        assert await right.receive() == b"to the right"
        assert await left.receive() == b"to the left"

    run(main())


def test_messages_are_divided_and_joined_as_on_a_network() -> None:
    async def main() -> None:
        left, right = stream_pair()
        await left.send(b"one ")
        await left.send(b"two")
        assert await right.receive() == b"one two"
        await left.send(bytes(RECEIVE_SIZE + 1))
        assert [len(await right.receive()) for _ in range(2)] == [RECEIVE_SIZE, 1]

    run(main())


def test_send_waits_from_the_byte_on_that_does_not_fit_until_there_is_room() -> None:
    async def main() -> None:
        left, right = stream_pair()
        await left.send(bytes(BUFFER_SIZE))
        sender = asyncio.ensure_future(left.send(b"x"))
        await asyncio.sleep(0)
        assert not sender.done()
        await right.receive()
        await asyncio.sleep(0)
        assert sender.done()

    run(main())


def test_a_cancelled_send_has_sent_its_whole_message() -> None:
    async def main() -> None:
        left, right = stream_pair()
        sender = asyncio.ensure_future(left.send(bytes(BUFFER_SIZE + 1)))
        await asyncio.sleep(0)
        sender.cancel()
        await left.aclose()
        size = 0
        while piece := await right.receive():
            size += len(piece)
        assert size == BUFFER_SIZE + 1

    run(main())


def test_a_second_task_that_receives_is_refused() -> None:
    async def main() -> None:
        left, right = stream_pair()
        receiver = asyncio.ensure_future(left.receive())
        await asyncio.sleep(0)
        with pytest.raises(TransportError, match="another task is already receiving"):
            await left.receive()
        await right.send(b"for the first")
        assert await receiver == b"for the first"

    run(main())


def test_a_name_is_known_to_the_whole_process_while_somebody_listens() -> None:
    async def main() -> None:
        async with await PipeTransport().listen("pipe:somewhere") as listener:
            assert listener.addresses == ("pipe:somewhere",)
            stream = await PipeTransport().connect("pipe:somewhere")
            accepted = await listener.accept()
            assert stream.remote_address == "pipe:somewhere"
            assert accepted.remote_address.startswith("pipe:somewhere#")
        with pytest.raises(ConnectError, match="nothing in this process listens on pipe:somewhere"):
            await PipeTransport().connect("pipe:somewhere")

    run(main())


def test_a_listener_without_a_name_gets_a_free_one() -> None:
    async def main() -> None:
        transport = PipeTransport()
        async with await transport.listen("pipe:") as first, await transport.listen("pipe:") as second:
            assert first.addresses != second.addresses

    run(main())


def test_a_name_in_use_is_refused_and_the_message_says_what_to_do() -> None:
    async def main() -> None:
        transport = PipeTransport()
        async with await transport.listen("pipe:taken"):
            with pytest.raises(TransportError, match=r"pipe:taken is in use .* choose another name, or pipe:"):
                await transport.listen("pipe:taken")

    run(main())


def test_a_listener_that_its_loop_left_behind_is_no_obstacle() -> None:
    async def forget() -> None:
        await PipeTransport().listen("pipe:forgotten")

    async def main() -> None:
        with pytest.raises(ConnectError):
            await PipeTransport().connect("pipe:forgotten")
        async with await PipeTransport().listen("pipe:forgotten"):
            pass

    run(forget())
    run(main())


def test_streams_that_nobody_accepted_end_with_the_listener() -> None:
    async def main() -> None:
        transport = PipeTransport()
        async with await transport.listen("pipe:") as listener:
            stream = await transport.connect(listener.addresses[0])
        assert await stream.receive() == b""

    run(main())


@pytest.mark.parametrize("address", ["pipe://host/name", "pipe:name?size=1", "tcp:name", "name"])
def test_an_address_that_is_no_pipe_is_refused(address: str) -> None:
    async def main() -> None:
        with pytest.raises(AddressError):
            await PipeTransport().listen(address)

    run(main())


def test_dialing_without_a_name_is_refused() -> None:
    async def main() -> None:
        with pytest.raises(AddressError, match="no name to dial"):
            await PipeTransport().connect("pipe:")

    run(main())


def test_options_are_refused_because_there_are_none() -> None:
    with pytest.raises(OptionError, match="'size'"):
        open_transport(parse_address("pipe:name?size=1"))
    with pytest.raises(OptionError, match="'size'"):
        open_transport("pipe:name", size=1)
    assert isinstance(open_transport("pipe:name"), PipeTransport)

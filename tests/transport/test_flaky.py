"""FlakyStream fails where it was told to, the same way for the same seed, and otherwise keeps every promise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from hypercore.duplex import stream_pair
from hypercore.errors import PeerClosedError, StreamBrokenError, StreamClosedError
from hypercore.testing import FlakyStream, TransportContract
from hypercore.transport import ByteStream, Listener, Transport
from hypercore_pipe import PipeTransport
from tests.running import run

MESSAGE = bytes(range(256)) * 40


async def received(stream: ByteStream) -> list[bytes]:
    """The pieces until the end."""
    pieces = []
    while piece := await stream.receive():
        pieces.append(piece)
    return pieces


async def received_with(**faults: Any) -> list[bytes]:
    """The pieces in which `MESSAGE` arrives through a flaky stream."""
    near, far = stream_pair()
    await far.send(MESSAGE)
    await far.aclose()
    async with FlakyStream(near, **faults) as flaky:
        return await received(flaky)


class TestChoppedAndDelayedStreams(TransportContract):
    """Small pieces and delays are no fault at all: the whole contract holds for them."""

    def make_transport(self) -> Transport:
        return FlakyTransport()

    def listen_address(self) -> str:
        return "pipe:"


class FlakyListener(Listener):
    def __init__(self, inner: Listener) -> None:
        self.inner = inner

    @property
    def addresses(self) -> Sequence[str]:
        return self.inner.addresses

    async def accept(self) -> ByteStream:
        return FlakyStream(await self.inner.accept(), chop_size=200_000, delay_seconds=0.0001)

    async def aclose(self) -> None:
        await self.inner.aclose()


class FlakyTransport(Transport):
    def __init__(self) -> None:
        self.inner = PipeTransport()

    async def connect(self, address: str, *, timeout_seconds: float = 10.0) -> ByteStream:
        stream = await self.inner.connect(address, timeout_seconds=timeout_seconds)
        return FlakyStream(stream, chop_size=200_000, delay_seconds=0.0001)

    async def listen(self, address: str) -> Listener:
        return FlakyListener(await self.inner.listen(address))


def test_without_faults_it_changes_nothing() -> None:
    assert run(received_with()) == [MESSAGE]


def test_chopping_gives_small_pieces_of_the_same_bytes() -> None:
    pieces = run(received_with(chop_size=7))
    assert b"".join(pieces) == MESSAGE
    assert {len(piece) for piece in pieces} == set(range(1, 8))


def test_chopping_sends_small_pieces_of_the_same_bytes() -> None:
    class Noting(FlakyStream):
        async def send(self, data: bytes) -> None:
            sizes.append(len(data))
            await super().send(data)

    async def main() -> bytes:
        near, far = stream_pair()
        async with FlakyStream(Noting(near), chop_size=100) as flaky:
            await flaky.send(MESSAGE)
        return b"".join(await received(far))

    sizes: list[int] = []
    assert run(main()) == MESSAGE
    assert max(sizes) <= 100
    assert len(set(sizes)) > 20


def test_one_seed_gives_one_behaviour_and_another_one_another() -> None:
    first, again, other = (run(received_with(seed=seed, chop_size=50, corrupt_at=99)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("chop_size", [None, 3])
@pytest.mark.parametrize("position", [0, 1, 5000, len(MESSAGE) - 1])
def test_exactly_one_bit_of_exactly_the_given_byte_is_flipped(position: int, chop_size: int | None) -> None:
    got = b"".join(run(received_with(corrupt_at=position, chop_size=chop_size)))
    differences = [index for index in range(len(MESSAGE)) if got[index] != MESSAGE[index]]
    assert len(got) == len(MESSAGE)
    assert differences == [position]
    assert (got[position] ^ MESSAGE[position]).bit_count() == 1


@pytest.mark.parametrize("chop_size", [None, 3])
@pytest.mark.parametrize("size", [0, 1, 5000])
def test_a_cut_ends_the_stream_after_exactly_so_many_bytes(size: int, chop_size: int | None) -> None:
    assert b"".join(run(received_with(cut_after=size, chop_size=chop_size))) == MESSAGE[:size]


@pytest.mark.parametrize("size", [0, 1, 5000])
def test_a_reset_breaks_the_stream_after_exactly_so_many_received_bytes(size: int) -> None:
    async def main() -> None:
        near, far = stream_pair()
        await far.send(MESSAGE)
        flaky = FlakyStream(near, reset_after=size)
        got = b""
        while len(got) < size:
            got += await flaky.receive()
        assert got == MESSAGE[:size]
        with pytest.raises(StreamBrokenError):
            await flaky.receive()
        for _ in range(2):
            with pytest.raises(StreamBrokenError):
                await flaky.send(b"x")
        assert await far.receive() == b""
        with pytest.raises(PeerClosedError):
            await far.send(b"x")

    run(main())


def test_a_reset_breaks_the_stream_after_exactly_so_many_sent_bytes() -> None:
    async def main() -> None:
        near, far = stream_pair()
        flaky = FlakyStream(near, reset_after=5000)
        await flaky.send(MESSAGE[:4000])
        with pytest.raises(StreamBrokenError):
            await flaky.send(MESSAGE[4000:])
        assert b"".join(await received(far)) == MESSAGE[:5000]

    run(main())


def test_a_closed_flaky_stream_says_so() -> None:
    async def main() -> None:
        near, _far = stream_pair()
        flaky = FlakyStream(near, chop_size=3, delay_seconds=0.0001)
        await flaky.aclose()
        with pytest.raises(StreamClosedError):
            await flaky.receive()
        with pytest.raises(StreamClosedError):
            await flaky.send(b"x")

    run(main())

"""The probes that Node cores were put to: what ours makes of the same inputs (wire spec, sections 5, 7 and 8)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from hypercore.core import Hypercore
from hypercore.crypto import REPLICATE_INITIATOR, blake2b, discovery_key
from hypercore.duplex import stream_pair
from hypercore.encoding import encode_uint
from hypercore.errors import ProtocolError
from hypercore.proofs import BlockProof, BlockRequest, HashRequest, Proof, ProofRequest, SeekRequest, UpgradeRequest
from hypercore.protocol.messages import (
    Bitfield,
    Cancel,
    Data,
    Extension,
    Message,
    NoData,
    Range,
    Request,
    Sync,
    Unwant,
    Want,
)
from tests.protocol.support import EPHEMERAL, STATIC, encoded, load
from tests.replication.links import eventually
from tests.replication.raw_peer import RawPeer
from tests.replication.recordings import WRITER, block
from tests.running import run

PROBES = load("probes.json")
MAJORS = (11, 10)

EMPTY_SYNC = Sync(0, 0, 0, True, True, True, False, False)
#: What asks for nothing and is answered with nothing: behind a probe it marks the end of what the probe caused.
MARK = ProofRequest(0)
MARK_ID = 777


class Prober(RawPeer):
    """The dialling end of a connection to `core`."""

    def __init__(self, core: Hypercore) -> None:
        wire, theirs = stream_pair()
        super().__init__(wire, initiator=True, key_pair=STATIC["initiator"], ephemeral=EPHEMERAL["initiator"])
        self.core = core
        self.replication = core.replicate(theirs, initiator=False)
        self.answer: Callable[[Request], Any] | None = None

    async def on_message(self, message: Message) -> None:
        if isinstance(message, Request) and self.answer is not None:
            await self.answer(message)

    def open_frame(
        self, number: int, capability: bytes, *, topic: bytes = b"", name: bytes = b"hypercore/alpha"
    ) -> bytes:
        topic = topic or discovery_key(self.core.key)
        return bytes([0, 1, number, len(name)]) + name + b"\x20" + topic + b"\x01" + capability

    async def open(self, *, capability: bytes = b"", name: bytes = b"hypercore/alpha") -> Prober:
        handshake_hash = await self.handshake_hash()
        capability = capability or blake2b(REPLICATE_INITIATOR, self.core.key, key=handshake_hash)
        await self.send_frame(self.open_frame(1, capability, name=name))
        return self

    async def settled(self, request_id: int = MARK_ID) -> None:
        """Everything that was sent so far has had its effect."""
        await self.send(Request(request_id, 0, MARK))
        await eventually(lambda: any(data.request_id == request_id for data in self.received(Data)))
        self.inbox = [each for each in self.inbox if not (isinstance(each, Data) and each.request_id == request_id)]


async def writer_of(major: int, length: int) -> Hypercore:
    core = Hypercore("memory:", key_pair=WRITER, compat=major == 10)
    await core.ready()
    if length:
        await core.append([block(index) for index in range(length)])
    return core


# ---- what a writer is sent -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Probe:
    """Frames on channel 1, and the log they are sent to. `core` is what may stand for the core in a frame."""

    frames: Callable[[Prober], list[bytes]]
    cleared: bool = False
    length: int = 7


def item(message: Message) -> bytes:
    body = encoded(message)
    return encode_uint(len(body)) + body


def says(*messages: Message, **options: Any) -> Probe:
    return Probe(lambda _: [b"\x01" + encoded(message) for message in messages], **options)


def asks(request_id: int = 1, fork: int = 0, **parts: Any) -> Probe:
    options = {name: parts.pop(name) for name in ("cleared", "length") if name in parts}
    return says(Request(request_id, 0, ProofRequest(fork, **parts)), **options)


def in_one_batch(*messages: Message) -> Probe:
    return Probe(lambda _: [b"\x00\x00\x01" + b"".join(map(item, messages))])


def payload(kind: int, hex_: str) -> Probe:
    return Probe(lambda _: [bytes([1, kind]) + bytes.fromhex(hex_)])


def region(start: int, length: int, *, any_: bool = False) -> Probe:
    return says(Want(start, length, any_), cleared=True)


FIRST, LAST = BlockRequest(0, 2), BlockRequest(6, 0)
WRITER_PROBES: dict[str, Probe] = {
    "block it has": asks(block=BlockRequest(3, 2)),
    "block with nodes 0": asks(block=BlockRequest(3, 0)),
    "block past the end": asks(block=BlockRequest(7, 0)),
    "block it cleared": asks(block=BlockRequest(2, 1), cleared=True),
    "block next to one it cleared": asks(block=BlockRequest(1, 2), cleared=True),
    "nodes past the root": asks(block=BlockRequest(3, 3)),
    "nodes absurdly large": asks(block=BlockRequest(3, 1000000)),
    "upgrade past the end": asks(upgrade=UpgradeRequest(0, 8)),
    "upgrade of length 0": asks(upgrade=UpgradeRequest(7, 0)),
    "upgrade, manifest flag set": asks(upgrade=UpgradeRequest(0, 7), manifest=True),
    "manifest alone": asks(manifest=True),
    "manifest alone, empty core": asks(manifest=True, length=0),
    "upgrade, empty core": asks(upgrade=UpgradeRequest(0, 1), length=0),
    "block, empty core": asks(block=BlockRequest(0, 0), length=0),
    "empty request": asks(),
    "block of another fork": asks(fork=1, block=BlockRequest(3, 2)),
    "manifest of another fork": asks(fork=1, manifest=True),
    "block and hash at once": asks(block=BlockRequest(3, 2), hash=HashRequest(0, 2)),
    "seek alone": asks(seek=SeekRequest(10, 0)),
    "block and seek": asks(block=FIRST, seek=SeekRequest(30, 0)),
    "request id 0": asks(0, block=BlockRequest(3, 2)),
    "request for the signed tree, id 0": asks(0, upgrade=UpgradeRequest(0, 7)),
    "same id twice": says(Request(1, 0, ProofRequest(0, FIRST)), Request(1, 0, ProofRequest(0, LAST))),
    "request then cancel in one batch": in_one_batch(Request(1, 0, ProofRequest(0, FIRST)), Cancel(1)),
    "cancel of an unknown id": says(Cancel(55)),
    "two requests in one batch": in_one_batch(
        Request(1, 0, ProofRequest(0, FIRST)), Request(2, 0, ProofRequest(0, LAST))
    ),
    "flags with unknown bits": payload(1, "4101000600"),
    "want of everything": says(Want(0, 2**21, False)),
    "want, blocks missing": region(0, 2**21),
    "want, unaligned, blocks missing": region(3, 2),
    "want longer than one segment, blocks missing": region(0, 2**22),
    "want past the end, blocks missing": region(2**21, 2**21),
    "want any, blocks missing": region(0, 128, any_=True),
    "want any past the gap, blocks missing": region(4, 32, any_=True),
    "unwant never wanted": says(Unwant(0, 2**21, False)),
    "sync again": says(EMPTY_SYNC),
    "sync of a longer core": says(EMPTY_SYNC._replace(length=1000)),
    "sync of length five": says(EMPTY_SYNC._replace(length=5)),
    "sync of a higher fork": says(EMPTY_SYNC._replace(fork=5, length=3)),
    "sync not downloading": says(EMPTY_SYNC._replace(downloading=False)),
    "data nobody asked for": says(Data(1, Proof(0, BlockProof(0, b"x", ())))),
    "no-data nobody asked for": says(NoData(9, 1)),
    "range past the end": says(Range(False, 100, 50)),
    "drop past the end": says(Range(True, 100, 50)),
    "bitfield not at a multiple of 32": says(Bitfield(5, b"\x01\x00\x00\x00")),
    "message type 10": payload(10, "010203"),
    "request cut short": payload(1, "0101"),
    "sync with an impossible number": payload(0, "0700ffffffffffffffffff00"),
    "extension unknown": says(Extension("nope", b"x")),
    "extension without a name first": says(Extension("", b"x")),
    "second open of the same core": Probe(lambda prober: [prober.open_frame(2, bytes(32))]),
    "open of a core it does not have": Probe(lambda prober: [prober.open_frame(2, bytes(32), topic=b"\x01" * 32)]),
}
GONE: list[Message] = [NoData(1, 1)]
HELD: list[Message] = [Bitfield(0, b"\x73\x00\x00\x00")]
#: Where ours does not say what both of Node's say: the reason, and what is said instead.
OURS: dict[str, tuple[str, list[Message]]] = {
    "block past the end": ("a drop goes ahead, or Node asks again at once", [Range(True, 7, 1), *GONE]),
    "block it cleared": ("a drop goes ahead, or Node asks again at once", [Range(True, 2, 1), *GONE]),
    "block, empty core": ("a drop goes ahead, or Node asks again at once", [Range(True, 0, 1), *GONE]),
    "block of another fork": ("10 gives no reason", GONE),
    "nodes past the root": ("10 ends the stream", [NoData(1, 2)]),
    "nodes absurdly large": ("10 ends the stream", [NoData(1, 2)]),
    "upgrade past the end": ("10 ends the stream", [NoData(1, 2)]),
    "upgrade of length 0": ("10 ends the stream", [NoData(1, 2)]),
    "want, blocks missing": ("10 sends 1024 words", HELD),
    "want, unaligned, blocks missing": ("10 sends 1024 words", HELD),
    "want longer than one segment, blocks missing": ("10 answers", []),
    "want any, blocks missing": ("10 does not know any", [Range(False, 0, 2)]),
    "want any past the gap, blocks missing": ("10 does not know any", [Range(False, 4, 1)]),
    "sync again": ("what was said already is not said again", []),
    "sync not downloading": ("what was said already is not said again", []),
}
ENDING = ("request cut short", "sync with an impossible number")


def recorded(name: str, major: int) -> dict[str, Any]:
    (found,) = (each for each in PROBES["toWriter"] if each["name"] == name and each["hypercore"] == major)
    return found  # type: ignore[no-any-return]


def test_every_recorded_probe_is_put_to_ours() -> None:
    names = {each["name"] for each in PROBES["toWriter"]}
    assert names == {*WRITER_PROBES, "close", "wrong capability", 'opened under the name "hypercore"'}
    assert len(names) == 55
    assert {each["name"] for each in PROBES["toReader"]} == {*READER_PROBES}
    assert len(READER_PROBES) == 19


@pytest.mark.parametrize("major", MAJORS)
@pytest.mark.parametrize("name", [name for name in WRITER_PROBES if name not in ENDING])
def test_a_writer_reacts_to_a_probe_as_it_should(name: str, major: int) -> None:
    async def main() -> None:
        probe = WRITER_PROBES[name]
        async with await writer_of(major, probe.length) as core:
            if probe.cleared:
                await core.clear(2, 4)
            prober = await Prober(core).open()
            await prober.send(EMPTY_SYNC)
            await prober.settled(776)
            prober.inbox.clear()
            controls = len(prober.controls)
            for frame in probe.frames(prober):
                await prober.send_frame(frame)
            await prober.settled()
            replies = [encoded(message).hex() for message in prober.inbox]
            rejects = [body for kind, body in prober.controls[controls:] if kind == 2]
            if name in OURS:
                expected = [encoded(message).hex() for message in OURS[name][1]]
            else:
                expected = expected_replies(name, major, core)
            assert sorted(replies) == sorted(expected)
            wanted = [bytes([each["id"]]) for each in recorded(name, major)["replies"] if "control" in each]
            assert rejects == wanted
            assert prober.replication.error is None
            await prober.hang_up()

    run(main())


def expected_replies(name: str, major: int, core: Hypercore) -> list[str]:
    kinds = ("sync", "request", "cancel", "data", "noData", "want", "unwant", "bitfield", "range", "extension")
    replies = [
        f"{kinds.index(each['message']):02x}" + each["payload"]
        for each in recorded(name, major)["replies"]
        if "message" in each
    ]
    if name == "manifest of another fork":
        # Node names its own fork there, and sends the manifest of a compat core, which the key tells anyway.
        assert core.manifest is not None
        manifest = replies[0][8:]
        replies = [f"03100101{manifest}"] if major == 11 else [encoded(NoData(1, 1)).hex()]
    return replies


@pytest.mark.parametrize("name", ENDING)
def test_what_cannot_be_decoded_ends_the_connection(name: str) -> None:
    async def main() -> None:
        async with await writer_of(11, 7) as core:
            prober = await Prober(core).open()
            await prober.settled()
            for frame in WRITER_PROBES[name].frames(prober):
                await prober.send_frame(frame)
            await prober.replication.wait_closed()
            assert isinstance(prober.replication.error, ProtocolError)
            await prober.hang_up()

    run(main())


def test_a_close_is_not_answered_and_the_connection_goes_on() -> None:
    async def main() -> None:
        async with await writer_of(11, 7) as core:
            prober = await Prober(core).open()
            await prober.settled()
            controls = len(prober.controls)
            await prober.send_frame(b"\x00\x03\x01")
            await eventually(lambda: not core.peers)
            await prober.open()
            await prober.settled()
            assert [kind for kind, _ in prober.controls[controls:]] == [1]
            assert prober.replication.error is None
            await prober.hang_up()

    run(main())


def test_a_wrong_capability_ends_the_connection() -> None:
    async def main() -> None:
        async with await writer_of(11, 7) as core:
            prober = await Prober(core).open(capability=b"\x01" * 32)
            await prober.replication.wait_closed()
            assert isinstance(prober.replication.error, ProtocolError)
            assert not core.peers
            await prober.hang_up()

    run(main())


def test_the_older_name_of_the_protocol_is_the_same_core() -> None:
    async def main() -> None:
        async with await writer_of(11, 7) as core:
            prober = await Prober(core).open(name=b"hypercore")
            await prober.settled()
            assert len(core.peers) == 1
            await prober.hang_up()

    run(main())


# ---- how a reader is answered --------------------------------------------------------------------------


@dataclass
class Told:
    """How a reader's requests are answered, and where that leaves it."""

    lie: Callable[[Prober, Request, Proof, Hypercore], Any]
    length: int = 7
    blocks: tuple[int, ...] = tuple(range(7))
    sync: dict[str, Any] = field(default_factory=dict)
    announces: bool = True
    #: Whether an upgrade is answered together with the block that is asked for with it.
    whole: bool = True
    #: What becomes of the peer: "trusted", "distrusted", or "given up" with its connection ended.
    fate: str = "trusted"
    requests: tuple[int, int] = (2, 16)


async def honest(prober: Prober, request: Request, proof: Proof, _: Hypercore) -> None:
    await prober.send(Data(request.id, proof))


def change(alter: Callable[[Proof], Proof]) -> Callable[[Prober, Request, Proof, Hypercore], Any]:
    async def answer(prober: Prober, request: Request, proof: Proof, _: Hypercore) -> None:
        await prober.send(Data(request.id, alter(proof)))

    return answer


def no_data(tail: bytes) -> Callable[[Prober, Request, Proof, Hypercore], Any]:
    async def answer(prober: Prober, request: Request, proof: Proof, _: Hypercore) -> None:
        if proof.block is None:
            await prober.send(Data(request.id, proof))
        else:
            await prober.send_frame(b"\x01\x04" + encode_uint(request.id) + tail)

    return answer


def wrong_signature(proof: Proof) -> Proof:
    if proof.upgrade is None:
        return proof
    signature = bytearray(proof.upgrade.signature)
    signature[5] ^= 1
    return proof._replace(upgrade=proof.upgrade._replace(signature=bytes(signature)))


def wrong_value(proof: Proof) -> Proof:
    return proof if proof.block is None else proof._replace(block=proof.block._replace(value=b"forged!!"))


def without_nodes(proof: Proof) -> Proof:
    return proof if proof.block is None else proof._replace(block=proof.block._replace(nodes=()))


async def another_block(prober: Prober, request: Request, proof: Proof, writer: Hypercore) -> None:
    if proof.block is not None:
        proof = await writer.proof(block=BlockRequest((proof.block.index + 1) % 4, 2))
    await prober.send(Data(request.id, proof))


async def foreign_id(prober: Prober, request: Request, proof: Proof, _: Hypercore) -> None:
    await prober.send(Data(request.id + 1000, proof))


async def twice(prober: Prober, request: Request, proof: Proof, _: Hypercore) -> None:
    await prober.send(Data(request.id, proof))
    await prober.send(Data(request.id, proof))


def reversed_batch() -> Callable[[Prober, Request, Proof, Hypercore], Any]:
    held: list[Data] = []

    async def answer(prober: Prober, request: Request, proof: Proof, _: Hypercore) -> None:
        if proof.upgrade is not None:
            await prober.send(Data(request.id, proof))
            return
        held.append(Data(request.id, proof))
        if len(held) == 7:
            for data in reversed(held):
                await prober.send(data)

    return answer


async def silence(_prober: Prober, _request: Request, _proof: Proof, _: Hypercore) -> None:
    return None


async def grown(prober: Prober, request: Request, proof: Proof, writer: Hypercore) -> None:
    if proof.upgrade is not None and writer.length == 7:
        await writer.append(block(7))
        proof = await writer.hub.log.prove(request.proof)
    await prober.send(Data(request.id, proof))


NOTHING: dict[str, Any] = {"length": 0, "blocks": (), "requests": (0, 0)}
UNPROVEN: dict[str, Any] = {"length": 0, "blocks": (), "requests": (1, 1), "fate": "distrusted"}
LIES: dict[str, Any] = {"blocks": (), "requests": (4, 40), "fate": "given up", "whole": False}
REFUSED: dict[str, Any] = {"blocks": (), "requests": (8, 9), "whole": False}
READER_PROBES: dict[str, Callable[[], Told]] = {
    "honest": lambda: Told(honest),
    "honest, but the sync said it cannot upgrade": lambda: Told(honest, sync={"can_upgrade": False}, **NOTHING),
    "honest, but the sync said not uploading": lambda: Told(honest, sync={"uploading": False}, **NOTHING),
    "honest, but no range was sent": lambda: Told(honest, announces=False, blocks=(), requests=(1, 1)),
    "honest, but the sync acknowledged another length": lambda: Told(honest, sync={"remote_length": 3}, **NOTHING),
    "honest, but the sync did not mention the manifest": lambda: Told(honest, sync={"has_manifest": False}, **UNPROVEN),
    "upgrade without its manifest": lambda: Told(change(lambda proof: proof._replace(manifest=None)), **UNPROVEN),
    "wrong signature": lambda: Told(change(wrong_signature), **UNPROVEN),
    "wrong block bytes": lambda: Told(change(wrong_value), **LIES),
    "block nodes dropped": lambda: Told(change(without_nodes), **{**LIES, "blocks": (6,)}),
    "another block than asked for": lambda: Told(another_block, **LIES),
    "no-data without a reason": lambda: Told(no_data(b""), **REFUSED),
    "no-data, not available": lambda: Told(no_data(b"\x01\x01"), **REFUSED),
    "no-data, invalid request": lambda: Told(no_data(b"\x01\x02"), **REFUSED),
    "answers with ids never issued": lambda: Told(foreign_id, length=0, blocks=(), requests=(1, 1)),
    "every answer sent twice": lambda: Told(twice),
    "answers in reverse order of a held batch": lambda: Told(reversed_batch(), whole=False),
    "no answer at all": lambda: Told(silence, length=0, blocks=(), requests=(1, 1)),
    "upgrade answered with a longer length than asked": lambda: Told(grown, length=8),
}


@pytest.mark.parametrize("name", READER_PROBES)
def test_a_reader_reacts_to_an_answer_as_it_should(name: str) -> None:
    async def main() -> None:
        told = READER_PROBES[name]()
        async with await writer_of(11, 7) as writer, Hypercore("memory:", writer.key) as reader:
            prober = Prober(reader)

            async def answer(request: Request) -> None:
                asked = request.proof if told.whole else request.proof._replace(block=None)
                proof = await writer.hub.log.prove(asked if asked.upgrade is not None else request.proof)
                await told.lie(prober, request, proof, writer)

            prober.answer = answer
            await prober.open()
            sync = Sync(0, 7, 0, True, True, True, True, False)._replace(**told.sync)
            download = reader.download(0, 7)
            await prober.send(sync)
            if told.announces:
                await prober.send(Range(False, 0, 7))
            if told.fate == "given up":
                await prober.replication.wait_closed()
                assert isinstance(prober.replication.error, ProtocolError)
            else:
                await prober.settled()
                await eventually(lambda: reader.length == told.length)
                await eventually(
                    lambda: bool(reader.peers) and reader.peers[0].remote.paused == (told.fate == "distrusted")
                )
                await eventually(lambda: len(prober.received(Request)) >= told.requests[0])
                await prober.settled()
                assert prober.replication.error is None
            if told.blocks == tuple(range(7)):
                await download.done()
            await asyncio.sleep(0)
            stored = {index for index in range(7) if reader.hub.log.has(index)}
            assert stored <= set(told.blocks)
            assert stored == set(told.blocks) or told.fate == "given up"
            fewest, most = told.requests
            assert fewest <= len(prober.received(Request)) <= most
            if not told.announces:
                assert prober.received(Want) == [Want(0, 2**21, False)]
            await prober.hang_up()

    run(main())

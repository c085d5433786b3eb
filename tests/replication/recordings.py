"""The sessions that Node cores recorded, as scenes that can be played again: two logs that move along with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hypercore.crypto import KeyPair
from hypercore.log.engine import Log
from hypercore.log.manifest import Manifest, Signer
from hypercore.plugins import open_storage
from hypercore.proofs import BlockRequest, Proof, ProofRequest, UpgradeRequest
from hypercore.protocol.messages import Data, Message, Request, Sync
from tests.protocol.support import load, message_of

#: The key pair that signs in every recording.
WRITER = KeyPair.from_seed(b"\x01" * 32)
#: How long the recorded writer is when the recording begins.
LENGTHS = {
    "sparse": 7,
    "resume": 7,
    "sparse-server": 40,
    "fork": 40,
    "fork-offline": 51,
    "empty": 0,
    "cancel": 20,
    "clear": 7,
    "idle": 7,
    "extension": 1,
    "multisig": 3,
    "conflict": 5,
    "push": 5,
}


def block(index: int) -> bytes:
    return f"block {index} ".encode() + b"x" * index


async def writer_of(length: int, *, compat: bool = False) -> Log:
    """The recorded writer: the same keys, the same blocks."""
    log = await Log.open(open_storage("memory:"), key_pair=WRITER, compat=compat)
    if length:
        await log.append([block(index) for index in range(length)])
    return log


async def clone_of(key: bytes) -> Log:
    return await Log.open(open_storage("memory:"), key=key)


async def copy_upgrade(source: Log, target: Log) -> None:
    """Bring `target` to the length of `source`."""
    request = ProofRequest(
        source.fork, upgrade=UpgradeRequest(target.length, source.length - target.length), manifest=True
    )
    assert await target.apply([await source.prove(request)]) == [None]


async def copy_blocks(source: Log, target: Log, *indexes: int) -> None:
    """Fetch blocks as a reader does that asks for one after the other."""
    for index in indexes:
        steps = await target.missing_nodes(2 * index)
        proof = await source.prove(ProofRequest(source.fork, BlockRequest(index, steps)))
        assert await target.apply([proof]) == [None]


class Scene:
    """The logs of both sides, `a` the initiator and `b`, in the state that the recording has reached."""

    def __init__(self, name: str) -> None:
        self.recording = load(name)
        self.name = name
        self.kind, self._major_a, _major_b = name.removeprefix("session-").removesuffix(".json").rsplit("-", 2)
        self.key = bytes.fromhex(self.recording["key"])
        #: The writer that the sparse copy of one recording fetches from.
        self._origin: Log | None = None
        self.logs: dict[str, Log] = {}

    async def begin(self) -> Scene:
        compat, length = self._major_a == "10", LENGTHS[self.kind]
        if self.kind == "multisig":
            a, b = await self._multisig(), await clone_of(self.key)
        elif self.kind == "sparse-server":
            self._origin = await writer_of(length, compat=compat)
            a, b = await clone_of(self.key), await clone_of(self.key)
            await copy_upgrade(self._origin, a)
            await copy_blocks(self._origin, a, 3, 20, 39)
        elif self.kind == "resume":
            a, b = await writer_of(5, compat=compat), await clone_of(self.key)
            await copy_upgrade(a, b)
            await copy_blocks(a, b, 1)
            await a.append([block(5), block(6)])
        elif self.kind == "fork-offline":
            a, b = await writer_of(40, compat=compat), await clone_of(self.key)
            await copy_upgrade(a, b)
            await copy_blocks(a, b, 2, 30)
            await a.truncate(21)
            await a.append([b"other %d" % index for index in range(30)])
        else:
            a = await writer_of(length, compat=compat)
            if self.kind == "conflict":
                b = await writer_of(0, compat=compat)
                await b.append([b"not the same %d" % index for index in range(3)])
            else:
                b = await clone_of(self.key)
        self.logs = {"a": a, "b": b}
        assert a.key == b.key == self.key
        assert a.length == length
        return self

    async def _multisig(self) -> Log:
        """Two of three signers have signed; the signature is the recorded one, the blocks are any writer's."""
        signers = tuple(Signer(KeyPair.from_seed(bytes([number]) * 32).public_key) for number in (1, 2, 3))
        log = await Log.open(open_storage("memory:"), manifest=Manifest(1, quorum=2, signers=signers))
        upgrade = next(message for _, message in self.messages() if isinstance(message, Data))
        assert await log.apply([upgrade.proof]) == [None]
        origin = await writer_of(3)
        await copy_blocks(origin, log, 0, 1, 2)
        await origin.aclose()
        return log

    async def follow(self, side: str, message: Message) -> None:
        """The recorded `side` says this; its log becomes what it says of it."""
        log = self.logs[side]
        if side != "a" or not isinstance(message, Sync):
            return
        if message.fork > log.fork:
            await log.truncate(message.length, fork=message.fork)
        if message.length > log.length:
            first = log.length
            blocks = [block(index) if not log.fork else b"other %d" % (index - 21) for index in range(message.length)]
            await log.append(blocks[first:])
        assert (log.fork, log.length) == (message.fork, message.length)

    async def note(self, text: str) -> None:
        """What the application did, where it is not told by a sync."""
        if text == "writer clears blocks 2 and 3":
            await self.logs["a"].clear(2, 4)
        elif text == "the sparse side downloads block 25 elsewhere":
            assert self._origin is not None
            await copy_blocks(self._origin, self.logs["a"], 25)

    def messages(self) -> Iterator[tuple[str, Message]]:
        """Every message of the recording, with who sent it."""
        for entry in self.recording["frames"]:
            for item in items_of(entry):
                if "value" in item:
                    yield entry["from"], message_of(item["name"], item["value"])

    async def end(self) -> None:
        for log in (*self.logs.values(), self._origin):
            if log is not None:
                await log.aclose()


def items_of(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages of one recorded frame; none for a note."""
    frame = entry.get("frame")
    if frame is None:
        return []
    items: list[dict[str, Any]] = frame["items"] if frame["name"] == "batch" else [frame]
    return items


async def answer_like(log: Log, request: Request | None, recorded: Proof) -> Proof:
    """What `log` answers to the request that `recorded` answers; an unasked one is taken for one that asks for it."""
    if request is not None:
        return await log.prove(request.proof)
    asked = ProofRequest(
        recorded.fork,
        recorded.block and BlockRequest(recorded.block.index, len(recorded.block.nodes)),
        upgrade=recorded.upgrade and UpgradeRequest(recorded.upgrade.start, recorded.upgrade.length),
    )
    return await log.prove(asked)

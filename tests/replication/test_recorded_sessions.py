"""The sessions that Node cores recorded, played again with one of ours in the place of either side."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from hypercore import session as session_module
from hypercore.duplex import stream_pair
from hypercore.log.engine import Log
from hypercore.proofs import Proof
from hypercore.protocol.messages import Bitfield, Data, Message, NoData, Range, Request, Sync
from hypercore.protocol.remote import RemotePeer
from hypercore.replication import Hub
from hypercore.session import Replication
from tests.protocol.support import EPHEMERAL, SESSIONS, STATIC, encoded, message_of
from tests.replication.links import eventually
from tests.replication.raw_peer import RawPeer
from tests.replication.recordings import Scene, answer_like, items_of
from tests.running import run

OTHER = {"a": "b", "b": "a"}
ROLES = {"a": "initiator", "b": "responder"}


def of_item(item: dict[str, Any]) -> Message | None:
    return message_of(item["name"], item["value"]) if "value" in item else None


# ---- the logs alone ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SESSIONS)
def test_every_recorded_answer_is_ours_byte_for_byte(name: str) -> None:
    async def main() -> None:
        scene = await Scene(name).begin()
        pending: dict[tuple[str, int], Request] = {}
        answers = 0
        for entry in scene.recording["frames"]:
            if "note" in entry:
                await scene.note(entry["note"])
            for item in items_of(entry):
                side, message = entry["from"], of_item(item)
                if isinstance(message, Sync):
                    await scene.follow(side, message)
                elif isinstance(message, Request):
                    pending[side, message.id] = message
                elif isinstance(message, Data):
                    request = pending.pop((OTHER[side], message.request_id), None)
                    assert request is not None or message.request_id == 0
                    proof = await answer_like(scene.logs[side], request, message.proof)
                    assert encoded(Data(message.request_id, proof)).hex() == f"{item['type']:02x}" + item["payload"]
                    answers += 1
        assert answers > 0 or scene.name == "session-empty-10-10.json"
        await scene.end()

    run(main())


@pytest.mark.parametrize("name", SESSIONS)
def test_every_recorded_answer_takes_our_reader_where_the_recorded_one_went(name: str) -> None:
    async def main() -> None:
        scene = await Scene(name).begin()
        reader = scene.logs["b"]
        told: Sync | None = None
        dropped: int | None = None
        for entry in (*scene.recording["frames"], {"note": "the end"}):
            if "note" in entry:
                assert told is None or (told.fork, told.length) == (reader.fork, reader.length)
                await scene.note(entry["note"])
            for item in items_of(entry):
                message = of_item(item)
                if isinstance(message, Sync) and entry["from"] == "b":
                    assert message.fork < reader.fork or message.length <= reader.length
                    told = message
                elif isinstance(message, Range) and entry["from"] == "b" and message.drop:
                    assert dropped == message.start, "what was shared is what the recorded reader found to be shared"
                elif isinstance(message, Sync):
                    await scene.follow("a", message)
                elif isinstance(message, Data) and entry["from"] == "a":
                    proof = message.proof
                    if proof.fork > reader.fork:
                        dropped = await follow_fork(reader, scene.logs["a"], proof)
                    elif scene.kind == "conflict":
                        await take_conflicting(reader, message)
                    else:
                        assert await reader.apply([proof]) == [None]
                        if proof.block is not None:
                            assert await reader.get(proof.block.index) == proof.block.value
                elif isinstance(message, Data):
                    assert await scene.logs["a"].conflicts(message.proof)
        if "after" in scene.recording:
            after = scene.recording["after"]
            assert (reader.length, reader.fork) == (after["length"], after["fork"])
            assert reader.has(2)
            assert not reader.has(30)
        await scene.end()

    run(main())


async def follow_fork(reader: Log, writer: Log, proof: Proof) -> int:
    """Follow the recorded proof of a fork; how many blocks were shared."""
    reorg = await reader.begin_reorg(proof)
    while (request := reorg.next_request()) is not None:
        await reorg.receive(reader, await writer.prove(request))
    shared = reorg.ancestors
    await reader.commit_reorg(reorg)
    return shared


async def take_conflicting(reader: Log, message: Data) -> None:
    """The answers of somebody who signed other blocks under the same key."""
    if message.request_id:
        (error,) = await reader.apply([message.proof])
        assert error is not None
    else:
        assert await reader.conflicts(message.proof)


# ---- a recorded side talks to ours ---------------------------------------------------------------------


class Player(RawPeer):
    """One recorded side: sends its frames as they were, and understands what ours says.

    Both ends have the recorded keys, so that even the capabilities in the recorded opens are right.
    """

    def __init__(self, scene: Scene, side: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.scene = scene
        ours = OTHER[side]

        class Pinned:
            @staticmethod
            def generate() -> object:
                return EPHEMERAL[ROLES[ours]]

        monkeypatch.setattr(session_module, "KeyPair", Pinned)
        wire, theirs = stream_pair()
        role = ROLES[side]
        super().__init__(wire, initiator=role == "initiator", key_pair=STATIC[role], ephemeral=EPHEMERAL[role])
        self.hub = Hub(scene.logs[ours])
        self.replication = Replication(theirs, initiator=role == "responder", key_pair=STATIC[ROLES[ours]])
        self.replication.add(self.hub)
        self.replication.start_running()
        #: What the side would know of our log after what ours has said.
        self.view = RemotePeer()
        self.last_sync: Sync | None = None
        self.on_request: Callable[[Request], Awaitable[None]] | None = None

    async def on_message(self, message: Message) -> None:
        match message:
            case Sync():
                self.last_sync = message
                self.view.take_sync(message, local_fork=message.fork)
            case Range(drop, start, length):
                self.view.take_range(start, length, drop=drop)
            case Bitfield(start, words):
                self.view.take_bitfield(start, words)
            case Request() if self.on_request is not None:
                await self.on_request(message)

    async def opened(self) -> Player:
        assert (await self.handshake_hash()).hex() == self.scene.recording["handshakeHash"]
        return self

    async def leave(self) -> None:
        """The recorded side has nothing more to say; ours must have found no fault with it."""
        assert self.replication.error is None
        assert not self.replication.is_closed
        await self.hang_up()
        await self.replication.wait_closed()
        assert self.replication.error is None
        self.hub.close()


def may_ask(sync: Sync | None, request: Request, own: Sync) -> bool:
    """Whether a Node reader that said `own` asks for this upgrade after this sync (wire spec, section 5.2)."""
    upgrade = request.proof.upgrade
    assert upgrade is not None
    if sync is None or not sync.uploading or sync.fork != request.proof.fork:
        return False
    if sync.length < upgrade.start + upgrade.length:
        return False
    return own.fork < sync.fork or (sync.can_upgrade and sync.remote_length == upgrade.start)


@pytest.mark.parametrize("name", SESSIONS)
def test_our_writer_gives_the_recorded_reader_what_it_needs_and_what_it_got(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        scene = await Scene(name).begin()
        player = await Player(scene, "b", monkeypatch).opened()
        recorded_view = RemotePeer()
        expected: list[str] = []
        own: Sync | None = None
        opens = 0
        for entry in scene.recording["frames"]:
            if "note" in entry:
                await scene.note(entry["note"])
            messages = [message for item in items_of(entry) if (message := of_item(item)) is not None]
            for message in messages:
                if entry["from"] == "a":
                    await follow_writer(scene, player, message, recorded_view, expected)
                elif isinstance(message, Sync):
                    own = message
                elif isinstance(message, Request):
                    if message.proof.upgrade is not None and message.id:
                        assert own is not None
                        await eventually(lambda m=message, o=own: may_ask(player.last_sync, m, o))  # type: ignore[misc]
                    elif message.proof.block is not None:
                        index = message.proof.block.index
                        await eventually(lambda index=index: player.view.has(index))  # type: ignore[misc]
            if entry["from"] == "b":
                opens += entry["frame"]["name"] == "open"
                await player.send_frame(bytes.fromhex(entry["hex"]))
                await eventually(lambda opens=opens: player.opens == opens or player.hub.frozen)  # type: ignore[misc]
        await eventually(lambda: player.hub.frozen == (scene.kind == "conflict"))
        given = [encoded(message).hex() for message in player.received(Data)]
        assert sorted(given) == sorted(expected)
        assert not player.received(NoData)
        length = scene.logs["a"].length
        held = [index for index in range(length) if recorded_view.has(index)]
        await eventually(lambda: [index for index in range(length) if player.view.has(index)] == held)
        await player.leave()
        await scene.end()

    run(main())


async def follow_writer(
    scene: Scene, player: Player, message: Message, recorded_view: RemotePeer, expected: list[str]
) -> None:
    """The recorded writer says this: ours has to have said as much before the recording goes on."""
    match message:
        case Sync():
            await scene.follow("a", message)
        case Range(drop, start, length):
            recorded_view.take_range(start, length, drop=drop)
        case Bitfield(start, words):
            recorded_view.take_bitfield(start, words)
        case Data(request_id) if request_id or scene.kind == "conflict":
            expected.append(encoded(message).hex())
            await eventually(lambda: len(player.received(Data)) >= len(expected))


@pytest.mark.parametrize("name", SESSIONS)
def test_a_recorded_writer_never_loses_its_connection_to_our_reader(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        scene = await Scene(name).begin()
        player = await Player(scene, "a", monkeypatch).opened()
        for entry in scene.recording["frames"]:
            if entry["from"] == "a":
                await player.send_frame(bytes.fromhex(entry["hex"]))
                await asyncio.sleep(0)
        await eventually(lambda: player.opens > 0)
        if scene.kind == "conflict":
            await eventually(lambda: player.hub.frozen)
        await player.leave()
        await scene.end()

    run(main())


@pytest.mark.parametrize("name", [name for name in SESSIONS if "conflict" not in name])
def test_our_reader_gets_from_a_recorded_writer_what_the_recorded_reader_got(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer says what it said; our requests are answered with the recorded answers wherever they are the same."""

    async def main() -> None:
        scene = await Scene(name).begin()
        recorded = recorded_answers(scene)
        player = await Player(scene, "a", monkeypatch).opened()
        reader = scene.logs["b"]
        asked: set[object] = set()
        wanted: list[int] = []

        async def answer(request: Request) -> None:
            asked.add(request.proof)
            proof = recorded.get(request.proof)
            await player.send(Data(request.id, proof or await scene.logs["a"].prove(request.proof)))

        player.on_request = answer
        for entry in scene.recording["frames"]:
            if "note" in entry:
                await scene.note(entry["note"])
                wanted += await want(player, entry["note"])
            messages = [message for item in items_of(entry) if (message := of_item(item)) is not None]
            for message in messages:
                if isinstance(message, Sync) and entry["from"] == "b":
                    there = message.fork, message.length
                    await eventually(lambda there=there: (reader.fork, reader.length) >= there)  # type: ignore[misc]
                elif isinstance(message, Data) and entry["from"] == "a" and not has_part(message.proof):
                    (request,) = [request for request, proof in recorded.items() if proof == message.proof]
                    await eventually(lambda request=request: request in asked)  # type: ignore[misc]
                elif entry["from"] == "a":
                    await scene.follow("a", message)
            if entry["from"] == "a" and not any(isinstance(message, Data) for message in messages):
                await player.send_frame(bytes.fromhex(entry["hex"]))
        await eventually(lambda: all(reader.has(index) for index in wanted))
        writer = scene.logs["a"]
        assert (reader.fork, reader.length) == (writer.fork, writer.length)
        assert await reader.tree_hash() == await writer.tree_hash()
        assert asked & recorded.keys()
        await player.leave()
        await scene.end()

    run(main())


def has_part(proof: Proof) -> bool:
    return proof.block is not None or proof.hash is not None


def recorded_answers(scene: Scene) -> dict[object, Proof]:
    pending: dict[int, Request] = {}
    answers: dict[object, Proof] = {}
    for side, message in scene.messages():
        if isinstance(message, Request) and side == "b":
            pending[message.id] = message
        elif isinstance(message, Data) and side == "a" and message.request_id in pending:
            answers[pending.pop(message.request_id).proof] = message.proof
    return answers


async def want(player: Player, note: str) -> list[int]:
    """Want what the recorded reader's application wanted."""
    words = note.split()
    if words[:3] != ["reader", "gets", "block"] or "limit" in note or "lacks" in note:
        return []
    reader, index = player.scene.logs["b"], int(words[3].rstrip(","))
    await eventually(lambda: reader.length > index)
    player.hub.replicator.want_block(index)
    player.hub.pump()
    return [index]

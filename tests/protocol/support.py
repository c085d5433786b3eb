"""What the protocol's tests share: vectors, their values as ours, and two connections that talk through bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypercore.crypto import KeyPair
from hypercore.proofs import (
    BlockProof,
    BlockRequest,
    HashProof,
    HashRequest,
    Node,
    Proof,
    ProofRequest,
    SeekProof,
    SeekRequest,
    UpgradeProof,
    UpgradeRequest,
)
from hypercore.protocol.channel import Channel
from hypercore.protocol.connection import Connection, Role
from hypercore.protocol.events import Event
from hypercore.protocol.limits import DEFAULT_LIMITS, Limits
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
    encode,
)

VECTORS = Path(__file__).parent.parent / "vectors"
SESSIONS = sorted(path.name for path in VECTORS.glob("session-*.json"))

#: The keys that every recording was made with.
STATIC = {"initiator": KeyPair.from_seed(b"\x11" * 32), "responder": KeyPair.from_seed(b"\x22" * 32)}
EPHEMERAL = {"initiator": KeyPair.from_seed(b"\x33" * 32), "responder": KeyPair.from_seed(b"\x44" * 32)}

CORE_KEY = bytes(range(32))


def load(name: str) -> Any:
    return json.loads((VECTORS / name).read_text())


def encoded(message: Message) -> bytes:
    """Type and payload of a message, joined, with the size that the encoder claims checked."""
    parts: list[bytes] = []
    size = encode(message, parts)
    data = b"".join(parts)
    assert size == len(data)
    return data


# ---- connections -----------------------------------------------------------------------------------


def make_connection(role: Role, *, header: bytes = b"", limits: Limits = DEFAULT_LIMITS) -> Connection:
    """A connection with the keys of the recordings, so that every test repeats."""
    header = header or role.encode().ljust(24, b".")
    return Connection(role, STATIC[role], ephemeral=EPHEMERAL[role], header=header, limits=limits)


def pump(first: Connection, second: Connection) -> None:
    """Carry bytes both ways until neither side has any."""
    while True:
        forth, back = first.data_to_send(), second.data_to_send()
        if not forth and not back:
            return
        if forth:
            second.receive_data(forth)
        if back:
            first.receive_data(back)


def connected(*, limits: Limits = DEFAULT_LIMITS) -> tuple[Connection, Connection]:
    """Two connections behind their handshake, events taken."""
    initiator, responder = make_connection("initiator", limits=limits), make_connection("responder", limits=limits)
    pump(initiator, responder)
    initiator.events(), responder.events()
    return initiator, responder


def opened(*, limits: Limits = DEFAULT_LIMITS) -> tuple[Connection, Channel, Connection, Channel]:
    """Two connections with one channel open between them, events taken."""
    initiator, responder = connected(limits=limits)
    ours, theirs = initiator.open_channel(CORE_KEY), responder.open_channel(CORE_KEY)
    pump(initiator, responder)
    initiator.events(), responder.events()
    return initiator, ours, responder, theirs


def received(connection: Connection) -> list[Message]:
    """The messages among the events, which must be nothing else."""
    events: list[Event] = connection.events()
    assert {type(event).__name__ for event in events} <= {"MessageReceived"}, events
    return [event.message for event in events]  # type: ignore[union-attr]


# ---- the recordings' values as ours ----------------------------------------------------------------


def message_of(name: str, value: dict[str, Any]) -> Message:
    """The message that a vector describes by name and fields."""
    match name:
        case "sync":
            return Sync(
                value["fork"],
                value["length"],
                value["remoteLength"],
                value["canUpgrade"],
                value["uploading"],
                value["downloading"],
                value["hasManifest"],
                value["allowPush"],
            )
        case "request":
            return _request(value)
        case "cancel":
            return Cancel(value["request"])
        case "data":
            return _data(value)
        case "noData":
            return NoData(value["request"], value["reason"])
        case "want":
            return Want(value["start"], value["length"], value["any"])
        case "unwant":
            return Unwant(value["start"], value["length"], value["any"])
        case "bitfield":
            words = value["bitfield"]
            count = value.get("words", len(words))
            data = b"".join(word.to_bytes(4, "little") for word in words)
            return Bitfield(value["start"], data.ljust(4 * count, b"\x00"))
        case "range":
            return Range(value["drop"], value["start"], value["length"])
        case "extension":
            return Extension(value["name"], bytes.fromhex(value["message"]))
    raise AssertionError(f"the vectors speak of an unknown message {name}")


def _request(value: dict[str, Any]) -> Request:
    block, hash_, seek, upgrade = (value[part] for part in ("block", "hash", "seek", "upgrade"))
    proof = ProofRequest(
        value["fork"],
        block and BlockRequest(block["index"], block["nodes"]),
        hash_ and HashRequest(hash_["index"], hash_["nodes"]),
        seek and SeekRequest(seek["bytes"], seek["padding"]),
        upgrade and UpgradeRequest(upgrade["start"], upgrade["length"]),
        value["manifest"],
    )
    return Request(value["id"], value["priority"], proof)


def _data(value: dict[str, Any]) -> Data:
    block, hash_, seek, upgrade = (value[part] for part in ("block", "hash", "seek", "upgrade"))
    manifest = value["manifest"]
    proof = Proof(
        value["fork"],
        block and BlockProof(block["index"], bytes.fromhex(block["value"]), _nodes(block["nodes"])),
        hash_ and HashProof(hash_["index"], _nodes(hash_["nodes"])),
        seek and SeekProof(seek["bytes"], _nodes(seek["nodes"])),
        upgrade
        and UpgradeProof(
            upgrade["start"],
            upgrade["length"],
            _nodes(upgrade["nodes"]),
            _nodes(upgrade["additionalNodes"]),
            bytes.fromhex(upgrade["signature"] or ""),
        ),
        manifest and _manifest(manifest),
    )
    return Data(value["request"], proof)


def _nodes(nodes: list[dict[str, Any]]) -> tuple[Node, ...]:
    return tuple(Node(node["index"], node["size"], bytes.fromhex(node["hash"])) for node in nodes)


def _manifest(manifest: dict[str, Any]) -> bytes:
    """The one layout that the recorded messages have; the log's own tests know the others."""
    assert manifest["version"] == 1
    assert not manifest["allowPatch"]
    assert manifest["prologue"] is None
    signers = [bytes.fromhex(signer["namespace"] + signer["publicKey"]) for signer in manifest["signers"]]
    head = bytes([1, 0, 0, manifest["quorum"], len(signers)])
    return head + b"".join(b"\x00" + signer for signer in signers)

"""Hypercore 10 in a folder: what it does there, what it sees, and how that compares with a plain list."""

from __future__ import annotations

import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

from hypercore.crypto import KeyPair
from hypercore.log.engine import Log
from hypercore.log.manifest import Authority, default_manifest, manifest_key
from tests.histories import Action, Append, Clear, Model, SetUserData, Truncate, difference, view_of
from tests.interop.doomed import KEY_PAIR
from tests.interop.node_peer import NodePeer, NodePeerError

#: Of `KEY_PAIR`.
SEED = (b"\x01" * 32).hex()


class NodeFolder:
    """Hypercore 10 on one folder after the other; its process is replaced when it was killed."""

    def __init__(self) -> None:
        self._peer: NodePeer | None = None

    async def peer(self) -> NodePeer:
        if self._peer is None:
            self._peer = await NodePeer.start(10, "folder")
        return self._peer

    async def open(self, folder: Path, **options: Any) -> None:
        await (await self.peer()).command("open", storage=str(folder), **options)

    async def view(self) -> dict[str, Any]:
        return await (await self.peer()).command("view")

    async def perform(self, action: Action) -> None:
        peer = await self.peer()
        match action:
            case Append(blocks):
                await peer.command("append", blocks=[block.hex() for block in blocks])
            case Truncate(length):
                await peer.command("truncate", length=length)
            case Clear(start, end):
                try:
                    await peer.command("clear", start=start, end=end)
                except NodePeerError as error:
                    # It has been done, but for giving back the bytes, of which there are none.
                    if error.code != "EINVAL":
                        raise
            case SetUserData(key, value):
                await peer.command("userdata", key=key, value=None if value is None else value.hex())

    async def close(self) -> None:
        await (await self.peer()).command("close")

    async def kill(self) -> None:
        if self._peer is not None:
            await self._peer.kill()
            self._peer = None

    async def __aenter__(self) -> NodeFolder:
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._peer is not None:
            await self._peer.stop()


def authority(*, compat: bool, key_pair: KeyPair = KEY_PAIR) -> Authority:
    manifest = default_manifest(key_pair.public_key)
    return Authority.of(key_pair.public_key if compat else manifest_key(manifest), manifest)


def as_node_sees_it(model: Model, *, compat: bool, writable: bool) -> dict[str, Any]:
    """What `view` in Node tells of a core of `KEY_PAIR`, or of a clone of one."""
    signer = authority(compat=compat)
    signature = signer.sign(model.tree_hash, model.length, model.fork, KEY_PAIR).hex() if model.length else None
    return {
        "key": signer.key.hex(),
        "writable": writable,
        "fork": model.fork,
        "length": model.length,
        "byteLength": sum(map(len, model.blocks)),
        "treeHash": model.tree_hash.hex(),
        "signature": signature,
        "userData": dict[str, str]({key: value.hex() for key, value in model.user_data.items()}),
        "blocks": [None if block is None else sha256(block).hexdigest() for block in model.view.blocks],
    }


def node_difference(view: dict[str, Any], model: Model, *, compat: bool, writable: bool = True) -> str:
    """In one line what differs; empty when nothing does."""
    view = {**view, "userData": dict(view["userData"])}
    wanted = as_node_sees_it(model, compat=compat, writable=writable)
    said = [
        f"{name} {view[name]}, not {want}" for name, want in wanted.items() if name != "blocks" and view[name] != want
    ]
    if view["blocks"] != wanted["blocks"]:
        pairs = enumerate(zip(view["blocks"], wanted["blocks"], strict=False))
        wrong = [index for index, (got, want) in pairs if got != want]
        said.append(f"blocks {wrong[:10]} differ, and there are {len(view['blocks'])}")
    return "; ".join(said)


def node_found(view: dict[str, Any], possible: list[Model], said: str, *, compat: bool, writable: bool = True) -> Model:
    """The one of the models that Node sees."""
    differences = []
    for model in reversed(possible):
        differences.append(node_difference(view, model, compat=compat, writable=writable))
        if not differences[-1]:
            return model
    raise AssertionError(f"{said}: {' or: '.join(differences)}")


async def found(log: Log, possible: list[Model], said: str) -> Model:
    """The one of the models that our log is."""
    view = await view_of(log)
    for model in reversed(possible):
        if not difference(view, model):
            assert await log.tree_hash() == model.tree_hash, said
            assert log.contiguous_length == model.contiguous_length, said
            return model
    raise AssertionError(f"{said}: " + " or: ".join(difference(view, model) for model in possible))


async def audit(
    node: NodeFolder, folder: Path, model: Model, said: str, *, compat: bool, writable: bool = True
) -> None:
    """Node finds nothing to correct in the folder. It writes when it looks, so it gets a copy."""
    copy = folder.with_name("audited")
    shutil.copytree(folder, copy)
    await node.open(copy, create=False)
    corrections = (await (await node.peer()).command("audit"))["corrections"]
    assert corrections == {"tree": 0, "blocks": 0}, f"{said}: {corrections}"
    problem = node_difference(await node.view(), model, compat=compat, writable=writable)
    assert not problem, f"{said}, audited by Node: {problem}"
    await node.close()
    shutil.rmtree(copy)


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """What the files hold."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}

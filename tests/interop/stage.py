"""Where a core of ours meets Node's: kept Node processes, connections in every role, and what nobody may complain of.

def test_something(stage: Stage) -> None:
    async def main() -> None:
        async with stage.writer(100, size=50) as writer:
            reader = await stage.node_clone(writer.key)
            await stage.connect(writer)

    stage.run(main())
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import pytest

from hypercore.core import Hypercore
from hypercore.plugins import open_transport
from hypercore.session import Replication
from hypercore.storage import Storage
from hypercore.transport import ByteStream
from tests.interop.node_peer import NodePeer, filled_block
from tests.running import TEST_TIMEOUT_SECONDS

T = TypeVar("T")

#: What Node says when something went wrong there.
COMPLAINTS = ("crash", "output", "stream-error", "socket-error", "conflict", "tail-error", "bad-command")
#: And when whoever it was connected with was ended by the test.
GONE = "ECONNRESET"


@dataclass(frozen=True, slots=True)
class Role:
    """Who dials and who starts the handshake: two things, though custom makes them one."""

    we_dial: bool
    we_initiate: bool

    def __str__(self) -> str:
        return f"we-{'dial' if self.we_dial else 'listen'}-and-{'start' if self.we_initiate else 'answer'}"


@dataclass(frozen=True, slots=True)
class Setting:
    """One Node, one kind of key, one pair of roles."""

    major: int
    compat: bool
    role: Role

    def __str__(self) -> str:
        return f"node{self.major}-{'compat' if self.compat else 'manifest'}-{self.role}"


ROLES = tuple(Role(dials, initiates) for dials in (True, False) for initiates in (True, False))
SETTINGS = tuple(Setting(major, compat, role) for major in (10, 11) for compat in (False, True) for role in ROLES)
#: Each Node, each kind of key and each pair of roles, but not each with each: for what is not about these.
FEW_SETTINGS = (
    Setting(10, False, Role(True, True)),
    Setting(10, True, Role(False, False)),
    Setting(11, False, Role(False, True)),
    Setting(11, True, Role(True, False)),
)

all_settings = pytest.mark.parametrize("setting", SETTINGS, ids=str)
few_settings = pytest.mark.parametrize("setting", FEW_SETTINGS, ids=str)


def blocks(start: int, end: int, size: int) -> list[bytes]:
    """What Node appends as `count` blocks of `size` bytes."""
    return [filled_block(index, size) for index in range(start, end)]


def digest(contents: Iterable[bytes]) -> str:
    return sha256(b"".join(contents)).hexdigest()


async def contents(core: Hypercore) -> list[bytes]:
    return [block async for block in core.create_read_stream()]


async def clone_whole(reader: Hypercore) -> None:
    await reader.update()
    await reader.download(0, reader.length).done()


class Nodes:
    """One process for each major, kept from test to test, in an event loop that is kept as well."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._peers: dict[int, NodePeer] = {}

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        async def bounded() -> T:
            async with asyncio.timeout(TEST_TIMEOUT_SECONDS):
                return await coroutine

        return self._runner.run(bounded())

    async def of(self, major: int) -> NodePeer:
        if major not in self._peers:
            self._peers[major] = await NodePeer.start(major, "folder")
        return self._peers[major]

    async def discard(self, major: int) -> None:
        """After a failure nobody knows what it is up to."""
        if major in self._peers:
            await self._peers.pop(major).kill()

    async def stop(self) -> None:
        for peer in self._peers.values():
            await peer.stop()

    def close(self) -> None:
        self._runner.run(self.stop())
        self._runner.close()


class NodeCore:
    """One core in a Node process; `command` as the process has it, for this core."""

    def __init__(self, peer: NodePeer, name: str, opened: dict[str, Any]) -> None:
        self.peer = peer
        self.name = name
        self.key = bytes.fromhex(opened["key"])

    async def command(self, command: str, **parameters: Any) -> dict[str, Any]:
        return await self.peer.command(command, core=self.name, **parameters)

    async def event(self, kind: str, **members: Any) -> dict[str, Any]:
        return await self.peer.event(kind, core=self.name, **members)

    async def get(self, index: int) -> bytes:
        return bytes.fromhex((await self.command("get", index=index))["hex"])

    async def stored(self) -> int:
        """Blocks that are here."""
        return int((await self.command("held"))["count"])

    async def close(self) -> None:
        await self.command("close")


async def open_in(peer: NodePeer, name: str, **options: Any) -> NodeCore:
    return NodeCore(peer, name, await peer.command("open", core=name, **options))


async def node_clones_whole(reader: NodeCore, length: int) -> str:
    """Downloads all of it and gives its digest."""
    await reader.command("wait", length=length)
    return str((await reader.command("download"))["sha256"])


class Stage:
    """One test's connections and cores, gone when the test ends."""

    def __init__(self, nodes: Nodes, setting: Setting, folder: Path, *, both_majors: bool = False) -> None:
        self._nodes = nodes
        self.setting = setting
        self.major, self.compat, self.role = setting.major, setting.compat, setting.role
        self.folder = folder
        self._majors = (10, 11) if both_majors else (setting.major,)
        self._opened: list[NodeCore] = []
        self._ours: dict[int, Hypercore] = {}
        self._replications: list[Replication] = []
        #: Set by tests of what goes wrong.
        self.complaints_expected = False

    @property
    def other_major(self) -> int:
        return 21 - self.major

    def run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """The test. Fails when either side complained of the other one, too."""

        async def staged() -> None:
            for major in self._majors:
                await self.node(major)
            tasks = asyncio.all_tasks()
            await coroutine
            await self._check_peace()
            await self._clear()
            left = [each for each in asyncio.all_tasks() - tasks if each is not asyncio.current_task()]
            if left:
                await asyncio.wait(left, timeout=1.0)
            stuck = [task for task in left if not task.done()]
            assert not stuck, f"the test left tasks running: {stuck}"

        try:
            self._nodes.run(staged())
        except BaseException:
            for major in self._majors:
                self._nodes.run(self._nodes.discard(major))
            raise

    async def node(self, major: int | None = None) -> NodePeer:
        """The process of the setting's hypercore, or of the other one."""
        return await self._nodes.of(major or self.major)

    # ---- cores ----

    def core(self, key: bytes | None = None, *, storage: str | Storage = "memory:", **options: Any) -> Hypercore:
        """A core of ours: a clone with `key`, else a writer."""
        core = Hypercore(storage, key, compat=self.compat if key is None else False, **options)
        self._ours[id(core)] = core
        return core

    async def node_core(self, *, major: int | None = None, name: str | None = None, **options: Any) -> NodeCore:
        name = name or f"core{len(self._opened)}"
        opened = await open_in(await self.node(major), name, storage=str(self.folder / name), **options)
        self._opened.append(opened)
        return opened

    async def node_writer(self, count: int = 0, size: int = 20, **options: Any) -> NodeCore:
        core = await self.node_core(compat=self.compat, **options)
        if count:
            await core.command("append", count=count, size=size)
        return core

    async def node_clone(self, key: bytes, **options: Any) -> NodeCore:
        return await self.node_core(key=key.hex(), **options)

    def forget(self, core: NodeCore) -> None:
        """Node closed the core by itself."""
        self._opened.remove(core)

    # ---- connections ----

    async def connect(
        self,
        *cores: Hypercore,
        major: int | None = None,
        wrap: Callable[[ByteStream], ByteStream] | None = None,
    ) -> Replication:
        """Connect cores of ours with every core that is open in Node, over one TCP connection."""
        replication = await connect(await self.node(major), *cores, role=self.role, wrap=wrap)
        self._replications.append(replication)
        return replication

    async def _check_peace(self) -> None:
        if self.complaints_expected:
            return
        for replication in self._replications:
            assert replication.error is None, f"we broke off: {replication.error!r}"
        for core in self._ours.values():
            assert not list(core.hub.warnings), f"we complained: {list(core.hub.warnings)}"
        for major in self._majors:
            node = await self.node(major)
            said = [event for kind in COMPLAINTS for event in node.events(kind) if event.get("code") != GONE]
            assert not said, f"Node's hypercore {major} complained: {said}"

    async def _clear(self) -> None:
        for replication in self._replications:
            await replication.aclose()
        for major in self._majors:
            await (await self.node(major)).command("disconnect")
        for core in self._opened:
            await core.close()
        for major in self._majors:
            (await self.node(major)).forget_events()


async def connect(
    node: NodePeer,
    *cores: Hypercore,
    role: Role,
    wrap: Callable[[ByteStream], ByteStream] | None = None,
) -> Replication:
    """One TCP connection between cores of ours and a Node process, whose handshake is done on our side."""
    transport = open_transport("tcp:")
    if role.we_dial:
        port = (await node.command("listen", initiator=not role.we_initiate))["port"]
        stream = await transport.connect(f"tcp://127.0.0.1:{port}")
    else:
        listener = await transport.listen("tcp://127.0.0.1:0")
        port = int(listener.addresses[0].rpartition(":")[2])
        # Node answers when the handshake is done, which takes our part in it.
        dialling = asyncio.create_task(node.command("dial", port=port, initiator=not role.we_initiate))
        stream = await listener.accept()
        await listener.aclose()
    if wrap is not None:
        stream = wrap(stream)
    replication = cores[0].replicate(stream, initiator=role.we_initiate)
    for core in cores[1:]:
        core.replicate(replication)
    if not role.we_dial:
        await dialling
    await replication.opened()
    return replication

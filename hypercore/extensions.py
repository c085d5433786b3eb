"""Extension messages: a program's own messages between peers of one core (wire spec, section 4.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from hypercore.errors import ClosedError, OptionError
from hypercore.peer import Peer
from hypercore.protocol.messages import Extension as ExtensionMessage
from hypercore.replication import Hub

#: As large as the largest block: a frame holds that, and a name of any sense.
MAX_PAYLOAD_SIZE: Final = 15 * 1024 * 1024
MAX_NAME_SIZE: Final = 1024

OnMessage = Callable[[bytes, Peer], None]


class Extension:
    """One registered name. `on_message(payload, peer)` is called for each message; it should return soon."""

    def __init__(self, extensions: Extensions, name: str, on_message: OnMessage | None) -> None:
        self._extensions = extensions
        self.name = name
        self.on_message = on_message

    def send(self, payload: bytes, peer: Peer) -> None:
        """Send to one peer; a peer that did not register the name drops it. Raises `OptionError` above 15 MiB."""
        if len(payload) > MAX_PAYLOAD_SIZE:
            raise OptionError(f"a message of {len(payload)} bytes; at most {MAX_PAYLOAD_SIZE} fit into a frame")
        peer.send(ExtensionMessage(self.name, payload))

    def broadcast(self, payload: bytes) -> None:
        """Send to every peer that is connected now."""
        for peer in self._extensions.peers():
            self.send(payload, peer)

    def destroy(self) -> None:
        """Take no more messages."""
        self._extensions.remove(self)


class Extensions:
    """The names that are registered on one core."""

    def __init__(self) -> None:
        self._by_name: dict[str, Extension] = {}
        self._hub: Hub | None = None

    def bind(self, hub: Hub) -> None:
        self._hub = hub
        hub.on_extension = self._receive

    def register(self, name: str, on_message: OnMessage | None) -> Extension:
        """Raises `OptionError` when the name is empty, too long or taken."""
        if not 0 < len(name.encode()) <= MAX_NAME_SIZE:
            raise OptionError(f"an extension needs a name, of at most {MAX_NAME_SIZE} bytes")
        if name in self._by_name:
            raise OptionError(f"the extension {name!r} is registered already")
        extension = self._by_name[name] = Extension(self, name, on_message)
        return extension

    def remove(self, extension: Extension) -> None:
        if self._by_name.get(extension.name) is extension:
            del self._by_name[extension.name]

    def peers(self) -> list[Peer]:
        if self._hub is None:
            raise ClosedError("the core is not open yet")
        return list(self._hub.peers)

    def _receive(self, peer: Peer, name: str, payload: bytes) -> None:
        extension = self._by_name.get(name)
        if extension is not None and extension.on_message is not None:
            extension.on_message(payload, peer)

"""Hypercore for Python: a secure append-only log with pluggable storage and transports.

    from hypercore import Hypercore, Swarm

Each name is imported when it is first used, so that `import hypercore` costs next to nothing and loads no driver.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hypercore.codecs import Codec as Codec
    from hypercore.contacts import PeerInfo as PeerInfo
    from hypercore.core import AppendResult as AppendResult
    from hypercore.core import Hypercore as Hypercore
    from hypercore.core import Info as Info
    from hypercore.core import SeekResult as SeekResult
    from hypercore.crypto import KeyPair as KeyPair
    from hypercore.downloads import Download as Download
    from hypercore.downloads import Progress as Progress
    from hypercore.errors import AddressError as AddressError
    from hypercore.errors import BlockIndexError as BlockIndexError
    from hypercore.errors import BlockNotAvailableError as BlockNotAvailableError
    from hypercore.errors import ClosedError as ClosedError
    from hypercore.errors import ConnectError as ConnectError
    from hypercore.errors import CorruptError as CorruptError
    from hypercore.errors import DecodeError as DecodeError
    from hypercore.errors import FencedError as FencedError
    from hypercore.errors import ForeignStorageError as ForeignStorageError
    from hypercore.errors import FormatError as FormatError
    from hypercore.errors import HypercoreError as HypercoreError
    from hypercore.errors import LockedError as LockedError
    from hypercore.errors import MissingDriverError as MissingDriverError
    from hypercore.errors import NewerFormatError as NewerFormatError
    from hypercore.errors import NotDurableError as NotDurableError
    from hypercore.errors import NotWritableError as NotWritableError
    from hypercore.errors import OptionError as OptionError
    from hypercore.errors import PeerBannedError as PeerBannedError
    from hypercore.errors import PeerRefusedError as PeerRefusedError
    from hypercore.errors import PluginError as PluginError
    from hypercore.errors import ProofRequestError as ProofRequestError
    from hypercore.errors import ProtocolError as ProtocolError
    from hypercore.errors import StorageConflictError as StorageConflictError
    from hypercore.errors import StorageError as StorageError
    from hypercore.errors import StorageFullError as StorageFullError
    from hypercore.errors import StorageMissingError as StorageMissingError
    from hypercore.errors import TransportError as TransportError
    from hypercore.errors import VerificationError as VerificationError
    from hypercore.errors import WaitTimeoutError as WaitTimeoutError
    from hypercore.events import Appended as Appended
    from hypercore.events import CoreEvent as CoreEvent
    from hypercore.events import Downloaded as Downloaded
    from hypercore.events import PeerAdded as PeerAdded
    from hypercore.events import PeerRemoved as PeerRemoved
    from hypercore.events import Truncated as Truncated
    from hypercore.extensions import Extension as Extension
    from hypercore.keys import decode_key as decode_key
    from hypercore.keys import encode_z32 as encode_z32
    from hypercore.log.manifest import Manifest as Manifest
    from hypercore.log.manifest import Prologue as Prologue
    from hypercore.log.manifest import Signer as Signer
    from hypercore.mirrors.mirror import Mirror as Mirror
    from hypercore.mirrors.status import CoreStatus as CoreStatus
    from hypercore.mirrors.status import MirrorStatus as MirrorStatus
    from hypercore.mirrors.status import PeerStatus as PeerStatus
    from hypercore.peer import Peer as Peer
    from hypercore.proofs import BlockRequest as BlockRequest
    from hypercore.proofs import HashRequest as HashRequest
    from hypercore.proofs import Proof as Proof
    from hypercore.proofs import SeekRequest as SeekRequest
    from hypercore.proofs import UpgradeRequest as UpgradeRequest
    from hypercore.session import Replication as Replication
    from hypercore.stats import ConnectionStats as ConnectionStats
    from hypercore.storage import RandomAccess as RandomAccess
    from hypercore.storage import Storage as Storage
    from hypercore.streams import WriteStream as WriteStream
    from hypercore.swarm import Swarm as Swarm
    from hypercore.transport import ByteStream as ByteStream
    from hypercore.transport import Listener as Listener
    from hypercore.transport import Transport as Transport

    __version__: str

#: Where each public name lives.
_NAMES = {
    "codecs": ("Codec",),
    "contacts": ("PeerInfo",),
    "core": ("AppendResult", "Hypercore", "Info", "SeekResult"),
    "crypto": ("KeyPair",),
    "downloads": ("Download", "Progress"),
    "errors": (
        "AddressError",
        "BlockIndexError",
        "BlockNotAvailableError",
        "ClosedError",
        "ConnectError",
        "CorruptError",
        "DecodeError",
        "FencedError",
        "ForeignStorageError",
        "FormatError",
        "HypercoreError",
        "LockedError",
        "MissingDriverError",
        "NewerFormatError",
        "NotDurableError",
        "NotWritableError",
        "OptionError",
        "PeerBannedError",
        "PeerRefusedError",
        "PluginError",
        "ProofRequestError",
        "ProtocolError",
        "StorageConflictError",
        "StorageError",
        "StorageFullError",
        "StorageMissingError",
        "TransportError",
        "VerificationError",
        "WaitTimeoutError",
    ),
    "events": ("Appended", "CoreEvent", "Downloaded", "PeerAdded", "PeerRemoved", "Truncated"),
    "extensions": ("Extension",),
    "keys": ("decode_key", "encode_z32"),
    "log.manifest": ("Manifest", "Prologue", "Signer"),
    "mirrors.mirror": ("Mirror",),
    "mirrors.status": ("CoreStatus", "MirrorStatus", "PeerStatus"),
    "peer": ("Peer",),
    "proofs": ("BlockRequest", "HashRequest", "Proof", "SeekRequest", "UpgradeRequest"),
    "session": ("Replication",),
    "stats": ("ConnectionStats",),
    "storage": ("RandomAccess", "Storage"),
    "streams": ("WriteStream",),
    "swarm": ("Swarm",),
    "transport": ("ByteStream", "Listener", "Transport"),
}
_HOMES = {name: f"hypercore.{module}" for module, names in _NAMES.items() for name in names}

#: A test holds the table against the imports above.
__all__ = ["__version__", *_HOMES]

if not TYPE_CHECKING:  # or a type checker would believe that every name is here

    def __getattr__(name: str) -> object:
        if name in _HOMES:
            from importlib import import_module

            value = getattr(import_module(_HOMES[name]), name)
        elif name == "__version__":
            from importlib.metadata import version

            value = version("hypercore-py")
        else:
            raise AttributeError(f"module 'hypercore' has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""The one tree of errors.

Ground floor: this module imports nothing of ours. Every error that a user can meet is a `HypercoreError`;
where Python has a built-in twin (`IndexError`, `TimeoutError`, ...) the class inherits from both, so that
code which never heard of Hypercore still catches it. Driver errors are mapped at the edge with `raise ... from`.

A message says what was found and what to do about it.
"""

from __future__ import annotations


class HypercoreError(Exception):
    """The root of all errors that this library raises on purpose."""


# ---- what the caller asked for -------------------------------------------------------------------


class OptionError(HypercoreError, ValueError):
    """An option or argument is unknown, of the wrong shape, or contradicts another one."""


class AddressError(OptionError):
    """An address (URL) cannot be understood."""


class BlockIndexError(HypercoreError, IndexError):
    """A block index or byte offset lies outside of the log."""


class NotWritableError(HypercoreError, PermissionError):
    """The log was opened read-only, or its secret key is not here."""


class ClosedError(HypercoreError):
    """The core, storage or swarm was closed by this program before or during the call."""


class BlockNotAvailableError(HypercoreError, LookupError):
    """The block is not stored here and nobody can be asked for it, so waiting would never end."""


class WaitTimeoutError(HypercoreError, TimeoutError):
    """What was waited for did not come within the given time."""


# ---- plugins --------------------------------------------------------------------------------------


class PluginError(HypercoreError):
    """A plugin is broken, in conflict with another one, or absent."""


class UnknownSchemeError(PluginError, AddressError):
    """No plugin offers the scheme of this address."""


class SchemeConflictError(PluginError):
    """Two plugins claim one scheme."""


class MissingDriverError(PluginError, ImportError):
    """The plugin is there but the library it drives is not; the message says what to install."""


# ---- storage --------------------------------------------------------------------------------------


class StorageError(HypercoreError):
    """The storage failed: an I/O error, a lost server, no space."""


class StorageMissingError(StorageError, FileNotFoundError):
    """The storage, or a file in it, does not exist."""


class OutOfBoundsError(StorageError, EOFError):
    """A read reached past the end of a file of the storage."""


class StorageFullError(StorageError):
    """There is no room left, or a quota is reached."""


class NotDurableError(StorageError):
    """The storage does not keep through a crash of the machine what it was asked to keep."""


class LockedError(StorageError):
    """Another writer holds the storage."""


class FencedError(LockedError):
    """This writer was replaced by another one while it was away, and can never write again."""


# ---- what lies in the storage ---------------------------------------------------------------------


class FormatError(HypercoreError):
    """What lies in the storage cannot be opened. Nothing was changed."""


class CorruptError(FormatError):
    """Stored bytes are damaged.

    `file` names the file of the storage, `offset` the byte offset in it and `index` the block, where known.
    """

    def __init__(
        self, message: str, *, file: str | None = None, offset: int | None = None, index: int | None = None
    ) -> None:
        super().__init__(message)
        self.file = file
        self.offset = offset
        self.index = index


class ForeignStorageError(FormatError):
    """The storage is not empty and holds something else than a core of this format."""


class NewerFormatError(FormatError):
    """The storage was written by a newer version than this one."""


class StorageConflictError(FormatError):
    """The storage holds a core with another key than the one asked for."""


# ---- bytes from elsewhere -------------------------------------------------------------------------


class DecodeError(HypercoreError, ValueError):
    """Bytes do not follow their format: too short, a number out of range, an unknown version."""


class NewerManifestError(DecodeError, NewerFormatError):
    """A manifest of a version, hash, layout or signature scheme that only something newer than this knows."""


class ProtocolError(HypercoreError):
    """A peer broke the protocol; its connection ends."""


class HandshakeError(ProtocolError):
    """The handshake of a connection failed."""


class PeerTimeoutError(ProtocolError, TimeoutError):
    """A peer was silent for too long; its connection ends."""


class VerificationError(HypercoreError):
    """A proof, hash or signature does not hold. Nothing of it was stored."""


class StaleProofError(VerificationError):
    """The proof is for another fork or length than the log has by now. Nobody need have lied."""


class UnanchoredProofError(VerificationError):
    """The proof ends in a tree node that is not known here: it cannot be judged without those that lead there."""


class ProofRequestError(HypercoreError, ValueError):
    """A peer asked for a proof that cannot exist: out of bounds, or contradicting itself."""


class ProofNotHeldError(ProofRequestError):
    """The request was sound, but this log does not hold every node of the proof."""


# ---- transports -----------------------------------------------------------------------------------


class TransportError(HypercoreError):
    """A byte stream, listener or discovery failed."""


class StreamClosedError(TransportError, ClosedError):
    """We closed the stream before or during the call."""


class PeerClosedError(TransportError, BrokenPipeError):
    """The peer closed the stream and takes no more bytes."""


class StreamBrokenError(TransportError, ConnectionError):
    """The world broke the stream: a reset, a lost network, an unreachable host."""


class ConnectError(TransportError, ConnectionError):
    """The address could not be reached."""


class OwnAddressError(ConnectError):
    """The address leads back to this very program."""


class PeerBannedError(HypercoreError, PermissionError):
    """The firewall or the allow-list of this program refuses the key that the peer proved."""


class PeerRefusedError(HypercoreError, PermissionError):
    """The peer ended the connection as soon as it knew our key."""


class ConnectTimeoutError(ConnectError, TimeoutError):
    """The address did not answer in time."""

"""The ten messages of the hypercore channel, and the handshake that opens it (wire spec, sections 4.1 and 4.2).

Parts floor: values and their bytes, nothing of what they are for. Decoders read `data[offset:end]`, never past it;
bytes left over and unknown flags are ignored, as they are how newer peers say more.
"""

from __future__ import annotations

from typing import NamedTuple

from hypercore.proofs import Proof, ProofRequest


class ChannelHandshake(NamedTuple):
    """What each side says when it opens the channel: whether it answers seeks, and its proof of knowing the key."""

    seeks: bool
    capability: bytes


class Sync(NamedTuple):
    """The sender's signed tree, what it last heard of the receiver's, and what it does (wire spec, section 5.2)."""

    fork: int
    length: int
    remote_length: int
    can_upgrade: bool = False
    uploading: bool = False
    downloading: bool = False
    has_manifest: bool = False
    allow_push: bool = False


class Request(NamedTuple):
    """Ask for a proof. `id` is chosen by the requester; `priority` 0 normal, 1 high, 2 very high."""

    id: int
    priority: int
    proof: ProofRequest


class Cancel(NamedTuple):
    """The request needs no answer any more."""

    request_id: int


class Data(NamedTuple):
    """The answer to a request. Id 0: unasked, a push or a proof of conflict."""

    request_id: int
    proof: Proof


class NoData(NamedTuple):
    """The request will not be answered. `reason` 0 not said, 1 not available, 2 invalid request."""

    request_id: int
    reason: int = 0


class Want(NamedTuple):
    """Tell me what you have of these blocks; with `any`, one range that begins with the first is enough."""

    start: int
    length: int
    any: bool = False


class Unwant(NamedTuple):
    """Takes a `Want` back."""

    start: int
    length: int
    any: bool = False


class Bitfield(NamedTuple):
    """Which blocks the sender has, from block `start` on: block `start + i` is byte `i >> 3`, bit `i & 7`.

    `words` is a multiple of 4 bytes, at most 262,144.
    """

    start: int
    words: bytes


class Range(NamedTuple):
    """The sender has these blocks, or with `drop` no longer has them."""

    drop: bool
    start: int
    length: int


class Extension(NamedTuple):
    """A message of the application's own. An empty name on the wire means the name of the previous one; a received
    value always has the name."""

    name: str
    payload: bytes


Message = Sync | Request | Cancel | Data | NoData | Want | Unwant | Bitfield | Range | Extension

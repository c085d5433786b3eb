"""What one connection has carried so far.

Shell floor: a value, made by the session.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionStats:
    """A connection at a glance. Bytes are those on the wire, blocks those that were asked for and delivered."""

    bytes_in: int
    bytes_out: int
    blocks_in: int
    blocks_out: int
    #: Seconds since the handshake, or that there were of them when the connection ended; 0.0 before the handshake.
    connected_seconds: float
    #: One question and its answer, as measured once, in the handshake; None before it is done.
    round_trip_seconds: float | None
    #: Discovery keys of the cores that both ends replicate over it now.
    cores: tuple[bytes, ...]

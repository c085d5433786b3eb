"""Channels over one stream of messages (wire spec, section 3).

Parts floor: knows ids, opens and batches; what an item says is its handler's.
"""

from __future__ import annotations

from enum import Enum


class ChannelState(Enum):
    """The life of a channel."""

    OFFERED = "offered"
    OPENING = "opening"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


class MuxChannel:
    """One channel and its two ids."""

    state: ChannelState


class Mux:
    """All channels of one connection."""

"""How a tree node lies in a file (disk spec, section 5.1). Pure: it must not know which file, nor which are right."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

from hypercore.proofs import Node

NODE_SIZE: Final = 40
BLANK_HASH: Final = bytes(32)

_NODE: Final = struct.Struct("<Q32s")
unpack_node = _NODE.unpack_from
pack_node_into = _NODE.pack_into


def joined_runs(placed: Iterable[tuple[int, Node]]) -> list[tuple[int, bytes]]:
    """Nodes and their places in the file, in any order, as `(byte offset, bytes)`, neighbours joined."""
    runs: list[tuple[int, bytes]] = []
    pack = _NODE.pack
    parts: list[bytes] = []
    first = following = -1
    for place, node in sorted(placed):
        if place != following:
            if parts:
                runs.append((first * NODE_SIZE, b"".join(parts)))
                parts = []
            first = place
        parts.append(pack(node[1], node[2]))
        following = place + 1
    if parts:
        runs.append((first * NODE_SIZE, b"".join(parts)))
    return runs

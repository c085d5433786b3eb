"""For tests of plugins and of programs that use this library: contract suites and wrappers that fail on purpose.

Nothing of the library imports this, and importing it imports no test runner. Each name is loaded when it is first
used, so that a transport's author does not load what concerns storages.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hypercore.testing.discoveries import DiscoveryContract
    from hypercore.testing.flaky import FlakyStream
    from hypercore.testing.storages import StorageContract
    from hypercore.testing.transports import TransportContract
    from hypercore.testing.wrappers import CrashStorage, FaultyStorage, LatencyStorage

__all__ = [
    "CrashStorage",
    "DiscoveryContract",
    "FaultyStorage",
    "FlakyStream",
    "LatencyStorage",
    "StorageContract",
    "TransportContract",
]

_HOMES = {
    "CrashStorage": "hypercore.testing.wrappers",
    "DiscoveryContract": "hypercore.testing.discoveries",
    "FaultyStorage": "hypercore.testing.wrappers",
    "FlakyStream": "hypercore.testing.flaky",
    "LatencyStorage": "hypercore.testing.wrappers",
    "StorageContract": "hypercore.testing.storages",
    "TransportContract": "hypercore.testing.transports",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)

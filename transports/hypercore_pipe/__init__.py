"""The pipe transport: two ends inside one process, behaving exactly like TCP. `pipe:name`, or `stream_pair()`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from hypercore.hookspecs import TransportProvider, hookimpl

if TYPE_CHECKING:
    from hypercore_pipe.transport import PipeListener, PipeTransport, open_transport

__all__ = ["PipeListener", "PipeTransport", "open_transport"]


def __getattr__(name: str) -> object:
    # Being found must cost next to nothing; what is behind the scheme is imported when it is first used.
    if name in __all__:
        return getattr(import_module("hypercore_pipe.transport"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@hookimpl
def hypercore_transport_providers() -> list[TransportProvider]:
    """The scheme `pipe`."""
    return [
        TransportProvider(
            scheme="pipe",
            opener="hypercore_pipe.transport:open_transport",
            summary="streams inside this process, dialled and listened on by name",
        )
    ]

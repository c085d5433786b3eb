"""The pipe transport: two ends inside one process, behaving exactly like TCP. `pipe:name`, or `pipe_pair()`."""

from __future__ import annotations

from hypercore.hookspecs import TransportProvider, hookimpl
from hypercore_pipe.stream import PipeStream, pipe_pair
from hypercore_pipe.transport import PipeListener, PipeTransport, open_transport

__all__ = ["PipeListener", "PipeStream", "PipeTransport", "open_transport", "pipe_pair"]


@hookimpl
def hypercore_transport_providers() -> list[TransportProvider]:
    """The scheme `pipe`."""
    return [
        TransportProvider(
            scheme="pipe",
            opener="hypercore_pipe:open_transport",
            summary="streams inside this process, dialled and listened on by name",
        )
    ]

"""A switch that loses and delays frames, for kernels that cannot (`sch_netem`).

python tests/lan/rough_switch.py PORTS LOSS DELAY_SECONDS JITTER_SECONDS SEED

It makes the TAP devices port1, port2... of the namespace that it runs in, says `ready`, and carries frames between them
until its input ends. Every frame is lost with the probability LOSS, one to all for each of them apart. Frames of one
sender to one receiver stay in order. A line `cut 3` stops all frames between the ports 1, 2 and those from 3 on, and
`cut 0` carries everything again.
"""

from __future__ import annotations

import fcntl
import heapq
import itertools
import os
import selectors
import struct
import sys
import time
from random import Random
from typing import Final

_TUNSETIFF: Final = 0x400454CA
_IFF_TAP, _IFF_NO_PI = 0x2, 0x1000
_MOST_FRAME: Final = 65536


def open_port(number: int) -> int:
    """A TAP device, as a descriptor of frames."""
    port = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(port, _TUNSETIFF, struct.pack("16sH22x", f"port{number}".encode(), _IFF_TAP | _IFF_NO_PI))
    return port


class Switch:
    """Learns behind which port an address is, as any switch does."""

    def __init__(self, ports: list[int], *, loss: float, delay: float, jitter: float, seed: int) -> None:
        self._ports = ports
        self._loss, self._delay, self._jitter = loss, delay, jitter
        self._random = Random(seed)
        self._behind: dict[bytes, int] = {}
        self._waiting: list[tuple[float, int, int, bytes]] = []
        self._numbers = itertools.count()
        #: When the last frame from one port to another leaves.
        self._last: dict[tuple[int, int], float] = {}
        #: The ports beyond the cut.
        self._beyond: set[int] = set()

    def run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for port in self._ports:
                selector.register(port, selectors.EVENT_READ)
            selector.register(0, selectors.EVENT_READ)
            while True:
                timeout = max(0.0, self._waiting[0][0] - time.monotonic()) if self._waiting else None
                for key, _ in selector.select(timeout):
                    if key.fd != 0:
                        self._receive(key.fd)
                    elif not self._command(os.read(0, 4096).decode()):
                        return
                self._send()

    def _command(self, text: str) -> bool:
        for line in text.splitlines():
            border = int(line.split()[1])
            self._beyond = set(self._ports[border - 1 :]) if border else set()
            os.write(1, b"done\n")
        return bool(text)

    def _receive(self, source: int) -> None:
        try:
            frame = os.read(source, _MOST_FRAME)
        except OSError:
            return
        self._behind[frame[6:12]] = source
        target = self._behind.get(frame[:6])
        for port in self._ports if target is None else (target,):
            is_cut = (source in self._beyond) != (port in self._beyond)
            if port == source or is_cut or self._random.random() < self._loss:
                continue
            leaves = time.monotonic() + self._delay + self._random.random() * self._jitter
            leaves = self._last[source, port] = max(leaves, self._last.get((source, port), 0.0))
            heapq.heappush(self._waiting, (leaves, next(self._numbers), port, frame))

    def _send(self) -> None:
        now = time.monotonic()
        while self._waiting and self._waiting[0][0] <= now:
            _, _, port, frame = heapq.heappop(self._waiting)
            try:
                os.write(port, frame)
            except OSError:
                continue  # The cable is out.


def main() -> None:
    count, loss, delay, jitter, seed = sys.argv[1:]
    ports = [open_port(number) for number in range(1, int(count) + 1)]
    print("ready", flush=True)
    Switch(ports, loss=float(loss), delay=float(delay), jitter=float(jitter), seed=int(seed)).run()


if __name__ == "__main__":
    main()

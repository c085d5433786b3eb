"""`lan:` as an address: it finds peers, whose streams another transport carries."""

from __future__ import annotations

from typing import Never

from hypercore.errors import AddressError
from hypercore.options import build_options
from hypercore.transport import Diagnosis, Discovery, Transport
from hypercore.urls import Address, parse_address
from hypercore_lan.discovery import LanDiscovery, LanOptions

__all__ = ["LanOptions", "LanTransport", "open_transport"]


class LanTransport(Transport):
    """Has a discovery; there is nothing to dial or to listen on."""

    def __init__(self, options: LanOptions | None = None) -> None:
        self._options = options or LanOptions()

    async def connect(self, address: str, *, timeout_seconds: float = 10.0) -> Never:
        raise AddressError(f"{address}: nobody is dialled there; Swarm('lan:') finds peers and dials them over TCP")

    async def listen(self, address: str) -> Never:
        raise AddressError(f"{address}: nothing listens there; Swarm('lan:') announces a TCP port of its own")

    def discovery(self) -> Discovery:
        return LanDiscovery(self._options)

    async def diagnose(self, topics: frozenset[bytes]) -> Diagnosis:
        from hypercore_lan.diagnosis import diagnose  # Nobody who finds peers needs it.

        return await diagnose(self._options, topics)


def open_transport(address: str | Address, **options: object) -> LanTransport:
    """The transport behind `lan:`. Options: the fields of `LanOptions`."""
    place = parse_address(address)
    if place.path or place.host is not None:
        raise AddressError(f"{str(place)!r}: write lan: or lan:?interfaces=eth0,wlan0&port=4977")
    return LanTransport(build_options(LanOptions, query=place.query, keywords=options, of="lan"))

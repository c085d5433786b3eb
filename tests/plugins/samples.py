"""Plugins as strangers write them: good ones, and wrong ones of every kind."""

from __future__ import annotations

from hypercore.hookspecs import StorageProvider, TransportProvider, hookimpl
from hypercore.storage import Storage
from hypercore.transport import ByteStream, Listener, Transport
from hypercore.urls import Address
from hypercore_memory import MemoryStorage

HERE = "tests.plugins.samples"


class Plugin:
    """Offers what it is given."""

    def __init__(self, *offers: object) -> None:
        self.offers = offers

    @hookimpl
    def hypercore_storage_providers(self) -> list[object]:
        return [offer for offer in self.offers if not isinstance(offer, TransportProvider)]

    @hookimpl
    def hypercore_transport_providers(self) -> list[TransportProvider]:
        return [offer for offer in self.offers if isinstance(offer, TransportProvider)]


def storage(scheme: str, opener: str = f"{HERE}:open_storage", extra: str | None = None) -> StorageProvider:
    return StorageProvider(scheme=scheme, opener=opener, summary=f"{scheme} for tests", extra=extra)


def open_storage(address: Address, *, color: str = "red") -> Storage:
    return MemoryStorage(f"{address.scheme}-{address.path}-{color}")


def open_transport(address: Address) -> Transport:
    return SampleTransport()


def open_nothing(address: Address) -> str:
    return "not a storage"


def open_badly(address: Address) -> Storage:
    raise ValueError(f"cannot reach {address.reveal()}")


class SampleTransport(Transport):
    async def connect(self, address: str, *, timeout_seconds: float = 10.0) -> ByteStream:
        raise NotImplementedError

    async def listen(self, address: str) -> Listener:
        raise NotImplementedError


GOOD = Plugin(storage("good"), TransportProvider(scheme="good", opener=f"{HERE}:open_transport", summary="a transport"))
RIVAL = Plugin(storage("good"), storage("rival"))
NEEDY = Plugin(storage("needy", "tests.plugins.needs_driver:open_storage", extra="driver"))
NEEDY_LATE = Plugin(storage("late", "tests.plugins.needs_driver_late:open_storage", extra="driver"))
NEEDY_SILENT = Plugin(storage("silent", "tests.plugins.needs_driver:open_storage"))
MISTYPED = Plugin(storage("mistyped", "tests.plugins.no_such_module:open_storage", extra="driver"))
NAMELESS = Plugin(storage("nameless", f"{HERE}:no_such_function"))
WRONG_GIFT = Plugin(storage("gift", f"{HERE}:open_nothing"))
FAILING = Plugin(storage("failing", f"{HERE}:open_badly"))

# ---- broken before anything is opened ----

SHORT_SCHEME = Plugin(storage("c"))
LOUD_SCHEME = Plugin(storage("LOUD"))
ODD_SCHEME = Plugin(storage("od d"))
ODD_OPENER = Plugin(storage("odd", "no-colon"))
ODD_OFFER = Plugin({"scheme": "odd"})
EMPTY = object()


class OddAnswer:
    @hookimpl
    def hypercore_storage_providers(self) -> int:
        return 7


class Raising:
    @hookimpl
    def hypercore_storage_providers(self) -> list[StorageProvider]:
        raise RuntimeError("no luck today")


class OddArguments:
    @hookimpl
    def hypercore_storage_providers(self, color: str) -> list[StorageProvider]:
        return []


class OddHook:
    @hookimpl
    def hypercore_storage_provider(self) -> list[StorageProvider]:
        return [storage("mistyped")]


ODD_ANSWER = OddAnswer()
RAISING = Raising()
ODD_ARGUMENTS = OddArguments()
ODD_HOOK = OddHook()

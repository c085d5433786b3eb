"""One presence in multicast DNS: a name that is announced on some links, and a look at who else is there.

It owns zeroconf and its traps, and knows neither topics nor peers: a text goes out, texts come in. When the links
change it is thrown away and another one made, with another name: new sockets, new questions, nothing stale.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import secrets
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final

from zeroconf import DNSQuestionType, NotRunningException, ServiceStateChange, Zeroconf
from zeroconf import Error as ZeroconfError
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from hypercore.errors import TransportError
from hypercore_lan.announcement import TEXT_SIZE_MAX
from hypercore_lan.links import Link

SERVICE_TYPE: Final = "_hypercore._tcp.local."
#: Names that wait to be read. A flood beyond it is dropped; who was dropped is seen at the next look.
PENDING_COUNT_MAX: Final = 1024
#: Names that are read in one go, and the rest after it: at most 500 a second, however many come.
READ_BATCH_COUNT: Final = 50
READ_PAUSE_SECONDS: Final = 0.1
#: Names whose records did not all come by themselves and are asked for, at once and waiting.
ASKING_COUNT_MAX: Final = 4
ASKING_QUEUE_COUNT_MAX: Final = 64
ASK_SECONDS: Final = 3.0
#: A goodbye is three packets within 250 ms.
GOODBYE_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What somebody's records say, all of it unproven."""

    name: str
    text: bytes
    #: Numbers; an IPv6 one with its scope when it came over IPv6.
    hosts: tuple[str, ...]
    port: int


class Responder:
    """Announces one text, and reports `on_seen` and `on_gone`. To be opened once."""

    def __init__(
        self, links: Sequence[Link], *, port: int, on_seen: Callable[[Sight], None], on_gone: Callable[[str], None]
    ) -> None:
        self._hosts = [host for link in links for host in link.hosts]
        self._port = port
        self._on_seen = on_seen
        self._on_gone = on_gone
        # A random name needs no probing for its like, which would take 1.5 s, and tells nothing of the machine.
        self.name = f"{secrets.token_hex(8)}.{SERVICE_TYPE}"
        self._info: AsyncServiceInfo | None = None
        self._sending: asyncio.Future[object] | None = None
        self._browsers: list[AsyncServiceBrowser] = []
        self._pending: dict[str, None] = {}
        self._arrived = asyncio.Event()
        self._asked: set[str] = set()
        self._turns = asyncio.Semaphore(ASKING_COUNT_MAX)
        self._tasks: set[asyncio.Task[object]] = set()
        self._zeroconf: AsyncZeroconf

    async def open(self) -> None:
        """Raises `TransportError`."""
        try:
            self._zeroconf = AsyncZeroconf(interfaces=self._hosts)
        except (OSError, RuntimeError) as error:
            raise TransportError(f"cannot take part in multicast DNS: {_advice(error)}") from error
        try:
            await self._zeroconf.zeroconf.async_wait_for_start()
        except BaseException as error:
            await self._zeroconf.async_close()
            if isinstance(error, OSError | NotRunningException):
                raise TransportError(f"cannot take part in multicast DNS: {_advice(error)}") from error
            raise
        self._start(self._read())

    async def aclose(self) -> None:
        """Say goodbye and close."""
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for browser in self._browsers:
            await browser.async_cancel()
        with contextlib.suppress(OSError, TimeoutError, ZeroconfError):
            async with asyncio.timeout(GOODBYE_SECONDS):
                await self.publish(None)
        await self._zeroconf.async_close()

    # ---- what we say ----

    async def publish(self, text: bytes | None) -> None:
        """Announce `text`, in place of what was announced before; None withdraws it, and waits until that is said."""
        if self._sending is not None:
            self._sending.cancel()  # A late repetition of what was said before would undo what is said now.
            self._sending = None
        old = self._info
        if text is None:
            self._info = None
            if old is not None:
                # Twice: it gives a task that sends the goodbye, and who closes before that has ended never said it.
                await (await self._zeroconf.async_unregister_service(old))
            return
        self._info = AsyncServiceInfo(
            SERVICE_TYPE,
            self.name,
            port=self._port,
            properties=text,
            server=f"{self.name.partition('.')[0]}.local.",
            parsed_addresses=self._hosts,
        )
        if old is None:
            sending = self._zeroconf.async_register_service(self._info, cooperating_responders=True)
        else:
            sending = self._zeroconf.async_update_service(self._info)
        self._sending = asyncio.ensure_future(await sending)

    # ---- what others say ----

    def look(self) -> None:
        """Ask who is there, at once and twice more; what is known already is reported again."""
        # An answer to us alone comes at once, but of several programs on one machine the kernel gives it to any one.
        # An answer to all reaches each of them, but nobody repeats one that was given within the last second.
        kinds = [DNSQuestionType.QM] if self._browsers else [DNSQuestionType.QM, DNSQuestionType.QU]
        for browser in self._browsers:
            self._start(browser.async_cancel())
        self._browsers = [
            AsyncServiceBrowser(self._zeroconf.zeroconf, SERVICE_TYPE, handlers=[self._changed], question_type=kind)
            for kind in kinds
        ]

    async def ask(self, name: str) -> bool:
        """Whether anybody still answers for a name (RFC 6762, section 10.4); it is forgotten if not."""
        cache = self._zeroconf.zeroconf.cache
        cache.async_remove_records(cache.async_entries_with_name(name))
        async with self._turns:
            if await self._request(AsyncServiceInfo(SERVICE_TYPE, name)):
                return True
        pointers = [
            record
            for record in cache.async_entries_with_name(SERVICE_TYPE)
            if getattr(record, "alias", "").lower() == name.lower()
        ]
        cache.async_remove_records(pointers)  # So that it counts as new when it comes back.
        return False

    def _changed(self, *, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if name == self.name:
            return
        if state_change is ServiceStateChange.Removed:
            self._pending.pop(name, None)
            self._on_gone(name)
        elif len(self._pending) < PENDING_COUNT_MAX:
            self._pending[name] = None
            self._arrived.set()

    async def _read(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._pending:
                for name in list(self._pending)[:READ_BATCH_COUNT]:
                    del self._pending[name]
                    info = AsyncServiceInfo(SERVICE_TYPE, name)
                    if info.load_from_cache(self._zeroconf.zeroconf):
                        self._report(info)
                    elif name not in self._asked and len(self._asked) < ASKING_QUEUE_COUNT_MAX:
                        self._asked.add(name)
                        self._start(self._ask_for(info))
                if self._pending:
                    await asyncio.sleep(READ_PAUSE_SECONDS)

    async def _ask_for(self, info: AsyncServiceInfo) -> None:
        try:
            async with self._turns:
                if await self._request(info):
                    self._report(info)
        finally:
            self._asked.discard(info.name)

    async def _request(self, info: AsyncServiceInfo) -> bool:
        return await info.async_request(self._zeroconf.zeroconf, ASK_SECONDS * 1000, question_type=DNSQuestionType.QM)

    def _report(self, info: AsyncServiceInfo) -> None:
        if info.port and 0 < len(info.text) <= TEXT_SIZE_MAX:
            hosts = tuple(info.parsed_scoped_addresses())
            self._on_seen(Sight(name=info.name, text=info.text, hosts=hosts, port=info.port))

    def _start(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _advice(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return (
            "another program holds UDP port 5353 for itself; if it is avahi-daemon, set disallow-other-stacks=no in "
            "its avahi-daemon.conf"
        )
    return getattr(error, "strerror", None) or str(error) or type(error).__name__

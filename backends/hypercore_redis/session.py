"""Talking to the server for as long as it takes: connections that come and go, and what each error means.

Knows when a command may be sent again, and turns every error of the driver into one of ours. It must not know what
the commands do; whoever has a lease says what to do first on a new connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterDownError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from hypercore.errors import (
    ClosedError,
    CorruptError,
    ForeignStorageError,
    HypercoreError,
    NotDurableError,
    NotWritableError,
    StorageError,
    StorageFullError,
)
from hypercore_redis.channel import Channel, LostConnectionError, Reply
from hypercore_redis.scripts import Argument, Command, Script
from hypercore_redis.servers import Server

#: Pauses between two attempts double from the first to the last.
FIRST_PAUSE_SECONDS: Final = 0.01
LAST_PAUSE_SECONDS: Final = 0.5
#: Giving the lease back is politeness, so closing does not wait long for a server that is away.
FAREWELL_SECONDS: Final = 2.0

#: The server cannot tell now, or not here; it carried nothing out.
_NOT_NOW = (AskError, TryAgainError, ClusterDownError)
_NOT_NOW_WORDS: Final = ("BUSY", "MASTERDOWN", "LOADING")
_NOT_HERE = (AskError, ReadOnlyError, ClusterDownError)
#: Where the driver says so, waiting does not help.
_NEVER = (AuthenticationError, NoPermissionError, RedisClusterException)


class LostCommitsError(StorageError, CorruptError):
    """Acknowledged changes are no longer in the server: it was restarted without persistence, emptied, or replaced by
    a replica that lacked them. Nothing goes on from there by itself."""


class ForeignKeyError(StorageError, ForeignStorageError):
    """A key that one of ours should have is another program's."""


class Session:
    """One connection at a time to the server that holds a key."""

    def __init__(self, server: Server, key: str, *, timeout_seconds: float) -> None:
        self.server = server
        self.key = key
        self.closed = False
        #: What is wrong with the server and could be lived with.
        self.warnings: list[str] = []
        #: Called with each new connection before anything else uses it; what it raises ends the call that waits.
        self.greet: Callable[[Channel], Awaitable[None]] | None = None
        self._timeout_seconds = timeout_seconds
        self._channel: Channel | None = None
        self._connecting = asyncio.Lock()
        self._was_connected = False
        self._durable = False

    def __str__(self) -> str:
        return self.server.shown

    # ---- asking --------------------------------------------------------------------------------------

    def send(self, command: Command) -> asyncio.Future[Reply]:
        """The future reply to a command, over the connection that is there. Errors are those of the channel."""
        assert self._channel is not None
        return self._channel.send(command)

    async def ask(self, command: Command) -> Reply:
        """The reply to a command that may be carried out twice. Raises `StorageError`."""
        channel = self._channel
        if channel is not None and channel.alive:
            try:
                return await channel.send(command)
            except (LostConnectionError, ResponseError):
                pass
        return await self.patiently(lambda channel: channel.send(command))

    async def ask_many(self, commands: Sequence[Command]) -> list[Reply]:
        """The replies to commands that may be carried out twice, in one round trip. Raises `StorageError`."""

        async def send(channel: Channel) -> list[Reply]:
            replies = await channel.send_many(commands)
            for reply in replies:
                if isinstance(reply, ResponseError):
                    raise reply
            return replies

        result: list[Reply] = await self.patiently(send)
        return result

    async def patiently(self, work: Callable[[Channel], Awaitable[Any]]) -> Any:
        """What `work` gives, done again on a new connection if need be, until the time is over."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_seconds
        pause = FIRST_PAUSE_SECONDS
        while True:
            channel: Channel | None = None
            try:
                channel = await self._connected()
                return await work(channel)
            except LostConnectionError as error:
                problem: Exception = error
            except ResponseError as error:
                if not is_transient(error) and not (isinstance(error, ReadOnlyError) and self._may_move):
                    raise self.typed(error) from error
                if isinstance(error, _NOT_HERE) and channel is not None:
                    channel.drop("the server is not the one to ask any more")
                problem = error
            except (RedisConnectionError, RedisTimeoutError, OSError) as error:
                # Nobody waits for an address that was wrong from the beginning.
                if isinstance(error, _NEVER) or not (self._was_connected or "LOADING" in str(error).upper()):
                    raise self.typed(error) from error
                problem = error
            except RedisError as error:
                raise self.typed(error) from error
            if self.closed:
                raise ClosedError(f"{self} is closed")
            if loop.time() + pause > deadline:
                raise self.typed(problem) from problem
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE_SECONDS)

    @property
    def _may_move(self) -> bool:
        """Whether a replica may be the primary before long, or was it until now."""
        return self.server.moves or self.greet is not None

    # ---- connecting ----------------------------------------------------------------------------------

    async def _connected(self) -> Channel:
        channel = self._channel
        if channel is not None and channel.alive:
            return channel
        async with self._connecting:
            channel = self._channel
            if channel is not None and channel.alive:
                return channel
            if self.closed:
                raise ClosedError(f"{self} is closed")
            if channel is not None:
                await channel.aclose()
            async with asyncio.timeout(self._timeout_seconds):
                connection = await self.server.connect(self.key)
            # A connection that died unnoticed must be given up in time for another try.
            channel = Channel(connection, timeout_seconds=self._timeout_seconds / 2)
            try:
                await self._examine(channel)
                if self._durable:
                    check_durable(await _durability(channel), self.server.shown)
                if self.greet is not None:
                    await self.greet(channel)
            except BaseException:
                await channel.aclose()
                raise
            self._channel = channel
            self._was_connected = True
            return channel

    @property
    def alive(self) -> bool:
        """Connected, so that nothing was missed since."""
        return self._channel is not None and self._channel.alive

    async def connect(self) -> None:
        """Be connected. Raises `StorageError`."""
        await self.patiently(_nothing)

    def drop(self, reason: str) -> None:
        """Let the next call begin on a new connection."""
        if self._channel is not None:
            self._channel.drop(reason)

    async def _examine(self, channel: Channel) -> None:
        """What could take keys away from us."""
        memory, persistence, save = await channel.send_many(
            [("INFO", "memory"), ("INFO", "persistence"), ("CONFIG", "GET", "save")]
        )
        warnings = []
        if isinstance(memory, ResponseError):
            warnings.append(f"{self} does not say (INFO memory) whether it drops keys when its memory is full")
        else:
            policy = _info(memory).get("maxmemory_policy", "noeviction")
            if policy.startswith("allkeys"):
                warnings.append(
                    f"{self} drops any key when its memory is full (maxmemory-policy {policy}), and a log with it: "
                    "set noeviction or a volatile policy"
                )
        if not isinstance(persistence, ResponseError):
            saves = not isinstance(save, ResponseError) and any(pairs(save).values())
            unknown = isinstance(save, ResponseError)
            if _info(persistence).get("aof_enabled") == "0" and not saves and not unknown:
                warnings.append(
                    f"{self} keeps nothing when it is restarted (appendonly no, save ''): set appendonly yes"
                )
        self.warnings = warnings

    # ---- durability ----------------------------------------------------------------------------------

    async def require_durable(self) -> None:
        """Raises `NotDurableError` unless each server that may hold the key syncs each write, now and from now on."""
        check_durable(await self.patiently(_durability), self.server.shown)
        try:
            async for connection in self.server.others(self.key):
                channel = Channel(connection, timeout_seconds=self._timeout_seconds)
                try:
                    check_durable(await _durability(channel), f"{_shown(connection)}, which may take its place,")
                finally:
                    await channel.aclose()
        except (LostConnectionError, RedisError, OSError) as error:
            raise NotDurableError(
                f"{self}: a server that may take its place cannot be asked how it keeps what it is told ({error})"
            ) from error
        self._durable = True

    # ---- errors --------------------------------------------------------------------------------------

    def typed(self, error: Exception) -> HypercoreError:
        """Our error for one of the driver."""
        if isinstance(error, OutOfMemoryError) or str(error).startswith("OOM"):
            return StorageFullError(f"{self} is full (maxmemory); nothing was changed")
        if isinstance(error, ReadOnlyError) or "READONLY" in str(error):
            if self._may_move:
                return StorageError(f"{self} has become a replica, and no primary was found in its place")
            return NotWritableError(
                f"{self} is a replica, which only its primary may change; give the primary's address"
            )
        if isinstance(error, LostConnectionError):
            return StorageError(f"{self}: the connection was lost ({error})")
        if isinstance(error, AuthenticationError) or str(error).startswith(("NOAUTH", "WRONGPASS")):
            return StorageError(f"{self} refuses the user name or password ({error})")
        if isinstance(error, NoPermissionError):
            return StorageError(f"{self} does not permit this user what is needed: {error}")
        if isinstance(error, RedisTimeoutError | TimeoutError):
            return StorageError(f"{self} did not answer in time ({error})")
        if isinstance(error, RedisConnectionError | OSError):
            return StorageError(f"{self} cannot be reached ({error})")
        if isinstance(error, ResponseError) and "WRONGTYPE" in str(error):
            return ForeignKeyError(
                f"{self}: a key that begins with {self.key!r} is of another program ({error}); nothing was changed"
            )
        return StorageError(f"{self}: {error}")

    # ---- the end -------------------------------------------------------------------------------------

    async def farewell(self, work: Callable[[Channel], Awaitable[object]]) -> None:
        """Something to say before closing, if the server can still hear it."""
        channel = self._channel
        if channel is None or not channel.alive:
            return
        try:
            async with asyncio.timeout(FAREWELL_SECONDS):
                await work(channel)
        except (LostConnectionError, ResponseError, TimeoutError):
            pass

    async def aclose(self) -> None:
        self.closed = True
        async with self._connecting:
            channel, self._channel = self._channel, None
        if channel is not None:
            await channel.aclose()


async def run_on(channel: Channel, script: Script, keys: Sequence[Argument], arguments: Sequence[Argument]) -> Reply:
    """Carry out a script, of which the server may not have heard yet."""
    command = script.command(keys, arguments)
    try:
        return await channel.send(command)
    except NoScriptError:
        return await channel.send(script.in_full(command))


async def _nothing(channel: Channel) -> None:
    """Being connected is all."""


def is_transient(error: ResponseError) -> bool:
    """The server did nothing, and may do it if it is asked again."""
    return isinstance(error, _NOT_NOW) or str(error).upper().startswith(_NOT_NOW_WORDS)


def check_durable(settings: dict[str, str] | str, shown: str) -> None:
    """Raises `NotDurableError` when the settings are not known, or a finished write may be lost."""
    if isinstance(settings, str):
        raise NotDurableError(
            f"{shown} does not say how it keeps what it is told (CONFIG GET: {settings}), so durability 'always' "
            "cannot be promised; allow the user CONFIG GET, or open with durability 'flush'"
        )
    wanted = {"appendonly": "yes", "appendfsync": "always", "no-appendfsync-on-rewrite": "no"}
    found = ", ".join(f"{name} {settings.get(name)}" for name, value in wanted.items() if settings.get(name) != value)
    if found:
        raise NotDurableError(
            f"{shown} acknowledges what a loss of power may take ({found}): durability 'always' needs "
            + ", ".join(f"{name} {value}" for name, value in wanted.items())
        )


async def _durability(channel: Channel) -> dict[str, str] | str:
    """The settings that decide, or why they cannot be read."""
    names = ("appendonly", "appendfsync", "no-appendfsync-on-rewrite")
    settings: dict[str, str] = {}
    for reply in await channel.send_many([("CONFIG", "GET", name) for name in names]):
        if isinstance(reply, ResponseError):
            return str(reply)
        settings |= {name.decode(): value.decode() for name, value in pairs(reply).items()}
    return settings


def pairs(reply: Any) -> dict[bytes, bytes]:
    """A reply of names and values, which one version of the protocol sends as a list and the other as a map."""
    if isinstance(reply, dict):
        return reply
    return dict(zip(reply[::2], reply[1::2], strict=True))


def _info(reply: Any) -> dict[str, str]:
    text = reply.decode(errors="replace") if isinstance(reply, bytes) else str(reply)
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


def _shown(connection: AbstractConnection) -> str:
    return f"{getattr(connection, 'host', '?')}:{getattr(connection, 'port', '?')}"

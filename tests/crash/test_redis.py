"""Kills of a writer to a real Redis or Valkey, and of that server."""

from __future__ import annotations

import pytest

from hypercore.log.engine import Durability
from tests.crash.kills import KILLS, Place, survive_kills
from tests.servers.redis import ALWAYS, EVERY_SECOND, KINDS, Kind, RedisServer


class _Server(Place):
    """A server that is not killed."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server

    def address(self) -> str:
        return self.server.address(unix=True, prefix="core", take_over="true", timeout_seconds=30)


class _DyingServer(_Server):
    durability: Durability = "always"

    def crash(self) -> None:
        self.server.kill()

    def recover(self) -> None:
        if self.server.process is None:
            self.server.start()


@pytest.mark.parametrize("kind", KINDS)
def test_a_writer_that_is_killed_at_any_moment_loses_nothing_that_was_acknowledged(kind: Kind) -> None:
    with RedisServer(kind, EVERY_SECOND) as server:
        assert survive_kills(_Server(server), seed=1) > KILLS


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_is_killed_at_any_moment_loses_nothing_that_was_acknowledged(kind: Kind) -> None:
    with RedisServer(kind, ALWAYS) as server:
        assert survive_kills(_DyingServer(server), seed=2) > KILLS

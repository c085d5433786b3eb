"""Kills of a writer to a real S3 server, at random moments: between two requests, and within one."""

from __future__ import annotations

from tests.crash.kills import KILLS, Place, survive_kills
from tests.servers.s3 import S3Server, new_prefix, seaweedfs


class _Bucket(Place):
    """A prefix of a server that is not killed. The next writer sees that the one before is dead."""

    def __init__(self, server: S3Server, **options: object) -> None:
        self._server = server
        self._prefix = new_prefix()
        self._options = options

    def address(self) -> str:
        return self._server.url(self._prefix, **self._options)


def test_a_writer_that_is_killed_at_any_moment_loses_nothing_that_was_acknowledged() -> None:
    assert survive_kills(_Bucket(seaweedfs()), seed=3) > KILLS

"""The servers and clients that the tests of S3 run on."""

from __future__ import annotations

import pytest

from tests.servers.s3 import S3Server, moto, new_prefix, seaweedfs
from tests.storage.s3.clients import KINDS, Kind


@pytest.fixture(params=["moto", "seaweedfs"])
def server(request: pytest.FixtureRequest) -> S3Server:
    """Each of the real servers."""
    return moto() if request.param == "moto" else seaweedfs()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each of the clients."""
    chosen: Kind = request.param
    return chosen


@pytest.fixture
def prefix() -> str:
    """A prefix that no other test has, without a slash at its end."""
    return new_prefix()

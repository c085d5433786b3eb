"""The transport contract is worth something: transports that are broken in one way each do not pass it."""

from __future__ import annotations

import pytest

from hypercore.testing import TransportContract
from hypercore.transport import Transport
from tests.transport.broken import BROKEN, BrokenContract, BrokenTransport

PROMISES = [name for name in dir(TransportContract) if name.startswith("test_")]


@pytest.mark.parametrize(
    ("transport", "promise", "said"), BROKEN, ids=[f"{kind.__name__}-{promise[:40]}" for kind, promise, _ in BROKEN]
)
def test_the_contract_catches_a_transport_that(transport: type[Transport], promise: str, said: str) -> None:
    contract = BrokenContract()
    contract.transport = transport
    with pytest.raises(Exception, match=said):
        getattr(contract, f"test_{promise}")()


@pytest.mark.parametrize("promise", PROMISES)
def test_what_the_broken_transports_are_made_from_keeps(promise: str) -> None:
    contract = BrokenContract()
    contract.timeout_seconds = TransportContract.timeout_seconds
    contract.transport = BrokenTransport
    getattr(contract, promise)()


def test_every_promise_catches_a_transport_that_breaks_it() -> None:
    assert {f"test_{promise}" for _, promise, _ in BROKEN} == set(PROMISES)

"""The contract catches backends that break a promise: each broken one fails the test that is named for it."""

from __future__ import annotations

import itertools

import pytest

from hypercore.storage import Storage
from hypercore.testing import StorageContract
from hypercore.testing.wrappers import WrappedStorage
from hypercore_memory import MemoryStorage
from tests.storage.broken import CAUGHT_BY, Broken, Fenced, FencedAtTheLeaseOnly, FencedCommitsOnly

_numbers = itertools.count()


class Contract(StorageContract):
    """The contract for a wrapper around memory."""

    def __init__(self, kind: type[Broken] | type[Fenced] | type[WrappedStorage]) -> None:
        self.kind = kind

    async def make_storage(self) -> Storage:
        return self.kind(MemoryStorage(f"broken-{next(_numbers)}"))

    async def reopen(self, storage: Storage) -> Storage:
        assert isinstance(storage, WrappedStorage)
        return self.kind(MemoryStorage(str(storage.inner).removeprefix("memory:")))

    async def replace_writer(self, storage: Storage) -> Storage | None:
        if not issubclass(self.kind, Fenced):
            return None
        assert isinstance(storage, WrappedStorage)
        return self.kind(MemoryStorage(str(storage.inner).removeprefix("memory:")), steals=True)

    def failure(self, name: str) -> Exception | None:
        try:
            getattr(self, name)()
        except Exception as error:
            return error
        return None


PROMISES = sorted(name for name in dir(StorageContract) if name.startswith("test_"))
FENCING = "test_a_writer_who_was_replaced_can_change_nothing"


@pytest.mark.parametrize("kind", CAUGHT_BY, ids=lambda kind: kind.__name__)
def test_a_broken_backend_fails_the_promise_that_it_breaks(kind: type[Broken]) -> None:
    assert CAUGHT_BY[kind] in PROMISES, f"no promise is called {CAUGHT_BY[kind]}"
    failure = Contract(kind).failure(CAUGHT_BY[kind])
    assert failure is not None, "the promise did not notice"
    assert not isinstance(failure, TimeoutError), "it was only noticed because it hung"


def test_every_promise_catches_something() -> None:
    assert set(PROMISES) - set(CAUGHT_BY.values()) - {FENCING} == set()


def test_the_wrapper_that_the_broken_ones_are_made_of_keeps_every_promise() -> None:
    for name in PROMISES:
        assert Contract(WrappedStorage).failure(name) is None


def test_a_lease_that_can_be_lost_is_proved_when_the_backend_says_how_to_lose_it() -> None:
    assert Contract(Fenced).failure(FENCING) is None
    for kind in (FencedAtTheLeaseOnly, FencedCommitsOnly):
        assert "of a replaced writer" in str(Contract(kind).failure(FENCING))

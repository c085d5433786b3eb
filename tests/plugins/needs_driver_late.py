"""A backend that asks for its driver when it is opened."""

from __future__ import annotations

from hypercore.storage import Storage
from hypercore.urls import Address


def open_storage(address: Address) -> Storage:
    import a_driver_that_is_not_installed  # type: ignore[import-not-found]

    raise NotImplementedError(a_driver_that_is_not_installed)

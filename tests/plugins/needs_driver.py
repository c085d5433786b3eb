"""A backend whose driver is not installed."""

from __future__ import annotations

import a_driver_that_is_not_installed  # type: ignore[import-not-found]

from hypercore.storage import Storage
from hypercore.urls import Address


def open_storage(address: Address) -> Storage:
    raise NotImplementedError(a_driver_that_is_not_installed)

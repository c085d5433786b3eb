"""How much is tried of what chance decides: some in every run of the tests, and many times as much in `make soak`."""

from __future__ import annotations

import os

#: `make soak` says 20.
SOAK = int(os.environ.get("HYPERCORE_SOAK", "1"))

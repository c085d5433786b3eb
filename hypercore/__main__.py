"""`python -m hypercore` is the `hypercore` command."""

from __future__ import annotations

import sys

from hypercore.cli import main

if __name__ == "__main__":
    sys.exit(main())

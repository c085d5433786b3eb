"""The `hypercore` command.

Door floor: it uses the public API as any program may, and prints. This module imports nothing heavy, so that an
interrupt is clean from the first moment on.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command of `arguments` (the process's own without) and return its exit code.

    0: done. 1: the job failed, and one line on standard error says why. 2: it was not understood.
    """
    try:
        from hypercore.cli.running import run

        return run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        return 1

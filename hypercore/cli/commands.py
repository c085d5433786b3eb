"""The subcommands by name."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from hypercore.cli import appending, doctor, local, mirror, network
from hypercore.cli.console import Output

Command = Callable[[argparse.Namespace, Output], Awaitable[None]]

COMMANDS: Final[Mapping[str, Command]] = {
    "create": local.create,
    "append": appending.append,
    "cat": local.cat,
    "get": local.get,
    "info": local.info,
    "verify": local.verify,
    "plugins": local.plugins,
    "serve": network.serve,
    "clone": network.clone,
    "follow": network.follow,
    "copy": network.copy,
    "mirror": mirror.mirror,
    "lan": doctor.lan,
}

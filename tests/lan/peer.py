"""A program for a host: one core and `Swarm("lan:")`; it answers questions, one a line, in JSON.

python tests/lan/peer.py STORAGE [KEY]
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from typing import Any

from hypercore import Hypercore, Swarm
from hypercore.errors import HypercoreError
from hypercore.peer import Peer


class Sent:
    """How many blocks this peer has sent, also to those who are gone."""

    def __init__(self, core: Hypercore) -> None:
        self._peers: set[Peer] = set(core.peers)
        core.hub.on_peer.append(lambda peer, _: self._peers.add(peer))

    @property
    def count(self) -> int:
        return sum(peer.blocks_sent for peer in self._peers)


async def main(storage: str, key: str | None = None) -> None:
    loop, task, lines = asyncio.get_running_loop(), asyncio.current_task(), asyncio.StreamReader()
    loop.add_signal_handler(signal.SIGTERM, task.cancel if task else sys.exit)
    async with Hypercore(storage, key) as core, Swarm("lan:") as swarm:
        sent = Sent(core)
        swarm.join(core)
        print(core.key.hex(), flush=True)
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        async for line in lines:
            print(json.dumps(await answer(core, swarm, sent, *line.decode().split())), flush=True)


async def answer(core: Hypercore, swarm: Swarm, sent: Sent, verb: str, *words: str) -> Any:
    finding: Any = swarm._findings[0]
    match verb:
        case "append":
            return (await core.append(list(words))).length
        case "update":
            await core.update()
            return core.length
        case "get":
            try:
                return (await core.get(int(words[0]), timeout=0.5)).decode()
            except HypercoreError as error:
                return [type(error).__name__, str(error)]
        case "fill":
            count, size = map(int, words)
            return (await core.append([bytes([index % 256]) * size for index in range(count)])).length
        case "download":
            swarm.downloads = [core.download(0, int(words[0]))]  # type: ignore[attr-defined]  # It lives as long as this.
            return True
        case "have":
            return core.hub.log.bitfield.count(0, core.length)
        case "damaged":
            return [str(error) async for error in core.hub.log.audit()]
        case "sent":
            return sent.count
        case "connections":
            return len(swarm.connections())
        case "addresses":
            return list(swarm.addresses)
        case "remotes":
            return [each.remote_address for each in swarm.connections()]
        case "found":
            return len(finding._found)
        case "heard":
            return [address for each in finding._found.values() for address in each.peer.addresses]
        case "links":
            return [link.name for link in finding._discovery._links]
        case "errors":
            return list(swarm.dial_errors)
    raise ValueError(verb)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
        asyncio.run(main(*sys.argv[1:]))

"""A program for a host: announces the log of KEY and does not keep its word.

python tests/lan/stranger.py KEY HOST silent|talking|newer
"""

from __future__ import annotations

import asyncio
import secrets
import sys

from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from hypercore.crypto import discovery_key
from hypercore_lan.announcement import encode, new_salt
from hypercore_lan.responder import SERVICE_TYPE


async def main(key: str, host: str, manner: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if manner == "talking":
            writer.write(b"220 printer ready\r\n")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "0.0.0.0", 0)
    text = encode(new_salt(), secrets.token_bytes(32), [discovery_key(bytes.fromhex(key))])
    if manner == "newer":
        text = text.replace(b"v=1", b"v=2")
    zeroconf = AsyncZeroconf()
    await zeroconf.zeroconf.async_wait_for_start()
    name = secrets.token_hex(8)
    info = AsyncServiceInfo(
        SERVICE_TYPE,
        f"{name}.{SERVICE_TYPE}",
        port=server.sockets[0].getsockname()[1],
        properties=text,
        server=f"{name}.local.",
        parsed_addresses=[host],
    )
    await (await zeroconf.async_register_service(info, cooperating_responders=True))
    print("announced", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

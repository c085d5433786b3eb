"""Many hosts and bad networks: everybody gets everything, verified, and not all of it from the writer."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from tests.lan.hosts import Host, needs_hosts, network, rough_network
from tests.lan.test_hosts import Peer, peer
from tests.processes import running
from tests.running import run

BLOCK_COUNT = 2000
BLOCK_SIZE = 16 * 1024
FORGED_KEY = "77" * 32
#: The doctor where nothing says that this machine is a container, as the machine of the tests may be one.
DOCTOR_AT_HOME = """
import sys
from hypercore_lan import surroundings
surroundings.container = lambda: None
from hypercore.cli import main
sys.exit(main(["lan", "doctor", *sys.argv[1:]]))
"""


@asynccontextmanager
async def crowd(hosts: list[Host], folder: Path) -> AsyncIterator[tuple[Peer, list[Peer], str]]:
    """A writer on the first host, readers on the others, and the key."""
    async with AsyncExitStack() as stack:
        writer, key = await stack.enter_async_context(peer(hosts[0], folder / "writer"))
        readers = []
        for number, host in enumerate(hosts[1:]):
            reader, _ = await stack.enter_async_context(peer(host, folder / f"reader{number}", key))
            readers.append(reader)
        yield writer, readers, key


@needs_hosts
def test_five_readers_share_a_log_while_a_link_is_cut_and_the_writer_uploads_less_than_five_copies(
    tmp_path: Path,
) -> None:
    async def scene() -> None:
        with network(6) as hosts:
            async with crowd(hosts, tmp_path) as (writer, readers, _):
                await writer.ask("fill", str(BLOCK_COUNT), str(BLOCK_SIZE))
                for each in (writer, *readers):
                    await each.until(5, "connections")
                for reader in readers:
                    await reader.ask("update")
                await asyncio.gather(*(reader.ask("download", str(BLOCK_COUNT)) for reader in readers))
                await readers[2].reach(BLOCK_COUNT // 5, "have")
                hosts[3].pull_cable()
                missing = BLOCK_COUNT - await readers[2].ask("have")
                assert missing > 0, "the link was to be cut in the middle"
                for reader in (readers[0], readers[1], readers[3], readers[4]):
                    await reader.until(BLOCK_COUNT, "have")
                hosts[3].plug_cable()
                await readers[2].until(BLOCK_COUNT, "have")
                for reader in readers:
                    assert await reader.ask("damaged") == []
                copies = await writer.ask("sent") / BLOCK_COUNT
                assert 1 <= copies < 4, f"the writer uploaded {copies:.2f} copies"

    run(scene())


@needs_hosts
def test_a_network_that_loses_and_delays_slows_down_and_nothing_more(tmp_path: Path) -> None:
    async def scene() -> None:
        seed = 7
        with rough_network(3, seed=seed, loss=0.03, delay_seconds=0.02, jitter_seconds=0.02) as (hosts, _):
            async with crowd(hosts, tmp_path) as (writer, readers, _):
                await writer.ask("fill", "300", "4096")
                for reader in readers:
                    # Its first round may have heard nobody: then it finds the writer a little later.
                    await reader.reach(300, "update")
                    await reader.ask("download", "300")
                for reader in readers:
                    await reader.until(300, "have")
                    assert await reader.ask("damaged") == [], f"seed {seed}"

    run(scene())


@needs_hosts
def test_two_halves_of_a_network_live_on_apart_and_become_one_again(tmp_path: Path) -> None:
    async def scene() -> None:
        with rough_network(4, seed=1) as (hosts, switch):
            async with crowd(hosts, tmp_path) as (writer, (near, far, farther), _):
                await writer.ask("append", "before")
                for reader in (near, far, farther):
                    await reader.until("before", "get", "0")
                switch.cut(2)
                await writer.ask("append", "during")
                await near.until("during", "get", "1")
                for reader in (far, farther):
                    refused = await reader.ask("get", "1")
                    assert isinstance(refused, list), f"{refused!r} came through the cut"
                switch.heal()
                for reader in (far, farther):
                    await reader.until("during", "get", "1")
                await writer.ask("append", "after")
                for reader in (near, far, farther):
                    await reader.until("after", "get", "2")

    run(scene())


@needs_hosts
def test_who_starts_on_the_other_side_of_a_cut_is_found_when_it_is_healed(tmp_path: Path) -> None:
    async def scene() -> None:
        with rough_network(2, seed=1) as (hosts, switch):
            switch.cut(1)
            async with crowd(hosts, tmp_path) as (writer, (reader,), _):
                await writer.ask("append", "hello")
                assert await reader.ask("update") == 0
                switch.heal()
                await reader.until("hello", "get", "0")

    run(scene())


@needs_hosts
def test_the_doctor_does_not_claim_to_know_why_nobody_is_heard() -> None:
    async def scene() -> None:
        with rough_network(2, seed=1) as (hosts, switch):
            switch.cut(1)
            async with running(*hosts[1].command(sys.executable, "-c", DOCTOR_AT_HOME, FORGED_KEY, "--json")) as doctor:
                done = await doctor.done()
                (said,) = done.json()
                assert (done.code, [each["cause"] for each in said["causes"]]) == (1, ["nobody-heard"])
                text = said["causes"][0]["text"]
                assert "nobody may be there" in text
                assert "client isolation" in text

    run(scene())


@needs_hosts
def test_the_doctor_tells_silence_from_others_who_announce_nothing() -> None:
    speaker = (
        "import asyncio\n"
        "from zeroconf.asyncio import AsyncZeroconf, AsyncServiceInfo\n"
        "async def main():\n"
        "    zeroconf = AsyncZeroconf()\n"
        "    info = AsyncServiceInfo('_ipp._tcp.local.', 'Printer._ipp._tcp.local.', port=631,\n"
        "        server='printer.local.', parsed_addresses=['10.77.0.1'])\n"
        "    await (await zeroconf.async_register_service(info))\n"
        "    print('announced', flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )

    async def scene() -> None:
        with network(2) as (one, other):
            async with running(*one.command(sys.executable, "-c", speaker)) as printer:
                assert await printer.line() == "announced"
                async with running(
                    *other.command(sys.executable, "-c", DOCTOR_AT_HOME, FORGED_KEY, "--json")
                ) as doctor:
                    (said,) = (await doctor.done()).json()
                    assert [each["cause"] for each in said["causes"]] == ["nobody-announces"]
                await printer.done(signal.SIGTERM)

    run(scene())

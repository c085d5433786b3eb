"""Other tools see what we announce: Avahi, the responder of most Linux desktops, on another host."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from tests.lan.hosts import Host, needs_hosts, network
from tests.lan.test_hosts import peer
from tests.processes import running
from tests.running import run

#: As Debian has them: dbus-daemon, avahi-daemon, avahi-utils.
PROGRAMS = ("dbus-daemon", "avahi-daemon", "avahi-browse")

_BUS = """<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*" eavesdrop="true"/>
<allow eavesdrop="true"/></policy></busconfig>"""
#: Within the mount namespace that `ip netns exec` makes, /run is ours alone.
_AVAHI = """
mount -t tmpfs tmpfs /run && mkdir /run/dbus /run/avahi-daemon
dbus-daemon --config-file="$1/bus.conf" --nofork --nopidfile >"$1/avahi.log" 2>&1 </dev/null &
until [ -S /run/dbus/system_bus_socket ]; do kill -0 $! || exit 1; sleep 0.05; done
printf '[server]\\nuse-ipv6=no\\nenable-dbus=yes\\n[wide-area]\\nenable-wide-area=no\\n' > /run/avahi.conf
avahi-daemon --file=/run/avahi.conf --no-drop-root --no-chroot --no-rlimits >>"$1/avahi.log" 2>&1 </dev/null &
until [ -S /run/avahi-daemon/socket ]; do kill -0 $! || exit 1; sleep 0.05; done
echo ready
while read command; do $command; echo end; done
"""


def browse(host: Host, folder: Path) -> tuple[str, ...]:
    """A shell on the host next to an Avahi of its own; each line of its input is a command."""
    (folder / "bus.conf").write_text(_BUS)
    return host.command("sh", "-c", _AVAHI, "avahi", folder)


@pytest.mark.interop
@needs_hosts
def test_avahi_browse_lists_the_service_with_its_port_and_text_and_sees_the_goodbye(tmp_path: Path) -> None:
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    assert not missing, f"{', '.join(missing)} missing; on Debian: apt-get install dbus avahi-daemon avahi-utils"

    async def scene() -> None:
        with network(2) as (one, other):
            async with running(*browse(other, tmp_path)) as avahi:
                assert await avahi.line() == "ready", (tmp_path / "avahi.log").read_text()

                async def listed() -> list[list[str]]:
                    await avahi.type("avahi-browse --resolve --parsable --terminate _hypercore._tcp\n")
                    lines = []
                    while (line := await avahi.line()) != "end":
                        lines.append(line.split(";"))
                    return [line for line in lines if line[0] == "="]

                async with peer(one, tmp_path / "w") as (server, _):
                    while not (services := await listed()):
                        pass
                    _, interface, protocol, name, kind, domain, host, address, port, text = services[0]
                    assert (interface, protocol, kind, domain) == ("eth0", "IPv4", "_hypercore._tcp", "local")
                    assert (host, address) == (f"{name}.local", one.address)
                    assert f"tcp://127.0.0.1:{port}" in await server.ask("addresses")
                    assert '"v=1"' in text
                    assert '"p=hypercore/alpha"' in text
                    await server.program.done(signal.SIGTERM)
                while await listed():  # Without a goodbye it would be there for more than an hour.
                    pass

    run(scene())

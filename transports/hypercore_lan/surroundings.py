"""What this machine tells of itself when peers are not found: its interfaces, its containers, who holds a port.

It sends nothing. Everything is read from where Linux tells it, and is silent elsewhere.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from hypercore_lan.links import SYSTEM_PATH, Link, is_virtual, read_links

_CONTAINER_GROUPS: Final = re.compile(r"docker|kubepods|containerd|libpod|lxc")
_LISTENING: Final = "0A"
_IFF_UP: Final = 0x1


def other_links(links: Sequence[Link]) -> list[Link]:
    """The links that discovery leaves out, less loopback."""
    return [link for link in read_links(("*",)) if link not in links and not link.is_loopback]


def container_links(links: Sequence[Link], system: Path = SYSTEM_PATH) -> list[Link]:
    """Those that lead to containers or virtual machines of this one, and to nobody else."""
    return [link for link in links if is_virtual(link.name, system)]


def useless_interfaces(system: Path = SYSTEM_PATH) -> list[str]:
    """Interfaces without an address and why: `eth0 is down`, `eth0 has no address`. Loopback is none of them."""
    with_address = {link.name for link in read_links(("*",))}
    said = []
    with suppress(OSError):
        for path in sorted(system.iterdir()):
            if path.name != "lo" and path.name not in with_address and (path / "flags").exists():
                flags = int((path / "flags").read_text(), 16)
                said.append(f"{path.name} {'has no address' if flags & _IFF_UP else 'is down'}")
    return said


def container(root: Path = Path("/"), environment: Mapping[str, str] = os.environ) -> str | None:
    """What says that this program runs inside a container; None when nothing does."""
    for name in (".dockerenv", "run/.containerenv"):
        if (root / name).exists():
            return f"there is a file /{name}"
    if environment.get("container"):
        return f"the environment says container={environment['container']}"
    with suppress(OSError):
        if found := _CONTAINER_GROUPS.search((root / "proc/1/cgroup").read_text()):
            return f"process 1 is in a group of {found[0]}"
    return None


def is_made_up(name: str, system: Path = SYSTEM_PATH) -> bool:
    """Whether an interface is neither a network card nor anything that stands on one, as VLANs and macvlans do."""
    place = system / name
    with suppress(OSError):
        return "DEVTYPE=" not in (place / "uevent").read_text() and not (place / "device").exists()
    return False


def is_half_of_pair(name: str, system: Path = SYSTEM_PATH) -> bool:
    """Whether an interface is one end of a veth pair, and the other one elsewhere: what containers have for a cable."""
    place = system / name
    with suppress(OSError):
        is_end = (place / "iflink").read_text().strip() == (place / "ifindex").read_text().strip()
        return not is_end and is_made_up(name, system)
    return False


def holders(protocol: str, port: int, root: Path = Path("/proc")) -> list[str]:
    """The processes that hold a port of `udp` or `tcp`, as `avahi-daemon (process 612)`, as far as we may see them."""
    inodes = set()
    for table in (protocol, f"{protocol}6"):
        with suppress(OSError, ValueError, IndexError):
            for line in (root / "net" / table).read_text().splitlines()[1:]:
                fields = line.split()
                is_bound = int(fields[1].rpartition(":")[2], 16) == port
                if is_bound and (protocol == "udp" or fields[3] == _LISTENING):
                    inodes.add(f"socket:[{fields[9]}]")
    found = []
    for process in sorted((path for path in root.glob("[0-9]*")), key=lambda path: int(path.name)):
        if int(process.name) == os.getpid():
            continue
        with suppress(OSError):
            if any(_target(entry) in inodes for entry in (process / "fd").iterdir()):
                found.append(f"{(process / 'comm').read_text().strip()} (process {process.name})")
    return found


def _target(path: Path) -> str:
    with suppress(OSError):
        return os.readlink(path)
    return ""


def port_error(host: str, port: int) -> OSError | None:
    """Why nothing can listen on a TCP port here; None when it can."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
            sock.listen(1)
        except OSError as error:
            return error
    return None

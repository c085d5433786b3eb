"""Hosts on a network of their own: network namespaces, wired to a switch that is one more namespace.

Nothing of it touches the machine's own network, and all of it goes when the test ends. Only root may do this; where
the machine forbids it the test is skipped, except in CI, where it then fails.
"""

from __future__ import annotations

import functools
import itertools
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

_numbers = itertools.count()


def ip(*arguments: str) -> str:
    """Run `ip`; its output."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
    return done.stdout


@functools.cache
def why_not() -> str | None:
    """Why this machine cannot have namespaces; None when it can."""
    name = f"hc-try-{os.getpid()}"
    try:
        ip("netns", "add", name)
        ip("netns", "del", name)
    except (AssertionError, OSError) as error:
        return str(error)
    return None


def needs_hosts(test: Callable[..., None]) -> Callable[..., None]:
    """Marks a test that needs hosts of its own."""
    reason = why_not()
    if reason is None or os.environ.get("CI"):
        return test
    skipped: Callable[..., None] = pytest.mark.skip(reason=f"this machine forbids network namespaces: {reason}")(test)
    return skipped


class Host:
    """One machine with one cable."""

    def __init__(self, namespace: str, switch: str, port: str, address: str | None) -> None:
        self.namespace = namespace
        self.address = address
        self._switch = switch
        self._port = port

    def command(self, *command: str | Path) -> tuple[str, ...]:
        """A command line that runs on this host."""
        return ("ip", "netns", "exec", self.namespace, *map(str, command))

    def ip(self, *arguments: str) -> str:
        """Run `ip` on this host."""
        return ip("-n", self.namespace, *arguments)

    def pull_cable(self) -> None:
        """What its cable carried is lost, and it sees that."""
        ip("-n", self._switch, "link", "set", self._port, "down")

    def plug_cable(self) -> None:
        """Put the cable back."""
        ip("-n", self._switch, "link", "set", self._port, "up")

    def move(self, address: str) -> None:
        """Give up its IPv4 address for another one, as DHCP does."""
        self.ip("address", "flush", "dev", "eth0", "scope", "global")
        self.ip("address", "add", f"{address}/24", "dev", "eth0")
        self.address = address


def _remove(namespace: str) -> None:
    """With every process that is still on the host."""
    pids = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, timeout=30).stdout
    for pid in pids.split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    subprocess.run(["ip", "netns", "del", namespace], capture_output=True, timeout=30)


@contextmanager
def network(count: int, *, ipv4: bool = True, ipv6: bool = True) -> Iterator[list[Host]]:
    """Hosts 10.77.0.1 and so on, on one switch, with no route to anywhere else."""
    run = f"hc-{os.getpid()}-{next(_numbers)}"
    with ExitStack() as stack:

        def namespace(name: str) -> str:
            ip("netns", "add", name)
            stack.callback(_remove, name)
            return name

        switch = namespace(f"{run}-switch")
        ip("-n", switch, "link", "add", "br0", "type", "bridge", "stp_state", "0", "mcast_snooping", "0")
        ip("-n", switch, "link", "set", "br0", "up")
        hosts = []
        for number in range(1, count + 1):
            name, port = namespace(f"{run}-{number}"), f"port{number}"
            setting = "0 > accept_dad" if ipv6 else "1 > disable_ipv6"
            write = f"cd /proc/sys/net/ipv6/conf && for each in all default; do (cd $each && echo {setting}); done"
            ip("netns", "exec", name, "sh", "-c", write)
            ip("-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", switch)
            ip("-n", switch, "link", "set", port, "master", "br0", "up")
            if ipv4:
                ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", "eth0", "up")
            hosts.append(Host(name, switch, port, f"10.77.0.{number}" if ipv4 else None))
        yield hosts

"""Hosts on a network of their own: network namespaces, wired to a switch that is one more namespace.

The switch is a bridge of the kernel, or a program that loses and delays frames (`rough_switch.py`).

Nothing of it touches the machine's own network, and all of it goes when the test ends. Only root may do this; where
the machine forbids it the test is skipped, except in CI, where it then fails.
"""

from __future__ import annotations

import functools
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

ROUGH_SWITCH = Path(__file__).parent / "rough_switch.py"

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


class RoughSwitch:
    """The switch of a `rough_network`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def cut(self, border: int) -> None:
        """Part the hosts before number `border`, counted from 0, from all others; nobody sees that from his cable."""
        self._say(f"cut {border + 1}")

    def heal(self) -> None:
        """Carry everything again."""
        self._say("cut 0")

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"


class _Wiring:
    """Makes namespaces, and removes them in the end."""

    def __init__(self, stack: ExitStack) -> None:
        self._run = f"hc-{os.getpid()}-{next(_numbers)}"
        self._stack = stack
        self.switch = self.namespace("switch")

    def namespace(self, name: str) -> str:
        name = f"{self._run}-{name}"
        ip("netns", "add", name)
        self._stack.callback(_remove, name)
        return name

    def host(self, number: int, plug_in: Callable[[str, str], None], *, ipv4: bool = True, ipv6: bool = True) -> Host:
        """`plug_in` makes eth0 in a namespace, at a port of the switch."""
        name, port = self.namespace(str(number)), f"port{number}"
        setting = "0 > accept_dad" if ipv6 else "1 > disable_ipv6"
        write = f"cd /proc/sys/net/ipv6/conf && for each in all default; do (cd $each && echo {setting}); done"
        ip("netns", "exec", name, "sh", "-c", write)
        plug_in(name, port)
        if ipv4:
            ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", "eth0")
        ip("-n", name, "link", "set", "lo", "up")
        ip("-n", name, "link", "set", "eth0", "up")
        return Host(name, self.switch, port, f"10.77.0.{number}" if ipv4 else None)


@contextmanager
def network(count: int, *, ipv4: bool = True, ipv6: bool = True) -> Iterator[list[Host]]:
    """Hosts 10.77.0.1 and so on, on one switch, with no route to anywhere else."""
    with ExitStack() as stack:
        wiring = _Wiring(stack)
        switch = wiring.switch
        ip("-n", switch, "link", "add", "br0", "type", "bridge", "stp_state", "0", "mcast_snooping", "0")
        ip("-n", switch, "link", "set", "br0", "up")

        def plug_in(name: str, port: str) -> None:
            ip("-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", switch)
            ip("-n", switch, "link", "set", port, "master", "br0", "up")

        yield [wiring.host(number, plug_in, ipv4=ipv4, ipv6=ipv6) for number in range(1, count + 1)]


@contextmanager
def rough_network(
    count: int, *, seed: int, loss: float = 0.0, delay_seconds: float = 0.0, jitter_seconds: float = 0.0
) -> Iterator[tuple[list[Host], RoughSwitch]]:
    """The same on a switch that loses this part of all frames and delays every one, decided by the seed."""
    with ExitStack() as stack:
        wiring = _Wiring(stack)
        switch = wiring.switch
        values = map(str, (count, loss, delay_seconds, jitter_seconds, seed))
        command = ("ip", "netns", "exec", switch, sys.executable, str(ROUGH_SWITCH), *values)
        # As one of the processes of its namespace it ends with that.
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        stack.enter_context(process)
        stack.callback(process.kill)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"

        def plug_in(name: str, port: str) -> None:
            ip("-n", switch, "link", "set", port, "netns", name)
            ip("-n", name, "link", "set", port, "name", "eth0")

        hosts = [wiring.host(number, plug_in) for number in range(1, count + 1)]
        yield hosts, RoughSwitch(process)

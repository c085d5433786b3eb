"""`hypercore lan`: who is on the local network, and why peers that should find each other do not.

What is the network's to know it asks the transport (`Transport.diagnose`); here the peers are dialled, as a program
with the log would, and what became of it is told. It knows no transport by name.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hypercore.cli.console import CommandError, Output, Progress, count_of
from hypercore.core import Hypercore
from hypercore.crypto import discovery_key
from hypercore.errors import ConnectError, ConnectTimeoutError, HypercoreError, OptionError, PeerRefusedError
from hypercore.plugins import open_transport
from hypercore.swarm import Swarm
from hypercore.transport import Diagnosis, Neighbour, Symptom
from hypercore.urls import parse_address

#: A dial that takes longer does not come through; a peer has addresses of up to two kinds.
DIAL_SECONDS: Final = 3.0
PATIENCE_SECONDS: Final = 8.0
#: A peer that is connected has said by then whether it has the log.
SAYING_SECONDS: Final = 1.5
TICK_SECONDS: Final = 0.05
#: Without a log to ask for, so many are dialled to see whether they can be.
MOST_KNOCKS: Final = 16


async def lan(options: argparse.Namespace, output: Output) -> None:
    await (_peers if options.lan_command == "peers" else _doctor)(options, output)


async def _peers(options: argparse.Namespace, output: Output) -> None:
    diagnosis = await _diagnose(options, frozenset())
    for neighbour in diagnosis.neighbours:
        await output.report(
            {"addresses": list(neighbour.addresses), "logs": neighbour.topic_count},
            f"{neighbour.addresses[0]}  {_logs(neighbour)}",
        )
    if not diagnosis.neighbours and diagnosis.symptoms:
        raise CommandError(_said(diagnosis.symptoms[0]))


async def _doctor(options: argparse.Namespace, output: Output) -> None:
    """Prints what is right and what is not. Raises `CommandError` when something keeps peers apart."""
    topics = frozenset[bytes]() if options.key is None else frozenset([discovery_key(options.key)])
    diagnosis = await _diagnose(options, topics)
    visits = [_Visit(neighbour) for neighbour in diagnosis.neighbours]
    sharing = [visit for visit in visits if visit.neighbour.topics]
    symptoms = list(diagnosis.symptoms)
    if any(symptom.is_fatal for symptom in symptoms):
        pass  # Whoever was heard by luck says nothing about the rest.
    elif options.key is None:
        await asyncio.gather(*(visit.knock() for visit in visits[:MOST_KNOCKS]))
    elif sharing:
        await _connect(sharing, options)
    elif visits:
        symptoms.append(_nothing_shared(len(visits)))
    symptoms += [visit.symptom for visit in visits if visit.symptom is not None]
    connected = [visit for visit in sharing if visit.is_connected]
    # Whoever is connected with somebody who has the log has what he wants, whatever else is wrong.
    is_healthy = bool(connected) or not symptoms
    await output.report(
        {
            "healthy": is_healthy,
            "interfaces": list(diagnosis.places),
            "peers": len(visits),
            "sharing": None if options.key is None else len(sharing),
            "connected": [visit.address for visit in connected],
            "causes": [{"cause": each.cause, "text": each.text, "advice": each.advice} for each in symptoms],
        },
        *(f"interface  {place}" for place in diagnosis.places),
        *(f"peer       {visit}{_whether_here(visit, diagnosis)}" for visit in visits),
        *(f"{'note      ' if is_healthy else 'problem   '} {each.cause}: {_said(each)}" for each in symptoms),
        *([_summary(options, len(visits), len(sharing), connected)] if is_healthy else []),
    )
    if not is_healthy:
        raise CommandError(", ".join(dict.fromkeys(each.cause for each in symptoms)))


async def _diagnose(options: argparse.Namespace, topics: frozenset[bytes]) -> Diagnosis:
    transport = open_transport(options.address)
    progress = Progress("peers", quiet=options.json)
    looking = asyncio.ensure_future(transport.diagnose(topics))
    try:
        while not looking.done():
            await asyncio.wait([looking], timeout=TICK_SECONDS)
            progress.say("listening...")
        if (diagnosis := looking.result()) is None:
            raise OptionError(f"{options.address} finds nobody by itself: there is nothing to look at")
        return diagnosis
    finally:
        looking.cancel()
        progress.clear()
        await transport.aclose()


def _summary(options: argparse.Namespace, count: int, sharing: int, connected: Sequence[_Visit]) -> str:
    seen = f"{count_of(count, 'peer')} seen"
    if options.key is None:
        return f"ok         {seen}; `hypercore lan doctor KEY` says whether they have the log"
    where = ", ".join(visit.address for visit in connected)
    verb = "shares" if sharing == 1 else "share"
    return f"ok         {seen}, {sharing} {verb} this log, connected to {where}"


def _whether_here(visit: _Visit, diagnosis: Diagnosis) -> str:
    host = parse_address(visit.address).host
    return " (this machine)" if any(host in place.replace(",", " ").split() for place in diagnosis.places) else ""


def _said(symptom: Symptom) -> str:
    return f"{symptom.text}; {symptom.advice}"


def _logs(neighbour: Neighbour) -> str:
    return "many logs" if neighbour.topic_count is None else count_of(neighbour.topic_count, "log")


def _nothing_shared(count: int) -> Symptom:
    return Symptom(
        cause="no-shared-core",
        text=f"{count_of(count, 'peer')} seen, and none of them announces this log",
        advice="is this its KEY, and is it served there? (hypercore info STORAGE, hypercore serve STORAGE --lan)",
    )


# ---- peers ----------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Visit:
    """What becomes of one neighbour."""

    neighbour: Neighbour
    is_connected: bool = False
    symptom: Symptom | None = None
    #: Why the last dial failed.
    error: HypercoreError | None = None
    #: When it was first seen to be connected.
    _since: float | None = None

    @property
    def address(self) -> str:
        return self.neighbour.addresses[0]

    def __str__(self) -> str:
        shares = ", this one among them" if self.neighbour.topics else ""
        return f"{self.address}  {_logs(self.neighbour)}{shares}{', connected' if self.is_connected else ''}"

    def look(self, core: Hypercore, swarm: Swarm) -> bool:
        """Whether it is known by now how it stands with this one."""
        info = next(
            (each for each in swarm.peers if not set(self.neighbour.addresses).isdisjoint(each.addresses)), None
        )
        if info is None:
            return False
        self.error = swarm.dial_errors.get(self.address) or info.error or self.error
        self.is_connected = any(peer.remote_public_key == info.public_key for peer in core.peers)
        if info.state != "connected" or self.is_connected:
            return self.is_connected or info.error is not None
        now = asyncio.get_running_loop().time()
        self._since = self._since or now
        if now - self._since < SAYING_SECONDS:
            return False
        self.symptom = _nothing_shared(1)  # It has more logs than it lists, or another one's hash is that of ours.
        return True

    async def knock(self) -> bool:
        """Whether its port can be reached; why not is the symptom."""
        failure: HypercoreError | None = None
        for address in self.neighbour.addresses:
            transport = open_transport(address)
            try:
                await (await transport.connect(address, timeout_seconds=DIAL_SECONDS)).aclose()
                return True
            except HypercoreError as error:
                failure = error
            finally:
                await transport.aclose()
        self.symptom = _why(self.address, failure, is_open=False)
        return False


def _why(address: str, error: HypercoreError | None, *, is_open: bool) -> Symptom:
    """Why a peer that was seen is not connected. `is_open` when connections to its port can be made."""
    port = address.rpartition(":")[2]
    match error:
        case None:
            return Symptom(
                cause="peer-gone",
                text=f"{address} announced this log, and was not found again a moment later",
                advice="try again; does its program still run?",
            )
        case PeerRefusedError():
            return Symptom(
                cause="peer-refused",
                text=f"{address} has this log, and ended the connection as soon as it knew who we are",
                advice="add the public key of your program to its allow-list (allow= or firewall= of its Swarm)",
            )
        case ConnectTimeoutError() if is_open:
            return Symptom(
                cause="peer-refused",
                text=f"{address} takes connections and never says a word: its program hangs, or speaks something else",
                advice="start that program anew",
            )
        case ConnectError():
            return Symptom(
                cause="port-blocked",
                text=f"{address} announces itself and cannot be reached there ({error}): a firewall keeps us from that "
                "port, or the program has just ended",
                advice=f"let TCP port {port} in on that machine (ufw allow {port}/tcp); lan:?port=4977 there makes it "
                "a fixed one",
            )
        case _:
            return Symptom(
                cause="peer-refused",
                text=f"{address} takes connections and ends them in the handshake ({error})",
                advice="look at what its program says; does it speak hypercore at all?",
            )


async def _connect(visits: Sequence[_Visit], options: argparse.Namespace) -> None:
    """Find and dial those who have the log as every program does, with a copy in memory."""
    loop = asyncio.get_running_loop()
    async with Hypercore("memory:", options.key) as core, Swarm(options.address) as swarm:
        swarm.join(core)
        ends = loop.time() + PATIENCE_SECONDS
        while loop.time() < ends:
            known = [visit.look(core, swarm) for visit in visits]
            if all(known):
                break
            await asyncio.sleep(TICK_SECONDS)
    for visit in visits:
        if visit.is_connected or visit.symptom is not None:
            continue
        # A dial that ended without an answer was one to a closed door, or to one behind which nobody speaks.
        if not isinstance(visit.error, ConnectTimeoutError) or await visit.knock():
            visit.symptom = _why(visit.address, visit.error, is_open=True)

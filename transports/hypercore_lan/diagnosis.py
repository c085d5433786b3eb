"""Why peers are not found here: looks at the machine, at multicast, and at who announces something.

What it cannot know it does not say: on a network where nobody answers, nobody may be there.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterable, Sequence
from typing import Final

from hypercore.errors import TransportError
from hypercore.transport import Diagnosis, Neighbour, Symptom
from hypercore_lan import surroundings
from hypercore_lan.announcement import Announcement, decode
from hypercore_lan.discovery import ADDRESS_COUNT_MAX, PEER_COUNT_MAX, LanOptions
from hypercore_lan.links import Link, dialable_addresses, read_links
from hypercore_lan.multicast import PORT, Echo, listen
from hypercore_lan.responder import Responder, Sight

#: How long answers are waited for: three questions, and twice what the first round of discovery takes.
LISTEN_SECONDS: Final = 2.0

_OPEN_UDP: Final = "let UDP port 5353 in (ufw allow 5353/udp; firewall-cmd --add-service=mdns)"
_HOST_NETWORK: Final = "give it the network of the host (docker run --network host, hostNetwork: true)"


async def diagnose(options: LanOptions, topics: frozenset[bytes]) -> Diagnosis:
    """See `Transport.diagnose`."""
    links = read_links(options.wanted)
    places = tuple(f"{link.name} {', '.join(link.hosts)}" for link in links)
    if (symptom := _no_link(options, links) or _taken_port(options, links)) is not None:
        return Diagnosis(places=places, symptoms=(symptom,))
    street = _Street(links, topics)
    looking = asyncio.get_running_loop().create_task(street.look(LISTEN_SECONDS))
    try:
        echoes = await listen(links, seconds=LISTEN_SECONDS)
        await looking
    except TransportError as error:
        symptom = Symptom(cause="multicast-failed", text=str(error), advice="see what it says", is_fatal=True)
        return Diagnosis(places=places, symptoms=(symptom,))
    except OSError as error:
        return Diagnosis(places=places, symptoms=(_no_multicast_port(error),))
    finally:
        looking.cancel()
        await asyncio.wait([looking])
    symptoms = [*_blocked(echoes), *street.symptoms()]
    if not street.neighbours and not symptoms:
        symptoms.append(_silence(links, echoes))
    return Diagnosis(places=places, neighbours=tuple(street.neighbours.values()), symptoms=tuple(symptoms))


class _Street:
    """Who announces something that we understand, and who something else."""

    def __init__(self, links: Sequence[Link], topics: frozenset[bytes]) -> None:
        self._links = links
        self._topics = topics
        self.neighbours: dict[str, Neighbour] = {}
        #: Addresses of those who are not on any link of ours.
        self._elsewhere: dict[str, str] = {}
        #: Those who speak another version.
        self._strange: dict[str, str] = {}

    async def look(self, seconds: float) -> None:
        """Raises `TransportError`."""
        # It announces nothing, so nobody asks for a port.
        responder = Responder(self._links, port=0, on_seen=self._seen, on_gone=self._gone)
        await responder.open()
        try:
            responder.look()
            await asyncio.sleep(seconds)
        finally:
            await responder.aclose()

    def _gone(self, name: str) -> None:
        self.neighbours.pop(name, None)
        self._elsewhere.pop(name, None)
        self._strange.pop(name, None)

    def _seen(self, sight: Sight) -> None:
        self._gone(sight.name)
        if len(self.neighbours) + len(self._elsewhere) + len(self._strange) >= PEER_COUNT_MAX:
            return
        host = sight.hosts[0] if sight.hosts else sight.name
        announcement = decode(sight.text)
        addresses = dialable_addresses(sight.hosts, sight.port, self._links, limit=ADDRESS_COUNT_MAX)
        if announcement is None:
            self._strange[sight.name] = host
        elif not addresses:
            self._elsewhere[sight.name] = host
        else:
            self.neighbours[sight.name] = Neighbour(
                addresses=addresses, topics=announcement.matches(self._topics), topic_count=_topic_count(announcement)
            )

    def symptoms(self) -> list[Symptom]:
        symptoms = []
        if self._elsewhere:
            symptoms.append(
                Symptom(
                    cause="other-network",
                    text=f"{_list(self._elsewhere.values())} announced something from a network that this machine is "
                    "not on, and is not dialled",
                    advice="dial it by address (--from tcp://host:port), or put both machines on one network",
                )
            )
        if self._strange:
            symptoms.append(
                Symptom(
                    cause="other-version",
                    text=f"{_list(self._strange.values())} announced something that this version does not understand",
                    advice="use the same version of hypercore on both machines",
                )
            )
        return symptoms


def _topic_count(announcement: Announcement) -> int | None:
    return None if announcement.has_more else len(announcement.topic_hashes)


# ---- before anything is sent -------------------------------------------------------------------------


def _no_link(options: LanOptions, links: Sequence[Link]) -> Symptom | None:
    if any(link.is_connected for link in links):
        return None
    if links:
        names = _list(link.name for link in links)
        text, advice = f"{names}: there is an address and no cable or radio network", "connect it"
        return Symptom(cause="no-interface", text=text, advice=advice, is_fatal=True)
    others = surroundings.other_links(links)
    if options.wanted:
        there = _list(link.name for link in others) or "none"
        text = f"no interface {options.interfaces} has an address; those that have one: {there}"
        return Symptom(cause="no-interface", text=text, advice="name one of those, or none at all", is_fatal=True)
    if (inner := surroundings.container_links(others)) and len(inner) == len(others):
        names = ",".join(link.name for link in inner)
        return Symptom(
            cause="container-network",
            text=f"this machine is on no network but those of its own containers and virtual machines ({names})",
            advice=f"connect it to a network; lan:?interfaces={names} finds the peers inside of it",
            is_fatal=True,
        )
    useless = surroundings.useless_interfaces()
    tunnels = [f"{link.name} is a tunnel, which carries no multicast" for link in others if link not in inner]
    why = "; ".join(useless + tunnels) or "there is only loopback"
    return Symptom(
        cause="no-interface",
        text=f"no network interface is up with an address: {why}",
        advice="connect this machine (ip address shows what it has)",
        is_fatal=True,
    )


def _taken_port(options: LanOptions, links: Sequence[Link]) -> Symptom | None:
    host = "127.0.0.1" if all(link.is_loopback for link in links) else "0.0.0.0"
    error = surroundings.port_error(host, options.port) if options.port else None
    if error is None:
        return None
    if error.errno != errno.EADDRINUSE:
        text, advice = f"TCP port {options.port} may not be opened: {os.strerror(error.errno or 0)}", "use another port"
    else:
        text = f"{_holder('tcp', options.port)} holds TCP port {options.port}"
        advice = "end it, or use another port; if it is the program that you ask about, leave port= out here"
    return Symptom(cause="port-held", text=text, advice=advice, is_fatal=True)


def _no_multicast_port(error: OSError) -> Symptom:
    if error.errno != errno.EADDRINUSE:
        return Symptom(
            cause="multicast-failed",
            text=f"this system lets us take no part in multicast DNS: {error.strerror or error}",
            advice="use an interface that carries multicast (ip link shows MULTICAST)",
            is_fatal=True,
        )
    return Symptom(
        cause="port-held",
        text=f"{_holder('udp', PORT)} holds UDP port {PORT} for itself",
        advice="end it, or have it share the port (avahi-daemon.conf: disallow-other-stacks=no)",
        is_fatal=True,
    )


def _holder(protocol: str, port: int) -> str:
    return _list(surroundings.holders(protocol, port)) or "another program, which we are not allowed to see,"


# ---- what was heard ----------------------------------------------------------------------------------


def _blocked(echoes: Sequence[Echo]) -> list[Symptom]:
    deaf = [echo for echo in echoes if not echo.is_heard]
    if not deaf:
        return []
    errors = {echo.error.strerror or str(echo.error) for echo in deaf if echo.error is not None}
    what = f"could not be sent ({_list(errors)})" if errors else "did not come back to this machine"
    return [
        Symptom(
            cause="multicast-blocked",
            text=f"our own question {what} on {_list(echo.name for echo in deaf)}: a firewall of this machine drops it",
            advice=_OPEN_UDP,
            is_fatal=len(deaf) == len(echoes),
        )
    ]


def _silence(links: Sequence[Link], echoes: Sequence[Echo]) -> Symptom:
    """Our questions went out, and nobody announced anything."""
    speakers = {speaker for echo in echoes for speaker in echo.speakers}
    names = _list(link.name for link in links)
    if not speakers and (evidence := _container(links)) is not None:
        return Symptom(
            cause="container-network",
            text=f"nobody else was heard on {names}, and {evidence}: such a network reaches other containers at most, "
            "and no machine of the local network",
            advice=_HOST_NETWORK,
        )
    if speakers:
        return Symptom(
            cause="nobody-announces",
            text=f"multicast works on {names} ({_count(len(speakers), 'other machine')} heard), and nobody announces "
            "a log",
            advice="start hypercore serve --lan on the other machine, and see what hypercore lan doctor says there",
        )
    return Symptom(
        cause="nobody-heard",
        text=f"nobody else was heard on {names}: nobody may be there, or the network keeps multicast from us (Wi-Fi "
        "with client isolation, a guest network, a switch with IGMP snooping), or the other machine's firewall does",
        advice=f"see what hypercore lan doctor says on the other machine, and there {_OPEN_UDP}",
    )


def _container(links: Sequence[Link]) -> str | None:
    """What says that these links are the cables of a container, which lead to the container engine and no farther."""
    evidence = surroundings.container()
    if evidence is not None and all(surroundings.is_made_up(link.name) for link in links):
        return f"this is a container ({evidence})"
    if all(surroundings.is_half_of_pair(link.name) for link in links):
        return "its other end is in another network namespace, as that of a container is"
    return None


def _list(words: Iterable[str]) -> str:
    return ", ".join(sorted(set(words)))


def _count(number: int, unit: str) -> str:
    return f"{number} {unit}" if number == 1 else f"{number} {unit}s"

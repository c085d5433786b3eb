"""The promises of `hypercore.transport.Discovery` as tests, for anyone's discovery.

Aside of the floors: it imports no test runner. Subclass `DiscoveryContract` in a test module; each of its `test_`
methods is then one promise that your discovery keeps:

    class TestMyDiscovery(DiscoveryContract):
        def make_discovery(self) -> Discovery:
            return MyDiscovery(network="test")
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from hypercore.errors import TransportError
from hypercore.plugins import open_transport
from hypercore.transport import Discovery, HostsLost, Listener, PeerFound, PeerLost


class DiscoveryContract:
    """Each `test_` method makes discoveries that can hear of each other, and closes them."""

    #: Makes the event loop; None is asyncio's own.
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    #: A promise that takes longer is broken: it hangs.
    timeout_seconds: float = 60.0

    def make_discovery(self) -> Discovery:
        """A new one, made inside the loop; all of one test hear of each other."""
        raise NotImplementedError("a contract needs make_discovery()")

    async def listen(self, address: str) -> Listener:
        """What a discovery is given to open what peers dial."""
        return await open_transport(address).listen(address)

    def new_topic(self) -> bytes:
        """Nobody else's on this network."""
        return secrets.token_bytes(32)

    # ---- finding ----

    def test_who_looks_for_a_topic_finds_who_serves_it(self) -> None:
        async def promise(served: Listening, seeker: Listening) -> None:
            topic = self.new_topic()
            seeker.discovery.look_up(frozenset([topic]))
            served.discovery.announce(frozenset([topic]))
            await seeker.until(lambda: seeker.names(topic) != [])
            (found,) = seeker.found.values()
            _expect(found.topics == {topic}, "a peer is told with other topics than those looked for")
            _expect(found.is_peer(served.public_key), "is_peer does not know the key of the peer")
            _expect(not found.is_peer(seeker.public_key), "is_peer takes another key for that of the peer")

        self._with(2, promise)

    def test_who_was_there_before_is_found_too(self) -> None:
        async def promise(served: Listening, seeker: Listening) -> None:
            topic = self.new_topic()
            served.discovery.announce(frozenset([topic]))
            seeker.discovery.look_up(frozenset([topic]))
            await seeker.until(lambda: seeker.names(topic) != [])

        self._with(2, promise)

    def test_whoever_is_found_can_be_dialled_where_it_is_said_to_be(self) -> None:
        async def promise(served: Listening, seeker: Listening) -> None:
            topic = self.new_topic()
            served.discovery.announce(frozenset([topic]))
            seeker.discovery.look_up(frozenset([topic]))
            await seeker.until(lambda: seeker.names(topic) != [])
            (found,) = seeker.found.values()
            _expect(bool(found.addresses), "a peer was found without any address")
            address = found.addresses[0]
            stream = await open_transport(address).connect(address)
            accepted = await served.accept()
            await stream.send(b"x")
            _expect(await accepted.receive() == b"x", "somebody else was dialled")
            await stream.aclose()
            await accepted.aclose()

        self._with(2, promise)

    def test_who_looks_for_something_else_hears_nothing(self) -> None:
        async def promise(served: Listening, seeker: Listening, other: Listening) -> None:
            topic, stranger = self.new_topic(), self.new_topic()
            seeker.discovery.look_up(frozenset([topic]))
            other.discovery.look_up(frozenset([stranger]))
            served.discovery.announce(frozenset([topic]))
            await seeker.until(lambda: seeker.names(topic) != [])
            await other.discovery.first_round(stranger)
            _expect(other.heard == 0, "a peer was told to somebody who does not look for what it serves")

        self._with(3, promise)

    def test_only_topics_that_are_looked_for_are_told(self) -> None:
        async def promise(served: Listening, seeker: Listening) -> None:
            topics = frozenset(self.new_topic() for _ in range(5))
            one, two = sorted(topics)[:2]
            served.discovery.announce(topics)
            seeker.discovery.look_up(frozenset([one, two, self.new_topic()]))
            await seeker.until(lambda: seeker.names(one) != [] and seeker.names(two) != [])
            (found,) = seeker.found.values()
            _expect(found.topics == {one, two}, "topics were told that nobody looks for, or that nobody serves")

        self._with(2, promise)

    def test_everybody_finds_everybody_and_nobody_finds_himself(self) -> None:
        async def promise(*crowd: Listening) -> None:
            topic = self.new_topic()
            for each in crowd:
                each.discovery.announce(frozenset([topic]))
                each.discovery.look_up(frozenset([topic]))
            for each in crowd:
                await each.until(lambda each=each: len(each.names(topic)) == len(crowd) - 1)  # type: ignore[misc]
                keys = [other.public_key for other in crowd if other is not each]
                known = [found for found in each.found.values() if any(found.is_peer(key) for key in keys)]
                _expect(len(known) == len(keys), "somebody found himself, or one peer twice")

        self._with(4, promise)

    # ---- change ----

    def test_a_topic_that_is_served_later_is_told_of_the_same_peer(self) -> None:
        async def promise(served: Listening, seeker: Listening) -> None:
            first, second = self.new_topic(), self.new_topic()
            seeker.discovery.look_up(frozenset([first, second]))
            served.discovery.announce(frozenset([first]))
            await seeker.until(lambda: seeker.names(first) != [])
            name = seeker.names(first)
            served.discovery.announce(frozenset([first, second]))
            await seeker.until(lambda: seeker.names(second) != [])
            _expect(seeker.names(second) == name == seeker.names(first), "it became another peer by serving more")

        self._with(2, promise)

    def test_a_topic_that_is_looked_for_later_is_told_of_who_is_known(self) -> None:
        async def promise(served: Listening, seeker: Listening) -> None:
            first, second = self.new_topic(), self.new_topic()
            served.discovery.announce(frozenset([first, second]))
            seeker.discovery.look_up(frozenset([first]))
            await seeker.until(lambda: seeker.names(first) != [])
            seeker.discovery.look_up(frozenset([first, second]))
            await seeker.until(lambda: seeker.names(second) != [])

        self._with(2, promise)

    def test_who_serves_nothing_more_that_is_looked_for_is_lost(self) -> None:
        async def promise(served: Listening, seeker: Listening) -> None:
            topic, other = self.new_topic(), self.new_topic()
            served.discovery.announce(frozenset([topic, other]))
            seeker.discovery.look_up(frozenset([topic]))
            await seeker.until(lambda: seeker.names(topic) != [])
            served.discovery.announce(frozenset([other]))
            await seeker.until(lambda: not seeker.found)
            served.discovery.announce(frozenset([topic]))
            await seeker.until(lambda: seeker.names(topic) != [])
            seeker.discovery.look_up(frozenset())
            await seeker.until(lambda: not seeker.found)

        self._with(2, promise)

    def test_who_closes_is_lost(self) -> None:
        async def promise(served: Listening, seeker: Listening) -> None:
            topic = self.new_topic()
            served.discovery.announce(frozenset([topic]))
            seeker.discovery.look_up(frozenset([topic]))
            await seeker.until(lambda: seeker.names(topic) != [])
            await served.discovery.aclose()
            await seeker.until(lambda: not seeker.found)

        self._with(2, promise)

    def test_who_answers_is_not_lost_by_being_asked(self) -> None:
        async def promise(served: Listening, seeker: Listening) -> None:
            topic = self.new_topic()
            served.discovery.announce(frozenset([topic]))
            seeker.discovery.look_up(frozenset([topic]))
            await seeker.until(lambda: seeker.names(topic) != [])
            (name,) = seeker.found
            await seeker.discovery.reconfirm(name)
            await seeker.discovery.reconfirm("nobody")
            _expect(list(seeker.found) == [name], "a peer that is there was lost because it was asked for")

        self._with(2, promise)

    # ---- rounds ----

    def test_a_first_round_ends_with_whoever_is_there(self) -> None:
        async def promise(served: Listening, seeker: Listening) -> None:
            topic = self.new_topic()
            served.discovery.announce(frozenset([topic]))
            seeker.discovery.look_up(frozenset([topic]))
            await seeker.until(lambda: seeker.names(topic) != [])
            await seeker.discovery.first_round(topic)
            _expect(seeker.names(topic) != [], "a peer was lost by the end of the round")

        self._with(2, promise)

    def test_a_first_round_ends_when_nobody_is_there(self) -> None:
        async def promise(seeker: Listening) -> None:
            topic = self.new_topic()
            seeker.discovery.look_up(frozenset([topic]))
            await seeker.discovery.first_round(topic)
            await seeker.discovery.first_round(self.new_topic())
            _expect(not seeker.found, "somebody was found whom nobody announced")

        self._with(1, promise)

    # ---- the ends ----

    def test_events_end_with_the_discovery_and_closing_it_twice_is_fine(self) -> None:
        async def promise(one: Listening) -> None:
            await one.discovery.aclose()
            await one.task
            await one.discovery.aclose()

        self._with(1, promise)

    def test_what_cannot_be_listened_on_is_told(self) -> None:
        async def refuse(address: str) -> Listener:
            raise TransportError(f"cannot listen on {address}")

        async def promise() -> None:
            discovery = self.make_discovery()
            try:
                await discovery.start(public_key=bytes(32), listen=refuse)
            except TransportError:
                return
            finally:
                await discovery.aclose()
            raise AssertionError("it started, although nothing can be listened on")

        self._run_promise(promise())

    # ---- how ----

    def _with(self, count: int, promise: Callable[..., Coroutine[Any, Any, None]]) -> None:
        async def scene() -> None:
            async with AsyncExitStack() as stack:
                await promise(*[await stack.enter_async_context(self._listening()) for _ in range(count)])

        self._run_promise(scene())

    @asynccontextmanager
    async def _listening(self) -> AsyncIterator[Listening]:
        listening = Listening(self.make_discovery(), self.new_topic())
        try:
            await listening.start(self.listen)
            yield listening
        finally:
            await listening.aclose()

    def _run_promise(self, promise: Coroutine[Any, Any, None]) -> None:
        async def bounded() -> None:
            try:
                async with asyncio.timeout(self.timeout_seconds):
                    await promise
            except TimeoutError as error:
                raise AssertionError(f"it hangs: not done after {self.timeout_seconds:g} s") from error

        with asyncio.Runner(loop_factory=self.loop_factory) as runner:
            runner.run(bounded())


class Listening:
    """A discovery, and what it has told so far."""

    def __init__(self, discovery: Discovery, public_key: bytes) -> None:
        self.discovery = discovery
        self.public_key = public_key
        self.found: dict[str, PeerFound] = {}
        #: Peers that were told, found or lost.
        self.heard = 0
        self.task: asyncio.Task[None]
        self._changed = asyncio.Event()
        self._listeners: list[Listener] = []

    async def start(self, listen: Callable[[str], Coroutine[Any, Any, Listener]]) -> None:
        async def listen_and_remember(address: str) -> Listener:
            self._listeners.append(await listen(address))
            return self._listeners[-1]

        await self.discovery.start(public_key=self.public_key, listen=listen_and_remember)
        self.task = asyncio.get_running_loop().create_task(self._follow())

    async def _follow(self) -> None:
        async for event in self.discovery.events():
            match event:
                case PeerFound():
                    self.found[event.peer_id] = event
                    self.heard += 1
                case PeerLost():
                    _expect(event.peer_id in self.found, "a peer was lost that was never found")
                    del self.found[event.peer_id]
                    self.heard += 1
                case HostsLost():
                    pass
                case _:
                    raise AssertionError(f"events() gave {event!r}")
            self._changed.set()

    def names(self, topic: bytes) -> list[str]:
        """The peers that are known to serve it."""
        return [name for name, found in self.found.items() if topic in found.topics]

    async def until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            if self.task.done():
                self.task.result()
                raise AssertionError("events() ended before the discovery was closed")
            changing = asyncio.ensure_future(self._changed.wait())
            await asyncio.wait((changing, self.task), return_when=asyncio.FIRST_COMPLETED)
            changing.cancel()
            self._changed.clear()

    async def accept(self) -> Any:
        """The first stream that somebody made to any of its listeners."""
        waiting = [asyncio.ensure_future(listener.accept()) for listener in self._listeners]
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        return done.pop().result()

    async def aclose(self) -> None:
        await self.discovery.aclose()
        if hasattr(self, "task"):
            await self.task
        for listener in self._listeners:
            await listener.aclose()


def _expect(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)

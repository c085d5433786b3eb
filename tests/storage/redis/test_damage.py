"""A head that somebody else wrote to: whatever it says, it is an error with a type, and never a hang."""

from __future__ import annotations

import contextlib

import pytest

from hypercore.errors import CorruptError, HypercoreError
from hypercore.storage import Write
from tests.running import run
from tests.servers.redis import shared_server
from tests.storage.redis.places import content, new_prefix, storage_at

FIELDS = ["format", "sequence", "writer", "epoch", "until", "holder", "/data", "-data", "-", "/\udcff", "/", "/../up"]
VALUES = [
    "",
    "x",
    "-1",
    "1.5",
    "9" * 30,
    "0",
    "1:",
    ":",
    "1-",
    "-",
    "5-1",
    "1-2-3",
    "nan",
    "1e309",
    "\udcff",
    "٣",
    "[" * 9,
]


def encoded(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_of_any_content_is_an_error_with_a_type_or_does_no_harm(field: str) -> None:
    server = shared_server("redis")

    async def scenario() -> None:
        for value in VALUES:
            for take_over in (False, True):
                prefix = new_prefix()
                held = storage_at(server, prefix)
                await held.commit([Write("data", 0, b"abc"), Write("other", 70_000, b"d")])
                await held.aclose()
                server.ask("HSET", held.layout.head, encoded(field), encoded(value))
                reader, writer = storage_at(server, prefix), storage_at(server, prefix, take_over=take_over)
                for storage in (reader, writer):
                    # Anything but one of ours fails the test.
                    with contextlib.suppress(HypercoreError):
                        await storage.names()
                        await content(storage)
                    if storage is writer:
                        with contextlib.suppress(HypercoreError):
                            await storage.commit([Write("other", 0, b"e")])
                    await storage.aclose()

    run(scenario())


@pytest.mark.parametrize(
    ("field", "value"), [("/data", "many"), ("sequence", "many"), ("-data", "7-7"), ("/\udcff", "1")]
)
def test_damage_says_what_was_found_and_what_to_do(field: str, value: str) -> None:
    server = shared_server("redis")

    async def scenario() -> None:
        held = storage_at(server)
        await held.commit([Write("data", 0, b"abc")])
        await held.aclose()
        server.ask("HSET", held.layout.head, encoded(field), encoded(value))
        for work in ("names", "acquire"):
            storage = storage_at(server, held.options.prefix)
            try:
                with pytest.raises(CorruptError, match=r"is damaged: .* backup restored"):
                    await getattr(storage, work)()
            finally:
                await storage.aclose()

    run(scenario())

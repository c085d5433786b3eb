"""A write stream appends in batches: by count, by bytes, when flushed and at the end."""

from __future__ import annotations

import pytest

from hypercore import Hypercore
from hypercore.errors import OptionError
from hypercore.events import Appended
from hypercore.streams import WRITE_BATCH_BLOCKS, WRITE_BATCH_BYTES
from tests.running import run


def test_blocks_are_appended_in_batches_and_the_rest_at_the_end() -> None:
    async def main() -> None:
        async with Hypercore("memory:") as core:
            events = core.events()
            async with core.create_write_stream() as stream:
                for index in range(WRITE_BATCH_BLOCKS + 3):
                    await stream.write(b"%d" % index)
                assert core.length == WRITE_BATCH_BLOCKS
            assert core.length == WRITE_BATCH_BLOCKS + 3
            assert [block async for block in core.create_read_stream()] == [b"%d" % i for i in range(core.length)]
            lengths = [event.length async for event in _take(events, 2) if isinstance(event, Appended)]
            assert lengths == [WRITE_BATCH_BLOCKS, WRITE_BATCH_BLOCKS + 3]

    run(main())


async def _take(events, count):  # type: ignore[no-untyped-def]
    for _ in range(count):
        yield await anext(events)


def test_large_blocks_do_not_pile_up() -> None:
    async def main() -> None:
        async with Hypercore("memory:") as core, core.create_write_stream() as stream:
            for _ in range(4):
                await stream.write(bytes(WRITE_BATCH_BYTES // 4))
            assert core.length == 4

    run(main())


def test_what_was_not_flushed_when_the_program_fails_is_not_appended() -> None:
    async def main() -> None:
        async with Hypercore("memory:", value_encoding="utf-8") as core:
            with pytest.raises(ZeroDivisionError):
                async with core.create_write_stream() as stream:
                    await stream.write("kept")
                    await stream.flush()
                    await stream.write("dropped")
                    raise ZeroDivisionError
            assert core.length == 1
            with pytest.raises(OptionError):
                async with core.create_write_stream() as stream:
                    await stream.write(b"not text")

    run(main())

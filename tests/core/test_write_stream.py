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
            told = [await anext(events), await anext(events)]
            assert [event.length for event in told if isinstance(event, Appended)] == [
                WRITE_BATCH_BLOCKS,
                WRITE_BATCH_BLOCKS + 3,
            ]

    run(main())


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

            async def fail(last: object) -> None:
                async with core.create_write_stream() as stream:
                    await stream.write("kept")
                    await stream.flush()
                    await stream.write(last)
                    raise ZeroDivisionError

            with pytest.raises(ZeroDivisionError):
                await fail("dropped")
            assert [block async for block in core.create_read_stream()] == ["kept"]


def test_what_is_no_block_is_refused_when_its_batch_is_appended() -> None:
    async def main() -> None:
        async with Hypercore("memory:", value_encoding="utf-8") as core:
            stream = core.create_write_stream()
            await stream.write(b"not text")
            with pytest.raises(OptionError):
                await stream.flush()
            assert core.length == 0

    run(main())

"""The public object: how it is opened, what its blocks are to the program, its streams and its events."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from hypercore.core import Hypercore
from hypercore.errors import ClosedError, CorruptError, DecodeError, NotWritableError, OptionError, StorageMissingError
from hypercore.events import Appended, Truncated
from tests.replication.links import eventually, link
from tests.running import run

# ---- opening ----


def test_a_path_is_an_address_too(tmp_path: Path) -> None:
    async def main() -> None:
        async with Hypercore(tmp_path / "log") as core:
            await core.append(b"kept")
        async with Hypercore(str(tmp_path / "log")) as core:
            assert await core.get(0) == b"kept"

    run(main())


def test_a_storage_that_could_not_be_opened_is_given_back(tmp_path: Path) -> None:
    async def main() -> None:
        async with Hypercore(tmp_path) as core:
            await core.append([b"some", b"blocks"])
        log = (tmp_path / "oplog").read_bytes()
        (tmp_path / "oplog").write_bytes(bytes(8192))
        for address in (tmp_path, str(tmp_path)):
            with pytest.raises(CorruptError):
                await Hypercore(address).ready()
        (tmp_path / "oplog").write_bytes(log)
        async with Hypercore(tmp_path) as core:  # Nobody has kept the lock.
            assert core.length == 2

    run(main())


def test_without_leave_to_make_one_a_missing_core_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(StorageMissingError):
            await Hypercore(tmp_path / "log", create_if_missing=False).ready()
        assert not (tmp_path / "log").exists()

    run(main())


def test_a_closed_core_stays_closed() -> None:
    async def main() -> None:
        async with Hypercore("memory:") as core:
            await core.append(b"x")
        for call in (core.ready, lambda: core.get(0), lambda: core.append(b"y"), core.update, core.info):
            with pytest.raises(ClosedError):
                await call()
        assert not core.readable
        assert not core.writable

    run(main())


def test_what_is_not_open_yet_says_how_to_open_it() -> None:
    core = Hypercore("memory:")
    for name in ("key", "length", "peers", "hub"):
        with pytest.raises(ClosedError, match=r"async with.*ready"):
            getattr(core, name)


def test_repr_hides_the_password_of_an_address() -> None:
    shown = repr(Hypercore("redis://user:hunter2@host/0?secret_key=hunter3"))
    assert "hunter" not in shown
    assert "host/0" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"durability": "some"}, "none, flush and always"),
        ({"value_encoding": "jsn"}, "binary, utf-8, json"),
        ({"value_encoding": 5}, "encode.*decode"),
        ({"key": "zz"}, "64 hex digits"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Hypercore("memory:", **options)


# ---- blocks ----


def test_json_blocks_come_back_as_the_values_they_were() -> None:
    async def main() -> None:
        async with Hypercore("memory:", value_encoding="json") as core:
            await core.append({"a": [1, None, "ü"]})
            await core.append([[1, 2], "text", 3.5])
            assert [value async for value in core.create_read_stream()] == [{"a": [1, None, "ü"]}, [1, 2], "text", 3.5]
            assert await core.get_raw(0) == '{"a":[1,null,"ü"]}'.encode()

    run(main())


@pytest.mark.parametrize("value", [{1, 2}, float("nan"), float("inf"), b"bytes"])
def test_what_json_has_no_form_for_is_not_appended(value: object) -> None:
    async def main() -> None:
        async with Hypercore("memory:", value_encoding="json") as core:
            with pytest.raises(OptionError, match="no JSON form"):
                await core.append(["fine", value])
            assert core.length == 0

    run(main())


def test_a_block_of_another_encoding_is_a_decode_error_and_still_there_raw() -> None:
    async def main() -> None:
        for encoding in ("json", "utf-8"):
            async with Hypercore("memory:shared") as core:
                await core.append(b"\xff")
            async with Hypercore("memory:shared", value_encoding=encoding) as core:
                with pytest.raises(DecodeError):
                    await core.get(0)
                assert await core.get_raw(0) == b"\xff"

    run(main())


def test_binary_takes_text_and_buffers_and_gives_bytes() -> None:
    async def main() -> None:
        async with Hypercore("memory:") as core:
            await core.append(["ü", bytearray(b"b"), memoryview(b"m"), b""])
            assert [block async for block in core.create_read_stream()] == ["ü".encode(), b"b", b"m", b""]
            for value in (5, None, {"a": 1}):
                with pytest.raises(OptionError, match="value_encoding"):
                    await core.append(value)

    run(main())


def test_a_codec_of_the_programs_own_is_used() -> None:
    class Reversed:
        def encode(self, value: str) -> bytes:
            return value[::-1].encode()

        def decode(self, block: bytes) -> str:
            return block.decode()[::-1]

    async def main() -> None:
        async with Hypercore("memory:", value_encoding=Reversed()) as core:
            await core.append("abc")
            assert await core.get_raw(0) == b"cba"
            assert await core.get(0) == "abc"

    run(main())


def test_a_reader_cannot_append() -> None:
    async def main() -> None:
        async with Hypercore("memory:", bytes(32)) as core:
            assert not core.writable
            with pytest.raises(NotWritableError):
                await core.append(b"x")

    run(main())


def test_user_data_is_bytes_and_outlives_the_program(tmp_path: Path) -> None:
    async def main() -> None:
        async with Hypercore(tmp_path, user_data={"first": b"1"}) as core:
            await core.set_user_data("second", b"2")
            with pytest.raises(OptionError, match="not str"):
                await core.set_user_data("third", "3")  # type: ignore[arg-type]
            await core.append(b"x")
        async with Hypercore(tmp_path) as core:
            assert [await core.get_user_data(name) for name in ("first", "second", "third")] == [b"1", b"2", None]
            await core.set_user_data("first", None)
            assert await core.get_user_data("first") is None

    run(main())


# ---- streams ----


def test_a_byte_stream_fetches_ahead_and_only_what_it_gives() -> None:
    async def main() -> None:
        async with Hypercore("memory:") as writer, Hypercore("memory:", writer.key) as reader:
            await writer.append([b"0123456789"] * 300)
            await link(writer, reader)
            await reader.update()
            stream = reader.create_byte_stream(byte_offset=505, byte_length=1000)
            pieces = [await anext(stream)]
            assert pieces == [b"56789"]
            log = reader.hub.log
            await eventually(lambda: log.bitfield.is_full(50, 151))  # Without asking for a second piece.
            pieces += [piece async for piece in stream]
            assert b"".join(pieces) == (b"0123456789" * 300)[505:1505]
            assert (await reader.info()).stored_blocks <= 103

    run(main())


def test_a_byte_stream_gives_the_whole_log_or_any_part_of_it() -> None:
    async def main() -> None:
        async with Hypercore("memory:") as core:
            whole = b""
            for block in (b"a", b"", b"bcd", b"ef", b""):
                await core.append(block)
                whole += block
                for start in range(len(whole) + 1):
                    for size in (0, 1, 2, 5, None, 100):
                        stream = core.create_byte_stream(byte_offset=start, byte_length=size)
                        given = b"".join([piece async for piece in stream])
                        end = len(whole) if size is None else start + size
                        assert given == whole[start:end], (whole, start, size)

    run(main())


# ---- events ----


def test_a_fork_is_told_with_the_length_it_was_cut_to_on_both_sides() -> None:
    async def main() -> None:
        async with Hypercore("memory:") as writer, Hypercore("memory:", writer.key) as reader:
            await writer.append([b"%d" % index for index in range(5)])
            await link(writer, reader)
            await reader.update()
            await reader.download(0, 5).done()
            heard = [core.events() for core in (writer, reader)]
            await writer.truncate(3)
            await writer.append(b"new")
            await eventually(lambda: (reader.fork, reader.length) == (1, 4))
            for events in heard:
                told = []
                while Appended(4, 6) not in told:
                    told.append(await asyncio.wait_for(anext(events), 30))
                assert Truncated(3, 1) in told

    run(main())

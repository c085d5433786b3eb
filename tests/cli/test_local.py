"""Commands that need no peer, as a user runs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from hypercore import AppendResult, Hypercore, StorageError, Swarm
from hypercore.cli import main
from hypercore.cli.appending import MOST_BATCH_BLOCKS
from tests.processes import (
    HYPERCORE,
    HYPERCORE_WITHOUT_UVLOOP,
    TIMEOUT_SECONDS,
    folder_bytes,
    hypercore,
    new_log,
    program,
    running,
)
from tests.running import run

LINES = [f"line {index}" for index in range(10)]


# ---- create ---------------------------------------------------------------------------------------


def test_create_prints_the_key_of_an_empty_writable_log(tmp_path: Path) -> None:
    done = hypercore("create", tmp_path / "log")
    assert (done.code, done.errors) == (0, "")
    (about,) = hypercore("info", tmp_path / "log", "--json").json()
    assert about["key"] == done.output.decode().strip()
    assert (about["length"], about["byte_length"], about["fork"]) == (0, 0, 0)
    assert about["writable"]
    assert not about["compat"]


def test_create_with_json_prints_both_keys(tmp_path: Path) -> None:
    (created,) = hypercore("create", tmp_path / "log", "--json").json()
    assert set(created) == {"key", "discovery_key"}
    assert all(len(bytes.fromhex(value)) == 32 for value in created.values())


def test_create_makes_the_kind_that_was_asked_for(tmp_path: Path) -> None:
    assert hypercore("create", tmp_path / "old", "--compat").code == 0
    assert hypercore("create", tmp_path / "fast", "--hash", "blake3").code == 0
    (old,) = hypercore("info", tmp_path / "old", "--json").json()
    (fast,) = hypercore("info", tmp_path / "fast", "--json").json()
    assert (old["compat"], old["hash"]) == (True, "blake2b")
    assert (fast["compat"], fast["hash"]) == (False, "blake3")


def test_create_refuses_a_storage_that_holds_a_log_and_leaves_it_as_it_is(tmp_path: Path) -> None:
    key = new_log(tmp_path / "log", LINES)
    before = folder_bytes(tmp_path)
    done = hypercore("create", tmp_path / "log")
    assert (done.code, done.output) == (1, b"")
    assert key in done.errors
    assert folder_bytes(tmp_path) == before


@pytest.mark.parametrize("command", ["create", "append", "cat", "info", "verify"])
def test_a_folder_of_something_else_is_refused_and_left_as_it_is(command: str, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    before = folder_bytes(tmp_path)
    done = hypercore(command, tmp_path)
    assert (done.code, done.output) == (1, b"")
    assert done.errors.startswith("hypercore: ")
    assert "thesis.txt" in done.errors
    assert done.errors.count("\n") == 1
    assert folder_bytes(tmp_path) == before


# ---- append and cat -------------------------------------------------------------------------------


def test_lines_come_back_as_they_were(tmp_path: Path) -> None:
    text = b"first\n\nthird\r\n\xff\xfe no text at all\nlast, without a newline"
    (tmp_path / "text").write_bytes(text)
    new_log(tmp_path / "log")
    done = hypercore("append", tmp_path / "log", tmp_path / "text", "--lines", "--json")
    (appended,) = done.json()
    assert (appended["appended_blocks"], appended["length"]) == (5, 5)
    assert appended["appended_bytes"] == appended["byte_length"] == len(text) - 4
    assert hypercore("cat", tmp_path / "log", "--lines").output == text + b"\n"
    assert hypercore("cat", tmp_path / "log").output == text.replace(b"\n", b"")


def test_without_lines_the_input_is_cut_into_chunks(tmp_path: Path) -> None:
    data = os.urandom(1_000_000)
    new_log(tmp_path / "log")
    assert hypercore("append", tmp_path / "log", given=data).code == 0
    (about,) = hypercore("info", tmp_path / "log", "--json").json()
    assert about["length"] == -(-len(data) // 65536)
    assert hypercore("append", tmp_path / "log", "-", "--chunk", "300000", given=data).code == 0
    sizes = [block["size"] for block in hypercore("cat", tmp_path / "log", "--start", "16", "--json").json()]
    assert sizes == [300_000, 300_000, 300_000, 100_000]
    assert hypercore("cat", tmp_path / "log").output == data + data


def test_nothing_to_append_is_no_failure(tmp_path: Path) -> None:
    new_log(tmp_path / "log")
    for shape in ([], ["--lines"]):
        (appended,) = hypercore("append", tmp_path / "log", *shape, "--json").json()
        assert (appended["appended_blocks"], appended["length"]) == (0, 0)


def test_a_line_of_a_pipe_is_in_the_log_before_the_next_one_comes(tmp_path: Path) -> None:
    log = tmp_path / "log"
    new_log(log)

    async def scene() -> None:
        async with running(*HYPERCORE, "append", log, "-", "--lines") as append:
            for count in (1, 2):
                await append.type("a line\nand half of")
                while True:
                    async with running(*HYPERCORE, "info", log, "--json") as look:
                        if (await look.json())["length"] == count:
                            break
            done = await append.done(signal.SIGTERM)
            assert (done.code, done.output) == (1, b"")
            assert done.errors == "hypercore: interrupted; 2 blocks were appended\n"

    run(scene())


def test_a_line_that_is_too_long_for_a_block_is_named(tmp_path: Path) -> None:
    new_log(tmp_path / "log")
    done = hypercore("append", tmp_path / "log", "--lines", given=b"fine\n" + bytes(16 * 1024 * 1024))
    assert (done.code, done.output) == (1, b"")
    assert "line 2 is longer than" in done.errors
    assert hypercore("cat", tmp_path / "log").output == b"fine"


def test_append_that_fails_midway_says_how_much_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert hypercore("create", tmp_path / "log").code == 0
    (tmp_path / "lines").write_text("line\n" * (MOST_BATCH_BLOCKS + 1))
    append, calls = Hypercore.append, []

    async def append_once(core: Hypercore, batch: list[bytes]) -> AppendResult:
        calls.append(batch)
        if len(calls) == 2:
            raise StorageError("the server is away")
        return await append(core, batch)

    monkeypatch.setattr(Hypercore, "append", append_once)
    assert main(["append", str(tmp_path / "log"), str(tmp_path / "lines"), "--lines"]) == 1
    complaint = f"hypercore: {tmp_path / 'log'}: the server is away; before that 4,096 blocks were appended\n"
    assert capfd.readouterr().err == complaint


def test_a_reader_s_clone_cannot_be_appended_to(tmp_path: Path) -> None:
    new_log(tmp_path / "log", LINES)
    assert hypercore("copy", tmp_path / "log", tmp_path / "copy").code == 0
    done = hypercore("append", tmp_path / "copy", given=b"x")
    assert done.code == 1
    assert "secret key" in done.errors

    async def told_before_anything_is_typed() -> None:
        async with running(*HYPERCORE, "append", tmp_path / "copy", "--lines") as append:
            assert await append.line() == ""  # Its end, while its input is open.

    run(told_before_anything_is_typed())


def test_only_one_process_may_write_and_any_may_look(tmp_path: Path) -> None:
    log = tmp_path / "log"
    new_log(log, LINES)

    async def scene() -> None:
        async with running(*HYPERCORE, "serve", log, "--listen", "tcp://127.0.0.1:0") as serve:
            assert await serve.line()
            async with running(*HYPERCORE, "append", log) as append:
                done = await append.done()
                assert done.code == 1
                assert "locked" in done.errors
            async with running(*HYPERCORE, "get", log, "3") as get:
                assert (await get.done()).output == b"line 3"

    run(scene())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--start", "11"], "--start 11: the log has 10 blocks"),
        (["--end", "11"], "--end 11: the log has 10 blocks"),
        (["--start", "3", "--end", "2"], "3 to 2"),
    ],
)
def test_cat_refuses_blocks_that_do_not_exist(arguments: list[str], said: str, tmp_path: Path) -> None:
    new_log(tmp_path / "log", LINES)
    done = hypercore("cat", tmp_path / "log", *arguments)
    assert (done.code, done.output) == (1, b"")
    assert said in done.errors


def test_cat_prints_a_range(tmp_path: Path) -> None:
    new_log(tmp_path / "log", LINES)
    assert hypercore("cat", tmp_path / "log", "--start", "8").output == b"line 8line 9"
    assert hypercore("cat", tmp_path / "log", "--start", "2", "--end", "3").output == b"line 2"
    assert hypercore("cat", tmp_path / "log", "--start", "10").output == b""


async def sparse_clone(folder: Path, *indexes: int) -> bytes:
    """A clone of ten blocks that holds only some; its key."""
    async with Hypercore("memory:") as origin, Swarm("pipe:sparse-clone") as server:
        await origin.append(LINES)
        server.join(origin)
        async with Hypercore(str(folder), origin.key) as clone, Swarm(peers=["pipe:sparse-clone"]) as swarm:
            swarm.join(clone)
            await clone.update()
            await clone.download(blocks=indexes).done()
            return clone.key


def test_cat_of_a_clone_with_holes_prints_up_to_the_hole_and_names_it(tmp_path: Path) -> None:
    run(sparse_clone(tmp_path / "clone", 0, 1, 5))
    done = hypercore("cat", tmp_path / "clone")
    assert (done.code, done.output) == (1, b"line 0line 1")
    assert "block 2 is not stored here; `hypercore clone` fetches it" in done.errors
    assert hypercore("get", tmp_path / "clone", "5").output == b"line 5"
    (about,) = hypercore("info", tmp_path / "clone", "--json").json()
    assert (about["length"], about["contiguous_length"], about["stored_blocks"]) == (10, 2, 3)


# ---- get and info ---------------------------------------------------------------------------------


def test_get_prints_the_bytes_of_a_block_and_nothing_else(tmp_path: Path) -> None:
    new_log(tmp_path / "log", LINES)
    assert hypercore("get", tmp_path / "log", "9") == (0, b"line 9", "")
    assert hypercore("get", tmp_path / "log", "9", "--json").json() == [
        {"index": 9, "size": 6, "hex": b"line 9".hex()},
    ]


def test_get_names_a_block_that_does_not_exist(tmp_path: Path) -> None:
    new_log(tmp_path / "log", LINES)
    done = hypercore("get", tmp_path / "log", "10")
    assert done == (1, b"", "hypercore: block 10 does not exist; the log has 10 blocks\n")


def test_info_is_for_people_and_for_programs(tmp_path: Path) -> None:
    key = new_log(tmp_path / "log", LINES)
    (about,) = hypercore("info", tmp_path / "log", "--json").json()
    assert set(about) == {
        *("key", "id", "discovery_key", "length", "byte_length", "contiguous_length", "stored_blocks"),
        *("fork", "writable", "compat", "hash", "warnings"),
    }
    assert (about["key"], about["length"], about["byte_length"]) == (key, 10, 60)
    text = hypercore("info", tmp_path / "log").output.decode()
    assert key in text
    assert "10 blocks, 60 bytes" in text


def test_looking_changes_nothing(tmp_path: Path) -> None:
    new_log(tmp_path / "log", LINES)
    before = folder_bytes(tmp_path)
    for command in (["info"], ["cat"], ["get", "0"], ["verify"]):
        assert hypercore(command[0], tmp_path / "log", *command[1:]).code == 0
    assert folder_bytes(tmp_path) == before


def test_a_storage_without_a_log_is_named(tmp_path: Path) -> None:
    done = hypercore("info", tmp_path / "nothing")
    assert done == (1, b"", f"hypercore: {tmp_path}/nothing: there is no core in this storage\n")
    assert not (tmp_path / "nothing").exists()


# ---- pipes and signals ----------------------------------------------------------------------------


def test_a_reader_that_has_had_enough_is_no_failure(tmp_path: Path) -> None:
    new_log(tmp_path / "log")
    assert hypercore("append", tmp_path / "log", given=bytes(1_000_000)).code == 0
    command = [*HYPERCORE, "cat", str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as cat:
        assert cat.stdout is not None
        assert cat.stderr is not None
        assert cat.stdout.read(10) == bytes(10)
        cat.stdout.close()
        assert cat.stderr.read() == b""
        assert cat.wait(TIMEOUT_SECONDS) == 0


@pytest.mark.parametrize("command", [HYPERCORE, HYPERCORE_WITHOUT_UVLOOP], ids=["uvloop", "asyncio"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_job_that_waits_for_a_slow_reader(
    number: signal.Signals, command: tuple[str, ...], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    new_log(log)
    assert hypercore("append", log, given=bytes(1_000_000)).code == 0

    async def scene() -> None:
        async with running(*command, "cat", log) as cat:
            assert cat.process.stdout is not None
            await cat.process.stdout.readexactly(10)
            done = await cat.done(number)
            assert done.code == 1
            assert done.errors == "hypercore: interrupted\n"

    run(scene())


def test_with_its_output_closed_the_command_does_not_print_into_the_log(tmp_path: Path) -> None:
    new_log(tmp_path / "log", LINES)
    command = " ".join([*HYPERCORE, "append", str(tmp_path / "log"), "--lines"])
    assert program("sh", "-c", f"echo more | {command} >&- 2>&-").code == 0
    assert hypercore("verify", tmp_path / "log").code == 0
    assert hypercore("cat", tmp_path / "log", "--start", "9", "--lines").output == b"line 9\nmore\n"


# ---- plugins --------------------------------------------------------------------------------------


def test_plugins_lists_what_is_installed() -> None:
    listed = {plugin["name"]: plugin for plugin in hypercore("plugins", "--json").json()}
    assert {"file", "memory", "tcp", "pipe"} <= set(listed)
    assert [each["scheme"] for each in listed["file"]["storages"]] == ["file"]
    assert [each["scheme"] for each in listed["tcp"]["transports"]] == ["tcp"]
    assert not any(plugin["error"] or plugin["disabled"] for plugin in listed.values())
    text = hypercore("plugins").output.decode()
    assert all(f"{name}:" in text for name in ("file", "memory", "tcp", "pipe"))


def test_plugins_tells_what_is_switched_off() -> None:
    environment = {**os.environ, "HYPERCORE_DISABLE_PLUGINS": "tcp"}
    listed = {plugin["name"]: plugin for plugin in hypercore("plugins", "--json", env=environment).json()}
    assert listed["tcp"]["disabled"]
    assert "switched off" in hypercore("plugins", env=environment).output.decode()


# ---- usage ----------------------------------------------------------------------------------------

COMMANDS = ("create", "append", "cat", "get", "info", "verify", "serve", "clone", "follow", "copy", "plugins")


def understood(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[object, str, str]:
    """What argparse makes of the arguments, in this process: its exit code, output and errors."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


def test_help_lists_every_command() -> None:
    done = hypercore("--help")
    assert done.code == 0
    assert all(f"\n    {command} " in done.output.decode() for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, output, errors = understood([command, "--help"], capsys)
    assert (code, errors) == (0, "")
    assert "examples:\n  " in output
    assert f"hypercore {command} " in output.partition("examples:")[2]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["frobnicate"],
        ["create"],
        ["create", ""],
        ["create", "./log", "--hash", "md5"],
        ["get", "./log", "-1"],
        ["get", "./log", "one"],
        ["append", "./log", "--lines", "--chunk", "5"],
        ["append", "./log", "--chunk", "0"],
        ["clone", "abc", "./log", "--from", "tcp://127.0.0.1:1"],
        ["clone", "00" * 32, "./log"],
        ["clone", "00" * 32, "./log", "--from", "tcp://127.0.0.1:1", "--timeout", "-1"],
        ["serve", "./log"],
    ],
    ids=" ".join,
)
def test_what_is_not_understood_exits_with_2_and_says_why(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, output, errors = understood(arguments, capsys)
    assert (code, output) == (2, "")
    assert errors.startswith("usage: hypercore")
    assert "error: " in errors.splitlines()[-1]


def test_a_scheme_that_no_plugin_offers_is_not_understood_either() -> None:
    done = hypercore("create", "nosuchscheme://host")
    assert (done.code, done.output) == (2, b"")
    assert "nosuchscheme" in done.errors


@pytest.mark.parametrize("arguments", [["create", "memory:"], ["append", "memory:name"], ["copy", "memory:", "./x"]])
def test_a_storage_that_ends_with_the_command_is_refused(arguments: list[str]) -> None:
    done = hypercore(*arguments)
    assert done.code == 1
    assert "memory:" in done.errors


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    new_log(tmp_path / "log")
    done = hypercore("append", tmp_path / "log", tmp_path / "nothing")
    assert done == (1, b"", f"hypercore: {tmp_path}/nothing: No such file or directory\n")
    assert hypercore("append", tmp_path / "log", tmp_path).errors == f"hypercore: {tmp_path}: Is a directory\n"


def test_the_version_is_that_of_the_distribution() -> None:
    import hypercore as package

    assert hypercore("--version").output.decode() == f"hypercore {package.__version__}\n"


# ---- verify ---------------------------------------------------------------------------------------


def test_verify_says_what_it_checked(tmp_path: Path) -> None:
    key = new_log(tmp_path / "log", LINES)
    (checked,) = hypercore("verify", tmp_path / "log", "--json").json()
    assert checked == {"key": key, "length": 10, "checked_blocks": 10, "problems": 0}
    assert "10 blocks" in hypercore("verify", tmp_path / "log").output.decode()


def test_verify_lists_every_damaged_block_and_fails(tmp_path: Path) -> None:
    new_log(tmp_path / "log", LINES)
    data = bytearray((tmp_path / "log" / "data").read_bytes())
    for index in (2, 7):
        data[6 * index] ^= 1
    (tmp_path / "log" / "data").write_bytes(data)
    done = hypercore("verify", tmp_path / "log", "--json")
    *problems, summary = done.json()
    assert done.code == 1
    assert [problem["index"] for problem in problems] == [2, 7]
    assert all(problem["file"] == "data" and problem["problem"] for problem in problems)
    assert (summary["checked_blocks"], summary["problems"]) == (10, 2)
    people = hypercore("verify", tmp_path / "log")
    assert people.code == 1
    assert len(people.output.splitlines()) == 2
    assert people.errors == "hypercore: 2 problems\n"


def test_verify_of_a_log_that_cannot_be_opened_says_why(tmp_path: Path) -> None:
    new_log(tmp_path / "log", LINES)
    oplog = tmp_path / "log" / "oplog"
    oplog.write_bytes(b"\0" + bytes(byte ^ 0xFF for byte in oplog.read_bytes()[1:]))
    before = folder_bytes(tmp_path)
    done = hypercore("verify", tmp_path / "log")
    assert (done.code, done.output) == (1, b"")
    assert "oplog" in done.errors
    assert folder_bytes(tmp_path) == before


def test_verify_of_a_clone_with_holes_checks_what_is_here(tmp_path: Path) -> None:
    run(sparse_clone(tmp_path / "clone", 0, 5))
    (checked,) = hypercore("verify", tmp_path / "clone", "--json").json()
    assert (checked["length"], checked["checked_blocks"], checked["problems"]) == (10, 2, 0)


def test_json_is_one_object_a_line(tmp_path: Path) -> None:
    new_log(tmp_path / "log", LINES)
    output = hypercore("cat", tmp_path / "log", "--json").output
    blocks = [json.loads(line) for line in output.splitlines()]
    assert [bytes.fromhex(block["hex"]).decode() for block in blocks] == LINES
    assert [block["index"] for block in blocks] == list(range(10))

"""The plugin host: what it opens, and how it bears plugins that are wrong."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from hypercore import plugins
from hypercore.errors import (
    AddressError,
    MissingDriverError,
    OptionError,
    PluginError,
    SchemeConflictError,
    UnknownSchemeError,
)
from hypercore.plugins import PluginHost, open_storage, open_transport
from hypercore.urls import parse_address
from hypercore_file import FileStorage
from hypercore_memory import MemoryStorage
from tests.plugins import samples


def host(*names: str, disabled: tuple[str, ...] = ()) -> PluginHost:
    entries = [EntryPoint(name=name.lower(), value=f"{samples.HERE}:{name}", group="hypercore") for name in names]
    return PluginHost(entries, disabled=disabled)


def in_another_process(code: str, **environment: str) -> object:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# ---- what is opened -------------------------------------------------------------------------------


def test_an_address_opens_what_its_scheme_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert isinstance(open_storage("memory:"), MemoryStorage)
    for address in ("./core", "core", "file:core", "file:./core", tmp_path / "core", f"{tmp_path}/core"):
        storage = open_storage(address)
        assert isinstance(storage, FileStorage)
        assert str(storage) == str(tmp_path / "core"), address
    assert str(open_storage(f"file://{tmp_path}/a%20b")) == f"{tmp_path}/a b"
    assert str(open_storage("./100%?#")) == f"{tmp_path}/100%?#", "a path without a scheme is taken as it stands"
    assert os.listdir(tmp_path) == [], "opening an address made something"


def test_options_come_from_the_query_or_as_keywords(tmp_path: Path) -> None:
    asked = open_storage(f"file:{tmp_path}?lock_name=primary-key&file_mode=0o640&read_only=yes")
    given = open_storage(f"{tmp_path}", lock_name="primary-key", file_mode=0o640, read_only=True)
    assert isinstance(asked, FileStorage)
    assert isinstance(given, FileStorage)
    assert asked.options == given.options
    assert not asked.writable


def test_a_wrong_option_is_named_and_the_right_ones_are_listed() -> None:
    with pytest.raises(
        OptionError, match=r"no option 'lock_nam' \(did you mean 'lock_name'\?\).*file_mode, folder_mode"
    ):
        open_storage("file:x?lock_nam=y")
    with pytest.raises(OptionError, match="'color'; it has none"):
        open_storage("memory:", color="red")
    with pytest.raises(OptionError, match="'file_mode' must be a whole number, not 'x'"):
        open_storage("file:x?file_mode=x")


def test_an_object_passes_through_and_takes_no_options() -> None:
    storage, transport = MemoryStorage(), samples.SampleTransport()
    assert open_storage(storage) is storage
    assert open_transport(transport) is transport
    with pytest.raises(OptionError, match="color"):
        open_storage(storage, color="red")
    with pytest.raises(OptionError, match="color"):
        open_transport(transport, color="red")


def test_what_is_neither_address_nor_object_is_refused() -> None:
    for wrong in (b"memory:", 7, None, MemoryStorage):
        with pytest.raises(AddressError, match="an address is a string"):
            open_storage(wrong)  # type: ignore[arg-type]


def test_storages_and_transports_have_schemes_of_their_own() -> None:
    both = host("GOOD")
    assert isinstance(both.open_storage("good:x", color="blue"), MemoryStorage)
    assert isinstance(both.open_transport("good:x"), samples.SampleTransport)
    with pytest.raises(UnknownSchemeError, match="storage scheme 'tcp'"):
        open_storage("tcp://127.0.0.1:1")
    with pytest.raises(UnknownSchemeError, match="transport scheme 'memory'"):
        open_transport("memory:")


def test_an_unknown_scheme_says_what_there_is_and_how_a_folder_is_written() -> None:
    with pytest.raises(
        UnknownSchemeError, match=r"'notes'; known are .*file, http, https, memory, .*s3.*written './notes:today'"
    ):
        open_storage("notes:today")
    with pytest.raises(UnknownSchemeError) as caught:
        open_storage("mystery://me:hunter2@host/x?secret=hunter2")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("address", ["127.0.0.1:4977", "localhost:4977", "4977"])
def test_a_peer_without_a_scheme_is_told_how_it_is_written(address: str) -> None:
    with pytest.raises(UnknownSchemeError, match=r"known are .*tcp.*'tcp://host:port'"):
        open_transport(address)


# ---- what is wrong with a plugin stays with it ----------------------------------------------------


def test_two_plugins_with_one_scheme_are_an_error_that_names_both_and_leaves_the_rest() -> None:
    rivals = host("GOOD", "RIVAL")
    with pytest.raises(SchemeConflictError, match="'good' is claimed by 'good' and 'rival'"):
        rivals.open_storage("good:x")
    assert isinstance(rivals.open_storage("rival:x"), MemoryStorage)
    assert isinstance(rivals.open_transport("good:x"), samples.SampleTransport)
    assert all("'good' is claimed by" in (plugin.error or "") for plugin in rivals.plugins())


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("NO_SUCH_OBJECT", "cannot be imported: AttributeError"),
        ("SHORT_SCHEME", "'c' is no scheme"),
        ("LOUD_SCHEME", "'LOUD' is no scheme"),
        ("ODD_SCHEME", "'od d' is no scheme"),
        ("ODD_OPENER", "'no-colon' is no opener"),
        ("ODD_OFFER", "a hook gave a dict in its list, not a StorageProvider"),
        ("ODD_ANSWER", "a hook gave a int, not a list"),
        ("RAISING", "RuntimeError: no luck today"),
        ("ODD_ARGUMENTS", "color"),
        ("ODD_HOOK", "unknown hook 'hypercore_storage_provider'"),
        ("EMPTY", "it offers nothing"),
    ],
)
def test_a_broken_plugin_is_listed_with_its_error_and_takes_nothing_else_down(
    name: str, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "hypercore.plugins"):
        found = host("GOOD", name)
    assert isinstance(found.open_storage("good:x"), MemoryStorage)
    errors = {plugin.name: plugin.error for plugin in found.plugins()}
    assert errors["good"] is None
    assert says in (errors[name.lower()] or "")
    assert [record.getMessage() for record in caplog.records] == [f"plugin {name.lower()!r}: {errors[name.lower()]}"]
    with pytest.raises(UnknownSchemeError, match=f"broken: {name.lower()}"):
        found.open_storage("odd:x")


@pytest.mark.parametrize("name", ["needy", "late"])
def test_a_missing_driver_says_what_to_install(name: str) -> None:
    found = host("NEEDY", "NEEDY_LATE")
    with pytest.raises(
        MissingDriverError, match=r"a_driver_that_is_not_installed.*pip install 'needy(_late)?\[driver\]'"
    ):
        found.open_storage(f"{name}:x")


def test_our_own_plugins_name_our_own_distribution_when_their_driver_is_missing() -> None:
    plugin = plugins.PluginInfo(name="redis", distribution="hypercore-py", version="1")
    provider = samples.storage("redis", "tests.plugins.needs_driver:open_storage", extra="redis")
    with pytest.raises(MissingDriverError, match=r"pip install 'hypercore-py\[redis\]'"):
        plugins._call(plugin, provider, parse_address("redis://x"), {})


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("NEEDY_SILENT", "a_driver_that_is_not_installed"),
        ("MISTYPED", "no_such_module"),
        ("NAMELESS", "no_such_function"),
        ("WRONG_GIFT", "gave a str, not a Storage"),
        ("FAILING", r"ValueError: cannot reach failing://me:\*\*\*@host"),
    ],
)
def test_an_opener_that_fails_is_an_error_that_names_its_plugin(name: str, says: str) -> None:
    found = host(name)
    scheme = found.plugins()[0].storages[0].scheme
    with pytest.raises(PluginError, match=says) as caught:
        found.open_storage(f"{scheme}://me:hunter2@host")
    assert not isinstance(caught.value, MissingDriverError)
    assert f"plugin {name.lower()!r}" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_plugin_that_is_switched_off_is_not_even_imported() -> None:
    found = host("GOOD", "NO_SUCH_OBJECT", disabled=("no_such_object", "unheard-of"))
    off = {plugin.name: plugin for plugin in found.plugins()}["no_such_object"]
    assert off.disabled
    assert off.error is None
    with pytest.raises(UnknownSchemeError, match="switched off by HYPERCORE_DISABLE_PLUGINS: no_such_object"):
        found.open_storage("odd:x")


def test_a_distribution_that_is_found_twice_is_no_conflict() -> None:
    found = host("GOOD", "GOOD")
    assert len(found.plugins()) == 1
    assert isinstance(found.open_storage("good:x"), MemoryStorage)


# ---- in a process of its own ----------------------------------------------------------------------


def test_the_plugins_that_ship_here_are_found() -> None:
    found = {plugin.name: plugin for plugin in plugins.list_plugins()}
    assert {"file", "memory", "pipe", "tcp"} <= found.keys()
    for plugin in found.values():
        assert plugin.error is None, plugin
    assert found["memory"].distribution == "hypercore-py"
    assert [provider.scheme for provider in found["file"].storages] == ["file"]


def test_the_environment_switches_plugins_off() -> None:
    states = in_another_process(
        "import json; from hypercore.plugins import list_plugins;"
        "print(json.dumps({plugin.name: plugin.disabled for plugin in list_plugins()}))",
        HYPERCORE_DISABLE_PLUGINS=" memory,tcp ,",
    )
    assert isinstance(states, dict)
    assert {name for name, disabled in states.items() if disabled} == {"memory", "tcp"}


def test_importing_hypercore_looks_for_no_plugin_and_loads_no_driver() -> None:
    loaded = in_another_process(
        "import json, sys; import hypercore, hypercore.plugins; print(json.dumps(sorted(sys.modules)))"
    )
    assert isinstance(loaded, list)
    roots = {name.partition(".")[0] for name in loaded}
    assert roots & {"boto3", "botocore", "redis", "zeroconf", "aiofiles", "uvloop", "pluggy"} == set()
    assert {root for root in roots if root.startswith("hypercore_")} == set()


def test_opening_one_scheme_loads_the_driver_of_no_other() -> None:
    loaded = in_another_process(
        "import json, sys; from hypercore.plugins import open_storage; open_storage('memory:');"
        "print(json.dumps(sorted(sys.modules)))"
    )
    assert isinstance(loaded, list)
    roots = {name.partition(".")[0] for name in loaded}
    assert roots & {"boto3", "botocore", "redis", "zeroconf"} == set()


def test_plugins_are_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    open_storage("memory:")

    def again(**_: object) -> None:
        raise AssertionError("the entry points were read again")

    monkeypatch.setattr("importlib.metadata.entry_points", again)
    open_storage("memory:")

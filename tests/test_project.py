"""Promises about the project itself: what it names, what it ships, and what it costs to import."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PLUGIN_ROOTS = ("backends", "transports")

#: Built from parts, so that this file does not name what no file may name.
REGISTRY_HOSTS = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("registry", "npmjs", "org"),
        ("registry", "yarnpkg", "com"),
        ("deb", "debian", "org"),
        ("security", "debian", "org"),
        ("crates", "io"),
        ("proxy", "golang", "org"),
    )
]


def project() -> dict[str, object]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)


def plugin_names() -> list[str]:
    return sorted(folder.name for root in PLUGIN_ROOTS for folder in (ROOT / root).glob("hypercore_*"))


def own_files() -> Iterator[Path]:
    """Every file of the project: what lies here, less what .gitignore calls installed or built."""
    ignored = {line.rstrip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if line.endswith("/")}
    for folder, names, files in os.walk(ROOT):
        names[:] = [name for name in names if name not in ignored and name != ".git" and not name.endswith(".egg-info")]
        yield from (Path(folder) / file for file in files if file != ".git" and not file.endswith(".pyc"))


def test_every_make_command_that_the_documents_name_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    documents = [ROOT / "README.md", ROOT / ".ci" / "run", *(ROOT / "docs").rglob("*.md")]
    named = {
        (document.name, target)
        for document in documents
        for target in re.findall(r"(?:^|`)make ([a-z]+)", document.read_text(), re.MULTILINE)
    }
    assert {"demo", "test", "check", "interop", "bench"} <= {target for _, target in named}
    assert {(document, target) for document, target in named if target not in targets} == set()


def test_every_link_of_the_documents_leads_somewhere() -> None:
    broken = [
        (document.name, target)
        for document in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text())
        if "://" not in target and not (document.parent / target).exists()
    ]
    assert broken == []


@pytest.mark.parametrize("host", REGISTRY_HOSTS)
def test_no_file_names_a_registry_host(host: str) -> None:
    naming = [file.relative_to(ROOT) for file in own_files() if host.encode() in file.read_bytes()]
    assert naming == []


def test_the_lock_pins_every_package_with_hashes_and_no_address() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    pins = [line for line in lock.replace("\\\n", "").splitlines() if not line.startswith("#")]
    assert [pin for pin in pins if not re.match(r"[a-z0-9.-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", pin)] == []
    packages = {pin.partition("==")[0] for pin in pins}
    assert "://" not in lock
    metadata = project()["project"]
    assert isinstance(metadata, dict)
    wanted = [
        *metadata["dependencies"],
        *(one for extra in metadata["optional-dependencies"].values() for one in extra),
    ]
    names = {re.split(r"[\[<>=;~ ]", requirement)[0].lower() for requirement in wanted} - {metadata["name"]}
    assert names - packages == set()


def test_the_changelog_begins_with_the_version_of_the_project() -> None:
    metadata = project()["project"]
    assert isinstance(metadata, dict)
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == metadata["version"]


def test_every_plugin_folder_is_announced_and_held_to_its_floor() -> None:
    metadata = project()["project"]
    assert isinstance(metadata, dict)
    announced = set(metadata["entry-points"]["hypercore"].values())
    floors = configparser.ConfigParser()
    floors.read(ROOT / ".importlinter")
    for name in plugin_names():
        assert name in announced, f"{name} has no entry point in pyproject.toml"
        assert name in floors["importlinter"]["root_packages"].split()
        for contract, key in (
            ("crypto", "source_modules"),
            ("drivers", "forbidden_modules"),
            ("plugins", "source_modules"),
            ("plugin-independence", "modules"),
        ):
            assert name in floors[f"importlinter:contract:{contract}"][key].split(), f"{contract} leaves out {name}"


def test_source_roots_are_not_packages() -> None:
    assert [root for root in PLUGIN_ROOTS if (ROOT / root / "__init__.py").exists()] == []


def test_importing_hypercore_loads_no_driver_and_no_plugin() -> None:
    code = "import sys; from hypercore import *; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    loaded = set(done.stdout.split())
    assert "hypercore" in loaded
    heavy = {"aiofiles", "boto3", "botocore", "redis", "zeroconf", "uvloop", "pytest", *plugin_names()}
    assert loaded & heavy == set()


def test_the_wheel_has_every_package_at_its_top_and_runs_from_there(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    packages = ["hypercore", *plugin_names()]
    assert sorted(path.name for path in unpacked.iterdir() if not path.name.endswith(".dist-info")) == packages
    assert [path.name for path in unpacked.glob("*.dist-info/licenses/*")] == ["LICENSE"]
    code = f"import {', '.join(packages)}; print(*(m.__file__ for m in ({', '.join(packages)})), sep='\\n')"
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert [Path(line).parent.parent for line in done.stdout.split("\n") if line] == [unpacked] * len(packages)

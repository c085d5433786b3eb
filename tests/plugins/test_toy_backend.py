"""A third party's distribution is installed, found by its entry point, and proved by the contract."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOY = Path(__file__).parent / "toy_backend"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the toy was installed into, from what is on this machine."""
    target = tmp_path_factory.mktemp("installed")
    install = [
        sys.executable,
        "-m",
        "uv",
        "pip",
        "install",
        "--quiet",
        "--offline",
        "--no-deps",
        "--no-build-isolation",
    ]
    subprocess.run([*install, "--python", sys.executable, "--target", str(target), str(TOY)], check=True, timeout=60)
    return target


def run_with(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = [str(installed), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_it_is_found_by_its_entry_point_and_opened_by_its_scheme(installed: Path) -> None:
    done = run_with(
        installed,
        "-c",
        "import json, sys; from hypercore import plugins;"
        "early = 'hypercore_toy' in sys.modules;"
        "[toy] = [plugin for plugin in plugins.list_plugins() if plugin.name == 'toy'];"
        "listed = 'hypercore_toy.storage' in sys.modules;"
        "storage = plugins.open_storage('toy:shelf?quota_bytes=5');"
        "print(json.dumps([early, listed, str(toy), toy.error, type(storage).__name__, storage.options.quota_bytes]))",
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [False, False, "'toy' (hypercore-toy 1.2.3)", None, "ToyStorage", 5]


def test_it_keeps_the_contract(installed: Path) -> None:
    done = run_with(installed, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TOY / "contract_toy.py"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_without_it_its_scheme_is_unknown() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from hypercore.plugins import open_storage; open_storage('toy:shelf')"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "UnknownSchemeError: no plugin offers the storage scheme 'toy'" in done.stderr

"""The guide for plugin authors says what is true."""

from __future__ import annotations

import ast
import re
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

GUIDE = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text()
TOY = Path(__file__).parent / "toy_backend"


def code(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


@pytest.mark.parametrize("block", code("python"))
def test_what_its_examples_import_is_there(block: str) -> None:
    for statement in ast.walk(ast.parse(block)):
        if isinstance(statement, ast.ImportFrom) and statement.module is not None:
            for name in statement.names:
                assert hasattr(import_module(statement.module), name.name), f"{statement.module}.{name.name}"


def test_its_plugin_is_the_toy_that_the_tests_prove() -> None:
    hook = next(block for block in code("python") if "hookimpl" in block)
    toy = (TOY / "hypercore_toy" / "__init__.py").read_text()
    assert 'StorageProvider(scheme="toy", opener="hypercore_toy.storage:open_storage"' in toy
    assert 'scheme="toy", opener="hypercore_toy.storage:open_storage"' in hook
    [entry] = code("toml")
    project = tomllib.loads((TOY / "pyproject.toml").read_text())["project"]
    assert tomllib.loads(entry)["project"]["entry-points"] == project["entry-points"]


def test_every_name_that_it_gives_to_hypercore_testing_is_offered() -> None:
    import hypercore.testing

    for name in ("StorageContract", "TransportContract", "FaultyStorage", "LatencyStorage", "CrashStorage"):
        assert name in GUIDE
        assert hasattr(hypercore.testing, name)

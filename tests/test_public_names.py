"""`import hypercore` gives every public name, and costs nothing before one is used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hypercore


def imported_for_type_checkers() -> dict[str, str]:
    tree = ast.parse(Path(hypercore.__file__).read_text())
    (block,) = [
        node
        for node in tree.body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    ]
    return {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module is not None
        for alias in node.names
        if alias.asname == alias.name
    }


def test_type_checkers_and_programs_see_the_same_names() -> None:
    assert {*imported_for_type_checkers(), "__version__"} == set(hypercore.__all__)


def test_every_name_is_what_its_home_calls_so() -> None:
    for name, module in imported_for_type_checkers().items():
        assert getattr(hypercore, name) is getattr(sys.modules[module], name)


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="hypercor"):
        _ = hypercore.Hypercor  # type: ignore[attr-defined]


def test_every_public_name_is_listed() -> None:
    assert set(hypercore.__all__) <= set(dir(hypercore))


def test_importing_hypercore_imports_nothing_else_of_it() -> None:
    code = "import sys, hypercore; print(*[name for name in sys.modules if name.startswith('hypercore')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["hypercore"]

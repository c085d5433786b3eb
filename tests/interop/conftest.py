from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.stage import Nodes, Setting, Stage


@pytest.fixture(scope="session")
def nodes() -> Iterator[Nodes]:
    nodes = Nodes()
    yield nodes
    nodes.close()


@pytest.fixture
def stage(nodes: Nodes, setting: Setting, tmp_path: Path) -> Stage:
    """Parametrise `setting`: over `SETTINGS`, or `FEW_SETTINGS` where roles cannot matter."""
    return Stage(nodes, setting, tmp_path)


@pytest.fixture
def wide_stage(nodes: Nodes, setting: Setting, tmp_path: Path) -> Stage:
    """A stage on which hypercore 10 and 11 both appear."""
    return Stage(nodes, setting, tmp_path, both_majors=True)

"""The folders that hypercore 10 wrote, as the tests use them (see `tests/vectors-disk/README.md`)."""

from __future__ import annotations

import base64
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "vectors-disk"

#: The files of one core.
Files = dict[str, bytes]

#: Every vector that is a single core.
NAMES = sorted(path.stem for path in FOLDER.glob("*.json") if path.stem not in ("crash-matrix", "corestore"))


@cache
def load(name: str) -> dict[str, Any]:
    """What vector `name` says about itself."""
    vector: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return vector


def files(name: str) -> Files:
    """The files of the core in vector `name`."""
    archive = FOLDER / f"{name}.tar.gz"
    if not archive.exists():
        return {path.name: path.read_bytes() for path in (FOLDER / name).iterdir()}
    with tarfile.open(archive) as tar:
        members = {Path(member.name).name: tar.extractfile(member) for member in tar if member.isfile()}
        return {member: handle.read() for member, handle in members.items() if handle}


@dataclass(frozen=True)
class CrashState:
    """The files after a crash within a mutation, and what a reader must find: one of `expected`."""

    name: str
    files: Files
    expected: list[dict[str, Any]]


def crash_scenarios() -> list[dict[str, Any]]:
    scenarios: list[dict[str, Any]] = load("crash-matrix")["scenarios"]
    return scenarios


def crash_states(scenario: dict[str, Any]) -> Iterator[CrashState]:
    """The state after every count of finished operations, and with every next write torn where Node's was."""
    before, after, commit_after = scenario["before"], scenario["after"], scenario["commitAfter"]
    for crash in scenario["node"]:
        applied, torn = crash["applied"], crash["torn"]
        disk = {name: bytearray(base64.b64decode(data)) for name, data in scenario["base"].items()}
        for operation in scenario["ops"][:applied]:
            _apply(disk, operation, None)
        if torn:
            _apply(disk, scenario["ops"][applied], torn)
        either = [before, after]
        expected = either if commit_after is None else [either[applied >= commit_after]]
        state = {name: bytes(data) for name, data in disk.items()}
        yield CrashState(f"{scenario['name']} after {applied} operations and {torn} bytes", state, expected)


def _apply(disk: dict[str, bytearray], operation: dict[str, Any], torn: int | None) -> None:
    file, offset = disk.setdefault(operation["file"], bytearray()), operation["offset"]
    if operation["type"] == "write":
        data = base64.b64decode(operation["data"])[:torn]
        file.extend(bytes(max(offset - len(file), 0)))
        file[offset : offset + len(data)] = data
    elif operation["type"] == "truncate":
        file.extend(bytes(max(offset - len(file), 0)))
        del file[offset:]
    else:
        assert operation["type"] == "del"
        end = min(offset + operation["size"], len(file))
        file[offset:end] = bytes(max(end - offset, 0))

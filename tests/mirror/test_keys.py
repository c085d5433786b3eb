"""The list of keys: a file or a folder, and whether it has changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hypercore import OptionError, encode_z32
from hypercore.cli import keys as keys_module
from hypercore.cli.keys import KeyList

ONE, TWO, THREE = (bytes([number]) * 32 for number in (1, 2, 3))


def test_a_file_has_a_key_a_line_and_comments(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# my logs\n\n{ONE.hex()}\n  {encode_z32(TWO)}  the second one # really\n{THREE.hex()}# x\n")
    assert KeyList(str(path)).read() == [ONE, TWO, THREE]


def test_a_folder_has_files_named_by_a_key_or_holding_some(tmp_path: Path) -> None:
    (tmp_path / f"{ONE.hex()}.key").write_text("anything")
    (tmp_path / encode_z32(TWO)).touch()
    (tmp_path / "logs").write_text(f"{THREE.hex()}\n")
    (tmp_path / ".hidden").write_text("nonsense")
    (tmp_path / "logs~").write_text("nonsense")
    (tmp_path / "#logs#").write_text("nonsense")
    (tmp_path / "folder").mkdir()
    assert sorted(KeyList(str(tmp_path)).read()) == [ONE, TWO, THREE]


def test_a_line_that_is_no_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"{ONE.hex()}\nnonsense\n")
    with pytest.raises(OptionError, match=r"keys, line 2: .*8 characters"):
        KeyList(str(path)).read()


def test_something_huge_is_refused_and_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_module, "KEY_FILE_SIZE_MAX", 100)
    (tmp_path / "keys").write_bytes(b"#" * 101)
    with pytest.raises(OptionError, match="larger"):
        KeyList(str(tmp_path / "keys")).read()


def test_what_is_not_there_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        KeyList(str(tmp_path / "keys")).read()


def test_a_file_that_is_written_replaced_or_removed_has_changed_until_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(ONE.hex())
    keys = KeyList(str(path))
    keys.read()
    assert not keys.has_changed()
    path.write_text(f"{ONE.hex()}\n{TWO.hex()}")
    assert keys.has_changed()
    keys.read()
    (tmp_path / "new").write_text(f"{ONE.hex()}\n{THREE.hex()}")
    os.replace(tmp_path / "new", path)
    assert keys.has_changed()
    assert keys.read() == [ONE, THREE]
    assert not keys.has_changed()
    path.unlink()
    assert keys.has_changed()
    with pytest.raises(FileNotFoundError):
        keys.read()
    assert not keys.has_changed()  # It is known to be gone, and was complained of.
    path.write_text(ONE.hex())
    assert keys.has_changed()


def test_a_folder_has_changed_when_a_file_came_or_went(tmp_path: Path) -> None:
    (tmp_path / ONE.hex()).touch()
    keys = KeyList(str(tmp_path))
    assert keys.read() == [ONE]
    (tmp_path / TWO.hex()).touch()
    assert keys.has_changed()
    assert keys.read() == [ONE, TWO]
    (tmp_path / ONE.hex()).unlink()
    assert keys.has_changed()

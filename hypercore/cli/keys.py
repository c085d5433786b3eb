"""The keys that a mirror is told in a file or a folder, and whether they have changed. It must not know what for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from hypercore.errors import OptionError
from hypercore.keys import decode_key

#: A list of 200,000 keys; what is larger is another file.
KEY_FILE_SIZE_MAX: Final = 16 * 1024 * 1024

#: Name, time of change, size and number of each file.
Fingerprint = tuple[tuple[str, int, int, int], ...]


class KeyList:
    """A file with a key a line, or a folder of files that are named by a key or hold some.

    In a line, what comes after the key, and all after a `#`, is a comment.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._seen: Fingerprint | None = None

    def read(self) -> list[bytes]:
        """The keys. Raises `OptionError` that names the line which is none, and `OSError`."""
        self._seen = None
        self._seen = self._fingerprint()
        if not self.path.is_dir():
            return _keys_in(self.path)
        return [key for path in _files_in(self.path) for key in _keys_of(path)]

    def has_changed(self) -> bool:
        """Whether anything looks different since it was last read, or cannot be looked at any more."""
        try:
            return self._fingerprint() != self._seen
        except OSError:
            return self._seen is not None

    def _fingerprint(self) -> Fingerprint:
        paths = _files_in(self.path) if self.path.is_dir() else [self.path]
        states = [(str(path), path.stat()) for path in paths]
        return tuple((name, state.st_mtime_ns, state.st_size, state.st_ino) for name, state in states)


def _files_in(folder: Path) -> list[Path]:
    """Its files, less those that editors and sync programs leave there."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_file() and not entry.name.startswith((".", "#"))]
    return [folder / name for name in sorted(names) if not name.endswith("~")]


def _keys_of(path: Path) -> list[bytes]:
    try:
        return [decode_key(path.name.partition(".")[0])]
    except OptionError:
        return _keys_in(path)


def _keys_in(path: Path) -> list[bytes]:
    with path.open("rb") as file:
        content = file.read(KEY_FILE_SIZE_MAX + 1)
    if len(content) > KEY_FILE_SIZE_MAX:
        raise OptionError(f"{path} is larger than any list of keys")
    keys = []
    for number, line in enumerate(content.decode(errors="replace").splitlines(), start=1):
        words = line.partition("#")[0].split()
        if words:
            try:
                keys.append(decode_key(words[0]))
            except OptionError as error:
                raise OptionError(f"{path}, line {number}: {error}") from None
    return keys

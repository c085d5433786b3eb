"""The file backend: a folder of regular files that hypercore 10 for Node can open, and takes the same lock on.

It must not know what the files mean. Addresses: `./folder`, `/folder`, `file:folder`.
"""

from __future__ import annotations

from hypercore_file.storage import FileStorage

__all__ = ["FileStorage"]

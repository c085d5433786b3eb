"""Building blocks for the tests of log files."""

from __future__ import annotations

from hypercore.log.oplog import (
    Entry,
    ExternalPointer,
    Header,
    OplogImage,
    Replayed,
    decode_external_header,
    encode_entry,
    encode_header,
    frame,
    parse_oplog,
    replay,
)
from tests.disk_vectors import Files

KEY = bytes(range(32))
SLOT = 4096
#: Where entries begin.
ENTRIES = 8192

NOTE = Entry(user_data=("note", b"x"))


def slot(header: Header | bytes, bit: int) -> bytes:
    """A whole slot."""
    body = header if isinstance(header, bytes) else encode_header(header)
    return frame(body, bit=bit).ljust(SLOT, b"\x00")


def log(*entries: Entry, header: Header | None = None) -> bytes:
    """A young log: its header in slot 0 with bit 0, and entries behind it."""
    frames = b"".join(frame(encode_entry(entry), bit=0) for entry in entries)
    return slot(header or Header(key=KEY), 0).ljust(ENTRIES, b"\x00") + frames


def full_header(image: OplogImage, files: Files) -> Header:
    """The header, wherever it lies."""
    header = image.header
    if isinstance(header, ExternalPointer):
        return decode_external_header(files["header"][header.start : header.start + header.length])
    assert header is not None
    return header


def replay_files(files: Files) -> tuple[OplogImage, Replayed]:
    """The log in these files, and what it adds up to."""
    image = parse_oplog(files["oplog"])
    return image, replay(full_header(image, files), image.entries, image.entry_offsets)

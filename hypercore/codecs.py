"""Value encodings: from what a program appends to the bytes of a block, and back."""

from __future__ import annotations

import json
from typing import Any, Final, Protocol

from hypercore.errors import DecodeError, OptionError


class Codec(Protocol):
    """Turns values into blocks and back. `decode` raises `DecodeError` for bytes that are none of its own."""

    def encode(self, value: Any) -> bytes: ...

    def decode(self, block: bytes) -> Any: ...


class _Binary:
    def encode(self, value: Any) -> bytes:
        if isinstance(value, bytes):
            return value
        if isinstance(value, str):
            return value.encode()
        if isinstance(value, (bytearray, memoryview)):
            return bytes(value)
        raise OptionError(f"a block is bytes or text, not {type(value).__name__}; see value_encoding")

    def decode(self, block: bytes) -> bytes:
        return block


class _Text:
    def encode(self, value: Any) -> bytes:
        if not isinstance(value, str):
            raise OptionError(f"with value_encoding='utf-8' a block is text, not {type(value).__name__}")
        return value.encode()

    def decode(self, block: bytes) -> str:
        try:
            return block.decode()
        except UnicodeDecodeError as error:
            raise DecodeError(f"the block is not UTF-8 text: {error}") from error


class _Json:
    def encode(self, value: Any) -> bytes:
        try:
            return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise OptionError(f"the value has no JSON form: {error}") from error

    def decode(self, block: bytes) -> Any:
        try:
            return json.loads(block)
        except ValueError as error:
            raise DecodeError(f"the block is not JSON: {error}") from error


BINARY: Final = _Binary()
_NAMED: Final[dict[str, Codec]] = {"binary": BINARY, "utf-8": _Text(), "json": _Json()}


def codec_of(encoding: str | Codec) -> Codec:
    """The codec of a name ("binary", "utf-8", "json"), or the object itself. Raises `OptionError`."""
    if isinstance(encoding, str):
        try:
            return _NAMED[encoding]
        except KeyError:
            raise OptionError(f"value_encoding {encoding!r} is unknown; there are {', '.join(_NAMED)}") from None
    if not (callable(getattr(encoding, "encode", None)) and callable(getattr(encoding, "decode", None))):
        raise OptionError("a value_encoding has the methods encode(value) and decode(block)")
    return encoding

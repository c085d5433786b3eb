"""Keys as people write them: hex and z-base-32 text, and bytes (32 of them)."""

from __future__ import annotations

from string import hexdigits
from typing import Final

from hypercore.crypto import KEY_SIZE
from hypercore.errors import OptionError

_Z32: Final = "ybndrfg8ejkmcpqxot1uwisza345h769"
_Z32_VALUES: Final = {letter: value for value, letter in enumerate(_Z32)}
#: 32 bytes are 256 bits, and a letter holds five.
_Z32_LENGTH: Final = 52


def decode_key(key: bytes | str) -> bytes:
    """The 32 bytes of a key given as bytes, as 64 hex digits or as 52 letters of z-base-32. Raises `OptionError`."""
    if isinstance(key, (bytes, bytearray)):
        if len(key) != KEY_SIZE:
            raise OptionError(f"a key has {KEY_SIZE} bytes, this one has {len(key)}")
        return bytes(key)
    if not isinstance(key, str):
        raise OptionError(f"a key is bytes or text, not {type(key).__name__}")
    text = key.strip()
    if len(text) == 2 * KEY_SIZE:
        for position, letter in enumerate(text, start=1):
            if letter not in hexdigits:
                raise OptionError(f"character {position} of the key {text[:8]}... is {letter!r}, which is no hex digit")
        return bytes.fromhex(text)
    if len(text) == _Z32_LENGTH:
        bits = 0
        for letter in text.lower():
            if letter not in _Z32_VALUES:
                raise OptionError(f"the key {text[:8]}... has the letter {letter!r}, which z-base-32 does not know")
            bits = bits << 5 | _Z32_VALUES[letter]
        if bits & 0xF:
            raise OptionError(f"the key {text[:8]}... ends in bits that no key has")
        return (bits >> 4).to_bytes(KEY_SIZE, "big")
    raise OptionError(f"a key is 64 hex digits or 52 letters of z-base-32; this one has {len(text)} characters")


def encode_z32(key: bytes) -> str:
    """The 52 letters of a 32-byte key: `Hypercore.id`."""
    bits = int.from_bytes(key, "big") << 4
    return "".join(_Z32[bits >> shift & 31] for shift in range(5 * (_Z32_LENGTH - 1), -1, -5))

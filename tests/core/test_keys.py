"""Keys are written as bytes, hex or z-base-32, and a typing error is named."""

from __future__ import annotations

import random

import pytest

from hypercore.errors import OptionError
from hypercore.keys import decode_key, encode_z32

KEY = bytes(range(32))


@pytest.mark.parametrize(
    "form",
    [KEY, bytearray(KEY), KEY.hex(), KEY.hex().upper(), f" {KEY.hex()}\n", encode_z32(KEY), encode_z32(KEY).upper()],
)
def test_every_form_of_a_key_is_the_same_key(form: bytes | str) -> None:
    assert decode_key(form) == KEY


def test_z_base_32_gives_every_key_back() -> None:
    for seed in range(100):
        key = random.Random(seed).randbytes(32)
        assert len(encode_z32(key)) == 52, f"seed {seed}"
        assert decode_key(encode_z32(key)) == key, f"seed {seed}"


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (b"short", "32 bytes, this one has 5"),
        ("", "has 0 characters"),
        (KEY.hex()[:-1], "64 hex digits or 52 letters .* 63 characters"),
        (KEY.hex()[:-1] + "x", "character 64 of the key 00010203... is 'x'"),
        (KEY.hex()[:-3] + " 1f", "character 62 of the key 00010203... is ' '"),
        (encode_z32(KEY)[:-1] + "v", "letter 'v'"),
        (encode_z32(KEY)[:-1] + "b", "bits that no key has"),
    ],
)
def test_what_is_no_key_is_told_what_is_wrong_with_it(key: bytes | str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        decode_key(key)


def test_a_key_of_another_type_is_an_option_error() -> None:
    with pytest.raises(OptionError, match="not int"):
        decode_key(5)  # type: ignore[arg-type]

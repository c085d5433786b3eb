"""Addresses: what they mean, that they come back as they were, and that they keep secrets."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from hypercore.errors import AddressError
from hypercore.urls import ADDRESS_LENGTH_MAX, Address, parse_address

SEED = 7


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("./dir", Address(scheme="file", path="./dir")),
        ("/abs/dir", Address(scheme="file", path="/abs/dir")),
        ("dir", Address(scheme="file", path="dir")),
        ("C:", Address(scheme="file", path="C:")),
        ("C:\\logs", Address(scheme="file", path="C:\\logs")),
        ("./a:b", Address(scheme="file", path="./a:b")),
        ("./50%25?x=y#z", Address(scheme="file", path="./50%25?x=y#z")),
        ("file:dir", Address(scheme="file", path="dir")),
        ("file:a%20b?read_only=yes", Address(scheme="file", path="a b", query=(("read_only", "yes"),))),
        ("file:///abs", Address(scheme="file", host="", path="abs")),
        ("FILE:dir", Address(scheme="file", path="dir")),
        ("memory:", Address(scheme="memory")),
        ("memory:name", Address(scheme="memory", path="name")),
        ("pipe:name", Address(scheme="pipe", path="name")),
        ("lan:", Address(scheme="lan")),
        ("tcp://host:4977", Address(scheme="tcp", host="host", port=4977)),
        ("tcp://127.0.0.1:0", Address(scheme="tcp", host="127.0.0.1", port=0)),
        ("tcp://[::1]:4977", Address(scheme="tcp", host="::1", port=4977)),
        ("tcp://[::]", Address(scheme="tcp", host="::")),
        ("tcp://[fe80::1%eth0]:1", Address(scheme="tcp", host="fe80::1%eth0", port=1)),
        ("tcp://:4977", Address(scheme="tcp", host="", port=4977)),
        (
            "redis://host:6379/0?prefix=logs",
            Address(scheme="redis", host="host", port=6379, path="0", query=(("prefix", "logs"),)),
        ),
        (
            "redis://me:p%40ss@host",
            Address(scheme="redis", host="host", username="me", password="p@ss"),
        ),
        ("redis://:secret@host", Address(scheme="redis", host="host", username="", password="secret")),
        (
            "https://host:8443/bucket/a%20b/c%2Bd/?x=y",
            Address(scheme="https", host="host", port=8443, path="bucket/a b/c+d/", query=(("x", "y"),)),
        ),
        ("s3://bucket/a/b", Address(scheme="s3", host="bucket", path="a/b")),
        ("s3://bucket?region=", Address(scheme="s3", host="bucket", query=(("region", ""),))),
        ("x-y+z.1:rest", Address(scheme="x-y+z.1", path="rest")),
    ],
)
def test_an_address_means_what_it_says(text: str, expected: Address) -> None:
    assert parse_address(text) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "must not be empty"),
        ("x" * (ADDRESS_LENGTH_MAX + 1), "at most"),
        ("a\nb", "control character"),
        ("a\0b", "control character"),
        ("file:a%00b", "zero byte"),
        ("file:%ff", "UTF-8"),
        ("memory:x?a=%ff", "options are written"),
        ("memory:x?a", "options are written"),
        ("memory:x?a=1&a=2", "'a' twice"),
        ("tcp://::1:4977", "in brackets"),
        ("tcp://[::1:4977", r"written '\[::1\]:4977'"),
        ("tcp://[::1]4977", r"written '\[::1\]:4977'"),
        ("tcp://[host]:1", r"written '\[::1\]:4977'"),
        ("tcp://host:", "a port is a number"),
        ("tcp://host:65536", "a port is a number"),
        ("tcp://host:-1", "a port is a number"),
        ("tcp://host:+1", "a port is a number"),
        ("tcp://host:٣", "a port is a number"),
        ("tcp://host:http", "a port is a number"),
        ("tcp://host:" + "9" * 5000, "a port is a number"),
    ],
)
def test_an_address_that_makes_no_sense_is_refused(text: str, says: str) -> None:
    with pytest.raises(AddressError, match=says):
        parse_address(text)


def test_a_path_object_is_a_path() -> None:
    assert parse_address(Path("memory:x")) == Address(scheme="file", path="memory:x")
    with pytest.raises(AddressError, match="no path"):
        parse_address(_BytesPath())


class _BytesPath:
    def __fspath__(self) -> str:
        return b"bytes"  # type: ignore[return-value]


@pytest.mark.parametrize(
    "text",
    [
        "redis://me:hunter2@host:6379/0?x=1",
        "redis://:hunter2@host",
        "redis://me:a%2Fhunter2@host",
        "s3://bucket/p?secret_access_key=hunter2&region=eu",
        "s3://bucket?session_token=hunter2",
        "s3://bucket?access_key=hunter2",
        "redis://host?password=hunter2",
        "redis://host?PASSWORD=hunter2",
    ],
)
def test_no_password_is_shown_except_on_request(text: str) -> None:
    address = parse_address(text)
    for shown in (str(address), repr(address), f"{address}", repr([address])):
        assert "hunter2" not in shown
        assert "***" in shown
    assert "hunter2" in address.reveal()
    assert parse_address(address.reveal()) == address


@pytest.mark.parametrize(
    "text",
    [
        "redis://me:hunter2@host:port",
        "redis://me:hun/ter2@host:x",
        "redis://me:hunter2@ho@st:x",
        "redis://me:hunter2@host?a=1&a=2",
        "redis://me:hunter2@host/%ff",
        "redis://me:hunter2@host\n",
        "redis://me:x\nhunter2@host",
        "redis://host:x?password=hunter2",
        "redis://host:x?pass%77ord=hunter2",
    ],
)
def test_no_password_is_shown_when_the_address_is_wrong(text: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse_address(text)
    assert "hunter2" not in str(caught.value)
    assert "ter2" not in str(caught.value)


def test_an_address_comes_back_as_it_was() -> None:
    random = Random(SEED)
    letters = "ab/:?#[]@!&=+% ;~ü日*.\\"

    def text(least: int = 0) -> str:
        return "".join(random.choice(letters) for _ in range(random.randrange(least, 8)))

    for number in range(3000):
        with_host = random.random() < 0.6
        address = Address(
            scheme=random.choice(("file", "memory", "redis", "s3")),
            path=text(),
            host=random.choice(("", "host", "127.0.0.1", "::1", "bücket")) if with_host else None,
            port=random.choice((None, 0, 65535)) if with_host else None,
            username=(username := random.choice((None, text())) if with_host else None),
            password=text() if with_host and username is not None and random.random() < 0.5 else None,
            query=tuple((f"{name}{text()}", text()) for name in "xy"[: random.randrange(3)]),
        )
        assert parse_address(address.reveal()) == address, f"{address.reveal()!r} (seed {SEED}, number {number})"

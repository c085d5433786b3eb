"""Options: text from an address and values from Python become one checked dataclass."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Literal

import pytest

from hypercore.errors import OptionError
from hypercore.options import build_options


class Durability(enum.Enum):
    NONE = "none"
    ALWAYS = "always"


class Client:
    pass


@dataclass(frozen=True, kw_only=True)
class Options:
    prefix: str = ""
    pool_size: int = 10
    timeout_seconds: float = 5.0
    verify: bool = True
    region: str | None = None
    retries: int | None = None
    mode: Literal["fast", "safe"] = "safe"
    durability: Durability = Durability.NONE
    client: Client | None = None
    password: int = 0
    derived: int = field(init=False, default=1)

    def __post_init__(self) -> None:
        if self.pool_size < 1:
            raise OptionError(f"pool_size must be at least 1, and is {self.pool_size}")


@dataclass(frozen=True, kw_only=True)
class Needy:
    bucket: str


def build(*query: tuple[str, str], **keywords: object) -> Options:
    return build_options(Options, query=query, keywords=keywords, of="the test")


def test_nothing_said_gives_the_defaults() -> None:
    assert build() == Options()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("prefix", "logs", "logs"),
        ("prefix", "", ""),
        ("pool_size", "64", 64),
        ("pool_size", "0x10", 16),
        ("timeout_seconds", "1.5", 1.5),
        ("timeout_seconds", "2", 2.0),
        ("verify", "no", False),
        ("verify", "TRUE", True),
        ("region", "eu", "eu"),
        ("retries", "3", 3),
        ("mode", "fast", "fast"),
        ("durability", "always", Durability.ALWAYS),
    ],
)
def test_text_is_read_as_the_fields_type(name: str, text: str, value: object) -> None:
    got = getattr(build((name, text)), name)
    assert got == value
    assert type(got) is type(value)
    assert getattr(build(**{name: value}), name) == value


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("pool_size", "many", "'pool_size' must be a whole number, not 'many'"),
        ("pool_size", "010", "'pool_size' must be a whole number"),
        ("pool_size", "1.0", "'pool_size' must be a whole number"),
        ("pool_size", "0", "pool_size must be at least 1"),
        ("timeout_seconds", "soon", "'timeout_seconds' must be a number"),
        ("timeout_seconds", "nan", "'timeout_seconds' must be a number"),
        ("timeout_seconds", "inf", "'timeout_seconds' must be a number"),
        ("verify", "maybe", "'verify' must be true or false"),
        ("retries", "", "'retries' must be a whole number"),
        ("mode", "wild", "'mode' must be one of fast, safe"),
        ("durability", "wild", "'durability' must be one of none, always"),
        ("client", "x", "'client' cannot be written in an address; give it as a keyword"),
        ("derived", "2", "no option 'derived'"),
        ("Prefix", "x", r"no option 'Prefix' \(did you mean 'prefix'\?\)"),
        ("zzz", "x", "no option 'zzz'; its options are client, durability, mode"),
        ("password", "hunter2", r"'password' must be a whole number, not \*\*\*"),
    ],
)
def test_wrong_text_is_refused_by_name(name: str, text: str, says: str) -> None:
    with pytest.raises(OptionError, match=says) as caught:
        build((name, text))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prefix", b"bytes"),
        ("prefix", None),
        ("pool_size", "64"),
        ("pool_size", True),
        ("pool_size", 1.0),
        ("pool_size", 0),
        ("timeout_seconds", "1"),
        ("timeout_seconds", True),
        ("timeout_seconds", float("nan")),
        ("verify", 1),
        ("region", 5),
        ("mode", "wild"),
        ("durability", "always"),
        ("client", "x"),
        ("derived", 2),
        ("zzz", 1),
    ],
)
def test_a_wrong_value_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(OptionError, match=name):
        build(**{name: value})


def test_objects_and_none_are_given_as_keywords() -> None:
    client = Client()
    assert build(client=client, region=None, timeout_seconds=3) == Options(client=client, timeout_seconds=3)


def test_one_option_is_not_given_in_two_ways() -> None:
    with pytest.raises(OptionError, match="'prefix' is given twice"):
        build(("prefix", "a"), prefix="a")


def test_an_option_without_a_default_is_asked_for() -> None:
    with pytest.raises(OptionError, match="the test needs the option 'bucket'"):
        build_options(Needy, of="the test")
    assert build_options(Needy, query=[("bucket", "b")], of="the test") == Needy(bucket="b")

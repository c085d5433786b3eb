"""Options: one frozen keyword-only dataclass a backend, settable in an address's query or as keywords.

Promise floor: it knows neither the backends nor what their options mean. A backend states its options once, as the
fields of a dataclass with defaults; ranges are checked by its `__post_init__`, which raises `OptionError`.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import math
import os
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, Union

from hypercore.errors import OptionError
from hypercore.urls import HIDDEN, is_secret

Options = TypeVar("Options")

_TRUTH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def build_options(
    kind: type[Options], *, query: Iterable[tuple[str, str]] = (), keywords: Mapping[str, object] | None = None, of: str
) -> Options:
    """The options from an address's query, as text, and from keywords, as values. `of` names whose they are.

    Raises `OptionError` that names the option: it is unknown (then the known ones are listed), of the wrong shape,
    missing, or given in both ways.
    """
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, kind)) if field.init}
    hints = typing.get_type_hints(kind)
    values: dict[str, object] = {}
    for name, text in query:
        _check_known(name, fields, of)
        values[name] = _read(text, hints[name], name, of)
    for name, value in (keywords or {}).items():
        _check_known(name, fields, of)
        if name in values:
            raise OptionError(f"{of}: the option {name!r} is given twice, in the address and as a keyword")
        if not _fits(value, hints[name]):
            raise _bad(value, hints[name], name, of)
        values[name] = value
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise OptionError(f"{of} needs the option {name!r}")
    return kind(**values)


def _check_known(name: str, fields: Mapping[str, object], of: str) -> None:
    if name in fields:
        return
    known = f"its options are {', '.join(sorted(fields))}" if fields else "it has none"
    near = difflib.get_close_matches(name, fields, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise OptionError(f"{of} has no option {name!r}{hint}; {known}")


def _bad(value: object, hint: object, name: str, of: str) -> OptionError:
    shown = HIDDEN if is_secret(name) else repr(value)
    return OptionError(f"{of}: the option {name!r} must be {_said(hint)}, not {shown}")


def _choices(hint: object) -> tuple[object, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


def _said(hint: object) -> str:
    """A type in the words of somebody who writes an address."""
    said = []
    for choice in _choices(hint):
        if choice is type(None):
            continue
        if typing.get_origin(choice) is Literal:
            said.append("one of " + ", ".join(str(value) for value in typing.get_args(choice)))
        elif isinstance(choice, type) and issubclass(choice, enum.Enum):
            said.append("one of " + ", ".join(str(member.value) for member in choice))
        else:
            names: dict[object, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
            said.append(names.get(choice, f"a {getattr(choice, '__name__', choice)}"))
    return " or ".join(said)


def _read(text: str, hint: object, name: str, of: str) -> object:
    """The value that the text of a query means."""
    for choice in _choices(hint):
        try:
            if typing.get_origin(choice) is Literal:
                return {str(value): value for value in typing.get_args(choice)}[text]
            if choice is bool:
                return _TRUTH[text.lower()]
            if choice is int:
                return int(text, 0)
            if choice is float and math.isfinite(float(text)):
                return float(text)
            if choice in (str, os.PathLike):
                return text
            if isinstance(choice, type) and issubclass(choice, enum.Enum):
                return choice(text)
        except (KeyError, ValueError):
            continue
    if not any(_readable(choice) for choice in _choices(hint)):
        raise OptionError(f"{of}: the option {name!r} cannot be written in an address; give it as a keyword")
    raise _bad(text, hint, name, of)


def _readable(choice: object) -> bool:
    return (
        choice in (bool, int, float, str, os.PathLike)
        or typing.get_origin(choice) is Literal
        or (isinstance(choice, type) and issubclass(choice, enum.Enum))
    )


def _fits(value: object, hint: object) -> bool:
    for choice in _choices(hint):
        if choice is Any or choice is object:
            return True
        origin = typing.get_origin(choice)
        if origin is Literal:
            if any(value == allowed and type(value) is type(allowed) for allowed in typing.get_args(choice)):
                return True
        elif choice is float:
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                return True
        elif choice is int:
            if isinstance(value, int) and not isinstance(value, bool):
                return True
        else:
            known = origin or choice
            if not isinstance(known, type) or isinstance(value, known):
                return True
    return False

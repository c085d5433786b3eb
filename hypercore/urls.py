"""Addresses: one string says which backend or transport, and where. Ground floor: it knows no plugin.

    ./dir   /abs   file:dir          memory:   memory:name      redis://user:password@host:6379/0?prefix=logs
    tcp://host:port   tcp://[::1]:4977      lan:   pipe:name

A scheme has at least two letters, so `C:` is not one; what has no scheme is a path. Neither `str` nor `repr` nor an
error shows a password or a secret in the query; `reveal` does.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, unquote, urlencode

from hypercore.errors import AddressError

#: Longer than any real address; what is longer is a mistake, such as a file's content.
ADDRESS_LENGTH_MAX = 8192
HIDDEN = "***"

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
_SECRET = re.compile(r"pass(word|wd|phrase)?$|secret|token|credential|(access|private|api)_?key$", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
#: What stays readable in a path; everything else that could be taken for something else is percent-encoded.
_PATH_SAFE = "/:@!$&'()*+,;=~"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Address:
    """What an address says, taken apart and percent-decoded. `str` gives it back, with secrets hidden."""

    scheme: str
    #: After the host, without the slash between them; or all after the scheme when there is no `//`.
    path: str = ""
    #: None when the address has no `//host` part. An IPv6 address is without its brackets.
    host: str | None = None
    port: int | None = None
    username: str | None = None
    password: str | None = None
    query: tuple[tuple[str, str], ...] = field(default=())

    def __str__(self) -> str:
        return self._text(hide=True)

    def __repr__(self) -> str:
        return f"Address({str(self)!r})"

    def reveal(self) -> str:
        """The address with its secrets, for a driver; never for a log or a message."""
        return self._text(hide=False)

    def _text(self, *, hide: bool) -> str:
        text = f"{self.scheme}:"
        if self.host is not None:
            text += "//"
            if self.username is not None or self.password is not None:
                text += quote(self.username or "", safe="")
                if self.password is not None:
                    text += ":" + (HIDDEN if hide else quote(self.password, safe=""))
                text += "@"
            text += f"[{self.host}]" if ":" in self.host else quote(self.host, safe="*")
            if self.port is not None:
                text += f":{self.port}"
            if self.path:
                text += "/"
        path = quote(self.path, safe=_PATH_SAFE)
        if self.host is None and path.startswith("//"):
            path = "/%2F" + path[2:]  # or its second part would be taken for a host
        text += path
        if self.query:
            pairs = [(name, HIDDEN if hide and is_secret(name) else value) for name, value in self.query]
            text += "?" + urlencode(pairs, safe="/:@,~*", quote_via=quote)
        return text


def parse_address(text: str | os.PathLike[str] | Address) -> Address:
    """Take an address apart; what has no scheme is a path as it stands, without query and escapes.

    Raises `AddressError`.
    """
    if isinstance(text, Address):
        return text
    if isinstance(text, os.PathLike):
        path = os.fspath(text)
        if not isinstance(path, str) or not path:
            raise AddressError(f"{path!r} is no path: it must be a string of at least one character")
        return Address(scheme="file", path=path)
    if not isinstance(text, str):
        raise AddressError(f"an address is a string, a path or an object of the plugin, not a {type(text).__name__}")
    if not text:
        raise AddressError("an address must not be empty; a folder here is written './name'")
    if len(text) > ADDRESS_LENGTH_MAX:
        raise AddressError(f"an address has at most {ADDRESS_LENGTH_MAX} characters, this one has {len(text)}")
    if _CONTROL.search(text):
        raise AddressError(f"{hide_secrets(text)!r} has a control character in it")
    match = _SCHEME.match(text)
    if match is None:
        return Address(scheme="file", path=text)
    return _parse_url(text, match.group(1).lower(), text[match.end() :])


def is_secret(name: str) -> bool:
    """Whether an option of this name is never shown."""
    return _SECRET.search(name) is not None


def hide_secrets(text: str) -> str:
    """A text that was meant as an address and may not be one, fit for a message."""
    text = re.sub(r"//.*@", f"//{HIDDEN}@", text, flags=re.DOTALL)
    return re.sub(r"([?&])([^=&]*)=([^&]*)", _hide_value, text)


def _hide_value(match: re.Match[str]) -> str:
    mark, name, value = match.groups()
    return f"{mark}{name}={HIDDEN if is_secret(unquote(name)) else value}"


def _parse_url(text: str, scheme: str, rest: str) -> Address:
    rest, mark, query_text = rest.partition("?")
    query = _parse_query(text, query_text) if mark else ()
    if not rest.startswith("//"):
        return Address(scheme=scheme, path=_decode(text, rest), query=query)
    authority, _, path = rest[2:].partition("/")
    user_info, at, place = authority.rpartition("@")
    username: str | None = None
    password: str | None = None
    if at:
        user, colon, secret = user_info.partition(":")
        username, password = _decode(text, user), _decode(text, secret) if colon else None
    host, port = _parse_place(text, place)
    return Address(
        scheme=scheme,
        path=_decode(text, path),
        host=host,
        port=port,
        username=username,
        password=password,
        query=query,
    )


def _parse_place(text: str, place: str) -> tuple[str, int | None]:
    if place.startswith("["):
        host, bracket, after = place[1:].partition("]")
        if not bracket or ":" not in host or (after and not after.startswith(":")):
            raise AddressError(f"{hide_secrets(text)!r}: an IPv6 address is written '[::1]:4977'")
        port_text = after[1:] if after else None
    else:
        host, colon, after = place.partition(":")
        if ":" in after:
            raise AddressError(f"{hide_secrets(text)!r}: an IPv6 address is written in brackets, as '[::1]:4977'")
        host = _decode(text, host)
        port_text = after if colon else None
    if port_text is None:
        return host, None
    if not (port_text.isascii() and port_text.isdigit() and len(port_text) <= 5 and int(port_text) <= 65535):
        raise AddressError(f"{hide_secrets(text)!r}: a port is a number from 0 to 65535")
    return host, int(port_text)


def _parse_query(text: str, query: str) -> tuple[tuple[str, str], ...]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), errors="strict")
    except ValueError as error:
        raise AddressError(f"{hide_secrets(text)!r}: options are written '?name=value&other=value'") from error
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise AddressError(f"{hide_secrets(text)!r} gives the option {name!r} twice")
    return tuple(pairs)


def _decode(text: str, part: str) -> str:
    try:
        decoded = unquote(part, errors="strict")
    except UnicodeDecodeError as error:
        raise AddressError(f"{hide_secrets(text)!r}: what is percent-encoded must be UTF-8") from error
    if "\0" in decoded:
        raise AddressError(f"{hide_secrets(text)!r} has a zero byte in it")
    return decoded

"""How a container's image says what its program is: the part ``config`` of an OCI image's configuration (``config.md``
of the specification), and the numbers of its user by the image's own passwd(5) and group(5)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mystfuse.errors import FormatError

MAX_CONFIG = 4 << 20
"""Bytes of the configuration, and of a file with users."""
_MAX_WORDS = 4096
_MAX_GROUPS = 1024
_MAX_ID = 2**31 - 1
"""What bubblewrap takes."""


@dataclass(frozen=True, slots=True)
class ProgramConfig:
    """The program of an image, and where it runs."""

    command: tuple[str, ...]
    """Entrypoint and Cmd."""
    environment: tuple[tuple[str, str], ...]
    directory: str
    """Empty: it says nothing."""
    user: str
    """``USER[:GROUP]``, names or numbers; empty: root."""

    @classmethod
    def parse(cls, data: bytes) -> ProgramConfig:
        """Parse a configuration.

        Raises:
            FormatError: it is not JSON, or a field that we need has a value of a wrong type.
        """
        if len(data) > MAX_CONFIG:
            raise FormatError(f"more than {MAX_CONFIG} bytes")
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            raise FormatError("not JSON, or nested too deeply") from None
        config = document.get("config") if isinstance(document, dict) else None
        if config is None:
            config = {}
        if not isinstance(document, dict) or not isinstance(config, dict):
            raise FormatError("must be an object, with an object config")
        variables = []
        for text in _words(config, "Env"):
            name, equals, value = text.partition("=")
            if not name or not equals:
                raise FormatError(f"Env: {text[:100]!r} is not NAME=VALUE")
            variables.append((name, value))
        directory = _text(config, "WorkingDir")
        return cls(
            (*_words(config, "Entrypoint"), *_words(config, "Cmd")),
            tuple(variables),
            directory if directory.startswith("/") or not directory else f"/{directory}",
            _text(config, "User"),
        )


@dataclass(frozen=True, slots=True)
class User:
    """Who runs a program."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    """Further ones."""
    home: str


def find_user(text: str, passwd: bytes, group: bytes) -> User:
    """The numbers of ``USER[:GROUP]``, as docker and podman find them.

    Args:
        passwd, group: the image's files; empty if it has none.

    Raises:
        FormatError: a name is not there, or a number is too large.
    """
    user, colon, own_group = text.partition(":")
    found = next((line for line in _lines(passwd, 7) if user and user in (line[0], line[2])), None)
    uid = _number(found[2] if found is not None else user or "0", f"user {user!r}, who is not in its /etc/passwd,")
    gid = _number(found[3] or "0", "its group") if found is not None else 0
    home = found[5] if found is not None and found[5].startswith("/") else "/"
    if found is None and uid == 0:
        home = "/root"
    groups: tuple[int, ...] = ()
    if colon and own_group:
        line = next((line for line in _lines(group, 4) if own_group in (line[0], line[2])), None)
        gid = _number(
            line[2] if line is not None else own_group, f"group {own_group!r}, which is not in its /etc/group,"
        )
    elif found is not None:
        members = (line for line in _lines(group, 4) if found[0] in line[3].split(","))
        groups = tuple(_number(line[2], f"group {line[0]!r}") for line in members)[:_MAX_GROUPS]
    return User(uid, gid, groups, home)


def _lines(data: bytes, fields: int) -> Iterator[Sequence[str]]:
    """The lines of so many fields, the first three at least: others are empty then."""
    for line in data.decode(errors="surrogateescape").split("\n"):
        parts = line.split(":")
        if 3 <= len(parts) <= fields and parts[0]:
            yield parts + [""] * (fields - len(parts))


def _number(text: str, what: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) <= _MAX_ID):
        raise FormatError(f"User: {what} is no number that a user or group has")
    return int(text)


def _words(config: dict[str, Any], key: str) -> list[str]:
    found = config.get(key)
    if found is None:
        return []
    if not isinstance(found, list) or len(found) > _MAX_WORDS:
        raise FormatError(f"{key} must be a list of at most {_MAX_WORDS} strings")
    return [_checked(word, key) for word in found]


def _text(config: dict[str, Any], key: str) -> str:
    return _checked(config.get(key) or "", key)


def _checked(value: Any, key: str) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise FormatError(f"{key}: a value that is no string, or with a zero byte")
    try:
        value.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        raise FormatError(f"{key}: half a character") from None
    return value

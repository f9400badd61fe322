"""Options for what an image takes of a directory: owner, patterns, and lists of paths."""

from __future__ import annotations

import grp
import os
import pwd
import re
import sys
from collections.abc import Sequence

import click

from mystfuse.build.exclude_patterns import Pattern, parse_lines
from mystfuse.build.tree_selection import TreeSelection, parse_list
from mystfuse.cli.options import FileOrText, option_group
from mystfuse.errors import UsageError

tree_options = option_group(
    click.option(
        "--owner",
        metavar="USER:GROUP",
        help="Make all files this user's and group's: numbers, or names of this machine.",
    ),
    click.option(
        "--exclude",
        metavar="PATTERN",
        multiple=True,
        help="Leave out what matches: as in .gitignore, from DIRECTORY on. May be repeated.",
    ),
    click.option(
        "--exclude-from",
        type=FileOrText(),
        metavar="FILE|-",
        multiple=True,
        help="Leave out what matches the patterns in FILE, one a line. May be repeated.",
    ),
    click.option(
        "--from-list",
        type=FileOrText(),
        metavar="FILE|-",
        help="Take only the paths that FILE lists, one a line, from DIRECTORY on, and the directories above them.",
    ),
    click.option("-0", "--null", is_flag=True, help="In the list, a zero byte ends a path, not a newline."),
)


def parse_owner(value: str | None) -> tuple[int, int] | None:
    """User and group of ``--owner``.

    Raises:
        UsageError: it is not two of them, or this machine does not know a name.
    """
    if value is None:
        return None
    user, separator, group = value.partition(":")
    if not separator or not user or not group:
        raise UsageError(f"--owner {value}: must be USER:GROUP, as in root:root or 0:0")
    uid, gid = _number(user, value), _number(group, value)
    what = f"user {user}"
    try:
        if uid is None:
            uid = pwd.getpwnam(user).pw_uid
        what = f"group {group}"
        if gid is None:
            gid = grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise UsageError(f"--owner {value}: this machine knows no {what} (give numbers)") from error
    return uid, gid


def load_selection(
    exclude: Sequence[str], exclude_from: Sequence[str], from_list: str | None, null: bool, *others: str | None
) -> TreeSelection | None:
    """Read what the options name; None without them.

    Args:
        others: values of options that may also read stdin.

    Raises:
        UsageError: a wrong pattern or path, or reading a file failed.
    """
    if [*exclude_from, from_list, *others].count("-") > 1:
        raise UsageError("only one option can read stdin")
    if null and from_list is None:
        raise UsageError("--null goes with --from-list")
    patterns: list[Pattern] = []
    for name in exclude_from:
        try:
            patterns += parse_lines(_read(name, "--exclude-from"))
        except UsageError as error:
            raise error.about(f"--exclude-from {name}") from None
    for text in exclude:
        try:
            patterns.append(Pattern.parse(os.fsencode(text)))
        except UsageError as error:
            raise error.about("--exclude") from None
    if from_list is None:
        return TreeSelection(patterns) if patterns else None
    source = f"--from-list {from_list}"
    listed = parse_list(_read(from_list, "--from-list"), b"\0" if null else b"\n", source)
    return TreeSelection(patterns, listed, source)


def _number(text: str, value: str) -> int | None:
    if not re.fullmatch(r"[0-9]+", text):
        return None
    if int(text) >= 2**32 - 1:
        raise UsageError(f"--owner {value}: {text} is not a user or group number")
    return int(text)


def _read(name: str, option: str) -> bytes:
    """All of a file; it may be a pipe."""
    try:
        if name == "-":
            return sys.stdin.buffer.read()
        with open(name, "rb") as file:
            return file.read()
    except OSError as error:
        raise UsageError(f"{option} {name}: {error.strerror}") from error

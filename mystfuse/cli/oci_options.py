"""Options for the configuration of an OCI image: what its program is, and where it runs."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from typing import Any

import click

from mystfuse.archives.json_object import parse_object
from mystfuse.archives.oci_image_config import ConfigChanges
from mystfuse.cli.options import FileOrText, VariableName, option_group
from mystfuse.errors import UsageError
from mystfuse.formats.oci_config import MAX_CONFIG
from mystfuse.system.configured_file import read_configured_file

config_options = option_group(
    click.option("--config", type=FileOrText(), metavar="FILE", help="Begin with this configuration (JSON)."),
    click.option(
        "--entrypoint",
        metavar="WORDS",
        help="The program and its first arguments, in the words of a shell or as a JSON list.",
    ),
    click.option("--cmd", metavar="WORDS", help="The program, or its arguments behind those of the entrypoint."),
    click.option(
        "--env",
        "variables",
        type=VariableName(),
        multiple=True,
        metavar="K[=V]",
        help="Set a variable, or take it over (repeatable).",
    ),
    click.option("--workdir", metavar="DIR", help="Where the program starts."),
    click.option("--user", metavar="USER[:GROUP]", help="Who runs it: names or numbers of the image."),
    click.option("--label", "labels", metavar="K=V", multiple=True, help="Set a label (repeatable)."),
    click.option("--architecture", metavar="NAME", help="The machine it is for, in Go's words (amd64, arm64)."),
)


def read_config(path: str | None) -> Mapping[str, Any] | None:
    """The configuration of ``--config``; None without it.

    Raises:
        UsageError: it cannot be read, or is too large.
        FormatError: it is not a JSON object.
    """
    if path is None:
        return None
    return parse_object(read_configured_file(path, "--config", MAX_CONFIG), path)


def parse_changes(given: Mapping[str, Any]) -> ConfigChanges:
    """What ``config_options`` change.

    Raises:
        UsageError: a value that no configuration may have.
    """
    for option in ("entrypoint", "cmd", "workdir", "user", "variables", "labels"):
        values = given[option] if isinstance(given[option], tuple) else (given[option] or "",)
        if any(not _is_text(value) for value in values):
            raise UsageError(f"--{_OPTIONS.get(option, option)}: not valid UTF-8")
    directory, architecture = given["workdir"], given["architecture"]
    if directory is not None and not directory.startswith("/"):
        raise UsageError(f"--workdir {directory}: must be an absolute path")
    if architecture is not None and not re.fullmatch(r"[a-z0-9_]{1,32}", architecture):
        raise UsageError(f"--architecture {architecture}: must be a name as amd64, arm64 or riscv64")
    return ConfigChanges(
        entrypoint=_words("--entrypoint", given["entrypoint"]),
        cmd=_words("--cmd", given["cmd"]),
        environment=dict(_variables(given["variables"])),
        directory=directory,
        user=given["user"],
        labels=dict(_pair("--label", text) for text in given["labels"]),
        architecture=architecture,
    )


_OPTIONS = {"variables": "env", "labels": "label"}


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _words(option: str, text: str | None) -> list[str] | None:
    """The words of a command; the empty text has none."""
    if text is None:
        return None
    if text.lstrip().startswith("["):
        words = parse_object(b'{"words": ' + text.encode() + b"}", f"{option} {text}")["words"]
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise UsageError(f"{option} {text}: must be a list of strings")
        return words
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageError(f"{option} {text}: {error}") from error


def _variables(texts: tuple[str, ...]) -> list[tuple[str, str]]:
    pairs = []
    for text in texts:
        name, equals, _ = text.partition("=")
        if name and not equals:
            if name not in os.environ:
                continue
            text = f"{name}={os.environ[name]}"
        pairs.append(_pair("--env", text))
    return pairs


def _pair(option: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UsageError(f"{option} {text}: must be NAME=VALUE")
    return name, value

"""Keys and passphrases of encrypted images: the options that name them, and reading them from files, descriptors,
commands, systemd's credentials and the terminal."""

from __future__ import annotations

import getpass
import os
import re
import stat
from collections.abc import Callable, Mapping
from typing import Any

import click

from mystfuse.cli.new_passphrase import ask_new_passphrase
from mystfuse.cli.options import FileOrText, option_group, parse_seconds, parse_size
from mystfuse.cli.text import warn
from mystfuse.crypto.kdf_limit import DEFAULT_MEMORY, KdfLimit
from mystfuse.crypto.secret import Secret, harden_process
from mystfuse.devices.source import Source
from mystfuse.errors import ImageReadError, UsageError
from mystfuse.formats.luks_magic import LUKS_MAGIC
from mystfuse.image.keys import Keys
from mystfuse.system.configured_file import open_configured_file

MAX_KEY_FILE = 64 << 10
"""Bytes."""
CREDENTIALS = ("mystfuse.key", "mystfuse.passphrase")
"""Names of systemd credentials (systemd.exec(5), LoadCredential=)."""


def parse_kdf_limit(value: str) -> KdfLimit:
    """Bounds for deriving keys, from ``SECONDS[:SIZE]``; 0 seconds means no limit of time."""
    seconds, colon, size = value.partition(":")
    try:
        # Stricter than float(): it reads 1e-400 as 0, which would be no limit.
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", seconds):
            raise click.BadParameter(seconds)
        return KdfLimit(parse_seconds(seconds), parse_size(size) if colon else DEFAULT_MEMORY)
    except click.BadParameter as error:
        raise click.BadParameter(f"{value!r} is not SECONDS or SECONDS:SIZE, as 60:1G") from error


key_options = option_group(
    click.option(
        "--key-file",
        type=FileOrText(),
        metavar="FILE|-",
        help="Master key of an encrypted image: binary, or hex digits.",
    ),
    click.option("--key-command", metavar="CMD", help="A command that prints its master key."),
    click.option("--passphrase-file", type=FileOrText(), metavar="FILE|-", help="Passphrase of an encrypted image."),
    click.option("--passphrase-command", metavar="CMD", help="A command that prints its passphrase."),
    click.option(
        "--kdf-limit",
        type=parse_kdf_limit,
        metavar="SECONDS[:SIZE]",
        help=f"What deriving keys for it may cost (default: {KdfLimit()}).",
    ),
)


def load_keys(
    given: Mapping[str, Any], source: Source, may_ask: bool, before_asking: Callable[[], None] = lambda: None
) -> Keys:
    """Read the keys that the options name. From then on the process is hardened.

    Args:
        given: ``key_options`` by the names of their parameters.
        may_ask: without options, use systemd's credentials; else ask for a passphrase, if ``source`` looks encrypted
            and there is a terminal.
        before_asking: called before anybody is asked for a passphrase; raises the error that makes it needless.

    Raises:
        UsageError: reading a file failed, it is empty, or is too large to be a key; or more than one is given.
        WrongKey: a command failed.
    """
    keys = _load_keys(given, source, may_ask, before_asking)
    keys.limit = given.get("kdf_limit") or keys.limit
    return keys


KEY_SOURCES = ("key_file", "key_command", "passphrase_file", "passphrase_command")
"""The options that name the key or passphrase of an image; one at most may be given."""


def _load_keys(given: Mapping[str, Any], source: Source, may_ask: bool, before_asking: Callable[[], None]) -> Keys:
    named = [name for name in KEY_SOURCES if given.get(name) is not None]
    if len(named) > 1:
        first, second = (f"--{name.replace('_', '-')}" for name in named[:2])
        raise UsageError(f"{first} and {second} exclude each other: one of them opens the image")
    value = given[named[0]] if named else ""
    if named == ["key_file"]:
        return Keys(master_key=read_secret(value, "--key-file"))
    if named == ["key_command"]:
        return Keys(master_key=run_for_secret(value, "--key-command"))
    if named == ["passphrase_file"]:
        if _is_typed(value):
            before_asking()
        return Keys(passphrase=read_passphrase(value, f"Passphrase for {source.name}: "))
    if named == ["passphrase_command"]:
        return Keys(passphrase=run_for_passphrase(value, "--passphrase-command"))
    if not may_ask:
        return Keys()
    directory = os.environ.get("CREDENTIALS_DIRECTORY", "")
    key_credential, passphrase_credential = (os.path.join(directory, name) for name in CREDENTIALS)
    # Not os.path.exists: a dangling link is no reason to go on without a key.
    if directory and os.path.lexists(key_credential):
        return Keys(master_key=read_secret(key_credential, "credential"), origin=key_credential)
    if directory and os.path.lexists(passphrase_credential):
        return Keys(passphrase=read_passphrase(passphrase_credential, ""), origin=passphrase_credential)
    if has_terminal() and _looks_encrypted(source):
        before_asking()
        return Keys(passphrase=ask_passphrase(f"Passphrase for {source.name}: "))
    return Keys()


def read_passphrase(path: str, prompt: str, repeat: bool = False, option: str = "--passphrase-file") -> Secret:
    """A passphrase from a file: all of it but one newline at its end. ``-`` asks on a terminal (for a new one, twice,
    if ``repeat``), and is stdin elsewhere."""
    if _is_typed(path):
        return ask_new_passphrase(prompt, ask_passphrase) if repeat else ask_passphrase(prompt)
    return _without_newline(read_secret(path, option), path)


def run_for_secret(command: str, option: str) -> Secret:
    """What a command prints; hardens the process first.

    Raises:
        UsageError, WrongKey: as ``read_secret_command``.
    """
    # Only here: it takes some milliseconds to import.
    from mystfuse.cli.secret_command import read_secret_command

    harden_process()
    return read_secret_command(command, option, MAX_KEY_FILE)


def run_for_passphrase(command: str, option: str) -> Secret:
    """The same, without one newline at its end."""
    return _without_newline(run_for_secret(command, option), option)


def _without_newline(contents: Secret, name: str) -> Secret:
    if contents.view[-1] != ord("\n"):
        return contents
    if contents.view[-2:-1].tolist() == [ord("\r")]:
        warn(f"{name}: the carriage return at its end is a part of the passphrase (a file of Windows? see dos2unix)")
    passphrase = Secret.copy_of(contents.view[:-1])
    contents.wipe()
    return passphrase


def read_secret(path: str, option: str, warns: bool = True) -> Secret:
    """The contents of a key file, ``-`` being stdin.

    Args:
        warns: of a file that others can read.

    Raises:
        UsageError: reading it failed, it is empty, or is too large.
    """
    harden_process()
    if path == "-" and has_terminal():
        raise UsageError(f"{option} -: stdin is a terminal, which would show the key: name a file")
    try:
        # Unbuffered: a buffer would be a copy.
        if path == "-":
            with open(0, "rb", buffering=0, closefd=False) as file:
                secret = Secret.read(file, MAX_KEY_FILE + 1)
        else:
            with open_configured_file(path, option) as file:
                if warns:
                    warn_if_others_read(path, os.fstat(file.fileno()).st_mode)
                secret = Secret.read(file, MAX_KEY_FILE + 1)
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror}") from error
    if len(secret) > MAX_KEY_FILE:
        raise UsageError(f"{option} {path}: too large to be a key or passphrase (over {MAX_KEY_FILE} bytes)")
    if not len(secret):
        raise UsageError(f"{option} {path}: empty")
    return secret


def warn_if_others_read(path: str, mode: int) -> None:
    """Warn of a key file that others can read, from its mode."""
    if stat.S_ISREG(mode) and mode & (stat.S_IRGRP | stat.S_IROTH):
        warn(f"{path} can be read by others (mode {stat.S_IMODE(mode):04o}): chmod 600 it")


def ask_passphrase(prompt: str) -> Secret:
    """Ask on the terminal, without echo.

    Raises:
        UsageError: nothing was entered.
    """
    harden_process()
    try:
        answer = getpass.getpass(prompt)
    except UnicodeDecodeError:
        raise UsageError("what was typed is not in the terminal's encoding: give it by --passphrase-file") from None
    except EOFError:
        answer = ""
    if not answer:
        raise UsageError("no passphrase was entered")
    return Secret.copy_of(os.fsencode(answer))


def _is_typed(path: str) -> bool:
    """Whether a passphrase file stands for the terminal."""
    return path == "-" and has_terminal()


def has_terminal() -> bool:
    """Whether stdin and stderr are a terminal."""
    return os.isatty(0) and os.isatty(2)


def _looks_encrypted(source: Source) -> bool:
    """Whether to ask for a passphrase; these bytes are unverified."""
    try:
        return source.read(0, len(LUKS_MAGIC)) == LUKS_MAGIC
    except ImageReadError:
        return False

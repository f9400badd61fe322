"""Keys and passphrases of encrypted images: the options that name them, and reading them from files, descriptors,
systemd's credentials and the terminal."""

from __future__ import annotations

import getpass
import os
import re
import stat
from collections.abc import Mapping
from typing import Any

import click

from mystfuse.cli.options import option_group, parse_seconds, parse_size
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
    click.option("--key-file", metavar="FILE|-", help="Master key of an encrypted image: binary, or hex digits."),
    click.option("--passphrase-file", metavar="FILE|-", help="Passphrase of an encrypted image."),
    click.option(
        "--kdf-limit",
        type=parse_kdf_limit,
        metavar="SECONDS[:SIZE]",
        help=f"What deriving keys for it may cost (default: {KdfLimit()}).",
    ),
)


def load_keys(given: Mapping[str, Any], source: Source, may_ask: bool) -> Keys:
    """Read the keys that the options name. From then on the process is hardened.

    Args:
        given: ``key_options`` by the names of their parameters.
        may_ask: without options, use systemd's credentials; else ask for a passphrase, if ``source`` looks encrypted
            and there is a terminal.

    Raises:
        UsageError: reading a file failed, it is empty, or is too large to be a key; or both are given.
    """
    keys = _load_keys(given.get("key_file"), given.get("passphrase_file"), source, may_ask)
    keys.limit = given.get("kdf_limit") or keys.limit
    return keys


def _load_keys(key_file: str | None, passphrase_file: str | None, source: Source, may_ask: bool) -> Keys:
    if key_file is not None and passphrase_file is not None:
        raise UsageError("--key-file and --passphrase-file exclude each other: one of them opens the image")
    if key_file is not None:
        return Keys(master_key=read_secret(key_file, "--key-file"))
    if passphrase_file is not None:
        return Keys(passphrase=read_passphrase(passphrase_file, f"Passphrase for {source.name}: "))
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
        return Keys(passphrase=ask_passphrase(f"Passphrase for {source.name}: "))
    return Keys()


def read_passphrase(path: str, prompt: str, repeat: bool = False) -> Secret:
    """A passphrase from a file: all of it but one newline at its end. ``-`` asks on a terminal (twice if ``repeat``),
    and is stdin elsewhere."""
    if path == "-" and has_terminal():
        return ask_passphrase(prompt, repeat)
    contents = read_secret(path, "--passphrase-file")
    if contents.view[-1] != ord("\n"):
        return contents
    passphrase = Secret.copy_of(contents.view[:-1])
    contents.wipe()
    return passphrase


def read_secret(path: str, option: str) -> Secret:
    """The contents of a key file, ``-`` being stdin; warns of one that others can read.

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
                status = os.fstat(file.fileno())
                if stat.S_ISREG(status.st_mode) and status.st_mode & (stat.S_IRGRP | stat.S_IROTH):
                    warn(f"{path} can be read by others (mode {stat.S_IMODE(status.st_mode):04o}): chmod 600 it")
                secret = Secret.read(file, MAX_KEY_FILE + 1)
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror}") from error
    if len(secret) > MAX_KEY_FILE:
        raise UsageError(f"{option} {path}: too large to be a key or passphrase (over {MAX_KEY_FILE} bytes)")
    if not len(secret):
        raise UsageError(f"{option} {path}: empty")
    return secret


def ask_passphrase(prompt: str, repeat: bool = False) -> Secret:
    """Ask on the terminal, without echo; twice if ``repeat``.

    Raises:
        UsageError: nothing was entered, or not the same twice.
    """
    harden_process()
    try:
        answers = [getpass.getpass(prompt)]
        if repeat:
            answers.append(getpass.getpass("The same again: "))
    except UnicodeDecodeError:
        raise UsageError("what was typed is not in the terminal's encoding: give it by --passphrase-file") from None
    if not answers[0]:
        raise UsageError("no passphrase was entered")
    if len(set(answers)) > 1:
        raise UsageError("the two passphrases differ: nothing is done")
    return Secret.copy_of(os.fsencode(answers[0]))


def has_terminal() -> bool:
    """Whether stdin and stderr are a terminal."""
    return os.isatty(0) and os.isatty(2)


def _looks_encrypted(source: Source) -> bool:
    """Whether to ask for a passphrase; these bytes are unverified."""
    try:
        return source.read(0, len(LUKS_MAGIC)) == LUKS_MAGIC
    except ImageReadError:
        return False

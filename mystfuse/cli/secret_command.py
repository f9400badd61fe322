"""A key or passphrase from the output of a command that the user names: of a password manager, a TPM, a key server."""

from __future__ import annotations

import os
import shlex
import signal

from mystfuse.crypto.secret import Secret
from mystfuse.errors import UsageError, WrongKey
from mystfuse.system.program_output import read_output

COMMAND_TIMEOUT = 120.0
"""Seconds that a command may take: somebody may have to type a PIN, or touch a token."""


def read_secret_command(command: str, option: str, limit: int, timeout: float = COMMAND_TIMEOUT) -> Secret:
    """Run a command once and return what it prints, at most ``limit`` bytes; the process should be hardened by then.

    It is split into words as by a shell, but no shell runs it (``sh -c '...'`` is one). It has our environment,
    standard input, terminal and stderr. Messages name the program alone: its arguments may be secret.

    Args:
        option: the option that named it, for messages.

    Raises:
        UsageError: no command, or one that cannot be run.
        WrongKey: it failed, printed nothing or too much, or took longer than ``timeout`` seconds.
        KeyboardInterrupt: it was interrupted. It and its children have been killed then, as after a time-out.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        # It names no part of the command.
        raise UsageError(f"{option}: {str(error)[:1].lower()}{str(error)[1:]} in the command") from error
    if not words or not words[0]:
        raise UsageError(f"{option}: an empty command (a variable that is not set?)")
    name = os.path.basename(words[0]) or words[0]
    buffer = Secret(limit + 1)
    try:
        try:
            status, size = read_output(words, buffer.view, timeout)
        except (OSError, ValueError) as error:
            if isinstance(error, TimeoutError):
                raise WrongKey(f"{option}: {name} has not ended within {timeout:g} s, and was killed") from error
            raise UsageError(f"{option}: {words[0]} cannot be run: {_why(error)}") from error
        if size > limit:
            raise WrongKey(f"{option}: {name} printed more than {limit} bytes, which is no key or passphrase")
        if status:
            raise WrongKey(f"{option}: {name} {_ended(status)}")
        if not size:
            raise WrongKey(f"{option}: {name} printed nothing")
        return Secret.copy_of(buffer.view[:size])
    finally:
        buffer.wipe()


def _why(error: OSError | ValueError) -> str:
    # ValueError: NUL in a word.
    return (error.strerror or str(error)) if isinstance(error, OSError) else "a null character in it"


def _ended(status: int) -> str:
    if status > 0:
        return f"exited with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"

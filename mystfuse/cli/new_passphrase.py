"""Asking for the passphrase of a new image: its rules come first, and a slip costs another try, not the command."""

from __future__ import annotations

import sys
from collections.abc import Callable

from mystfuse.cli.text import complain
from mystfuse.crypto.secret import Secret
from mystfuse.errors import ExitStatus, MystfuseError, UsageError
from mystfuse.image.keys import MIN_PASSPHRASE, check_passphrase

_TRIES = 3


def ask_new_passphrase(prompt: str, ask: Callable[[str], Secret]) -> Secret:
    """Ask on the terminal for a new passphrase, twice, until both are the same and keep the rules; three times at most.

    Args:
        ask: shows its argument and returns what is typed, without echo.

    Raises:
        UsageError: the last two differ, or nothing was typed.
        WrongKey: the last one is too short.
    """
    print(
        f"A new passphrase: {MIN_PASSPHRASE} characters or more, of any kind, blanks too. It is asked for twice, "
        "and not shown.",
        file=sys.stderr,
    )
    for left in reversed(range(_TRIES)):
        try:
            return _ask_twice(prompt, ask)
        except MystfuseError as error:
            if not left:
                raise error.at("nothing is done") from None
            complain(f"{error}: once more ({left} {'tries' if left > 1 else 'try'} left)", ExitStatus.KEY)
    raise AssertionError


def _ask_twice(prompt: str, ask: Callable[[str], Secret]) -> Secret:
    first = ask(prompt)
    # Before it is typed again for nothing.
    check_passphrase(first)
    second = ask("The same again: ")
    is_same = first.view == second.view
    second.wipe()
    if is_same:
        return first
    first.wipe()
    raise UsageError("the two passphrases differ")

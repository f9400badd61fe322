"""How commands end: by signals, and with which status when they fail."""

from __future__ import annotations

import signal
from collections.abc import Sequence

from mystfuse.errors import ExitStatus


def failure_status(arguments: Sequence[str]) -> ExitStatus:
    """The exit status of a command line that fails for no reason with a status of its own. That of ``diff`` is another:
    its 1 means that the trees differ."""
    return ExitStatus.USAGE if arguments and arguments[0] == "diff" else ExitStatus.FAILED


def end_like_interrupt() -> None:
    """Let SIGTERM and SIGHUP act like ^C, so that children end too and nothing is left behind. Not when the caller
    ignores them, as nohup(1) does."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)

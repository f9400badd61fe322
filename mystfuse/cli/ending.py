"""Signals that end a command which has something to clean up."""

from __future__ import annotations

import signal


def end_like_interrupt() -> None:
    """Let SIGTERM and SIGHUP act like ^C, so that children end too and nothing is left behind. Not when the caller
    ignores them, as nohup(1) does."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)

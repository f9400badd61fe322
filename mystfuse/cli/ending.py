"""Being ended by a signal, in commands that have something to clean up."""

from __future__ import annotations

import signal


def end_like_interrupt() -> None:
    """Let SIGTERM and SIGHUP do what ^C does, so that children are ended too and nothing is left behind. Not when the
    caller has them ignored, as nohup(1) does."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)

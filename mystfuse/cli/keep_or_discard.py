"""Asking on the terminal whether to keep what a program has changed, after it had the terminal for itself."""

from __future__ import annotations

import os
import signal
import termios
from contextlib import suppress

from mystfuse.errors import one_line

_MAX_ANSWER = 1024


class Question:
    """A question on our terminal. Make it while the terminal is ours, before the program gets it."""

    def __init__(self) -> None:
        self._terminal = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY)
        self._settings = termios.tcgetattr(self._terminal)
        self._is_ours = os.tcgetpgrp(self._terminal) == os.getpgrp()

    def take_back(self) -> None:
        """Take the terminal back from a program that had it for a group of its own, or has changed its settings; drop
        what was typed for that program."""
        if not self._is_ours:
            return
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        try:
            with suppress(OSError, termios.error):
                os.tcsetpgrp(self._terminal, os.getpgrp())
                termios.tcsetattr(self._terminal, termios.TCSAFLUSH, self._settings)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def ask(self, text: str) -> bool:
        """Whether the answer is yes. The end of input and ^C are a no."""
        try:
            os.write(self._terminal, f"{one_line(text)} [y/N] ".encode())
            answer = os.read(self._terminal, _MAX_ANSWER)
        except KeyboardInterrupt:
            answer = b""
        except OSError:
            # It has hung up.
            return False
        if not answer.endswith(b"\n"):
            with suppress(OSError):
                os.write(self._terminal, b"\n")
        return answer.strip().lower() in (b"y", b"yes")

    def close(self) -> None:
        os.close(self._terminal)

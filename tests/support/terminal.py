"""An interactive shell in a terminal (tmux), as a person uses it: keys in, the screen out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mystfuse.cli.completion import script
from tests.support.commands import SBIN, wait_until

_PATIENCE = 60.0
"""Seconds for the shell to show something: machines of tests are slow at times."""
_START = {
    "bash": """
        PS1='$ '
        . /usr/share/bash-completion/bash_completion
        bind 'set bell-style none'
        bind 'set enable-bracketed-paste off'
        bind 'set show-all-if-ambiguous on'
        bind 'set completion-query-items 0'
        bind 'set page-completions off'
    """,
    "zsh": """
        PROMPT='$ '
        setopt no_beep
        LISTMAX=1000
        fpath=(~/functions $fpath)
        autoload -Uz compinit
        compinit -u -D
    """,
    "fish": """
        function fish_prompt; echo '$ '; end
        set -g fish_greeting
        set -g fish_autosuggestion_enabled 0
    """,
}
FILES = {
    "bash": (".bashrc", ".local/share/bash-completion/completions/mystfuse", ("bash", "--noprofile", "-i")),
    "zsh": (".zshrc", "functions/_mystfuse", ("zsh", "-i")),
    "fish": (".config/fish/config.fish", ".config/fish/completions/mystfuse.fish", ("fish", "-i")),
}
"""Of each shell: its start-up file, the script for completion, and its command."""


class Terminal:
    """A shell on a screen of 180 columns and 50 rows."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._cleared = 0

    def tmux(self, *words: str) -> str:
        result = subprocess.run(
            ["tmux", "-u", "-S", str(self._socket), "-f", "/dev/null", *words],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert result.returncode == 0, f"tmux {words}: {result.stderr}"
        return result.stdout

    def type(self, text: str) -> None:
        """Type a text, as it is."""
        self.tmux("send-keys", "-l", "--", text)

    def press(self, *keys: str) -> None:
        """Press keys by tmux's names for them."""
        self.tmux("send-keys", *keys)

    @property
    def screen(self) -> str:
        return self.tmux("capture-pane", "-p", "-J").rstrip()

    def wait_for(self, what: str, condition: Callable[[str], bool]) -> str:
        """The screen, when it fulfills a condition; the test fails if it does not in time."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            screen = self.screen
            if condition(screen):
                return screen
            assert time.monotonic() < deadline, f"{what}; the screen is:\n{screen}"
            time.sleep(0.05)

    def clear(self) -> None:
        """Drop what has been typed, and have a screen with a number and a prompt."""
        # Not ^C: the terminal would drop what is typed behind it.
        self.press("C-u")
        self.wait_for("no empty line", lambda screen: screen.rstrip().endswith("$"))
        # A screen like the last one would not tell whether the shell is done.
        self._cleared += 1
        self.type(f"clear; echo {self._cleared}")
        self.press("Enter")
        self.wait_for("no empty screen", lambda screen: screen == f"{self._cleared}\n$")

    def complete(self, typed: str) -> str:
        """The line after Tab, where there is no choice, with the blank at its end if there is one."""
        self.clear()
        self.type(typed)
        self.press("Tab")
        self.type("#")
        screen = self.wait_for("no completion", lambda screen: screen.rstrip().endswith("#") and typed[:8] in screen)
        return _last_line(screen)

    def choices(self, typed: str, *expected: str) -> str:
        """The screen with the choices after Tab, when all that are expected are there."""
        self.clear()
        self.type(typed)
        self.press("Tab")

        def all_there(screen: str) -> bool:
            shown = "".join(screen.split("\n", 2)[2:])
            return all(re.search(rf"(^|\s){re.escape(word)}(\s|$)", shown, re.MULTILINE) for word in expected)

        return self.wait_for(f"not all of {expected} are offered", all_there)


def _last_line(screen: str) -> str:
    lines = [line for line in screen.splitlines() if line.startswith("$ ")]
    assert lines, screen
    return lines[-1].removeprefix("$ ").removesuffix("#")


@contextmanager
def terminal(shell: str, home: Path, directory: Path) -> Iterator[Terminal]:
    """A shell in ``directory`` which completes ``mystfuse``, with a home directory of its own.

    Args:
        home: an empty directory.
    """
    start, target, command = FILES[shell]
    for name, text in ((start, _START[shell]), (target, script(shell))):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
    (home / "bin").mkdir()
    program = home / "bin/mystfuse"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m mystfuse "$@"\n')
    program.chmod(0o755)
    environment = {
        "HOME": str(home), "PATH": f"{home}/bin:{SBIN}", "LANG": "C.UTF-8", "TERM": "screen", "SHELL": "/bin/sh",
        **{name: os.environ[name] for name in ("PYTHONPATH", "MYSTFUSE_PURE_PYTHON") if name in os.environ},
    }  # fmt: skip
    words = ["env", "-i", *(f"{name}={value}" for name, value in environment.items()), *command]
    # A socket's path must be short.
    with tempfile.TemporaryDirectory() as place:
        shown = Terminal(Path(place) / "tmux")
        shown.tmux("new-session", "-d", "-x", "180", "-y", "50", "-c", str(directory), *words)
        shell_process = Path("/proc") / shown.tmux("display-message", "-p", "#{pane_pid}").strip()
        try:
            shown.wait_for("no prompt", lambda screen: screen.endswith("$"))
            yield shown
        finally:
            shown.tmux("kill-server")
            wait_until(lambda: not shell_process.exists())

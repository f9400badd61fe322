"""``mystfuse exec --ask``: what changed, a question on the terminal, and the answer."""

from __future__ import annotations

import os
import pty
import re
import select
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.commands import assert_one_line, mystfuse


class Asked:
    """``mystfuse exec --ask`` on a terminal of its own."""

    def __init__(self, *arguments: str | Path) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execv(sys.executable, [sys.executable, "-m", "mystfuse", "exec", "--ask", *map(str, arguments)])
        self.screen = ""

    def wait_for(self, pattern: str) -> None:
        deadline = time.monotonic() + 60
        while not re.search(pattern, self.screen):
            assert time.monotonic() < deadline, self.screen
            if select.select([self.fd], [], [], 1)[0]:
                self.screen += os.read(self.fd, 4096).decode()

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def end(self) -> int:
        """The exit status, when it has ended."""
        with suppress(OSError):
            while data := os.read(self.fd, 4096):
                self.screen += data.decode()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def asked(programs: Path, tmp_path: Path) -> Iterator[Asked]:
    script = "echo new > /work/new; rm /etc/marker; stty raw -echo; exit 3"
    asked = Asked("--commit", tmp_path / "new.img", "--layer", tmp_path / "layer", programs, "sh", "-c", script)
    asked.wait_for(r"\[y/N\] ")
    yield asked
    os.close(asked.fd)


def test_the_question_says_what_it_is_about(asked: Asked, tmp_path: Path) -> None:
    asked.type("y\n")
    assert asked.end() == 3
    assert re.search(r"added +1 path +4 bytes\r\n", asked.screen), asked.screen
    question = f"the program ended with status 3; keep this in {tmp_path}/layer and {tmp_path}/new.img? [y/N] y\r\n"
    assert question in asked.screen
    assert sorted(os.listdir(tmp_path)) == ["layer", "new.img"]


@pytest.mark.parametrize("answer", ["n\n", "\n", "\x03", "\x04", "perhaps\n"], ids=["no", "empty", "^C", "^D", "other"])
def test_all_but_yes_is_no(asked: Asked, answer: str, tmp_path: Path) -> None:
    asked.type(answer)
    assert asked.end() == 3 and "mystfuse: the changes are discarded\r\n" in asked.screen
    assert os.listdir(tmp_path) == []


def test_nothing_is_asked_about_nothing(programs: Path, tmp_path: Path) -> None:
    asked = Asked("--layer", tmp_path / "layer", programs, "true")
    assert asked.end() == 0 and "has changed nothing" in asked.screen
    os.close(asked.fd)
    assert os.listdir(tmp_path) == []


def test_it_needs_a_terminal_and_something_to_make(programs: Path, tmp_path: Path) -> None:
    assert_one_line(mystfuse("exec", "--ask", "--layer", tmp_path / "x", programs, "true"), 2, "terminal")
    assert_one_line(mystfuse("exec", "--ask", programs, "true"), 2, "--ask goes with --commit")

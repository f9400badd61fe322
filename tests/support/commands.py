"""Running commands: ours and other tools."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

USER, GROUP = pwd.getpwnam("nobody")[2:4]
"""An ordinary user; fusermount3 requires one with a name."""
SBIN = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
said: list[str] = []
"""The stderr of the commands of the running test."""


def run(*command: str | os.PathLike[str], check: bool = True, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Run a tool and return its output; if ``check`` and it failed, the test fails with that output."""
    environment = {**os.environ, "PATH": SBIN, **kwargs.pop("env", {})}
    result = subprocess.run(
        [os.fspath(part) for part in command],
        env=environment,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=kwargs.pop("timeout", 120),
        check=False,
        **kwargs,
    )
    said.append(result.stderr)
    if check and result.returncode:
        pytest.fail(f"{' '.join(map(str, command))} exited {result.returncode}:\n{result.stdout}{result.stderr}")
    return result


def mystfuse(*arguments: str | os.PathLike[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Run the ``mystfuse`` command; does not check the exit status."""
    return run(sys.executable, "-m", "mystfuse", *arguments, check=False, **kwargs)


def assert_one_line(result: subprocess.CompletedProcess[str], status: int, *parts: str) -> None:
    """Assert that it ended with this status and one line on stderr, with these parts."""
    assert result.returncode == status, result.stderr
    assert result.stderr.startswith("mystfuse: ") and result.stderr.count("\n") == 1, result.stderr
    for part in parts:
        assert part in result.stderr


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Wait until a condition holds; fails the test when it does not."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)

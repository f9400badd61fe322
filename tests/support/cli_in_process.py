"""The command line within the test's own process: the same code as the command, without starting Python each time."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import subprocess
from unittest import mock

from mystfuse.cli.main import run


def in_process(*arguments: str | os.PathLike[str]) -> subprocess.CompletedProcess[str]:
    """Output and exit status of ``mystfuse ARGUMENTS``. Not for ``mount``, which forks.

    The test's process keeps its limits: those that protect a command's keys cannot be raised again.
    """
    given = [os.fspath(argument) for argument in arguments]
    output, errors = io.StringIO(), io.StringIO()
    logger = logging.getLogger("mystfuse")
    before = logger.handlers[:], logger.propagate, logger.level
    try:
        with (
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(errors),
            mock.patch("mystfuse.cli.key_options.harden_process"),
            mock.patch("mystfuse.cli.signing_options.harden_process"),
        ):
            status = run(given)
    finally:
        logger.handlers[:], logger.propagate = before[:2]
        logger.setLevel(before[2])
    return subprocess.CompletedProcess(given, status, output.getvalue(), errors.getvalue())

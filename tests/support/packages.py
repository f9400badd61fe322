"""Packages that run, and packages that are refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.cli_in_process import in_process
from tests.support.commands import mystfuse

FAILED, USAGE, NOT_TRUSTED, KEY, FORMAT = 1, 2, 3, 5, 6
APPLETS = (
    "sh", "cat", "dd", "echo", "env", "false", "head", "hostname", "id", "ifconfig", "ls", "ps", "pwd", "rm", "sleep",
    "stat", "stty", "tail", "touch", "true", "wc",
)  # fmt: skip
"""busybox's path in the images with programs."""
SHELL = {"ApplicationPath": "/bin/sh"}
COMMAND = [sys.executable, "-m", "mystfuse"]

Keys = tuple[Path, Path]


def root_hash(image: Path) -> str:
    return in_process("fssig", "--roothash", image).stdout.strip()


def execute(
    package: Path, image: Path | None, *arguments: str | Path, **kwargs: Any
) -> subprocess.CompletedProcess[str]:
    """Run a package without pinned signers; returns stderr without the warning about that."""
    rootfs = ["--rootfs", image] if image is not None else []
    result = mystfuse("run", package, *rootfs, *arguments, **kwargs)
    result.stderr = "".join(
        line for line in result.stderr.splitlines(keepends=True) if "vouched for by nobody but itself" not in line
    )
    return result


def output(package: Path, image: Path | None, *arguments: str | Path, **kwargs: Any) -> str:
    result = execute(package, image, *arguments, **kwargs)
    assert (result.returncode, result.stderr) == (0, ""), result
    return result.stdout

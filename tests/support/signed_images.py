"""Signed images with other fields, and mounts that are accepted or refused."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from tests.support.cli_in_process import in_process
from tests.support.commands import mystfuse
from tests.support.mounts import clear_mount

NOT_TRUSTED, INTEGRITY, FORMAT, MOUNT = 3, 4, 6, 7

MakeKeys = Callable[..., tuple[Path, Path]]


def root_hash(image: Path) -> str:
    return in_process("fssig", "--roothash", image).stdout.strip()


def assert_accepted(image: Path, mountpoint: Path, *options: str | Path, because: str) -> None:
    """verify and mount both accept the image, for this reason, and the mount works; neither warns."""
    result = in_process("verify", *options, image)
    assert (result.returncode, result.stderr) == (0, ""), result
    assert because in result.stdout
    try:
        result = mystfuse("mount", *options, image, mountpoint)
        assert (result.returncode, result.stderr) == (0, ""), result
        assert because in result.stdout
        assert (mountpoint / "hello.txt").read_text() == "hello\n"
        assert because in mystfuse("status", mountpoint).stdout
    finally:
        clear_mount(mountpoint)


def assert_refused(image: Path, mountpoint: Path, *options: str | Path, status: int, because: str = "") -> None:
    """verify and mount both refuse with this status and one line, and nothing is mounted."""
    for result in (in_process("verify", *options, image), mystfuse("mount", *options, image, mountpoint)):
        try:
            assert result.returncode == status, result
            assert result.stdout == ""
            assert re.fullmatch(r"mystfuse: [^\n]+\n", result.stderr), result.stderr
            assert because in result.stderr
            assert not os.path.ismount(mountpoint)
        finally:
            clear_mount(mountpoint)

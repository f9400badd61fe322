"""Runs of ``operators`` on a mount, judged."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.commands import run, said
from tests.support.consistency.checker import Checker
from tests.support.consistency.records import SOURCES, read_logs


def compile_program(target: Path, *sources: Path) -> Path:
    """Compile a C program of the tests; skips the test where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    run(compiler, "-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", "-pthread", "-o", target, *sources)
    return target


def compile_operators(directory: Path) -> Path:
    """Compile ``operators`` into the directory."""
    return compile_program(directory / "operators", *sorted(SOURCES.glob("*.c")))


@dataclass(frozen=True)
class Load:
    """What the processes do.

    Attributes:
        calls: in total.
        ratio: readers' calls for each one of a writer.
        asking: one reader's call in so many goes past the kernel's caches.
        drops: what is dropped meanwhile; ``operators.c`` says what the letters mean.
        patience: seconds.
        wrap: a command that runs the program, and its first arguments.
    """

    calls: int
    ratio: int = 20
    asking: int = 16
    drops: str = "pr"
    patience: int = 300
    wrap: tuple[str, ...] = ()


def set_up(program: Path, directory: Path, seed: int) -> None:
    """Make the files of the directory ``seed`` of ``directory``, for ``judge`` to find."""
    with tempfile.TemporaryDirectory(prefix="mystfuse-test-logs-") as logs:
        run(program, directory, logs, "0", "1", "1", str(seed))


def judge(
    program: Path,
    directory: Path,
    seed: int,
    load: Load,
    forgiven: frozenset[int] = frozenset(),
    keep: Path | None = None,
) -> Checker:
    """Run the operators in the directory ``seed`` of ``directory``, a mountpoint, and judge what they saw.

    Args:
        forgiven: errnos with which a writer's call may fail.
        keep: a directory that gets the logs of a run in which something was wrong.
    """
    with tempfile.TemporaryDirectory(prefix="mystfuse-test-logs-") as logs:
        words = [load.calls, load.ratio, load.asking, seed, *([load.drops] if load.drops else [])]
        command = [*load.wrap, str(program), str(directory), logs, *map(str, words)]
        started = time.monotonic()
        result = subprocess.run(command, capture_output=True, text=True, timeout=load.patience, check=False)
        took = time.monotonic() - started
        said.append(result.stderr)
        assert result.returncode == 0, result.stderr
        checker = Checker(forgiven)
        checker.check(read_logs(Path(logs)))
        print(f"seed {seed}: {checker.total} calls, {checker.total / took:.0f} a second; {dict(checker.counts)}")
        if checker.descriptions and keep:
            shutil.copytree(logs, tempfile.mkdtemp(prefix=f"{seed}-", dir=keep), dirs_exist_ok=True)
    return checker


def assert_consistent(checker: Checker) -> None:
    """Fail the test if a result was wrong."""
    assert not checker.descriptions, "\n".join(
        [f"{checker.counts['violations']} wrong, {checker.counts['out of order']} out of order", *checker.descriptions]
    )

"""A command that is killed at any moment leaves either the old state or the new one. A few rounds of each case;
``kill_matrix.py`` runs any number."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import mystfuse
from tests.support.kill_cases import CASES
from tests.support.kill_matrix import Matrix, moments
from tests.support.kill_place import HIDDEN, Place

ROUNDS = int(os.environ.get("MYSTFUSE_KILL_ROUNDS", "2"))
SLOW = {"mkext2", "commit", "mount-foreground", "run"} if ROUNDS < 10 else set()
"""Similar to other commands."""
SEED = os.environ.get("MYSTFUSE_KILL_SEED", "1")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("kills").resolve())


@pytest.fixture
def matrix(request: pytest.FixtureRequest, place: Place) -> Iterator[Matrix]:
    case = CASES[request.param](place)
    case.set_up()
    try:
        yield Matrix(case)
    finally:
        case.tear_down()


@pytest.mark.parametrize("matrix", sorted(CASES.keys() - SLOW), indirect=True)
def test_the_old_state_or_the_new_one(matrix: Matrix) -> None:
    generator = random.Random(f"{SEED} {matrix.case.name}")
    duration = matrix.measure()
    for number, rounds in (
        (signal.SIGKILL, ROUNDS),
        (generator.choice([signal.SIGTERM, signal.SIGINT, signal.SIGHUP]), ROUNDS - 1),
    ):
        for moment in moments(matrix.case, generator, duration, rounds, number):
            matrix.round(moment)
    assert matrix.outcomes.total() == 2 * ROUNDS - 1


def test_killed_before_it_is_renamed(tmp_path: Path, small_tree: Path) -> None:
    """The file that is left is complete, and its name says what it is."""
    target = tmp_path / "image"
    target.write_bytes(b"old")
    code = (
        "import os, sys; os.replace = lambda *names, **places: os.kill(os.getpid(), 9);"
        "from mystfuse.cli.main import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, "mkext2", "--force", small_tree, target]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert target.read_bytes() == b"old"
    (left,) = (path for path in tmp_path.iterdir() if path != target)
    assert HIDDEN.fullmatch(left.name)
    assert mystfuse("verify", left).returncode == 0


def test_the_parent_of_a_daemon_is_ended_as_it_forks(tmp_path: Path, small_image: Path, mountpoint: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        code = (
            "import os, sys\nreal, first = os.fork, os.getpid()\n"
            "def fork():\n    child = real()\n    if child and os.getpid() == first:\n"
            f"        open({str(tmp_path / 'pid')!r}, 'w').write(str(child))\n        os.kill(os.getpid(), {number})\n"
            "    return child\nos.fork = fork\nfrom mystfuse.cli.main import main\nmain(sys.argv[1:])"
        )
        command = [sys.executable, "-c", code, "mount", small_image, mountpoint]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (result.returncode, result.stderr.splitlines()[-1]) == (1, "mystfuse: interrupted")
        assert not Path(f"/proc/{(tmp_path / 'pid').read_text()}").exists()
        assert not list(mountpoint.iterdir())

"""Scripts, tests and pytest never remove anything through a mount."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import _pytest.pathlib
import pytest
from removal import mounts_in, remove_tree, temporary_directory

from tests.support.commands import run

PREPARE = Path(__file__).parents[2] / "scripts/prepare.sh"


def by_the_shell(directory: Path) -> None:
    subprocess.run(["bash", "-c", f'. {PREPARE}; remove_tree "$1"', "bash", directory], check=True)


REMOVERS = {"python": remove_tree, "shell": by_the_shell, "pytest": _pytest.pathlib.rm_rf}


@pytest.fixture(params=["mount", "with blank\\ and\ttab", "with\rother\x85ends\u2028of lines"])
def tree(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory below which other files are mounted."""
    with temporary_directory("mystfuse-test-") as parent:
        somebodys, target = parent / "somebodys", parent / "tree" / request.param
        somebodys.mkdir()
        (somebodys / "file").touch()
        target.mkdir(parents=True)
        (parent / "tree" / "removable").touch()
        run("mount", "--bind", somebodys, target)
        try:
            yield parent / "tree"
        finally:
            run("umount", target)


@pytest.mark.parametrize("remove", REMOVERS.values(), ids=REMOVERS)
def test_nothing_is_removed_where_something_is_mounted(remove: object, tree: Path) -> None:
    assert callable(remove)
    (target,) = (path for path in tree.iterdir() if path.is_dir())
    for directory in tree, target:
        assert mounts_in(directory) == [str(target)]
        with suppress(OSError, subprocess.CalledProcessError):
            remove(directory)
        assert (target / "file").exists()
        assert (tree / "removable").exists()


@pytest.mark.parametrize("remove", REMOVERS.values(), ids=REMOVERS)
def test_what_has_no_mount_is_removed(remove: object, tmp_path: Path) -> None:
    assert callable(remove)
    (tmp_path / "tree/sub").mkdir(parents=True)
    (tmp_path / "tree/sub/file").touch()
    (tmp_path / "tree-beside").mkdir()
    remove(tmp_path / "tree")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "tree-beside"]

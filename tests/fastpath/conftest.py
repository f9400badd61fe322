"""Mounts with the fast path and without, and the programs that load them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import mystfuse
from tests.support.consistency.runs import compile_operators


@pytest.fixture(scope="session")
def operators(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that changes files and looks at them."""
    return compile_operators(tmp_path_factory.mktemp("operators"))


@pytest.fixture(scope="session")
def roomy_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unsigned image of an almost empty tree, with 64 MiB of free space. Tests must not write to it."""
    directory = tmp_path_factory.mktemp("roomy")
    (directory / "tree").mkdir()
    (directory / "tree/file").write_bytes(bytes(range(256)) * 400)
    result = mystfuse("mkext2", "--free=64M", directory / "tree", directory / "image")
    assert result.returncode == 0, result.stderr
    return directory / "image"


@pytest.fixture(scope="session")
def knows_nofastpath(roomy_image: Path, tmp_path_factory: pytest.TempPathFactory) -> bool:
    """Whether there is a fast path to switch off."""
    result = mystfuse("mount", "-o", "nofastpath", "--insecure", roomy_image, tmp_path_factory.mktemp("no") / "missing")
    return "no such mount option" not in result.stderr


@pytest.fixture(params=["fastpath", "nofastpath"])
def path_options(request: pytest.FixtureRequest, knows_nofastpath: bool) -> tuple[str, ...]:
    """Mount options: with the fast path, and once more without."""
    if request.param == "fastpath":
        return ()
    if not knows_nofastpath:
        pytest.skip("there is no fast path to switch off")
    return ("-o", "nofastpath")


@pytest.fixture
def slow_path_options(knows_nofastpath: bool) -> tuple[str, ...]:
    """Mount options without the fast path, if there is one."""
    return ("-o", "nofastpath") if knows_nofastpath else ()

"""Installing: users install exactly the tested packages, and commands that need no mount install without a compiler."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.commands import assert_one_line, run

PROJECT = Path(__file__).parents[2]
LOCKS = [*sorted((PROJECT / "scripts/requirements").glob("*.txt")), PROJECT / "scripts/releasing/tools.txt"]


def make_wheel(directory: Path) -> Path:
    """A package for pip to install."""
    wheel = directory / "harmless-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("harmless.py", "")
        file.writestr("harmless-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: harmless\nVersion: 1.0\n")
        file.writestr("harmless-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr("harmless-1.0.dist-info/RECORD", "")
    return wheel


@pytest.mark.parametrize("digest", ["right", "wrong", "none"])
def test_a_package_without_the_digest_of_the_lock_is_not_installed(digest: str, tmp_path: Path) -> None:
    digests = {
        "right": f" --hash=sha256:{hashlib.sha256(make_wheel(tmp_path).read_bytes()).hexdigest()}",
        "wrong": f" --hash=sha256:{hashlib.sha256(b'').hexdigest()}",
        "none": "",
    }
    locks = tmp_path / "project/scripts/requirements"
    locks.mkdir(parents=True)
    (locks / "build.txt").write_text("harmless==1.0" + digests[digest] + "\n")
    shutil.copy(PROJECT / "scripts/prepare.sh", locks.parent)
    result = subprocess.run(
        ["bash", "-c", f'. {locks.parent}/prepare.sh; install_locked "{sys.prefix}" build harmless'],
        env={"PATH": "/usr/bin:/bin", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_DRY_RUN": "1"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (result.returncode == 0) == (digest == "right"), result.stderr
    assert ("HASH" in result.stderr.upper()) == (digest != "right"), result.stderr


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_each_requirement_of_a_lock_has_one_version_and_digests(lock: Path) -> None:
    requirements = re.split(r"\n(?=\S)", re.sub(r"^ *#.*\n", "", lock.read_text(), flags=re.MULTILINE).strip())
    assert len(requirements) > 5
    for requirement in requirements:
        assert re.match(r"[\w.-]+==[\w.]+ ", requirement), requirement
        assert "--hash=sha256:" in requirement, requirement


@pytest.fixture(scope="module")
def without_pyfuse3(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A command prefix that runs ``mystfuse`` without pyfuse3, and with everything else."""
    site = tmp_path_factory.mktemp("site-packages")
    installed = Path(next(path for path in sys.path if path.endswith("site-packages")))
    for path in installed.iterdir():
        if "pyfuse3" not in path.name:
            (site / path.name).symlink_to(path)
    (site / "mystfuse").symlink_to(PROJECT / "mystfuse")
    assert not list(site.glob("*pyfuse3*"))
    return ["env", f"PYTHONPATH={site}", sys.executable, "-S", "-m", "mystfuse"]


def test_what_needs_no_mount_works_without_pyfuse3(without_pyfuse3: list[str], tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_text("hello")
    image = tmp_path / "image"
    run(*without_pyfuse3, "mkext2", tmp_path / "tree", image)
    run(*without_pyfuse3, "verify", image)
    assert run(*without_pyfuse3, "cat", image, "/file").stdout == "hello"
    run(*without_pyfuse3, "extract", image, "/", tmp_path / "copy")
    assert (tmp_path / "copy/file").read_text() == "hello"


@pytest.mark.parametrize(
    "arguments",
    ["image mnt", "exec image /file", "mkext2 --encrypt key tree new.img"],
    ids=lambda text: text.split()[0],
)
def test_what_needs_a_mount_says_what_to_install(arguments: str, without_pyfuse3: list[str], tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").touch(0o755)
    (tmp_path / "mnt").mkdir()
    (tmp_path / "key").write_bytes(bytes(range(64)))
    (tmp_path / "key").chmod(0o600)
    run(*without_pyfuse3, "mkext2", tmp_path / "tree", tmp_path / "image")
    before = sorted(tmp_path.iterdir())
    result = run(*without_pyfuse3, *arguments.split(), cwd=tmp_path, check=False, stdin=subprocess.DEVNULL)
    assert_one_line(result, 7, "pyfuse3, which is not installed", "apt install", "pip install")
    assert sorted(tmp_path.iterdir()) == before

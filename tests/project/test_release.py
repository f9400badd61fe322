"""scripts/release: what it makes for pip is complete, and the same bytes wherever it is made."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.support.commands import run

PROJECT = Path(__file__).parents[2]
DATE = 1_790_000_000
"""SOURCE_DATE_EPOCH."""
PARTS = ("bin", "docs", "man", "mystfuse", "scripts", "systemd")
"""The directories that a source archive has."""
PLACES = {
    "bash": "share/bash-completion/completions/mystfuse",
    "zsh": "share/zsh/site-functions/_mystfuse",
    "fish": "share/fish/vendor_completions.d/mystfuse.fish",
}


def start(directory: Path, umask: int, zone: str) -> subprocess.Popen[str]:
    """Begin to make the sdist, and the wheel from it, of a copy of the project in this directory."""
    source = directory / "source"
    for part in PARTS:
        leftovers = shutil.ignore_patterns("__pycache__", "*.so", "_kernel.c")
        shutil.copytree(PROJECT / part, source / part, symlinks=True, ignore=leftovers)
    for file in PROJECT.iterdir():
        if file.is_file() and not file.name.startswith("."):
            shutil.copy2(file, source)
    archives = f"'{sys.executable}' -m releasing.archives"
    return subprocess.Popen(
        ["bash", "-ec", f"{archives} sdist source out; {archives} wheel out/*.tar.gz out"],
        cwd=directory,
        env={
            **os.environ,
            "PYTHONPATH": str(PROJECT / "scripts"),
            "SOURCE_DATE_EPOCH": str(DATE),
            "TZ": zone,
            "PIP_NO_INDEX": "1",
        },
        umask=umask,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The directories of the same two archives, made in two places by two users' settings."""
    top = tmp_path_factory.mktemp("release")
    directories = [top / "one", top / "a-longer-name/two"]
    started = [
        start(directory, umask, zone)
        for directory, umask, zone in zip(directories, (0o022, 0o077), ("UTC0", "XXX-7"), strict=True)
    ]
    for process in started:
        said = process.communicate(timeout=300)[0]
        assert process.returncode == 0, said
    return [directory / "out" for directory in directories]


@pytest.fixture(scope="module")
def sdist(two: list[Path]) -> Path:
    return next(two[0].glob("*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(two: list[Path]) -> Path:
    return next(two[0].glob("*.whl"))


def test_the_same_source_gives_the_same_bytes(two: list[Path]) -> None:
    one, other = ({file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in out.iterdir()} for out in two)
    assert one == other
    assert len(one) == 2


def test_the_source_archive_has_what_git_has_but_for_the_tests(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    top = sdist.name.removesuffix(".tar.gz")
    names = {member.name.removeprefix(f"{top}/") for member in members if member.isfile()}
    known = run(
        "git", "-c", "safe.directory=*", "-C", PROJECT, "ls-files", "-co", "--exclude-standard"
    ).stdout.splitlines()
    wanted = {name for name in known if (PROJECT / name).is_file() and not name.startswith(("tests/", "."))}
    assert wanted <= names
    made = {name for name in names - wanted if not name.startswith("mystfuse.egg-info/")}
    assert made <= {"PKG-INFO", "setup.cfg"}, made
    assert {(member.mtime, member.uid, member.gid, member.uname) for member in members} == {(DATE, 0, 0, "")}
    assert {member.mode for member in members} <= {0o644, 0o755}
    assert next(member for member in members if member.name.endswith("scripts/demo")).mode == 0o755


def test_the_wheel_is_for_every_python_from_3_11_on(wheel: Path) -> None:
    assert wheel.name.split("-")[2:4] == ["cp311", "abi3"]
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (code,) = (name for name in names if name.endswith(".so"))
        assert code.endswith("/_kernel.abi3.so")
        assert not [name for name in names if name.endswith((".c", ".h"))]
        (notes,) = (name for name in names if name.endswith("/WHEEL"))
        assert "\nTag: cp311-abi3-linux_" in archive.read(notes).decode()


def test_pip_installs_manual_pages_completions_and_units(wheel: Path, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--ignore-installed"]
    run(*pip, "--prefix", tmp_path, "--no-compile", wheel)
    for page in sorted((PROJECT / "man").iterdir()):
        assert (tmp_path / f"share/man/man{page.suffix[1:]}" / page.name).read_bytes() == page.read_bytes()
    for shell, place in PLACES.items():
        said = run(sys.executable, "-m", "mystfuse", env={"_MYSTFUSE_COMPLETE": f"{shell}_source"}).stdout
        # Started as a module, it calls itself so.
        assert (tmp_path / place).read_text() == said.replace("python -m mystfuse", "mystfuse")
        assert "mystfuse" in said
    run("bash", "-n", tmp_path / PLACES["bash"])
    assert (tmp_path / "share/doc/mystfuse/systemd/mystfuse@.service").is_file()
    assert os.access(tmp_path / "bin/mystfuse", os.X_OK)


def test_a_release_lists_its_wheels_by_digest_and_pip_takes_them(tmp_path: Path) -> None:
    """pip itself decides which files it installs: the wheel of pyfuse3, not the sdist that an index has."""
    release, index = tmp_path / "release", tmp_path / "simple/pyfuse3"
    release.mkdir()
    index.mkdir(parents=True)

    def put(name: str, version: str, tag: str = "py3-none-any", data: str = "") -> str:
        file = release / f"{name}-{version}-{tag}.whl"
        notes = f"{name}-{version}.dist-info"
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(f"{name}.py", data)
            archive.writestr(f"{notes}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
            archive.writestr(f"{notes}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
            archive.writestr(f"{notes}/RECORD", "")
        return hashlib.sha256(file.read_bytes()).hexdigest()

    tag = "cp3{0}-cp3{0}-manylinux_2_17_" + platform.machine()
    own = tag.format(sys.version_info.minor)
    put("mystfuse", "0.1.0")
    put("pyfuse3", "3.5.0", own)
    put("pyfuse3", "3.5.0", tag.format(99))
    other = put("other", "1.0")
    (index / "pyfuse3-3.5.0.tar.gz").write_bytes(b"not to be looked at")
    upstream = hashlib.sha256(b"not to be looked at").hexdigest()
    (index / "index.html").write_text(f'<a href="pyfuse3-3.5.0.tar.gz#sha256={upstream}">pyfuse3-3.5.0.tar.gz</a>')
    lock = tmp_path / "run.txt"
    lock.write_text(
        f"other==1.0 \\\n    --hash=sha256:{other}\n"
        f"pyfuse3==3.5.0 \\\n    --hash=sha256:{upstream}\n    # via mystfuse\n"
    )
    make = [sys.executable, "-m", "releasing.archives", "requirements", lock, release]
    run(*make, env={"PYTHONPATH": str(PROJECT / "scripts")})
    install = [sys.executable, "-m", "pip", "install", "--index-url", index.parent.as_uri(), "--find-links", release]
    into = ["--target", tmp_path / "there", "-r", release / "requirements.txt"]
    run(*install, *into)
    assert {path.name for path in (tmp_path / "there").glob("*.py")} == {"mystfuse.py", "pyfuse3.py", "other.py"}

    put("pyfuse3", "3.5.0", own, "changed")
    result = run(*install, "--upgrade", *into, check=False)
    assert result.returncode and "HASH" in result.stderr.upper(), result.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--output"], 1, "release: --output: where?\n"),
        (["--also"], 1, "release: --also: which suite?\n"),
        (["--also", "../etc"], 1, "release: --also ../etc: no names of suites\n"),
        (["--nonsense"], 2, ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_arguments_are_one_line(arguments: list[str], status: int, said: str) -> None:
    result = run(PROJECT / "scripts/release", *arguments, check=False)
    assert (result.returncode, result.stderr) == (status, said)


def test_what_is_no_release_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    result = run(PROJECT / "scripts/release", "--output", tmp_path, check=False)
    assert result.returncode == 1
    assert result.stderr == f"release: {tmp_path} is not empty, and no release: remove it, or take another --output\n"
    assert (tmp_path / "mine").read_text() == "precious"


@pytest.mark.slow
def test_each_file_works_on_a_bare_debian(tmp_path: Path) -> None:
    """CI runs this very command by itself, which prints how long each takes."""
    run(PROJECT / "scripts/release", "--also", "trixie", "--check", "--output", tmp_path / "release", timeout=3000)
    run("sha256sum", "--check", "SHA256SUMS", cwd=tmp_path / "release")
    assert len(list((tmp_path / "release").glob("*.deb"))) == 2

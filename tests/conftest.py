"""Shared by all tests: the command, the golden images, mounts that are always cleaned up, keys, checking tools.

The tests come in tiers: pure parts and devices in memory, whole images checked with other tools, and real mounts.
Nothing stands in for the kernel, mke2fs, veritysetup, e2fsck or openssl.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import json
import lzma
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import _pytest.pathlib
import hypothesis
import pytest
from removal import mounts_in, temporary_directory

from tests.support import commands, logs
from tests.support.commands import GROUP, USER, mystfuse, run
from tests.support.images import DATA, GOLDEN_NAMES, PROJECT
from tests.support.machine import FUSE, Lack, explanation, lacking, table, unable
from tests.support.markers import mark
from tests.support.mounts import clear_mount
from tests.support.other_files import OTHER_FILES

hypothesis.settings.register_profile("default", deadline=None, max_examples=60)
hypothesis.settings.register_profile("slow", deadline=None, max_examples=3000)
hypothesis.settings.load_profile("default")
_FUSE_MODE = Path("/run/lock/mystfuse-test-fuse-mode")
"""Locked by each session of the tests while it needs /dev/fuse open to all. Holds the mode that the last one sets."""
_fuse_mode: int | None = None
"""That file."""
_lacks: list[Lack] = []


def _remove_what_pytest_kept(path: Path) -> None:
    if not mounts_in(path):
        _rm_rf(path)


# pytest itself removes the remains of earlier runs in /tmp, even through a mount that is left there.
_rm_rf, _pytest.pathlib.rm_rf = _pytest.pathlib.rm_rf, _remove_what_pytest_kept


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--complete", action="store_true", help="run nothing on a machine that cannot run every test")


def pytest_configure(config: pytest.Config) -> None:
    """/dev/fuse with the mode that fuse3's udev rule sets (0666), for machines without udev. Once for all parallel test
    processes."""
    global _fuse_mode
    if "PYTEST_XDIST_WORKER" not in os.environ and FUSE.exists() and os.geteuid() == 0:
        _FUSE_MODE.parent.mkdir(exist_ok=True)
        _fuse_mode = os.open(_FUSE_MODE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        # The record lock keeps beginnings and ends apart; the other one is shared by all that run.
        fcntl.lockf(_fuse_mode, fcntl.LOCK_EX)
        fcntl.flock(_fuse_mode, fcntl.LOCK_SH)
        if not os.pread(_fuse_mode, 8, 0):
            os.pwrite(_fuse_mode, b"%o" % stat.S_IMODE(FUSE.stat().st_mode), 0)
        # A container may forbid it; machine.lacking finds out the consequences.
        with suppress(PermissionError):
            FUSE.chmod(0o666)
        fcntl.lockf(_fuse_mode, fcntl.LOCK_UN)
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        # A shell ignores SIGINT in its background jobs, and so does nohup: commands that tests interrupt would ignore
        # it too.
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    _lacks[:] = lacking()
    if _lacks:
        subprocess.Popen.__init__ = _start_what_can_work  # type: ignore[method-assign]
    if _lacks and config.getoption("complete"):
        pytest.exit("\n".join(table(_lacks)), returncode=1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mark(items)


_popen = subprocess.Popen.__init__


@functools.wraps(_popen)
def _start_what_can_work(self: Any, args: Any, *others: Any, **options: Any) -> None:
    reason = unable(_lacks, args)
    if reason is not None:
        pytest.skip(reason)
    _popen(self, args, *others, **options)


def pytest_unconfigure(config: pytest.Config) -> None:
    if _fuse_mode is None:
        return
    fcntl.lockf(_fuse_mode, fcntl.LOCK_EX)
    with suppress(BlockingIOError, PermissionError):
        fcntl.flock(_fuse_mode, fcntl.LOCK_EX | fcntl.LOCK_NB)
        FUSE.chmod(int(os.pread(_fuse_mode, 8, 0), 8))
        os.ftruncate(_fuse_mode, 0)
    os.close(_fuse_mode)


def pytest_report_header() -> list[str]:
    return table(_lacks)


def _printable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Skip a test that failed for something that this machine lacks."""
    report = yield
    if report.failed:
        # A name that is not UTF-8 in a test's output would end xdist, and with it all other tests.
        if _printable(report.longreprtext) != report.longreprtext:
            report.longrepr = _printable(report.longreprtext)
        report.sections = [(name, _printable(text)) for name, text in report.sections]
    if report.failed and _lacks:
        reason = explanation(_lacks, "\n".join([report.longreprtext, report.capstderr, *commands.said]))
        if reason is not None:
            report.outcome = "skipped"
            report.longrepr = (str(item.path), item.reportinfo()[1] or 0, f"Skipped: {reason}")
    if report.when == "teardown":
        commands.said.clear()
    return report


@pytest.fixture(autouse=True)
def judged_logs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Warnings and errors in the log fail a test that has not announced them."""
    with logs.judged(request.node):
        yield


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The golden images by name, unpacked. Tests must not write to them."""
    directory = tmp_path_factory.mktemp("golden")
    images: dict[str, Path] = {}
    for name in GOLDEN_NAMES:
        images[name] = directory / f"{name}.img"
        with lzma.open(DATA / f"{name}.img.xz") as packed, images[name].open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
    return images


@pytest.fixture(scope="session")
def manifest() -> dict[str, dict[str, Any]]:
    """The contents of the golden images: path -> mode, uid, gid, nlink, mtime, size, sha256, xattr, target, rdev."""
    loaded: dict[str, dict[str, Any]] = json.loads((DATA / "manifest.json").read_text())
    return loaded


@pytest.fixture(scope="session")
def make_keys(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Path]]:
    """Makes RSA key pairs with openssl: ``make_keys(name, bits=3072, exponent=3)`` -> (public, private)."""
    directory = tmp_path_factory.mktemp("keys")

    def make(name: str, bits: int = 3072, exponent: int = 3) -> tuple[Path, Path]:
        public, private = directory / f"{name}-public.pem", directory / f"{name}-private.pem"
        if not public.exists():
            run("openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", f"rsa_keygen_bits:{bits}",
                "-pkeyopt", f"rsa_keygen_pubexp:{exponent}", "-out", private)  # fmt: skip
            run("openssl", "rsa", "-in", private, "-pubout", "-out", public)
        return public, private

    return make


@pytest.fixture(scope="session")
def small_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small directory with one of everything: nested, linked, sparse, with odd names, attributes and times."""
    root = tmp_path_factory.mktemp("source") / "tree"
    (root / "sub/deep").mkdir(parents=True)
    (root / "hello.txt").write_text("hello\n")
    (root / "empty").touch()
    (root / "sub/deep/data.bin").write_bytes(bytes(range(256)) * 1200)
    os.link(root / "hello.txt", root / "sub/hard")
    (root / "link").symlink_to("sub/deep/data.bin")
    (root / "long-link").symlink_to("/nowhere/" + "x" * 180)
    (root / os.fsdecode(b"latin-\xe9")).write_text("not UTF-8\n")
    (root / ("n" * 255)).write_text("longest name\n")
    with (root / "sparse").open("wb") as file:
        file.seek(2_000_000)
        file.write(b"end")
    os.setxattr(root / "hello.txt", "user.comment", b"a value")
    run("setfacl", "-m", "u:1234:r", root / "sub/deep/data.bin")
    run("setfacl", "-d", "-m", "u:1234:rx", root / "sub/deep")
    os.utime(root / "hello.txt", (1_500_000_000, 1_500_000_000))
    return root


@pytest.fixture(scope="session")
def small_image(small_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unsigned image of ``small_tree``. Tests must not write to it."""
    image = tmp_path_factory.mktemp("image") / "small.img"
    result = mystfuse("mkext2", small_tree, image)
    assert result.returncode == 0, result.stderr
    return image


@contextmanager
def _open_directory() -> Iterator[Path]:
    with temporary_directory("mystfuse-test-") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


@pytest.fixture
def mountpoint(tmp_path: Path) -> Iterator[Path]:
    """An empty directory to mount on; it is unmounted at the end."""
    path = tmp_path / "mount"
    path.mkdir()
    yield path
    clear_mount(path)


@pytest.fixture
def open_tmp_path() -> Iterator[Path]:
    """A temporary directory open to other users: every run closes pytest's own to them."""
    with _open_directory() as path:
        yield path


@pytest.fixture(scope="module")
def open_tmp_path_of_module() -> Iterator[Path]:
    """The same for a module's tests."""
    with _open_directory() as path:
        yield path


@pytest.fixture(params=[False, True], ids=["nameless", "named"])
def without_nameless(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Files are made with O_TMPFILE, and once more as on a file system without it."""
    if request.param:
        real = os.open

        def refuse(path: str, flags: int, *words: int, **options: int) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
            return real(path, flags, *words, **options)

        monkeypatch.setattr(os, "open", refuse)
    return bool(request.param)


@pytest.fixture(scope="session")
def ordinary_user() -> Iterator[list[str]]:
    """A command prefix that runs ``mystfuse`` as an ordinary user, with the code where that user can read it."""
    with temporary_directory("mystfuse-test-code-") as code:
        os.chmod(code, 0o755)
        site_packages = Path(next(path for path in sys.path if path.endswith("site-packages")))
        run("cp", "-a", f"{site_packages}/.", code)
        run("cp", "-a", PROJECT / "mystfuse", code)
        yield ["setpriv", f"--reuid={USER}", f"--regid={GROUP}", "--clear-groups", "env", f"PYTHONPATH={code}",
               "PYTHONDONTWRITEBYTECODE=1", f"HOME={code}", "/usr/bin/python3", "-m", "mystfuse"]  # fmt: skip


@pytest.fixture(scope="session")
def other_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes files that are no images: ``other_file(name)``, by the names of ``OTHER_FILES``. Tests must not write to
    them."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            path = tmp_path_factory.mktemp("other") / OTHER_FILES[name].name
            OTHER_FILES[name].make(path)
            made[name] = path
        return made[name]

    return make

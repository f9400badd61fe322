"""What the jobs that run other programs in a mount find there: a git checkout, and Python's library."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from benchmarks.reader import git_status
from benchmarks.tools import BenchmarkError, run

OLD = 1_767_225_600
"""1 January 2026: files so much older than the index that git believes their times."""
_MODULES = """
argparse ast asyncio base64 bisect calendar cmd code codeop colorsys compileall concurrent.futures configparser
contextlib contextvars copy csv ctypes dataclasses datetime decimal difflib dis doctest email.message
email.mime.text email.parser filecmp fileinput fnmatch fractions ftplib functools gettext glob graphlib gzip
hashlib heapq hmac html.parser http.client http.cookiejar http.server imaplib importlib.resources inspect
ipaddress json locale logging.config logging.handlers mailbox mimetypes multiprocessing.pool netrc numbers
optparse pathlib pdb pickle pickletools pkgutil platform plistlib poplib pprint profile pstats pyclbr pydoc
queue quopri random re sched secrets selectors shelve shlex shutil smtplib socketserver ssl statistics string
subprocess tarfile tempfile textwrap threading timeit tomllib traceback unittest.mock urllib.request uuid
xml.dom.minidom xml.etree.ElementTree zipfile
"""
IMPORTS = tuple(_MODULES.split())
"""A hundred modules that are files of the library in every Python from 3.11 on, and need nothing but it."""
LEFT_OUT = (
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idlelib",
    "tkinter",
    "turtledemo",
    "ensurepip",
    "config-*",
)


def make_repository(root: Path, paths: list[str]) -> int:
    """Make a git repository of a directory with some files, with one commit in one pack. After that change the first
    file, and add one that git does not know.

    Args:
        paths: the files, relative to ``root``.

    Returns:
        The CRC-32 of what ``git status`` says.
    """
    for path in paths:
        os.utime(root / path, (OLD, OLD))
    git("init", "--quiet", "--initial-branch=main", root)
    # An image gives the files other inode numbers and times of change: of these, git would read every file anew.
    for name, value in ("core.checkStat", "minimal"), ("core.trustctime", "false"), ("pack.threads", "1"):
        git("-C", root, "config", name, value)
    git("-C", root, "add", "--all")
    who = "-c", "user.name=nobody", "-c", "user.email=nobody@localhost"
    git("-C", root, *who, "commit", "--quiet", f"--date={OLD} +0000", "--message=all")
    git("-C", root, "repack", "-a", "-d", "--quiet")
    with (root / paths[0]).open("ab") as file:
        file.write(b"changed")
    (root / "unknown").touch()
    return int(git_status(str(root))["crc"])


def git(*arguments: str | Path) -> None:
    """Run git(1), whatever is set up on this machine."""
    run("env", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1", "git", *arguments)


def copy_library(home: Path) -> None:
    """Copy the library of the Python that runs us, compiled, for PYTHONHOME=``home``."""
    library = Path(sysconfig.get_path("stdlib"))
    target = home / library.relative_to(sys.base_prefix)
    # What is a link there, like Debian's sitecustomize.py, leads out of the library.
    shutil.copytree(library, target, ignore=lambda directory, names: _left_out(Path(directory), names))
    python = os.path.realpath(sys.executable)
    run(python, "-I", "-m", "compileall", "-q", target)
    try:
        run("env", f"PYTHONHOME={home}", python, "-s", "-B", "-c", f"import {', '.join(IMPORTS)}")
    except BenchmarkError as error:
        raise BenchmarkError(f"the copy of Python's library does not work: {error}") from error


def _left_out(directory: Path, names: list[str]) -> set[str]:
    unwanted = shutil.ignore_patterns(*LEFT_OUT)(str(directory), names)
    return unwanted | {name for name in names if (directory / name).is_symlink()}

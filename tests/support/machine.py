"""The tests' requirements of a machine, and those that this one lacks.

A machine that has everything runs every test. On any other, a test that fails for a lacking requirement is skipped,
with the reason. We know the reason from the words of its failure or of its commands, which the kernel or a tool uses
for just that, or from a command that it starts and that cannot work there. The list of lacking requirements comes
first. ``--complete`` refuses to run where one is lacking, so that a complete machine, like CI's, skips nothing by
accident.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import re
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

NOBODY = pwd.getpwnam("nobody")
LOOP_CTL_GET_FREE = 0x4C82
"""<linux/loop.h>"""
FUSE = Path("/dev/fuse")
TOOLS = (
    "7z", "ar", "blkid", "bwrap", "bzip2", "chattr", "cpio", "cryptsetup", "debugfs", "docker-registry", "dumpe2fs",
    "e2fsck", "fallocate", "file", "fish", "fsck.cramfs", "fsck.erofs", "fusermount3", "gcc", "genromfs", "getfacl",
    "getfattr", "git", "groff", "gzip", "img2simg", "jq", "losetup", "lsattr", "lz4", "mandoc", "mke2fs",
    "mkfs.btrfs", "mkfs.cramfs", "mkfs.erofs", "mkfs.exfat", "mkfs.f2fs", "mkfs.vfat", "mkfs.xfs", "mkntfs",
    "mksquashfs", "mkswap", "nbdcopy", "nbdkit", "newuidmap", "openssl", "pkcs11-tool", "qemu-img", "readelf",
    "rsync", "setfacl", "setfattr", "setpriv", "sfdisk", "simg2img", "softhsm2-util", "strace", "swtpm", "tar",
    "tmux", "tpm2_createprimary", "unshare", "unsquashfs", "unzip", "veritysetup", "xfs_io", "xorriso", "xz",
    "zip", "zsh", "zstd",
)  # fmt: skip


@dataclass(frozen=True)
class Need:
    """A requirement of tests, and the failures of tests without it."""

    name: str
    why_lacking: Callable[[], str | None]
    """Why this machine does not have it; None if it has."""
    symptoms: str
    """A regular expression for the text of a failure."""
    commands: str = "(?!)"
    """A regular expression for the words of a command that cannot work without it."""


@dataclass(frozen=True)
class Lack:
    """The requirements that this machine lacks."""

    name: str
    reason: str
    symptoms: re.Pattern[str]
    commands: re.Pattern[str]

    def __str__(self) -> str:
        return f"no {self.name}: {self.reason}"


def _says(*command: str) -> str | None:
    """A command's complaint; None if it succeeds."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    except subprocess.TimeoutExpired:
        return f"{command[0]}: no answer"
    return None if result.returncode == 0 else (result.stderr.strip().splitlines() or [f"{command[0]} failed"])[-1]


def _root() -> str | None:
    if os.geteuid():
        return "not run as root"
    # user_namespaces(7): the first one maps all users to themselves.
    is_first = Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]
    return None if is_first else "root of a user namespace alone"


def _fuse() -> str | None:
    try:
        os.close(os.open(FUSE, os.O_RDWR))
    except OSError as error:
        return f"{FUSE}: {error.strerror}"
    return None


def _fuse_of_users() -> str | None:
    if not FUSE.exists():
        return f"{FUSE}: not there"
    program = shutil.which("fusermount3")
    if program is None or not os.stat(program).st_mode & stat.S_ISUID:
        return "no fusermount3 that is setuid root"
    if not os.path.exists("/etc/mtab"):
        return "/etc/mtab is missing, which fusermount3 wants"
    return None if os.stat(FUSE).st_mode & 0o006 == 0o006 else f"{FUSE} is closed to ordinary users"


def _loop() -> str | None:
    try:
        control = os.open("/dev/loop-control", os.O_RDWR)
    except OSError as error:
        return f"/dev/loop-control: {error.strerror}"
    try:
        number = fcntl.ioctl(control, LOOP_CTL_GET_FREE)
        os.close(os.open(f"/dev/loop{number}", os.O_RDWR))
    except OSError as error:
        return f"no free loop device: {error.strerror}"
    finally:
        os.close(control)
    return None


def _ext2() -> str | None:
    has_driver = re.search(r"^\s+ext[24]$", Path("/proc/filesystems").read_text(), re.MULTILINE)
    return None if has_driver or _says("modprobe", "ext2") is None else "the kernel has no driver for ext2"


def _mounts() -> str | None:
    return _says("unshare", "--mount", "true")


def _user_namespaces() -> str | None:
    become = ["setpriv", f"--reuid={NOBODY.pw_uid}", f"--regid={NOBODY.pw_gid}", "--clear-groups"]
    return _says(*(become if os.geteuid() == 0 else []), "unshare", "--user", "--map-root-user", "true")


def _sys() -> str | None:
    return None if os.path.exists("/sys/kernel") else "not mounted"


def _caches() -> str | None:
    return None if os.access("/proc/sys/vm/drop_caches", os.W_OK) else "/proc/sys/vm/drop_caches cannot be written"


def _openssl_plugin(*names: str) -> Callable[[], str | None]:
    """Whether one of these is in OpenSSL's directory of providers (``m:NAME``) or engines (``e:NAME``)."""

    def look() -> str | None:
        for name in names:
            try:
                said = subprocess.run(
                    ["openssl", "version", f"-{name[0]}"], capture_output=True, text=True, check=False
                )
            except OSError as error:
                return f"openssl: {error.strerror}"
            directory = said.stdout.partition('"')[2].partition('"')[0]
            if os.path.exists(os.path.join(directory, f"{name[2:]}.so")):
                return None
        return "not installed"

    return look


def _tool(name: str) -> Need:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return Need(
        name,
        lambda: None if shutil.which(name, path=path) else "not installed",
        rf"No such file or directory: '{name}'|\b{name}\b[^\n]*(?:not found|is not installed)",
    )


_NO_PERMISSION = (
    r"Operation not permitted|Permission denied|PermissionError|must be (?:root|superuser)|are for root alone"
)
NEEDS = (
    Need("root", _root, _NO_PERMISSION),
    # Output to closed descriptors is lost.
    Need("FUSE", _fuse, r"/dev/fuse", r"-m mystfuse mount .*>&-"),
    Need(
        "FUSE for ordinary users",
        _fuse_of_users,
        r"/dev/fuse|fusermount3?: ",
        rf"--reuid={NOBODY.pw_uid} .*-m mystfuse (?:/|mount |exec )",
    ),
    Need("loop devices", _loop, r"loop device|/dev/loop|losetup: ", r"^(?:\S+ )*mount .*\bloop\b|^losetup "),
    Need("the kernel's ext2", _ext2, r"unknown filesystem type|wrong fs type"),
    Need(
        "mounts in namespaces of their own",
        _mounts,
        r"unshare: |/: cannot be mounted on: |no namespaces? of our own",
        # exec gives its program mounts of its own, too.
        r"\bunshare .*--mount|-m mystfuse (?:exec|run) ",
    ),
    # cryptsetup checks there whether a header that it converts is in use.
    Need("/sys", _sys, r"'/sys/|Cannot check status of device", "-m benchmarks "),
    Need(
        "user namespaces for ordinary users",
        _user_namespaces,
        r"unshare: |user name ?spaces?|setting up uid map",
        # exec gives its program one, for every user.
        r"-m mystfuse (?:exec|run) (?!.*--privileged)",
    ),
    Need("dropping the page cache", _caches, r"drop_caches"),
    Need(
        "PKCS #11 provider or engine of OpenSSL",
        _openssl_plugin("m:pkcs11", "e:pkcs11"),
        'needs OpenSSL\'s PKCS #11 provider|invalid engine "pkcs11"',
    ),
    Need(
        "TPM provider of OpenSSL",
        _openssl_plugin("m:tpm2"),
        "needs OpenSSL's provider tpm2|unable to load provider tpm2",
    ),
    Need(
        "bash-completion",
        lambda: None if Path("/usr/share/bash-completion/bash_completion").exists() else "not installed",
        "bash_completion: No such file",
    ),
    *map(_tool, TOOLS),
)


def lacking() -> list[Lack]:
    """The tests' requirements that this machine lacks."""
    found: list[Lack] = []
    for need in NEEDS:
        reason = need.why_lacking()
        if reason is not None:
            found.append(Lack(need.name, reason, re.compile(need.symptoms), re.compile(need.commands)))
    return found


def explanation(lacks: list[Lack], failure: str) -> str | None:
    """Why a test with this failure could not pass here; None if it is a fault."""
    for lack in lacks:
        if lack.symptoms.search(failure):
            return str(lack)
    return None


def unable(lacks: list[Lack], command: object) -> str | None:
    """Why a command cannot work here; None if it can.

    Args:
        command: as subprocess.Popen takes it.
    """
    words = [command] if isinstance(command, (str, bytes, os.PathLike)) else list(cast("Iterable[Any]", command))
    text = " ".join(os.fsdecode(word) for word in words)
    return next((str(lack) for lack in lacks if lack.commands.search(text)), None)


def table(lacks: list[Lack]) -> list[str]:
    """The lines to print before the tests begin."""
    if not lacks:
        return ["this machine has everything that the tests want"]
    width = max(len(lack.name) for lack in lacks)
    return [
        "what cannot be tested on this machine, and is skipped:",
        *(f"  {lack.name:{width}}  {lack.reason}" for lack in lacks),
    ]

"""Where commands that are killed work, and what they leave there."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from mystfuse.mounting.find_daemon import find_daemon
from mystfuse.mounting.mount_table import find_mount
from mystfuse.mounting.unmount import unmount

ENVIRONMENT = {
    **os.environ,
    "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin",
    "SOURCE_DATE_EPOCH": "1700000000",
}
MYSTFUSE = [sys.executable, "-m", "mystfuse"]
CHANGING = (
    "openat,mkdir,mkdirat,unlink,unlinkat,rmdir,link,linkat,rename,renameat,renameat2,symlinkat,write,pwrite64,"
    "ftruncate,fallocate,fsync,fdatasync,dup2,mount,umount2,fork,vfork,clone,clone3,execve,unshare,prctl,setsid,kill,"
    "pidfd_send_signal,exit_group"
)
"""The system calls that strace counts."""
PATIENCE = 30.0
"""Seconds in which anything must end, on a busy machine."""
HIDDEN = re.compile(r"\..+\.[0-9a-f]{12}\.(tmp|links)")
"""Files that a killed command may leave beside its output; docs/troubleshooting.md says so."""
PRIVATE = re.compile(r"mystfuse-\w+")
"""Files that it may leave in TMPDIR."""


def mystfuse(*arguments: str | Path, **kwargs: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*MYSTFUSE, *map(str, arguments)], env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False,
        **kwargs,  # type: ignore[call-overload]
    )  # fmt: skip


def made(*arguments: str | Path) -> str:
    """Run mystfuse; returns its stdout when it has succeeded."""
    result = mystfuse(*arguments)
    assert result.returncode == 0, (arguments, result.stderr)
    return str(result.stdout)


def wait_until(condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.005)


def processes_with(token: str) -> dict[int, str]:
    """Every live process with ``token`` in its environment or on its command line; its comm."""
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                text = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
                if token.encode() in text:
                    found[int(entry.name)] = (entry / "comm").read_bytes().decode(errors="replace").strip()
    return found


def take_away(mountpoint: Path) -> None:
    """Unmount, and end the daemon: it would wait for namespaces that other processes have made meanwhile."""
    mount = find_mount(str(mountpoint))
    daemon = find_daemon(mount) if mount is not None else None
    made("umount", "--lazy", "--timeout=0.01", mountpoint) if daemon is None else unmount(str(mountpoint), lazy=True)
    if daemon is not None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(daemon, signal.SIGTERM)
        os.close(daemon)


def tree_digest(directory: Path) -> str:
    """A digest of the names, modes, times and contents of a tree."""
    digest = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        status = path.lstat()
        contents = b"" if not path.is_file() or path.is_symlink() else path.read_bytes()
        fields = (path.relative_to(directory), status.st_mode, status.st_mtime_ns, contents)
        digest.update(repr(fields).encode())
    return digest.hexdigest()


@dataclass
class Place:
    """The directory in which the rounds of one case run, and their inputs."""

    root: Path
    token: str = field(default_factory=lambda: f"round-{secrets.token_hex(8)}")
    """A word in the environment of every process that a round starts, and of no other."""

    def __post_init__(self) -> None:
        for directory in (self.out, self.temporary, self.mountpoint):
            directory.mkdir()
        self.tree.mkdir()
        (self.tree / "bin").mkdir()
        shutil.copy("/bin/busybox", self.tree / "bin/busybox")
        for applet in ("sh", "sleep"):
            (self.tree / "bin" / applet).symlink_to("busybox")
        (self.tree / "hello").write_text("hello\n")
        (self.tree / "sub").mkdir()
        for number in range(20):
            (self.tree / "sub" / f"file{number}").write_bytes(secrets.token_bytes(3000 * number))
        os.link(self.tree / "hello", self.tree / "sub/hard")
        self.key.write_bytes(secrets.token_bytes(64))
        self.key.chmod(0o600)
        for command in (
            ["openssl", "genrsa", "-3", "-out", self.private, "3072"],
            ["openssl", "rsa", "-in", self.private, "-pubout", "-out", self.public],
        ):
            subprocess.run(command, check=True, capture_output=True)
        made("mkext2", "--sign", f"{self.public}:{self.private}", "--free", "4M", self.tree, self.image)
        self.config.write_text(json.dumps({
            "version": "0.1", "ApplicationPath": "/bin/sh", "HostApplicationParameters": False,
            "ApplicationParameters": ["-c", "exec sleep 1000"], "HostEnvironmentVariables": ["KILL_MATRIX"],
        }))  # fmt: skip

    @property
    def out(self) -> Path:
        return self.root / "out"

    @property
    def target(self) -> Path:
        return self.out / "target"

    @property
    def temporary(self) -> Path:
        return self.root / "temporary"

    @property
    def mountpoint(self) -> Path:
        return self.root / "mount"

    @property
    def tree(self) -> Path:
        return self.root / "tree"

    @property
    def image(self) -> Path:
        return self.root / "image"

    @property
    def key(self) -> Path:
        return self.root / "key"

    @property
    def public(self) -> Path:
        return self.root / "public.pem"

    @property
    def private(self) -> Path:
        return self.root / "private.pem"

    @property
    def config(self) -> Path:
        return self.root / "config.json"

    def environment(self) -> dict[str, str]:
        return {**ENVIRONMENT, "KILL_MATRIX": self.token, "TMPDIR": str(self.temporary)}

    def processes(self) -> dict[int, str]:
        return {pid: name for pid, name in processes_with(self.token).items() if name != "strace"}

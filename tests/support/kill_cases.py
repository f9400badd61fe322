"""The commands that the kill matrix ends, what each leaves, and what is right there."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

from mystfuse.mounting.find_daemon import find_daemon
from mystfuse.mounting.mount_table import find_mount
from tests.support.askers import DISCONNECTED, compile_askers, make_tree
from tests.support.kill_place import (
    HIDDEN,
    MYSTFUSE,
    PATIENCE,
    Place,
    made,
    mystfuse,
    take_away,
    tree_digest,
    wait_until,
)


class Case:
    """A command, the state before it, and the states that may follow its end."""

    name: str
    whom = ("command",) * 3 + ("group", "child")
    """Which of the command's processes a round ends, by chance."""
    ends = True
    """Whether it ends by itself."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def set_up(self) -> None:
        """Once, before all rounds."""

    def tear_down(self) -> None:
        """Once, after all rounds."""

    def begin(self) -> None:
        """Before each round."""

    def command(self) -> list[str | Path]:
        raise NotImplementedError

    def is_ready(self) -> bool:
        """For commands that do not end by themselves: whether it is ready."""
        return False

    def finish(self) -> None:
        """After the first, undisturbed round: end a command that does not end by itself."""

    def check(self) -> str:
        """The state: ``old`` or ``new``, or a named state between them. Asserts that it is whole."""
        raise NotImplementedError

    def stdout(self) -> int:
        return subprocess.DEVNULL


class Making(Case):
    """Makes ``place.target``, which may exist."""

    over = False
    is_reproducible = True

    def set_up(self) -> None:
        if self.over:
            made("mkext2", "--force", self.place.tree / "sub", self.place.root / "old")
        self.old = (self.place.root / "old").read_bytes() if self.over else None
        self.new = b""

    def begin(self) -> None:
        if self.over:
            shutil.copy(self.place.root / "old", self.place.target)

    def check(self) -> str:
        found = self.place.target.read_bytes() if self.place.target.exists() else None
        for path in self.place.out.iterdir():
            if path != self.place.target:
                assert HIDDEN.fullmatch(path.name), path
                # The file gets its name only when it is complete.
                assert self.is_new(path), path
        if found == self.old:
            return "old"
        assert found is not None and self.is_new(self.place.target)
        return "new"

    def is_new(self, path: Path) -> bool:
        if self.is_reproducible and self.new:
            return path.read_bytes() == self.new
        self.new = path.read_bytes()
        return mystfuse("verify", path).returncode == 0


class Mkext2(Making):
    name = "mkext2"

    def command(self) -> list[str | Path]:
        return ["mkext2", self.place.tree, self.place.target]


class Mkext2Signed(Making):
    name = "mkext2-signed"
    over = True

    def command(self) -> list[str | Path]:
        sign = f"{self.place.public}:{self.place.private}"
        return ["mkext2", "--force", "--sign", sign, self.place.tree, self.place.target]


class Mkext2Encrypted(Making):
    name = "mkext2-encrypted"
    over = True

    def command(self) -> list[str | Path]:
        return ["mkext2", "--force", "--encrypt", self.place.key, self.place.tree, self.place.target]


class Sign(Case):
    """Signs ``place.target`` in place."""

    name = "sign"

    def set_up(self) -> None:
        made("mkext2", "--force", self.place.tree, self.place.root / "unsigned")
        self.old = (self.place.root / "unsigned").read_bytes()
        shutil.copy(self.place.root / "unsigned", self.place.target)
        made(*self.command())
        self.new = self.place.target.read_bytes()
        self.place.target.unlink()
        assert self.new != self.old

    def begin(self) -> None:
        shutil.copy(self.place.root / "unsigned", self.place.target)

    def command(self) -> list[str | Path]:
        return ["sign", "--sign", f"{self.place.public}:{self.place.private}", self.place.target]

    def check(self) -> str:
        assert list(self.place.out.iterdir()) == [self.place.target]
        found = self.place.target.read_bytes()
        assert found in (self.old, self.new)
        return "old" if found == self.old else "new"


class Package(Making):
    name = "package"
    over = True

    def command(self) -> list[str | Path]:
        place = self.place
        return ["package", "--force", "--pubkey", place.public, "-o", place.target, place.private, place.config]

    def is_new(self, path: Path) -> bool:
        self.new = self.new or path.read_bytes()
        return path.read_bytes() == self.new


class Commit(Making):
    name = "commit"
    is_reproducible = False
    options: tuple[str | Path, ...] = ()

    def set_up(self) -> None:
        super().set_up()
        made("mount", self.place.image, self.place.mountpoint)
        (self.place.mountpoint / "written").write_bytes(secrets.token_bytes(1 << 20))
        self.merged = (self.place.mountpoint / ".mystfuse/image").read_bytes()
        self.used = self.overlay_used()

    def overlay_used(self) -> int:
        return int(json.loads(made("status", "--json", self.place.mountpoint))["overlay_used"])

    def tear_down(self) -> None:
        take_away(self.place.mountpoint)

    def command(self) -> list[str | Path]:
        return ["commit", *self.options, self.place.mountpoint, self.place.target]

    def check(self) -> str:
        # The snapshot that it read has been released.
        wait_until(lambda: self.overlay_used() == self.used, "the overlay is as it was")
        return super().check()

    def is_new(self, path: Path) -> bool:
        return mystfuse("verify", path).returncode == 0 and path.read_bytes()[: len(self.merged)] == self.merged


class CommitOver(Commit):
    name = "commit-over"
    over = True
    options = ("--force",)


class CommitEncrypted(Commit):
    name = "commit-encrypted"
    over = True

    def command(self) -> list[str | Path]:
        return ["commit", "--force", "--encrypt", self.place.key, self.place.mountpoint, self.place.target]

    def is_new(self, path: Path) -> bool:
        with (self.place.mountpoint / "written").open("rb") as file:
            wanted = file.read()
        command = [*MYSTFUSE, "cat", "--key-file", str(self.place.key), str(path), "written"]
        verified = mystfuse("verify", "--key-file", self.place.key, path).returncode == 0
        return verified and subprocess.run(command, capture_output=True, check=False).stdout == wanted


class Extract(Case):
    name = "extract"

    def set_up(self) -> None:
        made("extract", self.place.image, "/", self.place.root / "whole")
        self.whole = tree_digest(self.place.root / "whole")

    def command(self) -> list[str | Path]:
        return ["extract", self.place.image, "/", self.place.target]

    def check(self) -> str:
        for path in self.place.out.iterdir():
            assert path == self.place.target or HIDDEN.fullmatch(path.name), path
        if not self.place.target.exists():
            return "old"
        assert tree_digest(self.place.target) == self.whole
        return "new"


class Tar(Case):
    name = "tar"

    def set_up(self) -> None:
        command = [*MYSTFUSE, "tar", str(self.place.image)]
        self.whole = subprocess.run(command, capture_output=True, check=True).stdout

    def command(self) -> list[str | Path]:
        return ["tar", self.place.image]

    def stdout(self) -> int:
        return os.open(self.place.target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC)

    def check(self) -> str:
        # Only the exit status says that the output is whole; here it is the beginning of one.
        found = self.place.target.read_bytes()
        assert self.whole.startswith(found)
        return "new" if found == self.whole else "part"


class Mount(Case):
    """The mount is right, or does not exist, or its remains can be cleared away."""

    name = "mount"
    ends = False
    options: tuple[str, ...] = ()

    def command(self) -> list[str | Path]:
        return ["mount", *self.options, self.place.image, self.place.mountpoint]

    def is_ready(self) -> bool:
        # Only the daemon is left.
        processes = self.place.processes().values()
        return find_mount(str(self.place.mountpoint)) is not None and all(name[:9] == "mystfuse:" for name in processes)

    def finish(self) -> None:
        take_away(self.place.mountpoint)

    def check(self) -> str:
        mountpoint = self.place.mountpoint
        # A daemon whose parent has been ended ends by itself, or serves.
        wait_until(lambda: not self.place.processes() or Mount.is_ready(self), "gone, or serving")
        mount = find_mount(str(mountpoint))
        if mount is None:
            return "old"
        daemon = find_daemon(mount)
        if daemon is not None:
            os.close(daemon)
        outcome = "new"
        try:
            assert (mountpoint / "hello").read_text() == "hello\n"
        except OSError:
            wait_until(lambda: not self.place.processes(), "a daemon that does not answer ends")
            outcome = "stale"
        if outcome == "stale":
            made("umount", "--stale", mountpoint)
        else:
            result = mystfuse("umount", "--lazy", mountpoint)
            # It may have ended by itself meanwhile, or be in a namespace that another process has just made.
            excuses = ("nothing of mystfuse's is mounted", "still in use")
            assert result.returncode == 0 or any(excuse in result.stderr for excuse in excuses), result.stderr
            if "still in use" in result.stderr and daemon is not None:
                for pid in self.place.processes():
                    os.kill(pid, signal.SIGTERM)
        assert find_mount(str(mountpoint)) is None
        assert not list(mountpoint.iterdir())
        return outcome


class ForegroundMount(Mount):
    name = "mount-foreground"
    options = ("-f",)

    def is_ready(self) -> bool:
        try:
            return (self.place.mountpoint / "hello").exists()
        except OSError:
            return False


class Umount(Mount):
    name = "umount"
    ends = True

    def begin(self) -> None:
        command = [*MYSTFUSE, "mount", str(self.place.image), str(self.place.mountpoint)]
        subprocess.run(command, env=self.place.environment(), check=True, capture_output=True)

    def command(self) -> list[str | Path]:
        return ["umount", self.place.mountpoint]

    def finish(self) -> None:
        """Unmounting it."""


class WrittenMount(Umount):
    """Unmounting it, or ending its daemon, while a program writes to it."""

    name = "mount-written"
    whom = ("command", "child", "child")

    def begin(self) -> None:
        super().begin()
        self.writer = subprocess.Popen(
            ["sh", "-c", f"while dd if=/dev/zero of={self.place.mountpoint}/sub/new bs=64k count=40; do :; done"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def command(self) -> list[str | Path]:
        return ["umount", "--lazy", self.place.mountpoint]

    def check(self) -> str:
        with suppress(ProcessLookupError):
            os.killpg(self.writer.pid, signal.SIGKILL)
        self.writer.wait()
        return super().check()


class ReadMount(Umount):
    """Unmounting it, or ending one of its processes, while many threads ask it for answers."""

    name = "mount-read"
    whom = ("command", "child", "child", "child")

    def set_up(self) -> None:
        root = self.place.root
        self.program = compile_askers(root)
        make_tree(root / "asked")
        shutil.copy(self.place.tree / "hello", root / "asked")
        made("mkext2", "--force", "--free", "32M", root / "asked", root / "asked-image")

    def tear_down(self) -> None:
        shutil.rmtree(self.place.root / "asked")

    def begin(self) -> None:
        image = self.place.root / "asked-image"
        command = [*MYSTFUSE, "mount", "--insecure", str(image), str(self.place.mountpoint)]
        subprocess.run(command, env=self.place.environment(), check=True, capture_output=True)
        words = [str(self.place.mountpoint), str(10**12), "16", str(int(PATIENCE))]
        self.askers = subprocess.Popen([self.program, *words], stderr=subprocess.PIPE)

    def command(self) -> list[str | Path]:
        return ["umount", "--lazy", self.place.mountpoint]

    def check(self) -> str:
        if self.place.processes():
            self.askers.kill()
        # Each question has been answered, if only by the end of the mount.
        status = self.askers.wait(PATIENCE)
        with self.askers:
            assert self.askers.stderr is not None
            assert status in (DISCONNECTED, -signal.SIGKILL), (status, self.askers.stderr.read())
        return super().check()


class Exec(Case):
    """Nothing is left."""

    name = "exec"
    ends = False

    def command(self) -> list[str | Path]:
        return ["exec", "--env=KILL_MATRIX", self.place.image, "/bin/sh", "-c", "exec sleep 1000"]

    def is_ready(self) -> bool:
        return "sleep" in self.place.processes().values()

    def finish(self) -> None:
        pass

    def check(self) -> str:
        assert not list(self.place.out.iterdir())
        assert os.fsencode(self.place.image) not in Path("/proc/self/mountinfo").read_bytes()
        return "old"


class Run(Exec):
    name = "run"

    def set_up(self) -> None:
        place = self.place
        made("package", "--force", "--pubkey", place.public, "-o", place.root / "package", place.private, place.config)

    def command(self) -> list[str | Path]:
        return ["run", self.place.root / "package", "--rootfs", self.place.image]


CASES: dict[str, type[Case]] = {
    case.name: case
    for case in (
        Mkext2, Mkext2Signed, Mkext2Encrypted, Sign, Commit, CommitOver, CommitEncrypted, Package, Extract, Tar,
        Mount, ForegroundMount, WrittenMount, ReadMount, Umount, Exec, Run,
    )
}  # fmt: skip

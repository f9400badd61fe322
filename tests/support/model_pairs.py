"""Two mounts of one image, the kernel's and ours, and sequences of operations that run on both and on a model."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from removal import remove_tree

from tests.support.commands import mystfuse, run
from tests.support.model.contents import At
from tests.support.model.handle_operations import CloseHandle
from tests.support.model.model import Model
from tests.support.model.mounted import Mounted
from tests.support.model.operations import (
    Create,
    Link,
    LookAt,
    Mkdir,
    Operation,
    Symlink,
    Write,
    numbered_name,
)
from tests.support.model.results import Failed, agree, differences, spell
from tests.support.mounts import mounted

PEER = os.environ.get("MYSTFUSE_MODEL_PEER", "mystfuse")
DEFAULT_EXAMPLES, STEPS, STEPS_BETWEEN_CHECKS = 4, 50, 25

FSCK_WITH_UNLINKED_OPEN_FILES = PEER != "kernel"
"""Whether e2fsck must find the image clean while files without a name are open. ext2 keeps no list of orphans: on the
kernel's own side it is not, but ``.mystfuse/image`` shows them released."""

IMAGE_SIZE, INODES, SEEDS, SEED_ENTRIES = "32M", 8192, 4, 300


@dataclass(frozen=True)
class Configuration:
    block_size: int
    inode_size: int
    indexed: bool
    encrypted: bool = False
    stored: bool = False
    """With an overlay store that takes every written block at once."""
    features: str | None = None
    """Of an ext4 file system, those that mke2fs does not give it, or gives it (``^``); None for ext2."""

    def __str__(self) -> str:
        kind = "-encrypted" if self.encrypted else "-stored" if self.stored else ""
        extended = "" if self.features is None else f"-ext4:{self.features}"
        return f"{self.block_size}-{self.inode_size}-{'index' if self.indexed else 'linear'}{kind}{extended}"

    @property
    def kind(self) -> str:
        """What mke2fs and mount call it."""
        return "ext2" if self.features is None else "ext4"


ALWAYS_SHORT = """
from mystfuse.overlay.space import Space
Space._is_short = lambda self: True
"""
"""A sitecustomize.py, which Python runs first: memory is always short."""


@dataclass(frozen=True)
class Sequence:
    """Operations and the directory in which they begin: ``empty``, ``small`` (PRELUDE), or ``seed``, made by mke2fs."""

    start: str
    operations: list[Operation] = field(default_factory=list)


PRELUDE: list[Operation] = [
    Mkdir("d"),
    Mkdir("d/e", 0o2775),
    Create("a"),
    Write("a", At(), At(2, 0, 5), 1),
    Create("d/a", 0o4755),
    Link("a", "d/b"),
    Symlink("c", "d/a"),
]


def make_seed(root: Path) -> None:
    """The directory that mke2fs puts into the image: a large directory, and one file of every kind that operations
    name."""
    (root / "big").mkdir(parents=True)
    (root / "d/e").mkdir(parents=True)
    for number in range(SEED_ENTRIES):
        path = root / "big" / spell(numbered_name(number, 100))
        if number % 7:
            path.touch()
        else:
            path.write_bytes(bytes([number % 256]) * number)
    (root / "a").write_bytes(bytes(range(256)) * 80)
    os.link(root / "a", root / "b")
    os.link(root / "a", root / "d/b")
    (root / "c").symlink_to("d/a")
    (root / "d/c").symlink_to("long/" * 30)
    with (root / "d/a").open("wb") as file:
        for offset in (0, 100_000, 300_000, 5_000_000):
            file.seek(offset)
            file.write(b"data at " + str(offset).encode())
    os.mknod(root / "d/f", stat.S_IFCHR | 0o640, os.makedev(300, 70_000))
    os.setxattr(root / "a", "user.a", b"of a")
    os.setxattr(root / "d", "user.b", b"b" * 300)
    os.setxattr(root / "d/a", "trusted.c", b"")
    os.chown(root / "d/e", 1000, 70_000)
    (root / "d/e").chmod(0o2770)
    for path in [*root.rglob("*"), root]:
        os.utime(path, (0, 1_234_567_890), follow_symlinks=False)


def make_image(configuration: Configuration, directory: Path) -> Path:
    """An image with as many copies of the seed as a mount serves sequences."""
    image, source = directory / "pristine", directory / "source"
    make_seed(source / "seed-0")
    for number in range(1, SEEDS):
        run("cp", "-a", source / "seed-0", source / f"seed-{number}")
    features = "dir_index" if configuration.indexed else "^dir_index"
    if configuration.features:
        features += f",{configuration.features}"
    # Small groups, so that both block sizes have several of them.
    run("mke2fs", "-q", "-F", "-t", configuration.kind, "-b", str(configuration.block_size),
        "-I", str(configuration.inode_size), "-O", features,
        "-g", str(8192 if configuration.block_size == 1024 else 2048), "-N", str(INODES),
        "-E", "lazy_itable_init=0", "-d", source, image, IMAGE_SIZE)  # fmt: skip
    # mke2fs does not index the directories that it fills; e2fsck does.
    assert run("e2fsck", "-fyD", image, check=False).returncode in (0, 1)
    assert run("e2fsck", "-fn", image, check=False).returncode == 0
    remove_tree(source)
    return image


@contextmanager
def kernel_mounted(pristine: Path, image: Path, mountpoint: Path, kind: str) -> Iterator[Path]:
    """The kernel's mount of a copy, whose loop device goes away with it."""
    mountpoint.mkdir(exist_ok=True)
    run("cp", "--sparse=always", pristine, image)
    run("mount", "-t", kind, "-o", "loop,noatime,acl,user_xattr", image, mountpoint)
    try:
        yield mountpoint
    finally:
        if run("umount", mountpoint, check=False).returncode:
            run("umount", "--lazy", mountpoint)
        image.unlink()


def copy_sparsely(source: Path, target: Path) -> None:
    """Copy a file up to the end that reads find, whatever size its status states."""
    with source.open("rb", buffering=0) as reader, target.open("wb", buffering=0) as writer:
        size = 0
        while data := reader.read(1 << 20):
            if data.count(0) != len(data):
                os.pwrite(writer.fileno(), data, size)
            size += len(data)
        writer.truncate(size)


class Pair:
    """The two mounts of one image, the kernel's and the one under test, and their history since they were mounted."""

    def __init__(self, configuration: Configuration, directory: Path) -> None:
        self.configuration = configuration
        self.history: list[Sequence] = []
        self._directory = directory
        self._pristine = make_image(configuration, directory)
        self._image, self._options = self._pristine, ["--insecure"]
        if configuration.encrypted:
            self._image, self._options = self._encrypt()
        self._digest = hashlib.sha256(self._image.read_bytes()).digest()
        self._mounts = ExitStack()
        self._seeds: list[str] = []
        self._saved: Path | None = None

    def _encrypt(self) -> tuple[Path, list[str]]:
        """An encrypted image of the same file system, and the options to mount it with."""
        image, key = self._directory / "encrypted", self._directory / "key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(64))
        with mounted(self._pristine, self._directory / "ours", "--insecure") as mountpoint:
            result = mystfuse("commit", "--encrypt", key, mountpoint, image)
            assert result.returncode == 0, result.stderr
        return image, ["--key-file", str(key)]

    def mount(self) -> None:
        """Start, or restart, from the same image."""
        self.close()
        directory = self._directory
        self.kernel = self._mounts.enter_context(
            kernel_mounted(self._pristine, directory / "kernel.img", directory / "kernel", self.configuration.kind)
        )
        options, environment = list(self._options), {}
        if self.configuration.stored:
            (directory / "first").mkdir(exist_ok=True)
            (directory / "first/sitecustomize.py").write_text(ALWAYS_SHORT)
            options += ["--overlay-limit=16M", f"--overlay-store={directory}"]
            environment = {"PYTHONPATH": str(directory / "first")}
        if PEER == "kernel":
            self.ours = self._mounts.enter_context(
                kernel_mounted(self._pristine, directory / "ours.img", directory / "ours", self.configuration.kind)
            )
        else:
            self.ours = self._mounts.enter_context(
                mounted(self._image, directory / "ours", *options, "-o", "suid,dev", env=environment)
            )
        self._seeds = [f"seed-{number}" for number in range(SEEDS)]
        self.history = []

    def close(self) -> None:
        """Unmount, and check that the image itself has not changed."""
        self._mounts.close()
        assert hashlib.sha256(self._image.read_bytes()).digest() == self._digest, "the image was changed"

    def begin(self, sequence: Sequence) -> tuple[Mounted, Mounted, Model]:
        """The directory in which a sequence runs: on the kernel's side, on ours, and in the model."""
        if sequence.start == "seed" and not self._seeds:
            self.mount()
        name = f"case-{len(self.history) % 3}"
        given = self._seeds.pop(0) if sequence.start == "seed" else None
        self.history.append(sequence)
        for root in (self.kernel, self.ours):
            if given is None:
                (root / name).mkdir()
            else:
                (root / given).rename(root / name)
        # How many blocks a tree of extents takes depends on where they are.
        kernel, ours = (
            Mounted(str(root / name), self.configuration.block_size, self.configuration.features is None)
            for root in (self.kernel, self.ours)
        )
        return kernel, ours, Model.load(kernel)

    def check_image(self) -> None:
        """Check our image's present state with e2fsck."""
        copy = self._directory / "snapshot"
        if PEER == "kernel":
            run("sync", "--file-system", self.ours)
            copy_sparsely(self._directory / "ours.img", copy)
        else:
            copy_sparsely(self.ours / ".mystfuse/image", copy)
        result = run("e2fsck", "-fn", copy, check=False)
        copy.unlink()
        assert result.returncode == 0, f"e2fsck exited {result.returncode}:\n{result.stdout}{result.stderr}"

    def check_free_space(self) -> None:
        """The numbers of free blocks and inodes must be equal on both sides once all files are removed."""
        expected = _free(self.kernel)
        deadline = time.monotonic() + 5
        while (found := _free(self.ours)) != expected:
            # An inode that was open or looked up is freed a little later: FUSE does not wait for it.
            assert time.monotonic() < deadline, f"free blocks and inodes are {found} instead of {expected}"
            time.sleep(0.02)

    def save_history(self) -> Path:
        """The file with everything that the mounts had served at the first failure: later ones come from shrinking, and
        begin with fresh mounts."""
        if self._saved is None:
            handle, name = tempfile.mkstemp(prefix=f"mystfuse-model-{self.configuration}-", suffix=".txt")
            with open(handle, "w", errors="backslashreplace") as file:
                file.writelines(f"{sequence!r},\n" for sequence in self.history)
            self._saved = Path(name)
        return self._saved


def _free(mountpoint: Path) -> tuple[int, int]:
    found = os.statvfs(mountpoint)
    return found.f_bfree, found.f_ffree


class Run:
    """A sequence being run on the three sides."""

    def __init__(self, pair: Pair, start: str) -> None:
        self.sequence = Sequence(start)
        self.steps = 0
        self._pair = pair
        self._since = time.time()
        self._kernel, self.ours, self.model = pair.begin(self.sequence)
        self._failed = False
        if start == "small":
            for operation in PRELUDE:
                self._step(operation)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """A failure says how to repeat it, and leaves fresh mounts for the next sequence."""
        try:
            yield
        except AssertionError as error:
            history = self._pair.save_history()
            self.abandon()
            message = f"{error}\n{self._pair.configuration}, {self.sequence!r}\nthe first failure's past: {history}"
            raise AssertionError(message) from None

    def abandon(self) -> None:
        """Give up: the next sequence begins with fresh mounts."""
        self._failed = True
        self._close_files()
        self._pair.mount()

    def step(self, operation: Operation) -> object:
        """Run one operation on every side and compare; returns the kernel's result."""
        self.sequence.operations.append(operation)
        with self._explained():
            result = self._step(operation)
            self.steps += 1
            if self.steps % STEPS_BETWEEN_CHECKS == 0:
                self.check()
        return result

    def _step(self, operation: Operation) -> object:
        result = self._compare(operation)
        for path in operation.paths():
            self._compare(LookAt(path), f" (after {operation})")
        return result

    def _compare(self, operation: Operation, when: str = "") -> object:
        result = operation.apply(self._kernel)
        found = operation.apply(self.ours)
        if not agree(result, found):
            raise AssertionError(f"{operation}{when}: {_short(found)} instead of the kernel's {_short(result)}")
        # Root is denied nothing except by fs.protected_symlinks and the like, which the model ignores.
        if result != Failed("EACCES"):
            self.model.observed = result
            expected = operation.apply(self.model)
            if not agree(expected, result):
                raise AssertionError(f"{operation}{when}: the model says {_short(expected)}, not {_short(result)}")
        return result

    def check(self) -> None:
        """Compare the three trees, and check with e2fsck."""
        kernel = self._kernel.tree()
        problems = differences(kernel, self.ours.tree(), self._since)
        if problems:
            raise AssertionError("ours differs from the kernel's:\n" + "\n".join(problems))
        problems = differences(self.model.tree(), kernel)
        if problems:
            raise AssertionError("the kernel's differs from the model:\n" + "\n".join(problems))
        if FSCK_WITH_UNLINKED_OPEN_FILES or not self.model.has_unlinked_open_files():
            self._pair.check_image()

    def _close_files(self) -> None:
        for side in (self._kernel, self.ours):
            while side.slots:
                side.close(side.slots.popitem()[1])

    def finish(self) -> None:
        """Compare everything, remove everything, and check that all space is free again."""
        if self._failed:
            return
        for slot in sorted(self._kernel.slots):
            self.step(CloseHandle(slot))
        with self._explained():
            self.check()
            for side in (self._kernel, self.ours):
                remove_tree(side.root)
            self._pair.check_free_space()


def _short(result: object) -> str:
    text = repr(result)
    if len(text) < 400:
        return text
    return f"{text[:200]}...{text[-100:]} ({hashlib.sha256(text.encode()).hexdigest()[:8]})"

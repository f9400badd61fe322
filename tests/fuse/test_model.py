"""Random sequences of operations on a writable mount, on the kernel's own mount of the same image, and on a model.

After every operation the three must have answered the same, and show the same of what it touched. Every now and then,
and at the end, their whole trees are compared and e2fsck judges what ``.mystfuse/image`` has become. A mount serves
many sequences, each in a directory of its own that is removed afterwards: blocks and inodes are used again, and none
may leak.

    MYSTFUSE_MODEL_EXAMPLES=2000 pytest tests/fuse/test_model.py  # so many sequences per configuration, always others
    MYSTFUSE_MODEL_SEED=7 ...                                  # these again
    MYSTFUSE_MODEL_PEER=kernel ...                             # the kernel against itself: judges this test

A failure prints the sequence as it goes into REGRESSIONS, and names a file with everything the mount had served before.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import stat
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from removal import remove_tree, temporary_directory

from tests.support.commands import mystfuse, run
from tests.support.model_ops import (
    ACCESS_ACL,
    ACLS,
    CAPABILITY,
    DEFAULT_ACL,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    At,
    Chmod,
    ChmodHandle,
    Chown,
    CloseHandle,
    Create,
    Drain,
    Failed,
    Fill,
    GetXattr,
    Link,
    List,
    ListXattr,
    LookAt,
    Mkdir,
    Mknod,
    Model,
    Mounted,
    Node,
    Open,
    OpenHandle,
    Operation,
    Read,
    ReadHandle,
    Readlink,
    RemoveXattr,
    Rename,
    Rmdir,
    SetAcl,
    SetXattr,
    StatHandle,
    Symlink,
    SyncHandle,
    Truncate,
    TruncateHandle,
    Unlink,
    Utime,
    Write,
    WriteHandle,
    agree,
    boundaries,
    differences,
    is_numbered,
    numbered_name,
    shorten,
    spell,
)
from tests.support.mounts import mounted

EXAMPLES = os.environ.get("MYSTFUSE_MODEL_EXAMPLES")
SEED = os.environ.get("MYSTFUSE_MODEL_SEED")
PEER = os.environ.get("MYSTFUSE_MODEL_PEER", "mystfuse")
DEFAULT_EXAMPLES, STEPS, STEPS_BETWEEN_CHECKS = 7, 50, 25

FSCK_WITH_UNLINKED_OPEN_FILES = PEER != "kernel"
"""Whether the image must be clean while files are open that have lost their last name. ext2 keeps no list of orphans:
on the kernel's own side it is not, but ``.mystfuse/image`` shows them released."""

IMAGE_SIZE, INODES, SEEDS, SEED_ENTRIES = "32M", 8192, 4, 300


@dataclass(frozen=True)
class Configuration:
    block_size: int
    inode_size: int
    indexed: bool
    encrypted: bool = False
    stored: bool = False
    """With an overlay store, and all that is written put there at once."""

    def __str__(self) -> str:
        kind = "-encrypted" if self.encrypted else "-stored" if self.stored else ""
        return f"{self.block_size}-{self.inode_size}-{'index' if self.indexed else 'linear'}{kind}"


CONFIGURATIONS = [
    Configuration(block_size, inode_size, indexed)
    for block_size in (1024, 4096)
    for inode_size in (128, 256)
    for indexed in (True, False)
] + [Configuration(1024, 256, indexed=True, encrypted=True), Configuration(1024, 256, indexed=True, stored=True)]

ALWAYS_SHORT = """
from mystfuse.overlay.space import Space
Space._is_short = lambda self: True
"""
"""A sitecustomize.py, which Python runs first of all: memory is always short."""


@dataclass(frozen=True)
class Sequence:
    """Operations and the directory they begin with: ``empty``, ``small`` (PRELUDE), or ``seed``, which mke2fs made."""

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

REGRESSIONS: list[Sequence] = [
    # A rename made the directory longer; after that, no name could be added to it.
    Sequence(
        "empty",
        [
            Mkdir("d"),
            Fill("d", 200, 20),
            *(Rename(f"d/{numbered_name(number, 20)}", f"d/{numbered_name(number, 200)}", 0) for number in range(60)),
            Create("d/a"),
            Mkdir("d/e"),
            Drain("d", 200, 20, 1),
        ],
    ),
    # The first and the last second that an inode can hold have no nanoseconds.
    Sequence(
        "empty",
        [
            *(Create(name) for name in "abc"),
            Utime("a", -2147483647_000000001),
            Utime("b", 15032385535_999999999),
            Utime("c", 2147483647_999999999),
        ],
    ),
]
"""Sequences that failed once, as the failures print them. They run always, in every configuration."""


# Images and mounts


def make_seed(root: Path) -> None:
    """The directory that mke2fs puts into the image: a large directory, and one of every kind that operations name."""
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
    """An EXT2 image with as many copies of the seed as a mount can serve."""
    image, source = directory / "pristine", directory / "source"
    make_seed(source / "seed-0")
    for number in range(1, SEEDS):
        run("cp", "-a", source / "seed-0", source / f"seed-{number}")
    feature = "dir_index" if configuration.indexed else "^dir_index"
    # Small groups, so that both block sizes have several.
    run("mke2fs", "-q", "-F", "-t", "ext2", "-b", str(configuration.block_size), "-I", str(configuration.inode_size),
        "-O", feature, "-g", str(8192 if configuration.block_size == 1024 else 2048), "-N", str(INODES),
        "-E", "lazy_itable_init=0", "-d", source, image, IMAGE_SIZE)  # fmt: skip
    # mke2fs does not index the directories that it fills, e2fsck does.
    assert run("e2fsck", "-fyD", image, check=False).returncode in (0, 1)
    assert run("e2fsck", "-fn", image, check=False).returncode == 0
    remove_tree(source)
    return image


@contextmanager
def kernel_mounted(pristine: Path, image: Path, mountpoint: Path) -> Iterator[Path]:
    """The kernel's mount of a copy; the loop device goes with it."""
    mountpoint.mkdir(exist_ok=True)
    run("cp", "--sparse=always", pristine, image)
    run("mount", "-t", "ext2", "-o", "loop,noatime,acl,user_xattr", image, mountpoint)
    try:
        yield mountpoint
    finally:
        if run("umount", mountpoint, check=False).returncode:
            run("umount", "--lazy", mountpoint)
        image.unlink()


def copy_sparsely(source: Path, target: Path) -> None:
    """Copy what ends where reading ends, whatever its status says."""
    with source.open("rb", buffering=0) as reader, target.open("wb", buffering=0) as writer:
        size = 0
        while data := reader.read(1 << 20):
            if data.count(0) != len(data):
                os.pwrite(writer.fileno(), data, size)
            size += len(data)
        writer.truncate(size)


class Pair:
    """The two mounts of one image, the kernel's and the one under test, with a history since they were mounted."""

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
        """Begin, or begin anew, from the very same image."""
        self.close()
        directory = self._directory
        self.kernel = self._mounts.enter_context(
            kernel_mounted(self._pristine, directory / "kernel.img", directory / "kernel")
        )
        options, environment = list(self._options), {}
        if self.configuration.stored:
            (directory / "first").mkdir(exist_ok=True)
            (directory / "first/sitecustomize.py").write_text(ALWAYS_SHORT)
            options += ["--overlay-limit=16M", f"--overlay-store={directory}"]
            environment = {"PYTHONPATH": str(directory / "first")}
        if PEER == "kernel":
            self.ours = self._mounts.enter_context(
                kernel_mounted(self._pristine, directory / "ours.img", directory / "ours")
            )
        else:
            self.ours = self._mounts.enter_context(
                mounted(self._image, directory / "ours", *options, "-o", "suid,dev", env=environment)
            )
        self._seeds = [f"seed-{number}" for number in range(SEEDS)]
        self.history = []

    def close(self) -> None:
        """Unmount, and see that the image itself is as it was."""
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
        kernel, ours = (Mounted(str(root / name), self.configuration.block_size) for root in (self.kernel, self.ours))
        return kernel, ours, Model.load(kernel)

    def check_image(self) -> None:
        """Judge by e2fsck what our image has become."""
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
        """The same number of blocks and inodes must be free on both sides, when all is removed that was made."""
        expected = _free(self.kernel)
        deadline = time.monotonic() + 5
        while (found := _free(self.ours)) != expected:
            # An inode that was open or looked up is freed a little later: FUSE does not wait for it.
            assert time.monotonic() < deadline, f"free blocks and inodes are {found} instead of {expected}"
            time.sleep(0.02)

    def save_history(self) -> Path:
        """Where everything is written down that the mounts had served at the first failure: those that follow come
        from shrinking, and begin with fresh mounts."""
        if self._saved is None:
            handle, name = tempfile.mkstemp(prefix=f"mystfuse-model-{self.configuration}-", suffix=".txt")
            with open(handle, "w", errors="backslashreplace") as file:
                file.writelines(f"{sequence!r},\n" for sequence in self.history)
            self._saved = Path(name)
        return self._saved


def _free(mountpoint: Path) -> tuple[int, int]:
    found = os.statvfs(mountpoint)
    return found.f_bfree, found.f_ffree


@pytest.fixture(scope="module", autouse=True)
def no_umask() -> Iterator[None]:
    """FUSE applies it before we see a mode, ext2 after a default ACL was looked for."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture(scope="module", params=CONFIGURATIONS, ids=str)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Both mounts of one configuration."""
    with temporary_directory("mystfuse-test-model-") as directory:
        pair = Pair(request.param, Path(directory))
        try:
            pair.mount()
            yield pair
        finally:
            pair.close()


# Running a sequence


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
        """A failure says how to get it again, and leaves fresh mounts for what comes next."""
        try:
            yield
        except AssertionError as error:
            history = self._pair.save_history()
            self.abandon()
            message = f"{error}\n{self._pair.configuration}, {self.sequence!r}\nthe first failure's past: {history}"
            raise AssertionError(message) from None

    def abandon(self) -> None:
        """Give up: what comes next begins with fresh mounts."""
        self._failed = True
        self._close_files()
        self._pair.mount()

    def step(self, operation: Operation) -> object:
        """Do one thing everywhere and compare; the kernel's result."""
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
        # Root is denied nothing but by fs.protected_symlinks and its like, of which the model knows nothing.
        if result != Failed("EACCES"):
            self.model.observed = result
            expected = operation.apply(self.model)
            if not agree(expected, result):
                raise AssertionError(f"{operation}{when}: the model says {_short(expected)}, not {_short(result)}")
        return result

    def check(self) -> None:
        """Compare the three trees, and let e2fsck judge."""
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
        """Compare everything, remove everything, and see that all space is free again."""
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


# What is drawn

NAMES = ["a", "b", "c", "f", "d", "d/a", "d/b", "d/c", "d/e", "d/e/a", "d/e/f"]
LEAVES = ["a", "b", "c", "f", "g"]
ODD_NAMES = [
    "~255",
    "d/~255",
    "~256",
    "d/~256",
    "\udcff-not-utf-8",
    "d/\u00fc\u65e5",
    "missing/a",
    "a/below",
    "c/a",
    "d/f/a",
    "a/~256",
    f"big/{numbered_name(0, 100)}",
    f"big/{numbered_name(7, 100)}",
    f"big/{numbered_name(150, 100)}",
    "big",
]


def existing(kind: Callable[[Node], bool] = lambda node: True) -> st.SearchStrategy[str]:
    """A path that leads to such a node when it is drawn, or else just a name."""
    return st.runner().flatmap(lambda machine: st.sampled_from(machine.existing_paths(kind) or NAMES))


new_names = st.builds(os.path.join, existing(lambda node: node.is_directory), st.sampled_from(LEAVES))
names = st.one_of(st.sampled_from(NAMES), new_names)
paths = st.one_of(existing(), names, existing(), st.sampled_from(ODD_NAMES))
new_paths = st.one_of(names, names, paths)
files = st.one_of(existing(lambda node: node.is_file), existing(lambda node: node.is_file), paths)
removable = st.one_of(existing(lambda node: node.is_directory and not node.entries), paths)
crowded = st.one_of(existing(lambda node: node.is_directory), st.sampled_from(["d", "", "d/e", "big"]))
anything = st.one_of(paths, st.just("."))
modes = st.sampled_from([0o644, 0o755, 0, 0o7777, 0o4755, 0o2755, 0o2644, 0o1777, 0o6711, 0o444])
fills = st.integers(0, 255)
slots = st.one_of(st.runner().flatmap(lambda machine: st.sampled_from(machine.open_slots() or [0])), st.integers(0, 2))
offsets = st.builds(
    At,
    st.sampled_from(range(len(boundaries(1024)))),
    st.sampled_from([0, -1, 1, -2, 2]),
    st.sampled_from([0, -1, 1, -3, 3, 100, 512]),
)
near_offsets = st.builds(At, st.just(0), st.integers(0, 14), st.sampled_from([0, -1, 1, 100, 512]))
places = st.one_of(offsets, near_offsets)
lengths = st.one_of(
    st.builds(At, st.just(0), st.just(0), st.sampled_from([1, 10, 0, 511, 700])),
    st.builds(At, st.just(0), st.integers(1, 4), st.sampled_from([0, -1, 1, 5])),
    st.builds(At, st.just(0), st.integers(5, 14)),
)
devices = st.sampled_from([(1, 3), (0, 0), (255, 255), (256, 1), (300, 70_000), (4095, 1_048_575)])
xattr_names = st.sampled_from(
    ["user.a", "user.b", "user.c", "trusted.c", "user.~250", "user.~251", "security.other", CAPABILITY]
)
present_xattrs = st.runner().flatmap(lambda machine: st.sampled_from(machine.existing_xattrs() or [("a", "user.a")]))
xattr_sizes = st.one_of(
    st.sampled_from([0, 1, 10, 30, 60]),
    st.sampled_from([100, 500, 900, 960, 1000, 1024]),
    st.sampled_from([2000, 3900, 4000, 4030, 4096, 5000]),
)
open_flags = st.builds(
    lambda access, *others: access | sum(others),
    st.sampled_from([os.O_RDWR, os.O_RDONLY, os.O_WRONLY]),
    st.sampled_from([0, os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_DIRECTORY, os.O_NOFOLLOW]),
    st.sampled_from([0, 0, os.O_TRUNC]),
    st.sampled_from([0, 0, os.O_APPEND]),
)
LIMITS_OF_TIME = [2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**33, 15_032_385_535, 15_032_385_536, -(2**31), -(2**31) - 1]
"""Seconds: where 32 bits end, where the two more bits of large inodes do, and around."""
times = st.one_of(
    st.sampled_from([0, 1, -1, 10**18 + 123_456_789, -(10**9) - 1, 1_600_000_000_999_999_999]),
    st.builds(
        lambda seconds, nanoseconds: seconds * 10**9 + nanoseconds,
        st.sampled_from(LIMITS_OF_TIME),
        st.sampled_from([0, 1, 999_999_999]),
    ),
)  # fmt: skip


class Sequences(RuleBasedStateMachine):
    """Draws operations, kind by kind; hypothesis leaves out kinds at random, so that others have more to do."""

    def __init__(self, pair: Pair, on_step: Callable[[Operation, object], None]) -> None:
        super().__init__()
        self._pair = pair
        self._on_step = on_step
        self._run: Run | None = None

    @initialize(start=st.sampled_from(["small", "small", "small", "seed", "empty"]))
    def begin(self, start: str) -> None:
        self._run = Run(self._pair, start)

    def existing_paths(self, kind: Callable[[Node], bool]) -> list[str]:
        """The paths there are, but for most of those that only fill a directory."""
        assert self._run is not None
        found = [path for path, node in self._run.model.walk() if path and kind(node)]
        return [shorten(path) for path in found if not is_numbered(path) or path.rpartition("/")[2].startswith("000")]

    def existing_xattrs(self) -> list[tuple[str, str]]:
        """The extended attributes there are, each with its path."""
        assert self._run is not None
        return [
            (shorten(path), shorten(name))
            for path, node in self._run.model.walk()
            if path
            for name in sorted(node.xattrs)
        ]

    def open_slots(self) -> list[int]:
        return sorted(self._run.model.slots) if self._run else []

    def step(self, operation: Operation) -> None:
        assert self._run is not None
        self._on_step(operation, self._run.step(operation))

    def teardown(self) -> None:
        if self._run is not None:
            self._run.finish()

    @rule(
        operation=st.one_of(
            st.builds(Create, new_paths, modes),
            st.builds(Open, files, open_flags, modes),
            st.builds(
                Mknod, new_paths, st.sampled_from([stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK]).flatmap(
                    lambda kind: modes.map(lambda mode: kind | mode)
                )
            ),
            devices.flatmap(
                lambda device: st.builds(
                    Mknod, new_paths, st.sampled_from([stat.S_IFCHR | 0o600, stat.S_IFBLK | 0o666]), st.just(device[0]),
                    st.just(device[1]),
                )
            ),
        )
    )  # fmt: skip
    def create(self, operation: Operation) -> None:
        self.step(operation)

    @rule(
        operation=st.one_of(
            st.builds(Mkdir, new_paths, modes), st.builds(Mkdir, new_paths), st.builds(Rmdir, removable)
        )
    )
    def directories(self, operation: Operation) -> None:
        self.step(operation)

    @rule(
        operation=st.one_of(
            st.builds(Link, files, new_paths),
            st.builds(Symlink, new_paths, st.sampled_from(["a", "b", "c", "d", "d/a", "e", "missing", "d/new"])),
            st.builds(
                Symlink, new_paths, st.just("s"),
                st.sampled_from([1, 58, 59, 60, 61, 300, 1022, 1023, 1024, 4094, 4095, 4096]),
            ),
            st.builds(Readlink, st.one_of(existing(lambda node: node.target != ""), paths)),
            st.builds(List, anything),
        )
    )  # fmt: skip
    def links(self, operation: Operation) -> None:
        self.step(operation)

    @rule(operation=st.builds(Unlink, st.one_of(files, paths)))
    def unlink(self, operation: Operation) -> None:
        self.step(operation)

    @rule(
        operation=st.builds(
            Rename, paths, st.one_of(paths, new_paths),
            st.sampled_from([0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_EXCHANGE | RENAME_NOREPLACE]),
        )
    )  # fmt: skip
    def rename(self, operation: Operation) -> None:
        self.step(operation)

    @rule(
        operation=st.builds(
            Write, files, places, lengths, fills, st.sampled_from([os.O_CREAT, 0, os.O_APPEND, os.O_CREAT | os.O_TRUNC])
        )
    )
    def write(self, operation: Operation) -> None:
        self.step(operation)

    @rule(operation=st.one_of(st.builds(Truncate, files, places), st.builds(Read, files, places, lengths)))
    def truncate(self, operation: Operation) -> None:
        self.step(operation)

    @rule(
        operation=st.one_of(
            st.builds(Chmod, anything, modes),
            st.builds(
                Chown, anything, st.sampled_from([0, -1, 1000, 65_535, 65_536, 2**32 - 2]),
                st.sampled_from([0, -1, 1000, 70_000]), st.booleans(),
            ),
            st.builds(Utime, anything, times, st.booleans()),
        )
    )  # fmt: skip
    def attributes(self, operation: Operation) -> None:
        self.step(operation)

    @rule(
        operation=st.one_of(
            st.builds(
                SetXattr, anything, xattr_names, xattr_sizes, fills,
                st.sampled_from([0, os.XATTR_CREATE, os.XATTR_REPLACE]), st.booleans(),
            ),
            st.builds(SetXattr, anything, xattr_names, xattr_sizes, fills),
            st.builds(SetXattr, files, xattr_names, xattr_sizes, fills),
            present_xattrs.flatmap(
                lambda found: st.one_of(
                    st.just(GetXattr(found[0], found[1], False)),
                    st.just(RemoveXattr(found[0], found[1], False)),
                    st.builds(
                        SetXattr, st.just(found[0]), st.just(found[1]), xattr_sizes, fills, st.just(os.XATTR_REPLACE),
                        st.just(False),
                    ),
                )
            ),
            st.builds(GetXattr, anything, xattr_names, st.booleans()),
            st.builds(RemoveXattr, anything, xattr_names, st.booleans()),
            st.builds(ListXattr, anything, st.booleans()),
        )
    )  # fmt: skip
    def xattrs(self, operation: Operation) -> None:
        self.step(operation)

    @rule(
        operation=st.one_of(
            st.builds(
                SetAcl, anything, st.sampled_from([ACCESS_ACL, DEFAULT_ACL]), st.sampled_from(list(ACLS)), st.booleans()
            ),
            st.builds(RemoveXattr, anything, st.sampled_from([ACCESS_ACL, DEFAULT_ACL])),
            st.builds(GetXattr, anything, st.sampled_from([ACCESS_ACL, DEFAULT_ACL])),
        )
    )  # fmt: skip
    def acls(self, operation: Operation) -> None:
        self.step(operation)

    @rule(
        operation=st.one_of(
            st.builds(Fill, crowded, st.sampled_from([5, 30, 100, 400]), st.sampled_from([20, 100, 250])),
            st.builds(
                Drain, crowded, st.sampled_from([30, 100, 400]), st.sampled_from([20, 100, 250]), st.integers(1, 3)
            ),
        )
    )
    def many_names(self, operation: Operation) -> None:
        self.step(operation)

    @rule(operation=st.builds(OpenHandle, st.integers(0, 2), files, st.just(os.O_RDWR | os.O_CREAT) | open_flags))
    def open_handle(self, operation: Operation) -> None:
        self.step(operation)

    @precondition(lambda self: self.open_slots())
    @rule(
        operation=st.one_of(
            st.builds(WriteHandle, slots, places, lengths, fills),
            st.builds(TruncateHandle, slots, places),
            st.builds(ReadHandle, slots, places, lengths),
            st.builds(ChmodHandle, slots, modes),
            st.builds(StatHandle, slots),
            st.builds(SyncHandle, slots),
            st.builds(CloseHandle, slots),
        )
    )
    def use_handle(self, operation: Operation) -> None:
        self.step(operation)


# Tests


LEVELS = range(len(boundaries(1024)))


def boundary_sequence(level: int) -> Sequence:
    """Writing up to, across and from a boundary of the block map, and cutting there; with a name and without."""
    operations: list[Operation] = []
    around = [At(level, blocks, extra) for blocks in (-1, 0, 1) for extra in (-1, 0, 1)]
    for at in around:
        for length in (At(extra=2), At(blocks=2)):
            operations += [Write("g", at, length, 1, os.O_CREAT), Truncate("g", at), Truncate("g", At(level, 2, 5))]
        operations += [Read("g", At(level, -2), At(blocks=4)), Truncate("g", At(extra=5))]
    operations += [
        OpenHandle(0, "g", os.O_RDWR),
        Link("g", "h"),
        Unlink("g"),
        StatHandle(0),
        Unlink("h"),
        StatHandle(0),
    ]
    for at in around:
        operations += [WriteHandle(0, at, At(blocks=1), 2), ReadHandle(0, At(level, -2), At(blocks=4))]
    for at in reversed(around):
        operations += [TruncateHandle(0, at), ReadHandle(0, At(level, -2), At(blocks=4))]
    return Sequence("empty", [*operations, ChmodHandle(0, 0o4711), SyncHandle(0), CloseHandle(0), StatHandle(0)])


@pytest.mark.parametrize("level", LEVELS)
def test_every_boundary_of_the_block_map(pair: Pair, level: int) -> None:
    run_sequence(pair, boundary_sequence(level))


def run_sequence(pair: Pair, sequence: Sequence) -> None:
    running = Run(pair, sequence.start)
    for operation in sequence.operations:
        running.step(operation)
    running.finish()


@pytest.mark.parametrize("sequence", REGRESSIONS, ids=lambda sequence: f"{len(sequence.operations)}-operations")
def test_sequence_that_failed_once(pair: Pair, sequence: Sequence) -> None:
    run_sequence(pair, sequence)


def test_random_sequences_agree(pair: Pair, record_property: Callable[[str, Any], None]) -> None:
    kind = zlib.crc32(str(pair.configuration).encode())
    number = kind + int(SEED) if SEED else random.randrange(1 << 32) if EXAMPLES else kind
    counts: dict[str, list[int]] = {}

    def count(operation: Operation, result: object) -> None:
        counts.setdefault(type(operation).__name__, [0, 0])[isinstance(result, Failed)] += 1

    def machine() -> Sequences:
        return Sequences(pair, count)

    run_state_machine_as_test(
        seed(number)(machine),  # type: ignore[arg-type]  # any callable will do
        settings=settings(
            max_examples=int(EXAMPLES or DEFAULT_EXAMPLES),
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        ),
    )
    record_property("seed", number)
    print(f"seed {number}; succeeded and failed: {dict(sorted(counts.items()))}")


def test_comparison_sees_differences(pair: Pair) -> None:
    """Whatever is changed on our side alone is found."""

    def replace_link(side: Mounted) -> None:
        side.unlink("c")
        side.symlink("d/b", "c")

    def copy_link(side: Mounted) -> None:
        side.unlink("d/b")
        shutil.copy2(f"{side.root}/a", f"{side.root}/d/b")

    tricks: dict[str, Callable[[Mounted], object]] = {
        "'d/e': status": lambda side: side.chmod("d/e", 0o700),
        "'a': mtime": lambda side: side.utime("a", 1, follow=True),
        "'d': xattrs": lambda side: side.setxattr("d", "user.new", b"", 0, follow=True),
        "'a': status": lambda side: side.truncate("a", 10),
        "'a': sha256": lambda side: Write("a", At(), At(extra=1), 77).apply(side),
        "'': names": lambda side: side.rename("a", "A", 0),
        "'c': target": replace_link,
        "'d/b': same as": copy_link,
    }
    for expected, trick in tricks.items():
        running = Run(pair, "small")
        running.step(Utime("a", 10**18))
        trick(running.ours)
        with pytest.raises(AssertionError, match=f"(?s)ours differs.*{expected} is"):
            running.check()
        running.abandon()

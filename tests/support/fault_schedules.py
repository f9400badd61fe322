"""Images for storage that lies, and schedules of operations over it, each decided by a seed.

What a schedule asserts: a reader gets the right bytes or an error, at once or within the I/O time-out, whatever storage
does; and when storage behaves again, everything reads right.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import random
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Timer
from typing import Any

import trio
import trio.testing

from mystfuse.crypto.secret import Secret
from mystfuse.devices.verity import VerityDevice
from mystfuse.errors import FormatError, ImageReadError, IntegrityError, WrongKey, innermost
from mystfuse.ext2.caller import Caller
from mystfuse.ext2.setattr import AttributeChanges
from mystfuse.image.keys import Keys
from mystfuse.image.open import TrustedImage, open_image
from mystfuse.image.pipeline import Pipeline, run_pipeline
from mystfuse.system.workers import Workers
from mystfuse.tree.image_tree import ImageTree
from mystfuse.trust.policy import TrustPolicy
from mystfuse.volume.file_reader import Reader
from mystfuse.volume.volume import Volume
from tests.support.commands import mystfuse, run
from tests.support.ext2_editor import assert_clean, listed, merged
from tests.support.faulty_source import FaultySource, Liar

ROOT_INO = 2
ROOT = Caller(0, 0)
IO_TIMEOUT = 1.0
"""Seconds, of the event loop's clock."""
MAX_SECONDS = IO_TIMEOUT + 5
"""Seconds of the event loop's clock that an operation may take."""
DEADLOCK = 60
"""Real seconds after which a schedule is abandoned."""
ALLOWED = (IntegrityError, ImageReadError)

KINDS: dict[str, tuple[list[str], list[str]]] = {
    "plain": (["--block-size=1024"], []),
    "plain, small blocks, SHA-512": (
        ["--block-size=1024"],
        ["--hash=sha512", "--data-block-size=1024", "--hash-block-size=1024", "--salt=-"],
    ),
    "LUKS1": (["--encrypt", "--block-size=4096"], []),
    "LUKS1, tiny hash blocks, long salt": (
        ["--encrypt", "--block-size=1024"],
        ["--data-block-size=1024", "--hash-block-size=512", "--format=0", f"--salt={'c5' * 256}"],
    ),
    "ext4": (["--type=ext4", "--block-size=1024"], []),
    "LUKS2, SHA-512": (["--encrypt", "--luks2"], ["--hash=sha512", "--data-block-size=4096", "--hash-block-size=4096"]),
}
"""Options of mkext2, and of veritysetup where it makes another tree."""


@dataclass(frozen=True)
class Subject:
    """An image, an older version of it, and their contents."""

    name: str
    path: Path
    root_hash: bytes
    hash_offset: int
    key: bytes | None
    content: bytes = field(repr=False)
    stale: bytes = field(repr=False)
    source: Path
    inos: dict[str, int] = field(default_factory=dict)
    """path -> inode number."""

    @property
    def key_options(self) -> list[str]:
        return [f"--key-file={self.path.parent / 'key'}"] if self.key else []

    def keys(self) -> Keys:
        return Keys(Secret.copy_of(self.key)) if self.key else Keys()

    def open(self, source: FaultySource) -> TrustedImage:
        return open_image(source, TrustPolicy(), self.hash_offset, self.root_hash)


def make_source(directory: Path, seed: int) -> Path:
    """A tree of files; another seed gives the same tree with other contents."""
    noise = random.Random(seed)
    for name in ("many", "a/b"):
        (directory / name).mkdir(parents=True)
    for index, size in enumerate((0, 1, 700, 4096, 30_000, 100_000, 700_000)):
        (directory / f"a/file{index}").write_bytes(noise.randbytes(size))
    for index in range(150):
        (directory / f"many/{index:03} {'x' * 60}").write_bytes(b"%d %d" % (seed, index))
    with (directory / "sparse").open("wb") as file:
        for position in (5000, 300_000, 900_000):
            file.seek(position)
            file.write(noise.randbytes(3000))
    (directory / "fast").symlink_to("a/b")
    (directory / "slow").symlink_to("y" * 90 + noise.choice("abcdef"))
    os.setxattr(directory / "a/file1", "user.note", noise.randbytes(40))
    for path in [directory, *directory.rglob("*")]:
        os.utime(path, (1_600_000_000 + seed,) * 2, follow_symlinks=False)
    return directory


def make_subject(kind: str, directory: Path) -> Subject:
    """Make an image with mkext2 (its tree with veritysetup if asked for), and an older version."""
    options, tree = KINDS[kind]
    (directory / "key").write_bytes(key := random.Random(7).randbytes(64))
    (directory / "key").chmod(0o600)
    options = [f"--encrypt={directory / 'key'}" if option == "--encrypt" else option for option in options]
    images: list[Path] = []
    offset, root = 0, ""
    for seed in (2, 1):
        source, image = make_source(directory / f"source{seed}", seed), directory / f"{seed}.img"
        result = mystfuse("mkext2", "--uuid=6a8f7bde-5a0f-4a0c-9e0e-2f4bdbd0f9a1", f"--salt={'5a' * 32}", *options,
                          source, image, env={"SOURCE_DATE_EPOCH": "1700000000"})  # fmt: skip
        assert result.returncode == 0, result.stderr
        fields = dict(line.split("=") for line in mystfuse("fssig", image).stdout.splitlines())
        offset, root = int(fields["hash_offset"]), fields["root_hash"]
        if tree:
            os.truncate(image, offset)
            said = run("veritysetup", "format", *tree, f"--hash-offset={offset}", image, image).stdout
            root = said.split("Root hash:")[1].strip()
        images.append(image)
    stale, content = (image.read_bytes() for image in images)
    key_or_none = key if "--encrypt" in KINDS[kind][0] else None
    subject = Subject(kind, image, bytes.fromhex(root), offset, key_or_none, content, stale, source)
    trio.run(_find_inodes, subject)
    return subject


async def _find_inodes(subject: Subject) -> None:
    liar = Liar(subject.content, subject.stale, 0, 0)
    async with run_pipeline(
        subject.open(FaultySource(liar, len(subject.content), 1, 0)), subject.keys(), 9, _quiet
    ) as it:
        tree = ImageTree(await Volume.open(it.device), None)  # type: ignore[arg-type]  # nobody asks for it here
        for path in subject.source.rglob("*"):
            name = str(path.relative_to(subject.source))
            subject.inos[name] = (await tree.lstat(name)).st_ino


@contextmanager
def _quiet(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    yield lambda count: None


class Tracebacks(logging.Handler):
    """Collects log records with a traceback."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.found.append(f"{record.getMessage()}: {record.exc_info[1]!r}")


@dataclass
class Tally:
    """The results of schedules."""

    right: int = 0
    """Right answers."""
    errors: Counter[str] = field(default_factory=Counter)
    """Answers that were errors, by kind."""
    done: Counter[str] = field(default_factory=Counter)
    """The faults of storage, by kind."""
    refused: int = 0
    """Images that failed to open."""
    slowest: float = 0.0
    """Seconds of the event loop's clock."""

    def add(self, other: Tally) -> None:
        self.right += other.right
        self.errors += other.errors
        self.done += other.done
        self.refused += other.refused
        self.slowest = max(self.slowest, other.slowest)


class Schedule:
    """One seed's schedule over a subject."""

    def __init__(self, subject: Subject, seed: int) -> None:
        self.tally = Tally()
        self._subject = subject
        self._seed = seed
        self._dice = dice = random.Random(seed)
        self._tasks = dice.choice((1, 1, 2, 4))
        liar = Liar(subject.content, subject.stale, seed, 0.0)
        self._rate = dice.choice((0.02, 0.1, 0.3, 0.6))
        # Each unanswered read takes a real moment, until the clock jumps.
        hangs = dice.choice((0, 0, 0, 1, 2)) if seed % 97 else 40
        self.source = FaultySource(liar, len(subject.content), dice.choice((0.0, 0.5, 1.0)), hangs)
        self._files = {
            path: bytearray((subject.source / path).read_bytes())
            for path in subject.inos
            if stat.S_ISREG((subject.source / path).lstat().st_mode)
        }
        """The expected contents of every file."""
        self._inos = dict(subject.inos)
        self._written: dict[int, str] = {}
        """By task, the file that only this task writes and reads."""
        self._new: dict[str, str] = {}
        """By path, the directories in which tasks have made names."""

    def run(self) -> None:
        """Run all of it; raises on any broken promise."""
        tracebacks = Tracebacks()
        log = logging.getLogger("mystfuse")
        log.addHandler(tracebacks)
        # pytest would keep every record, with its errors and the buffers in their frames.
        log.propagate = False
        self._is_over = False
        # If tasks only wait for each other, no timer is left to which the clock could jump, and the loop sleeps for
        # ever.
        timer = Timer(DEADLOCK, self._give_up)
        timer.start()
        try:
            trio.run(self._main, clock=trio.testing.MockClock(autojump_threshold=0.02))
        finally:
            timer.cancel()
            self.source.release()
            log.removeHandler(tracebacks)
            log.propagate = True
        assert not tracebacks.found, (self._seed, tracebacks.found)
        self.tally.done = self.source.liar.done

    def _give_up(self) -> None:
        self._token.run_sync_soon(self._scope.cancel)

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        with trio.CancelScope() as self._scope:
            if self._seed % 5 == 0:
                await self._open_hostile()
            else:
                await self._open_and_work()
            return
        raise AssertionError(f"seed {self._seed}: hung")

    async def _open_hostile(self) -> None:
        """Storage lies from the first byte on; then the geometry of the tree may be wrong for good."""
        self.source.liar.rate = self._rate
        # The command line opens an image before the loop starts, and without a time-out.
        hangs, self.source.hangs = self.source.hangs, 0
        try:
            image = self._subject.open(self.source)
            self.source.hangs = hangs
            async with run_pipeline(image, self._subject.keys(), IO_TIMEOUT, _quiet) as pipeline:
                try:
                    volume = await Volume.open(pipeline.device, 4 << 20)
                    self._shrink_caches(pipeline, volume)
                except ALLOWED:
                    self.tally.refused += 1
                    return
                await self._work(volume)
        except* (*ALLOWED, FormatError) as group:
            assert not isinstance(innermost(group), WrongKey)
            self.tally.refused += 1

    async def _open_and_work(self) -> None:
        threads = self._dice.choice((0, 0, 2))
        image = self._subject.open(self.source)
        async with run_pipeline(image, self._subject.keys(), math.inf, _quiet) as pipeline:
            workers = Workers(threads)
            try:
                volume = await Volume.open(pipeline.device, 4 << 20, workers)
                self._shrink_caches(pipeline, volume)
                pipeline.reader._io_timeout = IO_TIMEOUT
                self.source.liar.rate = self._rate
                await self._work(volume)
                self.source.release()
                # Threads that waited for storage end now, in real time.
                pipeline.reader._io_timeout = math.inf
                while pipeline.reader._threads:
                    await trio.sleep(0.01)
                await self._check_everything(volume)
                if self._seed % 40 == 1:
                    assert_clean(await merged(volume), self._subject.path.parent / f"merged-{os.getpid()}")
            finally:
                workers.close()

    def _shrink_caches(self, pipeline: Pipeline, volume: Volume) -> None:
        """Make it read hash blocks and metadata again and again."""
        assert pipeline.verity is not None
        verity = pipeline.verity
        cache_bytes = self._dice.choice((0, 0, 1000 * verity.superblock.hash_block_size))
        smaller = VerityDevice(
            pipeline.reader, verity.superblock, verity.geometry, self._subject.root_hash, cache_bytes
        )
        verity.tree = smaller.tree
        volume.cache._max_blocks = self._dice.choice((1, 8, 1000))

    async def _work(self, volume: Volume) -> None:
        async with trio.open_nursery() as nursery:
            for task in range(self._tasks):
                nursery.start_soon(self._work_as, volume, task, random.Random(f"{self._seed} {task}"))

    async def _work_as(self, volume: Volume, task: int, dice: random.Random) -> None:
        self._written[task] = f"a/file{2 + task}"
        await trio.lowlevel.checkpoint()
        operations = [self._read, self._read, self._read_on, self._list, self._look_up, self._metadata, self._by_path]
        changes = [self._write, self._write, self._create, self._truncate, self._remove]
        for _ in range(6):
            operation = dice.choice(operations if dice.random() < 0.6 else changes)
            began = trio.current_time()
            try:
                await operation(volume, task, dice)
                self.tally.right += 1
            except ALLOWED as error:
                self.tally.errors[type(error).__name__] += 1
            except OSError as error:
                # Every group's bitmap failed to read.
                assert error.errno == errno.ENOSPC and operation in changes, error
                self.tally.errors["ENOSPC"] += 1
            took = trio.current_time() - began
            self.tally.slowest = max(self.tally.slowest, took)
            assert took <= MAX_SECONDS, (self._seed, operation.__name__, took)

    def _readable(self, task: int) -> list[str]:
        others = {path for owner, path in self._written.items() if owner != task}
        return [path for path in self._files if path not in others and self._new.get(path, task) == task]

    async def _read(self, volume: Volume, task: int, dice: random.Random) -> None:
        path = dice.choice(self._readable(task))
        content = self._files[path]
        offset = dice.randrange(len(content) + 10)
        length = dice.choice((1, 4096, 70_000, 131_072, 1 << 20))
        data = await volume.read(self._inos[path], offset, length)
        assert bytes(data) == content[offset : offset + length], (self._seed, path, offset, length)

    async def _read_on(self, volume: Volume, task: int, dice: random.Random) -> None:
        """From front to back, with read-ahead."""
        path = dice.choice(["a/file5", "a/file6", "sparse", self._written[task]])
        if path not in self._readable(task):
            return
        content, reader = self._files[path], Reader()
        for offset in range(0, len(content), 131_072):
            data = await volume.read(self._inos[path], offset, 131_072, reader)
            assert bytes(data) == content[offset : offset + 131_072], (self._seed, path, offset)

    async def _list(self, volume: Volume, task: int, dice: random.Random) -> None:
        directory = dice.choice(("", "a", "many"))
        found = await listed(volume, self._inos.get(directory, ROOT_INO), dice.choice((7, 512)))
        self._check_listing(directory, found, is_exact=False)

    def _check_listing(self, directory: str, found: list[tuple[bytes, Any]], is_exact: bool) -> None:
        names = [name.decode() for name, _ in found]
        assert len(set(names)) == len(names)
        base = set(os.listdir(self._subject.source / directory)) | (set() if directory else {"lost+found"})
        own = {os.path.basename(path) for path, where in self._where.items() if where == directory}
        assert base <= set(names), (self._seed, directory, base - set(names))
        may = own if is_exact else {f"new{task}" for task in range(self._tasks)}
        assert set(names) - base <= may, (self._seed, directory)
        if is_exact:
            assert set(names) == base | own, (self._seed, directory)
        for name, inode in found:
            path = os.path.join(directory, name.decode())
            if inode is None:
                assert not is_exact, (self._seed, path)
            elif path in self._inos:
                assert inode.ino == self._inos[path], (self._seed, path)
                if path in self._subject.inos:
                    assert inode.i_mode == (self._subject.source / path).lstat().st_mode, (self._seed, path)

    @property
    def _where(self) -> dict[str, str]:
        return {path: os.path.dirname(path) for path in self._new}

    async def _look_up(self, volume: Volume, task: int, dice: random.Random) -> None:
        if dice.random() < 0.3:
            directory = dice.choice((ROOT_INO, self._inos["a"], self._inos["many"]))
            assert await volume.lookup(directory, b"%d is not there" % dice.randrange(5)) is None
            return
        path = dice.choice(sorted(self._subject.inos))
        await self._check_path(volume, path)

    async def _check_path(self, volume: Volume, path: str) -> None:
        ino = self._inos.get(os.path.dirname(path), ROOT_INO)
        inode = await volume.lookup(ino, os.path.basename(path).encode())
        assert inode is not None and inode.ino == self._inos[path], (self._seed, path)
        status = (self._subject.source / path).lstat()
        assert (inode.i_mode, inode.i_links_count) == (status.st_mode, status.st_nlink), (self._seed, path)

    async def _metadata(self, volume: Volume, task: int, dice: random.Random) -> None:
        match dice.randrange(3):
            case 0:
                await self._check_links(volume)
            case 1:
                await self._check_xattrs(volume)
            case 2:
                assert (await volume.statistics()).blocks > 0

    async def _check_links(self, volume: Volume) -> None:
        for link in ("fast", "slow"):
            assert (await volume.target(self._inos[link])).decode() == os.readlink(self._subject.source / link)

    async def _check_xattrs(self, volume: Volume) -> None:
        source = self._subject.source / "a/file1"
        assert await volume.xattrs(self._inos["a/file1"]) == {b"user.note": os.getxattr(source, "user.note")}
        assert await volume.xattrs(self._inos["many"]) == {}

    async def _by_path(self, volume: Volume, task: int, dice: random.Random) -> None:
        tree = ImageTree(volume, None)  # type: ignore[arg-type]  # nobody asks for it here
        path = dice.choice([path for path in self._readable(task) if path not in self._new])
        assert await tree.read_file(path) == self._files[path], (self._seed, path)

    async def _write(self, volume: Volume, task: int, dice: random.Random) -> None:
        path = dice.choice([self._written[task], *(path for path in self._new if self._new[path] == task)])
        content = self._files[path]
        offset = dice.choice((0, 100, 1024, 5000, len(content)))
        data = dice.randbytes(dice.choice((1, 100, 1024, 9000)))
        count = await volume.write(self._inos[path], offset, data, ROOT)
        # Fewer where the only readable bitmaps have no more free blocks.
        assert 0 < count <= len(data)
        if len(content) < offset:
            content += bytes(offset - len(content))
        content[offset : offset + count] = data[:count]

    async def _create(self, volume: Volume, task: int, dice: random.Random) -> None:
        directory = dice.choice(("", "many"))
        path = os.path.join(directory, f"new{task}")
        if path in self._new:
            return
        inode = await volume.create(self._inos.get(directory, ROOT_INO), f"new{task}".encode(), 0o100644, ROOT)
        self._inos[path], self._new[path], self._files[path] = inode.ino, task, bytearray()

    async def _truncate(self, volume: Volume, task: int, dice: random.Random) -> None:
        path = self._written[task]
        size = dice.choice((0, 10, 1024, 5000, len(self._files[path])))
        await volume.set_attributes(self._inos[path], AttributeChanges(size=size), ROOT)
        content = self._files[path]
        self._files[path] = content[:size] + bytes(max(size - len(content), 0))

    async def _remove(self, volume: Volume, task: int, dice: random.Random) -> None:
        paths = [path for path in self._new if self._new[path] == task]
        if not paths:
            return
        path = dice.choice(paths)
        directory = self._inos.get(os.path.dirname(path), ROOT_INO)
        inode = await volume.remove(directory, os.path.basename(path).encode(), False)
        assert inode.ino == self._inos[path]
        del self._new[path], self._files[path], self._inos[path]
        await volume.release(inode.ino)

    async def _check_everything(self, volume: Volume) -> None:
        """Storage behaves: everything must be right, including cached data from before."""
        volume.cache._max_blocks = 1000
        for orphan in list(volume.orphans):
            await volume.release(orphan)
        assert not volume.orphans
        for directory in ("", "a", "a/b", "many"):
            ino = self._inos.get(directory, ROOT_INO)
            assert await volume.lookup(ino, b"not there") is None
            self._check_listing(directory, await listed(volume, ino), is_exact=True)
        for path in [*self._subject.inos][:: self._dice.randint(1, 20)]:
            await self._check_path(volume, path)
        await self._check_links(volume)
        await self._check_xattrs(volume)
        for path, content in self._files.items():
            data = await volume.read(self._inos[path], 0, 1 << 20)
            assert bytes(data) == content, (self._seed, path)

"""A commit happens whole or not at all, whichever of its allocations fails, and loses nothing; caches that it updates
are right or dropped.

MYSTFUSE_ALL_ALLOCATIONS=1 pytest tests/overlay/test_commit_failures.py    # each allocation, not every 41st
"""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import trio

from mystfuse.errors import MystfuseError
from mystfuse.ext2.blocks import Transaction
from mystfuse.ext2.caller import Caller
from mystfuse.ext2.filesystem import FileSystem
from mystfuse.ext2.rename import RENAME_EXCHANGE
from mystfuse.ext2.setattr import AttributeChanges
from mystfuse.overlay.encrypted_store import OverlayStore, open_store_file
from mystfuse.overlay.overlay import Overlay
from mystfuse.overlay.snapshot import Snapshot
from mystfuse.overlay.space import Space
from mystfuse.volume.runner import Runner
from mystfuse.volume.volume import Volume
from tests.support.commands import run
from tests.support.commit_failures import Failure, audit, failing_allocation, failing_store
from tests.support.ext2_editor import MemoryDevice, assert_clean, at, listing, merged

Injection = Callable[[int], AbstractContextManager[Failure]]
INJECTIONS: dict[str, Injection] = {"allocation": failing_allocation, "block stored": failing_store}
STRIDE = {"allocation": 1 if "MYSTFUSE_ALL_ALLOCATIONS" in os.environ else 41, "block stored": 7}
"""Every how many-th allocation fails: all would take minutes, a quarter of an hour for the file system on a busy
machine."""

# The overlay

BLOCK = 1024
BLOCKS = 400
State = list[dict[int, bytes]]
"""The contents of the present state and of each open snapshot."""


def content(seed: int) -> bytes:
    return bytes([seed]) * BLOCK


def commit(*changed: int, freed: tuple[int, ...] = (), run: tuple[int, int] | None = None, of: int = 0) -> Step:
    return Step(changed, freed, run, of)


class Step:
    """A commit to the present state (0) or to a snapshot (1 is the oldest open one): blocks to change, blocks to free,
    and the first and last block of a run."""

    def __init__(self, changed: tuple[int, ...], freed: tuple[int, ...], run: tuple[int, int] | None, of: int) -> None:
        self.changed, self.freed, self.of = changed, freed, of
        self.run = run and range(run[0], run[1] + 1)

    def do(self, overlay: Overlay, snapshots: list[Snapshot], seed: int) -> None:
        target = snapshots[self.of - 1] if self.of else overlay
        changed = {number: content(seed) for number in self.changed}
        runs = [(self.run[0], memoryview(content(seed) * len(self.run)))] if self.run else []
        target.commit(changed, self.freed, False, runs)

    def expect(self, state: State, seed: int) -> None:
        for number in (*self.changed, *(self.run or ())):
            state[self.of][number] = content(seed)
        for number in self.freed:
            state[self.of].pop(number, None)


OPEN, CLOSE = "open a snapshot", "close the oldest snapshot"

SCRIPT: list[Step | str] = [
    # So many that their count is a heap object (above CPython's small integers).
    commit(1, 2, 3, 4, 5, 6, run=(100, BLOCKS - 1)),
    commit(3, run=(10, 25)),
    commit(1, 7, freed=(2,)),
    commit(11, 12, run=(20, 30), freed=(10,)),
    OPEN,
    commit(1, 3, 40, freed=(4, 25), run=(26, 33)),
    commit(3, 50, 51, freed=(5,), of=1),
    OPEN,
    commit(1, 3, 12, freed=(6, 40)),
    commit(3, 5, freed=(51, 11), run=(60, 63), of=1),
    commit(1, 13, freed=(50,), of=2),
    CLOSE,
    commit(1, 2, 14, freed=(7, 12)),
    CLOSE,
    commit(freed=tuple(range(BLOCKS))),
]


class Played:
    """The script up to some step, and the expected result."""

    def __init__(self, store: Path | None) -> None:
        opened = None if store is None else OverlayStore(open_store_file(str(store)), BLOCK)
        self.overlay = Overlay(BLOCK, 1 << 20, opened)
        self.snapshots: list[Snapshot] = []
        self.opened: Snapshot | None = None
        self.state: State = [{}]

    async def play(self, steps: list[Step | str], first: int = 0) -> None:
        for number, step in enumerate(steps, first):
            self.do(step, number)
            self.expect(step, number)
            await self.settle()

    def do(self, step: Step | str, number: int) -> None:
        if isinstance(step, Step):
            step.do(self.overlay, self.snapshots, number)
        elif step == OPEN:
            self.opened = self.overlay.snapshot()
        else:
            self.snapshots[0].close()

    def expect(self, step: Step | str, number: int) -> None:
        if isinstance(step, Step):
            step.expect(self.state, number)
        elif step == OPEN:
            self.state.append(dict(self.state[0]))
            assert self.opened is not None
            self.snapshots.append(self.opened)
        else:
            del self.state[1], self.snapshots[0]

    async def settle(self) -> None:
        """Blocks for the store have been written."""
        spill = self.overlay._spill
        while spill is not None and spill.is_at_work:
            await trio.sleep(0)

    async def check(self) -> None:
        await self.settle()
        audit(self.overlay)
        for which, expected in zip([self.overlay, *self.snapshots], self.state, strict=True):
            for number in range(64):
                block = which.get(number)
                if isinstance(block, int):
                    block = (await which.recall([block]))[block]
                assert not isinstance(block, MystfuseError)
                # In a snapshot, and in the present state, a freed block equals one that was never written.
                if number in expected:
                    assert block == expected[number], (which, number)
                else:
                    assert block is None, (which, number)


@pytest.fixture(params=["in memory", "in the store"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path | None:
    """The store to which all blocks go as soon as they are written; None for none."""
    if request.param == "in memory":
        return None
    monkeypatch.setattr(Space, "_is_short", lambda self: True)
    return tmp_path


@pytest.mark.logs(r"^mystfuse\.(overlay|volume)")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("injection", INJECTIONS)
async def test_a_commit_to_the_overlay_or_a_snapshot_is_whole_wherever_it_fails(
    injection: str, store: Path | None
) -> None:
    failures = 0
    for position, step in enumerate(SCRIPT):
        # With snapshots a failed commit has the most to undo: there every allocation fails, where that is quick.
        is_rich = OPEN in SCRIPT[:position] and isinstance(step, Step) and not step.of
        stride = 1 if is_rich and not store else 5 if not store else 3 * STRIDE[injection] - 2
        number = position % stride
        has_come = True
        while has_come:
            played = Played(store)
            await played.play(SCRIPT[:position])
            is_done = True
            with INJECTIONS[injection](number) as failure:
                try:
                    played.do(step, position)
                except (MemoryError, OSError):
                    is_done = False
            has_come = failure.has_come
            failures += not is_done
            if is_done:
                played.expect(step, position)
            try:
                await played.check()
            except AssertionError as error:
                error.add_note(f"step {position}, failure {number}, done {is_done}")
                raise
            if not is_done:
                played.do(step, position)
                played.expect(step, position)
                await played.check()
            number += stride
            # Run the script to its end, which leaves nothing: at once, or through its remaining steps.
            await played.play(SCRIPT[position + 1 :] if number % 64 == 0 else [], position + 1)
            for snapshot in played.overlay._snapshots[:]:
                snapshot.close()
            played.overlay.commit({}, range(BLOCKS), False)
            await played.settle()
            assert not played.overlay.blocks and played.overlay.used == played.overlay.store_used == 0
        assert is_done
    assert failures


# The file system

CALLER = Caller(0, 0)
FILE = stat.S_IFREG | 0o644
MANY = 120


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A directory of several blocks with an index in memory; files with names in other directories, and long ones."""
    directory = tmp_path_factory.mktemp("commits")
    tree = directory / "tree"
    (tree / "many/empty").mkdir(parents=True)
    (tree / "other/directory").mkdir(parents=True)
    for number in range(MANY):
        (tree / f"many/a-name-of-some-length-{number:04}").touch()
    (tree / "other/large").write_bytes(bytes(range(256)) * 4 * 300)
    path = directory / "image"
    run("mke2fs", "-q", "-F", "-t", "ext2", "-b", "1024", "-N", "256", "-d", tree, path, "2M")
    return path.read_bytes()


Operation = Callable[[Volume], Awaitable[object]]


def named(number: int) -> bytes:
    return b"a-name-of-some-length-%04d" % number


async def _create(volume: Volume) -> None:
    await volume.create((await at(volume, "many")).ino, b"new", FILE, CALLER)


async def _create_in_a_new_block(volume: Volume) -> None:
    """Names of the maximum length fill the remaining room."""
    many = (await at(volume, "many")).ino
    size = (await volume.inode(many)).size
    number = 0
    while (await volume.inode(many)).size == size:
        await volume.create(many, b"%0250d" % number, FILE, CALLER)
        number += 1


async def _mkdir(volume: Volume) -> None:
    await volume.create((await at(volume, "many")).ino, b"new", stat.S_IFDIR | 0o755, CALLER)


async def _link(volume: Volume) -> None:
    large, many = await at(volume, "other", "large"), await at(volume, "many")
    await volume.link(large.ino, many.ino, b"new", CALLER)


async def _unlink(volume: Volume) -> None:
    inode = await volume.remove((await at(volume, "many")).ino, named(7), is_rmdir=False)
    await volume.release(inode.ino)


async def _rmdir(volume: Volume) -> None:
    inode = await volume.remove((await at(volume, "many")).ino, b"empty", is_rmdir=True)
    await volume.release(inode.ino)


async def _rename_across(volume: Volume) -> None:
    other, many = (await at(volume, "other")).ino, (await at(volume, "many")).ino
    await volume.rename(other, b"directory", many, b"moved", 0, CALLER)


async def _rename_over(volume: Volume) -> None:
    many = (await at(volume, "many")).ino
    await volume.rename(many, named(5), many, named(6), 0, CALLER)


async def _exchange(volume: Volume) -> None:
    other, many = (await at(volume, "other")).ino, (await at(volume, "many")).ino
    await volume.rename(other, b"directory", many, named(6), RENAME_EXCHANGE, CALLER)


async def _write(volume: Volume) -> None:
    large = await at(volume, "other", "large")
    for offset in (large.size - 100, 500):
        await volume.write(large.ino, offset, b"w" * 5000, CALLER)


async def _cut(volume: Volume) -> None:
    await volume.set_attributes((await at(volume, "other", "large")).ino, AttributeChanges(size=5000), CALLER)


async def _remove_large(volume: Volume) -> None:
    inode = await volume.remove((await at(volume, "other")).ino, b"large", is_rmdir=False)
    await volume.release(inode.ino)


OPERATIONS: dict[str, Operation] = {
    "create": _create,
    "create in a new block": _create_in_a_new_block,
    "mkdir": _mkdir,
    "link": _link,
    "unlink and release": _unlink,
    "rmdir and release": _rmdir,
    "rename across directories": _rename_across,
    "rename over": _rename_over,
    "exchange": _exchange,
    "write over the end, and over what was written": _write,
    "truncate": _cut,
    "remove a long file": _remove_large,
}

Known = tuple[dict[int, bytes | int | None], set[int]]


def known(volume: Volume) -> Known:
    """The contents of files, and the inodes without names."""
    overlay = volume.overlay
    assert overlay is not None
    return {number: overlay.get(number) for number in overlay._slots}, set(volume.orphans)


class Commits:
    """Makes one commit fail, and checks for the old state or the new one.

    Args:
        which: the number of the commit, counted from when ``volume`` is set; none fails if it is negative.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.volume: Volume | None = None
        self.states: list[Known] = []
        """Called after each commit."""
        self.which = -1
        self.number = 0
        self.injection: Injection = failing_allocation
        self.has_come = self.has_failed = False
        commit = Runner._commit
        commits = self

        def watched(self: Runner, transaction: Transaction) -> None:
            volume = commits.volume
            if volume is None or self is not volume._runner:
                return commit(self, transaction)
            before = known(volume)
            if len(commits.states) == commits.which:
                failure = Failure()
                try:
                    with commits.injection(commits.number) as failure:
                        commit(self, transaction)
                except (MemoryError, OSError):
                    commits.has_failed = True
                    assert known(volume) == before
                    audit(volume.overlay)  # type: ignore[arg-type]
                    raise
                finally:
                    commits.has_come = failure.has_come
            else:
                commit(self, transaction)
            commits.states.append(known(volume))
            audit(volume.overlay)  # type: ignore[arg-type]
            return None

        monkeypatch.setattr(Runner, "_commit", watched)

    async def run(self, image: bytes, operation: Operation, which: int, with_snapshot: bool) -> Volume:
        """The operation on a fresh volume, after everything has been read once."""
        self.volume, self.states, self.which, self.has_failed = None, [], which, False
        volume = await Volume.open(MemoryDevice(image), 64 << 20)
        assert await volume.lookup((await at(volume, "many")).ino, b"not there") is None
        snapshot = await volume.open_image() if with_snapshot else None
        self.volume = volume
        try:
            await operation(volume)
        except (MemoryError, OSError):
            assert self.has_failed
        self.volume = None
        if snapshot is not None:
            snapshot.close()
            audit(volume.overlay)  # type: ignore[arg-type]
        return volume


async def names_agree(volume: Volume) -> None:
    """The names in the blocks of the directories, and those that the indexes find."""
    for directory in ("many", "other"):
        ino = (await at(volume, directory)).ino
        names = await listing(volume, ino)
        assert len(names) == len(set(names))
        for name in names:
            assert await volume.lookup(ino, name) is not None, name
        for name in (b"new", b"moved", b"empty", b"directory", b"large", *(named(number) for number in range(5, 8))):
            assert (await volume.lookup(ino, name) is not None) == (name in names), name
            if name in names:
                with pytest.raises(FileExistsError):
                    await volume.create(ino, name, FILE, CALLER)


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> Commits:
    """The same operation writes the same bytes each time."""
    monkeypatch.setattr("time.time_ns", lambda: 1_800_000_000_000_000_000)
    monkeypatch.setattr(FileSystem, "next_generation", lambda self: 7)
    return Commits(monkeypatch)


@pytest.mark.logs(r"^mystfuse\.(overlay|volume)")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("injection", "with_snapshot"), [("allocation", False), ("allocation", True), ("block stored", False)]
)
@pytest.mark.parametrize("name", OPERATIONS)
async def test_an_operation_happens_whole_or_not_at_all_whichever_allocation_of_its_commit_fails(
    name: str, injection: str, with_snapshot: bool, image: bytes, commits: Commits, tmp_path: Path
) -> None:
    commits.injection = INJECTIONS[injection]
    volume = await commits.run(image, OPERATIONS[name], -1, with_snapshot)
    expected = commits.states
    assert expected
    await names_agree(volume)
    assert_clean(await merged(volume), tmp_path / "merged")
    failures = 0
    stride = STRIDE[injection] if injection == "allocation" else 1
    for which in range(max(len(expected) - 2, 0), len(expected)):
        commits.number, commits.has_come = which % stride, True
        while commits.has_come:
            volume = await commits.run(image, OPERATIONS[name], which, with_snapshot)
            failures += commits.has_failed
            if commits.has_failed:
                assert commits.states == expected[: len(commits.states)]
            else:
                assert commits.states == expected
            if commits.has_come:
                await names_agree(volume)
            commits.number += stride
    assert failures


async def no_checkpoint() -> None:
    pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("injection", INJECTIONS)
async def test_a_merged_image_that_fails_to_open_leaves_nothing_behind(
    injection: str, image: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening it commits to a snapshot: that releases the removed files that are still open."""
    # Trio itself does not survive without memory; the daemon ends then.
    monkeypatch.setattr(trio.lowlevel, "checkpoint", no_checkpoint)
    volume = await Volume.open(MemoryDevice(image), 64 << 20)
    large = await at(volume, "other", "large")
    await volume.write(large.ino, 0, b"x" * 5000, CALLER)
    await volume.remove((await at(volume, "other")).ino, b"large", is_rmdir=False)
    await (opened := await volume.open_image()).read(0, 100)
    opened.close()
    overlay = volume.overlay
    assert overlay is not None
    before, number, failures = known(volume), 0, 0
    has_come = True
    while has_come:
        opened = None  # type: ignore[assignment]
        with INJECTIONS[injection](number) as failure:
            try:
                opened = await volume.open_image()
            except (MemoryError, OSError):
                failures += 1
        has_come = failure.has_come
        number += 4 * STRIDE[injection] - 3
        if opened is not None:
            audit(overlay)
            opened.close()
        assert not overlay._snapshots and known(volume) == before
        audit(overlay)
    assert failures


class FullSet(set[int]):
    """A set whose insertions raise MemoryError."""

    def __ior__(self, other: object) -> FullSet:  # type: ignore[override,misc]
        raise MemoryError


async def test_an_inode_that_fails_to_become_an_orphan_keeps_its_name(image: bytes) -> None:
    """Otherwise it would be without links and not in use when a process that has it open returns to it."""
    volume = await Volume.open(MemoryDevice(image), 64 << 20)
    other = (await at(volume, "other")).ino
    volume._filesystem.orphans = FullSet()
    with pytest.raises(MemoryError):
        await volume.remove(other, b"large", is_rmdir=False)
    assert (await at(volume, "other", "large")).i_links_count == 1 and not volume.changes

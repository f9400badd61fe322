"""No process gets a stale or torn answer: several change files and names while others look at them in every way, and
each result must have been true at some moment between its call's start and end. See tests/support/consistency.

    MYSTFUSE_CONSISTENCY_CALLS=2000000 pytest -s tests/fastpath/test_consistency.py  # so many calls for each mount
    MYSTFUSE_CONSISTENCY_SEED=7 ...  # other ones
    MYSTFUSE_CONSISTENCY_LOGS=DIR ...  # keeps the logs of a run in which something was wrong
"""

from __future__ import annotations

import errno
import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

import pytest

from tests.support.commands import mystfuse, run, wait_until
from tests.support.consistency.runs import Load, assert_consistent, judge, set_up
from tests.support.mounts import caches_dropped, mounted, status_of

WANTED = int(os.environ.get("MYSTFUSE_CONSISTENCY_CALLS", "0"))
SEED = int(os.environ.get("MYSTFUSE_CONSISTENCY_SEED", "1"))
LOGS = Path(os.environ["MYSTFUSE_CONSISTENCY_LOGS"]) if "MYSTFUSE_CONSISTENCY_LOGS" in os.environ else None
QUICK, ROUND = 30_000, 100_000
"""Calls: of the quick version, and of one round of a long one, in a directory of its own."""
MEMORY = Path("/sys/fs/cgroup/memory")
FULL = frozenset({errno.ENOSPC})

SET_UP = 5
"""Rounds whose files are in the image; those of the others are made first."""

needs_long_run = pytest.mark.skipif(not WANTED, reason="MYSTFUSE_CONSISTENCY_CALLS is not set")


def judge_rounds(
    operators: Path,
    mountpoint: Path,
    load: Load,
    forgiven: frozenset[int] = frozenset(),
    beside: Callable[[Path], AbstractContextManager[object]] = nullcontext,
) -> Counter[str]:
    """Judge a mount, the calls of a long run in rounds; returns what was counted.

    Args:
        beside: begins something beside each round, for the mountpoint.
    """
    counts: Counter[str] = Counter()
    dice = random.Random(SEED)
    rounds = max(1, -(-WANTED // ROUND))
    for number in range(rounds):
        # Sometimes mostly cached answers, sometimes mostly the daemon's.
        asking = dice.choice([2, 4, 16, 64]) if WANTED else load.asking
        this = Load(ROUND if WANTED else load.calls, load.ratio, asking, load.drops, load.patience, load.wrap)
        seed = SEED * 1000 + number
        with caches_dropped(), beside(mountpoint):
            checker = judge(operators, mountpoint, seed, this, forgiven, LOGS)
        assert_consistent(checker)
        counts += checker.counts
        run("rm", "-r", mountpoint / str(seed))
    return counts


@pytest.fixture(scope="module")
def tree(operators: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the first rounds."""
    directory = tmp_path_factory.mktemp("tree")
    for number in range(SET_UP if WANTED else 1):
        set_up(operators, directory, SEED * 1000 + number)
    return directory


@pytest.fixture(scope="module")
def image(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unsigned image of them with 64 MiB of free space. Tests must not write to it."""
    path = tmp_path_factory.mktemp("image") / "image"
    assert mystfuse("mkext2", "--free=64M", tree, path).returncode == 0
    return path


def test_the_kernels_own_ext2_is_judged_consistent(operators: Path, tmp_path: Path) -> None:
    """Else the judge is wrong. The kernel's stat(2) takes no lock: seldom, it gives the new owner with the old group
    (fs/stat.c, generic_fillattr), so it has a second chance."""
    image, mountpoint = tmp_path / "image", tmp_path / "mount"
    mountpoint.mkdir()
    run("mke2fs", "-q", "-t", "ext2", "-b", "1024", image, "64M")
    if run("mount", "-o", "loop", image, mountpoint, check=False).returncode:
        pytest.skip("no loop device")
    try:
        try:
            judge_rounds(operators, mountpoint, Load(QUICK, ratio=8, asking=4))
        except AssertionError:
            judge_rounds(operators, mountpoint, Load(QUICK, ratio=8, asking=4))
    finally:
        run("umount", mountpoint)


def test_a_mount(operators: Path, image: Path, tmp_path: Path, path_options: tuple[str, ...]) -> None:
    with mounted(image, tmp_path / "mount", "--insecure", *path_options) as mountpoint:
        judge_rounds(operators, mountpoint, Load(QUICK))
        # What the kernel has forgotten is free: no look-up was counted that it does not know of.
        wait_until(lambda: status_of(mountpoint)["unlinked_inodes"] == 0)


def test_an_overlay_that_goes_to_disk(
    operators: Path, roomy_image: Path, tmp_path: Path, path_options: tuple[str, ...]
) -> None:
    (tmp_path / "store").mkdir()
    options = ("--insecure", "--overlay-limit=1M", f"--overlay-store={tmp_path / 'store'}", *path_options)
    with mounted(roomy_image, tmp_path / "mount", *options) as mountpoint:
        (mountpoint / "ballast").write_bytes(bytes(3 << 20))
        judge_rounds(operators, mountpoint, Load(QUICK // 2))
        assert status_of(mountpoint)["overlay_store_used"] > 0


@contextmanager
def _ballast(mountpoint: Path) -> Iterator[None]:
    """The block has, while names come and go, mostly no space left."""
    over = threading.Event()
    ballast = mountpoint / "ballast"

    def fill() -> None:
        while not any(mountpoint.glob("*/d1/n*")) and not over.wait(0.01):
            pass
        while not over.is_set():
            with ballast.open("wb", buffering=0) as file:
                with suppress(OSError):
                    while not over.is_set():
                        file.write(bytes(16384))
                over.wait(0.05)
        ballast.unlink(missing_ok=True)

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@needs_long_run
def test_an_overlay_that_is_full(
    operators: Path, roomy_image: Path, tmp_path: Path, path_options: tuple[str, ...]
) -> None:
    with mounted(roomy_image, tmp_path / "mount", "--insecure", "--overlay-limit=2M", *path_options) as mountpoint:
        assert judge_rounds(operators, mountpoint, Load(QUICK), FULL, _ballast)["forgiven"] > 0


@contextmanager
def _little_memory(name: str, limit: int) -> Iterator[tuple[str, ...]]:
    """A command prefix: what it runs shares so many bytes of memory, its page cache included."""
    group = MEMORY / name
    if not os.access(MEMORY / "memory.limit_in_bytes", os.R_OK):
        pytest.skip("no memory control group (version 1)")
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(limit))
        yield ("sh", "-c", f'echo $$ >{group}/cgroup.procs && exec "$@"', "sh")
    finally:
        group.rmdir()


@needs_long_run
def test_an_encrypted_image(operators: Path, tree: Path, tmp_path: Path, path_options: tuple[str, ...]) -> None:
    key, image = tmp_path / "key", tmp_path / "image"
    key.write_bytes(bytes(range(64)))
    key.chmod(0o600)
    assert mystfuse("mkext2", "--free=64M", "--encrypt", key, tree, image).returncode == 0
    with mounted(image, tmp_path / "mount", "--insecure", "--key-file", key, *path_options) as mountpoint:
        judge_rounds(operators, mountpoint, Load(QUICK))


@needs_long_run
def test_under_memory_pressure(operators: Path, image: Path, tmp_path: Path, path_options: tuple[str, ...]) -> None:
    """The kernel forgets pages, names and inodes as it needs memory, and all caches of the machine are dropped."""
    with (
        _little_memory(f"mystfuse-test-{os.getpid()}", 64 << 20) as wrap,
        mounted(image, tmp_path / "mount", "--insecure", *path_options) as mountpoint,
    ):
        judge_rounds(operators, mountpoint, Load(QUICK, drops="prcmm", wrap=wrap))

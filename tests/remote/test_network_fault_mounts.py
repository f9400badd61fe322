"""Real mounts of an image behind a network that fails: right bytes or EIO, in time, no EIO that patience would have
avoided, and memory that stays.

``MYSTFUSE_NETWORK_MOUNTS`` is how many mounts are made; each begins with the next seed.
"""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from mystfuse.mounting.find_daemon import find_daemon
from mystfuse.mounting.mount_table import find_mount
from tests.support.commands import mystfuse
from tests.support.mounts import drop_caches, mounted
from tests.support.network_chain import POOL, FarAway, FarImage, Trouble, far_away

MOUNTS = int(os.environ.get("MYSTFUSE_NETWORK_MOUNTS", "4"))
IO_TIMEOUT = 30
"""Seconds that mounts run."""
MOST = 200
"""MiB that daemon and fetcher may have had."""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> FarImage:
    return FarImage.make(tmp_path_factory.mktemp("image"))


class Reader(threading.Thread):
    """Reads files of the mount at random, and records the outcomes."""

    def __init__(self, root: Path, image: FarImage, seed: str) -> None:
        super().__init__(daemon=True)
        self.right, self.errors, self.wrong = 0, Counter[str](), list[str]()
        self.slowest = 0.0
        self._root, self._source, self._dice = root, image.source, random.Random(seed)
        self._paths = [path for path in image.paths if (image.source / path).is_file()]

    def run(self) -> None:
        for _ in range(25):
            began = time.monotonic()
            path = self._dice.choice(self._paths)
            try:
                if (self._root / path).read_bytes() != (self._source / path).read_bytes():
                    self.wrong.append(path)
                self._read_some()
                if {*os.listdir(self._root / "many")} != {*os.listdir(self._source / "many")}:
                    self.wrong.append("many")
                self.right += 1
            except OSError as error:
                self.errors[errno.errorcode[error.errno or 0]] += 1
            self.slowest = max(self.slowest, time.monotonic() - began)

    def _read_some(self) -> None:
        offset, length = self._dice.randrange(24 << 20), self._dice.choice((1, 5000, 300_000))
        with (self._source / "large").open("rb") as source, (self._root / "large").open("rb", buffering=0) as file:
            source.seek(offset)
            file.seek(offset)
            found = file.read(length)
            if found != source.read(length)[: len(found)] or (length and not found and offset < 24 << 20):
                self.wrong.append(f"large {offset} {length}")


def vex(far: FarAway, dice: random.Random, until: float, counts: list[int]) -> None:
    """New troubles all the time, each of a few requests."""
    while time.monotonic() < until:
        far.trouble = Trouble(
            tuple(dice.sample(POOL, dice.choice((1, 2, 4)))), dice.choice((1, 2, 3)), dice.choice((0.5, 1.0)), False
        )
        counts[0] += 1
        time.sleep(dice.choice((0.1, 0.3, 1.0)))
    far.trouble = Trouble((), 0, 0.0, False)


@pytest.mark.parametrize("kind", ["memory", "cache"])
def test_a_mount_over_a_failing_network_is_right(kind: str, image: FarImage, mountpoint: Path, tmp_path: Path) -> None:
    options = [f"--cache={tmp_path / 'cache'}", "--cache-size=8M"] if kind == "cache" else []
    if kind == "cache":
        (tmp_path / "cache").mkdir()
    done: Counter[str] = Counter()
    most = 0.0
    for seed in range(MOUNTS // 2 or 1):
        dice = random.Random(f"{kind} {seed}")
        with far_away(image.content, is_virtual=False) as far:
            trust = f"--roothash={image.root_hash}"
            with mounted(far.url, mountpoint, trust, f"--io-timeout={IO_TIMEOUT}", *options):  # type: ignore[arg-type]
                troubles = [0]
                vexing = threading.Thread(target=vex, args=(far, dice, time.monotonic() + 6, troubles))
                vexing.start()
                readers = [Reader(mountpoint, image, f"{seed} {number}") for number in range(3)]
                for reader in readers:
                    reader.start()
                while vexing.is_alive():
                    drop_caches()
                    vexing.join(0.5)
                for reader in readers:
                    reader.join(3 * IO_TIMEOUT)
                    assert not reader.is_alive(), (seed, "hung", far.server.done)
                    assert not reader.wrong, (seed, reader.wrong)
                    assert not reader.errors, (seed, reader.errors, far.server.done)
                    assert reader.slowest < 2 * IO_TIMEOUT
                most = max(most, peak_memory(mountpoint))
            done += far.server.done
    print(f"\n{kind}: {done}, at most {most:.0f} MiB")
    assert sum(done.values()) > MOUNTS and most < MOST


def test_commands_over_a_failing_network_are_right(image: FarImage) -> None:
    for seed in range(MOUNTS // 2 or 1):
        dice = random.Random(f"commands {seed}")
        with far_away(image.content, is_virtual=False) as far:
            vexing = threading.Thread(target=vex, args=(far, dice, time.monotonic() + 3, [0]))
            trust = f"--roothash={image.root_hash}"
            far.trouble = Trouble(("reset", "truncated", "silent at accept"), 2, 1.0, False)
            listed = mystfuse("ls", trust, far.url, "/a")
            assert listed.returncode == 0, (seed, listed.stderr)
            assert {*listed.stdout.split()} == {*os.listdir(image.source / "a")}
            vexing.start()
            verified = mystfuse("verify", trust, far.url)
            vexing.join()
            # While nothing has come from there, an answer may be final.
            assert verified.returncode == 0 or "Traceback" not in verified.stderr, (seed, verified.stderr)
            verified = mystfuse("verify", trust, far.url)
            assert verified.returncode == 0, (seed, verified.stderr)


def peak_memory(mountpoint: Path) -> float:
    """MiB, of the daemon and all that it has started."""
    found = find_mount(str(mountpoint))
    assert found is not None
    descriptor = find_daemon(found)
    assert descriptor is not None, "the daemon has ended"
    try:
        line = Path(f"/proc/self/fdinfo/{descriptor}").read_text().partition("Pid:")[2]
    finally:
        os.close(descriptor)
    return sum(_peak(pid) for pid in _with_children(int(line.split()[0])))


def _with_children(pid: int) -> list[int]:
    found = [pid]
    for each in found:
        for thread in Path(f"/proc/{each}/task").iterdir():
            found += [int(child) for child in (thread / "children").read_text().split()]
    return found


def _peak(pid: int) -> float:
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024

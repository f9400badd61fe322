"""Corrupt file systems by seed, any number of them: ``scripts/corrupt --count 1000 --seed 1``. Prints every fault as
soon as it finds one, and totals at the end; exit status 1 if there was a fault."""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

from removal import mounts_in, temporary_directory

from tests.corruption.bases import make_bases
from tests.corruption.case import Case
from tests.corruption.driver import CORRUPT, Driver, Report, differences, unmet
from tests.corruption.exercise import Outcomes
from tests.corruption.ext4_bases import Base, make_ext4_bases
from tests.corruption.ext4_damages import spoil_ext4
from tests.corruption.named import CASES
from tests.corruption.scattered import spoil

Bases = Mapping[str, bytes | Base]
"""Sound file systems by name, of ext2 or of ext4."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/corrupt", description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="how many (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the first; the others follow (default: 0)")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time (default: 1)")
    parser.add_argument("--kernel", type=int, default=0, metavar="N", help="ask the kernel about every N-th as well")
    parser.add_argument("--commands", type=int, default=10, metavar="N", help="also ls, tar, ... every N-th (10)")
    parser.add_argument("--named", action="store_true", help="the named cases instead, all of them")
    parser.add_argument("--ext4", action="store_true", help="file systems of ext4 instead")
    arguments = parser.parse_args()
    started = time.monotonic()
    summary, is_interrupted = Summary(), False
    tasks: list[str | int] = list(range(arguments.seed, arguments.seed + arguments.count))
    if arguments.named:
        tasks = list(CASES)
    with temporary_directory("mystfuse-corrupt-") as directory, _unmounting(directory):
        bases: Bases = make_ext4_bases(directory) if arguments.ext4 else make_bases(directory)
        # Started afresh (spawn): daemons are forked from a process that has not grown.
        context = get_context("spawn")
        with context.Pool(arguments.jobs, _start, (directory, bases, arguments.commands, arguments.kernel)) as pool:
            try:
                for part in pool.imap_unordered(_work, tasks):
                    summary.merge(part)
                    if summary.images % 50 == 0:
                        print(f"{summary.images} of {len(tasks)}", file=sys.stderr, flush=True)
            except KeyboardInterrupt:
                is_interrupted = True
                print(f"interrupted after {summary.images} of {len(tasks)}", file=sys.stderr)
    summary.seconds = time.monotonic() - started
    print(summary)
    return 130 if is_interrupted else int(summary.faults > 0)


@contextmanager
def _unmounting(directory: Path) -> Iterator[None]:
    """Unmount everything below the directory at the end: removing it must not remove the contents of a mount."""
    try:
        yield
    finally:
        for mount in reversed(mounts_in(directory)):
            subprocess.run(["umount", "--lazy", mount], check=True)


_work_on: Callable[[str | int], Report]
"""A process of the pool does one task."""


def _start(directory: Path, bases: Bases, commands: int, kernel: int) -> None:
    """Prepare a process of the pool."""
    global _work_on
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    own = directory / f"job-{os.getpid()}"
    own.mkdir()
    driver = Driver(own)

    def work_on(task: str | int) -> Report:
        if isinstance(task, str):
            return drive_case(driver, cast("dict[str, bytes]", bases), CASES[task])
        return drive_seed(driver, bases, task, commands, kernel)

    _work_on = work_on


def _work(task: str | int) -> Summary:
    """One file system; returns counts, not every outcome."""
    summary = Summary()
    summary.add(tell(_work_on(task)))
    return summary


def drive_case(driver: Driver, bases: dict[str, bytes], case: Case, kernel: bool = True) -> Report:
    """The file system of a named case. Its unmet expectations are among the faults.

    Args:
        kernel: thoroughly, with the commands that need no mount, and with the kernel's driver.
    """
    filesystem = case.make(bases)
    report = driver.drive(case.name, filesystem, [case.what], 0, kernel, kernel, kernel and not case.is_dangerous)
    report.faults += unmet(report, case.expected)
    return report


def drive_seed(driver: Driver, bases: Bases, seed: int, commands: int = 0, kernel: int = 0) -> Report:
    """The file system of a seed."""
    name = sorted(bases)[seed % len(bases)]
    base = bases[name]
    if isinstance(base, Base):
        layout, damage = spoil_ext4(base, seed)
        filesystem = bytes(layout.data)
        is_covered = "sealed" not in damage and layout.is_covered
        # Its seals refer to it. Daemons are forked from this process, and their memory is measured.
        del layout
        gc.collect()
    else:
        filesystem, damage = spoil(base, seed)
        is_covered = False
    with_commands = commands > 0 and seed % commands == 0
    is_dangerous = any("own child" in what for what in damage)
    with_kernel = kernel > 0 and seed % kernel == 0 and not is_dangerous
    report = driver.drive(f"seed {seed} ({name})", filesystem, damage, seed, True, with_commands, with_kernel)
    if is_covered and isinstance(base, Base):
        report.faults += shown_damage(report.walk, base.walked)
    return report


def shown_damage(walked: Outcomes, sound: Outcomes) -> list[str]:
    """What is read otherwise than in the sound file system, and is no error."""
    return [
        f"{operation} of {path!r}: {outcome} instead of {sound.get(path, {}).get(operation, 'absent')}"
        for path, outcomes in walked.items()
        for operation, outcome in outcomes.items()
        if outcome not in CORRUPT and outcome != sound.get(path, {}).get(operation)
    ]


def tell(report: Report) -> Report:
    for fault in report.faults:
        print(f"{report.name}: {'; '.join(report.damage)}: {fault}", flush=True)
    if found := differences(report):
        # Not each path: only our answer, and the kernel's.
        kinds = Counter(re.sub(r" of '.*': |^'.*': ", ": ", difference) for difference in found)
        what = ", ".join(f"{kind} ({count})" for kind, count in kinds.most_common())
        print(f"differs: {report.name}: {'; '.join(report.damage)}: {what}", flush=True)
    return report


class Summary:
    """The sum of many reports."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.faults = 0
        self._total: Counter[str] = Counter()
        self._reading: Counter[str] = Counter()
        self._writing: Counter[str] = Counter()
        self._commands: Counter[str] = Counter()
        self._refusals: Counter[str] = Counter()
        self._slowest: dict[str, tuple[float, str]] = {}
        self._peak = (0, "")

    @property
    def images(self) -> int:
        return self._total["mounted"] + self._total["refused"]

    def add(self, report: Report) -> None:
        self.faults += len(report.faults)
        self._total["mounted" if report.is_mounted else "refused"] += 1
        self._total["with faults"] += bool(report.faults)
        if not report.is_mounted:
            what = report.said.strip().partition("/image: ")[2]
            self._refusals[re.sub(r"\d+", "N", what)] += 1
        if isinstance(report.kernel, dict):
            self._total["read by the kernel too"] += 1
            self._total["answered otherwise by the kernel"] += bool(differences(report))
        for outcomes in (report.walk, report.walk_again):
            for found in outcomes.values():
                for operation, outcome in found.items():
                    self._reading[f"{operation} {outcome.partition(' ')[0]}"] += 1
        self._writing.update(report.counts)
        self._commands.update(f"{name} {status}" for name, status in report.commands.items())
        for step, seconds in report.steps.items():
            self._slowest[step] = max(self._slowest.get(step, (0.0, "")), (seconds, report.name))
        self._peak = max(self._peak, (report.peak, report.name))

    def merge(self, other: Summary) -> None:
        """Add another sum."""
        self.faults += other.faults
        for mine, others in (
            (self._total, other._total),
            (self._reading, other._reading),
            (self._writing, other._writing),
            (self._commands, other._commands),
            (self._refusals, other._refusals),
        ):
            mine.update(others)
        for step, slow in other._slowest.items():
            self._slowest[step] = max(self._slowest.get(step, (0.0, "")), slow)
        self._peak = max(self._peak, other._peak)

    def __str__(self) -> str:
        def errnos(counts: Counter[str]) -> dict[str, int]:
            total: Counter[str] = Counter()
            for key, count in counts.items():
                total[key.split()[1]] += count
            return dict(total.most_common())

        values: dict[str, Any] = {
            "images": dict(self._total),
            "seconds": round(self.seconds),
            "faults": self.faults,
            "reading": errnos(self._reading),
            "writing": errnos(self._writing),
            "reading, by operation": dict(sorted(self._reading.items())),
            "writing, by operation": dict(sorted(self._writing.items())),
            "refused": dict(self._refusals.most_common()),
            "without a mount": dict(sorted(self._commands.items())),
            "slowest": {step: [round(seconds, 2), name] for step, (seconds, name) in self._slowest.items()},
            "peak MiB": [self._peak[0] >> 20, self._peak[1]],
        }
        return json.dumps(values, indent=1)

"""Corrupt ext4 file systems: as volumes, many, and under real mounts, a few; ``scripts/corrupt --ext4`` takes any
number of the latter. The slow part has a thousand."""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.corruption.driver import Report
from tests.corruption.ext4_bases import OPTIONS, Base, make_ext4_bases
from tests.corruption.ext4_layout import Ext4Layout
from tests.corruption.ext4_volumes import Judged, Outcomes, sound_outcomes
from tests.support.memory import memory_of
from tests.support.mounts import OWN_MOUNTS

SOUND = ("everything", "recovering")
FEW = range(4000, 4090)
MANY = range(1000)
MOUNTED_FEW = range(5000, 5004)
MOUNTED_MANY = range(5000, 5120)
DRIVE = """
import pickle, sys
from pathlib import Path
from tests.corruption.driver import Driver
from tests.corruption.ext4_bases import OPTIONS
from tests.corruption.many import drive_seed, shown_damage

directory = Path(sys.argv[1])
bases = pickle.loads((directory / "bases").read_bytes())
(directory / "work").mkdir()
driver = Driver(directory / "work")
reports = []
for word in sys.argv[2:]:
    if word in OPTIONS:
        reports.append(driver.drive(word, bases[word].data, [], 0))
        reports[-1].faults += shown_damage(reports[-1].walk, bases[word].walked)
    else:
        reports.append(drive_seed(driver, bases, int(word), commands=4))
(directory / "reports").write_bytes(pickle.dumps(reports))
"""
MEMORY_LIMIT = 1 << 30
"""Bytes that this process takes at most beside what it has already: copies of the bases."""


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Base]:
    return make_ext4_bases(tmp_path_factory.mktemp("bases"))


@pytest.fixture(scope="module")
def sound(bases: dict[str, Base]) -> dict[str, Outcomes]:
    return {name: trio.run(sound_outcomes, base) for name, base in bases.items()}


@pytest.fixture
def quiet() -> Iterator[None]:
    """Warnings of damage are expected, by the thousand."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def judge(bases: dict[str, Base], sound: dict[str, Outcomes], seeds: range) -> None:
    """Run the damages of these seeds, and check that they were neither too great nor too small to show anything."""
    found: dict[int, Judged] = {}
    # The high-water mark begins anew.
    Path("/proc/self/clear_refs").write_text("5")
    before = memory_of(os.getpid(), "VmHWM")
    for seed in seeds:
        name = sorted(bases)[seed % len(bases)]
        found[seed] = Judged(bases[name], seed, sound[name])
        if found[seed].error is not None:
            raise AssertionError(f"seed {seed} ({name}): {found[seed].damage}") from found[seed].error
    assert {seed: (it.damage, it.faults[:3]) for seed, it in found.items() if it.faults} == {}
    opened = [it for it in found.values() if it.outcomes is not None]
    assert len(opened) > len(seeds) * 3 // 4
    assert sum("EUCLEAN" in it.outcomes.values() for it in opened if it.outcomes) > len(seeds) // 4
    assert sum(it.is_judged for it in opened) > len(seeds) // 16
    assert memory_of(os.getpid(), "VmHWM") - before < MEMORY_LIMIT


@pytest.mark.usefixtures("quiet")
def test_damaged_volumes_end_in_errors_and_in_nothing_worse(bases: dict[str, Base], sound: dict[str, Outcomes]) -> None:
    judge(bases, sound, FEW)


@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
def test_a_thousand_damaged_volumes(bases: dict[str, Base], sound: dict[str, Outcomes]) -> None:
    judge(bases, sound, MANY)


def reports_of(bases: dict[str, Base], directory: Path, *words: str) -> list[Report]:
    """Mount the bases of these names, and the file systems of these seeds, in a small process of its own: daemons are
    forked from it, and their memory is measured."""
    (directory / "bases").write_bytes(pickle.dumps(bases))
    command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private", "--pid", "--fork",
               "--kill-child", "--mount-proc", *OWN_MOUNTS, sys.executable, "-c", DRIVE, directory, *words]  # fmt: skip
    project = Path(__file__).parents[2]
    result = subprocess.run(
        command, cwd=project, env={**os.environ, "PYTHONPATH": f"{project}:{project / 'scripts'}"},
        capture_output=True, text=True, errors="replace", timeout=1800, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    reports: list[Report] = pickle.loads((directory / "reports").read_bytes())
    assert len(reports) == len(words)
    return reports


def test_sound_and_damaged_mounts(bases: dict[str, Base], tmp_path: Path) -> None:
    """What is not damaged is read as by the kernel, without an error: a check of the judges."""
    reports = reports_of(bases, tmp_path, *SOUND, *map(str, MOUNTED_FEW))
    assert {report.name: report.damage + report.faults for report in reports if report.faults} == {}
    for report in reports[: len(SOUND)]:
        answers = {outcome for found in report.walk.values() for outcome in found.values()}
        assert {answer for answer in answers if not answer.startswith("ok")} == {"ENOENT"}


@pytest.mark.slow
def test_many_damaged_mounts(bases: dict[str, Base], tmp_path: Path) -> None:
    reports = reports_of(bases, tmp_path, *OPTIONS, *map(str, MOUNTED_MANY))
    assert {report.name: report.damage + report.faults for report in reports if report.faults} == {}
    assert sum(report.is_mounted for report in reports) > len(reports) // 2


@pytest.mark.parametrize("name", ("everything", "defaults", "crc16", "meta_bg", "bigalloc"))
def test_every_checksum_is_found_and_sealed_as_it_was(bases: dict[str, Base], name: str) -> None:
    """A check of the editor: sealing what is sound changes nothing, and sealing a change gives another checksum."""
    layout = Ext4Layout(bases[name].data)
    layout.seal(True)
    assert layout.data == layout.sound
    layout.set_inode("plain", "<I", 100, 7)
    layout.set_group(1, "<H", 18, 5)
    layout.seal()
    changed = sum(now != then for now, then in zip(layout.data, layout.sound, strict=True))
    assert changed > (8 if layout.has_checksums else 3)

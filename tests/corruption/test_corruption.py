"""Corrupt file systems behind valid hash trees and signatures, under a real mount: an operation gives an error or the
file system's contents; never a crash, a hang, or an internal error. Each named case, corrupt`` takes any number/and
some by seed; ``scripts/corrupt`` runs any number/corrupt`` takes any number.

One small process in namespaces of its own runs them all, and reports the outcomes.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from tests.corruption.driver import Report
from tests.corruption.named import CASES
from tests.support.mounts import OWN_MOUNTS

SEEDS = range(7000, 7012)
DRIVE = """
import pickle, sys
from pathlib import Path
from tests.corruption.bases import make_bases
from tests.corruption.driver import Driver
from tests.corruption.many import drive_case, drive_seed
from tests.corruption.named import CASES

directory = Path(sys.argv[1])
bases = make_bases(directory)
driver = Driver(directory / "work")
reports = [drive_case(driver, bases, case, kernel=False) for case in CASES.values()]
reports += [drive_seed(driver, bases, int(seed), commands=12) for seed in sys.argv[2:]]
(directory / "reports").write_bytes(pickle.dumps({report.name: report for report in reports}))
"""


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Report]:
    directory = tmp_path_factory.mktemp("corruption")
    (directory / "work").mkdir()
    # If the parent is killed, the kernel kills this process too.
    words = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private", "--pid", "--fork",
             "--kill-child", "--mount-proc", *OWN_MOUNTS]  # fmt: skip
    result = subprocess.run(
        [*words, sys.executable, "-c", DRIVE, directory, *map(str, SEEDS)],
        cwd=Path(__file__).parents[2], env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "scripts")},
        capture_output=True, text=True, errors="replace", timeout=1800, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    loaded: dict[str, Report] = pickle.loads((directory / "reports").read_bytes())
    return loaded


@pytest.mark.parametrize("name", CASES)
def test_a_named_damage_is_answered_as_it_is_to_be(reports: dict[str, Report], name: str) -> None:
    report = reports[name]
    assert not report.faults


def test_damage_by_seed_ends_in_errors_and_in_nothing_worse(reports: dict[str, Report]) -> None:
    by_seed = [report for name, report in reports.items() if name.startswith("seed ")]
    assert len(by_seed) == len(SEEDS)
    assert {report.name: report.damage + report.faults for report in by_seed if report.faults} == {}
    mounted = [report for report in by_seed if report.is_mounted]
    assert len(mounted) > len(SEEDS) // 2, "the damage was too great to show anything"
    errors = [report for report in mounted if "EUCLEAN" in str(report.walk) + str(report.counts)]
    assert len(errors) > len(SEEDS) // 4, "the damage was too small to show anything"
    assert any(report.commands for report in by_seed)


def test_what_is_not_damaged_is_read_and_written_without_an_error(reports: dict[str, Report]) -> None:
    """A check of the driver itself: a sound file system has to pass without any error."""
    report = reports["a_map_with_a_block_here_and_there"]
    assert {outcome.partition(" ")[0] for found in report.walk.values() for outcome in found.values()} == {
        "ok",
        "ENOENT",
    }
    assert not any("EUCLEAN" in count or "EIO" in count for count in report.counts)

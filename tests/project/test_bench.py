"""``scripts/bench`` measures, compares with the marks, leaves nothing behind, and refuses wrong results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.support.commands import SBIN
from tests.support.mounts import caches_dropped

SCRIPTS = Path(__file__).parents[2] / "scripts"


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The program that ``scripts/bench`` runs, without installing anything."""
    environment = {**os.environ, "PATH": SBIN, "PYTHONPATH": str(SCRIPTS)}
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    with caches_dropped():
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def mounts_below(directory: Path) -> list[str]:
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(directory) in line]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


def test_it_measures_and_judges(work: Path, tmp_path: Path) -> None:
    figures, picture = tmp_path / "figures.json", tmp_path / "picture.svg"
    result = bench("--tiny", "--jobs", "read,verify,mount-small", "--work", work, "--json", figures, "--svg", picture)
    assert result.returncode == 0, result.stderr
    document = json.loads(figures.read_text())
    jobs = {job["name"]: job for job in document["jobs"]}
    assert list(jobs) == ["read", "verify", "mount-small"]
    assert jobs["read"]["medians"]["mystfuse"] > 0
    assert jobs["read"]["ratios"]["floor"] > 0
    ratio = jobs["verify"]["ratios"]["veritysetup"]
    (mark,) = jobs["verify"]["marks"]
    assert mark["value"] == ratio and mark["reached"] == (ratio >= 2)
    assert len(jobs["mount-small"]["readings"]["mystfuse"]) == 2
    assert document["machine"]["kernel"] == os.uname().release
    assert "marks reached" in result.stdout
    labels = [element.text or "" for element in ElementTree.parse(picture).iter() if element.tag.endswith("text")]
    assert f"{ratio:.2f} of veritysetup (mark 2)" in labels
    assert not mounts_below(work)
    assert not list(work.glob(".*"))


def test_a_wrong_result_ends_it(work: Path) -> None:
    (facts_file,) = work.glob("big-*/facts.json")
    text = facts_file.read_text()
    facts = json.loads(text)
    facts_file.write_text(json.dumps(facts | {"crc": facts["crc"] ^ 1}))
    try:
        result = bench("--tiny", "--jobs", "read", "--work", work)
    finally:
        facts_file.write_text(text)
    assert result.returncode == 1
    assert result.stderr == (
        f"scripts/bench: wrong result: mystfuse, sequential: crc is {facts['crc']}, not {facts['crc'] ^ 1}\n"
    )
    assert not mounts_below(work)


def test_clean_removes_what_it_made_and_nothing_else(work: Path) -> None:
    (work / "mine").mkdir()
    assert bench("--clean", "--work", work).returncode == 0
    assert [entry.name for entry in work.iterdir()] == ["mine"]


def test_jobs_are_known_by_name() -> None:
    result = bench("--jobs", "nonsense")
    assert result.returncode == 2
    assert result.stderr.startswith("scripts/bench: nonsense: no such job; there are read, ")
    listed = bench("--list", "--jobs", "mount").stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["mount-small", "mount-large", "mount-difference", "mount-bytes"]

"""``scripts/bench`` measures, compares with the marks, leaves nothing behind, and refuses wrong results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree

import pytest
from benchmarks.job import Job, Mark
from benchmarks.jobs import JOBS
from benchmarks.peer import Mounted
from benchmarks.results import Outcome
from benchmarks.tools import LeftOut, check_on_disk

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
    assert mark["value"] == ratio and mark["reached"] == (ratio >= 3)
    assert len(jobs["mount-small"]["readings"]["mystfuse"]) == 2
    assert document["machine"]["kernel"] == os.uname().release
    assert "marks reached" in result.stdout
    labels = [element.text or "" for element in ElementTree.parse(picture).iter() if element.tag.endswith("text")]
    assert f"{ratio:.2f} of veritysetup (mark ≥ 3)" in labels
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


def test_other_programs_and_storage(work: Path, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    names = ["read-parallel", "git-status", "python", "rm"]
    with suppress(LeftOut):
        check_on_disk(work)
        names += ["storage-read", "storage-random", "storage-walk", "storage-files"]
    result = bench("--tiny", "--jobs", ",".join(names), "--work", work, "--json", figures)
    assert result.returncode == 0, result.stderr
    jobs = {job["name"]: job for job in json.loads(figures.read_text())["jobs"]}
    assert set(jobs) == set(names)
    for job in jobs.values():
        assert {"mystfuse", "kernel"} <= set(job["medians"]), result.stdout
        assert all(figure > 0 for figure in job["medians"].values())


@pytest.mark.parametrize(
    ("item", "fact", "job"), [("repository", "crc", "git-status"), ("python", "imports", "python")]
)
def test_what_other_programs_find_is_checked(work: Path, item: str, fact: str, job: str) -> None:
    assert bench("--tiny", "--jobs", job, "--work", work).returncode == 0
    (facts_file,) = work.glob(f"{item}-*/facts.json")
    text = facts_file.read_text()
    facts = json.loads(text)
    facts_file.write_text(json.dumps(facts | {fact: facts[fact] ^ 1}))
    try:
        result = bench("--tiny", "--jobs", job, "--work", work)
    finally:
        facts_file.write_text(text)
    assert result.returncode == 1
    assert result.stderr.startswith("scripts/bench: wrong result: mystfuse, ")


def test_what_lies_in_memory_is_not_read_from_storage() -> None:
    check_on_disk(Path("/"))
    with pytest.raises(LeftOut, match=r"lies in memory \(tmpfs\): choose another directory"):
        check_on_disk(Path("/dev/shm"))


@pytest.mark.parametrize(("mark", "own", "reached"), [
    (Mark(0.5, "peer"), 5, True), (Mark(0.5, "peer"), 4.9, False),
    (Mark(0.5, "peer", at_most=True), 5, True), (Mark(0.5, "peer", at_most=True), 5.1, False),
    (Mark(3, at_most=True), 3, True), (Mark(3, at_most=True), 3.1, False),
])  # fmt: skip
def test_a_mark_is_a_least_or_a_most(mark: Mark, own: float, reached: bool) -> None:
    outcome = Outcome(Job("name", "title", "unit", {}, (mark,)), {"mystfuse": [own], "peer": [10]})
    (verdict,) = outcome.verdicts()
    assert verdict.is_reached == reached
    assert verdict.wanted == f"{'≤' if mark.at_most else '≥'} {mark.limit:g}"
    assert outcome.as_dict()["marks"][0]["at_most"] == mark.at_most


def test_marks_are_against_contenders_of_their_job() -> None:
    for job in JOBS:
        assert {mark.against for mark in job.marks} <= {"", *job.measures}, job.name
        assert all(mark.against or mark.at_most for mark in job.marks), job.name


def test_memory_is_that_of_all_processes() -> None:
    with subprocess.Popen(["sh", "-c", "sleep 60 & echo; wait"], stdout=subprocess.PIPE) as shell:
        assert shell.stdout is not None
        shell.stdout.readline()
        mounted = Mounted(Path("/"), shell.pid)
        found = mounted.processes()
        each = [Mounted(Path("/"), pid) for pid in found]
        try:
            assert len(found) == 2 and found[0] == shell.pid
            assert mounted.memory("VmRSS") > each[1].memory("VmRSS") > 0
        finally:
            os.kill(found[1], 15)


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

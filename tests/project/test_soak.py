"""``scripts/soak``: a short run passes, and it reports every fault that the tests make."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.support.commands import SBIN, wait_until
from tests.support.mounts import caches_dropped, clear_mount

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from soaking.contents import Contents, stream  # noqa: E402
from soaking.crew import Crew, Stopped  # noqa: E402
from soaking.daemon import Daemon, Sample  # noqa: E402
from soaking.image import Manifest, fill_source  # noqa: E402
from soaking.meter import Meter, Phase  # noqa: E402
from soaking.report import judge_memory  # noqa: E402
from soaking.share import Task, Wrong  # noqa: E402
from soaking.worker import Worker  # noqa: E402

ENVIRONMENT = {**os.environ, "PATH": SBIN, "PYTHONPATH": str(SCRIPTS)}
SMALL = ["--files=200", "--overlay-limit=24M"]


def command(work: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "soaking", *SMALL, f"--work={work}", *arguments]


def soak(work: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The program that ``scripts/soak`` runs, without installing anything."""
    with caches_dropped():
        result = subprocess.run(
            command(work, *arguments), env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False
        )
    assert_nothing_left(work)
    return result


def assert_nothing_left(work: Path) -> None:
    assert not [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(work) in line]
    assert os.listdir(work) == []


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "work"
    path.mkdir()
    yield path
    for mountpoint in path.glob("soak-*/mount"):
        clear_mount(mountpoint)


def test_a_short_soak_stands(work: Path, tmp_path: Path) -> None:
    figures, picture = tmp_path / "figures.json", tmp_path / "picture.svg"
    result = soak(
        work, "--minutes=0.13", "--processes=8", "--memory-limit=700M", f"--json={figures}", f"--svg={picture}"
    )
    assert (result.returncode, result.stderr) == (0, "")
    document = json.loads(figures.read_text())
    assert [point["clean"] for point in document["points"]] == [True] * 6
    assert all(verdict["is_right"] for verdict in document["verdicts"])
    names = [verdict["name"] for verdict in document["verdicts"]]
    for name in ("commit", "space is back", "unmounting", "image unchanged", "nothing left", "memory bounded"):
        assert names.count(name) == 1
    assert document["errors"].keys() <= {"ENOSPC"}
    for kind in ("create", "write", "read", "rename", "unlink", "truncate", "read-image"):
        assert document["operations"][kind]["count"] > 0
    assert document["points"][-1]["files"] > 8 * 5
    assert len(document["samples"]) > 1
    titles = [element.text or "" for element in ElementTree.parse(picture).iter() if element.tag.endswith("text")]
    assert "memory of the daemon, MiB" in titles
    assert "right  e2fsck at point 5: clean" in result.stdout


def test_a_byte_changed_behind_a_workers_back_is_reported(work: Path) -> None:
    result = soak(work, "--minutes=0.05", "--processes=2", "--spoil")
    assert result.returncode == 1
    assert re.fullmatch(
        r"scripts/soak: workers: worker 0: \S+/own/000/\S+: offset 0: .*, instead of (worker 0|zeros|the bytes).*\n",
        result.stderr,
    )
    assert "WRONG  workers: worker 0: " in result.stdout


@pytest.mark.parametrize(
    "option, words",
    [
        ("--minutes=none", "'none' is not a number from 0.01 to 100000"),
        ("--processes=0", "'0' is not a number from 1 to 1000"),
        ("--overlay-limit=much", "'much' is not a size"),
    ],
)
def test_options_are_checked(work: Path, option: str, words: str) -> None:
    result = soak(work, option)
    assert result.returncode == 2
    assert words in result.stderr.splitlines()[-1]


@contextmanager
def running(work: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A soak under load, and its mountpoint."""
    words = command(work, "--minutes=5", "--processes=2")
    with (
        caches_dropped(),
        subprocess.Popen(
            words, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as process,
    ):
        try:
            wait_until(lambda: any(os.path.ismount(path) for path in work.glob("soak-*/mount")), 60)
            (mountpoint,) = work.glob("soak-*/mount")
            wait_until(lambda: not (mountpoint / "own/000/image-1").exists(), 60)
            yield process, mountpoint
        finally:
            process.kill()


def test_when_interrupted_it_leaves_nothing(work: Path) -> None:
    with running(work) as (process, _):
        os.killpg(process.pid, signal.SIGINT)
        assert process.communicate(timeout=60)[1] == "scripts/soak: interrupted\n"
        assert process.returncode == 130
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)
    assert_nothing_left(work)


def test_a_daemon_that_dies_is_reported(work: Path) -> None:
    with running(work) as (process, mountpoint):
        os.kill(json.loads((mountpoint / ".mystfuse/status.json").read_text())["pid"], signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 1
        assert re.search(
            "the daemon has ended|Transport endpoint is not connected|Software caused connection abort", errors
        )
        assert "Traceback" not in errors
    assert_nothing_left(work)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """A worker's initial state, in a plain directory."""
    root = tmp_path_factory.mktemp("soak") / "root"
    return root, fill_source(root, workers=1, files=100, seed=1)


@pytest.fixture
def worker(source: tuple[Path, Manifest], tmp_path: Path) -> Worker:
    """A worker that has worked for a while, on a file system without faults."""
    root = tmp_path / "root"
    subprocess.run(["cp", "-a", source[0], root], check=True)
    worker = Worker(Task(root, 0, 7, 1 << 20, source[1]), Meter(1))
    for _ in range(150):
        worker.step()
    worker.check()
    return worker


def files(worker: Worker) -> list[Path]:
    """The files of a worker that have at least two pages."""
    found = [path for path in sorted(Path(worker.own.path).rglob("*")) if path.is_file() and not path.is_symlink()]
    return [path for path in found if path.stat().st_size > 8192]


def flip(worker: Worker) -> None:
    path = files(worker)[0]
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)


def lose(worker: Worker) -> None:
    """A block of zeros where data was written."""
    with files(worker)[0].open("r+b") as file:
        assert any(file.read(512))
        file.seek(0)
        file.write(bytes(512))


def go_back(worker: Worker) -> None:
    """A block of the generation before."""
    path = Path(worker.own.path) / "again"
    worker.own.children["again"] = file = type(next(iter(worker._files())).node)(Contents(0, 9999))  # type: ignore[call-arg,arg-type]
    for generation in (2, 3):
        file.contents.put(0, 8192, generation)
    path.write_bytes(stream(0, 9999, 3, 0, 4096) + stream(0, 9999, 2, 4096, 8192))


def mix(worker: Worker) -> None:
    """Another worker's block."""
    with files(worker)[0].open("r+b") as file:
        file.write(stream(5, 77, 4, 0, 512))


def cut(worker: Worker) -> None:
    path = files(worker)[0]
    os.truncate(path, path.stat().st_size - 1)


def drop_name(worker: Worker) -> None:
    files(worker)[0].unlink()


def add_name(worker: Worker) -> None:
    (Path(worker.own.path) / "stranger").touch()


def add_shared_name(worker: Worker) -> None:
    (Path(worker.shared.path) / "w000-stranger").touch()


def drop_kept_name(worker: Worker) -> None:
    (Path(worker.shared.path) / Manifest.kept_name(7)).unlink()


def add_link(worker: Worker) -> None:
    os.link(files(worker)[0], f"{worker.task.root}/elsewhere")


def change_attribute(worker: Worker) -> None:
    os.setxattr(files(worker)[0], "user.stranger", b"")


def change_target(worker: Worker) -> None:
    path = next(path for path in sorted(worker.task.root.rglob("*")) if path.is_symlink())
    path.unlink()
    path.symlink_to("elsewhere")


def exchange_inodes(worker: Worker) -> None:
    path = files(worker)[0]
    copy = path.with_name("copy")
    subprocess.run(["cp", "-a", path, copy], check=True)
    copy.rename(path)


@pytest.mark.parametrize(
    "damage, words",
    [
        (flip, r"offset 5000: .* \(1 of \d+ bytes are wrong\)"),
        (lose, r"offset \d+: zeros, instead of worker 0's file \d+, generation \d+, from offset 0"),
        (go_back, r"offset 4\d\d\d: worker 0's file 9999, generation 2, .* instead of .* generation 3,"),
        (mix, r"worker 5's file 77, generation 4, from offset 0, instead of worker 0's"),
        (cut, r"size \d+, "),
        (drop_name, r"a listing has \d+ names, not \d+: \['"),
        (add_name, r"a listing has \d+ names, not \d+: \['stranger'\]"),
        (add_shared_name, r"a listing has \d+ names, not \d+: \['w000-stranger'\]"),
        (drop_kept_name, r"names that are always there, a listing has 199: \['kept-0007"),
        (add_link, r"2 links"),
        (change_attribute, r"extended attributes .*user\.stranger"),
        (change_target, r"points to elsewhere, not to target/"),
        (exchange_inodes, r"inode \d+, not"),
    ],
)
def test_a_worker_finds(worker: Worker, damage: Callable[[Worker], None], words: str) -> None:
    damage(worker)
    with pytest.raises(Wrong, match=words):
        worker.check()


def test_a_worker_removes_all_it_has_made(worker: Worker) -> None:
    worker.remove()
    assert os.listdir(worker.own.path) == []
    assert sorted(os.listdir(worker.shared.path)) == sorted(worker.task.manifest.kept)


def test_a_read_of_the_image_is_compared_with_it(source: tuple[Path, Manifest], worker: Worker) -> None:
    for path in source[1].files:
        (worker.task.root / path).write_bytes(b"something else")
    for path in source[1].big:
        os.truncate(worker.task.root / path, 0)
    with pytest.raises(Wrong, match="are not what the image holds"):
        worker._read_image()
    with pytest.raises(Wrong, match="a walk does not find what the image holds"):
        worker._walk_image()


def test_contents_are_those_of_a_plain_file(tmp_path: Path) -> None:
    generator = random.Random(3)
    contents, plain = Contents(3, 4, 10_000), bytearray(stream(3, 4, 1, 0, 10_000))
    for generation in range(2, 300):
        start, length = generator.randrange(30_000), generator.randrange(9_000)
        if generator.random() < 0.3:
            contents.truncate(start)
            plain = plain[:start] + bytes(max(start - len(plain), 0))
        elif length:
            contents.put(start, start + length, generation)
            plain += bytes(max(start - len(plain), 0))
            plain[start : start + length] = stream(3, 4, generation, start, start + length)
        assert contents.size == len(plain)
        assert contents.difference(bytes(plain[start : start + 20_000]), start, start + 20_000) == ""


@pytest.fixture
def crew(source: tuple[Path, Manifest], tmp_path: Path) -> Iterator[Crew]:
    """One worker that waits."""
    root = tmp_path / "root"
    subprocess.run(["cp", "-a", source[0], root], check=True)
    meter = Meter(1)
    meter.phase = Phase.PAUSE
    crew = Crew([Task(root, 0, 7, 1 << 20, source[1])], meter)
    try:
        crew.lead(Phase.PAUSE, lambda: None)
        yield crew
    finally:
        crew.kill()
        crew.reap()


def test_a_worker_that_dies_is_reported(crew: Crew) -> None:
    crew.kill()
    with pytest.raises(Stopped):
        crew.lead(Phase.RUN, lambda: None)
    assert crew.wrongs == ["worker 0 died of SIGKILL"]


def test_a_worker_that_hangs_is_reported(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("soaking.crew._PATIENCE", 0.3)
    (pid,) = crew._pids
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(Stopped):
        crew.lead(Phase.CHECK, lambda: None)
    assert crew.wrongs == ["worker 0 has not got on for 0 s"]


def test_a_worker_that_hangs_at_the_end_is_reported(crew: Crew) -> None:
    (pid,) = crew._pids
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(Stopped):
        crew.wait(0.3)
    assert crew.wrongs == ["1 workers have not ended within 0.3 s"]


def test_growing_memory_is_not_flat() -> None:
    def samples(grown: int) -> list[Sample]:
        return [Sample(second, (100 << 20) + grown * second // 400, 0, 0, 1, 1, 0.0, {}) for second in range(400)]

    flat, grown = (judge_memory(samples(size), 400) for size in (10 << 20, 40 << 20))
    assert flat.is_right
    assert not grown.is_right and "(+17" in grown.said
    assert "not judged" in judge_memory(samples(40 << 20), 100).said


def test_errors_in_the_log_are_found(tmp_path: Path) -> None:
    log = tmp_path / "log"
    head = "2026-01-01 00:00:00,000 mystfuse[17] "
    log.write_text(
        f"{head}INFO: fine\n{head}WARNING: inode 12: so\n{head}WARNING: inode 13: so\n"
        f"{head}ERROR: write: internal error\nTraceback (most recent call last):\n  a line\nKeyError: 3\n"
    )
    wrong, warnings = Daemon(tmp_path / "image", tmp_path, log, [], None).log_lines()
    assert wrong == ["write: internal error", "KeyError: 3"]
    assert warnings == {"inode N: so": 2}


def test_processes_that_are_left_are_named() -> None:
    script = (
        "import os, subprocess, time\n"
        "from soaking.__main__ import _children\n"
        "os.posix_spawnp('true', ['true'], os.environ)\n"
        "while _children(): time.sleep(0.02)\n"
        "process = subprocess.Popen(['sleep', '60'])\n"
        "while _children() == ['']: time.sleep(0.02)  # It has its words a moment later.\n"
        "print(_children())\n"
        "process.kill()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout == "['sleep 60']\n"

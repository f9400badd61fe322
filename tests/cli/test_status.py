"""``mystfuse status``: every mount is listed, whatever state it is in, and none keeps us waiting."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mystfuse.cli.status_text import describe_mounts, describe_status
from mystfuse.fuse.metrics import MountState, metrics
from mystfuse.mounting.ask_mounts import Answer, State, ask
from mystfuse.mounting.mount_table import Mount, find_mount, own_mounts
from tests.support.commands import assert_one_line, mystfuse, run, wait_until
from tests.support.json_documents import check_document
from tests.support.mounts import daemon_pid, mounted, status_of

COLUMNS = ["MOUNTPOINT", "IMAGE", "TRUST", "WRITTEN", "UPTIME"]


def listed(*mountpoints: Path) -> list[dict[str, object]]:
    """The entries about these mountpoints, of all that there are: other tests have mounts too."""
    result = mystfuse("status", "--json", timeout=60)
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    check_document("status-list", document)
    by_name = {entry["mountpoint"]: entry for entry in document}
    return [by_name[str(path)] for path in mountpoints]


def row_of(mountpoint: Path) -> str:
    (row,) = (line for line in mystfuse("status").stdout.splitlines() if line.split()[0] == str(mountpoint))
    return row


# The list


def test_nothing_is_mounted() -> None:
    """In a mount namespace without mounts of ours."""
    unmount = 'umount -a -l -i -t fuse.mystfuse 2>/dev/null; exec "$@"'
    alone = ("unshare", "--mount", "--propagation", "private", "sh", "-c", unmount, "sh", "python3")
    words = (sys.executable, "-m", "mystfuse", "status")
    assert run(*alone[:-1], *words).stdout == "nothing is mounted\n"
    assert json.loads(run(*alone[:-1], *words, "--json").stdout) == []
    assert run(*alone[:-1], *words, "--prometheus").stdout == ""


def test_every_mount_has_a_line(small_image: Path, tmp_path: Path) -> None:
    with mounted(small_image, tmp_path / "one") as one, mounted(small_image, tmp_path / "two", "--read-only") as two:
        (one / "new").write_bytes(bytes(3 << 20))
        lines = mystfuse("status").stdout.splitlines()
        assert lines[0].split() == COLUMNS
        assert row_of(one).split()[1:3] == [str(small_image), "self"] and "3 MiB" in row_of(one)
        assert "read-only" in row_of(two)
        first, second = listed(one, two)
        assert first["state"] == second["state"] == "serving"
        assert first["image"] == str(small_image) and first["user"] == 0
        status = first["status"]
        assert isinstance(status, dict) and status.keys() == status_of(one).keys()
        only = mystfuse("status", two, one).stdout.splitlines()
        assert [line.split()[0] for line in only] == ["MOUNTPOINT", str(two), str(one)]
        assert [entry["mountpoint"] for entry in json.loads(mystfuse("status", "--json", two, one).stdout)] == [
            str(two),
            str(one),
        ]


def test_a_mount_in_two_places_is_one(small_image: Path, mountpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "bound").mkdir()
    with mounted(small_image, mountpoint):
        run("mount", "--bind", mountpoint / "sub", tmp_path / "bound")
        try:
            assert str(tmp_path / "bound") not in mystfuse("status").stdout
            assert_one_line(mystfuse("status", tmp_path / "bound"), 7, "has no status")
        finally:
            run("umount", tmp_path / "bound")


@contextmanager
def stopped(mountpoint: Path) -> Iterator[None]:
    pid = daemon_pid(mountpoint)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_hung_mounts_are_named_and_take_two_seconds_together(small_image: Path, tmp_path: Path) -> None:
    with (
        mounted(small_image, tmp_path / "one") as one,
        mounted(small_image, tmp_path / "two") as two,
        mounted(small_image, tmp_path / "three") as three,
        stopped(one),
        stopped(two),
    ):
        started = time.monotonic()
        hung, other, good = listed(one, two, three)
        assert time.monotonic() - started < 6
        assert hung["state"] == other["state"] == "hung" and hung["status"] is None
        assert hung["explanation"] == f"no answer within 2 s (mystfuse umount --force {one} ends it)"
        assert good["state"] == "serving"
        assert f"hung: no answer within 2 s (mystfuse umount --force {two} ends it)" in row_of(two)


def test_a_mount_that_has_taken_the_request_does_not_keep_us(small_image: Path, mountpoint: Path) -> None:
    """No signal ends a process whose request the daemon has: it is left behind, and ends when the daemon answers."""
    with mounted(small_image, mountpoint):
        pid = daemon_pid(mountpoint)
        # Both processes stop where they are: the daemon as soon as the request is under way, in most runs.
        states: set[State] = set()
        for _ in range(20):
            os.kill(pid, signal.SIGCONT)
            child = os.fork()
            if not child:
                time.sleep(0.002)
                os.kill(pid, signal.SIGSTOP)
                os._exit(0)
            started = time.monotonic()
            mount = find_mount(str(mountpoint))
            assert mount is not None
            (answer,) = ask([mount], 0.2)
            assert time.monotonic() - started < 2
            states.add(answer.state)
            os.waitpid(child, 0)
        os.kill(pid, signal.SIGCONT)
        assert State.HUNG in states and states <= {State.HUNG, State.SERVING}


def test_a_dead_mount_is_named(small_image: Path, mountpoint: Path) -> None:
    with mounted(small_image, mountpoint):
        os.kill(daemon_pid(mountpoint), signal.SIGKILL)
        wait_until(lambda: listed(mountpoint)[0]["state"] == "dead")
        assert "dead: its daemon is gone" in row_of(mountpoint)
        assert f"mystfuse umount {mountpoint} clears" in row_of(mountpoint)
        assert_one_line(mystfuse("status", mountpoint), 7, "its daemon is gone")


def test_mounts_without_a_status_are_named(small_image: Path, tmp_path: Path) -> None:
    with mounted(small_image, tmp_path / "one", "-o", "nocontrol") as one:
        assert listed(one)[0]["state"] == "silent"
        with mounted(small_image, tmp_path / "one", "-o", "nonempty"):
            states = {answer.state for answer in ask([m for m in own_mounts() if m.mountpoint == str(one)])}
            assert states == {State.HIDDEN, State.SERVING}


def test_an_image_with_a_status_of_its_own_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "tree/.mystfuse").mkdir(parents=True)
    for number, text in enumerate(['{"trust": "signature"}', "[" * 5000, '{"version": 1e999}', "x" * 70_000]):
        (tmp_path / "tree/.mystfuse/status.json").write_text(text)
        image = tmp_path / f"{number}.img"
        assert mystfuse("mkext2", tmp_path / "tree", image).returncode == 0
        with mounted(image, tmp_path / "mount", "-o", "nocontrol") as mountpoint:
            assert listed(mountpoint)[0]["state"] == "silent"


def test_mounts_of_others(small_image: Path, open_tmp_path: Path, ordinary_user: list[str]) -> None:
    image, mine, theirs = open_tmp_path / "image", open_tmp_path / "mine", open_tmp_path / "theirs"
    run("cp", small_image, image)
    image.chmod(0o644)
    mine.mkdir()
    with mounted(image, theirs, "--allow-other"):
        (entry,) = json.loads(run(*ordinary_user, "status", "--json", theirs, mine.parent / "theirs").stdout)[:1]
        assert entry["state"] == "refused" and entry["user"] == 0
        assert "only that user and root may look into it" in entry["explanation"]
        assert str(theirs) in run(*ordinary_user, "status").stdout
        result = run(*ordinary_user, "status", theirs, check=False)
        assert_one_line(result, 7, "user 0 has mounted it")


def test_a_path_that_is_no_mount(tmp_path: Path) -> None:
    for words in ("status", tmp_path), ("status", "--prometheus", tmp_path), ("status", "--json", tmp_path, tmp_path):
        assert_one_line(mystfuse(*words), 7, f"{tmp_path}: nothing of mystfuse's is mounted there")
    assert_one_line(mystfuse("status", "--json", "--prometheus"), 2, "status: --json and --prometheus exclude")


# For people


def test_the_details_have_units_and_groups(small_image: Path, mountpoint: Path) -> None:
    with mounted(small_image, mountpoint, "--overlay-limit=64M"):
        (mountpoint / "new").write_bytes(bytes(3 << 20))
        groups = [group.splitlines() for group in mystfuse("status", mountpoint).stdout.split("\n\n")]
        assert groups[0][0] == f"mountpoint: {mountpoint}" and groups[1][0] == "trust: self"
        lines = dict(line.split(": ", 1) for group in groups for line in group)
        assert lines["overlay limit"] == "64 MiB" and lines["overlay used"].endswith("MiB")
        assert lines["read only"] == "no" and lines["signer"] == "none" and lines["uptime"].endswith(" s")
        assert lines.keys() == {name.replace("_", " ") for name in status_of(mountpoint)}


def test_fields_of_a_newer_daemon_are_shown_and_hostile_ones_escaped() -> None:
    lines = describe_status(
        {"mountpoint": "/m", "new_thing": 5, "image": "a\x1b[2J\nb", "uptime": 90, "start_time": 1e17}
    )
    assert lines == [
        "mountpoint: /m", "image: a\\x1b[2J\\nb", "start time: 1e+17", "uptime: 1 min 30 s", "", "new thing: 5",
    ]  # fmt: skip
    mount = Mount("/a\n", "0:9", "i\x1b", 0)
    answers = [
        Answer(mount, State.SERVING, {"trust": {"a\n": 1}, "uptime": "x"}),
        Answer(mount, State.UNKNOWN, error="E\r"),
    ]
    table = describe_mounts(answers, 2)
    assert len(table) == 3 and all(line.isprintable() for line in table)


# Metrics


def families_of(text: str) -> dict[str, Any]:
    return {family.name: family for family in text_string_to_metric_families(text)}


VALUES = {
    "read_only": "read_only",
    "overlay_written_bytes": "overlay_written",
    "overlay_used_bytes": "overlay_used",
    "overlay_limit_bytes": "overlay_limit",
    "start_time_seconds": "start_time",
    "changes_total": "changes",
    "damaged_blocks_total": "blocks_failed",
}
"""Metrics, and fields of the status that do not change while nothing is written."""


def key_of(name: str, labels: dict[str, str], **more: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return f"mystfuse_{name}", frozenset({**labels, **more}.items())


def values_of(families: list[Any]) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    samples = [sample for family in families for sample in family.samples]
    return {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}


def test_prometheus_reads_the_metrics(small_image: Path, tmp_path: Path) -> None:
    odd = tmp_path / 'a "quoted" \\ back, \u00e4\nname'
    with mounted(small_image, odd), mounted(small_image, tmp_path / "two") as two:
        (odd / "new").write_bytes(bytes(1 << 20))
        (odd / "hello.txt").read_bytes()
        status = status_of(odd)
        by_file = list(text_string_to_metric_families((odd / ".mystfuse/metrics").read_text()))
        by_command = list(text_string_to_metric_families(mystfuse("status", "--prometheus").stdout))
    labels = {"mountpoint": str(odd), "image": str(small_image)}
    for families in by_file, by_command:
        values = values_of(families)
        assert len(values) == sum(len(family.samples) for family in families)
        for name, field in VALUES.items():
            assert values[key_of(name, labels)] == status[field], name
        assert values[key_of("verified_blocks_total", labels, kind="data")] >= status["blocks_verified"] > 0
        assert status["changes"] >= 2 and status["overlay_written"] > 1 << 20
        assert abs(time.time() - status["start_time"]) < 60
        assert [family.name for family in families][:2] == ["mystfuse_up", "mystfuse_mount_info"]
        for family in families:
            assert family.documentation.endswith(".")
            # The naming of Prometheus: a counter's samples end in _total (the parser takes that off its name).
            for sample in family.samples:
                assert (family.type == "counter") == sample.name.endswith("_total")
    shown = {sample.labels["mountpoint"] for family in by_command for sample in family.samples}
    assert {str(odd), str(two)} <= shown


def test_every_number_of_the_status_is_a_metric(small_image: Path, mountpoint: Path) -> None:
    """So that a new field is not forgotten."""
    with mounted(small_image, mountpoint):
        status = status_of(mountpoint)
    described = {
        "pid",
        "uptime",
        "landlock",
        "seccomp",
        "empty_root",
        "own_user",
        "luks_version",
        "block_size",
        "fastpath",
        "hash_tree",
    }
    text = metrics([MountState("/m", "i", dict.fromkeys(status, 123456))]).decode()
    numbers = {name for name, value in status.items() if isinstance(value, (int, float, dict))} - described
    assert text.count(" 123456\n") == len(numbers)


def test_a_hung_mount_is_down(small_image: Path, mountpoint: Path) -> None:
    with mounted(small_image, mountpoint), stopped(mountpoint):
        families = families_of(mystfuse("status", "--prometheus", mountpoint).stdout)
        assert list(families) == ["mystfuse_up"]
        (sample,) = families["mystfuse_up"].samples
        assert sample.value == 0 and sample.labels["mountpoint"] == str(mountpoint)


@pytest.mark.parametrize("text", ['"', "\\", "\n", "\\n", 'a"b\\c\nd', "\udcff", "\u00e4\u4e2d", "} 1\nmystfuse_up{"])
def test_labels_are_escaped(text: str) -> None:
    data = metrics([MountState(text, text, {"overlay_used": 5, "version": text})])
    families = families_of(data.decode())
    shown = text.encode(errors="backslashreplace").decode()
    for family in families.values():
        for sample in family.samples:
            assert sample.labels["mountpoint"] == sample.labels["image"] == shown
    assert list(families) == ["mystfuse_up", "mystfuse_mount_info", "mystfuse_overlay_used_bytes"]


def test_samples_differ_in_their_labels() -> None:
    """Prometheus refuses all of it otherwise."""
    covered, top = MountState("/m", "i", None), MountState("/m", "i", {"overlay_used": 5})
    for order in ([covered, top], [top, covered], [top, top]):
        families = families_of(metrics(order).decode())
        assert [sample.value for sample in families["mystfuse_up"].samples] == [1]


def test_what_is_no_number_is_left_out() -> None:
    status = {"overlay_used": "5", "changes": None, "requests_answered": {"read": "x", "write": 2}, "blocks_failed": []}
    assert list(families_of(metrics([MountState("/m", "i", status)]).decode())) == [
        "mystfuse_up", "mystfuse_mount_info", "mystfuse_requests",
    ]  # fmt: skip

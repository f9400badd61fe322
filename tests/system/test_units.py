"""Numbers for people: GNU's ls and numfmt are the judges of sizes."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from mystfuse.system.units import describe_bytes, describe_duration, ls_size
from tests.support.cli_in_process import in_process
from tests.support.commands import mystfuse, run


def test_sizes_are_those_of_numfmt() -> None:
    choose = random.Random(1)
    sizes = [0, 1, 9, 1023, 1024, 1025, 10239, 10240, 10241, 1047552, 1047553, (1 << 63) - 1]
    sizes += [int(2 ** choose.uniform(0, 62)) for _ in range(3000)]
    sizes += [n * 1024**p + d for p in range(1, 6) for n in (1, 9, 10, 99, 999, 1023) for d in (-1, 0, 1)]
    said = run("numfmt", "--to=iec", "--round=up", *map(str, sizes)).stdout.split()
    assert [ls_size(size) for size in sizes] == said


def test_ls_shows_sizes_as_ls_does(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for size in (0, 5, 1023, 1024, 1025, 1536, 10240, 10241, 99_999, 1_047_553, 3 << 20, 1 << 30):
        (tree / f"{size:011}").touch()
        os.truncate(tree / f"{size:011}", size)
    assert mystfuse("mkext2", tree, tmp_path / "image").returncode == 0
    judged = [line.split()[4] for line in run("ls", "-lh", tree).stdout.splitlines()[1:]]
    ours = [line.split() for line in in_process("ls", "-lh", tmp_path / "image").stdout.splitlines()]
    assert [words[4] for words in ours if words[6] != "lost+found"] == judged
    # Without -l there are no sizes, and --json has the numbers.
    assert in_process("ls", "-h", tmp_path / "image").stdout == in_process("ls", tmp_path / "image").stdout
    assert '"size": 1073741824' in in_process("ls", "-h", "--json", tmp_path / "image").stdout
    assert in_process("ls", "--help").stdout.startswith("Usage: ")


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (0, "0 bytes"), (1, "1 byte"), (1023, "1023 bytes"), (1024, "1 KiB"), (1536, "1.5 KiB"), (102_348, "99.9 KiB"),
        (102_400, "100 KiB"), (1_048_063, "1023 KiB"), (1_048_064, "1 MiB"), (3_355_443, "3.2 MiB"), (1 << 40, "1 TiB"),
        ((1 << 20) - 1, "1 MiB"), (5 << 30, "5 GiB"), (1 << 60, "1 EiB"), ((1 << 64) - 1, "16 EiB"),
        (1 << 74, "16384 EiB"),
    ],
)  # fmt: skip
def test_bytes(size: int, said: str) -> None:
    assert describe_bytes(size) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-1, "0 s"), (0.9, "0 s"), (59.99, "59 s"), (60, "1 min"), (200, "3 min 20 s"), (3600, "1 h"),
        (7500, "2 h 5 min"), (86_399, "23 h 59 min"), (86_400, "1 d"), (1_047_600, "12 d 3 h"),
    ],
)  # fmt: skip
def test_durations(seconds: float, said: str) -> None:
    assert describe_duration(seconds) == said

"""What other files are is said right, as file(1) and blkid(8) judge, and the command that is advised helps."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mystfuse.image.identify import identify_path
from tests.support.cli_in_process import in_process
from tests.support.commands import SBIN, run
from tests.support.other_files import NO_FILES, OTHER_FILES

MakeFile = Callable[[str], Path]
every_kind = pytest.mark.parametrize("name", OTHER_FILES)


@every_kind
def test_a_kind_is_told(name: str, other_file: MakeFile) -> None:
    path, other = other_file(name), OTHER_FILES[name]
    kind = identify_path(str(path), 30)
    assert kind is not None
    assert kind.name == other.kind
    assert other.title in kind.title
    assert kind.advice


@pytest.mark.parametrize("name", [name for name, other in OTHER_FILES.items() if other.file_says])
def test_file_agrees(name: str, other_file: MakeFile) -> None:
    assert OTHER_FILES[name].file_says.lower() in run("file", "-bL", other_file(name)).stdout.lower()


@pytest.mark.parametrize("name", [name for name in OTHER_FILES if name not in NO_FILES])
def test_blkid_agrees(name: str, other_file: MakeFile) -> None:
    path = other_file(name)
    found = run("blkid", "-p", "-o", "export", path, check=False).stdout
    told = re.findall(r"^(?:PT)?TYPE=(.*)$", found, re.MULTILINE)[:1]
    assert told == ([OTHER_FILES[name].blkid_says] if OTHER_FILES[name].blkid_says else [])
    label = re.search(r"^LABEL=(.*)$", found, re.MULTILINE)
    kind = identify_path(str(path), 30)
    assert kind is not None
    if label is not None and "label" in kind.facts:
        assert kind.facts["label"] == label[1]
    uuid = re.search(r"^UUID=([0-9a-f-]{36})$", found, re.MULTILINE)
    if uuid is not None and "uuid" in kind.facts:
        assert kind.facts["uuid"] == uuid[1]


@pytest.mark.parametrize("name", [name for name, other in OTHER_FILES.items() if other.leads_to])
def test_the_command_that_is_advised_helps(name: str, other_file: MakeFile, tmp_path: Path) -> None:
    path, other = other_file(name), OTHER_FILES[name]
    here = tmp_path / path.name
    run("cp", "-a", path, here)
    kind = identify_path(str(here), 30)
    assert kind is not None
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/mystfuse").write_text(f'#!/bin/sh\nexec {sys.executable} -m mystfuse "$@"\n')
    (tmp_path / "bin/mystfuse").chmod(0o755)
    result = subprocess.run(
        ["sh", "-c", kind.commands_for(here.name)[0]], cwd=tmp_path, capture_output=True, text=True, timeout=120,
        stdin=subprocess.DEVNULL, env={"PATH": f"{tmp_path}/bin:{SBIN}", "HOME": str(tmp_path)}, check=False,
    )  # fmt: skip
    said = result.stdout + result.stderr
    made = {file.name for file in tmp_path.iterdir()} - {"bin", "tree", here.name}
    if other.leads_to == "image":
        (image,) = made
        assert result.returncode == 0, said
        listed = in_process("ls", "-R", tmp_path / image)
        assert "hello" in listed.stdout or other.kind == "elf", listed
    elif made & {f"{here.name}.verity"}:
        # A hash tree for what was there.
        assert result.returncode == 0 and "bytes verified" in said, said
    else:
        # What info says of the file that was in it: an image, or what was in a partition.
        inner = {"gpt": "ext4 file system", "mbr": "ext4 file system", "ext3": "ext3 file system"}
        assert inner.get(other.kind, "an image (unsigned, ") in said, said
        assert result.returncode == (6 if other.kind in inner else 0), said


def test_partitions_are_listed_with_their_contents(other_file: MakeFile) -> None:
    for name, first in ("gpt", "Linux filesystem 'root'"), ("mbr", "Linux"):
        disk = other_file(name)
        kind = identify_path(str(disk), 30)
        assert kind is not None
        judge = re.findall(r"start= *(\d+), size= *(\d+)", run("sfdisk", "-d", disk).stdout)
        assert [(part.offset // 512, part.size // 512) for part in kind.parts] == [
            (int(start), int(size)) for start, size in judge
        ]
        assert kind.parts[0].type == first
        assert kind.parts[0].contents.startswith("an ext4 file system (label lbl, 8 MiB)")


def test_names_are_quoted_for_a_shell(tmp_path: Path) -> None:
    path = tmp_path / "-it's a $(file).tar"
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/hello").write_text("hello")
    run("tar", "-cf", path, "-C", tmp_path, "tree")
    kind = identify_path(str(path), 30)
    assert kind is not None
    (command,) = kind.commands_for(path.name)
    words = run("sh", "-c", f"printf '%s\\n' {command.removeprefix('mystfuse mkext2 --tar ')}").stdout
    assert words == f"./{path.name}\n./{path.stem}.img\n"

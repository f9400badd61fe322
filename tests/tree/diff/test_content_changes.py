"""How contents differ: patch(1) applies the unified diffs, and blocks are counted."""

from __future__ import annotations

import os
import random
import shutil
import time
from contextlib import closing
from pathlib import Path

import pytest

from mystfuse.tree.diff.change import Change
from mystfuse.tree.diff.content_changes import BLOCK, MAX_DIFFERING_LINES, ContentChange, content_change, unified_diff
from mystfuse.tree.diff.directory_view import DirectoryView
from tests.support.commands import run
from tests.support.tree_diffs import changes_between


@pytest.mark.skipif(shutil.which("patch") is None, reason="patch is not installed")
@pytest.mark.parametrize("seed", range(30))
def test_patch_applies_a_unified_diff(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    old = [b"line %d\r" % chance.randrange(20) for _ in range(chance.randrange(100))]
    new = [line for line in old if chance.random() > 0.1]
    for _ in range(chance.randrange(5)):
        new.insert(chance.randrange(len(new) + 1), b"new")
    texts = [b"\n".join(lines) + chance.choice((b"", b"\n")) for lines in (old, new)]
    if not texts[0] or texts[0] == texts[1]:
        pytest.skip("nothing for patch to do")
    (tmp_path / "file").write_bytes(texts[0])
    lines = unified_diff(*texts)
    assert lines
    (tmp_path / "patch").write_bytes(b"".join([b"--- a/file\n+++ b/file\n", *lines]))
    run("patch", "--binary", "--fuzz=0", "-s", "-d", tmp_path, "-p1", "-i", tmp_path / "patch")
    # It may remove a file of which nothing is left.
    assert ((tmp_path / "file").read_bytes() if (tmp_path / "file").exists() else b"") == texts[1]


def test_the_context_is_three_lines() -> None:
    old = b"".join(b"%d\n" % number for number in range(10_000))
    lines = unified_diff(old, old.replace(b"\n5000\n", b"\nchanged\n"))
    assert lines is not None
    assert b"".join(lines).split(b"\n") == [
        b"@@ -4998,7 +4998,7 @@", b" 4997", b" 4998", b" 4999", b"-5000", b"+changed", b" 5001", b" 5002", b" 5003", b""
    ]  # fmt: skip


def test_no_text_takes_for_ever() -> None:
    """Lines that repeat as often as difflib bears."""
    count = MAX_DIFFERING_LINES
    old = b"".join(b"%d\n" % (number * 7 % 100) for number in range(count))
    new = b"".join(b"%d\n" % (number * 13 % 100) for number in range(1, count))
    began = time.monotonic()
    assert unified_diff(old, new)
    assert time.monotonic() - began < 60
    assert unified_diff(b"x\n" * (count + 1), b"y\n" * (count + 1)) is None
    assert unified_diff(b"", b"y\n" * (count + 1)) is not None


async def change_of(tmp_path: Path, old: bytes | None, new: bytes | None) -> ContentChange | None:
    trees = []
    for name, data in (("old", old), ("new", new)):
        (tmp_path / name).mkdir()
        if data is not None:
            (tmp_path / name / "file").write_bytes(data)
        os.utime(tmp_path / name, ns=(1, 1))
        trees.append(tmp_path / name)
    with closing(DirectoryView(trees[0])) as old_view, closing(DirectoryView(trees[1])) as new_view:
        changes: list[Change] = await changes_between(old_view, new_view)
        return await content_change(old_view, new_view, changes[-1])


@pytest.mark.parametrize(
    ("old_size", "new_size", "changed", "differing"),
    [
        (5 * BLOCK, 5 * BLOCK, [0], 1),
        (5 * BLOCK, 5 * BLOCK, [BLOCK - 1, BLOCK, 5 * BLOCK - 1], 3),
        (5 * BLOCK, 7 * BLOCK, [], 2),
        (5 * BLOCK + 1, 7 * BLOCK, [5 * BLOCK], 2),
        (5 * BLOCK + 1, 7 * BLOCK - 5, [0], 3),
        (900 * BLOCK, 900 * BLOCK, [0, 600 * BLOCK], 2),
        (900 * BLOCK, 1, [], 900),
    ],
)
async def test_differing_blocks(
    old_size: int, new_size: int, changed: list[int], differing: int, tmp_path: Path
) -> None:
    old = bytearray(b"\0" + b"x" * (old_size - 1))
    new = bytearray(b"\0" + b"x" * (new_size - 1))
    for position in changed:
        new[position] ^= 1
    change = await change_of(tmp_path, bytes(old), bytes(new))
    assert change == ContentChange(None, differing, -(-max(old_size, new_size) // BLOCK))


async def test_text(tmp_path: Path) -> None:
    assert await change_of(tmp_path, b"a\n", b"b") == ContentChange(
        [b"@@ -1 +1 @@\n", b"-a\n", b"+b\n\\ No newline at end of file\n"]
    )


async def test_added_text(tmp_path: Path) -> None:
    assert await change_of(tmp_path, None, b"b\nc\n") == ContentChange([b"@@ -0,0 +1,2 @@\n", b"+b\n", b"+c\n"])


async def test_removed_text(tmp_path: Path) -> None:
    assert await change_of(tmp_path, b"b\n", None) == ContentChange([b"@@ -1 +0,0 @@\n", b"-b\n"])


@pytest.mark.parametrize("data", [b"", b"\0"])
async def test_what_an_added_file_has_nothing_to_say_about(data: bytes, tmp_path: Path) -> None:
    assert await change_of(tmp_path, None, data) is None

"""The test of consistency finds a mount's wrong answers: daemons that give some on purpose, of each kind."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tests.support.consistency.runs import Load, judge
from tests.support.mounts import caches_dropped, mounted

CALLS = 8000
SEEDS = 8
"""Rounds at most: some faults show in three of four."""
SETTING = """
import time
import trio
from mystfuse.fuse import lookup_counts, operations, readdir
from mystfuse.volume import volume

MOMENT = 0.3  # seconds that an answer is kept too long
begun = []

def begin(self, *words, real=volume.Volume.set_attributes, **options):
    # The files have been made: from now on they change.
    begun.append(True)
    return real(self, *words, **options)
volume.Volume.set_attributes = begin

def keep(kind, name, combine=lambda old, new: old):
    real, kept = getattr(kind, name), {}
    async def answer(self, *words, **options):
        key = tuple(word for word in words if isinstance(word, (int, bytes)))
        new = await real(self, *words, **options)
        made, old = kept.get(key, (0, None))
        if begun and time.monotonic() - made < MOMENT:
            return combine(old, new)
        kept[key] = time.monotonic(), new
        return new
    setattr(kind, name, answer)

"""
FAULTS = {
    "attributes": "keep(operations.Operations, 'getattr')",
    "names": "keep(operations.Operations, 'lookup')",
    "attributes of extended kind": "keep(volume.Volume, 'xattrs')",
    "data": "keep(volume.Volume, 'read')",
    "data, torn": "keep(volume.Volume, 'read', lambda old, new: bytes(old)[:264] + bytes(new)[264:])",
    "listings": """
        def prepare(self, directory, position, real=readdir.DirectoryReader._prepare):
            return real(self, readdir.OpenDirectory(directory.ino), position)
        readdir.DirectoryReader._prepare = prepare
        keep(volume.Volume, 'entries')
        """,
    "a write that is answered too early": """
        def early(self, *words, real=volume.Volume.set_attributes, **options):
            async def late():
                await trio.sleep(0.01)
                try:
                    await real(self, *words, **options)
                except Exception:
                    pass
            trio.lowlevel.spawn_system_task(late)
            return real(self, words[0], operations.AttributeChanges(), words[2])
        volume.Volume.set_attributes = early
        """,
    "files in use that are released": "lookup_counts.OwnLookupCounts.has = lambda self, ino: not begun",
}
FAULTS_OF_THE_FAST_PATH = {
    "written blocks that C is not told of": """
        from mystfuse.fastpath import written_blocks
        def end(self, token, slots, real=written_blocks.WrittenBlocks.end):
            if begun:
                begun.append(True)
            return real(self, token[:0] if len(begun) % 20 == 19 else token, slots)
        written_blocks.WrittenBlocks.end = end
        """,
    "files in use that are released": """
        from mystfuse.fastpath import written_blocks
        written_blocks.SharedLookupCounts.has = lambda self, ino: False
        """,
}


@pytest.mark.logs("internal error")
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_is_found(
    operators: Path, roomy_image: Path, tmp_path: Path, slow_path_options: tuple[str, ...], fault: str
) -> None:
    assert_found(operators, roomy_image, tmp_path, fault, *slow_path_options)


@pytest.mark.logs("internal error")
@pytest.mark.parametrize("fault", FAULTS_OF_THE_FAST_PATH.values(), ids=FAULTS_OF_THE_FAST_PATH)
def test_a_fault_of_the_fast_path_is_found(operators: Path, roomy_image: Path, tmp_path: Path, fault: str) -> None:
    assert_found(operators, roomy_image, tmp_path, fault)


def assert_found(operators: Path, image: Path, directory: Path, fault: str, *options: str) -> None:
    """Run a daemon with a fault, and assert that the judge finds it."""
    (directory / "sitecustomize.py").write_text(SETTING + textwrap.dedent(fault))
    environment = {"PYTHONPATH": str(directory)}
    with (
        caches_dropped(),
        mounted(image, directory / "mount", "--insecure", *options, env=environment) as mountpoint,
    ):
        found = (
            judge(operators, mountpoint, seed, Load(CALLS, ratio=6, asking=2)).counts["violations"]
            for seed in range(1, SEEDS + 1)
        )
        assert any(found)

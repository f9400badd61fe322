"""rsync and diff find the same differences between pairs of random trees."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from mystfuse.tree.diff.change import Aspect, Change, Kind
from tests.support.commands import mystfuse
from tests.support.rsync_judge import as_judged, as_rsync_sees, differing_files, rsync_changes
from tests.support.tree_diffs import changes_between, directory_changes, image_view
from tests.support.tree_pairs import PairMaker

pytestmark = pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")


def _seeds(count: int) -> list[pytest.param]:  # type: ignore[valid-type]
    return [pytest.param(seed, marks=[pytest.mark.slow] if seed > count else []) for seed in range(1, 101)]


def check_against_judges(changes: list[Change], pair: PairMaker) -> None:
    """What was found is what rsync and diff find."""
    found = {change.path: change for change in changes}
    assert len(found) == len(changes), "each path once"
    judged = rsync_changes(pair.old, pair.new)
    assert found.keys() == judged.keys()
    for path, flags in judged.items():
        if Aspect.TYPE in found[path].aspects and flags.startswith("h"):
            # Of a file with several names it says how the inode differs from that of another kind.
            continue
        assert as_rsync_sees(found[path]) == as_judged(flags), (path, flags)
    changed = {
        path
        for path, change in found.items()
        if change.kind is Kind.CHANGED and change.aspects & {Aspect.CONTENT, Aspect.TARGET}
    }
    assert changed == differing_files(pair.old, pair.new)


@pytest.mark.parametrize("seed", _seeds(25))
async def test_directories(seed: int, tmp_path: Path) -> None:
    pair = PairMaker(tmp_path, seed)
    changes = await directory_changes(pair.old, pair.new)
    check_against_judges(changes, pair)
    assert [change.path.split(b"/") for change in changes] == sorted(change.path.split(b"/") for change in changes)


@pytest.mark.parametrize("has_digests", [True, False])
@pytest.mark.parametrize("seed", _seeds(5))
async def test_images(seed: int, has_digests: bool, tmp_path: Path) -> None:
    pair = PairMaker(tmp_path, seed)
    images = []
    for tree in (pair.old, pair.new):
        images.append(tmp_path / f"{tree.name}.img")
        assert mystfuse("mkext2", "--salt", "00" * 32, tree, images[-1]).returncode == 0
    async with image_view(images[0], has_digests) as old, image_view(images[1], has_digests) as new:
        check_against_judges(await changes_between(old, new), pair)


def test_the_judges_see_what_there_is_to_see(tmp_path: Path) -> None:
    aspects: set[object] = set()
    for seed in range(1, 26):
        place = tmp_path / str(seed)
        place.mkdir()
        pair = PairMaker(place, seed)
        for flags in rsync_changes(pair.old, pair.new).values():
            judged = as_judged(flags)
            aspects |= {judged} if isinstance(judged, str) else judged
    # rsync replaces a device by removing it.
    assert aspects == {"added", "removed", *Aspect} - {Aspect.TYPE, Aspect.LINKS, Aspect.DEVICE}, os.fspath(tmp_path)

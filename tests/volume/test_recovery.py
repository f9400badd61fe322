"""The journal's replay against the kernel's and e2fsck's, over random journals and snapshots of mounts under load."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest

from mystfuse.errors import MystfuseError
from mystfuse.volume.volume import Volume
from tests.support.commands import run
from tests.support.ext2_editor import MemoryDevice, merged
from tests.support.journal_snapshots import KINDS, replayed_by_hand, snapshots
from tests.support.journals import differing_blocks, journal_blocks, loop_device, recovered, replay_with_debugfs
from tests.support.random_journals import FEATURES, damage, random_journal

COMPARE = Path(__file__).parents[2] / "scripts/compare-trees"


async def check_random(directory: Path, seed: int) -> None:
    random = Random(seed)
    image = random_journal(directory / "image", random, random.choice(FEATURES))
    ours, kernel = await image.ours(), image.kernels(directory)
    assert kernel is not None
    assert image.differing(ours, kernel) == [], seed
    assert image.differing(ours, image.of_e2fsck(directory)) == [], seed


async def check_damaged(directory: Path, seed: int, is_strict: bool = True) -> bool:
    """Whether it was still mounted.

    Args:
        is_strict: False if the kernel may refuse what we open, for something that is broken behind the journal, or in
            a transaction that is not complete; then debugfs judges.
    """
    random = Random(seed)
    image = random_journal(directory / "image", random, random.choice(FEATURES), wraps=False)
    damage(image, random)
    kernel = image.kernels(directory)
    try:
        ours = await image.ours()
    except MystfuseError as error:
        assert kernel is None, (seed, error)
        return False
    if kernel is None and not is_strict:
        copy = directory / "debugfs.img"
        copy.write_bytes(image.data)
        replay_with_debugfs(copy)
        kernel = copy.read_bytes()
    assert kernel is not None, seed
    assert image.differing(ours, kernel) == [], seed
    return True


@pytest.mark.parametrize("seed", range(30))
async def test_random_journals_are_replayed_as_the_kernel_and_e2fsck_do(tmp_path: Path, seed: int) -> None:
    await check_random(tmp_path, seed)


async def test_damaged_journals_are_replayed_or_refused_as_by_the_kernel(tmp_path: Path) -> None:
    verdicts = [await check_damaged(tmp_path, seed) for seed in range(60)]
    assert 10 < sum(verdicts) < 50


@pytest.mark.slow
@pytest.mark.parametrize("start", range(0, 2000, 100))
async def test_many_journals_are_replayed_as_the_kernel_and_e2fsck_do(tmp_path: Path, start: int) -> None:
    for seed in range(start, start + 100):
        await check_random(tmp_path, 10_000 + seed)
        await check_damaged(tmp_path, 10_000 + seed, is_strict=False)


@pytest.mark.logs("the mount is read-only")
@pytest.mark.parametrize("kind", KINDS)
async def test_snapshots_of_a_mount_under_load_are_recovered_as_by_the_kernel(tmp_path: Path, kind: str) -> None:
    await check_snapshots(tmp_path, kind, 3, 1)


@pytest.mark.slow
@pytest.mark.logs("the mount is read-only")
@pytest.mark.parametrize("kind", KINDS)
async def test_many_snapshots_are_recovered_as_by_the_kernel(tmp_path: Path, kind: str) -> None:
    await check_snapshots(tmp_path, kind, 25, 2)


async def check_snapshots(directory: Path, kind: str, count: int, seed: int) -> None:
    found = 0
    for data in snapshots(directory, kind, count, Random(seed)):
        found += await check_snapshot(directory, data, is_writable=kind.startswith("ext3"))
    assert found, "no journal had anything to replay"


async def check_snapshot(directory: Path, data: bytes, is_writable: bool) -> bool:
    """Check one image; whether its journal had anything to replay.

    Args:
        is_writable: whether our driver writes to such a file system: then it frees the orphans.
    """
    image, judged = directory / "snapshot.img", directory / "judged.img"
    image.write_bytes(data)
    size = 1024 << data[1024 + 24]
    ours, blocks, _ = replayed_by_hand(image)
    judged.write_bytes(data)
    replay_with_debugfs(judged)
    by_debugfs = judged.read_bytes()
    superblocks = {1024 // size, journal_blocks(image)[0]}
    assert differing_blocks(ours, by_debugfs, size, superblocks) == []
    assert differing_blocks(ours, await recovered(data), size, superblocks) == []
    volume = await Volume.open(MemoryDevice(data), 64 << 20)
    assert volume.orphans == set()
    recovered_image = directory / "clean.img"
    recovered_image.write_bytes(await merged(volume))
    if is_writable:
        run("e2fsck", "-fn", recovered_image)
    judged.write_bytes(data)
    kernel, counts = assert_same_trees(directory, judged, recovered_image)
    assert "needs_recovery" not in run("dumpe2fs", "-h", recovered_image).stdout
    if is_writable:
        assert kernel == counts
    return bool(blocks)


def assert_same_trees(directory: Path, dirty: Path, clean: Path) -> list[tuple[int, int]]:
    """The kernel's mount of a dirty image, which it recovers, against that of ours; returns free blocks and inodes of
    both."""
    mounts = [directory / "dirty", directory / "clean"]
    for mount in mounts:
        mount.mkdir(exist_ok=True)
    with loop_device(dirty) as first, loop_device(clean) as second:
        run("mount", "-t", "ext4", "-o", "ro", first, mounts[0])
        try:
            run("mount", "-t", "ext4", "-o", "ro,noload", second, mounts[1])
            try:
                compared = run(COMPARE, *mounts, check=False)
                assert compared.returncode == 0, compared.stdout
                return [(counts.f_bfree, counts.f_ffree) for counts in map(os.statvfs, mounts)]
            finally:
                run("umount", mounts[1])
        finally:
            run("umount", mounts[0])

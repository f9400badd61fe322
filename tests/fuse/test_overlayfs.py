"""overlayfs on our mount: with the mount as its upper layer, as its lower one, and as both, compared with the kernel's
ext2 in that place."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.commands import run
from tests.support.errno_pairs import RENAME_EXCHANGE, Pair, open_directory, pair_of, rename, state
from tests.support.mounts import HAS_FAST_PATH, assert_clean, caches_dropped, caches_kept

pytestmark = pytest.mark.skipif(not HAS_FAST_PATH, reason="pyfuse3 has no whiteouts")

OPTIONS = {
    "plain": "",
    "redirected": "redirect_dir=on,metacopy=on",
    "indexed": "index=on,nfs_export=on",
}


@pytest.fixture(scope="module", params=["", ",nohandles"])
def layers(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Both mounts, each with directories for layers."""
    with open_directory() as directory:
        image = directory / "image"
        run("mke2fs", "-q", "-F", "-t", "ext2", "-b", "1024", "-I", "256", image, "32M")
        with pair_of(image, 1024, options=request.param) as pair:
            for side in pair.sides():
                make_lower(side / "lower")
            yield pair


def make_lower(lower: Path) -> None:
    (lower / "directory/sub").mkdir(parents=True)
    (lower / "directory/sub/file").write_bytes(b"in sub")
    (lower / "removed").mkdir()
    (lower / "removed/file").write_bytes(b"x")
    (lower / "file").write_bytes(b"content " * 5000)
    (lower / "other").write_bytes(b"other")
    os.setxattr(lower / "file", "user.u", b"value")
    os.link(lower / "other", lower / "linked")
    (lower / "link").symlink_to("file")
    os.mkfifo(lower / "fifo")


def kernel_log() -> list[str]:
    """What overlayfs has said, but for what it says with metacopy=on on any file system, at a limited rate."""
    lines = [line for line in run("dmesg").stdout.splitlines() if "failed to get index nlink" not in line]
    return [line.split("] ", 1)[-1] for line in lines if "overlayfs" in line]


@contextmanager
def overlay(lower: Path, upper: Path, options: str) -> Iterator[Path]:
    """An overlay with its upper directory and its work directory below ``upper``."""
    for name in ("upper", "work", "merged"):
        (upper / name).mkdir(parents=True)
    merged = upper / "merged"
    layers = f"lowerdir={lower},upperdir={upper / 'upper'},workdir={upper / 'work'}"
    run("mount", "-t", "overlay", "overlay", "-o", f"{layers},{options}".rstrip(","), merged)
    try:
        yield merged
    finally:
        run("umount", merged)


def change(merged: Path) -> None:
    """Everything for which overlayfs asks something special of its layers."""
    (merged / "new").write_bytes(b"new")
    with (merged / "file").open("r+b") as file:
        file.seek(3)
        file.write(b"changed")
    os.chmod(merged / "other", 0o600)
    (merged / "directory/sub/file").unlink()
    (merged / "directory/sub/again").write_bytes(b"again")
    for entry in (merged / "removed").iterdir():
        entry.unlink()
    (merged / "removed").rmdir()
    (merged / "removed").mkdir()
    os.rename(merged / "linked", merged / "renamed")
    (merged / "made").mkdir()
    os.rename(merged / "made", merged / "moved")
    rename(merged / "new", merged / "moved", RENAME_EXCHANGE)
    os.truncate(merged / "file", 100)
    os.setxattr(merged / "other", "user.o", b"o")
    (merged / "link").unlink()
    (merged / "link").mkdir()
    (merged / "fifo").unlink()


def described(directory: Path) -> list[tuple[object, ...]]:
    """Names, types, contents and attributes, but for names of overlayfs's own."""
    found: list[tuple[object, ...]] = []
    for name, mode, _, size in state(directory):
        path = directory / name
        kind = stat.S_IFMT(int(mode, 8))
        content = path.read_bytes() if kind == stat.S_IFREG else b""
        keys = sorted(os.listxattr(path, follow_symlinks=False)) if kind in (stat.S_IFREG, stat.S_IFDIR) else []
        attributes = [(key, os.getxattr(path, key)) for key in keys if not key.endswith((".origin", ".uuid", ".upper"))]
        found.append((name, mode, size if kind == stat.S_IFREG else 0, content, attributes))
    return found


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("place", ["both", "upper", "lower"])
def test_a_mount_is_a_layer(layers: Pair, place: str, options: str, tmp_path: Path) -> None:
    with caches_kept():
        compare(layers, place, options, tmp_path)


def compare(layers: Pair, place: str, options: str, directory: Path, is_dropping: bool = False) -> None:
    """Change and look at an overlay on the kernel's mount and on ours."""
    found, said = [], []
    for side in layers.sides():
        plain, before = layers.kernel, len(kernel_log())
        lower = (side if place in ("both", "lower") else plain) / "lower"
        upper = (side if place in ("both", "upper") else plain) / f"{place}-{options}-{side.name}-{is_dropping}"
        with overlay(lower, upper, OPTIONS[options]) as merged:
            change(merged)
            if is_dropping:
                Path("/proc/sys/vm/drop_caches").write_text("2")
            if options == "redirected":
                os.rename(merged / "directory", merged / "redirected")
            found.append((described(merged), described(upper / "upper")))
        with remounted(lower, upper, OPTIONS[options]) as merged:
            assert (side.name, described(merged)) == (side.name, found[-1][0])
        said.append(kernel_log()[before:])
    assert found[1] == found[0]
    assert said[1] == said[0]
    assert_clean(layers.ours, directory)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("layers", [",nohandles"], indirect=True)
def test_layers_survive_that_the_kernel_drops_names(layers: Pair, options: str, tmp_path: Path) -> None:
    """Since Linux 6.16 the dentries that it makes of file handles count as stale at once (fs/fuse/dir.c, epochs)."""
    with caches_dropped():
        compare(layers, "both", options, tmp_path, is_dropping=True)


@contextmanager
def remounted(lower: Path, upper: Path, options: str) -> Iterator[Path]:
    """The same layers once more."""
    layers = f"lowerdir={lower},upperdir={upper / 'upper'},workdir={upper / 'work'}"
    run("mount", "-t", "overlay", "overlay", "-o", f"{layers},{options}".rstrip(","), upper / "merged")
    try:
        yield upper / "merged"
    finally:
        run("umount", upper / "merged")

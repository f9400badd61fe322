"""``mystfuse.diff``, and ``diff`` of images, for plain code, trio and asyncio."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import mystfuse
from tests.support.commands import run
from tests.support.encrypted_images import write_secret
from tests.support.mounts import mounted

Key = tuple[str, str, frozenset[str]]


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two trees as directories, images and archives."""
    place = tmp_path_factory.mktemp("trees")
    found: dict[str, Path] = {}
    for name in ("old", "new"):
        tree = place / name
        tree.mkdir()
        (tree / "file").write_text(name * 2)
        (tree / f"only-{name}").mkdir()
        for path in (*tree.iterdir(), tree):
            os.utime(path, ns=(10**18, 10**18))
        found[name], found[f"{name}.img"], found[f"{name}.tgz"] = tree, place / f"{name}.img", place / f"{name}.tgz"
        mystfuse.make_image(tree, found[f"{name}.img"])
        run("tar", "-czf", found[f"{name}.tgz"], "-C", tree, ".")
    return found


WANTED: list[Key] = [
    ("changed", "file", frozenset({"content"})),
    ("added", "only-new", frozenset()),
    ("removed", "only-old", frozenset()),
]


def keys(differences: list[mystfuse.Difference]) -> list[Key]:
    return [(found.kind, found.path, found.differs) for found in differences]


@pytest.mark.parametrize("old", ["old", "old.img", "old.tgz"])
@pytest.mark.parametrize("new", ["new", "new.img", "new.tgz"])
def test_any_two_trees(old: str, new: str, trees: dict[str, Path]) -> None:
    assert keys(mystfuse.diff(trees[old], trees[new], trust="self")) == WANTED
    assert mystfuse.diff(trees[old], str(trees[old]), trust="self") == []


def test_what_a_difference_says(trees: dict[str, Path]) -> None:
    changed, added, removed = mystfuse.diff(trees["old"], trees["new"])
    assert changed.old is not None and changed.new is not None
    assert changed.old.size == changed.new.size == 6 and changed.old_path is None
    assert added.old is None and added.new is not None and added.new.is_directory
    assert removed.new is None
    assert keys(mystfuse.diff(trees["old"], trees["new"], ignore=["content"])) == WANTED[1:]


def test_since_the_mount(trees: dict[str, Path], tmp_path: Path) -> None:
    with mounted(trees["old.img"], tmp_path / "mnt", "--trust-self") as mount:
        assert mystfuse.diff(mount) == []
        (mount / "file").rename(mount / "renamed")
        (found,) = mystfuse.diff(mount, ignore={"mtime"})
        assert (found.kind, found.old_path, found.path) == ("renamed", "file", "renamed")
    with pytest.raises(mystfuse.MountError):
        mystfuse.diff(tmp_path / "mnt")


def test_wrong_arguments(trees: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(mystfuse.UsageError, match="only type, content"):
        mystfuse.diff(trees["old"], trees["new"], ignore=["color"])
    with pytest.raises(mystfuse.UsageError, match="list of words"):
        mystfuse.diff(trees["old"], trees["new"], ignore="mtime")
    with pytest.raises(mystfuse.NotTrusted):
        mystfuse.diff(trees["old.img"], trees["new"])
    with pytest.raises(mystfuse.ImageReadError):
        mystfuse.diff(trees["old"], tmp_path / "missing")


def test_encrypted_images(trees: dict[str, Path], tmp_path: Path) -> None:
    key = write_secret(tmp_path / "key", bytes(range(64)))
    images = [tmp_path / "old.img", tmp_path / "new.img"]
    for name, image in zip(("old", "new"), images, strict=True):
        mystfuse.make_image(trees[name], image, options=[f"--encrypt={key}"])
    assert keys(mystfuse.diff(*images, trust="self", key=key.read_bytes())) == WANTED


def test_an_open_image(trees: dict[str, Path]) -> None:
    with mystfuse.Image(trees["old.img"], trust="self") as image:
        assert keys(image.diff(trees["new"])) == keys(image.diff(trees["new.tgz"])) == WANTED
        assert image.diff(trees["old"], ignore=["mtime"]) == []
        with pytest.raises(mystfuse.UsageError, match="has to be opened"):
            image.diff(trees["new.img"])


async def test_under_trio(trees: dict[str, Path]) -> None:
    async with (
        mystfuse.open_image(trees["old.img"], trust="self") as old,
        mystfuse.open_image(trees["new.img"], trust="self") as new,
    ):
        assert keys(await old.diff(new)) == keys(await old.diff(trees["new"])) == WANTED


def test_under_asyncio(trees: dict[str, Path]) -> None:
    async def compare() -> None:
        async with (
            mystfuse.open_image(trees["old.img"], trust="self") as old,
            mystfuse.open_image(trees["new.img"], trust="self") as new,
        ):
            assert keys(await old.diff(trees["new"])) == WANTED
            with pytest.raises(mystfuse.UsageError, match="not open under trio"):
                await old.diff(new)
            found = await asyncio.to_thread(mystfuse.diff, trees["old"], trees["new.img"], trust="self")
            assert keys(found) == WANTED

    asyncio.run(compare())


def test_what_is_public() -> None:
    diff: Callable[..., object] = mystfuse.diff
    assert diff.__doc__ is not None and "roothashes: trusted root hashes" in diff.__doc__

"""Paths in an image are like ``pathlib``'s, and ``Traversable``."""

from __future__ import annotations

import importlib.resources
import importlib.resources.abc
import os
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

import mystfuse

TREE = (
    "a/b/c/deep.txt", "a/b/one.py", "a/b/two.py", "a/__init__.py", "a/.hidden", "a/[x]/y", "a/b.py/inner.py",
    "top.tar.gz", "a/b/c/d/e/f.py",
)  # fmt: skip


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("paths") / "tree"
    for name in TREE:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / "a/to-b").symlink_to("b")
    (root / "a/b/up").symlink_to("../../a")
    (root / "dangling").symlink_to("nowhere")
    return root


@pytest.fixture(scope="module")
def image(directory: Path) -> Iterator[mystfuse.Image]:
    mystfuse.make_image(directory, directory.with_name("image"))
    with mystfuse.Image(directory.with_name("image"), trust="self") as image:
        yield image


@pytest.mark.parametrize(
    "text", ["/", "/a", "a/b", "/a/b.tar.gz", "a//b/./c", "/a/../b", "/.hidden", "//two", "/x.", ""]
)
def test_names_are_those_of_pathlib(image: mystfuse.Image, text: str) -> None:
    ours, theirs = image.path(text), PurePosixPath("/" + text.lstrip("/"))
    for attribute in ("name", "stem", "suffix", "suffixes", "parts"):
        assert getattr(ours, attribute) == getattr(theirs, attribute), attribute
    assert str(ours) == str(theirs) == ours.as_posix() and ours.is_absolute()
    assert str(ours.parent) == str(theirs.parent)
    assert [str(path) for path in ours.parents] == [str(path) for path in theirs.parents]
    assert str(ours / "x/y") == str(ours.joinpath("x", "y")) == str(theirs / "x/y")
    assert str(ours / "/absolute") == "/absolute"
    assert ours == image.path(text) == image / text and hash(ours) == hash(image / text)
    assert ours.relative_to("/") == theirs.relative_to("/") and ours.is_relative_to("/")
    assert ours.match("*.gz") == theirs.match("*.gz")
    if theirs.name:
        assert str(ours.with_name("n")) == str(theirs.with_name("n"))
        assert str(ours.with_stem("n")) == str(theirs.with_stem("n"))
        assert str(ours.with_suffix(".n")) == str(theirs.with_suffix(".n"))


def test_comparing(image: mystfuse.Image, directory: Path) -> None:
    assert image / "a" < image / "b" and sorted([image / "b", image / "a"]) == [image / "a", image / "b"]
    assert image.path() / "a" / "b" == image.path("a", "b") == image.path(image / "a", "b")
    with mystfuse.Image(directory.with_name("image"), trust="self") as other:
        assert other / "a" != image / "a"
        with pytest.raises(TypeError):
            other / "a" < image / "a"  # noqa: B015
    assert image / "a" != PurePosixPath("/a")


def test_no_function_takes_it_for_a_path_of_this_machine(image: mystfuse.Image) -> None:
    for use in (os.fspath, open, os.stat, Path):
        with pytest.raises(TypeError):
            use(image / "etc/passwd")  # type: ignore[arg-type]


def test_reading(image: mystfuse.Image, directory: Path, tmp_path: Path) -> None:
    path = image / "a" / "b" / "one.py"
    assert path.read_text() == "a/b/one.py" == path.read_bytes().decode()
    with path.open() as file, path.open("rb") as binary:
        assert file.read() == binary.read().decode() == "a/b/one.py"
    assert path.exists() and path.is_file() and not path.is_dir() and not path.is_symlink()
    assert path.stat().st_size == 10 and path.lstat() == path.stat(follow_symlinks=False)
    link = image / "a/to-b"
    assert link.is_symlink() and link.is_dir() and link.readlink() == PurePosixPath("b")
    assert not (image / "dangling").exists() and (image / "dangling").is_symlink()
    assert {str(child) for child in (image / "a").iterdir()} == {f"/a/{name}" for name in os.listdir(directory / "a")}
    assert {child.name for child in image.iterdir("/a/b/c")} == {"deep.txt", "d"}
    with pytest.raises(NotADirectoryError):
        path.iterdir()
    walked = {str(top): (sorted(directories), sorted(others)) for top, directories, others in (image / "a").walk()}
    assert walked["/a/b"] == (["c"], ["one.py", "two.py", "up"])
    assert (image / "a/b").listxattr() == []
    assert (image / "a/b").extract(tmp_path / "copy") == {}
    assert (tmp_path / "copy/c/deep.txt").read_text() == "a/b/c/deep.txt"
    assert repr(path) == f"<ImagePath '/a/b/one.py' in {image!r}>"


@pytest.mark.parametrize(
    "pattern",
    [
        "*", "a/*", "a/*/*.py", "**/*.py", "**/c", "a/**/e/*", "*/b/one.py", "nope/*", "a/b/one.py", "**/b/**/*.py",
        "?", "[at]*", "[!a]*", "a/[[]x]/*", "*.gz", ".*", "a/.*", "a/*/", "**/*.py/", "a/to-b/*.py", "a/b/up/b/*.py",
        "a/**/..", "**/**/f.py", "top.tar.gz/*", "DANGLING", "d*", "./a/./b/*.py",
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["glob", "rglob"])
def test_patterns_match_what_pathlib_says(image: mystfuse.Image, directory: Path, method: str, pattern: str) -> None:
    found = [str(path) for path in getattr(image.path(), method)(pattern)]
    expected = {"/" + str(path.relative_to(directory)) for path in getattr(directory, method)(pattern)}
    # mke2fs has made it.
    assert {path for path in found if "lost+found" not in path} == expected
    assert len(found) == len(set(found))
    if method == "glob":
        assert {str(path) for path in image.glob(pattern)} == set(found)


def test_two_asterisks_at_the_end_stand_for_files_too(image: mystfuse.Image) -> None:
    """As from Python 3.13 on; and not for what links lead to."""
    found = {str(path) for path in (image / "a/b").glob("**")}
    assert found == {"/a/b", "/a/b/c", "/a/b/c/d", "/a/b/c/d/e", "/a/b/c/d/e/f.py", "/a/b/c/deep.txt", "/a/b/one.py",
                     "/a/b/two.py", "/a/b/up"}  # fmt: skip
    assert {str(path) for path in (image / "a/b").glob("**/")} == {"/a/b", "/a/b/c", "/a/b/c/d", "/a/b/c/d/e"}
    with pytest.raises(ValueError, match="Unacceptable"):
        (image / "a").glob("")
    for method in (image.path().glob, image.path().rglob):
        with pytest.raises(NotImplementedError):
            method("/a")


def test_it_is_traversable(image: mystfuse.Image) -> None:
    """What takes the resources of a package takes an image's root."""
    root = image.path()
    assert isinstance(root, importlib.resources.abc.Traversable)
    resource = root.joinpath("a/b/one.py")
    with importlib.resources.as_file(resource) as path:
        assert path.read_text() == "a/b/one.py" and path.name.endswith("one.py")
    assert not path.exists()
    assert sorted(child.name for child in root.joinpath("a", "b").iterdir() if child.is_file()) == ["one.py", "two.py"]
    if sys.version_info >= (3, 12):
        with importlib.resources.as_file(root / "a/b/c") as path:
            assert (path / "d/e/f.py").read_text() == "a/b/c/d/e/f.py"

"""``ImageTree`` shows the same as a mount: entries, paths, files and holes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

import mystfuse as api
from mystfuse.tree.image_tree import ImageTree
from tests.support.commands import mystfuse, run
from tests.support.ext2_editor import kernel_mount, make_image
from tests.support.image_trees import assert_agrees
from tests.support.images import GOLDEN_NAMES
from tests.support.mounts import mounted


async def describe(tree: ImageTree, path: str) -> dict[str, Any]:
    """One path as the golden manifest describes it."""
    status = await tree.lstat(path)
    found: dict[str, Any] = {
        "mode": oct(status.st_mode),
        "uid": status.st_uid,
        "gid": status.st_gid,
        "nlink": status.st_nlink,
        "mtime": int(status.st_mtime),
    }
    if stat.S_ISREG(status.st_mode):
        data = await tree.read_file(path)
        found |= {"size": status.st_size, "sha256": hashlib.sha256(data).hexdigest()}
    elif stat.S_ISLNK(status.st_mode):
        found["target"] = await tree.readlink(path)
    elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        found["rdev"] = status.st_rdev
    names = await tree.listxattr(path, follow_symlinks=False)
    attributes = {name: (await tree.getxattr(path, name, follow_symlinks=False)).hex() for name in names}
    return found | ({"xattr": attributes} if attributes else {})


@pytest.mark.parametrize("name", GOLDEN_NAMES)
async def test_golden_image_is_exactly_its_manifest(
    name: str, golden: dict[str, Path], manifest: dict[str, Any]
) -> None:
    found = {}
    async with api.open_image(golden[name], trust="self") as tree:
        async for directory, subdirectories, files in tree.walk("/"):
            for entry in subdirectories + files:
                path = os.path.join(directory, entry)
                found[path[1:]] = await describe(tree, path)
    del found["lost+found"]
    assert found == manifest


async def test_the_tree_agrees_with_a_mount(
    golden: dict[str, Path], small_image: Path, small_tree: Path, tmp_path: Path
) -> None:
    for image, at_least in ((golden["signed-1024"], 20), (small_image, 12)):
        with mounted(image, tmp_path / "mount", "-r") as mountpoint:
            async with api.open_image(image, trust="self") as tree:
                assert await assert_agrees(tree, mountpoint) >= at_least


LINKS = {
    "absolute": "/dir/file",
    "relative": "dir/file",
    "up": "../../../dir/file",
    "to-dir": "dir",
    "to-dir-slash": "dir/",
    "dir/out": "../relative",
    "dir/root": "/",
    "dir/far": "/../../etc/passwd",
    "nowhere": "/no/such",
    "self": "self",
    "a": "b",
    "b": "a",
    "file-slash": "dir/file/",
    "through-file": "dir/file/x",
}
PATHS = (
    "", "/", ".", "..", "//", "/..", "/../..", "dir", "/dir/", "dir/.", "dir/..", "dir/../dir/file", "dir/file",
    "dir/file/", "dir/file/.", "dir/file/..", "dir/file/x", "nope", "nope/", "nope/x", "dir/nope/..", "absolute",
    "absolute/", "relative", "up", "to-dir", "to-dir/", "to-dir/file", "to-dir/..", "to-dir-slash/file", "to-dir-slash",
    "dir/out", "dir/root", "dir/root/dir/out", "dir/root/..", "dir/far", "nowhere", "self", "self/", "a", "a/x",
    "file-slash", "through-file", "chain-40", "chain-41", "dir/deep/../..", "dir/deep/up/file", "dir/deep/back/file",
    "x" * 255, "x" * 256, "dir/" + "x" * 256, "dir/file/" + "x" * 256, "./" * 2047, "./" * 2048, "x/" * 2048,
    "../dir/../../dir/file",
)  # fmt: skip

CHROOTED = """
import json, os, sys
os.chroot(sys.argv[1])
os.chdir("/")
found = []
for path in json.load(sys.stdin):
    for ask in os.stat, os.lstat, os.readlink:
        try:
            result = ask(path)
            found.append(result if ask is os.readlink else [result.st_mode, result.st_size, result.st_mtime_ns])
        except OSError as error:
            found.append(error.errno)
json.dump(found, sys.stdout)
"""


@pytest.fixture(scope="module")
def maze(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory full of symbolic links."""
    root = tmp_path_factory.mktemp("maze") / "tree"
    (root / "dir/deep").mkdir(parents=True)
    (root / "dir/file").write_text("a file")
    for name, target in LINKS.items():
        (root / name).symlink_to(target)
    (root / "dir/deep/up").symlink_to("..")
    (root / "dir/deep/back").symlink_to("/dir/deep/../../../to-dir")
    for number in range(41):
        (root / f"chain-{number + 1}").symlink_to(f"chain-{number}" if number else "dir/file")
    for number, path in enumerate(sorted(root.rglob("*"))):
        os.utime(path, (number, number), follow_symlinks=False)
    return root


async def test_paths_lead_where_they_do_after_chroot(maze: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    assert mystfuse("mkext2", "--block-size=4096", maze, image).returncode == 0
    with mounted(image, tmp_path / "mount", "-r") as mountpoint:
        found = run("/usr/bin/python3", "-c", CHROOTED, mountpoint, input=json.dumps(PATHS))
        expected = json.loads(found.stdout)
    ours: list[object] = []
    async with api.open_image(image, trust="self") as tree:
        for path in PATHS:
            for ask in (tree.stat, tree.lstat, tree.readlink):
                try:
                    result: Any = await ask(path)
                    if not isinstance(result, str):
                        result = [result.st_mode, result.st_size, result.st_mtime_ns]
                    ours.append(result)
                except OSError as error:
                    assert error.filename == path
                    ours.append(error.errno)
    questions = [(path[:40], what) for path in PATHS for what in ("stat", "lstat", "readlink")]
    assert list(zip(questions, ours, strict=True)) == list(zip(questions, expected, strict=True))
    assert {errno.ELOOP, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EINVAL} <= {
        number for number in ours if isinstance(number, int)
    }


async def test_errors_are_those_of_os(small_image: Path) -> None:
    async with api.open_image(small_image, trust="self") as tree:
        with pytest.raises(FileNotFoundError) as caught:
            await tree.read_file(b"/nope")
        assert caught.value.filename == b"/nope"
        assert str(caught.value) == "[Errno 2] No such file or directory: b'/nope'"
        with pytest.raises(NotADirectoryError):
            await tree.stat("hello.txt/x")
        with pytest.raises(IsADirectoryError):
            await tree.open("sub")
        with pytest.raises(NotADirectoryError):
            async for _ in tree.scandir("hello.txt"):
                pass
        with pytest.raises(NotADirectoryError):
            async for _ in tree.walk("hello.txt"):
                pass
        with pytest.raises(OSError, match=r"Invalid argument: 'hello\.txt'"):
            await tree.readlink("hello.txt")
        for attribute, number in (("user.nope", errno.ENODATA), ("nonsense", errno.EOPNOTSUPP)):
            with pytest.raises(OSError) as error:
                await tree.getxattr("hello.txt", attribute)
            assert (error.value.errno, error.value.filename) == (number, "hello.txt")
        with pytest.raises(ValueError, match="null"):
            await tree.stat("a\0b")
        assert await tree.exists("hello.txt") and await tree.exists("link")
        assert not await tree.exists("nope") and not await tree.exists("long-link")


async def test_walk_goes_where_it_is_told(small_image: Path) -> None:
    async with api.open_image(small_image, trust="self") as tree:
        seen = []
        async for path, directories, files in tree.walk("/"):
            seen.append((path, sorted(directories), len(files)))
            if "sub" in directories:
                directories.remove("lost+found")
        assert seen[0][:2] == ("/", ["lost+found", "sub"])
        assert seen[1:] == [("/sub", ["deep"], 1), ("/sub/deep", [], 1)]


async def test_a_file_reads_like_any_other(small_image: Path, small_tree: Path) -> None:
    data = (small_tree / "sub/deep/data.bin").read_bytes()
    async with api.open_image(small_image, trust="self") as tree, await tree.open("link") as file:
        assert (file.name, file.size) == ("link", len(data))
        assert await file.read(10) == data[:10]
        assert file.tell() == 10
        assert await file.pread(100_000, 1000) == data[100_000:101_000]
        assert file.tell() == 10
        assert file.seek(-5, os.SEEK_END) == len(data) - 5
        assert await file.read() == data[-5:]
        assert await file.read() == b"" == await file.read(5)
        assert file.seek(5, os.SEEK_CUR) == len(data) + 5
        assert await file.read(1) == b""
        for offset, whence in ((-1, os.SEEK_SET), (-len(data) - 1, os.SEEK_END), (0, 9)):
            with pytest.raises(ValueError, match="cannot seek"):
                file.seek(offset, whence)
        with pytest.raises(ValueError, match="negative"):
            await file.pread(-1, 1)
        file.seek(0)
        assert b"".join([chunk async for chunk in file]) == data
        await file.aclose()
        for use in (file.read, lambda: file.pread(0, 1)):
            with pytest.raises(ValueError, match="closed"):
                await use()


def kernel_ranges(path: Path) -> list[tuple[int, int]]:
    """The ranges of data by the kernel."""
    found = []
    with path.open("rb") as file:
        position = 0
        while True:
            try:
                start = os.lseek(file.fileno(), position, os.SEEK_DATA)
            except OSError as error:
                assert error.errno == errno.ENXIO
                return found
            position = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            found.append((start, position - start))


@pytest.mark.logs(r"^mystfuse\.image\.open")
@pytest.mark.parametrize("block_size", [1024, 4096])
async def test_holes_are_where_the_kernel_says(block_size: int, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    largest = {1024: 16 << 30, 4096: 1 << 40}[block_size]
    for name, positions, size in (
        ("empty", [], 0),
        ("hole", [], largest),
        ("spread", [0, 5 << 10, 300 << 10, 70 << 20, 5 << 30, largest - 5], largest),
        ("last", [largest - 1], largest),
        ("dense", range(0, 3 << 20, 1024), 3 << 20),
        ("every-other", range(0, 2 << 20, 8192), 2 << 20),
    ):
        with (tree / name).open("wb") as file:
            for position in positions:
                file.seek(position)
                file.write(b"x")
            file.truncate(size)
    image = make_image(tmp_path / "image", "-b", str(block_size), size="16M", tree=tree)
    async with api.open_image(image, insecure=True) as opened:
        with kernel_mount(image, tmp_path / "kernel") as mount:
            for path in sorted(tree.iterdir()):
                merged: list[tuple[int, int]] = []
                async with await opened.open(path.name) as file:
                    async for start, length in file.data_ranges():
                        assert 0 < length <= 1 << 20
                        if merged and sum(merged[-1]) == start:
                            merged[-1] = (merged[-1][0], merged[-1][1] + length)
                        else:
                            merged.append((start, length))
                assert merged == kernel_ranges(mount / path.name), path.name

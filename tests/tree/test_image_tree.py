"""``mystfuse.open_image``: the tree without a mount, judged by the golden manifest, by mounts of the same images, by
chroot(2), and by the kernel's lseek(2)."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import stat
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio

import mystfuse as api
from mystfuse.tree.extract import extract
from mystfuse.tree.image_tree import ImageTree
from mystfuse.tree.tar import write_tar
from mystfuse.trust.policy import trust_without_tree
from mystfuse.volume.volume import Volume
from tests.support.commands import mystfuse, run
from tests.support.ext2_editor import Editor, MemoryDevice, kernel_mount, make_image
from tests.support.images import GOLDEN_NAMES
from tests.support.mounts import mounted

STAT_FIELDS = (
    "st_mode", "st_ino", "st_nlink", "st_uid", "st_gid", "st_rdev", "st_size", "st_blksize", "st_blocks",
    "st_atime_ns", "st_mtime_ns", "st_ctime_ns",
)  # fmt: skip
PASSPHRASE = "open sesame, käse"


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


async def assert_agrees(tree: ImageTree, mount: Path) -> int:
    """Compare everything with a mount; returns how many paths there were."""
    count = 0
    pending = [b""]
    while pending:
        relative = pending.pop()
        path, theirs = b"/" + relative, os.path.join(os.fsencode(mount), relative)
        ours, expected = await tree.lstat(path), os.lstat(theirs)
        assert {field: getattr(ours, field) for field in STAT_FIELDS} == {
            field: getattr(expected, field) for field in STAT_FIELDS
        }, path
        attributes = {
            name: await tree.getxattr(path, name, follow_symlinks=False)
            for name in await tree.listxattr(path, follow_symlinks=False)
        }
        assert attributes == {
            name: os.getxattr(theirs, name, follow_symlinks=False)
            for name in os.listxattr(theirs, follow_symlinks=False)
        }
        if stat.S_ISREG(expected.st_mode):
            assert await tree.read_file(path) == Path(os.fsdecode(theirs)).read_bytes()
        elif stat.S_ISLNK(expected.st_mode):
            assert await tree.readlink(path) == os.readlink(theirs)
        elif stat.S_ISDIR(expected.st_mode):
            with os.scandir(theirs) as entries:
                wanted = {(entry.name, entry.inode(), entry.is_dir(follow_symlinks=False),
                           entry.is_file(follow_symlinks=False), entry.is_symlink()) for entry in entries}  # fmt: skip
            found = set()
            async for entry in tree.scandir(path):
                assert entry.path == os.path.join(path, entry.name)
                assert entry.stat() == await tree.lstat(entry.path)
                found.add((entry.name, entry.inode, entry.is_dir(), entry.is_file(), entry.is_symlink()))
                pending.append(os.path.join(relative, entry.name))
            assert found == wanted
        count += 1
    return count


async def test_the_tree_agrees_with_a_mount(
    golden: dict[str, Path], small_image: Path, small_tree: Path, tmp_path: Path
) -> None:
    for image, at_least in ((golden["signed-1024"], 20), (small_image, 12)):
        with mounted(image, tmp_path / "mount", "-r") as mountpoint:
            async with api.open_image(image, trust="self") as tree:
                assert await assert_agrees(tree, mountpoint) >= at_least


# Paths

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


# Files


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
    """Where the kernel says that there is data."""
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


# Trust, keys, errors


async def test_nobody_vouches_for_it(small_image: Path) -> None:
    with pytest.raises(api.NotTrusted):
        async with api.open_image(small_image):
            pytest.fail("opened")
    async with api.open_image(small_image, insecure=True) as tree:
        assert "insecure" in tree.trust_explanation
    with pytest.raises(api.UsageError, match="only"):
        async with api.open_image(small_image, trust="anybody"):  # type: ignore[arg-type]
            pytest.fail("opened")


async def test_root_hashes_and_keys_in_every_form(
    small_tree: Path, tmp_path: Path, make_keys: Callable[..., tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    public, private = make_keys("api")
    other, _ = make_keys("other")
    image = tmp_path / "image"
    assert mystfuse("mkext2", "--sign", f"{public}:{private}", small_tree, image).returncode == 0
    text = mystfuse("fssig", "--roothash", image).stdout
    (tmp_path / "hash").write_text(text)
    for good in (text, bytes.fromhex(text), tmp_path / "hash", str(tmp_path / "hash")):
        async with api.open_image(str(image), roothashes=[good]) as tree:
            assert tree.root_hash == bytes.fromhex(text)
            assert tree.trust_explanation == "its root hash is a trusted one"
            assert str(tree.uuid) in run("dumpe2fs", "-h", image).stdout
    for key in (public, str(public), public.read_bytes()):
        async with api.open_image(image, pubkeys=[other, key]) as tree:
            assert "signed by trusted key" in tree.trust_explanation
    for bad in ({"roothashes": [bytes(32)]}, {"pubkeys": [other]}, {"roothashes": [bytes(32)], "trust": "self"}):
        with pytest.raises(api.NotTrusted):
            async with api.open_image(image, **bad):
                pytest.fail("opened")
    for senseless in (
        {"roothashes": [b"short"]}, {"roothashes": text}, {"roothashes": ["no hash"]}, {"pubkeys": [b"no PEM"]},
        {"pubkeys": public}, {"key": b""}, {"key": b"k", "passphrase": "p"}, {"hash_offset": 4096},
    ):  # fmt: skip
        with pytest.raises(api.UsageError):
            async with api.open_image(image, **senseless):  # type: ignore[arg-type]
                pytest.fail("opened")
    # What the machine trusts counts as on the command line.
    (tmp_path / "trust.d").mkdir()
    (tmp_path / "trust.d/a.pem").write_bytes(public.read_bytes())
    monkeypatch.setattr("mystfuse.trust.sources.TRUST_DIRECTORY", tmp_path / "trust.d")
    async with api.open_image(image) as tree:
        assert "signed by trusted key" in tree.trust_explanation


async def test_an_image_without_a_signature_block(tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", size="1M")
    output = run("veritysetup", "format", "--hash-offset=1048576", image, image).stdout
    (root_hash,) = re.findall(r"Root hash:\s+(\w+)", output)
    async with api.open_image(image, hash_offset=1 << 20, roothashes=[root_hash]) as tree:
        assert [entry.name async for entry in tree.scandir("/")] == ["lost+found"]


@pytest.fixture(scope="module")
def encrypted(small_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    directory = tmp_path_factory.mktemp("encrypted")
    key = secrets.token_bytes(64)
    for name, data in (("key", key), ("passphrase", PASSPHRASE.encode())):
        (directory / name).touch(mode=0o600)
        (directory / name).write_bytes(data)
    image = directory / "image"
    options = ("--encrypt", directory / "key", "--passphrase-file", directory / "passphrase")
    assert mystfuse("mkext2", *options, small_tree, image).returncode == 0
    return image, key


async def test_key_and_passphrase_open_an_encrypted_image(encrypted: tuple[Path, bytes], tmp_path: Path) -> None:
    image, key = encrypted
    (tmp_path / "key").touch(mode=0o600)
    (tmp_path / "key").write_bytes(key)
    for given in ({"key": key}, {"key": key.hex()}, {"passphrase": PASSPHRASE}, {"passphrase": PASSPHRASE.encode()}):
        async with api.open_image(image, trust="self", **given) as tree:
            assert await tree.read_file("sub/hard") == b"hello\n"
    with mounted(image, tmp_path / "mount", "-r", "--key-file", str(tmp_path / "key")) as mountpoint:
        async with api.open_image(image, trust="self", key=key) as tree:
            await assert_agrees(tree, mountpoint)
    for wrong in ({}, {"key": key[::-1]}, {"key": b"short"}, {"passphrase": "no"}):
        with pytest.raises(api.WrongKey):
            async with api.open_image(image, trust="self", **wrong):
                pytest.fail("opened")


async def test_a_key_for_an_image_that_is_not_encrypted(small_image: Path) -> None:
    with pytest.raises(api.WrongKey, match="not encrypted"):
        async with api.open_image(small_image, trust="self", key=bytes(64)):
            pytest.fail("opened")


async def test_what_is_no_image_is_told(tmp_path: Path) -> None:
    with pytest.raises(api.ImageReadError):
        async with api.open_image(tmp_path / "nope"):
            pytest.fail("opened")
    (tmp_path / "zeros").write_bytes(bytes(10_000))
    with pytest.raises(api.FormatError):
        async with api.open_image(tmp_path / "zeros", trust="self"):
            pytest.fail("opened")


async def test_a_damaged_block_costs_what_is_in_it(small_image: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    data = bytearray(small_image.read_bytes())
    position = data.index(b"longest name\n")
    data[position] ^= 1
    image.write_bytes(data)
    async with api.open_image(image, trust="self") as tree:
        with pytest.raises(api.IntegrityError):
            await tree.read_file("n" * 255)
        assert await tree.read_file("hello.txt") == b"hello\n"


async def test_errors_of_the_block_come_out_as_they_are(small_image: Path) -> None:
    for error in (RuntimeError("mine"), ExceptionGroup("mine", [ValueError("one"), KeyError("two")])):
        with pytest.raises(type(error)) as caught:
            async with api.open_image(small_image, trust="self"):
                raise error
        assert caught.value is error
    with trio.move_on_after(0.05) as scope:
        async with api.open_image(small_image, trust="self"):
            await trio.sleep_forever()
    assert scope.cancelled_caught
    with suppress(ZeroDivisionError):
        async with api.open_image(small_image, trust="self") as tree, trio.open_nursery() as nursery:
            nursery.start_soon(tree.read_file, "hello.txt")
    before = len(os.listdir("/proc/self/fd"))
    async with api.open_image(small_image, trust="self"):
        pass
    assert len(os.listdir("/proc/self/fd")) == before


async def test_broken_entries_and_cycles_are_told(tmp_path: Path) -> None:
    source = tmp_path / "tree"
    (source / "dir/below").mkdir(parents=True)
    for name in ("good", "bad"):
        (source / name).write_text(name)
    editor = Editor(make_image(tmp_path / "image", tree=source).read_bytes())
    _, bad = editor.find(2, b"bad")
    editor.put("<H", editor.inode(bad), 0)
    tree = ImageTree(await editor.open(), trust_without_tree())
    entries = {entry.name: entry async for entry in tree.scandir("/")}
    assert entries["good"].is_file() and not entries["good"].is_dir()
    for ask in (entries["bad"].is_file, entries["bad"].stat):
        with pytest.raises(api.CorruptFilesystem, match=f"inode {bad}"):
            ask()
    assert entries["bad"].inode == bad
    with pytest.raises(api.CorruptFilesystem):
        await tree.stat("bad")
    # A directory below itself.
    _, directory = editor.find(2, b"dir")
    position, _ = editor.find(directory, b"below")
    editor.put("<I", position, directory)
    tree = ImageTree(await Volume.open(MemoryDevice(editor.data)), trust_without_tree())
    with pytest.raises(api.CorruptFilesystem, match="more than one place"):
        async for _ in tree.walk("/"):
            pass
    assert (await tree.stat("dir/below/below/below/..")).st_ino == directory


# The package


def test_the_package_is_imported_without_trio() -> None:
    code = (
        "import sys, mystfuse, mystfuse.cli.main; mystfuse.NotTrusted; assert 'trio' not in sys.modules;"
        "assert {'open_image', 'IntegrityError'} <= set(dir(mystfuse)); from mystfuse import open_image;"
        "assert 'trio' in sys.modules and 'pyfuse3' not in sys.modules;"
        "exec('try:\\n mystfuse.nonsense\\nexcept AttributeError: pass\\nelse: raise SystemExit(1)')"
    )
    run(sys.executable, "-c", code)


async def drain(iterator: AsyncIterator[object]) -> None:
    async for _ in iterator:
        pass


@pytest.fixture
def in_memory(tmp_path: Path) -> Editor:
    """A tree that is had without waiting."""
    source = tmp_path / "source"
    (source / "sub" / "empty").mkdir(parents=True)
    (source / "file").write_bytes(bytes(range(256)) * 20)
    (source / "nothing").touch()
    (source / "link").symlink_to("sub/../file")
    for number in range(50):
        (source / "sub" / str(number)).touch()
    return Editor(make_image(tmp_path / "image", size="8M", tree=source).read_bytes())


OPERATIONS: dict[str, Callable[[ImageTree], Awaitable[object]]] = {
    "stat": lambda tree: tree.stat("link"),
    "lstat": lambda tree: tree.lstat("/"),
    "exists": lambda tree: tree.exists("sub/no"),
    "readlink": lambda tree: tree.readlink("link"),
    "listxattr": lambda tree: tree.listxattr("file"),
    "open": lambda tree: tree.open("file"),
    "read_file": lambda tree: tree.read_file("nothing"),
    "read inode": lambda tree: tree.open_inode(tree_inodes[tree], "file").read(),
    "read at the end": lambda tree: tree.open_inode(tree_inodes[tree], "file").pread(1 << 40, 1),
    "read nothing": lambda tree: tree.open_inode(tree_inodes[tree], "file").pread(0, 0),
    "data_ranges": lambda tree: drain(tree.open_inode(tree_inodes[tree], "file").data_ranges()),
    "scandir": lambda tree: drain(tree.scandir("sub")),
    "walk": lambda tree: drain(tree.walk("/")),
    "children": lambda tree: drain(tree.children(2)),
}
tree_inodes: dict[ImageTree, Any] = {}


@pytest.mark.parametrize("name", OPERATIONS)
async def test_what_is_in_memory_can_be_cancelled_and_lets_others_run(name: str, in_memory: Editor) -> None:
    """No operation is done in a loop without a checkpoint, although nothing is ever waited for."""
    tree = ImageTree(await Volume.open(MemoryDevice(in_memory.data)), trust_without_tree())
    tree_inodes[tree] = await tree.resolve("file")
    operation, turns = OPERATIONS[name], 0
    await operation(tree)

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    started = time.monotonic()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        with trio.move_on_after(0.1) as scope:
            # Not for ever, should the test fail.
            while time.monotonic() < started + 5:
                await operation(tree)
        nursery.cancel_scope.cancel()
    assert scope.cancelled_caught
    assert time.monotonic() - started < 4
    assert turns > 10
    with trio.CancelScope() as scope:
        scope.cancel()
        await operation(tree)
    assert scope.cancelled_caught


@pytest.mark.parametrize("kind", ["tar", "extract"])
async def test_long_jobs_on_what_is_in_memory_let_others_run(kind: str, tmp_path: Path) -> None:
    """Many members, of which nothing is written for a long time."""
    source = tmp_path / "source"
    source.mkdir()
    for number in range(300):
        (source / str(number)).write_text("x")
    image = Editor(make_image(tmp_path / "image", size="8M", tree=source).read_bytes())
    tree = ImageTree(await Volume.open(MemoryDevice(image.data)), trust_without_tree())
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async def write(data: bytes | bytearray) -> None:
        """Takes everything at once."""

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        if kind == "tar":
            await write_tar(tree, "/", write)
        else:
            await extract(tree, "/", tmp_path / "copy")
        nursery.cancel_scope.cancel()
    assert turns > 300

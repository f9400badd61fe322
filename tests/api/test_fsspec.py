"""The fsspec file system ``mystfuse://``: fsspec's own tests for what reads, and what programs do with one.

Of fsspec's suite (``fsspec.tests.abstract``), ``AbstractGetTests`` applies: it copies out of the file system. The
others, ``AbstractCopyTests``, ``AbstractPutTests``, ``AbstractPipeTests``, ``AbstractOpenTests`` (its one test is of
the mode ``xb``) and ``mv``, write to it: here everything that writes is refused.
"""

from __future__ import annotations

import errno
import hashlib
import inspect
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.tests import abstract

import mystfuse
from mystfuse.api.fsspec_filesystem import MystfuseFileSystem
from tests.support.commands import run, wait_until
from tests.support.left_over import left_over


@pytest.fixture(scope="module")
def fsspecs_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trees that fsspec's tests copy from: they cannot make them in an image."""
    root = tmp_path_factory.mktemp("fsspec") / "tree"
    (root / "src").mkdir(parents=True)
    (root / "src/file").touch()
    local, fixtures = LocalFileSystem(auto_mkdir=True), Fixtures()
    for make in (
        fixtures._bulk_operations_scenario_0, fixtures._glob_edge_cases_files,
        fixtures._dir_and_file_with_same_name_prefix, fixtures._10_files_with_hashed_names,
    ):  # fmt: skip
        make(local, lambda *parts: "/".join(parts), f"{root}/{make.__name__}")
    mystfuse.make_image(root, root.with_name("image"))
    return root.with_name("image")


class Fixtures(abstract.AbstractFixtures):
    """What fsspec's tests ask for."""

    @pytest.fixture
    def fs(self, fsspecs_image: Path) -> Iterator[Any]:
        fs = fsspec.filesystem("mystfuse", image=fsspecs_image, trust="self")
        yield fs
        fs.close()

    @pytest.fixture
    def fs_path(self) -> str:
        return "/"

    @pytest.fixture
    def fs_bulk_operations_scenario_0(self) -> str:
        return "/_bulk_operations_scenario_0/source"

    @pytest.fixture
    def fs_glob_edge_cases_files(self) -> str:
        return "/_glob_edge_cases_files/source"

    @pytest.fixture
    def fs_dir_and_file_with_same_name_prefix(self) -> str:
        return "/_dir_and_file_with_same_name_prefix/source"

    @pytest.fixture
    def fs_10_files_with_hashed_names(self) -> str:
        return "/_10_files_with_hashed_names/source"


class TestGet(abstract.AbstractGetTests, Fixtures):
    """fsspec's own tests."""

    def test_get_directory_recursive(
        self, fs: Any, fs_join: Any, fs_path: Any, local_fs: Any, local_join: Any, local_target: Any
    ) -> None:
        # It begins by making /src/file, which the image has.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fs, "mkdir", fs.isdir)
            patch.setattr(fs, "touch", fs.isfile)
            super().test_get_directory_recursive(fs, fs_join, fs_path, local_fs, local_join, local_target)


@pytest.fixture
def fs(small_image: Path) -> Iterator[Any]:
    fs = fsspec.filesystem("mystfuse", image=small_image, trust="self")
    yield fs
    fs.close()


def test_it_shows_what_fsspecs_local_file_system_shows(fs: Any, small_tree: Path) -> None:
    """The judge is fsspec's own view of the directory that the image was made of."""
    local = LocalFileSystem()

    def ours(paths: list[str]) -> list[str]:
        return sorted(path for path in paths if not path.startswith("/lost+found"))

    def theirs(paths: list[str]) -> list[str]:
        return sorted("/" + os.path.relpath(path, small_tree).removeprefix(".") for path in paths)

    for withdirs in (False, True):
        assert ours(fs.find("/", withdirs=withdirs)) == theirs(local.find(str(small_tree), withdirs=withdirs))
    for pattern in ("/*", "/**/*.bin", "/sub/*", "/[eh]*", "/sub/**", "/nothing*"):
        assert ours(fs.glob(pattern)) == theirs(local.glob(f"{small_tree}{pattern}")), pattern
    assert fs.du("/sub") == local.du(str(small_tree / "sub"))
    for path in local.find(str(small_tree)):
        name = "/" + os.path.relpath(path, small_tree)
        if not local.exists(path):
            assert not fs.exists(name) and fs.lexists(name)
            with pytest.raises(FileNotFoundError):
                fs.info(name)
            continue
        expected, found = local.info(path), fs.info(name)
        for field in ("size", "type", "islink", "mode", "uid", "gid", "nlink"):
            assert found[field] == expected[field], (path, field)
        assert found.get("destination") == expected.get("destination")
        assert int(found["mtime"]) == int(expected["mtime"]) == int(fs.modified(name).timestamp())
        assert fs.cat_file(name) == local.cat_file(path)
    walked = {path: (sorted(directories), sorted(files)) for path, directories, files in fs.walk("/sub")}
    assert walked == {"/sub": (["deep"], ["hard"]), "/sub/deep": ([], ["data.bin"])}


def test_listings(fs: Any) -> None:
    found = {info["name"]: info for info in fs.ls("/", detail=True)}
    assert sorted(found) == sorted(fs.ls("mystfuse://", detail=False)) == sorted(fs.ls("", detail=False))
    assert (found["/sub"]["type"], found["/link"]["type"], found["/long-link"]["type"]) == (
        "directory",
        "file",
        "other",
    )
    assert found["/link"]["size"] == fs.size("/sub/deep/data.bin") == 256 * 1200
    assert [info["name"] for info in fs.ls("/hello.txt")] == ["/hello.txt"] == fs.ls("hello.txt", detail=False)
    with pytest.raises(FileNotFoundError):
        fs.ls("/nope")
    assert fs.isdir("/sub") and not fs.isdir("/link") and fs.isfile("/link") and not fs.isfile("/nope")


def test_a_walk_does_not_follow_links_to_directories(tmp_path: Path) -> None:
    (tmp_path / "tree/a/b").mkdir(parents=True)
    (tmp_path / "tree/a/b/up").symlink_to("/a")
    mystfuse.make_image(tmp_path / "tree", tmp_path / "image")
    fs = fsspec.filesystem("mystfuse", image=tmp_path / "image", trust="self")
    assert [path for path in fs.find("/", withdirs=True) if "lost+found" not in path] == ["/", "/a", "/a/b", "/a/b/up"]
    # Asked for itself, it is what it leads to.
    assert fs.isdir("/a/b/up") and fs.ls("/a/b/up", detail=False) == ["/a/b/up/b"]
    fs.close()


def test_ranges_and_files(fs: Any, small_tree: Path) -> None:
    data, name = (small_tree / "sub/deep/data.bin").read_bytes(), "/sub/deep/data.bin"
    for start, end in ((None, None), (5, None), (None, 7), (100, 200), (-50, None), (-50, -10), (10, 5), (0, 1 << 30)):
        assert fs.cat_file(name, start, end) == data[start:end], (start, end)
    assert fs.cat_ranges([name] * 2, [0, 1000], [10, 1010]) == [data[:10], data[1000:1010]]
    assert fs.cat(["/hello.txt", "/empty"]) == {"/hello.txt": b"hello\n", "/empty": b""}
    with fs.open(name) as file:
        assert (file.size, file.read(3), file.seek(-3, 2), file.read()) == (
            len(data),
            data[:3],
            len(data) - 3,
            data[-3:],
        )
        assert file.readable() and file.seekable() and not file.writable()
    with fs.open("/hello.txt", "r") as text:
        assert list(text) == ["hello\n"]
    assert fs.head(name, 4) == data[:4] and fs.tail(name, 4) == data[-4:]
    assert fs.read_block(name, 10, 20) == data[10:30]
    for path, error in (("/nope", FileNotFoundError), ("/sub", IsADirectoryError)):
        for read in (fs.open, fs.cat_file):
            with pytest.raises(error):
                read(path)


def test_get_copies_everything(fs: Any, small_tree: Path, tmp_path: Path) -> None:
    fs.get("/sub", str(tmp_path / "copy"), recursive=True)
    assert (tmp_path / "copy/deep/data.bin").read_bytes() == (small_tree / "sub/deep/data.bin").read_bytes()
    assert (tmp_path / "copy/hard").read_text() == "hello\n"


def test_urls(small_image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for url, options in (
        ("mystfuse:///hello.txt", {"image": small_image}),
        ("mystfuse://hello.txt", {"image": str(small_image)}),
        (f"mystfuse://hello.txt::file://{small_image}", {}),
        (f"mystfuse:///hello.txt::{small_image}", {}),
        (f"mystfuse://hello.txt::local://{small_image}", {}),
        (f"mystfuse://link/../hello.txt::file://{small_image}", None),
    ):  # fmt: skip
        if options is None:
            with pytest.raises(NotADirectoryError), fsspec.open(url, trust="self") as file:
                pass
            continue
        with fsspec.open(url, trust="self", **options) as file:
            assert file.read() == b"hello\n"
        with fsspec.open(url, "rt", trust="self", **options) as file:
            assert file.read() == "hello\n"
    monkeypatch.chdir(small_image.parent)
    with fsspec.open(f"mystfuse://hello.txt::{small_image.name}", trust="self") as file:
        assert file.read() == b"hello\n"
    files = fsspec.open_files("mystfuse:///sub/**/*.bin", image=small_image, trust="self")
    assert [opened.path for opened in files] == ["/sub/deep/data.bin"]
    mapper = fsspec.get_mapper("mystfuse:///sub", image=small_image, trust="self")
    assert sorted(mapper) == ["deep/data.bin", "hard"] and mapper["hard"] == b"hello\n"


@pytest.mark.parametrize(
    ("url", "options", "words"),
    [
        ("mystfuse://x", {}, "needs one image"),
        ("mystfuse://x::file:///one", {"image": "two"}, "needs one image"),
        ("mystfuse://x::memory://image", {}, "not by memory"),
        ("mystfuse://x::zip://image::file:///a.zip", {}, "not by zip"),
        ("mystfuse://x", {"image": "ftp://example.org/app.img"}, "not by ftp"),
        ("mystfuse://x", {"fo": object()}, "not from a object"),
        ("mystfuse://x", {"image": "one", "trust": "all"}, "only"),
    ],
)
def test_other_images_are_refused_in_one_line(url: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(mystfuse.UsageError, match=words) as caught:
        fsspec.open(url, **options)
    assert "\n" not in str(caught.value)


def test_options_are_those_of_open_image_and_no_others(small_image: Path) -> None:
    with pytest.raises(mystfuse.NotTrusted):
        fsspec.filesystem("mystfuse", image=small_image)
    with pytest.raises(TypeError, match="pubkey"):
        fsspec.filesystem("mystfuse", image=small_image, pubkey="x", trust="self")
    fs = fsspec.filesystem("mystfuse", image=small_image, trust="self", use_listings_cache=False)
    assert fs.image.root_hash.hex() in fs.fsid
    fs.close()
    names = inspect.signature(MystfuseFileSystem).parameters
    assert names.keys() >= inspect.signature(mystfuse.open_image).parameters.keys()
    assert "damage is found" in (MystfuseFileSystem.__doc__ or "")


WRITES: dict[str, Callable[[Any, Path], object]] = {
    "open wb": lambda fs, local: fs.open("/new", "wb"),
    "open ab": lambda fs, local: fs.open("/hello.txt", "ab"),
    "open xb": lambda fs, local: fs.open("/new", "xb"),
    "open r+b": lambda fs, local: fs.open("/hello.txt", "r+b"),
    "open w": lambda fs, local: fs.open("/new", "w"),
    "touch": lambda fs, local: fs.touch("/new"),
    "mkdir": lambda fs, local: fs.mkdir("/new"),
    "makedirs": lambda fs, local: fs.makedirs("/new/below", exist_ok=True),
    "rmdir": lambda fs, local: fs.rmdir("/lost+found"),
    "rm": lambda fs, local: fs.rm("/hello.txt"),
    "rm recursive": lambda fs, local: fs.rm("/sub", recursive=True),
    "rm_file": lambda fs, local: fs.rm_file("/hello.txt"),
    "delete": lambda fs, local: fs.delete("/hello.txt"),
    "cp": lambda fs, local: fs.cp("/hello.txt", "/new"),
    "copy": lambda fs, local: fs.copy("/hello.txt", "/new"),
    "cp_file": lambda fs, local: fs.cp_file("/hello.txt", "/new"),
    "mv": lambda fs, local: fs.mv("/hello.txt", "/new"),
    "move": lambda fs, local: fs.move("/hello.txt", "/new"),
    "rename": lambda fs, local: fs.rename("/hello.txt", "/new"),
    "put": lambda fs, local: fs.put(str(local), "/new"),
    "put_file": lambda fs, local: fs.put_file(str(local), "/new"),
    "upload": lambda fs, local: fs.upload(str(local), "/new"),
    "pipe": lambda fs, local: fs.pipe("/new", b"data"),
    "pipe_file": lambda fs, local: fs.pipe_file("/new", b"data"),
    "write_bytes": lambda fs, local: fs.write_bytes("/new", b"data"),
    "write_text": lambda fs, local: fs.write_text("/new", "data"),
    "in a transaction": lambda fs, local: _in_a_transaction(fs),
}


def _in_a_transaction(fs: Any) -> None:
    with fs.transaction:
        fs.open("/new", "wb")


@pytest.mark.parametrize("what", WRITES)
def test_everything_that_writes_is_refused(what: str, fs: Any, tmp_path: Path) -> None:
    local = tmp_path / "local"
    local.write_text("x")
    with pytest.raises(OSError) as caught:
        WRITES[what](fs, local)
    assert caught.value.errno == errno.EROFS


@pytest.mark.logs(r"^mystfuse\.devices\.verity")
def test_damage_is_neither_absence_nor_data(small_image: Path, tmp_path: Path) -> None:
    data = bytearray(small_image.read_bytes())
    data[data.index(b"longest name\n")] ^= 1
    (tmp_path / "damaged").write_bytes(data)
    fs = fsspec.filesystem("mystfuse", image=tmp_path / "damaged", trust="self")
    name = "/" + "n" * 255
    assert fs.exists(name)
    for read in (fs.cat_file, lambda path: fs.open(path).read(), lambda path: fs.get(path, str(tmp_path / "copy"))):
        with pytest.raises(mystfuse.IntegrityError):
            read(name)
    assert fs.cat_file("/hello.txt") == b"hello\n"
    fs.close()


def test_it_closes_with_its_last_file_and_can_be_pickled(small_image: Path) -> None:
    before = left_over()
    fs = fsspec.filesystem("mystfuse", image=str(small_image), trust="self")
    again = pickle.loads(pickle.dumps(fs))
    assert again.cat_file("/hello.txt") == b"hello\n" and again.ukey("/hello.txt") == fs.ukey("/hello.txt")
    file = again.open("/hello.txt")
    del fs, again
    assert file.read() == b"hello\n"
    del file
    wait_until(lambda: left_over() <= before)


def test_threads_share_one(fs: Any, small_tree: Path) -> None:
    digest = hashlib.sha256((small_tree / "sub/deep/data.bin").read_bytes()).digest()
    found: list[bytes] = []

    def read() -> None:
        for _ in range(20):
            found.append(hashlib.sha256(fs.cat_file("/link")).digest())

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [digest] * 160


def test_fsspec_finds_it_by_its_entry_point(small_image: Path) -> None:
    code = (
        "import fsspec, sys\n"
        "assert 'mystfuse' in fsspec.available_protocols()\n"
        "assert 'mystfuse' not in sys.modules\n"
        "with fsspec.open('mystfuse://hello.txt', image=sys.argv[1], trust='self') as file: print(file.read())"
    )
    result = run(sys.executable, "-W", "error", "-c", code, small_image)
    assert (result.stdout, result.stderr) == ("b'hello\\n'\n", "")

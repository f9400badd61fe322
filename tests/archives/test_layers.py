"""Archives one over the other: later members replace earlier ones, whiteouts remove what is below."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mystfuse.archives.file_tree import Entry
from mystfuse.archives.tar_tree import open_tar
from tests.support.tar_archives import archive, member

DIRECTORY, SYMLINK, LINK = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


@contextmanager
def over_each_other(directory: Path, *layers: bytes) -> Iterator[dict[str, bytes | None]]:
    """Paths and contents (None: of what is no regular file) of archives, from below up."""
    paths = [directory / f"{number}.tar" for number in range(len(layers))]
    for path, layer in zip(paths, layers, strict=True):
        path.write_bytes(layer)
    with open_tar([str(path) for path in paths]) as tree:

        def walk(entry: Entry, path: str) -> Iterator[tuple[str, bytes | None]]:
            for name, child in sorted(entry.children.items()):
                below = f"{path}{name.decode()}"
                is_file = not child.is_directory and not child.target
                yield below, tree.contents.open(child).read(0, 99) if is_file else None
                yield from walk(child, f"{below}/")

        yield dict(walk(tree.root, ""))


BASE = archive(
    member("a", b"base"), member("d", kind=DIRECTORY), member("d/x", b"x"), member("d/y/z", b"z"),
    member("lib", kind=SYMLINK, linkname="usr/lib"), member("usr/lib/l", b"l"), member("b", kind=LINK, linkname="a"),
)  # fmt: skip


def test_a_single_archive_has_no_whiteouts(tmp_path: Path) -> None:
    with over_each_other(tmp_path, archive(member("a", b"1"), member(".wh.a", b"2"))) as found:
        assert found == {"a": b"1", ".wh.a": b"2"}


def test_whiteouts_remove_what_is_below(tmp_path: Path) -> None:
    with over_each_other(tmp_path, BASE, archive(member(".wh.a"), member("d/.wh.y"), member(".wh.none"))) as found:
        of_files = {"b": b"base", "d/x": b"x", "usr/lib/l": b"l"}
        assert found == {**of_files, "d": None, "lib": None, "usr": None, "usr/lib": None}


def test_whiteouts_leave_what_their_own_layer_has(tmp_path: Path) -> None:
    """Wherever they stand in it (layer.md)."""
    for order in ((0, 1), (1, 0)):
        members = (member("d/new", b"new"), member("d/.wh..wh..opq"))
        with over_each_other(tmp_path, BASE, archive(*(members[each] for each in order))) as found:
            assert {path for path in found if path.startswith("d")} == {"d", "d/new"}
        members = (member("a", b"again"), member(".wh.a"))
        with over_each_other(tmp_path, BASE, archive(*(members[each] for each in order))) as found:
            assert (found["a"], found["b"]) == (b"again", b"base")


def test_links_of_directories_are_followed(tmp_path: Path) -> None:
    """As containers' tools do, for layers of distributions that have merged /lib into /usr/lib."""
    with over_each_other(tmp_path, BASE, archive(member("lib/new", b"n"), member("lib/.wh.l"))) as found:
        assert (found["lib"], found.get("usr/lib/new"), found.get("usr/lib/l")) == (None, b"n", None)


def test_a_whiteout_in_a_directory_that_replaces_a_link_leaves_what_that_led_to(tmp_path: Path) -> None:
    """As an overlay has it after ``rm a; mkdir a``, where ``a`` was a link."""
    base = archive(member("b", kind=DIRECTORY), member("b/keep", b"k"), member("a", kind=SYMLINK, linkname="b"))
    layer = archive(member("a", kind=DIRECTORY), member("a/.wh..wh..opq"), member("a/.wh.keep"), member("a/new", b"n"))
    with over_each_other(tmp_path, base, layer) as found:
        assert found == {"a": None, "a/new": b"n", "b": None, "b/keep": b"k"}


def test_a_file_replaces_a_directory_of_a_layer_below(tmp_path: Path) -> None:
    with over_each_other(tmp_path, BASE, archive(member("d", b"file"))) as found:
        assert found["d"] == b"file" and "d/x" not in found


def test_hard_links_to_files_below(tmp_path: Path) -> None:
    with over_each_other(tmp_path, BASE, archive(member("c", kind=LINK, linkname="a"), member("a", b"new"))) as found:
        assert (found["a"], found["b"], found["c"]) == (b"new", b"base", b"base")

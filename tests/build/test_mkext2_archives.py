"""``mkext2 --tar``: the image is that of the directory, to the byte, whoever makes it and whatever made the archive."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.support.cli_in_process import in_process
from tests.support.commands import GROUP, USER, mystfuse, run
from tests.support.made_images import assert_clean, assert_refused, contents, loop_mounted
from tests.support.mounts import mounted
from tests.support.tar_archives import archive, member, packed

AT_EPOCH = {"SOURCE_DATE_EPOCH": "1600000000"}
ALL = ("--xattrs", "--xattrs-include=*", "--acls")
GNU_TAR = {
    "gnu": ("tar", "--format=gnu"), "pax": ("tar", "--format=pax", *ALL), "ustar": ("tar", "--format=ustar"),
    "numeric": ("tar", "--format=pax", "--numeric-owner", *ALL), "sorted": ("tar", "--sort=name", *ALL),
    "bsdtar": ("bsdtar", "--format=pax"), "bsdtar ustar": ("bsdtar", "--format=ustar"), "busybox": ("busybox", "tar"),
}  # fmt: skip


@pytest.fixture(scope="module")
def plain_tree(small_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every form of tar archives keeps: whole seconds, no attributes, numbers below 2^21; hard links."""
    tree = tmp_path_factory.mktemp("plain") / "tree"
    run("cp", "-a", small_tree, tree)
    os.mknod(tree / "null", 0o20666, os.makedev(1, 3))
    os.mkfifo(tree / "fifo")
    (tree / "setuid").write_bytes(b"#!/bin/sh\n")
    os.chown(tree / "setuid", 1234, 4321)
    os.chmod(tree / "setuid", 0o6755)
    (tree / "long" / ("l" * 90)).mkdir(parents=True)
    (tree / "long" / ("l" * 90) / ("f" * 99)).write_text("a name in two parts")
    os.link(tree / "setuid", tree / "zz-linked")
    for name in ("long-link", "n" * 255):
        (tree / name).unlink()
    for path in (*tree.rglob("*"), tree):
        for name in os.listxattr(path, follow_symlinks=False):
            os.removexattr(path, name, follow_symlinks=False)
        os.utime(path, (1_500_000_000, 1_500_000_000), follow_symlinks=False)
    return tree


def image_of(source: list[str | Path], image: Path, env: dict[str, str] = AT_EPOCH) -> bytes:
    result = mystfuse("mkext2", *source, image, env=env)
    assert result.returncode == 0, result.stderr
    assert_clean(image)
    return image.read_bytes()


@pytest.mark.parametrize("program", GNU_TAR)
def test_the_bytes_are_those_of_the_directory(program: str, plain_tree: Path, tmp_path: Path) -> None:
    run(*GNU_TAR[program], "-C", plain_tree, "-cf", tmp_path / "x.tar", ".")
    expected = image_of([plain_tree], tmp_path / "directory")
    assert image_of(["--tar", tmp_path / "x.tar"], tmp_path / "archive") == expected


@pytest.mark.parametrize("program", ["pax", "numeric", "bsdtar"])
def test_attributes_and_acls_come_along(program: str, rich_tree: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    run("cp", "-a", rich_tree, tree)
    (tree / "socket").unlink()
    os.setxattr(tree / "setuid", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    run("setfacl", "-d", "-m", "u:1234:rwx,g:4321:r,m:rwx", tree / "sub")
    run(*GNU_TAR[program], "-C", tree, "-cf", tmp_path / "x.tar", ".")
    assert in_process("mkext2", "--tar", tmp_path / "x.tar", tmp_path / "image").returncode == 0
    assert_clean(tmp_path / "image")
    with loop_mounted(tmp_path / "image", tmp_path / "kernel") as kernel:
        assert contents(kernel) == contents(tree)


@pytest.mark.parametrize(
    "program",
    [
        ("tar", "--format=gnu", "-S"), ("tar", "--format=pax", "-S", "--sparse-version=0.0"),
        ("tar", "--format=pax", "-S", "--sparse-version=0.1"), ("tar", "--format=pax", "-S", "--sparse-version=1.0"),
        ("bsdtar", "--format=pax", "--read-sparse"), ("tar", "--format=gnu"),
    ],
    ids=" ".join,
)  # fmt: skip
@pytest.mark.parametrize("options", [(), ("--size=min",)])
def test_sparse_files_keep_their_holes(program: tuple[str, ...], options: tuple[str, ...], tmp_path: Path) -> None:
    tree, generator = tmp_path / "tree", random.Random(5)
    tree.mkdir()
    for name, size, pieces in (("many", 40 << 20, 60), ("one", 9 << 20, 1), ("none", 5 << 20, 0), ("odd", 999_999, 3)):
        with (tree / name).open("wb") as file:
            file.truncate(size)
            for _ in range(pieces):
                file.seek(generator.randrange(size - 5000))
                file.write(generator.randbytes(generator.randrange(1, 5000)))
    run(*program, "-C", tree, "-cf", tmp_path / "x.tar", ".")
    assert in_process("mkext2", *options, "--tar", tmp_path / "x.tar", tmp_path / "image").returncode == 0
    assert_clean(tmp_path / "image")
    with loop_mounted(tmp_path / "image", tmp_path / "kernel") as kernel:
        found = contents(kernel)
        expected = contents(tree)
        for path in expected:
            assert found[path].get("sha256") == expected[path].get("sha256"), path
        assert os.stat(kernel / "many").st_blocks * 512 < 2 << 20


@pytest.mark.parametrize(
    "compress", [("gzip",), ("bzip2",), ("xz",), ("zstd", "-q"), ("xz", "-9"), ("cat",)], ids=" ".join
)
@pytest.mark.parametrize("way", ["file", "pipe", "stdin"])
def test_compressed_and_piped(compress: tuple[str, ...], way: str, plain_tree: Path, tmp_path: Path) -> None:
    half = len(data := packed(plain_tree)) // 1024 * 512
    # Two streams, one behind the other, as pigz and pzstd write them.
    packed_data = b"".join(
        subprocess.run(compress, input=part, stdout=subprocess.PIPE, check=True).stdout
        for part in (data[:half], data[half:])
    )
    file = tmp_path / "x.tar.any"
    file.write_bytes(packed_data)
    command = [sys.executable, "-m", "mystfuse", "mkext2", "--quiet", "--tar", str(file) if way == "file" else "-"]
    given = {"input": packed_data} if way == "pipe" else {"stdin": file.open("rb")}
    made = subprocess.run([*command, str(tmp_path / "image")], stderr=subprocess.PIPE, check=False, **given)  # type: ignore[call-overload]
    assert (made.returncode, made.stderr) == (0, b"")
    with mounted(tmp_path / "image", tmp_path / "mount") as mountpoint:
        assert contents(mountpoint, with_owners=False) == contents(plain_tree, with_owners=False)


def test_an_ordinary_user_gets_the_same_image(
    rich_tree: Path, open_tmp_path: Path, ordinary_user: list[str], tmp_path: Path
) -> None:
    target = open_tmp_path / "target"
    target.mkdir()
    os.chown(target, USER, GROUP)
    making = (*ordinary_user, "mkext2", "--tar", open_tmp_path / "x.tar", target / "image")
    packing = ("tar", "--format=pax", *ALL, "--exclude=./socket", "-C", rich_tree, "-cf", open_tmp_path / "x.tar")
    run(*packing, ".")
    refused = run(*making, check=False, env=AT_EPOCH)
    assert_refused(refused, 1, "x.tar/fifo: attribute trusted.of-a-fifo: only root can make an image of it")
    run(*packing, "--exclude=./fifo", ".")
    later = {"SOURCE_DATE_EPOCH": "2147483647"}
    run(*making, env=later)
    assert image_of(["--tar", open_tmp_path / "x.tar"], tmp_path / "root", later) == (target / "image").read_bytes()
    (tree := tmp_path / "tree").mkdir()
    run("tar", *ALL, "-C", tree, "-xpf", open_tmp_path / "x.tar")
    with loop_mounted(target / "image", tmp_path / "kernel") as kernel:
        assert contents(kernel) == contents(tree)


def test_other_options_go_with_it(plain_tree: Path, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(packed(plain_tree))
    (tmp_path / "list").write_text("setuid\nzz-linked\nsub/deep\n")
    tar = ("--tar", tmp_path / "x.tar")
    listed = in_process("mkext2", "--from-list", tmp_path / "list", "--owner=5:6", *tar, tmp_path / "listed")
    assert listed.returncode == 0, listed.stderr
    assert_clean(tmp_path / "listed")
    with loop_mounted(tmp_path / "listed", tmp_path / "kernel") as kernel:
        found = contents(kernel)
    assert set(found) == {".", "setuid", "zz-linked", "sub", "sub/deep"}
    assert {(entry["uid"], entry["gid"]) for entry in found.values()} == {(5, 6)}
    assert found["setuid"]["nlink"] == 2
    without = in_process("mkext2", "--exclude=/setuid", "--exclude=sub/", "--size=min", *tar, tmp_path / "without")
    assert without.returncode == 0, without.stderr
    assert_clean(tmp_path / "without")
    with loop_mounted(tmp_path / "without", tmp_path / "kernel") as kernel:
        found = contents(kernel)
    assert found["zz-linked"]["nlink"] == 1 and "setuid" not in found and "sub" not in found
    (tmp_path / "key").write_bytes(bytes(range(64)))
    encrypted = in_process("mkext2", "--encrypt", tmp_path / "key", "--block-size=4096", *tar, tmp_path / "encrypted")
    assert encrypted.returncode == 0, encrypted.stderr
    listing = in_process("ls", "--key-file", tmp_path / "key", tmp_path / "encrypted", "/sub")
    assert "deep" in listing.stdout, listing.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--tar", "x.tar", "tree", "image"), "--tar stands for SOURCE"),
        (("--tar", "x.tar"), "Missing argument 'IMAGE'"),
        (("--tar", "tree", "image"), "tree: is a directory"), (("--tar", "none", "image"), "none: No such file"),
        (("--tar", "-", "--encrypt=-", "image"), "only one option can read stdin"),
        (("--tar", "-", "--tar", "-", "image"), "only one option can read stdin"),
        (("--tar", "x.tar", "--from-list", "list", "image"), "missing: cannot be taken from x.tar: No such file"),
        (("--tar", "x.tar", "--inodes", "3", "image"), "x.tar: --inodes 3 is too few"),
        (("x.tar", "image"), "mystfuse mkext2 --tar x.tar"), (("oci:none", "image"), "none: No such file"),
        (("oci:", "image"), "oci:"), (("docker-archive:", "image"), "docker-archive:"),
        (("oci-archive:x.tar", "image"), "x.tar: oci-layout: no regular file"),
        (("docker-archive:x.tar:a:b", "image"), "x.tar: manifest.json: no regular file"),
    ],
)  # fmt: skip
def test_mistakes(arguments: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tree").mkdir()
    (tmp_path / "x.tar").write_bytes(archive(member("a", b"x")))
    (tmp_path / "list").write_text("missing\n")
    result = in_process("mkext2", *arguments)
    assert_refused(result, result.returncode, words)
    assert result.returncode in (1, 2, 6)
    assert not (tmp_path / "image").exists()


@pytest.mark.parametrize("name", ["oci:x", "docker-archive:y"])
def test_directories_of_such_names_are_given_with_a_dot(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    (tmp_path / name / "file").touch()
    assert in_process("mkext2", f"./{name}", "image").returncode == 0
    assert "file" in in_process("ls", "image").stdout


def test_pythons_forms(plain_tree: Path, tmp_path: Path) -> None:
    expected = image_of([plain_tree], tmp_path / "directory")
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        (tmp_path / "x.tar").write_bytes(packed(plain_tree, format=form))
        assert image_of(["--force", "--tar", tmp_path / "x.tar"], tmp_path / "archive") == expected

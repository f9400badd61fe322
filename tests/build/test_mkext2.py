"""Images by ``mystfuse mkext2``, checked with e2fsck, veritysetup, openssl and the kernel."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.cli_in_process import in_process
from tests.support.commands import run
from tests.support.made_images import assert_clean, assert_tree_accepted, contents, loop_mounted, make
from tests.support.mounts import mounted


@pytest.mark.parametrize(
    "options", [(), ("--size=80M",), ("--block-size=4096",), ("--salt=",), ("--salt=" + "ab" * 256,)]
)
def test_the_judges_accept_the_image(options: tuple[str, ...], small_tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    fields = make(small_tree, image, *options)
    assert_tree_accepted(image, fields)
    assert_clean(image)
    assert in_process("verify", f"--roothash={fields['root_hash']}", image).returncode == 0


def test_content_equals_the_source(rich_tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    fields = make(rich_tree, image)
    assert_clean(image)
    assert_tree_accepted(image, fields)
    expected = contents(rich_tree)
    assert len(expected) > 320
    with loop_mounted(image, tmp_path / "kernel") as kernel:
        assert contents(kernel) == expected
        for name in (".", "sub/deep", "sub/deep/data.bin"):
            assert run("getfacl", "-pn", name, cwd=kernel).stdout == run("getfacl", "-pn", name, cwd=rich_tree).stdout
    with mounted(image, tmp_path / "ours") as ours:
        assert contents(ours) == expected


def test_times_after_2038_are_kept(tmp_path: Path) -> None:
    source, image = tmp_path / "source", tmp_path / "image"
    source.mkdir()
    (source / "future").touch()
    os.utime(source / "future", (2_300_000_000, 2_300_000_000))
    make(source, image)
    with loop_mounted(image, tmp_path / "kernel") as kernel:
        assert int((kernel / "future").stat().st_mtime) == 2_300_000_000


@pytest.mark.parametrize("block_size", ["1024", "2k", "4K", "8192", "16K", "32K", "64K"])
def test_every_block_size(block_size: str, small_tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    fields = make(small_tree, image, f"--block-size={block_size}")
    size = int(block_size.rstrip("kK")) * (1024 if block_size[-1] in "kK" else 1)
    assert f"\nBlock size:               {size}\n" in run("dumpe2fs", "-h", image).stdout
    assert int(fields["hash_offset"]) % max(size, 4096) == 0
    assert_clean(image)
    assert_tree_accepted(image, fields)
    expected = contents(small_tree)
    if size <= 4096:
        with loop_mounted(image, tmp_path / "kernel") as kernel:
            assert contents(kernel) == expected
    else:
        dumped = tmp_path / "dumped"
        dumped.mkdir()
        run("debugfs", "-R", f'rdump / "{dumped}"', image)
        for name in ("hello.txt", "sub/deep/data.bin", "sparse", "n" * 255, os.fsdecode(b"latin-\xe9")):
            assert (dumped / name).read_bytes() == (small_tree / name).read_bytes(), name
        assert os.readlink(dumped / "long-link") == os.readlink(small_tree / "long-link")
    with mounted(image, tmp_path / "ours") as ours:
        assert contents(ours) == expected


@pytest.mark.parametrize("options", [("--size=80M",), ("--block-size=4096",), ("--salt=",)])
def test_hash_tree_is_byte_identical_to_veritysetups(
    options: tuple[str, ...], small_tree: Path, tmp_path: Path
) -> None:
    image, data, tree = tmp_path / "image", tmp_path / "data", tmp_path / "tree"
    fields = make(small_tree, image, *options)
    offset = int(fields["hash_offset"])
    shutil.copyfile(image, data)
    os.truncate(data, offset)
    with image.open("rb") as file:
        file.seek(offset)
        ours = file.read()[:-4096]
    salt_size = int.from_bytes(ours[80:82], "little")
    salt = ours[88 : 88 + salt_size].hex() or "-"
    uuid = run("blkid", "-p", "-s", "UUID", "-o", "value", "-O", str(offset), image, check=False).stdout.strip()
    said = run("veritysetup", "format", f"--salt={salt}", f"--uuid={uuid}", data, tree).stdout
    assert tree.read_bytes() == ours
    assert f"Root hash:      \t{fields['root_hash']}" in said


def test_default_salt_is_32_random_bytes_and_the_identities_differ(small_tree: Path, tmp_path: Path) -> None:
    seen = []
    for name in ("one", "two"):
        fields = make(small_tree, tmp_path / name)
        dump = run("veritysetup", "dump", tmp_path / name, f"--hash-offset={fields['hash_offset']}").stdout
        salt = re.search(r"Salt:\s+([0-9a-f]+)", dump)
        tree_uuid = re.search(r"UUID:\s+(\S+)", dump)
        uuid = re.search(r"Filesystem UUID:\s+(\S+)", run("dumpe2fs", "-h", tmp_path / name).stdout)
        assert salt and tree_uuid and uuid
        assert len(salt[1]) == 64
        seen.append({salt[1], tree_uuid[1], uuid[1]})
    assert not seen[0] & seen[1]


@pytest.mark.parametrize(("bits", "exponent"), [(2048, 65537), (3072, 3), (4096, 2**32 + 15)])
def test_openssl_accepts_the_signature(
    bits: int, exponent: int, small_tree: Path, tmp_path: Path, make_keys: Callable[..., tuple[Path, Path]]
) -> None:
    public, private = make_keys(f"mkext2-{bits}-{exponent}", bits, exponent)
    image, root, signature = tmp_path / "image", tmp_path / "root", tmp_path / "signature"
    fields = make(small_tree, image, f"--sign={public}:{private}")
    assert int(fields["signature_size"]) == bits // 8
    root.write_bytes(bytes.fromhex(fields["root_hash"]))
    signature.write_bytes(bytes.fromhex(fields["signature"]))
    check = ("openssl", "pkeyutl", "-verify", "-pubin", "-inkey", public, "-pkeyopt", "digest:sha256",
             "-in", root, "-sigfile", signature)  # fmt: skip
    run(*check)
    modulus = bytes.fromhex(run("openssl", "rsa", "-pubin", "-in", public, "-noout", "-modulus").stdout[8:].strip())
    assert fields["signer"] == hashlib.sha256(modulus).hexdigest()
    root.write_bytes(bytes(32))
    assert run(*check, check=False).returncode != 0

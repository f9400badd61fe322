"""What mkext2 and commit say that they have made: two lines, a document, or nothing."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest

from mystfuse.cli.made_image import _quote
from tests.support.cli_in_process import in_process
from tests.support.commands import mystfuse, run
from tests.support.json_documents import check_document
from tests.support.made_images import assert_refused, fssig, loop_mounted, superblock_of
from tests.support.mounts import clear_mount, mounted


def mount_as_told(line: str, mountpoint: Path, **options: object) -> list[str]:
    """Run the command that was told, by a shell; returns the names at the mount's root."""
    mountpoint.mkdir(exist_ok=True)
    command = line.removeprefix("mount it: ").replace(" MOUNTPOINT ", f" {shlex.quote(str(mountpoint))} ")
    try:
        result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, **options)  # type: ignore[call-overload]
        assert result.returncode == 0, result.stderr
        return os.listdir(mountpoint)
    finally:
        clear_mount(mountpoint)


@pytest.mark.parametrize("kind", ["unsigned", "signed", "encrypted", "passphrase"])
def test_the_command_that_is_told_mounts_it(
    kind: str, small_tree: Path, tmp_path: Path, make_keys: Callable[..., tuple[Path, Path]]
) -> None:
    public, private = make_keys("made image")
    odd = tmp_path / "it's \n a \\ \xe9"
    odd.mkdir()
    key, passphrase = odd / "key file", tmp_path / "passphrase"
    key.write_bytes(os.urandom(64))
    passphrase.write_text("a long enough passphrase")
    for secret in key, passphrase:
        secret.chmod(0o600)
    options: list[str | Path] = {
        "unsigned": [],
        "signed": ["--sign", f"{public}:{private}"],
        "encrypted": ["--encrypt", key, "--sign", f"{public}:{private}"],
        "passphrase": ["--encrypt", "-", "--passphrase-file", passphrase, "--luks2"],
    }[kind]
    image = "-odd $image.img"
    with key.open() as stdin:
        result = mystfuse("mkext2", *options, "--", small_tree, image, cwd=odd, stdin=stdin)
    assert result.returncode == 0, result.stderr
    made, mount_it = result.stdout.splitlines()
    fields = fssig(odd / image)
    assert made.startswith(f"made {image}: ") and f", root hash {fields['root_hash']}, " in made
    signer = f"signed by {public}" if "--sign" in options else "unsigned"
    assert made.endswith(f"{'encrypted, ' if '--encrypt' in options else ''}{signer}")
    assert ("--pubkey" in mount_it) == ("--sign" in options) != ("--roothash" in mount_it)
    assert "hello.txt" in mount_as_told(mount_it, tmp_path / "mount", cwd=odd)
    # It trusts this image, and no other.
    other = mystfuse("mkext2", "--force", "--", small_tree, image, cwd=odd)
    assert other.returncode == 0
    trust = ["--pubkey", public] if "--sign" in options else ["--roothash", fields["root_hash"]]
    refused = mystfuse("verify", *trust, "--", image, cwd=odd)
    assert refused.returncode == 3, refused.stderr


def test_counts_are_what_the_kernel_says(small_tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    result = in_process("mkext2", "--json", "--free=7M", "--salt=abcd", small_tree, image)
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    check_document("mkext2", document)
    assert document["size"] == image.stat().st_size
    assert document["salt"] == "abcd" and document["luks_version"] is None and document["signer"] is None
    assert document["mount_command"] == ["mystfuse", str(image), "MOUNTPOINT", "--roothash", document["root_hash"]]
    files = {path.lstat().st_ino for path in small_tree.rglob("*")}
    filesystem = document["filesystem"]
    assert filesystem["files"] == len(files)
    with loop_mounted(image, tmp_path / "kernel") as kernel:
        status = os.statvfs(kernel)
        assert filesystem["free_bytes"] == status.f_bavail * status.f_frsize
        assert filesystem["reserved_bytes"] == (status.f_bfree - status.f_bavail) * status.f_frsize
        assert (filesystem["inodes"], filesystem["free_inodes"]) == (status.f_files, status.f_ffree)
    dumped = run("veritysetup", "dump", image, f"--hash-offset={document['hash_offset']}").stdout
    assert document["tree_uuid"] in dumped
    assert UUID(filesystem["uuid"]) == superblock_of(image).s_uuid


@pytest.mark.parametrize("command", ["mkext2", "commit"])
def test_quiet_says_nothing_and_excludes_json(
    command: str, small_image: Path, small_tree: Path, tmp_path: Path
) -> None:
    image = tmp_path / "image"
    with mounted(small_image, tmp_path / "mount") as mountpoint:
        source = small_tree if command == "mkext2" else mountpoint
        for option in "-q", "--quiet":
            result = mystfuse(command, option, "--force", source, image)
            assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
        assert_refused(mystfuse(command, "--quiet", "--json", "--force", source, image), 2, "--quiet and --json")


def test_the_image_is_there_when_nobody_reads_what_is_said(small_tree: Path, tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        command = ["mystfuse", "mkext2", small_tree, tmp_path / "image"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert in_process("verify", tmp_path / "image").returncode == 0


@pytest.mark.parametrize(
    "word",
    ["plain", "", "two words", "it's", '$HOME `x` "', "new\nline", "tab\t'\\", os.fsdecode(b"\xff\xfe"), "\x01a"],
)
def test_words_are_quoted_on_one_line(word: str) -> None:
    quoted = _quote(word)
    assert "\n" not in quoted
    said = subprocess.run(
        ["bash", "-c", f"printf %s {quoted}"], capture_output=True, check=True, env={**os.environ, "LC_ALL": "C"}
    ).stdout
    assert said == os.fsencode(word)

"""``mystfuse commit --layer``: files, digests, and what it refuses."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pty
import secrets
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli_in_process import in_process
from tests.support.commands import assert_one_line, mystfuse, run
from tests.support.encrypted_images import write_secret
from tests.support.json_documents import check_document
from tests.support.mounts import mounted


@pytest.fixture
def written(image: Path, tmp_path: Path) -> Iterator[Path]:
    """A mount to which something was written."""
    with mounted(image, tmp_path / "mount") as mountpoint:
        (mountpoint / "new").write_bytes(secrets.token_bytes(3_000_000))
        (mountpoint / "hello.txt").unlink()
        yield mountpoint


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def test_it_says_what_it_has_made(written: Path, tmp_path: Path) -> None:
    layer, compressed = tmp_path / "layer.tar", tmp_path / "layer.tar.gz"
    result = in_process("commit", "--layer", layer, written)
    said = digest(layer.read_bytes())
    assert result.stdout == f"made {layer}: 2.9 MiB, 2 names, 1 whiteout, {said}\n" and result.stderr == ""
    assert layer.stat().st_mode & 0o777 == 0o644
    result = in_process("commit", "--json", "--layer", compressed, written)
    document = json.loads(result.stdout)
    check_document("commit", document)
    assert document["layer"] == {
        "file": str(compressed), "media_type": "application/vnd.oci.image.layer.v1.tar+gzip",
        "size": compressed.stat().st_size, "digest": digest(compressed.read_bytes()), "diff_id": said,
        "members": 2, "whiteouts": 1, "omitted": {},
    }  # fmt: skip
    assert in_process("commit", "--quiet", "--force", "--layer", layer, written).stdout == ""


def test_it_makes_an_image_too(written: Path, tmp_path: Path) -> None:
    result = in_process("commit", "--json", "--layer", tmp_path / "layer.tar", written, tmp_path / "new")
    document = json.loads(result.stdout)
    check_document("commit", document)
    assert document["image"] == str(tmp_path / "new") and document["layer"]["file"] == str(tmp_path / "layer.tar")
    assert in_process("verify", tmp_path / "new").returncode == 0


def test_it_goes_to_stdout(written: Path) -> None:
    command = [sys.executable, "-m", "mystfuse", "commit", "--layer", "-", written]
    result = subprocess.run(command, capture_output=True, timeout=60, check=True)
    with tarfile.open(fileobj=io.BytesIO(result.stdout)) as archive:
        assert archive.getnames() == [".", ".wh.hello.txt", "new"]
    assert digest(result.stdout) in result.stderr.decode()
    master, slave = pty.openpty()
    try:
        refused = subprocess.run(command, stdout=slave, stderr=subprocess.PIPE, timeout=60, check=False)
    finally:
        os.close(master)
        os.close(slave)
    assert refused.returncode == 2 and b"terminal" in refused.stderr


def test_it_refuses_what_makes_no_sense_and_leaves_nothing_behind(written: Path, tmp_path: Path) -> None:
    existing = tmp_path / "existing"
    existing.write_text("keep")
    assert_one_line(mystfuse("commit", written), 2, "NEWIMAGE")
    assert_one_line(mystfuse("commit", "--layer", existing, written), 1, "--force")
    assert_one_line(mystfuse("commit", "--layer", tmp_path / "no/layer", written), 1, "there is no directory")
    for option in (("--salt", "00"), ("--sign", "a:b"), ("--uuid", "x"), ("--luks2",)):
        result = mystfuse("commit", "--layer", tmp_path / "layer", *option, written)
        assert_one_line(result, 2, f"{option[0]} goes with NEWIMAGE")
    assert_one_line(mystfuse("commit", "--layer", tmp_path / "layer.tar.zst", written), 2, "gzip")
    assert_one_line(mystfuse("commit", "--layer", "-", "--json", written), 2, "stdout")
    assert_one_line(mystfuse("commit", "--layer", "-", written, tmp_path / "new"), 2, "NEWIMAGE")
    assert sorted(os.listdir(tmp_path)) == ["existing", "mount"] and existing.read_text() == "keep"


def test_an_encrypted_images_changes_are_written_only_if_told(small_tree: Path, tmp_path: Path) -> None:
    key, layer = write_secret(tmp_path / "key", secrets.token_bytes(64)), tmp_path / "layer"
    assert in_process("mkext2", "--free", "4M", "--encrypt", key, small_tree, tmp_path / "image").returncode == 0
    with mounted(tmp_path / "image", tmp_path / "mount", "--key-file", key) as mountpoint:
        (mountpoint / "new").touch()
        assert_one_line(mystfuse("commit", "--layer", layer, mountpoint), 2, "--decrypt")
        assert in_process("commit", "--decrypt", "--layer", layer, mountpoint).returncode == 0
    assert layer.stat().st_mode & 0o777 == 0o600
    assert run("tar", "-tf", layer).stdout == "./\nnew\n"

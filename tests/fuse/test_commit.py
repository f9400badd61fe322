"""``mystfuse commit``: a new image of the present state, or none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.commands import mystfuse, run, wait_until
from tests.support.made_images import assert_told
from tests.support.mounts import mounted, status_of


def test_commit_makes_an_image_of_the_present_state(
    image: Path, small_tree: Path, make_keys: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    public, private = make_keys("committer")
    target = tmp_path / "committed"
    with mounted(image, tmp_path / "mount") as mountpoint:
        (mountpoint / "new").write_bytes(b"committed" * 10_000)
        (mountpoint / "hello.txt").unlink()
        with (mountpoint / "open").open("wb") as file:
            file.write(bytes(100_000))
            file.flush()
            (mountpoint / "open").unlink()
            result = mystfuse("commit", "--sign", f"{public}:{private}", mountpoint, target)
        assert result.returncode == 0 and result.stderr == ""
        assert_told(result.stdout, target)
        (mountpoint / "later").touch()
    assert mystfuse("verify", "--pubkey", public, target).returncode == 0
    root_hash = mystfuse("fssig", "--roothash", target).stdout.strip()
    hash_offset = str(json.loads(mystfuse("fssig", "--json", target).stdout)["hash_offset"])
    run("veritysetup", "verify", f"--hash-offset={hash_offset}", target, target, root_hash)
    run("cp", "--sparse=always", target, tmp_path / "bare")
    os.truncate(tmp_path / "bare", int(hash_offset))
    assert run("e2fsck", "-fn", tmp_path / "bare", check=False).returncode == 0
    with mounted(target, tmp_path / "mount", "--pubkey", public) as mountpoint:
        expected = (set(os.listdir(small_tree)) - {"hello.txt"}) | {"new", "lost+found"}
        assert set(os.listdir(mountpoint)) == expected
        assert (mountpoint / "new").read_bytes() == b"committed" * 10_000
    assert target.stat().st_blocks < 2 * image.stat().st_blocks, "free blocks are holes"


def test_commit_refuses_what_it_cannot_do_and_leaves_nothing_behind(image: Path, tmp_path: Path) -> None:
    def refused(status: int, part: str, *arguments: str | Path) -> None:
        result = mystfuse("commit", *arguments)
        assert result.returncode == status, result.stderr
        assert result.stderr.startswith("mystfuse: ") and result.stderr.count("\n") == 1 and part in result.stderr

    existing = tmp_path / "existing"
    existing.write_text("keep")
    with mounted(image, tmp_path / "mount") as mountpoint:
        refused(1, "--force", mountpoint, existing)
        refused(1, "cannot be written", mountpoint, tmp_path / "missing/target")
        refused(2, "PUBLIC.pem:PRIVATE.pem", "--sign", "nothing", mountpoint, tmp_path / "target")
        snapshots = [(mountpoint / ".mystfuse/image").open("rb") for _ in range(4)]
        refused(1, "try again later", mountpoint, tmp_path / "target")
        for snapshot in snapshots:
            snapshot.close()
        assert mystfuse("commit", "--force", mountpoint, existing).returncode == 0
    refused(7, "nothing of mystfuse's is mounted", tmp_path / "mount", tmp_path / "target")
    with mounted(image, tmp_path / "mount", "-o", "nocontrol") as mountpoint:
        refused(7, "nocontrol", mountpoint, tmp_path / "target")
    assert sorted(os.listdir(tmp_path)) == ["existing", "mount"]


def test_commit_of_a_damaged_image_fails(image: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    run("cp", "--sparse=always", image, damaged)
    content = damaged.read_bytes()
    position = content.index(bytes(range(256)) * 16)
    with damaged.open("r+b") as file:
        file.seek(position + 4096)
        file.write(b"!")
    with mounted(damaged, tmp_path / "mount") as mountpoint:
        result = mystfuse("commit", mountpoint, tmp_path / "target")
        assert result.returncode == 1 and "damaged" in result.stderr and result.stderr.count("\n") == 1
        # Replace the damaged file, and the rest can be saved.
        (mountpoint / "sub/deep/data.bin").unlink()
        wait_until(lambda: status_of(mountpoint)["unlinked_inodes"] == 0)
        assert mystfuse("commit", mountpoint, tmp_path / "target").returncode == 0
    assert mystfuse("verify", tmp_path / "target").returncode == 0


def test_an_interrupted_commit_leaves_nothing_behind(image: Path, tmp_path: Path) -> None:
    with mounted(image, tmp_path / "mount") as mountpoint:
        for delay in (0.2, 0.3, 0.4):
            process = subprocess.Popen(
                [sys.executable, "-m", "mystfuse", "commit", mountpoint, tmp_path / "target"], stderr=subprocess.PIPE
            )
            time.sleep(delay)
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=20)
            if process.returncode == 0:
                (tmp_path / "target").unlink()
            else:
                assert process.returncode in (1, -signal.SIGTERM), errors
            assert sorted(os.listdir(tmp_path)) == ["mount"]

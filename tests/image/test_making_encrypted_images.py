"""Making and committing encrypted images; a failure leaves nothing behind."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.commands import mystfuse, run, wait_until
from tests.support.encrypted_images import (
    KEY,
    LUKS1_PAYLOAD,
    PHRASE,
    USAGE,
    hash_offset_of,
    on_terminal,
    refused,
    write_secret,
)
from tests.support.made_images import check_ended_mkext2
from tests.support.mounts import mounted


@pytest.mark.parametrize(
    "data, what",
    [(b"x" * 63, "63 bytes"), (bytes(range(65)), "65 bytes"), (b"y" * 64, "two halves"), (b"", "empty")],
    ids=["short", "long", "same-halves", "empty"],
)
def test_keys_that_no_image_is_made_with(small_tree: Path, tmp_path: Path, data: bytes, what: str) -> None:
    key, target = write_secret(tmp_path / "key", data), tmp_path / "x.img"
    assert what in refused(KEY if data else USAGE, "mkext2", "--encrypt", key, small_tree, target)
    assert sorted(tmp_path.iterdir()) == [key]


def test_options_that_do_not_go_together(small_tree: Path, keys: Path, tmp_path: Path) -> None:
    target, key = tmp_path / "x.img", keys / "key"
    for options in (
        ["--luks2"],
        ["--passphrase-file", keys / "passphrase"],
        ["--passphrase", "fourteen chars and more"],
        ["--encrypt", key, "--passphrase", "fourteen chars", "--passphrase-file", keys / "passphrase"],
        ["--encrypt", "-", "--passphrase-file", "-"],
    ):
        refused(USAGE, "mkext2", *options, small_tree, target)
    short = write_secret(tmp_path / "short", "thirteen char\n")
    line = refused(KEY, "mkext2", "--encrypt", key, "--passphrase-file", short, small_tree, target)
    assert "13 characters" in line
    umlauts = write_secret(tmp_path / "umlauts", "äöü" * 4 + "ß")
    assert "13 char" in refused(KEY, "mkext2", "--encrypt", key, "--passphrase-file", umlauts, small_tree, target)
    assert not target.exists()


def test_a_passphrase_on_the_command_line_is_warned_of(
    small_tree: Path, keys: Path, tmp_path: Path, mountpoint: Path
) -> None:
    target = tmp_path / "x.img"
    result = mystfuse("mkext2", "--encrypt", keys / "key", f"--passphrase={PHRASE}", small_tree, target)
    assert result.returncode == 0
    assert "warning: --passphrase shows" in result.stderr
    with mounted(target, mountpoint, "--passphrase-file", str(keys / "passphrase")):
        pass


def test_the_same_directory_and_key_give_the_same_image(small_tree: Path, keys: Path, tmp_path: Path) -> None:
    def make(name: str, key: str) -> bytes:
        options = ["--encrypt", keys / key, "--passphrase-file", keys / "passphrase"]
        result = mystfuse("mkext2", *options, small_tree, tmp_path / name, env={"SOURCE_DATE_EPOCH": "1700000000"})
        assert result.returncode == 0
        return (tmp_path / name).read_bytes()

    first, second, other = make("1", "key"), make("2", "key"), make("3", "wrong")
    assert first == second
    salt = slice(132, 164)
    assert first[salt] != other[salt]


def test_all_of_the_payload_is_encrypted(image: Path) -> None:
    """The ciphertext does not show which parts of the file system are in use."""
    data = image.read_bytes()
    sectors = [data[start : start + 512] for start in range(LUKS1_PAYLOAD, hash_offset_of(data), 512)]
    assert len(set(sectors)) == len(sectors)
    assert max(sector.count(0) for sector in sectors) < 32


def test_a_full_disk_leaves_nothing(small_tree: Path, keys: Path, tmp_path: Path) -> None:
    mountpoint = tmp_path / "small"
    mountpoint.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=9m", "tmpfs", mountpoint)
    try:
        line = refused(1, "mkext2", "--encrypt", keys / "key", small_tree, mountpoint / "x.img")
        assert list(mountpoint.iterdir()) == []
    finally:
        run("umount", mountpoint)
    assert "No space left" in line or "mke2fs" in line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_making_that_is_ended_leaves_nothing(keys: Path, tmp_path: Path, number: signal.Signals) -> None:
    def fill(source: Path) -> None:
        (source / "big").write_bytes(secrets.token_bytes(48 << 20))

    check_ended_mkext2(tmp_path, fill, number, "--encrypt", keys / "key")


def test_making_that_is_killed_at_any_moment_leaves_nothing(keys: Path, tmp_path: Path, small_tree: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    for delay in (0.2, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.8):
        process = subprocess.Popen(
            [sys.executable, "-m", "mystfuse", "mkext2", "--encrypt", keys / "key", small_tree, tmp_path / "x.img"],
            env={**os.environ, "TMPDIR": str(temporary)},
        )  # fmt: skip
        time.sleep(delay)
        process.kill()
        process.wait()
        wait_until(lambda: run("pgrep", "-f", f"mkext2 --encrypt {keys}", check=False).stdout == "")
        assert str(temporary) not in Path("/proc/self/mountinfo").read_text()
        (tmp_path / "x.img").unlink(missing_ok=True)
        # Before the child starts, there is an empty directory at most.
        assert [path for path in temporary.rglob("*") if path.stat().st_size and path.is_file()] == []


def test_a_hangup_is_ignored_when_it_is_to_be(keys: Path, tmp_path: Path) -> None:
    """Under nohup, the process that makes the image must not die with the terminal."""
    source, temporary = tmp_path / "source", tmp_path / "temporary"
    source.mkdir()
    temporary.mkdir()
    (source / "big").write_bytes(secrets.token_bytes(32 << 20))
    process = subprocess.Popen(
        ["nohup", sys.executable, "-m", "mystfuse", "mkext2", "--encrypt", keys / "key", source, tmp_path / "x.img"],
        env={**os.environ, "TMPDIR": str(temporary)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until(lambda: str(temporary) in Path("/proc/self/mountinfo").read_text())
        process.send_signal(signal.SIGHUP)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def test_commit_keeps_what_is_encrypted_encrypted(image: Path, keys: Path, mountpoint: Path, tmp_path: Path) -> None:
    plain, again, key = tmp_path / "plain.img", tmp_path / "again.img", str(keys / "key")
    with mounted(image, mountpoint, "--key-file", key):
        (mountpoint / "new").write_text("written\n")
        line = refused(USAGE, "commit", mountpoint, plain)
        assert "--encrypt" in line and "--decrypt" in line and not plain.exists()
        refused(USAGE, "commit", "--decrypt", "--encrypt", key, mountpoint, plain)
        assert mystfuse("commit", "--decrypt", mountpoint, plain).returncode == 0
        options = ["--encrypt", keys / "wrong", "--passphrase-file", keys / "passphrase"]
        assert mystfuse("commit", *options, mountpoint, again).returncode == 0
    with mounted(plain, mountpoint):
        assert (mountpoint / "new").read_text() == "written\n"
    for opening in ("--key-file", str(keys / "wrong")), ("--passphrase-file", str(keys / "passphrase")):
        with mounted(again, mountpoint, *opening):
            assert (mountpoint / "new").read_text() == "written\n"
            shutil.copyfile(mountpoint / ".mystfuse/image", tmp_path / "merged")
            run("e2fsck", "-fn", tmp_path / "merged")
    refused(KEY, "mount", "--key-file", key, again, mountpoint)


def test_a_plain_mount_is_committed_encrypted(small_image: Path, keys: Path, mountpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.img"
    with mounted(small_image, mountpoint):
        assert mystfuse("commit", "--encrypt", keys / "key", mountpoint, target).returncode == 0
    with mounted(target, mountpoint, "--key-file", str(keys / "key")):
        assert (mountpoint / "hello.txt").read_text() == "hello\n"


def test_a_terminal_is_asked_twice_for_a_new_passphrase(
    keys: Path, small_tree: Path, tmp_path: Path, mountpoint: Path
) -> None:
    target = tmp_path / "x.img"
    command: list[str | Path] = ["mkext2", "--encrypt", keys / "key", "--passphrase-file", "-", small_tree, target]
    differ = [("new image: ", PHRASE), ("same again: ", "another passphrase")]
    status, output = on_terminal(command, differ * 3)
    assert status == USAGE and "nothing is done: the two passphrases differ" in output and not target.exists()
    assert output.index("14 characters or more") < output.index("Passphrase for the new image: ")
    status, output = on_terminal(command, [("new image: ", PHRASE), ("same again: ", PHRASE)])
    assert status == 0, output
    with mounted(target, mountpoint, "--passphrase-file", str(keys / "passphrase")):
        pass


def test_nothing_is_left_when_the_child_is_ended_while_it_cleans_up(
    keys: Path, small_tree: Path, tmp_path: Path
) -> None:
    """A regression: the child had removed the mountpoint's file, but the parent left the directory."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    code = (
        "import os, sys\nfrom mystfuse.build import encrypted_file\nparent, unlink = os.getpid(), os.unlink\n"
        "def unlink_and_end(path, **kwargs):\n    unlink(path, **kwargs)\n"
        "    if os.getpid() != parent and path.endswith('plaintext'):\n        os._exit(0)\n"
        "os.unlink = unlink_and_end\nfrom mystfuse.cli.main import main\nmain(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, "mkext2", "--encrypt", keys / "key", small_tree, tmp_path / "image"]
    run(*command, env={"TMPDIR": str(temporary)})
    assert list(temporary.iterdir()) == []

"""Trust from the system's directory: it ends self-trust, and a mistake in it refuses every image."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from removal import remove_tree

from mystfuse.errors import MountError
from mystfuse.mounting.mount_namespace import MountNamespace
from tests.support.cli_in_process import in_process
from tests.support.commands import run
from tests.support.mounts import OWN_MOUNTS
from tests.support.signed_images import NOT_TRUSTED, root_hash


def in_a_world_with(
    trusted: Path, scratch: Path, *command: str | Path, check: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run a command in a mount namespace of its own, where ``trusted`` is /etc/mystfuse/trust.d."""
    for name in ("upper", "work"):
        (scratch / name).mkdir(parents=True, exist_ok=True)
    script = (
        'set -e; mount -t overlay overlay -o lowerdir=/etc,upperdir="$1/upper",workdir="$1/work" /etc; '
        'mkdir -p /etc/mystfuse; rm -rf /etc/mystfuse/trust.d; cp -r "$2" /etc/mystfuse/trust.d; shift 2; exec "$@"'
    )
    return run("unshare", "-m", *OWN_MOUNTS, "sh", "-c", script, "sh", scratch, trusted, *command, check=check)


def both(
    trusted: Path, scratch: Path, image: Path, mountpoint: Path, *options: str | Path
) -> tuple[subprocess.CompletedProcess[str], subprocess.CompletedProcess[str]]:
    """verify, and mount, read a file and umount, with a trust directory."""
    ours = (sys.executable, "-m", "mystfuse")
    verified = in_a_world_with(trusted, scratch, *ours, "verify", *options, image)
    script = (
        'mount=$1; shift; "$@" "$mount" || exit; test "$(cat "$mount/hello.txt")" = hello; seen=$?; '
        f'"{sys.executable}" -m mystfuse umount "$mount"; exit $seen'
    )
    seen = in_a_world_with(trusted, scratch, "sh", "-c", script, "sh", mountpoint, *ours, "mount", *options, image)
    return verified, seen


def test_trust_directory_counts_and_ends_self_trust(
    signed: Path, small_image: Path, mountpoint: Path, tmp_path: Path, alice: tuple[Path, Path], bob: tuple[Path, Path]
) -> None:
    trusted = tmp_path / "trust.d"
    trusted.mkdir()
    shutil.copy(alice[0], trusted / "alice.pem")
    for result in both(trusted, tmp_path / "scratch", signed, mountpoint):
        assert (result.returncode, result.stderr) == (0, ""), result
        assert "/etc/mystfuse/trust.d/alice.pem" in result.stdout
    for result in both(trusted, tmp_path / "scratch", small_image, mountpoint):
        assert result.returncode == NOT_TRUSTED, result
        assert re.fullmatch(r"mystfuse: [^\n]+\n", result.stderr), result.stderr
    # The options add to the directory.
    for result in both(trusted, tmp_path / "scratch", small_image, mountpoint, f"--roothash={root_hash(small_image)}"):
        assert (result.returncode, result.stderr) == (0, ""), result
    for result in both(trusted, tmp_path / "scratch", signed, mountpoint, f"--pubkey={bob[0]}"):
        assert (result.returncode, result.stderr) == (0, ""), result
    (trusted / "alice.pem").unlink()
    (trusted / "one.roothash").write_text("0" * 64 + "\n")
    (trusted / "two.roothash").write_text(f" {root_hash(small_image).upper()}\n")
    for result in both(trusted, tmp_path / "scratch", small_image, mountpoint):
        assert (result.returncode, result.stderr) == (0, ""), result
    for result in both(trusted, tmp_path / "scratch", signed, mountpoint):
        assert result.returncode == NOT_TRUSTED, result


def test_a_mistake_in_the_trust_directory_refuses_every_image(
    signed: Path, tmp_path: Path, alice: tuple[Path, Path]
) -> None:
    trusted = tmp_path / "trust.d"
    for name, content in (("x.pem", b"garbage"), ("x.roothash", b"12"), ("x.roothash", b""), ("x.pem", b"")):
        remove_tree(trusted, ignore_errors=True)
        trusted.mkdir()
        shutil.copy(alice[0], trusted / "alice.pem")
        (trusted / name).write_bytes(content)
        result = in_a_world_with(trusted, tmp_path / "s", sys.executable, "-m", "mystfuse", "verify", signed)
        assert result.returncode in (1, 2), result
        assert re.fullmatch(rf"mystfuse: /etc/mystfuse/trust\.d/{name}[^\n]+\n", result.stderr), result.stderr


def test_a_malformed_trust_directory_is_not_an_empty_one(
    small_image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A regression: these ended in "trusted by nobody but itself", exit 0."""
    monkeypatch.setattr("mystfuse.trust.sources.TRUST_DIRECTORY", tmp_path / "trust.d")
    assert in_process("verify", small_image).returncode == 0
    (tmp_path / "trust.d").mkdir(mode=0o755)
    assert in_process("verify", small_image).returncode == 0

    def refused(path: Path) -> None:
        result = in_process("verify", small_image)
        assert (result.returncode, result.stdout) == (2, "")
        assert re.fullmatch(rf"mystfuse: {re.escape(str(path))}: [^\n]+\n", result.stderr), result.stderr

    for name in ("k.PEM", "k.pub", "k.pem.disabled", ".k.pem.swp", "README"):
        (tmp_path / "trust.d" / name).touch()
        refused(tmp_path / "trust.d" / name)
        (tmp_path / "trust.d" / name).unlink()
    (tmp_path / "trust.d" / "more").mkdir()
    (tmp_path / "trust.d" / "more" / "k.pem").touch()
    refused(tmp_path / "trust.d" / "more")
    shutil.rmtree(tmp_path / "trust.d")
    (tmp_path / "trust.d").symlink_to("nowhere")
    refused(tmp_path / "trust.d")
    (tmp_path / "trust.d").unlink()
    (tmp_path / "trust.d").touch()
    refused(tmp_path / "trust.d")
    (tmp_path / "trust.d").unlink()
    (tmp_path / "trust.d").mkdir()
    (tmp_path / "trust.d").chmod(0o777)
    refused(tmp_path / "trust.d")


FIFO_COMMANDS = [
    "verify --roothash FIFO IMAGE",
    "verify --pubkey FIFO IMAGE",
    "verify --key-file FIFO IMAGE",
    "cat --passphrase-file FIFO IMAGE /",
    "mkext2 --encrypt FIFO DIRECTORY NEW",
    "mkext2 --sign FIFO:FIFO DIRECTORY NEW",
    "mkext2 --encrypt KEY --passphrase-file FIFO DIRECTORY NEW",
    "package PRIVATE FIFO",
    "package --roothash ROOTHASH FIFO CONFIG",
    "package --pubkey FIFO PRIVATE CONFIG",
    "run --signer FIFO IMAGE",
    "run FIFO",
    "sign --sign FIFO:FIFO IMAGE",
    "sign --attach FIFO --pubkey FIFO IMAGE",
    "sign --remove FIFO",
    "ls FIFO",
    "fssig FIFO",
]


@contextmanager
def not_hanging() -> Iterator[None]:
    """Raises an error in a call that waits for over 20 seconds."""

    def give_up(number: int, frame: object) -> None:
        raise TimeoutError("hung")

    previous = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(20)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def test_a_fifo_for_a_mount_namespace_hangs_no_command(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with not_hanging():
        namespace = MountNamespace(str(tmp_path / "fifo"))
        with pytest.raises(MountError, match=r"mount namespace .*fifo: Invalid argument"):
            namespace.enter()


@pytest.mark.parametrize("text", FIFO_COMMANDS)
def test_a_fifo_under_a_configured_name_hangs_no_command(
    text: str, signed: Path, alice: tuple[Path, Path], small_tree: Path, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "config").write_text('{"version": "0.1", "ApplicationPath": "/bin/x"}')
    (tmp_path / "key").write_bytes(os.urandom(64))
    (tmp_path / "key").chmod(0o600)
    names = {"FIFO": "fifo", "CONFIG": "config", "KEY": "key", "NEW": "new"}
    words = {word: str(tmp_path / name) for word, name in names.items()} | {
        "IMAGE": str(signed), "DIRECTORY": str(small_tree), "PRIVATE": str(alice[1]), "ROOTHASH": root_hash(signed),
    }  # fmt: skip
    words["FIFO:FIFO"] = f"{words['FIFO']}:{words['FIFO']}"
    with not_hanging():
        result = in_process(*(words.get(word, word) for word in text.split()))
    assert result.returncode in (2, 6), result
    assert re.search("fifo: a FIFO, not ", result.stderr), result
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_pipe_that_is_open_already_is_read(signed: Path, alice: tuple[Path, Path]) -> None:
    """Like a shell's <(...), and like the API's pipes."""
    for option, data in (("--roothash", root_hash(signed).encode()), ("--pubkey", alice[0].read_bytes())):
        receiver, sender = os.pipe()
        try:
            os.write(sender, data)
            os.close(sender)
            result = in_process("verify", option, f"/dev/fd/{receiver}", signed)
        finally:
            os.close(receiver)
        assert (result.returncode, result.stderr) == (0, ""), result


def test_a_pipe_that_never_ends_is_bounded(signed: Path) -> None:
    command = f"exec {sys.executable} -m mystfuse verify --roothash <(cat /dev/zero) {signed}"
    result = run("bash", "-c", command, check=False, timeout=60)
    assert result.returncode == 2
    assert re.fullmatch(r"mystfuse: verify: --roothash /dev/fd/\d+: too large [^\n]+\n", result.stderr), result.stderr


def test_all_the_keys_of_a_file_count(
    signed: Path, alice: tuple[Path, Path], bob: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "keys.pem").write_bytes(bob[0].read_bytes() + alice[0].read_bytes())
    result = in_process("verify", f"--pubkey={tmp_path}/keys.pem", signed)
    assert (result.returncode, result.stderr) == (0, ""), result
    result = in_process("mkext2", f"--sign={tmp_path}/keys.pem:{alice[1]}", tmp_path, tmp_path / "new")
    assert result.returncode == 2
    assert "2 public keys, where there must be one" in result.stderr


def test_an_empty_trust_directory_is_none(small_image: Path, tmp_path: Path) -> None:
    (tmp_path / "trust.d").mkdir()
    result = in_a_world_with(
        tmp_path / "trust.d", tmp_path / "s", sys.executable, "-m", "mystfuse", "verify", small_image
    )
    assert result.returncode == 0
    assert "trusted by nobody" in result.stderr

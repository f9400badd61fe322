"""Images without a trusted signature or root hash, --insecure, and the exit status of each kind of failure."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from tests.support.cli_in_process import in_process
from tests.support.commands import mystfuse, run
from tests.support.mounts import clear_mount, mounted
from tests.support.signed_images import (
    FORMAT,
    INTEGRITY,
    MOUNT,
    NOT_TRUSTED,
    assert_accepted,
    assert_refused,
    root_hash,
)

SELF_COMMANDS = ["verify IMAGE", "ls IMAGE", "cat IMAGE hello.txt", "extract IMAGE / OUT", "tar IMAGE",
                 "oci IMAGE LAYOUT"]  # fmt: skip


@pytest.mark.parametrize("text", [*SELF_COMMANDS, "mount IMAGE MOUNTPOINT", "exec IMAGE /bin/true"])
def test_every_command_can_be_told_to_trust_no_image_by_itself(
    text: str, signed: Path, mountpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = {"IMAGE": signed, "OUT": tmp_path / "out", "LAYOUT": f"oci:{tmp_path / 'out'}", "MOUNTPOINT": mountpoint}
    command, *arguments = (words.get(word, word) for word in text.split())
    tool = in_process if text in SELF_COMMANDS else mystfuse

    def check(*options: str) -> None:
        try:
            result = tool(command, *options, *arguments)
        finally:
            clear_mount(mountpoint)
        assert result.returncode == NOT_TRUSTED, result
        assert re.fullmatch(r"mystfuse: [^\n]*not trusted: [^\n]+\n", result.stderr), result.stderr
        assert bool(result.stdout) == (command == "verify")
        assert not (tmp_path / "out").exists()

    check("--no-trust-self")
    monkeypatch.setenv("MYSTFUSE_TRUST_SELF", "no")
    check()
    monkeypatch.setenv("MYSTFUSE_TRUST_SELF", "No")
    assert tool(command, *arguments).returncode == 2
    monkeypatch.setenv("MYSTFUSE_TRUST_SELF", "no")
    if text in SELF_COMMANDS:
        # The command line overrides the environment.
        assert in_process(command, "--trust-self", *arguments).returncode == 0


def test_further_images_of_exec_are_trusted_as_the_first_is(
    signed: Path, small_image: Path, alice: tuple[Path, Path]
) -> None:
    # Once a key or root hash is trusted, no image is trusted by itself; the option says the same where none is.
    for option in ((), ("--no-trust-self",)):
        options = (*option, f"--pubkey={alice[0]}", "--mount", f"{small_image}=/mnt")
        result = mystfuse("exec", *options, signed, "/bin/true")
        assert result.returncode == NOT_TRUSTED
        assert f"{small_image}: not trusted" in result.stderr


def test_verify_says_that_no_key_is_trusted(signed: Path, alice: tuple[Path, Path], tmp_path: Path) -> None:
    result = in_process("verify", signed)
    assert (result.returncode, result.stderr) == (0, f"mystfuse: warning: {signed} is trusted by nobody but itself\n")
    assert result.stdout.endswith("trusted by nobody but itself, so nobody vouches for it\n")
    result = in_process("verify", "--no-trust-self", signed)
    assert result.returncode == NOT_TRUSTED
    assert result.stdout.endswith("trusted by nobody but itself, so nobody vouches for it\n")
    assert re.fullmatch(r"mystfuse: [^\n]+: not trusted: [^\n]+\n", result.stderr)
    for options, status, vouched in ((["--no-trust-self"], NOT_TRUSTED, False), ([f"--pubkey={alice[0]}"], 0, True)):
        result = in_process("verify", "--json", *options, signed)
        assert (result.returncode, json.loads(result.stdout)["vouched_for"]) == (status, vouched)
    result = in_process("verify", "--no-trust-self", f"--pubkey={alice[0]}", signed)
    assert (result.returncode, result.stderr) == (0, "")
    assert "nobody" not in result.stdout
    # Damage does not make it trusted.
    damaged = tmp_path / "damaged"
    damaged.write_bytes(signed.read_bytes()[:5000] + b"?" + signed.read_bytes()[5001:])
    assert in_process("verify", damaged).returncode == INTEGRITY
    result = in_process("verify", "--no-trust-self", damaged)
    assert (result.returncode, result.stdout[:4]) == (NOT_TRUSTED, "bad:")


def test_no_trust_at_all_works_with_a_warning(signed: Path, small_image: Path, mountpoint: Path) -> None:
    for image in (signed, small_image):
        result = mystfuse("verify", image)
        assert result.returncode == 0
        assert result.stderr == f"mystfuse: warning: {image} is trusted by nobody but itself\n"
        try:
            result = mystfuse("mount", image, mountpoint)
            assert result.returncode == 0
            assert result.stderr == f"mystfuse: warning: {image} is trusted by nobody but itself\n"
            assert (mountpoint / "hello.txt").read_text() == "hello\n"
        finally:
            clear_mount(mountpoint)


def test_insecure_mounts_a_bare_file_system(small_tree: Path, mountpoint: Path, tmp_path: Path) -> None:
    image = tmp_path / "bare"
    run("mke2fs", "-q", "-F", "-t", "ext2", "-d", small_tree, image, "4096k")
    for options, status in (((), FORMAT), (("--roothash=" + "0" * 64,), FORMAT)):
        assert_refused(
            image, mountpoint, *options, status=status, because="an EXT2 file system (4 MiB) without a hash tree"
        )
    with mounted(image, mountpoint, "--insecure") as shown:
        assert (shown / "sub/deep/data.bin").read_bytes() == (small_tree / "sub/deep/data.bin").read_bytes()
        status = mystfuse("status", shown).stdout
        assert "root hash: none" in status
        assert "insecure" in status
    result = mystfuse("mount", "--insecure", image, mountpoint)
    clear_mount(mountpoint)
    warnings = result.stderr.splitlines()
    assert warnings
    assert all(line.startswith("mystfuse: warning: ") for line in warnings)
    assert "without a hash tree and signature block (fssig); loaded without any check because of" in warnings[0]
    # There is nothing for verify to check.
    result = mystfuse("verify", "--insecure", image)
    assert result.returncode == FORMAT
    assert "Traceback" not in result.stderr


def test_insecure_loads_untrusted_images_but_still_verifies_them(
    signed: Path, mountpoint: Path, bob: tuple[Path, Path], tmp_path: Path
) -> None:
    options = ("--insecure", f"--pubkey={bob[0]}")
    assert mystfuse("verify", *options, signed).returncode == 0
    with mounted(signed, mountpoint, *options) as shown:
        assert (shown / "hello.txt").read_text() == "hello\n"
    damaged = tmp_path / "damaged"
    shutil.copyfile(signed, damaged)
    with damaged.open("r+b") as file:
        file.seek(1024 + 56)
        file.write(b"\0\0")
    assert mystfuse("verify", *options, damaged).returncode == INTEGRITY
    assert mystfuse("mount", *options, damaged, mountpoint).returncode == INTEGRITY
    clear_mount(mountpoint)


def test_a_trusted_image_is_not_called_insecure(signed: Path, mountpoint: Path, alice: tuple[Path, Path]) -> None:
    assert_accepted(signed, mountpoint, "--insecure", f"--pubkey={alice[0]}", because="signed by trusted key")


def test_mount_options_mean_the_same(
    signed: Path, mountpoint: Path, alice: tuple[Path, Path], bob: tuple[Path, Path]
) -> None:
    for options, status in (
        (f"ro,pubkey={alice[0]}", 0),
        (f"pubkey={bob[0]},roothash={root_hash(signed)}", 0),
        (f"pubkey={bob[0]},pubkey={alice[0]}", 0),
        (f"pubkey={bob[0]},insecure", 0),
        (f"pubkey={bob[0]}", NOT_TRUSTED),
        ("roothash=" + "0" * 64, NOT_TRUSTED),
        ("roothash=x", 2),
        ("pubkey", 2),
    ):
        try:
            assert mystfuse("mount", "-o", options, signed, mountpoint).returncode == status, options
        finally:
            clear_mount(mountpoint)


def test_each_kind_of_failure_has_its_status(
    signed: Path, mountpoint: Path, tmp_path: Path, alice: tuple[Path, Path]
) -> None:
    """1 failed, 2 usage, 3 not trusted, 4 integrity, 6 format, 7 mount, each in one line."""
    trust = f"--pubkey={alice[0]}"
    garbage = tmp_path / "garbage"
    garbage.write_bytes(os.urandom(20_000))
    assert_refused(tmp_path / "missing", mountpoint, trust, status=1, because="No such file")
    assert_refused(signed, mountpoint, "--hash-offset=5", status=2)
    assert_refused(signed, mountpoint, "--no-such-option", status=2)
    assert_refused(signed, mountpoint, "--roothash=" + "0" * 64, status=NOT_TRUSTED)
    assert_refused(garbage, mountpoint, trust, status=FORMAT, because="random bytes")
    assert_refused(tmp_path, mountpoint, trust, status=FORMAT, because="a directory")
    damaged = tmp_path / "damaged"
    shutil.copyfile(signed, damaged)
    with damaged.open("r+b") as file:
        file.seek(1024 + 100)
        file.write(b"changed")
    for command in (("mount", trust, damaged, mountpoint), ("verify", trust, damaged)):
        result = mystfuse(*command)
        clear_mount(mountpoint)
        assert result.returncode == INTEGRITY
        assert re.fullmatch(r"mystfuse: [^\n]+\n", result.stderr), result.stderr
    for place in (tmp_path / "nowhere", garbage):
        result = mystfuse("mount", trust, signed, place)
        assert result.returncode == MOUNT
        assert re.fullmatch(r"mystfuse: [^\n]+\n", result.stderr), result.stderr


def test_a_trusted_tree_over_something_else_is_a_format_error(mountpoint: Path, tmp_path: Path) -> None:
    """Authentic bytes need not be a file system."""
    image, size = tmp_path / "image", 64 * 4096
    image.write_bytes(os.urandom(size))
    said = run("veritysetup", "format", "--data-blocks=64", f"--hash-offset={size}", image, image).stdout
    value = re.search(r"Root hash:\s+([0-9a-f]+)", said)[1]  # type: ignore[index]
    options = (f"--hash-offset={size}", f"--roothash={value}")
    assert_refused(image, mountpoint, *options, status=FORMAT, because=f"{image}: not an EXT2 file system")

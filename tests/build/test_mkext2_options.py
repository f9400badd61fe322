"""Options and output of ``mystfuse mkext2``."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.cli_in_process import in_process
from tests.support.commands import SBIN, mystfuse, run
from tests.support.made_images import assert_clean, assert_refused, assert_tree_accepted, contents, loop_mounted, make


def test_uuid_and_salt_are_taken(small_tree: Path, tmp_path: Path) -> None:
    image, uuid = tmp_path / "image", "01234567-89ab-4cde-8f01-23456789abcd"
    for salt, shown in (("00FF" * 8, "00ff" * 8), ("", "-"), ("-", "-"), ("ab", "ab"), ("7c" * 256, "7c" * 256)):
        fields = make(small_tree, image, f"--uuid={uuid}", f"--salt={salt}", "--force")
        assert f"Filesystem UUID:          {uuid}" in run("dumpe2fs", "-h", image).stdout
        dump = run("veritysetup", "dump", image, f"--hash-offset={fields['hash_offset']}").stdout
        assert re.search(r"Salt:\s+(\S+)", dump)[1] == shown  # type: ignore[index]
        assert_tree_accepted(image, fields)


@pytest.mark.parametrize(
    "option",
    ["--salt=abc", "--salt=xy", "--salt=" + "00" * 257, "--salt=0 0", "--uuid=1234", "--uuid=", "--uuid=clear",
     "--sign=onlyone", "--sign=:", "--free=-1", "--nonsense"],
)  # fmt: skip
def test_impossible_options_are_refused(option: str, small_tree: Path, tmp_path: Path) -> None:
    assert_refused(in_process("mkext2", option, small_tree, tmp_path / "image"), 2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--salt=abc", "--uuid=1234"])
def test_no_key_is_read_for_options_that_cannot_be(option: str, small_tree: Path, tmp_path: Path) -> None:
    result = in_process("mkext2", option, f"--encrypt={tmp_path}/missing", small_tree, tmp_path / "image")
    assert_refused(result, 2)
    assert option.partition("=")[0] in result.stderr


def test_keys_that_cannot_sign_are_refused(
    small_tree: Path, tmp_path: Path, make_keys: Callable[..., tuple[Path, Path]]
) -> None:
    public, private = make_keys("mkext2-right", 2048, 65537)
    other_public, _ = make_keys("mkext2-other", 2048, 65537)
    small_public, small_private = make_keys("mkext2-small", 1024, 65537)
    keys, target = tmp_path / "keys", tmp_path / "target"
    keys.mkdir()
    target.mkdir()
    ec_private, ec_public, locked, garbage = (keys / name for name in ("ec", "ec.pub", "locked", "garbage"))
    run("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", ec_private)
    run("openssl", "ec", "-in", ec_private, "-pubout", "-out", ec_public)
    run("openssl", "rsa", "-aes128", "-passout", "pass:secret", "-in", private, "-out", locked)
    garbage.write_bytes(os.urandom(2000))
    garbage.chmod(0o600)
    for pair, word in (
        (f"{private}:{public}", "public key"),
        (f"{other_public}:{private}", "not the public key of"),
        (f"{public}:{keys}/missing", "No such file"),
        (f"{keys}/missing:{private}", "No such file"),
        (f"{keys}:{private}", "directory"),
        (f"{ec_public}:{ec_private}", "not an RSA key"),
        (f"{public}:{ec_private}", "not an RSA key"),
        (f"{public}:{garbage}", "not a PEM"),
        (f"{garbage}:{private}", "not a PEM"),
        (f"{public}:/dev/zero", "a character device, not a PEM private key"),
        (f"{small_public}:{small_private}", "1024 bits"),
    ):
        assert_refused(in_process("mkext2", f"--sign={pair}", small_tree, target / "image"), 2, word)
        assert not list(target.iterdir()), pair
    for options, word in (
        ((), "encrypted"),
        (("--sign-passphrase-command=echo wrong",), "does not decrypt"),
    ):
        result = in_process("mkext2", f"--sign={public}:{locked}", *options, small_tree, target / "image")
        assert_refused(result, 5, word)
        assert not list(target.iterdir())


def test_trace_shows_the_command(small_tree: Path, tmp_path: Path) -> None:
    result = mystfuse("mkext2", "--trace", small_tree, tmp_path / "image")
    assert result.returncode == 0
    assert re.match(r"\+ \S*mke2fs .*-t ext2.* -d " + re.escape(str(small_tree)), result.stderr)


def test_odd_and_relative_paths(small_tree: Path, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"odd \xff 'name\"\n")
    odd.mkdir()
    run("cp", "-a", small_tree, odd / "-d")
    for directory, image in (("./-d", "-image"), ("-d/", "second image")):
        assert mystfuse("mkext2", "--", directory, image, cwd=odd).returncode == 0
        assert_clean(odd / image)
    assert_refused(mystfuse("mkext2", "--force", "./-d", "..", cwd=odd), 1, "is a directory")
    assert_refused(mystfuse("mkext2", "./-d", "-image", cwd=odd), 2)
    assert_refused(mystfuse("mkext2", "./-d", odd / "-image"), 2, "no such directory")
    os.symlink(odd / "-d", tmp_path / "to-directory")
    with loop_mounted(odd / "second image", tmp_path / "kernel") as kernel:
        assert contents(kernel) == contents(small_tree)
    make(tmp_path / "to-directory", tmp_path / "image")
    with loop_mounted(tmp_path / "image", tmp_path / "kernel") as kernel:
        assert contents(kernel) == contents(small_tree)


def test_progress_is_shown_on_a_terminal_only(small_tree: Path, tmp_path: Path) -> None:
    piped = mystfuse("mkext2", small_tree, tmp_path / "piped")
    assert (piped.returncode, piped.stderr) == (0, "")
    master, slave = pty.openpty()
    shown = b""
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "mystfuse", "mkext2", "--size=4G", small_tree, tmp_path / "shown"],
            env={**os.environ, "PATH": SBIN, "TERM": "xterm"},
            stderr=slave,
        )
        os.close(slave)
        try:
            while select.select([master], [], [], 30)[0]:
                try:
                    part = os.read(master, 65536)
                except OSError:
                    break
                if not part:
                    break
                shown += part
        finally:
            if process.wait(30):
                pytest.fail(shown.decode(errors="replace"))
    finally:
        os.close(master)
    assert b"copying files" in shown
    assert b"hashing" in shown

"""Mounting encrypted images: keys and passphrases from every source, wrong ones, damage and hostile headers."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mystfuse.mounting.mount_table import find_mount
from tests.support.commands import GROUP, USER, mystfuse, run
from tests.support.encrypted_images import (
    FORMAT,
    INTEGRITY,
    KEY,
    LUKS1_PAYLOAD,
    NOT_TRUSTED,
    PHRASE,
    USAGE,
    hash_offset_of,
    on_terminal,
    refused,
    write_secret,
)
from tests.support.mounts import clear_mount, mounted, status_of


@pytest.mark.parametrize(
    "options",
    [
        ("--key-file", "key"),
        ("--key-file", "hex"),
        ("--passphrase-file", "passphrase"),
        ("-o", "keyfile=key"),
        ("-o", "ro,passphrase_file=passphrase"),
    ],
    ids=" ".join,
)
def test_key_and_passphrase_open_the_image(
    image: Path, keys: Path, mountpoint: Path, small_tree: Path, options: tuple[str, ...]
) -> None:
    with mounted(image, mountpoint, *options, cwd=keys):
        run("diff", "-r", "--no-dereference", "--exclude=lost+found", small_tree, mountpoint)
        status = status_of(mountpoint)
    assert (status["luks_version"], status["cipher"]) == (1, "aes-xts-plain64")
    assert isinstance(status["bytes_decrypted"], int) and status["bytes_decrypted"] > 300_000


@pytest.mark.parametrize("option, name", [("--key-file", "key"), ("--passphrase-file", "passphrase")])
def test_keys_come_from_stdin_and_from_descriptors(
    image: Path, keys: Path, mountpoint: Path, option: str, name: str
) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "mystfuse", "mount", option, "-", image, mountpoint],
        input=(keys / name).read_bytes(), capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    clear_mount(mountpoint)
    command = f'"$0" -m mystfuse mount {option} /dev/fd/7 "$1" "$2" 7< <(cat "$3")'
    run("bash", "-c", command, sys.executable, image, mountpoint, keys / name)
    assert (mountpoint / "hello.txt").read_text() == "hello\n"


@pytest.mark.parametrize("credential, name", [("mystfuse.key", "hex"), ("mystfuse.passphrase", "passphrase")])
def test_credentials_of_systemd_open_the_image(
    image: Path, keys: Path, mountpoint: Path, tmp_path: Path, credential: str, name: str
) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    shutil.copy(keys / name, credentials / credential)
    with mounted(image, mountpoint, env={"CREDENTIALS_DIRECTORY": str(credentials)}):
        assert (mountpoint / "hello.txt").read_text() == "hello\n"
    plain = credentials / "plain.img"
    assert mystfuse("mkext2", credentials, plain).returncode == 0
    line = refused(KEY, "mount", plain, mountpoint, env={"CREDENTIALS_DIRECTORY": str(credentials)})
    assert str(credentials / credential) in line


def test_a_key_that_others_can_read_is_warned_of(image: Path, keys: Path, mountpoint: Path, tmp_path: Path) -> None:
    for mode, warns in (0o644, True), (0o640, True), (0o600, False), (0o400, False):
        key = tmp_path / f"key-{mode:o}"
        shutil.copy(keys / "key", key)
        key.chmod(mode)
        result = mystfuse("mount", "--key-file", key, image, mountpoint)
        assert result.returncode == 0
        assert (f"{key} can be read by others (mode {mode:04o})" in result.stderr) == warns
        clear_mount(mountpoint)


def test_luks2_is_made_and_opened(keys: Path, small_tree: Path, tmp_path: Path, mountpoint: Path) -> None:
    target = tmp_path / "luks2.img"
    passphrase = ["--passphrase-file", keys / "passphrase"]
    assert mystfuse("mkext2", "--luks2", "--encrypt", keys / "key", *passphrase, small_tree, target).returncode == 0
    for options in ("--key-file", str(keys / "key")), ("--passphrase-file", str(keys / "passphrase")):
        with mounted(target, mountpoint, *options):
            run("diff", "-r", "--no-dereference", "--exclude=lost+found", small_tree, mountpoint)
            assert status_of(mountpoint)["luks_version"] == 2


def test_an_encrypted_image_without_a_key_says_so(image: Path, mountpoint: Path) -> None:
    line = refused(KEY, "mount", image, mountpoint, stdin=subprocess.DEVNULL)
    assert "encrypted (LUKS1, aes-xts-plain64)" in line and "--key-file" in line
    assert find_mount(str(mountpoint)) is None


def test_wrong_keys_are_reported_as_wrong(image: Path, keys: Path, mountpoint: Path, tmp_path: Path) -> None:
    key = (keys / "key").read_bytes()
    wrong = {
        "wrong key": keys / "wrong",
        "63 bytes": write_secret(tmp_path / "short", key[:63]),
        "65 bytes": write_secret(tmp_path / "long", key + b"x"),
        "127 bytes": write_secret(tmp_path / "odd-hex", key.hex()[:127]),
    }
    for what, path in wrong.items():
        assert what in refused(KEY, "mount", "--key-file", path, image, mountpoint)
    for text in ("open sesame, kase", PHRASE + "\n\n", PHRASE[:-1]):
        path = write_secret(tmp_path / "passphrase", text)
        assert "wrong passphrase" in refused(KEY, "mount", "--passphrase-file", path, image, mountpoint)
    assert find_mount(str(mountpoint)) is None


def test_impossible_key_files(image: Path, keys: Path, mountpoint: Path, tmp_path: Path) -> None:
    for path in tmp_path / "absent", tmp_path, write_secret(tmp_path / "empty", b""), "/dev/zero":
        for option in "--key-file", "--passphrase-file":
            assert str(path) in refused(USAGE, "mount", option, path, image, mountpoint)
    both = ["--key-file", keys / "key", "--passphrase-file", keys / "passphrase"]
    assert "exclude each other" in refused(USAGE, "mount", *both, image, mountpoint)


def test_a_key_for_an_image_that_is_not_encrypted(small_image: Path, keys: Path, mountpoint: Path) -> None:
    line = refused(KEY, "mount", "--key-file", keys / "key", small_image, mountpoint)
    assert "not encrypted" in line


def test_no_active_slot_is_reported(keys: Path, small_tree: Path, tmp_path: Path, mountpoint: Path) -> None:
    target = tmp_path / "no-slot.img"
    assert mystfuse("mkext2", "--encrypt", keys / "key", small_tree, target).returncode == 0
    line = refused(KEY, "mount", "--passphrase-file", keys / "passphrase", target, mountpoint)
    assert "no key slot" in line and "--key-file" in line


def test_trust_comes_before_the_key(image: Path, keys: Path, mountpoint: Path) -> None:
    """An untrusted image's header is not parsed, and no key is tried on it."""
    refused(NOT_TRUSTED, "mount", "--roothash", "ab" * 32, "--key-file", keys / "wrong", image, mountpoint)


def test_damage_is_reported_as_damage_not_as_a_wrong_key(
    image: Path, keys: Path, mountpoint: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.img"
    shutil.copyfile(image, damaged)
    with damaged.open("r+b") as file:
        file.seek(112)  # mk_digest of LUKS1
        byte = file.read(1)[0]
        file.seek(112)
        file.write(bytes([byte ^ 1]))
    assert "verity" in refused(INTEGRITY, "mount", "--key-file", keys / "key", damaged, mountpoint)
    assert "verity" in refused(INTEGRITY, "mount", "--passphrase-file", keys / "passphrase", damaged, mountpoint)


def test_damaged_ciphertext_is_an_error_and_never_data(
    image: Path, keys: Path, mountpoint: Path, small_tree: Path, tmp_path: Path
) -> None:
    plain, damaged = tmp_path / "plain", tmp_path / "damaged.img"
    shutil.copyfile(image, damaged)
    with mounted(image, mountpoint, "--key-file", str(keys / "key")):
        shutil.copyfile(mountpoint / ".mystfuse/image", plain)
    position = plain.read_bytes().index((small_tree / "sub/deep/data.bin").read_bytes()[:4096])
    with damaged.open("r+b") as file:
        file.seek(LUKS1_PAYLOAD + position)
        byte = file.read(1)[0]
        file.seek(LUKS1_PAYLOAD + position)
        file.write(bytes([byte ^ 0x80]))
    with mounted(damaged, mountpoint, "--key-file", str(keys / "key")):
        with pytest.raises(OSError) as caught:
            (mountpoint / "sub/deep/data.bin").read_bytes()
        assert caught.value.errno == errno.EIO
        assert (mountpoint / "hello.txt").read_text() == "hello\n"
        assert status_of(mountpoint)["blocks_failed"]


def luks1(image: Path, target: Path, *fields: tuple[int, bytes]) -> Path:
    """The LUKS part of an image by itself, with other bytes at these offsets."""
    data = bytearray(image.read_bytes())
    del data[hash_offset_of(data) :]
    for offset, value in fields:
        data[offset : offset + len(value)] = value
    target.write_bytes(data)
    return target


SLOT_0 = 208
BIG = b"\xff" * 4
HOSTILE = {
    "digest iterations": (164, BIG),
    "no digest iterations": (164, bytes(4)),
    "slot iterations": (SLOT_0 + 4, BIG),
    "slot offset": (SLOT_0 + 40, BIG),
    "no stripes": (SLOT_0 + 44, bytes(4)),
    "stripes": (SLOT_0 + 44, BIG),
    "payload offset": (104, BIG),
    "payload in the header": (104, bytes(4)),
    "key size": (108, BIG),
    "no key": (108, bytes(4)),
    "cipher": (8, b"serpent\0"),
    "hash": (72, b"whirlpool\0"),
    "version": (6, b"\0\7"),
}


@contextmanager
def computing_less_than(seconds: float) -> Iterator[None]:
    """The processor time of the processes that end in the block; other processes may compute at the same time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    yield
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < seconds


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("option, key", [("--key-file", "key"), ("--passphrase-file", "passphrase")])
def test_hostile_headers_are_refused_at_once(
    image: Path, keys: Path, mountpoint: Path, tmp_path: Path, name: str, option: str, key: str
) -> None:
    hostile = luks1(image, tmp_path / "hostile", HOSTILE[name])
    with computing_less_than(2):
        refused(FORMAT, "mount", "--insecure", option, keys / key, hostile, mountpoint)


def test_a_deep_json_area_is_refused_at_once(keys: Path, mountpoint: Path, tmp_path: Path) -> None:
    size = 4 << 20
    area = (b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}").ljust(size - 4096, b" ")
    binary = struct.pack(">6sHQQ48s32s64s40s48sQ", b"LUKS\xba\xbe", 2, size, 1, b"", b"sha256", b"", b"", b"", 0)
    header = bytearray(binary.ljust(4096, b"\0") + area)
    header[0x1C0:0x1E0] = hashlib.sha256(header).digest()
    target = tmp_path / "deep"
    target.write_bytes(header + bytes(16 << 20))
    with computing_less_than(2):
        refused(FORMAT, "mount", "--insecure", "--key-file", keys / "key", target, mountpoint)


def test_an_honest_but_slow_derivation_can_be_interrupted(
    image: Path, keys: Path, mountpoint: Path, tmp_path: Path
) -> None:
    slow = luks1(image, tmp_path / "slow", (SLOT_0 + 4, struct.pack(">I", 45_000_000)))
    for number in signal.SIGINT, signal.SIGTERM:
        process = subprocess.Popen(
            [sys.executable, "-m", "mystfuse", "mount", "--insecure", "--passphrase-file", keys / "passphrase",
             slow, mountpoint], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            time.sleep(3)
            assert process.poll() is None
            process.send_signal(number)
            _, stderr = process.communicate(timeout=5)
        finally:
            process.kill()
            process.wait()
        assert process.returncode == 1
        assert stderr.decode().splitlines()[-1] == "mystfuse: interrupted"
        # The deriver dies with the daemon, but takes a moment.
        deadline = time.monotonic() + 5
        while run("pgrep", "-f", str(slow), check=False).stdout and time.monotonic() < deadline:
            time.sleep(0.05)
        assert run("pgrep", "-f", str(slow), check=False).stdout == ""
        assert find_mount(str(mountpoint)) is None


def test_a_terminal_is_asked_for_the_passphrase(image: Path, mountpoint: Path) -> None:
    status, output = on_terminal(["mount", image, mountpoint], [("Passphrase for ", PHRASE)])
    assert status == 0, output
    assert PHRASE not in output
    assert "key slot 0: PBKDF2 sha256, 2000000 iterations" in output
    assert (mountpoint / "hello.txt").read_text() == "hello\n"
    clear_mount(mountpoint)
    status, output = on_terminal(["mount", image, mountpoint], [("Passphrase for ", "something else")])
    assert status == KEY and "wrong passphrase" in output
    asked = ["verify", "--passphrase-file", "-", image]
    status, output = on_terminal(asked, [("Passphrase for ", PHRASE)])
    assert status == 0 and PHRASE not in output and "the key opens it" in output
    status, output = on_terminal(["mount", "--key-file", "-", image, mountpoint], [])
    assert status == USAGE and "terminal" in output
    status, output = on_terminal(asked, [("Passphrase for ", "\udcff\udcfe not UTF-8")])
    assert status == USAGE and "encoding" in output and "Traceback" not in output


def test_an_ordinary_user_makes_opens_and_commits(
    ordinary_user: list[str], keys: Path, open_tmp_path: Path, small_tree: Path
) -> None:
    directory = open_tmp_path / "user"
    directory.mkdir()
    for path in shutil.copy(keys / "key", directory), shutil.copy(keys / "passphrase", directory), directory:
        os.chown(path, USER, GROUP)
    source = open_tmp_path / "source"
    run("cp", "-r", small_tree, source)
    run("chmod", "-R", "a+rX", source)
    as_user = ["setpriv", f"--reuid={USER}", f"--regid={GROUP}", "--clear-groups"]
    temporary = directory / "temporary"
    run(*as_user, "mkdir", temporary)
    ours = [*ordinary_user[:-3], f"TMPDIR={temporary}", *ordinary_user[-3:]]
    image, mountpoint, again = directory / "x.img", directory / "mount", directory / "again.img"
    try:
        run(*as_user, "mkdir", mountpoint)
        options = ["--encrypt", directory / "key", "--passphrase-file", directory / "passphrase"]
        run(*ours, "mkext2", *options, source, image)
        run(*ours, "mount", "--passphrase-file", directory / "passphrase", image, mountpoint)
        run(*as_user, "diff", "-r", "--no-dereference", "--exclude=lost+found", source, mountpoint)
        # The daemon is not dumpable, so that even its own user cannot look into it.
        pid = json.loads(run(*ours, "status", "--json", mountpoint).stdout)["pid"]
        for name in "environ", "mem":
            assert run(*as_user, "head", "-c1", f"/proc/{pid}/{name}", check=False).returncode
        run(*ours, "commit", "--encrypt", directory / "key", mountpoint, again)
        run(*ours, "umount", mountpoint)
        run(*ours, "mount", "--key-file", directory / "key", again, mountpoint)
        run(*ours, "umount", mountpoint)
    finally:
        clear_mount(mountpoint)
    assert list(temporary.iterdir()) == []

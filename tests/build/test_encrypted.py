"""Encrypted images as a user meets them: making, opening, refusing, committing; and that neither key nor plaintext gets
out. Compatibility with other tools is in test_luks_peers."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import pty
import re
import resource
import secrets
import select
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from mystfuse.mounting.mount_table import find_mount
from tests.support.commands import GROUP, USER, mystfuse, run, wait_until
from tests.support.mounts import clear_mount, daemon_pid, mounted, status_of
from tests.support.processes import keeper_of

USAGE, NOT_TRUSTED, INTEGRITY, KEY, FORMAT = 2, 3, 4, 5, 6
PASSPHRASE = "open sesame, käse"
LUKS1_PAYLOAD = 4096 * 512
QUICK = 10
"""Seconds that a refusal may take on a busy machine: one derivation of an honest key slot takes about two."""


def write_secret(path: Path, data: bytes | str) -> Path:
    path.touch(mode=0o600)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ``key`` (64 bytes), ``hex`` (the same in hex), ``passphrase``, and ``wrong`` of 64 bytes."""
    directory = tmp_path_factory.mktemp("keys")
    key = write_secret(directory / "key", secrets.token_bytes(64))
    write_secret(directory / "hex", key.read_bytes().hex() + "\n")
    write_secret(directory / "passphrase", PASSPHRASE + "\n")
    write_secret(directory / "wrong", secrets.token_bytes(64))
    return directory


@pytest.fixture(scope="module")
def image(keys: Path, small_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encrypted image (LUKS1) of ``small_tree``, with a passphrase. Never write to it."""
    path = tmp_path_factory.mktemp("encrypted") / "luks1.img"
    result = mystfuse("mkext2", "--encrypt", keys / "key", "--passphrase-file", keys / "passphrase", small_tree, path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    return path


def refused(status: int, *arguments: str | Path, **kwargs: object) -> str:
    """Run a command that must fail with this status and one line of error; returns that line."""
    started = time.monotonic()
    result = mystfuse(*arguments, **kwargs)
    assert time.monotonic() - started < QUICK
    assert result.returncode == status, result.stderr
    lines = [line for line in result.stderr.splitlines() if "warning:" not in line]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("mystfuse: ")
    return lines[0]


# Opening


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


# Refusing


def test_an_encrypted_image_without_a_key_says_so(image: Path, mountpoint: Path) -> None:
    line = refused(KEY, "mount", image, mountpoint, stdin=subprocess.DEVNULL)
    assert "encrypted (LUKS1, aes-xts-plain64)" in line and "--key-file" in line
    assert find_mount(str(mountpoint)) is None


def test_wrong_keys_are_told_as_wrong(image: Path, keys: Path, mountpoint: Path, tmp_path: Path) -> None:
    key = (keys / "key").read_bytes()
    wrong = {
        "wrong key": keys / "wrong",
        "63 bytes": write_secret(tmp_path / "short", key[:63]),
        "65 bytes": write_secret(tmp_path / "long", key + b"x"),
        "127 bytes": write_secret(tmp_path / "odd-hex", key.hex()[:127]),
    }
    for what, path in wrong.items():
        assert what in refused(KEY, "mount", "--key-file", path, image, mountpoint)
    for text in ("open sesame, kase", PASSPHRASE + "\n\n", PASSPHRASE[:-1]):
        path = write_secret(tmp_path / "passphrase", text)
        assert "wrong passphrase" in refused(KEY, "mount", "--passphrase-file", path, image, mountpoint)
    assert find_mount(str(mountpoint)) is None


def test_key_files_that_cannot_be_one(image: Path, keys: Path, mountpoint: Path, tmp_path: Path) -> None:
    for path in tmp_path / "absent", tmp_path, write_secret(tmp_path / "empty", b""), "/dev/zero":
        for option in "--key-file", "--passphrase-file":
            assert str(path) in refused(USAGE, "mount", option, path, image, mountpoint)
    both = ["--key-file", keys / "key", "--passphrase-file", keys / "passphrase"]
    assert "exclude each other" in refused(USAGE, "mount", *both, image, mountpoint)


def test_a_key_for_an_image_that_is_not_encrypted(small_image: Path, keys: Path, mountpoint: Path) -> None:
    line = refused(KEY, "mount", "--key-file", keys / "key", small_image, mountpoint)
    assert "not encrypted" in line


def test_no_active_slot_is_told(keys: Path, small_tree: Path, tmp_path: Path, mountpoint: Path) -> None:
    target = tmp_path / "no-slot.img"
    assert mystfuse("mkext2", "--encrypt", keys / "key", small_tree, target).returncode == 0
    line = refused(KEY, "mount", "--passphrase-file", keys / "passphrase", target, mountpoint)
    assert "no key slot" in line and "--key-file" in line


def test_trust_comes_before_the_key(image: Path, keys: Path, mountpoint: Path) -> None:
    """Nobody's header is parsed, and no key tried on it, before somebody has vouched for it."""
    refused(NOT_TRUSTED, "mount", "--roothash", "ab" * 32, "--key-file", keys / "wrong", image, mountpoint)


def test_damage_is_told_as_damage_not_as_a_wrong_key(image: Path, keys: Path, mountpoint: Path, tmp_path: Path) -> None:
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


def hash_offset_of(image: bytes | bytearray) -> int:
    (hash_offset,) = struct.unpack_from("<Q", image, len(image) - 4096 + 16)
    return int(hash_offset)


def luks1(image: Path, target: Path, *fields: tuple[int, bytes]) -> Path:
    """The LUKS part of an image, bare, with other bytes at these offsets."""
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
    """The processor time of the processes that end in the block: others may be computing beside them."""
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
        # What derives keys dies with the daemon, which takes a moment.
        deadline = time.monotonic() + 5
        while run("pgrep", "-f", str(slow), check=False).stdout and time.monotonic() < deadline:
            time.sleep(0.05)
        assert run("pgrep", "-f", str(slow), check=False).stdout == ""
        assert find_mount(str(mountpoint)) is None


# Making


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
    result = mystfuse("mkext2", "--encrypt", keys / "key", f"--passphrase={PASSPHRASE}", small_tree, target)
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
    """Nobody sees what of the file system is in use."""
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
    source, target, temporary = tmp_path / "source", tmp_path / "target", tmp_path / "temporary"
    for directory in source, target, temporary:
        directory.mkdir()
    (source / "big").write_bytes(secrets.token_bytes(48 << 20))
    process = subprocess.Popen(
        [sys.executable, "-m", "mystfuse", "mkext2", "--encrypt", keys / "key", source, target / "x.img"],
        env={**os.environ, "TMPDIR": str(temporary)}, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 20
        while str(temporary) not in Path("/proc/self/mountinfo").read_text():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        time.sleep(0.3)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    if number is not signal.SIGKILL:
        assert (process.returncode, stderr) == (1, b"mystfuse: interrupted\n")
    else:
        # Then the child cleans up.
        wait_until(lambda: not list(temporary.iterdir()))
    assert str(temporary) not in Path("/proc/self/mountinfo").read_text()
    assert list(target.iterdir()) == list(temporary.iterdir()) == []
    assert run("pgrep", "-f", str(source), check=False).stdout == ""


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
        # What was there before the child is an empty directory at most.
        assert [path for path in temporary.rglob("*") if path.stat().st_size and path.is_file()] == []


def test_a_hangup_is_ignored_when_it_is_to_be(keys: Path, tmp_path: Path) -> None:
    """nohup: what makes the image must not die with the terminal."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "big").write_bytes(secrets.token_bytes(32 << 20))
    process = subprocess.Popen(
        ["nohup", sys.executable, "-m", "mystfuse", "mkext2", "--encrypt", keys / "key", source, tmp_path / "x.img"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until(lambda: "mkext2" in Path("/proc/self/mountinfo").read_text())
        process.send_signal(signal.SIGHUP)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


# Committing


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


# The terminal


def on_terminal(command: list[str | Path], dialogue: list[tuple[str, str]], timeout: float = 60) -> tuple[int, str]:
    """Run ``mystfuse`` on a terminal of its own; when a prompt appears, type the answer. Returns status and output."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-m", "mystfuse", *map(str, command)])
    output, deadline = "", time.monotonic() + timeout
    try:
        while time.monotonic() < deadline:
            if not select.select([terminal], [], [], 0.2)[0]:
                continue
            try:
                data = os.read(terminal, 4096)
            except OSError:
                break
            if not data:
                break
            output += data.decode(errors="replace")
            if dialogue and dialogue[0][0] in output:
                # The prompt is there before the echo is off.
                time.sleep(0.3)
                os.write(terminal, os.fsencode(dialogue.pop(0)[1]) + b"\n")
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(terminal)
    return status, output


def test_a_terminal_is_asked_for_the_passphrase(image: Path, mountpoint: Path) -> None:
    status, output = on_terminal(["mount", image, mountpoint], [("Passphrase for ", PASSPHRASE)])
    assert status == 0, output
    assert PASSPHRASE not in output
    assert "key slot 0: PBKDF2 sha256, 2000000 iterations" in output
    assert (mountpoint / "hello.txt").read_text() == "hello\n"
    clear_mount(mountpoint)
    status, output = on_terminal(["mount", image, mountpoint], [("Passphrase for ", "something else")])
    assert status == KEY and "wrong passphrase" in output
    asked = ["verify", "--passphrase-file", "-", image]
    status, output = on_terminal(asked, [("Passphrase for ", PASSPHRASE)])
    assert status == 0 and PASSPHRASE not in output and "the key opens it" in output
    status, output = on_terminal(["mount", "--key-file", "-", image, mountpoint], [])
    assert status == USAGE and "terminal" in output
    status, output = on_terminal(asked, [("Passphrase for ", "\udcff\udcfe not UTF-8")])
    assert status == USAGE and "encoding" in output and "Traceback" not in output


def test_a_terminal_is_asked_twice_for_a_new_passphrase(
    keys: Path, small_tree: Path, tmp_path: Path, mountpoint: Path
) -> None:
    target = tmp_path / "x.img"
    command: list[str | Path] = ["mkext2", "--encrypt", keys / "key", "--passphrase-file", "-", small_tree, target]
    status, output = on_terminal(command, [("new image: ", PASSPHRASE), ("same again: ", "another passphrase")])
    assert status == USAGE and "differ" in output and not target.exists()
    status, output = on_terminal(command, [("new image: ", PASSPHRASE), ("same again: ", PASSPHRASE)])
    assert status == 0, output
    with mounted(target, mountpoint, "--passphrase-file", str(keys / "passphrase")):
        pass


# Hygiene


def forms_of(secret: bytes) -> list[bytes]:
    return [secret, secret.hex().encode(), secret.hex().upper().encode(), base64.b64encode(secret).rstrip(b"=")]


def test_no_plaintext_and_no_key_touches_a_disk(keys: Path, tmp_path: Path, mountpoint: Path) -> None:
    """Image directory and temporary directory are on a disk of their own, all of which is searched afterwards."""
    disk, directory, source = tmp_path / "disk", tmp_path / "on-disk", tmp_path / "source"
    directory.mkdir()
    source.mkdir()
    marker = secrets.token_bytes(32)
    (source / "secret").write_bytes(marker * 100_000)
    (source / f"name-{marker.hex()}").touch()
    run("mke2fs", "-q", "-F", "-t", "ext4", disk, "96M")
    run("mount", "-o", "loop", disk, directory)
    try:
        (directory / "tmp").mkdir()
        environment = {"TMPDIR": str(directory / "tmp")}
        image, log = directory / "x.img", directory / "log"
        options = ["--encrypt", keys / "key", "--passphrase-file", keys / "passphrase"]
        assert mystfuse("mkext2", *options, source, image, env=environment).returncode == 0
        for opening in ("--key-file", "key"), ("--passphrase-file", "passphrase"):
            with mounted(image, mountpoint, opening[0], str(keys / opening[1]), "--log-file", str(log),
                         env=environment):  # fmt: skip
                assert (mountpoint / "secret").read_bytes()[:32] == marker
                (mountpoint / "written").write_bytes(marker * 100_000)
                os.kill(daemon_pid(mountpoint), signal.SIGUSR1)
                run("sync")
        run("sync")
        assert log.stat().st_size
    finally:
        run("umount", directory)
    contents = disk.read_bytes()
    for what in (*forms_of(marker), *forms_of((keys / "key").read_bytes()), PASSPHRASE.encode()):
        assert what not in contents


def test_the_daemon_shows_no_key(image: Path, keys: Path, mountpoint: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    shown: list[bytes] = []
    for option, name in ("--key-file", "key"), ("--key-file", "hex"), ("--passphrase-file", "passphrase"):
        with mounted(image, mountpoint, option, str(keys / name), "--log-file", str(log)):
            pid = daemon_pid(mountpoint)
            os.kill(pid, signal.SIGUSR1)
            process = Path(f"/proc/{pid}")
            shown += [(process / name).read_bytes() for name in ("cmdline", "environ", "comm", "mountinfo")]
            shown.append((mountpoint / ".mystfuse/status.json").read_bytes())
            shown.append(mystfuse("status", mountpoint).stdout.encode())
    shown.append(log.read_bytes())
    everything = b"\0".join(shown)
    assert b"aes-xts-plain64" in everything
    for secret in (keys / "key").read_bytes(), PASSPHRASE.encode():
        for form in forms_of(secret):
            assert form not in everything


def memory_of(pid: int) -> bytes:
    """What a process has in memory, as root can see it."""
    parts: list[bytes] = []
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            match = re.match(r"(\w+)-(\w+) r", line)
            if match and "[v" not in line:
                start, end = int(match[1], 16), int(match[2], 16)
                memory.seek(start)
                with suppress(OSError):
                    parts.append(memory.read(end - start))
    return b"\0".join(parts)


def test_keys_are_wiped_once_the_image_is_open(image: Path, keys: Path, mountpoint: Path) -> None:
    """What is left are the two AES keys, apart, in OpenSSL's key schedules, which begin with them."""
    key = (keys / "key").read_bytes()
    with mounted(image, mountpoint, "--key-file", str(keys / "key")):
        memory = memory_of(daemon_pid(mountpoint))
        assert key[:32] in memory
        assert key not in memory
        assert key not in memory_of(keeper_of(daemon_pid(mountpoint)))
        locked = Path(f"/proc/{daemon_pid(mountpoint)}/status").read_text()
        assert int(re.findall(r"VmLck:\s+(\d+)", locked)[0]) > 0


def test_there_is_no_core_dump(image: Path, small_image: Path, keys: Path, mountpoint: Path, tmp_path: Path) -> None:
    confined: set[int | None] = set()

    def crash(directory: Path, *arguments: str | Path) -> set[str]:
        """Let a mount in the foreground die by SIGSEGV; returns what it leaves in its directory."""
        directory.mkdir()

        def allow_core() -> None:
            resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

        process = subprocess.Popen(
            [sys.executable, "-m", "mystfuse", "mount", "-f", *arguments, mountpoint], cwd=directory,
            preexec_fn=allow_core, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            assert process.stdout is not None and b"mounted" in process.stdout.readline()
            limits = Path(f"/proc/{process.pid}/limits").read_text()
            confined.add(json.loads(mystfuse("status", "--json", mountpoint).stdout)["landlock"])
            process.send_signal(signal.SIGSEGV)
            assert process.wait(30) == -signal.SIGSEGV
        finally:
            process.kill()
            process.communicate()
            clear_mount(mountpoint)
        left = {path.name for path in directory.iterdir()}
        return left | ({"no limit"} if re.search(r"Max core file size +unlimited", limits) else set())

    control = crash(tmp_path / "plain", small_image)
    assert "no limit" in control
    if not Path("/proc/sys/kernel/core_pattern").read_text().startswith(("|", "/")):
        # Under Landlock a daemon makes no file, and the kernel none in its name.
        assert len(control) == (1 if confined != {None} else 2), "this system dumps no cores at all"
    assert crash(tmp_path / "encrypted", "--key-file", keys / "key", image) == set()


def test_nothing_is_left_when_the_child_is_ended_while_it_cleans_up(
    keys: Path, small_tree: Path, tmp_path: Path
) -> None:
    """Found once: the child had removed the file that was mounted on, and nobody removed its directory."""
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


# An ordinary user


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
        # The daemon is not for its own user to look into.
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

"""Who is believed, as a user meets it: through ``mystfuse verify`` and ``mystfuse mount``, which always agree."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from removal import remove_tree

from mystfuse.errors import MountError
from mystfuse.mounting.mount_namespace import MountNamespace
from tests.support.cli_in_process import in_process
from tests.support.commands import mystfuse, run
from tests.support.images import DATA
from tests.support.mounts import OWN_MOUNTS, clear_mount, mounted

SIGNER, SIGNATURE, SIGNATURE_SIZE = 56, 88, 1112
"""Offsets in an fssig."""
NOT_TRUSTED, INTEGRITY, FORMAT, MOUNT = 3, 4, 6, 7

MakeKeys = Callable[..., tuple[Path, Path]]


@pytest.fixture(scope="module")
def alice(make_keys: MakeKeys) -> tuple[Path, Path]:
    return make_keys("alice", 2048, 65537)


@pytest.fixture(scope="module")
def bob(make_keys: MakeKeys) -> tuple[Path, Path]:
    return make_keys("bob", 2048, 65537)


@pytest.fixture(scope="module")
def signed(alice: tuple[Path, Path], small_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image signed by alice. Never write to it."""
    image = tmp_path_factory.mktemp("signed") / "signed.img"
    assert mystfuse("mkext2", f"--sign={alice[0]}:{alice[1]}", small_tree, image).returncode == 0
    return image


def root_hash(image: Path) -> str:
    return in_process("fssig", "--roothash", image).stdout.strip()


def with_fields(image: Path, target: Path, *fields: tuple[int, bytes]) -> Path:
    """A copy of an image with other bytes at these offsets of its fssig."""
    shutil.copyfile(image, target)
    with target.open("r+b") as file:
        for offset, value in fields:
            file.seek(offset - 4096, os.SEEK_END)
            file.write(value)
    return target


def field(image: Path, offset: int, length: int) -> bytes:
    return image.read_bytes()[-4096:][offset : offset + length]


def assert_accepted(image: Path, mountpoint: Path, *options: str | Path, because: str) -> None:
    """verify and mount both accept the image, for this reason, and the mount shows it; nothing is warned of."""
    result = in_process("verify", *options, image)
    assert (result.returncode, result.stderr) == (0, ""), result
    assert because in result.stdout
    try:
        result = mystfuse("mount", *options, image, mountpoint)
        assert (result.returncode, result.stderr) == (0, ""), result
        assert because in result.stdout
        assert (mountpoint / "hello.txt").read_text() == "hello\n"
        assert because in mystfuse("status", mountpoint).stdout
    finally:
        clear_mount(mountpoint)


def assert_refused(image: Path, mountpoint: Path, *options: str | Path, status: int, because: str = "") -> None:
    """verify and mount both refuse with this status and one line, and nothing is mounted."""
    for result in (in_process("verify", *options, image), mystfuse("mount", *options, image, mountpoint)):
        try:
            assert result.returncode == status, result
            assert result.stdout == ""
            assert re.fullmatch(r"mystfuse: [^\n]+\n", result.stderr), result.stderr
            assert because in result.stderr
            assert not os.path.ismount(mountpoint)
        finally:
            clear_mount(mountpoint)


# Keys


def test_signed_by_a_trusted_key(signed: Path, mountpoint: Path, alice: tuple[Path, Path]) -> None:
    assert_accepted(signed, mountpoint, f"--pubkey={alice[0]}", because="signed by trusted key")


def test_signed_by_another_key(signed: Path, mountpoint: Path, bob: tuple[Path, Path]) -> None:
    assert_refused(signed, mountpoint, f"--pubkey={bob[0]}", status=NOT_TRUSTED, because="not trusted")


def test_one_trusted_key_of_several_is_enough(
    signed: Path, mountpoint: Path, alice: tuple[Path, Path], bob: tuple[Path, Path]
) -> None:
    options = (f"--pubkey={bob[0]}", "--roothash=" + "0" * 64, f"--pubkey={alice[0]}", "--roothash=" + "f" * 64)
    assert_accepted(signed, mountpoint, *options, because=str(alice[0]))


def test_golden_images_are_trusted_by_the_golden_key(golden: dict[str, Path], mountpoint: Path) -> None:
    public = DATA / "public.pem"
    for name in ("signed-1024", "signed-4096"):
        assert mystfuse("verify", f"--pubkey={public}", golden[name]).returncode == 0
    assert_refused(golden["plain-4096"], mountpoint, f"--pubkey={public}", status=NOT_TRUSTED, because="unsigned")


@pytest.mark.parametrize("position", [0, 100, 255])
def test_a_tampered_signature(position: int, signed: Path, mountpoint: Path, alice: tuple[Path, Path]) -> None:
    image = mountpoint.parent / "tampered"
    (byte,) = field(signed, SIGNATURE + position, 1)
    with_fields(signed, image, (SIGNATURE + position, bytes([byte ^ 1])))
    assert_refused(image, mountpoint, f"--pubkey={alice[0]}", status=NOT_TRUSTED, because="signature")
    # The data are what they were: the root hash vouches for them.
    assert_accepted(image, mountpoint, f"--roothash={root_hash(image)}", because="root hash is a trusted one")


def test_signature_sizes_that_cannot_be(signed: Path, mountpoint: Path, alice: tuple[Path, Path]) -> None:
    image = mountpoint.parent / "sized"
    for size in (1025, 1 << 63):
        with_fields(signed, image, (SIGNATURE_SIZE, struct.pack("<Q", size)))
        assert_refused(image, mountpoint, f"--pubkey={alice[0]}", status=FORMAT, because="signature_size")
    for size in (0, 255, 257):
        with_fields(signed, image, (SIGNATURE_SIZE, struct.pack("<Q", size)))
        assert_refused(image, mountpoint, f"--pubkey={alice[0]}", status=NOT_TRUSTED)


def test_the_signer_of_another_key(
    signed: Path, small_tree: Path, mountpoint: Path, alice: tuple[Path, Path], bob: tuple[Path, Path]
) -> None:
    """Bob's signature under alice's name, and alice's under bob's: neither counts, whoever is trusted."""
    by_bob, image = mountpoint.parent / "by-bob", mountpoint.parent / "renamed"
    assert mystfuse("mkext2", f"--sign={bob[0]}:{bob[1]}", small_tree, by_bob).returncode == 0
    with_fields(by_bob, image, (SIGNER, field(signed, SIGNER, 32)))
    assert_refused(image, mountpoint, f"--pubkey={alice[0]}", status=NOT_TRUSTED, because="signature")
    assert_refused(image, mountpoint, f"--pubkey={bob[0]}", status=NOT_TRUSTED)
    assert_refused(image, mountpoint, f"--pubkey={bob[0]}", f"--pubkey={alice[0]}", status=NOT_TRUSTED)
    with_fields(signed, image, (SIGNER, bytes(32)))
    assert_refused(image, mountpoint, f"--pubkey={alice[0]}", status=NOT_TRUSTED)
    # A signature that is right, but of another image's root hash.
    with_fields(by_bob, image, (SIGNER, field(signed, SIGNER, 32 + 1024 + 8)))
    assert_refused(image, mountpoint, f"--pubkey={alice[0]}", status=NOT_TRUSTED, because="signature")


@pytest.mark.parametrize(("bits", "exponent", "primes"), [(2048, 3, 2), (4096, 2**80 + 13, 2), (8192, 65537, 5)])
def test_openssls_signatures_are_accepted(
    bits: int, exponent: int, primes: int, signed: Path, mountpoint: Path, tmp_path: Path
) -> None:
    """Keys up to the largest that an fssig has room for, with exponents that few libraries take."""
    private, public, root, signature = (tmp_path / name for name in ("private", "public", "root", "signature"))
    wanted = {"rsa_keygen_bits": bits, "rsa_keygen_pubexp": exponent, "rsa_keygen_primes": primes}
    options = [part for name, value in wanted.items() for part in ("-pkeyopt", f"{name}:{value}")]
    run("openssl", "genpkey", "-algorithm", "RSA", *options, "-out", private)
    run("openssl", "rsa", "-in", private, "-pubout", "-out", public)
    root.write_bytes(bytes.fromhex(root_hash(signed)))
    run("openssl", "pkeyutl", "-sign", "-inkey", private, "-pkeyopt", "digest:sha256", "-in", root, "-out", signature)
    modulus = run("openssl", "rsa", "-pubin", "-in", public, "-noout", "-modulus").stdout.strip().split("=")[1]
    run("openssl", "dgst", "-sha256", "-binary", "-out", tmp_path / "signer", write(tmp_path, bytes.fromhex(modulus)))
    signer, signed_bytes = (tmp_path / "signer").read_bytes(), signature.read_bytes()
    assert len(signed_bytes) == bits // 8
    image = with_fields(signed, tmp_path / "image", (SIGNER, signer), (SIGNATURE, signed_bytes.ljust(1024, b"\0")),
                        (SIGNATURE_SIZE, struct.pack("<Q", len(signed_bytes))))  # fmt: skip
    assert_accepted(image, mountpoint, f"--pubkey={public}", because="signed by trusted key")
    with_fields(image, image.with_name("wrong"), (SIGNATURE + 5, bytes([signed_bytes[5] ^ 4])))
    assert_refused(image.with_name("wrong"), mountpoint, f"--pubkey={public}", status=NOT_TRUSTED)


def write(directory: Path, data: bytes) -> Path:
    (directory / "bytes").write_bytes(data)
    return directory / "bytes"


# Root hashes


def test_root_hash_in_the_list_in_every_spelling(signed: Path, small_image: Path, mountpoint: Path) -> None:
    value, file = root_hash(signed), mountpoint.parent / "hash"
    because = "root hash is a trusted one"
    assert_accepted(signed, mountpoint, f"--roothash={value}", because=because)
    assert_accepted(signed, mountpoint, "--roothash", "0" * 64, "--roothash", value, because=because)
    for spelled in (value.upper(), f"  {value}\n"):
        assert in_process("verify", f"--roothash={spelled}", signed).returncode == 0, spelled
    for text in (value, f"{value}\n", f"\n\t {value.upper()} \r\n\n"):
        file.write_text(text)
        assert in_process("verify", f"--roothash={file}", signed).returncode == 0, repr(text)
    assert_accepted(signed, mountpoint, f"--roothash={file}", "--roothash", "0" * 64, because=because)
    assert_refused(small_image, mountpoint, f"--roothash={file}", status=NOT_TRUSTED, because="unsigned")


def test_root_hash_not_in_the_list(signed: Path, mountpoint: Path) -> None:
    value = root_hash(signed)
    for wrong in ("0" * 64, value[:-1] + ("0" if value[-1] != "0" else "1"), value + value, value[2:] + value[:2]):
        assert_refused(signed, mountpoint, f"--roothash={wrong}", status=NOT_TRUSTED)


def test_a_trusted_root_hash_does_not_make_other_data_right(signed: Path, small_image: Path, mountpoint: Path) -> None:
    """The fssig of a trusted image behind other data: the tree tells."""
    image = mountpoint.parent / "grafted"
    with_fields(small_image, image, (0, signed.read_bytes()[-4096:]))
    result = in_process("verify", f"--roothash={root_hash(signed)}", image)
    assert result.returncode == INTEGRITY
    result = mystfuse("mount", f"--roothash={root_hash(signed)}", image, mountpoint)
    clear_mount(mountpoint)
    assert result.returncode == INTEGRITY
    assert re.fullmatch(r"mystfuse: [^\n]+\n", result.stderr), result.stderr


@pytest.mark.parametrize(
    "value",
    [
        "",
        "abc",
        "0" * 63,
        "0" * 65,
        "g" * 64,
        "0x" + "0" * 62,
        "/missing",
        "/etc",
        "/dev/zero",
        "@two",
        "@key",
        "@wide",
    ],
)
def test_root_hashes_that_are_none_are_refused(
    value: str, signed: Path, mountpoint: Path, alice: tuple[Path, Path]
) -> None:
    digest = root_hash(signed)
    if value.startswith("@"):
        file = mountpoint.parent / "file"
        texts = {
            "two": f"{digest}\n{digest}\n",
            "key": alice[0].read_text(),
            "wide": "\N{FULLWIDTH DIGIT ZERO}" + digest[1:],
        }
        file.write_text(texts[value[1:]])
        value = str(file)
    assert_refused(signed, mountpoint, f"--roothash={value}", status=2, because="--roothash")
    assert in_process("verify", f"--roothash={digest}", f"--roothash={value}", signed).returncode == 2


def test_keys_that_are_none_are_refused(
    signed: Path, mountpoint: Path, alice: tuple[Path, Path], make_keys: MakeKeys
) -> None:
    directory = mountpoint.parent
    run("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", directory / "ec")
    run("openssl", "ec", "-in", directory / "ec", "-pubout", "-out", directory / "ec.pub")
    (directory / "garbage").write_bytes(os.urandom(3000))
    (directory / "empty").touch()
    small, _ = make_keys("trust-small", 1024, 65537)
    names = ("ec.pub", "garbage", "empty", "missing", ".")
    for key in (*(directory / name for name in names), alice[1], small, "/dev/zero", ""):
        for command in (("verify", signed), ("mount", signed, mountpoint)):
            # Even beside one that is right: a list with a mistake in it is not the list that was meant.
            tool = in_process if command[0] == "verify" else mystfuse
            result = tool(command[0], f"--pubkey={alice[0]}", f"--pubkey={key}", *command[1:])
            clear_mount(mountpoint)
            assert result.returncode == 2, (key, result)
            assert re.fullmatch(r"mystfuse: [^\n]+\n", result.stderr), result.stderr


# The system's list


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
    """verify, and mount with a look at a file and an umount, with a trust directory."""
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
    # The command line adds to it.
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


def test_a_mistake_in_the_trust_directory_trusts_nobody(signed: Path, tmp_path: Path, alice: tuple[Path, Path]) -> None:
    trusted = tmp_path / "trust.d"
    for name, content in (("x.pem", b"garbage"), ("x.roothash", b"12"), ("x.roothash", b""), ("x.pem", b"")):
        remove_tree(trusted, ignore_errors=True)
        trusted.mkdir()
        shutil.copy(alice[0], trusted / "alice.pem")
        (trusted / name).write_bytes(content)
        result = in_a_world_with(trusted, tmp_path / "s", sys.executable, "-m", "mystfuse", "verify", signed)
        assert result.returncode in (1, 2), result
        assert re.fullmatch(rf"mystfuse: /etc/mystfuse/trust\.d/{name}[^\n]+\n", result.stderr), result.stderr


def test_whatever_is_not_understood_is_no_empty_trust_directory(
    small_image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What used to end in "trusted by nobody but itself", exit 0."""
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
    "ls FIFO",
    "fssig FIFO",
]


@contextmanager
def not_hanging() -> Iterator[None]:
    """Raises an error in what waits for over 20 seconds."""

    def give_up(number: int, frame: object) -> None:
        raise TimeoutError("hung")

    previous = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(20)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def test_a_fifo_for_a_mount_name_space_hangs_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with not_hanging():
        namespace = MountNamespace(str(tmp_path / "fifo"))
        with pytest.raises(MountError, match=r"mount namespace .*fifo: Invalid argument"):
            namespace.enter()


@pytest.mark.parametrize("text", FIFO_COMMANDS)
def test_a_fifo_under_a_configured_name_hangs_nobody(
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
    assert re.search("fifo: (a FIFO, not|neither) a regular file", result.stderr), result
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_pipe_that_is_open_already_is_read(signed: Path, alice: tuple[Path, Path]) -> None:
    """As a shell's <(...) makes it, and the API."""
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
    assert re.fullmatch(r"mystfuse: --roothash /dev/fd/\d+: too large [^\n]+\n", result.stderr), result.stderr


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


# Nobody, and everybody


SELF_COMMANDS = ["verify IMAGE", "ls IMAGE", "cat IMAGE hello.txt", "extract IMAGE / OUT", "tar IMAGE"]


@pytest.mark.parametrize("text", [*SELF_COMMANDS, "mount IMAGE MOUNTPOINT", "exec IMAGE /bin/true"])
def test_every_command_can_be_told_to_trust_no_image_by_itself(
    text: str, signed: Path, mountpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = {"IMAGE": signed, "OUT": tmp_path / "out", "MOUNTPOINT": mountpoint}
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
        # The command line goes before the environment.
        assert in_process(command, "--trust-self", *arguments).returncode == 0


def test_further_images_of_exec_are_trusted_as_the_first_is(
    signed: Path, small_image: Path, alice: tuple[Path, Path]
) -> None:
    # As soon as somebody is trusted, no image vouches for itself: the option says it where nobody is.
    for option in ((), ("--no-trust-self",)):
        options = (*option, f"--pubkey={alice[0]}", "--mount", f"{small_image}=/mnt")
        result = mystfuse("exec", *options, signed, "/bin/true")
        assert result.returncode == NOT_TRUSTED
        assert f"{small_image}: not trusted" in result.stderr


def test_verify_says_that_nobody_vouches(signed: Path, alice: tuple[Path, Path], tmp_path: Path) -> None:
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
        assert_refused(image, mountpoint, *options, status=status, because="no fssig")
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
    # There is nothing that verify could check.
    result = mystfuse("verify", "--insecure", image)
    assert result.returncode == FORMAT
    assert "Traceback" not in result.stderr


def test_insecure_loads_what_nobody_trusts_but_still_checks_it(
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


# Exit statuses


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
    assert_refused(garbage, mountpoint, trust, status=FORMAT, because="no fssig")
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

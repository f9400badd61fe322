"""The usual mistakes of somebody new: each ends in one line that says what is wrong, where, and what to do."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.commands import GROUP, SBIN, USER, assert_one_line, mystfuse, run
from tests.support.encrypted_images import PHRASE, write_secret
from tests.support.mounts import clear_mount, mounted


class Mistake(NamedTuple):
    """A command line, and how it must end. The files are those of ``place``."""

    words: str
    status: int
    says: tuple[str, ...]
    """The parts of the line: what is wrong, where, and what to do."""


MISTAKES = {
    # mounting
    "swapped": Mistake("mnt app.img", 6, ("mnt: a directory", "the image comes first: mystfuse app.img mnt")),
    "no mountpoint": Mistake("app.img", 2, ("mount: Missing argument 'MOUNTPOINT'", "see mystfuse mount --help")),
    "mountpoint missing": Mistake("app.img nowhere", 7, ("nowhere: no such directory", "mkdir makes one")),
    "mountpoint not empty": Mistake("app.img tree", 7, ("tree: not empty", "-o nonempty")),
    "mountpoint a file": Mistake("app.img tree/file", 7, ("tree/file: not a directory",)),
    "mountpoint the image": Mistake("app.img app.img", 7, ("app.img: not a directory",)),
    "image missing": Mistake("gone.img mnt", 1, ("gone.img: No such file or directory",)),
    "scheme mistyped": Mistake(
        "ls htps://host/app.img", 1, ("No such file", "an address begins with http://, https://")
    ),
    "address with one slash": Mistake("ls https:/host/app.img", 1, ("No such file", "an address begins with http://")),
    "unknown option": Mistake(
        "app.img mnt --pubky public.pem", 2, ("mount: no such option --pubky", "did you mean --pubkey?")
    ),
    "option of another command": Mistake(
        "mount --sign a:b app.img mnt", 2, ("mount: no such option --sign", "umount, commit, exec, mkext2, sign")
    ),
    "unknown mount option": Mistake(
        "app.img mnt -o alow_other", 2, ("mount: -o alow_other", "did you mean allow_other?")
    ),
    "user by name": Mistake("app.img mnt -o uid=root", 2, ("mount: -o uid=root", "not a user or group number")),
    "size in words": Mistake("app.img mnt --overlay-limit much", 2, ("'much' is not a size", "k, M, G or T")),
    "misspelt command": Mistake("verfy app.img", 2, ("verfy: neither a command nor an image", "did you mean verify?")),
    # trust
    "another's key": Mistake(
        "app.img mnt --pubkey other.pem", 3, ("app.img: not trusted", "is not a trusted public key")
    ),
    "private for public": Mistake(
        "app.img mnt --pubkey private.pem", 2, ("private.pem: not a PEM public key", "openssl pkey")
    ),
    "short root hash": Mistake(f"app.img mnt --roothash {'ab' * 20}", 2, ("40 hex digits, not the 64",)),
    "verify with another's key": Mistake("verify --pubkey other.pem app.img", 3, ("app.img: not trusted",)),
    # keys
    "key of another size": Mistake("secret.img mnt --key-file short.key", 5, ("has 30 bytes", "has 64")),
    "another key": Mistake("secret.img mnt --key-file other.key", 5, ("secret.img: wrong key",)),
    "no key": Mistake("secret.img mnt", 5, ("secret.img: encrypted", "give --key-file or --passphrase-file")),
    "key for a plain image": Mistake("app.img mnt --key-file app.key", 5, ("app.img: a key is given", "leave it out")),
    "passphrase as key": Mistake(
        "secret.img mnt --key-file passphrase", 5, ("a passphrase goes into --passphrase-file",)
    ),
    # unmounting
    "unmount no mount": Mistake(
        "umount tree", 7, ("tree: nothing of mystfuse's is mounted there", "mystfuse status lists")
    ),
    "unmount the image": Mistake("umount app.img", 7, ("app.img: nothing of mystfuse's is mounted there",)),
    "status of no mount": Mistake(
        "status mnt", 7, ("mnt: nothing of mystfuse's is mounted there", "mystfuse status lists")
    ),
    # reading
    "cat of a directory": Mistake(
        "cat app.img /sub", 1, ("app.img: /sub: Is a directory", "ls lists it, extract copies it")
    ),
    "ls of a missing path": Mistake(
        "ls app.img /gone", 1, ("app.img: /gone: No such file", "mystfuse ls app.img lists")
    ),
    "cat swapped": Mistake("cat /file app.img", 1, ("/file: No such file", "the image comes first")),
    "extract over something": Mistake("extract app.img / tree", 1, ("tree: already exists", "name one that does not")),
    "extract without a target": Mistake(
        "extract app.img /", 2, ("extract: Missing argument 'DEST'", "see mystfuse extract --help")
    ),
    # making
    "over an image": Mistake("mkext2 tree app.img", 1, ("app.img: already exists", "--force overwrites it")),
    "mkext2 swapped": Mistake(
        "mkext2 new.img tree", 2, ("new.img: no such directory", "the directory comes first: tree new.img")
    ),
    "half a key pair": Mistake(
        "mkext2 --sign public.pem tree new.img", 2, ("--sign public.pem", "PUBLIC.pem:PRIVATE.pem")
    ),
    "two key pairs": Mistake(
        "mkext2 --sign other.pem:private.pem tree new.img", 2, ("other.pem is not the public key of private.pem",)
    ),
    "passphrase alone": Mistake(
        "mkext2 --passphrase-file passphrase tree new.img", 2, ("--passphrase-file goes with --encrypt KEYFILE",)
    ),
    "key too short": Mistake(
        "mkext2 --encrypt short.key tree new.img", 5, ("short.key: 30 bytes", "head -c 64 /dev/urandom")
    ),
    "commit of no mount": Mistake("commit mnt new.img", 7, ("mnt: nothing of mystfuse's is mounted there",)),
    # programs
    "missing program": Mistake("exec app.img gone", 127, ("gone: not found in the image", "PATH=")),
    "no program": Mistake("exec app.img", 2, ("exec: Missing argument 'PROGRAM'", "see mystfuse exec --help")),
    "image for package": Mistake(
        "run app.img", 6, ("app.img: an image (", "not a package", "mystfuse exec app.img PROGRAM")
    ),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an image, one that is encrypted, what they were made of, and keys of all kinds."""
    directory = tmp_path_factory.mktemp("mistakes")
    (directory / "tree/sub").mkdir(parents=True)
    (directory / "tree/file").write_text("file\n")
    (directory / "mnt").mkdir()
    for private, public in ("private.pem", "public.pem"), ("other-private.pem", "other.pem"):
        run("openssl", "genrsa", "-out", private, "-3", "2048", cwd=directory)
        run("openssl", "rsa", "-in", private, "-pubout", "-out", public, cwd=directory)
    for name, size in ("app.key", 64), ("other.key", 64), ("short.key", 30):
        write_secret(directory / name, os.urandom(size))
    write_secret(directory / "passphrase", PHRASE)
    for words in (
        ("--sign", "public.pem:private.pem", "--size=16M", "tree", "app.img"),
        ("--encrypt", "app.key", "--passphrase-file", "passphrase", "tree", "secret.img"),
    ):
        result = mystfuse("mkext2", *words, cwd=directory)
        assert result.returncode == 0, result.stderr
    return directory


def errors_of(stderr: str) -> str:
    """Without the warning that nobody stands for an image."""
    return "".join(line for line in stderr.splitlines(True) if "is trusted by nobody but itself" not in line)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_explained_in_one_line(place: Path, name: str) -> None:
    mistake, before = MISTAKES[name], sorted(os.listdir(place))
    try:
        result = mystfuse(*mistake.words.split(), cwd=place, stdin=-3)
    finally:
        clear_mount(place / "mnt")
    result.stderr = errors_of(result.stderr)
    assert_one_line(result, mistake.status, *mistake.says)
    assert result.stdout == "" and sorted(os.listdir(place)) == before


def test_mounting_twice_and_unmounting_twice(place: Path) -> None:
    with mounted(place / "app.img", place / "mnt"):
        result = mystfuse("app.img", "mnt", cwd=place)
        assert_one_line(result, 7, f"mnt: {place}/app.img is already mounted there (mystfuse status mnt)")
        assert_one_line(
            mystfuse("commit", "new.img", "mnt", cwd=place), 2, "mnt: is a mount: the mountpoint comes first"
        )
        assert_one_line(mystfuse("app.img", "mnt/sub", "--read-only", "-o", "nonempty,uid=x", cwd=place), 2, "uid=x")
        assert mystfuse("umount", "mnt", cwd=place).returncode == 0
        assert_one_line(mystfuse("umount", "mnt", cwd=place), 7, "nothing of mystfuse's is mounted there")


def test_a_passphrase_file_of_windows_is_warned_of(place: Path) -> None:
    write_secret(place / "windows", PHRASE + "\r\n")
    try:
        result = mystfuse("mount", "--passphrase-file", "windows", "secret.img", "mnt", cwd=place)
        warning, error = errors_of(result.stderr).splitlines()
        assert result.returncode == 5 and "secret.img: wrong passphrase" in error
        assert "warning: windows: the carriage return at its end" in warning and PHRASE not in result.stderr
    finally:
        (place / "windows").unlink()


def as_ordinary_user(
    ordinary_user: list[str], place: Path, target: Path, shell: str = 'exec "$@"'
) -> tuple[list[str | Path], Path]:
    """A command that mounts as an ordinary user, behind some shell in a mount namespace of its own."""
    shutil.copyfile(place / "app.img", target / "app.img")
    (target / "mnt").mkdir()
    os.chown(target / "mnt", USER, GROUP)
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", shell, "sh", *ordinary_user], target / "mnt"


ALONE = "umount -a -l -i -t fuse.mystfuse 2>/dev/null; "
"""The namespace has copies of other tests' mounts."""


def test_no_permission(ordinary_user: list[str], place: Path, open_tmp_path: Path) -> None:
    command, mountpoint = as_ordinary_user(ordinary_user, place, open_tmp_path)
    (open_tmp_path / "app.img").chmod(0o600)
    result = run(*command, "app.img", mountpoint, check=False, cwd=open_tmp_path)
    assert_one_line(result, 1, "app.img: Permission denied")
    (open_tmp_path / "app.img").chmod(0o644)
    os.chown(mountpoint, 0, 0)
    mountpoint.chmod(0o700)
    result = run(*command, "app.img", mountpoint, check=False, cwd=open_tmp_path)
    assert_one_line(result, 7, f"{mountpoint}: Permission denied")


def test_no_dev_fuse(place: Path) -> None:
    shell = f'{ALONE} mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && exec "$@"'
    command = ("unshare", "--mount", "--propagation", "private", "sh", "-c", shell, "sh")
    python = shutil.which("python", path=SBIN) or "python3"
    result = run(*command, python, "-m", "mystfuse", "app.img", "mnt", check=False, cwd=place)
    assert_one_line(result, 7, "/dev/fuse is missing", "modprobe fuse")


def test_no_fusermount(ordinary_user: list[str], place: Path, open_tmp_path: Path) -> None:
    command, mountpoint = as_ordinary_user(ordinary_user, place, open_tmp_path)
    # Without a directory in PATH that has it.
    at = command.index("env") + 1
    command[at:at] = ["PATH=/nowhere"]
    command[command.index("env")] = "/usr/bin/env"
    result = run(
        *command, "mount", "--no-trust-self", "--insecure", "app.img", mountpoint, check=False, cwd=open_tmp_path
    )
    result.stderr = "".join(line for line in result.stderr.splitlines(True) if "not trusted, loaded" not in line)
    assert_one_line(result, 7, "fusermount3 is not installed", "apt install fuse3")

"""``--key-command``, ``--passphrase-command``: what a command prints opens an image, and is nowhere else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mystfuse.cli.secret_command import read_secret_command
from mystfuse.errors import MystfuseError, UsageError, WrongKey
from tests.support.cli_in_process import in_process
from tests.support.commands import assert_one_line, mystfuse, wait_until
from tests.support.encrypted_images import on_terminal, write_secret
from tests.support.made_images import make

USAGE, KEY = 2, 5
NOBODY = "trusted by nobody but itself"
PHRASE = "correct horse battery staple"


@pytest.fixture(scope="module")
def secrets(small_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an encrypted image, its key, and its passphrase."""
    directory = tmp_path_factory.mktemp("secrets")
    key = write_secret(directory / "key", bytes(range(64)))
    phrase = write_secret(directory / "phrase", PHRASE)
    make(small_tree, directory / "image", "--encrypt", key, "--passphrase-file", phrase)
    return directory


def test_every_command_that_takes_keys_takes_commands(secrets: Path, tmp_path: Path, mountpoint: Path) -> None:
    key, phrase, image = (secrets / name for name in ("key", "phrase", "image"))
    (tmp_path / "hex").write_text(key.read_bytes().hex() + "\n")
    for option in (
        f"--key-command=cat {key}",
        f"--key-command=cat {tmp_path}/hex",
        f"--passphrase-command=cat {phrase}",
        # One newline at its end does not count.
        f"--passphrase-command=sh -c 'cat {phrase}; echo'",
        f"--passphrase-command=printf %s '{PHRASE}'",
    ):
        result = in_process("cat", option, image, "/hello.txt")
        assert (result.returncode, result.stderr) == (0, f"mystfuse: warning: {image} is {NOBODY}\n"), result
        assert "the key opens it" in in_process("verify", option, image).stdout
    given = f"--key-command=cat {key}"
    assert in_process("ls", given, image).returncode == 0
    assert in_process("extract", given, image, "/sub", tmp_path / "out").returncode == 0
    assert mystfuse("mount", given, image, mountpoint).returncode == 0
    assert (mountpoint / "hello.txt").read_text() == "hello\n"
    commit = ("commit", f"--encrypt={key}", f"--passphrase-command=echo {PHRASE}", mountpoint, tmp_path / "new")
    assert mystfuse(*commit).returncode == 0
    assert mystfuse("umount", mountpoint).returncode == 0
    assert in_process("verify", f"--passphrase-command=echo {PHRASE}", tmp_path / "new").returncode == 0


def test_mkext2_takes_a_passphrase_from_a_command(secrets: Path, small_tree: Path, tmp_path: Path) -> None:
    encrypt = f"--encrypt={secrets / 'key'}"
    make(small_tree, tmp_path / "image", encrypt, f"--passphrase-command=cat {secrets / 'phrase'}")
    assert in_process("verify", f"--passphrase-command=echo {PHRASE}", tmp_path / "image").returncode == 0
    for options, status, words in (
        ((encrypt, "--passphrase-command=echo short"), KEY, "5 characters"),
        ((encrypt, "--passphrase-command=false"), KEY, "--passphrase-command: false exited with status 1"),
        ((encrypt, "--passphrase-command=x", "--passphrase-file=x"), USAGE, "exclude each other"),
        (("--passphrase-command=x",), USAGE, "goes with --encrypt"),
    ):
        assert_one_line(in_process("mkext2", *options, small_tree, tmp_path / "none"), status, words)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (("--key-command=echo wrong",), KEY, "the key has"),
        (("--passphrase-command=echo wrong",), KEY, "passphrase"),
        (("--key-command=true",), KEY, "--key-command: true printed nothing"),
        (("--passphrase-command=sh -c 'echo secret; exit 3'",), KEY, "--passphrase-command: sh exited with status 3"),
        (("--key-command=sh -c 'kill -9 $$'",), KEY, "--key-command: sh was ended by SIGKILL"),
        (("--key-command=head -c 65537 /dev/zero",), KEY, "head printed more than 65536 bytes"),
        (("--key-command=yes secret",), KEY, "yes printed more than 65536 bytes"),
        (
            ("--key-command=/no/such/program secret",),
            USAGE,
            "/no/such/program cannot be run: No such file or directory",
        ),
        (("--key-command=/etc/passwd secret",), USAGE, "/etc/passwd cannot be run: Permission denied"),
        (("--key-command=echo 'secret",), USAGE, "--key-command: no closing quotation in the command"),
        (("--key-command=",), USAGE, "--key-command: an empty command"),
        (("--key-command=  ",), USAGE, "--key-command: an empty command"),
        (("--key-command=''",), USAGE, "--key-command: an empty command"),
        (("--key-command=echo secret", "--key-file=x"), USAGE, "--key-file and --key-command exclude each other"),
        (("--key-command=a", "--passphrase-command=b"), USAGE, "--key-command and --passphrase-command exclude"),
        (
            ("--passphrase-file=a", "--passphrase-command=b"),
            USAGE,
            "--passphrase-file and --passphrase-command exclude",
        ),
    ],
)
def test_a_command_that_gives_no_key_is_one_line(
    options: tuple[str, ...], status: int, words: str, secrets: Path
) -> None:
    result = in_process("ls", *options, secrets / "image")
    assert_one_line(result, status, words)
    # Neither its arguments nor what it printed.
    assert "secret" not in result.stderr.replace(str(secrets), "")


def test_no_shell_reads_it(tmp_path: Path) -> None:
    for command, expected in (
        ("printf %s $HOME", b"$HOME"),
        ("printf %s 'a b'\\ c", b"a b c"),
        (f"printf %s x > {tmp_path}/file", f"x>{tmp_path}/file".encode()),
        ("printf '%s|' a; b && c `d`", b"a;|b|&&|c|`d`|"),
    ):
        assert bytes(read_secret_command(command, "--key-command", 100).view) == expected, command
    assert not list(tmp_path.iterdir())


def test_it_has_our_environment_input_and_stderr(secrets: Path) -> None:
    script = "sh -c 'echo \"$GREETING\" >&2; cat'"
    command = [sys.executable, "-m", "mystfuse", "verify", f"--passphrase-command={script}", str(secrets / "image")]
    result = subprocess.run(
        command,
        input=PHRASE,
        env={**os.environ, "GREETING": "hello there"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0 and "the key opens it" in result.stdout
    assert result.stderr.startswith("hello there\n")


def test_it_can_ask_on_the_terminal(secrets: Path) -> None:
    script = 'sh -c \'stty -echo; printf "PIN please: " >/dev/tty; read x; stty echo; echo "$x"\''
    command: list[str | Path] = ["verify", f"--passphrase-command={script}", secrets / "image"]
    status, output = on_terminal(command, [("PIN please: ", PHRASE)])
    assert status == 0 and "the key opens it" in output and PHRASE not in output


@pytest.mark.parametrize("script", ["sleep 1000", "sh -c 'sleep 1000 & wait'", "sh -c 'trap \"\" TERM; sleep 1000; :'"])
def test_one_that_does_not_end_is_killed(script: str) -> None:
    started = time.monotonic()
    with pytest.raises(WrongKey, match=r"has not ended within 0\.5 s, and was killed"):
        read_secret_command(script, "--key-command", 100, timeout=0.5)
    assert time.monotonic() - started < 10


def test_it_is_run_once(secrets: Path, tmp_path: Path) -> None:
    count = f"sh -c 'echo x >> {tmp_path}/count; cat {secrets / 'key'}'"
    assert in_process("ls", f"--key-command={count}", secrets / "image").returncode == 0
    assert (tmp_path / "count").read_text() == "x\n"


def test_an_interrupt_ends_it(secrets: Path, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script = f"sh -c 'echo $$ > {pid}; sleep 1000'"
    command = [sys.executable, "-m", "mystfuse", "ls", f"--key-command={script}", str(secrets / "image")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: pid.exists() and pid.read_text() != "")
    process.send_signal(2)
    output, errors = process.communicate(timeout=20)
    assert (process.returncode, output, errors) == (1, "", "mystfuse: interrupted\n")
    wait_until(lambda: not Path(f"/proc/{pid.read_text().strip()}").exists())


def test_no_copy_is_left_in_memory() -> None:
    """A process that has read one and wiped it does not have it any more."""
    code = (
        "import re, sys\nfrom mystfuse.cli.secret_command import read_secret_command\n"
        "secret = read_secret_command('sh -c \"echo needle-; echo haystack\" ', '--key-command', 1000)\n"
        "assert len(secret) == 17\nsecret.wipe()\nfound = 0\n"
        "pattern = b'needle-' + bytes([10]) + b'haystack' + bytes([10])\n"
        "for line in open('/proc/self/maps'):\n"
        "    match = re.match(r'([0-9a-f]+)-([0-9a-f]+) rw', line)\n"
        "    if match and '[v' not in line:\n"
        "        with open('/proc/self/mem', 'rb', 0) as memory:\n"
        "            memory.seek(int(match[1], 16))\n"
        "            found += memory.read(int(match[2], 16) - int(match[1], 16)).count(pattern)\n"
        # The pattern itself is there, and was put together: once or more, but known.
        "print(found)"
    )
    wiped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    kept = subprocess.run(
        [sys.executable, "-c", code.replace("secret.wipe()", "")], capture_output=True, text=True, check=True
    ).stdout
    assert int(kept) == int(wiped) + 1


def test_fstab_has_no_commands(secrets: Path, mountpoint: Path) -> None:
    """Options of -o are in /etc/fstab: a command there would be run as root, by whoever mounts."""
    for name in "key_command", "passphrase_command":
        result = mystfuse("mount", "-o", f"{name}=cat /etc/passwd", secrets / "image", mountpoint)
        assert_one_line(result, USAGE, f"-o {name}=", "no such mount option")


def test_a_word_with_a_null_character_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot be run: a null character in it"):
        read_secret_command("echo a\0b", "--key-command", 100)


def test_no_message_has_more_than_the_programs_name() -> None:
    for command in ("sh -c 'exit 1' s3cret", "true s3cret", "yes s3cret", "/nowhere/x s3cret", "echo 's3cret"):
        with pytest.raises(MystfuseError) as error:
            read_secret_command(command, "--key-command", 100)
        assert not re.search("s3cret", str(error.value))

"""Keys in tokens and TPMs sign images and packages: SoftHSM's and swtpm's, by the openssl of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import tokens
from tests.support.cli_in_process import in_process
from tests.support.commands import assert_one_line, mystfuse, run
from tests.support.encrypted_images import on_terminal, write_secret
from tests.support.tokens import PIN, TOKEN_URI, Token

FAILED, USAGE, KEY = 1, 2, 5
WRONG = "87650000"


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Token:
    return tokens.make_token(tmp_path_factory.mktemp("token"))


@pytest.fixture
def in_token(token: Token, monkeypatch: pytest.MonkeyPatch) -> Token:
    for name, value in token.environment.items():
        monkeypatch.setenv(name, value)
    return token


@pytest.fixture(scope="module")
def tpm_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tpm")


@pytest.fixture(scope="module")
def tpm(tpm_directory: Path) -> Iterator[dict[str, str]]:
    with tokens.running_tpm(tpm_directory) as environment:
        yield environment


@pytest.fixture(scope="module")
def open_key(tpm: dict[str, str], tpm_directory: Path) -> Token:
    """Without a passphrase."""
    return tokens.make_tpm_key(tpm_directory, tpm, "0x81000001", None)


@pytest.fixture(scope="module")
def locked_key(tpm: dict[str, str], tpm_directory: Path) -> Token:
    return tokens.make_tpm_key(tpm_directory, tpm, "0x81000002", PIN)


@pytest.fixture
def in_tpm(tpm: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in tpm.items():
        monkeypatch.setenv(name, value)


def assert_signed(image: Path, public: Path, *sign: str | Path) -> None:
    """The command signs, and both verify and openssl accept that."""
    in_process("sign", "--remove", image)
    result = in_process("sign", *sign, image)
    assert (result.returncode, result.stderr) == (0, ""), result
    assert in_process("verify", "--pubkey", public, image).returncode == 0
    block = image.read_bytes()[-4096:]
    size = int.from_bytes(block[1112:1120], "little")
    digest, signature = image.with_name("digest"), image.with_name("signature")
    digest.write_bytes(block[24:56])
    signature.write_bytes(block[88 : 88 + size])
    run("openssl", "pkeyutl", "-verify", "-pubin", "-inkey", public, "-in", digest, "-sigfile", signature,
        "-pkeyopt", "digest:sha256")  # fmt: skip


def test_a_token_signs_with_its_pin_from_everywhere(image: Path, in_token: Token, tmp_path: Path) -> None:
    pin = write_secret(tmp_path / "a pin", f"{PIN}\n")
    sign = f"--sign={in_token.public}:{TOKEN_URI}"
    quoted = str(pin).replace(" ", "%20")
    for options in (
        (sign, "--sign-passphrase-file", pin),
        (sign, "--sign-passphrase-command", f"cat '{pin}'"),
        (f"{sign}?pin-source=file:{quoted}",),
        (f"{sign}?pin-source={quoted}",),
        (f"{sign}?pin-source=|cat%20%27{quoted}%27",),
        (f"--sign={in_token.public}:pkcs11:id=%01;type=private", "--sign-passphrase-file", pin),
    ):
        assert_signed(image, in_token.public, *options)
    status, output = on_terminal(["sign", sign, image], [(f"PIN for {TOKEN_URI}: ", PIN)])
    assert status == 0 and PIN not in output
    # Known to everybody on the machine, and so warned of; not shown.
    result = in_process("sign", f"{sign}?pin-value={PIN}", image)
    assert result.returncode == 0 and "pin-value shows the PIN" in result.stderr and PIN not in result.stderr


def test_the_uri_can_name_the_module(image: Path, in_token: Token, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "PKCS11_MODULE_PATH", "PKCS11_PROVIDER_MODULE":
        monkeypatch.delenv(name)
    sign = f"--sign={in_token.public}:{TOKEN_URI}?module-path={tokens.MODULE}"
    assert_signed(image, in_token.public, sign, f"--sign-passphrase-command=echo {PIN}")
    result = in_process("sign", f"{sign}.absent", f"--sign-passphrase-command=echo {PIN}", image)
    assert_one_line(result, FAILED, TOKEN_URI)


def test_what_a_token_refuses_is_one_line_and_changes_nothing(
    image: Path, in_token: Token, tmp_path: Path, other: tuple[Path, Path]
) -> None:
    before = image.read_bytes()
    public = in_token.public
    for sign, pin, status, words in (
        (f"{public}:{TOKEN_URI}", WRONG, KEY, "PIN incorrect"),
        (f"{public}:pkcs11:token=signing;object=absent", PIN, FAILED, "not found"),
        (f"{public}:pkcs11:token=absent;object=image-key", PIN, FAILED, "not found"),
        (f"{other[0]}:{TOKEN_URI}", PIN, USAGE, "is not the public key of pkcs11:"),
        (f"{public}:{TOKEN_URI}", f"{PIN}\nmore", USAGE, "not one line"),
        (f"{public}:{TOKEN_URI}", "9" * 2000, USAGE, "not one line"),
    ):
        file = write_secret(tmp_path / "pin", pin)
        result = in_process("sign", f"--sign={sign}", "--sign-passphrase-file", file, image)
        assert_one_line(result, status, words)
        assert pin not in result.stderr
    result = mystfuse("sign", f"--sign={public}:{TOKEN_URI}", image, stdin=subprocess.DEVNULL)
    assert_one_line(result, KEY, f"{TOKEN_URI}: its PIN is needed")
    # One that says itself that it has none is asked without.
    result = mystfuse("sign", f"--sign={public}:{TOKEN_URI}?pin-value=", image, stdin=subprocess.DEVNULL)
    assert result.returncode != 0 and result.stderr.count("\n") == 1
    assert image.read_bytes() == before
    # A wrong PIN is tried once: three lock some tokens.
    assert (
        in_process("sign", f"--sign={public}:{TOKEN_URI}", f"--sign-passphrase-command=echo {PIN}", image).returncode
        == 0
    )


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("other")
    run("openssl", "genrsa", "-out", directory / "private.pem", "2048")
    run("openssl", "rsa", "-in", directory / "private.pem", "-pubout", "-out", directory / "public.pem")
    return directory / "public.pem", directory / "private.pem"


def test_mkext2_commit_and_package_take_the_same_keys(
    small_tree: Path, tmp_path: Path, in_token: Token, mountpoint: Path
) -> None:
    pin = write_secret(tmp_path / "pin", PIN)
    sign = (f"--sign={in_token.public}:{TOKEN_URI}", "--sign-passphrase-file", pin)
    image, committed = tmp_path / "image", tmp_path / "committed"
    assert in_process("mkext2", *sign, small_tree, image).returncode == 0
    assert in_process("verify", "--pubkey", in_token.public, image).returncode == 0
    assert mystfuse("mount", "--pubkey", in_token.public, image, mountpoint).returncode == 0
    (mountpoint / "new").write_text("new\n")
    assert mystfuse("commit", *sign, mountpoint, committed).returncode == 0
    assert mystfuse("umount", mountpoint).returncode == 0
    assert in_process("cat", "--pubkey", in_token.public, committed, "/hello.txt").returncode == 0
    (tmp_path / "config.json").write_text('{"version": "0.1", "ApplicationPath": "/bin/hello"}')
    package = ("package", "--pubkey", in_token.public, "-o", tmp_path / "package")
    result = in_process(*package, "--sign-passphrase-file", pin, TOKEN_URI, tmp_path / "config.json")
    assert (result.returncode, result.stderr) == (0, "")
    lines = (tmp_path / "package").read_bytes().splitlines(keepends=True)
    (tmp_path / "signed").write_bytes(b"".join(lines[:-1]))
    (tmp_path / "base64").write_bytes(lines[-1])
    run("openssl", "base64", "-d", "-A", "-in", tmp_path / "base64", "-out", tmp_path / "signature")
    run(
        "openssl",
        "dgst",
        "-sha256",
        "-verify",
        in_token.public,
        "-signature",
        tmp_path / "signature",
        tmp_path / "signed",
    )
    # A wrong PIN is found before the work begins.
    wrong = write_secret(tmp_path / "wrong", WRONG)
    result = in_process("mkext2", sign[0], "--sign-passphrase-file", wrong, small_tree, tmp_path / "none")
    assert_one_line(result, KEY, "PIN incorrect")
    assert not (tmp_path / "none").exists()


def test_a_tpm_signs(
    image: Path, in_tpm: None, tpm_directory: Path, tpm: dict[str, str], open_key: Token, locked_key: Token
) -> None:
    pin = f"--sign-passphrase-command=echo {PIN}"
    assert_signed(image, open_key.public, f"--sign={open_key.public}:handle:0x81000001")
    for handle in "handle:0x81000002", "handle:0x81000002?pass":
        assert_signed(image, locked_key.public, f"--sign={locked_key.public}:{handle}", pin)
    command: list[str | Path] = ["sign", f"--sign={locked_key.public}:handle:0x81000002?pass", image]
    status, output = on_terminal(command, [("Passphrase for handle:0x81000002?pass: ", PIN)])
    assert status == 0 and PIN not in output
    for passphrase in None, PIN:
        public, private = tokens.make_tpm_file(tpm_directory, tpm, passphrase)
        assert_signed(image, public, f"--sign={public}:{private}", *([pin] if passphrase else []))
    status, output = on_terminal(["sign", f"--sign={public}:{private}", image], [(f"Passphrase for {private}: ", PIN)])
    assert status == 0 and PIN not in output
    result = mystfuse("sign", f"--sign={public}:{private}", image, stdin=subprocess.DEVNULL)
    assert_one_line(result, KEY, f"{private}: it wants its PIN or passphrase")
    result = mystfuse("sign", f"--sign={public}:-", image, input=private.read_text())
    assert_one_line(result, USAGE, "a TPM's key cannot come from stdin")


def test_what_a_tpm_refuses_is_one_line_and_changes_nothing(
    image: Path, in_tpm: None, open_key: Token, locked_key: Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = image.read_bytes()
    for sign, passphrase, status, words in (
        (f"{locked_key.public}:handle:0x81000002", WRONG, KEY, "authorization"),
        (f"{locked_key.public}:handle:0x81000002", None, KEY, "authorization"),
        (f"{locked_key.public}:handle:0x81000002?pass", None, KEY, "its PIN is needed"),
        (f"{open_key.public}:handle:0x81000009", None, FAILED, "cannot load key"),
        (f"{locked_key.public}:handle:0x81000001", None, USAGE, "is not the public key of handle:0x81000001"),
    ):
        options = [f"--sign-passphrase-command=echo {passphrase}"] if passphrase else []
        result = mystfuse("sign", f"--sign={sign}", *options, image, stdin=subprocess.DEVNULL)
        assert_one_line(result, status, words)
    monkeypatch.setenv("TPM2OPENSSL_TCTI", "swtpm:path=/nowhere")
    result = in_process("sign", f"--sign={open_key.public}:handle:0x81000001", image)
    assert_one_line(result, FAILED, "handle:0x81000001: ")
    assert image.read_bytes() == before


def test_the_pin_is_on_no_command_line_and_in_no_environment(
    image: Path, in_token: Token, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An openssl in its place notes what it was given, before the real one gets it."""
    (tmp_path / "bin").mkdir()
    note, program = tmp_path / "note", tmp_path / "bin/openssl"
    program.write_text(
        f'#!/bin/sh\n{{ printf "%s\\n" "$@"; tr "\\0" "\\n" < /proc/$$/environ; }} >> {note}\n'
        f'PATH={os.environ["PATH"]} exec openssl "$@"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    pin = write_secret(tmp_path / "pin", PIN)
    for options in (
        (f"--sign={in_token.public}:{TOKEN_URI}", "--sign-passphrase-file", pin),
        (f"--sign={in_token.public}:{TOKEN_URI}?pin-value={PIN}",),
    ):
        assert in_process("sign", *options, image).returncode == 0
    noted = note.read_text()
    assert noted.count("\npkeyutl\n") == 2 and "fd:" in noted
    assert PIN not in noted


def test_what_openssl_lacks_is_named(
    image: Path, in_token: Token, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign = f"--sign={in_token.public}:{TOKEN_URI}"
    pin = f"--sign-passphrase-command=echo {PIN}"
    monkeypatch.setenv("OPENSSL_ENGINES", str(tmp_path))
    monkeypatch.setenv("OPENSSL_MODULES", str(tmp_path))
    assert_one_line(in_process("sign", sign, pin, image), FAILED, "libengine-pkcs11-openssl")
    result = in_process("sign", f"--sign={in_token.public}:handle:0x81000001", image)
    assert_one_line(result, FAILED, "tpm2-openssl")
    monkeypatch.setenv("PATH", str(tmp_path))
    result = in_process("sign", f"--sign={in_token.public}:handle:0x81000001", image)
    assert_one_line(result, FAILED, "openssl, which asks for it, cannot be run: No such file or directory")


@pytest.mark.parametrize(
    ("script", "status", "words"),
    [
        # A token that signs something else, or nothing, or does not answer.
        (
            'case $1 in pkeyutl) head -c 384 /dev/zero;; *) exec $REAL "$@";; esac',
            FAILED,
            "is not verified by its public key",
        ),
        ('case $1 in pkeyutl) ;; *) exec $REAL "$@";; esac', FAILED, "openssl failed (status 0)"),
        ('case $1 in pkeyutl) echo oops >&2; exit 1;; *) exec $REAL "$@";; esac', FAILED, "image-key: oops"),
        ('case $1 in pkeyutl) kill -SEGV $$;; *) exec $REAL "$@";; esac', FAILED, "openssl failed (status -11)"),
        ('case $1 in pkeyutl) sleep 1000;; *) exec $REAL "$@";; esac', FAILED, "no answer from it within 2 s"),
        ('case $1 in pkey) echo garbage;; *) exec $REAL "$@";; esac', USAGE, "not a PEM public key"),
        ('case $1 in pkey) yes;; *) exec $REAL "$@";; esac', FAILED, "openssl failed"),
    ],
)
def test_whatever_openssl_does_is_one_line_and_changes_nothing(
    script: str, status: int, words: str, image: Path, in_token: Token, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    real = run("sh", "-c", "command -v openssl").stdout.strip()
    (tmp_path / "bin/openssl").write_text(f"#!/bin/sh\nREAL={real}\n{script}\n")
    (tmp_path / "bin/openssl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setattr("mystfuse.trust.openssl_key.TOKEN_TIMEOUT", 2)
    before = image.read_bytes()
    sign = (f"--sign={in_token.public}:{TOKEN_URI}", f"--sign-passphrase-command=echo {PIN}")
    assert_one_line(in_process("sign", *sign, image), status, words)
    assert image.read_bytes() == before


def test_a_key_without_a_token_needs_no_openssl(image: Path, other: tuple[Path, Path], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mystfuse", "sign", f"--sign={other[0]}:{other[1]}", str(image)]
    subprocess.run(command, env={"PATH": str(tmp_path)}, check=True, stdout=subprocess.DEVNULL)

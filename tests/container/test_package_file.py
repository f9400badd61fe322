"""Package files: signed as a whole, canonical, and verifiable with openssl."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from mystfuse.errors import FormatError, MystfuseError, NotTrusted, UsageError
from mystfuse.formats.configuration import Configuration
from mystfuse.formats.package import PACKAGE_HEADER, PackageContents, PackageFile
from mystfuse.trust.package import open_package, sign_package
from mystfuse.trust.signature import PublicKey, SigningKey
from tests.support.cli_in_process import in_process
from tests.support.commands import assert_one_line, run
from tests.support.packages import COMMAND, FAILED, FORMAT, NOT_TRUSTED, USAGE, Keys


@pytest.fixture(scope="session")
def signing_key(keys: Keys) -> SigningKey:
    return SigningKey.from_pem(keys[1].read_bytes(), "private.pem")


def test_openssl_alone_verifies_a_package(package: Callable[..., Path], keys: Keys, tmp_path: Path) -> None:
    """The commands of docs/package-format.md."""
    path = package()
    document = (Path(__file__).parents[2] / "docs/package-format.md").read_text()
    commands = re.search(r"^(head -n -1 .*?)```", document, re.DOTALL | re.MULTILINE)
    assert commands is not None
    (tmp_path / "signer.pem").write_bytes(keys[0].read_bytes())
    text = commands[1].replace("myst/bin/hello", str(path))
    assert "Verified OK" in run("sh", "-ec", text, cwd=tmp_path).stdout
    assert PublicKey.from_pem((tmp_path / "claimed.pem").read_bytes(), "").is_same_as(
        PublicKey.from_pem(keys[0].read_bytes(), "")
    )
    changed = bytearray(path.read_bytes())
    changed[20] ^= 1
    path.write_bytes(changed)
    result = run("sh", "-ec", text, cwd=tmp_path, check=False)
    assert result.returncode != 0
    assert "Verified OK" not in result.stdout


def test_the_documents_example_is_what_we_write() -> None:
    document = (Path(__file__).parents[2] / "docs/package-format.md").read_text()
    example = re.search(r"```text\n(#!/bin/sh.*?)```", document, re.DOTALL)
    assert example is not None
    header, contents = example[1].encode().split(b"exit 127\n")
    assert header + b"exit 127\n" == PACKAGE_HEADER
    assert f"| header | {len(PACKAGE_HEADER)} |" in document
    assert PackageContents.parse(contents.splitlines()[0]).configuration.application_path == "/bin/hello"


def test_the_same_settings_make_the_same_bytes(package: Callable[..., Path], image_keys: Keys, keys: Keys) -> None:
    hashes = ["--roothash", "11" * 32, "--roothash", "AA" * 32]
    first = package(*hashes, "--pubkey", str(image_keys[0]), "--pubkey", str(keys[0]), Debug=0).read_bytes()
    second = package(*hashes[2:], *hashes, "--pubkey", str(keys[0]), "--pubkey", str(image_keys[0])).read_bytes()
    assert first == second


def test_200_random_changes_of_one_byte_are_refused(
    package: Callable[..., Path], image_keys: Keys, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It has no root file system: if a changed package passed, it would fail for that reason and run nothing.
    monkeypatch.delenv("MYST_ROOTFS", raising=False)
    monkeypatch.delenv("MYST_ROOTFS_PATH", raising=False)
    path = package("--pubkey", str(image_keys[0]), MemorySize="40m", Mount=[{"Target": "/x", "Type": "ramfs"}])
    original = path.read_bytes()
    assert "no root file system" in in_process("run", path).stderr
    chance = random.Random(5)
    for _ in range(200):
        changed = bytearray(original)
        changed[chance.randrange(len(changed))] ^= chance.randrange(1, 256)
        path.write_bytes(changed)
        for signer in (), ("--signer", keys[0]):
            result = in_process("run", *signer, path)
            assert result.returncode in (NOT_TRUSTED, FORMAT), result
            assert result.stderr.count("\n") == 1


def test_every_byte_counts(package: Callable[..., Path]) -> None:
    original = package().read_bytes()
    open_package(original, [])
    for position in range(len(original)):
        changed = bytearray(original)
        changed[position] ^= 1
        with pytest.raises((NotTrusted, FormatError)):
            open_package(bytes(changed), [])


def test_a_changed_first_line_is_refused_by_run(package: Callable[..., Path]) -> None:
    path = package()
    path.write_bytes(path.read_bytes().replace(b"exec mystfuse run", b"exec mystfuse RUN", 1))
    result = in_process("run", path)
    assert result.returncode == FORMAT
    assert "its first lines were changed" in result.stderr


def test_truncated_and_extended_packages_are_refused(package: Callable[..., Path]) -> None:
    original = package().read_bytes()
    for length in range(len(original)):
        with pytest.raises(MystfuseError):
            open_package(original[:length], [])
    for more in b"\n", b"\0", b" ", b"echo hello\n", original:
        with pytest.raises(FormatError):
            open_package(original + more, [])
    with pytest.raises(FormatError, match="larger than"):
        open_package(original + bytes(1 << 20), [])


def signed(contents: bytes, key: SigningKey) -> bytes:
    """A package file with any contents and a valid signature."""

    class Contents:
        root_hashes = public_keys = ()

        def pack(self) -> bytes:
            return contents

    return sign_package(Contents(), key)  # type: ignore[arg-type]


def test_signed_contents_must_be_canonical(signing_key: SigningKey) -> None:
    good = PackageContents(Configuration("/bin/echo"), ("00" * 32,)).pack()
    open_package(signed(good, signing_key), [])
    value = json.loads(good)
    others = [
        b"",
        b"[]",
        b"null",
        b"[" * 100_000,
        good + b" ",
        b" " + good,
        good.replace(b",", b", ", 1),
        good.replace(b"Debug", b"\\u0044ebug"),
        good.replace(b'"Debug":false', b'"Debug":0'),
        good.replace(b'"Debug":false', b'"Debug":false,"Debug":true'),
        good.replace(b'"Debug":false,', b""),
        good.replace(b'"version":1}', b'"version":2}'),
        good.replace(b'"version":1}', b'"version":1.0}'),
        good.replace(b'"version":1}', b'"version":true}'),
        good.replace(b'"version":1}', b'"more":1,"version":1}'),
        json.dumps(value).encode(),
        good.replace(b"00" * 32, b"AA" * 32),
        good.replace(b"00" * 32, b"00" * 31),
        good.replace(b'"' + b"00" * 32 + b'"', b"7"),
        good.replace(b'["' + b"00" * 32 + b'"]', b'["' + b"00" * 32 + b'","' + b"00" * 32 + b'"]'),
        good.replace(b"/bin/echo", b"bin/echo"),
    ]
    for contents in others:
        with pytest.raises(FormatError):
            open_package(signed(contents, signing_key), [])


def test_impossible_public_keys_in_a_signed_package(signing_key: SigningKey) -> None:
    for text in "", "not a key", "\ud800":
        contents = PackageContents(Configuration("/bin/echo"), (), (text,))
        opened = open_package(sign_package(contents, signing_key), [])
        with pytest.raises(FormatError, match="not a PEM public key"):
            opened.policy()


def test_the_signers_key_has_one_spelling(package: Callable[..., Path]) -> None:
    file = PackageFile.parse(package().read_bytes())
    for signer in file.signer + b"\0", b"\x30\x83\0" + file.signer[2:], b"x" * 3000, b"x" * 5000:
        with pytest.raises(FormatError):
            open_package(PackageFile(file.unverified_contents, signer, file.signature).pack(), [])


def test_a_package_can_only_be_so_large(signing_key: SigningKey) -> None:
    with pytest.raises(UsageError, match="are the most"):
        sign_package(PackageContents(Configuration("/a", tuple("x" * 30_000 for _ in range(40)))), signing_key)
    hashes = tuple(f"{number:064x}" for number in range(1025))
    with pytest.raises(UsageError, match="and no more"):
        sign_package(PackageContents(Configuration("/a"), hashes), signing_key)
    open_package(sign_package(PackageContents(Configuration("/a"), hashes[:1024]), signing_key), [])


def test_the_default_name_and_mode(tmp_path: Path, keys: Keys) -> None:
    (tmp_path / "config.json").write_text('{"version": "0.1", "ApplicationPath": "/usr/bin/hello"}')
    make = [*COMMAND, "package-sgx", f"--roothash={'00' * 32}", str(keys[1]), "config.json"]
    assert run(*make, cwd=tmp_path).stderr == ""
    out = tmp_path / "myst/bin/hello"
    assert out.stat().st_mode & 0o7777 == 0o755
    before = out.read_bytes()
    again = run(*make, cwd=tmp_path, check=False)
    assert again.returncode == FAILED
    assert "myst/bin/hello: already exists (--force overwrites it)" in again.stderr
    (tmp_path / "config.json").write_text('{"version": "0.1", "ApplicationPath": "/other/hello"}')
    run(*make, "--force", cwd=tmp_path)
    assert out.read_bytes() != before
    assert sorted(os.listdir(out.parent)) == ["hello"]


def test_a_package_must_trust_a_key_or_a_root_hash(tmp_path: Path, keys: Keys) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"version": "0.1", "ApplicationPath": "/bin/echo"}')
    result = in_process("package", "-o", tmp_path / "out", keys[1], config)
    assert result.returncode == USAGE
    assert "give --roothash or --pubkey" in result.stderr


def test_unusable_keys_and_hashes_are_refused(tmp_path: Path, keys: Keys) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"version": "0.1", "ApplicationPath": "/bin/echo"}')
    encrypted = tmp_path / "encrypted.pem"
    run("openssl", "rsa", "-in", keys[1], "-aes128", "-passout", "pass:x", "-out", encrypted)
    small = tmp_path / "small.pem"
    run("openssl", "genrsa", "-out", small, "1024")
    for private, options, what in (
        (keys[0], ("--roothash", "00" * 32), "not a PEM private key"),
        (small, ("--roothash", "00" * 32), "an RSA key of 1024 bits"),
        (tmp_path / "absent", ("--roothash", "00" * 32), "No such file"),
        (keys[1], ("--roothash", "00" * 31), "--roothash"),
        (keys[1], ("--roothash", "00" * 64), "sha512"),
        (keys[1], ("--pubkey", keys[1]), "not a PEM public key"),
    ):
        result = in_process("package", *options, "-o", tmp_path / "out", private, config)
        assert result.returncode == USAGE, result
        assert what in result.stderr
        assert result.stderr.count("\n") == 1
    result = in_process("package", "--roothash", "00" * 32, "-o", tmp_path / "out", encrypted, config)
    assert_one_line(result, 5, "is encrypted")
    assert not (tmp_path / "out").exists()
    given = ("--sign-passphrase-command", "echo x", "--roothash", "00" * 32, "-o", tmp_path / "out")
    assert in_process("package", *given, encrypted, config).returncode == 0
    open_package((tmp_path / "out").read_bytes(), [PublicKey.from_pem(keys[0].read_bytes(), "public")])

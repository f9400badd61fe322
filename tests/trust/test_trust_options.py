"""The options of trust on the command line: --pubkey, --roothash and their files."""

from __future__ import annotations

import os
import re
import shutil
import struct
from pathlib import Path

import pytest

from tests.support.cli_in_process import in_process
from tests.support.commands import mystfuse, run
from tests.support.images import DATA
from tests.support.mounts import clear_mount
from tests.support.signed_images import (
    FORMAT,
    INTEGRITY,
    NOT_TRUSTED,
    MakeKeys,
    assert_accepted,
    assert_refused,
    root_hash,
)

SIGNER, SIGNATURE, SIGNATURE_SIZE = 56, 88, 1112
"""Offsets in an fssig."""


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
    # The data have not changed: the root hash covers them.
    assert_accepted(image, mountpoint, f"--roothash={root_hash(image)}", because="root hash is a trusted one")


def test_impossible_signature_sizes(signed: Path, mountpoint: Path, alice: tuple[Path, Path]) -> None:
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
    """Bob's signature under alice's name, and alice's under bob's: neither counts, with either of them trusted."""
    by_bob, image = mountpoint.parent / "by-bob", mountpoint.parent / "renamed"
    assert mystfuse("mkext2", f"--sign={bob[0]}:{bob[1]}", small_tree, by_bob).returncode == 0
    with_fields(by_bob, image, (SIGNER, field(signed, SIGNER, 32)))
    assert_refused(image, mountpoint, f"--pubkey={alice[0]}", status=NOT_TRUSTED, because="signature")
    assert_refused(image, mountpoint, f"--pubkey={bob[0]}", status=NOT_TRUSTED)
    assert_refused(image, mountpoint, f"--pubkey={bob[0]}", f"--pubkey={alice[0]}", status=NOT_TRUSTED)
    with_fields(signed, image, (SIGNER, bytes(32)))
    assert_refused(image, mountpoint, f"--pubkey={alice[0]}", status=NOT_TRUSTED)
    # A valid signature of another image's root hash.
    with_fields(by_bob, image, (SIGNER, field(signed, SIGNER, 32 + 1024 + 8)))
    assert_refused(image, mountpoint, f"--pubkey={alice[0]}", status=NOT_TRUSTED, because="signature")


@pytest.mark.parametrize(("bits", "exponent", "primes"), [(2048, 3, 2), (4096, 2**80 + 13, 2), (8192, 65537, 5)])
def test_openssls_signatures_are_accepted(
    bits: int, exponent: int, primes: int, signed: Path, mountpoint: Path, tmp_path: Path
) -> None:
    """Keys up to the largest that fits into an fssig, with exponents that few libraries accept."""
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
    """The fssig of a trusted image behind other data: the hash tree shows it."""
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
            # Even beside a valid one: a list with a mistake is not the list that its author meant.
            tool = in_process if command[0] == "verify" else mystfuse
            result = tool(command[0], f"--pubkey={alice[0]}", f"--pubkey={key}", *command[1:])
            clear_mount(mountpoint)
            assert result.returncode == 2, (key, result)
            assert re.fullmatch(r"mystfuse: [^\n]+\n", result.stderr), result.stderr

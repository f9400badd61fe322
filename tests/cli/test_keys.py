"""``mystfuse keys fingerprint`` prints the signer of a key, as openssl and sha256sum judge, and whether it may sign."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli_in_process import in_process
from tests.support.commands import assert_one_line, mystfuse, run
from tests.support.json_documents import check_document

USAGE = 2
MakeKeys = Callable[..., tuple[Path, Path]]


def signer_of(path: Path, *options: str) -> str:
    """By openssl: SHA-256 of the modulus."""
    modulus = run("openssl", "rsa", *options, "-in", path, "-noout", "-modulus").stdout.strip().removeprefix("Modulus=")
    return hashlib.sha256(bytes.fromhex(modulus)).hexdigest()


def fingerprints(*words: str | Path) -> list[dict[str, Any]]:
    result = in_process("keys", "fingerprint", "--json", *words)
    assert (result.returncode, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    check_document("keys-fingerprint", document)
    keys: list[dict[str, Any]] = document["keys"]
    return keys


def genpkey(path: Path, *options: str) -> Path:
    run("openssl", "genpkey", *options, "-out", path)
    return path


@pytest.mark.parametrize(("bits", "exponent"), [(2048, 65537), (3072, 3)])
def test_public_and_private_key_have_the_fingerprint_that_openssl_computes(
    bits: int, exponent: int, make_keys: MakeKeys
) -> None:
    public, private = make_keys(f"keys-{bits}", bits, exponent)
    expected = signer_of(public, "-pubin")
    assert signer_of(private) == expected
    facts = {"type": "RSA", "signer": expected, "bits": bits, "exponent": exponent, "fault": None, "may_sign": True}
    assert fingerprints(public, private) == [
        {"file": str(public), "is_private": False, **facts},
        {"file": str(private), "is_private": True, **facts},
    ]
    result = in_process("keys", "fingerprint", public, private)
    assert result.stdout == (
        f"{expected}  {public}: RSA public key of {bits} bits, exponent {exponent}; may sign images\n"
        f"{expected}  {private}: RSA private key of {bits} bits, exponent {exponent}; may sign images\n"
    )


def test_it_is_what_an_image_names(make_keys: MakeKeys, small_tree: Path, tmp_path: Path) -> None:
    public, private = make_keys("keys-image", 2048)
    image = tmp_path / "image"
    assert in_process("mkext2", f"--sign={public}:{private}", small_tree, image).returncode == 0
    result = in_process("fssig", "--signer", image)
    assert (result.returncode, result.stdout) == (0, fingerprints(public)[0]["signer"] + "\n")


def test_an_unsigned_image_has_no_signer(small_image: Path) -> None:
    result = in_process("fssig", "--signer", small_image)
    assert result.stdout == ""
    assert_one_line(result, 1, f"{small_image}: unsigned")
    for others in ("--roothash",), ("--json",), ("--roothash", "--json"):
        assert_one_line(in_process("fssig", "--signer", *others, small_image), USAGE, "exclude each other")


def test_private_keys_in_all_of_opensslls_forms(tmp_path: Path) -> None:
    pkcs8 = genpkey(tmp_path / "pkcs8", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048")
    pkcs1 = tmp_path / "pkcs1"
    run("openssl", "rsa", "-in", pkcs8, "-traditional", "-out", pkcs1)
    public1 = tmp_path / "public1"
    run("openssl", "rsa", "-in", pkcs8, "-RSAPublicKey_out", "-out", public1)
    assert b"RSA PRIVATE KEY" in pkcs1.read_bytes() and b"RSA PUBLIC KEY" in public1.read_bytes()
    assert {key["signer"] for key in fingerprints(pkcs8, pkcs1, public1)} == {signer_of(pkcs8)}


def test_several_keys_in_a_file_and_on_stdin(make_keys: MakeKeys, tmp_path: Path) -> None:
    (first, _), (second, private) = make_keys("keys-first", 2048), make_keys("keys-second", 2048)
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(b"# two signers\n" + first.read_bytes() + b"\n" + second.read_bytes() + private.read_bytes())
    expected = [signer_of(first, "-pubin"), signer_of(second, "-pubin"), signer_of(private)]
    assert [key["signer"] for key in fingerprints(bundle)] == expected
    result = mystfuse("keys", "fingerprint", "-", input=bundle.read_text())
    assert [line.split("  ")[0] for line in result.stdout.splitlines()] == expected
    assert all("  -: RSA " in line for line in result.stdout.splitlines())


def test_keys_that_may_not_sign_say_why(tmp_path: Path) -> None:
    small = genpkey(tmp_path / "small", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024")
    pss = genpkey(tmp_path / "pss", "-algorithm", "RSA-PSS", "-pkeyopt", "rsa_keygen_bits:2048")
    curve = genpkey(tmp_path / "ec", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
    edwards = genpkey(tmp_path / "ed", "-algorithm", "ED25519")
    keys = fingerprints(small, pss, curve, edwards)
    assert [key["type"] for key in keys] == ["RSA", "RSA-PSS", "EC", "Ed25519"]
    assert [key["bits"] for key in keys] == [1024, 2048, None, None]
    assert [key["may_sign"] for key in keys] == [False] * 4
    for key, why in zip(
        keys, ("1024 bits; it must have 2048", "RSA-PSS", "not an RSA key", "not an RSA key"), strict=True
    ):
        assert why in key["fault"]
    assert keys[0]["signer"] == signer_of(small) and keys[2]["signer"] is None
    assert "may NOT sign images: not an RSA key" in in_process("keys", "fingerprint", curve).stdout


def test_the_rules_are_those_of_signing(tmp_path: Path, small_tree: Path) -> None:
    """What fingerprint says a key may not do, mkext2 does not let it do, for the same reason."""
    private, public = (
        genpkey(tmp_path / "small", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"),
        tmp_path / "pub",
    )
    run("openssl", "rsa", "-in", private, "-pubout", "-out", public)
    fault = fingerprints(private)[0]["fault"]
    assert_one_line(in_process("mkext2", f"--sign={public}:{private}", small_tree, tmp_path / "image"), USAGE, fault)


@pytest.mark.parametrize("options", [(), ("-traditional",)], ids=["pkcs8", "traditional"])
def test_an_encrypted_private_key_is_one_line_and_asks_nothing(options: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    run("openssl", "genrsa", *options, "-aes128", "-passout", "pass:abcd", "-out", path, "2048")
    result = mystfuse("keys", "fingerprint", path, stdin=-3)
    assert result.stdout == ""
    assert_one_line(result, USAGE, str(path), "encrypted", f"openssl pkey -in {path} -pubout")


def test_nothing_of_a_private_key_is_shown(make_keys: MakeKeys) -> None:
    _, private = make_keys("keys-secret", 2048)
    text = (
        run("openssl", "rsa", "-in", private, "-noout", "-text")
        .stdout.replace(":", "")
        .replace("\n", "")
        .replace(" ", "")
    )
    for words in ("--json",), ():
        result = mystfuse("keys", "fingerprint", *words, private, env={"MYSTFUSE_DEBUG": "1"})
        shown = result.stdout + result.stderr
        digits = [shown[start : start + 24] for start in range(len(shown) - 24)]
        assert not any(part in text for part in digits if set(part) <= set("0123456789abcdef"))
        assert not any(line in shown for line in private.read_text().splitlines()[1:-1])


def test_one_bad_file_prints_nothing_of_the_others(make_keys: MakeKeys, tmp_path: Path) -> None:
    public, _ = make_keys("keys-good", 2048)
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    run(
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        "/CN=x",
        "-keyout",
        key,
        "-out",
        certificate,
    )
    (tmp_path / "text").write_text("hello\n")
    (tmp_path / "broken").write_text("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")
    for bad, said in (
        ("certificate.pem", "a certificate, not a public key (openssl x509"), ("text", "not a PEM key"),
        ("broken", "a malformed key"), ("missing", "No such file or directory"), (".", "a directory, not a PEM key"),
    ):  # fmt: skip
        result = in_process("keys", "fingerprint", public, tmp_path / bad)
        assert result.stdout == ""
        assert_one_line(result, USAGE, said)


def test_the_group_shows_its_commands() -> None:
    assert "fingerprint" in in_process("keys", "--help").stdout
    assert_one_line(in_process("keys", "nonsense"), USAGE, "No such command")
    assert_one_line(in_process("keys", "fingerprint"), USAGE, "PEM")
    assert_one_line(in_process("fingerprint"), USAGE, "did you mean keys fingerprint?")

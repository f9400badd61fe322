"""``mystfuse sign``: the signature block is replaced, in place, and nothing else; and only where that makes sense."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.cli_in_process import in_process
from tests.support.commands import assert_one_line, mystfuse, run
from tests.support.encrypted_images import on_terminal, write_secret
from tests.support.json_documents import check_document
from tests.support.made_images import make

MakeKeys = Callable[..., tuple[Path, Path]]
FAILED, USAGE, NOT_TRUSTED, INTEGRITY, KEY, FORMAT = 1, 2, 3, 4, 5, 6
SIGNED = r"{image}: root hash {root}, signed by {signer}\n"


def root_of(image: Path) -> str:
    return image.read_bytes()[-4096:][24:56].hex()


def signer_of(public: str | Path) -> str:
    modulus = run("openssl", "rsa", "-pubin", "-in", public, "-noout", "-modulus").stdout.strip()
    return hashlib.sha256(bytes.fromhex(modulus.removeprefix("Modulus="))).hexdigest()


@pytest.mark.parametrize("bits", [2048, 3072, 4096, 8192])
def test_it_is_the_image_that_mkext2_signs(
    bits: int, small_tree: Path, tmp_path: Path, make_keys: MakeKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    public, private = make_keys(f"sign-{bits}", bits, 65537)
    plain, signed, image = tmp_path / "plain", tmp_path / "signed", tmp_path / "image"
    make(small_tree, plain)
    make(small_tree, signed, f"--sign={public}:{private}")
    image.write_bytes(plain.read_bytes())
    before = image.stat()
    result = in_process("sign", f"--sign={public}:{private}", image)
    line = f"{image}: root hash {root_of(plain)}, signed by {signer_of(public)}\n"
    assert (result.returncode, result.stdout, result.stderr) == (0, line, "")
    assert image.read_bytes() == signed.read_bytes() != plain.read_bytes()
    assert (image.stat().st_ino, image.stat().st_mode) == (before.st_ino, before.st_mode)
    # Again, from a signature of another size and key.
    other_public, other_private = make_keys("sign-other", 3072, 3)
    assert in_process("sign", "--quiet", f"--sign={other_public}:{other_private}", image).stdout == ""
    assert in_process("sign", f"--sign={public}:{private}", image).stdout == line
    assert image.read_bytes() == signed.read_bytes()
    result = in_process("sign", "--remove", image)
    assert (result.returncode, result.stdout) == (0, f"{image}: root hash {root_of(plain)}, unsigned\n")
    assert image.read_bytes() == plain.read_bytes()
    assert in_process("sign", "--remove", "--quiet", image).returncode == 0
    assert image.read_bytes() == plain.read_bytes()


def test_openssl_and_verify_accept_the_signature(image: Path, tmp_path: Path, pair: str) -> None:
    public = pair.partition(":")[0]
    assert in_process("verify", "--pubkey", public, image).returncode == NOT_TRUSTED
    assert in_process("sign", f"--sign={pair}", image).returncode == 0
    assert "signed by trusted key" in in_process("verify", "--pubkey", public, image).stdout
    block = image.read_bytes()[-4096:]
    (tmp_path / "digest").write_bytes(block[24:56])
    (tmp_path / "signature").write_bytes(block[88 : 88 + 256])
    run("openssl", "pkeyutl", "-verify", "-pubin", "-inkey", public, "-in", tmp_path / "digest",
        "-sigfile", tmp_path / "signature", "-pkeyopt", "digest:sha256")  # fmt: skip


@pytest.mark.parametrize("options", [(), ("--luks2",)], ids=["luks1", "luks2"])
def test_an_encrypted_image_needs_no_key(options: tuple[str, ...], small_tree: Path, tmp_path: Path, pair: str) -> None:
    key = write_secret(tmp_path / "key", os.urandom(64))
    image = tmp_path / "image"
    make(small_tree, image, "--encrypt", key, f"--sign={pair}", *options)
    signed = image.read_bytes()
    key.unlink()
    assert in_process("sign", "--remove", image).returncode == 0
    assert image.read_bytes()[:-4096] == signed[:-4096] and image.read_bytes() != signed
    assert in_process("sign", "--verify", f"--sign={pair}", image).returncode == 0
    assert image.read_bytes() == signed


@pytest.mark.parametrize("name", ["plain-1024", "plain-4096", "signed-1024", "signed-4096"])
def test_the_originals_images_are_signed_as_well(name: str, golden: dict[str, Path], tmp_path: Path, pair: str) -> None:
    image = tmp_path / "image"
    image.write_bytes(golden[name].read_bytes())
    document = json.loads(in_process("sign", "--json", "--verify", f"--sign={pair}", image).stdout)
    check_document("sign", document)
    before = golden[name].read_bytes()
    assert image.read_bytes()[:-4096] == before[:-4096]
    assert document == {
        "image": str(image),
        "done": "signed",
        "root_hash": root_of(golden[name]),
        "signer": signer_of(pair.partition(":")[0]),
        "previous_signer": before[-4096:][56:88].hex() if name.startswith("signed") else None,
        "verified": "all",
    }
    document = json.loads(in_process("sign", "--json", "--remove", image).stdout)
    check_document("sign", document)
    assert (document["done"], document["signer"], document["verified"]) == ("removed", None, "tree")


def test_a_detached_signature_is_the_same(image: Path, tmp_path: Path, pair: str) -> None:
    public, _, private = pair.partition(":")
    before = image.read_bytes()
    digest = in_process("sign", "--print-digest", image)
    assert (digest.returncode, digest.stdout, digest.stderr) == (0, f"{root_of(image)}\n", "")
    command = [sys.executable, "-m", "mystfuse", "sign", "--print-digest", "--binary", image]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    assert raw == bytes.fromhex(root_of(image))
    document = json.loads(in_process("sign", "--print-digest", "--json", image).stdout)
    check_document("sign", document)
    assert (document["done"], document["root_hash"]) == ("nothing", root_of(image))
    assert image.read_bytes() == before
    (tmp_path / "digest").write_bytes(raw)
    signature = tmp_path / "signature"
    run("openssl", "pkeyutl", "-sign", "-inkey", private, "-pkeyopt", "digest:sha256", "-in", tmp_path / "digest",
        "-out", signature)  # fmt: skip
    document = json.loads(in_process("sign", "--json", "--attach", signature, "--pubkey", public, image).stdout)
    check_document("sign", document)
    assert (document["done"], document["signer"]) == ("attached", signer_of(public))
    attached = image.read_bytes()
    image.write_bytes(before)
    assert in_process("sign", f"--sign={pair}", image).returncode == 0
    assert image.read_bytes() == attached


def test_the_digest_of_an_image_that_may_not_be_written_is_printed(
    open_tmp_path: Path, small_image: Path, ordinary_user: list[str]
) -> None:
    image = open_tmp_path / "image"
    image.write_bytes(small_image.read_bytes())
    image.chmod(0o444)
    assert run(*ordinary_user, "sign", "--print-digest", image, cwd=open_tmp_path).stdout.strip() == root_of(image)


def test_what_is_no_signature_by_that_key_is_not_attached(
    image: Path, tmp_path: Path, pair: str, make_keys: MakeKeys
) -> None:
    public, _, private = pair.partition(":")
    other = make_keys("sign-second", 2048, 65537)[0]
    before = image.read_bytes()
    digest, signature, wrong = tmp_path / "digest", tmp_path / "signature", tmp_path / "wrong"
    digest.write_bytes(bytes.fromhex(root_of(image)))
    sign = ["openssl", "pkeyutl", "-sign", "-inkey", private, "-pkeyopt"]
    run(*sign, "digest:sha256", "-in", digest, "-out", signature)
    good = signature.read_bytes()
    # As RSA-PSS, and as "openssl dgst" does: of the digest's digest.
    run(*sign, "digest:sha256", "-pkeyopt", "rsa_padding_mode:pss", "-in", digest, "-out", tmp_path / "pss")
    run("openssl", "dgst", "-sha256", "-sign", private, "-out", tmp_path / "twice", digest)
    for contents, status, word in (
        (good[:-1] + bytes([good[-1] ^ 1]), NOT_TRUSTED, "not a signature of root hash"),
        ((tmp_path / "pss").read_bytes(), NOT_TRUSTED, "not a signature of root hash"),
        ((tmp_path / "twice").read_bytes(), NOT_TRUSTED, "not a signature of root hash"),
        (good[:-1], USAGE, "255 bytes; a signature by this key has 256"),
        (good + b"\n", USAGE, "257 bytes"),
        (good.hex().encode(), USAGE, "not hex"),
        (b"", USAGE, "0 bytes"),
    ):
        wrong.write_bytes(contents)
        assert_one_line(in_process("sign", "--attach", wrong, "--pubkey", public, image), status, word)
        assert image.read_bytes() == before
    assert_one_line(in_process("sign", "--attach", signature, "--pubkey", other, image), NOT_TRUSTED, "not a signature")
    both = tmp_path / "both.pem"
    both.write_bytes(Path(public).read_bytes() + other.read_bytes())
    assert_one_line(in_process("sign", "--attach", signature, "--pubkey", both, image), USAGE, "2 public keys")
    assert_one_line(in_process("sign", "--attach", tmp_path / "none", "--pubkey", public, image), USAGE, "No such file")
    assert image.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ((), "what is to be done? --sign PUB:PRIV"),
        (("--remove", "--print-digest"), "--remove and --print-digest exclude each other"),
        (("--sign=a:b", "--remove"), "--sign and --remove exclude each other"),
        (("--attach=x", "--remove"), "--remove and --attach exclude each other"),
        (("--attach=x",), "--attach needs --pubkey"),
        (("--remove", "--pubkey=x"), "--pubkey goes with --attach"),
        (("--remove", "--binary"), "--binary goes with --print-digest"),
        (("--print-digest", "--binary", "--json"), "exclude each other"),
        (("--remove", "--sign-passphrase-file=x"), "--sign-passphrase-file goes with --sign"),
        (("--remove", "--sign-passphrase-command=x"), "--sign-passphrase-command goes with --sign"),
        (("--sign=public.pem",), "must be PUBLIC.pem:PRIVATE.pem"),
        (("--sign=:private.pem",), "must be PUBLIC.pem:PRIVATE.pem"),
        (("--sign=pkcs11:object=a",), "the public key's PEM file comes first"),
        (("--sign=absent.pem:absent.pem",), "absent.pem: No such file"),
        (("--remove", "--roothash=12"), "--roothash 12"),
    ],
)
def test_options_that_make_no_sense_change_nothing(options: tuple[str, ...], word: str, image: Path) -> None:
    before = image.read_bytes()
    assert_one_line(in_process("sign", *options, image), USAGE, word)
    assert image.read_bytes() == before


def test_only_the_root_hash_that_is_meant_is_signed(image: Path, pair: str) -> None:
    before = image.read_bytes()
    result = in_process("sign", f"--sign={pair}", f"--roothash={'00' * 32}", image)
    assert_one_line(result, NOT_TRUSTED, f"its root hash is {root_of(image)}, not {'00' * 32}: nothing is done")
    assert image.read_bytes() == before
    assert in_process("sign", f"--sign={pair}", f"--roothash={root_of(image)}", image).returncode == 0


def changed(image: Path, offset: int) -> bytes:
    """The image with another byte there; from the end, if negative."""
    data = bytearray(image.read_bytes())
    data[offset] ^= 1
    image.write_bytes(data)
    return bytes(data)


def test_what_a_mount_would_refuse_is_not_signed(image: Path, pair: str) -> None:
    """Who signs vouches for the contents: not for another tree than the root hash's, nor for another superblock."""
    good = image.read_bytes()
    hash_offset = int.from_bytes(good[-4096 + 16 : -4096 + 24], "little")
    # The root hash; the top hash block; the superblock's block count, salt, and UUID; the first data block, which says
    # what it is; hash_offset.
    for offset, status in (
        (len(good) - 4096 + 24, INTEGRITY),
        (hash_offset + 4096, INTEGRITY),
        (hash_offset + 72, FORMAT),
        (hash_offset + 100, FORMAT),
        (hash_offset + 20, FORMAT),
        (1024 + 56, INTEGRITY),
        (len(good) - 4096 + 17, FORMAT),
    ):
        image.write_bytes(good)
        bad = changed(image, offset)
        for options in (f"--sign={pair}",), ("--remove",), ("--print-digest",):
            result = in_process("sign", *options, image)
            assert_one_line(result, status, str(image))
            assert result.stdout == ""
        assert image.read_bytes() == bad


def test_a_damaged_block_is_found_on_request(image: Path, pair: str) -> None:
    good = image.read_bytes()
    hash_offset = int.from_bytes(good[-4096 + 16 : -4096 + 24], "little")
    bad = changed(image, hash_offset - 5000)
    result = in_process("sign", "--verify", f"--sign={pair}", image)
    assert_one_line(result, INTEGRITY, "1 damaged range: nothing is done")
    assert image.read_bytes() == bad
    assert in_process("sign", f"--sign={pair}", image).returncode == 0


def test_other_files_are_refused(image: Path, tmp_path: Path, pair: str) -> None:
    data = image.read_bytes()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").touch()
    (tmp_path / "bare").write_bytes(data[: 8 << 20])
    (tmp_path / "truncated").write_bytes(data[:-1])
    (tmp_path / "garbage").write_bytes(os.urandom(100_000))
    (tmp_path / "loop").symlink_to("loop")
    for name, status, word in (
        ("absent", FAILED, "No such file"),
        ("fifo", FORMAT, "a FIFO, not an image"),
        ("", FORMAT, "a directory, not an image"),
        ("/dev/null", FORMAT, "a character device, not an image"),
        ("loop", FAILED, "Too many levels of symbolic links"),
        ("empty", FORMAT, "an empty file, not an image"),
        ("bare", FORMAT, "not an image"),
        ("truncated", FORMAT, "a truncated image: 1 bytes are missing"),
        ("garbage", FORMAT, "random bytes"),
    ):
        path = tmp_path / name
        before = path.read_bytes() if path.is_file() else b""
        assert_one_line(in_process("sign", f"--sign={pair}", path), status, word, name)
        assert not path.is_file() or path.read_bytes() == before


def test_a_passphrase_opens_the_private_key(image: Path, tmp_path: Path, pair: str) -> None:
    public, _, private = pair.partition(":")
    phrase = write_secret(tmp_path / "phrase", "open sesame\n")
    assert in_process("sign", f"--sign={pair}", image).returncode == 0
    signed = image.read_bytes()
    for name, options in (
        ("pkcs8", ("pkcs8", "-topk8")),
        ("scrypt", ("pkcs8", "-topk8", "-scrypt")),
        ("traditional", ("rsa", "-aes256", "-traditional")),
    ):
        locked = tmp_path / name
        run("openssl", *options, "-in", private, "-passout", "pass:open sesame", "-out", locked)
        locked.chmod(0o600)
        sign = ["sign", f"--sign={public}:{locked}", image]
        in_process("sign", "--remove", image)
        unsigned = image.read_bytes()
        result = mystfuse(*sign, stdin=subprocess.DEVNULL)
        assert_one_line(result, KEY, f"{locked}: the private key is encrypted")
        assert_one_line(in_process(*sign, "--sign-passphrase-command=echo no"), KEY, "does not decrypt the private key")
        assert_one_line(in_process(*sign, "--sign-passphrase-command=echo"), KEY, "its passphrase is empty")
        assert image.read_bytes() == unsigned
        for given in (
            ("--sign-passphrase-file", phrase),
            ("--sign-passphrase-command", f"cat {phrase}"),
        ):
            in_process("sign", "--remove", image)
            result = in_process(*sign, *given)
            assert (result.returncode, result.stderr) == (0, "")
            assert image.read_bytes() == signed
        in_process("sign", "--remove", image)
        assert mystfuse(*sign, "--sign-passphrase-file", "-", input="open sesame").returncode == 0
        assert image.read_bytes() == signed
    result = in_process(*sign, "--sign-passphrase-file", phrase, "--sign-passphrase-command=x")
    assert_one_line(result, USAGE, "exclude each other")
    result = in_process("sign", f"--sign={pair}", "--sign-passphrase-file", phrase, image)
    assert_one_line(result, USAGE, "a passphrase is given, but the private key is not encrypted")
    result = mystfuse("sign", f"--sign={public}:-", "--sign-passphrase-file=-", image, input="x")
    assert_one_line(result, USAGE, "cannot both come from stdin")


def test_a_private_key_comes_from_stdin(image: Path, pair: str) -> None:
    public, _, private = pair.partition(":")
    result = mystfuse("sign", f"--sign={public}:-", image, input=Path(private).read_text())
    assert (result.returncode, result.stderr) == (0, "")
    assert in_process("verify", "--pubkey", public, image).returncode == 0


def test_a_terminal_is_asked_for_a_passphrase(image: Path, tmp_path: Path, pair: str) -> None:
    public, _, private = pair.partition(":")
    locked = tmp_path / "locked"
    run("openssl", "rsa", "-aes256", "-in", private, "-passout", "pass:open sesame", "-out", locked)
    command: list[str | Path] = ["sign", f"--sign={public}:{locked}", image]
    status, output = on_terminal(command, [(f"Passphrase for {locked}: ", "open sesame")])
    assert status == 0 and "signed by" in output and "sesame" not in output
    status, output = on_terminal(command, [(f"Passphrase for {locked}: ", "close sesame")])
    assert status == KEY and "does not decrypt" in output and "sesame" not in output
    status, output = on_terminal([*command, "--sign-passphrase-file=-"], [("Passphrase for ", "open sesame")])
    assert status == 0


def test_a_private_key_that_others_can_read_is_warned_of(image: Path, tmp_path: Path, pair: str) -> None:
    public, _, private = pair.partition(":")
    copy = tmp_path / "copy"
    copy.write_bytes(Path(private).read_bytes())
    copy.chmod(0o640)
    result = in_process("sign", f"--sign={public}:{copy}", image)
    assert (result.returncode, result.stderr) == (
        0,
        f"mystfuse: warning: {copy} can be read by others (mode 0640): chmod 600 it\n",
    )
    # Not of a public key in its place.
    assert_one_line(in_process("sign", f"--sign={public}:{public}", image), USAGE, "not a PEM private key")


def test_digests_are_not_written_to_a_terminal(image: Path) -> None:
    status, output = on_terminal(["sign", "--print-digest", "--binary", image], [])
    assert status == USAGE and "not to a terminal" in output

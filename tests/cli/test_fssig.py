"""``mystfuse fssig`` prints exactly the original's lines; for other files, one line that says what is wrong."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.cli_in_process import in_process
from tests.support.commands import mystfuse, run
from tests.support.images import DATA, GOLDEN_NAMES
from tests.support.json_documents import check_document

NAMES = ["magic", "version", "hash_offset", "root_hash", "signer", "signature", "signature_size"]


def independent(image: Path) -> dict[str, str]:
    """The fields of an fssig, decoded here by the table in the format's description."""
    data = image.read_bytes()[-4096:]
    magic, version, hash_offset = struct.unpack_from("<QQQ", data)
    (size,) = struct.unpack_from("<Q", data, 1112)
    return {
        "magic": f"{magic:016x}",
        "version": str(version),
        "hash_offset": str(hash_offset),
        "root_hash": data[24:56].hex(),
        "signer": data[56:88].hex() if any(data[56:88]) else "null",
        "signature": data[88 : 88 + size].hex() if size else "null",
        "signature_size": str(size),
    }


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_lines_are_the_originals(name: str, golden: dict[str, Path]) -> None:
    result = mystfuse("fssig", golden[name])
    assert (result.returncode, result.stderr) == (0, "")
    expected = independent(golden[name])
    assert result.stdout == "".join(f"{field}={expected[field]}\n" for field in NAMES)
    assert expected["magic"] == "f55198a153624d38"
    assert expected["version"] == "1"
    if name.startswith("plain"):
        assert result.stdout.endswith("\nsigner=null\nsignature=null\nsignature_size=0\n")
    else:
        assert len(expected["signature"]) == 2 * int(expected["signature_size"]) == 768


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_roothash_is_the_hash_alone(name: str, golden: dict[str, Path]) -> None:
    result = mystfuse("fssig", "--roothash", golden[name])
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == independent(golden[name])["root_hash"] + "\n"
    # veritysetup agrees.
    offset = independent(golden[name])["hash_offset"]
    run("veritysetup", "verify", golden[name], golden[name], result.stdout.strip(), f"--hash-offset={offset}")


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_json_has_the_same_fields_in_the_same_order(name: str, golden: dict[str, Path]) -> None:
    result = mystfuse("fssig", "--json", golden[name])
    assert (result.returncode, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    check_document("fssig", document)
    expected = independent(golden[name])
    assert list(document) == NAMES
    assert {key: "null" if value is None else str(value) for key, value in document.items()} == expected
    assert isinstance(document["hash_offset"], int)
    assert isinstance(document["signature_size"], int)


def test_signed_golden_image_names_its_signer(golden: dict[str, Path]) -> None:
    """The signer of the golden images, computed from the public key."""
    public = DATA / "public.pem"
    modulus = (
        run("openssl", "rsa", "-pubin", "-in", public, "-noout", "-modulus").stdout.strip().removeprefix("Modulus=")
    )
    signer = hashlib.sha256(bytes.fromhex(modulus)).hexdigest()
    assert f"signer={signer}\n" in mystfuse("fssig", golden["signed-1024"]).stdout


def test_signature_agrees_with_openssl(
    small_tree: Path, tmp_path: Path, make_keys: Callable[..., tuple[Path, Path]]
) -> None:
    public, private = make_keys("fssig", 2048, 65537)
    image, root = tmp_path / "image", tmp_path / "root"
    assert mystfuse("mkext2", f"--sign={public}:{private}", small_tree, image).returncode == 0
    fields = dict(line.split("=") for line in mystfuse("fssig", image).stdout.splitlines())
    root.write_bytes(bytes.fromhex(fields["root_hash"]))
    run("openssl", "pkeyutl", "-sign", "-inkey", private, "-pkeyopt", "digest:sha256", "-in", root,
        "-out", tmp_path / "signature")  # fmt: skip
    assert (tmp_path / "signature").read_bytes().hex() == fields["signature"]


def with_field(image: Path, target: Path, offset: int, value: bytes) -> Path:
    data = bytearray(image.read_bytes())
    start = len(data) - 4096 + offset
    data[start : start + len(value)] = value
    target.write_bytes(data)
    return target


@pytest.mark.parametrize(
    ("offset", "value", "word"),
    [
        (0, b"\0", "fssig"),
        (8, b"\2", "version 2"),
        (1112, (1025).to_bytes(8, "little"), "signature_size"),
        (1112, (1 << 63).to_bytes(8, "little"), "signature_size"),
        (1112, b"\xff" * 8, "signature_size"),
        (16, bytes(8), "hash_offset"),
        (16, b"\xff" * 8, "hash_offset"),
    ],
)
@pytest.mark.parametrize("option", [(), ("--roothash",), ("--json",)])
def test_broken_fields_are_reported_in_one_line(
    option: tuple[str, ...], offset: int, value: bytes, word: str, golden: dict[str, Path], tmp_path: Path
) -> None:
    broken = with_field(golden["signed-1024"], tmp_path / "broken", offset, value)
    result = in_process("fssig", *option, broken)
    assert (result.returncode, result.stdout) == (6, "")
    assert result.stderr.startswith("mystfuse: ")
    assert result.stderr.count("\n") == 1
    assert word in result.stderr


def test_largest_signature_is_shown(golden: dict[str, Path], tmp_path: Path) -> None:
    image = with_field(golden["plain-1024"], tmp_path / "image", 88, bytes([7]) * 1024 + (1024).to_bytes(8, "little"))
    assert "\nsignature=" + "07" * 1024 + "\nsignature_size=1024\n" in mystfuse("fssig", image).stdout


def test_other_files_than_images_are_reported_in_one_line(golden: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "short").write_bytes(golden["plain-1024"].read_bytes()[-4095:])
    (tmp_path / "garbage").write_bytes(os.urandom(100_000))
    (tmp_path / "truncated").write_bytes(golden["plain-1024"].read_bytes()[:-1])
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    for name, status in (
        ("empty", 6),
        ("short", 6),
        ("garbage", 6),
        ("truncated", 6),
        ("fifo", 6),
        (".", 6),
        ("missing", 1),
        ("missing\nwith a line break", 1),
        ("loop", 1),
        ("empty/below", 1),
    ):
        result = mystfuse("fssig", tmp_path / name, timeout=20)
        assert (result.returncode, result.stdout) == (status, ""), (name, result)
        assert result.stderr.startswith("mystfuse: ")
        assert result.stderr.count("\n") == 1, name
        assert str(tmp_path) in result.stderr, name
    assert mystfuse("fssig", "/dev/null").returncode == 6


def test_an_unreadable_image_is_reported(
    golden: dict[str, Path], open_tmp_path: Path, ordinary_user: list[str]
) -> None:
    image = open_tmp_path / "image"
    image.write_bytes(golden["plain-1024"].read_bytes())
    image.chmod(0)
    result = run(*ordinary_user, "fssig", image, check=False, cwd=open_tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"mystfuse: {image}: Permission denied\n"


def test_a_block_device_is_an_image_too(golden: dict[str, Path]) -> None:
    device = run("losetup", "--find", "--show", "--read-only", golden["plain-1024"]).stdout.strip()
    try:
        assert mystfuse("fssig", device).stdout == mystfuse("fssig", golden["plain-1024"]).stdout
    finally:
        run("losetup", "--detach", device)


@pytest.mark.parametrize(
    "arguments", [(), ("--roothash", "--json", "IMAGE"), ("--unknown", "IMAGE"), ("IMAGE", "IMAGE")]
)
def test_wrong_usage_is_status_2(arguments: tuple[str, ...], golden: dict[str, Path]) -> None:
    given = [str(golden["plain-1024"]) if argument == "IMAGE" else argument for argument in arguments]
    result = mystfuse("fssig", *given)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1

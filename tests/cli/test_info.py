"""``mystfuse info`` says of images what other tools say, by whom they are trusted, and what of it was verified."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli_in_process import in_process
from tests.support.commands import assert_one_line, mystfuse, run
from tests.support.encrypted_images import on_terminal, write_secret
from tests.support.images import DATA, GOLDEN_NAMES
from tests.support.json_documents import check_document
from tests.support.mounts import mounted
from tests.support.other_files.makers import MIB, PHRASE, ext, with_veritysetup

INTEGRITY, KEY, FORMAT = 4, 5, 6
PUBLIC = DATA / "public.pem"


def info(*words: str | Path, status: int = 0) -> dict[str, Any]:
    """The document of ``info --json``, checked against its schema."""
    result = in_process("info", "--json", *words)
    assert (result.returncode, result.stderr) == (status, "")
    document: dict[str, Any] = json.loads(result.stdout)
    check_document("info", document)
    return document


def shown(*words: str | Path, status: int = 0) -> str:
    result = in_process("info", *words)
    assert (result.returncode, result.stderr) == (status, "")
    return result.stdout


@pytest.fixture(scope="module")
def secret(small_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An image of each LUKS version, with a key slot, and what opens them."""
    directory = tmp_path_factory.mktemp("secret")
    made = {
        "key": write_secret(directory / "key", os.urandom(64)),
        "phrase": write_secret(directory / "phrase", PHRASE),
        "other": write_secret(directory / "other", os.urandom(64)),
    }
    for name, more in ("luks1", ()), ("luks2", ("--luks2",)), ("no slot", ()):
        made[name] = directory / f"{name}.img"
        phrase = () if name == "no slot" else ("--passphrase-file", made["phrase"])
        result = in_process("mkext2", "--encrypt", made["key"], *phrase, *more, small_tree, made[name])
        assert result.returncode == 0, result.stderr
    return made


# What other tools say


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_the_file_system_is_described_as_dumpe2fs_does(name: str, golden: dict[str, Path]) -> None:
    image = golden[name]
    judge = dict(re.findall(r"^([\w ]+):\s+(.*)$", run("dumpe2fs", "-h", image).stdout, re.MULTILINE))
    found = info(image)["file_system"]
    assert found["uuid"] == judge["Filesystem UUID"]
    assert found["label"] == (None if judge["Filesystem volume name"] == "<none>" else judge["Filesystem volume name"])
    assert found["features"] == sorted(judge["Filesystem features"].split())
    numbers = {
        "block_size": "Block size", "blocks": "Block count", "free_blocks": "Free blocks", "inodes": "Inode count",
        "free_inodes": "Free inodes",
    }  # fmt: skip
    assert {key: found[key] for key in numbers} == {key: int(judge[word]) for key, word in numbers.items()}
    assert found["size"] == found["used"] + found["free"] == found["blocks"] * found["block_size"]
    assert (found["type"], found["unsupported_features"], found["has_errors"]) == ("ext2", [], False)


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_the_hash_tree_is_described_as_veritysetup_does(name: str, golden: dict[str, Path]) -> None:
    found = info(golden[name])
    tree = found["hash_tree"]
    dumped = run("veritysetup", "dump", golden[name], f"--hash-offset={tree['hash_offset']}").stdout
    judge = {key.strip(): value.strip() for key, value in (line.split(":", 1) for line in dumped.splitlines()[1:])}
    assert (tree["algorithm"], str(tree["hash_type"])) == (judge["Hash algorithm"], judge["Hash type"])
    assert tree["salt"] == judge["Salt"].replace("-", "")
    assert tree["uuid"] == judge["UUID"].replace("-", "")
    assert str(tree["data_blocks"]) == judge["Data blocks"]
    assert (judge["Data block size"], judge["Hash block size"]) == ("4096", "4096")
    assert (tree["data_block_size"], tree["hash_block_size"]) == (4096, 4096)
    assert judge["Hash blocks"] == str(_region(found, "hash tree")["size"] // tree["hash_block_size"])


def _region(document: dict[str, Any], what: str) -> dict[str, Any]:
    (region,) = (region for region in document["layout"] if region["what"] == what)
    return region


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_the_parts_are_where_they_are(name: str, golden: dict[str, Path]) -> None:
    image = golden[name]
    document, data = info(image), image.read_bytes()
    end = 0
    for region in document["layout"]:
        assert region["offset"] >= end and region["file"] is None
        end = region["offset"] + region["size"]
    assert end == len(data) == document["size"]
    assert data[_region(document, "verity superblock")["offset"] :].startswith(b"verity\0\0")
    assert data[_region(document, "signature block (fssig)")["offset"] :][:8] == bytes.fromhex("384d6253a19851f5")
    assert _region(document, "ext2 file system")["size"] == document["file_system"]["size"]
    assert document["root_hash"] == in_process("fssig", "--roothash", image).stdout.strip()


@pytest.mark.parametrize("version", [1, 2])
def test_luks_is_described_as_luksdump_does(version: int, secret: dict[str, Path]) -> None:
    image = secret[f"luks{version}"]
    document = info(image)
    luks = document["luks"]
    dump = run("cryptsetup", "luksDump", image).stdout
    assert luks["version"] == version and f"UUID:          \t{luks['uuid']}" in dump.replace(
        "UUID:          ", "UUID:          "
    )
    (slot,) = luks["key_slots"]
    if version == 1:
        assert str(luks["payload_offset"] // 512) == _after("Payload offset", dump)
        assert str(luks["key_bits"]) == _after("MK bits", dump)
        assert slot["kdf"] == f"PBKDF2 sha256, {_after('Iterations', dump)} iterations"
    else:
        assert f"offset: {luks['payload_offset']} [bytes]" in dump and f"cipher: {luks['cipher']}" in dump
        judge = {word: _after(word, dump) for word in ("Time cost", "Memory", "PBKDF", "Threads")}
        assert slot["kdf"] == (
            f"{judge['PBKDF']}, {judge['Time cost']} passes over {int(judge['Memory']) // 1024} MiB, "
            f"{judge['Threads']} threads"
        )
        assert slot["memory"] == int(judge["Memory"]) * 1024
    assert luks["cipher"] == "aes-xts-plain64" and slot["key_bits"] == luks["key_bits"] == 512
    assert document["key"] == {"takes_passphrase": True, "master_key_bytes": 64, "opens": False}
    assert (document["file_system"], luks["unsupported"]) == (None, None)


def _after(word: str, text: str) -> str:
    """What stands behind a word and a colon, up to the next blank."""
    match = re.search(rf"{word}:\s+(\S+)", text)
    assert match, word
    return match[1]


# Trust


@pytest.mark.parametrize("name", ["signed-1024", "plain-1024"])
def test_trust_is_what_a_mount_says(name: str, golden: dict[str, Path], tmp_path: Path) -> None:
    image, none = golden[name], "0" * 64
    own = in_process("fssig", "--roothash", image).stdout.strip()
    for options in (
        (), ("--no-trust-self",), (f"--pubkey={PUBLIC}",), (f"--roothash={own}",), (f"--roothash={none}",),
        ("--insecure",), (f"--pubkey={PUBLIC}", f"--roothash={none}"), ("--insecure", f"--roothash={none}"),
    ):  # fmt: skip
        document, judge = info(*options, image), mystfuse("ls", *options, image)
        assert document["accepted"] == (judge.returncode == 0)
        assert document["trusted"] == (judge.returncode == 0 and "warning" not in judge.stderr)
        assert document["trust_explanation"] in (judge.stderr if judge.stderr else document["trust_explanation"])
        assert (document["trust"] is None) == (judge.returncode == 3)
        expected = "trusted root hash" if document["trusted"] else "own root hash"
        assert document["checked_by"] == expected
        text = shown(*options, image)
        assert ("a mount would accept it" if document["accepted"] else "a mount would refuse it: ") in text
        assert document["accepted"] or "not trusted" in text
        assert ("verified: it matches the trusted root hash" in text) == document["trusted"]


def test_the_signer_is_found_among_the_known_keys(
    golden: dict[str, Path], make_keys: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    image, (other, _) = golden["signed-1024"], make_keys("info-other", 2048)
    signer = in_process("fssig", "--signer", image).stdout.strip()
    unknown = {"signer": signer, "key_file": None, "key_bits": None, "signature_is_right": None}
    assert info(image)["signer"] == info(f"--pubkey={other}", image)["signer"] == unknown
    both = tmp_path / "both.pem"
    both.write_bytes(other.read_bytes() + PUBLIC.read_bytes())
    bits = int(re.search(r"\((\d+) bit", run("openssl", "rsa", "-pubin", "-in", PUBLIC, "-text", "-noout").stdout)[1])  # type: ignore[index]
    known = {"signer": signer, "key_file": str(both), "key_bits": bits, "signature_is_right": True}
    assert info(f"--pubkey={both}", image)["signer"] == known
    text = shown(f"--pubkey={both}", image)
    assert f"{signer}: the RSA key of {bits} bits in {both}; its signature is right" in text
    assert info(golden["plain-1024"])["signer"] is None
    assert "none: it is unsigned" in shown(golden["plain-1024"])


def test_a_wrong_signature_of_a_known_key_is_called_wrong(golden: dict[str, Path], tmp_path: Path) -> None:
    forged = tmp_path / "forged"
    data = bytearray(golden["signed-1024"].read_bytes())
    data[-4096 + 88] ^= 1
    forged.write_bytes(data)
    document = info(f"--pubkey={PUBLIC}", forged)
    assert document["signer"]["signature_is_right"] is False and document["signer"]["key_file"] == str(PUBLIC)
    assert (document["trusted"], document["accepted"], document["checked_by"]) == (False, False, "own root hash")
    assert "SIGNATURE IS WRONG" in shown(f"--pubkey={PUBLIC}", forged)


# What is verified


def test_damage_is_found_where_info_looks(golden: dict[str, Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    data = bytearray(golden["signed-1024"].read_bytes())
    data[1024 + 120] ^= 0xFF
    broken.write_bytes(data)
    document = info(f"--pubkey={PUBLIC}", broken, status=INTEGRITY)
    assert (document["checked_by"], document["error"]["status"]) == ("nothing", INTEGRITY)
    assert document["file_system"]["type"] == "ext2" and not document["accepted"]
    text = shown(f"--pubkey={PUBLIC}", broken, status=INTEGRITY)
    assert "unverified: these are claims" in text and "corrupted" in text


def test_only_the_blocks_that_it_needs_are_read(golden: dict[str, Path], tmp_path: Path) -> None:
    """Damage elsewhere is verify's business."""
    broken = tmp_path / "broken"
    data = bytearray(golden["plain-4096"].read_bytes())
    data[5 * MIB] ^= 0xFF
    broken.write_bytes(data)
    assert info(broken)["checked_by"] == "own root hash"
    assert in_process("verify", broken).returncode == INTEGRITY


def test_nothing_escapes_to_the_terminal(tmp_path: Path) -> None:
    image, directory = tmp_path / "a\x1b[31m\nb.img", tmp_path / "tree"
    directory.mkdir()
    assert in_process("mkext2", directory, tmp_path / "plain").returncode == 0
    data = bytearray((tmp_path / "plain").read_bytes())
    data[1024 + 120 : 1024 + 136] = b"\x1b[2Jx\n\r\xff\0".ljust(16, b"\0")
    image.write_bytes(data)
    for words in ("--json",), ():
        result = in_process("info", *words, image)
        assert result.returncode == INTEGRITY
        assert (
            not set(result.stdout) - {"\n"} & {chr(code) for code in (*range(32), 127)} and "\x1b" not in result.stdout
        )


# Encryption


@pytest.mark.parametrize("name", ["luks1", "no slot"])
def test_a_key_opens_it_and_the_file_system_is_described(name: str, secret: dict[str, Path]) -> None:
    image = secret[name]
    document = info(f"--key-file={secret['key']}", image)
    assert document["key"]["opens"] and document["file_system"]["type"] == "ext2"
    assert document["key"]["takes_passphrase"] == (name != "no slot")
    assert "the key that was given opens it" in shown(f"--key-file={secret['key']}", image)
    needs = "takes a passphrase (--passphrase-file), or the master key of 64 bytes (--key-file)"
    assert (needs if name != "no slot" else "takes the master key of 64 bytes") in shown(image)


def test_a_passphrase_opens_it(secret: dict[str, Path]) -> None:
    assert info(f"--passphrase-file={secret['phrase']}", secret["luks1"])["key"]["opens"]


def test_a_wrong_key_is_status_5_and_the_rest_is_described(secret: dict[str, Path], golden: dict[str, Path]) -> None:
    document = info(f"--key-file={secret['other']}", secret["luks1"], status=KEY)
    assert document["luks"]["version"] == 1 and document["error"]["status"] == KEY and not document["accepted"]
    document = info(f"--key-file={secret['key']}", golden["plain-1024"], status=KEY)
    assert "not encrypted" in document["error"]["message"] and document["file_system"]["type"] == "ext2"


def test_no_passphrase_is_asked_for_unless_an_option_says_so(secret: dict[str, Path]) -> None:
    status, output = on_terminal(["info", secret["luks1"]], [])
    assert status == 0 and "Passphrase" not in output and "takes a passphrase" in output
    status, output = on_terminal(["info", "--passphrase-file=-", secret["luks1"]], [("Passphrase", PHRASE)])
    assert status == 0 and "the key that was given opens it" in output


def test_a_hostile_luks_header_is_described_at_once(secret: dict[str, Path], tmp_path: Path) -> None:
    """Costs that no one would wait for are shown, and nothing is derived."""
    container = tmp_path / "container"
    data = bytearray(secret["luks1"].read_bytes()[: 3 * MIB])
    struct.pack_into(">I", data, 208 + 4, 0xFFFFFFFF)
    container.write_bytes(data)
    document = info(container, status=FORMAT)
    (slot,) = document["luks"]["key_slots"]
    assert (slot["kdf"], slot["seconds"]) == ("PBKDF2 sha256, 4294967295 iterations", None)
    assert "are accepted" in document["luks"]["unsupported"] and not document["is_image"]


# Other images


def test_images_of_veritysetup(tmp_path: Path) -> None:
    image, data, tree = tmp_path / "image", tmp_path / "data", tmp_path / "tree"
    with_veritysetup(ext("ext2"))(image)
    document = info(image, status=FORMAT)
    assert document["hash_tree"]["hash_offset"] == 8 * MIB and document["file_system"]["label"] == "lbl"
    assert document["checked_by"] == "nothing" and not document["accepted"]
    data.write_bytes(image.read_bytes()[: 8 * MIB])
    root_hash = _after("Root hash", run("veritysetup", "format", data, tree).stdout)
    options = f"--hash-device={tree}", f"--roothash={root_hash}"
    document = info(*options, data)
    assert (document["trusted"], document["checked_by"]) == (True, "trusted root hash")
    assert _region(document, "hash tree") == {"what": "hash tree", "offset": 4096, "size": 69632, "file": str(tree)}
    assert document["size"] == 8 * MIB and document["root_hash"] == root_hash
    document = info(*options[:1], f"--roothash={'00' * 32}", data, status=INTEGRITY)
    assert document["checked_by"] == "nothing" and not document["accepted"]


def test_an_ext4_behind_a_good_hash_tree_is_described(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with_veritysetup(ext("ext4"))(image)
    root_hash = _after("Root hash", run("veritysetup", "format", image, tmp_path / "tree").stdout)
    document = info(f"--hash-device={tmp_path / 'tree'}", f"--roothash={root_hash}", image)
    found = document["file_system"]
    assert found["type"] == "ext4" and "extent" in found["features"]
    assert not found["read_only_features"] and not found["unsupported_features"]
    assert document["checked_by"] == "trusted root hash" and document["accepted"]


def test_insecure_says_what_a_mount_would_do(tmp_path: Path, other_file: Callable[[str], Path]) -> None:
    ext("ext2")(tmp_path / "bare")
    result = in_process("info", "--insecure", "--json", tmp_path / "bare")
    document = json.loads(result.stdout)
    check_document("info", document)
    assert (result.returncode, document["accepted"], document["trusted"], document["trust"]) == (
        0,
        True,
        False,
        "insecure",
    )
    assert document["checked_by"] == "nothing"
    result = in_process("info", "--insecure", other_file("squashfs"))
    assert result.returncode == FORMAT and "a squashfs file system" in result.stdout


def test_a_block_device_is_described(golden: dict[str, Path]) -> None:
    device = run("losetup", "--find", "--show", "--read-only", golden["plain-1024"]).stdout.strip()
    try:
        document = info(device)
    finally:
        run("losetup", "--detach", device)
    assert document["kind"] == "image" and document["size"] == golden["plain-1024"].stat().st_size


def test_a_huge_image_takes_no_longer(tmp_path: Path, small_tree: Path) -> None:
    """4 GiB, of which a few blocks are read."""
    image = tmp_path / "huge"
    assert in_process("mkext2", "--size=4G", small_tree, image).returncode == 0
    before = os.times()
    assert info(image)["file_system"]["size"] >= 4 << 30
    after = os.times()
    assert after.user + after.system - before.user - before.system < 0.3


def test_what_cannot_be_read_is_status_1(tmp_path: Path) -> None:
    assert_one_line(in_process("info", tmp_path / "missing"), 1, "No such file or directory")


def test_a_broken_trust_directory_is_an_error_as_for_a_mount(
    small_image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "trust.d"
    directory.mkdir(mode=0o755)
    monkeypatch.setattr("mystfuse.trust.sources.TRUST_DIRECTORY", directory)
    (directory / "README").touch()
    assert_one_line(in_process("info", small_image), 2, "README: not understood")
    (directory / "README").unlink()
    (directory / "signer.pem").write_bytes(PUBLIC.read_bytes())
    assert info(small_image)["accepted"] is False


def test_keys_of_the_trust_directory_are_named(
    golden: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "trust.d"
    directory.mkdir(mode=0o755)
    monkeypatch.setattr("mystfuse.trust.sources.TRUST_DIRECTORY", directory)
    (directory / "signer.pem").write_bytes(PUBLIC.read_bytes())
    document = info(golden["signed-1024"])
    assert (document["trusted"], document["signer"]["key_file"]) == (True, str(directory / "signer.pem"))


def test_of_a_mountpoint_it_says_that_it_is_one(small_image: Path, mountpoint: Path) -> None:
    with mounted(small_image, mountpoint):
        text = shown(mountpoint, status=FORMAT)
        assert "a directory on which an image is mounted" in text and f"mystfuse status {mountpoint}" in text

"""``verify --files``: each kind of damage by name, as text and as JSON."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from mystfuse.errors import StorageTimeout
from tests.support.cli_in_process import in_process
from tests.support.commands import mystfuse, run
from tests.support.encrypted_images import write_secret
from tests.support.ext2_editor import Editor
from tests.support.file_blocks import block_of, damage, inode_of
from tests.support.json_documents import check_document
from tests.support.owner_judges import Judges

BLOCK = 4096
BIG = 3_000_000


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("files") / "tree"
    (root / "d/e").mkdir(parents=True)
    dice = random.Random(5)
    (root / "big").write_bytes(dice.randbytes(BIG))
    (root / "d/two\nlines").write_bytes(dice.randbytes(2 * BLOCK))
    for number in range(3):
        (root / f"d/e/{number}").write_bytes(dice.randbytes(5000))
    os.link(root / "d/e/0", root / "d/again")
    os.symlink("x" * 200, root / "d/link")
    return root


@pytest.fixture(scope="module")
def image(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "app.img"
    assert in_process("mkext2", "--block-size=4096", tree, path).returncode == 0
    return path


@pytest.fixture(scope="module")
def judges(image: Path) -> Judges:
    return Judges(image)


def verify(image: Path, *options: str | Path) -> subprocess.CompletedProcess[str]:
    result = in_process("verify", "--files", *options, image)
    assert "Traceback" not in result.stderr
    return result


def lines(result: subprocess.CompletedProcess[str]) -> list[str]:
    """What is said besides the ranges."""
    assert result.returncode == 4, result
    errors = result.stderr.splitlines()
    assert re.fullmatch(r"mystfuse: .*: \d+ damaged ranges?, \d+ bytes", errors[-1]), errors
    assert all(line.endswith(("trusted by nobody but itself",)) for line in errors[:-1]), errors
    return [line for line in result.stdout.splitlines() if not line.startswith("bad: ")]


def document(image: Path, *options: str | Path) -> dict[str, Any]:
    result = verify(image, "--json", *options)
    assert result.returncode == 4
    found: dict[str, Any] = json.loads(result.stdout)
    check_document("verify", found)
    damage: dict[str, Any] = found["damage"]
    return damage


def test_each_kind_of_damage_is_named(image: Path, judges: Judges, tmp_path: Path) -> None:
    fixed = {what: number for number, (what, group) in sorted(judges.fixed.items(), reverse=True) if group == 0}
    big, zero = inode_of(image, "/big"), inode_of(image, "/d/e/0")
    indirect = min(judges.map_of(big).below)
    free = max(judges.free)
    bad = damage(
        image, tmp_path / "bad",
        block_of(image, "/big", 3) * BLOCK, block_of(image, "/big", 4) * BLOCK, block_of(image, "/big", 700) * BLOCK,
        block_of(image, "/d/e/0", 1) * BLOCK, block_of(image, "/d/link") * BLOCK,
        fixed["block bitmap"] * BLOCK, free * BLOCK,
    )  # fmt: skip
    assert lines(verify(bad)) == [
        f"damaged: /big (inode {big}): bytes 12288-20479; bytes 2867200-2871295",
        f"damaged: /d/again, /d/e/0 (inode {zero}): bytes 4096-4999",
        f"damaged: /d/link (symbolic link, inode {inode_of(image, '/d/link')}): its target",
        f"damaged: block bitmap of group 0 (block {fixed['block bitmap']}): no file is lost; a mount uses no free "
        "space of that group",
        "2 files, 1 symbolic link, 1 metadata block are damaged; 11184 bytes of free space (nothing is lost)",
    ]  # fmt: skip
    found = document(bad)
    assert found["named"] and found["inodes_count"] == 3 and found["kinds"] == {"file": 2, "symbolic link": 1}
    assert (found["free_bytes"], found["behind_files_bytes"]) == (BLOCK, 2 * BLOCK - 5000 + BLOCK - 200)
    assert found["inodes"][1] == {
        "inode": zero, "kind": "file", "size": 5000, "paths": ["/d/again", "/d/e/0"], "paths_left_out": 0,
        "lost": [{"what": "data", "offset": 4096, "length": 904, "unverifiable": False}],
        "lost_left_out": 0, "lost_bytes": 904,
    }  # fmt: skip
    bad = damage(image, tmp_path / "bad", indirect * BLOCK)
    first, end = 12 * BLOCK, BIG
    assert lines(verify(bad)) == [
        f"damaged: /big (inode {big}): bytes {first}-{end - 1}, to which an indirect block leads",
        "1 file is damaged",
    ]


def test_a_directory_s_block_and_an_inode_table_s(image: Path, judges: Judges, tmp_path: Path) -> None:
    directory, below = inode_of(image, "/d"), inode_of(image, "/d/e")
    link, zero = inode_of(image, "/d/link"), inode_of(image, "/d/e/0")
    said = lines(verify(damage(image, tmp_path / "bad", block_of(image, "/d") * BLOCK)))
    assert f"damaged: /d (directory, inode {directory}): the names in bytes 0-4095" in said
    assert (
        f"damaged: /d/<inode {below}> (directory, inode {below}): its name and the way to everything below it" in said
    )
    assert f"damaged: <inode {link}> (symbolic link, 200 bytes): its name" in said
    # Its other name is known.
    assert not any(f"inode {zero})" in line for line in said)
    assert (
        said[-1]
        == "1 directory, 1 directory without a name, 1 file without a name, 1 symbolic link without a name are damaged"
    )
    per_block = BLOCK // Editor(image.read_bytes()).inode_size
    table = [number for number, (what, _) in judges.fixed.items() if what == "inode table"]
    # Not in the block of the root's inode: the way to every file is in there.
    last = max(inode_of(image, path) for path in ("/big", "/d/link", "/d/e/0"))
    assert last > per_block, "the tree has too few files"
    number = table[(last - 1) // per_block]
    low = (last - 1) // per_block * per_block + 1
    said = lines(verify(damage(image, tmp_path / "bad", number * BLOCK)))
    assert any(re.fullmatch(rf"damaged: /.* \(.*inode {last}\): all of it", line) for line in said), said
    assert any(
        re.fullmatch(rf"damaged: inode table of group 0, inodes {low}-{low + per_block - 1} \(block {number}\): \d+ of "
                     r"these inodes are in use", line) for line in said)  # fmt: skip


def test_a_hash_block_takes_what_is_below_it(image: Path, tmp_path: Path) -> None:
    fields = json.loads(in_process("fssig", "--json", image).stdout)
    # The top level has one block, the lowest one follows.
    level = fields["hash_offset"] + 2 * BLOCK
    bad = damage(image, tmp_path / "bad", level + 5 * BLOCK)
    found = document(bad)
    (area,) = found["outside"]
    assert area == {"what": "hash tree level 0", "offset": level + 5 * BLOCK, "length": BLOCK,
                    "loss": "the data below it cannot be verified"}  # fmt: skip
    (inode,) = (inode for inode in found["inodes"] if inode["paths"] == ["/big"])
    assert inode["lost"] and all(part["unverifiable"] for part in inode["lost"])
    lost = {
        place
        for part in inode["lost"]
        for place in range(part["offset"] // BLOCK, -(-(part["offset"] + part["length"]) // BLOCK))
    }
    places = Judges(image).map_of(inode["inode"]).data
    assert lost == {place for place, number in places.items() if number // 128 == 5}
    assert any(line.endswith("(cannot be verified)") for line in lines(verify(bad)))


def test_names_cannot_drive_a_terminal(image: Path, tmp_path: Path) -> None:
    dice = random.Random(5)
    dice.randbytes(BIG)
    bad = damage(image, tmp_path / "bad", image.read_bytes().index(dice.randbytes(2 * BLOCK)[:100]))
    (line, _) = lines(verify(bad))
    assert line.startswith("damaged: /d/two\\nlines (inode ")
    assert document(bad)["inodes"][0]["paths"] == ["/d/two\nlines"]


def test_without_damage_nothing_is_said(image: Path) -> None:
    result = verify(image)
    assert result.returncode == 0 and result.stdout.count("\n") == 1
    result = verify(image, "--json")
    found = json.loads(result.stdout)
    check_document("verify", found)
    assert found["damage"]["inodes_count"] == 0 and found["damage"]["named"]
    plain = json.loads(in_process("verify", "--json", image).stdout)
    check_document("verify", plain)
    assert "damage" not in plain


def test_what_the_superblock_says_comes_from_its_copy(tree: Path, tmp_path: Path) -> None:
    """A mount needs the superblock itself; naming does not."""
    path = tmp_path / "image"
    assert in_process("mkext2", "--block-size=1024", "--size=20M", tree, path).returncode == 0
    bad = damage(path, tmp_path / "bad", 1024, block_of(path, "/big", 9) * 1024)
    said = lines(verify(bad))
    assert any(line.startswith("damaged: /big (inode ") for line in said)
    assert "damaged: superblock (block 1): the image cannot be mounted" in said
    # A small one has no copy.
    path = tmp_path / "small"
    assert in_process("mkext2", "--block-size=4096", tree / "d/e", path).returncode == 0
    bad = damage(path, tmp_path / "bad", 1024)
    assert "files are not named: the superblock and its copies are damaged, or the LUKS header is" in lines(verify(bad))


# Encrypted images


PHRASE = "a passphrase for tests"


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("secrets")
    write_secret(directory / "key", random.Random(3).randbytes(64))
    write_secret(directory / "other", random.Random(4).randbytes(64))
    write_secret(directory / "phrase", PHRASE)
    return directory


@pytest.fixture(scope="module", params=[(), ("--luks2",)], ids=["luks1", "luks2"])
def encrypted(
    request: pytest.FixtureRequest, tree: Path, secrets: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("encrypted") / "image"
    result = in_process(
        "mkext2", "--block-size=4096", f"--encrypt={secrets / 'key'}", f"--passphrase-file={secrets / 'phrase'}",
        *request.param, tree, path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return path


def payload_offset(image: Path) -> int:
    data = image.read_bytes()
    if data[6:8] == b"\0\1":
        return int.from_bytes(data[104:108], "big") * 512
    text = data[4096 : data.index(b"\0", 4096)]
    return int(json.loads(text)["segments"]["0"]["offset"])


@pytest.fixture(scope="module")
def payload(encrypted: Path, secrets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file system inside, by a mount."""
    directory = tmp_path_factory.mktemp("payload")
    result = mystfuse("mount", f"--key-file={secrets / 'key'}", "--read-only", encrypted, make(directory / "mnt"))
    assert result.returncode == 0, result.stderr
    try:
        shutil.copyfile(directory / "mnt/.mystfuse/image", directory / "image")
    finally:
        mystfuse("umount", directory / "mnt")
    return directory / "image"


def make(directory: Path) -> Path:
    directory.mkdir()
    return directory


@pytest.mark.parametrize("option", ["--key-file=key", "--passphrase-file=phrase"])
def test_an_encrypted_image_s_files_are_named_with_its_key(
    option: str, encrypted: Path, payload: Path, secrets: Path, tmp_path: Path
) -> None:
    start = payload_offset(encrypted)
    offset = start + block_of(payload, "/big", 5) * BLOCK
    bad = damage(encrypted, tmp_path / "bad", offset)
    key = option.replace("=", f"={secrets}/")
    (line, summary) = lines(verify(bad, key))
    assert line == f"damaged: /big (inode {inode_of(payload, '/big')}): bytes {5 * BLOCK}-{6 * BLOCK - 1}"
    assert summary == "1 file is damaged"
    (said, *_) = lines(verify(bad))
    assert said.startswith("files are not named: the image is encrypted: ") and "--key-file" in said
    found = document(bad)
    assert not found["named"] and found["unnamed_reason"] and not found["inodes"]
    # With a wrong key the damage is still what counts.
    (said, *_) = lines(verify(bad, f"--key-file={secrets / 'other'}"))
    assert said.startswith("files are not named: wrong key")
    metadata = Judges(payload)
    table = next(number for number, (what, _) in metadata.fixed.items() if what == "block bitmap")
    bad = damage(encrypted, tmp_path / "bad", start + table * BLOCK)
    assert [entry["offset"] for entry in document(bad, key)["metadata"]] == [start + table * BLOCK]


def test_damage_of_the_luks_header_and_of_key_slots(encrypted: Path, secrets: Path, tmp_path: Path) -> None:
    key, start = f"--key-file={secrets / 'key'}", payload_offset(encrypted)
    bad = damage(encrypted, tmp_path / "bad", 100)
    said = lines(verify(bad, key))
    assert any(line.startswith("damaged: ") and line.endswith("the image cannot be opened") for line in said)
    assert any(line.startswith("files are not named: ") for line in said)
    slot = 4096 + BLOCK if encrypted.read_bytes()[6:8] == b"\0\1" else 2 * 16384 + BLOCK
    if encrypted.read_bytes()[6:8] == b"\0\2":
        text = encrypted.read_bytes()[4096:].split(b"\0", 1)[0]
        slot = int(json.loads(text)["keyslots"]["0"]["area"]["offset"]) + BLOCK
    said = lines(verify(damage(encrypted, tmp_path / "bad", slot), key))
    first = slot // BLOCK * BLOCK
    assert said == [
        f"damaged: key material of LUKS key slot 0 (bytes {first}-{first + BLOCK - 1}): "
        "its passphrase does not open the image any more",
        "1 range outside the file system is damaged",
    ]
    said = lines(verify(damage(encrypted, tmp_path / "bad", start - 10), key))
    assert said[0].startswith("damaged: unused LUKS area (bytes ") and said[0].endswith("nothing is lost")


def test_many_damaged_files_are_counted_to_the_end(tmp_path: Path) -> None:
    """A thousand are listed, sorted, and all are counted."""
    tree = make(tmp_path / "tree")
    for number in range(1500):
        (tree / f"{number:04}").write_bytes(sha256(b"%d" % number).digest() * 150)
    image = tmp_path / "image"
    assert in_process("mkext2", "--block-size=4096", tree, image).returncode == 0
    data = image.read_bytes()
    bad = damage(
        image, tmp_path / "bad", *(data.index(sha256(b"%d" % number).digest() * 128) for number in range(1500))
    )
    said = lines(verify(bad))
    named = [line for line in said if line.startswith("damaged: ")]
    assert [line.split()[1] for line in named] == [f"/{number:04}" for number in range(1000)]
    assert said[-2:] == ["and 500 more inodes", "1500 files are damaged"]
    found = document(bad)
    assert len(found["inodes"]) == 1000 and found["inodes_count"] == 1500


@pytest.mark.parametrize("data_block_size", [512, 1024, 65536])
def test_blocks_of_the_tree_may_have_other_sizes(data_block_size: int, tree: Path, tmp_path: Path) -> None:
    """One bad block of the tree is a part of a block of the file system, or many of them."""
    image = tmp_path / "image"
    run("mke2fs", "-q", "-F", "-t", "ext2", "-b", "4096", "-d", tree, image, "8M")
    said = run(
        "veritysetup", "format", f"--data-block-size={data_block_size}",
        f"--data-blocks={(8 << 20) // data_block_size}", f"--hash-offset={8 << 20}", image, image,
    ).stdout  # fmt: skip
    root_hash = re.search(r"Root hash:\s+([0-9a-f]+)", said)[1]  # type: ignore[index]
    offset = block_of(image, "/big", 40) * BLOCK + 1500
    bad = damage(image, tmp_path / "bad", offset)
    found = document(bad, f"--hash-offset={8 << 20}", f"--roothash={root_hash}")
    start = offset // data_block_size * data_block_size
    inode = next(inode for inode in found["inodes"] if inode["paths"] == ["/big"])
    lost = {byte for part in inode["lost"] for byte in range(part["offset"], part["offset"] + part["length"])}
    expected: set[int] = set()
    for place, number in Judges(image).map_of(inode["inode"]).data.items():
        low, high = max(start - number * BLOCK, 0), min(start + data_block_size - number * BLOCK, BLOCK)
        expected.update(place * BLOCK + byte for byte in range(low, high))
    assert lost == {byte for byte in expected if byte < BIG}


def test_storage_that_hangs_meanwhile_takes_the_names_alone(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has been found is said, with the status for damage."""

    async def hang(device: object) -> None:
        raise StorageTimeout("storage has not answered")

    monkeypatch.setattr("mystfuse.image.damage.find_superblock", hang)
    bad = damage(image, tmp_path / "bad", block_of(image, "/big") * BLOCK)
    result = verify(bad)
    assert result.returncode == 4 and result.stdout.startswith("bad: bytes ")
    assert "files are not named: storage has not answered" in lines(result)


def test_in_text_and_json_there_are_no_names_without_the_option(image: Path, tmp_path: Path) -> None:
    bad = damage(image, tmp_path / "bad", block_of(image, "/big") * BLOCK)
    result = in_process("verify", bad)
    assert result.returncode == 4 and result.stdout.count("\n") == 1
    found = json.loads(in_process("verify", "--json", bad).stdout)
    check_document("verify", found)
    assert "damage" not in found

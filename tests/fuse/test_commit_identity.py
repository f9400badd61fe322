"""commit of a mount that nobody has written to has the same root hash; two of the same state are the same."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mystfuse.build.kept_identity import KeptIdentity, kept_identity
from mystfuse.errors import MystfuseError
from mystfuse.formats.verity import VOUCHER, VeritySuperblock
from tests.support.commands import mystfuse, run
from tests.support.json_documents import check_document
from tests.support.made_images import assert_clean, assert_refused, make, superblock_of
from tests.support.mounts import mounted, status_of


def commit(mountpoint: Path, target: Path, *options: str | Path) -> dict[str, Any]:
    result = mystfuse("commit", "--json", *options, mountpoint, target)
    assert result.returncode == 0, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    check_document("commit", document)
    assert mystfuse("verify", f"--roothash={document['root_hash']}", target).returncode == 0
    return document


def tree_of(image: Path, hash_offset: int) -> VeritySuperblock:
    with image.open("rb") as file:
        file.seek(hash_offset)
        return VeritySuperblock.parse(file.read(512))


@pytest.mark.parametrize(
    "options",
    [
        (), ("--salt=",), ("--salt=" + "5a" * 32,), ("--salt=" + "77" * 200,), ("--block-size=4096", "--free=130M"),
        ("--block-size=65536",), ("--size=min",), ("--read-only",), ("--type=ext3",), ("--type=ext4",),
        ("--type=ext4", "--size=min"), ("--type=ext4", "-O", "^metadata_csum,uninit_bg,meta_bg,^resize_inode"),
    ],
)  # fmt: skip
def test_unchanged_data_has_an_unchanged_root_hash(options: tuple[str, ...], small_tree: Path, tmp_path: Path) -> None:
    image, mounting = tmp_path / "image", ["--read-only"] if "--read-only" in options else []
    fields = make(small_tree, image, *(option for option in options if option != "--read-only"))
    with mounted(image, tmp_path / "mount", *mounting) as mountpoint:
        for path in mountpoint.rglob("*"):
            if path.is_file():
                path.read_bytes()
        assert commit(mountpoint, tmp_path / "one")["root_hash"] == fields["root_hash"]
    assert (tmp_path / "one").read_bytes() == image.read_bytes()
    # And so for a commit of the commit.
    with mounted(tmp_path / "one", tmp_path / "mount") as mountpoint:
        assert commit(mountpoint, tmp_path / "two")["root_hash"] == fields["root_hash"]


def test_a_last_group_that_mke2fs_has_left_out_stays_out(small_tree: Path, tmp_path: Path) -> None:
    """The tree covers up to a group more than the file system has."""
    image = tmp_path / "image"
    fields = make(small_tree, image, "--size=513M")
    assert superblock_of(image).size < int(fields["hash_offset"])
    with mounted(image, tmp_path / "mount") as mountpoint:
        assert commit(mountpoint, tmp_path / "new")["root_hash"] == fields["root_hash"]
        (mountpoint / "new").touch()
        changed = commit(mountpoint, tmp_path / "changed")
    assert changed["root_hash"] != fields["root_hash"] and changed["hash_offset"] == int(fields["hash_offset"])
    assert_clean(tmp_path / "changed")


def test_two_commits_of_a_state_are_the_same_bytes(
    small_image: Path, tmp_path: Path, make_keys: Callable[..., tuple[Path, Path]]
) -> None:
    public, private = make_keys("committer")
    with mounted(small_image, tmp_path / "mount") as mountpoint:
        (mountpoint / "new").write_bytes(b"written" * 1000)
        first = commit(mountpoint, tmp_path / "one", "--sign", f"{public}:{private}")
        second = commit(mountpoint, tmp_path / "two", "--sign", f"{public}:{private}")
        (mountpoint / "more").touch()
        third = commit(mountpoint, tmp_path / "three")
    assert first["root_hash"] == second["root_hash"] != third["root_hash"]
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert first["tree_uuid"] == third["tree_uuid"] and first["filesystem"]["uuid"] == third["filesystem"]["uuid"]
    assert first["signer"] and not third["signer"]


def test_what_has_changed_gets_a_salt_that_vouches(small_tree: Path, tmp_path: Path) -> None:
    """A salt that does not is kept while the image is the same one, unless the user gives it."""
    image, salt = tmp_path / "image", "5a" * 32
    fields = make(small_tree, image, f"--salt={salt}")
    uuid = tree_of(image, int(fields["hash_offset"])).uuid
    with mounted(image, tmp_path / "mount") as mountpoint:
        assert commit(mountpoint, tmp_path / "same")["salt"] == salt
        (mountpoint / "new").touch()
        changed = commit(mountpoint, tmp_path / "changed")
        assert bytes.fromhex(changed["salt"]).startswith(VOUCHER)
        assert tree_of(tmp_path / "changed", changed["hash_offset"]).uuid == uuid
        assert commit(mountpoint, tmp_path / "given", f"--salt={salt}")["salt"] == salt
        assert commit(mountpoint, tmp_path / "none", "--salt=-")["salt"] == ""


@pytest.mark.parametrize(
    "options",
    [
        ("--block-size=1024", "--free=60M"), ("--block-size=4096", "--free=500M"), ("--type=ext4", "--free=60M"),
        ("--type=ext4", "--free=60M", "-O", "metadata_csum_seed,meta_bg,^resize_inode"),
        ("--type=ext4", "--free=60M", "-O", "^metadata_csum,uninit_bg"),
        ("--type=ext4", "--free=60M", "-O", "^metadata_csum,uninit_bg,meta_bg,^resize_inode"),
    ],
)  # fmt: skip
def test_uuid_is_changed_everywhere(options: tuple[str, ...], small_tree: Path, tmp_path: Path) -> None:
    image, target, uuid = tmp_path / "image", tmp_path / "new", "01234567-89ab-4cde-8f01-23456789abcd"
    make(small_tree, image, *options)
    with mounted(image, tmp_path / "mount") as mountpoint:
        assert commit(mountpoint, target, f"--uuid={uuid}")["filesystem"]["uuid"] == uuid
    assert_clean(target)
    superblock = superblock_of(target)
    copies = [group for group in range(1, superblock.groups_count) if superblock.group_has_superblock(group)]
    assert len(copies) >= 2
    for group in copies:
        block = str(superblock.s_first_data_block + group * superblock.s_blocks_per_group)
        dump = run("dumpe2fs", "-h", "-o", f"superblock={block}", "-o", f"blocksize={superblock.block_size}", target)
        assert f"Filesystem UUID:          {uuid}\n" in dump.stdout
    with mounted(target, tmp_path / "mount") as mountpoint:
        assert status_of(mountpoint)["filesystem_uuid"] == uuid


def test_a_uuid_that_values_of_attributes_begin_with_stays(small_tree: Path, tmp_path: Path) -> None:
    """e2fsck wants no metadata_csum_seed where there is no metadata_csum."""
    make(small_tree, tmp_path / "image", "--type=ext4", "-O", "ea_inode,^metadata_csum")
    with mounted(tmp_path / "image", tmp_path / "mount") as mountpoint:
        result = mystfuse("commit", "--uuid=01234567-89ab-4cde-8f01-23456789abcd", mountpoint, tmp_path / "new")
    assert_refused(result, 6, "ea_inode", "UUID")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("option", ["--salt=abc", "--salt=" + VOUCHER.hex(), "--salt=" + "00" * 257, "--uuid=x"])
def test_impossible_identities_are_refused(option: str, small_image: Path, tmp_path: Path) -> None:
    with mounted(small_image, tmp_path / "mount") as mountpoint:
        assert_refused(mystfuse("commit", option, mountpoint, tmp_path / "new"), 2, option.partition("=")[0])
    assert not (tmp_path / "new").exists()


def test_trees_of_another_shape_become_ours(small_tree: Path, tmp_path: Path) -> None:
    """Blocks of 1024 bytes in a tree by veritysetup: its root hash cannot stay."""
    image, bare, tree = tmp_path / "image", tmp_path / "bare", tmp_path / "tree"
    fields = make(small_tree, image)
    shutil.copyfile(image, bare)
    os.truncate(bare, int(fields["hash_offset"]))
    said = run("veritysetup", "format", "--data-block-size=1024", "--hash-block-size=1024", bare, tree).stdout
    root_hash = said.split("Root hash:")[1].split()[0]
    run("sh", "-c", 'cat "$1" >> "$0"', bare, tree)
    offset = f"--hash-offset={fields['hash_offset']}"
    with mounted(bare, tmp_path / "mount", "--roothash", root_hash, offset) as mountpoint:
        document = commit(mountpoint, tmp_path / "new")
    assert bytes.fromhex(document["salt"]).startswith(VOUCHER)
    with mounted(tmp_path / "new", tmp_path / "mount") as mountpoint:
        assert status_of(mountpoint)["hash_tree"]["data_block_size"] == 4096


def test_encrypted_images_are_new_each_time(small_image: Path, tmp_path: Path) -> None:
    """A new LUKS header has a UUID and salts of its own; the tree's UUID stays, and what is decrypted."""
    key = tmp_path / "key"
    key.write_bytes(os.urandom(64))
    key.chmod(0o600)
    with mounted(small_image, tmp_path / "mount") as mountpoint:
        plain = commit(mountpoint, tmp_path / "plain")
        secrets = [commit(mountpoint, tmp_path / f"secret{number}", "--encrypt", key) for number in range(2)]
    assert len({plain["root_hash"], *(document["root_hash"] for document in secrets)}) == 3
    assert all(document["tree_uuid"] == plain["tree_uuid"] and document["luks_version"] == 1 for document in secrets)
    with mounted(tmp_path / "secret0", tmp_path / "mount", "--key-file", str(key)) as mountpoint:
        back = commit(mountpoint, tmp_path / "back", "--decrypt")
    # Its UUID decides about the salt, and its data are those that were encrypted.
    assert back["root_hash"] == plain["root_hash"]


def test_a_file_system_without_a_tree_gets_a_new_one(small_tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    fields = make(small_tree, image)
    os.truncate(image, int(fields["hash_offset"]))
    with mounted(image, tmp_path / "mount", "--insecure") as mountpoint:
        first, second = (commit(mountpoint, tmp_path / name) for name in ("one", "two"))
    assert first["tree_uuid"] != second["tree_uuid"]


TREE = {
    "uuid": "01234567-89ab-4cde-8f01-23456789abcd", "salt": "ab", "algorithm": "sha256", "hash_type": 1,
    "data_size": 8 << 20, "data_block_size": 4096, "hash_block_size": 4096,
}  # fmt: skip


@pytest.mark.parametrize(
    "wrong", [{"salt": "x"}, {"salt": "ab" * 300}, {"uuid": "x"}, {"data_size": "x"}, {"salt": 7}, {"uuid": None}]
)
def test_a_status_that_is_none_is_one_line(wrong: dict[str, Any]) -> None:
    status = {"hash_tree": TREE | wrong, "overlay_used": 0, "overlay_store_used": 0}
    with pytest.raises(MystfuseError, match="status"):
        kept_identity(status, False)


def test_a_daemon_of_an_earlier_version_keeps_nothing() -> None:
    assert kept_identity({"overlay_used": 0}, False) == KeptIdentity()
    written = kept_identity({"hash_tree": TREE, "overlay_used": 4096, "overlay_store_used": 0}, False)
    assert (written.salt, written.data_size) == (None, 8 << 20)
    kept = kept_identity({"hash_tree": TREE, "overlay_used": 0, "overlay_store_used": 0}, False)
    assert (kept.salt, kept.data_size) == (b"\xab", 8 << 20)

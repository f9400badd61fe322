"""People are asked for a passphrase when it can be of use, know the rules before they type, and may slip."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from mystfuse.mounting.mount_table import find_mount
from tests.support.encrypted_images import (
    FORMAT,
    INTEGRITY,
    KEY,
    NOT_TRUSTED,
    PHRASE,
    USAGE,
    hash_offset_of,
    on_terminal,
)
from tests.support.mounts import clear_mount

UNTRUSTED = f"--roothash={'ab' * 32}"


def words_of(name: str, image: Path, mountpoint: Path, *options: str) -> list[str | Path]:
    """A command that opens an image, with some options."""
    behind: dict[str, list[str | Path]] = {
        "mount": [mountpoint],
        "ls": [],
        "cat": ["hello.txt"],
        "extract": ["/", mountpoint / "out"],
        "tar": [],
        "exec": ["/true"],
        "verify": ["--passphrase-file=-"],
    }
    return [name, *options, image, *behind[name]]


def refuse(words: list[str | Path], status: int, *parts: str) -> None:
    """The command ends with this status and a message, and asks for nothing."""
    found, output = on_terminal(words, [("Passphrase for", PHRASE)], timeout=30)
    assert found == status, output
    assert "Passphrase for" not in output, output
    assert all(part in output for part in parts), output
    assert "Traceback" not in output


@pytest.mark.parametrize("name", ["mount", "ls", "cat", "extract", "exec", "verify"])
def test_trust_is_decided_before_anybody_is_asked(image: Path, mountpoint: Path, name: str) -> None:
    refuse(words_of(name, image, mountpoint, UNTRUSTED), NOT_TRUSTED, str(image), "not trusted")
    assert find_mount(str(mountpoint)) is None and not os.listdir(mountpoint)


def damaged(image: Path, target: Path, offset: int) -> Path:
    """A copy of an image with a byte changed."""
    shutil.copyfile(image, target)
    with target.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
    return target


@pytest.mark.parametrize("name", ["mount", "ls", "exec"])
def test_damage_in_front_of_the_data_is_found_before_anybody_is_asked(
    image: Path, mountpoint: Path, tmp_path: Path, name: str
) -> None:
    mk_digest, superblock = 112, hash_offset_of(image.read_bytes())
    for offset, status in (mk_digest, INTEGRITY), (superblock, FORMAT):
        copy = damaged(image, tmp_path / "copy.img", offset)
        refuse(words_of(name, copy, mountpoint), status, str(copy))
    # Without its last block it has no fssig.
    os.truncate(copy, image.stat().st_size - 4096)
    refuse(words_of(name, copy, mountpoint), FORMAT, "not an image, or a truncated one")


def test_nobody_is_asked_for_the_passphrase_of_a_plain_image(small_image: Path, mountpoint: Path) -> None:
    for name in "mount", "ls":
        words = words_of(name, small_image, mountpoint, "--passphrase-file=-")
        refuse(words, KEY, f"{small_image}: the image is not encrypted: it needs no passphrase")


def test_a_trusted_image_asks_and_opens(image: Path, mountpoint: Path) -> None:
    status, output = on_terminal(["ls", "--passphrase-file", "-", image], [("Passphrase for ", PHRASE)])
    assert status == 0 and "hello.txt" in output, output
    status, output = on_terminal(["mount", image, mountpoint], [("Passphrase for ", PHRASE)])
    try:
        assert status == 0, output
        assert output.count("trusted by nobody but itself") == 2, "one warning, and the line about the mount"
    finally:
        clear_mount(mountpoint)


def test_no_answer_is_one_line(image: Path, mountpoint: Path) -> None:
    end_of_file = "\x04"
    for answer in "", end_of_file:
        status, output = on_terminal(["mount", image, mountpoint], [("Passphrase for ", answer)])
        assert status == USAGE and "mystfuse: no passphrase was entered" in output, output


# A new passphrase


NEW, AGAIN = "Passphrase for the new image: ", "The same again: "


def making(keys: Path, tree: Path, target: Path) -> list[str | Path]:
    return ["mkext2", "--encrypt", keys / "key", "--passphrase-file", "-", tree, target]


def test_a_short_passphrase_costs_a_try_and_is_not_asked_for_again(
    keys: Path, small_tree: Path, tmp_path: Path
) -> None:
    target = tmp_path / "new.img"
    dialogue = [(NEW, "ab"), (NEW, PHRASE), (AGAIN, "wrong"), (NEW, PHRASE), (AGAIN, PHRASE)]
    status, output = on_terminal(making(keys, small_tree, target), dialogue)
    assert status == 0 and target.exists(), output
    assert "the passphrase has 2 characters; 14 are needed: once more (2 tries left)" in output
    assert "the two passphrases differ: once more (1 try left)" in output
    assert PHRASE not in output and not dialogue


def test_the_third_slip_ends_it(keys: Path, small_tree: Path, tmp_path: Path) -> None:
    status, output = on_terminal(making(keys, small_tree, tmp_path / "new.img"), [(NEW, "thirteen chars"[:13])] * 3)
    assert status == KEY and "nothing is done: the passphrase has 13 characters; 14 are needed" in output, output
    assert not os.listdir(tmp_path)


def test_an_image_that_exists_is_named_before_a_passphrase_is_typed(
    keys: Path, small_tree: Path, tmp_path: Path
) -> None:
    (tmp_path / "new.img").write_text("precious")
    status, output = on_terminal(making(keys, small_tree, tmp_path / "new.img"), [(NEW, PHRASE), (AGAIN, PHRASE)])
    assert status == 1 and "already exists" in output and NEW not in output, output

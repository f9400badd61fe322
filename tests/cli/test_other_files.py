"""Every command that is given another file than it wants says in one line what that is, and what to do."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mystfuse.image.identify import identify_path
from tests.support.cli_in_process import in_process
from tests.support.commands import assert_one_line, mystfuse, run
from tests.support.json_documents import check_document
from tests.support.mounts import clear_mount
from tests.support.other_files import NO_FILES, OTHER_FILES

MakeFile = Callable[[str], Path]
FAILED, USAGE, FORMAT, MOUNT = 1, 2, 6, 7
READERS = {
    "verify": (), "ls": (), "cat": ("/hello",), "extract": ("/", "DEST"), "tar": (), "fssig": (),
}  # fmt: skip
"""Commands that read an image, with what stands behind it."""
every_kind = pytest.mark.parametrize("name", OTHER_FILES)
KINDS_WITH_FSSIG = ("broken tree", "android sparse")
"""Their last bytes are an fssig, of which the command fssig asks no more."""
KEY_FILES = (
    "private key",
    "certificate",
    "ssh key",
    "text",
    "utf-16",
    "unknown",
    "random",
    "json",
    "manifest",
    "xml",
    "script",
)
"""What readers of keys know more about; their own tests have these."""


def assert_helpful(result: object, path: Path, status: int = FORMAT) -> None:
    """One line that says what the file is, and what to do: nothing that switches checks off."""
    kind = identify_path(str(path), 30)
    assert kind is not None
    # What is wrong with a damaged image differs from command to command.
    title = kind.title if kind.name != "image" else str(path)
    assert_one_line(result, status, str(path), title)  # type: ignore[arg-type]
    said = result.stderr  # type: ignore[attr-defined]
    assert "insecure" not in said and "no-verify" not in said
    assert (kind.advice in said and all(command in said for command in kind.commands_for(str(path))[:1])) or (
        kind.name == "image" and "get it again" in said
    )


@every_kind
def test_readers_say_what_it_is(name: str, other_file: MakeFile, tmp_path: Path) -> None:
    path = other_file(name)
    for command, more in READERS.items():
        if command == "fssig" and name in KINDS_WITH_FSSIG:
            continue
        given = [tmp_path / "made" if word == "DEST" else word for word in more]
        result = in_process(command, path, *given)
        assert result.stdout == ""
        assert_helpful(result, path)
    assert not (tmp_path / "made").exists()


@every_kind
def test_mount_and_exec_say_what_it_is(name: str, other_file: MakeFile, mountpoint: Path) -> None:
    path = other_file(name)
    try:
        for words in (path, mountpoint), ("exec", path, "/bin/true"):
            result = mystfuse(*words)
            assert result.stdout == ""
            assert_helpful(result, path)
        assert not os.path.ismount(mountpoint)
    finally:
        clear_mount(mountpoint)


@every_kind
def test_info_describes_it(name: str, other_file: MakeFile) -> None:
    path, other = other_file(name), OTHER_FILES[name]
    shown = in_process("info", path)
    assert (shown.returncode, shown.stderr) == (FORMAT, "")
    assert shown.stdout.startswith(f"{path}: ") and other.title in shown.stdout
    assert shown.stdout.count("\n") <= 30 and "insecure" not in shown.stdout
    document = json.loads(in_process("info", "--json", path).stdout)
    check_document("info", document)
    assert (document["kind"], document["trusted"], document["accepted"]) == (other.kind, False, False)
    assert document["error"]["status"] == FORMAT
    assert document["size"] == (None if name in NO_FILES else path.stat().st_size)


@pytest.mark.parametrize("name", [name for name in OTHER_FILES if name != "directory"])
def test_mkext2_says_what_it_is(name: str, other_file: MakeFile, tmp_path: Path) -> None:
    path = other_file(name)
    kind = identify_path(str(path), 30)
    assert kind is not None
    assert_one_line(in_process("mkext2", path, tmp_path / "new.img"), USAGE, f"{path}: {kind.title}, not a directory")
    assert not (tmp_path / "new.img").exists()


@pytest.mark.parametrize("name", [name for name in OTHER_FILES if name not in ("package", "unknown")])
def test_run_says_what_it_is(name: str, other_file: MakeFile) -> None:
    path = other_file(name)
    kind = identify_path(str(path), 30)
    assert kind is not None
    assert_one_line(in_process("run", path, "--rootfs", path), FORMAT, f"{path}: {kind.title}, not a package")


@pytest.mark.parametrize("name", [name for name in OTHER_FILES if name not in (*KEY_FILES, *NO_FILES)])
def test_options_for_keys_say_what_it_is(
    name: str, other_file: MakeFile, tmp_path: Path, make_keys: Callable[..., tuple[Path, Path]]
) -> None:
    path, (public, private) = other_file(name), make_keys("other-files", 2048)
    kind = identify_path(str(path), 30)
    assert kind is not None
    (tmp_path / "tree").mkdir()
    new = tmp_path / "new"
    for words, wanted in (
        (("ls", f"--pubkey={path}", path), f"--pubkey {path}: {kind.title}, not a PEM public key"),
        (("ls", f"--roothash={path}", path), f"--roothash {path}: {kind.title}, not the hex digits"),
        (("run", f"--signer={path}", path), f"--signer {path}: {kind.title}, not a PEM public key"),
        (("mkext2", f"--sign={path}:{private}", tmp_path / "tree", new), f"{path}: {kind.title}, not a PEM public key"),
        (("mkext2", f"--sign={public}:{path}", tmp_path / "tree", new), f"{path}: {kind.title}, not a PEM private key"),
        (("package", "-o", new, f"--pubkey={path}", private, path), f"{path}: {kind.title}, not settings in JSON"),
        (("keys", "fingerprint", path), f"{path}: {kind.title}, not a PEM key"),
    ):
        assert_one_line(in_process(*words), USAGE, wanted)
    assert not new.exists()


@pytest.mark.parametrize("name", [name for name in OTHER_FILES if name != "directory"])
def test_commands_for_mounts_say_what_it_is(name: str, other_file: MakeFile, tmp_path: Path) -> None:
    path = other_file(name)
    kind = identify_path(str(path), 30)
    assert kind is not None
    for words in ("umount", path), ("status", path), ("commit", path, tmp_path / "new"):
        result = in_process(*words)
        if name == "device":
            # The mount table has no links: this is /dev/null's own name.
            assert_one_line(result, MOUNT, "nothing of mystfuse's is mounted there", kind.title)
        else:
            assert_one_line(result, MOUNT, f"{path}: nothing of mystfuse's is mounted there: it is {kind.title}")


def test_images_given_for_something_else(small_image: Path, tmp_path: Path) -> None:
    title = f"{small_image}: an image (unsigned, "
    assert_one_line(in_process("mkext2", small_image, tmp_path / "new"), USAGE, title,
                    f"not a directory: mystfuse extract {small_image} / tree")  # fmt: skip
    assert_one_line(
        in_process("run", small_image), FORMAT, title, f"not a package: mystfuse exec {small_image} PROGRAM"
    )
    assert_one_line(in_process("status", small_image), MOUNT, "it is an image (unsigned, ", "not a mountpoint")
    assert_one_line(in_process("ls", f"--pubkey={small_image}", small_image), USAGE, title, "not a PEM public key")


def test_a_wrong_place_of_the_tree_is_corrected(other_file: MakeFile) -> None:
    path, root_hash = other_file("veritysetup"), "ab" * 32
    for offset in "4096", str(8 << 30):
        result = in_process("ls", f"--hash-offset={offset}", f"--roothash={root_hash}", path)
        assert_one_line(result, FORMAT, str(path), f"; there is one at byte {8 << 20}")


def test_what_a_good_hash_tree_covers_is_named(other_file: MakeFile, tmp_path: Path) -> None:
    """A tree by veritysetup over something else than an EXT2 file system."""
    data, tree, root_hash = other_file("squashfs"), tmp_path / "tree", tmp_path / "root"
    made = in_process("fssig", data)
    assert made.returncode == FORMAT
    run("veritysetup", "format", data, tree, f"--root-hash-file={root_hash}")
    for command in "ls", "verify":
        result = in_process(command, f"--hash-device={tree}", f"--roothash={root_hash}", data)
        assert_one_line(result, FORMAT, "not an EXT2 file system but a squashfs file system")

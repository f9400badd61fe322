"""Hash trees that veritysetup made in another file, or without a superblock: every command reads them as veritysetup
does."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from mystfuse.devices.joined_source import JoinedSource
from mystfuse.devices.source import FileSource
from mystfuse.errors import ImageReadError
from mystfuse.formats.verity import MAX_BLOCK_SIZE
from tests.support.cli_in_process import in_process
from tests.support.commands import assert_one_line, mystfuse, run
from tests.support.mounts import clear_mount, mounted

SALT = "00112233445566778899aabbccddeeff"


@dataclass(frozen=True)
class Detached:
    """A file system, a hash tree by veritysetup, and the options that find it."""

    data: Path
    tree: Path
    options: tuple[str, ...]


@pytest.fixture(scope="module")
def file_system(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("detached")
    (directory / "source").mkdir()
    (directory / "source/hello").write_text("hello\n")
    (directory / "source/random").write_bytes(os.urandom(3 << 20))
    (directory / "data").write_bytes(bytes(9 << 20))
    run("mke2fs", "-qFt", "ext2", "-b", "4096", "-d", directory / "source", directory / "data")
    return directory / "data"


def make(file_system: Path, where: Path, is_apart: bool, *options: str, offset: int = 0) -> Detached:
    """Let veritysetup make a tree: ``is_apart`` in a file of its own."""
    data = where / "data"
    shutil.copy(file_system, data)
    tree = where / "tree" if is_apart else data
    offset = offset or (0 if is_apart else data.stat().st_size)
    words = [*options, *([f"--hash-offset={offset}"] if offset else [])]
    if not is_apart:
        # Otherwise veritysetup would hash the tree as data.
        block_size = next((int(word.split("=")[1]) for word in options if word.startswith("--data-block-size")), 4096)
        words.append(f"--data-blocks={offset // block_size}")
    said = run("veritysetup", "format", *words, data, tree).stdout
    found = re.search(r"Root hash:\s+([0-9a-f]+)", said)
    assert found
    run("veritysetup", "verify", *words, data, tree, found[1])
    # The options do not repeat what the superblock states.
    ours = words if "--no-superblock" in options else [word for word in words if word.startswith("--hash-offset")]
    device = [f"--hash-device={tree}"] if is_apart else []
    return Detached(data, tree, (*ours, *device, f"--roothash={found[1]}"))


@pytest.mark.parametrize("is_apart", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--no-superblock", f"--salt={SALT}"),
        ("--no-superblock", "--salt=-", "--format=0", "--hash=sha512"),
        ("--no-superblock", f"--salt={SALT}", "--data-block-size=1024", "--hash-block-size=512"),
        ("--no-superblock", f"--salt={SALT}", "--hash-block-size=1024"),
    ],
)
def test_what_veritysetup_verifies_we_verify(
    file_system: Path, tmp_path: Path, is_apart: bool, options: tuple[str, ...]
) -> None:
    made = make(file_system, tmp_path, is_apart, *options)
    result = in_process("verify", *made.options, made.data)
    assert result.returncode == 0 and "bytes verified" in result.stdout, result.stderr
    data = bytearray(made.data.read_bytes())
    data[2 << 20] ^= 1
    made.data.write_bytes(data)
    assert in_process("verify", *made.options, made.data).returncode == 4


def test_the_place_in_the_hash_device_counts(file_system: Path, tmp_path: Path) -> None:
    for number, (options, offset) in enumerate((((), 512), ((), 4096), (("--no-superblock", f"--salt={SALT}"), 8192))):
        (tmp_path / str(number)).mkdir()
        made = make(file_system, tmp_path / str(number), True, *options, offset=offset)
        result = in_process("verify", *made.options, made.data)
        assert result.returncode == 0, result.stderr


def test_every_command_takes_them(file_system: Path, tmp_path: Path) -> None:
    made = make(file_system, tmp_path, True, "--no-superblock", f"--salt={SALT}")
    with mounted(made.data, tmp_path / "mount", *made.options) as mountpoint:
        assert (mountpoint / "hello").read_text() == "hello\n"
        assert len((mountpoint / "random").read_bytes()) == 3 << 20
    words = ",".join(
        word.removeprefix("--").partition("=")[0].replace("-", "_") + "".join(word.partition("=")[1:])
        for word in made.options
    )
    with mounted(made.data, tmp_path / "mount", "-o", words) as mountpoint:
        assert (mountpoint / "hello").read_text() == "hello\n"
    assert "hello" in mystfuse("ls", *made.options, made.data).stdout
    assert mystfuse("cat", *made.options, made.data, "/hello").stdout == "hello\n"
    assert mystfuse("extract", *made.options, made.data, "/random", tmp_path / "out").returncode == 0
    assert (tmp_path / "out").stat().st_size == 3 << 20
    result = mystfuse("exec", *made.options, made.data, "/nothing")
    assert result.returncode == 127 and "/nothing" in result.stderr, result.stderr


def test_damage_in_either_file_is_found(file_system: Path, tmp_path: Path) -> None:
    made = make(file_system, tmp_path, True)
    for path, where in (made.data, 1 << 20), (made.tree, 4096 + 5), (made.tree, 3 * 4096):
        before = path.read_bytes()
        data = bytearray(before)
        data[where] ^= 0x40
        path.write_bytes(data)
        assert in_process("verify", *made.options, made.data).returncode == 4, where
        path.write_bytes(before)
    assert in_process("verify", *made.options, made.data).returncode == 0
    made.data.write_bytes(made.data.read_bytes()[: 8 << 20])
    assert in_process("verify", *made.options, made.data).returncode != 0
    made.tree.write_bytes(made.tree.read_bytes()[:8192])
    assert in_process("verify", *made.options, made.data).returncode == 6


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (("--hash-device=tree",), 2, "give exactly one --roothash"),
        (("--hash-device=nothing", "--roothash=" + "0" * 64), 1, "nothing: No such file"),
        (("--hash-device=.", "--roothash=" + "0" * 64), 6, "a directory"),
        (("--hash-device=", "--roothash=" + "0" * 64), 2, "it is empty"),
        (("--hash-device=tree", "--roothash=" + "0" * 128), 2, "the root hash has 64 bytes"),
        (("--hash-device=tree", "--pubkey=key", "--roothash=" + "0" * 64), 2, "key"),
        (("--no-superblock", "--roothash=" + "0" * 64), 2, "where is the tree?"),
        (("--salt=00", "--hash-device=tree"), 2, "--salt goes with --no-superblock"),
        (("--data-blocks=1",), 2, "--data-blocks goes with --no-superblock"),
        (("--no-superblock", "--hash-device=tree", "--hash=sha1"), 2, "--hash sha1: not supported; sha256 and sha512"),
        (("--no-superblock", "--hash-device=tree", "--salt=0"), 2, "--salt 0: not up to 256 bytes"),
        (("--no-superblock", "--hash-device=tree", f"--salt={'00' * 257}"), 2, "not up to 256 bytes"),
        (("--no-superblock", "--hash-device=tree", "--format=2"), 2, "verity hash type 2"),
        (("--no-superblock", "--hash-device=tree", "--data-block-size=1000"), 2, "data_block_size 1000"),
        (("--no-superblock", "--hash-device=tree", "--data-block-size=0"), 2, "data_block_size 0"),
        (("--no-superblock", "--hash-device=tree", "--hash-block-size=x"), 2, "--hash-block-size x: not a number"),
        (("--no-superblock", "--hash-device=tree", "--data-blocks=99999"), 2, "--data-blocks 99999: there are"),
        (("--no-superblock", "--hash-device=tree", "--data-blocks=0"), 2, "data_blocks 0"),
        (("--no-superblock", "--hash-device=tree", "--hash-offset=100"), 2, "a multiple of 4096"),
    ],
)
def test_impossible_options(
    file_system: Path,
    tmp_path: Path,
    options: tuple[str, ...],
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    make(file_system, tmp_path, True)
    assert_one_line(in_process("verify", *options, "data"), status, said)


def test_the_parts_are_read_as_one(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"d" * 5000)
    (tmp_path / "tree").write_bytes(b"t" * 3000)
    source = JoinedSource(FileSource(tmp_path / "data"), FileSource(tmp_path / "tree"), 512, b"S" * 512)
    base = MAX_BLOCK_SIZE
    assert (source.hash_offset, source.size) == (base, base + 512 + 3000 - 512)
    assert source.read(4990, 10) == b"d" * 10
    for offset, length in (4990, 11), (5000, 1), (base - 1, 2), (source.size - 1, 2), (source.size + 5, 1):
        with pytest.raises(ImageReadError, match="truncated"):
            source.read(offset, length)
        assert not source.read_cached(offset, memoryview(bytearray(length)))
    assert source.read(base + 500, 20) == b"S" * 12 + b"t" * 8
    buffer = bytearray(20)
    if source.read_cached(base + 500, memoryview(buffer)):
        assert buffer == b"S" * 12 + b"t" * 8
    assert len(source.descriptors) == 2
    source.close()
    (tmp_path / "short").write_bytes(b"")
    empty = JoinedSource(FileSource(tmp_path / "data"), FileSource(tmp_path / "short"), 4096, b"S" * 512)
    assert empty.size == base + 512
    empty.close()


def test_a_mount_keeps_both_files(file_system: Path, tmp_path: Path, mountpoint: Path) -> None:
    """After their removal: the daemon has them open."""
    made = make(file_system, tmp_path, True)
    assert mystfuse("mount", *made.options, made.data, mountpoint).returncode == 0
    made.data.unlink()
    made.tree.unlink()
    assert len((mountpoint / "random").read_bytes()) == 3 << 20
    clear_mount(mountpoint)

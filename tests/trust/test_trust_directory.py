"""Sources of trust: options, and directories that belong to root or to the caller."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from mystfuse.errors import UsageError
from mystfuse.trust.signature import PublicKey
from mystfuse.trust.sources import collect_trust, parse_root_hash
from mystfuse.trust.trust_directory import MAX_SMALL_FILE, read_trust_directory


def test_a_hash_offset_goes_with_one_root_hash_and_no_key(our_public: PublicKey) -> None:
    for hashes, keys in (([], []), ([bytes(32)] * 2, []), ([bytes(32)], [our_public])):
        with pytest.raises(UsageError, match="--hash-offset"):
            collect_trust(hashes, keys, False, 4096, trust_self=True)
    options = collect_trust([bytes(32)], [], False, 4096, trust_self=True)
    assert (options.hash_offset, options.root_hash, options.policy.trust_self) == (4096, bytes(32), False)


def test_a_root_hash_is_hex_digits_or_a_file_with_them(tmp_path: Path) -> None:
    digest = hashlib.sha512(b"root").digest()
    for found in digest, digest[:32]:
        (tmp_path / "hash").write_text(f" {found.hex().upper()}\n")
        assert parse_root_hash(str(tmp_path / "hash")) == parse_root_hash(found.hex()) == found
    for text in "", "ab", "g" * 64, digest[:33].hex():
        (tmp_path / "hash").write_text(text)
        with pytest.raises(UsageError, match="root hash"):
            parse_root_hash(str(tmp_path / "hash"))
    (tmp_path / "hash").write_bytes(bytes(MAX_SMALL_FILE + 1))
    with pytest.raises(UsageError, match="too large"):
        parse_root_hash(str(tmp_path / "hash"))
    with pytest.raises(UsageError, match="No such file"):
        parse_root_hash(str(tmp_path / "missing"))


def test_a_trust_directory_is_read_whole(directory: Path, our_public: PublicKey, their_public: PublicKey) -> None:
    hashes, (key,) = read_trust_directory(directory)
    assert hashes == [bytes(range(32))] and key.is_same_as(our_public)
    (directory / "a.pem").write_text(our_public.pem() + "between them\n" + their_public.pem())
    _, keys = read_trust_directory(directory)
    assert [key.signer for key in keys] == [our_public.signer, their_public.signer]
    # Links to files, and links on the way, are followed.
    (directory.parent / "elsewhere").mkdir()
    (directory / "a.pem").rename(directory.parent / "elsewhere" / "a.pem")
    (directory / "a.pem").symlink_to("../elsewhere/a.pem")
    directory.rename(directory.parent / "elsewhere" / "trust.d")
    directory.symlink_to(directory.parent / "elsewhere" / "trust.d")
    (directory.parent / "elsewhere" / "trust.d" / "a.pem").unlink()
    (directory / "c.pem").symlink_to("../a.pem")
    assert len(read_trust_directory(directory)[1]) == 2


def test_only_a_trust_directory_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert read_trust_directory(tmp_path / "trust.d") == ([], [])
    assert read_trust_directory(tmp_path / "neither" / "trust.d") == ([], [])
    (tmp_path / "link").symlink_to(tmp_path)
    assert read_trust_directory(tmp_path / "link" / "trust.d") == ([], [])
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    for path, complaint in (
        ("file", "a regular file, where a directory must be|neither|Not a directory"),
        ("file/trust.d", "Not a directory"),
        ("dangling", "leads to .*nowhere, which is not there"),
        ("dangling/trust.d", "leads to .*nowhere, which is not there"),
        ("loop", "too many symbolic links"),
        ("n" * 300, "File name too long"),
    ):
        with pytest.raises(UsageError, match=complaint) as caught:
            read_trust_directory(tmp_path / path)
        assert str(caught.value).startswith(str(tmp_path / path))


@pytest.mark.parametrize(
    "name",
    [
        "k.PEM",
        "k.pub",
        "k.pem.disabled",
        "k.pem~",
        ".k.pem",
        "#k.pem#",
        "README",
        "k",
        "k.roothash.bak",
        "k.pem.dpkg-new",
    ],
)
def test_a_name_that_is_not_understood_refuses_the_trust_directory(directory: Path, name: str) -> None:
    (directory / name).write_bytes((directory / "a.pem").read_bytes())
    with pytest.raises(UsageError, match="not understood: only") as caught:
        read_trust_directory(directory)
    assert str(caught.value).startswith(f"{directory / name}: ")


def test_what_is_no_file_refuses_the_trust_directory(directory: Path) -> None:
    def socket_at(path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))

    makers: dict[str, Callable[[Path], object]] = {
        "which is not there": lambda path: path.symlink_to("nowhere"),
        "a FIFO": os.mkfifo,
        "a directory": lambda path: path.mkdir(),
        "a socket": socket_at,
        "a device": lambda path: path.symlink_to("/dev/null"),
        "too large": lambda path: path.write_bytes(bytes(MAX_SMALL_FILE + 1)),
        "not a PEM public key": lambda path: path.write_text("nothing"),
    }
    for complaint, make in makers.items():
        path = directory / "k.pem"
        make(path)
        with pytest.raises(UsageError, match=complaint) as caught:
            read_trust_directory(directory)
        assert str(caught.value).startswith(f"{path}: "), complaint
        path.rmdir() if path.is_dir() else path.unlink()
    assert read_trust_directory(directory)
    (directory / "c.roothash").write_text("nothing")
    with pytest.raises(UsageError, match=r"c\.roothash: not a root hash"):
        read_trust_directory(directory)


def test_signers_have_no_root_hashes(directory: Path) -> None:
    with pytest.raises(UsageError, match=r"b\.roothash: not understood: only \*\.pem may be here"):
        read_trust_directory(directory, takes_root_hashes=False)
    (directory / "b.roothash").unlink()
    assert len(read_trust_directory(directory, takes_root_hashes=False)[1]) == 1


def test_what_others_may_write_to_is_not_trusted(directory: Path) -> None:
    parent = directory.parent
    for path in (directory / "a.pem", directory, parent):
        before = path.stat().st_mode & 0o7777
        for bits in 0o020, 0o002:
            path.chmod(before | bits)
            with pytest.raises(UsageError, match=f"others may write to {path} .*chmod go-w {path}"):
                read_trust_directory(directory)
        path.chmod(before)
    # The sticky bit protects existing names, not missing ones.
    parent.chmod(0o1777)
    assert read_trust_directory(directory)
    with pytest.raises(UsageError, match="others may write to"):
        read_trust_directory(parent / "trust.e")
    parent.chmod(0o755)
    directory.chmod(0o1777)
    with pytest.raises(UsageError, match="others may write to"):
        read_trust_directory(directory)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away: for root")
def test_what_belongs_to_others_is_not_trusted(directory: Path) -> None:
    (directory.parent / "file").write_bytes((directory / "a.pem").read_bytes())
    (directory / "c.pem").symlink_to("../file")
    for path in (directory / "a.pem", directory / "c.pem", directory.parent / "file", directory):
        os.chown(path, 12345, 0, follow_symlinks=False)
        with pytest.raises(UsageError, match=f"{path} belongs to user 12345"):
            read_trust_directory(directory)
        os.chown(path, 0, 0, follow_symlinks=False)
    assert len(read_trust_directory(directory)[1]) == 2

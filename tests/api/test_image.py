"""``mystfuse.Image``: what it shows, and its files."""

from __future__ import annotations

import errno
import io
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import mystfuse
from tests.support.commands import run
from tests.support.encrypted_images import write_secret
from tests.support.image_trees import STAT_FIELDS
from tests.support.made_images import fssig
from tests.support.mounts import mounted

MakeKeys = Callable[..., tuple[Path, Path]]
DATA = bytes(range(256)) * 1200
"""Of /sub/deep/data.bin, where /link points."""


@pytest.fixture
def image(small_image: Path) -> Iterator[mystfuse.Image]:
    with mystfuse.Image(small_image, trust="self") as image:
        yield image


def test_it_agrees_with_a_mount(small_image: Path, tmp_path: Path) -> None:
    with mounted(small_image, tmp_path / "mount", "-r") as mount, mystfuse.Image(small_image, trust="self") as image:
        count = 0
        for top, directories, others in os.walk(mount):
            inside = top.removeprefix(str(mount)) or "/"
            assert sorted(image.listdir(inside)) == sorted(directories + others)
            assert {(entry.name, entry.inode, entry.is_dir()) for entry in image.scandir(inside)} == {
                (entry.name, entry.inode(), entry.is_dir(follow_symlinks=False)) for entry in os.scandir(top)
            }
            for name in directories + others:
                path, theirs = os.path.join(inside, name), os.path.join(top, name)
                count += 1
                ours, expected = image.lstat(path), os.lstat(theirs)
                assert [getattr(ours, field) for field in STAT_FIELDS] == [
                    getattr(expected, field) for field in STAT_FIELDS
                ]
                assert ours == image.stat(path, follow_symlinks=False)
                assert image.exists(path) == os.path.exists(theirs)
                assert image.is_file(path) == os.path.isfile(theirs)
                assert image.is_dir(path) == os.path.isdir(theirs)
                assert image.is_symlink(path) == os.path.islink(theirs)
                names = os.listxattr(theirs, follow_symlinks=False)
                assert sorted(image.listxattr(path, follow_symlinks=False)) == sorted(names)
                for attribute in names:
                    value = os.getxattr(theirs, attribute, follow_symlinks=False)
                    assert image.getxattr(path, attribute, follow_symlinks=False) == value
                if stat.S_ISLNK(expected.st_mode):
                    assert image.readlink(path) == os.readlink(theirs)
                elif stat.S_ISREG(expected.st_mode):
                    assert image.read_bytes(path) == Path(theirs).read_bytes()
        assert count >= 12
        walked = {path: (set(directories), set(others)) for path, directories, others in image.walk("/")}
        assert walked == {
            top.removeprefix(str(mount)) or "/": (set(directories), set(others))
            for top, directories, others in os.walk(mount)
        }


def test_a_walk_goes_where_it_is_told(image: mystfuse.Image) -> None:
    seen = []
    for path, directories, _ in image.walk("/"):
        seen.append(path)
        if path == "/":
            directories.remove("lost+found")
    assert seen == ["/", "/sub", "/sub/deep"]


def test_paths_are_text_or_bytes_and_stay_inside(image: mystfuse.Image) -> None:
    assert image.read_bytes(b"hello.txt") == image.read_bytes("/../../hello.txt") == b"hello\n"
    assert image.listdir(b"/sub/deep") == [b"data.bin"]
    assert image.read_bytes(b"latin-\xe9") == image.read_bytes("latin-\udce9") == b"not UTF-8\n"
    assert image.read_text("latin-\udce9") == "not UTF-8\n"
    for path, number in (("/nope", errno.ENOENT), ("/hello.txt/x", errno.ENOTDIR), ("x" * 300, errno.ENAMETOOLONG)):
        for use in (image.stat, image.read_bytes, image.open, image.listdir):
            with pytest.raises(OSError) as caught:
                use(path)
            assert (caught.value.errno, caught.value.filename) == (number, path)
    with pytest.raises(IsADirectoryError):
        image.read_bytes("/sub")
    with pytest.raises(NotADirectoryError):
        image.listdir("/hello.txt")
    with pytest.raises(OSError) as no_link:
        image.readlink("/hello.txt")
    assert no_link.value.errno == errno.EINVAL


@pytest.mark.parametrize("buffering", [-1, 0, 1000])
def test_binary_files(image: mystfuse.Image, buffering: int) -> None:
    with image.open("link", "rb", buffering) as file:
        assert isinstance(file, io.RawIOBase if buffering == 0 else io.BufferedReader)
        assert (file.readable(), file.seekable(), file.writable(), file.name, file.mode) == (
            True, True, False, "link", "rb",
        )  # fmt: skip
        assert file.read(10) == DATA[:10] and file.tell() == 10
        assert file.seek(-7, os.SEEK_END) == len(DATA) - 7
        assert file.read() == DATA[-7:] and file.read() == b"" == file.read(5)
        assert file.seek(1000) == 1000 and file.seek(24, os.SEEK_CUR) == 1024
        buffer = bytearray(300)
        assert file.readinto(buffer) == 300 and buffer == DATA[1024:1324]  # type: ignore[attr-defined]
        file.seek(0)
        chunks = []
        while chunk := file.read(70_000):
            chunks.append(chunk)
        assert b"".join(chunks) == DATA
        for offset, whence in ((-1, os.SEEK_SET), (0, 9)):
            with pytest.raises(ValueError):
                file.seek(offset, whence)
        with pytest.raises(OSError):
            file.fileno()
        with pytest.raises(io.UnsupportedOperation):
            file.write(b"x")
    assert file.closed
    for use in (file.read, file.tell, lambda: file.seek(0)):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_text_files(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    text = "käse\r\nzwei\rdrei\nvier"
    (tmp_path / "tree/utf-8").write_bytes(text.encode())
    (tmp_path / "tree/latin").write_bytes(text.encode("latin-1"))
    (tmp_path / "tree/long").write_text("".join(f"line {number}\n" for number in range(50_000)))
    mystfuse.make_image(tmp_path / "tree", tmp_path / "image")
    theirs = tmp_path / "tree"
    with mystfuse.Image(tmp_path / "image", trust="self") as image:
        for arguments in ((), (None, "ignore"), ("utf-8",), ("ascii", "replace"), ("latin-1", None, "")):
            encoding, errors, newline = [*arguments, None, None, None][:3]
            for name in ("utf-8", "latin"):
                try:
                    decoding = {"encoding": encoding or "utf-8", "errors": errors, "newline": newline}
                    with open(theirs / name, **decoding) as other:
                        expected = other.read()
                except UnicodeDecodeError:
                    with pytest.raises(UnicodeDecodeError):
                        image.read_text(name, encoding, errors)
                    continue
                with image.open(name, "r", -1, encoding, errors, newline) as file:
                    assert file.read() == expected
                if newline is None:
                    assert image.read_text(name, encoding, errors) == expected
        with image.open("long") as file, open(theirs / "long") as other:
            assert (file.mode, file.name) == ("r", "long")
            assert file.readline() == other.readline() == "line 0\n"
            assert list(file) == list(other)


@pytest.mark.parametrize("mode", ["w", "wb", "a", "x", "r+", "rb+", "r+b", "w+t", "xb+"])
def test_modes_that_write_are_refused(image: mystfuse.Image, mode: str) -> None:
    with pytest.raises(OSError) as caught:
        image.open("/new", mode)
    assert (caught.value.errno, caught.value.filename) == (errno.EROFS, "/new")


@pytest.mark.parametrize("mode", ["", "b", "rbt", "rr", "z", "rw", "U"])
def test_impossible_modes_are_refused(image: mystfuse.Image, mode: str) -> None:
    with pytest.raises(ValueError, match="invalid mode"):
        image.open("/hello.txt", mode)
    with pytest.raises(ValueError, match="takes no encoding"):
        image.open("/hello.txt", "rb", encoding="utf-8")
    with pytest.raises(ValueError, match="unbuffered"):
        image.open("/hello.txt", "r", 0)


def test_a_file_outlives_the_name_of_its_image_but_not_its_end(small_image: Path) -> None:
    image = mystfuse.Image(small_image, trust="self")
    image.close_with_last_reference()
    file = image.open("link", "rb")
    del image
    assert file.read() == DATA
    image = mystfuse.Image(small_image, trust="self")
    file = image.open("link", "rb")
    image.close()
    with pytest.raises(ValueError, match="is closed"):
        file.read()
    file.close()


def test_extracting(image: mystfuse.Image, tmp_path: Path) -> None:
    assert image.extract("/sub", tmp_path / "sub") == {}
    assert (tmp_path / "sub/deep/data.bin").read_bytes() == DATA
    with pytest.raises(FileExistsError):
        image.extract("/hello.txt", tmp_path / "sub")


def test_it_says_why_it_is_trusted(small_image: Path, small_tree: Path, tmp_path: Path, make_keys: MakeKeys) -> None:
    public, private = make_keys("image")
    mystfuse.make_image(small_tree, tmp_path / "signed", options=[f"--sign={public}:{private}"])
    fields = fssig(tmp_path / "signed")
    with mystfuse.Image(tmp_path / "signed", pubkeys=[public]) as image:
        assert image.root_hash is not None and image.root_hash.hex() == fields["root_hash"]
        assert image.signer is not None and image.signer.hex() == fields["signer"]
        assert image.trust.is_vouched_for and image.trust.reason.value == "signature"
        assert image.trust_explanation == f"signed by trusted key {public}"
        assert str(image.uuid) in run("dumpe2fs", "-h", tmp_path / "signed").stdout
        assert repr(image) == f"<mystfuse.Image '{tmp_path / 'signed'}'>"
    with mystfuse.Image(small_image, roothashes=[fssig(small_image)["root_hash"]]) as image:
        assert (image.trust.reason.value, image.signer) == ("root hash", None)
    with mystfuse.Image(small_image, insecure=True) as image:
        assert not image.trust.is_vouched_for


def test_statistics_count(image: mystfuse.Image, tmp_path: Path) -> None:
    before = image.statistics()
    image.read_bytes("/link")
    after = image.statistics()
    assert after.blocks_verified >= before.blocks_verified + len(DATA) // 4096
    assert after.bytes_fetched >= before.bytes_fetched + len(DATA)
    assert (after.blocks_failed, after.read_failures, after.bytes_decrypted) == (0, 0, 0)


@pytest.mark.parametrize("options", [[], ["--luks2"]], ids=["luks1", "luks2"])
def test_encrypted_images(options: list[str], small_tree: Path, tmp_path: Path) -> None:
    key, passphrase = secrets.token_bytes(64), "correct horse battery staple"
    write_secret(tmp_path / "key", key)
    write_secret(tmp_path / "passphrase", passphrase)
    mystfuse.make_image(
        small_tree,
        tmp_path / "image",
        options=[f"--encrypt={tmp_path / 'key'}", f"--passphrase-file={tmp_path / 'passphrase'}", *options],
    )
    for given in ({"key": key}, {"key": key.hex()}, {"passphrase": passphrase}):
        with mystfuse.Image(tmp_path / "image", trust="self", **given) as image:  # type: ignore[arg-type]
            assert image.read_bytes("/link") == DATA
            assert image.statistics().bytes_decrypted > len(DATA)
    for wrong in ({}, {"key": bytes(64)}, {"passphrase": "wrong"}):
        with pytest.raises(mystfuse.WrongKey):
            mystfuse.Image(tmp_path / "image", trust="self", **wrong)  # type: ignore[arg-type]
    with pytest.raises(mystfuse.FormatError, match="kdf-limit"):
        mystfuse.Image(tmp_path / "image", trust="self", passphrase=passphrase, kdf_limit=(1e-6, 1 << 30))


def test_errors_of_opening(small_image: Path, tmp_path: Path) -> None:
    (tmp_path / "zeros").write_bytes(bytes(10_000))
    for kind, path, arguments in (
        (mystfuse.NotTrusted, small_image, {}),
        (mystfuse.UsageError, small_image, {"trust": "anybody"}),
        (mystfuse.UsageError, small_image, {"pubkeys": "one.pem"}),
        (mystfuse.UsageError, small_image, {"key": b"k", "passphrase": "p"}),
        (mystfuse.WrongKey, small_image, {"trust": "self", "key": bytes(64)}),
        (mystfuse.ImageReadError, tmp_path / "nope", {"trust": "self"}),
        (mystfuse.FormatError, tmp_path / "zeros", {"trust": "self"}),
        (TypeError, small_image, {"pubkey": "x"}),
    ):  # fmt: skip
        with pytest.raises(kind) as caught:
            mystfuse.Image(path, **arguments)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


@pytest.mark.logs(r"^mystfuse\.devices\.verity")
def test_a_damaged_block_costs_what_is_in_it(small_image: Path, tmp_path: Path) -> None:
    data = bytearray(small_image.read_bytes())
    data[data.index(b"longest name\n")] ^= 1
    (tmp_path / "damaged").write_bytes(data)
    with mystfuse.Image(tmp_path / "damaged", trust="self") as image:
        with pytest.raises(mystfuse.IntegrityError):
            image.read_bytes("n" * 255)
        with image.open("n" * 255) as file, pytest.raises(mystfuse.IntegrityError):
            file.read()
        assert image.read_bytes("hello.txt") == b"hello\n"
        assert image.statistics().blocks_failed > 0

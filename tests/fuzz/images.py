"""The file systems that targets start from, and devices on them.

They are kept, packed, in ``images/``: stored inputs mean something for exactly these bytes.
``python -m tests.fuzz.images`` makes them anew (``... ext4`` that of ext4); then run ``scripts/fuzz`` with an empty corpus.
"""

from __future__ import annotations

import lzma
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from mystfuse.devices.device import Extent
from mystfuse.errors import ImageReadError

IMAGES = Path(__file__).parent / "images"
PIECE = 1024
"""The size of an image in bytes."""
OPTIONS = {
    # Four groups, small blocks, attributes in inodes and blocks.
    "small": ("-b", "1024", "-g", "1024", "-N", "512", "-I", "256", "4M"),
    # Revision 0: no features, inodes of 128 bytes.
    "old": ("-b", "1024", "-r", "0", "-O", "none", "-N", "256", "2M"),
    # As many groups as this number of blocks allows.
    "groups": ("-b", "1024", "-g", "256", "-O", "^resize_inode,^meta_bg", "-N", "2048", "-I", "128", "24M"),
    # The largest blocks, and inodes of one page.
    "large": ("-b", "65536", "-N", "256", "-I", "4096", "8M"),
}


class SparseImage:
    """An image without its zeros; copies of it cost little.

    Args:
        size: bytes; what is not in ``pieces`` is zeros.
    """

    def __init__(self, pieces: dict[int, bytes], size: int) -> None:
        self._pieces = pieces
        self._changed: dict[int, bytearray] = {}
        self.size = size

    def copy(self) -> SparseImage:
        """A copy of the original, before any change."""
        return SparseImage(self._pieces, self.size)

    def get(self, offset: int, length: int) -> bytes:
        if not 0 <= offset <= offset + length <= self.size:
            raise ImageReadError(f"{length} bytes at {offset} are outside the device")
        first, last = offset // PIECE, -(-(offset + length) // PIECE)
        zeros = bytes(PIECE)
        parts = [self._changed.get(number) or self._pieces.get(number, zeros) for number in range(first, last)]
        start = offset - first * PIECE
        return b"".join(parts)[start : start + length]

    def put(self, offset: int, data: bytes) -> None:
        """Overwrite bytes; bytes outside the image are dropped."""
        start, end = max(offset, 0), min(offset + len(data), self.size)
        while start < end:
            number, within = divmod(start, PIECE)
            part = data[start - offset : min(start - within + PIECE, end) - offset]
            if number not in self._changed:
                self._changed[number] = bytearray(self._pieces.get(number, bytes(PIECE)))
            self._changed[number][within : within + len(part)] = part
            start += len(part)

    def changes(self) -> list[tuple[int, bytes, bytes]]:
        """What has been overwritten since the copy was made: (offset, bytes now, bytes before)."""
        zeros = bytes(PIECE)
        return [
            (number * PIECE, bytes(piece), self._pieces.get(number, zeros)) for number, piece in self._changed.items()
        ]

    def whole(self) -> list[tuple[int, bytes]]:
        """The original without its zeros: (offset, bytes)."""
        return [(number * PIECE, piece) for number, piece in self._pieces.items()]

    def number(self, offset: int, size: int) -> int:
        """The little-endian number of ``size`` bytes at an offset."""
        return int.from_bytes(self.get(offset, size), "little")

    def put_number(self, offset: int, size: int, value: int) -> None:
        self.put(offset, (value & (1 << 8 * size) - 1).to_bytes(size, "little"))


class SparseDevice:
    """A device on an image that answers every read, and counts."""

    def __init__(self, image: SparseImage) -> None:
        self.size = image.size
        self.bytes_read = 0
        self._image = image

    def begin(self, extents: Sequence[Extent]) -> None:
        return None

    async def read(self, extents: Sequence[Extent], quietly: bool = False) -> list[memoryview]:
        self.bytes_read += sum(extent.length for extent in extents)
        return [memoryview(self._image.get(extent.offset, extent.length)) for extent in extents]


@cache
def load(name: str) -> SparseImage:
    """One of the images in ``images/``. Change only copies of it."""
    data = lzma.decompress((IMAGES / f"{name}.img.xz").read_bytes())
    zeros = bytes(PIECE)
    pieces = {
        number: piece
        for number in range(len(data) // PIECE)
        if (piece := data[number * PIECE : (number + 1) * PIECE]) != zeros
    }
    return SparseImage(pieces, len(data))


def make(directory: Path) -> None:
    """Make all images, with mke2fs, from a tree with every kind of metadata."""
    tree = directory / "tree"
    (tree / "dir/sub").mkdir(parents=True)
    (tree / "many").mkdir()
    (tree / "file").write_bytes(b"file" * 300)
    (tree / "large").write_bytes(bytes(range(251)) * 2400)
    with (tree / "sparse").open("wb") as file:
        file.seek(70_000_000)
        file.write(b"end")
    for number in range(120):
        os.link(tree / "file", tree / f"many/a-name-of-some-length-{number:04}")
    os.link(tree / "file", tree / "dir/hard")
    (tree / "slow").symlink_to("x" * 100)
    (tree / "fast").symlink_to("short")
    os.mkfifo(tree / "fifo")
    os.mknod(tree / "device", 0o020644, os.makedev(300, 70_000))
    os.setxattr(tree / "large", "user.big", b"v" * 400)
    os.setxattr(tree / "file", "user.small", b"v")
    subprocess.run(["setfacl", "-m", "u:1234:rw,g:77:r", tree / "large"], check=True)
    subprocess.run(["setfacl", "-d", "-m", "u:1234:rx", tree / "dir"], check=True)
    for path in (tree, *tree.rglob("*")):
        os.utime(path, (1_600_000_000, 1_600_000_000), follow_symlinks=False)
    identity = "6d797374-6675-7365-0000-000000000000"
    for name, (*options, size) in OPTIONS.items():
        path = directory / name
        subprocess.run(
            ["mke2fs", "-q", "-F", "-t", "ext2", "-U", identity, "-E", f"hash_seed={identity},root_owner=0:0",
             "-d", tree, *options, path, size],
            check=True,
        )  # fmt: skip
        # A hash-indexed directory, as e2fsck makes them.
        subprocess.run(["e2fsck", "-fyD", path], check=False, stdout=subprocess.DEVNULL)
        (IMAGES / f"{name}.img.xz").write_bytes(lzma.compress(path.read_bytes(), preset=9))


def make_ext4(directory: Path) -> None:
    """Make the image of ext4, in which one file has a tree of extents of two levels."""
    tree = directory / "tree"
    (tree / "dir/sub").mkdir(parents=True)
    (tree / "many").mkdir()
    (tree / "file").write_bytes(b"in the inode")
    (tree / "large").write_bytes(bytes(range(251)) * 400)
    with (tree / "pieces").open("wb") as file:
        for number in range(400):
            file.seek(2048 * number)
            file.write(b"%04d" % number)
    for number in range(120):
        os.link(tree / "file", tree / f"many/a-name-of-some-length-{number:04}")
    (tree / "slow").symlink_to("x" * 100)
    (tree / "fast").symlink_to("short")
    os.setxattr(tree / "large", "user.big", b"v" * 400)
    os.setxattr(tree / "file", "user.small", b"v")
    for path in (tree, *tree.rglob("*")):
        os.utime(path, (1_600_000_000, 1_600_000_000), follow_symlinks=False)
    identity = "6d797374-6675-7365-0000-000000000000"
    image = directory / "image"
    subprocess.run(
        ["mke2fs", "-q", "-F", "-t", "ext4", "-U", identity, "-E", f"hash_seed={identity},root_owner=0:0", "-b", "1024",
         "-g", "1024", "-N", "256", "-I", "256", "-O",
         "inline_data,ea_inode,large_dir,metadata_csum_seed,^has_journal,^resize_inode", "-d", tree, image, "3M"],
        check=True,
    )  # fmt: skip
    subprocess.run(["e2fsck", "-fyD", image], check=False, stdout=subprocess.DEVNULL)
    (IMAGES / "ext4.img.xz").write_bytes(lzma.compress(image.read_bytes(), preset=9))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        (make_ext4 if "ext4" in sys.argv else make)(Path(directory))
    sys.exit()

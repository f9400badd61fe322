"""Files, links, devices, times, owners and attributes read as mke2fs and the kernel wrote them."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path
from stat import S_IFREG

import pytest

from mystfuse.ext2.caller import Caller
from mystfuse.ext2.setattr import AttributeChanges
from mystfuse.ext2.superblock import Superblock
from mystfuse.volume.volume import Volume
from tests.support.commands import run
from tests.support.ext2_editor import (
    ROOT,
    Editor,
    FileDevice,
    MemoryDevice,
    assert_clean,
    at,
    debugfs,
    kernel_mount,
    make_image,
    merged,
    open_image,
)

SPARSE_OFFSETS = (5_000, 100_000, 10_000_000, 70_000_000)
"""Block numbers behind direct, single, double and triple indirection, with 1 KiB blocks."""
MARK = b"here are some bytes of a sparse file;" * 60


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An image with 1 KiB blocks with a sparse file in it, and the file it was made from."""
    directory = tmp_path_factory.mktemp("sparse")
    source = directory / "tree/sparse"
    source.parent.mkdir()
    with source.open("wb") as file:
        for offset in SPARSE_OFFSETS:
            file.seek(offset)
            file.write(MARK)
        file.truncate(SPARSE_OFFSETS[-1] + 5_000)
    return make_image(directory / "image", "-b", "1024", size="2M", tree=source.parent), source


async def test_a_sparse_file_has_all_levels_of_indirection(sparse: tuple[Path, Path]) -> None:
    image = Editor(sparse[0].read_bytes())
    _, ino = image.find(ROOT, b"sparse")
    pointers = [image.get("<I", image.pointer(ino, index)) for index in range(15)]
    assert pointers[0] == 0, "a hole at the start"
    assert all(pointers[4:6]) and all(pointers[12:15])


async def test_a_sparse_file_reads_as_its_source_at_all_borders(sparse: tuple[Path, Path]) -> None:
    volume = await open_image(sparse[0])
    inode = await at(volume, "sparse")
    size = sparse[1].stat().st_size
    assert inode.size == size
    levels = [0, 12, 12 + 256, 12 + 256 + 256**2]
    places = {level * 1024 for level in levels} | {0, size}
    places |= {offset + delta for offset in SPARSE_OFFSETS for delta in (0, len(MARK))}
    with sparse[1].open("rb") as file:
        for place in sorted(places):
            for shift in (-3000, -1025, -1, 0, 1, 1023):
                for length in (1, 2, 1024, 1025, 6000, 131072):
                    offset = max(place + shift, 0)
                    file.seek(offset)
                    expected = file.read(length)
                    assert bytes(await volume.read(inode.ino, offset, length)) == expected, (offset, length)


async def test_a_sparse_file_read_across_all_levels_is_its_source(sparse: tuple[Path, Path]) -> None:
    volume = await open_image(sparse[0])
    inode = await at(volume, "sparse")
    step = 7_000_001
    with sparse[1].open("rb") as file:
        for offset in range(0, inode.size, step):
            assert bytes(await volume.read(inode.ino, offset, step)) == file.read(step), offset


async def test_a_read_ends_at_the_end_of_the_file(sparse: tuple[Path, Path]) -> None:
    volume = await open_image(sparse[0])
    inode = await at(volume, "sparse")
    assert bytes(await volume.read(inode.ino, inode.size - 3, 100)) == bytes(3)
    for offset in (inode.size, inode.size + 1, inode.size + 100_000, 1 << 62):
        assert bytes(await volume.read(inode.ino, offset, 100)) == b""
    assert bytes(await volume.read(inode.ino, 5_000, 0)) == b""


async def test_the_rest_of_the_last_block_is_never_read(sparse: tuple[Path, Path]) -> None:
    image = Editor(sparse[0].read_bytes())
    _, ino = image.find(ROOT, b"sparse")
    image.put("<I", image.inode(ino) + 4, 5_010)
    volume = await image.open()
    assert bytes(await volume.read(ino, 4_990, 4096)) == bytes(10) + MARK[:10]


@pytest.mark.parametrize("block_size", [1024, 4096])
async def test_random_reads_of_a_dense_file_are_its_content(tmp_path: Path, block_size: int) -> None:
    (tmp_path / "tree").mkdir()
    content = random.Random(1).randbytes(1_500_000)
    (tmp_path / "tree/dense").write_bytes(content)
    image = make_image(tmp_path / "image", "-b", str(block_size), size="4M", tree=tmp_path / "tree")
    volume = await open_image(image)
    ino = (await at(volume, "dense")).ino
    assert bytes(await volume.read(ino, 0, len(content))) == content
    source = random.Random(2)
    for _ in range(300):
        offset, length = source.randrange(len(content)), source.choice((1, 100, block_size, 20_000, 300_000))
        assert bytes(await volume.read(ino, offset, length)) == content[offset : offset + length]


async def test_a_file_of_over_4_gib_is_read_on_both_sides_of_the_border(tmp_path: Path) -> None:
    border = 1 << 32
    (tmp_path / "tree").mkdir()
    with (tmp_path / "tree/huge").open("wb") as file:
        for offset in (border - 10, border + 5_000_000):
            file.seek(offset)
            file.write(b"around the border, on both sides")
        file.truncate(border + 6_000_000)
    image = make_image(tmp_path / "image", "-b", "4096", size="4M", tree=tmp_path / "tree")
    volume = await open_image(image)
    inode = await at(volume, "huge")
    assert inode.size == border + 6_000_000
    assert bytes(await volume.read(inode.ino, border - 12, 36)) == bytes(
        2
    ) + b"around the border, on both sides" + bytes(2)
    assert bytes(await volume.read(inode.ino, border + 5_000_007, 10)) == b"the border"
    assert bytes(await volume.read(inode.ino, 0, 100)) == bytes(100)
    assert bytes(await volume.read(inode.ino, inode.size - 4, 10)) == bytes(4)


async def test_data_beyond_4_gib_of_the_device_is_read(tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", "-b", "4096", "-N", "1000", "-E", "lazy_itable_init=1", size="5G")
    (tmp_path / "file").write_bytes(b"far away" * 100)
    debugfs(image, f"write {tmp_path / 'file'} file")
    far = (5 << 30) // 4096 - 1
    with image.open("r+b") as file:
        file.seek(far * 4096)
        file.write(b"farther!" * 100)
    debugfs(image, f"set_inode_field file block[0] {far}")
    volume = await Volume.open(FileDevice(image))
    ino = (await at(volume, "file")).ino
    assert bytes(await volume.read(ino, 0, 5000)) == b"farther!" * 100


@pytest.mark.parametrize("block_size", [1024, 4096])
async def test_symlinks_of_every_length_have_their_target(tmp_path: Path, block_size: int) -> None:
    lengths = [*range(1, 70), 100, 255, 256, 1000, 1022, 1023]
    lengths += [1024, 4000, 4095] if block_size == 4096 else []
    (tmp_path / "tree").mkdir()
    targets = {length: (f"{length}/" + "t" * 4096)[:length] for length in lengths}
    for length, target in targets.items():
        (tmp_path / f"tree/{length}").symlink_to(target)
    image = make_image(tmp_path / "image", "-b", str(block_size), "-N", "256", size="2M", tree=tmp_path / "tree")
    volume = await open_image(image)
    for length, target in targets.items():
        inode = await at(volume, str(length))
        assert inode.is_symlink and inode.size == length
        assert (inode.i_blocks == 0) == (length < 60), "fast up to 59 bytes"
        assert await volume.target(inode.ino) == target.encode()


async def test_a_fast_symlink_with_an_attribute_block_is_still_fast(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    link = tmp_path / "tree/link"
    link.symlink_to("a target")
    os.setxattr(link, "trusted.big", b"v" * 300, follow_symlinks=False)
    image = make_image(tmp_path / "image", "-b", "1024", "-I", "128", tree=tmp_path / "tree")
    volume = await open_image(image)
    inode = await at(volume, "link")
    assert inode.i_file_acl and inode.i_blocks
    assert await volume.target(inode.ino) == b"a target"
    assert await volume.xattrs(inode.ino) == {b"trusted.big": b"v" * 300}


DEVICES = [(8, 1), (1, 3), (255, 255), (0, 5), (256, 0), (259, 7), (8, 256), (4095, 0xFFFFF), (1, 0x12345)]


async def test_device_numbers_are_those_that_the_kernel_gives(tmp_path: Path) -> None:
    image = make_image(tmp_path / "image")
    with kernel_mount(image, tmp_path / "mnt", "rw") as mount:
        for major, minor in DEVICES:
            os.mknod(mount / f"c{major}-{minor}", 0o020644, os.makedev(major, minor))
            os.mknod(mount / f"b{major}-{minor}", 0o060600, os.makedev(major, minor))
        os.mkfifo(mount / "fifo")
        numbers = {entry.name: entry.lstat().st_rdev for entry in mount.iterdir()}
        modes = {entry.name: entry.lstat().st_mode for entry in mount.iterdir()}
    volume = await open_image(image)
    raw = Editor(image.read_bytes())
    encodings: set[bool] = set()
    for name, number in numbers.items():
        inode = await at(volume, name)
        assert (inode.i_mode, inode.rdev) == (modes[name], number), name
        if number:
            encodings.add(raw.get("<I", raw.pointer(inode.ino, 0)) != 0)
    assert encodings == {True, False}, "both the old and the new encoding"


TIMES = [
    0,
    1,
    -1,
    -1_500_000_000,
    1_700_000_000,
    (1 << 31) - 1,
    1 << 31,
    -(1 << 31),
    1 << 32,
    (1 << 33) + 12345,
    (1 << 34) - (1 << 31) - 1,
    5_000_000_000,
]


async def test_times_are_those_that_the_kernel_gives_to_the_nanosecond(tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", "-I", "256")
    with kernel_mount(image, tmp_path / "mnt", "rw") as mount:
        for index, seconds in enumerate(TIMES):
            (mount / f"t{index}").touch()
            os.utime(mount / f"t{index}", ns=(seconds * 10**9 + 999_999_999, seconds * 10**9 + 123_456_789))
        stats = {entry.name: entry.lstat() for entry in mount.iterdir()}
    assert stats["t9"].st_mtime_ns == ((1 << 33) + 12345) * 10**9 + 123_456_789
    volume = await open_image(image)
    for name, stat in stats.items():
        inode = await at(volume, name)
        assert (inode.mtime_ns, inode.atime_ns, inode.ctime_ns) == (
            stat.st_mtime_ns,
            stat.st_atime_ns,
            stat.st_ctime_ns,
        )


async def test_times_of_128_byte_inodes_are_whole_signed_seconds(tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", "-I", "128")
    with kernel_mount(image, tmp_path / "mnt", "rw") as mount:
        for seconds in (-5, -(1 << 31), 0, (1 << 31) - 1):
            (mount / str(seconds)).touch()
            os.utime(mount / str(seconds), ns=(seconds * 10**9, seconds * 10**9))
    volume = await open_image(image)
    for seconds in (-5, -(1 << 31), 0, (1 << 31) - 1):
        inode = await at(volume, str(seconds))
        assert inode.mtime_ns == inode.atime_ns == seconds * 10**9


async def test_owners_modes_and_link_counts_are_those_of_the_source(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "d").mkdir(parents=True)
    for number, (mode, uid, gid) in enumerate([(0o4755, 0, 0), (0o2644, 65_535, 65_536), (0o1777, 4_000_000_000, 7)]):
        (tree / f"f{number}").write_bytes(b"x" * number)
        os.chown(tree / f"f{number}", uid, gid)
        os.chmod(tree / f"f{number}", mode)
    os.link(tree / "f1", tree / "d/hard")
    volume = await open_image(make_image(tmp_path / "image", tree=tree))
    for number in range(3):
        inode, stat = await at(volume, f"f{number}"), (tree / f"f{number}").stat()
        expected = (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_size, stat.st_nlink)
        assert (inode.i_mode, inode.uid, inode.gid, inode.size, inode.i_links_count) == expected
    assert (await at(volume, "d", "hard")).ino == (await at(volume, "f1")).ino


ATTRIBUTES: dict[str, dict[str, bytes]] = {
    "none": {},
    "body": {"user.comment": b"short"},
    "block": {"user.long": b"l" * 700},
    "both": {"user.short": b"s", "user.long": b"l" * 600, "trusted.t": b"\0\1\2", "security.s": b"s\xff"},
    "many": {f"user.number{number}": b"%d" % number * (number % 5 + 1) for number in range(20)},
    "empty": {"user.empty": b"", "user.x": b"x"},
    "odd": {"user." + os.fsdecode(b"\xe9t\xe9"): bytes(range(256)), "user.a.b=c": b"v"},
    "longname": {"user." + "n" * 250: b"value"},
}


@pytest.mark.parametrize("inode_size", [128, 256])
async def test_attributes_are_those_that_were_set(tmp_path: Path, inode_size: int) -> None:
    image = make_image(tmp_path / "image", "-b", "1024", "-I", str(inode_size))
    with kernel_mount(image, tmp_path / "mnt", "rw") as mount:
        for name, attributes in ATTRIBUTES.items():
            (mount / name).touch()
            for key, value in attributes.items():
                os.setxattr(mount / name, key, value)
    raw = Editor(image.read_bytes())
    volume = await open_image(image)
    where: dict[str, tuple[bool, bool]] = {}
    for name, attributes in ATTRIBUTES.items():
        inode = await at(volume, name)
        expected = {os.fsencode(key): value for key, value in attributes.items()}
        assert await volume.xattrs(inode.ino) == expected, name
        position = raw.inode(inode.ino) + 128 + 32
        in_body = inode_size > 128 and raw.get("<I", position) == 0xEA020000 and raw.get("<I", position + 4) != 0
        where[name] = (in_body, inode.i_file_acl != 0)
    assert where["block"][1]
    if inode_size == 256:
        assert (where["body"], where["both"]) == ((True, False), (True, True))


async def test_attributes_that_mke2fs_copied_are_those_of_the_source(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "directory").mkdir(parents=True)
    (tree / "file").touch()
    for path in (tree / "directory", tree / "file"):
        os.setxattr(path, "user.comment", b"a value")
        os.setxattr(path, "trusted.long", b"long" * 100)
        os.setxattr(path, "security.capability", struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0))
    volume = await open_image(make_image(tmp_path / "image", "-b", "1024", tree=tree))
    for path in (tree / "directory", tree / "file"):
        expected = {os.fsencode(name): os.getxattr(path, name) for name in os.listxattr(path)}
        assert len(expected) >= 3
        assert await volume.xattrs((await at(volume, path.name)).ino) == expected


ACLS = {
    "user": ("-m", "u:1234:r"),
    "users": ("-m", "u:0:rwx,u:1234:rx,u:4000000000:-,g:55:w,g:70000:rw"),
    "mask": ("-m", "u:1:rwx,m::r"),
    "default": ("-m", "d:u:1234:rx,d:g:9:r,d:o::-"),
    "all": ("-m", "u:7:rw,g:8:x,d:u:7:rwx,d:m::rx"),
}


@pytest.mark.parametrize("inode_size", [128, 256])
@pytest.mark.parametrize("way", ["mke2fs", "kernel"])
async def test_acls_are_those_of_the_source(tmp_path: Path, inode_size: int, way: str) -> None:
    options = ("-b", "1024", "-I", str(inode_size))
    image, tree = tmp_path / "image", tmp_path / "tree"

    def fill(root: Path) -> dict[str, dict[bytes, bytes]]:
        for name, arguments in ACLS.items():
            (root / name).mkdir()
            run("setfacl", *arguments, root / name)
        return {
            name: {os.fsencode(key): os.getxattr(root / name, key) for key in os.listxattr(root / name)}
            for name in ACLS
        }

    if way == "mke2fs":
        tree.mkdir()
        expected = fill(tree)
        make_image(image, *options, tree=tree)
    else:
        make_image(image, *options)
        with kernel_mount(image, tree, "rw,acl") as mount:
            expected = fill(mount)
    volume = await open_image(image)
    assert {len(attributes) for attributes in expected.values()} == {1, 2}
    for name, attributes in expected.items():
        assert await volume.xattrs((await at(volume, name)).ino) == attributes, name


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ("1M", ("-b", "1024")),
        ("8M", ("-b", "1024")),
        ("8M", ("-b", "1024", "-O", "^resize_inode")),
        ("40M", ("-b", "1024", "-I", "128", "-m", "0")),
        ("100M", ("-b", "1024", "-O", "^sparse_super,^resize_inode")),
        ("50M", ("-b", "2048", "-m", "20")),
        ("12M", ("-b", "4096", "-N", "100")),
        (
            "700M",
            (
                "-b",
                "4096",
            ),
        ),
        ("20M", ("-b", "1024", "-O", "has_journal")),
    ],
)
async def test_statfs_is_what_the_kernel_says(tmp_path: Path, size: str, options: tuple[str, ...]) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_bytes(b"f" * 100_000)
    image = make_image(tmp_path / "image", *options, size=size, tree=tmp_path / "tree")
    with kernel_mount(image, tmp_path / "mnt", "ro,noload" if "has_journal" in options else "ro") as mount:
        kernel = os.statvfs(mount)
    ours = await (await Volume.open(FileDevice(image))).statistics()
    assert (ours.block_size, ours.blocks, ours.free_blocks, ours.available_blocks, ours.inodes, ours.free_inodes) == (
        kernel.f_bsize,
        kernel.f_blocks,
        kernel.f_bfree,
        kernel.f_bavail,
        kernel.f_files,
        kernel.f_ffree,
    )


async def test_the_first_file_over_2_gib_makes_revision_0_dynamic(tmp_path: Path) -> None:
    """large_file is a feature, and revision 0 has no features."""
    path = make_image(tmp_path / "image", "-b", "1024", "-r", "0", "-O", "none", size="2M")
    volume = await Volume.open(MemoryDevice(path.read_bytes()), 8 << 20)
    caller = Caller(0, 0)
    files = [(await volume.create(ROOT, b"%d" % number, S_IFREG | 0o644, caller)).ino for number in range(2)]
    await volume.write(files[0], (1 << 31) - 2, b"x", caller)
    assert_clean(await merged(volume), tmp_path / "merged")
    assert Superblock.parse((await merged(volume))[1024:2048]).features == frozenset()
    await volume.write(files[0], (1 << 31) - 1, b"xy", caller)
    await volume.set_attributes(files[1], AttributeChanges(size=1 << 32), caller)
    image = await merged(volume)
    assert_clean(image, tmp_path / "merged")
    superblock = Superblock.parse(image[1024:2048])
    assert superblock.features == {"large_file"} and superblock.s_rev_level == 1 and superblock.s_inode_size == 128

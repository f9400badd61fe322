"""Journals that lie: every one is refused by name or replayed, in bounded memory and time."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mystfuse.errors import CorruptFilesystem, FormatError, IntegrityError, UnsupportedFeature
from mystfuse.ext2.journal import MAX_JOURNAL_BLOCKS, Replay, Steps, replay
from mystfuse.ext2.journal_format import JournalSuperblock
from mystfuse.volume.volume import Volume
from tests.support.commands import run
from tests.support.ext2_editor import Editor, MemoryDevice, make_image
from tests.support.journal_snapshots import replayed_by_hand
from tests.support.journals import BLOCK, MAGIC, JournalImage, Transaction, loop_device, recovered

CONTENT = b"c" * BLOCK


@pytest.fixture
def image(tmp_path: Path) -> JournalImage:
    return JournalImage(tmp_path / "image")


def write(image: JournalImage, *transactions: Transaction, features: str = "", start: int = 1) -> int:
    image.begin(features.split(), 1, start)
    return image.log(transactions, 1, start)


def superblock_of(features: str = "", maxlen: int = 4096, start: int = 1, block_size: int = BLOCK) -> JournalSuperblock:
    return JournalSuperblock(block_size, maxlen, 1, 1, start, 0, frozenset(features.split()), 0, 0)


def follow(steps: Steps[Replay], blocks: dict[int, bytes], otherwise: bytes = bytes(BLOCK)) -> tuple[Replay, int]:
    """The outcome of a replay of these blocks, and how many blocks it wanted."""
    wanted = 0
    try:
        some = next(steps)
        while True:
            wanted += len(some)
            some = steps.send(b"".join(blocks.get(block, otherwise) for block in some))
    except StopIteration as end:
        return end.value, wanted


def header(kind: int, sequence: int = 1) -> bytes:
    return struct.pack(">III", MAGIC, kind, sequence)


@pytest.mark.parametrize(
    "block",
    [
        header(5) + struct.pack(">I", 16),
        header(1) + struct.pack(">IHH", 7, 0, 8) + bytes(16),
        header(1) + struct.pack(">IHH", 7, 0, 2) * 126,
    ],
    ids=["revoke", "one tag", "many tags"],
)
def test_a_log_without_an_end_ends(block: bytes) -> None:
    steps = replay(superblock_of(), 1 << 20, 1000)
    with pytest.raises(CorruptFilesystem, match="no end"):
        follow(steps, {}, block.ljust(BLOCK, b"\0"))


def test_a_log_that_is_longer_than_any_is_refused_unread() -> None:
    steps = replay(superblock_of(maxlen=MAX_JOURNAL_BLOCKS + 2), 1 << 20, 1000)
    with pytest.raises(UnsupportedFeature, match="at most"):
        next(steps)


def test_more_blocks_than_there_is_room_for_are_refused() -> None:
    numbers = struct.pack(">IHH", 1, 0, 0) + bytes(16)
    for number in range(2, 100):
        numbers += struct.pack(">IHH", number, 0, 2)
    steps = replay(superblock_of(), 1 << 20, 50)
    with pytest.raises(UnsupportedFeature, match="more than 50 different blocks"):
        follow(steps, {1: (header(1) + numbers).ljust(BLOCK, b"\0")})


def test_revoked_blocks_that_the_log_does_not_have_take_no_memory() -> None:
    records = struct.pack(">252I", *range(1000, 1252))
    blocks = {
        **{index: header(5) + struct.pack(">I", BLOCK) + records for index in range(1, 4000)},
        4000: header(2).ljust(BLOCK, b"\0"),
    }
    steps = replay(superblock_of(), 1 << 20, 50)
    result, wanted = follow(steps, blocks)
    assert (result.places, result.transactions) == ({}, 1)
    assert wanted < 3 * 4002


def test_long_descriptors_are_read_in_pieces() -> None:
    size = 65536
    block = header(1) + struct.pack(">IHHI", 7, 0, 0, 0) + bytes(16)
    block += b"".join(struct.pack(">IHHI", number, 0, 2, 0) for number in range(8, 1008)) + struct.pack(
        ">IHHI", 5, 0, 8, 0
    )
    superblock = superblock_of("64bit checksum", block_size=size)
    steps = replay(superblock, 1 << 20, 2000)
    some, most = next(steps), 0
    for _ in range(100):
        most = max(most, len(some))
        try:
            some = steps.send((block.ljust(size, b"\0") if some.start == 1 else bytes(size)) * len(some))
        except StopIteration:
            break
    assert most == 16


@given(st.data())
def test_arbitrary_logs_are_replayed_or_refused(data: st.DataObject) -> None:
    features = data.draw(
        st.sampled_from(["", "64bit", "csum_v2", "csum_v3 64bit", "checksum", "checksum async_commit"])
    )
    kinds = st.integers(0, 6)
    blocks = {}
    for index in range(1, data.draw(st.integers(2, 40))):
        head = header(data.draw(kinds), data.draw(st.integers(1, 3)))
        blocks[index] = (head + data.draw(st.binary(max_size=60))).ljust(BLOCK, b"\0")
    steps = replay(superblock_of(features), 1 << 20, 500)
    try:
        result, wanted = follow(steps, blocks)
    except FormatError:
        return
    assert wanted <= 3 * 4096
    assert all(number < 1 << 20 and 0 < place.block < 4096 for number, place in result.places.items())


@pytest.mark.parametrize(
    ("offset", "value", "error", "words"),
    [
        (0, 0, CorruptFilesystem, "no superblock"),
        (4, 9, CorruptFilesystem, "no superblock"),
        (12, 4096, CorruptFilesystem, "s_blocksize"),
        (16, 1025, CorruptFilesystem, "s_maxlen"),
        (20, 0, CorruptFilesystem, "s_first"),
        (20, 5, CorruptFilesystem, "s_first"),
        (28, 1024, CorruptFilesystem, "s_start"),
        (40, 0x40, UnsupportedFeature, "FEATURE_I6"),
        (40, 0x18, CorruptFilesystem, "more than one version"),
        (40, 0x10, UnsupportedFeature, "checksums of type 0"),
        (40, 0x20, CorruptFilesystem, "for fast commits"),
        (44, 0x2, UnsupportedFeature, "FEATURE_R1"),
    ],
)
async def test_a_wrong_journal_superblock_is_refused_by_name(
    image: JournalImage, offset: int, value: int, error: type[FormatError], words: str
) -> None:
    write(image, Transaction([(image.free[0], CONTENT)]))
    block = bytearray(image.get(0))
    struct.pack_into(">I", block, offset, value)
    image.put(0, bytes(block))
    with pytest.raises(error, match=words):
        await image.ours()


async def test_features_of_version_1_do_not_count(image: JournalImage) -> None:
    write(image, Transaction([(image.free[0], CONTENT)]))
    block = bytearray(image.get(0))
    struct.pack_into(">I", block, 4, 3)
    struct.pack_into(">I", block, 40, 0x40)
    image.put(0, bytes(block))
    assert (await image.ours())[image.free[0] * BLOCK :].startswith(CONTENT)


async def test_a_block_outside_the_file_system_is_refused(image: JournalImage) -> None:
    for number, features in ((8192, ""), (0xFFFFFFFF, ""), (1 << 32 | image.free[0], "64bit")):
        write(image, Transaction([(number, CONTENT)]), features=features)
        with pytest.raises(CorruptFilesystem, match=f"block {number}, which is outside"):
            await image.ours()


async def test_a_revoked_block_may_be_anywhere(image: JournalImage) -> None:
    write(image, Transaction([(0xFFFFFFFF, CONTENT), (image.free[0], CONTENT)]), Transaction([], [0xFFFFFFFF]))
    assert (await image.ours())[image.free[0] * BLOCK :].startswith(CONTENT)


async def test_an_external_journal_is_refused_by_name(image: JournalImage) -> None:
    write(image)
    image.data[1024 + 224 : 1024 + 232] = struct.pack("<II", 0, 0x0801)
    image.data[1024 + 208 : 1024 + 224] = bytes(range(16))
    with pytest.raises(UnsupportedFeature, match=r"external journal .*00010203-0405"):
        await image.ours()


@pytest.mark.parametrize(("field", "value"), [(0, 0o040755), (26, 0), (0, 0)])
async def test_a_journal_that_is_no_file_is_refused(image: JournalImage, field: int, value: int) -> None:
    write(image)
    editor = Editor(image.data)
    editor.put("<H", editor.inode(8) + field, value)
    with pytest.raises(CorruptFilesystem, match="inode 8"):
        await recovered(bytes(editor.data))


async def test_a_journal_with_a_hole_is_refused(image: JournalImage) -> None:
    write(image, Transaction([(image.free[0], CONTENT)] * 10))
    editor = Editor(image.data)
    editor.put("<I", editor.pointer(8, 1), 0)
    with pytest.raises(CorruptFilesystem, match="hole"):
        await recovered(bytes(editor.data))


async def test_a_journal_inode_of_another_number_is_no_way_out(image: JournalImage) -> None:
    write(image)
    for ino in (0xFFFFFFFF, 5, 11):
        image.data[1024 + 224 : 1024 + 228] = struct.pack("<I", ino)
        with pytest.raises(CorruptFilesystem):
            await image.ours()


async def test_a_journal_that_writes_over_itself_is_empty_afterwards(image: JournalImage) -> None:
    write(image, Transaction([(image.journal[0], CONTENT), (image.free[0], CONTENT)]))
    ours = await image.ours()
    start = struct.unpack_from(">I", ours, image.journal[0] * BLOCK + 28)
    assert start == (0,) and ours[image.free[0] * BLOCK :].startswith(CONTENT)


async def test_a_superblock_in_the_journal_is_checked_too(image: JournalImage) -> None:
    superblock = bytearray(image.data[1024:2048])
    for offset, value, words in ((24, 2, "s_first_data_block"), (56, 0, "s_magic"), (4, 1 << 30, "s_inodes")):
        changed = bytearray(superblock)
        struct.pack_into("<I", changed, offset, value)
        write(image, Transaction([(1, bytes(changed))]))
        with pytest.raises(FormatError, match=words):
            await image.ours()


async def test_damage_in_the_journal_is_an_error_only_where_it_is_used(image: JournalImage) -> None:
    end = write(image, Transaction([(image.free[0], CONTENT)]))
    behind, used = image.journal[end + 5] * BLOCK, image.journal[2] * BLOCK
    volume = await Volume.open(MemoryDevice(image.data, [range(behind, behind + 1)]))
    assert volume.written is not None
    with pytest.raises(IntegrityError, match="the journal"):
        await Volume.open(MemoryDevice(image.data, [range(used, used + 1)]))


@pytest.mark.logs(r"^mystfuse\.volume")
async def test_an_error_in_the_journal_marks_the_file_system(
    image: JournalImage, caplog: pytest.LogCaptureFixture
) -> None:
    write(image)
    block = bytearray(image.get(0))
    struct.pack_into(">i", block, 32, -5)
    image.put(0, bytes(block))
    volume = await Volume.open(MemoryDevice(image.data))
    assert volume.superblock.has_errors


def test_fast_commits_are_refused_by_name(tmp_path: Path) -> None:
    """The kernel's own, until a full commit takes their place."""
    path, copy, mountpoint = tmp_path / "image", tmp_path / "copy", tmp_path / "mount"
    make_image(path, "-O", "has_journal,fast_commit,extent", "-b", "1024", size="32M")
    mountpoint.mkdir()
    verdicts: list[bool] = []
    with loop_device(path) as device:
        run("mount", "-t", "ext4", "-o", "commit=1000", device, mountpoint)
        try:
            for number in range(6):
                with (mountpoint / f"file{number}").open("ab") as file:
                    file.write(b"content")
                    file.flush()
                    os.fsync(file.fileno())
                if number == 4:
                    run("sync", "-f", mountpoint)
                copy.write_bytes(path.read_bytes())
                try:
                    replayed_by_hand(copy)
                    verdicts.append(True)
                except UnsupportedFeature as error:
                    assert "ends in fast commits" in str(error)
                    verdicts.append(False)
        finally:
            run("umount", mountpoint)
    assert verdicts.count(False) >= 2, "the kernel makes no fast commits"
    assert verdicts[4]


async def test_a_journal_of_no_block_is_refused(image: JournalImage) -> None:
    write(image, Transaction([(image.free[0], CONTENT)]))
    editor = Editor(bytes(image.data))
    editor.put("<I", editor.inode(8) + 4, BLOCK - 1)
    with pytest.raises(CorruptFilesystem, match="no block"):
        await Volume.open(MemoryDevice(editor.data))

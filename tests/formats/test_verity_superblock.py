"""The verity superblock: reading gives back the written fields, and values out of bounds are refused."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mystfuse.errors import FormatError, UnsupportedFeature
from mystfuse.formats.verity import TreeGeometry, VeritySuperblock
from tests.support.format_values import SUPERBLOCK, damaged, patched, superblocks


@given(superblocks())
def test_a_superblock_is_read_back_as_it_was_written(superblock: VeritySuperblock) -> None:
    packed = superblock.pack()
    assert len(packed) == 512
    assert VeritySuperblock.parse(packed) == superblock
    assert VeritySuperblock.parse(packed + b"more") == superblock
    assert superblock.data_size == superblock.data_blocks * superblock.data_block_size


def test_the_fields_of_a_superblock_lie_where_cryptsetup_has_them() -> None:
    packed = replace(SUPERBLOCK, data_block_size=1024, hash_type=0).pack()
    assert packed[0:8] == b"verity\0\0"
    assert struct.unpack_from("<II", packed, 8) == (1, 0)
    assert packed[16:32] == SUPERBLOCK.uuid
    assert packed[32:64] == b"sha256".ljust(32, b"\0")
    assert struct.unpack_from("<IIQH", packed, 64) == (1024, 4096, 1000, 32)
    assert packed[82:88] == bytes(6)
    assert packed[88:344] == SUPERBLOCK.salt.ljust(256, b"\0")
    assert packed[344:] == bytes(168)


@pytest.mark.parametrize(
    ("offset", "layout", "value", "message"),
    [
        (0, "8s", b"Verity\0\0", "signature"),
        (0, "8s", bytes(8), "signature"),
        (0, "8s", b"verity\0\1", "signature"),
        (64, "<I", 0, "data_block_size 0"),
        (64, "<I", 1, "data_block_size 1 "),
        (64, "<I", 256, "data_block_size 256"),
        (64, "<I", 513, "data_block_size 513"),
        (64, "<I", 4097, "data_block_size 4097"),
        (64, "<I", 6144, "data_block_size 6144"),
        (64, "<I", 1 << 20, "data_block_size 1048576"),
        (64, "<I", 1 << 31, "data_block_size 2147483648"),
        (64, "<I", (1 << 32) - 1, "data_block_size 4294967295"),
        (68, "<I", 0, "hash_block_size 0"),
        (68, "<I", 256, "hash_block_size 256"),
        (68, "<I", 4095, "hash_block_size 4095"),
        (68, "<I", 1 << 20, "hash_block_size 1048576"),
        (68, "<I", 1 << 31, "hash_block_size 2147483648"),
        (72, "<Q", 0, "data_blocks 0"),
        (72, "<Q", (1 << 51) + 1, "data_blocks 2251799813685249"),
        (72, "<Q", 1 << 63, "data_blocks 9223372036854775808"),
        (72, "<Q", (1 << 64) - 1, "data_blocks 18446744073709551615"),
        (80, "<H", 257, "salt_size 257"),
        (80, "<H", 65535, "salt_size 65535"),
    ],
)
def test_a_superblock_field_out_of_bounds_is_refused(
    offset: int, layout: str, value: int | bytes, message: str
) -> None:
    with pytest.raises(FormatError, match=message):
        VeritySuperblock.parse(patched(SUPERBLOCK.pack(), offset, layout, value))


@pytest.mark.parametrize(
    ("offset", "layout", "value", "message"),
    [
        (8, "<I", 0, "version 0"),
        (8, "<I", 2, "version 2"),
        (12, "<I", 2, "hash type 2"),
        (12, "<I", (1 << 32) - 1, "hash type 4294967295"),
        (32, "32s", b"", "algorithm ''"),
        (32, "32s", b"sha1", "algorithm 'sha1'"),
        (32, "32s", b"SHA256", "algorithm 'SHA256'"),
        (32, "32s", b"sha256x", "algorithm 'sha256x'"),
        (32, "32s", b"x" * 32, "algorithm 'x"),
        (32, "32s", b"\xff\n\x1b[31m", "algorithm"),
    ],
)
def test_a_superblock_with_something_unknown_is_reported_as_unsupported(
    offset: int, layout: str, value: int | bytes, message: str
) -> None:
    with pytest.raises(UnsupportedFeature, match=message) as caught:
        VeritySuperblock.parse(patched(SUPERBLOCK.pack(), offset, layout, value))
    assert str(caught.value).isprintable(), "a hostile name reaches the terminal as it is"


@pytest.mark.parametrize("data_block_size", [512, 4096, 1 << 19])
def test_the_largest_data_area_is_two_to_the_63(data_block_size: int) -> None:
    most = (1 << 63) // data_block_size
    largest = replace(SUPERBLOCK, data_block_size=data_block_size, data_blocks=most)
    assert VeritySuperblock.parse(largest.pack()) == largest
    with pytest.raises(FormatError, match="data_blocks"):
        VeritySuperblock.parse(replace(largest, data_blocks=most + 1).pack())


@pytest.mark.parametrize("length", [0, 8, 511])
def test_a_superblock_that_is_cut_short_is_refused(length: int) -> None:
    with pytest.raises(FormatError, match=f"{length} of 512"):
        VeritySuperblock.parse(SUPERBLOCK.pack()[:length])


@given(damaged(SUPERBLOCK.pack()) | st.binary(max_size=600), st.integers(0, (1 << 63) - 1))
def test_any_bytes_are_a_superblock_with_a_geometry_or_a_format_error(data: bytes, hash_offset: int) -> None:
    try:
        superblock = VeritySuperblock.parse(data)
        geometry = TreeGeometry.of(superblock, hash_offset)
        geometry.check_fits(1 << 63)
    except FormatError:
        return
    assert VeritySuperblock.parse(superblock.pack()) == superblock
    assert hash_offset < geometry.end <= 1 << 63


@pytest.mark.parametrize("wrong", [{"salt": bytes(257)}, {"uuid": bytes(15)}, {"uuid": bytes(17)}])
def test_a_superblock_with_fields_of_the_wrong_length_is_not_written(wrong: dict[str, bytes]) -> None:
    with pytest.raises(ValueError, match="wrong length"):
        replace(SUPERBLOCK, **wrong).pack()

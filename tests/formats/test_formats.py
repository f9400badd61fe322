"""fssig, verity superblock and tree geometry: what is written is read back, what cannot be is refused."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mystfuse.errors import ExitStatus, FormatError, UnsupportedFeature
from mystfuse.formats.fssig import FSSIG_SIZE, Fssig, has_fssig_magic
from mystfuse.formats.verity import VOUCHER, TreeGeometry, TreeLevel, VeritySuperblock

FSSIG = Fssig(0x123456, hashlib.sha256(b"root").digest(), hashlib.sha256(b"signer").digest(), b"\xab" * 384)
SUPERBLOCK = VeritySuperblock(data_blocks=1000, salt=bytes(range(32)), uuid=bytes(range(100, 116)))

FSSIGS = st.builds(
    Fssig,
    st.integers(1, (1 << 63) - 1),
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=32, max_size=32),
    st.binary(max_size=1024),
)


@st.composite
def superblocks(draw: st.DrawFn) -> VeritySuperblock:
    data_block_size = 1 << draw(st.integers(9, 19))
    return VeritySuperblock(
        data_blocks=draw(st.integers(1, (1 << 63) // data_block_size)),
        # One that begins like this vouches for one superblock alone: hypothesis finds the word in the code.
        salt=draw(st.binary(max_size=256).filter(lambda salt: not salt.startswith(VOUCHER))),
        uuid=draw(st.binary(min_size=16, max_size=16)),
        hash_type=draw(st.sampled_from([0, 1])),
        algorithm=draw(st.sampled_from(["sha256", "sha512"])),
        data_block_size=data_block_size,
        hash_block_size=1 << draw(st.integers(9, 19)),
    )


def patched(data: bytes, offset: int, layout: str, value: int | bytes) -> bytes:
    """``data`` with one field overwritten."""
    changed = bytearray(data)
    struct.pack_into(layout, changed, offset, value)
    return bytes(changed)


@st.composite
def damaged(draw: st.DrawFn, good: bytes) -> bytes:
    """``good`` with a few ranges overwritten by anything, mostly where the fields are."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        offset = draw(st.integers(0, 120) | st.integers(0, len(good) - 1))
        for index, byte in enumerate(draw(st.binary(min_size=1, max_size=16))):
            if offset + index < len(data):
                data[offset + index] = byte
    return bytes(data)


# -- fssig


@given(FSSIGS)
def test_an_fssig_is_read_back_as_it_was_written(fssig: Fssig) -> None:
    packed = fssig.pack()
    assert len(packed) == 4096
    assert Fssig.parse(packed) == fssig
    assert has_fssig_magic(packed)


def test_the_fields_of_an_fssig_lie_where_the_original_has_them() -> None:
    packed = FSSIG.pack()
    assert packed[0:8] == bytes.fromhex("384d6253a19851f5")
    assert packed[8:16] == b"\1" + bytes(7)
    assert packed[16:24] == bytes.fromhex("5634120000000000")
    assert packed[24:56] == FSSIG.root_hash
    assert packed[56:88] == FSSIG.signer
    assert packed[88:1112] == FSSIG.signature + bytes(1024 - 384)
    assert packed[1112:1120] == (384).to_bytes(8, "little")
    assert packed[1120:] == bytes(2976)


def test_an_fssig_is_not_read_past_its_signature_size() -> None:
    data = patched(FSSIG.pack(), 1112, "<Q", 5)
    assert Fssig.parse(data).signature == b"\xab" * 5
    unsigned = Fssig.parse(patched(FSSIG.pack(), 1112, "<Q", 0))
    assert unsigned.signature == b""
    assert not unsigned.is_signed
    assert FSSIG.is_signed


@pytest.mark.parametrize("size", [1025, 2976, 1 << 32, 1 << 63, (1 << 64) - 1])
def test_a_signature_size_past_the_field_is_an_error_not_a_slice(size: int) -> None:
    with pytest.raises(FormatError, match=f"signature_size is {size}"):
        Fssig.parse(patched(FSSIG.pack(), 1112, "<Q", size))


def test_a_signature_may_fill_its_field() -> None:
    full = replace(FSSIG, signature=bytes(range(256)) * 4)
    assert Fssig.parse(full.pack()) == full


@pytest.mark.parametrize("hash_offset", [0, 1 << 63, (1 << 64) - 1])
def test_an_impossible_hash_offset_is_refused(hash_offset: int) -> None:
    with pytest.raises(FormatError, match=f"hash_offset {hash_offset}"):
        Fssig.parse(patched(FSSIG.pack(), 16, "<Q", hash_offset))


@pytest.mark.parametrize("hash_offset", [1, (1 << 63) - 1])
def test_the_outermost_hash_offsets_are_read(hash_offset: int) -> None:
    assert Fssig.parse(patched(FSSIG.pack(), 16, "<Q", hash_offset)).hash_offset == hash_offset


@pytest.mark.parametrize("byte", range(8))
def test_an_fssig_with_another_magic_is_none(byte: int) -> None:
    data = bytearray(FSSIG.pack())
    data[byte] ^= 1
    assert not has_fssig_magic(bytes(data))
    with pytest.raises(FormatError, match="no fssig"):
        Fssig.parse(bytes(data))


@pytest.mark.parametrize("data", [b"", bytes(7), bytes(8), FSSIG.pack()[:7]])
def test_too_little_data_has_no_fssig_magic(data: bytes) -> None:
    assert not has_fssig_magic(data)


@pytest.mark.parametrize("version", [0, 2, 1 << 32, (1 << 64) - 1])
def test_an_fssig_of_another_version_is_told_as_unsupported(version: int) -> None:
    with pytest.raises(UnsupportedFeature, match=f"version {version}") as caught:
        Fssig.parse(patched(FSSIG.pack(), 8, "<Q", version))
    assert caught.value.exit_status == ExitStatus.FORMAT


@pytest.mark.parametrize("length", [0, 1120, 4095, 4097, 8192])
def test_an_fssig_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(FormatError, match=f"{length} bytes long"):
        Fssig.parse(FSSIG.pack().ljust(length, b"\0")[:length])


@given(damaged(FSSIG.pack()) | st.binary(max_size=100) | st.binary(min_size=FSSIG_SIZE, max_size=FSSIG_SIZE))
def test_any_bytes_are_an_fssig_or_a_format_error(data: bytes) -> None:
    try:
        fssig = Fssig.parse(data)
    except FormatError:
        return
    assert 0 < fssig.hash_offset < 1 << 63
    assert len(fssig.signature) <= 1024
    assert Fssig.parse(fssig.pack()) == fssig


@pytest.mark.parametrize("wrong", [{"root_hash": bytes(31)}, {"signer": bytes(33)}, {"signature": bytes(1025)}])
def test_an_fssig_with_fields_of_the_wrong_length_is_not_written(wrong: dict[str, bytes]) -> None:
    with pytest.raises(ValueError, match="wrong length"):
        replace(FSSIG, **wrong).pack()


def test_the_fields_are_shown_in_the_order_and_spelling_of_the_original() -> None:
    assert list(FSSIG.fields().items()) == [
        ("magic", "f55198a153624d38"),
        ("version", 1),
        ("hash_offset", 0x123456),
        ("root_hash", FSSIG.root_hash.hex()),
        ("signer", FSSIG.signer.hex()),
        ("signature", "ab" * 384),
        ("signature_size", 384),
    ]
    unsigned = Fssig(4096, bytes(32)).fields()
    assert (unsigned["signer"], unsigned["signature"], unsigned["signature_size"]) == (None, None, 0)


# -- verity superblock


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
def test_a_superblock_with_something_unknown_is_told_as_unsupported(
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


# -- geometry

BLOCKS_PER_LEVEL = {
    ("sha256", 512): {
        1: (),
        2: (1,),
        16: (1,),
        17: (2, 1),
        128: (8, 1),
        129: (9, 1),
        16384: (1024, 64, 4, 1),
        16385: (1025, 65, 5, 1),
    },
    ("sha256", 4096): {
        1: (),
        2: (1,),
        128: (1,),
        129: (2, 1),
        16384: (128, 1),
        16385: (129, 2, 1),
        128**3: (16384, 128, 1),
        128**3 + 1: (16385, 129, 2, 1),
    },
    ("sha256", 65536): {1: (), 2: (1,), 2048: (1,), 2049: (2, 1), 16384: (8, 1), 16385: (9, 1)},
    ("sha512", 512): {1: (), 2: (1,), 8: (1,), 9: (2, 1), 128: (16, 2, 1), 129: (17, 3, 1)},
    ("sha512", 4096): {1: (), 2: (1,), 64: (1,), 128: (2, 1), 129: (3, 1), 16384: (256, 4, 1), 16385: (257, 5, 1)},
    ("sha512", 65536): {1: (), 2: (1,), 1024: (1,), 1025: (2, 1), 16384: (16, 1), 16385: (17, 1)},
}


@pytest.mark.parametrize(
    ("algorithm", "hash_block_size", "data_blocks", "expected"),
    [
        (algorithm, size, data_blocks, expected)
        for (algorithm, size), known in BLOCKS_PER_LEVEL.items()
        for data_blocks, expected in known.items()
    ],
)
def test_the_tree_has_as_many_blocks_on_each_level_as_it_should(
    algorithm: str, hash_block_size: int, data_blocks: int, expected: tuple[int, ...]
) -> None:
    superblock = VeritySuperblock(
        data_blocks, b"", bytes(16), algorithm=algorithm, data_block_size=4096, hash_block_size=hash_block_size
    )
    geometry = TreeGeometry.of(superblock, 1 << 30)
    assert tuple(level.blocks for level in geometry.levels) == expected
    assert geometry.digest_size == {"sha256": 32, "sha512": 64}[algorithm]
    assert geometry.digests_per_block == hash_block_size // geometry.digest_size
    # The top level lies first, each level directly behind the one above it.
    position = (1 << 30) + max(hash_block_size, 512)
    for level in reversed(geometry.levels):
        assert level.offset == position
        position += level.blocks * hash_block_size
    assert geometry.end == position


def test_the_levels_lie_top_first_at_known_bytes() -> None:
    superblock = replace(SUPERBLOCK, data_blocks=16385)
    geometry = TreeGeometry.of(superblock, superblock.data_size)
    first = 16385 * 4096 + 4096
    assert geometry.levels == (
        TreeLevel(first + 3 * 4096, 129),
        TreeLevel(first + 1 * 4096, 2),
        TreeLevel(first, 1),
    )
    assert geometry.end == first + 132 * 4096


@pytest.mark.parametrize(
    ("hash_offset", "hash_block_size", "expected"),
    [
        (512, 512, 1024),
        (40960, 512, 41472),
        (512, 1024, 1024),
        (1024, 1024, 2048),
        (3584, 4096, 4096),
        (3585, 4096, 8192),
        (4096, 4096, 8192),
        (40960, 4096, 45056),
        (41472, 4096, 45056),
        (40960, 65536, 65536),
        (65024, 65536, 65536),
        (65536, 65536, 131072),
        (512, 1 << 19, 1 << 19),
        (1 << 62, 4096, (1 << 62) + 4096),
    ],
)
def test_the_tree_begins_at_the_first_whole_hash_block_of_the_file_behind_the_superblock(
    hash_offset: int, hash_block_size: int, expected: int
) -> None:
    geometry = TreeGeometry.of(replace(SUPERBLOCK, data_blocks=2, hash_block_size=hash_block_size), hash_offset)
    assert geometry.levels == (TreeLevel(expected, 1),)


def test_a_single_data_block_has_no_tree() -> None:
    geometry = TreeGeometry.of(replace(SUPERBLOCK, data_blocks=1), 4096)
    assert geometry.levels == ()


@given(superblocks(), st.integers(1, 1 << 62))
def test_every_level_holds_all_digests_of_the_one_below_and_no_block_more(
    superblock: VeritySuperblock, hash_offset: int
) -> None:
    geometry = TreeGeometry.of(superblock, hash_offset)
    below = superblock.data_blocks
    for level in geometry.levels:
        assert (level.blocks - 1) * geometry.digests_per_block < below <= level.blocks * geometry.digests_per_block
        assert level.offset % superblock.hash_block_size == 0
        assert level.offset >= hash_offset + 512
        below = level.blocks
    assert below == 1


def test_a_tree_that_would_end_past_the_limit_is_refused() -> None:
    geometry = TreeGeometry.of(SUPERBLOCK, 1000 * 4096)
    assert geometry.end == (1000 + 1 + 1 + 8) * 4096
    geometry.check_fits(geometry.end)
    with pytest.raises(FormatError, match=str(geometry.end - 1)):
        geometry.check_fits(geometry.end - 1)

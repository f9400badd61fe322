"""Which LUKS header of a device counts: either copy of LUKS2, the newer one, or none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mystfuse.errors import FormatError, IntegrityError
from mystfuse.formats.luks2 import HeaderCopy
from mystfuse.image.unlock import read_luks_header
from tests.support.ext2_editor import MemoryDevice
from tests.support.luks_headers import GOOD_LUKS2, MIB, changed, document, flipped, luks1, luks2, luks2_copy, read

pytestmark = pytest.mark.logs(r"^mystfuse\.image\.unlock")


@given(
    st.lists(
        st.tuples(st.integers(0, 0x7FFF) | st.integers(0, 0x1FF) | st.integers(0x4000, 0x41FF), st.integers(1, 255)),
        min_size=1,
        max_size=8,
    )
)
def test_bytes_flipped_in_a_luks2_header_leave_it_as_it_was_or_refused(flips: list[tuple[int, int]]) -> None:
    damaged = bytearray(luks2())
    for position, mask in flips:
        damaged[position] ^= mask
    try:
        header = read(bytes(damaged))
    except FormatError:
        # Neither is unchanged, or the version of the first one says that it is not LUKS2.
        first, second = luks2()[:0x4000], luks2()[0x4000:]
        assert (damaged[:0x4000] != first and damaged[0x4000:] != second) or damaged[6:8] != b"\0\2"
    else:
        if header is None:
            # Nothing of it is legible any more.
            assert damaged[:6] != b"LUKS\xba\xbe"
            assert HeaderCopy.parse(bytes(damaged[0x4000:]), 0x4000) is None
        else:
            assert header == GOOD_LUKS2


def test_either_luks2_header_will_do() -> None:
    whole = luks2()
    assert read(whole) == GOOD_LUKS2
    for position in (0, 5, 9, 0x40, 0x100, 0x1C5, 0xFFF, 4096, 5000, 0x3FFF):
        for begin in (0, 0x4000):
            assert read(flipped(whole, begin + position)) == GOOD_LUKS2, (begin, position)
        with pytest.raises(FormatError):
            # Finding a damaged header at all takes believable sizes; the magic of the first one is still there.
            read(flipped(whole, max(position, 9), 0x4000 + position))
    assert read(bytes(0x4000) + whole[0x4000:]) == GOOD_LUKS2
    assert read(b"\xff" * 0x4000 + whole[0x4000:]) == GOOD_LUKS2
    assert read(whole[:0x4000]) == GOOD_LUKS2
    assert read(whole[:0x4000] + b"\xff" * 0x4000) == GOOD_LUKS2
    assert read(bytes(0x8000)) is None


def test_a_header_cut_short_is_refused() -> None:
    whole = luks2()
    for length in (8, 511, 512, 4095, 4096, 5000, 0x3FFF):
        with pytest.raises(FormatError):
            read(whole[:length])
    for length in (0x4000, 0x4001, 0x4200, 0x5000, 0x7FFF, 0x8000):
        assert read(whole[:length]) == GOOD_LUKS2


@pytest.mark.parametrize("first, second", [(1, 2), (2, 1), (0, (1 << 64) - 1), ((1 << 63), (1 << 63) - 1), (5, 5)])
def test_the_newer_header_counts(first: int, second: int) -> None:
    copies = luks2_copy(document(), seqid=first) + luks2_copy(
        changed("segments 0 iv_tweak", "4096"), 0x4000, seqid=second
    )
    header = read(copies)
    assert header is not None and header.iv_tweak == (4096 if second > first else 0)
    # But not if it is damaged.
    for position, tweak in (0x2000, 4096), (0x6000, 0):
        header = read(flipped(copies, position))
        assert header is not None and header.iv_tweak == tweak


def test_the_second_header_is_where_the_first_says() -> None:
    """A newer header elsewhere is left over from before."""
    stale = luks2_copy(changed("segments 0 iv_tweak", "8"), 0x8000, 0x8000, seqid=9)
    assert read(luks2() + stale) == GOOD_LUKS2
    assert read(luks2_copy(document()) + bytes(0x4000) + stale) == GOOD_LUKS2


def test_an_ext2_file_system_is_not_luks() -> None:
    superblock = bytearray(0x8000)
    superblock[1080:1082] = b"\x53\xef"
    assert read(bytes(superblock)) is None
    # Also where an old second LUKS2 header is left behind it.
    assert read(bytes(superblock[:0x4000]) + luks2()[0x4000:]) is None
    # But a LUKS header in front counts first.
    superblock[:0x3FF] = luks2()[:0x3FF]
    with pytest.raises(FormatError):
        read(bytes(superblock))


@pytest.mark.parametrize("version", [0, 3, 4, 255, 256, 258, 513, 65535])
def test_other_versions_of_luks_are_refused(version: int) -> None:
    for data in (luks2_copy(document(), version=version), luks1(version=version).ljust(0x8000, b"\0")):
        with pytest.raises(FormatError, match=f"version {version};"):
            read(data)


@pytest.mark.parametrize(
    "content", [b"\0", b"\xff", b"LUKS\xba\xbe\0\1", b"LUKS\xba\xbe\0\2", b"SKUL\xba\xbe\0\2", b"LUKS\xba\xbe"]
)
def test_small_devices_are_no_luks_or_refused(content: bytes) -> None:
    whole = content.ljust(5000, b"\0") if len(content) > 1 else content * 5000
    for size in (*range(16), *range(16, 1100, 17), *range(1070, 1090), *range(1100, 5001, 99), 4095, 4096, 4097, 5000):
        try:
            assert read(whole[:size]) is None
        except FormatError:
            assert size >= 6 and content.startswith(b"LUKS")


async def test_an_unreadable_header_is_an_error() -> None:
    with pytest.raises(IntegrityError):
        await read_luks_header(MemoryDevice(luks2(), [range(4095, 4096)]))
    # Damage elsewhere is not read.
    assert await read_luks_header(MemoryDevice(luks2() + bytes(MIB), [range(0x8000, MIB)])) == GOOD_LUKS2

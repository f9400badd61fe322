"""Every cipher takes whole sectors only, may be shared by threads, and finds sectors of zeros."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mystfuse.crypto.sector_ciphers import find_zero_sectors
from tests.support.dm_crypt import encrypt_sectors, randbytes
from tests.support.sector_ciphers import SECTOR_SIZES, cipher_of, on_both_kernels


@on_both_kernels
@pytest.mark.parametrize("sector_size", SECTOR_SIZES)
@pytest.mark.parametrize("chain_mode, iv_mode, key_size", [("xts", "plain64", 64), ("cbc", "plain", 32)])
def test_parts_of_sectors_are_refused(chain_mode: str, iv_mode: str, key_size: int, sector_size: int) -> None:
    cipher = cipher_of(chain_mode, iv_mode, randbytes(key_size), sector_size)
    for length in (
        1,
        16,
        sector_size - 1,
        sector_size - 16,
        sector_size + 16,
        (64 << 10) + 1,
        (64 << 10) + sector_size - 512 + 1,
    ):
        with pytest.raises(ValueError):
            cipher.decrypt(bytes(length), 0)
        with pytest.raises(ValueError):
            cipher.encrypt(bytes(length), 0)
    # A refused call does not change the cipher.
    plain = randbytes(2 * sector_size)
    encrypted = encrypt_sectors(f"aes-{chain_mode}-{iv_mode}", randbytes(key_size), plain, 8, sector_size)
    assert cipher.decrypt(encrypted, 8) == plain
    assert cipher.encrypt(plain, 8) == encrypted


@on_both_kernels
@pytest.mark.parametrize(
    "chain_mode, iv_mode, key_size", [("xts", "plain64", 64), ("cbc", "essiv:sha256", 32), ("ecb", "", 32)]
)
def test_threads_may_share_a_cipher(chain_mode: str, iv_mode: str, key_size: int) -> None:
    key = randbytes(key_size)
    encrypted = randbytes(1 << 20)
    ranges = [
        (start, start + size) for start, size in product(range(0, 1 << 20, 160 << 10), (512, 16 << 10, 150 << 10))
    ]
    expected = [cipher_of(chain_mode, iv_mode, key).decrypt(encrypted[a:b], a // 512) for a, b in ranges]
    cipher, interval = cipher_of(chain_mode, iv_mode, key), sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            results = pool.map(lambda ab: cipher.decrypt(encrypted[ab[0] : ab[1]], ab[0] // 512), ranges * 6)
            assert list(results) == expected * 6
    finally:
        sys.setswitchinterval(interval)


def naive_zero_sectors(data: bytes) -> list[tuple[int, int]]:
    ranges: list[tuple[int, int]] = []
    for start in range(0, len(data) - 511, 512):
        if any(data[start : start + 512]):
            continue
        if ranges and ranges[-1][1] == start:
            ranges[-1] = (ranges[-1][0], start + 512)
        else:
            ranges.append((start, start + 512))
    return ranges


@st.composite
def holey(draw: st.DrawFn) -> bytes:
    """Runs of zeros and other bytes, ending anywhere, mostly near the edges of sectors."""
    data = b""
    for _ in range(draw(st.integers(0, 8))):
        length = 512 * draw(st.integers(0, 3)) + draw(st.sampled_from([0, 0, 0, 1, 2, 255, 256, 510, 511]))
        data += draw(st.sampled_from([b"\0", b"\0", b"x"])) * length
    return data


@given(holey())
@example(b"")
@example(bytes(511))
@example(bytes(512))
@example(b"x" + bytes(1022) + b"x" + bytes(512))
@example(b"x" + bytes(1023))
@example(bytes(512) + b"x" * 512 + bytes(1024))
def test_zero_sectors_are_found(data: bytes) -> None:
    assert find_zero_sectors(data) == naive_zero_sectors(data)


def test_a_single_bit_makes_a_sector_no_zero_sector() -> None:
    for position in range(512):
        data = bytearray(3 * 512)
        data[512 + position] = 0x80
        assert find_zero_sectors(bytes(data)) == [(0, 512), (1024, 1536)]

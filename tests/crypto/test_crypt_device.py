"""The crypt device returns the plaintext of any extents, and errors for extents that it does not have."""

from __future__ import annotations

import random
import threading
from itertools import product

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from mystfuse.crypto import sector_ciphers as sectors
from mystfuse.devices.crypt import CryptDevice
from mystfuse.devices.device import Extent
from mystfuse.errors import ImageReadError, IntegrityError
from mystfuse.system.workers import INLINE_BYTES
from tests.support.dm_crypt import encrypt_sectors, randbytes
from tests.support.ext2_editor import MemoryDevice
from tests.support.sector_ciphers import SECTOR_SIZES, cipher_of, on_both_kernels

PAYLOAD = 3 * 4096
"""Byte offset of the payload in the devices below."""


def crypt_device(size: int, sector_size: int = 512, behind: int = 0) -> tuple[CryptDevice, bytes]:
    """A device, and the plaintext that reads must return."""
    key, plain = randbytes(64), randbytes(size, "plain")
    below = (
        randbytes(PAYLOAD, "header") + encrypt_sectors("aes-xts-plain64", key, plain, 0, sector_size) + bytes(behind)
    )
    cipher = cipher_of("xts", "plain64", key, sector_size)
    return CryptDevice(MemoryDevice(below), cipher, PAYLOAD, size, sector_size), plain


@on_both_kernels
@pytest.mark.parametrize("sector_size", SECTOR_SIZES)
async def test_extents_at_and_across_any_boundary_are_read(sector_size: int) -> None:
    device, plain = crypt_device(64 << 10, sector_size)
    assert device.size == 64 << 10
    edges = [0, 1, 15, 16, 511, 512, 513, sector_size - 1, sector_size, sector_size + 1, 5 * sector_size - 3]
    edges += [(64 << 10) - back for back in (sector_size + 1, sector_size, sector_size - 1, 512, 2, 1, 0)]
    extents = [Extent(start, end - start) for start, end in product(edges, edges) if start < end]
    random.Random(0).shuffle(extents)
    # All at once, in a thread, and each by itself.
    for extent, part in zip(extents, await device.read(extents), strict=True):
        assert part == plain[extent.offset : extent.end]
    for extent in extents[::7]:
        (part,) = await device.read([extent])
        assert part == plain[extent.offset : extent.end]


DEVICES = {sector_size: crypt_device(40_960, sector_size) for sector_size in SECTOR_SIZES}


@on_both_kernels
@given(st.lists(st.tuples(st.integers(0, 40_959), st.integers(1, 40_960)), max_size=6), st.sampled_from(SECTOR_SIZES))
def test_any_extents_are_read(ranges: list[tuple[int, int]], sector_size: int) -> None:
    device, plain = DEVICES[sector_size]
    extents = [Extent(offset, min(length, 40_960 - offset)) for offset, length in ranges]
    parts = trio.run(device.read, extents)
    assert [bytes(part) for part in parts] == [plain[extent.offset : extent.end] for extent in extents]


@on_both_kernels
@pytest.mark.parametrize("behind", [0, 4096])
async def test_extents_outside_the_payload_are_refused(behind: int) -> None:
    """Also where the device below is longer; the valid extents beside them are not read."""
    device, plain = crypt_device(8192, behind=behind)
    for offset, length in [
        (8192, 1),
        (8191, 2),
        (0, 8193),
        (1 << 62, 1),
        (-1, 1),
        (-512, 512),
        (-1, 8193),
        (0, 0),
        (0, -1),
        (9000, -900),
    ]:
        with pytest.raises(ImageReadError):
            await device.read([Extent(offset, length)])
        with pytest.raises(ImageReadError):
            await device.read([Extent(0, 512), Extent(offset, length)])
    assert device.bytes_decrypted == 0
    (part,) = await device.read([Extent(0, 8192)])
    assert part == plain
    assert await device.read([]) == []


@on_both_kernels
async def test_large_requests_are_decrypted_by_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    device, plain = crypt_device(1 << 20)
    threads: list[int] = []
    decrypt_into = sectors.XtsCipher.decrypt_into

    def noting(self: sectors.XtsCipher, data: bytes, sector: int, out: memoryview) -> None:
        threads.append(threading.get_ident())
        decrypt_into(self, data, sector, out)

    monkeypatch.setattr(sectors.XtsCipher, "decrypt_into", noting)
    for length in (1, INLINE_BYTES, INLINE_BYTES + 1, 1 << 20):
        (part,) = await device.read([Extent(0, length)])
        assert part == plain[:length]
    # The total counts, including the rest of the sectors.
    parts = await device.read([Extent(511, INLINE_BYTES // 2), Extent(1 << 19, INLINE_BYTES // 2)])
    assert [bytes(part) for part in parts] == [
        plain[511 : 511 + INLINE_BYTES // 2],
        plain[1 << 19 :][: INLINE_BYTES // 2],
    ]
    here = threading.get_ident()
    assert [thread == here for thread in threads] == [True, True, False, False, False, False]


@on_both_kernels
async def test_many_tasks_read_one_device_at_once() -> None:
    device, plain = crypt_device(1 << 20, 4096)

    async def read(offset: int, length: int) -> None:
        (part,) = await device.read([Extent(offset, length)])
        assert part == plain[offset : offset + length]

    async with trio.open_nursery() as nursery:
        for offset in range(0, 600_000, 20_011):
            nursery.start_soon(read, offset, 300_007)
            nursery.start_soon(read, offset, 3)


@on_both_kernels
@pytest.mark.parametrize("sector_size", SECTOR_SIZES)
async def test_bytes_decrypted_counts_whole_sectors(sector_size: int) -> None:
    device, _ = crypt_device(64 << 10, sector_size)
    await device.read([Extent(0, 1)])
    assert device.bytes_decrypted == sector_size
    await device.read([Extent(sector_size - 1, 2), Extent(0, sector_size)])
    assert device.bytes_decrypted == 4 * sector_size
    await device.read([Extent(0, 64 << 10)])
    assert device.bytes_decrypted == 4 * sector_size + (64 << 10)


@on_both_kernels
async def test_what_fails_below_fails_above_and_is_not_decrypted() -> None:
    key, plain = randbytes(64), randbytes(8192)
    below = bytes(PAYLOAD) + encrypt_sectors("aes-xts-plain64", key, plain, 0)
    device = CryptDevice(
        MemoryDevice(below, [range(PAYLOAD + 700, PAYLOAD + 701)]), cipher_of("xts", "plain64", key), PAYLOAD, 8192, 512
    )
    for extent in Extent(512, 1), Extent(511, 2), Extent(0, 8192):
        with pytest.raises(IntegrityError):
            await device.read([extent])
    assert device.bytes_decrypted == 0
    assert await device.read([Extent(0, 512), Extent(1024, 7168)]) == [plain[:512], plain[1024:]]


async def test_who_waits_for_a_thread_to_decrypt_waits_no_longer_for_others_that_wait(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, _ = crypt_device(2 * INLINE_BYTES)
    monkeypatch.setattr("_thread.start_new_thread", lambda work, arguments: None)
    ended: list[float] = []

    async def read() -> None:
        with pytest.raises(ImageReadError, match="no thread"):
            await device.read([Extent(0, 2 * INLINE_BYTES)])
        ended.append(trio.current_time())

    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(read)
    assert len(ended) == 8 and max(ended) - started <= 31

"""Sector ciphers: the C kernel and its fallback agree with OpenSSL (tests/crypto has vectors and modes)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import product
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mystfuse.kernels.pure import sectors as pure_sectors
from tests.support.dm_crypt import encrypt_sectors, randbytes
from tests.support.kernels import SECTORS, native_sectors, needs_native

each_kernel = pytest.mark.parametrize("kernel", SECTORS.values(), ids=SECTORS)


def ciphers(kernel: ModuleType, sector_size: int = 512) -> dict[str, pure_sectors.XtsCipher]:
    return {
        "xts-plain64": kernel.XtsCipher(randbytes(64), sector_size, 5),
        "xts-plain": kernel.XtsCipher(randbytes(32), sector_size, 5, "plain"),
        "xts-192": kernel.XtsCipher(randbytes(48), sector_size, 5),
        "cbc-plain64": kernel.CbcCipher(randbytes(32), sector_size, 5, "plain64"),
        "cbc-plain": kernel.CbcCipher(randbytes(24), sector_size, 5, "plain"),
        "cbc-essiv": kernel.CbcCipher(randbytes(16), sector_size, 5, "essiv:sha256"),
        "ecb": kernel.EcbCipher(randbytes(32)),
    }


@needs_native
@pytest.mark.parametrize("sector_size", [512, 1024, 2048, 4096])
def test_kernel_and_fallback_decrypt_and_encrypt_alike(sector_size: int) -> None:
    """Around the limits of their steps (8 and 64 KiB, 16 and 128 sectors), of 32 and of 64 bits, and at any address."""
    pure = ciphers(pure_sectors, sector_size)
    for name, cipher in ciphers(native_sectors, sector_size).items():
        for sectors, first in product((1, 2, 7, 16, 17, 130), (0, 0xFFFFFFF0, (1 << 64) - 8, 1 << 70)):
            data = memoryview(bytes(3) + randbytes(sectors * sector_size, sectors))[3:]
            decrypted = cipher.decrypt(data, first)
            assert decrypted == pure[name].decrypt(data, first)
            assert cipher.encrypt(decrypted, first) == data
            assert pure[name].encrypt(decrypted, first) == data
            plain = memoryview(bytes(5) + decrypted)[5:]
            assert cipher.encrypt(plain, first) == pure[name].encrypt(plain, first) == data


@each_kernel
@given(data=st.data())
def test_any_sectors_are_openssls(kernel: ModuleType, data: st.DataObject) -> None:
    sector_size = data.draw(st.sampled_from([512, 1024, 2048, 4096]))
    plain = randbytes(sector_size * data.draw(st.integers(1, 40)))
    sector, iv_tweak = data.draw(st.integers(0, 1 << 62)), data.draw(st.integers(0, (1 << 62) - 1))
    chain_mode = data.draw(st.sampled_from(["xts", "cbc"]))
    iv_mode = data.draw(st.sampled_from(["plain64", "plain"] + ["essiv:sha256"] * (chain_mode == "cbc")))
    key = randbytes(data.draw(st.sampled_from([32, 64] if chain_mode == "xts" else [16, 24, 32])), "key")
    encrypted = encrypt_sectors(f"aes-{chain_mode}-{iv_mode}", key, plain, sector, sector_size, iv_tweak)
    cipher = (kernel.XtsCipher if chain_mode == "xts" else kernel.CbcCipher)(key, sector_size, iv_tweak, iv_mode)
    assert cipher.decrypt(encrypted, sector) == plain
    assert cipher.encrypt(plain, sector) == encrypted


@each_kernel
def test_a_result_goes_where_it_is_wanted(kernel: ModuleType) -> None:
    for name, cipher in ciphers(kernel).items():
        for size in (0, 512, 8192, 8192 + 512, 100 << 10):
            data = randbytes(size)
            expected = bytes(cipher.decrypt(data, 7))
            out = bytearray(b"x" * (size + 2))
            cipher.decrypt_into(data, 7, memoryview(out)[1:-1])
            assert out == b"x" + expected + b"x", name
            # In place, in any of its views.
            for source in (bytes, bytearray, memoryview):
                buffer = bytearray(data)
                cipher.decrypt_into(buffer if source is not memoryview else memoryview(buffer), 7, buffer)
                assert buffer == expected, name
                # And back, in place and elsewhere.
                cipher.encrypt_into(expected, 7, memoryview(out)[1:-1])
                assert out == b"x" + data + b"x", name
                cipher.encrypt_into(buffer, 7, memoryview(buffer))
                assert buffer == data, name


@each_kernel
def test_a_place_that_does_not_fit_is_refused(kernel: ModuleType) -> None:
    for cipher in ciphers(kernel).values():
        for out in bytearray(511), bytearray(513), bytearray(), bytearray(1024), memoryview(bytes(512)):
            with pytest.raises(ValueError):
                cipher.decrypt_into(bytes(512), 0, out)
            with pytest.raises(ValueError):
                cipher.encrypt_into(bytes(512), 0, out)
        for run in cipher.decrypt_into, cipher.encrypt_into:
            with pytest.raises(ValueError):
                run(bytes(511), 0, bytearray(511))


@needs_native
@pytest.mark.parametrize("name", ["xts-plain64", "cbc-essiv", "ecb"])
def test_a_place_that_overlaps_is_refused(name: str) -> None:
    cipher = ciphers(native_sectors)[name]
    buffer = memoryview(bytearray(randbytes(2048)))
    before = bytes(buffer)
    for source, target in ((0, 512), (512, 0), (0, 1), (1, 0), (0, 1023)):
        for run in cipher.decrypt_into, cipher.encrypt_into:
            with pytest.raises(ValueError, match="overwrite"):
                run(buffer[source : source + 1024], 0, buffer[target : target + 1024])
    assert buffer == before
    cipher.decrypt_into(buffer[:1024], 0, buffer[1024:])
    assert buffer[1024:] == cipher.decrypt(before[:1024], 0)
    cipher.encrypt_into(buffer[1024:], 0, buffer[:1024])
    assert buffer[:1024] == before[:1024]


@each_kernel
def test_impossible_keys_and_sectors_are_refused(kernel: ModuleType) -> None:
    for size in (0, 16, 31, 33, 63, 65, 128):
        with pytest.raises(ValueError):
            kernel.XtsCipher(bytes(size))
    for size in (0, 8, 15, 17, 31, 33, 64):
        with pytest.raises(ValueError):
            kernel.CbcCipher(bytes(size), 512, 0, "plain")
        with pytest.raises(ValueError):
            kernel.EcbCipher(bytes(size))
    for sector_size in (0, 16, 256, 513, 8192, 1 << 32, -512):
        with pytest.raises(ValueError):
            kernel.XtsCipher(bytes(range(64)), sector_size)
        with pytest.raises(ValueError):
            kernel.CbcCipher(bytes(range(32)), sector_size, 0, "plain")


@each_kernel
def test_a_cipher_keeps_its_key_when_the_callers_is_wiped(kernel: ModuleType) -> None:
    key, data = bytearray(randbytes(64)), randbytes(1024)
    cipher = kernel.XtsCipher(memoryview(key))
    expected = bytes(cipher.decrypt(data, 0))
    key[:] = bytes(64)
    assert cipher.decrypt(data, 0) == expected


@each_kernel
@pytest.mark.parametrize("name", ["xts-plain64", "cbc-essiv"])
def test_threads_may_share_a_cipher_in_both_directions(
    name: str, kernel: ModuleType, busy_threads: ThreadPoolExecutor
) -> None:
    cipher = ciphers(kernel)[name]
    plain = randbytes(1 << 19)
    encrypted = bytes(cipher.encrypt(plain, 0))

    def there_and_back(start: int) -> bool:
        end = start + (48 << 10) + (start & 0x1FF << 9)
        here = bytearray(encrypted[start:end])
        cipher.decrypt_into(here, start >> 9, here)
        decrypted = bytes(here)
        cipher.encrypt_into(here, start >> 9, here)
        return decrypted == plain[start:end] and here == encrypted[start:end]

    assert all(busy_threads.map(there_and_back, [*range(0, 400 << 10, 9 << 9)] * 2))

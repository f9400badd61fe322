"""AES-CBC and AES-ECB over sectors give the vectors of NIST and of the kernel, and OpenSSL's results sector by
sector."""

from __future__ import annotations

from itertools import product

import pytest

from tests.support.dm_crypt import encrypt_sectors, randbytes
from tests.support.sector_ciphers import FIRST_SECTORS, SECTOR_SIZES, cipher_of, on_both_kernels

# NIST SP 800-38A, appendix F: keys of F.1 and F.2, plaintext (the same everywhere), ciphertexts of ECB-AES (F.1.1,
# F.1.3, F.1.5) and CBC-AES (F.2.1, F.2.3, F.2.5).
NIST_KEYS = {
    128: "2b7e151628aed2a6abf7158809cf4f3c",
    192: "8e73b0f7da0e6452c810f32b809079e562f8ead2522c6b7b",
    256: "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4",
}
NIST_PLAIN = bytes.fromhex(
    "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
    "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
)
NIST_ECB = {
    128: "3ad77bb40d7a3660a89ecaf32466ef97f5d3d58503b9699de785895a96fdbaaf"
    "43b1cd7f598ece23881b00e3ed0306887b0c785e27e8ad3f8223207104725dd4",
    192: "bd334f1d6e45f25ff712a214571fa5cc974104846d0ad3ad7734ecb3ecee4eef"
    "ef7afd2270e2e60adce0ba2face6444e9a4b41ba738d6c72fb16691603c18e0e",
    256: "f3eed1bdb5d2a03c064b5a7e3db181f8591ccb10d410ed26dc5ba74a31362870"
    "b6ed21b99ca6f4f9f153e7b1beafed1d23304b7a39f9f3ff067d8d8f9e24ecc7",
}
NIST_CBC_VECTOR = bytes(range(16))
NIST_CBC = {
    128: "7649abac8119b246cee98e9b12e9197d5086cb9b507219ee95db113a917678b2"
    "73bed6b8e3c1743b7116e69e222295163ff1caa1681fac09120eca307586e1a7",
    192: "4f021db243bc633d7178183a9fa071e8b4d9ada9ad7dedf4e5e738763f69145a"
    "571b242012fb7ae07fa9baac3df102e008b0e27988598881d920a9e64f5615cd",
    256: "f58c4c04d6e5f1ba779eabfb5f7bfbd69cfc4e967edb808d679f777bc6702c7d"
    "39f23369a9d9bacfa530e26304231461b2eb05e2c39be9fcda6c19078c6a9d1b",
}

# Linux, crypto/testmgr.h, essiv(cbc(aes),aes,sha256), the first two: key, vector before its encryption, plaintext,
# ciphertext. The vectors' second halves are zeros, as those of sectors are.
ESSIV = [
    (
        "06a9214036b8a15b512e03d534120006",
        "3dafba429d9eb4300000000000000000",
        b"Single block msg",
        "fa59e75f415665c336ca6b72109f8cd4",
    ),
    (
        "c286696d887c9aa0611bbb3e2025a45a",
        "562e17996d093d280000000000000000",
        bytes(range(32)),
        "c8599afe79e67b20067d550a5ec7b5a70b9c80d215a1b86dc6ab7b65d9fd88eb",
    ),
]


@on_both_kernels
@pytest.mark.parametrize("sector_size", SECTOR_SIZES)
@pytest.mark.parametrize("key_size", [16, 24, 32])
@pytest.mark.parametrize("iv_mode", ["plain", "plain64", "essiv:sha256"])
def test_cbc_is_openssls_sector_by_sector(iv_mode: str, key_size: int, sector_size: int) -> None:
    for length, first in product((sector_size, (64 << 10) + sector_size, 300 << 10), FIRST_SECTORS):
        key, plain = randbytes(key_size, (length, first)), randbytes(length, first)
        encrypted = encrypt_sectors(f"aes-cbc-{iv_mode}", key, plain, first, sector_size, iv_tweak=3)
        cipher = cipher_of("cbc", iv_mode, key, sector_size, iv_tweak=3)
        assert cipher.decrypt(encrypted, first) == plain
        assert cipher.encrypt(plain, first) == encrypted


@on_both_kernels
@pytest.mark.parametrize("bits", NIST_CBC)
def test_cbc_has_the_vectors_of_nist(bits: int) -> None:
    # A sector's first block depends on the sector's number; the blocks behind one that equals NIST's vector are NIST's.
    sector = (NIST_CBC_VECTOR + bytes.fromhex(NIST_CBC[bits])).ljust(512, b"\0")
    cipher = cipher_of("cbc", "plain64", bytes.fromhex(NIST_KEYS[bits]))
    plain = bytes(cipher.decrypt(sector, 12345))
    assert plain[16 : 16 + len(NIST_PLAIN)] == NIST_PLAIN
    assert cipher.encrypt(plain[: 16 + len(NIST_PLAIN)].ljust(512, b"\0"), 12345)[: 16 + len(NIST_PLAIN)] == (
        NIST_CBC_VECTOR + bytes.fromhex(NIST_CBC[bits])
    )


@on_both_kernels
@pytest.mark.parametrize("key, vector, plain, encrypted", ESSIV)
def test_essiv_has_the_vectors_of_the_kernel(key: str, vector: str, plain: bytes, encrypted: str) -> None:
    sector = bytes.fromhex(encrypted).ljust(512, b"\0")
    number = int.from_bytes(bytes.fromhex(vector), "little")
    cipher = cipher_of("cbc", "essiv:sha256", bytes.fromhex(key))
    assert cipher.decrypt(sector, number)[: len(plain)] == plain
    assert cipher.encrypt(plain.ljust(512, b"\0"), number)[: len(plain)] == bytes.fromhex(encrypted)


@on_both_kernels
def test_ecb_takes_whole_blocks() -> None:
    cipher = cipher_of("ecb", "", bytes(range(16)))
    with pytest.raises(ValueError, match="17 bytes"):
        cipher.decrypt(bytes(17), 0)
    with pytest.raises(ValueError, match="17 bytes"):
        cipher.encrypt(bytes(17), 0)
    assert len(cipher.decrypt(bytes(32), 0)) == len(cipher.encrypt(bytes(32), 0)) == 32


@on_both_kernels
@pytest.mark.parametrize("bits", NIST_ECB)
@pytest.mark.parametrize("sector", [0, 1, 1 << 40])
def test_ecb_has_the_vectors_of_nist_wherever_they_are(bits: int, sector: int) -> None:
    cipher = cipher_of("ecb", "", bytes.fromhex(NIST_KEYS[bits]), 4096, 77)
    encrypted = bytes.fromhex(NIST_ECB[bits])
    assert cipher.decrypt(encrypted, sector) == NIST_PLAIN
    assert cipher.decrypt(memoryview(encrypted * 5000), sector) == NIST_PLAIN * 5000
    assert cipher.encrypt(memoryview(NIST_PLAIN * 5000), sector) == encrypted * 5000

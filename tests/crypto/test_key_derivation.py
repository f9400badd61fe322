"""Keys from passphrases (PBKDF2, Argon2) and the anti-forensic splitter: published vectors."""

from __future__ import annotations

import hashlib
import struct

import pytest

from mystfuse.crypto.key_derivation import derive_argon2, derive_pbkdf2, merge_key, split_key
from mystfuse.crypto.secret import Secret
from mystfuse.formats.luks import HASHES
from tests.support.dm_crypt import randbytes

AF_KNOWN = {
    "sha1": "45a50550c983a78df8ac8fedd099d6edaaf7142a5ed1ce7369111de0817f11d3"
    "46a8748dacca1485f7629094ebf0bfeecf43cd23989911f8c17d1e92a2cabf11",
    "sha256": "6e14402a4b80f979d5ae7cd9ec9f4add0c6bd08f037174a4bf92ff24537155d5"
    "a5dd4d6701d470c8d5fb12d2849a972a803e0b095916dcc124344250ffd168fd",
    "sha512": "d10993fa89fd4c214da2fdf10f6d30e72903dc7318942c3122b21befb02b69c1"
    "beb43e9d30632d4b0a3d3fdb913c42d9d04dee97831d1c54defd7f32020a1926",
}

# RFC 6070, PBKDF2-HMAC-SHA1 (without the one of 16,777,216 iterations): password, salt, iterations, key.
RFC_6070 = [
    (b"password", b"salt", 1, "0c60c80f961f0e71f3a9b524af6012062fe037a6"),
    (b"password", b"salt", 2, "ea6c014dc72d6f8ccd1ed92ace1d41f0d8de8957"),
    (b"password", b"salt", 4096, "4b007901b765489abead49d926f721d065a429c1"),
    (
        b"passwordPASSWORDpassword",
        b"saltSALTsaltSALTsaltSALTsaltSALTsalt",
        4096,
        "3d2eec4fe41c849b80c8d83662c0e44a8b291a964cf2f07038",
    ),
    (b"pass\0word", b"sa\0lt", 4096, "56fa6aa75548099dcc37d7f03425e0c3"),
]

# RFC 7914, section 11, PBKDF2-HMAC-SHA-256: password, salt, iterations, key.
RFC_7914 = [
    (
        b"passwd",
        b"salt",
        1,
        "55ac046e56e3089fec1691c22544b605f94185216dde0465e68b9d57c20dacbc"
        "49ca9cccf179b645991664b39d77ef317c71b845b1e30bd509112041d3a19783",
    ),
    (
        b"Password",
        b"NaCl",
        80000,
        "4ddcd8f60b98be21830cee5ef22701f9641a4418d04c0414aeff08876b34ab56"
        "a1d425a1225833549adb841b51c9b3176a272bdebba1d078478f62b397f33c8d",
    ),
]

# Argon2 version 0x13 (RFC 9106). The RFC's own vectors have a secret and associated data, which LUKS2, and so our
# function, lacks; these are from the reference implementation, phc-winner-argon2, src/test.c: variant, passes, KiB,
# lanes, password, salt -> 32 bytes of key.
ARGON2 = {
    "argon2i 2 65536 1 password somesalt": "c1628832147d9720c5bd1cfd61367078729f6dfb6f8fea9ff98158e0d7816ed0",
    "argon2i 2 256 1 password somesalt": "89e9029f4637b295beb027056a7336c414fadd43f6b208645281cb214a56452f",
    "argon2i 2 256 2 password somesalt": "4ff5ce2769a1d7f4c8a491df09d41a9fbe90e5eb02155a13e4c01e20cd4eab61",
    "argon2i 1 65536 1 password somesalt": "d168075c4d985e13ebeae560cf8b94c3b5d8a16c51916b6f4ac2da3ac11bbecf",
    "argon2id 2 65536 1 password somesalt": "09316115d5cf24ed5a15a31a3ba326e5cf32edc24702987c02b6566f61913cf7",
    "argon2id 2 256 1 password somesalt": "9dfeb910e80bad0311fee20f9c0e2b12c17987b4cac90c2ef54d5b3021c68bfe",
    "argon2id 2 256 2 password somesalt": "6d093c501fd5999645e0ea3bf620d7b8be7fd2db59c20d9fff9539da2bf57037",
    "argon2id 1 65536 1 password somesalt": "f6a5adc1ba723dddef9b5ac1d464e180fcd9dffc9d1cbf76cca2fed795d9ca98",
    "argon2id 4 65536 1 password somesalt": "9025d48e68ef7395cca9079da4c4ec3affb3c8911fe4f86d1a2520856f63172c",
    "argon2id 2 65536 1 differentpassword somesalt": "0b84d652cf6b0c4beaef0dfe278ba6a80df6696281d7e0d2891b817d8c458fde",
    "argon2id 2 65536 1 password diffsalt": "bdf32b05ccc42eb15d58fd19b1f856b113da1e9a5874fdcc544308565aa8141c",
}


def naive_split(key: bytes, stripes: int, hash_name: str, filling: bytes) -> bytes:
    """LUKS1 On-Disk Format Specification 1.2.3, section 2.4, implemented here byte by byte."""
    size = len(key)

    def diffuse(block: bytes) -> bytes:
        step = hashlib.new(hash_name).digest_size
        result = b""
        for index in range(-(-size // step)):
            digest = hashlib.new(
                hash_name, struct.pack(">I", index) + block[index * step : (index + 1) * step]
            ).digest()
            result += digest[: min(step, size - index * step)]
        return result

    stripe, material = bytes(size), b""
    for index in range(stripes - 1):
        chosen = filling[index * size : (index + 1) * size]
        stripe = diffuse(bytes(left ^ right for left, right in zip(stripe, chosen, strict=True)))
        material += chosen
    return material + bytes(left ^ right for left, right in zip(stripe, key, strict=True))


@pytest.mark.parametrize("password, salt, iterations, expected", RFC_6070)
def test_pbkdf2_has_the_vectors_of_rfc_6070(password: bytes, salt: bytes, iterations: int, expected: str) -> None:
    key = derive_pbkdf2("sha1", memoryview(password), salt, iterations, len(expected) // 2)
    assert key.view.hex() == expected


@pytest.mark.parametrize("password, salt, iterations, expected", RFC_7914)
def test_pbkdf2_has_the_vectors_of_rfc_7914(password: bytes, salt: bytes, iterations: int, expected: str) -> None:
    key = derive_pbkdf2("sha256", memoryview(password), salt, iterations, len(expected) // 2)
    assert key.view.hex() == expected


@pytest.mark.parametrize("hash_name", HASHES)
@pytest.mark.parametrize("length", [1, 16, 20, 64, 100])
def test_pbkdf2_is_pythons_with_every_hash(hash_name: str, length: int) -> None:
    for password, salt in (b"correct horse", randbytes(32)), (b"", b""), (bytes(range(256)), b"\0"):
        key = derive_pbkdf2(hash_name, memoryview(password), salt, 17, length)
        assert key.view == hashlib.pbkdf2_hmac(hash_name, password, salt, 17, length)


@pytest.mark.parametrize("parameters, expected", ARGON2.items())
def test_argon2_has_the_vectors_of_its_reference(parameters: str, expected: str) -> None:
    variant, passes, memory, cpus, password, salt = parameters.split()
    key = derive_argon2(variant, memoryview(password.encode()), salt.encode(), int(passes), int(memory), int(cpus), 32)
    assert key.view.hex() == expected


def test_argon2_takes_an_empty_passphrase_and_gives_any_length() -> None:
    keys = [derive_argon2("argon2id", Secret(0).view, bytes(8), 1, 64, 1, length) for length in (16, 32, 64)]
    assert [len(key) for key in keys] == [16, 32, 64]
    assert len({bytes(key.view[:16]) for key in keys}) == 3


@pytest.mark.parametrize("stripes", [1, 2, 4000])
@pytest.mark.parametrize("hash_name", ["sha1", "sha256", "sha512"])
@pytest.mark.parametrize("size", [16, 32, 48, 64])
def test_a_key_is_split_as_the_specification_says_and_merged_again(size: int, hash_name: str, stripes: int) -> None:
    key, filling = randbytes(size, "key"), randbytes(size * (stripes - 1), "filling")
    asked: list[int] = []

    def fill(length: int) -> bytes:
        asked.append(length)
        return filling

    material = split_key(memoryview(key), stripes, hash_name, fill)
    assert sum(asked) == len(filling)
    assert material == naive_split(key, stripes, hash_name, filling)
    assert merge_key(memoryview(material), size, hash_name).view == key
    assert merge_key(material, size, hash_name).view == key


@pytest.mark.parametrize("hash_name, expected", AF_KNOWN.items())
def test_the_splitter_has_a_known_answer(hash_name: str, expected: str) -> None:
    """Computed with ``naive_split``: a key of bytes 0 to 63, three stripes, filled with 64 to 191."""
    material = split_key(memoryview(bytes(range(64))), 3, hash_name, lambda length: bytes(range(64, 64 + length)))
    assert material[:128] == bytes(range(64, 192))
    assert material[128:].hex() == expected
    assert naive_split(bytes(range(64)), 3, hash_name, bytes(range(64, 192)))[128:].hex() == expected


@pytest.mark.parametrize(
    "size, hash_name, stripes", [(16, "sha1", 1), (32, "sha512", 2), (64, "sha1", 7), (48, "sha256", 7)]
)
def test_any_byte_flipped_loses_the_key(size: int, hash_name: str, stripes: int) -> None:
    key = randbytes(size)
    material = split_key(memoryview(key), stripes, hash_name, randbytes)
    for position in range(len(material)):
        material[position] ^= 1 << position % 8
        assert merge_key(material, size, hash_name).view != key
        material[position] ^= 1 << position % 8
    assert merge_key(material, size, hash_name).view == key


def test_a_byte_flipped_among_4000_stripes_loses_a_hash_of_the_key() -> None:
    key = randbytes(64)
    material = split_key(memoryview(key), 4000, "sha256", randbytes)
    for position in (0, 31, 32, 63, 64 * 2000 + 5, 64 * 3999 - 1):
        material[position] ^= 0x10
        damaged = bytes(merge_key(material, 64, "sha256").view)
        # Each half is hashed by itself.
        lost, kept = (slice(0, 32), slice(32, 64)) if position % 64 < 32 else (slice(32, 64), slice(0, 32))
        assert sum(left == right for left, right in zip(damaged[lost], key[lost], strict=True)) < 8
        assert damaged[kept] == key[kept]
        material[position] ^= 0x10

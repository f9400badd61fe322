"""Hashing of blocks: the C kernel and its fallback give hashlib's digests, and name every mismatch."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.dm_crypt import randbytes
from tests.support.kernels import HASHERS, Hasher

SALT_SIZES = (0, 1, 31, 32, 33, 55, 56, 63, 64, 65, 128, 255, 256)
BLOCK_SIZES = (512, 1024, 4096, 65536)

every_hasher = pytest.mark.parametrize("make", HASHERS.values(), ids=HASHERS)


def expected_digests(algorithm: str, salt: bytes, hash_type: int, data: bytes, block_size: int) -> list[bytes]:
    blocks = [data[start : start + block_size] for start in range(0, len(data), block_size)]
    return [hashlib.new(algorithm, salt + block if hash_type else block + salt).digest() for block in blocks]


@every_hasher
@pytest.mark.parametrize("hash_type", [0, 1])
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_digests_are_hashlibs(algorithm: str, hash_type: int, make: Hasher) -> None:
    for salt_size, block_size in product(SALT_SIZES, BLOCK_SIZES):
        salt = randbytes(salt_size, "salt")
        hasher = make(algorithm, salt, hash_type)
        assert hasher.digest_size == hashlib.new(algorithm).digest_size
        # Up to three whole turns of three blocks, and every rest.
        for count in (0, 1, 2, 3, 4, 5, 6, 7, 9) if block_size <= 4096 else (1, 2, 4):
            data = randbytes(count * block_size, (salt_size, count))
            expected = expected_digests(algorithm, salt, hash_type, data, block_size)
            assert hasher.digests(data, block_size) == b"".join(expected)
            assert hasher.mismatches(data, block_size, b"".join(expected)) == []
            if count == 1:
                assert hasher.digest(data) == expected[0]


@every_hasher
def test_the_largest_blocks(make: Hasher) -> None:
    data, salt = randbytes(3 << 19), randbytes(32)
    for hash_type in 0, 1:
        expected = b"".join(expected_digests("sha256", salt, hash_type, data, 1 << 19))
        assert make("sha256", salt, hash_type).digests(data, 1 << 19) == expected


@every_hasher
def test_a_single_digest_is_of_any_size(make: Hasher) -> None:
    for size, hash_type in product([*range(200), 511, 513, 4095, 4097], (0, 1)):
        block, salt = randbytes(size), randbytes(size % 257, "salt")
        expected = hashlib.sha256(salt + block if hash_type else block + salt)
        assert make("sha256", salt, hash_type).digest(block) == expected.digest()


@every_hasher
@given(data=st.data())
def test_any_blocks_salt_and_damage(make: Hasher, data: st.DataObject) -> None:
    algorithm, hash_type = data.draw(st.sampled_from(["sha256", "sha512"])), data.draw(st.integers(0, 1))
    salt = data.draw(st.binary(max_size=256))
    block_size, count = data.draw(st.integers(1, 1500)), data.draw(st.integers(0, 12))
    # At any address.
    moved = data.draw(st.integers(0, 63))
    blocks = memoryview(bytes(moved) + randbytes(block_size * count, data.draw(st.integers(0, 99))))[moved:]
    expected = expected_digests(algorithm, salt, hash_type, bytes(blocks), block_size)
    hasher = make(algorithm, salt, hash_type)
    assert hasher.digests(blocks, block_size) == b"".join(expected)
    bad = sorted(data.draw(st.sets(st.integers(0, count - 1)))) if count else []
    claimed = bytearray(b"".join(expected))
    for index in bad:
        bit = data.draw(st.integers(0, hasher.digest_size * 8 - 1))
        claimed[index * hasher.digest_size + bit // 8] ^= 1 << bit % 8
    assert hasher.mismatches(blocks, block_size, claimed) == bad


@every_hasher
@pytest.mark.parametrize("count", [*range(1, 14), 256])
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_every_mismatch_is_reported(algorithm: str, count: int, make: Hasher) -> None:
    hasher = make(algorithm, randbytes(32))
    data, size = randbytes(count * 512), hasher.digest_size
    good = hasher.digests(data, 512)
    assert hasher.mismatches(data, 512, bytes(len(good))) == list(range(count))
    for index in range(count) if count < 14 else (0, 1, 100, 253, 254, 255):
        damaged = bytearray(data)
        damaged[index * 512 + 511] ^= 0x80
        assert hasher.mismatches(damaged, 512, good) == [index]
        # The first and the last byte of a digest.
        for place in index * size, (index + 1) * size - 1:
            claimed = bytearray(good)
            claimed[place] ^= 1
            assert hasher.mismatches(data, 512, claimed) == [index]
    assert hasher.mismatches(data, 512, good[size:] + good[:size]) == (list(range(count)) if count > 1 else [])


@every_hasher
def test_what_does_not_fit_is_refused(make: Hasher) -> None:
    hasher = make("sha256", bytes(32))
    for data, block_size in ((bytes(511), 512), (bytes(513), 512), (bytes(1), 512), (bytes(512), 0), (bytes(512), -1)):
        with pytest.raises(ValueError):
            hasher.digests(data, block_size)
        with pytest.raises(ValueError):
            hasher.mismatches(data, block_size, bytes(32))
    for size in (0, 31, 32, 63, 65, 96):
        with pytest.raises(ValueError, match="digests"):
            hasher.mismatches(bytes(1024), 512, bytes(size))
    with pytest.raises(ValueError, match="salt"):
        make("sha256", bytes(257))
    with pytest.raises(ValueError):
        make("sha257", b"")


@every_hasher
def test_any_buffer_is_hashed(make: Hasher) -> None:
    hasher, data = make("sha256", b"salt"), randbytes(4096)
    expected = hasher.digests(data, 512)
    for buffer in bytearray(data), memoryview(data), memoryview(bytearray(data)).cast("I"):
        assert hasher.digests(buffer, 512) == expected
        assert hasher.mismatches(buffer, 512, memoryview(expected)) == []
        assert hasher.digest(buffer) == hashlib.sha256(b"salt" + data).digest()


@every_hasher
def test_threads_may_share_a_hasher(make: Hasher, busy_threads: ThreadPoolExecutor) -> None:
    salt, data = randbytes(33), randbytes(1 << 20)
    hasher = make("sha256", salt)
    ranges = [(start << 12, (start + length) << 12) for start, length in product(range(0, 200, 13), (1, 2, 17, 50))]
    digests = expected_digests("sha256", salt, 1, data, 4096)
    expected = [b"".join(digests[a >> 12 : b >> 12]) for a, b in ranges]
    got = busy_threads.map(lambda ab: hasher.digests(memoryview(data)[ab[0] : ab[1]], 4096), ranges * 4)
    assert list(got) == expected * 4

"""The kernels, native and in Python: the same tests on both twins, on both ways of the native one, and sanitized."""

from __future__ import annotations

import hashlib
import inspect
import os
import random
import re
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain, product
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mystfuse import kernels
from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2 import directory
from mystfuse.ext2.directory import parse_block
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.superblock import Superblock
from mystfuse.kernels.interface import NOT_FOUND, UNUSUAL
from mystfuse.kernels.pure import directory as pure_directory
from mystfuse.kernels.pure import hashing as pure_hashing
from mystfuse.kernels.pure import sectors as pure_sectors
from tests.support.dm_crypt import encrypt_sectors

native: ModuleType | None
try:
    from mystfuse.kernels import native
    from mystfuse.kernels.native import directory as native_directory
    from mystfuse.kernels.native import hashing as native_hashing
    from mystfuse.kernels.native import sectors as native_sectors
except ImportError:
    native = None

ROOT = Path(__file__).parents[2]
SALT_SIZES = (0, 1, 31, 32, 33, 55, 56, 63, 64, 65, 128, 255, 256)
BLOCK_SIZES = (512, 1024, 4096, 65536)

DIRECTORY = cast(Inode, SimpleNamespace(ino=2))

Hasher = Callable[..., pure_hashing.BlockHasher]


def without_instructions(*args: object) -> object:
    """A native hasher that leaves the processor's SHA instructions alone."""
    assert native is not None
    native.allow_sha_instructions(False)
    try:
        return native_hashing.BlockHasher(*args)
    finally:
        native.allow_sha_instructions(True)


HASHERS: dict[str, Hasher] = {"pure": pure_hashing.BlockHasher}
SECTORS: dict[str, ModuleType] = {"pure": pure_sectors}
if native is not None:
    HASHERS |= {"native": native_hashing.BlockHasher, "libcrypto": without_instructions}
    SECTORS["native"] = native_sectors

every_hasher = pytest.mark.parametrize("make", HASHERS.values(), ids=HASHERS)
every_twin = pytest.mark.parametrize("twin", SECTORS.values(), ids=SECTORS)
needs_native = pytest.mark.skipif(native is None, reason="the native kernels are not built")


def randbytes(size: int, seed: object = 0) -> bytes:
    return random.Random(repr(seed)).randbytes(size)


def expected_digests(algorithm: str, salt: bytes, hash_type: int, data: bytes, block_size: int) -> list[bytes]:
    blocks = [data[start : start + block_size] for start in range(0, len(data), block_size)]
    return [hashlib.new(algorithm, salt + block if hash_type else block + salt).digest() for block in blocks]


# -- which one


@needs_native
def test_the_twins_have_the_same_interface() -> None:
    def interface(of: type) -> dict[str, list[str]]:
        functions = inspect.getmembers(of, inspect.isfunction)
        return {
            name: list(inspect.signature(function).parameters)
            for name, function in functions
            if name == "__init__" or not name.startswith("_")
        }

    for pure, compiled in (
        (pure_hashing.BlockHasher, native_hashing.BlockHasher),
        (pure_sectors.XtsCipher, native_sectors.XtsCipher),
        (pure_sectors.CbcCipher, native_sectors.CbcCipher),
        (pure_sectors.EcbCipher, native_sectors.EcbCipher),
    ):
        assert interface(pure) == interface(compiled)
    for name in ("find_entry", "name_key", "block_keys"):
        functions = getattr(pure_directory, name), getattr(native_directory, name)
        assert inspect.signature(functions[0]) == inspect.signature(functions[1])


@pytest.mark.parametrize("value, pure", [("1", True), ("0", False), ("", False), (None, False)])
def test_the_environment_chooses(value: str | None, pure: bool) -> None:
    script = """
from mystfuse import kernels
from mystfuse.crypto import hashing, sectors
print(kernels.name(), hashing.BlockHasher.__module__, sectors.XtsCipher.__module__, sep="|")
"""
    environment = {name: text for name, text in os.environ.items() if name != kernels.PURE_PYTHON_VARIABLE}
    if value is not None:
        environment[kernels.PURE_PYTHON_VARIABLE] = value
    shown = subprocess.check_output([sys.executable, "-c", script], cwd=ROOT, env=environment, text=True).strip()
    name, *modules = shown.split("|")
    if pure or native is None:
        assert name == "pure Python"
        assert modules == ["mystfuse.kernels.pure.hashing", "mystfuse.kernels.pure.sectors"]
    else:
        assert name.startswith("native (libcrypto 3.")
        assert modules == ["mystfuse.kernels.native.hashing", "mystfuse.kernels.native.sectors"]


def test_the_native_kernels_are_there_where_they_can_be() -> None:
    """scripts/prepare.sh installs what they need: silently going without would be slow, and untested."""
    assert native is not None


@needs_native
def test_the_sha_instructions_are_used_where_they_are() -> None:
    assert native is not None
    flags = Path("/proc/cpuinfo").read_text().split()
    assert ("SHA instructions" in native.description()) == ("sha_ni" in flags)
    native.allow_sha_instructions(False)
    try:
        assert "SHA instructions" not in native.description()
    finally:
        native.allow_sha_instructions(True)


# -- hashing


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
def test_every_mismatch_is_told(algorithm: str, count: int, make: Hasher) -> None:
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


@pytest.fixture
def busy_threads() -> Iterator[ThreadPoolExecutor]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            yield pool
    finally:
        sys.setswitchinterval(interval)


@every_hasher
def test_threads_may_share_a_hasher(make: Hasher, busy_threads: ThreadPoolExecutor) -> None:
    salt, data = randbytes(33), randbytes(1 << 20)
    hasher = make("sha256", salt)
    ranges = [(start << 12, (start + length) << 12) for start, length in product(range(0, 200, 13), (1, 2, 17, 50))]
    digests = expected_digests("sha256", salt, 1, data, 4096)
    expected = [b"".join(digests[a >> 12 : b >> 12]) for a, b in ranges]
    got = busy_threads.map(lambda ab: hasher.digests(memoryview(data)[ab[0] : ab[1]], 4096), ranges * 4)
    assert list(got) == expected * 4


# -- sectors (vectors and modes are in tests/crypto)


def ciphers(twin: ModuleType, sector_size: int = 512) -> dict[str, pure_sectors.XtsCipher]:
    return {
        "xts-plain64": twin.XtsCipher(randbytes(64), sector_size, 5),
        "xts-plain": twin.XtsCipher(randbytes(32), sector_size, 5, "plain"),
        "xts-192": twin.XtsCipher(randbytes(48), sector_size, 5),
        "cbc-plain64": twin.CbcCipher(randbytes(32), sector_size, 5, "plain64"),
        "cbc-plain": twin.CbcCipher(randbytes(24), sector_size, 5, "plain"),
        "cbc-essiv": twin.CbcCipher(randbytes(16), sector_size, 5, "essiv:sha256"),
        "ecb": twin.EcbCipher(randbytes(32)),
    }


@needs_native
@pytest.mark.parametrize("sector_size", [512, 1024, 2048, 4096])
def test_the_twins_decrypt_and_encrypt_alike(sector_size: int) -> None:
    """Around the edges of their steps (8 and 64 KiB, 16 and 128 sectors), of 32 and of 64 bits, and at any address."""
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


@every_twin
@given(data=st.data())
def test_any_sectors_are_openssls(twin: ModuleType, data: st.DataObject) -> None:
    sector_size = data.draw(st.sampled_from([512, 1024, 2048, 4096]))
    plain = randbytes(sector_size * data.draw(st.integers(1, 40)))
    sector, iv_tweak = data.draw(st.integers(0, 1 << 62)), data.draw(st.integers(0, (1 << 62) - 1))
    chain_mode = data.draw(st.sampled_from(["xts", "cbc"]))
    iv_mode = data.draw(st.sampled_from(["plain64", "plain"] + ["essiv:sha256"] * (chain_mode == "cbc")))
    key = randbytes(data.draw(st.sampled_from([32, 64] if chain_mode == "xts" else [16, 24, 32])), "key")
    encrypted = encrypt_sectors(f"aes-{chain_mode}-{iv_mode}", key, plain, sector, sector_size, iv_tweak)
    cipher = (twin.XtsCipher if chain_mode == "xts" else twin.CbcCipher)(key, sector_size, iv_tweak, iv_mode)
    assert cipher.decrypt(encrypted, sector) == plain
    assert cipher.encrypt(plain, sector) == encrypted


@every_twin
def test_a_result_goes_where_it_is_wanted(twin: ModuleType) -> None:
    for name, cipher in ciphers(twin).items():
        for size in (0, 512, 8192, 8192 + 512, 100 << 10):
            data = randbytes(size)
            expected = bytes(cipher.decrypt(data, 7))
            out = bytearray(b"x" * (size + 2))
            cipher.decrypt_into(data, 7, memoryview(out)[1:-1])
            assert out == b"x" + expected + b"x", name
            # In place, from any of its views.
            for source in (bytes, bytearray, memoryview):
                buffer = bytearray(data)
                cipher.decrypt_into(buffer if source is not memoryview else memoryview(buffer), 7, buffer)
                assert buffer == expected, name
                # And back, in place and elsewhere.
                cipher.encrypt_into(expected, 7, memoryview(out)[1:-1])
                assert out == b"x" + data + b"x", name
                cipher.encrypt_into(buffer, 7, memoryview(buffer))
                assert buffer == data, name


@every_twin
def test_a_place_that_does_not_fit_is_refused(twin: ModuleType) -> None:
    for cipher in ciphers(twin).values():
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


@every_twin
def test_keys_and_sectors_that_cannot_be_are_refused(twin: ModuleType) -> None:
    for size in (0, 16, 31, 33, 63, 65, 128):
        with pytest.raises(ValueError):
            twin.XtsCipher(bytes(size))
    for size in (0, 8, 15, 17, 31, 33, 64):
        with pytest.raises(ValueError):
            twin.CbcCipher(bytes(size), 512, 0, "plain")
        with pytest.raises(ValueError):
            twin.EcbCipher(bytes(size))
    for sector_size in (0, 16, 256, 513, 8192, 1 << 32, -512):
        with pytest.raises(ValueError):
            twin.XtsCipher(bytes(range(64)), sector_size)
        with pytest.raises(ValueError):
            twin.CbcCipher(bytes(range(32)), sector_size, 0, "plain")


@every_twin
def test_a_cipher_keeps_its_key_when_the_callers_is_wiped(twin: ModuleType) -> None:
    key, data = bytearray(randbytes(64)), randbytes(1024)
    cipher = twin.XtsCipher(memoryview(key))
    expected = bytes(cipher.decrypt(data, 0))
    key[:] = bytes(64)
    assert cipher.decrypt(data, 0) == expected


@every_twin
@pytest.mark.parametrize("name", ["xts-plain64", "cbc-essiv"])
def test_threads_may_share_a_cipher_in_both_directions(
    name: str, twin: ModuleType, busy_threads: ThreadPoolExecutor
) -> None:
    cipher = ciphers(twin)[name]
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


# -- names in directories: whatever C says of a block must be what going through it in Python says


def entries(source: random.Random, size: int, number: int, has_filetype: bool) -> tuple[bytearray, list[int]]:
    """A block of a directory, and where its entries are: ``.`` and ``..`` if it is the first, names of all lengths,
    free entries, and slack."""
    block = bytearray(size)
    offsets: list[int] = []
    names = [b".", b".."] if number == 0 else []
    offset = 0
    while offset < size:
        alphabet = source.choice((b"ab", bytes(set(range(256)) - {0, 0x2F})))
        name = names.pop(0) if names else bytes(source.choices(alphabet, k=source.choice((1, 2, 3, 8, 15, 40, 255))))
        name = b"..." if name in (b".", b"..") and offset > 12 else name
        rec_len = 8 + len(name) + 3 & ~3
        if not names and offset > 12 and source.random() < 0.2:
            rec_len += 4 * source.randrange(40)
        if offset + rec_len > size - 12:
            rec_len = size - offset
        name = name[: rec_len - 8]
        ino = 0 if offset > 24 and source.random() < 0.1 else source.randrange(1, 1 << 32)
        struct.pack_into("<IHBB", block, offset, ino, rec_len, len(name), source.randrange(8) if has_filetype else 0)
        block[offset + 8 : offset + 8 + len(name)] = name
        offsets.append(offset)
        offset += rec_len
    return block, offsets


def directory_blocks(damages: int) -> Iterator[tuple[Superblock, int, bytes, random.Random]]:
    for seed in range(300):
        source = random.Random(seed)
        size, number, has_filetype = source.choice((1024, 4096)), source.choice((0, 1, 70_000)), source.random() < 0.7
        block, offsets = entries(source, size, number, has_filetype)
        for _ in range(source.randrange(damages + 1)):
            # In its header, more often than not.
            header = source.choice(offsets) + source.randrange(9)
            position = source.choice((header, header, source.randrange(size)))
            block[position] = source.choice((0, 1, 4, 12, 0x2F, 0xFF, source.randrange(256)))
        yield (
            cast(Superblock, SimpleNamespace(has_filetype=has_filetype, block_size=size)),
            number,
            bytes(block),
            source,
        )


def names_of(superblock: Superblock, number: int, block: bytes) -> list[bytes]:
    """The names in front of the damage."""
    names: list[bytes] = []
    with suppress(CorruptFilesystem):
        names.extend(entry.name for entry in parse_block(superblock, DIRECTORY, block, number))
    return names


@needs_native
@pytest.mark.parametrize("damages", [0, 3], ids=["sound", "damaged"])
def test_native_find_is_as_going_through_the_block(damages: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "find_entry", pure_directory.find_entry)
    results: Counter[str] = Counter()
    for superblock, number, block, source in directory_blocks(damages):
        names = names_of(superblock, number, block)
        for name in [*source.sample(names, min(len(names), 20)), b"a", b"missing", b"", b".", b"..", b"a/", b"\0"]:
            place = native_directory.find_entry(block, superblock.has_filetype, name)
            if place == UNUSUAL:
                results["unusual"] += 1
                continue
            found = directory.find_in_block(superblock, DIRECTORY, block, number, name)
            if place == NOT_FOUND:
                assert found is None
                results["not found"] += 1
            else:
                assert found is not None
                assert (found.offset << 32 | found.previous + 1) == place
                results["found"] += 1
    assert results["found"] > 1000 and results["not found"] > 1000
    assert (results["unusual"] > 50) == bool(damages)


@needs_native
@pytest.mark.parametrize("damages", [0, 3], ids=["sound", "damaged"])
def test_native_keys_are_of_the_names_in_the_block(damages: int, caplog: pytest.LogCaptureFixture) -> None:
    unusual = 0
    for superblock, number, block, source in directory_blocks(damages):
        bits = source.choice((0, 1, 8))
        in_front = [b""] if number else []
        first = number - len(in_front)
        keys, left = native_directory.block_keys([*in_front, block], first, superblock.has_filetype, bits)
        assert len(keys) == 1 << bits
        if left:
            assert left == [len(in_front)] and not any(keys)
            unusual += 1
            continue
        for part, some in enumerate(keys):
            assert {key >> 64 - bits for key in some} <= {part}
        names = [entry.name for entry in parse_block(superblock, DIRECTORY, block, number)]
        assert sorted(chain(*keys)) == sorted(native_directory.name_key(name) | number for name in names)
    assert not caplog.records, "names that cannot be are for Python to complain of"
    assert (unusual > 30) == bool(damages)


@needs_native
def test_native_keys_are_many_and_different() -> None:
    keys = {native_directory.name_key(b"%d" % number) for number in range(10_000)}
    assert len(keys) > 9_990
    assert all(key & 0xFFFFFFFF == 0 and key >> 64 == 0 for key in keys)
    buckets = Counter(key >> 60 for key in keys)
    assert len(buckets) == 16 and max(buckets.values()) < 900


@needs_native
def test_native_hash_is_siphash_1_3(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against Python's own hash of bytes, which is the same function where it was built that way."""
    script = (
        "import sys; assert sys.hash_info.algorithm == 'siphash13', sys.hash_info\n"
        "print(*[hash(bytes(range(size))) & (1 << 64) - 1 for size in range(1, 257)])"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    if result.returncode:
        pytest.skip(result.stderr.splitlines()[-1])
    # PYTHONHASHSEED=0 is a secret of zeros.
    monkeypatch.setattr(native_directory, "_SECRET", bytes(16))
    hashes = [int(text) for text in result.stdout.split()]
    assert [native_directory.name_key(bytes(range(size))) >> 32 for size in range(1, 257)] == [
        number & 0xFFFFFFFF for number in hashes
    ]


# -- built hardened


@needs_native
def test_the_module_is_built_hardened() -> None:
    """What the linker and the compiler leave to be seen of the flags in build.py."""
    assert native is not None
    module = native._kernel.__file__

    def shown(option: str) -> str:
        return subprocess.check_output(["readelf", "-W", option, module], text=True)

    assert "BIND_NOW" in shown("--dynamic")
    segments = shown("--segments")
    assert "GNU_RELRO" in segments
    assert re.search(r"GNU_STACK .* RW ", segments)
    symbols = shown("--dyn-syms")
    assert "__stack_chk_fail" in symbols
    assert "__memcpy_chk" in symbols


# -- sanitized


@needs_native
@pytest.mark.slow
def test_under_the_sanitizers(tmp_path: Path) -> None:
    """Everything above once more with the C code built by AddressSanitizer and UndefinedBehaviorSanitizer."""
    if os.environ.get("MYSTFUSE_SANITIZED"):
        assert native_hashing.lib is sys.modules["sanitized"].lib
        return
    libraries = [
        subprocess.check_output(["gcc", f"-print-file-name=lib{name}.so"], text=True).strip()
        for name in ("asan", "ubsan")
    ]
    if not all(map(os.path.isabs, libraries)):
        pytest.skip("gcc has no sanitizers")
    script = ROOT / "tests/support/sanitized_kernels.py"
    build = [sys.executable, script, tmp_path]
    built = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stdout + built.stderr
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.support.sanitized_kernels",
         "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "",
         "-k", "native or libcrypto or alike or overlaps or sanitizers", "tests/kernels/test_kernels.py"],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
        env={
            **os.environ,
            "LD_PRELOAD": " ".join(libraries),
            # Python leaves memory behind on purpose; its small objects must come from malloc to be guarded.
            "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:exitcode=99",
            "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
            "PYTHONMALLOC": "malloc",
            "PYTHONPATH": f"{ROOT}:{tmp_path}",
            "MYSTFUSE_SANITIZED": "1",
        },
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-5000:]
    assert " passed" in result.stdout

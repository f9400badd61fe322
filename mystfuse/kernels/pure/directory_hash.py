"""Hashes of names by which ext3 and ext4 put them in order, without C. Source: fs/ext4/hash.c of the kernel."""

from __future__ import annotations

from collections.abc import Iterator

from mystfuse.kernels.interface import UNUSUAL, Bytes

_LEGACY, _HALF_MD4, _VERSIONS = 0, 1, 3
_MASK = 0xFFFFFFFF
_INITIAL = (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476)
_ROUNDS = (
    ((0, 1, 2, 3, 4, 5, 6, 7), (3, 7, 11, 19), 0),
    ((1, 3, 5, 7, 0, 2, 4, 6), (3, 5, 9, 13), 0x5A827999),
    ((3, 7, 2, 6, 1, 5, 0, 4), (3, 9, 11, 15), 0x6ED9EBA1),
)
"""Of half an MD4: the order of the words, how far to rotate, and what is added."""
_DELTA = 0x9E3779B9


def name_hash(version: int, seed: tuple[int, int, int, int], name: bytes) -> int:
    """The hash of a name: 32 bits, of which the lowest is 0.

    Args:
        version: 0 legacy, 1 half MD4, 2 TEA; and 3 more if bytes count as unsigned (DX_HASH_* of fs/ext4/ext4.h).
        seed: s_hash_seed; all zero for the usual one.
    """
    return both_hashes(version, seed, name)[0]


def both_hashes(version: int, seed: tuple[int, int, int, int], name: bytes) -> tuple[int, int]:
    """The same, and the minor hash, by which names with the same one are told apart; the legacy function has none."""
    is_unsigned, kind = divmod(version, _VERSIONS)
    state: tuple[int, ...] = seed if any(seed) else _INITIAL
    if kind == _LEGACY:
        value, minor = _legacy(name, bool(is_unsigned)), 0
    else:
        words = 8 if kind == _HALF_MD4 else 4
        for start in range(0, len(name), words * 4):
            given = list(_words(name[start:], bool(is_unsigned), words))
            state = _half_md4(state, given) if kind == _HALF_MD4 else _tea(state, given)
        value, minor = state[1:3] if kind == _HALF_MD4 else state[:2]
    value &= ~1
    # The largest one marks the end of a listing.
    return (0xFFFFFFFC if value == 0xFFFFFFFE else value), minor


def find_room(block: Bytes, end: int, has_filetype: bool, needed: int) -> int:
    """The offset of the first entry in ``block``, up to byte ``end``, behind which (or in whose place, if it is free)
    an entry of ``needed`` bytes has room.

    Returns:
        That, or ``NO_ROOM``, or ``UNUSUAL``: the caller has to parse the block.
    """
    return UNUSUAL


def hashed_entries(
    block: Bytes, end: int, has_filetype: bool, version: int, seed: tuple[int, int, int, int]
) -> list[int] | None:
    """The names in ``block``, up to byte ``end``, in the order of their hashes: for each ``hash << 32 | offset << 16 |
    bytes that its entry needs``. None if the caller has to parse the block."""
    return None


def _words(name: bytes, is_unsigned: bool, count: int) -> Iterator[int]:
    """``count`` words of a name, filled up with its length."""
    size = len(name) & 0xFF
    filler = size * 0x01010101
    for start in range(0, count * 4, 4):
        value = filler
        for byte in name[start : start + 4]:
            value = (byte if is_unsigned or byte < 128 else byte - 256) + (value << 8) & _MASK
        yield value


def _half_md4(state: tuple[int, ...], words: list[int]) -> tuple[int, ...]:
    values = list(state)
    for number, (order, shifts, constant) in enumerate(_ROUNDS):
        for step, word in enumerate(order):
            to = -step & 3
            x, y, z = (values[to + shift & 3] for shift in (1, 2, 3))
            mixed = (z ^ x & (y ^ z), (x & y) + ((x ^ y) & z), x ^ y ^ z)[number]
            value = values[to] + mixed + words[word] + constant & _MASK
            shift = shifts[step & 3]
            values[to] = (value << shift | value >> 32 - shift) & _MASK
    return tuple(old + new & _MASK for old, new in zip(state, values, strict=True))


def _tea(state: tuple[int, ...], words: list[int]) -> tuple[int, ...]:
    left, right = state[:2]
    total = 0
    for _ in range(16):
        total = total + _DELTA & _MASK
        left = left + ((right << 4) + words[0] ^ right + total ^ (right >> 5) + words[1]) & _MASK
        right = right + ((left << 4) + words[2] ^ left + total ^ (left >> 5) + words[3]) & _MASK
    return (state[0] + left & _MASK, state[1] + right & _MASK, *state[2:])


def _legacy(name: bytes, is_unsigned: bool) -> int:
    latest, before = 0x12A3FE2D, 0x37ABE8F9
    for byte in name:
        signed = byte if is_unsigned or byte < 128 else byte - 256
        following = before + (latest ^ signed * 7152373 & _MASK) & _MASK
        if following & 0x80000000:
            following = following - 0x7FFFFFFF & _MASK
        before, latest = latest, following
    return latest << 1 & _MASK

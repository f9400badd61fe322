"""Random journals, right and damaged."""

from __future__ import annotations

import struct
from pathlib import Path
from random import Random

from tests.support.journals import BLOCK, MAGIC, JournalImage, Transaction

FEATURES = [
    "",
    "revoke",
    "64bit revoke",
    "csum_v2",
    "csum_v2 64bit revoke",
    "csum_v3 revoke",
    "csum_v3 64bit revoke",
    "csum_v3 64bit async_commit revoke",
    "checksum revoke",
    "checksum 64bit async_commit revoke",
]


def random_journal(path: Path, random: Random, features: str, wraps: bool = True) -> JournalImage:
    """A journal with some transactions over few blocks, so that they are written and revoked again and again.

    Args:
        wraps: whether the transactions' numbers may pass 0, which the kernel mistakes for none where it finds damage.
    """
    image = JournalImage(path)
    start = random.choice([1, 2, 500, random.randrange(1, len(image.journal)), len(image.journal) - 1])
    sequence = random.choice([1, 77, 0x7FFFFFFE, 0xFFFFFFFD if wraps else 0xFFFF0000])
    numbers = random.sample(image.free, 40)
    transactions = [_transaction(random, numbers) for _ in range(random.randrange(12))]
    if transactions and not random.randrange(3):
        transactions[-1].is_complete = False
    image.begin(features.split(), sequence, start)
    image.log(transactions, sequence, start)
    return image


def _transaction(random: Random, numbers: list[int]) -> Transaction:
    blocks = [(number, _content(random)) for number in random.sample(numbers, random.randrange(25))]
    own = {number for number, _ in blocks}
    # What a transaction writes it does not revoke (fs/jbd2/revoke.c, jbd2_journal_cancel_revoke).
    revoked = [number for number in random.sample(numbers, random.randrange(8)) if number not in own]
    return Transaction(blocks, revoked, random.choice([1, 3, 1000]))


def _content(random: Random) -> bytes:
    head = struct.pack(">I", MAGIC) if not random.randrange(4) else b""
    return (head + random.randbytes(20) * 50)[:BLOCK].ljust(BLOCK, b"\0")


def damage(image: JournalImage, random: Random) -> None:
    """Change a journal in one to three places, most of which matter."""
    for _ in range(random.randrange(1, 4)):
        blocks = [0, *(index for index in range(1, len(image.journal)) if any(image.get(index)[:64]))]
        index = random.choice(blocks)
        block = bytearray(image.get(index))
        kind = random.randrange(6)
        if kind == 0:
            position = random.randrange(80 if random.randrange(2) else BLOCK)
            block[position] ^= 1 << random.randrange(8)
        elif kind == 1:
            struct.pack_into(">I", block, 4 * random.randrange(6), random.choice([0, 1, 2, 5, 0xFFFFFFFF, MAGIC]))
        elif kind == 2:
            struct.pack_into(">I", block, 4 * random.randrange(64), random.getrandbits(32))
        elif kind == 3:
            block = bytearray(image.get(random.choice(blocks)))
        elif kind == 4:
            block[random.randrange(0, BLOCK, 256) :] = b""
            block = block.ljust(BLOCK, b"\0")
        else:
            block = bytearray(BLOCK)
        if index or kind in (0, 1, 2):
            image.put(index, bytes(block))
        if not random.randrange(2):
            image.fix_superblock()

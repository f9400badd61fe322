"""Ways to damage the file of an overlay store."""

from __future__ import annotations

import os

BLOCK = 1024


def flip(descriptor: int, older: bytes) -> None:
    byte = os.pread(descriptor, 1, BLOCK + 17)
    os.pwrite(descriptor, bytes([byte[0] ^ 4]), BLOCK + 17)


def swap(descriptor: int, older: bytes) -> None:
    first, second = os.pread(descriptor, BLOCK, 0), os.pread(descriptor, BLOCK, BLOCK)
    os.pwrite(descriptor, second + first, 0)


def replay(descriptor: int, older: bytes) -> None:
    os.pwrite(descriptor, older, 0)


def truncate(descriptor: int, older: bytes) -> None:
    os.truncate(descriptor, BLOCK + 100)


def zero(descriptor: int, older: bytes) -> None:
    os.pwrite(descriptor, bytes(BLOCK), BLOCK)

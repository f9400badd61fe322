"""Values of formats."""

from __future__ import annotations

import struct

from hypothesis import strategies as st

from mystfuse.formats.verity import VOUCHER, VeritySuperblock

SUPERBLOCK = VeritySuperblock(data_blocks=1000, salt=bytes(range(32)), uuid=bytes(range(100, 116)))


@st.composite
def superblocks(draw: st.DrawFn) -> VeritySuperblock:
    data_block_size = 1 << draw(st.integers(9, 19))
    return VeritySuperblock(
        data_blocks=draw(st.integers(1, (1 << 63) // data_block_size)),
        # A salt that begins like this fits one superblock alone; hypothesis finds the word in the code.
        salt=draw(st.binary(max_size=256).filter(lambda salt: not salt.startswith(VOUCHER))),
        uuid=draw(st.binary(min_size=16, max_size=16)),
        hash_type=draw(st.sampled_from([0, 1])),
        algorithm=draw(st.sampled_from(["sha256", "sha512"])),
        data_block_size=data_block_size,
        hash_block_size=1 << draw(st.integers(9, 19)),
    )


def patched(data: bytes, offset: int, layout: str, value: int | bytes) -> bytes:
    """``data`` with one field overwritten."""
    changed = bytearray(data)
    struct.pack_into(layout, changed, offset, value)
    return bytes(changed)


@st.composite
def damaged(draw: st.DrawFn, good: bytes) -> bytes:
    """``good`` with a few ranges overwritten by random bytes, mostly in the fields."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        offset = draw(st.integers(0, 120) | st.integers(0, len(good) - 1))
        for index, byte in enumerate(draw(st.binary(min_size=1, max_size=16))):
            if offset + index < len(data):
                data[offset + index] = byte
    return bytes(data)

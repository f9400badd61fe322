"""The layout of ``.mystfuse/written``."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mystfuse.errors import FormatError
from mystfuse.overlay.overlay import Overlay
from mystfuse.overlay.written_format import HEADER, WrittenHeader

SIZES = [1024 << shift for shift in range(7)]


@given(st.sampled_from(SIZES), st.integers(0, (1 << 32) - 1))
def test_a_header_is_what_was_packed(block_size: int, count: int) -> None:
    header = WrittenHeader(block_size, count)
    packed = header.pack()
    assert len(packed) == HEADER.size == 32
    assert WrittenHeader.parse(packed + b"more") == header
    assert header.data_offset % block_size == header.data_offset % 4096 == 0
    assert 0 <= header.data_offset - 32 - 4 * count < max(block_size, 4096)
    assert header.size == header.data_offset + count * block_size


@given(st.binary(max_size=40))
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        WrittenHeader.parse(data)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (0, b"x", "magic"),
        (8, b"\2", "version 2"),
        (12, b"\1", "impossible"),
        (20, b"\1", "impossible"),
        (24, b"\1", " at "),
    ],
)
def test_fields_are_checked(place: int, value: bytes, said: str) -> None:
    packed = bytearray(WrittenHeader(4096, 5).pack())
    packed[place : place + 1] = value
    with pytest.raises(FormatError, match=said):
        WrittenHeader.parse(bytes(packed))


def test_a_snapshot_knows_what_it_has() -> None:
    overlay = Overlay(1024, 1 << 20)
    blocks = {number: bytes([number]) * 1024 for number in range(1, 6)}
    overlay.commit(blocks, (), False)
    snapshot = overlay.snapshot()
    candidates = snapshot.candidates()
    overlay.commit({2: b"x" * 1024, 9: b"y" * 1024}, [3], False)
    snapshot.commit({11: b"z" * 1024, 4: b"w" * 1024}, [5], False)
    for numbers in ([*candidates, 11], snapshot.candidates()):
        assert sorted(number for number in numbers if snapshot.has(number)) == [1, 2, 3, 4, 11]
        assert len(set(numbers)) == len(numbers)
    assert not snapshot.has(9) and snapshot.get(9) is None
    snapshot.close()

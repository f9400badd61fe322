"""Bytes of an answer, which come in parts: whole when each has come once."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mystfuse.remote.answer_bytes import AnswerBytes
from mystfuse.remote.protocol import ProtocolError


@given(st.data(), st.integers(1, 200), st.integers(0, 1 << 62))
def test_parts_in_any_order_make_the_whole(data: st.DataObject, length: int, offset: int) -> None:
    content = bytes(number % 251 for number in range(length))
    cuts = sorted({0, length, *data.draw(st.lists(st.integers(0, length), max_size=20))})
    parts = data.draw(st.permutations([*pairwise(cuts)]))
    answer = AnswerBytes(offset, length)
    for number, (start, end) in enumerate(parts):
        assert not answer.is_whole
        answer.add(offset + start, content[start:end])
        for again_start, again_end in parts[: number + 1]:
            with pytest.raises(ProtocolError, match="twice"):
                answer.add(offset + again_start, content[again_start:again_end])
    assert answer.is_whole and answer.data == content


@given(st.integers(0, 100), st.integers(1, 50), st.integers(0, 200), st.integers(0, 60))
def test_nothing_goes_outside(offset: int, length: int, start: int, size: int) -> None:
    answer = AnswerBytes(offset, length)
    if size and offset <= start and start + size <= offset + length:
        answer.add(start, b"x" * size)
        assert answer.data.count(b"x") == size
    else:
        with pytest.raises(ProtocolError, match="outside"):
            answer.add(start, b"x" * size)
    assert len(answer.data) == length

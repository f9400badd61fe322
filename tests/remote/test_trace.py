"""Traces: what is written is read, and nothing else is taken for one."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mystfuse.errors import FormatError, MystfuseError
from mystfuse.remote.trace import MAX_BYTES, MAX_RANGES, Trace, read_trace

ROOT_HASH = bytes(range(32))
HEAD = b"mystfuse-trace 1\nsize 8192\nroot-hash " + ROOT_HASH.hex().encode() + b"\n"


@given(st.lists(st.tuples(st.integers(0, 1 << 61), st.integers(1, 1 << 61)), max_size=50))
def test_traces_come_back_as_they_were(ranges: list[tuple[int, int]]) -> None:
    trace = Trace(1 << 62, ROOT_HASH, tuple(ranges))
    assert Trace.parse(trace.pack()) == trace


@pytest.mark.parametrize(
    "data, said",
    [
        (b"", "not a trace"),
        (HEAD[:-1], "not a trace"),
        (HEAD.replace(b"trace 1", b"trace 2"), "version 2"),
        (HEAD.replace(b"8192", b"0"), "line 2"),
        (HEAD + b"0 4096", "cut off"),
        (HEAD + b"0 4096\n\n", "line 5"),
        (HEAD + b"0 0\n", "line 4"),
        (HEAD + b"4096 4097\n", "line 4"),
        (HEAD + b"-1 10\n", "line 4"),
        (HEAD + b"0  10\n", "line 4"),
        (HEAD + b"0 10\r\n", "line 4"),
        (HEAD + "\u0660 \u0661\n".encode(), "line 4"),
        (HEAD + b"0 1\n" * (MAX_RANGES + 1), "ranges"),
        (HEAD + b"0" * MAX_BYTES, "bytes"),
    ],
)
def test_what_is_none_is_refused_with_the_line(data: bytes, said: str) -> None:
    with pytest.raises(FormatError, match=said):
        Trace.parse(data)


@given(st.binary(max_size=40), st.integers(0, len(HEAD) + 8))
def test_noise_is_refused_or_a_trace(noise: bytes, position: int) -> None:
    data = HEAD + b"0 4096\n"
    try:
        trace = Trace.parse(data[:position] + noise + data[position:])
    except FormatError:
        return
    assert all(0 <= offset < offset + length <= trace.size for offset, length in trace.ranges)


def test_impossible_ones_are_not_written() -> None:
    for trace in (
        Trace(10, ROOT_HASH, ((5, 6),)),
        Trace(10, b"", ()),
        Trace(10, ROOT_HASH, ((0, 1),) * (MAX_RANGES + 1)),
    ):
        with pytest.raises(ValueError):
            trace.pack()


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(MystfuseError, match="missing: No such file"):
        read_trace(str(tmp_path / "missing"))
    path = tmp_path / "trace"
    path.write_bytes(HEAD + b"1 1\n")
    assert read_trace(str(path)) == Trace(8192, ROOT_HASH, ((1, 1),))
    path.write_bytes(b"nothing")
    with pytest.raises(FormatError, match="trace: not a trace"):
        read_trace(str(path))

"""Messages between daemon and fetcher: each comes back as it was, and nothing else is taken for one."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mystfuse.remote.origin import Failure
from mystfuse.remote.protocol import (
    MAX_MESSAGE,
    MAX_PART,
    MAX_READ,
    Answer,
    Done,
    Failed,
    Note,
    Opened,
    Part,
    ProtocolError,
    Question,
    Read,
    Status,
    StatusIs,
    Stored,
    parse_answer,
    parse_question,
)

QUESTIONS: list[Question] = [Read(1, 1 << 40, MAX_READ, True, 1.5), Read(2, 0, 1), Read(3, 5, 1, hint=True), Status(7)]
ANSWERS: list[Answer] = [
    Opened(1 << 40, '"etag"', "https://host/image", bytes(range(256)) * 16), Stored(1),
    Part(2, 4096, b"x" * MAX_PART), Done(2),
    Failed(0, Failure.ABSENT, "https://host/image: 404"), StatusIs(3, {"requests": 9}), Note(logging.WARNING, "slow"),
]  # fmt: skip


def test_messages_come_back_as_they_were() -> None:
    assert [parse_question(question.pack()) for question in QUESTIONS] == QUESTIONS
    assert [parse_answer(answer.pack()) for answer in ANSWERS] == ANSWERS
    assert all(len(answer.pack()) <= MAX_MESSAGE for answer in ANSWERS)


@given(st.binary(max_size=64), st.sampled_from([message.pack() for message in (*QUESTIONS, *ANSWERS)]), st.data())
def test_what_is_none_is_refused(noise: bytes, message: bytes, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(message)))
    for packet in (noise, message[:position] + noise, message[:position] + noise + message[position + len(noise) :]):
        for parse in (parse_question, parse_answer):
            try:
                parsed = parse(packet)
            except ProtocolError:
                continue
            assert len(getattr(parsed, "text", "")) <= 1000
            assert getattr(parsed, "text", "").isprintable()


@pytest.mark.parametrize("read", [Read(1, 0, 0), Read(1, 0, MAX_READ + 1), Read(1, (1 << 62) - 1, 2), Read(0, 0, 1)])
def test_impossible_reads_are_refused(read: Read) -> None:
    with pytest.raises(ProtocolError):
        parse_question(read.pack())


def test_texts_are_one_line() -> None:
    assert parse_answer(Failed(1, Failure.BUSY, "a\nb\x1b[31m" + "x" * 9999).pack()) == Failed(
        1, Failure.BUSY, "a?b?[31m" + "x" * 992
    )

"""The process that starts workers goes on, whatever keeps it from that for a while."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from mystfuse.remote.protocol import MAX_MESSAGE, Note, parse_answer
from mystfuse.remote.supervisor import Ending, supervise


def test_a_process_that_cannot_be_started_is_started_later(monkeypatch: pytest.MonkeyPatch) -> None:
    fork, failures = os.fork, [errno.EAGAIN, errno.ENOMEM]

    def fork_or_fail() -> int:
        if failures:
            number = failures.pop()
            raise OSError(number, os.strerror(number))
        return fork()

    monkeypatch.setattr(os, "fork", fork_or_fail)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        supervise(theirs, lambda: Ending.CLOSED)
        note = parse_answer(ours.recv(MAX_MESSAGE))
    assert not failures and isinstance(note, Note) and "Cannot allocate memory; it is started again" in note.text

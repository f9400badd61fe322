"""What is logged at WARNING or above fails a test that has not announced it, by ``@pytest.mark.logs(PATTERN, ...)``.

That holds for every record of the test's own process, and for internal errors of the daemons that ``mounted`` starts.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytest

_announced: list[str] = []
"""By the running test."""


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(f"{record.name}: {record.getMessage()}")


def fail_if_unannounced(messages: Iterable[str]) -> None:
    """Fail the running test when it has not announced one of the messages."""
    left = [message for message in messages if not any(re.search(pattern, message) for pattern in _announced)]
    if left:
        pytest.fail("logged and not announced by @pytest.mark.logs:\n" + "\n".join(left))


@contextmanager
def judged(item: pytest.Item) -> Iterator[None]:
    """The block's log records and mounts are those of this test."""
    _announced[:] = [pattern for marker in item.iter_markers("logs") for pattern in marker.args]
    collector = _Collector()
    logging.getLogger().addHandler(collector)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(collector)
    fail_if_unannounced(collector.messages)

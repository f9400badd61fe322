"""Threads that keep the processor busy."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest


@pytest.fixture
def busy_threads() -> Iterator[ThreadPoolExecutor]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            yield pool
    finally:
        sys.setswitchinterval(interval)

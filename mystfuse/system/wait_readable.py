"""Waiting for descriptors: for data, for a request on /dev/fuse, or, on a pidfd, for the end of a process."""

from __future__ import annotations

import math
import select
from collections.abc import Iterable


def wait_readable(descriptors: Iterable[int], seconds: float = math.inf) -> set[int]:
    """Wait until one of the descriptors can be read; returns those that can, none when ``seconds`` have passed."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, _ in poll.poll(None if seconds == math.inf else seconds * 1000)}

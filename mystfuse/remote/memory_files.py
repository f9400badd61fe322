"""Memory files that outlive a worker: what it has stored, and which image that is of."""

from __future__ import annotations

import os


class Memory:
    """Descriptors that the supervisor of a fetcher keeps."""

    def __init__(self) -> None:
        self.data, self.map, self.image = (os.memfd_create(f"mystfuse-{name}") for name in ("data", "map", "image"))

    def close(self) -> None:
        for descriptor in (self.data, self.map, self.image):
            os.close(descriptor)

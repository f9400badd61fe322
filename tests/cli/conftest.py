"""An image to be signed, and keys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def image(small_image: Path, tmp_path: Path) -> Path:
    """An unsigned image of its own."""
    path = tmp_path / "app.img"
    path.write_bytes(small_image.read_bytes())
    return path


@pytest.fixture
def pair(make_keys: Callable[..., tuple[Path, Path]]) -> str:
    """A key pair as ``--sign`` takes it."""
    public, private = make_keys("sign", 2048, 65537)
    return f"{public}:{private}"

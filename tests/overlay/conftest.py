"""Overlay stores that write at once."""

from __future__ import annotations

import pytest

from mystfuse.overlay.space import Space


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything goes to the store as soon as it is written, as if memory were always short."""
    monkeypatch.setattr(Space, "_is_short", lambda self: True)

"""The golden images."""

from __future__ import annotations

from pathlib import Path

PROJECT = Path(__file__).parents[2]
DATA = PROJECT / "tests/data"
GOLDEN_NAMES = ("plain-1024", "plain-4096", "signed-1024", "signed-4096")

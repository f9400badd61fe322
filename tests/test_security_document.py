"""docs/security.md: each promise names tests, and they are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_test_that_is_named_is_there() -> None:
    text = (ROOT / "docs/security.md").read_text()
    named = set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text))
    assert len(named) > 30
    gone = [f"{file}::{test}" for file, test in named if f"def {test}(" not in (ROOT / file).read_text()]
    assert gone == []


def test_every_promise_has_a_test() -> None:
    text = (ROOT / "docs/security.md").read_text()
    promised = text[text.index("## What is promised") : text.index("## What is not promised")]
    rows = [
        line for line in promised.splitlines() if line.startswith("|") and "---" not in line and "shown by" not in line
    ]
    assert len(rows) > 20
    assert [row for row in rows if "`tests/" not in row.rsplit("|", 2)[1]] == []

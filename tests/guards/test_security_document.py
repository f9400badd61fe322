"""docs/security.md: each promise names tests, which are there, and has a guard whose removal makes one of them fail.

That they do, ``python -m tests.guards`` shows: it takes about ten minutes, and so is no part of the suite.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

from tests.guards.__main__ import GUARDS, table

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/security.md").read_text()
NO_GUARD = "(no single guard: "
"""The words with which a promise says why it has no guard of its own."""


def promises() -> list[str]:
    """The rows of the tables of promises."""
    promised = TEXT[TEXT.index("## What is promised") : TEXT.index("## What is not promised")]
    return [
        line for line in promised.splitlines() if line.startswith("|") and "---" not in line and "shown by" not in line
    ]


def named_in(text: str) -> set[str]:
    """The tests that it names, as pytest does, below tests/."""
    return set(re.findall(r"`tests/([\w/]+\.py::\w+)`", text))


@cache
def collected_from(file: str) -> frozenset[str]:
    """The tests that pytest collects from a file: its functions."""
    found = [node for node in ast.parse((ROOT / "tests" / file).read_text()).body if isinstance(node, FUNCTIONS)]
    return frozenset(node.name for node in found if node.name.startswith("test_"))


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def gone(tests: set[str]) -> list[str]:
    """The named tests that do not exist."""
    return sorted(test for test in tests if test.partition("::")[2] not in collected_from(test.partition("::")[0]))


def test_every_named_test_exists() -> None:
    named = named_in(TEXT)
    assert len(named) > 100
    assert gone(named) == []


def test_every_promise_has_a_test() -> None:
    assert len(promises()) > 60
    assert [row for row in promises() if not named_in(row.rsplit("|", 2)[1])] == []


def test_every_guard_is_in_its_place() -> None:
    assert len(GUARDS) >= 40
    assert len({guard.name for guard in GUARDS}) == len(GUARDS)
    counts = {guard.name: (ROOT / guard.file).read_text().count(guard.code) for guard in GUARDS}
    assert {name: count for name, count in counts.items() if count != 1} == {}
    for guard in GUARDS:
        assert guard.code != guard.without and guard.tests, guard.name
        if guard.file.endswith(".py"):
            # A piece that breaks the file would let any test fail.
            ast.parse((ROOT / guard.file).read_text().replace(guard.code, guard.without))


def test_every_test_of_a_guard_exists_and_shows_a_promise() -> None:
    named = {test for guard in GUARDS for test in guard.tests}
    assert gone(named) == []
    assert named - {test for row in promises() for test in named_in(row)} == set()


def test_every_promise_has_a_guard_or_says_why_not() -> None:
    guarded = {test for guard in GUARDS for test in guard.tests}
    assert [row for row in promises() if bool(named_in(row) & guarded) == (NO_GUARD in row)] == []


def test_the_table_of_guards_is_the_list_of_guards() -> None:
    """``python -m tests.guards --table`` prints it."""
    assert table() in (ROOT / "docs/guards.md").read_text()

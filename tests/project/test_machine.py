"""A test is skipped only if it fails for something that the machine lacks."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = "pytester"

TESTS = """
import subprocess

def test_passes():
    pass

def test_wants_it():
    raise FileNotFoundError(2, "No such file or directory", "sometool")

def test_is_broken():
    assert 1 == 2

def test_starts_it():
    subprocess.run(["env", "sometool", "--option"], check=True)
"""
CONFTEST = """
import sys
sys.path[:0] = {paths!r}
from tests.support import machine
machine.NEEDS = ({needs})
from conftest_of_mystfuse import *
"""
NEED = 'machine.Need("sometool", lambda: "not installed", "No such file or directory: .sometool", "sometool --opt"),'
TESTS_OF_OURS = Path(__file__).parents[1]


@pytest.fixture
def suite(pytester: pytest.Pytester, request: pytest.FixtureRequest) -> pytest.Pytester:
    """Four tests, under our conftest.py, on a machine that lacks the parameter's needs."""
    paths = [str(TESTS_OF_OURS.parent), str(TESTS_OF_OURS.parent / "scripts"), str(pytester.path)]
    pytester.makepyfile(
        test_four=TESTS,
        conftest=CONFTEST.format(paths=paths, needs=request.param),
        conftest_of_mystfuse=(TESTS_OF_OURS / "conftest.py").read_text(),
    )
    return pytester


@pytest.mark.parametrize("suite", [NEED], indirect=True)
def test_what_the_machine_lacks_is_reported_and_skips_its_tests_alone(suite: pytest.Pytester) -> None:
    result = suite.runpytest_subprocess("-rs")
    result.assert_outcomes(passed=1, skipped=2, failed=1)
    result.stdout.fnmatch_lines(["what cannot be tested on this machine*", "  sometool  not installed"])
    result.stdout.fnmatch_lines(["SKIPPED * no sometool: not installed", "SKIPPED * no sometool: not installed"])


@pytest.mark.parametrize("suite", [""], indirect=True)
def test_nothing_is_skipped_where_nothing_is_lacking(suite: pytest.Pytester) -> None:
    result = suite.runpytest_subprocess("--complete")
    result.assert_outcomes(passed=1, failed=3)


@pytest.mark.parametrize("suite", [NEED], indirect=True)
def test_a_complete_run_refuses_a_machine_that_lacks_something(suite: pytest.Pytester) -> None:
    result = suite.runpytest_subprocess("--complete")
    assert result.ret == 1
    assert "sometool  not installed" in str(result.stdout) + str(result.stderr)
    assert "passed" not in str(result.stdout)


def test_words_that_are_no_utf_8_end_no_other_test(pytester: pytest.Pytester) -> None:
    paths = [str(TESTS_OF_OURS.parent), str(TESTS_OF_OURS.parent / "scripts"), str(pytester.path)]
    pytester.makepyfile(
        test_two="def test_odd():\n    assert False, '\\udce9'\n\ndef test_other():\n    pass\n",
        conftest=CONFTEST.format(paths=paths, needs=""),
        conftest_of_mystfuse=(TESTS_OF_OURS / "conftest.py").read_text(),
    )
    pytester.runpytest_subprocess("-n1").assert_outcomes(passed=1, failed=1)


def test_a_warning_that_is_not_announced_fails_its_test(pytester: pytest.Pytester) -> None:
    paths = [str(TESTS_OF_OURS.parent), str(TESTS_OF_OURS.parent / "scripts"), str(pytester.path)]
    test = "import logging\nimport pytest\ndef test_silent():\n    logging.error('odd 7')\n"
    announced = "@pytest.mark.logs(r'odd \\d')\ndef test_announced():\n    logging.error('odd 7')\n"
    pytester.makepyfile(
        test_logs=test + announced,
        conftest=CONFTEST.format(paths=paths, needs=""),
        conftest_of_mystfuse=(TESTS_OF_OURS / "conftest.py").read_text(),
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=2, errors=1)

"""Patterns of files to leave out: git decides what they mean."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest

from mystfuse.build.exclude_patterns import Pattern, is_excluded, parse_lines
from mystfuse.errors import UsageError
from tests.support.commands import run

NAMES = ("a", "b", "ab", "b.c", ".git", "x y", "#a", "!a", "*", "[a]", "a-b", "é", "A", "-", "]", "\\", "foo", "a b ")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git work tree with all names in each of three levels; some are directories."""
    root = tmp_path_factory.mktemp("patterns")
    run("git", "init", "-q", root)
    for name in ("a", "foo", "b.c"):
        for below in ("a", "foo"):
            (root / name / below).mkdir(parents=True)
            for last in NAMES:
                (root / name / below / last).touch()
        for last in NAMES:
            if last not in ("a", "foo"):
                (root / name / last).touch()
    for last in NAMES:
        if last not in ("a", "foo", "b.c", ".git"):
            (root / last).touch()
    return root


def paths_in(root: Path) -> list[tuple[bytes, bool]]:
    found = []
    for directory, directories, files in os.walk(os.fsencode(root)):
        if directory == os.fsencode(root):
            directories.remove(b".git")
        for names, is_directory in ((directories, True), (files, False)):
            found += [
                (os.path.relpath(os.path.join(directory, name), os.fsencode(root)), is_directory) for name in names
            ]
    return found


def by_git(root: Path, lines: bytes) -> set[bytes]:
    """The paths that git ignores."""
    (root / ".git/info/exclude").write_bytes(lines)
    asked = b"\0".join(path for path, _ in paths_in(root)) + b"\0"
    (root / ".git/asked").write_bytes(asked)
    command = 'git -C "$0" check-ignore --no-index -z --stdin < "$0/.git/asked"'
    said = run("sh", "-c", command, root, check=False)
    assert said.returncode in (0, 1), said.stderr
    return {path for path in os.fsencode(said.stdout).split(b"\0") if path}


def by_us(root: Path, lines: bytes) -> set[bytes]:
    patterns = parse_lines(lines)
    out: set[bytes] = set()
    for path, is_directory in sorted(paths_in(root)):
        if os.path.dirname(path) in out or is_excluded(patterns, path, is_directory):
            out.add(path)
    return out


@pytest.mark.parametrize(
    "lines",
    [
        "a", "/a", "a/", "/a/", "a/*", "a/**", "**/a", "**/a/", "**/foo/b", "a/**/b", "foo/a", "/foo/a", "foo/a/",
        "*", "*/", "*b", "b.*", "?", "a?", "[ab]", "[!a]", "[^a]", "[a-c]*", "[]]", "[!]]", "[a\\-b]", "[a-]", "[-a]",
        "[[:alpha:]]", "[[:upper:]]", "[[:punct:]]", "[^[:alnum:]]", "a[/]a", "*a*/f*", "**", "/**", "**/", "/**/a",
        "a**", "**a", "a**b", "foo/**/**/b", "a/***", "*/foo", "/*/foo", "/*/*/b", "foo/**/", "\\*", "\\#a", "\\!a",
        "#a", "\\[a\\]", "\\\\", "x y", "x y ", "a b\\ ", "\\a", "é", "A", "-", "*\n!b", "/*\n!/a",
        "/*\n!/a\n/a/*\n!/a/b",
        "a\n!a/b", "b\n!/a/foo/b", "!a\na", "foo/\n!foo/", "\n\n# comment\n\nab\n", "[a-c", "a//b", "//a", "a/b/c/d",
        "*.c", "[\\]]", "[z-a]", "**/**/b", "a/**/**",
    ],
)  # fmt: skip
def test_git_agrees(lines: str, tree: Path) -> None:
    try:
        found = by_us(tree, lines.encode())
    except UsageError:
        # git takes patterns that can never match.
        assert not by_git(tree, lines.encode())
        return
    assert found == by_git(tree, lines.encode())


@hypothesis.settings(max_examples=150, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(lines=st.lists(st.text(alphabet="ab/*?[]!-foo.\\", min_size=1, max_size=9), min_size=1, max_size=3))
def test_git_agrees_about_any_patterns(lines: list[str], tree: Path) -> None:
    text = "\n".join(lines).encode()
    try:
        found = by_us(tree, text)
    except UsageError:
        return
    assert found == by_git(tree, text)


@pytest.mark.parametrize("text", ["", "/", "!", "!/", "a[", "[a", "[]", "[a-", "a\\", "[[:nothing:]]", "[\\"])
def test_patterns_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="pattern"):
        Pattern.parse(text.encode())


def test_a_file_of_patterns_has_comments_and_spaces() -> None:
    patterns = parse_lines(b"# no\n\n\\#yes\nspace  \nkept\\ \n")
    assert [is_excluded(patterns, name, False) for name in (b"# no", b"#yes", b"space", b"kept ", b"kept")] == [
        False, True, True, True, False,
    ]  # fmt: skip


def test_a_pattern_takes_no_exponential_time() -> None:
    pattern = Pattern.parse(b"*a*a*a*a*b")
    assert not is_excluded([pattern], b"a" * 255, False)

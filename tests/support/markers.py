"""Which tests need a mount, root or other projects' tools: found by what their code and their fixtures can reach.

pyproject.toml says what the markers mean. A test that has none of them otherwise is marked ``unit``.
"""

from __future__ import annotations

import functools
import re
import types
from collections.abc import Iterator
from typing import Any

import pytest

DERIVED = {
    # `mkext2 --encrypt` gives mke2fs a private FUSE file; `exec` and `run` make mounts of their own.
    "fuse": re.compile(
        r"mounted|clear_mount|mountpoint|path_with_mystfuse|pyfuse3"
        r"|'(mount|exec|exec-sgx|exec-linux|run)|'.*(--encrypt|mystfuse_mount|fusermount).*"
    ),
    "root": re.compile(
        r"USER|ordinary_user|needs_root|[lf]?chown|mknod|drop_caches|caches_dropped|OWN_MOUNTS|chroot|open_tmp_path.*"
        r"|'(setpriv|losetup)|'.*unshare.*"
    ),
    # Each start of Python costs a quarter of a second.
    "commands": re.compile(r"'(mystfuse|-m|-c)|pytester"),
    "peers": re.compile(
        r"other_file|'(cryptsetup|veritysetup|qemu-img|qemu-io|nbdkit|nbdcopy|softhsm2-util|swtpm|skopeo|umoci|podman"
        r"|docker-registry|nginx|squid)"
    ),
}
"""By marker: names of functions, fixtures and methods; after a quote, words of command lines."""


def _is_ours(name: object) -> bool:
    return isinstance(name, str) and name.startswith("tests.")


def _strings(value: Any) -> Iterator[str]:
    """The strings in a constant, each after a quote."""
    if isinstance(value, str):
        yield f"'{value}"
    elif isinstance(value, (tuple, list, frozenset)):
        for part in value:
            yield from _strings(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from _strings(part)


@functools.cache
def _words(code: types.CodeType) -> frozenset[str]:
    """The names and string constants in a function, with those of the functions in it."""
    found = {*code.co_names, *code.co_freevars}
    for constant in code.co_consts:
        found |= _words(constant) if isinstance(constant, types.CodeType) else {*_strings(constant)}
    return frozenset(found)


def _functions(value: Any) -> Iterator[types.FunctionType]:
    """Functions of tests/ that can be called through a global of a test module."""
    if isinstance(value, type) and _is_ours(value.__module__):
        for base in value.__mro__:
            for member in vars(base).values():
                member = getattr(member, "__func__", getattr(member, "fget", member))
                if isinstance(member, types.FunctionType) and _is_ours(member.__module__):
                    yield member
        return
    value = getattr(value, "__wrapped__", value)
    if isinstance(value, types.FunctionType) and _is_ours(value.__module__):
        yield value


@functools.cache
def _reached(function: types.FunctionType) -> frozenset[str]:
    """The words of a function and of everything in tests/ that it can call."""
    words: set[str] = set()
    pending, seen = [function], {function}
    while pending:
        current = pending.pop()
        own = _words(current.__code__)
        words |= own
        for name in own:
            value = current.__globals__.get(name)
            if _is_ours(current.__module__):
                words.update(_strings(value))
            values = [value]
            if isinstance(value, types.ModuleType) and _is_ours(value.__name__):
                values = [vars(value)[word] for word in own if word in vars(value)]
            for reached in (found for each in values for found in _functions(each)):
                if reached not in seen:
                    seen.add(reached)
                    pending.append(reached)
    return frozenset(words)


def _words_of(item: pytest.Function) -> set[str]:
    words = {*item.fixturenames, *_reached(item.function)}
    for definitions in item._fixtureinfo.name2fixturedefs.values():
        for definition in definitions:
            for function in _functions(definition.func):
                words |= _reached(function)
    if hasattr(item, "callspec"):
        words.update(_strings(list(item.callspec.params.values())))
    return words


def mark(items: list[pytest.Item]) -> None:
    """Give each test the markers that follow from what it reaches."""
    for item in items:
        if isinstance(item, pytest.Function):
            words = _words_of(item)
            for marker, pattern in DERIVED.items():
                if any(map(pattern.fullmatch, words)):
                    item.add_marker(marker)
        if not any(item.get_closest_marker(name) for name in (*DERIVED, "slow")):
            item.add_marker("unit")

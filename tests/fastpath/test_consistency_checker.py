"""The judge of consistency finds every kind of wrong answer, and no right one: by logs made up for it."""

from __future__ import annotations

import errno
import stat

import pytest

from tests.support.consistency.checker import Checker
from tests.support.consistency.records import FIRST_NAME, NO_VERSION, How, Kind, Layout, Record
from tests.support.consistency.registers import Order, Register

FILE = 1
"""Of small cells."""
ATTRIBUTES = 2
NAME, OTHER = FIRST_NAME, FIRST_NAME + 1
REGULAR = stat.S_IFREG | 0o644
CELL = Layout["SMALL_CELL"]


def call(
    kind: Kind, number: int, start: int, end: int, *values: int, error: int = 0, how: int = How.BY_CACHE
) -> Record:
    return Record(kind, error, number, how, start, end, (*values, *[0] * (6 - len(values))))


def made(number: int, ino: int, start: int = 10) -> Record:
    return call(Kind.DO_CREATE, number, start, start + 5, ino, REGULAR)


def attributes(number: int, start: int, end: int, ino: int, mode: int = REGULAR, links: int = 1, size: int = 0,
               owner: int = 0, time: int = 0, how: int = How.BY_CACHE) -> Record:  # fmt: skip
    return call(Kind.SEE_ATTRIBUTES, number, start, end, ino, mode, links, size, owner << 32 | owner, time, how=how)


def absent(number: int, start: int, end: int) -> Record:
    return call(Kind.SEE_ATTRIBUTES, number, start, end, error=errno.ENOENT)


def written(cell: int, version: int, start: int, end: int, cells: int = 1, done: int | None = None) -> Record:
    return call(Kind.DO_WRITE, FILE, start, end, cell, cells, version, cells if done is None else done)


def seen(cell: int, start: int, end: int, *versions: int, length: int = CELL, how: int = How.BY_CACHE) -> Record:
    return call(Kind.SEE_CELL, FILE, start, end, cell, length, *versions, *[versions[0]] * (4 - len(versions)), how=how)


def listing(
    start: int, end: int, present: int, twice: int = 0, some: int = 0, ino: int = 0, fillers: int = 40
) -> Record:
    return call(Kind.SEE_LISTING, 0, start, end, present, twice, fillers, some, ino)


NAMED = [
    made(NAME, 50),
    call(Kind.DO_FILL, NAME, 100, 110, 7),
    call(Kind.DO_CHMOD, NAME, 200, 210, 0o600),
    call(Kind.DO_RENAME, NAME, 300, 310, OTHER),
    call(Kind.DO_UNLINK, OTHER, 400, 410),
]
"""A name's life: created, filled, its mode changed, moved to OTHER, removed."""
WRITTEN = [made(FILE, 60), *(written(cell, 1, 20 + cell, 20 + cell) for cell in range(4)), written(1, 5, 100, 110)]
"""A file of four cells, one of them written again."""
CHANGED = [
    made(ATTRIBUTES, 70),
    call(Kind.DO_RESIZE, ATTRIBUTES, 100, 110, 999),
    call(Kind.DO_CHOWN, ATTRIBUTES, 200, 210, 33),
    call(Kind.DO_TIME, ATTRIBUTES, 300, 310, 44),
    call(Kind.DO_XATTR, ATTRIBUTES, 400, 410, 55),
    call(Kind.DO_LINK, ATTRIBUTES, 500, 510),
]
SYMLINK = [call(Kind.DO_SYMLINK, NAME, 10, 15, 80, 21, stat.S_IFLNK | 0o777), call(Kind.DO_UNLINK, NAME, 100, 110)]


def judged(*records: Record) -> Checker:
    checker = Checker()
    checker.check(sorted(records, key=lambda record: record.start))
    return checker


RIGHT = [
    [*NAMED, absent(NAME, 1, 5), absent(NAME, 1, 20), attributes(NAME, 12, 13, 50), attributes(NAME, 50, 60, 50)],
    [*NAMED, attributes(NAME, 150, 160, 50, size=64), attributes(NAME, 205, 206, 50, 0o100600, size=64)],
    # While it is moved, either name may have it, neither or both.
    [*NAMED, absent(NAME, 305, 306), absent(OTHER, 305, 306), attributes(OTHER, 307, 308, 50, 0o100600, size=64)],
    [*NAMED, absent(NAME, 350, 360), attributes(OTHER, 350, 360, 50, 0o100600, size=64), absent(OTHER, 420, 430)],
    # It was looked up before it lost its name, and asked for its attributes after that.
    [*NAMED, attributes(OTHER, 390, 500, 50, 0o100600, links=0, size=64)],
    [*NAMED, call(Kind.SEE_OPENED, NAME, 150, 160, 50, 7, 7, REGULAR, 1, 64)],
    [*NAMED, call(Kind.SEE_OPENED, OTHER, 350, 500, 50, 7, 7, 0o100600, 0, 64)],
    [*NAMED, call(Kind.SEE_OPENED, NAME, 90, 120, 50, 0, 7, REGULAR, 1, 64)],
    [*NAMED, listing(150, 160, 1, some=1, ino=50), listing(305, 306, 0b11, 0b01), listing(420, 430, 0)],
    [*WRITTEN, seen(0, 50, 60, 1), seen(1, 50, 60, 1), seen(1, 105, 106, 1, 5), seen(1, 120, 130, 5)],
    [*WRITTEN, seen(3, 50, 60, 1), seen(4, 50, 60, 0, length=0)],
    [*WRITTEN, call(Kind.DO_RESIZE, FILE, 200, 210, 0), seen(1, 205, 206, 0), seen(1, 220, 230, 0, length=0)],
    # Behind the end, made longer: a hole.
    [*WRITTEN, written(6, 9, 200, 210), seen(5, 220, 230, 0), seen(6, 220, 230, 9)],
    [*CHANGED, attributes(ATTRIBUTES, 150, 160, 70, size=999)],
    [*CHANGED, attributes(ATTRIBUTES, 250, 260, 70, size=999, owner=33)],
    [*CHANGED, attributes(ATTRIBUTES, 600, 610, 70, links=2, size=999, owner=33, time=44)],
    [*CHANGED, call(Kind.SEE_XATTR, ATTRIBUTES, 350, 360, 0), call(Kind.SEE_XATTR, ATTRIBUTES, 420, 430, 55)],
    [*SYMLINK, call(Kind.SEE_TARGET, NAME, 50, 60, 21), call(Kind.SEE_TARGET, NAME, 120, 130, error=errno.ENOENT)],
    [*SYMLINK, call(Kind.SEE_OPENED, NAME, 50, 60, error=errno.ELOOP)],
    [made(NAME, 50), call(Kind.SEE_TARGET, NAME, 50, 60, error=errno.EINVAL)],
    # Two names of one file: moving one onto the other changes nothing.
    [made(NAME, 50), call(Kind.DO_LINK, NAME, 20, 30, OTHER), call(Kind.DO_RENAME, NAME, 40, 50, OTHER),
     attributes(NAME, 60, 70, 50, links=2), attributes(OTHER, 60, 70, 50, links=2)],
    [made(NAME, 50), made(OTHER, 51, 20), call(Kind.DO_EXCHANGE, NAME, 40, 50, OTHER),
     attributes(NAME, 60, 70, 51), attributes(OTHER, 60, 70, 50)],
]  # fmt: skip

WRONG = {
    "a name that is gone": [*NAMED, attributes(NAME, 320, 330, 50, 0o100600, size=64)],
    "a name that is absent, kept": [*NAMED, absent(NAME, 150, 160)],
    "a new name, not seen": [*NAMED, absent(OTHER, 320, 330)],
    "a name before it was made": [*NAMED, attributes(NAME, 1, 5, 50)],
    "another inode": [*NAMED, attributes(NAME, 150, 160, 51, size=64)],
    "an old mode": [*NAMED, attributes(NAME, 220, 230, 50, size=64)],
    "a mode before it was set": [*NAMED, attributes(NAME, 150, 160, 50, 0o100600, size=64)],
    "an old size": [*CHANGED, attributes(ATTRIBUTES, 150, 160, 70)],
    "an old owner": [*CHANGED, attributes(ATTRIBUTES, 220, 230, 70, size=999)],
    "an old time": [*CHANGED, attributes(ATTRIBUTES, 320, 330, 70, size=999, owner=33, time=43)],
    "old links": [*CHANGED, attributes(ATTRIBUTES, 520, 530, 70, size=999, owner=33, time=44)],
    "an old attribute": [*CHANGED, call(Kind.SEE_XATTR, ATTRIBUTES, 420, 430, 0)],
    "an old cell": [*WRITTEN, seen(1, 120, 130, 1)],
    "a cell before it was written": [*WRITTEN, seen(1, 50, 60, 5)],
    "a torn cell": [*WRITTEN, seen(1, 120, 130, 5, 1)],
    "another cell": [*WRITTEN, seen(1, 50, 60, NO_VERSION)],
    "zeros": [*WRITTEN, seen(1, 50, 60, 0)],
    "part of a cell": [*WRITTEN, seen(1, 50, 60, 1, length=100)],
    "an early end": [*WRITTEN, seen(1, 50, 60, 0, length=0)],
    "data behind the end": [*WRITTEN, call(Kind.DO_RESIZE, FILE, 200, 210, CELL), seen(1, 220, 230, 5)],
    "old data in a hole": [*WRITTEN, call(Kind.DO_RESIZE, FILE, 200, 210, CELL),
                           call(Kind.DO_RESIZE, FILE, 220, 230, 4 * CELL), seen(1, 240, 250, 5)],
    "an old target": [*SYMLINK, call(Kind.SEE_TARGET, NAME, 120, 130, 21)],
    "another target": [*SYMLINK, call(Kind.SEE_TARGET, NAME, 50, 60, 20)],
    "no symbolic link": [*SYMLINK, call(Kind.SEE_TARGET, NAME, 50, 60, error=errno.EINVAL)],
    "an open file that changes": [*NAMED, call(Kind.SEE_OPENED, OTHER, 350, 500, 50, 7, 8, 0o100600, 0, 64)],
    "an open file that is emptied": [*NAMED, call(Kind.SEE_OPENED, OTHER, 350, 500, 50, 7, 0, 0o100600, 0, 64)],
    "a name opened that is gone": [*NAMED, call(Kind.SEE_OPENED, NAME, 320, 330, 50, 7, 7, 0o100600, 1, 64)],
    "a file that opens as a link": [*NAMED, call(Kind.SEE_OPENED, NAME, 150, 160, error=errno.ELOOP)],
    "a handle that is lost": [*NAMED, call(Kind.SEE_OPENED, NAME, 150, 160, error=errno.ESTALE)],
    "a listing without a name": [*NAMED, listing(150, 160, 0)],
    "a listing with a name that is gone": [*NAMED, listing(420, 430, 0b10)],
    "a name twice": [*NAMED, listing(150, 160, 1, 1)],
    "a listing with another inode": [*NAMED, listing(150, 160, 1, some=1, ino=51)],
    "a listing that lacks a name": [*NAMED, listing(150, 160, 1, fillers=39)],
    "a read that fails": [*WRITTEN, call(Kind.SEE_CELL, FILE, 50, 60, error=errno.EIO)],
    "a look that fails": [*NAMED, call(Kind.SEE_ATTRIBUTES, NAME, 150, 160, error=errno.EIO)],
    "a change that fails": [*NAMED, call(Kind.DO_CHMOD, NAME, 240, 250, error=errno.EIO)],
}  # fmt: skip

DISORDERED = {
    "a cell": [
        made(FILE, 60),
        written(0, 1, 20, 30),
        written(0, 2, 100, 200),
        seen(0, 110, 120, 2),
        seen(0, 130, 140, 1),
    ],
    "a mode": [*NAMED, attributes(NAME, 201, 202, 50, 0o100600, size=64), attributes(NAME, 203, 204, 50, size=64)],
    "a name": [*NAMED, absent(NAME, 301, 302), attributes(NAME, 303, 304, 50, 0o100600, size=64)],
}


@pytest.mark.parametrize("records", RIGHT)
def test_what_was_true_is_right(records: list[Record]) -> None:
    assert judged(*records).descriptions == []


@pytest.mark.parametrize("records", WRONG.values(), ids=WRONG)
def test_what_was_never_true_is_found(records: list[Record]) -> None:
    checker = judged(*records)
    assert checker.counts["violations"] == 1 and checker.total == len(records)


@pytest.mark.parametrize("records", DISORDERED.values(), ids=DISORDERED)
def test_a_step_back_is_found(records: list[Record]) -> None:
    """Two reads, one after the other, within the call that changes what they read: the second sees the older state."""
    checker = judged(*records)
    assert (checker.counts["violations"], checker.counts["out of order"]) == (0, 1)


def test_a_write_that_fails_may_show_for_a_moment() -> None:
    full = call(Kind.DO_WRITE, FILE, 200, 210, 1, 9, 9, 0, error=errno.ENOSPC)
    for cell, wrong in (
        (seen(1, 205, 206, 9), 0),
        (seen(1, 205, 206, 5), 0),
        (seen(1, 220, 230, 9), 1),
        (seen(8, 220, 230, 0, length=0), 0),
    ):
        checker = Checker(frozenset({errno.ENOSPC}))
        checker.check(sorted([*WRITTEN, full, cell], key=lambda record: record.start))
        assert checker.counts["violations"] == wrong


def test_a_register_knows_what_may_have_been() -> None:
    register: Register[int] = Register()
    for state, start, end in ((0, 0, 0), (1, 10, 20), (2, 30, 40), (3, 50, 60)):
        register.set(state, start, end)
    for start, end, states in (
        (1, 5, [0]),
        (1, 10, [0, 1]),
        (20, 21, [0, 1]),
        (21, 29, [1]),
        (35, 55, [1, 2, 3]),
        (70, 80, [3]),
    ):
        assert list(register.during(start, end)) == states, (start, end)


def test_the_order_of_reads_side_by_side_is_free() -> None:
    order = Order()
    assert order.take([2], 10, 30)
    assert order.take([1], 20, 25)
    # The second has ended, the first has not.
    assert order.take([1, 2], 26, 29)
    assert not order.take([1], 31, 32)
    assert order.take([1, 4], 33, 34)

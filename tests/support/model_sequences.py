"""The strategies from which hypothesis draws sequences of operations."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.support.model.contents import At, boundaries
from tests.support.model.handle_operations import (
    ChmodHandle,
    CloseHandle,
    LinkHandle,
    OpenHandle,
    OpenNameless,
    ReadHandle,
    StatHandle,
    SyncHandle,
    TruncateHandle,
    WriteHandle,
)
from tests.support.model.nodes import Node
from tests.support.model.operations import (
    ACLS,
    Chmod,
    Chown,
    Copy,
    Create,
    Drain,
    Fill,
    GetFlags,
    GetXattr,
    Link,
    List,
    ListXattr,
    Mkdir,
    Mknod,
    Open,
    Operation,
    Punch,
    Read,
    Readlink,
    RemoveXattr,
    Rename,
    Rmdir,
    Seek,
    SetAcl,
    SetFlags,
    SetXattr,
    Symlink,
    Truncate,
    Unlink,
    Utime,
    Write,
    is_numbered,
    numbered_name,
)
from tests.support.model.results import (
    ACCESS_ACL,
    CAPABILITY,
    DEFAULT_ACL,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    shorten,
)
from tests.support.model_pairs import Pair, Run
from tests.support.mounts import HAS_FAST_PATH

NAMES = ["a", "b", "c", "f", "d", "d/a", "d/b", "d/c", "d/e", "d/e/a", "d/e/f"]
LEAVES = ["a", "b", "c", "f", "g"]
ODD_NAMES = [
    "~255",
    "d/~255",
    "~256",
    "d/~256",
    "\udcff-not-utf-8",
    "d/\u00fc\u65e5",
    "missing/a",
    "a/below",
    "c/a",
    "d/f/a",
    "a/~256",
    f"big/{numbered_name(0, 100)}",
    f"big/{numbered_name(7, 100)}",
    f"big/{numbered_name(150, 100)}",
    "big",
]


def existing(kind: Callable[[Node], bool] = lambda node: True) -> st.SearchStrategy[str]:
    """A path that leads to a node of this kind at the time of drawing, or else any name."""
    return st.runner().flatmap(lambda machine: st.sampled_from(machine.existing_paths(kind) or NAMES))


new_names = st.builds(os.path.join, existing(lambda node: node.is_directory), st.sampled_from(LEAVES))
names = st.one_of(st.sampled_from(NAMES), new_names)
paths = st.one_of(existing(), names, existing(), st.sampled_from(ODD_NAMES))
new_paths = st.one_of(names, names, paths)
files = st.one_of(existing(lambda node: node.is_file), existing(lambda node: node.is_file), paths)
removable = st.one_of(existing(lambda node: node.is_directory and not node.entries), paths)
crowded = st.one_of(existing(lambda node: node.is_directory), st.sampled_from(["d", "", "d/e", "big"]))
anything = st.one_of(paths, st.just("."))
modes = st.sampled_from([0o644, 0o755, 0, 0o7777, 0o4755, 0o2755, 0o2644, 0o1777, 0o6711, 0o444])
fills = st.integers(0, 255)
slots = st.one_of(st.runner().flatmap(lambda machine: st.sampled_from(machine.open_slots() or [0])), st.integers(0, 2))
offsets = st.builds(
    At,
    st.sampled_from(range(len(boundaries(1024)))),
    st.sampled_from([0, -1, 1, -2, 2]),
    st.sampled_from([0, -1, 1, -3, 3, 100, 512]),
)
near_offsets = st.builds(At, st.just(0), st.integers(0, 14), st.sampled_from([0, -1, 1, 100, 512]))
places = st.one_of(offsets, near_offsets)
lengths = st.one_of(
    st.builds(At, st.just(0), st.just(0), st.sampled_from([1, 10, 0, 511, 700])),
    st.builds(At, st.just(0), st.integers(1, 4), st.sampled_from([0, -1, 1, 5])),
    st.builds(At, st.just(0), st.integers(5, 14)),
)
devices = st.sampled_from([(1, 3), (0, 0), (255, 255), (256, 1), (300, 70_000), (4095, 1_048_575)])
xattr_names = st.sampled_from(
    ["user.a", "user.b", "user.c", "trusted.c", "user.~250", "user.~251", "security.other", CAPABILITY]
)
present_xattrs = st.runner().flatmap(lambda machine: st.sampled_from(machine.existing_xattrs() or [("a", "user.a")]))
xattr_sizes = st.one_of(
    st.sampled_from([0, 1, 10, 30, 60]),
    st.sampled_from([100, 500, 900, 960, 1000, 1024]),
    st.sampled_from([2000, 3900, 4000, 4030, 4096, 5000]),
)
open_flags = st.builds(
    lambda access, *others: access | sum(others),
    st.sampled_from([os.O_RDWR, os.O_RDONLY, os.O_WRONLY]),
    st.sampled_from([0, os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_DIRECTORY, os.O_NOFOLLOW]),
    st.sampled_from([0, 0, os.O_TRUNC]),
    st.sampled_from([0, 0, os.O_APPEND]),
)
LIMITS_OF_TIME = [2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**33, 15_032_385_535, 15_032_385_536, -(2**31), -(2**31) - 1]
"""Seconds around the ends of 32 bits and of the two more bits of large inodes."""
times = st.one_of(
    st.sampled_from([0, 1, -1, 10**18 + 123_456_789, -(10**9) - 1, 1_600_000_000_999_999_999]),
    st.builds(
        lambda seconds, nanoseconds: seconds * 10**9 + nanoseconds,
        st.sampled_from(LIMITS_OF_TIME),
        st.sampled_from([0, 1, 999_999_999]),
    ),
)  # fmt: skip


RENAME_FLAGS = [0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_EXCHANGE | RENAME_NOREPLACE]
if HAS_FAST_PATH:
    RENAME_FLAGS += [RENAME_WHITEOUT, RENAME_WHITEOUT | RENAME_NOREPLACE, RENAME_WHITEOUT | RENAME_EXCHANGE]


class Sequences(RuleBasedStateMachine):
    """Draws operations, kind by kind; hypothesis leaves out some kinds at random, so that the others occur more
    often."""

    def __init__(self, pair: Pair, on_step: Callable[[Operation, object], None]) -> None:
        super().__init__()
        self._pair = pair
        self._on_step = on_step
        self._run: Run | None = None

    @initialize(start=st.sampled_from(["small", "small", "small", "seed", "empty"]))
    def begin(self, start: str) -> None:
        self._run = Run(self._pair, start)

    def existing_paths(self, kind: Callable[[Node], bool]) -> list[str]:
        """The existing paths, without most of those that only fill a directory."""
        assert self._run is not None
        found = [path for path, node in self._run.model.walk() if path and kind(node)]
        return [shorten(path) for path in found if not is_numbered(path) or path.rpartition("/")[2].startswith("000")]

    def existing_xattrs(self) -> list[tuple[str, str]]:
        """The existing extended attributes, each with its path."""
        assert self._run is not None
        return [
            (shorten(path), shorten(name))
            for path, node in self._run.model.walk()
            if path
            for name in sorted(node.xattrs)
        ]

    def open_slots(self) -> list[int]:
        return sorted(self._run.model.slots) if self._run else []

    def step(self, operation: Operation) -> None:
        assert self._run is not None
        self._on_step(operation, self._run.step(operation))

    def teardown(self) -> None:
        if self._run is not None:
            self._run.finish()

    @rule(
        operation=st.one_of(
            st.builds(Create, new_paths, modes),
            st.builds(Open, files, open_flags, modes),
            st.builds(
                Mknod, new_paths, st.sampled_from([stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK]).flatmap(
                    lambda kind: modes.map(lambda mode: kind | mode)
                )
            ),
            devices.flatmap(
                lambda device: st.builds(
                    Mknod, new_paths, st.sampled_from([stat.S_IFCHR | 0o600, stat.S_IFBLK | 0o666]), st.just(device[0]),
                    st.just(device[1]),
                )
            ),
        )
    )  # fmt: skip
    def create(self, operation: Operation) -> None:
        self.step(operation)

    @rule(
        operation=st.one_of(
            st.builds(Mkdir, new_paths, modes), st.builds(Mkdir, new_paths), st.builds(Rmdir, removable)
        )
    )
    def directories(self, operation: Operation) -> None:
        self.step(operation)

    @rule(
        operation=st.one_of(
            st.builds(Link, files, new_paths),
            st.builds(Symlink, new_paths, st.sampled_from(["a", "b", "c", "d", "d/a", "e", "missing", "d/new"])),
            st.builds(
                Symlink, new_paths, st.just("s"),
                st.sampled_from([1, 58, 59, 60, 61, 300, 1022, 1023, 1024, 4094, 4095, 4096]),
            ),
            st.builds(Readlink, st.one_of(existing(lambda node: node.target != ""), paths)),
            st.builds(List, anything),
        )
    )  # fmt: skip
    def links(self, operation: Operation) -> None:
        self.step(operation)

    @rule(operation=st.builds(Unlink, st.one_of(files, paths)))
    def unlink(self, operation: Operation) -> None:
        self.step(operation)

    @rule(
        operation=st.builds(
            Rename, paths, st.one_of(paths, new_paths),
            st.sampled_from(RENAME_FLAGS),
        )
    )  # fmt: skip
    def rename(self, operation: Operation) -> None:
        self.step(operation)

    @rule(
        operation=st.builds(
            Write, files, places, lengths, fills, st.sampled_from([os.O_CREAT, 0, os.O_APPEND, os.O_CREAT | os.O_TRUNC])
        )
    )
    def write(self, operation: Operation) -> None:
        self.step(operation)

    @precondition(lambda self: HAS_FAST_PATH)
    @rule(
        operation=st.one_of(
            st.builds(Punch, files, places, lengths),
            st.builds(Punch, files, places, places),
            st.builds(Seek, files, places, st.sampled_from([os.SEEK_DATA, os.SEEK_HOLE])),
            st.builds(Copy, files, files, places, places, lengths),
        )
    )
    def holes(self, operation: Operation) -> None:
        self.step(operation)

    @precondition(lambda self: HAS_FAST_PATH)
    @rule(
        operation=st.one_of(
            st.builds(SetFlags, anything, st.sampled_from([0, 0x40, 0x80, 0x08, 0xC8])), st.builds(GetFlags, anything)
        )
    )
    def flags(self, operation: Operation) -> None:
        self.step(operation)

    @precondition(lambda self: HAS_FAST_PATH)
    @rule(operation=st.builds(OpenNameless, st.integers(0, 2), existing(lambda node: node.is_directory), modes))
    def open_nameless(self, operation: Operation) -> None:
        self.step(operation)

    @precondition(lambda self: HAS_FAST_PATH and bool(self.open_slots()))
    @rule(operation=st.builds(LinkHandle, slots, new_paths))
    def link_handle(self, operation: Operation) -> None:
        self.step(operation)

    @rule(operation=st.one_of(st.builds(Truncate, files, places), st.builds(Read, files, places, lengths)))
    def truncate(self, operation: Operation) -> None:
        self.step(operation)

    @rule(
        operation=st.one_of(
            st.builds(Chmod, anything, modes),
            st.builds(
                Chown, anything, st.sampled_from([0, -1, 1000, 65_535, 65_536, 2**32 - 2]),
                st.sampled_from([0, -1, 1000, 70_000]), st.booleans(),
            ),
            st.builds(Utime, anything, times, st.booleans()),
        )
    )  # fmt: skip
    def attributes(self, operation: Operation) -> None:
        self.step(operation)

    @rule(
        operation=st.one_of(
            st.builds(
                SetXattr, anything, xattr_names, xattr_sizes, fills,
                st.sampled_from([0, os.XATTR_CREATE, os.XATTR_REPLACE]), st.booleans(),
            ),
            st.builds(SetXattr, anything, xattr_names, xattr_sizes, fills),
            st.builds(SetXattr, files, xattr_names, xattr_sizes, fills),
            present_xattrs.flatmap(
                lambda found: st.one_of(
                    st.just(GetXattr(found[0], found[1], False)),
                    st.just(RemoveXattr(found[0], found[1], False)),
                    st.builds(
                        SetXattr, st.just(found[0]), st.just(found[1]), xattr_sizes, fills, st.just(os.XATTR_REPLACE),
                        st.just(False),
                    ),
                )
            ),
            st.builds(GetXattr, anything, xattr_names, st.booleans()),
            st.builds(RemoveXattr, anything, xattr_names, st.booleans()),
            st.builds(ListXattr, anything, st.booleans()),
        )
    )  # fmt: skip
    def xattrs(self, operation: Operation) -> None:
        self.step(operation)

    @rule(
        operation=st.one_of(
            st.builds(
                SetAcl, anything, st.sampled_from([ACCESS_ACL, DEFAULT_ACL]), st.sampled_from(list(ACLS)), st.booleans()
            ),
            st.builds(RemoveXattr, anything, st.sampled_from([ACCESS_ACL, DEFAULT_ACL])),
            st.builds(GetXattr, anything, st.sampled_from([ACCESS_ACL, DEFAULT_ACL])),
        )
    )  # fmt: skip
    def acls(self, operation: Operation) -> None:
        self.step(operation)

    @rule(
        operation=st.one_of(
            st.builds(Fill, crowded, st.sampled_from([5, 30, 100, 400]), st.sampled_from([20, 100, 250])),
            st.builds(
                Drain, crowded, st.sampled_from([30, 100, 400]), st.sampled_from([20, 100, 250]), st.integers(1, 3)
            ),
        )
    )
    def many_names(self, operation: Operation) -> None:
        self.step(operation)

    @rule(operation=st.builds(OpenHandle, st.integers(0, 2), files, st.just(os.O_RDWR | os.O_CREAT) | open_flags))
    def open_handle(self, operation: Operation) -> None:
        self.step(operation)

    @precondition(lambda self: self.open_slots())
    @rule(
        operation=st.one_of(
            st.builds(WriteHandle, slots, places, lengths, fills),
            st.builds(TruncateHandle, slots, places),
            st.builds(ReadHandle, slots, places, lengths),
            st.builds(ChmodHandle, slots, modes),
            st.builds(StatHandle, slots),
            st.builds(SyncHandle, slots),
            st.builds(CloseHandle, slots),
        )
    )
    def use_handle(self, operation: Operation) -> None:
        self.step(operation)

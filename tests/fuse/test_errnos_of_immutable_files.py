"""Errnos of immutable and append-only inodes, and at the limit of links, each compared with the kernel's own."""

from __future__ import annotations

import os
from collections.abc import Callable
from errno import (
    EACCES,
    EEXIST,
    ENOENT,
    EOPNOTSUPP,
    EPERM,
)
from functools import partial
from pathlib import Path

import pytest

from tests.support.errno_pairs import (
    ACCESS_ACL,
    CREATE,
    DEFAULT_ACL,
    DONE,
    FLAGS,
    LINKS_COUNTS,
    NAMED_ACL,
    RENAME_EXCHANGE,
    Case,
    Pair,
    as_user,
    cases,
    check,
    outcome,
    rename,
    state,
    touch_open,
    without_fast_path,
    write_at,
)

pytestmark = pytest.mark.usefixtures("no_umask")


def flagged(name: str) -> list[Case]:
    """Operations that both an immutable and an append-only inode refuse; the given directory is the root."""
    inside = f"{name}-directory"
    chown_to_same = EPERM if name == "immutable" else DONE
    return [
        Case(f"{name}: read", lambda d: (d / name).read_bytes(), "b'content\\n'"),
        Case(f"{name}: open to write", lambda d: touch_open(d / name, os.O_WRONLY), EPERM),
        Case(f"{name}: open to read and write", lambda d: touch_open(d / name, os.O_RDWR), EPERM),
        Case(f"{name}: open to create", lambda d: touch_open(d / name, CREATE), EPERM),
        Case(f"{name}: create exclusively", lambda d: touch_open(d / name, CREATE | os.O_EXCL), EEXIST),
        Case(f"{name}: truncate on opening", lambda d: touch_open(d / name, os.O_WRONLY | os.O_TRUNC), EPERM),
        Case(f"{name}: truncate on opening to read", lambda d: touch_open(d / name, os.O_TRUNC), EPERM),
        Case(
            f"{name}: truncate on opening to append",
            lambda d: touch_open(d / name, os.O_WRONLY | os.O_TRUNC | os.O_APPEND),
            EPERM,
        ),
        Case(f"{name}: truncate", lambda d: os.truncate(d / name, 0), EPERM),
        Case(f"{name}: extend", lambda d: os.truncate(d / name, 100), EPERM),
        Case(f"{name}: unlink", lambda d: os.unlink(d / name), EPERM),
        Case(f"{name}: rename", lambda d: rename(d / name, d / "new"), EPERM),
        Case(f"{name}: rename over it", lambda d: rename(d / "tree/other", d / name), EPERM),
        Case(f"{name}: exchange", lambda d: rename(d / name, d / "tree/other", RENAME_EXCHANGE), EPERM),
        Case(f"{name}: exchange with it", lambda d: rename(d / "tree/other", d / name, RENAME_EXCHANGE), EPERM),
        Case(f"{name}: link", lambda d: os.link(d / name, d / "new"), EPERM),
        Case(f"{name}: chmod", lambda d: os.chmod(d / name, 0o600), EPERM),
        Case(f"{name}: chown", lambda d: os.chown(d / name, 1, 1), EPERM),
        Case(f"{name}: chown to the same", lambda d: os.chown(d / name, -1, -1), chown_to_same),
        Case(f"{name}: utime", lambda d: os.utime(d / name, (1, 1)), EPERM),
        Case(f"{name}: setxattr", lambda d: os.setxattr(d / name, "user.u", b""), EPERM),
        Case(f"{name}: set trusted", lambda d: os.setxattr(d / name, "trusted.u", b""), EPERM),
        Case(f"{name}: removexattr", lambda d: os.removexattr(d / name, "user.u"), EPERM),
        Case(f"{name}: set an ACL", lambda d: os.setxattr(d / name, ACCESS_ACL, NAMED_ACL), EPERM),
        Case(f"{name}: remove an ACL", lambda d: os.removexattr(d / name, ACCESS_ACL), EPERM),
        Case(f"{name} directory: list", lambda d: sorted(os.listdir(d / inside))[:2], "['inside', 'sub']"),
        Case(f"{name} directory: unlink in it", lambda d: os.unlink(d / inside / "inside"), EPERM),
        Case(f"{name} directory: rmdir in it", lambda d: os.rmdir(d / inside / "sub"), EPERM),
        Case(f"{name} directory: unlink what is missing", lambda d: os.unlink(d / inside / "missing"), ENOENT),
        Case(f"{name} directory: rename in it", lambda d: rename(d / inside / "inside", d / inside / "new"), EPERM),
        Case(f"{name} directory: rename out of it", lambda d: rename(d / inside / "inside", d / "new"), EPERM),
        Case(f"{name} directory: rename within", lambda d: rename(d / "tree/other", d / inside / "inside"), EPERM),
        Case(
            f"{name} directory: exchange with what is in it",
            lambda d: rename(d / "tree/other", d / inside / "inside", RENAME_EXCHANGE),
            EPERM,
        ),
        Case(f"{name} directory: write what is in it", lambda d: write_at(d / inside / "inside", b"x"), "1"),
        Case(f"{name} directory: rmdir", lambda d: os.rmdir(d / inside), EPERM),
        Case(f"{name} directory: rename", lambda d: rename(d / inside, d / "new"), EPERM),
        Case(f"{name} directory: rename over it", lambda d: rename(d / "tree/directory", d / inside), EPERM),
        Case(f"{name} directory: chmod", lambda d: os.chmod(d / inside, 0o700), EPERM),
        Case(f"{name} directory: chown", lambda d: os.chown(d / inside, 1, 1), EPERM),
        Case(f"{name} directory: utime", lambda d: os.utime(d / inside, (1, 1)), EPERM),
        Case(f"{name} directory: setxattr", lambda d: os.setxattr(d / inside, "user.u", b""), EPERM),
        Case(f"{name} directory: set an ACL", lambda d: os.setxattr(d / inside, ACCESS_ACL, NAMED_ACL), EPERM),
        Case(f"{name} directory: set a default ACL", lambda d: os.setxattr(d / inside, DEFAULT_ACL, NAMED_ACL), EPERM),
        Case(f"{name} directory: temporary file in it", lambda d: touch_open(d / inside, os.O_TMPFILE | os.O_RDWR), *(
            (EPERM if name == "immutable" else DONE, without_fast_path(EOPNOTSUPP))
        )),
    ]  # fmt: skip


FLAGGED = cases(
    *flagged("immutable"),
    Case("immutable: append", lambda d: touch_open(d / "immutable", os.O_WRONLY | os.O_APPEND), EPERM),
    Case("immutable: touch", lambda d: os.utime(d / "immutable"), EPERM),
    Case("immutable: access", lambda d: os.access(d / "immutable", os.W_OK), "False", ours="True"),
    Case("immutable directory: touch", lambda d: os.utime(d / "immutable-directory"), EPERM),
    Case("immutable directory: access", lambda d: os.access(d / "immutable-directory", os.W_OK), "False", ours="True"),
    Case("immutable directory: create", lambda d: touch_open(d / "immutable-directory/new", CREATE), EPERM),
    Case("immutable directory: create over a file", lambda d: touch_open(d / "immutable-directory/inside", CREATE)),
    Case("immutable directory: mkdir", lambda d: os.mkdir(d / "immutable-directory/new"), EPERM),
    Case("immutable directory: mkdir over a file", lambda d: os.mkdir(d / "immutable-directory/inside"), EEXIST),
    Case("immutable directory: mkfifo", lambda d: os.mkfifo(d / "immutable-directory/new"), EPERM),
    Case("immutable directory: symlink", lambda d: os.symlink("target", d / "immutable-directory/new"), EPERM),
    Case("immutable directory: link", lambda d: os.link(d / "tree/file", d / "immutable-directory/new"), EPERM),
    Case("immutable directory: rename to", lambda d: rename(d / "tree/file", d / "immutable-directory/new"), EPERM),
    *flagged("append"),
    Case("append: append", lambda d: write_at(d / "append", b"x", 0, os.O_WRONLY | os.O_APPEND), "1"),
    Case("append: touch", lambda d: os.utime(d / "append"), DONE, ours=without_fast_path(EPERM)),
    Case("append: access", lambda d: os.access(d / "append", os.W_OK), "True"),
    Case("append directory: touch", lambda d: os.utime(d / "append-directory"), DONE, ours=without_fast_path(EPERM)),
    Case("append directory: create", lambda d: touch_open(d / "append-directory/new", CREATE)),
    Case("append directory: mkdir", lambda d: os.mkdir(d / "append-directory/new-directory")),
    Case("append directory: mkfifo", lambda d: os.mkfifo(d / "append-directory/new-fifo")),
    Case("append directory: symlink", lambda d: os.symlink("target", d / "append-directory/new-symlink")),
    Case("append directory: link", lambda d: os.link(d / "tree/file", d / "append-directory/new-link")),
    Case("append directory: rename into it", lambda d: rename(d / "tree/fifo", d / "append-directory/new-name")),
)  # fmt: skip


@pytest.mark.parametrize("case", FLAGGED)
def test_immutable_and_append_only(pair: Pair, case: Case) -> None:
    check(pair, case, "")
    compare_flagged(pair)


def flagged_for_users(name: str) -> list[Case]:
    """The kernel's ext2 refuses an immutable inode as such; FUSE checks the mode first, and refuses it for that."""
    refused = partial(Case, kernel=EPERM, ours=EACCES) if name == "immutable" else partial(Case, kernel=EACCES)
    return [
        Case(f"{name}: chmod", lambda d: os.chmod(d / name, 0o600), EPERM),
        Case(f"{name}: unlink", lambda d: os.unlink(d / name), EACCES),
        Case(f"{name}: link", lambda d: os.link(d / name, d / "tree/new"), EPERM),
        Case(f"{name}: unlink in it", lambda d: os.unlink(d / f"{name}-directory/inside"), EPERM),
        Case(f"{name}: setxattr", lambda d: os.setxattr(d / name, "user.a", b""), EPERM, ours=EACCES),
        refused(f"{name}: touch", lambda d: os.utime(d / name)),
        refused(f"{name}: truncate", lambda d: os.truncate(d / name, 0)),
        refused(f"{name}: open to write", lambda d: touch_open(d / name, os.O_WRONLY)),
    ]


FLAGGED_FOR_USERS = cases(*flagged_for_users("immutable"), *flagged_for_users("append"))


@pytest.mark.parametrize("case", FLAGGED_FOR_USERS)
def test_immutable_and_append_only_for_users(pair: Pair, case: Case) -> None:
    check(pair, case, "", as_user)
    compare_flagged(pair)


def compare_flagged(pair: Pair) -> None:
    for name in FLAGS:
        for path in (name, f"{name}-directory"):
            kernel, ours = (pair.kernel / path).stat(), (pair.ours / path).stat()
            assert (ours.st_mode, ours.st_nlink) == (kernel.st_mode, kernel.st_nlink)
        assert state(pair.ours / f"{name}-directory") == state(pair.kernel / f"{name}-directory")


def test_links_of_a_file(pair: Pair) -> None:
    """The limit is 32000 here, as in ext2; the ext4 driver allows 65000, as we do on ext4."""
    answers = {
        f"links-{number}": [
            [outcome(partial(os.link, root / f"links-{number}", root / f"new-{number}-{nth}")) for nth in (1, 2)]
            for root in pair.sides()
        ]
        for number in LINKS_COUNTS
    }
    if pair.kind == "ext4":
        assert all(kernel == ours for kernel, ours in answers.values())
        assert answers["links-64999"][0] == [DONE, "EMLINK"]
        return
    assert answers == {
        "links-31999": [[DONE, DONE], [DONE, "EMLINK"]],
        "links-32000": [[DONE, DONE], ["EMLINK", "EMLINK"]],
        "links-64999": [[DONE, "EMLINK"], ["EMLINK", "EMLINK"]],
        "links-65000": [["EMLINK", "EMLINK"], ["EMLINK", "EMLINK"]],
    }
    os.unlink(pair.ours / "new-31999-1")
    assert outcome(partial(os.link, pair.ours / "links-31999", pair.ours / "new-31999-3")) == DONE


def test_subdirectories(pair: Pair) -> None:
    """Each is a link to its directory: 31998 of them fit here. Other names do not count, and a rename can exceed the
    limit too."""

    def try_all(root: Path, number: int) -> list[str]:
        directory = root / f"directory-{number}"
        moved = root / f"moved-{number}"
        (moved / "sub").mkdir(parents=True)
        (moved / "file").touch()
        (directory / "file").touch()
        calls: tuple[Callable[[], object], ...] = (
            lambda: os.mkdir(directory / "1"),
            lambda: os.mkdir(directory / "2"),
            lambda: rename(moved / "sub", directory / "3"),
            lambda: rename(moved, directory / "file", RENAME_EXCHANGE),
            lambda: rename(moved / "file", directory / "4"),
            lambda: os.symlink("target", directory / "5"),
        )
        return [outcome(call) for call in calls]

    full = ["EMLINK"] * 4 + [DONE] * 2
    almost = [DONE, *full[1:]]
    answers = {number: [try_all(root, number) for root in pair.sides()] for number in LINKS_COUNTS}
    if pair.kind == "ext4":
        assert all(kernel == ours for kernel, ours in answers.values())
        # dir_nlink is for directories with an index.
        assert answers[65_000][0][0] == "EMLINK" and answers[32_000][0][0] == DONE
        return
    assert answers == {
        31_999: [[DONE] * 4 + ["ENOTDIR", DONE], almost],
        32_000: [[DONE] * 4 + ["ENOTDIR", DONE], full],
        64_999: [almost, full],
        65_000: [full, full],
    }

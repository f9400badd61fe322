"""Which users a system gives an ordinary user, and why it gives none."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mystfuse.container import subordinate_ids, user_namespaces
from mystfuse.container.subordinate_ids import NoSubordinateIds, Range, find_subordinate_ids
from mystfuse.errors import MystfuseError
from tests.support.commands import USER, run
from tests.support.subordinate_users import GIVEN, RootInside

Files = Callable[..., None]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    """Sets what /etc/subuid and /etc/subgid hold, for user nobody; no other source gives anything."""
    monkeypatch.setattr(subordinate_ids, "SUBUID", tmp_path / "subuid")
    monkeypatch.setattr(subordinate_ids, "SUBGID", tmp_path / "subgid")
    monkeypatch.setattr(os, "getuid", lambda: USER)
    monkeypatch.setattr(subordinate_ids, "_ask_directory_service", lambda user, path: [])

    def write(subuid: str, subgid: str = "nobody:100000:65536\n") -> None:
        (tmp_path / "subuid").write_text(subuid)
        (tmp_path / "subgid").write_text(subgid)

    return write


def test_ranges_count_in_the_order_of_the_file_by_name_or_number(files: Files) -> None:
    files(f"alice:1:2\nnobody:500000:65000\n# nobody:9:9\n\n{USER}:200000:1000\nnobody2:3:4\n")
    found = find_subordinate_ids()
    assert found.uids == [Range(500000, 65000), Range(200000, 1000)]
    assert found.gids == [Range(100000, 65536)]


def test_lines_that_say_nothing_are_passed_over(files: Files) -> None:
    files("nobody\nnobody:x:1\nnobody:1:-1\nnobody:99999999999:1\nnobody:1:0\n\xff:::\nnobody:100000:65536\n")
    assert find_subordinate_ids().uids == [Range(100000, 65536)]


def test_a_map_is_not_longer_than_the_kernel_takes(files: Files) -> None:
    files("".join(f"nobody:{100000 + 1000 * number}:1000\n" for number in range(500)))
    assert len(find_subordinate_ids().uids) == 339


def test_the_command_that_helps_gives_what_nobody_has(files: Files) -> None:
    files("alice:100000:65536\n", "bob:300000:10\n")
    with pytest.raises(NoSubordinateIds, match="--add-subuids 300010-365545 --add-subgids 300010-365545 nobody"):
        find_subordinate_ids()


def test_a_user_without_a_name_gets_none(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    files(GIVEN)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_001)
    with pytest.raises(NoSubordinateIds, match="user 4000000001 has no name"):
        find_subordinate_ids()


def test_a_directory_service_is_asked_by_getsubids(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ordinary_user: list[str], open_tmp_path: Path
) -> None:
    """With the words that the real one prints."""
    if shutil.which("getsubids") is None:
        pytest.skip("getsubids is not installed")
    words = run(*RootInside(open_tmp_path, ordinary_user).other_program("getsubids", "nobody")).stdout
    assert words
    monkeypatch.undo()
    monkeypatch.setattr(subordinate_ids, "SUBUID", tmp_path / "none")
    monkeypatch.setattr(subordinate_ids, "SUBGID", tmp_path / "none either")
    monkeypatch.setattr(os, "getuid", lambda: USER)
    program = tmp_path / "getsubids"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{words}END\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = find_subordinate_ids()
    assert found.uids == found.gids == [Range(700000, 65536)]


@pytest.mark.parametrize(
    "setting, value, says",
    [
        ("user/max_user_namespaces", "0\n", "sysctl user.max_user_namespaces is 0"),
        ("kernel/unprivileged_userns_clone", "0\n", "sysctl kernel.unprivileged_userns_clone is 0"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1\n",
         "sysctl kernel.apparmor_restrict_unprivileged_userns is 1"),
        ("kernel/unprivileged_userns_clone", "1\n", "are unprivileged user namespaces switched off?"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_setting_that_is_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, value: str, says: str
) -> None:
    """The settings of Debian and Ubuntu, which this kernel need not have."""
    (tmp_path / setting).parent.mkdir()
    (tmp_path / setting).write_text(value)
    switches = [(tmp_path / path.relative_to("/proc/sys"), refusing) for path, refusing in user_namespaces._SWITCHES]
    monkeypatch.setattr(user_namespaces, "_SWITCHES", switches)

    def refuse(name: str, *arguments: object) -> int:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(user_namespaces.libc, "call", refuse)
    with pytest.raises(MystfuseError) as caught:
        user_namespaces.unshare(user_namespaces.CLONE_NEWNS)
    assert str(caught.value) == f"no namespaces of our own: Operation not permitted ({says})"

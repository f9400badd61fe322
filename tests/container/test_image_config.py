"""``exec`` without PROGRAM: what the configuration of a container's image says."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mystfuse.errors import FormatError
from mystfuse.formats.oci_config import ProgramConfig, find_user
from tests.support.cli_in_process import in_process
from tests.support.commands import mystfuse, run
from tests.support.oci_layouts import make_layout
from tests.support.subordinate_users import RootInside

SHOW = 'id; pwd; echo "$HOME" "$FOO"; echo "$@"'
PASSWD = b"root:x:0:0::/root:/bin/sh\nmail:x:8:9::/var/mail:/bin/sh\n"
GROUP = b"root:x:0:\nstaff:x:50:mail,other\nshort:x:66\nbroken\n"


@pytest.fixture(scope="module")
def layer() -> bytes:
    """A root file system of busybox with users."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        tar.add("/bin/busybox", "bin/busybox")
        for applet in ("sh", "id", "cat", "echo"):
            info = tarfile.TarInfo(f"bin/{applet}")
            info.type, info.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(info)
        for name, data in (("etc/passwd", PASSWD), ("etc/group", GROUP), ("var/mail/x", b"")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


@pytest.fixture
def make(layer: bytes, tmp_path: Path) -> Callable[..., Path]:
    """Makes an image with a configuration."""

    def make(**config: Any) -> Path:
        shutil.rmtree(tmp_path / "layout", ignore_errors=True)
        made = in_process(
            "mkext2", "--force", f"oci:{make_layout(tmp_path / 'layout', [layer], config)}", tmp_path / "image"
        )
        assert made.returncode == 0, made.stderr
        return tmp_path / "image"

    return make


SETTINGS: dict[str, Any] = {
    "Entrypoint": ["/bin/sh", "-c", SHOW, "name"], "Cmd": ["an", "argument"], "WorkingDir": "/var/mail",
    "Env": ["FOO=from the image", "PATH=/bin"],
}  # fmt: skip


def test_the_program_runs_as_the_image_says(make: Callable[..., Path]) -> None:
    image = make(**SETTINGS, User="mail")
    found = mystfuse("exec", image)
    assert found.returncode == 0, found.stderr
    who, where, variables, arguments = found.stdout.splitlines()
    # Of the group staff, it has the rights; its namespace has no number for it.
    assert who.startswith("uid=8(mail) gid=9 groups=65534")
    assert (where, variables, arguments) == ("/var/mail", "/var/mail from the image", "an argument")
    options = ("--cwd", "/bin", "--env", "FOO=mine", "--env", "HOME=/x")
    assert mystfuse("exec", *options, image).stdout.splitlines()[1:] == ["/bin", "/x mine", "an argument"]
    # With a program of the user's, none of it counts.
    assert mystfuse("exec", image, "/bin/sh", "-c", 'pwd; echo "$FOO"').stdout == "/\n\n"


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", "uid=0(root) gid=0(root)"),
        ("77:staff", "uid=77 gid=50(staff)"),
        ("8:4", "uid=8(mail) gid=4"),
        ("mail:", "uid=8(mail) gid=9"),
        ("mail:short", "uid=8(mail) gid=66"),
        ("0:1000", "uid=0(root) gid=1000"),
        ("0:66", "uid=0(root) gid=66"),
    ],
)
def test_users_by_numbers(user: str, expected: str, make: Callable[..., Path]) -> None:
    assert mystfuse("exec", make(**SETTINGS, User=user)).stdout.startswith(expected)


def test_a_missing_directory_is_made(make: Callable[..., Path]) -> None:
    image = make(**{**SETTINGS, "WorkingDir": "/not/there"})
    assert mystfuse("exec", image).stdout.splitlines()[1] == "/not/there"


def test_an_ordinary_user(make: Callable[..., Path], ordinary_user: list[str], open_tmp_path: Path) -> None:
    shutil.copy(make(**SETTINGS, User="mail"), open_tmp_path / "image")
    found = RootInside(open_tmp_path, ordinary_user).output(open_tmp_path / "image")
    assert found.startswith("uid=8(mail) gid=9"), found
    found = run(*ordinary_user, "exec", open_tmp_path / "image")
    assert found.stdout.splitlines()[1:] == ["/var/mail", "/ from the image", "an argument"]
    assert "wants the program to be user mail: it is you (--root" in found.stderr


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "has neither Entrypoint nor Cmd"), ({"Entrypoint": "/bin/sh"}, "Entrypoint must be a list"),
        ({"Cmd": [1]}, "Cmd: a value that is no string"), ({"Cmd": ["a\0b"]}, "with a zero byte"),
        ({"Cmd": ["x"], "Env": ["FOO"]}, "Env: 'FOO' is not NAME=VALUE"),
        ({"Cmd": ["x"], "User": "who"}, "User: user 'who'"),
        ({"Cmd": ["x"], "User": "0:what"}, "group 'what', which is not in"),
        ({"Cmd": ["x"], "User": 7}, "User: a value"),
        ({"Cmd": ["x"], "User": "4294967295"}, "is no number"), ({"Cmd": ["x"] * 5000}, "at most 4096"),
        ({"Cmd": ["none"]}, "none: not found in the image"), ({"Cmd": [""]}, ""),
    ],
)  # fmt: skip
def test_wrong_configurations_are_one_line(config: dict[str, Any], words: str, make: Callable[..., Path]) -> None:
    result = mystfuse("exec", "--insecure", make(**config))
    assert result.returncode in (2, 6, 126, 127)
    last = result.stderr.splitlines()[-1]
    assert last.startswith("mystfuse: ") and words in last and "Traceback" not in result.stderr


def test_an_image_without_one(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    assert in_process("mkext2", tmp_path / "tree", tmp_path / "image").returncode == 0
    result = mystfuse("exec", tmp_path / "image")
    assert result.returncode == 2
    assert "exec: Missing argument 'PROGRAM'" in result.stderr and "see mystfuse exec --help" in result.stderr


def test_configurations_that_are_no_files_are_none(tmp_path: Path) -> None:
    for number, kind in enumerate(("directory", "link", "text")):
        tree = tmp_path / f"tree{number}"
        tree.mkdir()
        path = tree / ".oci-config.json"
        if kind == "directory":
            path.mkdir()
        elif kind == "link":
            path.symlink_to("/etc/hostname")
        else:
            path.write_text("[" * 100_000)
        assert in_process("mkext2", tree, tmp_path / f"image{number}").returncode == 0
        result = mystfuse("exec", tmp_path / f"image{number}")
        assert result.returncode in (2, 6), result.stderr
        assert "Traceback" not in result.stderr


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(["Entrypoint", "Cmd", "Env", "WorkingDir", "User"]), VALUES))
def test_any_json_is_a_configuration_or_refused(config: dict[str, Any]) -> None:
    try:
        parsed = ProgramConfig.parse(json.dumps({"config": config}).encode())
    except FormatError:
        return
    assert all("\0" not in word for word in parsed.command)
    assert parsed.directory == "" or parsed.directory.startswith("/")


@given(st.text(max_size=20), st.binary(max_size=200), st.binary(max_size=200))
def test_any_user_is_found_or_refused(text: str, passwd: bytes, group: bytes) -> None:
    try:
        user = find_user(text, passwd, group)
    except FormatError:
        return
    assert 0 <= user.uid < 2**32 - 1 and 0 <= user.gid < 2**32 - 1

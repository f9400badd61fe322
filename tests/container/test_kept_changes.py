"""``mystfuse exec --commit``: the image and what the program has written, if it succeeded, and nothing of ours."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.cli_in_process import in_process
from tests.support.commands import USER, assert_one_line, mystfuse, run, wait_until
from tests.support.encrypted_images import write_secret
from tests.support.packages import APPLETS
from tests.support.subordinate_users import RootInside


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of busybox alone, without directories to mount on, in a directory open to all. Tests must not write
    to it."""
    root = tmp_path_factory.mktemp("bare") / "tree"
    (root / "bin").mkdir(parents=True)
    (root / "etc").mkdir()
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for applet in APPLETS:
        (root / "bin" / applet).symlink_to("busybox")
    (root / "etc/resolv.conf").symlink_to("/nowhere/resolv.conf")
    (root / "etc/marker").write_text("old\n")
    for path in (root, root / "etc"):
        os.utime(path, ns=(5, 1_000_000_007))
    image = root.with_name("root.img")
    assert in_process("mkext2", "--free", "4M", root, image).returncode == 0
    return image


def listing(image: Path) -> str:
    """All names, with owners, modes and times, but for the root directory's own."""
    return in_process("ls", "-lR", image).stdout


def own_lines(result: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in result.stderr.splitlines() if "trusted by nobody" not in line]


def assert_clean(image: Path, tmp_path: Path) -> None:
    run("cp", "--sparse=always", image, tmp_path / "bare-file-system")
    assert run("e2fsck", "-fn", tmp_path / "bare-file-system", check=False).returncode == 0


def test_what_the_program_has_written_is_kept(bare: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.img"
    script = "echo new > /etc/marker; rm /bin/env; (sleep 1; echo late > /late) & echo said"
    result = mystfuse("exec", "--commit", new, bare, "sh", "-c", script)
    assert (result.returncode, result.stdout) == (0, "said\n"), result.stderr
    assert len(own_lines(result)) == 2 and own_lines(result)[0].startswith(f"mystfuse: made {new}: ")
    assert mystfuse("cat", new, "/etc/marker").stdout == "new\n"
    assert "env" not in in_process("ls", new, "/bin").stdout and "late" not in in_process("ls", new).stdout
    assert in_process("verify", new).returncode == 0
    assert_clean(new, tmp_path)
    assert mystfuse("exec", new, "sh", "-c", "cat /etc/marker").stdout == "new\n"


def test_what_exec_makes_for_its_mounts_is_not(bare: Path, tmp_path: Path) -> None:
    """Neither directories and files to mount on, nor the link that was in the way; times are as before."""
    new, file = tmp_path / "new.img", tmp_path / "file"
    file.write_text("of the host\n")
    mounts = ("--mount", f"{tmp_path}=/a/b/c", "--mount", f"{file}=/a/file,ro", "--mount", f"{bare}=/a/image,ro")
    script = "cat /a/file /a/image/etc/marker && ls /a/b/c >/dev/null && test -d /tmp && : > /tmp/x"
    result = mystfuse("exec", *mounts, "--commit", new, bare, "sh", "-c", script)
    assert (result.returncode, result.stdout) == (0, "of the host\nold\n"), result.stderr
    assert listing(new) == listing(bare)
    script = "touch /etc/here /a/kept"
    result = mystfuse("exec", "--overwrite", *mounts, "--commit", new, bare, "sh", "-c", script)
    assert result.returncode == 0, result.stderr
    assert in_process("ls", new, "/a").stdout == "kept\n"
    assert in_process("ls", new, "/etc").stdout.split() == ["here", "marker", "resolv.conf"]


def test_what_failed_is_not_kept(bare: Path, tmp_path: Path) -> None:
    result = mystfuse("exec", "--commit", tmp_path / "new.img", bare, "sh", "-c", "touch /x; exit 3")
    assert result.returncode == 3
    assert own_lines(result) == [f"mystfuse: warning: {tmp_path}/new.img is not made: the program ended with status 3"]
    result = mystfuse("exec", "--commit", tmp_path / "new.img", bare, "nothing-of-that-name")
    assert result.returncode == 127 and len(own_lines(result)) == 1
    assert os.listdir(tmp_path) == []


def test_impossible_outputs_are_refused_before_the_program_starts(bare: Path, tmp_path: Path) -> None:
    existing, mark = tmp_path / "existing", tmp_path / "mark"
    existing.write_text("keep")
    command = ("--mount", f"{tmp_path}=/mark", bare, "touch", "/mark/mark")
    assert_one_line(mystfuse("exec", "--commit", existing, *command), 1, "already exists", "--overwrite")
    assert_one_line(mystfuse("exec", "--commit", tmp_path / "no/new", *command), 1, "there is no directory")
    assert_one_line(mystfuse("exec", "--commit", tmp_path / "new", "--sign", "x", *command), 2, "PUBLIC.pem")
    for option in ("--sign=a:b", "--encrypt=key", "--decrypt", "--overwrite"):
        assert_one_line(mystfuse("exec", option, *command), 2, f"{option.partition('=')[0]} goes with --commit")
    assert existing.read_text() == "keep" and not mark.exists()
    result = mystfuse("exec", "--overwrite", "--commit", existing, *command)
    assert result.returncode == 0 and mark.exists() and in_process("verify", existing).returncode == 0


def test_an_image_that_cannot_be_written_is_an_error_after_the_program(bare: Path, tmp_path: Path) -> None:
    run("mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", tmp_path)
    try:
        result = mystfuse("exec", "--commit", tmp_path / "new.img", bare, "sh", "-c", "echo said")
        assert result.stdout == "said\n" and result.returncode == 1
        assert len(own_lines(result)) == 1 and "No space left" in own_lines(result)[0]
        assert os.listdir(tmp_path) == []
    finally:
        run("umount", tmp_path)


def test_new_images_are_signed_and_encrypted_as_by_commit(
    bare: Path, make_keys: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    public, private = make_keys("keeper")
    key = write_secret(tmp_path / "key", secrets.token_bytes(64))
    signed, encrypted, plain = (tmp_path / name for name in ("signed", "encrypted", "plain"))
    write = ("sh", "-c", "echo new > /etc/marker")
    assert mystfuse("exec", "--commit", signed, "--sign", f"{public}:{private}", bare, *write).returncode == 0
    assert mystfuse("cat", "--pubkey", public, signed, "/etc/marker").stdout == "new\n"
    assert mystfuse("exec", "--commit", encrypted, "--encrypt", key, signed, *write).returncode == 0
    assert encrypted.stat().st_mode & 0o777 == 0o600
    opened = ("--key-file", key, encrypted)
    assert mystfuse("cat", *opened, "/etc/marker").stdout == "new\n"
    refused = mystfuse("exec", "--commit", plain, *opened, "sh", "-c", "echo not to be seen")
    assert refused.returncode == 2 and refused.stdout == "" and "--decrypt a plain one" in refused.stderr
    assert mystfuse("exec", "--commit", plain, "--decrypt", *opened, "true").returncode == 0
    assert mystfuse("cat", plain, "/etc/marker").stdout == "new\n" and plain.stat().st_mode & 0o777 == 0o600


def test_changes_are_shown_and_made_a_layer(bare: Path, tmp_path: Path) -> None:
    layer = tmp_path / "layer.tar.gz"
    script = "echo new > /etc/marker; rm /bin/env; mkdir /made; ln -s x /made/link; exit $STATUS"
    command = ("--diff", "--layer", layer, "--env", "STATUS=0", bare, "sh", "-c", script)
    result = mystfuse("exec", *command)
    shown = [
        "M  ./  (time)",
        "M  bin/  (time)",
        "D  bin/env",
        "M  etc/marker  (content, time)",
        "A  made/",
        "A  made/link",
    ]
    assert result.returncode == 0 and own_lines(result)[:-1] == shown, result.stderr
    assert own_lines(result)[-1].startswith(f"mystfuse: made {layer}: ")
    names = ["./", "bin/", "bin/.wh.env", "etc/", "etc/marker", "made/", "made/link"]
    assert run("tar", "-tzf", layer).stdout.splitlines() == names
    assert_one_line(mystfuse("exec", *command), 1, "already exists", "--overwrite")
    result = mystfuse("exec", "--diff", "--env", "STATUS=3", bare, "sh", "-c", script)
    assert result.returncode == 3 and own_lines(result) == shown
    result = mystfuse("exec", "--diff", bare, "true")
    assert result.returncode == 0 and own_lines(result) == []
    assert_one_line(mystfuse("exec", "--layer", "-", bare, "true"), 2, "stdout is the program's")
    assert os.listdir(tmp_path) == ["layer.tar.gz"]


def test_a_signal_while_the_image_is_made_ends_that(tmp_path: Path, bare: Path) -> None:
    """After the program, which gets no signal any more; nothing is left behind."""
    run("mkdir", "-p", tmp_path / "tree/bin", tmp_path / "out")
    shutil.copy("/bin/busybox", tmp_path / "tree/bin/sh")
    assert in_process("mkext2", "--free", "3G", tmp_path / "tree", tmp_path / "large").returncode == 0
    command = [sys.executable, "-m", "mystfuse", "exec", "--commit", tmp_path / "out/new", tmp_path / "large", "sh"]
    with subprocess.Popen(
        [*command, "-c", "read x"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        held = f"/proc/{process.pid}/task/{process.pid}/children"
        # The daemon and the one that waits remain when bubblewrap has ended.
        wait_until(lambda: "bwrap" in names_of(held), 30)
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        wait_until(lambda: "bwrap" not in names_of(held), 30)
        # Once is not enough: it may come before there is anything to end.
        while process.poll() is None:
            process.send_signal(signal.SIGTERM)
            time.sleep(0.05)
        assert process.stderr is not None
        errors = process.stderr.read()
    assert process.returncode == 1 and errors.splitlines()[-1] == "mystfuse: interrupted: the changes are lost"
    assert os.listdir(tmp_path / "out") == []


def names_of(children: str) -> list[str]:
    """The names of the processes that a file of /proc lists."""
    names = []
    for pid in Path(children).read_text().split():
        with suppress(OSError):
            names.append(Path(f"/proc/{pid}/comm").read_text().strip())
    return names


@pytest.fixture
def below_mnt() -> Iterator[Path]:
    """A directory that the image's mount hides while a program runs."""
    with tempfile.TemporaryDirectory(prefix="mystfuse-test-", dir="/mnt") as path:
        yield Path(path)


def test_the_new_image_may_be_where_the_image_is_mounted(bare: Path, below_mnt: Path) -> None:
    assert mystfuse("exec", "--commit", below_mnt / "new.img", bare, "true").returncode == 0
    assert in_process("verify", below_mnt / "new.img").returncode == 0


def test_files_are_whose_they_were_inside(bare: Path, ordinary_user: list[str], open_tmp_path: Path) -> None:
    """An ordinary user's program is that user, as whose root's files show: what it makes is root's in the image. With
    --root, users are themselves."""
    shutil.copy(bare, open_tmp_path / "image")
    open_tmp_path.chmod(0o777)
    new = open_tmp_path / "new"
    result = run(*ordinary_user, "exec", "--commit", new, open_tmp_path / "image", "touch", "/made", check=False)
    assert result.returncode == 0, result.stderr
    assert in_process("ls", "-l", new, "/made").stdout.split()[2:4] == ["0", "0"]
    script = "touch /made; chown 8:9 /made"
    inside = RootInside(open_tmp_path, ordinary_user)
    inside.output(open_tmp_path / "image", "sh", "-c", script, options=("--overwrite", "--commit", new))
    assert in_process("ls", "-l", new, "/made").stdout.split()[2:4] == ["8", "9"]
    assert new.stat().st_uid == USER


def test_the_image_is_kept_though_the_layer_fails(bare: Path, tmp_path: Path) -> None:
    outputs = ("--layer", tmp_path / "x.tar", "--commit", tmp_path / "x.img")
    result = mystfuse("exec", *outputs, bare, "sh", "-c", "echo new > /etc/marker; touch /etc/.wh.x")
    assert result.returncode == 1 and "cannot hold names that begin with .wh." in result.stderr
    assert mystfuse("cat", tmp_path / "x.img", "/etc/marker").stdout == "new\n"
    assert not (tmp_path / "x.tar").exists()


def test_image_and_layer_are_two_files(bare: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    outputs = ("--layer", tmp_path / "x", "--commit", tmp_path / "link/x")
    assert_one_line(in_process("exec", *outputs, bare, "true"), 2, "cannot be one file")


def test_directories_that_the_program_renames_do_not_change_what_is_unmounted(bare: Path, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    mount = ("--mount", f"{tmp_path}/shared=/a/mnt")
    script = "mv /a /c; ln -s / /a; mv /etc /etc2; echo kept > /file"
    result = mystfuse("exec", *mount, "--commit", tmp_path / "x.img", bare, "sh", "-c", script)
    assert result.returncode == 0, result.stderr
    assert mystfuse("cat", tmp_path / "x.img", "/file").stdout == "kept\n"
    # The image's own link, not what exec has mounted on in its place.
    assert "/nowhere/resolv.conf" in in_process("ls", "-l", tmp_path / "x.img", "/etc2").stdout


def test_a_quit_from_the_terminal_that_the_program_handles_loses_nothing(bare: Path, tmp_path: Path) -> None:
    script = "trap 'echo got' QUIT; echo ready; while [ $((n = n + 1)) -lt 4 ]; do sleep 1; done; exit 0"
    process = subprocess.Popen(
        [sys.executable, "-m", "mystfuse", "exec", "--commit", tmp_path / "x.img", bare, "sh", "-c", script],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        os.killpg(process.pid, signal.SIGQUIT)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (tmp_path / "x.img").exists(), (process.returncode, output, errors)

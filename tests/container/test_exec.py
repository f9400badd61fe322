"""``mystfuse exec``: what a program in an image sees, and what it has no access to."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.commands import GROUP, USER, mystfuse, run


def run_in(programs: Path, *command: str, options: tuple[str | Path, ...] = ()) -> subprocess.CompletedProcess[str]:
    return mystfuse("exec", *options, programs, *command, timeout=60)


def output(programs: Path, *command: str, options: tuple[str | Path, ...] = ()) -> str:
    result = run_in(programs, *command, options=options)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(
    "command, status, said",
    [
        (("true",), 0, ""),
        (("/bin/static",), 3, "hello from C\n"),
        (("dynamic",), 3, "hello from C\n"),
        (("script", "an argument"), 4, "script an argument\n"),
        (("/usr/bin/python3", "-c", "import json, sys; print(json.dumps(sys.argv[1:])); sys.exit(9)", "-o", "--x"),
         9, '["-o", "--x"]\n'),
        (("sh", "-c", "kill -9 $$"), 137, ""),
        (("sh", "-c", "kill -TERM $$"), 143, ""),
    ],
    ids=["true", "static", "dynamic", "script", "python3", "killed", "terminated"],
)  # fmt: skip
def test_the_exit_status_is_the_programs(programs: Path, command: tuple[str, ...], status: int, said: str) -> None:
    result = run_in(programs, *command)
    assert (result.returncode, result.stdout) == (status, said), result.stderr


@pytest.mark.parametrize(
    "program, status, because",
    [
        ("nope", 127, "not found in the image"),
        ("/bin/nope", 127, "no such program"),
        ("/bin/sh/x", 127, "no such program"),
        ("bin/nope", 127, "no such program"),
        ("without-loader", 127, "its loader /nope6/ld-"),
        ("no-interpreter", 127, "its interpreter /usr/bin/perl5"),
        ("plain", 126, "not executable (mode 0644)"),
        ("/bin", 126, "is a directory"),
        ("no-line", 126, "neither a program nor a script"),
        ("foreign", 126, "another machine"),
        ("cut", 126, "broken ELF"),
    ],
)
def test_a_failure_to_execute_is_reported_in_one_line(programs: Path, program: str, status: int, because: str) -> None:
    result = run_in(programs, program)
    assert result.returncode == status
    lines = [line for line in result.stderr.splitlines() if "trusted by nobody" not in line]
    assert len(lines) == 1 and because in lines[0], result.stderr


def test_a_hundred_megabytes_go_through(programs: Path) -> None:
    with subprocess.Popen(["head", "-c", "100M", "/dev/urandom"], stdout=subprocess.PIPE) as source:
        digest = hashlib.sha256()
        with subprocess.Popen(
            [sys.executable, "-m", "mystfuse", "exec", programs, "cat"], stdin=source.stdout, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as program:  # fmt: skip
            assert program.stdout is not None
            count = 0
            while data := program.stdout.read(1 << 20):
                digest.update(data)
                count += len(data)
    assert program.returncode == 0 and count == 100 << 20


def test_the_program_is_alone_with_the_image(programs: Path) -> None:
    assert output(programs, "cat", "/etc/marker") == "from the image\n"
    assert len(output(programs, "ps").splitlines()) == 3
    assert output(programs, "pwd") == "/\n"
    assert output(programs, "pwd", options=("--cwd", "/work")) == "/work\n"
    assert output(programs, "sh", "-c", "echo x > /tmp/x && ls /tmp && ls /dev | wc -l && cat /proc/1/comm").startswith(
        "x\n"
    )
    hidden = output(programs, "sh", "-c", f"test -e {Path(__file__)} || echo hidden")
    assert hidden == "hidden\n"
    ours = os.readlink("/proc/self/ns/ipc")
    assert output(programs, "ls", "-l", "/proc/self/ns/ipc").split()[-1] != ours


def test_it_runs_where_few_processes_are(programs: Path) -> None:
    """As in a container: no process here has the number that bubblewrap has in its own namespace."""
    alone = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
    result = run(*alone, sys.executable, "-m", "mystfuse", "exec", programs, "/bin/sh", "-c", "echo $$", check=False)
    assert (result.returncode, result.stdout) == (0, "2\n"), result.stderr


def test_the_environment_is_what_is_said(programs: Path) -> None:
    os.environ["MYSTFUSE_TEST_SECRET"] = "not to be seen"
    try:
        seen = output(programs, "env").splitlines()
        assert {line.partition("=")[0] for line in seen} <= {"PATH", "HOME", "TERM", "LANG", "TZ", "PWD"}
        passed = output(
            programs, "env", options=("--env", "MYSTFUSE_TEST_SECRET", "--env", "A=b=c", "--env", "E=")
        ).splitlines()
        assert {"MYSTFUSE_TEST_SECRET=not to be seen", "A=b=c", "E="} <= set(passed)
    finally:
        del os.environ["MYSTFUSE_TEST_SECRET"]
    assert run_in(programs, "env", options=("--env", "=x")).returncode == 2
    assert run_in(programs, "pwd", options=("--cwd", "work")).returncode == 2


def test_the_network_is_the_hosts_unless_told_otherwise(programs: Path) -> None:
    assert output(programs, "ls", "-l", "/proc/self/ns/net").split()[-1] == os.readlink("/proc/self/ns/net")
    assert output(programs, "ifconfig", "-a", options=("--no-network",)).count("Link encap") == 1


def test_writes_are_forgotten(programs: Path) -> None:
    before = hashlib.sha256(programs.read_bytes()).digest()
    assert output(programs, "sh", "-c", "echo new > /work/new; rm /etc/marker; cat /work/new") == "new\n"
    assert output(programs, "ls", "/work") == ""
    assert hashlib.sha256(programs.read_bytes()).digest() == before


def test_directories_and_images_are_mounted(
    programs: Path, small_tree: Path, small_image: Path, tmp_path: Path
) -> None:
    key, encrypted, host = tmp_path / "key", tmp_path / "encrypted.img", tmp_path / "host"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(64))
    assert mystfuse("mkext2", "--encrypt", key, small_tree, encrypted).returncode == 0
    host.mkdir()
    (host / "file").write_text("of the host\n")
    options: tuple[str | Path, ...] = (
        "--mount", f"{host}=/made/for/it", "--mount", f"{small_image}=/data,ro",
        "--mount", f"{encrypted}=/work/secret,keyfile={key}", "--mount", f"{host}=/tmp/host",
    )  # fmt: skip
    script = (
        "cat /made/for/it/file /data/hello.txt /work/secret/hello.txt /tmp/host/file; echo new > /made/for/it/new;"
        "echo new > /work/secret/new && touch /data/new || echo read-only"
    )
    result = run_in(programs, "sh", "-c", script, options=options)
    assert result.stdout == "of the host\nhello\nhello\nof the host\nread-only\n", result.stderr
    assert (host / "new").read_text() == "new\n"
    assert run_in(programs, "true", options=("--mount", f"{encrypted}=/work")).returncode == 5
    root_hash = mystfuse("fssig", "--roothash", programs).stdout.strip()
    assert run_in(programs, "true", options=("--mount", f"{small_image}=/data,roothash={root_hash}")).returncode == 3


@pytest.mark.parametrize(
    "text, status",
    [("/usr", 2), ("/usr=", 2), ("/usr=relative", 2), ("/nowhere=/x", 1), ("/usr=/proc/x", 7), ("/usr=/dev", 7),
     ("/usr=/", 7), ("/usr=/etc/marker/x", 7), ("/usr=/x,keyfile=k", 2), ("/usr=/x,ro,rw", 2),
     ("/etc/passwd=/etc", 7), ("/etc/passwd=/proc/x", 7), ("/etc/passwd=/", 7), ("/etc/passwd=/etc/marker/x", 7),
     ("/etc/passwd=/dangling", 7), ("/dev/null=/x", 6)],
)  # fmt: skip
def test_impossible_mounts(programs: Path, text: str, status: int) -> None:
    result = run_in(programs, "true", options=("--mount", text))
    assert result.returncode == status, result.stderr
    assert len([line for line in result.stderr.splitlines() if ": warning: " not in line]) == 1, result.stderr


def test_single_files_are_mounted(programs: Path, small_image: Path, tmp_path: Path) -> None:
    host = tmp_path / "host"
    host.write_text("of the host\n")
    options: tuple[str | Path, ...] = (
        "--mount", f"{host}=/etc/marker,rw", "--mount", f"{host}=/top", "--mount", f"{host}=/made/for/it,ro",
        "--mount", f"{host}=/tmp/file",
        "--mount", f"{tmp_path}=/dir,ro", "--mount", f"{tmp_path}=/dir-rw,rw", "--mount", f"{small_image}=/image,ro",
    )  # fmt: skip
    script = (
        "cat /etc/marker /top /made/for/it /tmp/file /dir/host /image/hello.txt;"
        "echo x >> /made/for/it || echo ro; touch /dir/new || echo ro; touch /dir-rw/new; echo new >> /etc/marker"
    )
    result = run_in(programs, "sh", "-c", script, options=options)
    assert result.stdout == "of the host\n" * 5 + "hello\nro\nro\n", result.stderr
    assert host.read_text() == "of the host\nnew\n" and (tmp_path / "new").exists()


def test_an_image_replaced_by_a_plain_file_is_not_written_to(programs: Path, small_image: Path, tmp_path: Path) -> None:
    """A carrier can replace an image with a plain file: when it was named without options, exec says so and changes
    nothing."""
    cut = tmp_path / "cut"
    cut.write_bytes(bytes(4096) + small_image.read_bytes()[4096:-4096])
    before = cut.read_bytes()
    result = run_in(programs, "sh", "-c", "echo x >> /data || echo refused", options=("--mount", f"{cut}=/data"))
    assert result.stdout == "refused\n" and f"warning: {cut} is no image: /data is the file as it is" in result.stderr
    assert cut.read_bytes() == before


def test_a_link_of_another_user_is_not_followed_by_root(programs: Path, open_tmp_path: Path) -> None:
    (open_tmp_path / "victim").mkdir()
    (open_tmp_path / "out").symlink_to(open_tmp_path / "victim")
    assert run_in(programs, "true", options=("--mount", f"{open_tmp_path}/out=/out")).returncode == 0
    os.lchown(open_tmp_path / "out", USER, GROUP)
    result = run_in(programs, "true", options=("--mount", f"{open_tmp_path}/out=/out"))
    assert result.returncode != 0 and "link" in result.stderr, result


@pytest.mark.parametrize("damage", ["fssig", "nothing but it", "LUKS"])
def test_what_looks_like_an_image_is_not_shown_as_a_file(
    programs: Path, small_image: Path, tmp_path: Path, damage: str
) -> None:
    """A damaged image is refused as before: its contents must not pass for verified ones."""
    data = bytearray(small_image.read_bytes())
    if damage == "fssig":
        del data[-4096:]
    elif damage == "LUKS":
        data = bytearray(b"LUKS\xba\xbe") + bytes(5000)
    else:
        data[:-4096] = bytes(len(data) - 4096)
    (tmp_path / "damaged").write_bytes(data)
    result = run_in(programs, "cat", "/x", options=("--mount", f"{tmp_path / 'damaged'}=/x"))
    assert result.returncode in (4, 6) and result.stdout == "", result


def test_a_link_in_the_image_leads_nowhere_outside(tree: Path, tmp_path: Path) -> None:
    """We resolve the mountpoints and the program inside the image, as the program sees it."""
    victim, hostile = tmp_path / "victim", tmp_path / "hostile"
    victim.mkdir()
    shutil.copytree(tree / "bin", hostile / "bin", symlinks=True)
    (hostile / "away").symlink_to(victim)
    (hostile / "up").symlink_to("../../../.." + str(victim))
    (hostile / "bin/out").symlink_to("/../../usr/bin/env")
    programs = tmp_path / "hostile.img"
    assert mystfuse("mkext2", hostile, programs).returncode == 0
    for target in "/away/x", "/up/x":
        result = run_in(programs, "true", options=("--mount", f"/usr/bin={target}"))
        assert result.returncode in (0, 7)
        assert list(victim.iterdir()) == []
    assert run_in(programs, "out").returncode == 127


def test_an_untrusted_image_is_refused(programs: Path) -> None:
    assert run_in(programs, "true", options=("--roothash", "ab" * 32)).returncode == 3


@pytest.fixture
def as_user(ordinary_user: list[str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    return lambda *arguments, **kwargs: run(*ordinary_user, *arguments, check=False, timeout=60, **kwargs)


def test_an_ordinary_user_needs_no_privileges(
    programs: Path, small_tree: Path, as_user: Callable[..., subprocess.CompletedProcess[str]], open_tmp_path: Path
) -> None:
    own = Path(shutil.copy(programs, open_tmp_path / "own.img"))
    shared = open_tmp_path / "shared"
    shared.mkdir()
    os.chown(shared, USER, GROUP)
    script = "id -u; id -g; touch /root/mine && ls -n /root; echo new > /shared/new; ps | wc -l; exit 6"
    result = as_user("exec", "--mount", f"{shared}=/shared", own, "sh", "-c", script)
    assert result.returncode == 6, result.stderr
    uid, gid, _, listed, processes = result.stdout.splitlines()
    assert (int(uid), int(gid), int(processes)) == (USER, GROUP, 5)
    assert listed.split()[2:4] == [str(USER), str(GROUP)]
    assert (shared / "new").read_text() == "new\n" and (shared / "new").stat().st_uid == USER
    assert as_user("exec", own, "dynamic").stdout == "hello from C\n"
    assert as_user("exec", own, "nope").returncode == 127
    assert as_user("exec", "--no-network", own, "ifconfig", "-a").stdout.count("Link encap") == 1
    assert as_user("exec", "--roothash", "ab" * 32, own, "true").returncode == 3
    assert os.fsencode(own) not in Path("/proc/self/mountinfo").read_bytes()

"""Attacks by a program under ``exec``, run as root, on the machine, the caller, and the caller's terminal."""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mystfuse.cli.container import make_filter
from mystfuse.container.bubblewrap import MASKED, READ_ONLY
from mystfuse.container.seccomp_profile import program_filter, program_policy
from mystfuse.system.seccomp_bpf import ALLOW, can_filter, make_program, refuse
from mystfuse.system.syscall_numbers import known_syscalls, syscall_numbers
from tests.support.attacks import NUMBERS, calls, image, needs_filter, needs_root, said
from tests.support.commands import assert_one_line, mystfuse, run
from tests.system.test_seccomp import MACHINES, decide

__all__ = ["image"]


# /proc


@needs_root
def test_what_container_engines_mask_is_empty(image: Path) -> None:
    there = [path for path in MASKED if os.path.exists(path)]
    assert "/proc/keys" in there
    # A directory there is a file system of the sandbox's own, so it has to be read-only.
    script = "for x; do test -d $x && echo $x $(ls -A $x) $(mkdir $x/new 2>&1) || echo $x $(cat $x); done"
    for path, line in zip(there, said(image, "sh", "-c", script, "sh", *there).splitlines(), strict=True):
        refusal = f" mkdir: can't create directory '{path}/new': Read-only file system"
        assert line == path + (refusal if os.path.isdir(path) else "")


@needs_root
@pytest.mark.parametrize("path", READ_ONLY)
def test_what_container_engines_make_read_only_is(image: Path, path: str) -> None:
    found = [path] if os.path.isfile(path) else writable_beneath(path)[:50]
    if not found:
        pytest.skip(f"this kernel has nothing to write to in {path}")
    assert said(image, "attack", "write", *found).splitlines() == [f"{name} {errno.EROFS}" for name in found]


def writable_beneath(path: str) -> list[str]:
    return run("find", path, "-path", "/proc/[0-9]*", "-prune", "-o", "-type", "f", "-perm", "/222", "-print",
               check=False).stdout.splitlines()  # fmt: skip


@needs_root
def test_nothing_of_the_machine_in_proc_can_be_written(image: Path) -> None:
    """Every file of /proc, not a list of known ones."""
    found = writable_beneath("/proc")
    assert "/proc/sys/kernel/core_pattern" in found
    opened = [line.split()[0] for line in said(image, "attack", "write", *found).splitlines() if line.endswith(" 0")]
    # A write to a file of /proc/pressure, or to an empty file that masks another, affects the writer alone.
    assert [path for path in opened if not path.startswith("/proc/pressure/") and path not in MASKED] == []


# System calls


@needs_filter
def test_the_policy_decides_about_every_call() -> None:
    """Adding a call to the table does not allow it."""
    policy = program_policy()
    assert set(policy) == known_syscalls()
    numbers = syscall_numbers("x86_64")
    assert {name for name, rules in policy.items() if rules == ALLOW and numbers[name] >= 424} == {
        "cachestat", "close_range", "epoll_pwait2", "faccessat2", "fchmodat2", "file_getattr", "file_setattr",
        "futex_requeue", "futex_wait", "futex_waitv", "futex_wake", "getxattrat", "landlock_add_rule",
        "landlock_create_ruleset", "landlock_restrict_self", "listmount", "listxattrat", "map_shadow_stack",
        "memfd_secret", "mseal", "openat2", "pidfd_open", "pidfd_send_signal", "process_mrelease", "removexattrat",
        "setxattrat", "statmount",
    }  # fmt: skip
    assert program_filter() == make_program(policy, refuse(errno.ENOSYS))


@pytest.mark.parametrize("machine", MACHINES)
def test_the_filter_means_the_same_on_each_machine(machine: str) -> None:
    policy, numbers = program_policy(), syscall_numbers(machine)
    program = make_program(policy, refuse(errno.ENOSYS), machine)
    for name, number in numbers.items():
        if isinstance(rules := policy[name], int):
            assert decide(program, machine, number, [1, 2, 3]) == rules
    for name, arguments, action in (
        ("ioctl", (0, 0x5412), refuse(errno.EPERM)), ("ioctl", (0, 0x5413), ALLOW),
        ("clone", (0x11,), ALLOW), ("clone", (0x10000011,), refuse(errno.EPERM)),
        ("socket", (40,), refuse(errno.EPERM)), ("socket", (10,), ALLOW),
        ("personality", (8,), ALLOW), ("personality", (9,), refuse(errno.EPERM)),
    ):  # fmt: skip
        assert decide(program, machine, numbers[name], arguments) == action
    assert decide(program, machine, 500) == refuse(errno.ENOSYS)


def test_a_machine_whose_calls_are_not_known_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert make_filter() is None
    assert "the program runs without a filter" in capsys.readouterr().err


@needs_filter
def test_what_containers_may_not_call_is_refused(image: Path) -> None:
    """Each call with wrong arguments, so that a call which gets through does no harm and answers EFAULT."""
    refused = [name for name, rules in program_policy().items() if rules == refuse(errno.EPERM) and name in NUMBERS]
    assert {"mount", "umount2", "pivot_root", "bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "keyctl",
            "add_key", "kexec_load", "open_by_handle_at", "unshare", "setns", "init_module", "syslog", "reboot",
            "open_tree", "fsopen", "move_mount", "swapon", "acct"} <= set(refused)  # fmt: skip
    assert calls(image, *((name, -1, -1, -1, -1, -1) for name in refused)) == [errno.EPERM] * len(refused)


@needs_filter
def test_arguments_decide_where_engines_look_at_them(image: Path) -> None:
    new_user, new_mounts = 0x10000000, 0x20000
    attempts: dict[tuple[str | int, ...], int] = {
        ("unshare", new_user): errno.EPERM,
        ("clone", new_user | 17): errno.EPERM,
        ("clone", new_mounts | 17): errno.EPERM,
        ("clone3", 0, 0): errno.ENOSYS,
        ("socket", 40, 1, 0): errno.EPERM,
        ("socket", 1, 1, 0): 0,
        ("socket", 2, 1, 0): 0,
        ("personality", 0xFFFFFFFF): 0,
        ("personality", 0x0040000): errno.EPERM,  # ADDR_NO_RANDOMIZE
        ("ioctl", 0, 0x5412, "=x"): errno.EPERM,
        ("ioctl", 0, 0x7_0000_5412, "=x"): errno.EPERM,
        ("ioctl", 0, 0x541C, "=x"): errno.EPERM,
    }
    assert dict(zip(attempts, calls(image, *attempts), strict=True)) == attempts
    # PTRACE_TRACEME, with which debuggers begin; and a call that no kernel has yet.
    script = f"attack call {NUMBERS['ptrace']} 0 0 0 0; attack call 999 0; true"
    assert said(image, "sh", "-c", script).split() == [str(NUMBERS["ptrace"]), "0", "999", str(errno.ENOSYS)]


def test_a_32_bit_program_is_refused_in_one_line(image: Path) -> None:
    """It has its own system call numbers, for which the filter would kill it."""
    if platform.machine() not in ("x86_64", "aarch64"):
        pytest.skip("no 32-bit programs here")
    result = mystfuse("exec", image, "narrow")
    assert result.returncode == 126 and "a 32-bit program" in result.stderr.splitlines()[-1]
    assert "32-bit" not in mystfuse("exec", "--privileged", image, "narrow").stderr


# Keyrings, sockets, control groups, processes


KEYRING = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
number, add_key = int(sys.argv[1]), int(sys.argv[2])
assert libc.syscall(number, 1, None) > 0
key = libc.syscall(add_key, b"user", b"mystfuse-test", b"secret", ctypes.c_size_t(6), -3)
assert key > 0
os.execv(sys.executable, [sys.executable, *sys.argv[3:]])
"""


@needs_filter
@pytest.mark.parametrize("options", [(), ("--privileged",)])
def test_the_callers_session_keyring_is_not_the_programs(image: Path, options: tuple[str, ...]) -> None:
    keyctl, add_key = NUMBERS["keyctl"], NUMBERS["add_key"]
    # KEYCTL_SEARCH in the session keyring.
    attack = ["attack", "call", str(keyctl), "10", str(2**64 - 3), "=user", "=mystfuse-test", "0"]
    command = [sys.executable, "-c", KEYRING, str(keyctl), str(add_key)]
    check = subprocess.run(
        [*command, "-c", f"import ctypes; print(ctypes.CDLL(None).syscall({keyctl}, 10, -3, b'user',"
         "b'mystfuse-test', 0) > 0)"], capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert check.stdout == "True\n"
    result = subprocess.run(
        [*command, "-m", "mystfuse", "exec", *options, image, *attack], capture_output=True, text=True, check=True,
        timeout=60,
    )  # fmt: skip
    # With privileges it may search, and finds nothing.
    assert result.stdout.split()[1] == str(errno.ENOKEY if options else errno.EPERM)


def has_scopes() -> bool:
    code = "import ctypes; print(ctypes.CDLL(None).syscall(444, None, 0, 1))"
    return int(run(sys.executable, "-c", code).stdout) >= 6


@pytest.fixture
def listener() -> Iterator[str]:
    """The name of an abstract socket on which a process of the host listens."""
    name = f"mystfuse-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0{name}")
        server.listen()
        yield name


@pytest.mark.parametrize(
    "options, number",
    [(("--no-network",), errno.ECONNREFUSED), (("--privileged",), 0),
     pytest.param((), errno.EPERM, marks=pytest.mark.skipif(not has_scopes(), reason="Landlock is older than 6"))],
)  # fmt: skip
def test_abstract_sockets_of_the_host(image: Path, listener: str, options: tuple[str, ...], number: int) -> None:
    assert said(image, "attack", "abstract", listener, options=options) == f"{number}\n"


def test_namespaces_are_its_own(image: Path) -> None:
    kinds = ["cgroup", "ipc", "mnt", "pid", "user", "uts"]
    script = "for kind; do readlink /proc/self/ns/$kind; done; test -e /sys || echo nothing; cat /proc/self/cgroup"
    lines = said(image, "sh", "-c", script, "sh", *kinds).splitlines()
    assert [
        kind for kind, link in zip(kinds, lines, strict=False) if link == os.readlink(f"/proc/self/ns/{kind}")
    ] == []
    assert lines[len(kinds)] == "nothing"
    assert {line.split(":", 2)[2] for line in lines[len(kinds) + 1 :]} == {"/"}


@pytest.fixture
def pids_groups() -> list[Path]:
    """A place where we can make a control group for processes."""
    places = [Path("/sys/fs/cgroup/pids"), *Path("/sys/fs/cgroup").glob("cgroup.subtree_control")]
    return [place for place in places if os.access(place, os.W_OK)]


FORKS = "i=0; while test $i -lt 40; do sleep 20 & i=$((i+1)); done; echo all; kill $(jobs -p)"


@needs_root
def test_the_number_of_processes_is_bounded(image: Path, pids_groups: list[Path]) -> None:
    if not pids_groups:
        result = mystfuse("exec", "--pids-limit", "20", image, "true")
        assert_one_line(result, 1, "the number of processes cannot be bounded")
        pytest.skip("no control groups for processes here")
    result = mystfuse("exec", "--pids-limit", "20", image, "sh", "-c", FORKS, timeout=60)
    assert result.returncode != 0 and "all" not in result.stdout and "fork" in result.stderr
    assert said(image, "sh", "-c", FORKS) == "all\n"
    assert [path for place in pids_groups for path in place.rglob(f"mystfuse-{os.getpid()}")] == []


def test_an_ordinary_users_processes_are_bounded(
    image: Path, ordinary_user: list[str], open_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Path(shutil.copy(image, open_tmp_path / "own.img"))
    result = run(*ordinary_user, "exec", "--pids-limit", "20", own, "sh", "-c", FORKS, check=False, timeout=60)
    assert result.returncode != 0 and "all" not in result.stdout and "fork" in result.stderr
    assert run(*ordinary_user, "exec", own, "sh", "-c", FORKS, timeout=60).stdout == "all\n"
    refused = [name for name, rules in program_policy().items() if rules == refuse(errno.EPERM) and name in NUMBERS]
    words = [word for name in refused for word in (str(NUMBERS[name]), "-1", "-1", "-")]
    lines = run(*ordinary_user, "exec", own, "attack", "call", *words, timeout=60).stdout.splitlines()
    assert [int(line.split()[1]) for line in lines] == [errno.EPERM] * len(refused)


# Users and capabilities


@needs_root
def test_root_keeps_its_users_but_not_its_power_outside(image: Path, tmp_path: Path) -> None:
    """The user namespace maps every number to itself."""
    (tmp_path / "file").touch()
    os.chown(tmp_path / "file", 77, 88)
    script = (
        "stat -c %u:%g /of-somebody /out/file; cat /of-somebody; chown 4000000000:3 /of-somebody /out/file;"
        "stat -c %u:%g /of-somebody; mknod /null c 1 3 2>&1; mknod /fifo p && ls /fifo; cat /proc/self/uid_map"
    )
    lines = said(image, "sh", "-c", script, options=("--mount", f"{tmp_path}=/out")).splitlines()
    assert lines[:4] == ["1234:5678", "77:88", "private", "4000000000:3"]
    assert "Operation not permitted" in lines[4] and lines[5] == "/fifo"
    own = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
    assert [line.split() for line in lines[6:]] == [[inside, inside, count] for inside, _, count in own]
    status = os.stat(tmp_path / "file")
    assert (status.st_uid, status.st_gid) == (4000000000, 3)


@needs_root
def test_a_privileged_program_may_do_what_we_may(image: Path) -> None:
    script = "mknod /null c 1 3 && stat -c %t:%T /null; readlink /proc/self/ns/user; cat /proc/self/status"
    text = said(image, "sh", "-c", script, options=("--privileged",))
    assert text.startswith(f"1:3\n{os.readlink('/proc/self/ns/user')}\n")
    ours = re.findall(r"^CapEff:\t(\w+)", Path("/proc/self/status").read_text(), re.M)
    assert re.findall(r"^CapEff:\t(\w+)", text, re.M) == ours
    assert re.findall(r"^Seccomp:\t(\w)", text, re.M) == ["0"]


@needs_root
def test_without_user_namespaces_root_is_told_what_to_do(image: Path) -> None:
    """As with max_user_namespaces set to 0."""
    code = (
        "import os, sys, unittest.mock, mystfuse.container.user_namespaces as namespaces\n"
        "real = namespaces.unshare\n"
        "def unshare(flags):\n"
        "    if flags == namespaces.CLONE_NEWUSER: raise namespaces.MystfuseError('refused')\n"
        "    real(flags)\n"
        "namespaces.unshare = unshare\n"
        "from mystfuse.cli.main import main\n"
        "sys.argv = ['mystfuse', 'exec', *sys.argv[1:]]\n"
        "main()\n"
    )
    result = run(sys.executable, "-c", code, image, "true", check=False, timeout=60)
    assert result.returncode == 1 and "--privileged does without" in result.stderr.splitlines()[-1]
    assert run(sys.executable, "-c", code, "--privileged", image, "true", check=False, timeout=60).returncode == 0


@needs_root
def test_where_proc_is_masked_already_root_is_told_what_to_do(image: Path) -> None:
    """As in a container: the kernel refuses a new mount of /proc that would show more than the masked one."""
    # Another /proc, of a chroot for example, would show everything.
    script = (
        "awk '/ - proc / && $5 != \"/proc\" {print $5}' /proc/self/mountinfo | xargs -r umount -l;"
        'mount -t tmpfs none /proc/bus && exec "$@"'
    )
    command = ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, "-m", "mystfuse", "exec"]
    result = run(*command, image, "true", check=False, timeout=60)
    assert result.returncode == 1 and "parts of our own are hidden" in result.stderr.splitlines()[-1]
    assert run(*command, "--privileged", image, "true", check=False, timeout=60).returncode == 0


def test_a_package_is_contained_as_well(image: Path, make_keys: object, tmp_path: Path) -> None:
    """``run`` starts the program through the same functions."""
    public, private = make_keys("contained", bits=2048)  # type: ignore[operator]
    del public
    root_hash = mystfuse("fssig", "--roothash", image).stdout.strip()
    config = {"version": "0.1", "ApplicationPath": "/bin/attack", "HostApplicationParameters": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    made = mystfuse("package", "--roothash", root_hash, "-o", tmp_path / "package", private, tmp_path / "config.json")
    assert made.returncode == 0, made.stderr
    words = ["attack", "run", "--rootfs", image, tmp_path / "package", "--", "write", "/proc/sys/kernel/core_pattern"]
    result = mystfuse(*words[1:], timeout=60)
    assert result.stdout == f"/proc/sys/kernel/core_pattern {errno.EROFS}\n", result.stderr
    if can_filter():
        result = mystfuse(*words[1:6], "call", str(NUMBERS["keyctl"]), "-1", timeout=60)
        assert result.stdout == f"{NUMBERS['keyctl']} {errno.EPERM}\n", result.stderr
    privileged = mystfuse("run", "--privileged", "--rootfs", image, tmp_path / "package", "write", "/proc/self/comm")
    assert privileged.stdout == "/proc/self/comm 0\n", privileged.stderr

"""What an attacker who runs code in a daemon or a keeper can do: the tests run code in processes that the same
functions confine."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mystfuse.system.daemon_users import FIRST_OWN_USER
from mystfuse.system.seccomp_filters import daemon_filter, keeper_filter
from tests.support.commands import GROUP, USER, mystfuse, run
from tests.support.mounts import clear_mount, daemon_pid, mounted
from tests.support.processes import NO_CAPABILITIES, keeper_of, needs_landlock, proc_status

PREPARED = r"""
import ctypes, errno, mmap, os, platform, signal, socket, sys, threading
from mystfuse.system import confinement
from mystfuse.system.syscall_numbers import syscall_numbers
NUMBERS = syscall_numbers(platform.machine())
libc = ctypes.CDLL(None, use_errno=True)
where, outsider = sys.argv[1], int(sys.argv[2])
def call(name, *arguments):
    result = libc.syscall(NUMBERS[name], *arguments)
    return result if result >= 0 else errno.errorcode[ctypes.get_errno()]
def attempt(action):
    try:
        result = action()
    except OSError as error:
        return errno.errorcode[error.errno]
    return result if isinstance(result, (int, str)) else "done"
def say(*actions):
    import json
    print(json.dumps([attempt(action) for action in actions]), flush=True)
import json
"""
ALONE = {
    "all": "",
    "filter": "confinement._leave_file_system = lambda: (None, False)\n"
    "confinement._become_own_user = lambda libc: None\nconfinement.restrict_file_access = lambda proc: 0\n",
    "root": "confinement._filter_calls = lambda make: False\nconfinement._become_own_user = lambda libc: None\n"
    "confinement.restrict_file_access = lambda proc: 0\n",
    "user": "confinement._filter_calls = lambda make: False\n"
    "confinement._leave_file_system = lambda: (None, False)\nconfinement.restrict_file_access = lambda proc: 0\n",
}
"""Code that takes away one of several layers."""


def inject(code: str, where: Path, outsider: int = 0, layer: str = "all") -> list[str]:
    """The output of a process that runs Python code with ``where`` and the process number ``outsider``."""
    return run(sys.executable, "-c", PREPARED + ALONE[layer] + code, where, str(outsider)).stdout.splitlines()


@pytest.mark.parametrize("layer", ALONE)
def test_nothing_of_others_can_be_changed_or_reached_by_its_path(open_tmp_path: Path, layer: str) -> None:
    """Each layer alone is enough: the filter, the empty root directory, the user without files."""
    victim = open_tmp_path / "victim"
    victim.write_text("untouched")
    victim.chmod(0o644)
    before = victim.stat()
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        server.bind(str(open_tmp_path / "server"))
        server.listen()
        log.bind(str(open_tmp_path / "log"))
        (said,) = inject(
            "client, logger = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
            "confinement.confine()\n"
            "victim = where + '/victim'\n"
            "say(lambda: os.chmod(victim, 0o777), lambda: os.chown(victim, 1, 1), lambda: os.utime(victim),\n"
            "    lambda: os.setxattr(victim, 'user.x', b'x'), lambda: os.truncate(victim, 0),\n"
            "    lambda: open(victim, 'w'), lambda: os.unlink(victim), lambda: os.mkdir(where + '/new'),\n"
            "    lambda: os.rename(victim, where + '/other'), lambda: os.symlink('x', where + '/new'),\n"
            "    lambda: os.link(victim, where + '/new'), lambda: client.connect(where + '/server'),\n"
            "    lambda: logger.sendto(b'x', where + '/log'))\n",
            open_tmp_path,
            layer=layer,
        )
    assert set(json.loads(said)) <= {"EPERM", "EACCES", "ENOENT"}, said
    assert victim.stat()[:9] == before[:9] and victim.read_text() == "untouched"
    assert sorted(os.listdir(open_tmp_path)) == ["log", "server", "victim"]


@needs_landlock
def test_landlock_alone_opens_makes_removes_and_runs_nothing(tmp_path: Path) -> None:
    """Landlock is all that an ordinary user's daemon has on a kernel that refuses the filter."""
    (tmp_path / "secret").write_text("secret")
    said = inject(
        "confinement._filter_calls = lambda make: False\nconfinement._become_own_user = lambda libc: None\n"
        "real = confinement.effective_capabilities\nconfinement.effective_capabilities = lambda: 0\n"
        "held = confinement.confine()\n"
        "print(held.landlock > 0 and not held.has_empty_root and not held.has_filter)\n"
        "say(*(lambda action=action: action() for action in (\n"
        "    lambda: open(where + '/secret'), lambda: open(where + '/new', 'w'), lambda: os.listdir(where),\n"
        "    lambda: os.unlink(where + '/secret'), lambda: os.mkdir(where + '/new'),\n"
        "    lambda: os.rename(where + '/secret', where + '/other'), lambda: os.symlink('x', where + '/new'),\n"
        "    lambda: os.truncate(where + '/secret', 0), lambda: open('/etc/shadow'), lambda: open('/dev/null', 'w'),\n"
        "    lambda: os.execv('/bin/true', ['true']), lambda: open('/proc/1/environ'), lambda: open('/proc/1/mem'),\n"
        "    lambda: os.listdir('/root'), lambda: open(os.__file__), lambda: open('/proc/self/comm', 'w'),\n"
        ")))\n"
        "say(lambda: os.kill(outsider, 0) if held.landlock >= 6 else 'EPERM')\n"
        "say(lambda: len(open('/proc/self/status').read()) > 0)\n",
        tmp_path,
        os.getpid(),
    )
    assert said[0] == "True" and said[2:] == ['["EPERM"]', "[true]"]
    assert set(json.loads(said[1])) <= {"EACCES", "EPERM"}, said[1]
    assert os.listdir(tmp_path) == ["secret"]


DEADLY = {
    "execve of a file in memory": "call('execveat', memory, b'', none, none, 0x1000)",
    "execve": "call('execve', b'/bin/true', none, none)",
    "ptrace": "call('ptrace', 16, outsider, 0, 0)",
    "reading another's memory": "call('process_vm_readv', outsider, 0, 0, 0, 0, 0)",
    "taking another's descriptor": "call('pidfd_getfd', 0, 0, 0)",
    "a user namespace": "call('unshare', 0x10000000)",
    "a mount namespace": "call('unshare', 0x20000)",
    "another process's namespace": "call('setns', memory, 0)",
    "mount": "call('mount', b'none', b'/', b'tmpfs', 0, None)",
    "a mount, the new way": "call('fsopen', b'tmpfs', 0)",
    "umount": "call('umount2', b'/', 2)",
    "chroot": "call('chroot', b'/')",
    "io_uring": "call('io_uring_setup', 4, space)",
    "userfaultfd": "call('userfaultfd', 1)",
    "keys": "call('keyctl', 0, -3, 1)",
    "a key": "call('add_key', b'user', b'x', b'x', 1, -3)",
    "bpf": "call('bpf', 0, space, 72)",
    "performance counters": "call('perf_event_open', space, 0, -1, -1, 0)",
    "a kernel module": "call('finit_module', memory, b'', 0)",
    "a file by its handle": "call('open_by_handle_at', -100, space, 0)",
}


def test_calls_that_no_daemon_makes_end_it(tmp_path: Path) -> None:
    actions = "".join(f"    lambda: {action},\n" for action in DEADLY.values())
    (said,) = inject(
        "memory, space, none = os.memfd_create('x'), ctypes.create_string_buffer(4096), (ctypes.c_void_p * 1)()\n"
        f"actions = (\n{actions})\n"
        "def end_of(action):\n"
        "    if not (child := os.fork()):\n"
        "        confinement.confine()\n"
        "        action()\n"
        "        os._exit(1)\n"
        "    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n"
        "print(json.dumps([end_of(action) for action in actions]))\n",
        tmp_path,
        os.getpid(),
    )
    assert dict(zip(DEADLY, json.loads(said), strict=True)) == dict.fromkeys(DEADLY, -signal.SIGSYS)


REFUSED = {
    "fork": ("os.fork()", "EPERM"),
    "a process by clone": ("call('clone', signal.SIGCHLD, 0, 0, 0, 0)", "EPERM"),
    "a thread in another namespace": ("call('clone', 0x10000 | 0x20000, 0, 0, 0, 0)", "EPERM"),
    "clone3": ("call('clone3', ctypes.create_string_buffer(88), 88)", "ENOSYS"),
    "a signal to another": ("os.kill(outsider, 0)", "EPERM"),
    "a signal to another's thread": ("call('tgkill', outsider, outsider, 0)", "EPERM"),
    "a signal by a descriptor": ("call('pidfd_send_signal', 0, 0, 0, 0)", "EPERM"),
    "a signal by what is read": ("fcntl.fcntl(ours, 8, outsider)", "EINVAL"),
    "UDP": ("socket.socket(socket.AF_INET, socket.SOCK_DGRAM)", "EPERM"),
    "TCP": ("socket.socket(socket.AF_INET6)", "EPERM"),
    "netlink": ("socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)", "EPERM"),
    "packets": ("socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)", "EPERM"),
    "ciphers of the kernel": ("socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET, 0)", "EPERM"),
    "other pairs of sockets": ("socket.socketpair(socket.AF_INET)", "EPERM"),
    "a message to an address": ("ours.sendto(b'x', where + '/socket')", "EPERM"),
    "a message with an address": ("ours.sendmsg([b'x'], [], 0, where + '/socket')", "EPERM"),
    "a filter for a socket": ("ours.setsockopt(1, 26, bytes(16))", "EPERM"),
    "memory with code": ("mmap.mmap(-1, 4096, prot=7)", "EPERM"),
    "memory that becomes code": ("call('mprotect', ctypes.c_void_p(page), 4096, 5)", "EPERM"),
    "writing": ("open('/proc/self/comm', 'w')", "EACCES"),
    "writing in the directory": ("os.open('self/comm', os.O_RDWR, dir_fd=held.proc)", "EACCES"),
    "another user": ("os.setresuid(0, 0, 0)", "EPERM"),
    "capabilities": ("call('capset', space, space)", "EPERM"),
    "a core dump": ("call('prctl', 4, 1, 0, 0, 0)", "EINVAL"),
    "other limits": ("call('prlimit64', 0, 7, space, None)", "EPERM"),
    "another's limits": ("call('prlimit64', outsider, 7, None, space)", "EPERM"),
    "keys into the terminal": ("call('ioctl', terminal, 0x5412, b'x')", "ENOTTY"),
    "fanotify's little brother": ("call('inotify_init1', 0)", "EPERM"),
    "a call to come": ("libc.syscall(4000) and errno.errorcode[ctypes.get_errno()]", "ENOSYS"),
}


def test_calls_that_a_library_may_try_are_refused(tmp_path: Path) -> None:
    actions = "".join(f"    lambda: {action},\n" for action, _ in REFUSED.values())
    (said,) = inject(
        "import fcntl\n"
        "_, terminal = os.openpty()\n"
        "ours, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "space, memory = ctypes.create_string_buffer(4096), mmap.mmap(-1, 4096)\n"
        "page = ctypes.addressof(ctypes.c_char.from_buffer(memory))\n"
        "held = confinement.confine()\n"
        f"say(\n{actions})\n",
        tmp_path,
        os.getpid(),
    )
    assert dict(zip(REFUSED, json.loads(said), strict=True)) == {name: answer for name, (_, answer) in REFUSED.items()}


def test_what_a_daemon_does_it_still_may(tmp_path: Path) -> None:
    file = tmp_path / "log"
    said = inject(
        "import time, select\n"
        "log, ours = open(where + '/log', 'w'), socket.socketpair()\n"
        "held = confinement.confine()\n"
        "thread = threading.Thread(target=lambda: log.write('from a thread'))\n"
        "thread.start(); thread.join(); log.flush(); os.fsync(log.fileno()); os.ftruncate(log.fileno(), 9)\n"
        "say(lambda: len(bytearray(64 << 20)), lambda: signal.raise_signal(signal.SIGWINCH), lambda: time.sleep(0),\n"
        "    lambda: ours[0].send(b'x'), lambda: len(ours[1].recv(9)), lambda: select.epoll().close(),\n"
        "    lambda: len(os.urandom(9)), lambda: open('/etc/passwd'),\n"
        "    lambda: str(sorted(held.groups_of(outsider))))\n"
        "say(lambda: str(held.groups_of(os.getpid())), lambda: str(held.groups_of(1 << 22)),\n"
        "    lambda: os.stat('..', dir_fd=held.proc).st_ino - os.stat('.', dir_fd=held.proc).st_ino,\n"
        "    lambda: os.open('../etc/passwd', os.O_RDONLY, dir_fd=held.proc),\n"
        "    lambda: os.open('1/root/etc/passwd', os.O_RDONLY, dir_fd=held.proc),\n"
        "    lambda: os.open('self/root/etc/passwd', os.O_RDONLY, dir_fd=held.proc))\n",
        tmp_path,
        os.getpid(),
    )
    assert json.loads(said[0]) == [64 << 20, "done", "done", 1, 1, "done", 9, "ENOENT", str(sorted(os.getgroups()))]
    assert json.loads(said[1]) == ["frozenset()", "frozenset()", 0, "ENOENT", "EACCES", "ENOENT"]
    assert file.read_text() == "from a th"


# The processes of a mount


@pytest.fixture
def encrypted(small_tree: Path, tmp_path: Path) -> tuple[Path, Path]:
    """An encrypted image, and the file of its passphrase."""
    key, passphrase, image = tmp_path / "key", tmp_path / "passphrase", tmp_path / "encrypted"
    for file, contents in (key, os.urandom(64)), (passphrase, b"correct horse battery staple"):
        file.write_bytes(contents)
        file.chmod(0o600)
    result = mystfuse("mkext2", "--encrypt", key, "--passphrase-file", passphrase, small_tree, image)
    assert result.returncode == 0, result.stderr
    return image, passphrase


def tasks_of(pid: int) -> list[dict[str, str]]:
    return [proc_status(task) for task in Path(f"/proc/{pid}/task").iterdir()]


def test_the_daemon_of_root_is_a_user_of_its_own_in_an_empty_directory(small_image: Path, mountpoint: Path) -> None:
    with mounted(small_image, mountpoint) as path:
        # With requests under way, so that there are threads.
        (path / "sub/deep/data.bin").read_bytes()
        status = json.loads(mystfuse("status", "--json", mountpoint).stdout)
        pid = status["pid"]
        user = FIRST_OWN_USER + pid
        assert (status["seccomp"], status["empty_root"], status["own_user"]) == (True, True, user)
        for task in tasks_of(pid):
            assert task["Uid"].split() == task["Gid"].split() == [str(user)] * 4 and not task["Groups"].strip()
            assert task["Seccomp"] == "2" and task["NoNewPrivs"] == "1" and task["CapBnd"] == NO_CAPABILITIES
        assert os.listdir(f"/proc/{pid}/root/") == []
        assert " rwxp " not in Path(f"/proc/{pid}/maps").read_text()
        # The user who mounts is still root.
        assert (path / ".mystfuse").stat().st_uid == 0


def test_the_daemon_of_an_ordinary_user_is_filtered(
    small_image: Path, open_tmp_path: Path, ordinary_user: list[str]
) -> None:
    image, mountpoint = open_tmp_path / "image", open_tmp_path / "mount"
    image.write_bytes(small_image.read_bytes())
    mountpoint.mkdir()
    os.chown(mountpoint, USER, GROUP)
    try:
        run(*ordinary_user, image, mountpoint, cwd=open_tmp_path)
        status = json.loads(run(*ordinary_user, "status", "--json", mountpoint, cwd=open_tmp_path).stdout)
        assert (status["seccomp"], status["empty_root"], status["own_user"]) == (True, False, None)
        assert all(task["Seccomp"] == "2" for task in tasks_of(status["pid"]))
        # Its keeper runs fusermount3, which is set-user-ID.
        keeper = proc_status(Path(f"/proc/{keeper_of(status['pid'])}"))
        assert (keeper["NoNewPrivs"], keeper["Seccomp"], keeper["CapEff"]) == ("0", "0", NO_CAPABILITIES)
    finally:
        clear_mount(mountpoint)


CAPABILITIES_OF_THE_KEEPER = f"{1 << 21 | 1 << 2:016x}"
"""CAP_SYS_ADMIN and CAP_DAC_READ_SEARCH."""


def test_the_keeper_of_root_may_do_nothing_but_mount(small_image: Path, mountpoint: Path) -> None:
    with mounted(small_image, mountpoint):
        keeper = proc_status(Path(f"/proc/{keeper_of(daemon_pid(mountpoint))}"))
        for name in "CapPrm", "CapEff", "CapBnd":
            assert keeper[name] == CAPABILITIES_OF_THE_KEEPER, name
        assert keeper["CapInh"] == keeper["CapAmb"] == NO_CAPABILITIES
        assert (keeper["NoNewPrivs"], keeper["Seccomp"]) == ("1", "2")


def test_a_keeper_that_is_taken_over_neither_runs_nor_binds_nor_talks(tmp_path: Path) -> None:
    deadly = ("call('execve', b'/bin/true', none, none)", "call('mount', b'/', b'/mnt', b'none', 4096, None)",
              "call('mount', b'/', b'/mnt', b'none', 32, None)", "call('ptrace', 16, outsider, 0, 0)",
              "call('unshare', 0x20000)", "call('bpf', 0, none, 72)", "call('io_uring_setup', 4, none)",
              "call('move_mount', -100, b'/', -100, b'/mnt', 0)", "call('setns', 0, 0)")  # fmt: skip
    said = inject(
        "none = (ctypes.c_void_p * 1)()\n"
        f"actions = ({''.join(f'lambda: {action}, ' for action in deadly)})\n"
        "def end_of(action):\n"
        "    if not (child := os.fork()):\n"
        "        confinement.confine_keeper()\n"
        "        action()\n"
        "        os._exit(1)\n"
        "    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n"
        "print(json.dumps([end_of(action) for action in actions]))\n"
        "print(confinement.confine_keeper(), flush=True)\n"
        "say(lambda: os.fork(), lambda: socket.socket(socket.AF_UNIX), lambda: open(where + '/new', 'w'),\n"
        "    lambda: os.unlink(where + '/x'), lambda: os.kill(outsider, 0), lambda: os.chown(where, 1, 1),\n"
        "    lambda: os.setresuid(1, 1, 1), lambda: mmap.mmap(-1, 4096, prot=7))\n",
        tmp_path,
        os.getpid(),
    )
    assert json.loads(said[0]) == [-signal.SIGSYS] * len(deadly)
    assert said[1] == "True" and json.loads(said[2]) == ["EPERM", "EPERM", "EACCES", *["EPERM"] * 5]


def test_nothing_is_imported_once_a_mount_is_served(
    encrypted: tuple[Path, Path], mountpoint: Path, tmp_path: Path
) -> None:
    """The daemon has no files to import it from."""
    image, passphrase = encrypted
    roomy = tmp_path / "roomy"
    run("mke2fs", "-q", "-F", "-t", "ext2", "-b", "4096", roomy, "32M")
    for options in (
        [image, "--passphrase-file", passphrase],
        [roomy, "--insecure", "--overlay-store", tmp_path, "--overlay-limit", "1M"],
    ):
        said = tmp_path / "said"
        receiver, sender = os.pipe()
        with said.open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-X", "importtime", "-m", "mystfuse", "mount", "-f", f"--ready-fd={sender}", *options,
                 mountpoint], stdout=subprocess.DEVNULL, stderr=errors, pass_fds=[sender],
            )  # fmt: skip
        os.close(sender)
        try:
            with os.fdopen(receiver, "rb") as stream:
                assert stream.read() == b"ready\n"
            before = said.stat().st_size
            size = 4 << 20 if "--overlay-store" in options else 4096
            (mountpoint / "new").write_bytes(os.urandom(size))
            assert len((mountpoint / "new").read_bytes()) == size
            process.send_signal(signal.SIGUSR1)
            status = json.loads(mystfuse("status", "--json", mountpoint).stdout)
            assert status["overlay_store_used"] or "--overlay-store" not in options
        finally:
            process.terminate()
            assert process.wait(30) == 0
        imports = re.findall(r"^import time:.*", said.read_bytes()[before:].decode(), re.MULTILINE)
        assert b"import time:" in said.read_bytes()[:before] and not imports


def test_what_serves_plaintext_to_mke2fs_is_confined(tmp_path: Path) -> None:
    """A stand-in for mke2fs notes which process serves the file, and runs the real mke2fs."""
    source, tools = tmp_path / "source", tmp_path / "tools"
    source.mkdir()
    tools.mkdir()
    (tmp_path / "key").write_bytes(os.urandom(64))
    (tmp_path / "key").chmod(0o600)
    (tools / "mke2fs").write_text(
        "#!/bin/sh\n"
        'for each in /proc/[0-9]*; do grep -q "^PPid:.$PPID$" $each/status && cat $each/status; done'
        f" > {tmp_path}/said\n"
        'exec /sbin/mke2fs "$@"\n'
    )
    (tools / "mke2fs").chmod(0o755)
    environment = {"PATH": f"{tools}:{os.environ['PATH']}:/usr/sbin:/sbin"}
    result = mystfuse("mkext2", "--encrypt", tmp_path / "key", source, tmp_path / "image", env=environment)
    assert result.returncode == 0, result.stderr
    statuses = [text for text in re.split(r"^(?=Name:)", (tmp_path / "said").read_text(), flags=re.M) if text]
    (server,) = [text for text in statuses if text.startswith("Name:\tmystfuse:")]
    assert re.findall(r"^(?:CapEff|CapBnd|Seccomp|NoNewPrivs):\t(\w+)", server, re.M) == [
        NO_CAPABILITIES, NO_CAPABILITIES, "1", "2",
    ]  # fmt: skip
    assert int(re.findall(r"^Uid:\t(\d+)", server, re.M)[0]) >= FIRST_OWN_USER


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_filters_can_be_made_for_both_machines(monkeypatch: pytest.MonkeyPatch, machine: str) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert daemon_filter() and keeper_filter(["unlink"])


def test_a_confined_process_shows_a_progress_bar(encrypted: tuple[Path, Path], mountpoint: Path) -> None:
    image, passphrase = encrypted
    terminal, slave = os.openpty()
    try:
        command = [sys.executable, "-m", "mystfuse", "mount", "--passphrase-file", passphrase, image, mountpoint]
        environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
        result = subprocess.run(command, stderr=slave, env=environment, check=False, timeout=60)
        assert result.returncode == 0 and b"\x1b[" in os.read(terminal, 65536)
        assert (mountpoint / "hello.txt").read_text() == "hello\n"
    finally:
        os.close(slave)
        os.close(terminal)
        clear_mount(mountpoint)

"""``exec --root``: an ordinary user's program is root in the image, with the image's users, and nobody new outside."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mystfuse.container.bubblewrap import MASKED
from mystfuse.container.seccomp_profile import program_policy
from mystfuse.system.seccomp_bpf import refuse
from tests.container.test_containment import FORKS, writable_beneath
from tests.support.attacks import ATTACK, NUMBERS, needs_filter
from tests.support.commands import GROUP, USER, assert_one_line, mystfuse, run, wait_until
from tests.support.subordinate_users import FIRST, RootInside, with_ids

APPLETS = (
    "cat", "chmod", "chown", "cp", "grep", "id", "ls", "mkdir", "mknod", "mount", "rm", "sh", "sleep", "stat", "su",
    "tar", "touch", "true", "umount",
)  # fmt: skip
OWNERS = {
    "of-root": (0, 0),
    "of-mail": (8, 8),
    "of-apt": (42, 65534),
    "of-nobody": (65534, 65534),
    "last": (65536, 1000),
}
"""Files of the image, and whose they are."""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system of busybox with users, files of theirs, and ``attack``. Tests must not write to it."""
    work = tmp_path_factory.mktemp("root-inside")
    root = work / "tree"
    for name in "bin", "etc", "root", "elevated":
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for applet in APPLETS:
        (root / "bin" / applet).symlink_to("busybox")
    (work / "attack.c").write_text(ATTACK)
    run("gcc", "-static", "-o", root / "bin/attack", work / "attack.c")
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nmail:x:8:8::/:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nmail:x:8:\nstaff:x:50:mail\n")
    (root / "secret").write_text("of root\n")
    (root / "secret").chmod(0o600)
    for name, owner in OWNERS.items():
        (root / name).write_text(f"{name}\n")
        os.chown(root / name, *owner)
    for applet in "id", "cat":
        shutil.copy(root / "bin/busybox", root / "elevated" / applet)
        (root / "elevated" / applet).chmod(0o4755)
    assert mystfuse("mkext2", root, work / "root.img").returncode == 0
    return work / "root.img"


@pytest.fixture
def inside(ordinary_user: list[str], open_tmp_path: Path) -> RootInside:
    """Runs ``mystfuse`` as an ordinary user who has subordinate users."""
    return RootInside(open_tmp_path, ordinary_user)


@pytest.fixture
def own(image: Path, open_tmp_path: Path) -> Path:
    """The image where that user can read it."""
    return Path(shutil.copy(image, open_tmp_path / "own.img"))


# Whose the files are


def test_every_file_is_whose_it_is_in_the_image(inside: RootInside, own: Path) -> None:
    script = "id -u; id -g; id -G; stat -c '%n %u %g' $*; cat /secret; echo $HOME"
    lines = inside.output(own, "sh", "-c", script, "sh", *OWNERS).splitlines()
    assert lines[:3] == ["0", "0", "0"]
    assert lines[3:-2] == [f"{name} {uid} {gid}" for name, (uid, gid) in OWNERS.items()]
    assert lines[-2:] == ["of root", "/root"]
    # Without --root all of them but root are strangers.
    seen = inside.run("exec", own, "stat", "-c", "%u %g", *OWNERS).stdout.splitlines()
    assert seen == [f"{USER} {GROUP}"] * len(OWNERS)


def test_files_get_new_owners(inside: RootInside, own: Path) -> None:
    script = (
        "chown 42:8 /of-root && stat -c %u:%g /of-root; chown 65536:65536 /of-root && stat -c %u:%g /of-root;"
        "chown 65537 /of-root 2>&1; stat -c %u:%g /of-root; cd /root && tar -cf t.tar -C / of-mail of-apt && rm /of-*;"
        "tar -xf t.tar && stat -c '%n %u:%g' of-mail of-apt; touch new; stat -c %u:%g new; mknod /n c 1 3 2>&1;"
        "mknod fifo p && stat -c %F fifo"
    )
    lines = inside.output(own, "sh", "-c", script).splitlines()
    assert lines[:2] == ["42:8", "65536:65536"]
    assert "Invalid argument" in lines[2] and lines[3] == "65536:65536"
    assert lines[4:7] == ["of-mail 8:8", "of-apt 42:65534", "0:0"]
    assert "Operation not permitted" in lines[7] and lines[8] == "fifo"


def test_it_becomes_other_users_and_their_permissions_count(inside: RootInside, own: Path) -> None:
    script = "id -u; id -G; cat /secret 2>&1; touch /root/x 2>&1; echo more >> /of-mail && cat /of-mail"
    lines = inside.output(own, "su", "mail", "-c", script).splitlines()
    assert lines[:2] == ["8", "8 50"]
    assert "Permission denied" in lines[2] and "Permission denied" in lines[3]
    assert lines[4:] == ["of-mail", "more"]


def test_a_set_user_id_program_gives_nothing(inside: RootInside, own: Path) -> None:
    script = (
        "cp /bin/busybox /tmp/id; chmod 4755 /tmp/id;"
        "su mail -c '/elevated/id -u; /elevated/cat /secret 2>&1; /tmp/id -u; test -u /elevated/id && test -u /tmp/id'"
    )
    lines = inside.output(own, "sh", "-c", script).splitlines()
    assert lines[0] == "8" and "Permission denied" in lines[1] and lines[2:] == ["8"]


def test_files_have_capabilities_in_the_namespace_alone(inside: RootInside, own: Path, tmp_path: Path) -> None:
    """As setcap(8) in a package's script writes them."""
    number, value = NUMBERS.get("setxattr"), bytes.fromhex("0000000200200000000000000000000000000000")
    if number is None:
        pytest.skip("no numbers of system calls")
    source = tmp_path / "cap.c"
    source.write_text(
        "#include <sys/xattr.h>\n#include <stdio.h>\nint main(void) {"
        f"static const char value[] = {{{','.join(map(str, value))}}}; unsigned char got[24];"
        'if (setxattr("/of-root", "security.capability", value, 20, 0)) { perror("setxattr"); return 1; }'
        'printf("%zd\\n", getxattr("/of-root", "security.capability", got, 24)); return 0; }'
    )
    run("gcc", "-static", "-o", inside.directory / "cap", source)
    assert inside.output(own, "/cap", options=("--mount", f"{inside.directory / 'cap'}=/cap,ro")) == "20\n"


def test_the_mounts_of_other_images_are_alike(inside: RootInside, own: Path) -> None:
    second = Path(shutil.copy(own, own.parent / "second.img"))
    options = ("--mount", f"{second}=/data")
    assert inside.output(own, "stat", "-c", "%u:%g", "/data/of-apt", options=options) == "42:65534\n"


def test_an_encrypted_image_and_a_store_on_disk(inside: RootInside, image: Path, open_tmp_path: Path) -> None:
    """The key makes the process one for which nobody writes maps."""
    key, encrypted = open_tmp_path / "key", open_tmp_path / "encrypted.img"
    key.write_bytes(secrets.token_bytes(64))
    os.chown(key, USER, GROUP)
    key.chmod(0o600)
    assert mystfuse("mkext2", "--encrypt", key, image.parent / "tree", encrypted).returncode == 0
    encrypted.chmod(0o644)
    store = open_tmp_path / "store"
    store.mkdir()
    os.chown(store, USER, GROUP)
    options: tuple[str | Path, ...] = ("--key-file", key, "--overlay-store", store)
    script = "chown 42 /of-root && stat -c %u /of-root /of-mail"
    assert inside.output(encrypted, "sh", "-c", script, options=options) == "42\n8\n"


def test_a_package_runs_as_root(inside: RootInside, own: Path, make_keys: object, open_tmp_path: Path) -> None:
    _, private = make_keys("root-inside", bits=2048)  # type: ignore[operator]
    root_hash = mystfuse("fssig", "--roothash", own).stdout.strip()
    config, package = open_tmp_path / "config.json", open_tmp_path / "package"
    config.write_text('{"version": "0.1", "ApplicationPath": "/bin/stat", "HostApplicationParameters": true}')
    assert mystfuse("package", "--roothash", root_hash, "-o", package, private, config).returncode == 0
    package.chmod(0o755)
    for options in (["--root", package, "--"], [package, "--root", "--"]):
        result = inside.run("run", "--rootfs", own, *options, "-c", "%u", "/of-mail")
        assert result.stdout == "8\n", result.stderr
    assert inside.run("run", "--rootfs", own, package, "--", "-c", "%u", "/of-mail").stdout == f"{USER}\n"


def test_for_root_it_changes_nothing(image: Path) -> None:
    script = "id; cat /proc/self/uid_map; stat -c %u:%g /of-apt"
    with_it, without = (
        mystfuse("exec", *options, image, "sh", "-c", script, timeout=60) for options in (("--root",), ())
    )
    assert with_it.returncode == 0 and with_it.stdout == without.stdout
    assert with_it.stderr == without.stderr


# Outside


@contextmanager
def sleeping(command: list[str]) -> Iterator[int]:
    """Run a command that ends up sleeping; gives that process's number."""
    with subprocess.Popen([*command, "sleep", "7654"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            found: list[int] = []

            def is_there() -> bool:
                found[:] = [
                    pid
                    for pid in (process.pid, *descendants(process.pid))
                    if words_of(pid) in (["sleep", "7654"], ["/bin/sleep", "7654"], ["/bin/busybox", "sleep", "7654"])
                ]
                return bool(found)

            wait_until(is_there, 30)
            yield found[0]
        finally:
            process.terminate()
            process.wait(30)


def words_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]
    except OSError:
        return []


def descendants(pid: int) -> list[int]:
    found: list[int] = []
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    for child in map(int, children):
        found += [child, *descendants(child)]
    return found


def field(pid: int, name: str) -> list[str]:
    match = re.search(rf"^{name}:\t(.*)$", Path(f"/proc/{pid}/status").read_text(), re.M)
    assert match is not None
    return match[1].split()


def test_its_users_are_those_that_the_system_gives(inside: RootInside, own: Path) -> None:
    """The judge is util-linux's unshare, asked for all of them."""
    judge = inside.other_program("unshare", "--map-auto", "--map-root-user", "--mount", "/bin/busybox")
    with sleeping(judge) as pid:
        maps = [Path(f"/proc/{pid}/{name}").read_text() for name in ("uid_map", "gid_map")]
    ours = inside.command("exec", "--root", own)
    with sleeping(ours) as pid:
        # Read from outside: inside is what the numbers stand for in the namespace above.
        assert [expand(Path(f"/proc/{pid}/{name}").read_text()) for name in ("uid_map", "gid_map")] == [
            {0: USER, **{1 + number: FIRST + number for number in range(65536)}},
            {0: GROUP, **{1 + number: FIRST + number for number in range(65536)}},
        ]
        for text, name in zip(maps, ("uid_map", "gid_map"), strict=True):
            # unshare gives root's place up for the caller, and so has one less.
            judged, found = expand(text), expand(Path(f"/proc/{pid}/{name}").read_text())
            assert set(judged.values()) <= set(found.values()) and judged[0] == found[0]


def expand(text: str) -> dict[int, int]:
    lines = [[int(word) for word in line.split()] for line in text.splitlines()]
    return {inside + number: outside + number for inside, outside, count in lines for number in range(count)}


def test_outside_it_is_the_caller_or_one_of_theirs(inside: RootInside, own: Path) -> None:
    with sleeping(inside.command("exec", "--root", own, "su", "mail", "-c", 'exec "$@"', "sh")) as pid:
        assert field(pid, "Uid") == [str(FIRST + 7)] * 4
        assert field(pid, "Gid") == [str(FIRST + 7)] * 4
        assert field(pid, "NoNewPrivs") == ["1"] and field(pid, "CapEff") == ["0" * 16]
    command = inside.command("exec", "--root", own)
    with sleeping(command) as pid:
        assert (field(pid, "Uid"), field(pid, "Groups")) == ([str(USER)] * 4, [])
        user_namespace = os.readlink(f"/proc/{pid}/ns/user")
        # All that mystfuse has started for it: above the program, beside it, and the daemon with its keeper.
        top = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        while field(parent := int(field(top, "PPid")[0]), "Uid") == [str(USER)] * 4:
            top = parent
        for other in [top, *descendants(top)]:
            assert field(other, "Uid") == [str(USER)] * 4, words_of(other)
        served = [other for other in descendants(top) if field(other, "Name")[0].startswith("mystfuse:")]
        assert len(served) == 2
        for other in served:
            assert os.readlink(f"/proc/{other}/ns/user") != user_namespace
            assert field(other, "NoNewPrivs") == ["1"] and field(other, "Seccomp") == ["2"]
        assert sorted(field(other, "CapEff")[0] for other in served)[0] == "0" * 16


def test_the_callers_groups_are_not_the_programs(inside: RootInside, own: Path) -> None:
    groups = [word.replace("--clear-groups", f"--groups={GROUP},27,50") for word in inside.ordinary_user]
    user = RootInside(inside.directory, groups)
    assert user.output(own, "id", "-G") == "0\n"
    with sleeping(user.command("exec", "--root", own)) as pid:
        assert field(pid, "Groups") == []


def test_files_of_the_host_are_the_callers(inside: RootInside, own: Path) -> None:
    shared, read_only = own.parent / "shared", own.parent / "read-only"
    for directory in shared, read_only:
        directory.mkdir()
        (directory / "file").touch()
        for path in directory, directory / "file":
            os.chown(path, USER, GROUP)
    # A link of the host's root on the way.
    (own.parent / "way").symlink_to(own.parent)
    (own.parent / "stranger").write_text("of root outside\n")
    (own.parent / "stranger").chmod(0o644)
    options = ("--mount", f"{own.parent}/way/shared=/shared", "--mount", f"{read_only}=/ro,ro",
               "--mount", f"{own.parent}/stranger=/stranger,rw")  # fmt: skip
    script = (
        "stat -c %u:%g /shared/file /stranger; echo new > /shared/new; chown 42:8 /shared/file; touch /ro/new 2>&1;"
        "chown 42 /ro/file 2>&1; sh -c 'echo x > /stranger' 2>&1; chown 0 /stranger 2>&1; chmod 644 /stranger 2>&1"
    )
    # The last of them fails, and so does the script.
    result = inside.run("exec", "--root", *options, own, "sh", "-c", script)
    lines = result.stdout.splitlines()
    assert lines[:2] == ["0:0", "65534:65534"], result.stderr
    assert "Read-only" in lines[2] and "Read-only" in lines[3]
    assert "Permission denied" in lines[4] and all("not permitted" in line for line in lines[5:7]) and len(lines) == 7
    status = (shared / "file").stat(), (shared / "new").stat(), (own.parent / "stranger").stat()
    assert [(each.st_uid, each.st_gid) for each in status] == [(FIRST + 41, FIRST + 7), (USER, GROUP), (0, 0)]


# What it may do


@needs_filter
def test_it_may_do_what_roots_program_may(inside: RootInside, own: Path) -> None:
    refused = [name for name, rules in program_policy().items() if rules == refuse(errno.EPERM) and name in NUMBERS]
    assert {"mount", "bpf", "init_module", "kexec_load"} <= set(refused) and len(refused) > 50
    words = [word for name in refused for word in (str(NUMBERS[name]), "-1", "-1", "-")]
    lines = inside.output(own, "attack", "call", *words).splitlines()
    assert [int(line.split()[1]) for line in lines] == [errno.EPERM] * len(refused)
    mine = inside.output(own, "grep", "-E", "^(Cap(Inh|Prm|Eff|Amb)|NoNewPrivs|Seccomp):", "/proc/self/status")
    roots = mystfuse("exec", own, "grep", "-E", "^(Cap(Inh|Prm|Eff|Amb)|NoNewPrivs|Seccomp):", "/proc/self/status")
    assert mine == roots.stdout and len(mine.splitlines()) == 6
    for command in ("mount", "-t", "tmpfs", "none", "/root"), ("umount", "/tmp"), ("mknod", "/n", "c", "1", "3"):
        result = inside.run("exec", "--root", own, *command)
        assert result.returncode == 1 and re.search("(?i)not permitted|permission denied", result.stderr)


def test_nothing_of_the_machine_can_be_written(inside: RootInside, own: Path) -> None:
    found = writable_beneath("/proc")
    lines = inside.output(own, "attack", "write", *found).splitlines()
    assert len(lines) == len(found) and "/proc/sys/kernel/core_pattern" in found
    opened = [line.split()[0] for line in lines if line[-2:] == " 0"]
    assert [path for path in opened if not path.startswith("/proc/pressure/") and path not in MASKED] == []


def test_privileged_it_has_power_over_its_own_mounts_alone(inside: RootInside, own: Path) -> None:
    kept = own.parent / "kept"
    kept.mkdir()
    os.chown(kept, USER, GROUP)
    script = (
        "mount -t tmpfs none /root && touch /root/x && ls /root; mount -o remount,bind,rw /kept 2>&1;"
        "touch /kept/x 2>&1; mknod /n c 1 3 2>&1; umount /kept 2>&1; ls /kept"
    )
    lines = inside.output(own, "sh", "-c", script, options=("--privileged", "--mount", f"{kept}=/kept,ro")).splitlines()
    assert lines[0] == "x" and "Read-only" in lines[2] and "not permitted" in lines[3], lines
    assert len(lines) == 5 and list(kept.iterdir()) == []


def test_processes_are_bounded_however_many_users_they_belong_to(inside: RootInside, own: Path) -> None:
    result = inside.run("exec", "--root", "--pids-limit", "20", own, "sh", "-c", FORKS)
    assert result.returncode != 0 and "all" not in result.stdout and "fork" in result.stderr
    # 40 users with 15 processes each would have 600.
    script = (
        "user=1000; while test $user -lt 1040; do echo u$user:x:$user:8::/:/bin/sh >> /etc/passwd;"
        "su u$user -c 'i=0; while test $i -lt 15; do sleep 20 & i=$((i+1)); done' 2>/dev/null; user=$((user+1)); done;"
        "set -- /proc/[0-9]*; echo $#"
    )
    result = inside.run("exec", "--root", "--pids-limit", "20", own, "sh", "-c", script)
    assert 20 < int(result.stdout) <= 20 + 256, result.stderr
    assert int(inside.run("exec", "--root", own, "sh", "-c", script).stdout) > 600


# What is missing


@pytest.mark.parametrize(
    "subuid, subgid, says",
    [
        ("", None, "/etc/subuid has no line for nobody (as root: usermod --add-subuids 100000-165535 --add-subgids "
         "100000-165535 nobody)"),
        ("other:100000:65536\n", None, "no line for nobody (as root: usermod --add-subuids 165536-231071 "),
        ("nobody:100000:1000\n", None, "/etc/subuid has 1000 users for nobody, and 65535 are needed (as root: usermod"),
        ("nobody:100000:65536\n", "nobody:100000:10\n", "/etc/subgid has 10 groups for nobody, and 65535 are needed"),
        (f"nobody:{USER - 10}:65536\n", None, "newuidmap: write to uid_map failed: Invalid argument"),
        ("nobody:100000:65536\n", f"nobody:{GROUP - 10}:65536\n", "newgidmap: write to gid_map failed: Invalid"),
    ],
    ids=["none", "another's", "few users", "few groups", "own user in it", "own group in it"],
)  # fmt: skip
def test_without_users_it_is_root_alone_and_one_line_says_why(
    inside: RootInside, own: Path, subuid: str, subgid: str | None, says: str
) -> None:
    script = (
        "id -u; cat /proc/self/uid_map /proc/self/setgroups; stat -c %u /of-root /of-mail; echo more >> /of-mail;"
        "mkdir /new && stat -c %u /new; chown 42 /of-root 2>&1"
    )
    result = inside.run("exec", "--root", own, "sh", "-c", script, subuid=subuid, subgid=subgid)
    _assert_root_alone(result, says)
    lines = result.stdout.splitlines()
    assert [lines[0], lines[1].split(), *lines[2:6]] == ["0", ["0", "0", "1"], "deny", "0", "0", "0"]
    assert "Invalid argument" in lines[6]


def _assert_root_alone(result: subprocess.CompletedProcess[str], says: str) -> None:
    [line] = [line for line in result.stderr.splitlines() if "trusted by nobody" not in line]
    assert line.startswith(
        "mystfuse: warning: the program's root has no other users (chown fails, apt needs -o APT::Sandbox::User=root): "
    )
    assert says in line


def test_without_newuidmap_one_line_says_what_to_install(inside: RootInside, own: Path) -> None:
    tools = own.parent / "tools"
    tools.mkdir()
    for name in "bwrap", "fusermount3", "getsubids":
        (tools / name).symlink_to(shutil.which(name) or name)
    environment = inside.ordinary_user[: inside.ordinary_user.index("env") + 1]
    command = [*environment, f"PATH={tools}", *inside.ordinary_user[len(environment) :], "exec", "--root", own, "true"]
    result = run(*with_ids(inside.directory, list(map(str, command))), check=False, timeout=60)
    assert result.returncode == 0
    _assert_root_alone(result, "newuidmap is not installed (apt install uidmap)")


def test_where_no_program_gains_privileges_one_line_says_so(inside: RootInside, own: Path) -> None:
    """As in a service with NoNewPrivileges=."""
    user = ["setpriv", "--no-new-privs", *inside.ordinary_user]
    result = RootInside(inside.directory, user).run("exec", "--root", own, "true")
    assert result.returncode == 0
    _assert_root_alone(result, "newuidmap: write to uid_map failed: Operation not permitted (no-new-privileges is set")


@pytest.mark.parametrize("options", [(), ("--root",)])
@pytest.mark.parametrize(
    "limit, says",
    [(0, "sysctl user.max_user_namespaces is 0"), (1, "as many as sysctl user.max_user_namespaces allows")],
)
def test_without_user_namespaces_one_line_says_which_setting(
    inside: RootInside, own: Path, options: tuple[str, ...], limit: int, says: str
) -> None:
    """In a namespace whose limit is ours to set, as user 1000 of it."""
    # What is left of the limit: one for exec's mounts, none for the program.
    code = inside.ordinary_user[inside.ordinary_user.index("env") :]
    become = "setpriv --reuid=1000 --regid=1000 --clear-groups"
    script = f'echo {limit} > /proc/sys/user/max_user_namespaces && exec {become} "$@"'
    around = ["unshare", "--user", "--map-auto", "--map-root-user", "sh", "-c", script, "sh"]
    result = run(*inside.other_program(*around, *code, "exec", *options, str(own), "true"), check=False, timeout=60)
    lines = [line for line in result.stderr.splitlines() if "trusted by nobody" not in line]
    if limit and not options:
        # bubblewrap's own words.
        assert result.returncode == 1 and lines
        return
    assert result.returncode == 1 and len(lines) == 1 and lines[0].startswith("mystfuse: ") and says in lines[0], lines


def test_what_must_not_be_mistyped(inside: RootInside, own: Path) -> None:
    result = inside.run("exec", "--root=yes", own, "true")
    assert_one_line(result, 2, "--root")
    assert_one_line(mystfuse("exec", "--root"), 2, "IMAGE")

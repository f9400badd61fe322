"""mount(8), umount(8), findmnt(8), fstab(5) and mount.fuse3, on a machine of its own with mount.mystfuse."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import GROUP, USER, assert_one_line, mystfuse, run, wait_until
from tests.support.mounts import OWN_MOUNTS

PROJECT = Path(__file__).parents[2]
USER_WORDS = ["setpriv", f"--reuid={USER}", f"--regid={GROUP}", "--clear-groups"]

SETUP = """
set -e
mount -t tmpfs tmpfs /run
mkdir -p "$0/overlay"
mount -t tmpfs -o mode=755 tmpfs "$0/overlay"
mkdir "$0/overlay/upper" "$0/overlay/work"
mount -t overlay -o "lowerdir=/usr/sbin,upperdir=$0/overlay/upper,workdir=$0/overlay/work" overlay /usr/sbin
cp "$0/mount.mystfuse" "$0/mystfuse" /usr/sbin
mount --bind "$0/fstab" /etc/fstab
mknod -m 666 "$0/overlay/fuse" c 10 229
mount --bind "$0/overlay/fuse" /dev/fuse
cd "$0"
echo ready
while :; do sleep 1000 & wait; done
"""


class Machine:
    """A machine with mounts and processes of its own: when its first process ends, the kernel ends all others and
    removes their mounts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.image, self.mountpoint, self.fstab = directory / "image", directory / "mount", directory / "fstab"
        self.mountpoint.mkdir()
        self.fstab.touch()
        self._unshare = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation=private",
             *OWN_MOUNTS, "bash", "-c", SETUP, directory],
            stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self._unshare.stdout is not None
        assert self._unshare.stdout.readline() == b"ready\n"
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text()
        self._init = children.strip()

    def __call__(self, *command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command on the machine."""
        enter = ["nsenter", f"--target={self._init}", "--mount", "--pid", f"--wd={self.directory}"]
        return run(*enter, *command, check=check)

    def mount(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self("mount", *arguments, check=check)

    def mount_image(self, options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.mount("-t", "mystfuse", self.image, self.mountpoint, "-o", options, check=check)

    def umount(self) -> None:
        self("umount", self.mountpoint)
        wait_until(lambda: not self.daemons())

    def daemons(self) -> list[str]:
        """The process numbers of the machine's daemons, in its own process namespace."""
        found = self("sh", "-c", "grep -lsE '^mystfuse:[0-9]' /proc/[0-9]*/comm", check=False).stdout
        return re.findall(r"/proc/(\d+)/", found)

    def mounts(self) -> list[list[str]]:
        """The fields of our lines of /proc/mounts. Lines of other programs were there when the machine started."""
        lines = self("cat", "/proc/mounts").stdout.splitlines()
        return [line.split() for line in lines if f" {self.mountpoint} " in line]

    def close(self) -> None:
        self._unshare.kill()
        self._unshare.communicate()


@pytest.fixture(scope="module")
def installed(ordinary_user: list[str], small_tree: Path, open_tmp_path_of_module: Path) -> Iterator[Machine]:
    directory = open_tmp_path_of_module
    words = " ".join(ordinary_user[ordinary_user.index("env") : -1])
    for name, module in ("mount.mystfuse", "mystfuse.cli.commands.mount_mystfuse"), ("mystfuse", "mystfuse"):
        (directory / name).write_text(f'#!/bin/sh\nexec {words} {module} "$@"\n')
        (directory / name).chmod(0o755)
    assert mystfuse("mkext2", small_tree, directory / "image").returncode == 0
    (directory / "image").chmod(0o644)
    machine = Machine(directory)
    try:
        yield machine
    finally:
        machine.close()


@pytest.fixture
def machine(installed: Machine) -> Iterator[Machine]:
    yield installed
    for _ in installed.mounts():
        installed("umount", "-l", installed.mountpoint)
    wait_until(lambda: not installed.daemons())
    installed.fstab.write_text("")


@pytest.fixture(scope="module")
def root_hash(installed: Machine) -> str:
    return mystfuse("fssig", "--roothash", installed.image).stdout.strip()


def test_mount_findmnt_and_umount(machine: Machine, root_hash: str) -> None:
    result = machine.mount_image(f"ro,roothash={root_hash}")
    assert (result.stdout, result.stderr) == ("", "")
    found = machine("findmnt", "-n", "-o", "SOURCE,FSTYPE,TARGET", "--raw", machine.mountpoint).stdout
    assert found == f"{machine.image} fuse.mystfuse {machine.mountpoint}\n"
    assert machine("cat", machine.mountpoint / "hello.txt").stdout == "hello\n"
    machine("umount", machine.mountpoint)
    wait_until(lambda: not machine.daemons())
    assert machine.mounts() == []


@pytest.mark.parametrize(
    ("options", "present", "absent"),
    [
        ("defaults", {"rw", "nosuid", "nodev", "noatime", "default_permissions"}, {"ro", "noexec"}),
        ("rw,ro", {"ro"}, {"rw"}),
        # mount(8) drops these options because they are its defaults; our defaults differ.
        ("rw,dev,suid", {"rw", "nosuid", "nodev"}, set()),
        ("rw,allow_dev,allow_suid", {"rw"}, {"nosuid", "nodev"}),
        ("nosuid,allow_dev,allow_suid", {"nosuid"}, {"nodev"}),
        ("suid,dev,nosuid,nodev,noexec", {"nosuid", "nodev", "noexec"}, set()),
        ("noexec,exec,ro,rw", {"rw"}, {"noexec", "ro"}),
        ("user,allow_suid", {"nosuid", "nodev", "noexec"}, set()),
        ("user,exec,dev,suid", set(), {"nosuid", "nodev", "noexec"}),
        ("allow_other,uid=root", {"allow_other"}, set()),
        ("noauto,nofail,_netdev,x-systemd.automount,x-systemd.requires=x.service,comment=x,owner,group,sync,dirsync,"
         "async,atime,diratime,nodiratime,relatime,norelatime,strictatime,lazytime,iversion,silent,loud,nouser",
         {"rw", "noatime"}, set()),
    ],
)  # fmt: skip
def test_options_are_in_the_mount_table(machine: Machine, options: str, present: set[str], absent: set[str]) -> None:
    machine.mount_image(f"trust_self,{options}")
    ((source, target, fstype, shown, *_),) = machine.mounts()
    assert (source, target, fstype) == (str(machine.image), str(machine.mountpoint), "fuse.mystfuse")
    assert present <= set(shown.split(","))
    assert not absent & set(shown.split(","))


def test_dev_and_suid_count_where_the_helper_gets_them(machine: Machine) -> None:
    machine("/sbin/mount.mystfuse", machine.image, machine.mountpoint, "-n", "-o", "trust_self,nodev,dev,suid")
    ((_, _, _, options, *_),) = machine.mounts()
    assert not {"nosuid", "nodev"} & set(options.split(","))


def test_our_own_options_work_through_mount(machine: Machine) -> None:
    machine("touch", machine.mountpoint / "underneath")
    options = "nonempty,uid=77,gid=88,nocontrol,noxattr,noacl,overlay_limit=2M,io_timeout=5,idle_timeout=0"
    machine.mount_image(f"trust_self,on_corruption=unmount,log_file={machine.directory}/log,{options}")
    assert machine("stat", "-c", "%u %g", machine.mountpoint / "sub").stdout == "77 88\n"
    assert machine("ls", machine.mountpoint / ".mystfuse", check=False).returncode == 2
    assert machine("dd", "if=/dev/zero", f"of={machine.mountpoint}/big", "bs=1M", "count=3", check=False).returncode
    machine.umount()
    machine("rm", machine.mountpoint / "underneath")


def test_an_untrusted_image_is_refused(machine: Machine) -> None:
    for options in ("rw", "trust_self,no_trust_self"):
        assert_one_line(machine.mount_image(options, check=False), 32, "not trusted", "roothash=")
    assert_one_line(machine.mount_image(f"roothash={'0' * 64}", check=False), 32, "not in the list of trusted")
    assert machine.mounts() == []
    assert_one_line(machine.mount_image("trust_self", check=False), 0, "trusted by nobody but itself")


@pytest.mark.parametrize(
    ("options", "status", "part"),
    [
        ("frob", 1, "-o frob"),
        ("io_timeout=soon", 1, "io_timeout=soon"),
        ("foreground", 1, "background"),
        ("ready_fd=5", 1, "descriptors"),
        ("roothash=xyz", 1, "roothash xyz"),
        ("key=00fg", 1, "hex digits"),
        ("key=00,key=00", 1, "one key"),
        ("key=00,keyfile=/dev/null", 1, "exclude"),
        ("trust_self,keyfile=/dev/null", 1, "not a regular file"),
        ("trust_self,remount", 32, "unmount it and mount it again"),
    ],
)
def test_wrong_options_end_with_a_status_of_mounts_own(machine: Machine, options: str, status: int, part: str) -> None:
    result = machine.mount_image(options, check=False)
    assert_one_line(result, status, part)
    assert "00fg" not in result.stderr


def test_wrong_arguments_and_images(machine: Machine) -> None:
    helper = "/sbin/mount.mystfuse"
    for arguments in ((), ("one",), ("one", "two", "three"), ("one", "two", "-x"), ("one", "two", "-o")):
        assert_one_line(machine(helper, *arguments, check=False), 1, "usage: mount.mystfuse IMAGE DIRECTORY")
    assert machine(helper, "--help").stdout.startswith("usage: ")
    assert machine(helper, "-V").stdout.startswith("mount.mystfuse from mystfuse ")
    assert_one_line(machine.mount("-t", "mystfuse", "/nowhere", machine.mountpoint, check=False), 32, "/nowhere")
    assert_one_line(machine(helper, machine.image, "/nowhere", "-o", "trust_self", check=False), 32, "/nowhere")
    assert_one_line(
        machine(helper, "/etc/passwd", machine.mountpoint, check=False), 32, "/etc/passwd: a text", "not an image"
    )


def test_fake_sloppy_and_verbose(machine: Machine) -> None:
    assert machine.mount("-f", "-t", "mystfuse", machine.image, machine.mountpoint).stderr == ""
    assert_one_line(machine.mount("-f", "-t", "mystfuse", "/nowhere", machine.mountpoint, check=False), 32, "/nowhere")
    assert machine.mounts() == []
    result = machine.mount("-sv", "-t", "mystfuse", machine.image, machine.mountpoint, "-o", "frob,trust_self")
    assert f"{machine.image} mounted on {machine.mountpoint}" in result.stdout
    machine.umount()
    result = machine.mount("-s", "-t", "mystfuse", machine.image, machine.mountpoint, "-o", "roothash", check=False)
    assert_one_line(result, 1, "-o roothash")


def test_another_mount_namespace(machine: Machine) -> None:
    script = f"""
        unshare --mount --propagation=private sleep 100 & other=$!
        until [ "$(readlink /proc/$other/ns/mnt)" != "$(readlink /proc/self/ns/mnt)" ]; do sleep 0.1; done
        mount -N $other -t mystfuse -o trust_self "{machine.image}" "{machine.mountpoint}" 2>/dev/null
        grep -c "{machine.mountpoint}" /proc/self/mounts
        nsenter -t $other -m cat "{machine.mountpoint}/hello.txt"
        nsenter -t $other -m umount "{machine.mountpoint}"
        kill $other
    """
    assert machine("sh", "-c", script).stdout == "0\nhello\n"
    result = machine("/sbin/mount.mystfuse", machine.image, machine.mountpoint, "-N", "/etc/passwd", check=False)
    assert_one_line(result, 32, "namespace /etc/passwd")


def test_fstab(machine: Machine, root_hash: str) -> None:
    def write(options: str) -> None:
        machine.fstab.write_text(f"{machine.image} {machine.mountpoint} mystfuse {options} 0 0\n")

    write(f"ro,noauto,nofail,x-systemd.automount,_netdev,roothash={root_hash}")
    machine.mount("-a")
    assert machine.mounts() == []
    machine.mount(machine.mountpoint)
    assert len(machine.mounts()) == 1
    machine.umount()
    write(f"nofail,roothash={root_hash}")
    machine.mount("-a")
    machine.mount("-a")
    assert len(machine.mounts()) == 1
    assert_one_line(machine.mount("-o", "remount,ro", machine.mountpoint, check=False), 32, "unmount it and mount it")
    (daemon,) = machine.daemons()
    machine("kill", "-9", daemon)
    wait_until(lambda: machine("ls", machine.mountpoint, check=False).returncode != 0)
    machine.umount()
    machine.mount("-a")
    assert machine("cat", machine.mountpoint / "hello.txt").stdout == "hello\n"


def test_fstab_line_for_users(machine: Machine) -> None:
    machine.fstab.write_text(f"{machine.image} {machine.mountpoint} mystfuse noauto,user,trust_self,map_root 0 0\n")
    os.chown(machine.mountpoint, USER, GROUP)
    try:
        machine(*USER_WORDS, "mount", machine.mountpoint)
        ((*_, options, _dump, _pass),) = machine.mounts()
        assert {"nosuid", "nodev", "noexec", f"user_id={USER}"} <= set(options.split(","))
        assert machine(*USER_WORDS, "cat", machine.mountpoint / "hello.txt").stdout == "hello\n"
        machine(*USER_WORDS, "umount", machine.mountpoint)
        assert machine.mounts() == []
        machine.fstab.write_text(machine.fstab.read_text().replace("user,", "user,suid,dev,"))
        assert_one_line(machine(*USER_WORDS, "mount", machine.mountpoint, check=False), 1, "for root alone")
    finally:
        os.chown(machine.mountpoint, 0, 0)


def test_keys(machine: Machine, small_tree: Path) -> None:
    key, key_file, secret = os.urandom(64), machine.directory / "key", machine.directory / "secret"
    key_file.write_bytes(key)
    key_file.chmod(0o600)
    assert mystfuse("mkext2", "--encrypt", key_file, small_tree, secret).returncode == 0
    arguments = ("-t", "mystfuse", secret, machine.mountpoint, "-o")
    trusted = f"roothash={mystfuse('fssig', '--roothash', secret).stdout.strip()}"
    machine.mount(*arguments, f"{trusted},keyfile={key_file}")
    machine.umount()
    assert_one_line(machine.mount(*arguments, trusted, check=False), 32, "encrypted", "--key-file")

    result = machine.mount(*arguments, f"_netdev,{trusted},key={key.hex()}")
    assert "use -o keyfile=FILE" in result.stderr and key.hex() not in result.stderr
    assert machine("cat", machine.mountpoint / "hello.txt").stdout == "hello\n"
    (daemon,) = machine.daemons()
    seen = machine("sh", "-c", f"cat /proc/{daemon}/cmdline /proc/{daemon}/environ /proc/mounts /run/mount/utab").stdout
    assert "keyfile=/dev/fd/" in seen and key.hex() not in seen
    machine.umount()
    wrong = os.urandom(64).hex()
    result = machine.mount(*arguments, f"{trusted},key={wrong}", check=False)
    assert result.returncode == 32 and "key" in result.stderr and wrong not in result.stderr


def test_mount_fuse3_starts_us_as_any_other(machine: Machine, root_hash: str) -> None:
    machine.mount(
        "-t", "fuse.mystfuse", machine.image, machine.mountpoint, "-o", f"ro,nosuid,nodev,roothash={root_hash}"
    )
    ((_, _, fstype, options, *_),) = machine.mounts()
    assert fstype == "fuse.mystfuse" and {"ro", "nosuid", "nodev"} <= set(options.split(","))
    assert_one_line(machine.mount("-o", "remount,rw", machine.mountpoint, check=False), 7, "unmount it and mount it")
    machine.umount()
    machine.mount("-t", "fuse", f"mystfuse#{machine.image}", machine.mountpoint)
    assert machine("cat", machine.mountpoint / "hello.txt").stdout == "hello\n"
    machine.umount()
    result = machine.mount("-t", "fuse.mystfuse", machine.image, machine.mountpoint, "-o", "no_trust_self", check=False)
    assert_one_line(result, 3, "not trusted")


def test_mount_fuse3_starts_us_without_privileges(machine: Machine) -> None:
    arguments = ("-t", "fuse.mystfuse", machine.image, machine.mountpoint, "-o")
    result = machine.mount(*arguments, "drop_privileges", check=False)
    assert_one_line(result, 2, "default_permissions")
    machine("umount", machine.mountpoint)

    options = f"drop_privileges,default_permissions,nosuid,nodev,fsname={machine.image}"
    for user in ("", ",setuid=nobody,allow_other"):
        machine.mount(*arguments, options + user)
        ((source, target, fstype, *_),) = machine.mounts()
        assert (source, target, fstype) == (str(machine.image), str(machine.mountpoint), "fuse.mystfuse")
        assert machine("cat", machine.mountpoint / "hello.txt").stdout == "hello\n"
        machine("sh", "-c", f"echo new > {machine.mountpoint}/new")
        (daemon,) = machine.daemons()
        status = machine("cat", f"/proc/{daemon}/status").stdout
        assert re.search(r"^CapBnd:\s+0+$", status, re.MULTILINE)
        assert re.search(rf"^Uid:\s+{USER if user else 0}\s", status, re.MULTILINE)
        assert f"mountpoint: {machine.mountpoint}\n" in machine("mystfuse", "status", machine.mountpoint).stdout
        machine("mystfuse", "umount", machine.mountpoint)
        assert machine.daemons() == []

    # The daemon has no privilege to unmount, but it ends.
    machine.mount(*arguments, options)
    (daemon,) = machine.daemons()
    machine("kill", daemon)
    wait_until(lambda: not machine.daemons())
    machine("mystfuse", "umount", machine.mountpoint)
    assert machine.mounts() == []


def test_a_descriptor_that_is_not_a_mounted_fuse_is_refused(small_image: Path) -> None:
    with open("/dev/null") as null:
        result = mystfuse(small_image, f"/dev/fd/{null.fileno()}", pass_fds=[null.fileno()])
        assert_one_line(result, 7, "not a descriptor of /dev/fuse")
    assert_one_line(mystfuse(small_image, "/dev/fd/999"), 7, "/dev/fd/999: Bad file descriptor")
    with open("/dev/fuse", "rb+", buffering=0) as fuse:
        descriptor = fuse.fileno()
        options = ("-o", "default_permissions,insecure")
        result = mystfuse("mount", *options, small_image, f"/dev/fd/{descriptor}", pass_fds=[descriptor], timeout=20)
        assert_one_line(result, 7, "not a descriptor of /dev/fuse that is mounted")

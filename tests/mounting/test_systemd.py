"""The units under a real systemd, booted in namespaces of its own over a copy-on-write view of this machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.commands import mystfuse
from tests.support.mounts import OWN_MOUNTS

PROJECT = Path(__file__).parents[2]
TIMEOUT = 100
"""Seconds for the boot and the whole script."""

BOOT = r"""
set -e
mkdir "$0/overlay" "$0/root"
mount -t tmpfs -o mode=755 tmpfs "$0/overlay"
mkdir "$0/overlay/upper" "$0/overlay/work"
mount -t overlay -o "lowerdir=/,upperdir=$0/overlay/upper,workdir=$0/overlay/work" overlay "$0/root"
cd "$0/root"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
for directory in run tmp dev dev/shm; do mkdir -p $directory; mount -t tmpfs -o mode=755 tmpfs $directory; done
while read -r name major minor; do mknod -m 666 dev/$name c $major $minor; done <<-end
	null 1 3
	zero 1 5
	full 1 7
	random 1 8
	urandom 1 9
	tty 5 0
	fuse 10 229
end
ln -s /proc/self/fd dev/fd
mkdir -p work code srv/app usr/local/bin etc/mystfuse/mounts etc/credstore etc/systemd/system
mount --bind "$0" work
mount --bind "$1" code
cp work/mystfuse work/units/mystfuse@.service etc/systemd/system
mv etc/systemd/system/mystfuse usr/local/bin
cp work/mount.mystfuse sbin
rm -rf etc/systemd/system/*.wants etc/systemd/system/mystfuse@*.service.d
: > etc/fstab
cat > etc/systemd/system/try.service <<-end
	[Unit]
	After=basic.target
	[Service]
	Type=oneshot
	ExecStart=/bin/bash /work/script
	StandardOutput=file:/work/said
	StandardError=file:/work/said
	ExecStopPost=/bin/systemctl --no-block exit
end
cat > etc/systemd/system/try.target <<-end
	[Unit]
	Requires=basic.target try.service
end
mkdir old
pivot_root . old
umount -l old
mount --make-rshared /
container=other exec /lib/systemd/systemd --system --unit=try.target --log-target=null --show-status=0 < /dev/null
"""

SCRIPT = r"""
show() { systemctl show "$1" -p ActiveState,Result,StatusText,ExecMainStatus | sort | tr '\n' ' '; echo; }
is_mounted() { grep -q ' /srv/app fuse.mystfuse ' /proc/mounts && echo mounted || echo not mounted; }
tell() { printf 'IMAGE=%s\nMOUNTPOINT=/srv/app\nOPTIONS=%s\n' "$2" "$3" > "/etc/mystfuse/mounts/$1.env"; }
root=$(cat /work/root-hash) secret_root=$(cat /work/secret-root)
tell app /work/image "ro,roothash=$root"
tell self /work/image ""
tell bad /work/bad "roothash=$root"
tell secret /work/secret "roothash=$secret_root"
install -m 600 /work/key /etc/credstore/mystfuse.secret.key

echo 1; systemctl start mystfuse@app && show mystfuse@app; is_mounted; cat /srv/app/hello.txt
echo 1000; grep -E '"(seccomp|empty_root|own_user)":' /srv/app/.mystfuse/status.json
for each in /proc/[0-9]*; do
    grep -q -s '^mystfuse:keeper$' $each/comm && grep -E '^(CapEff|CapBnd|Seccomp):' $each/status
done
echo 2; systemctl stop mystfuse@app && show mystfuse@app; is_mounted
echo 3; systemctl start mystfuse@self 2> /dev/null || show mystfuse@self
echo 4; systemctl start mystfuse@bad 2> /dev/null || show mystfuse@bad
echo 5; systemctl start mystfuse@secret && show mystfuse@secret; cat /srv/app/hello.txt
echo 6; systemctl kill -s KILL mystfuse@secret
until [ "$(systemctl is-active mystfuse@secret)" = failed ]; do sleep 0.1; done
show mystfuse@secret; is_mounted
echo 7; systemctl start mystfuse@secret && umount /srv/app
until [ "$(systemctl is-active mystfuse@secret)" = inactive ]; do sleep 0.1; done
show mystfuse@secret
echo 8; cd /etc/systemd/system; mkdir mystfuse@app.service.d
examples=/work/units/examples
sed s/User=.*/User=nobody/ $examples/ordinary-user.conf > mystfuse@app.service.d/user.conf
sed "s,^What=.*,What=/work/image,; s,^Options=.*,Options=ro\,roothash=$root," $examples/srv-app.mount > srv-app.mount
systemctl daemon-reload
chown nobody /srv/app
systemctl start mystfuse@app && show mystfuse@app
grep ' /srv/app ' /proc/mounts | grep -o 'user_id=[0-9]*'
systemctl stop mystfuse@app; is_mounted
chown root /srv/app
echo 9; systemctl start srv-app.mount && cat /srv/app/hello.txt
systemctl stop srv-app.mount; is_mounted
rm -r srv-app.mount mystfuse@app.service.d; systemctl daemon-reload
while read -r status command; do
    echo "$status"; eval "$command"; echo "status $?"
done < /work/documented
"""


FIRST_DOCUMENTED = 10


def documented_commands() -> list[str]:
    """The systemctl commands that the documents tell users to run; journalctl(1) has no journal here."""
    commands: list[str] = []
    for document in sorted((PROJECT / "docs").glob("*.md")):
        commands += re.findall(r"^# (systemctl .*)$", document.read_text(), re.MULTILINE)
    return commands


@pytest.fixture
def said(open_tmp_path: Path, ordinary_user: list[str], small_tree: Path) -> dict[str, str]:
    """The script's output under systemd, by its steps."""
    if (
        os.geteuid()
        or not Path("/lib/systemd/systemd").exists()
        or "cgroup2" not in Path("/proc/filesystems").read_text()
    ):
        pytest.skip("no systemd that could be booted here")
    shutil.copytree(PROJECT / "systemd", open_tmp_path / "units")
    words = " ".join(ordinary_user[ordinary_user.index("env") : -1])
    # The checkout is in /tmp, and the unit has a /tmp of its own.
    python_path = next(word for word in ordinary_user if word.startswith("PYTHONPATH=")).partition("=")[2]
    for name, module in ("mount.mystfuse", "mystfuse.cli.commands.mount_mystfuse"), ("mystfuse", "mystfuse"):
        launcher = open_tmp_path / name
        launcher.write_text(f'#!/bin/sh\nexec {words.replace(python_path, "/code")} {module} "$@"\n')
        launcher.chmod(0o755)
    (open_tmp_path / "key").write_bytes(os.urandom(64))
    (open_tmp_path / "key").chmod(0o600)
    (open_tmp_path / "bad").write_bytes(os.urandom(100_000))
    for name, options in ("image", ()), ("secret", ("--encrypt", open_tmp_path / "key")):
        assert mystfuse("mkext2", *options, small_tree, open_tmp_path / name).returncode == 0
        (open_tmp_path / name).chmod(0o644)
    (open_tmp_path / "root-hash").write_text(mystfuse("fssig", "--roothash", open_tmp_path / "image").stdout)
    (open_tmp_path / "secret-root").write_text(mystfuse("fssig", "--roothash", open_tmp_path / "secret").stdout)
    (open_tmp_path / "script").write_text(SCRIPT)
    (open_tmp_path / "documented").write_text(
        "".join(f"{number} {command}\n" for number, command in enumerate(documented_commands(), FIRST_DOCUMENTED))
    )
    result = subprocess.run(
        ["timeout", "--signal=KILL", str(TIMEOUT), "unshare", "--mount", "--pid", "--fork", "--kill-child", "--cgroup",
         "--uts", "--ipc", "--net", "--propagation=private", *OWN_MOUNTS, "bash", "-c", BOOT, open_tmp_path,
         python_path],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if not (open_tmp_path / "said").exists():
        pytest.skip(f"no systemd can be booted here: {result.stderr[-300:]}")
    steps = (open_tmp_path / "said").read_text().splitlines()
    parts: dict[str, str] = {}
    for line in steps:
        if line.isdigit():
            parts[line] = ""
        elif parts:
            parts[list(parts)[-1]] += f"{line}\n"
    return parts


def test_the_units_work_under_systemd(said: dict[str, str]) -> None:
    assert "ActiveState=active" in said["1"] and "StatusText=/work/image mounted on /srv/app, read-only" in said["1"]
    assert said["1"].endswith("\nmounted\nhello\n"), said["1"]
    # The privileges that the unit leaves are enough for the daemon to give them all up.
    assert '"seccomp": true' in said["1000"] and '"empty_root": true' in said["1000"], said["1000"]
    assert re.search(r'"own_user": \d+', said["1000"]), said["1000"]
    assert re.findall(r"^(\w+):\s+(\w+)$", said["1000"], re.MULTILINE) == [
        ("CapEff", f"{1 << 21 | 1 << 2:016x}"), ("CapBnd", f"{1 << 21 | 1 << 2:016x}"), ("Seccomp", "2"),
    ]  # fmt: skip
    assert "ActiveState=inactive" in said["2"] and "Result=success" in said["2"] and "not mounted" in said["2"]
    assert "ExecMainStatus=3 " in said["3"] and "StatusText=/work/image: not trusted" in said["3"]
    assert "ExecMainStatus=6 " in said["4"] and "StatusText=/work/bad: 97.7 KiB of random bytes" in said["4"]
    assert "ActiveState=active" in said["5"] and said["5"].endswith("\nhello\n"), said["5"]
    assert "Result=signal" in said["6"] and said["6"].endswith("\nmounted\n")
    assert "Result=success" in said["7"]
    assert "ActiveState=active" in said["8"] and "user_id=65534\nnot mounted\n" in said["8"], said["8"]
    assert said["9"] == "hello\nnot mounted\n"
    commands = documented_commands()
    assert len(commands) >= 4
    for number, command in enumerate(commands, FIRST_DOCUMENTED):
        assert said[str(number)].endswith("status 0\n"), (command, said[str(number)])
    assert "Active: active (running)" in "".join(said.values())

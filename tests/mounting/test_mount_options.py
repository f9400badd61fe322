"""Starting mounts: options, trust, status, other users, and what is refused."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mystfuse.mounting.mount_table import find_mount
from tests.support.commands import GROUP, USER, assert_one_line, mystfuse, run, wait_until
from tests.support.mounts import clear_mount, daemon_pid, mounted, status_of


def test_mounting_says_what_is_mounted_and_why_it_is_trusted(small_image: Path, mountpoint: Path) -> None:
    root_hash = mystfuse("fssig", "--roothash", small_image).stdout.strip()
    result = mystfuse(small_image, mountpoint, f"--roothash={root_hash}")
    assert (result.returncode, result.stderr) == (0, "")
    how = "writes are kept in memory and forgotten at unmount"
    assert result.stdout == f"{small_image} mounted on {mountpoint}, {how}; its root hash is a trusted one\n"
    mount = find_mount(str(mountpoint))
    assert mount is not None and mount.source == str(small_image)
    assert Path(f"/proc/{daemon_pid(mountpoint)}/comm").read_text() == f"{mount.daemon_name}\n"


def test_without_any_trust_the_image_is_trusted_by_itself_with_a_warning(small_image: Path, mountpoint: Path) -> None:
    result = mystfuse(small_image, mountpoint)
    assert_one_line(result, 0, "warning", "trusted by nobody")


def test_fuse_and_mount_options_reach_the_mount_table(small_image: Path, mountpoint: Path) -> None:
    with mounted(small_image, mountpoint, "-o", "ro,allow_other,noexec,dev", "-o", "suid"):
        (line,) = (line for line in Path("/proc/mounts").read_text().splitlines() if f" {mountpoint} " in line)
        options = line.split()[3].split(",")
        assert {"ro", "noexec", "noatime", "default_permissions", "allow_other"} <= set(options)
        assert not {"nosuid", "nodev"} & set(options)
    with mounted(small_image, mountpoint):
        (line,) = (line for line in Path("/proc/mounts").read_text().splitlines() if f" {mountpoint} " in line)
        assert {"rw", "nosuid", "nodev", "default_permissions"} <= set(line.split()[3].split(","))
        assert line.split()[2] == "fuse.mystfuse"


def test_odd_names_of_image_and_mountpoint_work(small_image: Path, tmp_path: Path) -> None:
    odd = tmp_path / "im,age \\ \u00e4\n.img"
    odd.symlink_to(small_image)
    real = tmp_path / "copy, with \\ \u00e4.img"
    run("cp", "--sparse=always", small_image, real)
    mountpoint = tmp_path / "a mount, \\ \u00e4"
    for image in (odd, real):
        with mounted(image, mountpoint) as path:
            assert (path / "hello.txt").read_text() == "hello\n"
            assert mystfuse("status", path).returncode == 0


@pytest.mark.parametrize(
    ("options", "status", "part"),
    [
        (("-o", "nosuchthing"), 2, "nosuchthing"),
        (("-o", "uid=root"), 2, "uid=root"),
        (("--overlay-limit", "100k"), 2, "read-only"),
        (("-o", "roothash"), 2, "roothash"),
        (("--uid", "-1"), 2, "-1"),
        (("--io-timeout", "soon"), 2, "soon"),
        (("--roothash", "abc"), 2, "--roothash abc"),
        (("--pubkey", "/nowhere.pem"), 2, "/nowhere.pem"),
        (("--ready-fd", "77"), 2, "77"),
        (("--hash-offset", "4096"), 2, "--roothash"),
        (("--nosuchoption",), 2, "--nosuchoption"),
        (("--roothash", "0" * 64), 3, "not trusted"),
    ],
)
def test_wrong_options_are_reported_in_one_line(
    options: tuple[str, ...], status: int, part: str, small_image: Path, mountpoint: Path
) -> None:
    assert_one_line(mystfuse("mount", *options, small_image, mountpoint), status, part)
    assert find_mount(str(mountpoint)) is None


def test_wrong_images_and_mountpoints_are_reported_in_one_line(small_image: Path, tmp_path: Path) -> None:
    mountpoint = tmp_path / "mount"
    assert_one_line(mystfuse(small_image, mountpoint), 7, str(mountpoint), "no such directory")
    mountpoint.mkdir()
    assert_one_line(mystfuse(tmp_path / "missing", mountpoint), 1, "missing", "No such file")
    assert_one_line(mystfuse(tmp_path, mountpoint), 6, "a directory, not an image")
    (tmp_path / "garbage").write_bytes(os.urandom(10_000))
    assert_one_line(mystfuse(tmp_path / "garbage", mountpoint), 6, "9.8 KiB of random bytes")
    (tmp_path / "tiny").write_bytes(b"x")
    assert_one_line(mystfuse(tmp_path / "tiny", mountpoint), 6, "a text of 1 byte, not an image")
    assert_one_line(mystfuse(small_image, tmp_path / "tiny"), 7, "not a directory")
    (mountpoint / "something").touch()
    assert_one_line(mystfuse(small_image, mountpoint), 7, "not empty", "nonempty")
    assert_one_line(mystfuse("umount", mountpoint), 7, "nothing of mystfuse's is mounted")
    assert_one_line(mystfuse("status", mountpoint), 7, "nothing of mystfuse's is mounted")
    assert_one_line(mystfuse("nosuchcommand"), 2, "nosuchcommand")
    with mounted(small_image, mountpoint, "-o", "nonempty"):
        assert not (mountpoint / "something").exists()
    assert (mountpoint / "something").exists()


def test_a_refused_feature_is_named(tmp_path: Path) -> None:
    image = tmp_path / "image"
    run("mke2fs", "-q", "-F", "-t", "ext2", image, "8M")
    run("debugfs", "-w", "-R", "feature +imagic_inodes", image)
    (tmp_path / "mount").mkdir()
    result = mystfuse("mount", "--insecure", image, tmp_path / "mount")
    assert result.returncode == 6
    assert "imagic_inodes" in result.stderr


def test_a_mount_is_read_only_because_of_features_that_it_names(tmp_path: Path, mountpoint: Path) -> None:
    image = tmp_path / "image"
    run("mke2fs", "-q", "-F", "-t", "ext4", "-O", "bigalloc", image, "8M")
    result = mystfuse("mount", "--insecure", image, mountpoint)
    try:
        assert result.returncode == 0
        assert "read-only because of bigalloc" in result.stdout
        assert os.statvfs(mountpoint).f_flag & os.ST_RDONLY
        assert status_of(mountpoint)["read_only"] is True
        with pytest.raises(OSError) as caught:
            (mountpoint / "new").touch()
        assert caught.value.errno == errno.EROFS
    finally:
        assert mystfuse("umount", mountpoint).returncode == 0


def test_foreground_ready_fd_and_sigusr1(small_image: Path, mountpoint: Path, tmp_path: Path) -> None:
    receiver, sender = os.pipe()
    log = tmp_path / "log"
    command = [sys.executable, "-m", "mystfuse", "-f", f"--ready-fd={sender}", f"--log-file={log}"]
    daemon = subprocess.Popen([*command, small_image, mountpoint], pass_fds=[sender], stdout=subprocess.PIPE)
    os.close(sender)
    try:
        with os.fdopen(receiver, "rb") as stream:
            assert stream.read() == b"ready\n"
        assert (mountpoint / "hello.txt").read_text() == "hello\n"
        daemon.send_signal(signal.SIGUSR1)
        wait_until(lambda: "blocks_verified" in log.read_text())
        daemon.send_signal(signal.SIGINT)
        assert daemon.wait(10) == 0
        assert find_mount(str(mountpoint)) is None
    finally:
        daemon.kill()
        daemon.wait()


def test_status_tells_what_is_mounted_and_counts(small_image: Path, mountpoint: Path) -> None:
    with mounted(small_image, mountpoint):
        before = json.loads(mystfuse("status", "--json", mountpoint).stdout)
        (mountpoint / "sub/deep/data.bin").read_bytes()
        after = json.loads((mountpoint / ".mystfuse/status.json").read_text())
        assert after["image"] == str(small_image) and after["mountpoint"] == str(mountpoint)
        assert after["root_hash"] == mystfuse("fssig", "--roothash", small_image).stdout.strip()
        assert after["blocks_verified"] >= before["blocks_verified"] + 307_200 // 4096
        assert after["blocks_failed"] == 0
        assert os.listdir(mountpoint / ".mystfuse") == ["status.json", "metrics", "image", "base", "written", "touched"]
        text = mystfuse("status", mountpoint).stdout
        assert f"image: {small_image}" in text and "trust: self" in text


def test_nocontrol_shows_the_images_own_directory(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / ".mystfuse").mkdir(parents=True)
    (source / ".mystfuse/own").touch()
    assert mystfuse("mkext2", source, tmp_path / "image").returncode == 0
    with mounted(tmp_path / "image", tmp_path / "mount") as mountpoint:
        assert os.listdir(mountpoint / ".mystfuse") == ["status.json", "metrics", "image", "base", "written", "touched"]
        assert ".mystfuse" not in os.listdir(mountpoint)
    with mounted(tmp_path / "image", tmp_path / "mount", "-o", "nocontrol") as mountpoint:
        assert os.listdir(mountpoint / ".mystfuse") == ["own"]
        assert ".mystfuse" in os.listdir(mountpoint)
        assert mystfuse("umount", mountpoint).returncode == 0


def as_user(function: Callable[[], Any], uid: int = USER, gid: int = GROUP) -> Any:
    """The result of ``function`` in a child process of an ordinary user, or the errno it raised."""
    receiver, sender = os.pipe()
    child = os.fork()
    if not child:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        try:
            result = function()
        except OSError as error:
            result = error.errno
        os.write(sender, json.dumps(result).encode())
        os._exit(0)
    os.close(sender)
    with os.fdopen(receiver, "rb") as stream:
        said = stream.read()
    os.waitpid(child, 0)
    return json.loads(said)


def test_other_users_see_files_by_their_permissions_and_acls_but_not_the_control_directory(open_tmp_path: Path) -> None:
    source = open_tmp_path / "source"
    source.mkdir()
    source.chmod(0o755)
    for name in ("public", "private", "acl", "mask"):
        (source / name).write_text(name)
        (source / name).chmod(0o644 if name == "public" else 0o600)
    run("setfacl", "-m", f"u:{USER}:r", source / "acl")
    # The group bits of the mode show the mask here: if ACLs were not enforced, the group would get in.
    run("setfacl", "-m", f"u:1:r,g:{GROUP}:-", source / "mask")
    os.chown(source / "mask", 0, GROUP)
    os.setxattr(source / "public", "trusted.secret", b"1")
    os.setxattr(source / "public", "user.known", b"1")
    assert mystfuse("mkext2", source, open_tmp_path / "image").returncode == 0
    mountpoint = open_tmp_path / "mount"
    with mounted(open_tmp_path / "image", mountpoint, "--allow-other"):
        assert as_user(lambda: (mountpoint / "public").read_text()) == "public"
        assert as_user(lambda: (mountpoint / "private").read_text()) == errno.EACCES
        assert as_user(lambda: (mountpoint / "acl").read_text()) == "acl"
        assert as_user(lambda: (mountpoint / "mask").read_text()) == errno.EACCES
        assert as_user(lambda: os.listxattr(mountpoint / "public")) == ["user.known"]
        assert sorted(os.listxattr(mountpoint / "public")) == ["trusted.secret", "user.known"]
        # Other users do not even see that it exists: the kernel alone, by its mode, would tell them.
        assert as_user(lambda: os.stat(mountpoint / ".mystfuse").st_mode) == errno.EACCES
        assert as_user(lambda: os.listdir(mountpoint / ".mystfuse")) == errno.EACCES
        (mountpoint / ".mystfuse/status.json").read_text()
        assert as_user(lambda: (mountpoint / ".mystfuse/status.json").read_text()) == errno.EACCES
    with mounted(open_tmp_path / "image", mountpoint):
        assert as_user(lambda: (mountpoint / "public").read_text()) == errno.EACCES


def test_owners_can_be_replaced(small_image: Path, mountpoint: Path) -> None:
    with mounted(small_image, mountpoint, "--uid=77", "-o", "gid=88"):
        status = (mountpoint / "sub").stat()
        assert (status.st_uid, status.st_gid) == (77, 88)


def test_noxattr_answers_that_there_are_none(small_image: Path, mountpoint: Path) -> None:
    with mounted(small_image, mountpoint, "-o", "noxattr"), pytest.raises(OSError, match="not supported"):
        os.getxattr(mountpoint / "hello.txt", "user.comment")


def test_an_ordinary_user_mounts_uses_and_unmounts(
    small_image: Path, open_tmp_path: Path, ordinary_user: list[str]
) -> None:
    image, mountpoint = open_tmp_path / "image", open_tmp_path / "mount"
    run("cp", "--sparse=always", small_image, image)
    image.chmod(0o644)
    mountpoint.mkdir()
    os.chown(mountpoint, USER, GROUP)
    user = ordinary_user
    try:
        result = run(*user, "--map-root", image, mountpoint, cwd=open_tmp_path)
        assert "mounted on" in result.stdout
        mount = find_mount(str(mountpoint))
        assert mount is not None and mount.user_id == USER
        assert as_user(lambda: (mountpoint / "hello.txt").read_text()) == "hello\n"
        assert as_user(lambda: list(os.stat(mountpoint / "sub"))[4:6]) == [USER, GROUP]
        with pytest.raises(PermissionError):
            (mountpoint / "hello.txt").read_text()
        assert "trust: self" in run(*user, "status", mountpoint, cwd=open_tmp_path).stdout
        run(*user, "umount", mountpoint, cwd=open_tmp_path)
        assert find_mount(str(mountpoint)) is None
        image.chmod(0o600)
        result = run(*user, image, mountpoint, check=False, cwd=open_tmp_path)
        assert_one_line(result, 1, "Permission denied", str(image))
    finally:
        clear_mount(mountpoint)


def test_mounting_costs_the_same_for_every_size(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("content")
    images = {size: tmp_path / size for size in ("64M", "64G")}
    for size, image in images.items():
        result = mystfuse("mkext2", f"--size={size}", source, image)
        assert result.returncode == 0, result.stderr
    times: dict[str, list[float]] = {size: [] for size in images}
    least = dict.fromkeys(images, math.inf)
    for number in range(40):
        # The minimum of each: other work of the machine only adds time.
        if number >= 5 and least["64G"] - least["64M"] < 0.05:
            break
        for size, image in images.items():
            started = time.monotonic()
            with mounted(image, tmp_path / "mount") as mountpoint:
                times[size].append(time.monotonic() - started)
                assert (mountpoint / "file").read_text() == "content"
                status = json.loads((mountpoint / ".mystfuse/status.json").read_text())
                assert status["bytes_fetched"] < 1 << 20
        least = {size: min(values) for size, values in times.items()}
    assert least["64G"] - least["64M"] < 0.05, times
    images["64G"].unlink()


def test_closed_or_full_standard_descriptors_do_not_matter(small_image: Path, mountpoint: Path) -> None:
    for redirection in ("<&- >&- 2>&-", ">&-", ">/dev/full"):
        command = f'"{sys.executable}" -m mystfuse mount "{small_image}" "{mountpoint}" {redirection}'
        assert run("sh", "-c", command, check=False, timeout=20).returncode == 0
        assert (mountpoint / "hello.txt").read_text() == "hello\n"
        assert mystfuse("umount", mountpoint).returncode == 0


def test_an_unwritable_log_file_is_named(small_image: Path, mountpoint: Path) -> None:
    for options in ((), ("-f",)):
        result = mystfuse("mount", *options, "--log-file=/nonexistent/log", small_image, mountpoint)
        assert_one_line(result, 1, "/nonexistent/log: No such file")

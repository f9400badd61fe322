"""No plaintext and no key on a disk, in a log, in a core dump or in the memory of a mount."""

from __future__ import annotations

import base64
import json
import os
import re
import resource
import secrets
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from tests.support.commands import mystfuse, run
from tests.support.encrypted_images import PHRASE
from tests.support.mounts import clear_mount, daemon_pid, mounted
from tests.support.processes import keeper_of


def forms_of(secret: bytes) -> list[bytes]:
    return [secret, secret.hex().encode(), secret.hex().upper().encode(), base64.b64encode(secret).rstrip(b"=")]


def test_no_plaintext_and_no_key_touches_a_disk(keys: Path, tmp_path: Path, mountpoint: Path) -> None:
    """Image directory and temporary directory are on a disk of their own; the test searches all of it afterwards."""
    disk, directory, source = tmp_path / "disk", tmp_path / "on-disk", tmp_path / "source"
    directory.mkdir()
    source.mkdir()
    marker = secrets.token_bytes(32)
    (source / "secret").write_bytes(marker * 100_000)
    (source / f"name-{marker.hex()}").touch()
    run("mke2fs", "-q", "-F", "-t", "ext4", disk, "96M")
    run("mount", "-o", "loop", disk, directory)
    try:
        (directory / "tmp").mkdir()
        environment = {"TMPDIR": str(directory / "tmp")}
        image, log = directory / "x.img", directory / "log"
        options = ["--encrypt", keys / "key", "--passphrase-file", keys / "passphrase"]
        assert mystfuse("mkext2", *options, source, image, env=environment).returncode == 0
        for opening in ("--key-file", "key"), ("--passphrase-file", "passphrase"):
            with mounted(image, mountpoint, opening[0], str(keys / opening[1]), "--log-file", str(log),
                         env=environment):  # fmt: skip
                assert (mountpoint / "secret").read_bytes()[:32] == marker
                (mountpoint / "written").write_bytes(marker * 100_000)
                os.kill(daemon_pid(mountpoint), signal.SIGUSR1)
                run("sync", "--file-system", directory)
        run("sync", "--file-system", directory)
        assert log.stat().st_size
    finally:
        run("umount", directory)
    contents = disk.read_bytes()
    for what in (*forms_of(marker), *forms_of((keys / "key").read_bytes()), PHRASE.encode()):
        assert what not in contents


def test_the_daemon_shows_no_key(image: Path, keys: Path, mountpoint: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    shown: list[bytes] = []
    for option, name in ("--key-file", "key"), ("--key-file", "hex"), ("--passphrase-file", "passphrase"):
        with mounted(image, mountpoint, option, str(keys / name), "--log-file", str(log)):
            pid = daemon_pid(mountpoint)
            os.kill(pid, signal.SIGUSR1)
            process = Path(f"/proc/{pid}")
            shown += [(process / name).read_bytes() for name in ("cmdline", "environ", "comm", "mountinfo")]
            shown.append((mountpoint / ".mystfuse/status.json").read_bytes())
            shown.append(mystfuse("status", mountpoint).stdout.encode())
    shown.append(log.read_bytes())
    everything = b"\0".join(shown)
    assert b"aes-xts-plain64" in everything
    for secret in (keys / "key").read_bytes(), PHRASE.encode():
        for form in forms_of(secret):
            assert form not in everything


def memory_of(pid: int) -> bytes:
    """The memory of a process, as root sees it."""
    parts: list[bytes] = []
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            match = re.match(r"(\w+)-(\w+) r", line)
            if match and "[v" not in line:
                start, end = int(match[1], 16), int(match[2], 16)
                memory.seek(start)
                with suppress(OSError):
                    parts.append(memory.read(end - start))
    return b"\0".join(parts)


def test_keys_are_wiped_once_the_image_is_open(image: Path, keys: Path, mountpoint: Path) -> None:
    """Only the two AES keys are left, apart from each other, at the start of OpenSSL's key schedules."""
    key = (keys / "key").read_bytes()
    with mounted(image, mountpoint, "--key-file", str(keys / "key")):
        memory = memory_of(daemon_pid(mountpoint))
        assert key[:32] in memory
        assert key not in memory
        assert key not in memory_of(keeper_of(daemon_pid(mountpoint)))
        locked = Path(f"/proc/{daemon_pid(mountpoint)}/status").read_text()
        assert int(re.findall(r"VmLck:\s+(\d+)", locked)[0]) > 0


def test_there_is_no_core_dump(image: Path, small_image: Path, keys: Path, mountpoint: Path, tmp_path: Path) -> None:
    confined: set[int | None] = set()

    def crash(directory: Path, *arguments: str | Path) -> set[str]:
        """Let a mount in the foreground die by SIGSEGV; returns the files that it leaves in its directory."""
        directory.mkdir()

        def allow_core() -> None:
            resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

        process = subprocess.Popen(
            [sys.executable, "-m", "mystfuse", "mount", "-f", *arguments, mountpoint], cwd=directory,
            preexec_fn=allow_core, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            assert process.stdout is not None and b"mounted" in process.stdout.readline()
            limits = Path(f"/proc/{process.pid}/limits").read_text()
            confined.add(json.loads(mystfuse("status", "--json", mountpoint).stdout)["landlock"])
            process.send_signal(signal.SIGSEGV)
            assert process.wait(30) == -signal.SIGSEGV
        finally:
            process.kill()
            process.communicate()
            clear_mount(mountpoint)
        left = {path.name for path in directory.iterdir()}
        return left | ({"no limit"} if re.search(r"Max core file size +unlimited", limits) else set())

    control = crash(tmp_path / "plain", small_image)
    assert "no limit" in control
    if not Path("/proc/sys/kernel/core_pattern").read_text().startswith(("|", "/")):
        # Landlock keeps a daemon from making files, and the kernel from making them for it.
        assert len(control) == (1 if confined != {None} else 2), "this system dumps no cores at all"
    assert crash(tmp_path / "encrypted", "--key-file", keys / "key", image) == set()

"""What mystfuse tells a service manager through NOTIFY_SOCKET."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mystfuse.mounting.mount_table import find_mount
from mystfuse.mounting.systemd_notify import Notifier
from tests.support.commands import mystfuse, run, wait_until
from tests.support.mounts import clear_mount

SERVICE = Path(__file__).parents[2] / "systemd/mystfuse@.service"


class Manager:
    """The manager's end of the socket."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self._socket.settimeout(20)

    def hear(self) -> dict[str, str]:
        """The assignments of the next message."""
        return dict(line.split("=", 1) for line in self._socket.recv(65536).decode().split("\n"))

    def hears_nothing(self) -> bool:
        self._socket.settimeout(0.2)
        try:
            return not self._socket.recv(1)
        except TimeoutError:
            return True

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(str(tmp_path / "notify") if request.param == "path" else f"@mystfuse-test-{os.getpid()}")
    yield manager
    manager.close()


@contextmanager
def service(manager: Manager, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    daemon = subprocess.Popen(
        [sys.executable, "-m", "mystfuse", "mount", "-f", *arguments],
        env={**os.environ, "NOTIFY_SOCKET": manager.address}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield daemon
    finally:
        daemon.kill()
        daemon.communicate()
        clear_mount(Path(arguments[-1]))


def test_a_service_says_when_it_is_ready_and_when_it_stops(manager: Manager, small_image: Path, tmp_path: Path) -> None:
    (tmp_path / "mount").mkdir()
    with service(manager, small_image, tmp_path / "mount") as daemon:
        heard = manager.hear()
        assert heard["READY"] == "1"
        assert f"{small_image} mounted on {tmp_path / 'mount'}" in heard["STATUS"]
        assert (tmp_path / "mount/hello.txt").read_text() == "hello\n"
        assert "NOTIFY_SOCKET" not in os.environ
        daemon.send_signal(signal.SIGTERM)
        assert manager.hear()["STOPPING"] == "1"
        assert daemon.wait(10) == 0
        assert manager.hears_nothing()


def test_a_service_that_is_unmounted_says_that_it_stops(small_image: Path, tmp_path: Path) -> None:
    manager = Manager(str(tmp_path / "notify"))
    (tmp_path / "mount").mkdir()
    with service(manager, small_image, tmp_path / "mount") as daemon:
        assert manager.hear()["READY"] == "1"
        run("umount", tmp_path / "mount")
        assert manager.hear()["STOPPING"] == "1"
        assert daemon.wait(10) == 0
    manager.close()


def test_a_service_says_why_it_fails(small_image: Path, tmp_path: Path) -> None:
    manager = Manager(str(tmp_path / "notify"))
    (tmp_path / "mount").mkdir()
    (tmp_path / "bad\nimage").write_bytes(os.urandom(100_000))
    for arguments, status, part in (
        (("--no-trust-self", small_image), 3, "not trusted"),
        ((tmp_path / "bad\nimage",), 6, "bad\\nimage: 97.7 KiB of random bytes"),
        (("-o", "frob", small_image), 2, "frob"),
        ((tmp_path / "missing",), 1, "missing: No such file"),
    ):
        with service(manager, *arguments, tmp_path / "mount") as daemon:
            (heard,) = manager.hear().items()
            assert heard[0] == "STATUS" and part in heard[1]
            assert daemon.wait(10) == status
    manager.close()


def test_a_mount_in_the_background_is_not_the_service(small_image: Path, tmp_path: Path) -> None:
    manager = Manager(str(tmp_path / "notify"))
    (tmp_path / "mount").mkdir()
    try:
        assert mystfuse(small_image, tmp_path / "mount", env={"NOTIFY_SOCKET": manager.address}).returncode == 0
        assert manager.hears_nothing()
    finally:
        clear_mount(tmp_path / "mount")
        manager.close()


@pytest.mark.logs(r"^mystfuse\.mounting\.systemd_notify")
def test_a_manager_that_is_gone_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    Notifier.from_environment().send("READY=1")
    assert "No such file" in caplog.text
    assert "NOTIFY_SOCKET" not in os.environ
    Notifier.from_environment().send("READY=1")


def test_umount_stale_clears_dead_mounts_and_leaves_others_alone(small_image: Path, tmp_path: Path) -> None:
    mountpoint = tmp_path / "mount"
    mountpoint.mkdir()
    assert mystfuse("umount", "--stale", mountpoint).returncode == 0
    manager = Manager(str(tmp_path / "notify"))
    with service(manager, small_image, mountpoint) as daemon:
        assert manager.hear()["READY"] == "1"
        assert mystfuse("umount", "--stale", mountpoint).returncode == 0
        assert find_mount(str(mountpoint)) is not None
        daemon.kill()
        daemon.wait()
        assert find_mount(str(mountpoint)) is not None
        assert mystfuse("umount", "--stale", mountpoint).returncode == 0
        wait_until(lambda: find_mount(str(mountpoint)) is None)
    manager.close()


def test_a_core_limit_of_zero_is_no_error(small_image: Path, tmp_path: Path) -> None:
    """systemd's LimitCORE=0 does this, and takes CAP_SYS_RESOURCE away."""
    (tmp_path / "key").write_bytes(os.urandom(64))
    (tmp_path / "key").chmod(0o600)
    command = f'ulimit -c 0; exec "{sys.executable}" -m mystfuse verify --key-file "{tmp_path}/key" "{small_image}"'
    words = ["setpriv", "--bounding-set=-sys_resource", "sh", "-c", command]
    assert "not encrypted" in run(*words, check=False).stderr


def test_the_units_are_valid(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd here")
    for name in "mystfuse@.service", "examples/srv-app.mount":
        text = (SERVICE.parent / name).read_text().replace("/usr/local/bin/mystfuse", "/bin/true")
        unit = tmp_path / Path(name).name
        # The unit does not need the manual to be installed.
        unit.write_text("\n".join(line for line in text.splitlines() if not line.startswith("Documentation=")))
        result = run("systemd-analyze", "verify", unit)
        assert result.stdout + result.stderr == ""


def test_the_service_has_no_mounts_of_its_own() -> None:
    settings = [line.partition("=")[0] for line in SERVICE.read_text().splitlines() if line[:1].isalpha()]
    private = {"PrivateMounts", "PrivateTmp", "PrivateDevices", "ProtectSystem", "ProtectHome", "ProtectKernelTunables",
               "ProtectKernelModules", "ProtectKernelLogs", "ProtectControlGroups", "ProtectProc", "ProcSubset",
               "ReadOnlyPaths", "InaccessiblePaths", "BindPaths", "RootDirectory", "DynamicUser"}  # fmt: skip
    assert not private & set(settings)

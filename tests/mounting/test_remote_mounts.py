"""Mounts of images elsewhere: the same files, whatever becomes of fetcher, cache and network while they are mounted."""

from __future__ import annotations

import ctypes
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mystfuse
from mystfuse.mounting.mount_table import find_mount
from tests.support.commands import GROUP, USER, assert_one_line, run, wait_until
from tests.support.commands import mystfuse as command
from tests.support.images import DATA
from tests.support.made_images import make
from tests.support.mounts import HAS_FAST_PATH, clear_mount, daemon_pid, logged, mounted, status_of
from tests.support.range_server import RangeServer, range_server

KEY = f"--pubkey={DATA / 'public.pem'}"
SIZE = 24 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, golden: dict[str, Path]) -> Iterator[RangeServer]:
    """With ``golden.img``, and ``app.img`` of 24 MiB of noise in four files."""
    directory = tmp_path_factory.mktemp("www")
    shutil.copy(golden["signed-4096"], directory / "golden.img")
    tree = tmp_path_factory.mktemp("tree")
    for number in range(4):
        (tree / str(number)).write_bytes(random.Random(number).randbytes(SIZE // 4))
    make(tree, directory / "app.img")
    with range_server(directory) as server:
        yield server


@pytest.fixture(autouse=True)
def _unspoiled(server: RangeServer) -> Iterator[None]:
    yield
    server.spoil = lambda offset, data, is_direct: data
    server.gate.set()


def noise(number: int) -> bytes:
    return random.Random(number).randbytes(SIZE // 4)


def forget(path: Path) -> None:
    """Have the kernel forget the pages of a file of the mount."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def fetcher_files(mountpoint: Path) -> list[Path]:
    """The daemon's descriptors of data and map, through which they can be changed as a cache's other users would."""
    pid = status_of(mountpoint)["fetcher"]["process"]
    found = {}
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        name = os.readlink(descriptor)
        if "mystfuse-data" in name or name.endswith("/data"):
            found["data"] = descriptor
        elif "mystfuse-map" in name or name.endswith("/map"):
            found["map"] = descriptor
    return [found["data"], found["map"]]


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("options", [(), ("-o", "nofastpath"), ("--read-only",)])
def test_the_files_are_those_of_a_local_mount(server: RangeServer, tmp_path: Path, options: tuple[str, ...]) -> None:
    image = server.directory / "golden.img"
    with (
        mounted(f"{server.url}/golden.img", tmp_path / "there", KEY, *options) as there,  # type: ignore[arg-type]
        mounted(image, tmp_path / "here", KEY, *options) as here,
    ):
        run("diff", "-r", "--no-dereference", "--exclude=blk", "--exclude=null", "--exclude=fifo", there, here)
        names = [sorted(entry.name for entry in os.scandir(root)) for root in (there, here)]
        assert names[0] == names[1]
        status = status_of(there)
        assert status["image"] == f"{server.url}/golden.img" and status["image_size"] == image.stat().st_size
        assert status["blocks_failed"] == status["blocks_mended"] == 0
        assert status["fetcher"]["requests"] > 0 and status_of(here)["fetcher"] is None
        assert find_mount(os.fspath(there)).source == f"{server.url}/golden.img"  # type: ignore[union-attr]
        if "--read-only" not in options:
            (there / "new").write_text("forgotten")
            assert (there / "new").read_text() == "forgotten"


def test_what_was_not_there_yet_comes_while_it_is_mounted(server: RangeServer, tmp_path: Path) -> None:
    with mounted(f"{server.url}/app.img", tmp_path / "mnt") as mnt:  # type: ignore[arg-type]
        dice = random.Random(1)
        for _ in range(100):
            number, offset = dice.randrange(4), dice.randrange(SIZE // 4)
            with (mnt / str(number)).open("rb") as file:
                file.seek(offset)
                assert file.read(5000) == noise(number)[offset : offset + 5000]
        for number in range(4):
            assert (mnt / str(number)).read_bytes() == noise(number)
        status = status_of(mnt)
        assert status["blocks_failed"] == status["blocks_mended"] == status["read_failures"] == 0
        assert status["fastpath"] == HAS_FAST_PATH
        if HAS_FAST_PATH:
            assert status["requests_answered"]["read"] > status["requests_forwarded"].get("read", 0)


@pytest.fixture(params=["memory", "directory"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, ...]:
    """Options for a mount's cache."""
    if request.param == "memory":
        return ()
    (tmp_path / "cache").mkdir(mode=0o700)
    return (f"--cache={tmp_path / 'cache'}",)


def test_what_is_thrown_away_while_it_is_mounted_is_fetched_again(
    server: RangeServer, tmp_path: Path, cache: tuple[str, ...]
) -> None:
    """Holes at any moment: map first, or data alone, as a machine that lost its power may have left them."""
    log = tmp_path / "log"
    with mounted(f"{server.url}/app.img", tmp_path / "mnt", f"--log-file={log}", *cache) as mnt:  # type: ignore[arg-type]
        libc = ctypes.CDLL(None, use_errno=True)
        data, map_file = (os.open(path, os.O_RDWR) for path in fetcher_files(mnt))
        size = os.fstat(data).st_size
        is_over = threading.Event()

        def punch() -> None:
            dice = random.Random(2)
            while not is_over.wait(0.02):
                chunk = dice.randrange(size >> 14)
                if dice.random() < 0.5:
                    os.pwrite(map_file, bytes(4), chunk * 4)
                assert libc.fallocate(data, 3, ctypes.c_long(chunk << 14), ctypes.c_long(1 << 14)) == 0

        thread = threading.Thread(target=punch)
        thread.start()
        try:
            for turn in range(2):
                for number in range(4):
                    forget(mnt / str(number))
                    assert (mnt / str(number)).read_bytes() == noise(number), turn
        finally:
            is_over.set()
            thread.join()
            os.close(data)
            os.close(map_file)
        status = status_of(mnt)
        assert status["blocks_failed"] == status["read_failures"] == 0
        assert "corrupted" not in "".join(
            line for line in log.read_text().splitlines(True) if "fetched again" not in line
        )


def test_a_spoiled_data_file_costs_fetches_and_no_errors(
    server: RangeServer, tmp_path: Path, cache: tuple[str, ...]
) -> None:
    log = tmp_path / "log"
    with mounted(f"{server.url}/app.img", tmp_path / "mnt", f"--log-file={log}", *cache) as mnt:  # type: ignore[arg-type]
        for number in range(4):
            assert (mnt / str(number)).read_bytes() == noise(number)
        data = os.open(fetcher_files(mnt)[0], os.O_RDWR)
        os.pwrite(data, random.Random(9).randbytes(SIZE // 4), 1 << 20)
        os.close(data)
        for number in range(4):
            forget(mnt / str(number))
            assert (mnt / str(number)).read_bytes() == noise(number)
        status = status_of(mnt)
        assert status["blocks_failed"] == 0 and status["blocks_mended"] > 500
        assert "came corrupted, and right when fetched again" in logged(mnt, log)


def test_a_second_mount_by_the_cache_asks_the_server_for_next_to_nothing(server: RangeServer, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o700)
    sent = []
    for _ in range(2):
        before = server.bytes_sent
        with mounted(f"{server.url}/app.img", tmp_path / "mnt", f"--cache={tmp_path / 'cache'}") as mnt:  # type: ignore[arg-type]
            for number in range(4):
                assert (mnt / str(number)).read_bytes() == noise(number)
        sent.append(server.bytes_sent - before)
    assert sent[0] > SIZE and sent[1] < 1 << 20


def test_bytes_that_a_proxy_spoils_are_fetched_past_it(server: RangeServer, tmp_path: Path) -> None:
    def spoil(offset: int, data: bytes, is_direct: bool) -> bytes:
        # Everything but fssig and hash tree.
        return data if is_direct or offset >= SIZE else bytes(len(data))

    with mounted(f"{server.url}/app.img", tmp_path / "mnt") as mnt:  # type: ignore[arg-type]
        server.spoil = spoil
        assert (mnt / "1").read_bytes() == noise(1)
        status = status_of(mnt)
        assert status["blocks_failed"] == 0 and status["blocks_mended"] > 0


@pytest.mark.logs("corrupted")
def test_bytes_that_are_wrong_everywhere_are_an_error_and_told(server: RangeServer, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with mounted(f"{server.url}/app.img", tmp_path / "mnt", f"--log-file={log}") as mnt:  # type: ignore[arg-type]
        server.spoil = lambda offset, data, is_direct: bytes(len(data))
        with pytest.raises(OSError, match="Input/output error"):
            (mnt / "3").read_bytes()
        server.spoil = lambda offset, data, is_direct: data
        assert status_of(mnt)["blocks_failed"] > 0
        assert "corrupted" in logged(mnt, log)
        assert (mnt / "3").read_bytes() == noise(3), "what was wrong may be right again"


def test_a_fetcher_that_is_killed_is_started_again_and_asked_again(server: RangeServer, tmp_path: Path) -> None:
    with mounted(f"{server.url}/app.img", tmp_path / "mnt") as mnt:  # type: ignore[arg-type]
        for number in range(4):
            os.kill(status_of(mnt)["fetcher"]["process"], signal.SIGKILL)
            assert (mnt / str(number)).read_bytes() == noise(number)
        assert status_of(mnt)["read_failures"] == 0


def test_a_supervisor_that_is_killed_is_an_error_and_no_hang(server: RangeServer, tmp_path: Path) -> None:
    with mounted(f"{server.url}/app.img", tmp_path / "mnt") as mnt:  # type: ignore[arg-type]
        worker = status_of(mnt)["fetcher"]["process"]
        supervisor = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(supervisor, signal.SIGKILL)
        wait_until(lambda: not is_there(worker), 30)
        started = time.monotonic()
        with pytest.raises(OSError, match="Input/output error"):
            (mnt / "2").read_bytes()
        assert time.monotonic() - started < 20
        assert status_of(mnt)["image"]


def test_a_server_that_hangs_costs_io_timeout(server: RangeServer, tmp_path: Path) -> None:
    with mounted(f"{server.url}/app.img", tmp_path / "mnt", "--io-timeout=12") as mnt:  # type: ignore[arg-type]
        server.gate.clear()
        started = time.monotonic()
        with pytest.raises(OSError, match="Input/output error"), (mnt / "2").open("rb") as file:
            os.pread(file.fileno(), 1, 5 << 20)
        assert 9 < time.monotonic() - started < 60
        server.gate.set()
        assert (mnt / "2").read_bytes() == noise(2)


def test_fetcher_and_mount_end_together(server: RangeServer, tmp_path: Path) -> None:
    for end in ("umount", "kill"):
        with mounted(f"{server.url}/app.img", tmp_path / "mnt") as mnt:  # type: ignore[arg-type]
            fetcher, daemon = status_of(mnt)["fetcher"]["process"], daemon_pid(mnt)
            assert is_there(fetcher)
            if end == "umount":
                assert command("umount", mnt).returncode == 0
            else:
                os.kill(daemon, signal.SIGKILL)
            wait_until(lambda pid=fetcher: not is_there(pid), 30)  # type: ignore[misc]


def test_a_second_mount_there_names_the_address(server: RangeServer, tmp_path: Path) -> None:
    with mounted(f"{server.url}/golden.img?token=hidden-token", tmp_path / "mnt", KEY) as mnt:  # type: ignore[arg-type]
        again = command("mount", f"{server.url}/golden.img", mnt)
        assert_one_line(again, 7, f"{server.url}/golden.img?... is already mounted there")
        listed = command("status").stdout
        assert f"{server.url}/golden.img?..." in listed and "hidden-token" not in listed
        assert "hidden-token" not in Path("/proc/mounts").read_text()


def test_by_mount_8_and_a_line_of_fstab(server: RangeServer, tmp_path: Path) -> None:
    mnt = tmp_path / "mnt"
    mnt.mkdir()
    helper = tmp_path / "mount.mystfuse"
    helper.write_text(f'#!/bin/sh\nexec {sys.executable} -m mystfuse.cli.commands.mount_mystfuse "$@"\n')
    helper.chmod(0o755)
    options = f"_netdev,ro,mirror={server.url}/golden.img,cache_size=32M,pubkey={DATA / 'public.pem'}"
    try:
        run(helper, f"{server.url}/golden.img", mnt, "-o", options)
        assert (mnt / "hello.txt").exists() and status_of(mnt)["read_only"]
        run(helper, f"{server.url}/golden.img", mnt, "-f", "-o", options)
        missing = run(helper, f"{server.url}/none.img", mnt, "-f", "-o", "_netdev,ro", check=False)
        assert_one_line(missing, 32, "none.img: 404")
    finally:
        command("umount", mnt)


def test_a_program_runs_from_it_and_from_a_further_one(server: RangeServer, tmp_path: Path) -> None:
    source = tmp_path / "root"
    (source / "bin").mkdir(parents=True)
    (tmp_path / "program.c").write_text(
        '#include <stdio.h>\nint main(void) { char text[64] = ""; FILE *file = fopen("/more/hello.txt", "r");'
        " return !file || !fgets(text, sizeof text, file) || fputs(text, stdout) < 0; }\n"
    )
    run("cc", "-static", "-o", source / "bin/show", tmp_path / "program.c")
    make(source, server.directory / "root.img", "--force")
    said = command("exec", f"--mount={server.url}/golden.img=/more,trust_self", f"{server.url}/root.img", "/bin/show")
    assert said.stdout == "Hello World!\n", said.stderr


def test_an_ordinary_user_mounts_it_too(server: RangeServer, open_tmp_path: Path, ordinary_user: list[str]) -> None:
    mnt = open_tmp_path / "mnt"
    mnt.mkdir()
    os.chown(mnt, USER, GROUP)
    user = ordinary_user
    try:
        run(*user, f"{server.url}/golden.img", mnt, cwd=open_tmp_path)
        assert "image: http" in run(*user, "status", mnt, cwd=open_tmp_path).stdout
        assert "Hello" in run(*user, "cat", f"{server.url}/golden.img", "/hello.txt", cwd=open_tmp_path).stdout
        run(*user, "umount", mnt, cwd=open_tmp_path)
    finally:
        clear_mount(mnt)


def test_a_trace_of_a_mount_is_what_the_next_one_fetches_first(server: RangeServer, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    for image in (server.directory / "app.img", f"{server.url}/app.img"):
        with mounted(image, tmp_path / "mnt") as mnt:  # type: ignore[arg-type]
            with (mnt / "2").open("rb") as file:
                os.pread(file.fileno(), 4096, 3 << 20)
            trace.write_text(command("trace", mnt).stdout)
        head, size, root_hash, *ranges = trace.read_text().splitlines()
        assert head == "mystfuse-trace 1" and size == f"size {(server.directory / 'app.img').stat().st_size}"
        assert root_hash.removeprefix("root-hash ") in command("fssig", server.directory / "app.img").stdout
        touched = sum(int(line.split()[1]) for line in ranges)
        assert 100_000 < touched < 4 << 20
    before = server.bytes_sent
    with mounted(f"{server.url}/app.img", tmp_path / "mnt", f"--prefetch={trace}") as mnt:  # type: ignore[arg-type]

        def is_over() -> bool:
            fetcher: dict[str, Any] = status_of(mnt)["fetcher"]
            return fetcher.get("prefetch_is_over", 1) == 1

        wait_until(is_over, 30)
        fetched = server.bytes_sent - before
        server.gate.clear()
        with (mnt / "2").open("rb") as file:
            assert os.pread(file.fileno(), 4096, 3 << 20) == noise(2)[3 << 20 :][:4096], "it is there already"
        server.gate.set()
    assert fetched < 2 * touched + (1 << 20)


def test_trace_of_what_has_none(tmp_path: Path, golden: dict[str, Path]) -> None:
    (tmp_path / "bare").write_bytes(golden["signed-4096"].read_bytes()[: 6 << 20])
    with mounted(tmp_path / "bare", tmp_path / "mnt", "--insecure") as mnt:
        assert_one_line(command("trace", mnt), 6, "no hash tree")
    assert_one_line(command("trace", tmp_path), 7, "nothing of mystfuse's is mounted there")


def test_the_api_and_its_mounts(server: RangeServer, tmp_path: Path) -> None:
    with mystfuse.Image(f"{server.url}/golden.img", trust="self") as image:
        assert b"Hello" in image.read_bytes("/hello.txt")
    (tmp_path / "mnt").mkdir()
    with mystfuse.mount(f"{server.url}/golden.img", tmp_path / "mnt", trust="self", cache_size=32 << 20) as mount:
        assert mount.status()["fetcher"]["requests"] > 0
        assert mount.image == f"{server.url}/golden.img"
    with pytest.raises(mystfuse.UsageError):
        mystfuse.Image(f"{server.url}/golden.img", trust="self", mirrors="http://localhost/")  # type: ignore[arg-type]
    with pytest.raises(mystfuse.ImageReadError, match="404"):
        mystfuse.Image(f"{server.url}/none.img", trust="self")


def test_fsspec_reads_it(server: RangeServer) -> None:
    fsspec = pytest.importorskip("fsspec")
    with fsspec.open("mystfuse://hello.txt", image=f"{server.url}/golden.img", trust="self") as file:
        assert b"Hello" in file.read()
    # fsspec itself wants them for a chained URL, though they are not used.
    pytest.importorskip("aiohttp")
    with fsspec.open(f"mystfuse://hello.txt::{server.url}/golden.img", mystfuse={"trust": "self"}) as file:
        assert b"Hello" in file.read()


def test_without_a_hash_tree_it_is_what_the_server_has(server: RangeServer, tmp_path: Path) -> None:
    content = (server.directory / "golden.img").read_bytes()
    (server.directory / "bare.img").write_bytes(content[: 6 << 20])
    with mounted(f"{server.url}/bare.img", tmp_path / "mnt", "--insecure") as mnt:  # type: ignore[arg-type]
        assert not status_of(mnt)["fastpath"]
        assert "Hello" in (mnt / "hello.txt").read_text()
        data, map_file = (os.open(path, os.O_RDWR) for path in fetcher_files(mnt))
        os.ftruncate(data, 0)
        os.ftruncate(data, len(content))
        os.close(data)
        os.close(map_file)
        forget(mnt / "large.bin")
        local = subprocess.run(
            [sys.executable, "-m", "mystfuse", "cat", server.directory / "golden.img", "/large.bin"],
            capture_output=True, check=True,
        ).stdout  # fmt: skip
        assert (mnt / "large.bin").read_bytes() == local


def test_a_local_image_imports_nothing_of_this(golden: dict[str, Path]) -> None:
    script = (
        "import sys; from mystfuse.cli.main import run; "
        f"run(['cat', '--trust-self', {os.fspath(golden['signed-4096'])!r}, '/hello.txt']); import json; "
        "ours = ('mystfuse.remote', 'mystfuse.devices.remote_source', 'httpx', 'botocore', 'truststore'); "
        "json.dump([name for name in sys.modules if name.startswith(ours)], sys.stderr)"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stderr
    assert json.loads(said.splitlines()[-1]) == []

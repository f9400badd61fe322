"""Measures without a mount, or until there is one: verifying, making images, mounting, other tools."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.tools import (
    BenchmarkError,
    LeftOut,
    WrongResult,
    drop_caches,
    mystfuse_command,
    read_into_page_cache,
    run,
)

MB = 1_000_000


def openssl_speed(bench: Bench) -> float:
    """MB/s of SHA-256 on one core."""
    output = run("openssl", "speed", "-mr", "-seconds", "1", "-bytes", "8192", "-evp", "sha256")
    for line in output.splitlines():
        # +F:25:sha256:1360883461.22
        if line.startswith("+F:"):
            return float(line.rpartition(":")[2]) / MB
    raise BenchmarkError("openssl speed printed no figure")


def nbdkit_copy(bench: Bench) -> float:
    """MB/s of decrypting an image: nbdkit's luks filter, read by nbdcopy. Opening the key slot does not count."""
    image = bench.store.secret().image()
    bench.make_cold(image)
    with bench.directory() as directory:
        socket, pid_file = directory / "socket", directory / "pid"
        plugin = "file", str(image.path), f"passphrase=+{image.passphrase}"
        server = subprocess.Popen(
            ["nbdkit", "-f", "-U", str(socket), "-P", str(pid_file), "--filter=luks", *plugin],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            deadline = time.monotonic() + 30
            while not pid_file.exists():
                if server.poll() is not None or time.monotonic() > deadline:
                    raise BenchmarkError("nbdkit did not start")
                time.sleep(0.01)
            uri = f"nbd+unix:///?socket={socket}"
            start = time.perf_counter()
            size = int(run("nbdinfo", "--size", uri))
            opened = time.perf_counter()
            # One connection, like a single reader; each connection opens the key slot anew.
            run("nbdcopy", "--connections=1", uri, "null:")
            seconds = time.perf_counter() - opened - (opened - start)
        finally:
            server.terminate()
            server.wait()
    if seconds <= 0:
        raise LeftOut("opening its key slot takes longer than the rest")
    return size / MB / seconds


def verify(bench: Bench) -> float:
    """MB/s of ``mystfuse verify``."""
    image = bench.store.big().image()
    read_into_page_cache(image.path)
    start = time.perf_counter()
    run(*mystfuse_command(), "verify", "--roothash", image.root_hash, image.path)
    return image.hash_offset / MB / (time.perf_counter() - start)


def veritysetup_verify(bench: Bench) -> float:
    """MB/s of ``veritysetup verify``."""
    image = bench.store.big().image()
    read_into_page_cache(image.path)
    start = time.perf_counter()
    offset = f"--hash-offset={image.hash_offset}"
    run("veritysetup", "verify", image.path, image.path, image.root_hash, offset)
    return image.hash_offset / MB / (time.perf_counter() - start)


def _warm_source(bench: Bench) -> Path:
    source = bench.store.big().directory / "source"
    drop_caches()
    for path in source.rglob("*"):
        if path.is_file():
            read_into_page_cache(path)
    return source


def mkext2(bench: Bench) -> float:
    """MB/s of ``mystfuse mkext2``; the result is verified."""
    source = _warm_source(bench)
    with bench.directory() as directory:
        target = directory / "image"
        start = time.perf_counter()
        run(*mystfuse_command(), "mkext2", source, target)
        seconds = time.perf_counter() - start
        run(*mystfuse_command(), "verify", target)
        printed = run("debugfs", "-R", "stat /big", target)
    if f"Size: {bench.sizes.big}" not in printed:
        raise WrongResult("wrong result: mkext2: the large file is not in the image as it should be")
    return bench.sizes.big / MB / seconds


def mke2fs_and_format(bench: Bench) -> float:
    """MB/s of mke2fs and veritysetup, making an image of the same size."""
    source = _warm_source(bench)
    size = bench.store.big().image().hash_offset
    with bench.directory() as directory:
        target = directory / "image"
        start = time.perf_counter()
        run("mke2fs", "-q", "-F", "-t", "ext2", "-b", "4096", "-d", source, target, str(size // 1024))
        run("veritysetup", "format", target, target, f"--hash-offset={size}", f"--data-blocks={size // 4096}")
        seconds = time.perf_counter() - start
    return bench.sizes.big / MB / seconds


def mount_time(bench: Bench, which: str) -> float:
    """Milliseconds from the start of ``mystfuse mount`` until it returns, its mount answering."""
    image = bench.store.sparse().image(which)
    with bench.mystfuse.mount(image) as mounted:
        if not (mounted.path / "file").is_file():
            raise WrongResult(f"wrong result: the file of the {which} image is not there")
    return bench.mystfuse.seconds_to_mount * 1000


def mount_difference(bench: Bench) -> float:
    """Milliseconds by which mounting the large image takes longer than mounting the small one."""
    return mount_time(bench, "large") - mount_time(bench, "small")


def mount_bytes(bench: Bench) -> float:
    """KiB of the large image that mounting it reads."""
    with bench.mystfuse.mount(bench.store.sparse().image("large")) as mounted:
        status = json.loads(run(*mystfuse_command(), "status", "--json", mounted.path))
        return float(status["bytes_fetched"]) / 1024

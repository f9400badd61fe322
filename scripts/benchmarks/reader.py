"""The program that takes the readings: the same for every peer, in a process of its own, as any user.

    python reader.py COMMAND ARGUMENT...

Prints one JSON object: the ``seconds`` of the measured calls, without the program's start and without the check of the
data, and the result of the check. Needs only the standard library, find(1), rm(1), tar(1) and git(1).
"""

from __future__ import annotations

import itertools
import json
import mmap
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType

MIB = 1 << 20
FILES_A_DIRECTORY = 1000
CREATED_SIZE = 1024
"""Bytes in each created file."""

Result = dict[str, float | int | str]


def checksum(parts: Iterable[bytes | memoryview | mmap.mmap], crc: int = 0) -> int:
    """CRC-32 of all parts one after another (continuing ``crc``). We look for mistakes, not for forgers."""
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc


def pages(size: int) -> mmap.mmap:
    """Memory to read into or write from, of whole pages, as cat(1), cp(1) and dd(1) use it.

    Not a bytearray: to 16 bytes behind a page boundary, where it lies, some processors copy at a fifth of their speed,
    and we would measure that.
    """
    buffer = mmap.mmap(-1, size)
    buffer.write(bytes(size))
    return buffer


def _through(descriptor: int, buffer: mmap.mmap) -> Iterable[memoryview]:
    """The file from its beginning, in pieces."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    view = memoryview(buffer)
    while count := os.readv(descriptor, [buffer]):
        yield view[:count]


def sequential(path: str, mode: str) -> Result:
    """Read a file from beginning to end; ``warm``: read it once before that, and open it anew.

    The check reads it afterwards through the same descriptor, from the same pages."""
    buffer = pages(MIB)
    if mode == "warm":
        descriptor = os.open(path, os.O_RDONLY)
        for _ in _through(descriptor, buffer):
            pass
        os.close(descriptor)
    total = 0
    start = time.perf_counter()
    descriptor = os.open(path, os.O_RDONLY)
    while count := os.readv(descriptor, [buffer]):
        total += count
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "bytes": total, "crc": checksum(_through(descriptor, buffer))}


def _load(program: str) -> None:
    """Have a program in the page cache, from which dropping the caches has removed it."""
    subprocess.run([program, "--version"], stdout=subprocess.DEVNULL, check=True)


def walk(path: str, mode: str) -> Result:
    """Count the files below a directory, and their sizes, by find(1); ``warm``: run it once before."""
    command = ["find", path, "-mindepth", "1", "-printf", "%y %s\\n"]
    _load("find")
    if mode == "warm":
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    start = time.perf_counter()
    output = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    seconds = time.perf_counter() - start
    lines = output.split(b"\n")[:-1]
    sizes = sum(int(line[2:]) for line in lines if line.startswith(b"f"))
    return {"seconds": seconds, "entries": len(lines), "bytes": sizes}


def files(root: str, list_file: str) -> Result:
    """Open, read and close each of the listed files, one on each line, relative to ``root``."""
    paths = [f"{root}/{line}" for line in Path(list_file).read_text().splitlines()]
    found: list[bytes] = []
    buffer = pages(128 << 10)
    start = time.perf_counter()
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        while count := os.readv(descriptor, [buffer]):
            found.append(buffer[:count])
        os.close(descriptor)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "files": len(paths), "bytes": sum(map(len, found)), "crc": checksum(found)}


def parallel(path: str, count: str) -> Result:
    """Read a file in ``count`` processes at once, each its part of it from front to back.

    The check reads all of it afterwards, from the same pages."""
    size, readers = os.stat(path).st_size, int(count)
    bounds = [size * index // readers // MIB * MIB for index in range(readers)] + [size]
    starter, start_line = os.pipe()
    children = []
    for first, end in itertools.pairwise(bounds):
        if not (child := os.fork()):
            os.close(start_line)
            try:
                _read_part(starter, path, first, end)
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    start = time.perf_counter()
    os.close(start_line)
    failed = sum(os.waitpid(child, 0)[1] != 0 for child in children)
    seconds = time.perf_counter() - start
    if failed:
        raise OSError(f"{path}: {failed} readers have failed")
    descriptor = os.open(path, os.O_RDONLY)
    return {"seconds": seconds, "bytes": size, "crc": checksum(_through(descriptor, pages(MIB)))}


def _read_part(starter: int, path: str, offset: int, end: int) -> None:
    """Wait until ``starter`` is at its end, and read a part of a file."""
    buffer = pages(MIB)
    os.read(starter, 1)
    descriptor = os.open(path, os.O_RDONLY)
    while offset < end:
        count = os.preadv(descriptor, [memoryview(buffer)[: end - offset]], offset)
        if count == 0:
            raise OSError(f"{path}: ends at {offset}")
        offset += count


def random_reads(path: str, count: str, seed: str) -> Result:
    """Read single blocks of 4 KiB, none twice, in a random order that depends only on the seed."""
    descriptor = os.open(path, os.O_RDONLY)
    blocks = os.fstat(descriptor).st_size // 4096
    offsets = [block * 4096 for block in random.Random(int(seed)).sample(range(blocks), min(int(count), blocks))]  # nosec B311  # the same order every time
    start = time.perf_counter()
    found = [os.pread(descriptor, 4096, offset) for offset in offsets]
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "reads": len(found), "bytes": sum(map(len, found)), "crc": checksum(found)}


def write(path: str, size: str, seed: str) -> Result:
    """Write a new file in pieces of 1 MiB, and close it."""
    pieces = [pages(MIB) for _ in range(16)]
    for index, piece in enumerate(pieces):
        piece[:] = random.Random(f"{seed} {index}").randbytes(MIB)  # nosec B311  # the same order every time
    order = [pieces[index % len(pieces)] for index in range(int(size) // MIB)]
    start = time.perf_counter()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    for piece in order:
        if os.write(descriptor, piece) != MIB:
            raise OSError(f"{path}: a short write")
    os.close(descriptor)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "bytes": len(order) * MIB, "crc": checksum(order)}


def small_writes(path: str, size: str, count: str) -> Result:
    """Write a new file in small pieces, and close it."""
    pieces = [random.Random(index).randbytes(int(size)) for index in range(int(count))]  # nosec B311  # the same every time
    start = time.perf_counter()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    for piece in pieces:
        os.write(descriptor, piece)
    os.close(descriptor)
    return {"seconds": time.perf_counter() - start, "writes": len(pieces), "crc": checksum(pieces)}


def mapped_writes(path: str, size: str, count: str) -> Result:
    """Write a little into each page of a file through a mapping, and sync each to the file at once: msync(2)."""
    page = mmap.PAGESIZE
    pieces = [random.Random(index).randbytes(int(size)) for index in range(int(count))]  # nosec B311  # the same every time
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    os.truncate(descriptor, page * len(pieces))
    with mmap.mmap(descriptor, 0) as mapped:
        start = time.perf_counter()
        for index, piece in enumerate(pieces):
            mapped[index * page : index * page + len(piece)] = piece
            mapped.flush(index * page, page)
        seconds = time.perf_counter() - start
    os.close(descriptor)
    crc = checksum(piece.ljust(page, b"\0") for piece in pieces)
    return {"seconds": seconds, "writes": len(pieces), "crc": crc}


def _created(directory: str, count: int) -> list[tuple[str, bytes]]:
    unit = CREATED_SIZE // 8
    return [
        (f"{directory}/{index // FILES_A_DIRECTORY:03}/{index:08}", b"%08d" % index * unit) for index in range(count)
    ]


def create(directory: str, count: str) -> Result:
    """Make small files, a thousand to a directory."""
    wanted = _created(directory, int(count))
    for parent in sorted({os.path.dirname(path) for path, _ in wanted}):
        os.mkdir(parent)
    start = time.perf_counter()
    for path, content in wanted:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(descriptor, content)
        os.close(descriptor)
    return {"seconds": time.perf_counter() - start, "files": len(wanted)}


def created(directory: str, count: str) -> Result:
    """How many of the files that ``create`` made exist with the right contents."""
    good = sum(Path(path).read_bytes() == content for path, content in _created(directory, int(count)))
    return {"seconds": 0, "files": good}


def remove(directory: str, count: str) -> Result:
    """Remove the files that ``create`` made, with their directories, by rm(1)."""
    parents = sorted({os.path.dirname(path) for path, _ in _created(directory, int(count))})
    _load("rm")
    start = time.perf_counter()
    subprocess.run(["rm", "-r", *parents], check=True)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "left": sum(os.path.lexists(parent) for parent in parents)}


def untar(archive: str, directory: str) -> Result:
    """Unpack a tar archive by tar(1)."""
    start = time.perf_counter()
    subprocess.run(["tar", "-xf", archive, "-C", directory], check=True)
    return {"seconds": time.perf_counter() - start}


def git_status(path: str) -> Result:
    """What git(1) says of a checkout, which it does not change."""
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
    command = ["git", "--no-optional-locks", "-c", "safe.directory=*", "-C", path, "status", "--porcelain"]
    _load("git")
    start = time.perf_counter()
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout
    return {"seconds": time.perf_counter() - start, "crc": checksum([output])}


def imports(home: str, list_file: str) -> Result:
    """Start this interpreter with the library in ``home``, and import the listed modules.

    It does so with its own library before: what is not in ``home`` is then in the page cache."""
    names = Path(list_file).read_text().split()
    code = (
        f"import sys, {', '.join(names)}\n"
        f"print(sum(sys.modules[name].__file__.startswith(sys.prefix + '/') for name in {names}))"
    )
    command = [os.path.realpath(sys.executable), "-s", "-B", "-c", code]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    start = time.perf_counter()
    output = subprocess.run(command, env={**environment, "PYTHONHOME": home}, stdout=subprocess.PIPE, check=True).stdout
    return {"seconds": time.perf_counter() - start, "imported": int(output)}


def stream(path: str) -> Result:
    """Read a file over and over, never from the page cache, until SIGTERM."""
    total = 0

    def end(number: int, frame: FrameType | None) -> None:
        print(json.dumps({"seconds": time.perf_counter() - start, "bytes": total}), flush=True)
        os._exit(0)

    start = time.perf_counter()
    signal.signal(signal.SIGTERM, end)
    buffer = pages(MIB)
    descriptor = os.open(path, os.O_RDONLY)
    while True:
        os.lseek(descriptor, 0, os.SEEK_SET)
        while count := os.readv(descriptor, [buffer]):
            total += count
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def stats(root: str, list_file: str) -> Result:
    """Look up each of the listed files."""
    paths = [f"{root}/{line}" for line in Path(list_file).read_text().splitlines()]
    start = time.perf_counter()
    sizes = sum(os.lstat(path).st_size for path in paths)
    return {"seconds": time.perf_counter() - start, "files": len(paths), "bytes": sizes}


def lookups(root: str, list_file: str, streamed: str) -> Result:
    """Look up names that the kernel does not know yet while another process reads a file at full speed.

    Returns the 99th percentile of the latencies, seconds, and the other process's speed meanwhile.
    """
    paths = [f"{root}/{line}" for line in Path(list_file).read_text().splitlines()]
    for parent in sorted({os.path.dirname(path) for path in paths}):
        os.lstat(parent)
    other = subprocess.Popen([sys.executable, __file__, "stream", streamed], stdout=subprocess.PIPE)
    try:
        time.sleep(0.3)
        latencies, sizes = [], 0
        for path in paths:
            start = time.perf_counter()
            sizes += os.lstat(path).st_size
            latencies.append(time.perf_counter() - start)
            time.sleep(0.002)
    finally:
        other.terminate()
        output, _ = other.communicate()
    latencies.sort()
    streaming = json.loads(output)
    return {
        "seconds": latencies[int(len(latencies) * 0.99)],
        "median": latencies[len(latencies) // 2],
        "files": len(paths),
        "bytes": sizes,
        "streamed": streaming["bytes"],
        "rate": streaming["bytes"] / streaming["seconds"],
    }


COMMANDS: dict[str, Callable[..., Result]] = {
    "sequential": sequential,
    "walk": walk,
    "files": files,
    "parallel": parallel,
    "random": random_reads,
    "write": write,
    "small_writes": small_writes,
    "mapped_writes": mapped_writes,
    "create": create,
    "created": created,
    "remove": remove,
    "untar": untar,
    "git_status": git_status,
    "imports": imports,
    "stream": stream,
    "stats": stats,
    "lookups": lookups,
}


if __name__ == "__main__":
    try:
        print(json.dumps(COMMANDS[sys.argv[1]](*sys.argv[2:])))
    except (OSError, subprocess.SubprocessError) as problem:
        sys.exit(f"{sys.argv[1]}: {problem}")

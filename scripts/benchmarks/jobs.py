"""The jobs, with their contenders and mystfuse's marks."""

from __future__ import annotations

import functools

from benchmarks import read_jobs, remote_jobs, tool_jobs, write_jobs
from benchmarks.job import Job, Mark, on

ALL = "mystfuse fuse2fs kernel floor"
WITH_CONTENTS = "mystfuse fuse2fs kernel"
"""Those of them that return the files' contents."""

AS_FAST = Mark(1.1, "ext4", at_most=True)
"""Reading ext4 is as fast as reading ext2, within a tenth."""

JOBS: tuple[Job, ...] = (
    Job(
        "read",
        "cold sequential read, verified, as root",
        "MB/s",
        on(f"{ALL} ext4 limit", read_jobs.read_big) | {"openssl": tool_jobs.openssl_speed},
        (Mark(1, "fuse2fs"), Mark(0.9, "limit"), Mark(1, "openssl"), AS_FAST),
        needs_root=True,
    ),
    Job(
        "read-user",
        "the same as an ordinary user",
        "MB/s",
        on("mystfuse fuse2fs floor limit", functools.partial(read_jobs.read_big, ordinary=True)),
        (Mark(0.8, "fuse2fs"),),
    ),
    Job(
        "read-encrypted",
        "cold sequential read, verified and decrypted",
        "MB/s",
        on("mystfuse", functools.partial(read_jobs.read_big, secret=True))
        | on("fuse2fs", read_jobs.read_big)
        | {"nbdkit": tool_jobs.nbdkit_copy},
        (Mark(0.7, "fuse2fs"), Mark(2.5, "nbdkit")),
    ),
    Job(
        "read-parallel",
        f"cold read by {read_jobs.PARALLEL} at once",
        "MB/s",
        on(f"{ALL} ext4 limit", read_jobs.read_in_parallel),
        (AS_FAST,),
    ),
    Job(
        "random",
        "random 4 KiB cold reads",
        "reads/s",
        on(f"{ALL} ext4 limit", read_jobs.read_randomly),
        (Mark(1, "fuse2fs"), Mark(1, "kernel"), AS_FAST),
    ),
    Job(
        "walk",
        "cold stat walk of a tree",
        "entries/s",
        on(f"{ALL} ext4", read_jobs.walk_tree),
        (Mark(10, "fuse2fs"), AS_FAST),
    ),
    Job(
        "read-files",
        "cold read of every 5th file of a tree",
        "files/s",
        on(f"{ALL} ext4", read_jobs.read_files),
        (Mark(3, "fuse2fs"), AS_FAST),
    ),
    Job(
        "storage-read",
        "sequential read from storage",
        "MB/s",
        on(f"{ALL} ext4 limit", functools.partial(read_jobs.read_big, from_storage=True)),
        (Mark(1, "fuse2fs"), AS_FAST),
        needs_root=True,
    ),
    Job(
        "storage-random",
        "random 4 KiB reads from storage",
        "reads/s",
        on(f"{ALL} ext4 limit", functools.partial(read_jobs.read_randomly, from_storage=True)),
        (Mark(1, "fuse2fs"), AS_FAST),
        needs_root=True,
    ),
    Job(
        "storage-walk",
        "stat walk of a tree from storage",
        "entries/s",
        on(f"{ALL} ext4", functools.partial(read_jobs.walk_tree, from_storage=True)),
        (Mark(5, "fuse2fs"), AS_FAST),
        needs_root=True,
    ),
    Job(
        "storage-files",
        "every 5th file of a tree from storage",
        "files/s",
        on(f"{ALL} ext4", functools.partial(read_jobs.read_files, from_storage=True)),
        (Mark(1.5, "fuse2fs"), AS_FAST),
        needs_root=True,
    ),
    Job(
        "warm-read",
        "second read of one large file on the same mount",
        "MB/s",
        on(f"{ALL} ext4", functools.partial(read_jobs.read_big, mode="warm")),
        (AS_FAST,),
    ),
    Job(
        "warm-walk",
        "second stat walk on the same mount",
        "entries/s",
        on(f"{ALL} ext4", functools.partial(read_jobs.walk_tree, mode="warm")),
        (Mark(0.6, "kernel"), AS_FAST),
    ),
    Job(
        "git-status",
        "git status of a checkout, cold",
        "files/s",
        on(f"{WITH_CONTENTS} ext4", read_jobs.git_status),
        (AS_FAST,),
    ),
    Job(
        "python",
        "start of Python with 100 imports, cold",
        "starts/s",
        on(f"{WITH_CONTENTS} ext4", read_jobs.start_python),
        (AS_FAST,),
    ),
    Job("write", "sequential write", "MB/s", on(ALL, write_jobs.write_big), (Mark(1.5, "fuse2fs"),)),
    Job("write-512", "writes of 512 bytes", "writes/s", on(f"{ALL} noxattr", write_jobs.write_little), ()),
    Job(
        "write-4k",
        "writes of 4 KiB",
        "writes/s",
        on(f"{ALL} noxattr", functools.partial(write_jobs.write_little, size=4096)),
        (Mark(0.5, "fuse2fs"), Mark(1, "fuse2fs", aim=True)),
    ),
    Job(
        "write-mapped",
        "512 bytes through a mapping, and msync",
        "writes/s",
        on(f"{WITH_CONTENTS} noxattr", functools.partial(write_jobs.write_little, command="mapped_writes")),
        (),
    ),
    Job("create", "create small files", "files/s", on(ALL, write_jobs.create_files), (Mark(1, "fuse2fs"),)),
    Job(
        "rm",
        "rm -r of small files",
        "files/s",
        on(ALL, write_jobs.remove_files),
        (Mark(0.25, "fuse2fs"), Mark(0.5, "fuse2fs", aim=True)),
    ),
    Job("untar", "unpack a tar archive", "entries/s", on(ALL, write_jobs.unpack_tar), (Mark(1, "fuse2fs"),)),
    Job(
        "verify",
        "verify an image",
        "MB/s",
        {"mystfuse": tool_jobs.verify, "veritysetup": tool_jobs.veritysetup_verify},
        (Mark(3, "veritysetup"),),
    ),
    Job(
        "mkext2",
        "mkext2 of a directory",
        "MB/s",
        {"mystfuse": tool_jobs.mkext2, "mke2fs+verity": tool_jobs.mke2fs_and_format},
        # In at most 0.7 of the time.
        (Mark(1.43, "mke2fs+verity"),),
    ),
    Job(
        "mount-small",
        "until mounted, 64 MiB image",
        "ms",
        {"mystfuse": functools.partial(tool_jobs.mount_time, which="small")},
        (Mark(250, at_most=True),),
        exact_rounds="mounts",
    ),
    Job(
        "mount-large",
        "until mounted, large sparse image",
        "ms",
        {"mystfuse": functools.partial(tool_jobs.mount_time, which="large")},
        (Mark(250, at_most=True),),
        exact_rounds="mounts",
    ),
    Job(
        "mount-difference",
        "what the large one takes longer",
        "ms",
        {"mystfuse": tool_jobs.mount_difference},
        (Mark(50, at_most=True),),
        exact_rounds="mounts",
    ),
    Job(
        "mount-bytes",
        "read of the large one until mounted",
        "KiB",
        {"mystfuse": tool_jobs.mount_bytes},
        (Mark(1024, at_most=True),),
        once=True,
    ),
    Job(
        "memory",
        "resident memory of all processes after reading",
        "MiB",
        on("mystfuse floor", read_jobs.memory),
        (Mark(100, at_most=True),),
        once=True,
    ),
    Job(
        "latency",
        "first look-ups while reading, p99",
        "ms",
        on("mystfuse fuse2fs floor", read_jobs.lookup_latency),
        (Mark(1, "fuse2fs", at_most=True),),
    ),
    Job(
        "remote-mount",
        "until mounted, 20 ms and 100 Mbit/s away",
        "s",
        on("mystfuse nbdkit+fuse2fs", remote_jobs.mount_seconds),
        # Four round trips, and 0.3 s.
        (Mark(0.38, at_most=True),),
        needs_root=True,
    ),
    Job(
        "remote-trips",
        "round trips until mounted",
        "",
        on("mystfuse nbdkit+fuse2fs", remote_jobs.mount_round_trips),
        (Mark(4, at_most=True),),
        needs_root=True,
    ),
    Job(
        "remote-python",
        "mount and start of Python, 20 ms and 100 Mbit/s away",
        "s",
        on("mystfuse traced nbdkit+fuse2fs", remote_jobs.start_python),
        (Mark(0.25, "nbdkit+fuse2fs", at_most=True), Mark(2, "traced")),
        needs_root=True,
    ),
    Job(
        "remote-bytes",
        "bytes fetched for that, to bytes needed",
        "",
        on("mystfuse", remote_jobs.fetched_to_needed),
        (Mark(2, at_most=True),),
        once=True,
        needs_root=True,
    ),
    Job(
        "remote-read",
        "sequential read through nginx here, from storage",
        "MB/s",
        on("mystfuse local", remote_jobs.read_through_server),
        (Mark(0.7, "local"),),
        needs_root=True,
    ),
    Job(
        "remote-reread",
        "the same again, from the cache",
        "MB/s",
        on("mystfuse local", functools.partial(remote_jobs.read_through_server, again=True)),
        (Mark(0.9, "local"),),
        needs_root=True,
    ),
    Job(
        "remote-hosts",
        "bytes that many mounts with one cache fetch, to different ones",
        "",
        on("mystfuse", remote_jobs.bytes_of_many),
        (Mark(1.05, at_most=True),),
        once=True,
        needs_root=True,
    ),
    Job(
        "remote-memory",
        "resident memory of each of many mounts",
        "MiB",
        on("mystfuse", remote_jobs.memory_of_many),
        (Mark(40, at_most=True),),
        once=True,
        needs_root=True,
    ),
)


def choose(names: str) -> tuple[Job, ...]:
    """The jobs of these names, comma-separated; "mount" stands for all those that begin with it and a dash.

    Raises:
        ValueError: no job has that name.
    """
    chosen: set[str] = set()
    for name in names.split(","):
        found = {job.name for job in JOBS if job.name == name}
        found = found or {job.name for job in JOBS if job.name.startswith(f"{name}-")}
        if not found:
            raise ValueError(f"{name}: no such job; there are {', '.join(job.name for job in JOBS)}")
        chosen |= found
    return tuple(job for job in JOBS if job.name in chosen)

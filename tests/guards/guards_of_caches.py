"""Guards around the fetcher, and the cache that it shares with other users."""

from __future__ import annotations

from tests.guards.guard import Guard

_DIRECTORY = "mystfuse/remote/cache_directory.py"
_CONFINE = "mystfuse/remote/confine_fetcher.py"
_REPLACED = "remote/test_cache_directory.py::test_what_is_no_file_of_ours_is_replaced_and_not_touched"

OF_CACHES: tuple[Guard, ...] = (
    Guard(
        "a fetcher follows no link in its cache",
        _DIRECTORY,
        "flags = access | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY",
        "flags = access | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY",
        (_REPLACED,),
    ),
    Guard(
        "a fetcher writes to no file that has another name",
        _DIRECTORY,
        "if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:",
        "if stat.S_ISREG(status.st_mode):",
        (_REPLACED,),
    ),
    Guard(
        "root follows no link of another user to a cache",
        _DIRECTORY,
        "found = open_directory(path)",
        "found = os.open(path, os.O_PATH)",
        ("remote/test_cache_directory.py::test_root_follows_no_link_of_another_user_to_a_cache",),
    ),
    Guard(
        "who reads a cache cannot write to it",
        _DIRECTORY,
        'readers = opened("data", os.O_RDONLY, False), opened("map", os.O_RDONLY, False)',
        'readers = opened("data", os.O_RDWR, False), opened("map", os.O_RDWR, False)',
        ("remote/test_fetcher.py::test_readers_get_descriptors_that_cannot_write",),
    ),
    Guard(
        "a lock of somebody else stops nobody",
        "mystfuse/remote/chunk_fetches.py",
        "if trio.current_time() > min(patience, longest):",
        "if False:",
        ("remote/test_chunk_fetches.py::test_what_another_process_fetches_is_waited_for_and_not_for_ever",),
    ),
    Guard(
        "a fetcher opens what it needs and nothing else",
        _CONFINE,
        "return restrict_to_paths(readable_paths(config, environment), [], writable)",
        "return 1",
        ("remote/test_confine_fetcher.py::test_it_reads_credentials_and_no_keys_of_images_and_writes_in_its_cache",),
    ),
    Guard(
        "a fetcher has no capabilities",
        _CONFINE,
        "    drop_privileges()\n",
        "    drop_privileges(keep=-1 & (1 << 40) - 1)\n",
        ("remote/test_confine_fetcher.py::test_it_reads_credentials_and_no_keys_of_images_and_writes_in_its_cache",),
    ),
    Guard(
        "a worker ends with its supervisor",
        "mystfuse/remote/supervisor.py",
        "if end_with_parent(signal.SIGKILL, supervisor):",
        "if True:",
        ("remote/test_fetcher.py::test_the_supervisors_end_is_the_workers",),
    ),
)

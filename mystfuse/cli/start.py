"""The entry points of the commands. Nothing is imported before them, so that a failed import is one line, too."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import NoReturn

MIN_ADDRESS_SPACE = 96
"""MiB of RLIMIT_AS. With 57 to 69, opening an encrypted image dies by SIGSEGV; with less, no libraries load."""
MIN_DATA = 80
"""MiB of RLIMIT_DATA. With 13 cryptography's library aborts, below 34 threads do not start, a mount takes 50, verify 54
and, by how its threads meet, sometimes more than 64."""
MIN_GROUP_MEMORY = 40
"""MiB of a control group's limit. With 32 the kernel kills the daemon while it starts."""


def mystfuse() -> NoReturn:
    """The command ``mystfuse``."""
    # The 1 of diff means that the trees differ, whatever happens here.
    failed = 2 if sys.argv[1:2] == ["diff"] else 1
    _start("mystfuse.cli.main", failed=failed, interrupted=failed)


def mount_helper() -> NoReturn:
    """The command ``mount.mystfuse``, with the exit statuses that mount(8) understands."""
    _start("mystfuse.cli.commands.mount_mystfuse", failed=2, interrupted=8)


def _start(module: str, failed: int, interrupted: int) -> NoReturn:
    try:
        # Some supervisors ignore it: then the kernel reaps children by itself, and their failure is not noticed.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        open_standard_descriptors()
        too_little = too_little_memory()
        if too_little is not None:
            _leave(too_little, failed)
        __import__(module)
        sys.modules[module].main()
    except KeyboardInterrupt:
        _leave("interrupted", interrupted)
    except MemoryError:
        _leave("out of memory", failed)
    except OSError as error:
        _leave(f"cannot be started: {error.filename or 'mystfuse'}: {error.strerror}", failed)
    except Exception as error:
        # No memory (SystemError is one of Python's words for it), or an incomplete installation.
        _leave(f"cannot be started: {error}", failed)
    sys.exit(failed)


def open_standard_descriptors() -> None:
    """Open descriptors 0 to 2 for good where the caller has closed them: a file that is opened later would get their
    numbers, and messages would be written to it.

    Python's own files use these very numbers: daemons close everything above.
    """
    for number, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            # It gets the lowest number that is free, which is this one, since those below are open by now.
            os.set_inheritable(os.open(os.devnull, flags), True)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def too_little_memory() -> str | None:
    """A warning when a limit leaves less memory than starting takes; None if it is enough.

    Without memory, C libraries that load and threads that start end the process by a signal, which no handler catches.
    """
    import resource

    for limit, least, what, option in (
        (resource.RLIMIT_AS, MIN_ADDRESS_SPACE, "address space", "ulimit -v"),
        (resource.RLIMIT_DATA, MIN_DATA, "data", "ulimit -d"),
    ):
        size = resource.getrlimit(limit)[0]
        if 0 <= size < least << 20:
            return f"needs at least {least} MB of {what} to start, and may have {size >> 20} ({option})"
    from mystfuse.system.memory import group_limit

    group = group_limit()
    if group is not None and group < MIN_GROUP_MEMORY << 20:
        needs = f"needs at least {MIN_GROUP_MEMORY} MB of memory to start"
        return f"{needs}, and its control group may have {group >> 20} (memory.max)"
    return None


def _leave(message: str, status: int) -> NoReturn:
    line = " ".join(f"mystfuse: {message}".splitlines())
    with suppress(OSError):
        os.write(2, f"{line}\n".encode(errors="backslashreplace"))
    os._exit(status)

"""Where the commands start: before anything is imported, so that what goes wrong meanwhile is one line as well."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import NoReturn


def mystfuse() -> NoReturn:
    """The command ``mystfuse``."""
    _start("mystfuse.cli.main", failed=1, interrupted=1)


def mount_helper() -> NoReturn:
    """The command ``mount.mystfuse``, with the exit statuses that mount(8) understands."""
    _start("mystfuse.cli.mount_helper", failed=2, interrupted=8)


def _start(module: str, failed: int, interrupted: int) -> NoReturn:
    try:
        __import__(module)
        sys.modules[module].main()
    except KeyboardInterrupt:
        _leave("interrupted", interrupted)
    except MemoryError:
        _leave("out of memory", failed)
    except OSError as error:
        _leave(f"cannot be started: {error.filename or 'mystfuse'}: {error.strerror}", failed)
    except Exception as error:
        # No memory (SystemError is one way in which Python says so), or half an installation.
        _leave(f"cannot be started: {error}", failed)
    sys.exit(failed)


def _leave(message: str, status: int) -> NoReturn:
    line = " ".join(f"mystfuse: {message}".splitlines())
    with suppress(OSError):
        os.write(2, f"{line}\n".encode(errors="backslashreplace"))
    os._exit(status)

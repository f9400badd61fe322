"""Whether an image is worth a passphrase: its trust, and its header behind the hash tree, before anybody is asked.

Both are parsed in a process that is confined, as a daemon is (docs/adr/0011): this one has the caller's privileges.
"""

from __future__ import annotations

import importlib
import logging

from mystfuse.devices.source import StoredSource
from mystfuse.errors import ExitStatus, MystfuseError, WrongKey, error_of, explain, innermost
from mystfuse.mounting.daemonize import Report, end_child, run_in_background
from mystfuse.system.confinement import confine
from mystfuse.system.imports import importing
from mystfuse.trust.sources import TrustOptions

_END = 5.0
"""Seconds for the process to end when it has reported."""


def check_before_asking(source: StoredSource, trust: TrustOptions, io_timeout: float) -> None:
    """Raise the error that opening the image would end in, whatever the passphrase is.

    Raises:
        NotTrusted: nobody whom the options name stands for it.
        FormatError, IntegrityError, ImageReadError: it is no image, a damaged one, or cannot be read.
        WrongKey: it is not encrypted.
    """

    # An image elsewhere is open from here on: what its fetcher says of it comes once.
    _ = source.size

    def serve(report: Report) -> int:
        status, message = _check(source, trust, io_timeout)
        report(status, message)
        return int(status)

    started = run_in_background(serve, source.descriptors, dies_with_parent=True)
    if started.status is not ExitStatus.DONE:
        raise error_of(started.status, started.message)
    end_child(started.pid, _END)


def _check(source: StoredSource, trust: TrustOptions, io_timeout: float) -> tuple[ExitStatus, str]:
    """In the child: the exit status and the message of opening the image without a key."""
    with importing():
        import trio

        from mystfuse.image.contents import read_contents
        from mystfuse.image.pipeline import open_trusted, run_verity

        # As in mounting.daemon: nothing can be imported once we are confined.
        for module in "mystfuse.image.unlock", "mystfuse.image.unverified_bytes", "linecache", "tokenize":
            importlib.import_module(module)
    # Opening it says the same later.
    logging.disable()
    confine()

    async def check() -> None:
        image = await open_trusted(source, trust, io_timeout)
        async with run_verity(image, io_timeout) as (reader, verity):
            if await read_contents(verity or reader, is_whole=verity is not None) is None:
                raise WrongKey("the image is not encrypted: it needs no passphrase")

    try:
        trio.run(check)
    except BaseException as error:
        cause = innermost(error)
        if isinstance(cause, MystfuseError):
            return cause.exit_status, str(cause.about(source.name))
        message = explain(cause) or f"internal error: {type(cause).__name__}: {cause}"
        return ExitStatus.FAILED, f"{source.name}: {message}"
    return ExitStatus.DONE, ""

"""The daemon of a mount: it forks its keeper, imports everything, gives up its privileges, and serves.

Everything that the daemon needs once it is confined must be imported or open by then.
"""

from __future__ import annotations

import importlib
import logging
import os
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING

from mystfuse.devices.source import Remoteness, remoteness
from mystfuse.errors import ExitStatus, MountError, MystfuseError, explain, innermost, one_line
from mystfuse.formats.fssig import FSSIG_SIZE, has_fssig_magic
from mystfuse.mounting.daemon_logs import DaemonLogs
from mystfuse.mounting.daemonize import Report
from mystfuse.mounting.keeper_client import Keeper
from mystfuse.mounting.mount_job import MountJob
from mystfuse.mounting.systemd_notify import Notifier
from mystfuse.overlay.encrypted_store import prepare_store
from mystfuse.system.confinement import Confinement, confine
from mystfuse.system.imports import importing
from mystfuse.system.memory import note_available_memory

if TYPE_CHECKING:
    from mystfuse.mounting.session import Session

log = logging.getLogger(__name__)


def serve_mount(job: MountJob, report: Report) -> int:
    """Open the image, mount it, and serve the mount until it ends; returns the exit status.

    Args:
        report: called once, when the mount is ready or has failed.
    """
    return _Daemon(job, report).run()


class _Daemon:
    def __init__(self, job: MountJob, report: Report) -> None:
        self._job = job
        self._report = report
        # A mount in the background is not the service that the manager waits for.
        self._notifier = Notifier.from_environment() if job.foreground else Notifier(None)
        # Forked now: while there is one thread, before we read the image, and before memory grows.
        self._keeper = Keeper(job.options)
        if job.keys:
            # For the same reasons; and a confined process does not fork.
            job.keys.start_deriver()
        self._logs: DaemonLogs | None = None
        self._is_ready = False
        self._session: Session | None = None
        self._trust_explanation = ""

    def run(self) -> int:
        with ExitStack() as stack:
            stack.callback(self._keeper.close)
            try:
                self._import_all()
                self._logs = logs = DaemonLogs(self._job.foreground, self._job.log_file)
                stack.callback(logs.catch_up)
                confinement = self._confine()
                logs.start_threads()
                self._job.keys.lock()
                import trio

                return int(trio.run(self._serve, confinement))
            except BaseException as error:
                return self._fail(innermost(error))

    def _import_all(self) -> None:
        """Import the daemon's modules. Only here: the parent needs none of them, and must not have started anything of
        trio's or pyfuse3's when it forks."""
        job = self._job
        with importing():
            import mystfuse.image.pipeline
            import mystfuse.mounting.session  # noqa: F401

            # Python 3.12 and later import these when they show an error with its place.
            importlib.import_module("linecache")
            importlib.import_module("tokenize")
            from mystfuse.image.first_bytes import FIRST_BYTES, is_ext2, is_luks

            # Without waiting for storage: if the page cache lacks the first bytes, we import encryption in vain.
            first = memoryview(bytearray(min(FIRST_BYTES, job.source.size)))
            if job.keys or not job.source.read_cached(0, first) or is_luks(first) or not is_ext2(first):
                importlib.import_module("mystfuse.image.unlock")
                job.prepare_progress()
                note_available_memory()
            if not _ends_like_image(job) or not (is_luks(first) or is_ext2(first)):
                from mystfuse.image.identify import import_recognizers

                import_recognizers()
            if job.options.overlay_store is not None:
                prepare_store()
            if remoteness(job.source) is not Remoteness.HERE:
                importlib.import_module("mystfuse.image.unverified_bytes")

    def _confine(self) -> Confinement:
        """Close everything but the descriptors that this process needs."""
        if self._job.options.directory is not None:
            # Only the keeper needs it; here it would keep the mountpoint's file system busy.
            os.close(self._job.options.directory)
        return confine()

    async def _serve(self, confinement: Confinement) -> ExitStatus:
        from mystfuse.image.pipeline import open_trusted
        from mystfuse.mounting.session import Session

        job = self._job
        image = await open_trusted(job.source, job.trust, job.options.io_timeout)
        self._trust_explanation = image.trust.explanation
        if not image.trust.is_vouched_for:
            log.warning("%s is %s", job.source.name, image.trust.explanation)
        on_ending = partial(self._notifier.send, "STOPPING=1", "STATUS=unmounting")
        self._session = session = Session(
            image, job.keys, job.options, self._keeper, confinement, self._ready, job.progress, on_ending
        )
        return await session.run()

    def _ready(self) -> None:
        """The mount answers: tell the parent, the service manager, and the reader of ``ready_fd``."""
        self._is_ready = True
        assert self._logs is not None
        self._logs.catch_up_stderr()
        self._logs.start_up_is_over()
        features = self._session.only_for_reading if self._session is not None else ()
        description = self._job.describe(self._trust_explanation, features)
        self._report(ExitStatus.DONE, description)
        self._notifier.send("READY=1", f"STATUS={one_line(description)}")
        if self._job.ready_fd is not None:
            with suppress(OSError):
                os.write(self._job.ready_fd, b"ready\n")
                os.close(self._job.ready_fd)

    def _fail(self, error: BaseException) -> int:
        """Tell the parent, or the log if the parent is gone, why the daemon ends; returns the exit status."""
        if self._is_ready:
            # The loop itself has failed and has not unmounted: nothing serves the mount any more.
            with suppress(MountError):
                self._keeper.unmount(lazy=True)
        status, message = self._explain(error)
        self._notifier.send(f"STATUS={one_line(message)}")
        if self._is_ready:
            log.error("%s", message)
        else:
            if self._logs is not None:
                self._logs.catch_up_stderr()
            self._report(status, message)
        return int(status)

    def _explain(self, error: BaseException) -> tuple[ExitStatus, str]:
        """The exit status for an error, and one line about it."""
        image = self._job.source.name
        if isinstance(error, MystfuseError):
            return error.exit_status, str(error if isinstance(error, MountError) else error.about(image))
        if isinstance(error, KeyboardInterrupt):
            return ExitStatus.FAILED, "interrupted"
        if _is_for_want_of_memory(error):
            return ExitStatus.FAILED, f"{self._job.options.mountpoint}: no memory left"
        message = explain(error)
        if message is not None:
            has_name = isinstance(error, OSError) and error.filename
            return ExitStatus.FAILED, message if has_name else f"{image}: {message}"
        log.error("internal error", exc_info=error)
        return ExitStatus.FAILED, f"internal error: {type(error).__name__}: {error}"


def _ends_like_image(job: MountJob) -> bool:
    """Whether an fssig is where it must be, as far as that can be said without waiting for storage: if it cannot, we
    import in vain what says what else the file is."""
    if job.trust.hash_offset is not None:
        return True
    start = memoryview(bytearray(min(8, job.source.size)))
    is_known = job.source.read_cached(max(0, job.source.size - FSSIG_SIZE), start)
    return is_known and has_fssig_magic(bytes(start))


def _is_for_want_of_memory(error: BaseException) -> bool:
    """Whether a MemoryError caused an error: where trio meets one, it raises TrioInternalError."""
    pending: list[BaseException | None] = [error]
    seen: set[int] = set()
    while pending:
        found = pending.pop()
        if isinstance(found, MemoryError):
            return True
        if found is not None and id(found) not in seen:
            seen.add(id(found))
            pending += [found.__cause__, found.__context__]
            if isinstance(found, BaseExceptionGroup):
                pending += found.exceptions
    return False

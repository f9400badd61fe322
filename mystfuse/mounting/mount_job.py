"""A mount to be made, and what its daemon does. Commands that mount prepare one and fork."""

from __future__ import annotations

import importlib
import logging
import os
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from mystfuse.cli.progress import prepare_progress, progress
from mystfuse.cli.text import complain, one_line, say
from mystfuse.devices.joined_source import JoinedSource
from mystfuse.devices.source import FileSource
from mystfuse.errors import ExitStatus, MountError, MystfuseError, explain, innermost
from mystfuse.fuse.mount_options import MountOptions
from mystfuse.image.keys import Keys
from mystfuse.mounting.daemon_logs import DaemonLogs
from mystfuse.mounting.daemonize import Report
from mystfuse.mounting.keeper import Keeper
from mystfuse.mounting.systemd_notify import Notifier
from mystfuse.overlay.store import prepare_store
from mystfuse.system.confinement import Confinement, confine
from mystfuse.system.imports import importing
from mystfuse.system.memory import note_available_memory
from mystfuse.trust.sources import TrustOptions

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MountJob:
    """Everything about a mount, read and checked as far as that can be done without trio."""

    source: FileSource | JoinedSource
    trust: TrustOptions
    keys: Keys
    options: MountOptions
    foreground: bool = False
    log_file: int | None = None
    """A descriptor to append to."""
    ready_fd: int | None = None

    @property
    def descriptors(self) -> frozenset[int]:
        """What the daemon needs to inherit."""
        options = self.options
        wanted = (
            self.ready_fd,
            self.log_file,
            options.descriptor,
            options.directory,
            options.overlay_store,
        )
        return self.source.descriptors | {descriptor for descriptor in wanted if descriptor is not None}

    def close(self) -> None:
        """Close the files that are the daemon's alone, when it has been started."""
        self.source.close()
        if self.options.overlay_store is not None:
            os.close(self.options.overlay_store)

    def serve(self, report: Report) -> int:
        """Open the image and serve its mount until that ends; runs in the daemon. Returns the exit status."""
        # Only in the foreground: who mounts in passing is not the service that the manager waits for.
        notifier = Notifier.from_environment() if self.foreground else Notifier(None)
        # Forked now: while there is one thread, before the image is looked at, and before there is more in memory.
        keeper = Keeper(self.options)
        if self.keys:
            # For the same reasons, and who is confined can fork nothing.
            self.keys.start_deriver()
        # Imported here: the parent never needs them, and must not have started anything of theirs when it forks. All of
        # it now: who is confined imports nothing.
        with importing():
            import trio

            from mystfuse.image.pipeline import open_trusted
            from mystfuse.mounting.session import Session

            self._import_what_some_need()

        is_ready = False
        logs: DaemonLogs | None = None
        trust_explanation = ""

        def on_ready() -> None:
            nonlocal is_ready
            is_ready = True
            assert logs is not None
            logs.catch_up_stderr()
            logs.start_up_is_over()
            description = self._describe(trust_explanation)
            report(ExitStatus.DONE, description)
            notifier.send("READY=1", f"STATUS={one_line(description)}")
            if self.ready_fd is not None:
                with suppress(OSError):
                    os.write(self.ready_fd, b"ready\n")
                    os.close(self.ready_fd)

        def on_ending() -> None:
            notifier.send("STOPPING=1", "STATUS=unmounting")

        async def serve() -> int:
            nonlocal trust_explanation
            image = await open_trusted(self.source, self.trust, self.options.io_timeout)
            trust_explanation = image.trust.explanation
            if not image.trust.is_vouched_for:
                log.warning("%s is %s", self.source.name, trust_explanation)
            session = Session(image, self.keys, self.options, keeper, confinement, on_ready, progress, on_ending)
            return await session.run()

        with ExitStack() as stack:
            try:
                stack.callback(keeper.close)
                logs = DaemonLogs(self.foreground, self.log_file)
                stack.callback(logs.catch_up)
                confinement = self._confine()
                logs.start_threads()
                self.keys.lock()
                return int(trio.run(serve))
            except BaseException as error:
                if is_ready:
                    # The loop itself has failed, and could not do it: nobody would answer from now on.
                    with suppress(MountError):
                        keeper.unmount(lazy=True)
                status, message = self._explain(innermost(error))
                notifier.send(f"STATUS={one_line(message)}")
                if is_ready:
                    log.error("%s", message)
                else:
                    if logs is not None:
                        logs.catch_up_stderr()
                    report(status, message)
                return int(status)

    def _import_what_some_need(self) -> None:
        # By later Pythons than 3.11 not before an error is shown with its place.
        importlib.import_module("linecache")
        importlib.import_module("tokenize")
        from mystfuse.image.first_bytes import FIRST_BYTES, is_ext2, is_luks

        # Without waiting for storage: rather import it in vain.
        first = self.source.read_cached(0, min(FIRST_BYTES, self.source.size))
        if self.keys or first is None or is_luks(first) or not is_ext2(first):
            importlib.import_module("mystfuse.image.unlock")
            prepare_progress()
            note_available_memory()
        if self.options.overlay_store is not None:
            prepare_store()

    def _confine(self) -> Confinement:
        """Leave this process its open descriptors and little else."""
        if self.options.directory is not None:
            # The keeper's business. It would keep busy what the mountpoint is in.
            os.close(self.options.directory)
        return confine()

    def _explain(self, error: BaseException) -> tuple[ExitStatus, str]:
        """What to exit with because of an error, and what to say."""
        if isinstance(error, MystfuseError):
            return error.exit_status, str(error if isinstance(error, MountError) else error.about(self.source.name))
        if isinstance(error, KeyboardInterrupt):
            return ExitStatus.FAILED, "interrupted"
        if _is_for_want_of_memory(error):
            return ExitStatus.FAILED, f"{self.options.mountpoint}: no memory left"
        message = explain(error)
        if message is not None:
            has_name = isinstance(error, OSError) and error.filename
            return ExitStatus.FAILED, message if has_name else f"{self.source.name}: {message}"
        log.error("internal error", exc_info=error)
        return ExitStatus.FAILED, f"internal error: {type(error).__name__}: {error}"

    def _describe(self, explanation: str) -> str:
        where = "memory" if self.options.overlay_store is None else "memory and, encrypted, in the overlay store"
        how = "read-only" if self.options.read_only else f"writes are kept in {where} and forgotten at unmount"
        return f"{self.source.name} mounted on {self.options.mountpoint}, {how}; {explanation}"


def _is_for_want_of_memory(error: BaseException) -> bool:
    """Whether a MemoryError is behind an error: where trio meets one, it says that trio is broken."""
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


def tell_foreground(status: ExitStatus, message: str) -> None:
    """Report how a mount in the foreground went."""
    if status is ExitStatus.DONE:
        say(message)
    else:
        complain(message, status)

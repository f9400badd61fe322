"""A mount to be made, and what its daemon does. Commands that mount prepare one and fork."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mystfuse.cli.logs import set_up_logging
from mystfuse.cli.progress import progress
from mystfuse.cli.text import complain, one_line, say
from mystfuse.devices.source import FileSource
from mystfuse.errors import ExitStatus, MountError, MystfuseError, innermost
from mystfuse.fuse.daemon import Report
from mystfuse.fuse.mount_table import find_mount, is_ours
from mystfuse.fuse.notify import Notifier
from mystfuse.fuse.options import MountOptions
from mystfuse.fuse.unmount import unmount
from mystfuse.image.keys import Keys
from mystfuse.imports import importing
from mystfuse.trust.sources import TrustOptions

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MountJob:
    """Everything about a mount, read and checked as far as that can be done without trio."""

    source: FileSource
    trust: TrustOptions
    keys: Keys
    options: MountOptions
    foreground: bool = False
    log_file: Path | None = None
    ready_fd: int | None = None

    @property
    def descriptors(self) -> frozenset[int]:
        """What the daemon needs to inherit."""
        wanted = (self.source.fileno(), self.ready_fd, self.options.descriptor)
        return frozenset(descriptor for descriptor in wanted if descriptor is not None)

    def serve(self, report: Report) -> int:
        """Open the image and serve its mount until that ends; runs in the daemon. Returns the exit status."""
        # Imported here: the parent never needs them, and must not have started anything of theirs when it forks.
        with importing():
            import trio

            from mystfuse.fuse.session import Session
            from mystfuse.image.open import open_image

        # Only in the foreground: who mounts in passing is not the service that the manager waits for.
        notifier = Notifier.from_environment() if self.foreground else Notifier(None)
        is_ready = False
        start_up_is_over: Callable[[], None] = lambda: None  # noqa: E731
        trust_explanation = ""

        def on_ready() -> None:
            nonlocal is_ready
            is_ready = True
            start_up_is_over()
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
            timeout = self.options.io_timeout
            try:
                with trio.fail_after(timeout):
                    image = await trio.to_thread.run_sync(
                        open_image,
                        self.source,
                        self.trust.policy,
                        self.trust.hash_offset,
                        self.trust.root_hash,
                        abandon_on_cancel=True,
                    )
            except trio.TooSlowError as error:
                raise MystfuseError(f"{self.source.name}: no answer from storage within {timeout:g} s") from error
            trust_explanation = image.trust.explanation
            if not image.trust.is_vouched_for:
                log.warning("%s is %s", self.source.name, trust_explanation)
            return await Session(image, self.keys, self.options, on_ready, progress, on_ending).run()

        try:
            self.keys.lock()
            start_up_is_over = set_up_logging(self.foreground, self.log_file)
            return int(trio.run(serve))
        except BaseException as error:
            if is_ready:
                self._leave_nothing_mounted()
            status, message = self._explain(innermost(error))
            notifier.send(f"STATUS={one_line(message)}")
            if is_ready:
                log.error("%s", message)
            else:
                report(status, message)
            return int(status)

    def _explain(self, error: BaseException) -> tuple[ExitStatus, str]:
        """What to exit with because of an error, and what to say."""
        if isinstance(error, MystfuseError):
            return error.exit_status, str(error) if isinstance(error, MountError) else error.about(self.source.name)
        if isinstance(error, OSError):
            return ExitStatus.FAILED, f"{error.filename or self.source.name}: {error.strerror or error}"
        if isinstance(error, KeyboardInterrupt):
            return ExitStatus.FAILED, "interrupted"
        if _is_for_want_of_memory(error):
            return ExitStatus.FAILED, f"{self.options.mountpoint}: no memory left"
        log.error("internal error", exc_info=error)
        return ExitStatus.FAILED, f"internal error: {type(error).__name__}: {error}"

    def _leave_nothing_mounted(self) -> None:
        """Unmount, if the loop itself has failed, and could not: nobody would answer from now on."""
        mountpoint = self.options.mountpoint
        try:
            mount = find_mount(mountpoint)
            if mount is not None and is_ours(mount):
                unmount(mountpoint, lazy=True)
        except (MystfuseError, OSError, MemoryError) as error:
            log.warning("%s: not unmounted: %s", mountpoint, error)

    def _describe(self, explanation: str) -> str:
        how = "read-only" if self.options.read_only else "writes are kept in memory and forgotten at unmount"
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

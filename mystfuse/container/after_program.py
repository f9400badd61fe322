"""What is done with a container's image when its program has ended, and by whom: a process that has waited for that.

The process that runs bubblewrap starts no other process any more: its children's process namespace ends with the
program. This one is forked before, when everything is mounted, and sees the same mounts.
"""

from __future__ import annotations

import json
import os
import signal
import struct
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import NoReturn, Protocol

from mystfuse.errors import ExitStatus, MystfuseError, error_of, explain
from mystfuse.system.wait_readable import wait_readable

_ENDING_SIGNALS = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)
_STATUS = struct.Struct("B")
_MAX_REPORT = 65536


class Aftermath(Protocol):
    """What is to be done. The methods raise MystfuseError."""

    def prepare(self) -> None:
        """Read keys and make files, before there are namespaces of our own, which hide some."""
        ...

    def check(self, mountpoint: str) -> None:
        """Check, before the program starts, what only the mount says: in the process that waits."""
        ...

    def finish(self, mountpoint: str, status: int) -> None:
        """Do it, in the process that waits: the program has ended with ``status``, and nothing uses the image."""
        ...

    def close(self) -> None:
        """Give up the files that have been made and not finished."""
        ...


class Waiting:
    """The process that waits for the program's end."""

    def __init__(self, aftermath: Aftermath, mountpoint: str) -> None:
        """Fork it.

        Raises:
            MystfuseError: as ``Aftermath.check``.
        """
        self._reports, report = os.pipe()
        ended, self._ended = os.pipe()
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING_SIGNALS)
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._reports)
            os.close(self._ended)
            _serve(aftermath, mountpoint, ended, report)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        os.close(report)
        os.close(ended)
        try:
            self._read_report()
        except BaseException:
            self.close()
            raise

    def finish(self, status: int) -> None:
        """Have it do its work; the signals that end this process end it, and are reported.

        Args:
            status: the program's exit status.

        Raises:
            MystfuseError: as ``Aftermath.finish``.
        """
        pidfd = os.pidfd_open(self._pid)

        def forward(number: int, frame: FrameType | None) -> None:
            # It may have ended.
            with suppress(OSError):
                signal.pidfd_send_signal(pidfd, number)

        # The program's handlers would signal a process that is no more.
        for number in _ENDING_SIGNALS:
            signal.signal(number, forward)
        try:
            # It may have ended: its report is missing then.
            with suppress(BrokenPipeError):
                os.write(self._ended, _STATUS.pack(status & 0xFF))
            while not wait_readable([pidfd]):
                pass
            self._read_report()
        finally:
            os.close(pidfd)
            self.close()

    def close(self) -> None:
        """Have it end, if it has nothing to do any more, and wait for that."""
        if self._pid:
            os.close(self._ended)
            os.close(self._reports)
            with suppress(ChildProcessError):
                os.waitpid(self._pid, 0)
            self._pid = 0

    def _read_report(self) -> None:
        """Raise the error that it reports, if any."""
        said = os.read(self._reports, _MAX_REPORT)
        if not said:
            raise MystfuseError("the process that was to keep the changes has ended: they are lost")
        status, message = json.loads(said)
        if status != ExitStatus.DONE:
            raise error_of(ExitStatus(status), message)


def _serve(aftermath: Aftermath, mountpoint: str, ended: int, report: int) -> NoReturn:
    """Runs in the process that waits."""
    try:
        _reported(report, lambda: aftermath.check(mountpoint))
        # The terminal's ^C is the program's. Nothing interrupts the wait but the end of the pipe.
        said = os.read(ended, _STATUS.size)
        if said:
            # What has been sent meanwhile was not meant for this process: forget it.
            for number in _ENDING_SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            for number in _ENDING_SIGNALS:
                signal.signal(number, _interrupt)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING_SIGNALS)
            _reported(report, lambda: aftermath.finish(mountpoint, *_STATUS.unpack(said)))
    finally:
        # Names that its files have for a moment are known here alone.
        with suppress(Exception):
            aftermath.close()
        # Not sys.exit: functions registered with atexit and buffered output belong to the parent.
        os._exit(0)


def _reported(report: int, work: Callable[[], None]) -> None:
    """Do ``work``, and write how it ended."""
    outcome: tuple[int, str] = (ExitStatus.DONE, "")
    try:
        work()
    except MystfuseError as error:
        outcome = (error.exit_status, str(error))
    except KeyboardInterrupt:
        outcome = (ExitStatus.FAILED, "interrupted: the changes are lost")
    except Exception as error:
        outcome = (ExitStatus.FAILED, explain(error) or f"internal error: {type(error).__name__}: {error}")
    with suppress(OSError):
        os.write(report, json.dumps(outcome).encode()[:_MAX_REPORT])


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    # Once: what is being cleaned up is not to be interrupted again.
    for each in _ENDING_SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt

"""``mount.mystfuse``: mount(8) runs it for ``mount -t mystfuse IMAGE DIRECTORY`` and lines of fstab(5)."""

from __future__ import annotations

import getopt
import importlib
import os
import re
import sys
import traceback
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NoReturn

from mystfuse import __version__
from mystfuse.cli.mount_jobs import prepare
from mystfuse.cli.mount_options import OPTION_NAMES, parse_mount_options
from mystfuse.cli.remote_options import remote_options_of
from mystfuse.cli.text import complain, leave, say, warn
from mystfuse.devices.open_source import open_source
from mystfuse.devices.patience import IO_TIMEOUT
from mystfuse.errors import ExitStatus, MystfuseError, UsageError, explain
from mystfuse.mounting.daemon import serve_mount
from mystfuse.mounting.daemonize import Report, run_in_background
from mystfuse.mounting.mount_namespace import MountNamespace

USAGE = "usage: mount.mystfuse IMAGE DIRECTORY [-sfnv] [-N NAMESPACE] [-o OPTION[,OPTION]...] [-t TYPE]"
MAX_KEY_DIGITS = 512
"""Of ``-o key=HEX``."""


class MountExit(IntEnum):
    """Exit statuses of mount(8): its manual page, EXIT STATUS."""

    DONE = 0
    USAGE = 1
    """Incorrect invocation or permissions."""
    SYSTEM = 2
    """Out of memory, no more processes."""
    BUG = 4
    INTERRUPTED = 8
    FAILED = 32


_OPPOSITES = (("ro", "rw"), ("suid", "nosuid"), ("dev", "nodev"), ("exec", "noexec"), ("trust_self", "no_trust_self"))
"""Of each pair the last one counts, as for mount(8)."""
_ALLOWED = ("suid", "dev")
"""mount(8) drops ``suid`` and ``dev`` as its defaults, and passes on ``nosuid`` and ``nodev`` alone. Our defaults
differ; ``allow_suid`` and ``allow_dev`` reach us."""
_FOR_OTHERS = re.compile(
    r"defaults|(no)?auto|(no)?user|user=.*|users|(no)?owner|(no)?group|nofail|_netdev|[xX]-.*|comment=.*|u?helper=.*|"
    r"silent|loud|sync|dirsync|atime|(no)?diratime|(no|strict|nostrict)?relatime|(no)?strictatime|(no)?lazytime|"
    r"(no)?iversion",
    re.DOTALL,
)
"""Options for mount(8) and systemd, or without a meaning here: reads update no times."""
_NOT_HERE = {"foreground": "mount(8) mounts in the background", "ready_fd": "mount(8) passes no descriptors on"}


@dataclass(frozen=True, slots=True)
class _Call:
    """The arguments of mount(8)."""

    image: str
    mountpoint: str
    options: tuple[str, ...]
    flags: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> _Call:
        """Raise UsageError unless they are IMAGE DIRECTORY [options]."""
        if len(arguments) < 2:
            raise UsageError(USAGE)
        image, mountpoint, *rest = arguments
        try:
            flags, beyond = getopt.getopt(rest, "sfnvN:o:t:")
        except getopt.GetoptError as error:
            raise UsageError(f"{error}; {USAGE}") from error
        if beyond:
            raise UsageError(f"{beyond[0]}: what is this? {USAGE}")
        # A comma inside a value is written with a backslash.
        options = [part for name, value in flags if name == "-o" for part in re.split(r"(?<!\\),", value)]
        return cls(image, mountpoint, tuple(filter(None, options)), tuple(flags))

    def has(self, flag: str) -> bool:
        return any(name == flag for name, _ in self.flags)

    @property
    def namespace(self) -> str | None:
        return next((value for name, value in self.flags if name == "-N"), None)

    def without_key(self, descriptor: int) -> list[str]:
        """The same arguments, with the key in a descriptor."""
        options = [option for option in self.options if not option.startswith("key=")]
        others = [part for name, value in self.flags if name != "-o" for part in (name, value) if part]
        return [self.image, self.mountpoint, *others, "-o", ",".join([*options, f"keyfile=/dev/fd/{descriptor}"])]


def main(arguments: list[str] | None = None) -> NoReturn:
    """Mount as mount(8) asks, and exit with a status that it knows."""
    leave(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Mount as the arguments say; returns the exit status. Every error is one line on stderr."""
    try:
        if arguments in (["-V"], ["--version"]):
            say(f"mount.mystfuse from mystfuse {__version__}")
            return MountExit.DONE
        if arguments in (["-h"], ["--help"]):
            say(USAGE)
            return MountExit.DONE
        return _mount(_Call.parse(arguments))
    except UsageError as error:
        return _complain(str(error), MountExit.USAGE)
    except MystfuseError as error:
        return _complain(str(error), MountExit.FAILED)
    except KeyboardInterrupt:
        return _complain("interrupted", MountExit.INTERRUPTED)
    except Exception as error:
        message = explain(error)
        if message is not None:
            return _complain(message, MountExit.SYSTEM)
        if os.environ.get("MYSTFUSE_DEBUG"):
            traceback.print_exc()
        return _complain(f"internal error: {type(error).__name__}: {error} (please report it)", MountExit.BUG)


def _complain(message: str, status: MountExit) -> MountExit:
    complain(message, ExitStatus.FAILED)
    return status


def _mount(call: _Call) -> MountExit:
    if any(option.startswith("key=") for option in call.options):
        _hide_key(call)
    given: dict[str, Any] = {"roothashes": (), "pubkeys": (), "trust_self": False}
    flags = parse_mount_options(",".join(_options_for_us(call)), given)
    if call.has("-f"):
        source = open_source(call.image, given.get("io_timeout", IO_TIMEOUT), remote_options_of(given))
        with closing(source):
            # An image elsewhere is open when its size is known.
            _ = source.size
        return MountExit.DONE
    namespace = MountNamespace(call.namespace) if call.namespace is not None else None
    job = prepare(given, flags, call.image, call.mountpoint, namespace)

    def serve(report: Report) -> int:
        if namespace is not None:
            # Imported while its files are accessible; ``serve_mount`` imports the rest only in that namespace.
            for module in "mystfuse.mounting.session", "mystfuse.image.unlock", "logging.handlers":
                importlib.import_module(module)
            namespace.enter()
        return serve_mount(job, report)

    keep = job.descriptors | ({namespace.descriptor} if namespace is not None else set())
    started = run_in_background(serve, keep)
    if started.status is not ExitStatus.DONE:
        return _complain(started.message, MountExit.USAGE if started.status is ExitStatus.USAGE else MountExit.FAILED)
    if call.has("-v"):
        say(started.message)
    return MountExit.DONE


def _options_for_us(call: _Call) -> list[str]:
    """The options of -o that are ours, and the last of each pair of opposites.

    Raises:
        UsageError: an option that mount(8) cannot have here.
    """
    options: list[str] = []
    for option in call.options:
        name = option.partition("=")[0]
        if name in _NOT_HERE:
            raise UsageError(f"-o {option}: {_NOT_HERE[name]}")
        for pair in _OPPOSITES:
            if option in pair:
                options = [other for other in options if other not in pair]
        if _FOR_OTHERS.fullmatch(option) or (call.has("-s") and name not in OPTION_NAMES):
            continue
        options.append(option)
    for name in _ALLOWED:
        if f"allow_{name}" in options:
            options = [option for option in options if option != f"allow_{name}"]
            if f"no{name}" not in options:
                options.append(name)
    return options


def _hide_key(call: _Call) -> NoReturn:
    """Start this program again with the key of ``-o key=HEX`` in a pipe: then neither the daemon's command line nor its
    memory contains it."""
    keys = [option.removeprefix("key=") for option in call.options if option.startswith("key=")]
    if not re.fullmatch(rf"([0-9a-fA-F]{{2}}){{1,{MAX_KEY_DIGITS // 2}}}", keys[0]) or len(keys) > 1:
        raise UsageError("-o key=HEX: one key, in hex digits")
    if any(re.match("(key_?file|passphrase_file)=", option) for option in call.options):
        raise UsageError("-o key=HEX and a file with a key exclude each other: one of them opens the image")
    warn("-o key= shows the key to everybody who can list processes, while mount runs: use -o keyfile=FILE")
    receiver, sender = os.pipe()
    os.write(sender, keys[0].encode())
    os.close(sender)
    os.set_inheritable(receiver, True)
    # The words before our arguments: the interpreter, and the script or -m MODULE.
    interpreter = sys.orig_argv[1 : len(sys.orig_argv) - (len(sys.argv) - 1)]
    os.execv(sys.executable, [sys.executable, *interpreter, *call.without_key(receiver)])  # noqa: S606


if __name__ == "__main__":
    from mystfuse.cli.start import mount_helper

    mount_helper()

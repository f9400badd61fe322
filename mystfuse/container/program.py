"""Whether a program in a root directory is executable, checked before trying: the answer of a shell, and the reason.

Sources: elf(5), execve(2), and POSIX's exit statuses 126 and 127 (Shell Command Language, 2.8.2).
"""

from __future__ import annotations

import os
import platform
import stat
import struct
from pathlib import PurePosixPath

from mystfuse.container.root_directory import Root
from mystfuse.errors import ExitStatus, MystfuseError

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MAX_INTERPRETERS = 5
"""execve(2) follows so many scripts that are interpreters of scripts."""
_MAX_LINE = 256
"""Bytes of a #! line that the kernel reads (BINPRM_BUF_SIZE)."""
_PT_INTERP = 3
_MACHINES = {"x86_64": (62, 3), "aarch64": (183, 40), "riscv64": (243,), "ppc64le": (21,), "s390x": (22,)}
"""e_machine of the programs that a machine runs, those of 32 bits last."""


class NotExecutable(MystfuseError):
    """The file exists, but is not executable."""

    exit_status = ExitStatus.NOT_EXECUTABLE


class ProgramNotFound(MystfuseError):
    """The file, or its interpreter, does not exist."""

    exit_status = ExitStatus.PROGRAM_NOT_FOUND


def find_program(root: Root, program: str, search_path: str, directory: str, allows_32_bit: bool) -> str:
    """The absolute path in ``root`` of the executable program that ``program`` means.

    Args:
        search_path: directories, for a name without a slash, as in PATH.
        directory: what a relative path is relative to.
        allows_32_bit: whether a 64-bit machine may run a 32-bit program: the filter of system calls would end it.

    Raises:
        ProgramNotFound, NotExecutable: with the reason.
    """
    if "/" in program:
        path = str(PurePosixPath(directory) / program)
        _check(root, path, 0, allows_32_bit)
        return path
    refusal: MystfuseError = ProgramNotFound(f"{program}: not found in the image (PATH={search_path})")
    for place in search_path.split(":"):
        path = str(PurePosixPath(directory) / place / program)
        try:
            _check_permission(root, path)
        except ProgramNotFound:
            continue
        except NotExecutable as error:
            refusal = error
            continue
        _check(root, path, 0, allows_32_bit)
        return path
    raise refusal


def _check_permission(root: Root, path: str) -> None:
    try:
        fd = root.open(path, os.O_PATH)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ProgramNotFound(f"{path}: no such program in the image") from error
    except OSError as error:
        raise NotExecutable(f"{path}: {error.strerror}") from error
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise NotExecutable(f"{path}: is a directory")
        if not stat.S_ISREG(mode) or not os.access(f"/proc/self/fd/{fd}", os.X_OK):
            raise NotExecutable(f"{path}: is not executable (mode {stat.S_IMODE(mode):04o})")
    finally:
        os.close(fd)


def _check(root: Root, path: str, depth: int, allows_32_bit: bool) -> None:
    """Check that the kernel can execute ``path``: itself, its interpreter, its loader."""
    if depth > _MAX_INTERPRETERS:
        raise NotExecutable(f"{path}: too many interpreters of interpreters")
    _check_permission(root, path)
    try:
        fd = root.open(path, os.O_RDONLY)
    except PermissionError:
        # Executable without being readable: then the kernel decides.
        return
    except OSError as error:
        raise NotExecutable(f"{path}: {error.strerror}") from error
    with open(fd, "rb") as file:
        try:
            start = file.read(_MAX_LINE)
            if start.startswith(b"#!"):
                words = start[2:].split(b"\n", 1)[0].split()
                interpreter = os.fsdecode(words[0]) if words else ""
                what = "interpreter"
            elif start.startswith(b"\x7fELF"):
                interpreter = _elf_interpreter(file.fileno(), path, allows_32_bit)
                what = "loader"
            else:
                raise NotExecutable(f"{path}: neither a program nor a script that begins with #!")
        except OSError as error:
            raise NotExecutable(f"{path}: {error.strerror}") from error
    if not interpreter:
        if what == "interpreter":
            raise NotExecutable(f"{path}: its first line names no interpreter")
        return
    try:
        _check(root, interpreter, depth + 1, allows_32_bit)
    except ProgramNotFound as error:
        raise ProgramNotFound(f"{path}: its {what} {interpreter} is not in the image") from error


def _elf_interpreter(fd: int, path: str, allows_32_bit: bool) -> str:
    """The loader that an ELF program names, nothing for a static one."""
    header = os.pread(fd, 64, 0)
    if len(header) < 52 or header[4] not in (1, 2) or header[5] not in (1, 2):
        raise NotExecutable(f"{path}: a broken ELF program")
    is_64, order = header[4] == 2, "<" if header[5] == 1 else ">"
    (machine,) = struct.unpack_from(f"{order}H", header, 18)
    if machine not in _MACHINES.get(platform.machine(), (machine,)):
        raise NotExecutable(f"{path}: a program for another machine (ELF machine {machine})")
    if not is_64 and not allows_32_bit:
        raise NotExecutable(f"{path}: a 32-bit program, whose system calls are not filtered: needs --privileged")
    if is_64 and len(header) == 64:
        (table,) = struct.unpack_from(f"{order}Q", header, 32)
        entry_size, count = struct.unpack_from(f"{order}HH", header, 54)
        layout = f"{order}I4xQ16xQ"
    else:
        (table,) = struct.unpack_from(f"{order}I", header, 28)
        entry_size, count = struct.unpack_from(f"{order}HH", header, 42)
        layout = f"{order}II8xI"
    if table >= 1 << 62 or entry_size < struct.calcsize(layout):
        raise NotExecutable(f"{path}: a broken ELF program")
    for index in range(count):
        entry = os.pread(fd, entry_size, table + index * entry_size)
        if len(entry) < entry_size:
            raise NotExecutable(f"{path}: a broken ELF program")
        kind, offset, size = struct.unpack_from(layout, entry)
        if kind == _PT_INTERP:
            if offset >= 1 << 62:
                raise NotExecutable(f"{path}: a broken ELF program")
            return os.fsdecode(os.pread(fd, min(size, 4096), offset).split(b"\0", 1)[0])
    return ""

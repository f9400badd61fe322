"""Operations on files that stay open from operation to operation, each in a numbered slot of its file system."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from tests.support.model.contents import At, pattern
from tests.support.model.mounted import FileSystem
from tests.support.model.operations import Operation
from tests.support.model.results import OK, failure


@dataclass(frozen=True)
class HandleOperation(Operation):
    """An operation on an open file; EBADF when there is none."""

    slot: int

    def run(self, system: FileSystem) -> object:
        if self.slot not in system.slots:
            raise failure(errno.EBADF)
        return self.use(system, system.slots[self.slot])

    def use(self, system: FileSystem, handle: int) -> object:
        raise NotImplementedError


@dataclass(frozen=True)
class OpenHandle(Operation):
    """Open a file and keep it; the file in the slot is closed."""

    slot: int
    path: str
    flags: int
    mode: int = 0o644

    def run(self, system: FileSystem) -> object:
        if self.slot in system.slots:
            system.close(system.slots.pop(self.slot))
        system.slots[self.slot] = system.open(self.path, self.flags, self.mode)
        return OK


@dataclass(frozen=True)
class OpenNameless(Operation):
    """Make a file without a name, and keep it open; the file in the slot is closed."""

    slot: int
    directory: str
    mode: int = 0o644

    def run(self, system: FileSystem) -> object:
        if self.slot in system.slots:
            system.close(system.slots.pop(self.slot))
        system.slots[self.slot] = system.open_nameless(self.directory, self.mode)
        return OK


@dataclass(frozen=True)
class LinkHandle(HandleOperation):
    """Give an open file a name."""

    path: str

    def use(self, system: FileSystem, handle: int) -> object:
        system.link_handle(handle, self.path)
        return system.fstat(handle)


@dataclass(frozen=True)
class CloseHandle(HandleOperation):
    def use(self, system: FileSystem, handle: int) -> object:
        del system.slots[self.slot]
        system.close(handle)
        return OK


@dataclass(frozen=True)
class ReadHandle(HandleOperation):
    at: At
    length: At

    def use(self, system: FileSystem, handle: int) -> object:
        return system.pread(handle, self.length.resolve(system.block_size), self.at.resolve(system.block_size))


@dataclass(frozen=True)
class WriteHandle(HandleOperation):
    at: At
    length: At
    fill: int = 0

    def use(self, system: FileSystem, handle: int) -> object:
        data = pattern(self.fill, self.length.resolve(system.block_size))
        return system.pwrite(handle, data, self.at.resolve(system.block_size)), system.fstat(handle)


@dataclass(frozen=True)
class TruncateHandle(HandleOperation):
    size: At

    def use(self, system: FileSystem, handle: int) -> object:
        system.ftruncate(handle, self.size.resolve(system.block_size))
        return system.fstat(handle)


@dataclass(frozen=True)
class ChmodHandle(HandleOperation):
    mode: int

    def use(self, system: FileSystem, handle: int) -> object:
        system.fchmod(handle, self.mode)
        return system.fstat(handle)


@dataclass(frozen=True)
class StatHandle(HandleOperation):
    def use(self, system: FileSystem, handle: int) -> object:
        return system.fstat(handle)


@dataclass(frozen=True)
class SyncHandle(HandleOperation):
    def use(self, system: FileSystem, handle: int) -> object:
        system.fsync(handle)
        return OK

"""One worker: runs one operation after another on its share of the mount, and compares results with its model."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable

from soaking.meter import Meter, Phase
from soaking.model import Directory, Entry
from soaking.naming import Naming
from soaking.reading import Reading
from soaking.share import Task, Wrong

_MOST_FILES = 60


class Worker(Reading, Naming):
    """See the module."""

    def __init__(self, task: Task, meter: Meter) -> None:
        super().__init__(task, meter)
        self._steps: dict[Callable[[], None], int] = {
            self._walk_image: 1,
            self._read_image: 10,
            self._list: 6,
            self._look: 6,
            self._look_for_absent: 4,
            self._read: 12,
            self._read_mapped: 4,
            self._read_direct: 4,
            self._read_kept: 2,
            self._create: 12,
            self._overwrite: 12,
            self._append: 8,
            self._write_direct: 4,
            self._write_mapped: 6,
            self._truncate: 6,
            self._rename: 10,
            self._rename_directory: 2,
            self._link: 4,
            self._symlink: 3,
            self._unlink: 8,
            self._mkdir: 4,
            self._rmdir: 3,
            self._xattr: 5,
            self._open: 3,
            self._use_open: 6,
            self._close: 3,
            self._statfs: 2,
        }

    def step(self) -> None:
        """Run one operation.

        Raises:
            Wrong: the mount differs from the model.
        """
        if self.task.fill and time.monotonic() >= self.meter.fill_at > 0:
            step: Callable[[], None] = self._fill
        elif (held := self._held()) > self.task.budget or len(self._files()) > _MOST_FILES:
            self._is_growing = self._is_growing and held <= self.task.budget
            step = self._unlink
        elif self._is_growing and self._random.random() < 0.5:
            step = self._create
        else:
            (step,) = self._random.choices(list(self._steps), list(self._steps.values()))
        try:
            step()
        except OSError as error:
            # The model changes when a call has returned, so it is right after one that failed.
            self._meter.failed(error.errno or 0)
            if error.errno != errno.ENOSPC:
                raise Wrong(f"{step.__name__.strip('_')}: {error}") from error

    def check(self) -> None:
        """Compare everything with the model; raises Wrong."""
        try:
            for top in (self.own, self.shared):
                for directory in top.below():
                    self._check_listing(directory)
                    for name, node in directory.children.items():
                        self._check_node(Entry(directory, name, node))
            for held in self.opened:
                self._check_open(held)
        except OSError as error:
            raise Wrong(f"check: {error}") from error

    def remove(self) -> None:
        """Remove everything, and close all files; raises Wrong."""
        try:
            for held in self.opened:
                self._check_open(held)
                os.close(held.descriptor)
            self.opened.clear()
            for directory in [*self.own.below(), *self.shared.below()][::-1]:
                for name, node in list(directory.children.items()):
                    path = f"{directory.location()}/{name}"
                    with self._meter.timed("rmdir" if isinstance(node, Directory) else "unlink"):
                        (os.rmdir if isinstance(node, Directory) else os.unlink)(path)
                    del directory.children[name]
                self._check_listing(directory)
        except OSError as error:
            raise Wrong(f"remove: {error}") from error


def run_worker(task: Task, meter: Meter, say: Callable[[str], None]) -> int:
    """A worker's whole life; returns its exit status. It reports a fault in one line."""
    own = meter.of(task.number)
    try:
        worker = Worker(task, meter)
        while own.state is not Phase.REMOVE:
            phase = meter.phase
            if phase is Phase.RUN:
                own.state = phase
                worker.step()
                continue
            if own.state is not phase:
                if phase is Phase.CHECK:
                    worker.check()
                elif phase is Phase.REMOVE:
                    worker.remove()
                own.state = phase
            time.sleep(0.01)
    except Wrong as error:
        say(f"worker {task.number}: {error}")
        return 1
    return 0

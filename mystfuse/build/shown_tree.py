"""A tree that mke2fs reads as if it were on a disk: it copies directories, and knows neither patterns nor owners."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from mystfuse.archives.file_tree import Contents, Entry
from mystfuse.build.private_mount import PrivateMount
from mystfuse.build.tree_server import TreeServer
from mystfuse.errors import MountError
from mystfuse.fuse.mount_options import MountOptions
from mystfuse.fuse.requirements import require_fuse
from mystfuse.mounting.find_daemon import name_this_process
from mystfuse.mounting.keeper_client import Keeper
from mystfuse.system.confinement import CAP_DAC_READ_SEARCH, drop_privileges


class ShownTree:
    """A mount that shows a tree, while the ``with`` block runs, to the user who runs this.

    That user may read all of it, whoever its files' owners are.
    """

    def __init__(self, root: Entry, contents: Contents) -> None:
        self._root = root
        self._contents = contents
        self._mount = PrivateMount("tree", True, False, contents.descriptors, self._serve)

    @property
    def path(self) -> str:
        return self._mount.path

    @property
    def server(self) -> int | None:
        """pidfd of the process that serves it."""
        return self._mount.server

    def __enter__(self) -> ShownTree:
        """Raises MountError when FUSE is not available."""
        try:
            require_fuse(by_pyfuse3=False)
        except MountError as error:
            raise error.at("archives, --exclude and --from-list are shown to mke2fs by a mount") from None
        try:
            self._mount.begin()
        except BaseException:
            self._mount.end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._mount.end()

    def _serve(self, keeper: Keeper, options: MountOptions, report: Callable[[], None]) -> None:
        """Runs in the child."""
        drop_privileges(keep=1 << CAP_DAC_READ_SEARCH)
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler)
        device, found = keeper.mount()
        assert device is not None
        try:
            name_this_process(found)
            report()
            TreeServer(self._root, self._contents).serve(device)
        except KeyboardInterrupt:
            pass
        finally:
            # After any error the keeper's mount would have no server.
            with suppress(MountError):
                keeper.unmount(lazy=True)

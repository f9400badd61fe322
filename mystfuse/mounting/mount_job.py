"""A mount to be made: the result of a mount command's checks before it forks the daemon."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mystfuse.devices.source import StoredSource
from mystfuse.fuse.mount_options import MountOptions
from mystfuse.image.keys import Keys
from mystfuse.image.progress import Progress
from mystfuse.trust.sources import TrustOptions


@dataclass(frozen=True, slots=True)
class MountJob:
    """The image, its trust, its keys, and the options."""

    source: StoredSource
    trust: TrustOptions
    keys: Keys
    options: MountOptions
    progress: Progress
    """Shown while a passphrase is tried."""
    prepare_progress: Callable[[], None]
    """Imports the modules of ``progress``."""
    foreground: bool = False
    log_file: int | None = None
    """A descriptor to append to."""
    ready_fd: int | None = None
    """A descriptor that gets a line when the mount is ready."""

    @property
    def descriptors(self) -> frozenset[int]:
        """The descriptors that the daemon inherits."""
        options = self.options
        wanted = (self.ready_fd, self.log_file, options.descriptor, options.directory, options.overlay_store)
        return self.source.descriptors | {descriptor for descriptor in wanted if descriptor is not None}

    def close(self) -> None:
        """Close the files that only the daemon needs, in the process that has started it."""
        self.source.close()
        if self.options.overlay_store is not None:
            os.close(self.options.overlay_store)

    def describe(self, trust_explanation: str, only_for_reading: Sequence[str] = ()) -> str:
        """One line for the user: image, mountpoint, fate of writes, and why the image is trusted.

        Args:
            only_for_reading: the file system's features because of which nothing can be written.
        """
        where = "memory" if self.options.overlay_store is None else "memory and, encrypted, in the overlay store"
        how = "read-only" if self.options.read_only else f"writes are kept in {where} and forgotten at unmount"
        if only_for_reading and not self.options.read_only:
            how = f"read-only because of {', '.join(only_for_reading)}"
        return f"{self.source.name} mounted on {self.options.mountpoint}, {how}; {trust_explanation}"

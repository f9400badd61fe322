"""The life of a mount, from the opened image to the orderly end, in the process that serves it."""

from __future__ import annotations

import json
import logging
import math
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import pyfuse3
import trio

from mystfuse.crypto.secret import lock_memory
from mystfuse.devices.source import counters_of, parts_of
from mystfuse.errors import CorruptFilesystem, ExitStatus, ImageReadError, IntegrityError, MountError
from mystfuse.ext2.constants import EXT2_ROOT_INO
from mystfuse.fastpath.fast_path import FastPath, is_possible
from mystfuse.fastpath.serve import serve
from mystfuse.fastpath.written_blocks import SharedLookupCounts, WrittenBlocks
from mystfuse.fuse.control_directory import ControlSources
from mystfuse.fuse.init_request import InitRequest
from mystfuse.fuse.libfuse_session import open_session
from mystfuse.fuse.mount_options import MountOptions, OnCorruption
from mystfuse.fuse.operations import Operations
from mystfuse.image.keys import Keys
from mystfuse.image.open import TrustedImage
from mystfuse.image.pipeline import Pipeline, run_pipeline
from mystfuse.image.progress import Progress
from mystfuse.mounting.find_daemon import name_this_process
from mystfuse.mounting.keeper_client import PATIENCE, Keeper
from mystfuse.mounting.mount_table import Mount
from mystfuse.mounting.status_json import status_source
from mystfuse.mounting.unmount import BusyError
from mystfuse.system.confinement import Confinement
from mystfuse.system.threads import call_in_thread
from mystfuse.volume.volume import Volume

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_TASKS = 64
"""Requests handled at once, those that wait for storage included: when all of them wait, nothing else is answered. Each
has a buffer as large as its request, 1 MiB at most."""
_GRACE = 2.0
"""Seconds for pending requests when the mount ends."""
_KEEPER_PATIENCE = PATIENCE + 2.0
"""Seconds for the thread that waits for the keeper, whose requests have a time-out of their own."""
_THREAD_START = 2.0
"""Seconds for that thread to begin, which without memory may never happen."""
_FETCHER_PATIENCE = 1.0
"""Seconds that the fetcher has to say what it has counted."""
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Session:
    """One mount of one image.

    Args:
        keys: for an encrypted image; wiped as soon as it is open.
        keeper: mounts and unmounts for us.
        confinement: for the status, and for the groups of callers.
        progress: shown while a passphrase is tried.
        on_ready: called once, when the kernel's INIT has been answered: from then on the mount answers.
        on_ending: called once, when the mount begins to end.
    """

    def __init__(
        self,
        image: TrustedImage,
        keys: Keys,
        options: MountOptions,
        keeper: Keeper,
        confinement: Confinement,
        on_ready: Callable[[], None],
        progress: Progress,
        on_ending: Callable[[], None] = lambda: None,
    ) -> None:
        self._image = image
        self._keys = keys
        self._progress = progress
        self._options = options
        self._keeper = keeper
        self._confinement = confinement
        self._on_ready = on_ready
        self._on_ending = on_ending
        self.only_for_reading: Sequence[str] = ()
        """The file system's features because of which nothing can be written; known once it is mounted."""
        self._started = time.monotonic()
        self._exit_status = ExitStatus.DONE
        self._stop = trio.Event()
        self._was_mounted = self._is_ending = self._has_ended = False
        self._own_mount: Mount | None = None
        self._keeper_lock = trio.Lock()
        self._serving = trio.CancelScope()
        self._status: Callable[[], dict[str, Any]] = dict
        self._fast_path: FastPath | None = None
        self._fetcher_counters: dict[str, int] | None = {} if counters_of(image.source) is not None else None

    async def run(self) -> ExitStatus:
        """Mount, serve until the mount is gone, and clean up.

        Returns:
            The exit status: DONE after any orderly end, INTEGRITY when ``on_corruption=unmount`` ended it.

        Raises:
            MountError: mounting failed.
            WrongKey: the image is encrypted, and the keys do not open it.
            FormatError, IntegrityError, ImageReadError: reading the file system failed.
        """
        with trio.open_signal_receiver(*_STOP_SIGNALS, signal.SIGUSR1) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_signals, signals)
                nursery.start_soon(self._watch_stop, nursery.cancel_scope)
                await self._mount_and_serve()
                nursery.cancel_scope.cancel()
        if not self._was_mounted:
            raise MountError(f"{self._options.mountpoint}: ended by a signal before it was mounted")
        log.info("unmounted %s", self._options.mountpoint)
        return self._exit_status

    async def _mount_and_serve(self) -> None:
        async with run_pipeline(self._image, self._keys, self._options.io_timeout, self._progress) as pipeline:
            options = self._options
            limit = None if options.read_only else options.overlay_limit
            volume = await Volume.open(
                pipeline.device, limit, pipeline.workers, options.overlay_store, options.io_timeout
            )
            self.only_for_reading = volume.superblock.only_for_reading
            if volume.overlay is None:
                self._options = options = replace(options, read_only=True)
            # Here, with all keys in memory: the process is the daemon's own, not a program's that uses the API.
            if (pipeline.unlocked or options.overlay_store is not None) and not lock_memory():
                log.info("keys and plaintext may be swapped out: the limit of locked memory is too low (ulimit -l)")
            await self._check_root(volume)
            self._status = status_source(
                self._image.trust,
                self._options,
                pipeline,
                volume,
                self._confinement,
                self._started,
                lambda: None if self._fast_path is None else self._fast_path.counts(),
                lambda: self._fetcher_counters,
            )
            if pipeline.verity:
                pipeline.verity.on_damage = self._corruption
            descriptor, self._own_mount = await self._ask_keeper(
                partial(self._keeper.mount, options.read_only), "mount"
            )
            try:
                if descriptor is None:
                    descriptor = self._options.descriptor
                assert descriptor is not None
                init = InitRequest(descriptor, self._options.handles)
                self._fast_path = fast_path = self._start_fast_path(pipeline, volume, init)
                operations = Operations(
                    volume,
                    self._options,
                    self._status,
                    self._confinement.groups_of,
                    init.finish if fast_path is None else lambda: None,
                    None if fast_path is None else SharedLookupCounts(fast_path),
                    ControlSources(
                        self._refresh_status if self._fetcher_counters is not None else None,
                        lambda: pipeline.verity.tree.touched if pipeline.verity else [],
                    ),
                )
                open_session(operations, f"/dev/fd/{init.descriptor}", self._options.fuse_options())
            except BaseException:
                # After any error (memory, descriptors) the mount would have no daemon.
                with suppress(MountError):
                    self._keeper.unmount(lazy=True)
                if self._fast_path is not None:
                    self._fast_path.stop()
                raise
            self._was_mounted = True
            try:
                name_this_process(self._own_mount)
                with self._serving:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._watch_idleness, operations)
                        nursery.start_soon(self._announce_ready, operations)
                        nursery.start_soon(volume.name_damaged)
                        if fast_path is not None:
                            nursery.start_soon(serve, fast_path, operations.requests, self._end_serving)
                        await pyfuse3.main(max_tasks=MAX_TASKS)
                        nursery.cancel_scope.cancel()
            finally:
                # terminate() would crash after close().
                self._has_ended = True
                self._announce_end()
                with trio.CancelScope(shield=True):
                    await self._unmount()
                    # Not by libfuse, which would unmount any mount that is at the path by now.
                    pyfuse3.close(unmount=False)
                    if fast_path is not None:
                        fast_path.stop()
                        init.close()

    def _start_fast_path(self, pipeline: Pipeline, volume: Volume, init: InitRequest) -> FastPath | None:
        """The fast path, if there can be one. It may answer requests from now on."""
        parts = parts_of(self._image.source)
        if not is_possible(self._options) or not parts:
            return None
        try:
            fast_path = FastPath.make(pipeline, parts, volume.superblock, self._options, init)
            fast_path.start()
        except (MemoryError, RuntimeError) as error:
            log.warning("%s: Python answers all requests", error)
            return None
        if volume.written is not None:
            # Nothing but the journal has been written, and no request has come, before INIT is answered.
            try:
                volume.written.set_mirror(WrittenBlocks(fast_path))
            except MemoryError as error:
                log.warning("%s: Python answers all requests", error)
                fast_path.give_up()
        return fast_path

    async def _refresh_status(self) -> None:
        """Ask the fetcher what it has counted."""
        ask = counters_of(self._image.source)
        assert ask is not None
        with trio.move_on_after(_FETCHER_PATIENCE), suppress(ImageReadError, RuntimeError, MemoryError):
            self._fetcher_counters = await call_in_thread(ask)

    def _end_serving(self) -> None:
        if not self._has_ended:
            pyfuse3.terminate()

    async def _check_root(self, volume: Volume) -> None:
        root = await volume.inode(EXT2_ROOT_INO)
        if not root.is_directory:
            raise CorruptFilesystem("the root inode is not a directory: run e2fsck on the image it was made from")

    async def _announce_ready(self, operations: Operations) -> None:
        await operations.ready.wait()
        # init() runs while INIT is handled, without an await; as we run again, libfuse has answered INIT.
        if self._fast_path is not None:
            await self._fast_path.begun()
        # From elsewhere, what the kernel reads around each page of a program would cost more time than requests do.
        if self._own_mount is not None and counters_of(self._image.source) is None:
            with suppress(MountError):
                await self._ask_keeper(self._keeper.raise_read_ahead, "read ahead")
        self._on_ready()

    def _announce_end(self) -> None:
        if not self._is_ending:
            self._is_ending = True
            self._on_ending()

    async def _watch_signals(self, signals: AsyncIterator[int]) -> None:
        async for number in signals:
            if number == signal.SIGUSR1:
                log.warning("status: %s", json.dumps(self._status()))
            else:
                log.info("ending: %s", signal.Signals(number).name)
                self._stop.set()

    async def _watch_stop(self, everything: trio.CancelScope) -> None:
        await self._stop.wait()
        if not self._was_mounted:
            everything.cancel()
            return
        self._announce_end()
        await self._unmount()
        if not self._has_ended:
            pyfuse3.terminate()
            # Requests that wait for storage get a moment, then the mount ends without them.
            await trio.sleep(_GRACE)
            self._serving.cancel()

    async def _unmount(self) -> None:
        """Unmount our mount, if it still exists, while the loop still serves."""
        try:
            await self._unmount_by_keeper()
        except BusyError:
            log.warning("%s is in use: unmounted lazily", self._options.mountpoint)
            try:
                await self._unmount_by_keeper(lazy=True)
            except MountError as error:
                log.error("%s", error)
        except MountError as error:
            log.info("%s", error)

    async def _unmount_by_keeper(self, lazy: bool = False) -> bool:
        """``Keeper.unmount``, in a thread."""
        return await self._ask_keeper(partial(self._keeper.unmount, lazy), "unmount")

    async def _ask_keeper(self, request: Callable[[], T], what: str) -> T:
        """Send the keeper a request and wait for the answer in a thread, one request at a time and each to its end.

        Raises:
            MountError: there is no thread or no memory for it, or what the request raises.
        """
        token = trio.lowlevel.current_trio_token()
        async with self._keeper_lock:
            try:
                with trio.fail_after(_THREAD_START) as scope:
                    scope.shield = True

                    def begin() -> T:
                        token.run_sync_soon(setattr, scope, "deadline", scope.deadline + _KEEPER_PATIENCE)
                        return request()

                    return await call_in_thread(begin)
            except trio.TooSlowError as error:
                raise MountError(f"{self._options.mountpoint}: cannot {what}: no thread for it in time") from error
            except RuntimeError as error:
                raise MountError(f"{self._options.mountpoint}: cannot {what}: {error}") from error

    async def _watch_idleness(self, operations: Operations) -> None:
        timeout = self._options.idle_timeout
        if timeout == math.inf:
            return
        while True:
            idle = self._idle_seconds(operations)
            if idle < timeout:
                await trio.sleep(timeout - idle)
                continue
            try:
                if await self._unmount_by_keeper():
                    log.info("unmounted after %g s without use", timeout)
                return
            except BusyError:
                # In use without a request: a current directory, a mapped file.
                await trio.sleep(timeout)
            except MountError as error:
                log.error("idle, but %s", error)
                return

    def _idle_seconds(self, operations: Operations) -> float:
        """Seconds since the last request, 0 while a file is open."""
        open_handles, idle = operations.open_handles, time.monotonic() - operations.last_request
        if self._fast_path is not None:
            counts = self._fast_path.counts()
            open_handles += counts.open_files
            idle = min(idle, time.monotonic() - counts.last_request)
        return 0.0 if open_handles else idle

    def _corruption(self, error: IntegrityError) -> None:
        if self._options.on_corruption is OnCorruption.UNMOUNT and not self._stop.is_set():
            log.error("unmounting because of damage: %s", error)
            self._exit_status = ExitStatus.INTEGRITY
            self._stop.set()

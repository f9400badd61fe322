"""The C threads that own /dev/fuse: made for one mount, started, asked, stopped."""

from __future__ import annotations

import logging
import os
import resource
from dataclasses import dataclass
from typing import Any

import trio

from mystfuse import kernels
from mystfuse.devices.source import SourcePart
from mystfuse.ext2.constants import EXT4_EA_INODE_FL
from mystfuse.ext2.inode import ExtendedFormat
from mystfuse.ext2.superblock import Superblock
from mystfuse.fuse.attributes import CACHE_SECONDS
from mystfuse.fuse.control_directory_names import CONTROL_INO, CONTROL_NAME
from mystfuse.fuse.init_request import InitRequest
from mystfuse.fuse.mount_options import MountOptions
from mystfuse.fuse.protocol import OPCODES, Opcode
from mystfuse.image.pipeline import Pipeline
from mystfuse.overlay.arena import ARENA_SIZE

log = logging.getLogger(__name__)

_FUSE_DONT_MASK = 1 << 6
_FUSE_PARALLEL_DIROPS, _FUSE_CACHE_SYMLINKS, _FUSE_HANDLE_KILLPRIV_V2 = 1 << 18, 1 << 23, 1 << 28
_WANTED = _FUSE_DONT_MASK | _FUSE_PARALLEL_DIROPS | _FUSE_CACHE_SYMLINKS | _FUSE_HANDLE_KILLPRIV_V2
"""Capabilities of the kernel that libfuse or pyfuse3 does not ask for: that a default ACL replaces the umask, which we
apply; look-ups and listings of one directory side by side; targets of symbolic links in the page cache; and that we
take a file's privileges away when it is written to, so that the kernel does not ask for ``security.capability`` before
each write (``fuse.direct_requests``)."""
_BACKGROUND = 48
"""Reads for the page cache that the kernel sends at once."""
_MAX_LISTENERS = 8
_SPARE = 12
"""Threads that wait for storage at the same time."""
_MIN_LIMIT = 256 << 20
"""Bytes of RLIMIT_AS and RLIMIT_DATA: the threads' buffers count in full, though most pages are never touched."""
_LOOK = 0.0005
"""Seconds between two looks whether INIT has been answered."""
_PATIENCE = 1.0
"""Seconds that a thread waits for storage at most. Then Python does, for the mount's whole time-out."""


_MAX_DESCRIPTOR_BLOCKS = 1 << 16
"""Blocks of group descriptors that the threads know the places of, with meta_bg; Python sees to further ones."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What the C threads have done since the mount; bytes are added to the counts of Python's devices."""

    bytes_fetched: int
    bytes_decrypted: int
    open_files: int
    last_request: float
    """As ``time.monotonic``."""
    answered: dict[str, int]
    """Requests by kind."""
    forwarded: dict[str, int]
    """Requests handed over to Python, by kind."""


NOTHING_DONE = Counts(0, 0, 0, 0.0, {}, {})


class FastPath:
    """The fast path of one mount. Use ``FastPath.make``, which keeps to what the C code knows.

    Args:
        configuration: ``fastpath_config``.
        kept: what it refers to.

    Raises:
        MemoryError: there is no memory for it.
    """

    def __init__(self, configuration: Any, kept: list[Any]) -> None:
        from mystfuse.kernels.native import ffi, lib

        self._ffi, self._lib = ffi, lib
        self._kept = kept
        self.handle = lib.fastpath_new(configuration)
        """``fastpath *``."""
        if not self.handle:
            raise MemoryError("no memory for the fast path")
        self.is_freed = False
        """Whether ``stop`` has given ``handle`` back."""

    @classmethod
    def make(
        cls,
        pipeline: Pipeline,
        parts: list[SourcePart],
        superblock: Superblock,
        options: MountOptions,
        init: InitRequest,
    ) -> FastPath:
        """The fast path of a mount, before its first request is answered.

        Args:
            parts: the files that the image is made of.

        Raises:
            MemoryError: there is no memory for it, or a limit of the process leaves too little.
        """
        from mystfuse.kernels.native import ffi

        limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
        if any(0 <= limit < _MIN_LIMIT for limit in limits):
            raise MemoryError(f"no memory for the fast path: it needs {_MIN_LIMIT >> 20} MB (ulimit -v, -d)")

        configuration = ffi.new("fastpath_config *")
        kept: list[Any] = [configuration, pipeline]
        configuration.part_count = len(parts)
        for index, part in enumerate(parts):
            configuration.parts[index] = tuple(part)
        if pipeline.verity is not None:
            tree: Any = pipeline.verity.tree
            configuration.tree = tree.native
        if pipeline.unlocked is not None:
            device = pipeline.unlocked.device
            cipher: Any = device.cipher
            configuration.cipher, configuration.iv_tweak = cipher.native
            configuration.payload_offset, configuration.payload_size = device.payload_offset, device.size
            configuration.sector_size = device.sector_size
        _describe_file_system(configuration, superblock)
        _describe_extensions(configuration, superblock, kept)
        _describe_view(configuration, options, kept)
        configuration.fuse_fd, configuration.socket_fd = init.device, init.other_end
        configuration.init_clear = 0
        # Without ACLs the kernel takes the umask away, whatever default ACLs say.
        wanted = _WANTED if options.enforces_acl else _WANTED & ~_FUSE_DONT_MASK
        configuration.init_set = init.offered & wanted
        configuration.max_background = _BACKGROUND
        configuration.python_opcodes = sum(1 << opcode for opcode in Opcode)
        processors = len(os.sched_getaffinity(0))
        configuration.listeners = max(min(processors, _MAX_LISTENERS), 2)
        configuration.spare = _SPARE
        configuration.may_spin = processors > 1
        configuration.patience = int(min(_PATIENCE, options.io_timeout / 4) * 1e9)
        configuration.arena_size = ARENA_SIZE
        return cls(configuration, kept)

    def start(self) -> None:
        """Begin to serve.

        Raises:
            RuntimeError: no thread can be started.
        """
        if not self._lib.fastpath_start(self.handle):
            self._lib.fastpath_free(self.handle)
            raise RuntimeError("no thread for the fast path can be started")

    def stop(self) -> None:
        """End all threads. What still waits for storage is left behind, with its memory."""
        if self._lib.fastpath_stop(self.handle):
            self.is_freed = True
            self._lib.fastpath_free(self.handle)
        else:
            log.info("threads still wait for the image's storage")

    def give_up(self) -> None:
        """Hand all requests over to Python from now on."""
        self._lib.fastpath_give_up(self.handle)

    async def begun(self) -> None:
        """Until the kernel has the answer to INIT, which goes through a thread of ours, or the mount has ended."""
        # The thread tells nobody, and takes less than one look.
        while not self._lib.fastpath_has_begun(self.handle) and not self.has_ended:  # noqa: ASYNC110
            await trio.sleep(_LOOK)

    @property
    def has_ended(self) -> bool:
        """Whether the kernel has ended the mount."""
        return bool(self._lib.fastpath_has_ended(self.handle))

    async def wait(self) -> None:
        """Until there is a request, or the mount has ended."""
        await trio.lowlevel.wait_readable(self._lib.fastpath_event(self.handle))

    def take(self, microseconds: int = 0) -> Any | None:
        """The next request, for ``content`` and ``done``; None if none comes within so many microseconds. It also ends
        when libfuse gets a request."""
        request = self._lib.fastpath_take(self.handle, microseconds)
        return request or None

    def pause(self) -> None:
        """No more are taken until ``wait`` has returned."""
        self._lib.fastpath_pause(self.handle)

    def content(self, request: Any) -> memoryview:
        """The request as the kernel sent it, until it is done."""
        size = self._lib.fastpath_size(request)
        return memoryview(self._ffi.buffer(self._lib.fastpath_bytes(request), size))

    def done(self, request: Any) -> None:
        """Give a request's memory back."""
        self._lib.fastpath_done(request)

    def reply(self, unique: int, error: int, data: bytes | memoryview = b"") -> bool:
        """Answer a request: ``error`` is 0 or an errno. False if the kernel does not want it any more."""
        return bool(
            self._lib.fastpath_reply(self.handle, unique, error, self._ffi.from_buffer("uint8_t[]", data), len(data))
        )

    def drop_attributes(self, nodeid: int) -> None:
        """Have the kernel drop the attributes that it keeps of an inode."""
        self._lib.fastpath_drop_attributes(self.handle, nodeid)

    def counts(self) -> Counts:
        """As of now."""
        status = self._ffi.new("fastpath_status *")
        self._lib.fastpath_get_status(self.handle, status)
        return Counts(
            status.bytes_fetched,
            status.bytes_decrypted,
            status.open_files,
            status.last_request,
            _by_kind(status.answered),
            _by_kind(status.forwarded),
        )


def is_possible(options: MountOptions) -> bool:
    """Whether a mount may have a fast path."""
    return options.fastpath and kernels.IS_NATIVE


def _by_kind(numbers: Any) -> dict[str, int]:
    return {OPCODES.get(opcode, str(opcode)): count for opcode, count in enumerate(numbers) if count}


def _describe_file_system(configuration: Any, superblock: Superblock) -> None:
    configuration.size = superblock.size
    configuration.block_size = superblock.block_size
    configuration.inode_size = superblock.s_inode_size
    configuration.blocks_count = superblock.s_blocks_count
    configuration.first_data_block = superblock.s_first_data_block
    configuration.blocks_per_group = superblock.s_blocks_per_group
    configuration.groups_count = superblock.groups_count
    configuration.descriptors = superblock.location[0] + 1
    configuration.table_blocks = superblock.table_blocks
    configuration.inodes_count = superblock.s_inodes_count
    configuration.inodes_per_group = superblock.s_inodes_per_group
    configuration.first_ino = superblock.s_first_ino
    configuration.has_filetype = superblock.has_filetype
    configuration.attribute_sectors = superblock.block_size * superblock.blocks_per_cluster // 512
    configuration.descriptor_size = superblock.descriptor_size


def _describe_extensions(configuration: Any, superblock: Superblock, kept: list[Any]) -> None:
    """What ext4 adds."""
    from mystfuse.kernels.native import ffi

    configuration.is_extended = superblock.is_extended
    if not superblock.is_extended:
        return
    features, extended = superblock.features, ExtendedFormat.of(superblock.features, superblock.block_size)
    configuration.usual_flags = extended.flags & ~EXT4_EA_INODE_FL
    configuration.has_huge_files = extended.has_huge_files
    configuration.has_large_directories = extended.has_large_directories
    configuration.is_64bit = extended.is_64bit
    configuration.has_flexible_groups = "flex_bg" in features
    if "meta_bg" in features:
        count = min(superblock.descriptor_blocks, _MAX_DESCRIPTOR_BLOCKS)
        numbers = ffi.new("uint64_t[]", [superblock.descriptor_block(index) for index in range(count)])
        kept.append(numbers)
        configuration.descriptor_blocks, configuration.descriptor_block_count = numbers, count
    configuration.uuid = superblock.s_uuid.bytes
    configuration.has_descriptor_checksums = "uninit_bg" in features
    if superblock.checksums is not None:
        configuration.has_checksums, configuration.checksum_seed = True, superblock.checksums.seed


def _describe_view(configuration: Any, options: MountOptions, kept: list[Any]) -> None:
    from mystfuse.kernels.native import ffi

    configuration.maps_root = options.map_root
    configuration.root_uid, configuration.root_gid = options.owner
    if options.uid is not None:
        configuration.replaces_uid, configuration.uid = True, options.uid
    if options.gid is not None:
        configuration.replaces_gid, configuration.gid = True, options.gid
    configuration.has_xattrs = options.xattr
    name = ffi.new("char[]", CONTROL_NAME)
    kept.append(name)
    configuration.control_name = name
    configuration.control_ino = CONTROL_INO if options.control else 0
    configuration.name_seconds = CACHE_SECONDS

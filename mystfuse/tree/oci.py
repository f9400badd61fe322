"""Making an OCI image of an image's tree: one layer with all of it, a configuration and a manifest.

The same tree and options give the same bytes: the time of creation is that of the newest file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import trio

from mystfuse.archives import oci_media
from mystfuse.archives.json_object import parse_object
from mystfuse.archives.oci_descriptor import Descriptor, to_json
from mystfuse.archives.oci_image_config import (
    ELF_HEADER,
    ConfigChanges,
    ImageConfig,
    elf_architecture,
    own_architecture,
)
from mystfuse.archives.oci_layer import Layer, LayerStream
from mystfuse.errors import FormatError, MystfuseError, innermost
from mystfuse.ext2.inode import Inode
from mystfuse.formats.oci_config import MAX_CONFIG
from mystfuse.system.threads import call_in_thread
from mystfuse.tree.image_tree import ImageTree
from mystfuse.tree.tar import write_tar

_PIECES_WAITING = 2
"""Pieces of the archive that are read ahead of the compression."""


class OciOutput(Protocol):
    """Where the image goes: ``LayoutWriter`` or ``ArchiveWriter``."""

    def write_layer(self, data: bytes) -> None:
        """Append to the layer's blob. Raises MystfuseError."""
        ...

    def publish(self, layer: Descriptor, config: bytes, manifest: bytes, tag: str) -> None:
        """Complete the image. Raises MystfuseError."""
        ...


@dataclass(frozen=True, slots=True)
class OciOptions:
    """What the image is to be."""

    tag: str
    compression: str = "gzip"
    level: int | None = None
    config: Mapping[str, Any] | None = None
    """The configuration to begin with; None: the one in the image, if there is one."""
    config_name: str = ""
    """Its file, for messages."""
    changes: ConfigChanges = ConfigChanges()  # noqa: RUF009  # it is frozen
    epoch: int | None = None
    """The time of creation, in seconds (SOURCE_DATE_EPOCH); None: that of the newest file."""


@dataclass(frozen=True, slots=True)
class OciImage:
    """An image that has been made."""

    manifest: Descriptor
    config: Descriptor
    layer: Layer
    architecture: str
    omitted: Mapping[str, int]
    """What it lacks, and how many: ``socket``, ``attribute of overlayfs``."""


async def write_oci_image(
    tree: ImageTree, output: OciOutput, options: OciOptions, advance: Callable[[int], None]
) -> OciImage:
    """Write the whole tree as an image.

    Args:
        output: written to in threads, one call after the other.
        advance: called with the number of bytes of file data read since the last call.

    Raises:
        UsageError: no such compression.
        FormatError: the image's own configuration is none; also as ``write_tar``.
        MystfuseError: a name in the tree means something else in a layer; or writing failed.
        IntegrityError, ImageReadError
    """
    stream = LayerStream(output.write_layer, options.compression, options.level)
    config = await _load_config(tree, options)
    selection = _Selection(await _find_empty_lost_found(tree))
    omitted = await _write_layer(tree, stream, selection, advance)
    layer = await _in_thread(stream.finish)
    architecture = config.architecture or await _find_architecture(tree, config.program) or own_architecture()
    created = selection.newest if options.epoch is None else options.epoch
    config_data = config.to_bytes(architecture, created, layer.diff_id)
    described = Descriptor.of(oci_media.CONFIG, config_data)
    manifest_data = to_json(
        {
            "schemaVersion": 2,
            "mediaType": oci_media.MANIFEST,
            "config": described.document(),
            "layers": [layer.descriptor.document()],
        }
    )
    await _in_thread(partial(output.publish, layer.descriptor, config_data, manifest_data, options.tag))
    return OciImage(Descriptor.of(oci_media.MANIFEST, manifest_data), described, layer, architecture, omitted)


class _Selection:
    """Decides what goes into the layer, and knows the newest time in it.

    Args:
        lost_found: the inode of an empty ``lost+found``, which is the file system's and not the tree's.
    """

    def __init__(self, lost_found: int | None) -> None:
        self.newest = 0
        """Seconds."""
        self._lost_found = lost_found

    def keep(self, name: bytes, inode: Inode) -> bool:
        if name.rstrip(b"/").rpartition(b"/")[2].startswith(oci_media.WHITEOUT):
            raise MystfuseError(
                'a layer cannot hold this name: there, names that begin with ".wh." say what is removed'
            )
        if inode.ino == self._lost_found or (name == b"./" + oci_media.CONFIG_IN_IMAGE and inode.is_regular):
            return False
        self.newest = max(self.newest, inode.mtime_ns // 10**9)
        return True


async def _find_empty_lost_found(tree: ImageTree) -> int | None:
    try:
        inode = await tree.resolve("/lost+found", follow_symlinks=False)
    except OSError:
        return None
    if not inode.is_directory:
        return None
    async with aclosing(tree.children(inode.ino)) as children:
        async for _ in children:
            return None
    return inode.ino


async def _write_layer(
    tree: ImageTree, stream: LayerStream, selection: _Selection, advance: Callable[[int], None]
) -> dict[str, int]:
    """Write the archive; the next piece is read while the one before is compressed."""
    send, receive = trio.open_memory_channel[bytearray](_PIECES_WAITING)

    async def compress() -> None:
        async with receive:
            async for piece in receive:
                await _in_thread(partial(stream.write, piece))

    omitted: dict[str, int] = {}
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(compress)
            async with send:
                omitted = await write_tar(tree, "/", send.send, advance, selection.keep, is_layer=True)
    except BaseExceptionGroup as group:
        failures = group.split(trio.Cancelled)[1]
        raise innermost(failures or group) from None
    return omitted


async def _in_thread(work: Callable[[], Any]) -> Any:
    """Call ``work`` in a thread, and wait for its end even when cancelled: it writes to files that are closed then."""
    with trio.CancelScope(shield=True):
        result = await call_in_thread(work)
    await trio.lowlevel.checkpoint()
    return result


async def _load_config(tree: ImageTree, options: OciOptions) -> ImageConfig:
    """The configuration that is given, or that the image has, changed as the options say."""
    if options.config is not None:
        config = ImageConfig(options.config, options.config_name)
    else:
        name = f"/{oci_media.CONFIG_IN_IMAGE.decode()}"
        try:
            data = await _read_own_config(tree, name)
            config = ImageConfig(parse_object(data, name) if data is not None else {}, name)
        except FormatError as error:
            raise error.advised("--config FILE replaces it") from error
    config.change(options.changes)
    return config


async def _read_own_config(tree: ImageTree, name: str) -> bytes | None:
    """The configuration in the image; None if there is none."""
    try:
        inode = await tree.resolve(name, follow_symlinks=False)
    except OSError:
        return None
    if not inode.is_regular:
        return None
    if inode.size > MAX_CONFIG:
        raise FormatError(f"{name}: {inode.size} bytes, where at most {MAX_CONFIG} are possible")
    return await tree.open_inode(inode, name).read(MAX_CONFIG)


async def _find_architecture(tree: ImageTree, program: str | None) -> str | None:
    """The machine that the image's program or shell is for."""
    for path in (program, "/bin/sh"):
        if path is None or not path.startswith("/") or "\0" in path:
            continue
        try:
            inode = await tree.resolve(path)
        except OSError:
            continue
        if inode.is_regular:
            found = elf_architecture(await tree.open_inode(inode, path).read(ELF_HEADER))
            if found is not None:
                return found
    return None

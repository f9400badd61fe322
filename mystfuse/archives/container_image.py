"""The tree of an image of a container: ``oci:DIR[:TAG]``, ``oci-archive:FILE[:TAG]``, ``docker-archive:FILE[:TAG]``."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from mystfuse.archives.container_files import ArchiveFiles, ContainerFiles, DirectoryFiles, check_digest
from mystfuse.archives.container_reference import DOCKER, parse_container_image
from mystfuse.archives.docker_archive import read_docker_archive
from mystfuse.archives.layers import ArchivedFile, Layers
from mystfuse.archives.oci_layout import read_layout
from mystfuse.archives.oci_media import CONFIG_IN_IMAGE
from mystfuse.archives.oci_reference import LAYOUT
from mystfuse.archives.spool import Advance, FilePart, decompressed
from mystfuse.archives.tar_tree import ArchiveContents, ArchiveTree, add_layer


@contextmanager
def open_container_image(text: str, advance: Advance = lambda count: None) -> Iterator[ArchiveTree]:
    """The tree of an image, its layers one over the other, until the block ends. The image's configuration is a file
    in the root directory.

    Args:
        text: by ``parse_container_image``.
        advance: called with the number of bytes that have been read since the last call.

    Raises:
        MystfuseError: reading it failed, or there is no room to decompress it.
        FormatError: it is no such image, damaged, or hostile.
    """
    reference = parse_container_image(text)
    with ExitStack() as stack:
        files: ContainerFiles
        if reference.transport == LAYOUT:
            files = DirectoryFiles(reference.path, stack)
        else:
            files = ArchiveFiles(reference.path, stack, advance)
        if reference.transport == DOCKER:
            image = read_docker_archive(files, reference.tag)
        else:
            image = read_layout(files, reference.tag, advance)
        layers = Layers()
        parts: list[FilePart] = []
        for layer in image.layers:
            part = stack.enter_context(decompressed(layer.part, layer.name, advance))
            check_digest(part, layer.diff_id, layer.name)
            parts.append(part)
            add_layer(layers, part, layer.name, with_whiteouts=True)
        parts.append(_put_config(layers, image.config, stack))
        yield ArchiveTree(layers.root, ArchiveContents(parts))


def _put_config(layers: Layers, config: bytes, stack: ExitStack) -> FilePart:
    """Put the configuration into the tree, in place of another that the layers may have."""
    descriptor = os.memfd_create("mystfuse-config", os.MFD_CLOEXEC)
    stack.callback(os.close, descriptor)
    os.write(descriptor, config)
    root = layers.root
    if CONFIG_IN_IMAGE in root.children:
        root.remove(CONFIG_IN_IMAGE)
    time = root.mtime_ns
    root.children[CONFIG_IN_IMAGE] = ArchivedFile(
        CONFIG_IN_IMAGE, stat.S_IFREG | 0o644, 0, 0, len(config), 0, time, time, time, descriptor=descriptor
    )
    return FilePart(descriptor, 0, len(config))

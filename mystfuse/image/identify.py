"""What is this file: an image, one with something missing, or what else; from a bounded number of its bytes.

All of them are unverified: what is said here is for people, and decides nothing. ``nearly_images`` knows what is an
image or could become one, ``formats/others`` everything else.
"""

from __future__ import annotations

import codecs
import importlib
import os
from collections.abc import Callable
from dataclasses import replace

from mystfuse.devices.patience import PatientSource, open_file, wait_for_storage
from mystfuse.devices.source import Remoteness, Source, read_again, remoteness
from mystfuse.errors import MystfuseError
from mystfuse.formats.others import archives, disks, filesystems, texts
from mystfuse.formats.others.kind import ENCODINGS, Kind, Part, Sample
from mystfuse.formats.others.paths import kind_of_mode
from mystfuse.image import nearly_images

MAX_DESCRIBED_PARTS = 16
"""Partitions whose contents are looked at."""


def import_recognizers() -> None:
    """Import what recognizers import when they need it, for a process that loses access to its modules."""
    importlib.import_module("mystfuse.formats.luks_summary")
    importlib.import_module("mystfuse.formats.package")
    for encoding in ENCODINGS:
        # Python imports a codec when it is first used.
        codecs.lookup(encoding)


def identify(source: Source) -> Kind:
    """What a file is.

    Raises:
        ImageReadError: reading it failed; StorageTimeout when storage does not answer.
    """
    return identify_sample(Sample(_reading(source), source.size, os.path.basename(source.name)))


def _reading(source: Source) -> Callable[[int, int], bytes]:
    """What reads a source. Nothing is verified here: so what others may have changed in a cache is read past it."""
    if remoteness(source) is not Remoteness.SHARED_CACHE:
        return source.read

    def read(offset: int, length: int) -> bytes:
        data = read_again(source, offset, length)
        return source.read(offset, length) if data is None else data

    return read


def identify_path(path: str, io_timeout: float) -> Kind | None:
    """What a path names, directories and devices included; None if that cannot be said: nothing is there, or it cannot
    be read within ``io_timeout`` seconds."""
    try:
        kind = wait_for_storage(lambda: kind_of_mode(os.stat(path).st_mode), path, io_timeout)
        if kind is not None:
            return kind
        source = open_file(path, io_timeout)
        try:
            return identify(PatientSource(source, io_timeout))
        finally:
            source.close()
    except (MystfuseError, OSError, ValueError):
        # ValueError: NUL in the name.
        return None


def identify_sample(sample: Sample, with_partitions: bool = True) -> Kind:
    """What these bytes are.

    Args:
        with_partitions: whether to look into partitions, too.
    """
    tables = disks.TABLES if with_partitions else ()
    for recognize in (
        *nearly_images.RECOGNIZERS,
        *filesystems.RECOGNIZERS,
        *disks.RECOGNIZERS,
        *archives.RECOGNIZERS,
        *tables,
        nearly_images.damaged_image,
        *texts.RECOGNIZERS,
    ):
        kind = recognize(sample)
        if kind is not None:
            return _with_contents(kind, sample) if with_partitions and kind.parts else kind
    return texts.unknown(sample)


def _with_contents(disk: Kind, sample: Sample) -> Kind:
    """The same disk, with what is in its partitions."""
    parts: list[Part] = []
    for index, part in enumerate(disk.parts):
        if part.offset + part.size > sample.size:
            part = replace(part, contents="it lies outside the file, which is truncated")
        elif index < MAX_DESCRIBED_PARTS and part.type != "extended":
            inner = sample.part(part.offset, part.size)
            if inner is not None:
                part = replace(part, contents=identify_sample(inner, with_partitions=False).title)
        parts.append(part)
    return replace(disk, parts=tuple(parts))

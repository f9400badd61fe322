"""Hash trees as veritysetup makes them: beside the data or in another file, with a superblock or without."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import click

from mystfuse.cli.options import GivenPath, option_group, parse_size
from mystfuse.cli.remote_options import open_given, remote_options_of
from mystfuse.devices.joined_source import JoinedSource
from mystfuse.devices.patience import IO_TIMEOUT
from mystfuse.devices.source import StoredSource
from mystfuse.errors import FormatError, UsageError
from mystfuse.formats.verity import DIGEST_SIZES, MAX_SALT_SIZE, VeritySuperblock

TREE_PARAMETERS = ("hash", "format", "data_block_size", "hash_block_size", "data_blocks", "salt")
"""What the superblock of a hash tree would say."""

verity_options = option_group(
    click.option(
        "--hash-offset",
        type=parse_size,
        metavar="BYTES",
        help="Where the verity superblock is, for an image without an fssig; needs one --roothash.",
    ),
    click.option(
        "--hash-device",
        type=GivenPath(),
        metavar="FILE",
        help="Where the hash tree is, if not in IMAGE; needs one --roothash.",
    ),
    click.option(
        "--no-superblock",
        is_flag=True,
        help="The tree has no superblock: --hash, --format, --data-block-size, --hash-block-size, "
        "--data-blocks and --salt say what it would, as for veritysetup.",
    ),
    *(click.option(f"--{name.replace('_', '-')}", name, hidden=True) for name in TREE_PARAMETERS),
)


def open_image_source(image: str, given: Mapping[str, Any]) -> tuple[StoredSource, int | None]:
    """Open an image, and what has its hash tree if that is another: files, or addresses of images elsewhere.

    Returns:
        The image, and the byte in it where the verity superblock is, if the options say that.

    Raises:
        UsageError: options that contradict each other, or an invalid one.
        FormatError, ImageReadError: a file is neither regular nor a block device, or cannot be opened;
            StorageTimeout when that takes longer than the ``io_timeout`` given.
        MystfuseError: as ``devices.open_source``.
    """
    hash_offset: int | None = given.get("hash_offset")
    hash_device: str | None = given.get("hash_device")
    has_superblock = not given.get("no_superblock")
    superfluous = [name for name in TREE_PARAMETERS if given.get(name) is not None]
    if has_superblock and superfluous:
        raise UsageError(f"--{superfluous[0].replace('_', '-')} goes with --no-superblock: the superblock says it")
    if not has_superblock and hash_offset is None and hash_device is None:
        raise UsageError("--no-superblock needs --hash-offset or --hash-device: where is the tree?")
    io_timeout: float = given.get("io_timeout", IO_TIMEOUT)
    options = remote_options_of(given)
    data = open_given(image, io_timeout, options)
    if has_superblock and hash_device is None:
        return data, hash_offset
    try:
        tree = open_given(
            image if hash_device is None else hash_device, io_timeout, replace(options, mirrors=(), prefetch=None)
        )
        try:
            block = b""
            if not has_superblock:
                room = data.size if hash_device is not None else hash_offset or 0
                block = _superblock(given, room, hash_offset or 0)
            joined = JoinedSource(data, tree, hash_offset or 0, block)
        except BaseException:
            tree.close()
            raise
    except BaseException:
        data.close()
        raise
    return joined, joined.hash_offset


def _superblock(given: Mapping[str, Any], room: int, hash_offset: int) -> bytes:
    """A hash block that begins with the superblock that the options describe; defaults are veritysetup's.

    Args:
        room: bytes that data may fill.
    """
    algorithm = (given.get("hash") or "sha256").lower()
    if algorithm not in DIGEST_SIZES:
        raise UsageError(f"--hash {algorithm}: not supported; {' and '.join(DIGEST_SIZES)} are")
    text = given.get("salt") or "-"
    # veritysetup(8) writes no salt as "-".
    digits = "" if text == "-" else text
    if not re.fullmatch(rf"([0-9a-fA-F]{{2}}){{0,{MAX_SALT_SIZE}}}", digits):
        raise UsageError(f"--salt {text}: not up to {MAX_SALT_SIZE} bytes in hex digits, or - for none")
    data_block_size, hash_block_size = (_number(given, name, 4096) for name in ("data_block_size", "hash_block_size"))
    superblock = VeritySuperblock(
        _number(given, "data_blocks", room // max(1, data_block_size)),
        bytes.fromhex(digits),
        bytes(16),
        _number(given, "format", 1),
        algorithm,
        data_block_size,
        hash_block_size,
    )
    try:
        packed = superblock.pack()
        VeritySuperblock.parse(packed)
    except (FormatError, ValueError, OverflowError) as error:
        raise UsageError(f"--no-superblock: {error}") from error
    if superblock.data_size > room:
        raise UsageError(f"--data-blocks {superblock.data_blocks}: there are {room} bytes of data")
    if hash_offset % hash_block_size:
        raise UsageError(f"--hash-offset {hash_offset}: without a superblock, a multiple of {hash_block_size}")
    return packed.ljust(hash_block_size, b"\0")


def _number(given: Mapping[str, Any], name: str, default: int) -> int:
    value = given.get(name)
    if value is None:
        return default
    if not re.fullmatch(r"[0-9]{1,18}", value):
        raise UsageError(f"--{name.replace('_', '-')} {value}: not a number")
    return int(value)

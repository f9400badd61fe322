"""The Python interface to images."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Literal

import trio

from mystfuse.api.arguments import HashOrKey, StrPath, check_arguments
from mystfuse.crypto.kdf_limit import KdfLimit
from mystfuse.crypto.secret import Secret
from mystfuse.devices.patience import IO_TIMEOUT, Opening, timed_out
from mystfuse.devices.source import FileSource
from mystfuse.errors import UsageError
from mystfuse.image.keys import Keys
from mystfuse.system.threads import call_in_thread
from mystfuse.tree.extract import extract
from mystfuse.tree.image_tree import ImageTree
from mystfuse.tree.open import open_tree
from mystfuse.trust.signature import PublicKey
from mystfuse.trust.sources import collect_trust, parse_root_hash, read_public_keys


class Image(ImageTree):
    """An image that is open for reading. Use ``mystfuse.open_image``."""

    async def extract(self, path: str | bytes, destination: str | os.PathLike[str]) -> dict[str, int]:
        """Copy a file, or a directory and all below it, out of the image, as ``cp -a`` would.

        Args:
            path: a symbolic link is copied itself.
            destination: must not exist. It appears when it is complete, or not at all.

        Returns:
            Attributes lost for want of permission, and how many times: names of extended attributes, ``owner``,
            ``device``.

        Raises:
            OSError: as ``stat``, or writing ``destination`` failed; EEXIST if it exists.
            CorruptFilesystem: also when names or blocks are used twice, as in no sound file system.
            IntegrityError, ImageReadError
        """
        return await extract(self, path, destination)


@asynccontextmanager
async def open_image(
    image: StrPath,
    *,
    roothashes: Iterable[HashOrKey] = (),
    pubkeys: Iterable[HashOrKey] = (),
    trust: Literal["self"] | None = None,
    insecure: bool = False,
    hash_offset: int | None = None,
    key: bytes | str | None = None,
    passphrase: str | bytes | None = None,
    kdf_limit: tuple[float, int] | None = None,
    io_timeout: float = IO_TIMEOUT,
) -> AsyncIterator[Image]:
    """Open an image for reading, without a mount and without FUSE, for the time of the block. Needs trio.

    Every block is verified before it is returned, as on a mount.

    Args:
        image: path of the image.
        roothashes: trusted root hashes: hex digits, the 32 (sha512: 64) bytes, or the path of a file with hex digits.
        pubkeys: trusted public keys: PEM, or the path of a PEM file. What is in /etc/mystfuse/trust.d counts as well.
        trust: "self" trusts the image by itself when nothing else is trusted: damage is found, a replaced image is not.
        insecure: open anything, even a bare EXT2 file system; where there is a hash tree it is still checked.
        hash_offset: where the verity superblock is, in an image that has no signature block; goes with one root hash.
        key: master key of an encrypted image: the bytes, or hex digits.
        passphrase: passphrase of an encrypted image; of the two, give one.
        kdf_limit: what deriving keys may cost for all of the header: seconds, and bytes of memory; (60, 1 << 30) if
            None. It happens in a process of its own.
        io_timeout: seconds after which opening or reading what storage does not answer fails.

    Raises:
        NotTrusted: the image is not trusted by any root hash or key.
        UsageError: a wrong argument.
        WrongKey: the image is encrypted and the key does not open it, or a key is given and it is not.
        FormatError, IntegrityError, ImageReadError: not an image, or reading it failed.
    """
    check_arguments(trust, key, passphrase, roothashes=roothashes, pubkeys=pubkeys)
    hashes = [_load_root_hash(value) for value in roothashes]
    public_keys = [public_key for value in pubkeys for public_key in _load_public_keys(value)]
    options = collect_trust(hashes, public_keys, insecure, hash_offset, trust_self=trust == "self")
    keys = Keys(
        _secret(key, "key") if key is not None else None,
        _secret(passphrase, "passphrase") if passphrase is not None else None,
    )
    if kdf_limit is not None:
        keys.limit = KdfLimit(*kdf_limit)
    try:
        source = await _open_source(os.fspath(image), io_timeout)
        try:
            async with open_tree(source, options, keys, io_timeout) as tree:
                yield Image(tree.volume, tree.trust)
        finally:
            source.close()
    finally:
        keys.wipe()
        await keys.end_deriver()


async def _open_source(path: str, io_timeout: float) -> FileSource:
    opening = Opening(path)
    try:
        with trio.fail_after(io_timeout):
            return await call_in_thread(opening.run)
    except BaseException as error:
        opening.abandon()
        if isinstance(error, trio.TooSlowError):
            raise timed_out(path, io_timeout) from None
        raise


def _load_root_hash(value: HashOrKey) -> bytes:
    if not isinstance(value, bytes):
        return parse_root_hash(os.fspath(value))
    if len(value) not in (32, 64):
        raise UsageError(f"a root hash of {len(value)} bytes: sha256 has 32, sha512 64")
    return value


def _load_public_keys(value: HashOrKey) -> list[PublicKey]:
    return PublicKey.all_from_pem(value, "pubkeys") if isinstance(value, bytes) else read_public_keys(os.fspath(value))


def _secret(value: str | bytes, name: str) -> Secret:
    if not value:
        raise UsageError(f"{name}: empty")
    return Secret.copy_of(os.fsencode(value))
